"""Attention of the decoder with a cache of its own: 16-bit queries over INT8 keys and values with a scalar a token (docs/numerics.md)."""

import torch

from intaglio.gen.checkpoint.quantised import QuantisedModel
from intaglio.rtl.arithmetic import numerics
from intaglio.sim.reference.scalars import Scalars, clamp, normalise, shift_right
from intaglio.sim.reference.vector import quantise, reciprocal, rotated

__all__ = ["CacheAttention"]

_ROWS = 128  # queries that are attended to at once, to bound memory


class CacheAttention:
    """Keys, values and their scales of one sequence in every layer, and the attention over them."""

    def __init__(self, model: QuantisedModel) -> None:
        self.config = model.config
        self.exp_table = torch.tensor(numerics.EXP_TABLE)
        self.reset()

    def reset(self) -> None:
        """Forget the sequence."""
        c = self.config
        self.keys = [torch.zeros(c.kv_heads, 0, c.head_dim, dtype=torch.int64) for _ in range(c.layers)]
        self.values = [torch.zeros(c.kv_heads, 0, c.head_dim, dtype=torch.int64) for _ in range(c.layers)]
        empty = torch.zeros(c.kv_heads, 0, dtype=torch.int64)
        self.key_scales = [(empty, empty) for _ in range(c.layers)]
        self.value_scales = [(empty, empty) for _ in range(c.layers)]

    def __call__(
        self,
        index: int,
        qkv: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        scales: tuple[Scalars, Scalars, Scalars],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of layer ``index``; appends to the cache.

        Parameters
        ----------
        qkv : int64 [n, rows], results of the matrices, of the tokens that come next
        rotary : cosines and sines, int64 [n, head_dim / 2]
        scales : of queries, keys and values, [n]

        Returns
        -------
        output : int64 [n, heads * head_dim]
        exponent : int64 [n], of two: the unit of a row
        """
        c, n = self.config, len(qkv)
        q_scale, k_scale, v_scale = scales
        t, sh = rotated(qkv, rotary, c.kv_heads, c.head_dim)
        largest = t.abs().amax(2)
        # queries: absolute scale, its mantissa multiplied in
        tq = t[:, : c.heads]
        _, en = normalise(largest[:, : c.heads])
        ts = shift_right(tq, en[..., None].expand_as(tq))
        half = 1 << (numerics.OPERAND_SHIFT - 1)
        query = clamp((ts * q_scale.m[:, None, None] + half) >> numerics.OPERAND_SHIFT, numerics.INT16_MAX)
        query_exponent = en + (sh + q_scale.e)[:, None] + numerics.OPERAND_SHIFT
        # keys and values: INT8 and a scale per token and head
        stored = quantise(
            t[:, c.heads :], largest[:, c.heads :], numerics.INT8_NUMERATOR, numerics.INT8_SHIFT, numerics.INT8_MAX
        )
        new_scales = []
        for base, part in (
            (k_scale, largest[:, c.heads : c.heads + c.kv_heads]),
            (v_scale, largest[:, c.heads + c.kv_heads :]),
        ):
            wide = Scalars(base.m[:, None].expand_as(part), base.e[:, None].expand_as(part))
            s = Scalars.of_int(part).scaled(sh[:, None]) * wide
            new_scales.append((s.m.T, torch.where(s.m > 0, s.e, numerics.ZERO_EXPONENT).T))
        append = (stored[:, : c.kv_heads].transpose(0, 1), stored[:, c.kv_heads :].transpose(0, 1))
        first = self.keys[index].shape[1]
        self.keys[index] = torch.cat([self.keys[index], append[0]], 1)
        self.values[index] = torch.cat([self.values[index], append[1]], 1)
        for cache, new in ((self.key_scales, new_scales[0]), (self.value_scales, new_scales[1])):
            cache[index] = (torch.cat([cache[index][0], new[0]], 1), torch.cat([cache[index][1], new[1]], 1))
        reference = self.value_scales[index][1].amax(0).cummax(0).values[-n:]
        rows = [
            self._attend(
                index, query[r : r + _ROWS], query_exponent[r : r + _ROWS], reference[r : r + _ROWS], first + r
            )
            for r in range(0, n, _ROWS)
        ]
        return torch.cat(rows), reference + 7

    def _attend(self, index, query, exponent, reference, first):
        """Rows of queries ``[r, heads, d]`` whose first is at position ``first``."""
        c, rows = self.config, len(query)
        seen = first + rows
        mask = torch.arange(seen) <= torch.arange(first, seen)[:, None]
        outputs = []
        for h in range(c.heads):
            kv = h // c.group
            keys, values = self.keys[index][kv, :seen], self.values[index][kv, :seen]
            (km, ke), (vm, ve) = (
                (m[kv, :seen], e[kv, :seen]) for m, e in (self.key_scales[index], self.value_scales[index])
            )
            product = ((query[:, h].double() @ keys.double().T).long() >> c.score_shift) * km
            rs = (-(c.score_shift + ke + exponent[:, h, None] + numerics.EXP_FRACTION)).clamp(0, 40)
            score = clamp(product >> rs, (1 << 17) - 1)
            largest = torch.where(mask, score, -(1 << 18)).amax(1, keepdim=True)
            delta = (largest - score).clamp(min=0)
            p = torch.where(mask, self.exp_table[delta & 255] >> (delta >> 8).clamp(max=31), 0)
            total = p.sum(1)
            w = (((p * vm) >> (reference[:, None] - ve).clamp(0, 32)) + (1 << 15)) >> 16
            acc = (w.double() @ values.double()).long()
            mantissa, es = normalise(total)
            r = reciprocal(numerics.INVERSE, mantissa)[:, None]
            outputs.append(
                clamp((shift_right(acc, (es + 7)[:, None].expand_as(acc)) * r + (1 << 16)) >> 17, (1 << 17) - 1)
            )
        return torch.cat(outputs, 1)
