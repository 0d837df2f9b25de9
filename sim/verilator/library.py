"""A simulated device: the shared object made by :mod:`intaglio.sim.verilator.build`, through ctypes."""

import ctypes
from pathlib import Path

import numpy as np
import numpy.typing as npt

from intaglio.host.protocol import DeviceError
from intaglio.sim.verilator.memory import MemoryModel

__all__ = ["Simulation", "SimulationError", "load_functions"]

_HANDLE, _ARRAY, _FLAG = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int
_U32, _I64, _U64 = ctypes.c_uint32, ctypes.c_int64, ctypes.c_uint64
_SIGNATURES = {
    "create": (_HANDLE, ()),
    "destroy": (None, (_HANDLE,)),
    "error": (ctypes.c_char_p, (_HANDLE,)),
    "cycles": (_U64, (_HANDLE,)),
    "pending": (_I64, (_HANDLE,)),
    "reset": (_I64, (_HANDLE, _I64)),
    "write": (_I64, (_HANDLE, _U32, _U32)),
    "read": (_I64, (_HANDLE, _U32)),
    "stalls": (_I64, (_HANDLE, _U32, _U32, _U32)),
    "send": (_I64, (_HANDLE, _ARRAY, _ARRAY, _I64)),
    "run": (_I64, (_HANDLE, _ARRAY, _ARRAY, _I64, _FLAG, _I64)),
    "idle": (_I64, (_HANDLE, _I64)),
    "memory": (_I64, (_HANDLE, _U32, _U32, _U32, _U32, _I64, _I64)),
    "write_memory": (_I64, (_HANDLE, _U64, _ARRAY, _U64)),
    "read_memory": (_I64, (_HANDLE, _U64, _ARRAY, _U64)),
    "record": (_I64, (_HANDLE, _FLAG)),
    "events": (_I64, (_HANDLE, _ARRAY, _I64)),
    "trace_open": (_I64, (_HANDLE, ctypes.c_char_p)),
    "trace_close": (_I64, (_HANDLE,)),
}


class SimulationError(DeviceError):
    """The simulated design broke a rule of its buses, could not read its ROM files, or stopped."""


def load_functions(library: str | Path, prefix: str, signatures: dict) -> dict:
    """The C functions ``prefix + name`` of a shared object by name; ``signatures`` has the result and arguments of each."""
    loaded, functions = ctypes.CDLL(str(library)), {}
    for name, (result, arguments) in signatures.items():
        functions[name] = getattr(loaded, prefix + name)
        functions[name].restype, functions[name].argtypes = result, arguments
    return functions


class Simulation:
    """One instance of a device, reset and ready; a context manager.

    Parameters
    ----------
    library : str or Path
        The shared object.
    memory : MemoryModel or None
        Times of the memory, for a device that has one.
    reset_cycles : int
        Cycles for which the reset is held.

    Raises
    ------
    SimulationError
    """

    def __init__(self, library: str | Path, *, memory: MemoryModel | None = None, reset_cycles: int = 16):
        self.model, self._functions = memory, load_functions(library, "intaglio_", _SIGNATURES)
        self._handle = self._functions["create"]()
        if not self._handle:
            raise SimulationError(f"the simulation {library} cannot be started")
        try:
            if memory is not None:
                self.new_memory()
            self.reset(reset_cycles)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Free the instance and end its trace; closing twice does nothing."""
        if self._handle:
            self._functions["destroy"](self._handle)
            self._handle = None

    def _call(self, name, *arguments):
        if not self._handle:
            raise SimulationError("the simulation is closed")
        result = self._functions[name](self._handle, *arguments)
        if result == -1:
            raise SimulationError(self._functions["error"](self._handle).decode(errors="replace"))
        return result

    @property
    def cycles(self) -> int:
        """Clock cycles since the start, resets included."""
        return self._call("cycles")

    @property
    def pending(self) -> int:
        """Command words not taken yet."""
        return self._call("pending")

    def reset(self, cycles: int = 16) -> None:
        """Hold the reset for ``cycles`` and forget commands, results and bursts under way."""
        self._call("reset", cycles)

    def read(self, address: int) -> int:
        """Read the register at byte ``address`` over AXI4-Lite."""
        return self._call("read", address)

    def write(self, address: int, value: int) -> None:
        """Write the register at byte ``address`` over AXI4-Lite."""
        self._call("write", address, value)

    def trace(self, path: str | Path | None) -> None:
        """Write a waveform from now on, in the format of the build; None ends it."""
        if path is None:
            self._call("trace_close")
        else:
            self._call("trace_open", str(path).encode())

    def stalls(self, seed: int, command: int = 0, result: int = 0) -> None:
        """From now on offer no command in a random share of ``command``/256 cycles, take no result in ``result``/256."""
        for share in (command, result):
            if not 0 <= share < 256:
                raise ValueError(f"a share of stalls must be in 0..255, not {share}")
        self._call("stalls", seed, command, result)

    def send(self, words: npt.ArrayLike, last: npt.ArrayLike) -> None:
        """Queue command words ``uint32 [n]`` with flags ``bool [n]``; they are offered while the simulation runs."""
        words = np.ascontiguousarray(words, dtype=np.uint32)
        flags = np.ascontiguousarray(last, dtype=np.uint8)
        if words.ndim != 1 or words.shape != flags.shape:
            raise ValueError(f"words and flags must be of one equal length, not {words.shape} and {flags.shape}")
        self._call("send", words.ctypes.data, flags.ctypes.data, len(words))

    def run(
        self, capacity: int, limit: int, *, at_last: bool = True
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
        """Run until ``capacity`` result words are there, or a packet has ended (if ``at_last``), or, with capacity 0, until
        no command is pending; at most ``limit`` cycles.

        Returns
        -------
        words : ndarray ``uint32 [n]``
            Of results as in :class:`intaglio.host.transport.Transport`.
        last : ndarray ``bool [n]``
        """
        words, flags = np.empty(max(capacity, 1), np.uint32), np.empty(max(capacity, 1), np.uint8)
        count = self._call("run", words.ctypes.data, flags.ctypes.data, capacity, at_last, limit)
        return words[:count], flags[:count].astype(bool)

    def idle(self, cycles: int) -> None:
        """Run ``cycles`` without taking results."""
        self._call("idle", cycles)

    def new_memory(self, *, error_beat: int | None = None, silent_burst: int | None = None) -> None:
        """Give the device an empty memory; faults as in :class:`~intaglio.sim.verilator.memory.ReadSlave`, counted from now on."""
        rate, faults = self.model.bytes_per_cycle, (-1 if x is None else x for x in (error_beat, silent_burst))
        self._call("memory", self.model.latency_cycles, rate.numerator, rate.denominator, self.model.bursts, *faults)

    def write_memory(self, address: int, data: npt.ArrayLike) -> None:
        """Put bytes ``uint8 [n]`` into the memory from byte ``address`` on."""
        data = np.ascontiguousarray(data, np.uint8)
        self._call("write_memory", address, data.ctypes.data, len(data))

    def read_memory(self, address: int, length: int) -> npt.NDArray[np.uint8]:
        """``length`` bytes of the memory; those that were never written are 0."""
        data = np.empty(length, np.uint8)
        self._call("read_memory", address, data.ctypes.data, length)
        return data

    def record(self, on: bool) -> None:
        """Begin (forgetting earlier ones) or end to record the monitor's changes."""
        self._call("record", on)

    def events(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        """Recorded changes: cycles uint64 [n] and the monitor's values uint64 [n] from each on."""
        count = self._call("events", None, 0)
        packed = np.empty(max(count, 1), np.uint64)
        self._call("events", packed.ctypes.data, count)
        return packed[:count] >> np.uint64(16), packed[:count] & np.uint64(0xFFFF)
