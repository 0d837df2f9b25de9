# amaranth: UnusedElaboratable=no
"""Divider: quotients of every numerator over random and extreme denominators, order, latency, zero."""

import random

import pytest
from amaranth.sim import Simulator

from intaglio.rtl.arithmetic.divider import Divider
from intaglio.rtl.arithmetic.numerics import INT8_NUMERATOR, INT16_NUMERATOR, INVERSE


def run(divisions, gaps, bits):
    """Feed ``(numerator, denominator)``, ``gaps[i]`` idle cycles before each.

    Returns ``[(quotient, tag, cycle, soon)]`` and the cycles of feeding.
    """
    dut = Divider(4, bits)
    fed, results = [], []

    async def bench(ctx):
        cycle, soon = 0, []

        async def tick(valid):
            nonlocal cycle
            ctx.set(dut.i_valid, valid)
            soon.append(ctx.get(dut.o_soon))
            await ctx.tick()
            cycle += 1
            if ctx.get(dut.o_valid):
                results.append((ctx.get(dut.o_quotient), ctx.get(dut.o_tag), cycle, soon[cycle - 2]))

        for i, (numerator, denominator) in enumerate(divisions):
            for _ in range(gaps[i]):
                await tick(0)
            ctx.set(dut.i_numerator, numerator)
            ctx.set(dut.i_denominator, denominator)
            ctx.set(dut.i_tag, i % 16)
            fed.append(cycle)
            await tick(1)
        for _ in range(dut.latency):
            await tick(0)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return results, fed


@pytest.mark.parametrize("bits, latency", [(2, 9), (3, 6)])
def test_quotients(bits, latency):
    rng = random.Random(1)
    denominators = [1 << 16, (1 << 16) + 1, (1 << 17) - 1, (1 << 17) - 2, 98304, 0]
    denominators += [rng.randrange(1 << 16, 1 << 17) for _ in range(200)]
    divisions = [
        (n, d) for d in denominators for n in (INT8_NUMERATOR, INT16_NUMERATOR, INVERSE, rng.randrange(1 << 33))
    ]
    results, fed = run(divisions, [rng.choice((0, 0, 0, 1, 3)) for _ in divisions], bits)
    assert len(results) == len(divisions)
    for i, ((numerator, denominator), (quotient, tag, cycle, soon)) in enumerate(zip(divisions, results, strict=True)):
        assert quotient == (numerator // denominator if denominator else 0), (numerator, denominator)
        assert tag == i % 16 and soon
        assert cycle - fed[i] == latency == Divider.cycles(bits)


def test_tag_bits():
    with pytest.raises(ValueError, match="tag_bits must be a positive integer, not 0"):
        Divider(0)
