"""The matrices as the program takes them: those that one linear operation computes, as one."""

from collections.abc import Mapping

import numpy as np

from intaglio.gen.checkpoint.model import ModelConfig

__all__ = ["EXECUTION", "execution_matrix", "matrix_shapes"]

EXECUTION = {
    "qkv": ("q", "k", "v"),
    "o": ("o",),
    "gate_up": ("gate", "up"),
    "down": ("down",),
}  # in the order of the program


def matrix_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Rows and inputs of each of EXECUTION's matrices."""
    shapes = config.matrix_shapes
    return {name: (sum(shapes[part][0] for part in parts), shapes[parts[0]][1]) for name, parts in EXECUTION.items()}


def execution_matrix(name: str, matrices: Mapping[str, np.ndarray]) -> np.ndarray:
    """One of :data:`EXECUTION` as its rows are computed: one matrix under the other, gate and up rows alternating."""
    parts = [matrices[part] for part in EXECUTION[name]]
    if name == "gate_up":
        return np.stack(parts, axis=1).reshape(-1, parts[0].shape[1])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
