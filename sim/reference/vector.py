"""What the vector unit does to rows, in integer torch tensors: shift to 18 bits, rotation, quantisation (docs/numerics.md)."""

import torch

from intaglio.rtl.arithmetic import numerics
from intaglio.sim.reference.scalars import bit_length, clamp, normalise, shift_right

__all__ = ["quantise", "reciprocal", "rotated", "shift_for_vector", "shift_to"]


def shift_for_vector(s: torch.Tensor) -> torch.Tensor:
    """Shift ``sh`` per row that brings ``s [n, d]`` into 18 signed bits."""
    return shift_to(s, numerics.XS_BITS - 1)


def shift_to(s: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift per row that brings the magnitudes of ``s [n, d]`` into ``bits`` bits."""
    magnitude = s ^ (s >> 63)
    ored = magnitude[:, 0].clone()
    for column in range(1, s.shape[1]):
        ored |= magnitude[:, column]
    return (bit_length(ored) - bits).clamp(min=0)


def reciprocal(numerator: int, mantissa: torch.Tensor) -> torch.Tensor:
    """``numerator // mantissa``, 0 where the mantissa is 0."""
    return torch.where(mantissa > 0, numerator // mantissa.clamp(min=1), 0)


def quantise(t: torch.Tensor, largest: torch.Tensor, numerator: int, shift: int, limit: int) -> torch.Tensor:
    """Pass B of rows ``t [..., d]`` whose largest magnitudes are ``largest [...]``."""
    mantissa, en = normalise(largest)
    ts = shift_right(t, en[..., None].expand_as(t))
    r = reciprocal(numerator, mantissa)[..., None]
    return clamp((ts * r + (1 << (shift - 1))) >> shift, limit)


def rotated(
    qkv: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], plain_heads: int, head_dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pass A of queries, keys and values ``[n, rows]``, the last ``plain_heads`` heads of which are not rotated.

    Returns
    -------
    t : int64 ``[n, heads, head_dim]``
    sh : int64 ``[n]``, by which the whole token was shifted to the right
    """
    sh = shift_for_vector(qkv)
    xs = (qkv >> sh[:, None]).view(len(qkv), -1, head_dim)
    turning, plain = xs[:, : xs.shape[1] - plain_heads], xs[:, xs.shape[1] - plain_heads :]
    even, odd = turning[..., 0::2], turning[..., 1::2]
    cos, sin = (part[:, None] for part in rotary)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)
    return torch.cat([turned, plain * numerics.ROTARY_ONE], 1), sh
