"""A simulated device: the shared object made by :mod:`intaglio.sim.verilator.build`, through ctypes."""

import ctypes

import numpy as np

from intaglio import Error

__all__ = ["Library", "Simulation", "SimulationError"]

_HANDLE, _WORDS, _FLAGS = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p
_COMMON = {
    "create": (_HANDLE, ()),
    "destroy": (None, (_HANDLE,)),
    "error": (ctypes.c_char_p, (_HANDLE,)),
    "cycles": (ctypes.c_uint64, (_HANDLE,)),
    "reset": (ctypes.c_int64, (_HANDLE, ctypes.c_int64)),
    "write": (ctypes.c_int64, (_HANDLE, ctypes.c_uint32, ctypes.c_uint32)),
    "read": (ctypes.c_int64, (_HANDLE, ctypes.c_uint32)),
    "trace_open": (ctypes.c_int64, (_HANDLE, ctypes.c_char_p)),
    "trace_close": (ctypes.c_int64, (_HANDLE,)),
}
_SIGNATURES = {
    "pending": (ctypes.c_int64, (_HANDLE,)),
    "stalls": (None, (_HANDLE, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32)),
    "send": (ctypes.c_int64, (_HANDLE, _WORDS, _FLAGS, ctypes.c_int64)),
    "run": (ctypes.c_int64, (_HANDLE, _WORDS, _FLAGS, ctypes.c_int64, ctypes.c_int, ctypes.c_int64)),
    "idle": (ctypes.c_int64, (_HANDLE, ctypes.c_int64)),
}


class SimulationError(Error):
    """The simulated design broke a rule of its buses, could not read its ROM files, or stopped."""


class Library:
    """One instance of a design, reset and ready; a context manager.

    Parameters
    ----------
    library : str or Path
        The shared object.
    signatures : dict
        C functions of its kind beside the common ones: name to result and arguments.
    reset_cycles : int
        Cycles for which the reset is held.

    Raises
    ------
    SimulationError
    """

    def __init__(self, library, signatures, *, reset_cycles=16):
        loaded = ctypes.CDLL(str(library))
        self._functions = {}
        for name, (result, arguments) in (_COMMON | signatures).items():
            function = getattr(loaded, f"intaglio_{name}")
            function.restype, function.argtypes = result, arguments
            self._functions[name] = function
        self._handle = self._functions["create"]()
        if not self._handle:
            raise SimulationError(f"the simulation {library} cannot be started")
        try:
            self.reset(reset_cycles)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
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

    def reset(self, cycles=16):
        """Hold the reset for ``cycles`` and forget commands under way."""
        self._call("reset", cycles)

    def read(self, address) -> int:
        """Read the register at byte ``address`` over AXI4-Lite."""
        return self._call("read", address)

    def write(self, address, value):
        """Write the register at byte ``address`` over AXI4-Lite."""
        self._call("write", address, value)

    def trace(self, path):
        """Write a waveform from now on, in the format of the build; None ends it."""
        if path is None:
            self._call("trace_close")
        else:
            self._call("trace_open", str(path).encode())


class Simulation(Library):
    """An instance of a decoder; see :class:`Library`."""

    def __init__(self, library, *, reset_cycles=16):
        super().__init__(library, _SIGNATURES, reset_cycles=reset_cycles)

    @property
    def pending(self) -> int:
        """Command words not taken yet."""
        return self._call("pending")

    def stalls(self, seed, command=0, result=0):
        """From now on offer no command in a random share of ``command``/256 cycles, take no result in ``result``/256."""
        for share in (command, result):
            if not 0 <= share < 256:
                raise ValueError(f"a share of stalls must be in 0..255, not {share}")
        self._call("stalls", seed, command, result)

    def send(self, words, last):
        """Queue command words ``uint32 [n]`` with flags ``bool [n]``; they are offered while the simulation runs."""
        words = np.ascontiguousarray(words, dtype=np.uint32)
        flags = np.ascontiguousarray(last, dtype=np.uint8)
        if words.ndim != 1 or words.shape != flags.shape:
            raise ValueError(f"words and flags must be of one equal length, not {words.shape} and {flags.shape}")
        self._call("send", words.ctypes.data, flags.ctypes.data, len(words))

    def run(self, capacity, limit, *, at_last=True):
        """Run until ``capacity`` result words are there, or a packet has ended (if ``at_last``), or, with capacity 0, until
        no command is pending; at most ``limit`` cycles.

        Returns
        -------
        words : ndarray ``uint32 [n]``
        last : ndarray ``bool [n]``
        """
        words, flags = np.empty(max(capacity, 1), np.uint32), np.empty(max(capacity, 1), np.uint8)
        count = self._call("run", words.ctypes.data, flags.ctypes.data, capacity, at_last, limit)
        return words[:count], flags[:count].astype(bool)

    def idle(self, cycles):
        """Run ``cycles`` without taking results."""
        self._call("idle", cycles)
