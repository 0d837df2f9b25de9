"""Exact model of sparse prefill attention in integer torch tensors; docs/prefill.md has every formula."""

from dataclasses import dataclass

import torch

from intaglio.rtl.arithmetic import attention as numerics
from intaglio.sim.attention.selection import decide, top

__all__ = [
    "HeadGroup",
    "attend",
    "attend_last",
    "block_map",
    "exp2",
    "index",
    "log2",
    "log_sums",
    "masses",
    "scores",
    "tile_merge",
    "weight",
]

_EXP = torch.tensor(numerics.EXP)
_WEIGHT = torch.tensor(numerics.WEIGHT)
_LOG = torch.tensor(numerics.LOG_TABLE)
_NONE = -(1 << 20)  # below every score: a masked key
_GONE = 1 << 20  # a distance of which nothing is left


def exp2(x):
    """``2^(-x/256)`` with 28 fraction bits, for int64 ``x >= 0`` of any shape."""
    return _EXP[x & 255] << numerics.MASS_FRACTION - 16 >> (x >> 8).clamp(max=62)


def weight(x):
    """``254 * 2^(-x/256)``, rounded, for int64 ``x >= 0`` of any shape."""
    return (_WEIGHT[x & 255] >> (x >> 8).clamp(max=62)) + 1 >> 1


def log2(n):
    """``4096 log2 n`` for int64 ``n >= 1`` of any shape, below 2^52."""
    top_bit = torch.frexp(n.double())[1].long() - 1
    mantissa = torch.where(
        top_bit >= numerics.LOG, n >> (top_bit - numerics.LOG).clamp(min=0), n << (numerics.LOG - top_bit).clamp(min=0)
    )
    return (top_bit << numerics.LOG_FRACTION) + _LOG[mantissa & (1 << numerics.LOG) - 1]


@dataclass(frozen=True, kw_only=True)
class HeadGroup:
    """What a run reads: one KV head and its query heads, N tokens, as integers with a scale a row.

    q int8 [G, N, D], xq uint8 [G, N]; k, v int8 [N, D], xk, xv uint8 [N]; pooled_q int8 [G, nb, D], pooled_xq [G, nb];
    pooled_k int8 [nb, D], pooled_xk [nb]. Elements are in -127..127. A scale byte x stands for ``(4 + x % 4) * 2^(20 - x // 4)`` of a query
    or key, for ``2^((x - 128) / 4)`` of a value. torch tensors of any integer dtype.
    """

    q: torch.Tensor
    xq: torch.Tensor
    k: torch.Tensor
    xk: torch.Tensor
    v: torch.Tensor
    xv: torch.Tensor
    pooled_q: torch.Tensor
    pooled_xq: torch.Tensor
    pooled_k: torch.Tensor
    pooled_xk: torch.Tensor


def scores(q, xq, k, xk):
    """Scores int64 [..., rows, keys] of queries [..., rows, D] and keys [keys, D] with their scale bytes."""
    dot = (q.float() @ k.float().transpose(-1, -2)).long()  # below 2^24, hence exact
    of_q, of_k = xq.long()[..., :, None], xk.long()
    one = 1 << numerics.SCALE_FRACTION
    product = dot * (one + of_q % one) * (one + of_k % one)
    shift = (of_q // one + of_k // one - numerics.SHIFT_BIAS).clamp(0, numerics.SHIFT_MAX)
    half = (1 << shift) >> 1
    return ((product + half) >> shift).clamp(-numerics.SCORE_MAX - 1, numerics.SCORE_MAX)


def _shifted(x, amount):
    return x >> amount.clamp(max=62)


def tile_merge(state, e, value, reach):
    """Merge sums relative to ``2^e`` into sums relative to ``2^E``.

    state : (E, sums, begun) or None at first; e [rows]; value [rows, ...]; reach bool [rows]: rows that the tile does not mask wholly.
    """
    if state is None:
        return e, torch.where(_like(reach, value), value, 0), reach
    maximum, sums, begun = state
    new = torch.where(begun, torch.maximum(maximum, e), e)
    kept = torch.where(_like(begun, value), _shifted(sums, _like(new - maximum, sums).clamp(min=0)), 0)
    merged = kept + _shifted(value, _like(new - e, value))
    return torch.where(reach, new, maximum), torch.where(_like(reach, value), merged, sums), begun | reach


def _like(x, other):
    return x.reshape(x.shape + (1,) * (other.dim() - x.dim()))


def log_sums(t, masked, head_dim):
    """L [...] of rows of scores t [..., keys] with a mask of the same shape, tile by tile of ``head_dim`` keys (modes MAX and NORM)."""
    rows, state = t.shape[:-1], None
    for first in range(0, t.shape[-1], head_dim):
        part, hidden = (x[..., first : first + head_dim].reshape(rows.numel(), -1) for x in (t, masked))
        reach = ~hidden.all(-1)
        e = (part.masked_fill(hidden, _NONE).amax(-1) >> numerics.FRACTION) + 1
        p = exp2(((e << numerics.FRACTION)[:, None] - part).masked_fill(hidden, _GONE))
        state = tile_merge(state, e, p.sum(-1), reach)
    maximum, total, begun = state
    logs = (maximum - numerics.MASS_FRACTION << numerics.FRACTION) + ((log2(total.clamp(min=1)) + 8) >> 4)
    return torch.where(begun & (total > 0), logs, numerics.MASKED_L).reshape(rows)


def masses(t, logs, masked):
    """Probabilities with 28 fraction bits of scores t [..., keys] whose rows have the logarithms ``logs`` (mode MASS)."""
    return exp2((logs[..., None] - t).clamp(min=0)).masked_fill(masked, 0)


def index(group, *, block, gamma16, threshold):
    """Block scores, decisions and selections of a run.

    Returns
    -------
    dict : ver, sla [G, nb], pool [G, nb], divergence [G], query_aware bool [G], vertical, slash bool [G, nb],
        rows bool [G, nb, nb] (selections of pooled rows; only those of query-aware heads are set).
    """
    heads, tokens, head_dim = group.q.shape
    if tokens < block:
        raise ValueError(f"tokens must be at least a block, {block}, not {tokens}: shorter prompts run dense")
    count = -(-tokens // block)
    last = torch.arange(tokens - block, tokens)
    ver, sla, pool = (torch.zeros(heads, count, dtype=torch.int64) for _ in range(3))
    queries, exponents = group.q[:, last], group.xq[:, last]
    step = 16 * block  # keys at a time: bounds memory, and is a multiple of a tile
    t = torch.cat(
        [
            scores(queries, exponents, group.k[i : i + step], group.xk[i : i + step]).int()
            for i in range(0, tokens, step)
        ],
        -1,
    ).long()
    key = torch.arange(tokens)
    masked = (key > last[:, None]).expand_as(t)
    logs = log_sums(t, masked, head_dim)
    p = masses(t, logs, masked)
    distance = torch.div(last[:, None] - key, block, rounding_mode="floor").clamp(min=0)
    for head in range(heads):
        ver[head].index_add_(0, key // block, p[head].sum(0))
        sla[head].index_add_(0, distance.flatten(), p[head].flatten())
        pool[head].index_add_(0, key // block, t[head].sum(0))
    aware, divergence = decide(ver, pool, block, tokens, threshold)
    rows = torch.zeros(heads, count, count, dtype=torch.bool)
    for head in torch.as_tensor(aware).nonzero().flatten().tolist():
        t = scores(group.pooled_q[head], group.pooled_xq[head], group.pooled_k, group.pooled_xk)
        hidden = torch.ones(count, count, dtype=torch.bool).triu(1)
        rows[head] = torch.as_tensor(top(masses(t, log_sums(t, hidden, head_dim), hidden), gamma16)) & ~hidden
    return {
        "ver": ver,
        "sla": sla,
        "pool": pool,
        "divergence": divergence,
        "query_aware": torch.as_tensor(aware),
        "vertical": torch.as_tensor(top(ver, gamma16)),
        "slash": torch.as_tensor(top(sla, gamma16)),
        "rows": rows,
    }


def block_map(found):
    """Map bool [G, nb, nb] (head, query block, key block) from what :func:`index` returns."""
    vertical, slash, aware = found["vertical"], found["slash"], found["query_aware"]
    heads, count = vertical.shape
    row, column = torch.arange(count)[:, None], torch.arange(count)
    causal = column <= row
    forced = (column == 0) | (column == row)
    distance = (row - column).clamp(min=0)
    band = slash[:, distance] | slash[:, (distance - 1).clamp(min=0)] & (distance >= 1)
    pattern = vertical[:, None, :] | band
    pooled = found["rows"] | vertical[:, None, :] & (row >= count - 2)
    return (torch.where(aware[:, None, None], pooled, pattern) | forced) & causal


def attend(group, keep, *, block, progress=None):
    """Block-sparse causal attention.

    Parameters
    ----------
    keep : bool [G, nb, nb]
        Block map; the diagonal must be kept.

    Returns
    -------
    values int16 [G, N, D], exponents int8 [G, N] : the weighted mean of v is ``values / 254 * 2^exponents``.
    """
    heads, tokens, head_dim = group.q.shape
    count = -(-tokens // block)
    if keep.shape != (heads, count, count):
        raise ValueError(f"the block map must be of shape {(heads, count, count)}, not {tuple(keep.shape)}")
    if not keep.diagonal(dim1=1, dim2=2).all():
        raise ValueError("the block map must keep every block of the diagonal")
    out = torch.empty(heads, tokens, head_dim, dtype=torch.int16)
    exponents = torch.empty(heads, tokens, dtype=torch.int8)
    for row in range(count):
        rows = torch.arange(row * block, min((row + 1) * block, tokens))
        for head in range(heads):
            blocks = keep[head, row, : row + 1].nonzero().flatten()
            keys = (blocks[:, None] * block + torch.arange(block)).flatten()
            out[head, rows], exponents[head, rows] = _attend_rows(
                group.q[head, rows], group.xq[head, rows], rows, group, keys[keys < tokens]
            )
        if progress:
            progress(row + 1, count)
    return out, exponents


def attend_last(q, xq, group):
    """Attention of one query for each head, q int8 [G, D] with scale bytes xq uint8 [G], at the last of the keys and values of ``group``
    (a :class:`HeadGroup` of which nothing else is read).

    Returns
    -------
    values int16 [G, D], exponent int : means are ``values / 254 * 2^exponent``.
    """
    tokens = group.k.shape[0]
    values, exponents = _attend_rows(q, xq, torch.full((len(q),), tokens - 1), group, torch.arange(tokens))
    return values, int(exponents[0])


def _attend_rows(q, xq, rows, group, keys):
    """Results int16 [rows, D] and exponents of queries q at the places ``rows`` over keys in ascending order."""
    head_dim = q.shape[-1]
    pad = -len(keys) % head_dim
    keys = torch.cat([keys, keys.new_full((pad,), 1 << 40)])  # past the last token: masked
    held = keys.clamp(max=group.k.shape[0] - 1)
    t = scores(q, xq, group.k[held], group.xk[held])
    loud = group.xv[held].long().masked_fill(keys >= group.k.shape[0], 0) - numerics.VALUE_BIAS
    scaled = t + (loud << numerics.FRACTION - numerics.VALUE_FRACTION)
    hidden = keys > rows[:, None]
    tiles = len(keys) // head_dim
    t, scaled, hidden = (x.reshape(len(rows), tiles, head_dim) for x in (t, scaled, hidden))
    reach = ~hidden.all(-1)
    e, f = ((x.masked_fill(hidden, _NONE).amax(-1) >> numerics.FRACTION) + 1 for x in (t, scaled))
    p = exp2(((e << numerics.FRACTION)[..., None] - t).masked_fill(hidden, _GONE)).sum(-1)
    weights = weight(((f << numerics.FRACTION)[..., None] - scaled).masked_fill(hidden, _GONE))
    values = group.v[held].reshape(tiles, head_dim, head_dim)
    sums = torch.einsum("rtk,tkd->rtd", weights.float(), values.float()).long() << numerics.MERGE_SHIFT
    state, means = None, None
    for tile in range(tiles):
        state = tile_merge(state, e[:, tile], p[:, tile], reach[:, tile])
        means = tile_merge(means, f[:, tile], sums[:, tile], reach[:, tile])
    (maximum, total, _), (top, sums, _) = state, means
    loudest = (loud.reshape(tiles, head_dim).amax(-1) + (1 << numerics.VALUE_FRACTION) - 1) >> numerics.VALUE_FRACTION
    exponent = torch.where(reach, loudest, -numerics.VALUE_BIAS).amax(-1)
    shift = torch.frexp(total.double())[1].long() - 17  # l has 28 bits at least, since its largest key has
    inverse = numerics.INVERSE // (total >> shift)
    k = (numerics.OUT_SHIFT + shift + maximum + exponent - top).clamp(max=60)
    out = (sums * inverse[:, None] + (1 << (k - 1))[:, None]) >> k[:, None]
    return out.clamp(-32767, 32767).short(), exponent.to(torch.int8)
