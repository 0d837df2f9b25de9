"""Table lanes: the shared sums, the code of pairs of weights, the dot product, and the lane around it, against numpy."""

import itertools

import numpy as np
import pytest
from amaranth.hdl import Module, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from intaglio.rtl.ternary import packing
from intaglio.rtl.ternary.tables import PairCode, PairTables, TableDot


class Tables(wiring.Component):
    """The shared sums and one lane's dot product, whose code follows the activations by a cycle."""

    def __init__(self, width):
        self.width = width
        super().__init__({"data": In(8 * width), "code": In(2 * width), "sum": Out(signed(24)), "negative": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.tables = tables = PairTables(self.width)
        m.submodules.dot = dot = TableDot(self.width)
        for name in PairTables.operands(self.width):
            m.d.comb += [a.eq(b) for a, b in zip(getattr(dot, name), getattr(tables, name), strict=True)]
        m.d.comb += [tables.data.eq(self.data), self.sum.eq(dot.sum), self.negative.eq(dot.negative)]
        m.d.sync += dot.code.eq(self.code)
        return m


def run(dut, bench):
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("width", [2, 4, 6, 10, 14, 24, 64, 72, 200, 256])
def test_dot_is_exact(width):
    rng = np.random.default_rng(width)
    cases = [(np.full(width, x), np.full(width, w)) for x in (127, -127, -128, -1, 0) for w in (1, -1, 0)]
    extreme = rng.choice([-128, 127], (6, width)), rng.choice([-1, 1], (6, width))
    cases += list(zip(*extreme, strict=True))
    cases += [(np.where(w >= 0, 127, -128), w) for w in rng.integers(-1, 2, (4, width))]
    cases += [(rng.integers(-128, 128, width), rng.integers(-1, 2, width)) for _ in range(25)]
    dut, seen = Tables(width), []

    async def bench(ctx):
        for x, w in cases + cases[: TableDot.LATENCY]:
            ctx.set(dut.data, int.from_bytes(x.astype(np.int8).tobytes(), "little"))
            ctx.set(dut.code, packing.pack_ints(w[None].astype(np.int8), "pairs")[0])
            await ctx.tick()
            seen.append(-ctx.get(dut.sum) if ctx.get(dut.negative) else ctx.get(dut.sum))

    run(dut, bench)
    assert seen[TableDot.LATENCY :][: len(cases)] == [int(x @ w) for x, w in cases]


@pytest.mark.parametrize("width", [2, 4, 6, 10, 20, 64])
def test_hardware_has_the_code_of_the_memory(width):
    rng = np.random.default_rng(5)
    words = list(itertools.product((-1, 0, 1), repeat=width))[:: max(1, 3**width // 500)] if width <= 10 else []
    weights = np.array([*words, *rng.integers(-1, 2, (40, width))], np.int8)
    dut = PairCode(width)

    async def bench(ctx):
        for row, word in zip(weights, packing.pack_ints(weights, "pairs"), strict=True):
            for port, value in ((dut.plus, 1), (dut.minus, -1)):
                ctx.set(port, sum(int(bit) << i for i, bit in enumerate(row == value)))
            assert ctx.get(dut.code) == word

    simulator = Simulator(dut)
    simulator.add_testbench(bench)
    simulator.run()
