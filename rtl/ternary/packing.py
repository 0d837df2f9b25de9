"""Words of ternary weights: their packing, its inverse, and the decoder in hardware.

A word lies in *planes*, so that the decoder works on whole vectors of bits:

``2bit``
    bit ``i`` is set where weight ``i`` is +1, bit ``lane_width + i`` where it is -1 (the pair is 00 zero, 01 plus, 10 minus).
``5trit``
    ``n = ceil(lane_width / 5)`` codes of 8 bits; bit ``k`` of code ``j`` is bit ``k n + j`` of the word, and trit ``k`` of code
    ``j`` is weight ``k n + j`` (0 beyond ``lane_width``). A code is ``c (bits 7..5), b (4..3), a (2..0)``::

        pair(x): two trits except (-, -)     x = 0pq: (p, q) each 0 or +      10q: (-, q)      11p: (p, -)
        escape   b = 3 and a >= 4:           (t3, t4) = (-, -),  (a', b') = (c, a & 3)
        else                                 (t3, t4) = pair(c), (a', b') = (a, b)
        b' < 3   (t0, t1) = pair(a'),        t2 = b'             t2: 0 zero, 1 plus, 2 minus
        b' = 3   (t0, t1) = (-, -),          t2 = a' & 3

    which is a bijection from all 243 groups of five trits and takes some 40 gates (a base-3 code needs several times as many).
``pairs``
    for :mod:`intaglio.rtl.ternary.tables`: weights ``j`` and ``pairs + j`` (``pairs = lane_width / 2``) are pair ``j``. Four planes of
    ``pairs`` bits: ``both`` are not zero; ``second``: only the second is not, or both are and differ; ``zero``: both are; ``sign``: that
    of the first that is not zero (0 where there is none), relative to the same of pair ``j`` without its highest bit; pair 0's as it is.
"""

import itertools

import numpy as np
from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.config.decoder import check_packing, word_bits

__all__ = ["Unpack", "execution_order", "pack", "pack_ints", "unpack"]


def pack(weights, packing):
    """Pack ``weights [..., lane_width]`` in {-1, 0, 1}.

    Returns
    -------
    uint8 ``[words, ceil(word_bits / 8)]``
        Little-endian words, the leading dimensions flattened.

    Raises
    ------
    ValueError
        A weight is outside {-1, 0, 1}, or the packing is unknown.
    """
    check_packing(packing)
    weights = np.asarray(weights)
    lane_width = weights.shape[-1]
    weights = weights.reshape(-1, lane_width)
    if weights.size and not (-1 <= weights.min() and weights.max() <= 1):
        raise ValueError(f"weights must be in -1, 0, 1, not in {weights.min()}..{weights.max()}")
    weights = weights.astype(np.int8, copy=False)
    if packing == "2bit":
        return np.packbits(np.concatenate([weights == 1, weights == -1], axis=1), axis=1, bitorder="little")
    if packing == "pairs":
        return _pack_pairs(weights)
    n = -(-lane_width // 5)
    trits = np.zeros((len(weights), 5 * n), np.uint8)
    trits[:, :lane_width] = weights + np.int8(1)
    trits[:, lane_width:] = 1
    trits = trits.reshape(-1, 5, n)
    index = trits[:, 4]
    for k in (3, 2, 1, 0):
        index = index * np.uint8(3) + trits[:, k]
    planes = CODE_OF_TRITS[index][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & np.uint8(1)
    return np.packbits(planes.reshape(len(weights), 8 * n), axis=1, bitorder="little")


def pack_ints(weights, packing):
    """:func:`pack` as a list of integers, one a word."""
    return [int.from_bytes(row.tobytes(), "little") for row in pack(weights, packing)]


def unpack(words, packing, lane_width):
    """Inverse of :func:`pack`: uint8 ``[words, bytes]`` to int8 ``[words, lane_width]``.

    Raises
    ------
    ValueError
        A code stands for no weights.
    """
    if packing == "pairs":
        return _unpack_pairs(words, lane_width)
    bits = np.unpackbits(words, axis=1, count=word_bits(packing, lane_width), bitorder="little")
    if packing == "2bit":
        plus, minus = bits[:, :lane_width], bits[:, lane_width:]
        if (plus & minus).any():
            raise ValueError("a 2-bit code must be 0, 1 or 2, not 3")
        return plus.astype(np.int8) - minus.astype(np.int8)
    codes = np.packbits(bits.reshape(len(words), 8, -1), axis=1, bitorder="little")[:, 0]
    trits = TRITS_OF_CODE[codes]
    if (trits == 2).any():
        raise ValueError(f"a 5-trit code must stand for five weights; {codes[(trits == 2).any(axis=-1)][0]} does not")
    return trits.transpose(0, 2, 1).reshape(len(words), -1)[:, :lane_width]


def _pack_pairs(weights):
    word_bits("pairs", weights.shape[1])
    first, second = np.split(weights, 2, axis=1)
    both, neither = (first != 0) & (second != 0), (first == 0) & (second == 0)
    signs = np.where(first != 0, first, second) < 0
    signs[:, 1:] ^= signs[:, _without_highest(first.shape[1])[1:]]  # the right side is a copy
    planes = [both, both & (first != second) | (first == 0) & (second != 0), neither, signs]
    return np.packbits(np.concatenate(planes, axis=1), axis=1, bitorder="little")


def _unpack_pairs(words, lane_width):
    pairs = word_bits("pairs", lane_width) // 4
    bits = np.unpackbits(words, axis=1, count=4 * pairs, bitorder="little").astype(bool)
    both, other, neither, signs = (bits[:, k * pairs : (k + 1) * pairs] for k in range(4))
    signs = signs.copy()
    for j, k in enumerate(_without_highest(pairs)[1:], 1):
        signs[:, j] ^= signs[:, k]
    if (neither & (both | other | signs)).any():
        raise ValueError("the code of a pair of zeros must have no other bit")
    sign = np.where(signs, np.int8(-1), np.int8(1))
    first = np.where(neither | other & ~both, 0, sign)
    second = np.where(both, np.where(other, -sign, sign), np.where(other, sign, 0))
    return np.concatenate([first, second], axis=1).astype(np.int8)


def _without_highest(count):
    return np.array([j & ~(1 << j.bit_length() - 1) if j else 0 for j in range(count)])


def execution_order(weight, lanes, lane_width):
    """Lay out ``weight [rows, inputs]`` as the lanes take it: ``[lanes, rows / lanes * inputs / lane_width, lane_width]``.

    Word ``g * chunks + c`` of lane ``l`` is ``weight[g * lanes + l, c * lane_width:(c + 1) * lane_width]``.

    Raises
    ------
    ValueError
        ``lanes`` does not divide the rows or ``lane_width`` the inputs.
    """
    weight = np.asarray(weight)
    rows, inputs = weight.shape
    if rows % lanes or inputs % lane_width:
        raise ValueError(
            f"a matrix must have rows a multiple of lanes = {lanes} and inputs of lane_width = {lane_width}, "
            f"not {rows} x {inputs}"
        )
    ordered = weight.reshape(rows // lanes, lanes, inputs // lane_width, lane_width).transpose(1, 0, 2, 3)
    return ordered.reshape(lanes, -1, lane_width)


class Unpack(wiring.Component):
    """Decode a word of weights, ``2bit`` or ``5trit``. Latency 0.

    Members
    -------
    word : In(word_bits)
    plus, minus : Out(lane_width)
        Bit ``i``: weight ``i`` is +1, is -1.
    """

    def __init__(self, packing, lane_width):
        self.packing, self.lane_width = packing, lane_width
        super().__init__(
            {"word": In(word_bits(packing, lane_width)), "plus": Out(lane_width), "minus": Out(lane_width)}
        )

    def elaborate(self, platform):
        m = Module()
        width = self.lane_width
        if self.packing == "2bit":
            m.d.comb += [self.plus.eq(self.word[:width]), self.minus.eq(self.word[width:])]
            return m
        n = -(-width // 5)

        def vector(name, value):
            signal = Signal(n, name=name)
            m.d.comb += signal.eq(value)
            return signal

        bit = [self.word[k * n : (k + 1) * n] for k in range(8)]
        escape = vector("escape", bit[3] & bit[4] & bit[2])
        a, b = [], []
        for k in range(3):
            a.append(vector(f"a{k}", (bit[k] & ~escape) | (bit[5 + k] & escape)))
        for k in range(2):
            b.append(vector(f"b{k}", (bit[3 + k] & ~escape) | (bit[k] & escape)))
        full = vector("full", b[0] & b[1])
        first, second = _pair(*a, full)
        third, fourth = _pair(*bit[5:], escape)
        middle = [
            vector("middle_plus", (full & a[0]) | (b[0] & ~b[1])),
            vector("middle_minus", (full & a[1]) | (b[1] & ~b[0])),
        ]
        trits = (first, second, middle, third, fourth)
        m.d.comb += [port.eq(Cat(trit[k] for trit in trits)) for k, port in enumerate((self.plus, self.minus))]
        return m


def _pair(x0, x1, x2, both_minus):
    """Planes ``((plus, minus), (plus, minus))`` of ``pair(x)``, or of (-, -) where ``both_minus``."""
    keep = ~both_minus
    minus0, minus1 = (x2 & ~x1) | both_minus, (x2 & x1) | both_minus
    return (x1 & (x0 | ~x2) & keep, minus0), (x0 & ~(x2 & x1) & keep, minus1)


def _tables():
    """Code of each group ``sum (t_k + 1) 3^k``; trits of each code (2 where there are none)."""
    pairs = {0: (0, 0), 1: (0, 1), 2: (1, 0), 3: (1, 1), 4: (-1, 0), 5: (-1, 1), 6: (0, -1), 7: (1, -1)}
    codes = {pair: x for x, pair in pairs.items()}
    of_trits, of_code = np.zeros(243, np.uint8), np.full((256, 5), 2, np.int8)
    for trits in itertools.product((-1, 0, 1), repeat=5):
        t2 = trits[2] % 3
        a, b = (t2, 3) if trits[:2] == (-1, -1) else (codes[trits[:2]], t2)
        if trits[3:] == (-1, -1):
            a, b, c = b | 4, 3, a
        else:
            c = codes[trits[3:]]
        code = a | b << 3 | c << 5
        of_trits[sum((t + 1) * 3**k for k, t in enumerate(trits))] = code
        of_code[code] = trits
    return of_trits, of_code


CODE_OF_TRITS, TRITS_OF_CODE = _tables()
