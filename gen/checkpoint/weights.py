"""Weights of a ternary decoder in memory: ternary matrices with one multiplier each, norm gains, embedding."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from intaglio.gen.checkpoint.model import CheckpointError, ModelConfig

__all__ = [
    "MATRIX_TENSORS",
    "NORM_TENSORS",
    "Checkpoint",
    "Layer",
    "Ternary",
    "absmean_ternary",
    "base_digest",
    "loaded_scale",
    "stored_scale",
]

MATRIX_TENSORS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
NORM_TENSORS = {
    "input": "input_layernorm",
    "attn_sub": "self_attn.attn_sub_norm",
    "post_attention": "post_attention_layernorm",
    "ffn_sub": "mlp.ffn_sub_norm",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Ternary:
    """One matrix: ``y = scale * (weights @ x)``.

    Parameters
    ----------
    weights : int8 array ``[out, in]`` in {-1, 0, 1}
    scale : float
        Multiplier, in 2^-126 .. 2^126, so that it and its inverse are normal float32.
    """

    weights: np.ndarray
    scale: float

    def __post_init__(self) -> None:
        if self.weights.dtype != np.int8 or self.weights.ndim != 2:
            raise CheckpointError(
                f"weights must be int8 [out, in], not {self.weights.dtype} {list(self.weights.shape)}"
            )
        if self.weights.size and not (-1 <= self.weights.min() and self.weights.max() <= 1):
            raise CheckpointError(f"weights must be in {{-1, 0, 1}}, not {self.weights.min()}..{self.weights.max()}")
        if not 2.0**-126 <= self.scale <= 2.0**126:
            raise CheckpointError(
                f"scale must be a normal float32 above 0 whose inverse is one too, not {self.scale!r}"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One layer.

    Parameters
    ----------
    matrices : dict of Ternary
        q, k, v, o, gate, up, down.
    norms : dict of float32 arrays ``[features]``
        Gains of input, attn_sub, post_attention, ffn_sub; without sub-norms of input and post_attention.
    """

    matrices: dict
    norms: dict


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A whole decoder, checked against its configuration.

    Parameters
    ----------
    config : ModelConfig
    embed : float32 array ``[vocab_size, hidden_size]``
        Embedding; the head too, where there is no other.
    layers : tuple of Layer
    final_norm : float32 array ``[hidden_size]``
    head : float32 array ``[vocab_size, hidden_size]`` or None
        The head of a model whose ``tie_word_embeddings`` is false.
    text : dict of bytes
        Files of the tokenizer by name (:mod:`intaglio.gen.checkpoint.text`).

    Raises
    ------
    CheckpointError
        A part is missing or superfluous, has another shape or dtype than ``config`` asks for, or is not finite.
    """

    config: ModelConfig
    embed: np.ndarray
    layers: tuple
    final_norm: np.ndarray
    head: np.ndarray | None = None
    text: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        c = self.config
        _check_floats("embed", self.embed, (c.vocab_size, c.hidden_size))
        _check_floats("final_norm", self.final_norm, (c.hidden_size,))
        if (self.head is None) != c.tie_word_embeddings:
            raise CheckpointError(f"head must be {'None' if c.tie_word_embeddings else 'there'} (tie_word_embeddings)")
        if self.head is not None:
            _check_floats("head", self.head, (c.vocab_size, c.hidden_size))
        if len(self.layers) != c.num_hidden_layers:
            raise CheckpointError(
                f"layers must be num_hidden_layers = {c.num_hidden_layers} long, not {len(self.layers)}"
            )
        for index, layer in enumerate(self.layers):
            for kind, found, expected in (
                ("matrices", layer.matrices, c.matrix_shapes),
                ("norms", layer.norms, c.norm_sizes),
            ):
                if set(found) != set(expected):
                    raise CheckpointError(f"layer {index}'s {kind} must be {sorted(expected)}, not {sorted(found)}")
            for name, shape in c.matrix_shapes.items():
                if layer.matrices[name].weights.shape != shape:
                    raise CheckpointError(
                        f"layer {index}'s {name} must be {list(shape)}, not {list(layer.matrices[name].weights.shape)}"
                    )
            for name, size in c.norm_sizes.items():
                _check_floats(f"layer {index}'s {name} norm", layer.norms[name], (size,))


class _Layered(Protocol):
    @property
    def layers(self) -> Iterable[Layer]: ...


def base_digest(checkpoint: _Layered) -> str:
    """SHA-256, in hexadecimal, of the ternary matrices, their scales and the norms' gains: what an adapter was trained beside.

    Parameters
    ----------
    checkpoint : Checkpoint, or a reader of one, whose layers are looked at one after the other
    """
    key = hashlib.sha256()
    for layer in checkpoint.layers:
        for name, matrix in sorted(layer.matrices.items()):
            key.update(f"{name} {matrix.weights.shape} {matrix.scale!r}".encode() + matrix.weights.tobytes())
        for name, gains in sorted(layer.norms.items()):
            key.update(name.encode() + gains.astype("<f4").tobytes())
    return key.hexdigest()


def _check_floats(name, array, shape):
    if array.dtype != np.float32 or array.shape != shape:
        raise CheckpointError(f"{name} must be float32 {list(shape)}, not {array.dtype} {list(array.shape)}")
    if not np.isfinite(array).all():
        raise CheckpointError(f"{name} must be finite, not NaN or infinite")


def absmean_ternary(weight: np.ndarray) -> Ternary:
    """Round a latent matrix to ternary by its mean magnitude (arXiv 2402.17764); ties go to even, as in torch.

    Parameters
    ----------
    weight : float32 array ``[out, in]``

    Returns
    -------
    Ternary, whose scale is ``max(mean |weight|, 1e-5)``.
    """
    mean = np.float32(max(np.abs(weight).mean(dtype=np.float64), 1e-5))
    return Ternary(weights=np.clip(np.round(weight / mean), -1, 1).astype(np.int8), scale=float(mean))


def stored_scale(scale: float, linear_class: str) -> np.float32:
    """The float32 ``weight_scale`` that stands for the multiplier ``scale`` in a checkpoint of this ``linear_class``."""
    return np.float32(1.0 / scale if linear_class == "bitlinear" else scale)


def loaded_scale(stored: float | np.float32, linear_class: str) -> float:
    """The multiplier that a float32 ``weight_scale`` stands for; storing it again gives the same ``weight_scale``."""
    return 1.0 / float(stored) if linear_class == "bitlinear" else float(stored)
