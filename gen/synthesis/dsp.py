"""Registers around the multipliers of an ECP5 netlist, moved into them: Yosys leaves those of MULT18X18D unused.

A multiplier has registers behind its inputs and before its output (Lattice FPGA-TN-02205). Using them saves flip-flops, their nets between
multipliers and logic, and the way to them on the slowest paths.
"""

from collections import defaultdict
from typing import Any

__all__ = ["absorb_registers"]

_WIDTHS = {"A": 18, "B": 18, "P": 36}
_REGISTERS = {"A": "REG_INPUTA", "B": "REG_INPUTB", "P": "REG_OUTPUT"}


def absorb_registers(module: dict[str, Any]) -> int:
    """Move registers into the multipliers of a flat module of Yosys's JSON, in place.

    Moved are those of both inputs (nextpnr has no timing for one alone), and those of the output. Every bit must have a register (or be 0;
    several bits of an input may have the same), beside which nothing else reads the bit, all with one clock and one enable, without reset.

    Returns
    -------
    int : registers moved.
    """
    cells, drivers, readers = module["cells"], {}, defaultdict(list)
    for name, cell in cells.items():
        for port, bits in cell["connections"].items():
            for bit in bits:
                if cell["port_directions"][port] == "output":
                    drivers[bit] = name
                else:
                    readers[bit].append((name, port))
    for port in module["ports"].values():
        for bit in port["bits"]:
            readers[bit].append((None, None))
    moved = 0
    for name in [name for name, cell in cells.items() if cell["type"] == "MULT18X18D"]:
        found = {side: _registers(name, side, cells, drivers, readers) for side in _WIDTHS}
        if not (found["A"] and found["B"]):
            found["A"] = found["B"] = None
        cell, enables = cells[name], []
        for side, registers in found.items():
            if not registers:
                continue
            clock, enable = _kind(cells[next(iter(registers.values()))])
            enables += [enable] if enable not in enables else []
            pin, prefix = f"CE{enables.index(enable)}", _REGISTERS[side]
            for port, register in registers.items():
                cell["connections"][port] = cells[register]["connections"]["Q" if side == "P" else "DI"]
            cell["connections"] |= {"CLK0": [clock], pin: [enable], "RST0": ["0"]}
            cell["port_directions"] |= dict.fromkeys(("CLK0", pin, "RST0"), "input")
            cell["parameters"] |= {f"{prefix}_CLK": "CLK0", f"{prefix}_CE": pin, f"{prefix}_RST": "RST0"}
            for register in set(registers.values()):
                del cells[register]
                moved += 1
    return moved


def _registers(name, side, cells, drivers, readers):
    """The register of each bit of a side of a multiplier by port, where all of them can be moved; else None."""
    connections = cells[name]["connections"]
    bits = {f"{side}{i}": bit for i in range(_WIDTHS[side]) for bit in connections.get(f"{side}{i}", [])}
    if side == "P":
        bits = {port: bit for port, bit in bits.items() if readers[bit]}
        if any(len(readers[bit]) != 1 or readers[bit][0][1] != "DI" for bit in bits.values()):
            return None
        registers = {port: readers[bit][0][0] for port, bit in bits.items()}
    else:
        bits = {port: bit for port, bit in bits.items() if bit != "0"}
        if any(reader != name or port not in bits for bit in bits.values() for reader, port in readers[bit]):
            return None
        registers = {port: drivers.get(bit) for port, bit in bits.items()}
    kinds = {_kind(cells.get(register)) for register in registers.values()}
    return registers if len(kinds) == 1 and None not in kinds else None


def _kind(cell):
    """Clock and enable of a register that a multiplier could have; else None."""
    if cell is None or cell["type"] != "TRELLIS_FF":
        return None
    given, connections = cell["parameters"], cell["connections"]
    enable = {"1": "1", "CE": connections.get("CE", ["1"])[0]}.get(given.get("CEMUX", "1").strip())
    if (
        enable is None
        or connections.get("LSR", ["0"]) != ["0"]
        or given.get("REGSET") != "RESET"
        or given.get("CLKMUX") != "CLK"
    ):
        return None
    return connections["CLK"][0], enable
