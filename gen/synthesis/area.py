"""Area and timing of read-only banks with a cell library: Yosys and ABC, both from the wheel pyosys, each in a process of its own.

Structured banks are gates of the library already: their area is a sum of cells. The others are mapped by Yosys' ``abc`` with its own
script. With delay tables and a clock period, ABC buffers and sizes the mapped gates of either. Registers are counted apart.
"""

import json
import math
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from intaglio import Error
from intaglio.gen.synthesis.liberty import Liberty
from intaglio.gen.synthesis.strategies import combinational
from intaglio.gen.synthesis.yosys import GATE_LEVEL, abc_program, library_cells, run_tool, run_yosys
from intaglio.rtl.memory.logic.bank import REGISTER, Bank
from intaglio.rtl.memory.logic.cells import CellSet
from intaglio.rtl.memory.logic.netlist import ONE, Netlist

__all__ = ["Measured", "check_period", "mapped_blif", "measure"]

TIMEOUT = 1800  # seconds of one run
# What Yosys' pass abc does without a clock period, and what follows with one.
MAPPED = "strash; &get -n; &fraig -x; &put; scorr; dc2; dretime; strash; &get -n; &dch -f; &nf; &put; "
BUFFERED = "topo; buffer -c; topo; stime; upsize -D {period}; dnsize -D {period}; stime"
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_STIME = re.compile(r"Area =\s*([\d.]+).*?Delay =\s*([\d.]+) ps")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Logic of one bank without its registers.

    Members
    -------
    area : float
        In the library's unit, um2.
    gates, registers : int
    delay_ps : float or None
        Critical path without wires; None where the library has no delay tables.
    buffered : bool
    """

    area: float
    gates: int
    registers: int
    delay_ps: float | None = None
    buffered: bool = False

    def mb_per_mm2(self, bits: int) -> float:
        """Megabytes (1e6 bytes) of two-bit weights a square millimetre."""
        return bits / 8 / self.area


def measure(bank: Bank, liberty: Liberty, period_ps: float | None = None, *, timeout: float = TIMEOUT) -> Measured:
    """A :class:`Measured` bank.

    Parameters
    ----------
    bank : Bank
    liberty : Liberty
    period_ps : float or None
        Clock period that ABC buffers and sizes for; needs delay tables.

    Raises
    ------
    Error
        pyosys is missing, a tool fails or takes too long, or a period is given for a library without delay tables.
    """
    check_period(liberty, period_ps)
    inputs = max(1, (bank.depth - 1).bit_length())
    registers = inputs if REGISTER in bank.verilog else bank.width
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "cells.lib").write_text(liberty.text)
        if bank.netlist is not None:
            gates = liberty.gates
            (folder / "bank.blif").write_text(mapped_blif(bank.netlist, gates))
            found = Measured(area=bank.netlist.area(gates), gates=len(bank.netlist.kinds), registers=registers)
            script = ""
        else:
            area, count = _by_yosys(bank, liberty, folder, timeout)
            found = Measured(area=area, gates=count, registers=registers)
            script = MAPPED
        if not liberty.timed or not found.gates:
            return found
        if period_ps is None:
            area, delay = _by_abc("read_blif bank.blif; " + script + "topo; stime", folder, timeout)
            return replace(found, area=area, delay_ps=delay)
        (folder / "constraints").write_text(_constraints(liberty))
        sized = BUFFERED.format(period=f"{period_ps:g}")
        area, delay = _by_abc(f"read_constr constraints; read_blif bank.blif; {script}{sized}", folder, timeout)
        return replace(found, area=area, delay_ps=delay, buffered=True)


def check_period(liberty: Liberty, period_ps: float | None) -> None:
    """:class:`Error` if the library cannot be timed or the period (float, or None for no timing) is out of range."""
    if period_ps is None:
        return
    if not liberty.timed:
        raise Error(
            f"cell library {liberty.name} must have delay tables for a period of {period_ps:g} ps; it has areas only"
        )
    if not 0 < period_ps < math.inf:
        raise Error(f"the clock period must be a finite number of picoseconds above 0, not {period_ps:g}")
    liberty.inverters()


def mapped_blif(netlist: Netlist, cells: CellSet) -> str:
    """The netlist as instances of cells, for ABC."""
    outputs, names = {}, [f"a{bit}" for bit in range(netlist.inputs)]
    lines, extra = [], []
    for o, signal in enumerate(netlist.outputs):
        if signal in (None, ONE) or signal < netlist.inputs or signal in outputs:
            extra.append((o, signal))
        else:
            outputs[signal] = f"d{o}"
    for i, (kind, ins) in enumerate(zip(netlist.kinds, netlist.ins, strict=True)):
        cell = cells.cells[kind]
        names.append(outputs.get(netlist.inputs + i, f"n{i}"))
        pins = " ".join(f"{pin}={names[signal]}" for pin, signal in zip(cell.pins, ins, strict=True))
        lines.append(f".gate {cell.name} {pins} {cell.output}={names[-1]}")
    shown = [f"d{o}" for o in range(len(netlist.outputs)) if o not in {o for o, _ in extra}]
    # Outputs that are constants or repeat another take no gate: they are wires, and are left out.
    return "\n".join(
        [
            ".model bank",
            ".inputs " + " ".join(names[: netlist.inputs]),
            ".outputs " + " ".join(shown),
            *lines,
            ".end",
            "",
        ]
    )


def _constraints(liberty):
    """Every address bit is driven by a middling inverter, every output by one small gate's input."""
    inverters = liberty.inverters()
    return f"set_driving_cell {inverters[len(inverters) // 2].name}\nset_load 1.0 [all_outputs]\n"


def _by_abc(script, folder, timeout):
    """Area and delay that ABC states last."""
    output = run_tool([abc_program(), "-c", f"read_lib -w cells.lib; {script}"], folder, timeout, "ABC")
    found = _STIME.findall(_COLOUR.sub("", output))
    if not found:
        raise Error(f"ABC must time the bank; it ends with: {output[-500:]}")
    return float(found[-1][0]), float(found[-1][1])


def _by_yosys(bank, liberty, folder, timeout):
    """Area and number of gates; leaves the logic before mapping in ``bank.blif``."""
    (folder / "bank.v").write_text(combinational(bank))
    steps = [
        "read_verilog bank.v",
        f"hierarchy -check -top {bank.name}",
        "proc",
        "flatten",
        "opt -full",
        "memory_map",
        "opt -full",
        *GATE_LEVEL,
        "write_blif bank.blif",
        "abc -liberty cells.lib",
        "opt_clean",
        "tee -q -o stat.json stat -json",
    ]
    output = run_yosys(steps, folder, bank.name, timeout=timeout)
    if not (folder / "stat.json").is_file():
        raise Error(f"Yosys must map {bank.name}; it ends with: {output[-1000:]}")
    counts = library_cells(json.loads((folder / "stat.json").read_text()), liberty, bank.name)
    return sum(n * liberty.cells[name].area for name, n in counts.items()), sum(counts.values())
