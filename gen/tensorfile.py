"""Safetensors files without torch: tensors as raw bytes with a dtype, so that bfloat16, which numpy lacks, is read exactly."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize

from intaglio.gen.model import CheckpointError

__all__ = ["Tensor", "from_bytes", "read_folder", "to_bytes"]

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_WIDTH = {"F32": 4, "BF16": 2, "F16": 2}  # bytes; other types are written as bytes. Wide types come first: all are aligned.


@dataclass(frozen=True)
class Tensor:
    """One tensor as stored: safetensors' name of its type, its shape, and its little-endian bytes."""

    dtype: str
    shape: tuple
    data: bytes

    @property
    def is_float(self):
        """Whether :meth:`to_float32` can convert it (exactly)."""
        return self.dtype in ("F32", "BF16", "F16")

    def to_float32(self):
        """The values as a float32 array; for F32, BF16 and F16."""
        if self.dtype == "BF16":
            array = (np.frombuffer(self.data, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            array = np.frombuffer(self.data, {"F32": "<f4", "F16": "<f2"}[self.dtype]).astype(np.float32)
        return array.reshape(self.shape)

    def to_uint8(self):
        """The values as a uint8 array; for U8."""
        return np.frombuffer(self.data, np.uint8).reshape(self.shape)

    @classmethod
    def from_float32(cls, array, dtype):
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
    def from_uint8(cls, array):
        return cls("U8", array.shape, array.tobytes())


def to_bytes(tensors, metadata=None):
    """Serialise ``{name: Tensor}`` and texts of ``metadata``; equal tensors give equal bytes, in whatever order they come."""
    header, offset, parts = {"__metadata__": {"format": "pt", **(metadata or {})}}, 0, []
    for name, tensor in sorted(tensors.items(), key=lambda item: (-_WIDTH.get(item[1].dtype, 1), item[0])):
        end = offset + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        parts.append(tensor.data)
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def from_bytes(data, source="safetensors data"):
    """Deserialise a safetensors file to ``{name: Tensor}``; raises :class:`CheckpointError`, naming ``source``, if damaged."""
    try:
        items = deserialize(data)
    except SafetensorError as error:
        raise CheckpointError(f"{source} must be a whole safetensors file: {error}") from error
    return {name: Tensor(item["dtype"], tuple(item["shape"]), item["data"]) for name, item in items}


def read_folder(folder):
    """Read ``model.safetensors``, or the shards that ``model.safetensors.index.json`` names, to ``{name: Tensor}``.

    Raises
    ------
    CheckpointError
        A file is missing or damaged, a shard lies outside the folder, or index and shards differ. Pickle files are not read.
    """
    folder = Path(folder)
    if (folder / _SINGLE).exists():
        return from_bytes(_read(folder / _SINGLE), folder / _SINGLE)
    if not (folder / _INDEX).exists():
        raise CheckpointError(f"{folder} must hold {_SINGLE} or {_INDEX} (pickle files are not read)")
    try:
        index = json.loads(_read(folder / _INDEX))
    except ValueError as error:
        raise CheckpointError(f"{folder / _INDEX} must be JSON: {error}") from error
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise CheckpointError(f"{folder / _INDEX} must hold a weight_map of tensor names to file names")
    tensors = {}
    for shard in sorted(set(places.values())):
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", shard):
            raise CheckpointError(f"a shard must be a plain .safetensors file name, not {shard!r}")
        found = from_bytes(_read(folder / shard), folder / shard)
        expected = {name for name, place in places.items() if place == shard}
        if set(found) != expected:
            difference = sorted(set(found) ^ expected)
            raise CheckpointError(f"{folder / shard} must hold the tensors that the index names; "
                                  f"differing: {', '.join(difference[:8])} ({len(difference)})")
        tensors.update(found)
    return tensors


def _read(path):
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} must be a readable file: {error.strerror}") from error
