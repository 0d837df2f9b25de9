"""Rows of pages in integer torch tensors: the twin of :mod:`intaglio.rtl.arithmetic.rows`, element by element (docs/machine.md)."""

import torch

from intaglio.rtl.arithmetic import rows
from intaglio.rtl.arithmetic.numerics import INT8_MAX
from intaglio.sim.reference.scalars import clamp, normalise, shift_right
from intaglio.sim.reference.vector import shift_to

__all__ = ["pool", "quantise_rows"]


def quantise_rows(
    t: torch.Tensor, m: torch.Tensor, e: torch.Tensor, form: rows.RowFormat
) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers and scale bytes of rows ``t [..., d]`` whose values are ``t * m * 2^e``, ``m`` and ``e [...]``.

    Returns
    -------
    int8 ``[..., d]``, uint8 ``[...]``
    """
    mantissa, en = normalise(t.abs().amax(-1))
    product = mantissa * m
    high = product >> 32
    top = product >> (21 + high)
    above = sum((top >= threshold).long() for threshold in form.thresholds)
    steps = rows.STEPS * (en + e + 21 + high) + form.offset + above
    below = (-((steps - form.least) >> 2)).clamp(min=0)
    steps = steps + rows.STEPS * below
    factor = (m * torch.tensor(form.factors)[steps & 3] >> rows.FACTOR_SHIFT)[..., None]
    shift = (rows.ROUND_SHIFT + high + (above >= 3))[..., None]
    ts = shift_right(t, (en + below.clamp(max=rows.SPARE))[..., None].expand_as(t))
    q = clamp((ts * factor + (1 << (shift - 1))) >> shift, INT8_MAX)
    none = product == 0
    x = form.byte(torch.where(none, form.least, steps.clamp(max=form.most)))
    return q.masked_fill(none[..., None], 0).to(torch.int8), x.to(torch.uint8)


def pool(q: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means over the rows of ``q [..., rows, d]`` with scale bytes ``x [..., rows]``: int8 ``[..., d]``, uint8 ``[...]``."""
    shape, count = q.shape[:-2], q.shape[-2]
    q, x = q.reshape(-1, *q.shape[-2:]).long(), x.reshape(-1, count).long()
    loudest = torch.full((len(q),), 63)
    sums = torch.zeros(len(q), q.shape[2], dtype=torch.int64)
    for row in range(count):
        y, mantissa = x[:, row] >> 2, rows.STEPS + (x[:, row] & 3)
        new = torch.minimum(y, loudest)
        sums = sums >> (loudest - new).clamp(max=rows.POOL_STEPS)[:, None]
        added = q[:, row] * mantissa[:, None] << rows.POOL_GUARD
        sums, loudest = sums + (added >> (y - new).clamp(max=rows.POOL_STEPS)[:, None]), new
    shift = shift_to(sums, INT8_MAX.bit_length())
    exponent = loudest + rows.POOL_GUARD + 2 + (count - 1).bit_length() - shift
    shift = (shift + (exponent - 63).clamp(min=0))[:, None]
    out = clamp((sums + (1 << shift >> 1)) >> shift, INT8_MAX)
    return out.to(torch.int8).reshape(*shape, -1), (4 * exponent.clamp(0, 63)).to(torch.uint8).reshape(shape)
