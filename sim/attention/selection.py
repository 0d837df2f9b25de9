"""Exact model of the index's selections: smallest sets that reach a share, and the choice between patterns (docs/prefill.md)."""

import numpy as np

from intaglio.rtl.arithmetic import attention as numerics

__all__ = ["decide", "divergence", "top"]


def top(x, gamma16):
    """Smallest set of largest entries whose sum reaches a share; among equal entries, lower indices first.

    Parameters
    ----------
    x : integers >= 0 [..., n]
    gamma16 : int
        The share in units of 2^-16, 1..65536.

    Returns
    -------
    bool [..., n]
    """
    if not 1 <= gamma16 <= 1 << 16:
        raise ValueError(f"gamma16 must be in 1..65536, not {gamma16}")
    x = np.asarray(x, dtype=np.int64)
    target = (gamma16 * x.sum(-1, keepdims=True) + 65535) >> 16
    order = np.argsort(-x, axis=-1, kind="stable")
    ranked = np.take_along_axis(x, order, -1)
    before = ranked.cumsum(-1) - ranked
    chosen = np.empty(x.shape, bool)
    np.put_along_axis(chosen, order, before < target, -1)
    return chosen


def _terms(x, bits):
    """``x * (bits * 4096 - LOG(x))``, 0 for x = 0."""
    return x * ((bits << numerics.LOG_FRACTION) - numerics.log2(x)) if x else 0


def divergence(ver, pool, block, tokens):
    """J of one head: 2^29 times the Jensen-Shannon divergence, in bits, of estimated and true masses of the blocks."""
    count = -(-tokens // block)
    bits = block.bit_length() - 1
    sizes = [block] * (count - 1) + [tokens - (count - 1) * block]
    mean = [(int(p) * (65536 // size)) >> (16 + bits) for p, size in zip(pool, sizes, strict=True)]
    e = (max(mean) >> numerics.FRACTION) + 1
    total = sum(numerics.exp2((e << numerics.FRACTION) - t) for t in mean)
    log = (e << numerics.FRACTION) + ((numerics.log2(total) + 8) >> 4) - 4096
    est = [numerics.exp2(max(0, log - t)) for t in mean]
    true = [min(65535, int(v) >> bits + numerics.MASS_FRACTION - 16) for v in ver]
    return sum(_terms(a + b, 17) - _terms(a, 16) - _terms(b, 16) for a, b in zip(est, true, strict=True))


def decide(ver, pool, block, tokens, threshold):
    """``(query_aware bool [G], J int64 [G])`` from block scores [G, nb]; a threshold of 0 makes no head query-aware."""
    found = np.array(
        [divergence(v, p, block, tokens) for v, p in zip(np.asarray(ver), np.asarray(pool), strict=True)],
        dtype=np.int64,
    )
    return (found < threshold) & (threshold > 0), found
