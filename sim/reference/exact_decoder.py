"""Exact model: the decoder in integer torch tensors, the specification of the hardware, equal to the RTL bit for bit.

docs/numerics.md gives every formula. One code path serves a whole text at once and one token at a time: :meth:`ExactDecoder.step` appends
any number of tokens to the cache.
"""

import copy
from collections.abc import Sequence
from typing import Protocol, Self, overload

import numpy as np
import torch

from intaglio.gen.checkpoint.quantised import QuantisedModel
from intaglio.host.adapter.files import QuantisedAdapter
from intaglio.rtl.arithmetic import numerics
from intaglio.rtl.arithmetic.silu import SILU_BITS, SILU_FRACTION, SILU_SLOPES, SILU_TABLE, silu
from intaglio.sim.reference.cache_attention import CacheAttention
from intaglio.sim.reference.scalars import Scalars, clamp
from intaglio.sim.reference.vector import quantise, shift_for_vector, shift_to

__all__ = ["Attention", "ExactDecoder"]


def _tensor(array):
    return torch.as_tensor(array, dtype=torch.int64)


class Attention(Protocol):
    """What a layer's attention is, with the keys and values of one sequence. What a call is given and gives:
    :class:`~intaglio.sim.reference.cache_attention.CacheAttention`."""

    def reset(self) -> None:
        """Forget the sequence: with new lists, so that a shallow copy is the attention of another sequence."""

    def __call__(
        self,
        index: int,
        qkv: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        scales: tuple[Scalars, Scalars, Scalars],
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


class ExactDecoder:
    """State (KV cache) and arithmetic of the decoder.

    Parameters
    ----------
    model : intaglio.gen.checkpoint.quantised.QuantisedModel
    adapter : object or None
        Its ``matrices`` are integers by (layer, name) with ``a``, ``b``, ``m``, ``e``, as those of
        :class:`intaglio.host.adapter.files.QuantisedAdapter`; those of every matrix that the hardware adapts.
    attention : Attention or None
        For whose numerics the model was quantised; None: a :class:`~intaglio.sim.reference.cache_attention.CacheAttention`.
    """

    def __init__(
        self, model: QuantisedModel, adapter: QuantisedAdapter | None = None, attention: Attention | None = None
    ) -> None:
        self.model, self.config = model, model.config
        self.attention = CacheAttention(model) if attention is None else attention
        self.adapt(adapter)
        self.embedding, self.head = _tensor(model.embedding), _tensor(model.head)
        self.layers = []
        for layer in model.layers:
            weights = {name: torch.as_tensor(w).double() for name, w in layer.matrices.items()}
            self.layers.append((weights, {name: _tensor(g) for name, g in layer.gains.items()}, layer.constants))
        self.row_scales = {name: _tensor(scales.astype(np.int64)) for name, scales in model.row_scales.items()}
        self.final_gains = _tensor(model.final_gains)
        self.silu_tables = _tensor(SILU_TABLE), _tensor(SILU_SLOPES)
        self.reset()

    def another(self) -> Self:
        """A decoder with an empty cache of its own; the weights are shared."""
        other = copy.copy(self)
        other.attention = copy.copy(self.attention)
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
        self.position = 0
        self.attention.reset()

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
        sh = shift_for_vector(source)
        xs = source >> sh[:, None]
        t = xs * gains
        largest = t.abs().amax(1)
        squares = (xs * xs).sum(1)
        if not isinstance(epsilon, Scalars):
            epsilon = Scalars.full(epsilon, sh.shape)
        deviation = (Scalars.of_int(squares) + epsilon.scaled(-2 * sh)).sqrt()
        return quantise(t, largest, numerator, shift, limit), Scalars.of_int(largest) / deviation, sh

    def _plain(self, source):
        """Rows quantised without a norm, and their scale in the unit of ``source``."""
        sh = shift_for_vector(source)
        t = (source >> sh[:, None]) * numerics.GAIN_MAX
        largest = t.abs().amax(1)
        q = quantise(t, largest, numerics.INT8_NUMERATOR, numerics.INT8_SHIFT, numerics.INT8_MAX)
        return q, Scalars.of_int(largest).scaled(sh)

    def _linear(self, q, weights, index, name):
        acc = (q.double() @ weights[name].T).long()
        if (index, name) not in self.factors:
            return acc
        a, b, m, e = self.factors[index, name]
        u = (q.double() @ a.T).long()
        sh = shift_to(u, numerics.INT8_MAX.bit_length())
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
        scales = (scaled(scale, "q"), scaled(scale, "k"), scaled(scale, "v"))
        output, exponent = self.attention(index, qkv, rotary, scales)
        if self.config.sub_norms:
            epsilon = Scalars.full(self.model.attention_epsilon, (n,)).scaled(-2 * exponent)
            q8, scale, _ = norm8(output, "attn_sub", epsilon)
        else:
            q8, scale = self._plain(output)
            scale = scale.scaled(exponent)
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
