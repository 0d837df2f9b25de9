"""A simulated prefill unit: the shared object made by :mod:`intaglio.sim.verilator.build`, through ctypes."""

import ctypes

import numpy as np

from intaglio.sim.verilator.library import Library

__all__ = ["PrefillSimulation"]

_HANDLE, _BYTES = ctypes.c_void_p, ctypes.c_void_p
_U32, _I64, _U64 = ctypes.c_uint32, ctypes.c_int64, ctypes.c_uint64
_SIGNATURES = {
    "memory": (_I64, (_HANDLE, _BYTES, _U64, _U64, _U32, _U32, _U32, _U32, _I64, _I64)),
    "stalls": (_I64, (_HANDLE, _U32, _U32)),
    "run": (_I64, (_HANDLE, _BYTES, _BYTES, _I64, _U32, _I64)),
    "record": (_I64, (_HANDLE, ctypes.c_int)),
    "events": (_I64, (_HANDLE, _BYTES, _I64)),
}


class PrefillSimulation(Library):
    """One instance of the unit with its memory, reset and ready; a context manager.

    Parameters
    ----------
    library : str or Path
        The shared object.
    lanes : int
        Results of a beat.
    model : MemoryModel
        Times of the memory.
    reset_cycles : int
    """

    def __init__(self, library, *, lanes, model, reset_cycles=16):
        self.lanes, self.model = lanes, model
        super().__init__(library, _SIGNATURES, reset_cycles=reset_cycles)

    def memory(self, data, base, *, error_beat=None, silent_burst=None):
        """Contents (uint8) of the memory from address ``base`` on; faults as in :class:`~intaglio.sim.verilator.memory.ReadSlave`."""
        data = np.ascontiguousarray(data, np.uint8)
        rate = self.model.bytes_per_cycle
        self._call(
            "memory",
            data.ctypes.data,
            len(data),
            base,
            self.model.latency_cycles,
            rate.numerator,
            rate.denominator,
            self.model.bursts,
            -1 if error_beat is None else error_beat,
            -1 if silent_burst is None else silent_burst,
        )

    def stalls(self, seed, share=0):
        """From now on take no result in ``share``/256 of the cycles, at random."""
        if not 0 <= share < 256:
            raise ValueError(f"a share of stalls must be in 0..255, not {share}")
        self._call("stalls", seed, share)

    def run(self, capacity, stop, limit):
        """Run until ``capacity`` beats have been taken, one has a bit of ``stop`` in tuser, or for ``limit`` cycles.

        Returns
        -------
        values int16 [n, lanes], users uint32 [n] with tlast in bit 31
        """
        values, users = np.empty((max(capacity, 1), self.lanes), np.int16), np.empty(max(capacity, 1), np.uint32)
        count = self._call("run", values.ctypes.data, users.ctypes.data, capacity, stop, limit)
        return values[:count], users[:count]

    def record(self, on):
        """Begin (forgetting earlier ones) or end to record the monitor's changes."""
        self._call("record", on)

    def events(self):
        """Recorded changes: cycles uint64 [n] and the monitor's values uint64 [n] from each on."""
        count = self._call("events", None, 0)
        packed = np.empty(max(count, 1), np.uint64)
        self._call("events", packed.ctypes.data, count)
        return packed[:count] >> np.uint64(16), packed[:count] & np.uint64(0xFFFF)
