"""Combinational paths from a design's inputs to its outputs, which AXI forbids: a search over the cones of the netlist that Yosys reads."""

import json
import re
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path

from intaglio import Error
from intaglio.gen.synthesis.yosys import run_yosys

__all__ = ["combinational_paths"]

# Bit i of their output depends on bit i of these ports and on all of the others.
_BITWISE = {
    "$not": "A",
    "$pos": "A",
    "$buf": "A",
    "$and": "AB",
    "$or": "AB",
    "$xor": "AB",
    "$xnor": "AB",
    "$mux": "AB",
    "$_NOT_": "A",
}
_IMAGE = re.compile(r"\$readmemh\s*\([^;]*\);")  # what a ROM holds makes no path
_READ = ("RD_ADDR", "RD_EN", "RD_DATA")


def combinational_paths(
    files: Iterable[Path | str], top: str, *, ignore: Collection[str] = (), timeout: float = 600
) -> list[tuple[str, str]]:
    """Pairs of an input and an output of ``top`` between which there is no register, sorted.

    Words are taken apart where an operation works bit by bit; any other is taken for a path from each of its input bits to each of its
    outputs.

    Parameters
    ----------
    files : sequence of path
        Verilog of the whole design.
    top : str
    ignore : collection of str
        Inputs that do not count, the clock say.
    timeout : float
        Seconds for Yosys.

    Returns
    -------
    list of (str, str)

    Raises
    ------
    Error
        pyosys is not installed, or Yosys refuses the design.
    """
    with tempfile.TemporaryDirectory() as folder:
        for number, file in enumerate(files):
            text = _IMAGE.sub(";", Path(file).read_text(encoding="utf-8"))
            (Path(folder) / f"{number}.v").write_text(text, encoding="utf-8")
        names = " ".join(f"{number}.v" for number in range(number + 1))
        run_yosys(
            [
                f"read_verilog -defer {names}",
                f"hierarchy -check -top {top}",
                "proc -noopt",
                "flatten",
                "opt_clean",
                "memory_collect",
                "write_json netlist.json",
            ],
            folder,
            f"the paths of {top}",
            timeout=timeout,
        )
        module = json.loads((Path(folder) / "netlist.json").read_text(encoding="utf-8"))["modules"][top]
    drivers = {}
    for cell in module["cells"].values():
        for bit, sources in _dependencies(cell):
            drivers.setdefault(bit, set()).update(sources)
    inputs = {
        bit: name for name, port in module["ports"].items() if port["direction"] == "input" for bit in port["bits"]
    }
    found = set()
    for name, port in module["ports"].items():
        if port["direction"] == "output":
            found |= {
                (inputs[bit], name)
                for bit in _cone(port["bits"], drivers)
                if bit in inputs and inputs[bit] not in ignore
            }
    return sorted(found)


def _cone(bits, drivers):
    seen, stack = set(), list(bits)
    while stack:
        bit = stack.pop()
        if bit not in seen:
            seen.add(bit)
            stack += drivers.get(bit, ())
    return seen


def _dependencies(cell):
    """Bits that a cell drives, each with the bits on which it depends in the same cycle."""
    kind, connections = cell["type"], cell["connections"]
    directions = cell["port_directions"]
    ins = {port: bits for port, bits in connections.items() if directions[port] == "input"}
    outs = {port: bits for port, bits in connections.items() if directions[port] == "output"}
    if kind in ("$mem", "$mem_v2"):
        yield from _reads(cell)
    elif kind in _BITWISE:
        plain = _BITWISE[kind]
        shared = [bit for port, bits in ins.items() if port not in plain for bit in bits]
        operands = [ins[port] for port in plain]
        for i, bit in enumerate(outs["Y"]):
            yield bit, {*shared, *(word[min(i, len(word) - 1)] for word in operands)}  # beyond a word is its sign
    elif kind == "$pmux":
        width = len(outs["Y"])
        for i, bit in enumerate(outs["Y"]):
            yield bit, {ins["A"][i], *ins["B"][i::width], *ins["S"]}
    elif not _sequential(kind, outs):
        every = {bit for bits in ins.values() for bit in bits}
        for bits in outs.values():
            for bit in bits:
                yield bit, every


def _sequential(kind, outs):
    """Whether the cell is a register. A latch is none."""
    if kind.startswith("$") and not kind.startswith(("$adff", "$aldff", "$dff", "$sdff", "$_DFF", "$_SDFF", "$ff")):
        return False
    if kind.startswith("$"):
        return True
    raise Error(f"the paths through {kind} are not known: its Verilog must be among the files")


def _reads(cell):
    """A memory: a read port without a clock is a path from its address."""
    parameters, connections = cell["parameters"], cell["connections"]
    count = int(parameters["RD_PORTS"], 2)
    clocked = parameters["RD_CLK_ENABLE"][::-1]
    address, enable, data = (connections[name] for name in _READ)
    wide, high = len(data) // max(count, 1), len(address) // max(count, 1)
    for port in range(count):
        if clocked[port] == "0":
            sources = {*address[port * high : (port + 1) * high], enable[port]}
            for bit in data[port * wide : (port + 1) * wide]:
                yield bit, sources
