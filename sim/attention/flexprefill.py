"""Float reference of the index of sparse prefill attention: which key blocks each query block reads.

Two rules. :func:`official` restates FlexPrefill (arXiv 2502.20766) as its published code computes it, peculiarities included.
:func:`coverage` is the rule of docs/prefill.md in float64, before any rounding: block-level selections whose kept mass of the
representative queries is at least gamma.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

__all__ = ["TAU_MAX", "Index", "check", "cover", "coverage", "kv_head", "official"]

TAU_MAX = 0.8326  # just above sqrt(ln 2), the largest distance
_SIZES = (16, 32, 64, 128)
_BUDGET = 128  # the published code counts tokens in blocks of 128 whatever the block


@dataclass(frozen=True, kw_only=True)
class Index:
    """What a rule found.

    keep : bool [H, nb, nb] (head, query block, key block), never above the diagonal
    pattern : for each head ``dense``, ``vertical-slash`` or ``query-aware``
    vertical, slash, estimate : [H, nb] mean mass of a representative query in a key block; at a block distance; estimated by means
        (None for ``dense``)
    divergence : [H] square root of the Jensen-Shannon divergence (natural logarithm) of ``vertical`` and ``estimate``; NaN is possible
        in ``official`` (None for ``dense``)
    """

    keep: torch.Tensor
    pattern: tuple
    vertical: torch.Tensor | None = None
    slash: torch.Tensor | None = None
    estimate: torch.Tensor | None = None
    divergence: torch.Tensor | None = None


def kv_head(head, heads, kv_heads, interleave=False):
    """KV head of a query head: neighbours share one, or with ``interleave`` every ``kv_heads``-th head."""
    return head % kv_heads if interleave else head // (heads // kv_heads)


def check(q, k, block):
    """Raise ValueError unless q is [H, N, D], k [Hkv, N, D], Hkv divides H, all is finite and ``block`` a block size."""
    for name, x in (("q", q), ("k", k)):
        if x.dim() != 3 or 0 in x.shape:
            raise ValueError(f"{name} must be of shape [heads, tokens, head_dim] without a zero, not {list(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"{name} must be of a floating type, not {x.dtype}")
        if not x.isfinite().all():
            raise ValueError(f"{name} must be finite, not NaN or infinite")
    if q.shape[1:] != k.shape[1:]:
        raise ValueError(f"k must have the tokens and head_dim {list(q.shape[1:])} of q, not {list(k.shape[1:])}")
    if q.shape[0] % k.shape[0]:
        raise ValueError(f"query heads must be a multiple of the {k.shape[0]} KV heads, not {q.shape[0]}")
    if q.shape[2] not in _SIZES:
        raise ValueError(f"head_dim must be one of {_SIZES}, not {q.shape[2]}")
    if block not in _SIZES:
        raise ValueError(f"block must be one of {_SIZES}, not {block!r}")


def _check_rule(gamma, tau):
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma must be in (0, 1], not {gamma!r}")
    if not 0 <= tau <= TAU_MAX:
        raise ValueError(f"tau must be in [0, {TAU_MAX}], not {tau!r}")


def _last_masses(q, k, rows):
    """Attention probabilities [rows, N] of the last ``rows`` queries of a head, softmax in the type of q."""
    tokens, head_dim = q.shape
    scores = (q[tokens - rows :] / math.sqrt(head_dim)) @ k.T
    hidden = torch.arange(tokens) > torch.arange(tokens - rows, tokens)[:, None]
    return torch.softmax(scores.masked_fill(hidden, -math.inf), -1)


def _distance_masses(p):
    """Mean mass [N] at each token distance of probabilities p [rows, N] of the last rows."""
    rows, tokens = p.shape
    distance = torch.arange(tokens - rows, tokens)[:, None] - torch.arange(tokens)
    return (
        torch.zeros(tokens, dtype=p.dtype).index_add_(0, distance.clamp(min=0).flatten(), p.flatten()) / rows
    )  # masked ones are 0


def _block_sums(x, block):
    return F.pad(x, (0, -x.shape[-1] % block)).unflatten(-1, (-1, block)).sum(-1)


def _block_means(x, block):
    """Means [nb, D] of the true rows of each block of x [N, D]."""
    count = torch.full((-(-x.shape[0] // block), 1), block, dtype=x.dtype)
    count[-1] = x.shape[0] - (count.shape[0] - 1) * block
    return F.pad(x, (0, 0, 0, -x.shape[0] % block)).unflatten(0, (-1, block)).sum(1) / count


def _pooled_masses(q, k, block):
    """Probabilities [nb, nb] of block means, causal by block."""
    scores = (_block_means(q, block) / math.sqrt(q.shape[1])) @ _block_means(k, block).T
    return torch.softmax(scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf), -1)


def _distance_of(count):
    """Block distance [nb, nb] of (row, column): negative above the diagonal."""
    return torch.arange(count)[:, None] - torch.arange(count)


def _result(keep, aware, scores):
    vertical, slash, estimate, divergence = (torch.stack(x) for x in zip(*scores, strict=True))
    pattern = tuple("query-aware" if x else "vertical-slash" for x in aware)
    return Index(
        keep=torch.stack(keep),
        pattern=pattern,
        vertical=vertical,
        slash=slash,
        estimate=estimate,
        divergence=divergence,
    )


def _dense(heads, count):
    return Index(keep=torch.ones(heads, count, count, dtype=torch.bool).tril(), pattern=("dense",) * heads)


def _largest(x, n):
    """Mask of the n largest entries; equal ones by lower index (the published code leaves that open)."""
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask[torch.sort(x, descending=True, stable=True).indices[:n]] = True
    return mask


def _budget(x, gamma, low, high):
    """Blocks for the masses x [N]: one token more than the largest ones with a running sum of at most gamma, in whole 128s, plus one."""
    tokens = 1 + int((torch.cumsum(torch.sort(x, descending=True).values, -1) <= gamma).sum())
    return min(max(tokens // _BUDGET + 1, low), high)


def _divergence(p, q):
    """Square root of the Jensen-Shannon divergence; NaN where an entry is exactly 0."""
    middle = (p + q) / 2
    return torch.sqrt(0.5 * (p * torch.log(p / middle)).sum() + 0.5 * (q * torch.log(q / middle)).sum())


@torch.no_grad()
def official(q, k, *, block=128, gamma=0.9, tau=0.1, min_budget=1, max_budget=(1 << 31) - 1, gqa_interleave=False):
    """The index by FlexPrefill's published code, in float32.

    Parameters
    ----------
    q : [H, N, D]; k : [Hkv, N, D]
        After rotary embedding, not scaled.
    min_budget, max_budget : int
        Tokens of the vertical and of the slash selection of a head. Query-aware heads take ``min_budget`` even above ``max_budget``.
    gqa_interleave : bool
        Head h reads KV head ``h % Hkv`` instead of ``h // G``.

    Returns
    -------
    Index ; ``slash`` has a grid that starts at the largest distance, so that its entry 0 holds ``N - (nb - 1) block`` distances only.
    """
    check(q, k, block)
    _check_rule(gamma, tau)
    if not 1 <= min_budget or not 1 <= max_budget:
        raise ValueError(f"min_budget and max_budget must be positive, not {min_budget!r} and {max_budget!r}")
    heads, tokens, _ = q.shape
    count = -(-tokens // block)
    low, high = math.ceil(min_budget / block), min(math.ceil(max_budget / block), count)
    if tokens <= max(2 * block, low * block):
        return _dense(heads, count)
    keep, decisions, scores = [], [], []
    for head in range(heads):
        queries, keys = q[head].float(), k[kv_head(head, heads, k.shape[0], gqa_interleave)].float()
        p = _last_masses(queries, keys, block)
        ver, sla = p.mean(0), _distance_masses(p).flip(0)  # slash from the largest distance
        verticals, slashes = _budget(ver, gamma, low, high), _budget(sla, gamma, low, high)
        ver, sla = _block_sums(ver, block), _block_sums(sla, block)
        estimate = torch.softmax(queries[-block:].mean(0) / math.sqrt(q.shape[2]) @ _block_means(keys, block).T, -1)
        divergence = _divergence(estimate, ver)
        aware = bool(divergence < tau)  # false for NaN
        if aware:
            verticals = slashes = low
        scores.append((ver.clone(), sla.flip(0), estimate, divergence))
        ver[0] = sla[-1] = math.inf  # the sink column and the main diagonal count against the budgets
        vertical, slash = _largest(ver, verticals), _largest(sla, slashes).flip(0)
        distance = _distance_of(count)
        found = (vertical | slash[distance.clamp(min=0)]) & (distance >= 0)
        if aware:
            mass = _pooled_masses(queries, keys, block).flatten()
            order = torch.sort(mass, descending=True, stable=True)
            chosen = torch.zeros_like(mass, dtype=torch.bool)
            chosen[order.indices[torch.cumsum(order.values, -1) <= gamma * count]] = True  # without the crossing entry
            found |= chosen.reshape(count, count) & (distance >= 0)
        keep.append(found)
        decisions.append(aware)
    return _result(keep, decisions, scores)


def cover(x, gamma):
    """Mask of the smallest set of largest entries of x [..., n] whose sum is at least gamma of the whole; equal ones by lower index."""
    order = torch.sort(x, dim=-1, descending=True, stable=True)
    running = torch.cumsum(order.values, -1)
    before = F.pad(running[..., :-1], (1, 0))
    return torch.zeros_like(x, dtype=torch.bool).scatter(-1, order.indices, before < gamma * running[..., -1:])


def _finite_divergence(p, q):
    """As :func:`_divergence`, an entry of 0 adding 0."""
    middle = (p + q) / 2
    return (
        ((torch.xlogy(p, p) - torch.xlogy(p, middle) + torch.xlogy(q, q) - torch.xlogy(q, middle)).sum() / 2)
        .clamp(min=0)
        .sqrt()
    )


@torch.no_grad()
def coverage(q, k, *, block=128, gamma=0.9, tau=0.1, gqa_interleave=False):
    """The index by the rule of docs/prefill.md, in float64.

    Parameters as in :func:`official`. For fewer tokens than a block all of them are representative queries.

    Returns
    -------
    Index
    """
    check(q, k, block)
    _check_rule(gamma, tau)
    heads, tokens, _ = q.shape
    count, rows = -(-tokens // block), min(block, tokens)
    distance = _distance_of(count)
    column, row = torch.arange(count), torch.arange(count)[:, None]
    keep, decisions, scores = [], [], []
    for head in range(heads):
        queries, keys = q[head].double(), k[kv_head(head, heads, k.shape[0], gqa_interleave)].double()
        p = _last_masses(queries, keys, rows)
        ver, sla = _block_sums(p.mean(0), block), _block_sums(_distance_masses(p), block)
        estimate = torch.softmax(queries[-rows:].mean(0) / math.sqrt(q.shape[2]) @ _block_means(keys, block).T, -1)
        divergence = _finite_divergence(estimate, ver)
        aware = bool(divergence < tau)
        vertical, slash = cover(ver, gamma), cover(sla, gamma)
        if aware:
            found = cover(_pooled_masses(queries, keys, block), gamma) | vertical & (row >= count - 2)
        else:  # a band of token distances touches two block diagonals
            found = vertical | slash[distance.clamp(min=0)] | slash[(distance - 1).clamp(min=0)] & (distance >= 1)
        keep.append((found | (column == 0) | (distance == 0)) & (distance >= 0))
        decisions.append(aware)
        scores.append((ver, sla, estimate, divergence))
    return _result(keep, decisions, scores)
