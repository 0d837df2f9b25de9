"""A simulated board behind a pseudo-terminal: Verilator runs the board's top, UART included, and the host opens a real tty.

board = build_board("build/desk", clock_hz=8_000_000, baud=1_000_000)
with SerialBoard(board, clock_hz=8_000_000, baud=1_000_000) as board:
    intaglio.host.open(f"serial:{board.port}?baud=1000000&manifest=build/desk")
"""

import ctypes
import os
import queue
import tempfile
import threading
import tty
from enum import IntEnum
from pathlib import Path

from intaglio.gen.emit.link import serial_verilog
from intaglio.host.manifest import read_json
from intaglio.sim.verilator.build import build
from intaglio.sim.verilator.library import SimulationError, load_functions

__all__ = ["Fault", "SerialBoard", "build_board"]

CHUNK, SLICE = 1 << 15, 256  # cycles between looks at requests, and between exchanges of bytes with the terminal
QUIET = (
    1 << 20
)  # cycles without a byte on the line after which the simulation runs slowly, to leave the processor to others
QUIET_CHUNK, QUIET_MILLISECONDS = 1 << 12, 2
REQUEST_SECONDS, CLOSE_SECONDS = 30.0, 30.0

_HANDLE = ctypes.c_void_p
_SIGNATURES = {
    "create": (_HANDLE, (ctypes.c_int, ctypes.c_double)),
    "destroy": (None, (_HANDLE,)),
    "error": (ctypes.c_char_p, (_HANDLE,)),
    "cycles": (ctypes.c_uint64, (_HANDLE,)),
    "run": (ctypes.c_int64, (_HANDLE, ctypes.c_int64, ctypes.c_int64)),
    "wait": (ctypes.c_int64, (_HANDLE, ctypes.c_int)),
    "connect": (None, (_HANDLE, ctypes.c_int)),
    "reset": (ctypes.c_int64, (_HANDLE, ctypes.c_int64)),
    "arm": (None, (_HANDLE, ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)),
    "noise": (None, (_HANDLE, ctypes.c_uint64, ctypes.c_uint32)),
    "faults": (ctypes.c_int64, (_HANDLE, ctypes.c_int)),
    "bytes": (ctypes.c_int64, (_HANDLE, ctypes.c_int)),
}


class Fault(IntEnum):
    """What can happen to a byte on the line: a bit inverted; the byte lost, sent twice, or held back until the host repeats something; or
    one cycle of a bit inverted, which the receiver's filter must hide (only to the device)."""

    FLIP, DROP, DOUBLE, STALL, GLITCH = range(1, 6)


def build_board(folder, *, clock_hz, baud, depth=32, cache=None, progress=None) -> Path:
    """Build the board around the generated folder ``folder``; arguments as for :func:`serial_verilog` and
    :func:`intaglio.sim.verilator.build.build`.

    Raises
    ------
    BuildError, ValueError
    """
    manifest = read_json(folder)
    return build(
        folder,
        cache=cache,
        board=serial_verilog(manifest, clock_hz=clock_hz, baud=baud, depth=depth),
        progress=progress,
    )


class SerialBoard:
    """A board that runs in a thread of its own as fast as it can; a context manager.

    Parameters
    ----------
    library : path
        Of :func:`build_board`.
    clock_hz, baud : int
        As it was built for.
    host_baud : float or None
        The speed of the host's end of the line, by default ``baud``.

    Attributes
    ----------
    port : str
        The tty; the same name after :meth:`replug`.

    Raises
    ------
    SimulationError
        From the first call after the simulation has failed.
    """

    def __init__(self, library, *, clock_hz, baud, host_baud=None):
        self._functions = load_functions(library, "intaglio_board_", _SIGNATURES)
        self._folder = tempfile.TemporaryDirectory(prefix="intaglio-board-")
        self.port = str(Path(self._folder.name) / "tty")
        self._master = self._slave = self._error = None
        self._plug()
        self._handle = self._functions["create"](self._master, clock_hz / (host_baud or baud))
        if not self._handle:
            self._unplug()
            self._folder.cleanup()
            raise SimulationError(f"the board {library} cannot be started")
        self._requests, self._stop = queue.SimpleQueue(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="board", daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _plug(self):
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        link = Path(self.port)
        link.unlink(missing_ok=True)
        link.symlink_to(os.ttyname(self._slave))

    def _unplug(self):
        for descriptor in (self._master, self._slave):
            if descriptor is not None:
                os.close(descriptor)
        self._master = self._slave = None
        Path(self.port).unlink(missing_ok=True)

    def _run(self):
        idle = 0
        try:
            while not self._stop.is_set():
                while not self._requests.empty():
                    action, answers = self._requests.get()
                    answers.put(action())
                active = self._call("run", QUIET_CHUNK if idle > QUIET else CHUNK, SLICE)
                idle = 0 if active else idle + (QUIET_CHUNK if idle > QUIET else CHUNK)
                if idle > QUIET:
                    self._call("wait", QUIET_MILLISECONDS)
        except Exception as fault:  # told by the next call from outside
            self._error = fault

    def _call(self, name, *arguments):
        result = self._functions[name](self._handle, *arguments)
        if name in ("run", "reset") and result == -1:
            raise SimulationError(self._functions["error"](self._handle).decode(errors="replace"))
        return result

    def _request(self, action):
        """Have the board's thread do something between two steps."""
        if self._error is not None:
            raise SimulationError(f"the board has failed: {self._error}") from self._error
        if not self._thread.is_alive():
            raise SimulationError("the board is closed")
        answers = queue.SimpleQueue()
        self._requests.put((action, answers))
        try:
            return answers.get(timeout=REQUEST_SECONDS)
        except queue.Empty:
            raise SimulationError(
                f"the board must answer within {REQUEST_SECONDS:g} s, but it did not ({self._error})"
            ) from self._error

    @property
    def cycles(self) -> int:
        return self._request(lambda: self._call("cycles"))

    @property
    def faults(self) -> tuple:
        """Faults injected on the way to the device and from it."""
        return self._request(lambda: (self._call("faults", 0), self._call("faults", 1)))

    @property
    def bytes(self) -> tuple:
        """Bytes sent to the device and by it."""
        return self._request(lambda: (self._call("bytes", 0), self._call("bytes", 1)))

    def arm(self, fault, *, from_device=False, skip=0, detail=0):
        """Let ``fault`` happen once, to the byte after ``skip`` others; ``detail`` is the bit, 0 (start) to 9 (stop), or for STALL the
        cycles at most, which end when the host repeats something. Where it would change nothing (a flag of a frame lost or doubled, a
        broken byte that is read as the 0 that it was), it happens to the next byte."""
        if fault in (Fault.FLIP, Fault.GLITCH) and not 0 <= detail <= 9:
            raise ValueError(f"detail of a flip or glitch must be in 0..9, not {detail}")
        if fault == Fault.GLITCH and from_device:
            raise ValueError("a glitch can only be on the line to the device")
        self._request(lambda: self._call("arm", int(from_device), int(fault), skip, detail))

    def noise(self, seed, chance):
        """From now on each byte, in both directions, is hit by a flip, a loss or a repetition with probability ``chance``; 0 ends it."""
        if not 0 <= chance < 1:
            raise ValueError(f"chance must be in 0..1, not {chance}")
        self._request(lambda: self._call("noise", seed, int(chance * 2**32)))

    def reset(self):
        """Press the board's reset button."""
        self._request(lambda: self._call("reset", 16))

    def unplug(self):
        """Take the tty away; the board goes on running."""

        def action():
            self._call("connect", -1)
            self._unplug()

        self._request(action)

    def replug(self):
        """Give the board a tty again, under the same name."""

        def action():
            self._plug()
            self._call("connect", self._master)

        self._request(action)

    def close(self):
        """End the simulation; closing twice does nothing."""
        if self._handle is None:
            return
        self._stop.set()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            raise SimulationError(f"the board must end within {CLOSE_SECONDS:g} s, but it did not")
        self._functions["destroy"](self._handle)
        self._handle = None
        self._unplug()
        self._folder.cleanup()
