"""What a bank becomes: a function from its address, its words and their bits to files.

The one seam between the weights and the memories: a form sees one bank at a time and nothing else, so that memory stays bounded and the
processes independent.
"""

from functools import lru_cache

import numpy as np

from intaglio.gen.banks.layout import Bank
from intaglio.gen.native.rom import fastest_maker
from intaglio.rtl.memory.logic import bank as logic_bank
from intaglio.rtl.memory.rom import hex_text, logic_module

__all__ = ["FORMS", "module_name"]

_maker = lru_cache(maxsize=1)(fastest_maker)  # of this process


def image(bank: Bank, words: np.ndarray, bits: int) -> dict[str, bytes]:
    """Image for ``$readmemh``, one word a line, as ``intaglio_rom`` reads it."""
    return {f"{bank.name}.hex": hex_text(words)}


def module_name(bank: Bank) -> str:
    """Of a bank of weights as logic: unique in the whole model."""
    return logic_module(f"layer_{bank.layer:02}_{bank.name}")


def logic(bank: Bank, words: np.ndarray, bits: int) -> dict[str, bytes]:
    """A module of gates, read at every address before it is given out; of embedding and head, which are not of trits, the image."""
    if bank.layer is None:
        return image(bank, words, bits)
    return {f"{bank.name}.v": logic_bank(words, bits, module_name(bank), maker=_maker()).verilog.encode()}


def words(bank: Bank, words: np.ndarray, bits: int) -> dict[str, bytes]:
    """The words as little-endian bytes, of which the ROMs of a decoder are put together."""
    return {f"{bank.name}.bin": words.tobytes()}


FORMS = {"image": image, "logic": logic, "words": words}
