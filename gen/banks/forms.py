"""What a bank becomes: a function from its address, its words and their bits to files.

The one seam between the weights and the memories: a form sees one bank at a time and nothing else, so that memory stays bounded and the
processes independent.
"""

import numpy as np

from intaglio.gen.banks.layout import Bank
from intaglio.rtl.memory.rom import hex_text

__all__ = ["FORMS"]


def image(bank: Bank, words: np.ndarray, bits: int) -> dict[str, bytes]:
    """Image for ``$readmemh``, one word a line, as ``intaglio_rom`` reads it."""
    return {f"{bank.name}.hex": hex_text(words)}


def words(bank: Bank, words: np.ndarray, bits: int) -> dict[str, bytes]:
    """The words as little-endian bytes, of which the ROMs of a decoder are put together."""
    return {f"{bank.name}.bin": words.tobytes()}


FORMS = {"image": image, "words": words}
