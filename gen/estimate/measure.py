"""Measure the synthesised costs of an estimate: map each part to a cell library with Yosys and ABC; sum area, leakage and pin capacitance.

Neither sizing nor buffers nor wires: cells alone. The Liberty files are read for each cell's area, the mean of its leakage over the states
that are given, and the capacitance of its inputs; units are assumed to be um2, pW and fF as in ASAP7.

    python -m intaglio.gen.estimate.measure --liberty asap7_SIMPLE.lib --liberty asap7_INVBUF.lib ... --liberty asap7_SEQ.lib
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from amaranth.hdl import Elaboratable, Fragment, Module, Signal, signed

from intaglio import Error
from intaglio.cli import exit_code
from intaglio.gen.emit.verilog import whole
from intaglio.gen.synthesis.liberty import read_liberty
from intaglio.gen.synthesis.yosys import library_cells, run_yosys
from intaglio.rtl.attention.narrow.array import add_tree, product_bits, tree_stages
from intaglio.rtl.ternary.lane import Lane
from intaglio.rtl.ternary.packing import pack

__all__ = ["PARTS", "measure"]

HEIGHT, LANE_WIDTH, PRODUCTS, SEEDS = 1024, 128, 8, (7, 8, 9)


def _rom(name, words):
    """Combinational ROM of uint8 ``words [depth, bytes]``."""
    bits = (len(words) - 1).bit_length()
    rows = [f"    {bits}'d{i}: d = {8 * words.shape[1]}'h{row[::-1].tobytes().hex()};" for i, row in enumerate(words)]
    return "\n".join(
        [
            f"module {name}(input [{bits - 1}:0] a, output reg [{8 * words.shape[1] - 1}:0] d);",
            "  always @* case (a)",
            *rows,
            "    default: d = 'x;",
            "  endcase",
            "endmodule",
            "",
        ]
    )


def _weights(name, seed):
    trits = np.random.default_rng(seed).choice(np.array([0, 1, -1], np.int8), (HEIGHT, 64), p=(0.4, 0.3, 0.3))
    return _rom(name, pack(trits, "2bit"))


def _embedding(name, seed):
    values = np.random.default_rng(seed).normal(size=(HEIGHT, 16)) * 127 / 5.5
    return _rom(name, np.clip(np.round(values), -127, 127).astype(np.int8).view(np.uint8))


def _lane(name, seed):
    lane = Lane(
        SimpleNamespace(
            lane_width=LANE_WIDTH,
            packing="2bit",
            dot="planes",
            rank=0,
            batch=1,
            weight_word_bits=2 * LANE_WIDTH,
            lane_sum_bits=(127 * 6912).bit_length() + 1,
        )
    )
    m = Module()
    m.submodules.lane = lane
    m.d.comb += [lane.masks[k].eq(mask) for k, mask in enumerate(lane.dot.MASKS)]
    return whole(m, name, [lane.word, *(lane.x[0][b] for b in range(8)), lane.enable, lane.first, lane.sum[0]])


class _Products(Elaboratable):
    def __init__(self) -> None:
        self.a = [Signal(signed(16), name=f"a{i}") for i in range(PRODUCTS)]
        self.b = [Signal(signed(8), name=f"b{i}") for i in range(PRODUCTS)]
        self.enable, self.sum = Signal(tree_stages(PRODUCTS)), Signal(signed(product_bits(PRODUCTS)))

    def elaborate(self, platform):
        m = Module()
        terms = [Signal(signed(24), name=f"product_{i}", reset_less=True) for i in range(PRODUCTS)]
        m.d.sync += [term.eq(a * b) for term, a, b in zip(terms, self.a, self.b, strict=True)]
        m.d.comb += self.sum.eq(add_tree(m, terms, products=1, enables=list(self.enable), name="tree"))
        return m


def _products(name, seed):
    part = _Products()
    return whole(Fragment.get(part, None), name, [*part.a, *part.b, part.enable, part.sum])


# Verilog, how many units (bits, weights, multipliers) the part has, and the seeds of what is drawn in it.
PARTS = {
    "weight": (_weights, HEIGHT * 128, SEEDS),
    "embedding": (_embedding, HEIGHT * 128, SEEDS),
    "lane": (_lane, LANE_WIDTH, (None,)),
    "multiplier": (_products, PRODUCTS, (None,)),
}


def measure(part: str, libraries: Sequence[Path | str], timeout: float = 1800) -> tuple[float, float, float]:
    """Area, leakage and pin capacitance of one of PARTS, for each of its units, as ``(um2, uW, fF)``; medians over its seeds.

    Raises
    ------
    Error
        pyosys is missing, the libraries lack what the part needs, or it takes too long.
    """
    make, units, seeds = PARTS[part]
    library = read_liberty(libraries)
    found = np.array([_mapped(part, make("part", seed), library, timeout) for seed in seeds]) / units
    area, leakage, capacitance = np.median(found, axis=0)
    return area, leakage * 1e-6, capacitance


def _mapped(part, verilog, library, timeout):
    """Sums over the cells of a part: area, leakage, capacitance in the library's units."""
    options = "-liberty cells.lib"
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "cells.lib").write_text(library.text)
        (Path(scratch) / "part.v").write_text(verilog)
        steps = [
            "read_verilog part.v",
            "hierarchy -top part",
            "proc",
            "flatten",
            "opt",
            "wreduce",
            "alumacc",
            "opt",
            "memory",
            "opt -full",
            "techmap",
            "opt",
            "techmap",
            f"dfflibmap {options}",
            f"abc {options}",
            "opt_clean",
            "tee -q -o stat.json stat -json",
        ]
        told = run_yosys(steps, scratch, f"the part {part}", timeout=timeout)
        stat = Path(scratch) / "stat.json"
        if not stat.is_file():
            raise Error(f"Yosys must map the part {part}; it ends with: {told}")
        counts = library_cells(json.loads(stat.read_text()), library, f"the part {part}")
    total = np.zeros(3)
    for name, count in counts.items():
        cell = library.cells[name]
        total += count * np.array([cell.area, cell.leakage, cell.capacitance])
    return total


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m intaglio.gen.estimate.measure", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--liberty", action="append", required=True, metavar="FILE", help="may be given several times")
    libraries = parser.parse_args(arguments).liberty
    for part in PARTS:
        area, leakage, capacitance = measure(part, libraries)
        sys.stdout.write(f"{part:12} {area:.5g} um2   {leakage / area:.3g} uW/um2   {capacitance:.5g} fF\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(exit_code(main))
