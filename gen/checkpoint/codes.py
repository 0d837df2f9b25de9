"""Ternary matrices as Hugging Face packs them: two bits a weight, four rows a quarter of the matrix apart in one byte.

Weight ``w`` is stored as the code ``w + 1`` in {0, 1, 2}. With ``R = rows / 4``, byte ``[r, i]`` holds row ``k R + r`` in
bits ``2k + 1 .. 2k``. Source: ``pack_weights`` in transformers' ``integrations/bitnet.py``.
"""

import numpy as np

from intaglio.gen.checkpoint.model import CheckpointError

__all__ = ["ROWS_PER_BYTE", "check_codes", "pack", "unpack"]

ROWS_PER_BYTE = 4


def pack(weights: np.ndarray) -> np.ndarray:
    """Pack ternary ``weights [rows, columns]`` to uint8 ``[rows / 4, columns]``.

    Raises
    ------
    CheckpointError
        ``weights`` is not two-dimensional, its rows are not a multiple of 4, or a value is outside {-1, 0, 1}.
    """
    weights = np.asarray(weights)
    if weights.ndim != 2 or weights.shape[0] % ROWS_PER_BYTE:
        raise CheckpointError(
            f"a packed matrix must be [rows, columns] with rows a multiple of 4, not {list(weights.shape)}"
        )
    if not np.isin(weights, (-1, 0, 1)).all():
        raise CheckpointError("weights must be in {-1, 0, 1}")
    codes = (weights + 1).astype(np.uint8).reshape(ROWS_PER_BYTE, -1, weights.shape[1])
    return codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6


def check_codes(packed: np.ndarray, name: str = "packed matrix") -> None:
    """Raise :class:`CheckpointError` unless ``packed`` is uint8 ``[rows / 4, columns]`` without the code 3, which stands for no weight.

    Parameters
    ----------
    name : str
        What the error calls the matrix.
    """
    if packed.dtype != np.uint8 or packed.ndim != 2:
        raise CheckpointError(f"{name} must be uint8 [rows / 4, columns], not {packed.dtype} {list(packed.shape)}")
    bad = packed & (packed >> 1) & 0x55
    if bad.any():
        bad = np.argwhere(bad)
        row, column = bad[0]
        raise CheckpointError(
            f"{name} must hold ternary codes 0, 1 and 2, not the 3 in byte [{row}, {column}] = "
            f"0x{packed[row, column]:02x} ({len(bad)} such bytes)"
        )


def unpack(packed: np.ndarray, name: str = "packed matrix") -> np.ndarray:
    """Unpack uint8 ``packed [rows / 4, columns]`` to int8 ``[rows, columns]`` in {-1, 0, 1}; raises as :func:`check_codes`."""
    packed = np.asarray(packed)
    check_codes(packed, name)
    rows = packed.shape[0]
    out = np.empty((ROWS_PER_BYTE * rows, packed.shape[1]), np.uint8)
    for k in range(ROWS_PER_BYTE):
        np.bitwise_and(packed >> np.uint8(2 * k), 3, out=out[k * rows : (k + 1) * rows])
    out -= 1
    return out.view(np.int8)
