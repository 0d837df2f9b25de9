"""SiLU: its table against float64 over every argument that it tells apart, and the pipeline against the function."""

import math
import random

import numpy as np
import pytest
from amaranth.sim import Simulator

from intaglio.rtl.arithmetic.silu import (
    SILU_BITS,
    SILU_FRACTION,
    SILU_SLOPES,
    SILU_TABLE,
    SILU_WORD_BITS,
    SILU_WORDS,
    Silu,
    silu,
)

MOST = 1 << (SILU_BITS - 1)


def worst(table, slopes):
    """Largest error in units of the last place over |z| < 32."""
    z = np.arange(-(32 << SILU_FRACTION), 32 << SILU_FRACTION)
    x = z * 2.0**-SILU_FRACTION
    return np.abs(silu(z, np.array(table), np.array(slopes)) - x / (1 + np.exp(-x)) * 2**SILU_FRACTION).max()


def test_error_is_below_a_unit():
    assert worst(SILU_TABLE, SILU_SLOPES) <= 1
    assert max(SILU_WORDS) < 1 << SILU_WORD_BITS
    for z in (MOST - 1, -MOST, 40 << SILU_FRACTION, -(40 << SILU_FRACTION), 0):
        assert abs(silu(z) - z / (1 + math.exp(min(700, -z * 2.0**-SILU_FRACTION)))) <= 1


def test_a_wrong_entry_is_noticed():
    wrong = list(SILU_TABLE)
    wrong[700] += 4
    assert worst(wrong, SILU_SLOPES) > 1


@pytest.mark.parametrize("wrong", [False, True])
def test_pipeline(wrong):
    rng = random.Random(1)
    near = [sign * value + step for sign in (1, -1) for value in (0, 1 << 9, 1 << 18, 1 << 20) for step in (-1, 0, 1)]
    cases = [
        MOST - 1,
        -MOST,
        *near,
        *(rng.randint(-(1 << bits), 1 << bits) for bits in range(8, 26) for _ in range(12)),
    ]
    table = [word ^ (1 << 16 if wrong and i == 0 else 0) for i, word in enumerate(SILU_WORDS)]
    dut, seen = Silu(table), []

    async def bench(ctx):
        for z in [*cases, *[0] * Silu.LATENCY]:
            ctx.set(dut.z, z)
            await ctx.tick()
            seen.append(ctx.get(dut.o))

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert (seen[Silu.LATENCY - 1 :][: len(cases)] == [silu(z) for z in cases]) is not wrong
