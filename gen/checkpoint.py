"""Checkpoints: a BitNet decoder's weights from a Hugging Face folder (``config.json`` and safetensors) and back.

Nothing is ever unpickled. Both of Hugging Face's scale conventions are normalised on loading to one multiplier a matrix.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intaglio.gen import tensorfile
from intaglio.gen.model import CheckpointError, ModelConfig
from intaglio.gen.packing import ROWS_PER_BYTE, pack, unpack

__all__ = ["MATRIX_TENSORS", "NORM_TENSORS", "Checkpoint", "Layer", "Ternary", "absmean_ternary", "base_digest",
           "load_checkpoint", "loaded_scale", "save_checkpoint", "stored_scale"]

MATRIX_TENSORS = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
                  "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
NORM_TENSORS = {"input": "input_layernorm", "attn_sub": "self_attn.attn_sub_norm",
                "post_attention": "post_attention_layernorm", "ffn_sub": "mlp.ffn_sub_norm"}


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

    def __post_init__(self):
        if self.weights.dtype != np.int8 or self.weights.ndim != 2:
            raise CheckpointError(f"weights must be int8 [out, in], not {self.weights.dtype} {list(self.weights.shape)}")
        if self.weights.size and not (-1 <= self.weights.min() and self.weights.max() <= 1):
            raise CheckpointError(f"weights must be in {{-1, 0, 1}}, not {self.weights.min()}..{self.weights.max()}")
        if not 2.0**-126 <= self.scale <= 2.0**126:
            raise CheckpointError(f"scale must be a normal float32 above 0 whose inverse is one too, not {self.scale!r}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One layer.

    Parameters
    ----------
    matrices : dict of Ternary
        q, k, v, o, gate, up, down.
    norms : dict of float32 arrays ``[features]``
        Gains of input, attn_sub, post_attention, ffn_sub.
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
        Embedding, and the head too.
    layers : tuple of Layer
    final_norm : float32 array ``[hidden_size]``

    Raises
    ------
    CheckpointError
        A part is missing or superfluous, has another shape or dtype than ``config`` asks for, or is not finite.
    """

    config: ModelConfig
    embed: np.ndarray
    layers: tuple
    final_norm: np.ndarray

    def __post_init__(self):
        c = self.config
        _check_floats("embed", self.embed, (c.vocab_size, c.hidden_size))
        _check_floats("final_norm", self.final_norm, (c.hidden_size,))
        if len(self.layers) != c.num_hidden_layers:
            raise CheckpointError(f"layers must be num_hidden_layers = {c.num_hidden_layers} long, not {len(self.layers)}")
        for index, layer in enumerate(self.layers):
            for kind, found, expected in (("matrices", layer.matrices, c.matrix_shapes), ("norms", layer.norms, c.norm_sizes)):
                if set(found) != set(expected):
                    raise CheckpointError(f"layer {index}'s {kind} must be {sorted(expected)}, not {sorted(found)}")
            for name, shape in c.matrix_shapes.items():
                if layer.matrices[name].weights.shape != shape:
                    raise CheckpointError(f"layer {index}'s {name} must be {list(shape)}, "
                                          f"not {list(layer.matrices[name].weights.shape)}")
            for name, size in c.norm_sizes.items():
                _check_floats(f"layer {index}'s {name} norm", layer.norms[name], (size,))


def base_digest(checkpoint):
    """SHA-256, in hexadecimal, of the ternary matrices, their scales and the norms' gains: what an adapter was trained beside."""
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


def absmean_ternary(weight):
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


def stored_scale(scale, linear_class):
    """The float32 ``weight_scale`` that stands for the multiplier ``scale`` in a checkpoint of this ``linear_class``."""
    return np.float32(1.0 / scale if linear_class == "bitlinear" else scale)


def loaded_scale(stored, linear_class):
    """The multiplier that a float32 ``weight_scale`` stands for; storing it again gives the same ``weight_scale``."""
    return 1.0 / float(stored) if linear_class == "bitlinear" else float(stored)


def load_checkpoint(folder):
    """Load a checkpoint folder.

    Parameters
    ----------
    folder : path
        Holds ``config.json`` and either ``model.safetensors`` or ``model.safetensors.index.json`` with its shards.
        A matrix is stored packed (uint8 ``weight``) or, for ``autobitlinear``, as floats: ternary ones with a ``weight_scale``
        (mode ``offline``) or latent ones without (mode ``online``), which are rounded here.

    Returns
    -------
    Checkpoint, whose ``config.quantization_mode`` is ``offline``.

    Raises
    ------
    CheckpointError
        A file is missing or damaged, or a tensor is missing, unexpected, or not of the expected shape, dtype or values.
    """
    folder = Path(folder)
    config = ModelConfig.from_json(folder / "config.json")
    tensors = tensorfile.read_folder(folder)
    c = config
    embed = _take_floats(tensors, "model.embed_tokens.weight", (c.vocab_size, c.hidden_size))
    final_norm = _take_floats(tensors, "model.norm.weight", (c.hidden_size,))
    layers = []
    for index in range(c.num_hidden_layers):
        prefix = f"model.layers.{index}."
        matrices = {name: _take_matrix(tensors, prefix + MATRIX_TENSORS[name], shape, config)
                    for name, shape in c.matrix_shapes.items()}
        norms = {name: _take_floats(tensors, f"{prefix}{NORM_TENSORS[name]}.weight", (size,))
                 for name, size in c.norm_sizes.items()}
        layers.append(Layer(matrices=matrices, norms=norms))
    if tensors:
        raise CheckpointError(f"{folder} must hold no other tensors than the decoder's, not {', '.join(sorted(tensors)[:8])} "
                              f"({len(tensors)} unexpected)")
    return Checkpoint(config=dataclasses.replace(config, quantization_mode="offline"), embed=embed, layers=tuple(layers),
                      final_norm=final_norm)


def _take(tensors, name, shape):
    if name not in tensors:
        raise CheckpointError(f"tensor {name} {list(shape)} is missing")
    tensor = tensors.pop(name)
    if tensor.shape != tuple(shape):
        raise CheckpointError(f"tensor {name} must have shape {list(shape)}, not {list(tensor.shape)}")
    return tensor


def _take_floats(tensors, name, shape):
    tensor = _take(tensors, name, shape)
    if not tensor.is_float:
        raise CheckpointError(f"tensor {name} must be F32, BF16 or F16, not {tensor.dtype}")
    values = tensor.to_float32()
    if not np.isfinite(values).all():
        raise CheckpointError(f"tensor {name} must be finite, but {np.count_nonzero(~np.isfinite(values))} values are not")
    return values


def _take_matrix(tensors, prefix, shape, config):
    name, scale_name = f"{prefix}.weight", f"{prefix}.weight_scale"
    packed = name not in tensors or tensors[name].dtype == "U8"
    if packed:
        tensor = _take(tensors, name, (shape[0] // ROWS_PER_BYTE, shape[1]))
        weights = unpack(tensor.to_uint8(), f"tensor {name}")
    elif config.linear_class == "bitlinear":
        raise CheckpointError(f"tensor {name} must be U8 (linear_class 'bitlinear' stores packed weights), "
                              f"not {tensors[name].dtype}")
    else:
        values = _take_floats(tensors, name, shape)
        if config.quantization_mode == "online":
            return absmean_ternary(values)
        if not np.isin(values, (-1, 0, 1)).all():
            raise CheckpointError(f"tensor {name} must hold only -1, 0 and 1 (quantization_mode is 'offline'), "
                                  f"not {values[~np.isin(values, (-1, 0, 1))][0]}")
        weights = values.astype(np.int8)
    stored = float(_take_floats(tensors, scale_name, (1,))[0])
    if not 2.0**-126 <= stored <= 2.0**126:
        raise CheckpointError(f"tensor {scale_name} must be above 0 and in 2^-126 .. 2^126, not {stored}")
    return Ternary(weights=weights, scale=loaded_scale(stored, config.linear_class))


def save_checkpoint(folder, checkpoint, embedding_dtype="F32"):
    """Write a checkpoint as Hugging Face's packed layout; equal checkpoints give equal bytes.

    Parameters
    ----------
    folder : path
        Made if it does not exist; ``config.json`` and ``model.safetensors`` in it are replaced.
    checkpoint : Checkpoint
    embedding_dtype : str
        ``F32``, or ``BF16`` or ``F16``, which round the embedding. Norm gains and scales are F32.

    Raises
    ------
    CheckpointError
        An embedding value is outside the range of its stored type.
    """
    c = checkpoint.config
    tensors = {"model.embed_tokens.weight": tensorfile.Tensor.from_float32(checkpoint.embed, embedding_dtype),
               "model.norm.weight": tensorfile.Tensor.from_float32(checkpoint.final_norm, "F32")}
    for index, layer in enumerate(checkpoint.layers):
        prefix = f"model.layers.{index}."
        for name, matrix in layer.matrices.items():
            stem = prefix + MATRIX_TENSORS[name]
            scale = stored_scale(matrix.scale, c.linear_class)
            tensors[f"{stem}.weight"] = tensorfile.Tensor.from_uint8(pack(matrix.weights))
            tensors[f"{stem}.weight_scale"] = tensorfile.Tensor.from_float32(np.array([scale], np.float32), "F32")
        for name, gains in layer.norms.items():
            tensors[f"{prefix}{NORM_TENSORS[name]}.weight"] = tensorfile.Tensor.from_float32(gains, "F32")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = dataclasses.replace(c, quantization_mode="offline").to_json()
    (folder / "config.json").write_bytes(json.dumps(config, indent=2).encode() + b"\n")
    (folder / "model.safetensors").write_bytes(tensorfile.to_bytes(tensors))
