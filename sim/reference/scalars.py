"""Element-by-element torch twins of :mod:`intaglio.rtl.arithmetic.numerics`: bit length, scalar floats, shifts by tensors. All int64."""

from collections.abc import Sequence
from typing import Self

import torch

from intaglio.rtl.arithmetic.numerics import MANTISSA, Scalar

__all__ = ["Scalars", "bit_length", "clamp", "normalise", "shift_right"]


def bit_length(n: torch.Tensor) -> torch.Tensor:
    """Bit length of ``n >= 0``, below 2^63."""
    high = n >> 31
    part = torch.where(high > 0, high, n)
    return torch.frexp(part.double())[1].long() + torch.where(high > 0, 31, 0)


def shift_right(n: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """``n >> amount``, or ``n << -amount`` where the amount is negative."""
    return torch.where(amount >= 0, n >> amount.clamp(0, 63), n << (-amount).clamp(0, 63))


def clamp(n: torch.Tensor, limit: int) -> torch.Tensor:
    return n.clamp(-limit, limit)


def normalise(n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mantissa in [2^16, 2^17) and its shift; ``(0, -17)`` for zero."""
    shift = bit_length(n) - MANTISSA
    return shift_right(n, shift), shift


class Scalars:
    """A tensor of unsigned scalar floats ``m * 2^e``; operations equal those of :class:`intaglio.rtl.arithmetic.numerics.Scalar`."""

    def __init__(self, m: torch.Tensor, e: torch.Tensor) -> None:
        if bool(((e < -512) | (e > 511)).any()):
            raise OverflowError("the exponent of a scalar must be in -512..511")
        self.m, self.e = m, e

    @classmethod
    def full(cls, scalar: Scalar, shape: Sequence[int]) -> Self:
        return cls(torch.full(shape, scalar.m), torch.full(shape, scalar.e))

    @classmethod
    def of_int(cls, n: torch.Tensor, e: int = 0) -> Self:
        shift = bit_length(n) - 16
        return cls(shift_right(n, shift), torch.where(n > 0, shift + e, 0))

    def _where(self, ok, m, e):
        return Scalars(torch.where(ok, m, 0), torch.where(ok, e, 0))

    def __mul__(self, other: "Scalars") -> "Scalars":
        p = self.m * other.m
        high = p >> 31
        return self._where((self.m > 0) & (other.m > 0), p >> (15 + high), self.e + other.e + 15 + high)

    def __truediv__(self, other: "Scalars") -> "Scalars":
        ok = (self.m > 0) & (other.m > 0)
        q = (self.m << 16) // other.m.clamp(min=1)
        high = q >> 16
        return self._where(ok, q >> high, self.e - other.e - 16 + high)

    def __add__(self, other: "Scalars") -> "Scalars":
        swap = other.e > self.e
        big_m, small_m = torch.where(swap, other.m, self.m), torch.where(swap, self.m, other.m)
        big_e, small_e = torch.where(swap, other.e, self.e), torch.where(swap, self.e, other.e)
        m = big_m + (small_m >> (big_e - small_e).clamp(max=17))
        high = m >> 16
        left, right = other.m == 0, self.m == 0
        m, e = m >> high, big_e + high
        m, e = torch.where(right, other.m, m), torch.where(right, other.e, e)
        return Scalars(torch.where(left, self.m, m), torch.where(left, self.e, e))

    def sqrt(self) -> "Scalars":
        odd = self.e & 1
        n = self.m << (16 - odd)
        root = n.double().sqrt().long()
        root = root - (root * root > n).long()
        root = root + ((root + 1) * (root + 1) <= n).long()
        return self._where(self.m > 0, root, (self.e - 16 + odd) // 2)

    def scaled(self, exponent: torch.Tensor | int) -> "Scalars":
        return Scalars(self.m, torch.where(self.m > 0, self.e + exponent, self.e))

    def double(self) -> torch.Tensor:
        return torch.ldexp(self.m.double(), self.e)
