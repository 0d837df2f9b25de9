"""Tensors that no trained model has: matrices and embeddings of one value throughout, norms of zeros only.

Damaged or half converted files have them; they load, and the hardware would compute nonsense without a fault.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from intaglio.gen.checkpoint.model import CheckpointError
from intaglio.gen.checkpoint.weights import MATRIX_TENSORS, NORM_TENSORS, Layer

__all__ = ["layer_constants", "norm_constants", "only_packed_value", "only_value", "refuse_constant"]

_NAMED = 8  # tensors that a refusal names
_PACKED = {0x00: -1, 0x55: 0, 0xAA: 1}  # bytes of four equal weights


def only_value(values: np.ndarray) -> Any:
    """The value that every element of an array has, or None."""
    least = values.min()
    return least.item() if least == values.max() else None


def only_packed_value(packed: np.ndarray) -> int | None:
    """As :func:`only_value`, of the weights of a packed matrix."""
    return _PACKED.get(only_value(packed))


def norm_constants(index: int, norms: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Norms of layer ``index`` that are zeros only, as ``{tensor: 0}``."""
    return {f"model.layers.{index}.{NORM_TENSORS[name]}.weight": 0 for name, gains in norms.items() if not gains.any()}


def layer_constants(index: int, layer: Layer) -> dict[str, float]:
    """The suspect tensors of a :class:`~intaglio.gen.checkpoint.weights.Layer`, as ``{tensor: its only value}``."""
    values = {
        f"model.layers.{index}.{MATRIX_TENSORS[name]}.weight": only_value(matrix.weights)
        for name, matrix in layer.matrices.items()
    }
    return {name: value for name, value in values.items() if value is not None} | norm_constants(index, layer.norms)


def refuse_constant(found: Mapping[str, float]) -> None:
    """Raise if there are suspect tensors.

    Parameters
    ----------
    found : dict
        The only value of each, by its name.

    Raises
    ------
    CheckpointError
        It names them, up to eight.
    """
    if found:
        named = ", ".join(f"{name} (all {value:g})" for name, value in list(found.items())[:_NAMED])
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise CheckpointError(
            f"a trained model's matrices must hold several values and its norms not only zeros, unlike {named}{more}: "
            "the file is damaged, or converted wrongly; --allow-constant (Python: allow_constant=True) takes it as it is"
        )
