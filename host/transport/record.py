"""The transports ``record:FILE?target=TARGET`` and ``replay:FILE``: traffic with a device in a file, and again without the device.

A recording has one JSON object a line: first what was recorded and the manifest, then each call with its arguments and what came of it,
in order. Words are eight hexadecimal digits, a dot after the last of a packet; bytes of memory are in base 64. A replay answers as the
device did, and refuses other calls.
"""

import base64
import json

import numpy as np
import numpy.typing as npt

from intaglio.files import check_output
from intaglio.host.protocol import ConfigMismatchError, DeviceError, DeviceTimeout
from intaglio.host.transport import open_transport
from intaglio.host.transport.session import LinkLost

__all__ = ["FORMAT", "Recorder", "Replayer", "open_record", "open_replay"]

FORMAT, FORMAT_VERSION = "intaglio-recording", 1
ARGUMENTS = ("call", "words", "capacity", "offset", "written", "address", "bytes", "length")
FAULTS = {kind.__name__: kind for kind in (DeviceError, DeviceTimeout, ConfigMismatchError, LinkLost)}


def open_record(rest, *, manifest=None, progress=None, accept=None, **options):
    """Open another target and record the traffic; the entry point of the scheme ``record``.

    Parameters
    ----------
    rest : str
        ``FILE?target=TARGET``; everything after ``target=`` is the target, with its own options.
    manifest, progress, accept, options
        For the target.

    Raises
    ------
    ValueError
        There is no target, or what its transport raises.
    Error
        The file cannot be written.
    """
    path, found, target = rest.partition("?target=")
    if not found or not path or not target:
        raise ValueError(f"a recording must name its target, record:FILE?target=SCHEME:REST, not {rest!r}")
    check_output(path, "a recording")
    transport = open_transport(target, manifest=manifest, progress=progress, accept=accept, **options)
    try:
        return Recorder(transport, path, target)
    except BaseException:
        transport.close()
        raise


def open_replay(rest, *, manifest=None, progress=None):
    """Open the recording in the file ``rest``; the entry point of the scheme ``replay``.

    Raises
    ------
    DeviceError
        The file is not a recording.
    """
    if manifest is not None:
        raise ValueError("the transport 'replay' takes no manifest: the recording has its own")
    return Replayer(rest)


def _text(words, last):
    pairs = zip(np.asarray(words).tolist(), np.asarray(last).tolist(), strict=True)
    return " ".join(f"{word:08x}{'.' if end else ''}" for word, end in pairs)


def _words(text):
    found = text.split()
    return np.array([int(word.rstrip("."), 16) for word in found], np.uint32), np.array(
        [word.endswith(".") for word in found], bool
    )


def _base64(data):
    return base64.b64encode(np.ascontiguousarray(data, np.uint8)).decode()


class Recorder:
    """A transport that passes everything on and writes it down; lines are complete, whatever ends the process."""

    def __init__(self, transport, path, target):
        self.transport, self.manifest = transport, transport.manifest
        try:
            self._file = open(path, "w", encoding="utf-8", buffering=1)
        except OSError as fault:
            raise DeviceError(f"the recording {path} cannot be written: {fault.strerror or fault}") from fault
        self._line({"format": FORMAT, "format_version": FORMAT_VERSION, "target": target, "manifest": self.manifest})

    def _line(self, row):
        self._file.write(json.dumps(row) + "\n")

    def _call(self, row, action, result):
        """Do ``action`` and write ``row`` with its result, in the form that the function ``result`` gives it, or its fault."""
        try:
            value = action()
        except Exception as fault:
            kind = next((name for name, kind in reversed(FAULTS.items()) if isinstance(fault, kind)), None)
            self._line({**row, "fault": kind or "DeviceError", "message": str(fault)})
            raise
        self._line({**row, **result(value), "pending": self.pending, "cycles": self.cycles})
        return value

    @property
    def pending(self):
        return self.transport.pending

    @property
    def cycles(self):
        return self.transport.cycles

    @property
    def watch(self):
        return getattr(self.transport, "watch", None)

    @watch.setter
    def watch(self, call):
        self.transport.watch = call

    def send(self, words, last, timeout):
        return self._call(
            {"call": "send", "words": _text(words, last)},
            lambda: self.transport.send(words, last, timeout),
            lambda count: {"count": int(count)},
        )

    def receive(self, capacity, timeout):
        return self._call(
            {"call": "receive", "capacity": int(capacity)},
            lambda: self.transport.receive(capacity, timeout),
            lambda got: {"result": _text(*got)},
        )

    def read_register(self, offset):
        return self._call(
            {"call": "read", "offset": int(offset)},
            lambda: self.transport.read_register(offset),
            lambda value: {"value": int(value)},
        )

    def write_register(self, offset, value):
        self._call(
            {"call": "write", "offset": int(offset), "written": int(value)},
            lambda: self.transport.write_register(offset, value),
            lambda _: {},
        )

    def write_memory(self, address: int, data: npt.NDArray[np.uint8]) -> None:
        self._call(
            {"call": "write_memory", "address": int(address), "bytes": _base64(data)},
            lambda: self.transport.write_memory(address, data),
            lambda _: {},
        )

    def read_memory(self, address: int, length: int) -> npt.NDArray[np.uint8]:
        return self._call(
            {"call": "read_memory", "address": int(address), "length": int(length)},
            lambda: self.transport.read_memory(address, length),
            lambda data: {"data": _base64(data)},
        )

    def reset(self):
        self._call({"call": "reset"}, self.transport.reset, lambda _: {})

    def close(self):
        self._file.close()
        self.transport.close()


class Replayer:
    """A recording as a transport."""

    def __init__(self, path):
        self._path, self._at, self._closed, self.watch = path, 0, False, None
        try:
            with open(path, encoding="utf-8") as file:
                head, *self._rows = [json.loads(line) for line in file if line.endswith("\n")]
            if head.get("format") != FORMAT or head.get("format_version") != FORMAT_VERSION:
                raise ValueError(f"its first line must be of format {FORMAT!r} {FORMAT_VERSION}")
            self.manifest = head["manifest"]
        except OSError as fault:
            raise DeviceError(f"the recording {path} cannot be read: {fault.strerror or fault}") from fault
        except (ValueError, KeyError, AttributeError, TypeError) as fault:
            raise DeviceError(f"{path} is not a recording: {fault}") from fault
        self.pending, self.cycles = 0, next((row["cycles"] for row in self._rows if "cycles" in row), None)

    def _call(self, **call):
        if self._closed:
            raise DeviceError("the transport is closed")
        if self._at == len(self._rows):
            raise DeviceError(
                f"the recording {self._path} ends after {self._at} calls, and the next one is {_show(call)}"
            )
        row = self._rows[self._at]
        if any(row.get(name) != value for name, value in call.items()):
            recorded = {name: row[name] for name in ARGUMENTS if name in row}
            raise DeviceError(
                f"call {self._at + 1} of the recording {self._path} is {_show(recorded)}, not {_show(call)}"
            )
        self._at += 1
        if "fault" in row:
            raise FAULTS.get(row["fault"], DeviceError)(row.get("message", ""))
        self.pending, self.cycles = row.get("pending", 0), row.get("cycles")
        return row

    @property
    def left(self) -> int:
        """Calls that have not been replayed yet."""
        return len(self._rows) - self._at

    def send(self, words, last, timeout):
        return self._call(call="send", words=_text(words, last))["count"]

    def receive(self, capacity, timeout):
        return _words(self._call(call="receive", capacity=int(capacity))["result"])

    def read_register(self, offset):
        return self._call(call="read", offset=int(offset))["value"]

    def write_register(self, offset, value):
        self._call(call="write", offset=int(offset), written=int(value))

    def write_memory(self, address: int, data: npt.NDArray[np.uint8]) -> None:
        self._call(call="write_memory", address=int(address), bytes=_base64(data))

    def read_memory(self, address: int, length: int) -> npt.NDArray[np.uint8]:
        data = self._call(call="read_memory", address=int(address), length=int(length))["data"]
        return np.frombuffer(base64.b64decode(data), np.uint8).copy()

    def reset(self):
        self._call(call="reset")

    def close(self):
        self._closed = True


def _show(call):
    texts = {name: text if len(text := str(value)) <= 60 else f"{text[:60]}..." for name, value in call.items()}
    return " ".join(text if name == "call" else f"{name}={text}" for name, text in texts.items())
