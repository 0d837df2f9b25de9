"""The simulated prefill unit as a transport: its Verilog by Verilator, with a memory model behind its read port."""

import time

from intaglio.sim.verilator.attention_library import PrefillSimulation
from intaglio.sim.verilator.memory import MemoryModel

__all__ = ["PrefillTransport", "memory_model", "open_prefill"]

FIRST_CHUNK, CHUNK_SECONDS = 1 << 10, 0.1  # cycles run at first, and seconds to aim at, between looks at the clock
DEFAULT_MEMORY = "hbm2-u280"


def memory_model(manifest, memory=DEFAULT_MEMORY):
    """The :class:`MemoryModel` of that name at the unit's clock, or the one that is given."""
    return memory if isinstance(memory, MemoryModel) else MemoryModel.preset(memory, manifest.get("clock_hz"))


def open_prefill(library, manifest, *, memory=DEFAULT_MEMORY):
    """Start the shared object of a generated folder.

    Parameters
    ----------
    library : Path
    manifest : dict
    memory : str or MemoryModel
        A name of :data:`~intaglio.sim.verilator.memory.PRESETS`, or the times themselves.
    """
    return PrefillTransport(
        PrefillSimulation(library, lanes=manifest["config"]["drain"], model=memory_model(manifest, memory)), manifest
    )


class PrefillTransport:
    """A :class:`PrefillSimulation` as a transport (see :class:`intaglio.host.attention.device.AttentionDevice`)."""

    def __init__(self, simulation, manifest):
        self.simulation, self.manifest, self._chunk = simulation, manifest, FIRST_CHUNK
        self.faults = {}  # for the next memory: error_beat, silent_burst

    @property
    def cycles(self) -> int:
        return self.simulation.cycles

    def write_memory(self, data, origin):
        self.simulation.memory(data, origin, **self.faults)

    def receive_beats(self, capacity, stop, timeout):
        began = time.monotonic()
        while True:
            first, at = self.cycles, time.monotonic()
            values, users = self.simulation.run(capacity, stop, self._chunk)
            now = time.monotonic()
            if self.cycles - first == self._chunk:  # a whole chunk: its time tells the speed
                self._chunk = int(max(1, min(8, CHUNK_SECONDS / max(now - at, 1e-6)) * self._chunk))
            if len(users) or now - began >= timeout:
                return values, users

    def read_register(self, offset) -> int:
        return self.simulation.read(offset)

    def write_register(self, offset, value):
        self.simulation.write(offset, value)

    def reset(self):
        self.simulation.reset()

    def close(self):
        self.simulation.close()
