"""Numerics of rows in pages: INT8 elements and a scale byte from the row alone, without a division; docs/machine.md has the formulas.

A row comes from pass A as integers ``t`` with their largest magnitude, a shift of the token and the token's scalar ``m * 2^e``. The
smallest scale that covers it is found by four comparisons; every element is multiplied by one factor and shifted to the right, rounded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from intaglio.rtl.arithmetic.attention import SCALE_FRACTION, VALUE_BIAS
from intaglio.rtl.arithmetic.numerics import INT8_MAX, normalise

__all__ = [
    "FACTOR_SHIFT",
    "POOL_GUARD",
    "POOL_STEPS",
    "QUERY",
    "ROUND_SHIFT",
    "SPARE",
    "VALUE",
    "RowFormat",
    "pool",
    "quantise_row",
]

STEPS = 4  # scales in a factor of 2
FACTOR_SHIFT = 15
ROUND_SHIFT = 25  # least shift of an element times its factor; up to 2 more
SPARE = 30  # most powers of two that a row is moved for the smallest scale; further below it is zero
SCALE_EXPONENT = 20  # of scale byte 0 of a query or key
POOL_GUARD, POOL_STEPS = 8, 31  # fraction bits of a sum of rows, and the most by which a row is shifted to the right


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """How the scale of a row is written.

    thresholds : four 11-bit integers: a maximum of 11 bits (its top bit set) has the scale that is as many quarter steps above the least as
        thresholds are not above it.
    factors : by quarter step: ``2^16`` times the reciprocal of the scale's mantissa, whose least is 1
    offset : quarter steps of a scale 0 with the maximum's exponent 0
    least, most : quarter steps that the byte can hold
    """

    thresholds: tuple[int, ...]
    factors: tuple[int, ...]
    offset: int
    least: int
    most: int
    logarithmic: bool

    def byte(self, steps: Any) -> Any:
        """Scale byte of quarter steps ``least <= steps <= most``; element-wise on integer arrays."""
        if self.logarithmic:
            return steps + VALUE_BIAS
        return SCALE_EXPONENT * STEPS - (steps >> 2 << 2) + (steps & 3)


# A maximum of 127.5 scales is still rounded to 127: 255 * 4, a maximum of 11 bits, stands for 127.5 times the scale's mantissa, 4.
QUERY = RowFormat(  # of queries and keys: (4 + j) 2^k, steps 4 k + j
    thresholds=tuple(255 * (STEPS + j) for j in (1, 2, 3, 4)),
    factors=tuple(round((1 << 16) * STEPS / (STEPS + j)) for j in range(STEPS)),
    offset=1 * STEPS + 1,
    least=(SCALE_EXPONENT - 63) * STEPS,
    most=SCALE_EXPONENT * STEPS + STEPS - 1,
    logarithmic=False,
)
VALUE = RowFormat(  # 2^(steps / 4)
    thresholds=tuple(int(1020 * 2.0 ** (i / STEPS)) for i in (1, 2, 3, 4)),
    factors=tuple(round((1 << 16) * 2.0 ** (-i / STEPS)) for i in range(STEPS)),
    offset=(1 + SCALE_FRACTION) * STEPS + 1,
    least=-VALUE_BIAS,
    most=VALUE_BIAS - 1,
    logarithmic=True,
)


def quantise_row(t: Sequence[int], sh: int, m: int, e: int, form: RowFormat) -> tuple[list[int], int]:
    """INT8 elements and scale byte of a row whose value is ``t * 2^(sh + e) * m``, ``m`` of 16 bits with its top bit set, or 0."""
    mantissa, en = normalise(max(abs(x) for x in t))
    product = mantissa * m  # 33 bits
    if not product:
        return [0] * len(t), form.byte(form.least)
    high = product >> 32
    top = product >> 21 + high  # 11 bits
    above = sum(top >= threshold for threshold in form.thresholds)
    steps = STEPS * (en + sh + e + 21 + high) + form.offset + above
    below = max(0, -(steps - form.least >> 2))  # powers of two that the smallest scale is too large
    steps += STEPS * below
    factor = m * form.factors[steps & 3] >> FACTOR_SHIFT  # 17 bits
    shift = ROUND_SHIFT + high + (above >= 3)
    amount = en + min(below, SPARE)
    elements = []
    for x in t:
        ts = x >> amount if amount >= 0 else x << -amount  # 18 bits, signed
        q = ts * factor + (1 << shift - 1) >> shift
        elements.append(max(-INT8_MAX, min(INT8_MAX, q)))
    return elements, form.byte(min(steps, form.most))


def pool(rows: Sequence[Sequence[int]], scales: Sequence[int]) -> tuple[list[int], int]:
    """Mean of rows of queries or keys with their scale bytes, as INT8 elements and a scale byte whose mantissa is 4.

    The sum is divided by the least power of two that is not below the number of rows.
    """
    loudest, sums = 63, [0] * len(rows[0])
    for row, x in zip(rows, scales, strict=True):
        y, mantissa = x >> 2, STEPS + (x & 3)
        if y < loudest:
            sums = [total >> min(loudest - y, POOL_STEPS) for total in sums]
            loudest = y
        sums = [
            total + (q * mantissa << POOL_GUARD >> min(y - loudest, POOL_STEPS))
            for total, q in zip(sums, row, strict=True)
        ]
    ored = 0
    for total in sums:
        ored |= total ^ (total >> 63)
    shift = max(0, ored.bit_length() - INT8_MAX.bit_length())
    exponent = loudest + POOL_GUARD + SCALE_FRACTION + (len(rows) - 1).bit_length() - shift
    shift += max(0, exponent - 63)
    elements = [max(-INT8_MAX, min(INT8_MAX, total + (1 << shift >> 1) >> shift)) for total in sums]
    return elements, 4 * max(0, min(63, exponent))
