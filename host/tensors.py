"""Safetensors files with numpy alone, read strictly: nothing in them is ever run; and torch's tensors as numpy's arrays, without torch."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intaglio import Error

__all__ = ["TensorError", "read_tensors", "real_array", "to_float32"]

_WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_HEADER_LIMIT = 100_000_000


class TensorError(Error, ValueError):
    """A tensor file that is missing, damaged, or holds what it must not."""


def read_tensors(path: Path | str) -> tuple[dict[str, tuple[str, tuple[int, ...], bytes]], dict[str, str]]:
    """Read a safetensors file.

    Returns
    -------
    (tensors, metadata) : dict of name to (dtype, shape, bytes), dict of str to str

    Raises
    ------
    TensorError
        The file cannot be read, or is not whole: header, types, shapes and offsets must fit each other and the file's size.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as fault:
        raise TensorError(f"{path} must be a readable file: {fault.strerror}") from fault

    def need(ok, what):
        if not ok:
            raise TensorError(f"{path} must be a whole safetensors file: {what}")

    need(len(data) >= 8, f"it has {len(data)} bytes")
    size = int.from_bytes(data[:8], "little")
    need(size <= min(len(data) - 8, _HEADER_LIMIT), f"its header of {size} bytes does not fit its {len(data)} bytes")
    try:
        header = json.loads(data[8 : 8 + size].decode("utf-8"), object_pairs_hook=_unique)
    except (UnicodeDecodeError, ValueError, RecursionError) as fault:
        raise TensorError(f"{path} must be a whole safetensors file: its header is not JSON ({fault})") from fault
    need(isinstance(header, dict), "its header is not an object")
    metadata = header.pop("__metadata__", {})
    need(
        isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values()),
        "its metadata is not an object of texts",
    )
    body, tensors, ends = data[8 + size :], {}, []
    for name, entry in header.items():
        need(
            isinstance(entry, dict) and {"dtype", "shape", "data_offsets"} <= entry.keys(),
            f"tensor {name!r} is not described",
        )
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        need(isinstance(dtype, str) and dtype in _WIDTH, f"tensor {name!r} has the unknown dtype {dtype!r}")
        for what, numbers in (("shape", shape), ("data_offsets", offsets)):
            need(
                isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers),
                f"tensor {name!r} has the {what} {numbers!r}",
            )
        need(
            len(offsets) == 2
            and offsets[1] - offsets[0] == math.prod(shape) * _WIDTH[dtype]
            and offsets[1] <= len(body),
            f"tensor {name!r} of shape {shape} lies at {offsets} of {len(body)} bytes",
        )
        tensors[name] = (dtype, tuple(shape), body[offsets[0] : offsets[1]])
        ends.append(offsets)
    at = 0
    for first, last in sorted(ends):
        need(first == at, f"bytes {at}..{first} belong to no tensor or to two")
        at = last
    need(at == len(body), f"bytes from {at} on belong to no tensor")
    return tensors, metadata


def to_float32(dtype: str, shape: Sequence[int], data: bytes) -> np.ndarray | None:
    """Values of a tensor of dtype F32, F16 or BF16 as float32; None for another dtype."""
    if dtype == "BF16":
        values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif dtype in ("F32", "F16"):
        values = np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)
    else:
        return None
    return values.reshape(shape)


def real_array(name: str, values: Any) -> np.ndarray:
    """Real numbers from numpy, torch, or lists of either, as an array of a floating type.

    Parameters
    ----------
    name : str
        What errors call them.
    values : array, tensor or nested lists
        A tensor may be of any floating type, on any device, need a gradient, and lie in memory in any order. Types that numpy lacks
        (bfloat16) become float32, which holds them exactly.

    Raises
    ------
    ValueError
        They are not numbers of a floating type (integers would be numbers that somebody has quantised already), or not one dense array.
    """
    try:
        values = _dense(values)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as fault:  # torch's are of many kinds
        raise ValueError(
            f"{name} must be a dense array or tensor of numbers, not {type(values).__name__} ({fault})"
        ) from fault
    if values.dtype.kind != "f":
        raise ValueError(f"{name} must be of a floating type, not {values.dtype}")
    return values


def _dense(values):
    if isinstance(values, list | tuple) and any(
        isinstance(one, list | tuple) or hasattr(one, "detach") for one in values
    ):
        return np.asarray([_dense(one) for one in values])
    if not hasattr(values, "detach"):
        return np.asarray(values)
    values = values.detach().cpu().resolve_conj().resolve_neg()
    if values.is_floating_point() and values.element_size() < 4:  # numpy lacks some of them
        values = values.float()
    return values.numpy()


def _unique(pairs):
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError("a name comes twice")
    return dict(pairs)
