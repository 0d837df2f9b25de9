"""Exact model of sparse prefill attention in integer torch tensors; docs/prefill.md has every formula."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from intaglio.rtl.arithmetic import attention as numerics
from intaglio.sim.attention.selection import decide, top

__all__ = [
    "HeadGroup",
    "attend",
    "attend_last",
    "attend_rows",
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

_EXP = torch.tensor([numerics.mass_exp2(x) for x in range((numerics.MASS_FRACTION << 8) + 1)], dtype=torch.int32)
_WEIGHT = torch.tensor([numerics.weight(x) for x in range((10 << 8) + 1)], dtype=torch.int32)  # both end in 0
_LOG = torch.tensor(numerics.LOG_TABLE)
_NONE = -(1 << 20)  # below every score: a masked key
_GONE = 1 << 20  # a distance of which nothing is left


def exp2(x):
    """``2^(-x/256)`` with 28 fraction bits, int32, for integers ``x >= 0`` of any shape."""
    return _EXP[x.clamp(max=len(_EXP) - 1)]


def weight(x):
    """``254 * 2^(-x/256)``, rounded, int32, for integers ``x >= 0`` of any shape."""
    return _WEIGHT[x.clamp(max=len(_WEIGHT) - 1)]


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

    q int8 [G, n, D], xq uint8 [G, n], the queries of the last n tokens; k, v int8 [N, D], xk, xv uint8 [N]; pooled_q int8 [G, qb, D],
    pooled_xq [G, qb], of the last qb blocks, all that have queries; pooled_k int8 [nb, D], pooled_xk [nb]. Elements are in -127..127. A
    scale byte x stands for ``(4 + x % 4) * 2^(20 - x // 4)`` of a query or key, for ``2^((x - 128) / 4)`` of a value. torch tensors of any
    integer dtype.
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
    """Scores int32 [..., rows, keys] of queries [..., rows, D] and keys [keys, D] with their scale bytes."""
    dot = (q.float() @ k.float().transpose(-1, -2)).int()  # below 2^21, hence exact
    of_q, of_k = xq.int()[..., :, None], xk.int()
    one = 1 << numerics.SCALE_FRACTION
    product = dot.mul_(one + of_q % one).mul_(one + of_k % one)  # below 2^27
    shift = (of_q // one + of_k // one - numerics.SHIFT_BIAS).clamp_(0, numerics.SHIFT_MAX)
    half = (1 << (shift - 1).clamp_(min=0)).masked_fill_(shift == 0, 0)
    return (product.add_(half) >> shift).clamp_(-numerics.SCORE_MAX - 1, numerics.SCORE_MAX)


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
        rows bool [G, qb, nb] (selections of pooled rows; only those of query-aware heads are set).
    """
    (heads, new, head_dim), tokens = group.q.shape, group.k.shape[0]
    if new < block:
        raise ValueError(f"tokens must be at least a block, {block}, not {new}: shorter prompts run dense")
    count = -(-tokens // block)
    asking = count - (tokens - new) // block  # blocks with queries
    last = torch.arange(tokens - block, tokens)
    ver, sla, pool = (torch.zeros(heads, count, dtype=torch.int64) for _ in range(3))
    queries, exponents = group.q[:, -block:], group.xq[:, -block:]
    step = 16 * block  # keys at a time: bounds memory, and is a multiple of a tile
    t = torch.cat(
        [scores(queries, exponents, group.k[i : i + step], group.xk[i : i + step]) for i in range(0, tokens, step)], -1
    )
    key = torch.arange(tokens)
    masked = (key > last[:, None]).expand_as(t)
    logs = log_sums(t, masked, head_dim)
    p = masses(t, logs, masked)
    distance = torch.div(last[:, None] - key, block, rounding_mode="floor").clamp(min=0)
    for head in range(heads):
        ver[head].index_add_(0, key // block, p[head].sum(0))
        sla[head].index_add_(0, distance.flatten(), p[head].flatten().long())
        pool[head].index_add_(0, key // block, t[head].sum(0))
    aware, divergence = decide(ver, pool, block, tokens, threshold)
    rows = torch.zeros(heads, asking, count, dtype=torch.bool)
    for head in torch.as_tensor(aware).nonzero().flatten().tolist():
        t = scores(group.pooled_q[head], group.pooled_xq[head], group.pooled_k, group.pooled_xk)
        hidden = torch.ones(asking, count, dtype=torch.bool).triu(1 + count - asking)
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
    """Map bool [G, qb, nb] (head, query block, key block) from what :func:`index` returns."""
    vertical, slash, aware = found["vertical"], found["slash"], found["query_aware"]
    count = vertical.shape[1]
    row, column = torch.arange(count - found["rows"].shape[1], count)[:, None], torch.arange(count)
    causal = column <= row
    forced = (column == 0) | (column == row)
    distance = (row - column).clamp(min=0)
    band = slash[:, distance] | slash[:, (distance - 1).clamp(min=0)] & (distance >= 1)
    pattern = vertical[:, None, :] | band
    pooled = found["rows"] | vertical[:, None, :] & (row >= count - 2)
    return (torch.where(aware[:, None, None], pooled, pattern) | forced) & causal


def attend(group, keep, *, block, by_row=False, progress=None):
    """Block-sparse causal attention.

    Parameters
    ----------
    keep : bool [G, qb, nb]
        Block map; the diagonal must be kept.
    by_row : bool
        As in :func:`attend_rows`.

    Returns
    -------
    values int16 [G, n, D], exponents int8 [G, n] : the weighted mean of v is ``values / 254 * 2^exponents``.
    """
    (heads, new, head_dim), tokens = group.q.shape, group.k.shape[0]
    count, first = -(-tokens // block), tokens - new
    asking = range(first // block, count)
    if keep.shape != (heads, len(asking), count):
        raise ValueError(f"the block map must be of shape {(heads, len(asking), count)}, not {tuple(keep.shape)}")
    if not keep.diagonal(asking.start, 1, 2).all():
        raise ValueError("the block map must keep every block of the diagonal")
    out = torch.empty(heads, new, head_dim, dtype=torch.int16)
    exponents = torch.empty(heads, new, dtype=torch.int8)
    for row in asking:
        rows = torch.arange(max(row * block, first), min((row + 1) * block, tokens))
        mine = rows - first
        kept = keep[:, row - asking.start, : row + 1]
        for found in kept.unique(dim=0):  # heads with the same blocks side by side
            of = (kept == found).all(1).nonzero()
            keys = (found.nonzero() * block + torch.arange(block)).flatten()
            keys = keys[keys < tokens]
            hidden = (keys > rows[:, None]).repeat(len(of), 1)
            q, xq = group.q[of, mine].flatten(0, 1), group.xq[of, mine].flatten()
            got, m = attend_rows(
                q, xq, *(x[keys] for x in (group.k, group.xk, group.v, group.xv)), hidden, by_row=by_row
            )
            out[of, mine], exponents[of, mine] = got.view(len(of), -1, head_dim), m.view(len(of), -1)
        if progress:
            progress(row - asking.start + 1, len(asking))
    return out, exponents


def attend_last(q, xq, group):
    """Attention of one query for each head, q int8 [G, D] with scale bytes xq uint8 [G], at the last of the keys and values of ``group``
    (a :class:`HeadGroup` of which nothing else is read).

    Returns
    -------
    values int16 [G, D], exponent int : means are ``values / 254 * 2^exponent``.
    """
    hidden = torch.zeros(len(q), group.k.shape[0], dtype=torch.bool)
    values, exponents = attend_rows(q, xq, group.k, group.xk, group.v, group.xv, hidden)
    return values, int(exponents[0])


def attend_rows(q, xq, k, xk, v, xv, hidden, *, by_row=False):
    """Attention of rows over all the keys given, tiles in order.

    Parameters
    ----------
    q, xq : [R, D], [R]; k, xk, v, xv : [N, D], [N]
    hidden : bool [R, N]
        Keys that a row does not see. Each row sees one at least.
    by_row : bool
        The exponent of a row is that of the loudest value that the row sees, so that its result depends on nothing after it. Otherwise it
        is that of all values in the tiles that it sees some of.

    Returns
    -------
    values int16 [R, D], exponents int8 [R]
    """
    rows, head_dim = q.shape
    pad = -len(k) % head_dim  # past the last key: masked
    k, v = (F.pad(x, (0, 0, 0, pad)) for x in (k, v))
    xk, xv, hidden = F.pad(xk, (0, pad)), F.pad(xv, (0, pad)), F.pad(hidden, (0, pad), value=True)
    t = scores(q, xq, k, xk)
    loud = xv.int() - numerics.VALUE_BIAS
    scaled = t + (loud << numerics.FRACTION - numerics.VALUE_FRACTION)
    tiles = len(k) // head_dim
    t, scaled, hidden = (x.reshape(rows, tiles, head_dim) for x in (t, scaled, hidden))
    reach = ~hidden.all(-1)
    e, f = ((x.masked_fill(hidden, _NONE).amax(-1) >> numerics.FRACTION) + 1 for x in (t, scaled))
    p = exp2(((e << numerics.FRACTION)[..., None] - t).masked_fill(hidden, _GONE)).sum(-1)
    weights = weight(((f << numerics.FRACTION)[..., None] - scaled).masked_fill(hidden, _GONE))
    values = v.reshape(tiles, head_dim, head_dim)
    sums = torch.einsum("rtk,tkd->rtd", weights.float(), values.float()).long() << numerics.MERGE_SHIFT
    state, means = None, None
    for tile in range(tiles):
        state = tile_merge(state, e[:, tile], p[:, tile], reach[:, tile])
        means = tile_merge(means, f[:, tile], sums[:, tile], reach[:, tile])
    (maximum, total, _), (top, sums, _) = state, means
    loudest = ((loud + (1 << numerics.VALUE_FRACTION) - 1) >> numerics.VALUE_FRACTION).reshape(tiles, head_dim)
    unseen = hidden if by_row else ~reach[..., None]
    exponent = loudest.expand_as(hidden).masked_fill(unseen, -numerics.VALUE_BIAS).amax((1, 2))
    shift = torch.frexp(total.double())[1].long() - 17  # l has 28 bits at least, since its largest key has
    inverse = numerics.INVERSE // (total >> shift)
    k = (numerics.OUT_SHIFT + shift + maximum + exponent - top).clamp(max=60)
    out = (sums * inverse[:, None] + (1 << (k - 1))[:, None]) >> k[:, None]
    return out.clamp(-32767, 32767).short(), exponent.to(torch.int8)
