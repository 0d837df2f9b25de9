"""Contents of every ROM of a decoder, as little-endian byte matrices ``[depth, bytes]``."""

import numpy as np

from intaglio.gen.program import layer_program, ordered_gains
from intaglio.rtl import numerics
from intaglio.rtl.program import WORD_BITS
from intaglio.rtl.rom import words_to_bytes
from intaglio.rtl.ternary.gate import bank_name
from intaglio.rtl.ternary.linear import rom_name
from intaglio.rtl.ternary.packing import execution_order, pack

__all__ = ["images", "program_words"]


def program_words(model):
    """The layer program as integers."""
    return [instruction.encode() for instruction in layer_program(model)]


def images(model, progress=None):
    """ROM images of a :class:`~intaglio.gen.quantised.QuantisedModel` by name.

    Parameters
    ----------
    progress : callable or None
        Called with a text and the share done, once per layer.
    """
    c = model.config
    lanes = [[] for _ in range(c.lanes)]
    for index, layer in enumerate(model.layers):
        for matrix in _execution_matrices(layer):
            words = execution_order(matrix, c.lanes, c.lane_width)
            for lane, part in zip(lanes, words, strict=True):
                lane.append(pack(part, c.packing))
        if progress:
            progress(f"layer {index + 1} of {c.layers} packed", (index + 1) / c.layers)
    out = {}
    for i, parts in enumerate(lanes):
        words = np.concatenate(parts)
        if c.gate_words:
            out |= {bank_name(rom_name(i), b): words[b * c.gate_words:][:c.gate_words] for b in range(c.gate_banks)}
        else:
            out[rom_name(i)] = words
    out["embedding"] = model.embedding.reshape(-1, c.array).view(np.uint8)
    gains = np.concatenate(ordered_gains(model)).reshape(-1, c.vector_width)
    out["gains"] = gains.astype("<i2").view(np.uint8)
    out["rotary"] = words_to_bytes(model.increments, numerics.PHASE_BITS)
    out["sine"] = words_to_bytes(numerics.SINE_TABLE, numerics.ROTARY_ONE.bit_length())
    out["program"] = words_to_bytes(program_words(model), WORD_BITS)
    return out


def _execution_matrices(layer):
    """Matrices in the order of the program; gate and up rows alternate."""
    m = layer.matrices
    gated = np.stack([m["gate"], m["up"]], axis=1).reshape(-1, m["gate"].shape[1])
    return [np.concatenate([m["q"], m["k"], m["v"]]), m["o"], gated, m["down"]]
