"""Safetensors files without torch: tensors as raw bytes with a dtype, so that bfloat16, which numpy lacks, is read exactly.

A folder is opened by its headers; the bytes of a tensor are read when it is asked for, so that a model may be larger than memory.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open

from intaglio.gen.checkpoint.model import CheckpointError

__all__ = ["Entry", "Tensor", "TensorFolder", "file_order", "from_bytes", "header", "to_bytes"]

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_WIDTH = {
    "F32": 4,
    "BF16": 2,
    "F16": 2,
}  # bytes; other types are written as bytes. Wide types come first: all are aligned.


@dataclass(frozen=True)
class Tensor:
    """One tensor as stored: safetensors' name of its type, its shape, and its little-endian bytes."""

    dtype: str
    shape: tuple
    data: bytes

    def to_float32(self) -> np.ndarray:
        """The values as a float32 array; for F32, BF16 and F16."""
        if self.dtype == "BF16":
            array = (np.frombuffer(self.data, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            array = np.frombuffer(self.data, {"F32": "<f4", "F16": "<f2"}[self.dtype]).astype(np.float32)
        return array.reshape(self.shape)

    def to_uint8(self) -> np.ndarray:
        """The values as a uint8 array; for U8."""
        return np.frombuffer(self.data, np.uint8).reshape(self.shape)

    @classmethod
    def from_float32(cls, array: np.ndarray, dtype: str) -> Self:
        """Store finite float32 values as ``dtype`` F32, BF16 or F16, rounded to nearest even."""
        if dtype == "F32":
            data = array.astype("<f4")
        elif dtype == "F16":
            with np.errstate(over="ignore"):
                data = array.astype("<f2")
        elif dtype == "BF16":
            bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
            data = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
        else:
            raise CheckpointError(f"embedding dtype must be F32, BF16 or F16, not {dtype!r}")
        tensor = cls(dtype, array.shape, data.tobytes())
        if not np.isfinite(tensor.to_float32()).all():
            raise CheckpointError(f"values up to {np.abs(array).max()} must fit {dtype}")
        return tensor

    @classmethod
    def from_uint8(cls, array: np.ndarray) -> Self:
        return cls("U8", array.shape, array.tobytes())


def file_order(items: Mapping[str, str]) -> list[str]:
    """Names in the order in which a file holds them, from ``{name: dtype}``."""
    return sorted(items, key=lambda name: (-_WIDTH.get(items[name], 1), name))


def header(tensors: Iterable[tuple[str, str, Sequence[int], int]], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes before the first tensor's, for an iterable of name, dtype, shape and size in bytes, in the file's order."""
    out: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name, dtype, shape, size in tensors:
        out[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(out, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Serialise ``{name: Tensor}`` and texts of ``metadata``; equal tensors give equal bytes, in whatever order they come."""
    order = [(name, tensors[name]) for name in file_order({name: tensor.dtype for name, tensor in tensors.items()})]
    start = header(((name, t.dtype, t.shape, len(t.data)) for name, t in order), metadata)
    return b"".join([start, *(t.data for _, t in order)])


def from_bytes(data: bytes, source: str = "safetensors data") -> dict[str, Tensor]:
    """Deserialise a whole safetensors file to ``{name: Tensor}``; raises :class:`CheckpointError`, naming ``source``, if damaged."""
    try:
        items = deserialize(data)
    except SafetensorError as error:
        raise CheckpointError(f"{source} must be a whole safetensors file: {error}") from error
    return {name: Tensor(item["dtype"], tuple(item["shape"]), item["data"]) for name, item in items}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: its file, the offset of its first byte and the number of its bytes."""

    dtype: str
    shape: tuple
    path: Path
    offset: int
    size: int


class TensorFolder:
    """The tensors of ``model.safetensors``, or of the shards that ``model.safetensors.index.json`` names. Only headers are read here.

    Members
    -------
    entries : dict of Entry by name

    Raises
    ------
    CheckpointError
        A file is missing, damaged or shorter than its header says, a shard lies outside the folder, or index and shards differ.
        Pickle files are not read.
    """

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        if os.path.lexists(folder / _SINGLE):
            self.entries = _entries(folder / _SINGLE)
            return
        if not os.path.lexists(folder / _INDEX):
            raise CheckpointError(f"{folder} must hold {_SINGLE} or {_INDEX} (pickle files are not read)")
        try:
            index = json.loads((folder / _INDEX).read_bytes())
        except OSError as error:
            raise CheckpointError(f"{folder / _INDEX} must be a readable file: {error.strerror}") from error
        except ValueError as error:
            raise CheckpointError(f"{folder / _INDEX} must be JSON: {error}") from error
        places = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
            raise CheckpointError(f"{folder / _INDEX} must hold a weight_map of tensor names to file names")
        self.entries = {}
        for shard in sorted(set(places.values())):
            if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", shard):
                raise CheckpointError(f"a shard must be a plain .safetensors file name, not {shard!r}")
            found = _entries(folder / shard)
            expected = {name for name, place in places.items() if place == shard}
            if set(found) != expected:
                difference = sorted(set(found) ^ expected)
                raise CheckpointError(
                    f"{folder / shard} must hold the tensors that the index names; "
                    f"differing: {', '.join(difference[:8])} ({len(difference)})"
                )
            self.entries.update(found)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """The tensor, or its rows ``start .. stop - 1`` along the first dimension, as a :class:`Tensor`."""
        entry = self.entries[name]
        rows = entry.shape[0] if entry.shape else 1
        stop = rows if stop is None else stop
        row = entry.size // rows if rows else 0
        try:
            with open(entry.path, "rb") as file:
                file.seek(entry.offset + start * row)
                data = file.read((stop - start) * row)
        except OSError as error:
            raise CheckpointError(f"{entry.path} must be a readable file: {error.strerror}") from error
        if len(data) != (stop - start) * row:
            raise CheckpointError(f"{entry.path} must stay whole while it is read, and tensor {name} ends early")
        return Tensor(entry.dtype, (stop - start, *entry.shape[1:]) if entry.shape else (), data)


def _entries(path):
    """``{name: Entry}`` of one file, whose header the safetensors library has checked against the file's length."""
    try:
        with (
            open(path, "rb") as file,
            safe_open(path, "np"),
        ):  # opened here first: safetensors takes every fault for a missing file
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path} must be a readable file: {error.strerror or error}") from error
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} must be a whole safetensors file: {error}") from error
    out = {}
    for name, item in header.items():
        if name != "__metadata__":
            begin, end = item["data_offsets"]
            out[name] = Entry(item["dtype"], tuple(item["shape"]), path, 8 + length + begin, end - begin)
            if out[name].shape and math.prod(out[name].shape) == 0:
                raise CheckpointError(f"tensor {name} of {path} must not be empty")
    return out
