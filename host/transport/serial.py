"""The transport ``serial:PORT?baud=N&manifest=PATH``: a board behind a serial port (pyserial), and the list of ports."""

import errno
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from intaglio import Error
from intaglio.host.manifest import read_json
from intaglio.host.protocol import DeviceError, DeviceTimeout
from intaglio.host.transport import options_of
from intaglio.host.transport.link import LinkTransport
from intaglio.host.transport.session import LinkLost, begin_session

__all__ = ["Port", "SerialChannel", "delay", "open_serial", "ports", "probe"]

DEFAULT_BAUD = 1_000_000
WRITE_SECONDS, POLL_SECONDS, PROBE_SECONDS = 5.0, 0.01, 0.6
CONVERTERS = Path("/sys/bus/usb-serial/devices")  # of Linux
FTDI = 0x0403  # the maker of the converters that hold bytes back


def _pyserial():
    try:
        import serial
        import serial.tools.list_ports
    except ModuleNotFoundError as fault:
        raise Error("serial ports need pyserial: pip install 'intaglio[serial]'") from fault
    return serial


def open_serial(rest, *, manifest=None, progress=None, accept=None):
    """Open the board at ``PORT?baud=N&manifest=PATH``; the entry point of the scheme ``serial``.

    Parameters
    ----------
    rest : str
        ``baud`` defaults to what the manifest's ``link`` states, else 1,000,000. ``manifest`` is that of the board's bitstream.
    manifest : str or Path or None
        In place of the target's.
    progress : None
        Not used.
    accept : callable or None
        Called with the manifest before the port is opened.

    Raises
    ------
    Error, ValueError, DeviceError
    """
    port, options = options_of(rest, {"baud": int, "manifest": str})
    manifest = manifest or options.get("manifest")
    if manifest is None:
        raise ValueError(
            f"a serial target needs the manifest of the board's bitstream: serial:{port}?manifest=PATH, or --manifest PATH"
        )
    described = read_json(manifest)
    if not isinstance(described, dict) or len(str(described.get("digest"))) != 64:
        raise ValueError(f"the manifest {manifest} must state a digest of 64 hexadecimal digits")
    if accept is not None:
        accept(described)
    link = described.get("link") or {}
    return LinkTransport(SerialChannel(port, options.get("baud", link.get("baud", DEFAULT_BAUD))), described)


class SerialChannel:
    """Bytes over a serial port, which nobody else may have open.

    Raises
    ------
    DeviceError
        The port cannot be opened; the message says what to do.
    ValueError
    """

    def __init__(self, port, baud):
        if not 300 <= baud <= 50_000_000:
            raise ValueError(f"baud must be in 300..50,000,000, not {baud}")
        serial = _pyserial()
        self.name, self._fault = port, serial.SerialException
        try:
            self._port = serial.Serial(port, baud, timeout=POLL_SECONDS, write_timeout=WRITE_SECONDS, exclusive=True)
        except (serial.SerialException, OSError, ValueError) as fault:
            raise DeviceError(_advice(port, baud, fault)) from fault
        self._late = serial.SerialTimeoutException
        with suppress(
            AttributeError, ValueError, OSError
        ):  # not on every system, and not for every port; see :func:`delay`
            self._port.set_low_latency_mode(True)
        self._port.reset_input_buffer()

    def read(self, seconds) -> bytes:
        end = time.monotonic() + seconds
        try:
            while True:
                data = self._port.read(1)  # waits POLL_SECONDS at most
                if data:
                    return data + self._port.read(self._port.in_waiting)
                if time.monotonic() >= end:
                    return b""
        except (self._fault, OSError, TypeError) as fault:  # TypeError: pyserial, when the port is closed meanwhile
            raise self._gone(fault) from fault

    def write(self, data):
        try:
            self._port.write(data)
        except self._late as fault:
            raise DeviceTimeout(
                f"the serial port {self.name} must take {len(data)} bytes within {WRITE_SECONDS:g} s, but it did not"
            ) from fault
        except (self._fault, OSError, TypeError) as fault:
            raise self._gone(fault) from fault

    def _gone(self, fault):
        return LinkLost(
            f"the serial port {self.name} has gone ({fault}): was the board unplugged? Plug it in and open it again"
        )

    def close(self):
        self._port.close()


def _advice(port, baud, fault):
    """What went wrong when a port was opened, and the way out."""
    number, text = getattr(fault, "errno", None), str(fault)
    found = {entry.port: entry for entry in ports()}
    if number == errno.EACCES or "ermission denied" in text:
        entry = found.get(port)
        vendor, product = (
            (f"{entry.vendor:04x}", f"{entry.product:04x}") if entry and entry.vendor is not None else ("0403", "6015")
        )
        rule = f'SUBSYSTEM=="tty", ATTRS{{idVendor}}=="{vendor}", ATTRS{{idProduct}}=="{product}", TAG+="uaccess"'
        return (
            f"no permission to open {port}. Add the line {rule} to /etc/udev/rules.d/70-intaglio.rules, run `sudo udevadm control "
            "--reload` and plug the board in again; or join the port's group (`sudo usermod -aG dialout $USER`) and log in again"
        )
    if number in (errno.EBUSY, errno.EAGAIN, errno.EWOULDBLOCK) or "exclusively lock" in text:
        return (
            f"the serial port {port} is busy: another program has it open; close that one (`fuser {port}` tells which)"
        )
    if (
        number in (errno.ENOENT, errno.ENODEV, errno.ENXIO) or number is None and "FileNotFoundError" in text
    ):  # Windows has no number
        there = ", ".join(found) or "none"
        return f"there is no serial port {port}; ports found: {there}. Is the board plugged in and powered?"
    return f"the serial port {port} cannot be opened at {baud} baud: {text}"


@dataclass(frozen=True, kw_only=True)
class Port:
    """A serial port of this computer; vendor and product are USB numbers, or None."""

    port: str
    description: str
    vendor: int | None
    product: int | None


def ports() -> list:
    """The serial ports of this computer that have a device, as :class:`Port`."""
    found = _pyserial().tools.list_ports.comports()
    return [
        Port(
            port=entry.device,
            description="" if entry.description == "n/a" else entry.description,
            vendor=entry.vid,
            product=entry.pid,
        )
        for entry in sorted(found, key=lambda entry: entry.device)
    ]


def delay(port) -> str | None:
    """What to do about a converter that holds bytes back for long although the port has been opened, which asks it not to; else None.

    Parameters
    ----------
    port : Port
    """
    if not sys.platform.startswith("linux"):
        return (
            None
            if port.vendor != FTDI
            else (
                "the converter's latency timer cannot be set from here, answers may wait for up to 16 ms: "
                "set it to 1 ms in the settings of its driver"
            )
        )
    timer = CONVERTERS / Path(port.port).resolve().name / "latency_timer"
    try:
        milliseconds = int(timer.read_text())
    except (OSError, ValueError):
        return None  # not such a converter
    return (
        None
        if milliseconds <= 1
        else (
            f"the converter's latency timer could not be set, answers wait for up to {milliseconds} ms: "
            f"`echo 1 | sudo tee {timer}`"
        )
    )


def probe(port, baud, seconds=PROBE_SECONDS):
    """The first word of the digest of the device at ``port``; it is reset by being asked.

    Raises
    ------
    DeviceError
    """
    channel = SerialChannel(port, baud)
    try:
        return begin_session(channel, limit=seconds).digest
    finally:
        channel.close()
