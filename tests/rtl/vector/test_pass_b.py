"""One element of pass B against rounding and clamping in Python integers, at the edges of every mode."""

import random

import pytest
from amaranth.sim import Simulator

from intaglio.rtl.arithmetic.numerics import INT8_MAX, INT8_SHIFT, INT16_MAX, INT16_SHIFT, MANTISSA
from intaglio.rtl.vector.pass_b import INVERSE_SHIFT, LaneB, Rounding, VectorOp

EMBED_SHIFT = 5
MODES = {
    Rounding.INT8: (INT8_SHIFT, INT8_MAX),
    Rounding.INT16: (INT16_SHIFT, INT16_MAX),
    Rounding.INVERSE: (INVERSE_SHIFT, (1 << 17) - 1),
    Rounding.EMBED: (EMBED_SHIFT, (1 << 31) - 1),
}


def wanted(ts, factor, mode):
    shift, limit = MODES[mode]
    return max(-limit, min(limit, (ts * factor + (1 << shift >> 1)) >> shift))


def pairs(mode, rng):
    """Elements and factors: the extremes, random ones, and products around every edge of rounding and clamping."""
    shift, limit = MODES[mode]
    yield from (
        (ts, factor) for ts in (-(1 << 17), -1, 0, 1, (1 << 17) - 1) for factor in (0, 1, 1 << 16, (1 << 17) - 1)
    )
    for edge in (-limit - 1, -limit, -1, 0, limit, limit + 1):
        for _ in range(20):
            factor = rng.randrange(1 << 16, 1 << 17)
            ts = ((2 * edge + 1 << shift >> 1) // factor) + rng.randrange(-1, 3)
            if -(1 << 17) <= ts < 1 << 17:
                yield ts, factor
    yield from ((rng.randrange(-(1 << 17), 1 << 17), rng.randrange(1 << 17)) for _ in range(200))


@pytest.mark.parametrize("mode", Rounding)
def test_rounding_and_clamp(mode):
    dut = LaneB(31, EMBED_SHIFT)
    limit = MODES[mode][1]
    seen = set()

    async def bench(ctx):
        ctx.set(dut.valid, 15)
        ctx.set(dut.mode, mode)
        ctx.set(dut.amount, MANTISSA)
        ctx.set(dut.kind, VectorOp.EMBED if mode is Rounding.EMBED else VectorOp.NORM8)
        await ctx.tick()
        for ts, factor in pairs(mode, random.Random(1)):
            if mode is Rounding.EMBED:
                ts = (ts + 128) % 256 - 128
            ctx.set(dut.t, ts)
            ctx.set(dut.emb, ts if mode is Rounding.EMBED else 0)
            ctx.set(dut.factor, factor)
            await ctx.tick().repeat(4)
            expected = wanted(ts, factor, mode)
            assert ctx.get(dut.q) == expected, (ts, factor)
            seen.add(expected)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    reached = {
        Rounding.INT8: {-limit, limit},
        Rounding.INT16: {-limit, limit},
        Rounding.INVERSE: {-limit},
        Rounding.EMBED: set(),
    }
    assert reached[mode] <= seen
