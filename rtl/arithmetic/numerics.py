"""Numerics that the hardware and the exact model share: scalar floats, tables, rounding. docs/numerics.md derives them.

Everything works on Python integers, and where noted element by element on integer arrays that support ``>> << * + //``.
"""

import math
from dataclasses import dataclass

__all__ = [
    "EXP_FRACTION",
    "EXP_TABLE",
    "GAIN_MAX",
    "INT8_MAX",
    "INT8_NUMERATOR",
    "INT8_SHIFT",
    "INT16_MAX",
    "INT16_NUMERATOR",
    "INT16_SHIFT",
    "INVERSE",
    "MANTISSA",
    "OPERAND_SHIFT",
    "PHASE_BITS",
    "RESIDUAL_FRACTION",
    "ROTARY_ONE",
    "ROW_SCALE_BITS",
    "SINE_TABLE",
    "T_BITS",
    "XS_BITS",
    "ZERO_EXPONENT",
    "RotaryScaling",
    "Scalar",
    "exp_table",
    "normalise",
    "rotary_increment",
    "rotary_pair",
]

INT8_MAX, INT16_MAX = 127, 32767
GAIN_MAX = 32767
RESIDUAL_FRACTION = 16  # fraction bits of the residual stream, a saturating 32-bit integer
XS_BITS = 18  # signed bits of a vector element after its shift
T_BITS = 34  # signed bits of element times coefficient (sum of two in a rotation)
MANTISSA = 17  # bits of a normalised maximum or sum: in [2^16, 2^17)

# Reciprocals: numerator // normalised maximum has 17 bits; (element * reciprocal + half) >> shift is the quantised element.
INT8_NUMERATOR, INT8_SHIFT = INT8_MAX << 26, 26
INT16_NUMERATOR, INT16_SHIFT = INT16_MAX << 18, 18
OPERAND_SHIFT = 18  # for queries: element * 16-bit mantissa of their scale
INVERSE = (1 << 33) - 1  # numerator of 1/sum of the softmax

ROW_SCALE_BITS = 16  # unsigned scale of a row of the embedding or of the head

ZERO_EXPONENT = -128  # of a key or a value of scale 0 in the cache: below a model's own, and its square stays in range

EXP_FRACTION = 8


def exp_table(bits: int) -> tuple[int, ...]:
    """``2^(-f/256)`` for f in 0..255 with ``bits`` fraction bits, rounded, below 1 so that every entry has ``bits`` bits."""
    return tuple(min((1 << bits) - 1, round((1 << bits) * 2.0 ** (-f / 256))) for f in range(256))


EXP_TABLE = exp_table(15)  # of the decoder's softmax

PHASE_BITS = 32  # a turn of a rotary phase is 2^32
ROTARY_ONE = 1 << 14  # cos 0
# One quarter of a sine, sampled in the middle of 1024 intervals, so that all quarters share the table without a special case.
SINE_TABLE = tuple(round(ROTARY_ONE * math.sin((i + 0.5) * math.pi / 2048)) for i in range(1024))


@dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """How a model that was trained on for longer texts turns more slowly; names are Hugging Face's.

    ``linear``: every frequency divided by ``factor``. ``llama3``: those that turn less than ``low_freq_factor`` times in
    ``original_max_position_embeddings`` positions divided by it, those that turn more than ``high_freq_factor`` times as they are, between
    them a mean of both, linear in the frequency.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def ratio(self, frequency: float) -> float:
        """What ``frequency``, in radians a position, is multiplied by."""
        if self.kind == "linear":
            return 1 / self.factor
        turns = self.original_max_position_embeddings * frequency / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = min(max(kept, 0.0), 1.0)
        return kept + (1 - kept) / self.factor


def rotary_increment(index, head_dim, theta, scaling=None):
    """Phase that position adds for pair ``index``: turns of ``theta^(-2 index / head_dim) / 2 pi``, in units of 2^-32 turn.

    ``scaling``, a :class:`RotaryScaling`, multiplies the frequency.
    """
    frequency = theta ** (-2 * index / head_dim)
    if scaling is not None:
        frequency *= scaling.ratio(frequency)
    return round(frequency / (2 * math.pi) * 2**PHASE_BITS) % 2**PHASE_BITS


def rotary_pair(phase):
    """``(cos, sin)`` with 14 fraction bits of a phase in units of 2^-32 turn, by quarter-wave look-up of its top 12 bits."""
    quadrant, index = phase >> 30 & 3, phase >> 20 & 1023
    rising, falling = SINE_TABLE[index], SINE_TABLE[1023 - index]
    sine = (rising, falling, -rising, -falling)[quadrant]
    cosine = (falling, -rising, -falling, rising)[quadrant]
    return cosine, sine


def normalise(n):
    """``(mantissa, shift)`` with ``mantissa = n >> shift`` (``n << -shift`` where negative) in [2^16, 2^17); ``(0, -17)`` for 0."""
    shift = n.bit_length() - MANTISSA
    return (n >> shift if shift >= 0 else n << -shift), shift


@dataclass(frozen=True)
class Scalar:
    """Unsigned scalar float ``m * 2^e``: ``m`` has 16 bits with the top bit set, or is 0; every operation truncates.

    ``e`` is kept in 10 signed bits; :class:`OverflowError` when it leaves them. Zero is ``Scalar(0, 0)``.
    """

    m: int
    e: int

    def __post_init__(self):
        if not -512 <= self.e <= 511:
            raise OverflowError(f"the exponent of a scalar must be in -512..511, not {self.e}")

    @classmethod
    def of_int(cls, n, e=0):
        """The top 16 bits of the integer ``n >= 0``, times ``2^e``."""
        if n == 0:
            return cls(0, 0)
        shift = n.bit_length() - 16
        return cls(n >> shift if shift >= 0 else n << -shift, e + shift)

    @classmethod
    def of_float(cls, x):
        """The nearest scalar of a positive float (for constants)."""
        if not (x >= 0 and math.isfinite(x)):
            raise ValueError(f"a scalar must be finite and not negative, not {x!r}")
        if x == 0:
            return cls(0, 0)
        fraction, exponent = math.frexp(x)
        m = round(fraction * 65536)
        return cls(m >> 1, exponent - 15) if m == 65536 else cls(m, exponent - 16)

    def __float__(self):
        return math.ldexp(self.m, self.e)

    def __mul__(self, other):
        if self.m == 0 or other.m == 0:
            return Scalar(0, 0)
        p = self.m * other.m
        high = p >> 31
        return Scalar(p >> (15 + high), self.e + other.e + 15 + high)

    def __truediv__(self, other):
        """Zero when either is zero."""
        if self.m == 0 or other.m == 0:
            return Scalar(0, 0)
        q = (self.m << 16) // other.m
        high = q >> 16
        return Scalar(q >> high, self.e - other.e - 16 + high)

    def __add__(self, other):
        if self.m == 0 or other.m == 0:
            return self if other.m == 0 else other
        big, small = (self, other) if self.e >= other.e else (other, self)
        m = big.m + (small.m >> min(big.e - small.e, 17))
        high = m >> 16
        return Scalar(m >> high, big.e + high)

    def sqrt(self):
        if self.m == 0:
            return self
        odd = self.e & 1
        return Scalar(math.isqrt(self.m << (16 - odd)), (self.e - 16 + odd) // 2)

    def scaled(self, exponent):
        """Times ``2^exponent``; zero stays zero."""
        return self if self.m == 0 else Scalar(self.m, self.e + exponent)
