"""Boards: device, clock and the pins of the serial link."""

from dataclasses import dataclass

__all__ = ["BOARDS", "PREFIX", "Board", "Pin", "board"]

PREFIX = "intaglio"  # of the decoder's modules: a board or a card has one design, and reports are easier to compare under one name

ECP5_DEVICES = ("25k", "45k", "85k", "um-25k", "um-45k", "um-85k", "um5g-25k", "um5g-45k", "um5g-85k")


@dataclass(frozen=True, kw_only=True)
class Pin:
    """Ball of a package, with the attributes of its buffer as pairs of name and value."""

    ball: str
    attributes: tuple = ()


@dataclass(frozen=True, kw_only=True)
class Board:
    """An FPGA board with a serial line to the host.

    Parameters
    ----------
    name, description : str
    device : str
        Option of nextpnr-ecp5 that names the device, without its dashes.
    package, speed : str
        As nextpnr names them.
    clock : Pin, rx : Pin, tx : Pin
        Oscillator, line from the host, line to the host.
    input_hz : int
        Of the oscillator.
    clock_hz : int
        Of the design, made by a PLL.
    baud : int
        Of the serial line; at most a quarter of ``clock_hz``.
    preset : str
        Widths of the decoder.
    high : tuple of (str, Pin)
        Lines by name that the design must hold high, lest something else on the board takes it for silence.

    Raises
    ------
    ValueError
        A parameter is out of range.
    """

    name: str
    description: str
    device: str
    package: str
    speed: str
    clock: Pin
    rx: Pin
    tx: Pin
    input_hz: int
    clock_hz: int = 80_000_000
    baud: int = 2_000_000
    preset: str = "ulx3s"
    high: tuple = ()

    def __post_init__(self) -> None:
        if self.device not in ECP5_DEVICES:
            raise ValueError(f"device must be one of {', '.join(ECP5_DEVICES)}, not {self.device!r}")
        if self.speed not in ("6", "7", "8"):
            raise ValueError(f"speed must be one of 6, 7, 8, not {self.speed!r}")
        for name in ("input_hz", "clock_hz"):
            if not 1_000_000 <= getattr(self, name) <= 400_000_000:
                raise ValueError(f"{name} must be in 1000000..400000000, not {getattr(self, name)!r}")
        if not 0 < self.baud <= self.clock_hz // 4:
            raise ValueError(f"baud must be in 1..clock_hz / 4 = {self.clock_hz // 4}, not {self.baud!r}")


def _from_platform(platform, high=(), **fields):
    """A board with the pins of a platform of amaranth-boards; ``high``: (name, resource, line) of lines to hold high."""
    found = {(resource.name, resource.number): resource for resource in platform.resources}
    uart, clock = found["uart", 0], found[platform.default_clk, 0]
    lines = {line.name: line for line in uart.ios}

    def pin(resource, line, outer=()):
        attributes = {**dict(outer), **resource.attrs, **getattr(line, "attrs", {})}
        (pins,) = [io for io in line.ios] if hasattr(line, "ios") else [line]
        (ball,) = pins.names
        return Pin(ball=ball, attributes=tuple(sorted((key, str(value)) for key, value in attributes.items())))

    (clock_pins,) = clock.ios
    held = tuple(
        (name, pin(found[resource, 0], next(io for io in found[resource, 0].ios if io.name == line)))
        for name, resource, line in high
    )
    return Board(
        clock=pin(clock, clock_pins),
        rx=pin(uart, lines["rx"]),
        tx=pin(uart, lines["tx"]),
        high=held,
        input_hz=round(clock.clock.frequency),
        speed=platform.speed,
        **fields,
    )


def _ulx3s():
    from amaranth_boards.ulx3s import ULX3S_85F_Platform

    # The ESP32 reads its GPIO0 as it starts: low, it waits for a new program or loads another bitstream over this one.
    return _from_platform(
        ULX3S_85F_Platform,
        name="ulx3s",
        description="ULX3S with an LFE5U-85F",
        device="85k",
        package="CABGA381",
        clock_hz=65_000_000,
        high=[("wifi_gpio0", "esp32", "gpio0")],
    )


def _ecpix5():
    from amaranth_boards.ecpix5 import ECPIX585Platform

    return _from_platform(
        ECPIX585Platform,
        name="ecpix5",
        description="ECPIX-5 with an LFE5UM5G-85F",
        device="um5g-85k",
        package="CABGA554",
    )


BOARDS = {"ulx3s": _ulx3s, "ecpix5": _ecpix5}


def board(name: str) -> Board:
    """The board called ``name``.

    Raises
    ------
    ValueError
        There is none.
    ModuleNotFoundError
        amaranth-boards, which knows the pins, is not installed.
    """
    if name not in BOARDS:
        raise ValueError(f"the board must be one of {', '.join(BOARDS)}, not {name!r}")
    return BOARDS[name]()
