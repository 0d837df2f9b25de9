"""Between checkpoints and the float model: exact weights into a decoder, and a trained latent decoder out to a checkpoint."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from intaglio.gen.checkpoint.model import CheckpointError, ModelConfig
from intaglio.gen.checkpoint.reader import (
    MATRIX_TENSORS,
    NORM_TENSORS,
    Checkpoint,
    Layer,
    Ternary,
    loaded_scale,
    stored_scale,
)
from intaglio.sim.reference.float_decoder import FloatDecoder

__all__ = ["FrozenBitLinear", "LoadedDecoder", "export", "float_decoder", "latent_decoder"]


class FrozenBitLinear(nn.Module):
    """A loaded matrix: ``y = scale / input_scale * (weight @ round(input_scale * x))``, the sum exact in float32.

    The sum of products of INT8 and ternary values stays below 2^24 for up to 132,104 inputs, so that only the roundings of
    ``input_scale * x`` and of the last product are inexact, as in transformers' ``BitLinear``.

    Parameters
    ----------
    matrix : Ternary

    Attributes
    ----------
    weight : float32 tensor ``[out, in]`` in {-1, 0, 1}
    scale : float
    """

    weight: torch.Tensor

    def __init__(self, matrix: Ternary) -> None:
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(matrix.weights.astype(np.float32)))
        self.scale = matrix.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        input_scale = 127.0 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        return F.linear((x * input_scale).round().clamp(-128, 127), self.weight) * (self.scale / input_scale)


class LoadedDecoder(FloatDecoder):
    """A :class:`FloatDecoder` with :class:`FrozenBitLinear` matrices, whose embedding is used as it is."""

    def table(self) -> torch.Tensor:
        return self.embed_tokens.weight


def float_decoder(checkpoint: Checkpoint) -> LoadedDecoder:
    """Build the float model of a checkpoint, with exactly its weights.

    Parameters
    ----------
    checkpoint : Checkpoint

    Returns
    -------
    LoadedDecoder, in eval mode, float32, without gradients.
    """
    model = LoadedDecoder(checkpoint.config)
    _set(model.embed_tokens, checkpoint.embed)
    _set(model.norm, checkpoint.final_norm)
    if checkpoint.head is not None:
        _set(model.lm_head, checkpoint.head)
    for block, layer in zip(model.layers, checkpoint.layers, strict=True):
        for name, path in MATRIX_TENSORS.items():
            block.set_submodule(path, FrozenBitLinear(layer.matrices[name]))
        for name, gains in layer.norms.items():
            _set(block.get_submodule(NORM_TENSORS[name]), gains)
    return model.eval().requires_grad_(False)


def latent_decoder(checkpoint: Checkpoint) -> FloatDecoder:
    """A latent decoder that computes what the checkpoint does, to train it further.

    Each latent matrix is its ternary one times a magnitude, chosen so that the mean magnitude is the scale. :func:`export` gives back the
    same ternary weights, and scales equal but for the rounding of a float32 mean (1e-6). How near to a threshold a weight was when the
    checkpoint was trained is lost: every weight starts half its scale or more away from one.

    Parameters
    ----------
    checkpoint : Checkpoint
        Its embedding should lie on an INT8 grid, as that of an exported one does: the latent decoder rounds it to one.

    Returns
    -------
    FloatDecoder, float32, with gradients.
    """
    model = FloatDecoder(checkpoint.config)
    with torch.no_grad():
        model.embed_tokens.weight.copy_(torch.from_numpy(checkpoint.embed))
        model.norm.weight.copy_(torch.from_numpy(checkpoint.final_norm))
        if checkpoint.head is not None:
            model.lm_head.weight.copy_(torch.from_numpy(checkpoint.head))
        for block, layer in zip(model.layers, checkpoint.layers, strict=True):
            for name, path in MATRIX_TENSORS.items():
                block.get_parameter(f"{path}.weight").copy_(_latent(layer.matrices[name]))
            for name, gains in layer.norms.items():
                block.get_parameter(f"{NORM_TENSORS[name]}.weight").copy_(torch.from_numpy(gains))
    return model


def _latent(matrix):
    ternary = torch.from_numpy(matrix.weights.astype(np.float32))
    return ternary * (matrix.scale / ternary.abs().mean().clamp(min=1 / ternary.numel()))


def _set(module, array):
    module.weight = nn.Parameter(torch.from_numpy(array.copy()), requires_grad=False)


@torch.no_grad()
def export(model: FloatDecoder, config: ModelConfig | Mapping[str, Any]) -> Checkpoint:
    """Round a trained latent decoder to a checkpoint that computes the same function.

    Parameters
    ----------
    model : FloatDecoder
        Latent: its forward pass rounds the weights. The embedding is rounded to its INT8 grid as there.
    config : ModelConfig or dict
        The model's configuration; a dict is the content of ``config.json``, to which offline ``bitlinear`` quantisation is
        added if it names none.

    Returns
    -------
    Checkpoint, each scale of which survives saving and loading exactly.

    Raises
    ------
    TypeError
        ``model`` was loaded from a checkpoint: it has no latent weights.
    CheckpointError
        ``config`` does not fit the model, or a weight is not finite.
    """
    if isinstance(model, LoadedDecoder):
        raise TypeError("model must be a latent FloatDecoder, not a LoadedDecoder: its weights are ternary already")
    if not isinstance(config, ModelConfig):
        config = ModelConfig.from_json({"quantization_config": {"quant_method": "bitnet"}, **config})

    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise CheckpointError(f"parameter {name} must be finite, not NaN or infinite")
    layers = [
        Layer(
            matrices={name: _round(block.get_submodule(path).weight, config) for name, path in MATRIX_TENSORS.items()},
            norms={name: _numpy(block.get_submodule(NORM_TENSORS[name]).weight) for name in config.norm_sizes},
        )
        for block in model.layers
    ]
    embed = model.embed_tokens.weight
    step = embed.abs().amax().clamp(min=1e-5) / 127.0
    return Checkpoint(
        config=config,
        embed=_numpy((embed / step).round() * step),
        layers=tuple(layers),
        final_norm=_numpy(model.norm.weight),
        head=None if config.tie_word_embeddings else _numpy(model.lm_head.weight),
    )


def _round(weight, config):
    """The matrix that :func:`intaglio.sim.reference.float_decoder.quantise_weights` computes with, in torch's own arithmetic."""
    mean = weight.abs().mean().clamp(min=1e-5)
    scale = loaded_scale(stored_scale(mean.item(), config.linear_class), config.linear_class)
    return Ternary(weights=(weight / mean).round().clamp(-1, 1).to(torch.int8).numpy(), scale=scale)


def _numpy(tensor):
    return tensor.detach().float().cpu().numpy().copy()
