# amaranth: UnusedElaboratable=no
"""The sorted list of the head: order, ties, clearing."""

import random

import pytest
from amaranth.sim import Simulator

from intaglio.rtl.vector.top_k import TopK


def run(k, candidates, *, gaps=False, token_bits=10):
    """Entries of the list after ``candidates`` ``(token, logit)``, and its count."""
    dut, out = TopK(k, token_bits), []

    async def bench(ctx):
        rng = random.Random(1)
        for junk in range(3):  # what a clear must remove
            ctx.set(dut.valid, 1)
            ctx.set(dut.token, junk)
            ctx.set(dut.logit, 2**31 - 1)
            await ctx.tick()
        ctx.set(dut.valid, 0)
        ctx.set(dut.clear, 1)
        await ctx.tick()
        ctx.set(dut.clear, 0)
        assert ctx.get(dut.count) == 0
        for token, logit in candidates:
            while gaps and rng.random() < 0.5:
                ctx.set(dut.valid, 0)
                ctx.set(dut.logit, 2**31 - 1)
                await ctx.tick()
            ctx.set(dut.valid, 1)
            ctx.set(dut.token, token)
            ctx.set(dut.logit, logit)
            await ctx.tick()
        ctx.set(dut.valid, 0)
        for i in range(ctx.get(dut.count)):
            ctx.set(dut.index, i)
            await ctx.delay(1e-9)
            out.append((ctx.get(dut.top_token), ctx.get(dut.top_logit)))

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return out


def best(k, candidates):
    return sorted(candidates, key=lambda c: (-c[1], c[0]))[:k]


LOW, HIGH = -(2**31), 2**31 - 1
CASES = {
    "ascending": list(range(-20, 20)),
    "descending": list(range(20, -20, -1)),
    "equal": [7] * 30,
    "extremes": [LOW, HIGH, -1, 0, LOW, HIGH, LOW + 1, HIGH - 1, 0, -1],
    "fewer than k": [3, 5],
    "steps of equals": [i // 4 % 3 for i in range(40)],
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("k", [1, 2, 5, 16])
def test_order(name, k):
    candidates = list(enumerate(CASES[name]))
    assert run(k, candidates) == best(k, candidates)


@pytest.mark.parametrize("seed", range(4))
def test_random_with_gaps(seed):
    rng = random.Random(seed)
    span = rng.choice([3, 40, 2**31 - 1])
    candidates = [(t, rng.randint(-span, span)) for t in range(200)]
    assert run(5, candidates, gaps=True) == best(5, candidates)


def test_the_reference_tells_ties_apart():
    """On equal logits the order of arrival matters: with the higher token first, the answer differs from ``best``."""
    candidates = [(1, 5), (0, 5)]
    assert run(2, candidates) == candidates != best(2, candidates)


@pytest.mark.parametrize("k, token_bits", [(0, 4), (4, 0)])
def test_arguments(k, token_bits):
    with pytest.raises(ValueError, match="must be a positive integer, not 0"):
        TopK(k, token_bits)
