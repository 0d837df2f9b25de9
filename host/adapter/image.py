"""The image of an adapter: the words that a device takes, in the order of its layer program."""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from intaglio.host.adapter.files import QuantisedAdapter

__all__ = ["adapter_image", "image_crc"]


def adapter_image(adapter: QuantisedAdapter, layout: Mapping[str, Any], digest_word: int) -> np.ndarray:
    """Words of the image: the device's digest, the scales, the weights by address, lane and 32 bits from the lowest.

    Parameters
    ----------
    adapter : QuantisedAdapter
    layout : dict
        The manifest's ``adapter``.
    digest_word : int
        What the device's digest register holds.

    Returns
    -------
    uint32 array
    """
    scales, words = [digest_word], []
    for layer in range(layout["layers"]):
        for names in layout["operations"]:
            matrices = [adapter.matrices[layer, name] for name in names]
            scales += [matrix.m | (matrix.e & 0x3FF) << 16 for matrix in matrices]
            words.append(_words_of_a(np.concatenate([matrix.a for matrix in matrices]), layout))
            rows = [matrix.b for matrix in matrices]
            gated = names == ["gate", "up"]
            words.append(
                _words_of_b(np.stack(rows, 1).reshape(-1, rows[0].shape[1]) if gated else np.concatenate(rows), layout)
            )
    lanes = np.concatenate(words, axis=1)  # [lanes, addresses, lane_width]
    packed = np.packbits(np.concatenate([lanes == 1, lanes == -1], axis=2), axis=2, bitorder="little")
    packed = np.pad(packed, ((0, 0), (0, 0), (0, -packed.shape[2] % 4)))
    weights = np.ascontiguousarray(packed.transpose(1, 0, 2)).reshape(-1).view("<u4")
    return np.concatenate([np.array(scales, "<u4"), weights])


def image_crc(words: np.ndarray) -> int:
    """CRC-32 of an image."""
    return zlib.crc32(np.ascontiguousarray(words, "<u4").tobytes())


def _digits(values, trits):
    """Balanced ternary digits ``[trits, ...]``, the highest first."""
    values = values.astype(np.int32) + (3**trits - 1) // 2
    return np.stack([values // 3**k % 3 - 1 for k in reversed(range(trits))]).astype(np.int8)


def _words_of_a(values, layout):
    """``[lanes, words, lane_width]``: a group of rows after another, digit by digit."""
    lanes, width, trits = layout["lanes"], layout["lane_width"], layout["trits"]
    digits = _digits(values, trits).reshape(trits, len(values) // lanes, lanes, -1, width)
    return digits.transpose(2, 1, 0, 3, 4).reshape(lanes, -1, width)


def _words_of_b(values, layout):
    """``[lanes, words, lane_width]``: as many rows as fit one after another in a word, each row digit by digit."""
    lanes, width, trits, rank = layout["lanes"], layout["lane_width"], layout["trits"], values.shape[1]
    rows = (
        _digits(values, trits)
        .reshape(trits, len(values) // lanes, lanes, rank)
        .transpose(2, 1, 0, 3)
        .reshape(lanes, -1, rank)
    )
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % (width // rank)), (0, 0)))
    return rows.reshape(lanes, -1, width)
