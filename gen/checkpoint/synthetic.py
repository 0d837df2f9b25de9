"""Random checkpoints: a decoder of any configuration without a trained model, for tests, area studies and examples."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from intaglio import Error
from intaglio.gen.checkpoint import tensorfile
from intaglio.gen.checkpoint.codes import ROWS_PER_BYTE
from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.reader import EMBEDDING, FINAL_NORM, HEAD, Checkpoint, Layer, Ternary, stored_scale
from intaglio.gen.checkpoint.tensorfile import Tensor
from intaglio.gen.checkpoint.weights import MATRIX_TENSORS, NORM_TENSORS

__all__ = ["random_checkpoint", "write_random_checkpoint"]

_ROWS = 4096  # of the embedding that are drawn at once


def random_checkpoint(config: ModelConfig, seed: int = 0, zeros: float = 1 / 3) -> Checkpoint:
    """Draw a checkpoint whose activations keep their magnitude from layer to layer.

    Parameters
    ----------
    config : ModelConfig
    seed : int
        Equal seeds give equal checkpoints.
    zeros : float
        Expected share of zero weights, in 0..1; -1 and 1 are equally likely.

    Returns
    -------
    Checkpoint, with scales that are powers of two (so that every ``weight_scale`` is exact) and gains in 0.5..1.5.
    """
    _check_share(zeros)
    rng = np.random.default_rng(seed)

    def gains(size):
        return rng.uniform(0.5, 1.5, size).astype(np.float32)

    def matrix(shape):
        weights = rng.choice(np.array([-1, 0, 1], np.int8), shape, p=((1 - zeros) / 2, zeros, (1 - zeros) / 2))
        return Ternary(weights=weights, scale=_scale(shape))

    layers = tuple(
        Layer(
            matrices={name: matrix(shape) for name, shape in config.matrix_shapes.items()},
            norms={name: gains(size) for name, size in config.norm_sizes.items()},
        )
        for _ in range(config.num_hidden_layers)
    )

    def rows():
        return rng.normal(size=(config.vocab_size, config.hidden_size)).astype(np.float32)

    embed, final_norm = rows(), gains(config.hidden_size)
    head = None if config.tie_word_embeddings else rows()
    return Checkpoint(config=config, embed=embed, layers=layers, final_norm=final_norm, head=head)


def write_random_checkpoint(
    folder: Path | str,
    config: dict[str, Any],
    seed: int = 0,
    zeros: float = 0.4,
    progress: Callable[[str, float], None] | None = None,
) -> None:
    """Write a random checkpoint a tensor at a time, in the layout of the published models (BitNet b1.58 2B4T, Falcon3): one file;
    matrices packed in bytes; scales, norms, embedding and head in bfloat16.

    Parameters
    ----------
    folder : path
        Made if it does not exist; ``config.json`` and ``model.safetensors`` in it are replaced.
    config : dict, the content of ``config.json``
    seed : int
        Each tensor's values depend on it and on the tensor's place in the file alone.
    zeros : float
        Expected share of zero weights.
    progress : callable or None
        Called with a text and the share done.

    Raises
    ------
    Error
        There is no room.
    """
    _check_share(zeros)
    model = ModelConfig.from_json(config)
    shapes = {EMBEDDING: ("BF16", (model.vocab_size, model.hidden_size)), FINAL_NORM: ("BF16", (model.hidden_size,))}
    if not model.tie_word_embeddings:
        shapes[HEAD] = shapes[EMBEDDING]
    scales = {}
    for index in range(model.num_hidden_layers):
        prefix = f"model.layers.{index}."
        for name, (rows, columns) in model.matrix_shapes.items():
            stem = prefix + MATRIX_TENSORS[name]
            shapes[f"{stem}.weight"] = ("U8", (rows // ROWS_PER_BYTE, columns))
            shapes[f"{stem}.weight_scale"] = ("BF16", (1,))
            scales[f"{stem}.weight_scale"] = stored_scale(_scale((rows, columns)), model.linear_class)
        shapes |= {f"{prefix}{NORM_TENSORS[name]}.weight": ("BF16", (size,)) for name, size in model.norm_sizes.items()}
    order = tensorfile.file_order({name: dtype for name, (dtype, _) in shapes.items()})
    sizes = {name: int(np.prod(shape)) * (2 if dtype == "BF16" else 1) for name, (dtype, shape) in shapes.items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if (need := sum(sizes.values())) > (free := shutil.disk_usage(folder).free):
        raise Error(f"{folder} must have room for {need / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free")
    table = _bytes_table(zeros)
    (folder / "config.json").write_bytes(json.dumps(config, indent=2).encode() + b"\n")
    partial = folder / "model.safetensors.partial"
    with open(partial, "wb") as file:
        file.write(tensorfile.header((name, *shapes[name], sizes[name]) for name in order))
        for place, name in enumerate(order):
            rng = np.random.default_rng((seed, place))
            dtype, shape = shapes[name]
            if dtype == "U8":
                file.write(table[rng.integers(0, 1 << 16, shape, np.uint16)])
            elif name in scales:
                file.write(Tensor.from_float32(np.array([scales[name]], np.float32), "BF16").data)
            elif name in (EMBEDDING, HEAD):
                for start in range(0, shape[0], _ROWS):
                    drawn = rng.standard_normal((min(_ROWS, shape[0] - start), shape[1]), np.float32)
                    file.write(Tensor.from_float32(drawn, "BF16").data)
            else:
                file.write(Tensor.from_float32(rng.uniform(0.5, 1.5, shape).astype(np.float32), "BF16").data)
            if progress:
                progress(f"tensor {place + 1} of {len(order)}", (place + 1) / len(order))
    partial.replace(folder / "model.safetensors")


def _check_share(zeros):
    if not 0 <= zeros <= 1:
        raise ValueError(f"zeros must be a share in 0..1, not {zeros!r}")


def _scale(shape):
    return 2.0 ** -round(np.log2(shape[1]) / 2)


def _bytes_table(zeros):
    """65,536 packed bytes, each of the 81 that stand for four trits as often as four independent draws give it, to the nearest entry."""
    trit = np.array([(1 - zeros) / 2, zeros, (1 - zeros) / 2])  # of the codes 0, 1, 2
    share = np.einsum("a,b,c,d->abcd", trit, trit, trit, trit).reshape(-1)
    codes = np.indices((3, 3, 3, 3)).reshape(4, -1)
    packed = (codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6).astype(np.uint8)
    return packed[np.minimum(np.searchsorted(np.cumsum(share), (np.arange(1 << 16) + 0.5) / (1 << 16)), 80)]
