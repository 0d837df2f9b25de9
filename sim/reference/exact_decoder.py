"""Exact model: the decoder in integer torch tensors, the specification of the hardware, equal to the RTL bit for bit.

docs/numerics.md gives every formula. One code path serves a whole text at once and one token at a time: :meth:`ExactDecoder.step` appends
any number of tokens to the cache.
"""

import copy
from collections.abc import Sequence
from typing import Self, overload

import numpy as np
import torch

from intaglio.gen.checkpoint.quantised import QuantisedModel
from intaglio.host.adapter.files import QuantisedAdapter
from intaglio.rtl.arithmetic import numerics
from intaglio.rtl.arithmetic.silu import SILU_BITS, SILU_FRACTION, SILU_SLOPES, SILU_TABLE, silu
from intaglio.sim.reference.scalars import Scalars, bit_length, clamp, normalise, shift_right

__all__ = ["ExactDecoder"]

_ROWS = 128  # queries that are attended to at once, to bound memory


def _tensor(array):
    return torch.as_tensor(array, dtype=torch.int64)


def _shift_for_vector(s):
    """Shift ``sh`` per row that brings ``s [n, d]`` into 18 signed bits."""
    return _shift_to(s, numerics.XS_BITS - 1)


def _shift_to(s, bits):
    """Shift per row that brings the magnitudes of ``s [n, d]`` into ``bits`` bits."""
    magnitude = s ^ (s >> 63)
    ored = magnitude[:, 0].clone()
    for column in range(1, s.shape[1]):
        ored |= magnitude[:, column]
    return (bit_length(ored) - bits).clamp(min=0)


def _reciprocal(numerator, mantissa):
    return torch.where(mantissa > 0, numerator // mantissa.clamp(min=1), 0)


class ExactDecoder:
    """State (KV cache) and arithmetic of the decoder.

    Parameters
    ----------
    model : intaglio.gen.checkpoint.quantised.QuantisedModel
    adapter : object or None
        Its ``matrices`` are integers by (layer, name) with ``a``, ``b``, ``m``, ``e``, as those of
        :class:`intaglio.host.adapter.files.QuantisedAdapter`; those of every matrix that the hardware adapts.
    """

    def __init__(self, model: QuantisedModel, adapter: QuantisedAdapter | None = None) -> None:
        self.model, self.config = model, model.config
        self.adapt(adapter)
        self.embedding, self.head = _tensor(model.embedding), _tensor(model.head)
        self.layers = []
        for layer in model.layers:
            weights = {name: torch.as_tensor(w).double() for name, w in layer.matrices.items()}
            self.layers.append((weights, {name: _tensor(g) for name, g in layer.gains.items()}, layer.constants))
        self.row_scales = {name: _tensor(scales.astype(np.int64)) for name, scales in model.row_scales.items()}
        self.final_gains = _tensor(model.final_gains)
        self.exp_table = _tensor(numerics.EXP_TABLE)
        self.silu_tables = _tensor(SILU_TABLE), _tensor(SILU_SLOPES)
        self.reset()

    def another(self) -> Self:
        """A decoder with an empty cache of its own; the weights are shared."""
        other = copy.copy(self)
        other.reset()  # which makes new lists for the caches
        return other

    def adapt(self, adapter: QuantisedAdapter | None) -> None:
        """Compute with ``adapter``, or with none, from here on."""
        self.factors = (
            {}
            if adapter is None
            else {
                key: (torch.as_tensor(f.a).double(), torch.as_tensor(f.b).double(), f.m, f.e)
                for key, f in adapter.matrices.items()
            }
        )

    def reset(self) -> None:
        """Forget the cache: the next token is at position 0."""
        c = self.config
        self.position = 0
        self.keys = [torch.zeros(c.kv_heads, 0, c.head_dim, dtype=torch.int64) for _ in range(c.layers)]
        self.values = [torch.zeros(c.kv_heads, 0, c.head_dim, dtype=torch.int64) for _ in range(c.layers)]
        empty = torch.zeros(c.kv_heads, 0, dtype=torch.int64)
        self.key_scales = [(empty, empty) for _ in range(c.layers)]
        self.value_scales = [(empty, empty) for _ in range(c.layers)]

    @overload
    def step(self, tokens: Sequence[int] | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...

    @overload
    def step(self, tokens: Sequence[int] | torch.Tensor, logits: bool) -> tuple[torch.Tensor, torch.Tensor] | None: ...

    def step(
        self, tokens: Sequence[int] | torch.Tensor, logits: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Append tokens ``[n]`` to the sequence.

        Returns
        -------
        (logits, scale) : int64 ``[n, vocab]`` and float64 ``[n]``, the value of a logit's unit; None with ``logits=False``.

        Raises
        ------
        ValueError
            A token lies outside the vocabulary, or the context is full.
        """
        c = self.config
        tokens = torch.as_tensor(tokens, dtype=torch.int64)
        if tokens.numel() and not (0 <= int(tokens.min()) and int(tokens.max()) < c.vocab):
            raise ValueError(f"tokens must be in 0..{c.vocab - 1}")
        if self.position + len(tokens) > c.context:
            raise ValueError(
                f"position must stay below the context of {c.context} tokens, not reach {self.position + len(tokens)}"
            )
        half = 1 << c.embed_shift >> 1
        scales = self.row_scales["embedding"][tokens, None] if c.row_scales else self.model.embed_scale
        x = (self.embedding[tokens] * scales + half) >> c.embed_shift
        rotary = self._rotary(len(tokens))
        for index in range(c.layers):
            x = self._layer(x, index, rotary)
        self.position += len(tokens)
        if not logits:
            return None
        q, scale, _ = self._norm(
            x,
            self.final_gains,
            numerics.INT16_NUMERATOR,
            numerics.INT16_SHIFT,
            numerics.INT16_MAX,
            self.model.residual_epsilon,
        )
        out = (q.double() @ self.head.double().T).long()
        if c.row_scales:
            out = out * self.row_scales["embedding" if c.tied_head else "head"] >> numerics.ROW_SCALE_BITS
        out = out >> c.logit_shift
        return out, (scale * Scalars.full(self.model.logit_constant, scale.m.shape)).double()

    def generate(self, prompt: Sequence[int], count: int, stop: int | None = None) -> list[int]:
        """Greedy continuation of ``prompt`` by up to ``count`` tokens, from an empty cache; lower token first on ties."""
        self.reset()
        logits, _ = self.step(prompt)
        tokens = []
        while True:
            row = logits[-1]
            token = int((row == row.max()).nonzero()[0, 0])
            tokens.append(token)
            if len(tokens) == count or token == stop or self.position == self.config.context:
                return tokens
            logits, _ = self.step([token])

    # -- parts of a layer

    def _rotary(self, count):
        pairs = [
            [
                numerics.rotary_pair((position * increment) % 2**numerics.PHASE_BITS)
                for increment in self.model.increments
            ]
            for position in range(self.position, self.position + count)
        ]
        table = _tensor(pairs)
        return table[..., 0], table[..., 1]

    def _norm(self, source, gains, numerator, shift, limit, epsilon):
        """Quantised rows, the scale ``M / sqrt(SS + E)``, and the shift of the vector; ``epsilon`` is a scalar or a tensor of them."""
        sh = _shift_for_vector(source)
        xs = source >> sh[:, None]
        t = xs * gains
        largest = t.abs().amax(1)
        squares = (xs * xs).sum(1)
        if not isinstance(epsilon, Scalars):
            epsilon = Scalars.full(epsilon, sh.shape)
        deviation = (Scalars.of_int(squares) + epsilon.scaled(-2 * sh)).sqrt()
        return self._quantise(t, largest, numerator, shift, limit), Scalars.of_int(largest) / deviation, sh

    def _plain(self, source):
        """Rows quantised without a norm, and their scale in the unit of ``source``."""
        sh = _shift_for_vector(source)
        t = (source >> sh[:, None]) * numerics.GAIN_MAX
        largest = t.abs().amax(1)
        q = self._quantise(t, largest, numerics.INT8_NUMERATOR, numerics.INT8_SHIFT, numerics.INT8_MAX)
        return q, Scalars.of_int(largest).scaled(sh)

    def _quantise(self, t, largest, numerator, shift, limit):
        mantissa, en = normalise(largest)
        ts = shift_right(t, en[..., None].expand_as(t))
        r = _reciprocal(numerator, mantissa)[..., None]
        return clamp((ts * r + (1 << (shift - 1))) >> shift, limit)

    def _linear(self, q, weights, index, name):
        acc = (q.double() @ weights[name].T).long()
        if (index, name) not in self.factors:
            return acc
        a, b, m, e = self.factors[index, name]
        u = (q.double() @ a.T).long()
        sh = _shift_to(u, numerics.INT8_MAX.bit_length())
        q8 = clamp((u + (1 << sh >> 1)[:, None]) >> sh[:, None], numerics.INT8_MAX)
        less = (-(e + sh) - 1).clamp(0, 39)[:, None]
        added = (((q8.double() @ b.T).long() * m >> less) + 1) >> 1
        c = self.config
        return clamp(acc + added, 127 * (c.hidden if name in ("gate", "up") else max(c.hidden, c.intermediate)))

    def _fixed(self, acc, scale, fraction):
        """Real values of a matrix's results, in units of ``2^-fraction``."""
        rs = (-(scale.e + fraction)).clamp(1, 40)[:, None]
        return (acc * scale.m[:, None] + (1 << (rs - 1))) >> rs

    def _add(self, x, acc, scale):
        return (x + self._fixed(acc, scale, numerics.RESIDUAL_FRACTION)).clamp(-(1 << 31), (1 << 31) - 1)

    def _gated(self, gate, up, gate_scale, up_scale):
        """The gated product and its unit; the constant of up has the unit of a SiLU in it."""
        if self.config.activation == "silu":
            most = 1 << (SILU_BITS - 1)
            z = self._fixed(gate, gate_scale, SILU_FRACTION).clamp(-most, most - 1)
            return silu(z, *self.silu_tables) * up, up_scale
        return gate.clamp(min=0) ** 2 * up, gate_scale * gate_scale * up_scale

    def _layer(self, x, index, rotary):
        weights, gains, constants = self.layers[index]
        n = len(x)

        def scaled(scale, name):
            return scale * Scalars.full(constants[name], (n,))

        def norm8(source, name, epsilon):
            return self._norm(
                source, gains[name], numerics.INT8_NUMERATOR, numerics.INT8_SHIFT, numerics.INT8_MAX, epsilon
            )

        q8, scale, _ = norm8(x, "input", self.model.residual_epsilon)
        qkv = torch.cat([self._linear(q8, weights, index, name) for name in "qkv"], 1)
        output, reference = self._attention(index, qkv, rotary, *(scaled(scale, name) for name in "qkv"))
        if self.config.sub_norms:
            epsilon = Scalars.full(self.model.attention_epsilon, (n,)).scaled(-2 * (reference + 7))
            q8, scale, _ = norm8(output, "attn_sub", epsilon)
        else:
            q8, scale = self._plain(output)
            scale = scale.scaled(reference + 7)
        x = self._add(x, self._linear(q8, weights, index, "o"), scaled(scale, "o"))

        q8, scale, _ = norm8(x, "post_attention", self.model.residual_epsilon)
        gate, up = (self._linear(q8, weights, index, name) for name in ("gate", "up"))
        hidden, unit = self._gated(gate, up, scaled(scale, "gate"), scaled(scale, "up"))
        if self.config.sub_norms:
            epsilon = Scalars.full(self.model.gated_epsilon, (n,)) / (unit * unit)
            q8, scale, _ = norm8(hidden, "ffn_sub", epsilon)
        else:
            q8, scale = self._plain(hidden)
            scale = scale * unit
        return self._add(x, self._linear(q8, weights, index, "down"), scaled(scale, "down"))

    def _attention(self, index, qkv, rotary, q_scale, k_scale, v_scale):
        """Attention output ``[n, hidden]`` and its exponent ``Eref [n]``; appends to the cache."""
        c, n = self.config, len(qkv)
        sh = _shift_for_vector(qkv)
        xs = (qkv >> sh[:, None]).view(n, -1, c.head_dim)
        rotated, plain = xs[:, : c.heads + c.kv_heads], xs[:, c.heads + c.kv_heads :]
        even, odd = rotated[..., 0::2], rotated[..., 1::2]
        cos, sin = (part[:, None] for part in rotary)
        turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)
        t = torch.cat([turned, plain * numerics.ROTARY_ONE], 1)
        largest = t.abs().amax(2)
        # queries: absolute scale, its mantissa multiplied in
        tq = t[:, : c.heads]
        _, en = normalise(largest[:, : c.heads])
        ts = shift_right(tq, en[..., None].expand_as(tq))
        half = 1 << (numerics.OPERAND_SHIFT - 1)
        query = clamp((ts * q_scale.m[:, None, None] + half) >> numerics.OPERAND_SHIFT, numerics.INT16_MAX)
        query_exponent = en + (sh + q_scale.e)[:, None] + numerics.OPERAND_SHIFT
        # keys and values: INT8 and a scale per token and head
        stored = self._quantise(
            t[:, c.heads :], largest[:, c.heads :], numerics.INT8_NUMERATOR, numerics.INT8_SHIFT, numerics.INT8_MAX
        )
        scales = []
        for base, part in (
            (k_scale, largest[:, c.heads : c.heads + c.kv_heads]),
            (v_scale, largest[:, c.heads + c.kv_heads :]),
        ):
            wide = Scalars(base.m[:, None].expand_as(part), base.e[:, None].expand_as(part))
            s = Scalars.of_int(part).scaled(sh[:, None]) * wide
            scales.append((s.m.T, torch.where(s.m > 0, s.e, numerics.ZERO_EXPONENT).T))
        append = (stored[:, : c.kv_heads].transpose(0, 1), stored[:, c.kv_heads :].transpose(0, 1))
        self.keys[index] = torch.cat([self.keys[index], append[0]], 1)
        self.values[index] = torch.cat([self.values[index], append[1]], 1)
        for cache, new in ((self.key_scales, scales[0]), (self.value_scales, scales[1])):
            cache[index] = (torch.cat([cache[index][0], new[0]], 1), torch.cat([cache[index][1], new[1]], 1))
        reference = self.value_scales[index][1].amax(0).cummax(0).values[-n:]
        rows = [
            self._attend(
                index, query[r : r + _ROWS], query_exponent[r : r + _ROWS], reference[r : r + _ROWS], self.position + r
            )
            for r in range(0, n, _ROWS)
        ]
        return torch.cat(rows), reference

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
            r = _reciprocal(numerics.INVERSE, mantissa)[:, None]
            outputs.append(
                clamp((shift_right(acc, (es + 7)[:, None].expand_as(acc)) * r + (1 << 16)) >> 17, (1 << 17) - 1)
            )
        return torch.cat(outputs, 1)
