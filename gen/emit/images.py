"""Contents of every ROM of a decoder, as little-endian byte matrices ``[depth, bytes]``.

:func:`images` makes all of them in memory, for simulations of a model that is there already; generators write those of weights and tables
(embedding, head) a piece at a time (:mod:`intaglio.gen.emit.stream`).
"""

from collections.abc import Callable

import numpy as np

from intaglio.gen.banks.execution import EXECUTION, execution_matrix
from intaglio.gen.checkpoint.quantised import QuantisedModel
from intaglio.gen.emit.program import layer_program, ordered_gains
from intaglio.rtl.arithmetic import numerics
from intaglio.rtl.arithmetic.silu import SILU_WORD_BITS, SILU_WORDS
from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.control.program import WORD_BITS
from intaglio.rtl.memory.rom import words_to_bytes
from intaglio.rtl.ternary.gate import bank_name
from intaglio.rtl.ternary.linear import rom_name
from intaglio.rtl.ternary.packing import execution_order, pack

__all__ = ["images", "program_words", "small_images", "weight_names"]


def program_words(model: QuantisedModel) -> list[int]:
    """The layer program as integers."""
    return [instruction.encode() for instruction in layer_program(model)]


def weight_names(config: DecoderConfig) -> list[str]:
    """Names of the ROMs that hold the ternary weights: one a lane, or its banks, in the order of the weights."""
    names = [rom_name(i) for i in range(config.lanes)]
    return [bank_name(name, b) for name in names for b in range(config.gate_banks)] if config.gate_words else names


def small_images(model: QuantisedModel) -> dict[str, np.ndarray]:
    """Images of the ROMs that hold neither weights nor tables, by name."""
    c = model.config
    out = {}
    if c.activation == "silu":
        out["silu"] = words_to_bytes(SILU_WORDS, SILU_WORD_BITS)
    gains = np.concatenate(ordered_gains(model)).reshape(-1, c.vector_width)
    out["gains"] = gains.astype("<i2").view(np.uint8)
    out["rotary"] = words_to_bytes(model.increments, numerics.PHASE_BITS)
    out["sine"] = words_to_bytes(numerics.SINE_TABLE, numerics.ROTARY_ONE.bit_length())
    out["program"] = words_to_bytes(program_words(model), WORD_BITS)
    return out


def images(model: QuantisedModel, progress: Callable[[str, float], None] | None = None) -> dict[str, np.ndarray]:
    """ROM images of a :class:`~intaglio.gen.checkpoint.quantised.QuantisedModel` by name, all of them in memory.

    Parameters
    ----------
    progress : callable or None
        Called with a text and the share done, once per layer.
    """
    c = model.config
    lanes = [[] for _ in range(c.lanes)]
    for index, layer in enumerate(model.layers):
        for name in EXECUTION:
            words = execution_order(execution_matrix(name, layer.matrices), c.lanes, c.lane_width)
            for lane, part in zip(lanes, words, strict=True):
                lane.append(pack(part, c.packing))
        if progress:
            progress(f"layer {index + 1} of {c.layers} packed", (index + 1) / c.layers)
    out = {}
    for i, parts in enumerate(lanes):
        words = np.concatenate(parts)
        if c.gate_words:
            out |= {bank_name(rom_name(i), b): words[b * c.gate_words :][: c.gate_words] for b in range(c.gate_banks)}
        else:
            out[rom_name(i)] = words
    out["embedding"] = model.embedding.reshape(-1, c.array).view(np.uint8)
    if not c.tied_head:
        out["head"] = model.head.reshape(-1, c.array).view(np.uint8)
    for name, scales in model.row_scales.items():
        out[f"{name}_scales"] = scales.astype("<u2").reshape(-1, 1).view(np.uint8)
    return out | small_images(model)
