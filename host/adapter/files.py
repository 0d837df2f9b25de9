"""Low-rank adapters from PEFT's files to the integers of a device: read, checked, rounded; docs/adapters.md has the rules.

Nothing is ever unpickled. Everything is checked before the first word goes to a device.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intaglio.host.adapter.config import AdapterError, read_config, scaling
from intaglio.host.adapter.targets import matched_modules
from intaglio.host.tensors import read_tensors, to_float32

__all__ = [
    "AdapterError",
    "Factors",
    "LowRank",
    "QuantisedAdapter",
    "quantise_adapter",
    "quantise_factor",
    "read_adapter",
]

_NAME = re.compile(r"base_model\.model\.((?:model\.)?)layers\.(\d+)\.([\w.]+)\.lora_([AB])\.weight")
# Linear layers of a BitNet decoder layer, those that a device has no room for too.
_LINEAR = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRank:
    """An adapter as PEFT stores it: ``y = base(x) + scaling * B @ (A @ x)`` for every matrix in ``factors``.

    Parameters
    ----------
    rank : int
    scaling : float
    factors : dict of (layer, name) to (A, B), float32 arrays ``[rank, in]``, ``[out, rank]``
    """

    rank: int
    scaling: float
    factors: dict


@dataclass(frozen=True, kw_only=True, eq=False)
class Factors:
    """Both factors of one matrix as integers of so many ternary digits, rows of ``b`` in the hardware's order, and the scale
    ``m * 2^e``: a sum of ``b @ (a @ q)`` over the base's own sums."""

    a: np.ndarray
    b: np.ndarray
    m: int
    e: int


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantisedAdapter:
    """``matrices``: :class:`Factors` by (layer, name), for every matrix that the device can adapt."""

    matrices: dict


def read_adapter(folder: Path | str, layout: Mapping[str, Any]) -> LowRank:
    """Read and check ``adapter_config.json`` and ``adapter_model.safetensors``; matrices that they are not for stay as they are.

    Parameters
    ----------
    folder : path
    layout : dict
        The manifest's ``adapter``: what the device has room for.

    Returns
    -------
    LowRank

    Raises
    ------
    AdapterError, TensorError
        A file is missing or damaged, or the adapter is of another rank, base, kind, shape or dtype, or not finite, or its arithmetic is
        not known to be plain LoRA.
    """
    folder = Path(folder)
    config = read_config(folder / "adapter_config.json")
    rank, scale = layout["rank"], scaling(config, layout["rank"])
    path = folder / "adapter_model.safetensors"
    if not path.is_file() and (folder / "adapter_model.bin").exists():
        raise AdapterError(
            f"{folder} must hold adapter_model.safetensors (adapter_model.bin is a pickle, which is not read)"
        )
    tensors, metadata = read_tensors(path)
    _check_metadata(path, tensors, metadata, layout)
    names = {module: name for name, module in layout["modules"].items()}
    matches: dict[str, Any] = {tensor: _NAME.fullmatch(tensor) for tensor in tensors}
    for tensor, match in matches.items():
        if not match or match[3] not in names:
            raise AdapterError(f"every tensor must be lora_A or lora_B of a layer's matrix, not {tensor!r}")
    prefixes = {match[1] for match in matches.values()} or {"model."}
    if len(prefixes) > 1:
        raise AdapterError(
            "the tensors must be of one model, and some names have 'model.' before 'layers' while others have not"
        )
    wanted = _wanted(config, layout, prefixes.pop())
    found = {}
    for tensor, match in matches.items():
        key = (int(match[2]), names[match[3]])
        if key not in wanted:
            raise AdapterError(
                f"tensor {tensor!r} must belong to one of {layout['layers']} layers and to a target module"
            )
        out, inputs = layout["shapes"][key[1]]
        found.setdefault(key, {})[match[4]] = _values(
            tensor, tensors[tensor], (rank, inputs) if match[4] == "A" else (out, rank)
        )
    for layer, name in sorted(wanted):
        if set(found.get((layer, name), ())) != {"A", "B"}:
            raise AdapterError(
                f"layer {layer} must have lora_A and lora_B of {layout['modules'][name]}, "
                f"and has {' and '.join(sorted(found.get((layer, name), ()))) or 'neither'}"
            )
    return LowRank(
        rank=rank, scaling=scale, factors={key: (pair["A"], pair["B"]) for key, pair in sorted(found.items())}
    )


def _wanted(config, layout, prefix):
    """The matrices that the adapter is for, as a set of (layer, name)."""
    places = {
        f"{prefix}layers.{layer}.{module}": (layer, module) for layer in range(layout["layers"]) for module in _LINEAR
    }
    others = [f"{prefix}embed_tokens", *(["lm_head"] if prefix else [])]
    try:
        matched = matched_modules(config, [*places, *others], list(places))
    except ValueError as fault:
        raise AdapterError(str(fault)) from fault
    room = {layout["modules"][name]: name for name in layout["targets"]}
    wanted = set()
    for full in matched:
        layer, module = places.get(full, (None, full))
        if module not in room:
            raise AdapterError(
                f"target_modules must be among those that the device has room for "
                f"({', '.join(one.rpartition('.')[2] for one in room)}), not {module.rpartition('.')[2]!r}"
            )
        wanted.add((layer, room[module]))
    if not wanted:
        raise AdapterError(
            f"target_modules must mean at least one matrix of the device's {layout['layers']} layers, and "
            f"{config['target_modules']!r} means none"
        )
    return wanted


def _check_metadata(path, tensors, metadata, layout):
    """What our own trainer writes beside the tensors; other writers write nothing of it."""
    base, digest = metadata.get("base_digest"), metadata.get("values_sha256")
    if base is not None and base != layout["base"]:
        raise AdapterError(
            f"the adapter must have been trained beside the device's weights (base {layout['base'][:16]}), "
            f"not beside {base[:16]}"
        )
    if digest is not None:
        found = hashlib.sha256(b"".join(tensors[name][2] for name in sorted(tensors))).hexdigest()
        if found != digest:
            raise AdapterError(
                f"the values of {path} must have the SHA-256 that it states, {digest[:16]}, not {found[:16]}: it is damaged"
            )


def _values(name, stored, shape):
    dtype, found, _ = stored
    values = to_float32(*stored)
    if values is None:
        raise AdapterError(f"tensor {name!r} must be F32, F16 or BF16, not {dtype}")
    if found != shape:
        raise AdapterError(
            f"tensor {name!r} must have the shape {list(shape)}, not {list(found)}: it is of another rank or base"
        )
    if not np.isfinite(values).all():
        raise AdapterError(f"tensor {name!r} must be finite, not NaN or infinite")
    return values


def quantise_factor(values: np.ndarray, trits: int) -> tuple[np.ndarray, float]:
    """Integers of ``trits`` balanced ternary digits and their scale.

    One digit: rounded at half the mean magnitude, as BitNet does; more: the largest magnitude becomes the largest integer. The scale is
    the one of least squares. Values that are such integers times a scale already come back exactly.

    Returns
    -------
    (int8 array, float)
    """
    values = np.asarray(values, np.float64)
    limit = (3**trits - 1) // 2
    step = np.abs(values).mean() if trits == 1 else np.abs(values).max() / limit
    if not step > 0:
        return np.zeros(values.shape, np.int8), 0.0
    digits = np.clip(np.rint(values / step), -limit, limit)
    norm = (digits * digits).sum()
    return digits.astype(np.int8), float((values * digits).sum() / norm) if norm else 0.0


def quantise_adapter(adapter: LowRank, layout: Mapping[str, Any]) -> QuantisedAdapter:
    """Round a :class:`LowRank` to the integers that a device holds.

    Raises
    ------
    AdapterError
        A scale is too large for the hardware's arithmetic.
    """
    matrices = {}
    for layer in range(layout["layers"]):
        for name in (name for names in layout["operations"] for name in names):
            out, inputs = layout["shapes"][name]
            pair = adapter.factors.get((layer, name))
            if pair is None:
                matrices[layer, name] = Factors(
                    a=np.zeros((adapter.rank, inputs), np.int8), b=np.zeros((out, adapter.rank), np.int8), m=0, e=0
                )
                continue
            a, a_scale = quantise_factor(pair[0], layout["trits"])
            b, b_scale = quantise_factor(pair[1], layout["trits"])
            if name in ("q", "k"):  # rows of a head are interleaved for the rotation
                half = layout["head_dim"] // 2
                b = b.reshape(-1, 2, half, adapter.rank).transpose(0, 2, 1, 3).reshape(out, adapter.rank)
            m, e = _scalar(a_scale * b_scale * adapter.scaling / layout["scales"][layer][name])
            widest = (127 * inputs * (3 ** layout["trits"] - 1) // 2).bit_length() - 7
            if e + widest > -1:
                raise AdapterError(
                    f"the scale of layer {layer}'s {layout['modules'][name]} must be below 2^{-16 - widest} "
                    f"of the base's own, not 2^{e + 16}"
                )
            matrices[layer, name] = Factors(a=a, b=np.ascontiguousarray(b), m=m, e=e)
    return QuantisedAdapter(matrices=matrices)


def _scalar(value):
    """The nearest scalar float ``m * 2^e`` of the hardware; zero where it is too small for one."""
    fraction, exponent = math.frexp(value)
    m = round(fraction * 65536)
    m, e = (m >> 1, exponent - 15) if m == 65536 else (m, exponent - 16)
    return (m, e) if m and e >= -512 else (0, 0)
