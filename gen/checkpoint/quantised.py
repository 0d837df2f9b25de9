"""From a checkpoint to the integers that the hardware holds: ternary matrices, INT8 embedding, gains, scale constants.

docs/numerics.md derives each constant. Nothing here depends on how wide the units are, except the two static shifts of
:class:`~intaglio.rtl.config.decoder.DecoderConfig`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.weights import Checkpoint, Layer
from intaglio.rtl.arithmetic import numerics
from intaglio.rtl.arithmetic.attention import WEIGHT_MAX
from intaglio.rtl.arithmetic.numerics import Scalar
from intaglio.rtl.arithmetic.silu import SILU_FRACTION
from intaglio.rtl.config.decoder import DecoderConfig

__all__ = [
    "QuantisedLayer",
    "QuantisedModel",
    "TableScales",
    "decoder_config",
    "default_row_scales",
    "embedding_scales",
    "hardware_order",
    "head_constants",
    "integer_model",
    "layer_constants",
    "quantise",
    "quantise_layer",
]

_NORM_OF = {
    "q": "input",
    "k": "input",
    "v": "input",
    "o": "attn_sub",
    "gate": "post_attention",
    "up": "post_attention",
    "down": "ffn_sub",
}  # the norm that a matrix's input comes from, if the model has it

_ROW_SCALE_MAX = (1 << numerics.ROW_SCALE_BITS) - 1


@dataclass(frozen=True)
class QuantisedLayer:
    """One layer: ``matrices`` int8 ``[rows, inputs]`` by name (q, k with rows interleaved for the rotation), ``gains`` int16 by
    norm (input, attn_sub, post_attention, ffn_sub, as far as the model has them), ``constants`` :class:`Scalar` by matrix."""

    matrices: dict
    gains: dict
    constants: dict


@dataclass(frozen=True)
class QuantisedModel:
    """The whole model as integers; ``increments`` are the rotary phases per position, uint32 ``[head_dim / 2]``.

    ``head`` is the embedding, where the model ties them. Where rows have scales of their own, ``row_scales`` has those of ``embedding``
    and, if it is another, ``head``, uint16 ``[vocab]``; else ``embed_scale`` is that of the whole embedding.
    """

    config: DecoderConfig
    embedding: np.ndarray
    embed_scale: int
    head: np.ndarray
    layers: tuple
    final_gains: np.ndarray
    logit_constant: Scalar
    residual_epsilon: Scalar
    attention_epsilon: Scalar
    gated_epsilon: Scalar
    increments: tuple
    row_scales: Mapping[str, np.ndarray]
    pages: bool = False  # constants of the joined machine's attention (docs/machine.md), not of the decoder's own cache


def decoder_config(model: ModelConfig, **hardware: Any) -> DecoderConfig:
    """The :class:`DecoderConfig` for a :class:`~intaglio.gen.checkpoint.model.ModelConfig` and the widths of the units.

    Rows of embedding and head have scales of their own unless ``row_scales`` says otherwise; those of a BitNet only if it says so, since
    the shipped ones were trained with one INT8 scale.
    """
    return DecoderConfig(
        hidden=model.hidden_size,
        intermediate=model.intermediate_size,
        layers=model.num_hidden_layers,
        heads=model.num_attention_heads,
        kv_heads=model.num_key_value_heads,
        head_dim=model.head_dim,
        vocab=model.vocab_size,
        activation=model.hidden_act,
        sub_norms=int(model.sub_norms),
        tied_head=int(model.tie_word_embeddings),
        **({"row_scales": default_row_scales(model)} | hardware),
    )


def default_row_scales(model: ModelConfig) -> int:
    """Whether rows of embedding and head have scales of their own unless the caller says otherwise, 0 or 1."""
    return int(model.model_type != "bitnet")


def _gains(values):
    """INT16 gains and the scale that they stand for (1 where all are zero)."""
    largest = float(np.abs(values).max())
    gamma = largest / numerics.GAIN_MAX if largest else 1.0
    return np.round(np.asarray(values, np.float64) / gamma).astype(np.int16), gamma


def _constant(what, value):
    """The scalar nearest to ``value``."""
    try:
        return Scalar.of_float(value)
    except (OverflowError, ValueError) as fault:
        raise ValueError(f"{what} must fit the hardware's scalars, and {value!r} does not: {fault}") from fault


def _interleave(weights, head_dim):
    """Rows (i, i + d/2) of each head become neighbours (2i, 2i + 1)."""
    order = np.arange(head_dim).reshape(2, head_dim // 2).T.reshape(-1)
    heads = weights.reshape(-1, head_dim, weights.shape[1])
    return np.ascontiguousarray(heads[:, order].reshape(weights.shape))


def embedding_scales(largest: float) -> tuple[float, int, int]:
    """From the embedding's largest magnitude: its INT8 scale, that scale as the integer of the program, and ``embed_shift``.

    Raises
    ------
    ValueError
        The embedding is zero, or too small or too large for the residual stream.
    """
    if not largest:
        raise ValueError("the embedding must not be all zero")
    scale = largest / 127
    embed_shift = min(24, 16 - math.frexp(scale * 2.0**numerics.RESIDUAL_FRACTION)[1])
    if (
        round(scale * 2.0 ** (numerics.RESIDUAL_FRACTION + embed_shift)) == 1 << 16
    ):  # rounded up, out of the instruction's 16 bits
        embed_shift -= 1
    embed_scale = round(scale * 2.0 ** (numerics.RESIDUAL_FRACTION + embed_shift))
    if embed_shift < 0 or embed_scale == 0:
        raise ValueError(f"the embedding's largest magnitude must be in 2^-34 .. 127 (exclusive), not {largest}")
    return scale, embed_scale, embed_shift


def quantise_rows(rows: np.ndarray, unit: float) -> tuple[np.ndarray, np.ndarray]:
    """INT8 of float32 ``rows``, each by a scale of its own that is a 16-bit multiple of ``unit``: int8, and uint16 ``[rows]``."""
    rows = np.asarray(rows, np.float64)
    scales = np.ceil(np.abs(rows).max(1) / 127 / unit * (1 - 1e-12)).clip(0, _ROW_SCALE_MAX)
    values = np.round(rows / (np.maximum(scales, 1) * unit)[:, None]).clip(-127, 127)
    return values.astype(np.int8), scales.astype(np.uint16)


@dataclass(frozen=True, kw_only=True)
class TableScales:
    """How embedding and head, the tables, become INT8; from their largest magnitudes alone, so that rows can be taken a few at a time.

    Members
    -------
    embed_scale, embed_shift : int
        Of the program, and of the configuration.
    units : dict of float
        By table: the scale of all its rows or, with ``row_scales``, the unit of each row's own scale.
    row_scales : bool
    logit : float
        What the products with the head's integers are multiples of.
    """

    embed_scale: int
    embed_shift: int
    units: dict
    row_scales: bool
    logit: float

    @classmethod
    def of(cls, largest: Mapping[str, float], row_scales: bool) -> Self:
        """From the largest magnitude by table, "embedding" and, where it is another, "head".

        Raises
        ------
        ValueError
            A table is zero, or the embedding too small or too large for the residual stream.
        """
        scale, embed_scale, embed_shift = embedding_scales(largest["embedding"])
        units = {"embedding": scale}
        if "head" in largest:
            if not largest["head"]:
                raise ValueError("the head must not be all zero")
            units["head"] = largest["head"] / 127
        if row_scales:
            units["embedding"] = 2.0 ** -(numerics.RESIDUAL_FRACTION + embed_shift)
            if "head" in units:
                units["head"] /= _ROW_SCALE_MAX
        logit = units.get("head", units["embedding"]) * (2.0**numerics.ROW_SCALE_BITS if row_scales else 1.0)
        return cls(
            embed_scale=embed_scale, embed_shift=embed_shift, units=units, row_scales=bool(row_scales), logit=logit
        )

    def quantise(self, table: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Float32 ``rows`` of a table as int8, and their scales, uint16 ``[rows]``, if they have some of their own."""
        if self.row_scales:
            return quantise_rows(rows, self.units[table])
        return np.round(np.asarray(rows, np.float64) / self.units[table]).astype(np.int8), None


def hardware_order(name: str, weights: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of the matrix ``name`` as the hardware has them: those of q and k interleaved for the rotation."""
    return _interleave(weights, head_dim) if name in ("q", "k") else weights


def layer_constants(
    index: int,
    scales: Mapping[str, float],
    norms: Mapping[str, np.ndarray],
    head_dim: int,
    activation: str = "relu2",
    pages: bool = False,
) -> tuple[dict[str, np.ndarray], dict[str, Scalar]]:
    """Gains, and the scalar of each matrix, of layer ``index``.

    A matrix without a norm before it has its input multiplied by ``GAIN_MAX``, which stands for 1. With ``activation`` "silu" the constant
    of up is that of the gated product, whose other factor has ``SILU_FRACTION`` fraction bits.

    Parameters
    ----------
    scales : dict of float, the matrices' multipliers
    norms : dict of float32 arrays

    Returns
    -------
    (dict of int16 arrays, dict of Scalar)
    """
    score = math.log2(math.e) / math.sqrt(head_dim) / numerics.ROTARY_ONE
    key = 1 / numerics.ROTARY_ONE / (1 if pages else 127)
    gains, gamma, constants = {}, {}, {}
    for name, values in norms.items():
        gains[name], gamma[name] = _gains(values)
    up = 2.0**-SILU_FRACTION if activation == "silu" else 1.0
    for name, norm in _NORM_OF.items():
        factor = {"q": score, "k": key, "v": key, "up": up}.get(name, 1.0)
        of_norm = gamma[norm] * math.sqrt(len(norms[norm])) if norm in norms else 1 / numerics.GAIN_MAX
        if pages and name == "o" and norm not in norms:  # attention's results are in 254ths
            factor = 1 / WEIGHT_MAX
        constants[name] = _constant(f"the scale of layer {index}'s {name}", scales[name] * of_norm / 127 * factor)
    return gains, constants


def quantise_layer(
    index: int, layer: Layer, head_dim: int, activation: str = "relu2", pages: bool = False
) -> QuantisedLayer:
    """Round one :class:`~intaglio.gen.checkpoint.weights.Layer` to a :class:`QuantisedLayer`; ``index`` names it in errors."""
    scales = {name: ternary.scale for name, ternary in layer.matrices.items()}
    gains, constants = layer_constants(index, scales, layer.norms, head_dim, activation, pages)
    matrices = {name: hardware_order(name, layer.matrices[name].weights, head_dim) for name in _NORM_OF}
    return QuantisedLayer(matrices, gains, constants)


def head_constants(final_norm: np.ndarray, scale: float, logit_shift: int) -> tuple[np.ndarray, Scalar]:
    """Gains of the final norm, and the logits' unit, from the INT8 ``scale`` of the head's matrix."""
    gains, gamma = _gains(final_norm)
    return gains, _constant("the logits' unit", gamma * math.sqrt(len(final_norm)) / 32767 * scale * 2.0**logit_shift)


def quantise(checkpoint: Checkpoint, config: DecoderConfig, *, pages: bool = False) -> QuantisedModel:
    """Round a checkpoint to the hardware's integers.

    Parameters
    ----------
    checkpoint : intaglio.gen.checkpoint.reader.Checkpoint
    config : DecoderConfig
        Its shape must be the checkpoint's; ``embed_shift`` is replaced by the largest that the embedding's scale allows.
    pages : bool
        For attention over pages (docs/machine.md): other constants of keys, values and attention's results.

    Raises
    ------
    ValueError
        The embedding or the head is zero, the embedding too small or too large for the residual stream, or a constant leaves the
        exponent range.
    """
    tables = {"embedding": checkpoint.embed} | ({} if checkpoint.head is None else {"head": checkpoint.head})
    scales = TableScales.of(
        {name: float(np.abs(values).max()) for name, values in tables.items()}, bool(config.row_scales)
    )
    found = {name: scales.quantise(name, values) for name, values in tables.items()}
    return integer_model(
        checkpoint.config,
        config,
        scales,
        [
            quantise_layer(index, layer, config.head_dim, config.activation, pages)
            for index, layer in enumerate(checkpoint.layers)
        ],
        checkpoint.final_norm,
        {name: values for name, (values, _) in found.items()},
        {name: of_rows for name, (_, of_rows) in found.items() if of_rows is not None},
        pages,
    )


def integer_model(
    model: ModelConfig,
    config: DecoderConfig,
    scales: TableScales,
    layers: Iterable[QuantisedLayer],
    final_norm: np.ndarray,
    tables: Mapping[str, np.ndarray],
    row_scales: Mapping[str, np.ndarray],
    pages: bool = False,
) -> QuantisedModel:
    """A :class:`QuantisedModel` of its parts; for the program and the small memories alone, matrices and tables may be left out.

    Raises
    ------
    ValueError
        A constant leaves the exponent range.
    """
    config = config.replace(embed_shift=scales.embed_shift)
    final_gains, logit_constant = head_constants(final_norm, scales.logit, config.logit_shift)
    epsilon, none = model.rms_norm_eps, np.empty((0, config.hidden), np.int8)
    embedding = tables.get("embedding", none)
    return QuantisedModel(
        config=config,
        embedding=embedding,
        embed_scale=scales.embed_scale,
        head=tables.get("head", embedding),
        layers=tuple(layers),
        final_gains=final_gains,
        logit_constant=logit_constant,
        residual_epsilon=_constant("rms_norm_eps", epsilon * config.hidden * 2.0 ** (2 * numerics.RESIDUAL_FRACTION)),
        attention_epsilon=_constant("rms_norm_eps", epsilon * config.hidden * (WEIGHT_MAX**2 if pages else 1)),
        gated_epsilon=_constant("rms_norm_eps", epsilon * config.intermediate),
        increments=tuple(
            numerics.rotary_increment(i, config.head_dim, model.rope_theta, model.rope_scaling)
            for i in range(config.head_dim // 2)
        ),
        row_scales=row_scales,
        pages=pages,
    )
