"""The weight ROMs of a decoder as modules of gates (``rom="logic"``), made in several processes."""

from collections.abc import Callable, Mapping

import numpy as np

from intaglio.gen.emit.images import weight_names
from intaglio.gen.native.rom import fastest_maker
from intaglio.gen.pool import Pool, check_processes
from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.memory.logic import bank
from intaglio.rtl.memory.logic.search import PYTHON
from intaglio.rtl.memory.rom import logic_module

__all__ = ["MOST_BITS", "check_logic", "logic_modules"]

MOST_BITS = 1 << 24  # of all ROMs: some 40 MB of Verilog, more than synthesis and simulation take in a reasonable time
SECONDS_PER_BIT = 0.2e-6, 10e-6  # on one core of 2026, by C++ and by numpy


def check_logic(config: DecoderConfig, processes: int) -> None:
    """Raise ``ValueError`` for what :func:`logic_modules` could not make, before long work."""
    check_processes(processes)
    if config.rom != "logic":
        return
    bits = _bits(config)
    if bits > MOST_BITS:
        raise ValueError(
            f"the weights of a decoder with rom=logic must have at most {MOST_BITS:,} bits (their Verilog has about 2.5 bytes a bit), "
            f"not {bits:,}: use rom=image"
        )


def logic_modules(
    config: DecoderConfig, roms: Mapping[str, np.ndarray], processes: int, progress: Callable[[str, float], None]
) -> dict[str, str]:
    """Verilog of each weight ROM by module name; the same text whatever the number of processes.

    Parameters
    ----------
    config : DecoderConfig
    roms : dict
        Of :func:`~intaglio.gen.emit.images.images`.
    processes : int
    progress : callable
        Called with a text and the share done (0 to 1), first with about how long it takes.
    """
    names = weight_names(config)
    tasks = [(name, "module", name, roms[name]) for name in names]
    processes = min(processes, len(names))
    texts: dict[str, str] = {}
    slow = fastest_maker(lambda text: progress(text, 0.0)) is PYTHON
    seconds = _bits(config) * SECONDS_PER_BIT[slow] / processes
    progress(f"{len(names)} weight ROMs as logic, about {seconds:.0f} s", 0.0)
    with Pool(processes, _Maker, config.weight_word_bits) as pool:
        for name, text in pool.run(tasks):
            texts[name] = text
            progress(f"{len(texts)} of {len(names)} weight ROMs as logic", len(texts) / len(names))
    return {logic_module(name): texts[name] for name in names}


def _bits(config):
    """Bits of all weight ROMs."""
    return config.lanes * config.weight_depth * config.weight_word_bits


class _Maker:
    """What each process does."""

    def __init__(self, width: int) -> None:
        self.width, self.maker = width, fastest_maker()

    def module(self, name: str, words: np.ndarray) -> str:
        return bank(words, self.width, logic_module(name), maker=self.maker).verilog
