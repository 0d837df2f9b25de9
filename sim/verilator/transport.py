"""The transport ``sim:FOLDER``: a generated folder, built by Verilator and run in this process."""

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from intaglio.files import check_output
from intaglio.host.manifest import read_json
from intaglio.sim.verilator.build import TRACES, build
from intaglio.sim.verilator.library import Simulation
from intaglio.sim.verilator.memory import MemoryModel

__all__ = ["SimulationTransport", "open_simulation"]

FIRST_CHUNK, CHUNK_SECONDS = (
    1 << 10,
    0.05,
)  # cycles run at first, and seconds to aim at, between looks at clock and Ctrl-C
DEFAULT_MEMORY = "hbm2-u280"


def open_simulation(
    rest, *, manifest=None, progress=None, accept=None, cache=None, trace=None, max_cycles=None, memory=None
):
    """Open the generated folder ``rest``; the entry point of the scheme ``sim``.

    Parameters
    ----------
    rest : str
    manifest : None
        Not used: the folder has its own.
    progress : callable or None
        Called with a text and seconds while the simulation is built.
    accept : callable or None
        Called with the manifest before that.
    cache : str or Path or None
        Folder for built simulations.
    trace : str or Path or None
        Waveform file to write, ``.vcd`` or ``.fst``, or counts of transitions, ``.saif``.
    max_cycles : int or None
        Give up a wait after this many cycles in which no word moved, besides the time limit.
    memory : str or MemoryModel or None
        Memory of a device that has one: a name of :data:`~intaglio.sim.verilator.memory.PRESETS`, by default ``hbm2-u280``, or its times.

    Raises
    ------
    BuildError, ManifestError, SimulationError
    """
    kind = None if trace is None else Path(trace).suffix.lstrip(".")
    if kind not in TRACES:
        raise ValueError(f"a trace file must end in .vcd, .fst or .saif, not {str(trace)!r}")
    if manifest is not None:
        raise ValueError("the transport 'sim' takes no manifest: the folder has its own")
    if trace is not None:
        check_output(trace, "a trace")
    described = read_json(rest)
    if accept is not None:
        accept(described)
    model = None
    if isinstance(described, dict) and described.get("memory_bus"):
        memory = DEFAULT_MEMORY if memory is None else memory
        model = memory if isinstance(memory, MemoryModel) else MemoryModel.preset(memory, described.get("clock_hz"))
    elif memory is not None:
        raise ValueError("only a device with a memory, a prefill unit, takes the option 'memory'")
    library = build(rest, cache=cache, trace=kind, progress=progress)
    opened = SimulationTransport(Simulation(library, memory=model), described, max_cycles=max_cycles)
    if trace is not None:
        try:
            opened.simulation.trace(trace)
        except BaseException:
            opened.close()
            raise
    return opened


class SimulationTransport:
    """A :class:`Simulation` as a transport (see ``intaglio.host.transport``)."""

    def __init__(self, simulation, manifest, *, max_cycles=None):
        self.simulation, self.manifest, self.max_cycles, self.watch = simulation, manifest, max_cycles, None
        self._chunk = FIRST_CHUNK

    @property
    def pending(self) -> int:
        return self.simulation.pending

    @property
    def cycles(self) -> int:
        return self.simulation.cycles

    def send(self, words, last, timeout) -> int:
        self.simulation.send(words, last)
        return len(words)

    def receive(self, capacity, timeout):
        words, flags, idle = [], [], 0
        moved, pending = time.monotonic(), self.pending
        while capacity and not (flags and flags[-1][-1]):
            began = time.monotonic()
            chunk = self._chunk if self.max_cycles is None else min(self._chunk, self.max_cycles - idle)
            first = self.cycles
            got, ends = self.simulation.run(capacity, chunk)
            now, left = time.monotonic(), self.pending
            if self.watch is not None:
                self.watch()
            if self.cycles - first == chunk == self._chunk:  # a whole chunk: its time tells the speed
                self._chunk = int(max(1, min(8, CHUNK_SECONDS / max(now - began, 1e-6)) * chunk))
            if len(got) or left != pending:
                moved, pending, idle = now, left, 0
                words, flags = (words + [got], flags + [ends]) if len(got) else (words, flags)
                capacity -= len(got)
                continue
            idle += chunk
            if now - moved >= timeout or idle == self.max_cycles:
                break
        if not words:
            return np.empty(0, np.uint32), np.empty(0, bool)
        return np.concatenate(words), np.concatenate(flags)

    def read_register(self, offset: int) -> int:
        return self.simulation.read(offset)

    def write_register(self, offset: int, value: int) -> None:
        self.simulation.write(offset, value)

    def write_memory(self, address: int, data: npt.NDArray[np.uint8]) -> None:
        self.simulation.write_memory(address, data)

    def read_memory(self, address: int, length: int) -> npt.NDArray[np.uint8]:
        return self.simulation.read_memory(address, length)

    def reset(self) -> None:
        self.simulation.reset()

    def close(self) -> None:
        self.simulation.close()
