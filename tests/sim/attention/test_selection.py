"""Selections: the smallest set that reaches the share, and the divergence against its float formula."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.sim.attention.selection import divergence, top


def by_threshold(x, gamma16):
    """As the hardware does it: the largest threshold bit by bit, then equal entries by index."""
    target = (gamma16 * sum(x) + 65535) >> 16
    threshold = 0
    for bit in reversed(range(32)):
        if sum(v for v in x if v >= threshold | 1 << bit) >= target:
            threshold |= 1 << bit
    reached, kept = sum(v for v in x if v > threshold), []
    for v in x:
        kept.append(v > threshold or v == threshold and reached < target)
        reached += v if v == threshold and kept[-1] else 0
    return kept


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(st.integers(0, 3), st.integers(0, 2**31)), min_size=1, max_size=40), st.integers(1, 65536))
def test_top_is_the_threshold_search_and_minimal(x, gamma16):
    kept = top(x, gamma16)
    if sum(x):
        assert kept.tolist() == by_threshold(x, gamma16)
    target = (gamma16 * sum(x) + 65535) >> 16
    assert sum(np.asarray(x)[kept].tolist()) >= target
    count = int(kept.sum())
    assert count == 0 or sum(sorted(x, reverse=True)[: count - 1]) < target  # one entry fewer cannot reach it


def test_ties_and_edges():
    assert top([5, 5, 5, 5], 32768).tolist() == [True, True, False, False]
    assert top([1, 9, 1, 9], 65536).tolist() == [True] * 4
    assert top([0, 0, 7], 65536).tolist() == [False, False, True]
    assert not top([0, 0], 65536).any()
    with pytest.raises(ValueError, match=r"gamma16 must be in 1\.\.65536, not 0"):
        top([1], 0)


@pytest.mark.parametrize("tokens", [256, 230])
def test_divergence_against_float(tokens):
    picks, block = np.random.default_rng(tokens), 32
    sizes = np.array([32] * 7 + [tokens - 224])
    for spread in (0.0, 200.0, 2000.0):
        mean = picks.normal(0, spread, 8).round()
        true = picks.dirichlet(np.full(8, 0.7))
        pool, ver = (mean * 32 * sizes).astype(np.int64), (true * 2**28 * block).astype(np.int64)
        est = 2.0 ** (mean / 256)
        est /= est.sum()
        middle = (est + true) / 2
        want = sum(
            0.5 * a * math.log2(a / m) for part in (est, true) for a, m in zip(part, middle, strict=True) if a > 0
        )
        assert abs(divergence(ver, pool, block, tokens) / 2**29 - want) < 0.004
        assert (
            abs(divergence(ver[::-1], pool, block, tokens) / 2**29 - want) > 0.004 or spread == 0
        )  # blocks in another order must show
