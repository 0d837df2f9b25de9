"""Verilog of a board's top: a generated decoder behind a UART (docs/link.md)."""

from collections.abc import Mapping
from typing import Any

from intaglio import Error
from intaglio.gen.emit.verilog import convert
from intaglio.rtl.link.buffer import BUFFER_MODULE, BUFFER_VERILOG, check_depth
from intaglio.rtl.link.top import SerialDevice
from intaglio.rtl.link.uart import uart_divisor

__all__ = ["SERIAL_TOP", "serial_verilog"]

SERIAL_TOP = "intaglio_serial"


def serial_verilog(manifest: Mapping[str, Any], *, clock_hz: int, baud: int, depth: int = 32) -> dict[str, str]:
    """Modules of the serial top around the decoder of ``manifest`` as a dict of name to Verilog, the top first.

    Its ports are ``clk``, ``rst`` (synchronous, active high), ``rx`` and ``tx``; the decoder's own modules are not included.

    Parameters
    ----------
    manifest : dict
    clock_hz, baud, depth
        See :class:`~intaglio.rtl.link.top.SerialDevice`.

    Raises
    ------
    Error
        The manifest lacks something.
    ValueError
    """
    try:
        top, digest = str(manifest["top"]), int(manifest["digest"][:8], 16)
    except (KeyError, TypeError, ValueError) as fault:
        raise Error(f"a manifest must have a top and a digest ({fault!r})") from fault
    uart_divisor(clock_hz, baud)  # before anything is made
    check_depth(depth)
    device = SerialDevice(top, digest, clock_hz=clock_hz, baud=baud, depth=depth)
    return convert(device, SERIAL_TOP, {"rx": (device.rx, None), "tx": (device.tx, None)}) | {
        BUFFER_MODULE: BUFFER_VERILOG
    }
