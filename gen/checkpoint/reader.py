"""Checkpoints: a ternary decoder's weights from a Hugging Face folder (``config.json`` and safetensors) and back.

Nothing is ever unpickled. Both of Hugging Face's scale conventions are normalised on loading to one multiplier a matrix. A folder may be
larger than memory: :class:`CheckpointReader` opens it by its headers and scales and reads a layer at a time.
"""

import dataclasses
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from intaglio.gen.checkpoint import tensorfile
from intaglio.gen.checkpoint.codes import ROWS_PER_BYTE, check_codes, pack, unpack
from intaglio.gen.checkpoint.constant import (
    layer_constants,
    norm_constants,
    only_packed_value,
    only_value,
    refuse_constant,
)
from intaglio.gen.checkpoint.model import CheckpointError, ModelConfig
from intaglio.gen.checkpoint.ternary import Distance, measure
from intaglio.gen.checkpoint.text import read_text
from intaglio.gen.checkpoint.weights import (
    MATRIX_TENSORS,
    NORM_TENSORS,
    Checkpoint,
    Layer,
    Ternary,
    absmean_ternary,
    base_digest,
    loaded_scale,
    stored_scale,
)

__all__ = [
    "MATRIX_TENSORS",
    "NORM_TENSORS",
    "Checkpoint",
    "CheckpointReader",
    "Layer",
    "Ternary",
    "absmean_ternary",
    "base_digest",
    "end_constants",
    "load_checkpoint",
    "loaded_scale",
    "refusal",
    "save_checkpoint",
    "stored_scale",
]

EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
FLOATS = ("F32", "BF16", "F16")
LARGEST_SCALE = 16.0  # of the median matrix; see CheckpointReader
TABLES = {"embedding": EMBEDDING, "head": HEAD}
BLOCK = 1 << 22  # floats of a matrix that are looked at together
TABLE_ROWS = 4096  # rows of embedding and head that are looked at together


class CheckpointReader:
    """A checkpoint folder, opened: every tensor's name, shape and type and every scale is checked, no weight has been read.

    Parameters
    ----------
    folder : path
        Holds ``config.json`` and either ``model.safetensors`` or ``model.safetensors.index.json`` with its shards.
        A matrix is stored packed (uint8 ``weight``) or, for ``autobitlinear``, as floats: ternary ones with a ``weight_scale``
        (mode ``offline``) or latent ones without (mode ``online``), which are rounded here; or, without a ``quantization_config`` (mode
        ``floats``), ternary ones times one scale. Where ``tie_word_embeddings`` is true, a
        stored ``lm_head.weight`` must equal the embedding, whose memory the head reads; where it is false, there must be one, of floats.
    problems : list or None
        Takes what is wrong with tensors, all of it, in place of the first one's exception; nothing may then be read if it has any.

    Members
    -------
    config : ModelConfig, as stored.
    scales : dict of float
        Multiplier by stem of tensor name (``model.layers.0.self_attn.q_proj``), where the file holds one.

    Raises
    ------
    CheckpointError
        A file is missing or damaged, or a tensor is missing, unexpected, or not of the expected shape, dtype or values. The scales are
        refused as stored the other way round (``linear_class``) if the median multiplier is above 16: a multiplier is the mean magnitude
        of the matrix that was rounded, and its inverse is what the other convention stores. Magnitudes of 1/16 to 16 fit both.
    """

    def __init__(self, folder: Path | str, *, problems: list[str] | None = None) -> None:
        self.folder, self._problems = Path(folder), problems
        self.config = ModelConfig.from_json(self.folder / "config.json")
        self._files = tensorfile.TensorFolder(self.folder)
        c, left = self.config, dict(self._files.entries)
        self._expect(left, EMBEDDING, (c.vocab_size, c.hidden_size))
        self._expect(left, FINAL_NORM, (c.hidden_size,))
        if HEAD in left and left[HEAD].dtype == "U8":
            self._refuse(
                f"tensor {HEAD} must be {_either(FLOATS)}, not U8 (the head is INT8 in hardware; a ternary one is not built)"
            )
            left.pop(HEAD)
        elif HEAD in left or not c.tie_word_embeddings:
            self._expect(left, HEAD, (c.vocab_size, c.hidden_size))
        self.scales: dict[str, float] = {}
        for index in range(c.num_hidden_layers):
            prefix = f"model.layers.{index}."
            for name, shape in c.matrix_shapes.items():
                self._expect_matrix(left, prefix + MATRIX_TENSORS[name], shape)
            for name, size in c.norm_sizes.items():
                self._expect(left, f"{prefix}{NORM_TENSORS[name]}.weight", (size,))
        if left:
            self._refuse(
                f"{folder} must hold no other tensors than the decoder's, not {', '.join(sorted(left)[:8])} "
                f"({len(left)} unexpected)"
            )
        if self.scales and (median := statistics.median(self.scales.values())) > LARGEST_SCALE:
            other = "autobitlinear" if c.linear_class == "bitlinear" else "bitlinear"
            self._refuse(
                f"weight_scale must be meant as linear_class {c.linear_class!r} says, but then half of the matrices "
                f"are multiplied by more than {median:.4g}; as {other!r} by less than {1 / median:.4g}"
            )

    def _refuse(self, text):
        if self._problems is None:
            raise CheckpointError(text)
        self._problems.append(text)

    def _expect(self, left, name, shape, kinds=FLOATS):
        """Check and cross off one tensor; whether it is as it must be."""
        entry = left.pop(name, None)
        if entry is None:
            self._refuse(f"tensor {name} {list(shape)} is missing")
        elif entry.shape != tuple(shape):
            self._refuse(f"tensor {name} must have shape {list(shape)}, not {list(entry.shape)}")
        elif entry.dtype not in kinds:
            self._refuse(f"tensor {name} must be {_either(kinds)}, not {entry.dtype}")
        else:
            return True
        return False

    def _expect_matrix(self, left, stem, shape):
        name, scale_name = f"{stem}.weight", f"{stem}.weight_scale"
        if name not in left or left[name].dtype == "U8":
            self._expect(left, name, (shape[0] // ROWS_PER_BYTE, shape[1]), ("U8",))
            if name in self._files.entries and self.config.quantization_mode == "floats":
                self._refuse(
                    f"tensor {name} must be {_either(FLOATS)}, not U8: packed weights need a quantization_config of quant_method 'bitnet'"
                )
        elif self.config.linear_class == "bitlinear":
            self._refuse(
                f"tensor {name} must be U8 (linear_class 'bitlinear' stores packed weights), not {left.pop(name).dtype}"
            )
        else:
            self._expect(left, name, shape)
            if self.config.quantization_mode != "offline":
                return
        if not self._expect(left, scale_name, (1,)):
            return
        stored = float(self._floats(scale_name)[0])
        if not 2.0**-126 <= stored <= 2.0**126:
            self._refuse(f"tensor {scale_name} must be above 0 and in 2^-126 .. 2^126, not {stored}")
            return
        self.scales[stem] = loaded_scale(stored, self.config.linear_class)

    def _floats(self, name, start=0, stop=None):
        values = self._files.read(name, start, stop).to_float32()
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"tensor {name} must be finite, but {np.count_nonzero(~np.isfinite(values))} values are not"
            )
        return values

    def matrix(self, index: int, name: str) -> Ternary:
        """Matrix ``name`` of layer ``index`` as :class:`Ternary`."""
        stem = f"model.layers.{index}.{MATRIX_TENSORS[name]}"
        name = f"{stem}.weight"
        if self._files.entries[name].dtype == "U8":
            weights = unpack(self._files.read(name).to_uint8(), f"tensor {name}")
        elif self.config.quantization_mode == "floats":
            return self._scaled(index, stem)
        else:
            values = self._floats(name)
            if self.config.quantization_mode == "online":
                return absmean_ternary(values)
            if not np.isin(values, (-1, 0, 1)).all():
                raise CheckpointError(
                    f"tensor {name} must hold only -1, 0 and 1 (quantization_mode is 'offline'), "
                    f"not {values[~np.isin(values, (-1, 0, 1))][0]}"
                )
            weights = values.astype(np.int8)
        return Ternary(weights=weights, scale=self.scales[stem])

    def _scaled(self, index, stem):
        """A matrix of floats that is ternary times one scale."""
        found = self.distance(stem)
        if not found.ternary:
            raise CheckpointError(refusal(stem, found))
        shape = self._files.entries[f"{stem}.weight"].shape
        weights, start = np.empty(shape, np.int8), 0
        for block in self._blocks(stem):
            weights[start : start + len(block)] = np.sign(block) * (np.abs(block) > found.scale / 2)
            start += len(block)
        return Ternary(weights=weights, scale=found.scale)

    def _blocks(self, stem, rows=None):
        """Float32 blocks of rows of a matrix, or of its first ``rows``."""
        name = f"{stem}.weight"
        height, width = self._files.entries[name].shape
        step = max(1, BLOCK // width)
        stop = height if rows is None else min(rows, height)
        for start in range(0, stop, step):
            yield self._floats(name, start, min(start + step, stop))

    def stems(self) -> Iterator[str]:
        """The matrices by the stems of their names, in the order of their use."""
        for index in range(self.config.num_hidden_layers):
            for name in self.config.matrix_shapes:
                yield f"model.layers.{index}.{MATRIX_TENSORS[name]}"

    def distance(self, stem: str, rows: int | None = None) -> Distance:
        """How far a matrix stored as floats, or its first ``rows``, is from ternary times a scale, by the stem of its name."""
        return measure(lambda: self._blocks(stem, rows))

    def stored_floats(self, stem: str) -> bool:
        """Whether a matrix is stored as floats; otherwise it is packed."""
        return self._files.entries[f"{stem}.weight"].dtype != "U8"

    def zeros(self, stem: str) -> float:
        """Share of zeros of a packed matrix; raises what reading it would raise."""
        packed = self._files.read(f"{stem}.weight").to_uint8()
        check_codes(packed, f"tensor {stem}.weight")
        zeros = sum(int(np.count_nonzero(packed >> np.uint8(2 * k) & 3 == 1)) for k in range(ROWS_PER_BYTE))
        return zeros / (ROWS_PER_BYTE * packed.size)

    def layer(self, index: int) -> Layer:
        """Read layer ``index`` as :class:`Layer`."""
        return Layer(
            matrices={name: self.matrix(index, name) for name in self.config.matrix_shapes}, norms=self.norms(index)
        )

    @property
    def layers(self) -> Iterator[Layer]:
        """The layers one after the other, each read when it is asked for."""
        return (self.layer(index) for index in range(self.config.num_hidden_layers))

    def check_layer(self, index: int) -> tuple[dict[str, float], dict[str, float]]:
        """Raise what reading layer ``index`` would raise; its multipliers by matrix, and its suspect tensors with their only value."""
        scales, found = {}, {}
        for name in self.config.matrix_shapes:
            stem = f"model.layers.{index}.{MATRIX_TENSORS[name]}"
            tensor = f"{stem}.weight"
            if self._files.entries[tensor].dtype == "U8":  # not unpacked, which takes four times the memory
                packed = self._files.read(tensor).to_uint8()
                check_codes(packed, f"tensor {tensor}")
                scales[name], value = self.scales[stem], only_packed_value(packed)
            else:
                matrix = self.matrix(index, name)
                scales[name], value = matrix.scale, only_value(matrix.weights)
            if value is not None:
                found[tensor] = value
        return scales, found | norm_constants(index, self.norms(index))

    def norms(self, index: int) -> dict[str, np.ndarray]:
        """Gains of layer ``index`` by norm, float32."""
        return {
            name: self._floats(f"model.layers.{index}.{NORM_TENSORS[name]}.weight") for name in self.config.norm_sizes
        }

    def table(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows ``start .. stop - 1`` of "embedding" or "head", float32."""
        return self._floats(TABLES[name], start, stop)

    def table_blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """The table in blocks of rows, as pairs of the first row and float32 ``[rows, hidden]``."""
        for start in range(0, self.config.vocab_size, TABLE_ROWS):
            yield start, self.table(name, start, min(start + TABLE_ROWS, self.config.vocab_size))

    def check_head(self) -> None:
        """Raise unless a stored head of a tied model equals the embedding."""
        if HEAD not in self._files.entries or not self.config.tie_word_embeddings:
            return
        different = 0
        for start, rows in self.table_blocks("embedding"):
            different += int(np.count_nonzero(rows != self.table("head", start, start + len(rows))))
        if different:
            raise CheckpointError(
                f"tensor {HEAD} must equal {EMBEDDING}, whose memory the head reads, but {different} values differ: "
                "the model is not tied, whatever tie_word_embeddings says; set it to false for a head of its own"
            )

    def final_norm(self) -> np.ndarray:
        """Gains of the final norm, float32."""
        return self._floats(FINAL_NORM)

    def stored(self, index: int) -> Iterator[tuple[str, bytes]]:
        """Names and bytes of layer ``index`` as stored, in a fixed order: what a digest is taken of."""
        prefix = f"model.layers.{index}."
        for name in sorted(self._files.entries):
            if name.startswith(prefix):
                yield name, self._files.read(name).data


def end_constants(table: str, value: float | None, final_norm: np.ndarray) -> dict[str, float]:
    """The suspect ones of "embedding" or "head" (``value`` is its only value, or None) and final norm, as ``{tensor: its only value}``."""
    return ({} if value is None else {TABLES[table]: value}) | ({} if final_norm.any() else {FINAL_NORM: 0})


def refusal(stem: str, found: Distance) -> str:
    """Why a matrix of floats is refused, and what would make it acceptable."""
    if found.of_parts:
        way = "a matrix has one scale in hardware; train it with one, or have it rounded to one as below"
    else:
        way = "the model must be trained with ternary weights"
    return (
        f"tensor {stem}.weight must be ternary times one scale, and is {found.text}: {way} (master weights of such a training are rounded "
        "where config.json has the quantization_config of quant_method 'bitnet', linear_class 'autobitlinear', quantization_mode 'online')"
    )


def _either(kinds):
    return kinds[0] if len(kinds) == 1 else ", ".join(kinds[:-1]) + " or " + kinds[-1]


def load_checkpoint(folder: Path | str, *, allow_constant: bool = False) -> Checkpoint:
    """Load a checkpoint folder whole.

    Parameters
    ----------
    folder : path
        See :class:`CheckpointReader`.
    allow_constant : bool
        Accept matrices of one value throughout and norms of zeros.

    Returns
    -------
    Checkpoint, whose ``config.quantization_mode`` is ``offline``.

    Raises
    ------
    CheckpointError
        See :class:`CheckpointReader` and :func:`~intaglio.gen.checkpoint.text.check_text`; or a weight is not ternary, or a value not
        finite, or a stored head is not the embedding, or a tensor cannot be a trained model's.
    """
    reader = CheckpointReader(folder)
    text = read_text(folder, reader.config)
    embed, final_norm = reader.table("embedding"), reader.final_norm()
    head = None if reader.config.tie_word_embeddings else reader.table("head")
    reader.check_head()
    layers = tuple(reader.layer(index) for index in range(reader.config.num_hidden_layers))
    if not allow_constant:
        suspect = end_constants("embedding", only_value(embed), final_norm)
        if head is not None:
            suspect |= end_constants("head", only_value(head), final_norm)
        for index, layer in enumerate(layers):
            suspect |= layer_constants(index, layer)
        refuse_constant(suspect)
    return Checkpoint(
        config=dataclasses.replace(reader.config, quantization_mode="offline"),
        embed=embed,
        layers=layers,
        final_norm=final_norm,
        head=head,
        text=text,
    )


def save_checkpoint(
    folder: Path | str, checkpoint: Checkpoint, embedding_dtype: str = "F32", *, storage: str = "packed"
) -> None:
    """Write a checkpoint as Hugging Face lays it out; equal checkpoints give equal bytes.

    Parameters
    ----------
    folder : path
        Made if it does not exist; ``config.json``, ``model.safetensors`` and the tokenizer's files in it are replaced.
    checkpoint : Checkpoint
    embedding_dtype : str
        ``F32``, or ``BF16`` or ``F16``, which round embedding and head. Norm gains and scales are F32.
    storage : str
        How matrices are stored: ``packed``; or, for ``autobitlinear``, ``floats`` (-1, 0 and 1) or ``latent`` (mode ``online``: floats
        that are rounded to these weights, to a scale that is equal but for the rounding of a float32 mean).

    Raises
    ------
    CheckpointError
        An embedding value is outside the range of its stored type, or ``storage`` is not one of the linear class.
    """
    c = checkpoint.config
    allowed = ("packed", "floats", "latent") if c.linear_class == "autobitlinear" else ("packed",)
    if storage not in allowed:
        raise CheckpointError(
            f"storage must be {_either(allowed)} for linear_class {c.linear_class!r}, not {storage!r}"
        )
    tensors = {
        EMBEDDING: tensorfile.Tensor.from_float32(checkpoint.embed, embedding_dtype),
        FINAL_NORM: tensorfile.Tensor.from_float32(checkpoint.final_norm, "F32"),
    }
    if checkpoint.head is not None:
        tensors[HEAD] = tensorfile.Tensor.from_float32(checkpoint.head, embedding_dtype)
    for index, layer in enumerate(checkpoint.layers):
        prefix = f"model.layers.{index}."
        for name, matrix in layer.matrices.items():
            stem = prefix + MATRIX_TENSORS[name]
            if storage == "packed":
                tensors[f"{stem}.weight"] = tensorfile.Tensor.from_uint8(pack(matrix.weights))
            else:
                floats = matrix.weights.astype(np.float32)
                if storage == "latent":
                    floats *= np.float32(matrix.scale / np.abs(floats).mean(dtype=np.float64).clip(1 / floats.size))
                tensors[f"{stem}.weight"] = tensorfile.Tensor.from_float32(floats, "F32")
            if storage == "latent":
                continue
            scale = stored_scale(matrix.scale, c.linear_class)
            tensors[f"{stem}.weight_scale"] = tensorfile.Tensor.from_float32(np.array([scale], np.float32), "F32")
        for name, gains in layer.norms.items():
            tensors[f"{prefix}{NORM_TENSORS[name]}.weight"] = tensorfile.Tensor.from_float32(gains, "F32")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = dataclasses.replace(c, quantization_mode="online" if storage == "latent" else "offline").to_json()
    (folder / "config.json").write_bytes(json.dumps(config, indent=2).encode() + b"\n")
    (folder / "model.safetensors").write_bytes(tensorfile.to_bytes(tensors))
    for name, data in checkpoint.text.items():
        (folder / name).write_bytes(data)
