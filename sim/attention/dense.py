"""Float attention over a block map, and how much of the whole a map keeps. Memory grows with tokens, not with their square."""

import math

import torch

from intaglio.sim.attention.flexprefill import check, kv_head

__all__ = ["dense", "density", "kept_mass", "sparse"]

_ROWS = 128  # queries at a time in dense attention


def _check_map(keep, heads, tokens, block):
    count = -(-tokens // block)
    if (
        keep.dtype != torch.bool
        or keep.shape[-2:] != (count, count)
        or keep.dim() != 3
        or heads not in (None, keep.shape[0])
    ):
        raise ValueError(
            f"the block map must be bool [{'heads' if heads is None else heads}, {count}, {count}], "
            f"not {keep.dtype} {list(keep.shape)}"
        )


def _check_values(v, k):
    if v.shape != k.shape:
        raise ValueError(f"v must be of the shape {list(k.shape)} of k, not {list(v.shape)}")
    if not v.isfinite().all():
        raise ValueError("v must be finite, not NaN or infinite")


def _probabilities(q, k, rows, keys):
    """Causal softmax of the queries ``rows`` over the keys ``keys`` (positions) of one head."""
    scores = q[rows] @ k[keys].T / math.sqrt(q.shape[1])
    return torch.softmax(scores.masked_fill(keys > rows[:, None], -math.inf), -1)


@torch.no_grad()
def dense(q, k, v, *, gqa_interleave=False):
    """Causal attention [H, N, D] of q [H, N, D] over k, v [Hkv, N, D], in their type."""
    check(q, k, _ROWS)
    _check_values(v, k)
    heads, tokens, _ = q.shape
    out = torch.empty_like(q)
    for head in range(heads):
        shared = kv_head(head, heads, k.shape[0], gqa_interleave)
        for first in range(0, tokens, _ROWS):
            rows = torch.arange(first, min(first + _ROWS, tokens))
            keys = torch.arange(first + len(rows))
            out[head, rows] = _probabilities(q[head], k[shared], rows, keys) @ v[shared, keys]
    return out


@torch.no_grad()
def sparse(q, k, v, keep, *, block=128, gqa_interleave=False):
    """Causal attention over the kept blocks of a map bool [H, nb, nb], whose diagonal must be kept; otherwise as :func:`dense`."""
    check(q, k, block)
    _check_values(v, k)
    heads, tokens, _ = q.shape
    _check_map(keep, heads, tokens, block)
    if not keep.diagonal(dim1=1, dim2=2).all():
        raise ValueError("the block map must keep every block of the diagonal")
    out = torch.empty_like(q)
    for head in range(heads):
        shared = kv_head(head, heads, k.shape[0], gqa_interleave)
        for row in range(keep.shape[1]):
            rows = torch.arange(row * block, min((row + 1) * block, tokens))
            keys = _kept_keys(keep[head, row, : row + 1], block, tokens)
            out[head, rows] = _probabilities(q[head], k[shared], rows, keys) @ v[shared, keys]
    return out


def _kept_keys(kept, block, tokens):
    keys = (kept.nonzero() * block + torch.arange(block)).flatten()
    return keys[keys < tokens]


@torch.no_grad()
def kept_mass(q, k, keep, *, block=128, gqa_interleave=False):
    """Share [H], float64, of the causal attention mass of the last ``block`` queries that lies in kept blocks.

    The queries are tokens N - block..N - 1 (all if there are fewer), which touch two query blocks unless ``block`` divides N.
    """
    check(q, k, block)
    heads, tokens, _ = q.shape
    _check_map(keep, heads, tokens, block)
    rows, keys = torch.arange(max(tokens - block, 0), tokens), torch.arange(tokens)
    shares = []
    for head in range(heads):
        shared = kv_head(head, heads, k.shape[0], gqa_interleave)
        p = _probabilities(q[head].double(), k[shared].double(), rows, keys)
        shares.append((p * keep[head][rows // block][:, keys // block]).sum() / len(rows))
    return torch.stack(shares)


def density(keep, tokens, block=128):
    """Share [H], float64, of the causal (query, key) pairs that lie in kept blocks of a map bool [H, nb, nb]."""
    _check_map(keep, None, tokens, block)
    sizes = torch.full((keep.shape[1],), block, dtype=torch.float64)
    sizes[-1] = tokens - (len(sizes) - 1) * block
    pairs = torch.outer(sizes, sizes).tril(-1) + torch.diag(sizes * (sizes + 1) / 2)
    return (keep * pairs).sum((1, 2)) / (tokens * (tokens + 1) / 2)
