"""Real queries, keys and values as the integers and the memory of the prefill unit; docs/prefill.md has numerics and layout."""

import math
from dataclasses import dataclass

import numpy as np

from intaglio.host.attention.condition import calibrate, condition, hadamard

__all__ = ["Image", "Quantised", "image", "quantise", "read_image"]

ELEMENT_MAX = 127
SCALE_FRACTION, VALUE_FRACTION, VALUE_BIAS, WEIGHT_MAX = 2, 2, 128, 254  # as the unit has them
SCALE_LEAST, SCALE_MOST = -43, 20  # exponents of the scale of a query or key
TINY = 2.0**-100  # below every scale
ALIGNMENT = 4096


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """Integers of one KV head and its G query heads, each row with a scale byte x of its own.

    q int8 [G, N, D], xq uint8 [G, N]; k, v int8 [N, D], xk, xv uint8 [N]; pooled_q int8 [G, nb, D], pooled_xq [G, nb];
    pooled_k int8 [nb, D], pooled_xk [nb]. A conditioned row is its integers times ``(4 + x % 4) * 2^(20 - x // 4)``, of queries divided by
    ``log2(e) / sqrt(D)``; of a value its integers times ``2^((x - 128) / 4 + value_exponent)``.
    """

    q: np.ndarray
    xq: np.ndarray
    k: np.ndarray
    xk: np.ndarray
    v: np.ndarray
    xv: np.ndarray
    pooled_q: np.ndarray
    pooled_xq: np.ndarray
    pooled_k: np.ndarray
    pooled_xk: np.ndarray
    value_exponent: int = 0

    @property
    def last_only(self):
        """Whether queries are of the last token alone: q is [G, 1, D], and there are no pooled rows."""
        return len(self.pooled_k) == 0

    def results(self, values, exponents):
        """Real results float32 [..., D] of what the unit gives, in the channels of v: ``values`` int16 [..., D] in steps of
        ``2^exponents / 254``, exponents int8 [...]."""
        scaled = np.ldexp(
            values.astype(np.float32) / WEIGHT_MAX, exponents[..., None].astype(np.int32) + self.value_exponent
        )
        return scaled @ hadamard(scaled.shape[-1]).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Image:
    """Memory of a run. That of queries of the last token alone has pages and one Q block, whose rows are the heads.

    data : uint8, the bytes from address ``origin`` on. The bases are addresses, multiples of 4096.
    stride, pooled_blocks : blocks of a head among the Q blocks (nb) and among the pooled Q blocks (pb).
    """

    data: np.ndarray
    origin: int
    kv_base: int
    q_base: int
    last_base: int
    pooled_q_base: int
    pooled_k_base: int
    stride: int
    pooled_blocks: int


def _power(name, value, low, high):
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high or value & value - 1:
        raise ValueError(f"{name} must be a power of 2 in {low}..{high}, not {value!r}")


def _real(name, x, shape):
    x = np.asarray(x)
    if (
        x.ndim != len(shape)
        or 0 in x.shape
        or any(want not in (None, have) for want, have in zip(shape, x.shape, strict=True))
    ):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name} must be of shape [{wanted}] without a zero, not {list(x.shape)}")
    if x.dtype.kind != "f":
        raise ValueError(f"{name} must be of a floating type, not {x.dtype}")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} must be finite, not NaN or infinite")
    return x.astype(np.float64)


def _rows(x):
    """Integers [..., D] and scale bytes [...] of queries or keys: the smallest scale that covers the row. A row beyond all scales is made
    smaller until it fits: its scores are then far beyond what a softmax tells apart."""
    one = 1 << SCALE_FRACTION
    wanted = _step(x)
    exponent = np.floor(np.log2(wanted)).astype(np.int64)
    mantissa = np.ceil(wanted * np.exp2(-exponent.astype(float)) * one).astype(np.int64) - one
    steps = (mantissa + (exponent - SCALE_FRACTION) * one).clip(SCALE_LEAST * one, SCALE_MOST * one + one - 1)
    scale = (one + steps % one) * np.exp2((steps // one).astype(float))
    return _integers(x, scale), ((SCALE_MOST - steps // one) * one + steps % one).astype(np.uint8)


def _values(x):
    """Integers [..., D] and scale bytes [...] of rows of values, likewise."""
    steps = np.ceil(np.log2(_step(x)) * (1 << VALUE_FRACTION)).clip(-VALUE_BIAS, VALUE_BIAS - 1)
    return _integers(x, np.exp2(steps / (1 << VALUE_FRACTION))), (steps + VALUE_BIAS).astype(np.uint8)


def _step(x):
    """The least scale at which no integer of a row rounds beyond 127."""
    return np.maximum(np.abs(x).max(-1), TINY) / (ELEMENT_MAX + 0.49)


def _integers(x, scale):
    return np.rint(x / scale[..., None]).clip(-ELEMENT_MAX, ELEMENT_MAX).astype(np.int8)


def _block_means(x, block):
    """Means over the true rows of each block of x [..., N, D]."""
    starts = np.arange(0, x.shape[-2], block)
    counts = np.minimum(block, x.shape[-2] - starts)
    return np.add.reduceat(x, starts, axis=-2) / counts[:, None]


def quantise(q, k, v, *, block=128, last_only=False):
    """Quantise one KV head and the query heads that share it.

    Parameters
    ----------
    q : float [G, N, D]; k, v : float [N, D]
        After rotary embedding, q not scaled by 1/sqrt(D). D is a power of 2 in 16..128.
    block : int
        Tokens of a block, power of 2 in D..128.
    last_only : bool
        q [G, 1, D] is of the last token alone; queries and keys are balanced by it.

    Returns
    -------
    Quantised, of queries, keys and values conditioned by the first block (:mod:`intaglio.host.attention.condition`). No integer and no
    scale depends on a later token.

    Raises
    ------
    ValueError
        A shape does not fit, or a value is not finite.
    """
    q = _real("q", q, (None, None, None))
    _, tokens, head_dim = q.shape
    _power("head_dim", head_dim, 16, 128)
    _power("block", block, head_dim, 128)
    if last_only and tokens != 1:
        raise ValueError(f"q must have one token with last_only, not {tokens}")
    k = _real("k", k, (None if last_only else tokens, head_dim))
    v = _real("v", v, k.shape)
    conditioning = calibrate(q[:, :block], k[:block], v[:block])
    q, k, v = condition(q, k, v, conditioning)
    q = q * (math.log2(math.e) / math.sqrt(head_dim))
    rows = {"q": q, "k": k, "pooled_q": _block_means(q, block), "pooled_k": _block_means(k, block)}
    if last_only:
        rows |= {"pooled_q": q[:, :0], "pooled_k": k[:0]}
    found = {}
    for name, x in rows.items():
        found[name], found[("pooled_x" if "_" in name else "x") + name[-1]] = _rows(x)
    v, xv = _values(v)
    return Quantised(v=v, xv=xv, value_exponent=conditioning.value_exponent, **found)


def _blocks(x, block):
    """Rows [..., N, ...] on axis 0 as blocks [n, block, ...], zero past the end."""
    padding = [(0, -x.shape[0] % block)] + [(0, 0)] * (x.ndim - 1)
    return np.pad(x, padding).reshape(-1, block, *x.shape[1:])


def _q_blocks(rows, scales, block):
    """Q blocks uint8 [n, (B + X) D]: rows, then their scale bytes."""
    rows, scales = _blocks(rows, block), _blocks(scales, block)
    return np.concatenate([rows.reshape(len(rows), -1).view(np.uint8), scales], 1)


def _pages(keys, key_scales, values, value_scales, block):
    """Pages uint8 [n, 2 (B + X) D]: keys, their scale bytes, values, theirs."""
    return np.concatenate([_q_blocks(keys, key_scales, block), _q_blocks(values, value_scales, block)], 1)


def _last_rows(x, block):
    """The last ``block`` rows; for fewer tokens zero rows come first, so that row i is always token N - block + i."""
    x = x[-block:]
    return np.concatenate([np.zeros((block - len(x), *x.shape[1:]), x.dtype), x])


def image(quantised, *, block=128, origin=0):
    """Lay a run out in memory: pages of keys and values, Q blocks, last queries, pooled queries, pooled keys, each from a multiple of 4096.

    Parameters
    ----------
    quantised : Quantised, made with the same ``block``
    origin : int
        Address of the first byte, a multiple of 4096.

    Returns
    -------
    Image
    """
    x = quantised
    (tokens, head_dim), group = x.k.shape, len(x.q)
    count = -(-tokens // block)
    _power("block", block, head_dim, 128)
    if not x.last_only and x.pooled_k.shape[0] != count:
        raise ValueError(
            f"block must be that of the pooled rows, {x.pooled_k.shape[0]} for {tokens} tokens, not {block}"
        )
    if isinstance(origin, bool) or not isinstance(origin, int) or origin < 0 or origin % ALIGNMENT:
        raise ValueError(f"origin must be a multiple of {ALIGNMENT} that is not negative, not {origin!r}")

    def heads(rows, scales):
        return np.concatenate([_q_blocks(rows[h], scales[h], block) for h in range(group)])

    pages = _pages(x.k, x.xk, x.v, x.xv, block)
    if x.last_only:
        return _laid_out({"kv_base": pages, "q_base": _q_blocks(x.q[:, 0], x.xq[:, 0], block)}, origin, 1, 0)
    last, last_x = (np.stack([_last_rows(r, block) for r in rows]) for rows in (x.q, x.xq))
    sections = {
        "kv_base": pages,
        "q_base": heads(x.q, x.xq),
        "last_base": heads(last, last_x),
        "pooled_q_base": heads(x.pooled_q, x.pooled_xq),
        "pooled_k_base": _pages(x.pooled_k, x.pooled_xk, np.zeros_like(x.pooled_k), np.zeros_like(x.pooled_xk), block),
    }
    return _laid_out(sections, origin, count, -(-count // block))


def _laid_out(sections, origin, stride, pooled_blocks):
    """Image of sections by the names of their bases; a base without a section is ``origin``."""
    bases = dict.fromkeys(("kv_base", "q_base", "last_base", "pooled_q_base", "pooled_k_base"), origin)
    parts, end = [], 0
    for name, section in sections.items():
        bases[name] = origin + end
        parts += [section.ravel(), np.zeros(-section.size % ALIGNMENT, np.uint8)]
        end += len(parts[-2]) + len(parts[-1])
    return Image(data=np.concatenate(parts), origin=origin, stride=stride, pooled_blocks=pooled_blocks, **bases)


def read_image(memory, *, group, tokens, head_dim, block):
    """The integers of an image, as a dict with the names of :class:`Quantised`, and last_q, last_xq."""
    data, count, size = memory.data.view(np.int8), -(-tokens // block), block * head_dim

    def blocks(address, number):
        """Rows and scale bytes of blocks that follow one another."""
        found = data[address - memory.origin :][: number * (size + block)].reshape(number, size + block)
        return found[:, :size].reshape(-1, head_dim), found[:, size:].reshape(-1).view(np.uint8)

    def q_rows(base, number, rows):
        found = [blocks(base + h * number * (size + block), number) for h in range(group)]
        return (np.stack([head[part][:rows] for head in found]) for part in range(2))

    def kv_rows(base, rows):
        number = -(-rows // block)
        both = [x.reshape(number, 2, block, *x.shape[1:]) for x in blocks(base, 2 * number)]
        return (x[:, part].reshape(-1, *x.shape[3:])[:rows] for part in range(2) for x in both)

    found = {}
    found["q"], found["xq"] = q_rows(memory.q_base, memory.stride, tokens)
    found["last_q"], found["last_xq"] = q_rows(memory.last_base, 1, block)
    found["pooled_q"], found["pooled_xq"] = q_rows(memory.pooled_q_base, memory.pooled_blocks, count)
    found["k"], found["xk"], found["v"], found["xv"] = kv_rows(memory.kv_base, tokens)
    found["pooled_k"], found["pooled_xk"], *_ = kv_rows(memory.pooled_k_base, count)
    return found
