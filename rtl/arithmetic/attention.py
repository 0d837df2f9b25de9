"""Numerics that the prefill unit and its exact model share; docs/prefill.md has the formulas."""

import math

from intaglio.rtl.arithmetic.numerics import INVERSE, exp_table

__all__ = [
    "EXP",
    "FRACTION",
    "INVERSE",
    "LOG",
    "LOG_FRACTION",
    "LOG_TABLE",
    "MASKED_L",
    "MASS_FRACTION",
    "MERGE_SHIFT",
    "OUT_SHIFT",
    "SCALE_FRACTION",
    "SCORE_BITS",
    "SCORE_MAX",
    "SCORE_WORD",
    "SHIFT_BIAS",
    "SHIFT_MAX",
    "VALUE_BIAS",
    "VALUE_FRACTION",
    "WEIGHT",
    "WEIGHT_MAX",
    "WEIGHT_OFFSET",
    "exp2",
    "log2",
    "mass_exp2",
    "weight",
]

SCORE_BITS = 18  # signed bits of a score
SCORE_MAX = (1 << SCORE_BITS - 1) - 1
FRACTION = 8  # a score of 256 is a factor of 2
SCALE_FRACTION = 2  # mantissa bits of the scale of a query or key: byte 4 e + m stands for (4 + m) 2^(20 - e)
SHIFT_BIAS = (
    2 * 20 + FRACTION
)  # less than the two exponents of a score: by how much its product is shifted to the right
SHIFT_MAX = 31  # leaves nothing of a product
VALUE_FRACTION = 2  # byte n + 128 stands for the scale 2^(n / 4) of a row of values
VALUE_BIAS = 128
EXP = exp_table(16)  # of sparse attention
LOG_FRACTION = 12
LOG = 11  # bits of a mantissa that the table of logarithms sees: with fewer, the divergence of 32 even blocks comes out 4 % high
LOG_TABLE = tuple(round(4096 * math.log2(1 + (m + 0.5) / (1 << LOG))) for m in range(1 << LOG))
MASS_FRACTION = (
    28  # fraction bits of a key's share of a row's mass: 131,072 keys lose at most 2^-11 of it by truncation
)
SCORE_WORD = MASS_FRACTION + 8  # bits of a block score: the masses of 128 rows, and one more for their rounding
MERGE_SHIFT = 4  # fraction bits of sums that are merged by shifting
WEIGHT_MAX = 254  # weight of a probability of 1, relative to its tile
WEIGHT = tuple(round(2 * WEIGHT_MAX * 2.0 ** (-f / 256)) for f in range(256))  # twice the weight of 2^(-f/256)
WEIGHT_OFFSET = 127  # the matrix unit multiplies by weights less this, so that they are operands of 8 signed bits
OUT_SHIFT = 33 - (
    MASS_FRACTION - MERGE_SHIFT
)  # of O / l, besides what l was normalised by: results come in steps of 1/254
MASKED_L = SCORE_MAX  # logarithm of the sum of a row that nothing has reached


def exp2(x):
    """``2^(-x/256)`` with 16 fraction bits for an integer ``x >= 0``."""
    return EXP[x & 255] >> (x >> 8) if x < 16 << 8 else 0


def mass_exp2(x):
    """``2^(-x/256)`` with 28 fraction bits, truncated, for an integer ``x >= 0``; ``exp2(x)`` is its upper 16 bits."""
    return EXP[x & 255] << MASS_FRACTION - 16 >> (x >> 8)


def weight(x):
    """``254 * 2^(-x/256)``, rounded, for an integer ``x >= 0``."""
    return (WEIGHT[x & 255] >> (x >> 8)) + 1 >> 1


def log2(n):
    """``4096 log2 n`` for an integer ``n >= 1``."""
    top = n.bit_length() - 1
    mantissa = (n << LOG >> top) & (1 << LOG) - 1
    return (top << LOG_FRACTION) + LOG_TABLE[mantissa]
