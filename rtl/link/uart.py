"""UART, 8 data bits, no parity, one stop bit: receiver and transmitter at a fixed number of clock cycles a bit."""

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

__all__ = ["UartReceiver", "UartTransmitter", "uart_divisor"]

MAX_ERROR = 0.02  # of the baud rate: sampling in mid-bit bears about 0.05 between both ends, and the other end has its own error
MIN_DIVISOR, MAX_DIVISOR = 4, 0xFFFF


def uart_divisor(clock_hz, baud) -> int:
    """Clock cycles a bit, the nearest integer to ``clock_hz / baud``.

    Raises
    ------
    ValueError
        It is not in 4..65535, or the rate that it gives differs from ``baud`` by more than 2 %.
    """
    if clock_hz <= 0 or baud <= 0:
        raise ValueError(f"clock_hz and baud must be positive, not {clock_hz} and {baud}")
    divisor = round(clock_hz / baud)
    if not MIN_DIVISOR <= divisor <= MAX_DIVISOR:
        raise ValueError(f"clock_hz / baud must be in {MIN_DIVISOR}..{MAX_DIVISOR}, not {clock_hz / baud:.4g}")
    error = abs(clock_hz / divisor / baud - 1)
    if error > MAX_ERROR:
        raise ValueError(
            f"baud must be within {MAX_ERROR:.0%} of clock_hz / {divisor} = {clock_hz / divisor:.0f}, not {baud}"
        )
    return divisor


def _check(divisor):
    if not isinstance(divisor, int) or not MIN_DIVISOR <= divisor <= MAX_DIVISOR:
        raise ValueError(f"divisor must be an integer in {MIN_DIVISOR}..{MAX_DIVISOR}, not {divisor!r}")


class UartReceiver(wiring.Component):
    """Bytes from a line.

    The line is synchronised and sampled every cycle; the level is the majority of three samples, so that a disturbance of one
    cycle is not seen. A start bit must still be low in its middle; bits are taken in their middles.

    Parameters
    ----------
    divisor : int
        Clock cycles a bit, 4 to 65535.

    Members
    -------
    rx : In(1)
        The line, asynchronous, high when idle.
    o : Out(stream of 8 bits)
        A byte waits until it is taken or the next one overwrites it, ``10 * divisor`` cycles later at the earliest.
    error : Out(1)
        A register, high for one cycle when a byte was lost: its stop bit was low (the line must rise before the next start), or it was
        overwritten; then in the first cycle of the byte that overwrote it.

    Latency
    -------
    ``valid`` rises ``9.5 * divisor`` cycles, rounded down, plus 5 after the edge of the start bit.
    """

    def __init__(self, divisor):
        _check(divisor)
        self.divisor = divisor
        super().__init__({"rx": In(1, init=1), "o": Out(stream.Signature(8)), "error": Out(1)})

    def elaborate(self, platform):
        m = Module()
        line = Signal(init=1)
        m.submodules.synchroniser = FFSynchronizer(self.rx, line, init=1)
        samples, level = Signal(3, init=7), Signal(init=1)
        m.d.sync += samples.eq(Cat(line, samples[:2]))
        m.d.comb += level.eq((samples[0] & samples[1]) | (samples[0] & samples[2]) | (samples[1] & samples[2]))
        timer, bits, shift = Signal(range(self.divisor)), Signal(range(8)), Signal(8)
        due = Signal()  # the timer is at 0
        m.d.sync += [timer.eq(timer - 1), due.eq(timer == 1), self.error.eq(0)]
        with m.If(due):
            m.d.sync += timer.eq(self.divisor - 1)
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.FSM(name="state"):
            with m.State("IDLE"):
                m.d.sync += [timer.eq(self.divisor // 2 - 1), due.eq(0)]
                with m.If(~level):
                    m.next = "START"
            with m.State("START"):
                with m.If(due):
                    m.next = "BITS"
                    with m.If(level):
                        m.next = "IDLE"
            with m.State("BITS"):
                with m.If(due):
                    m.d.sync += [shift.eq(Cat(shift[1:], level)), bits.eq(bits + 1)]
                    with m.If(bits == 7):
                        m.next = "STOP"
            with m.State("STOP"):
                with m.If(due):
                    m.next = "IDLE"
                    with m.If(level):
                        m.d.sync += [
                            self.error.eq(self.o.valid & ~self.o.ready),
                            self.o.payload.eq(shift),
                            self.o.valid.eq(1),
                        ]
                    with m.Else():
                        m.d.sync += self.error.eq(1)
                        m.next = "BREAK"
            with m.State("BREAK"):
                with m.If(level):
                    m.next = "IDLE"
        return m


class UartTransmitter(wiring.Component):
    """Bytes to a line.

    Parameters
    ----------
    divisor : int
        Clock cycles a bit, 4 to 65535.

    Members
    -------
    i : In(stream of 8 bits)
        ``ready`` is a register.
    tx : Out(1)
        The line, a register, high when idle.

    Throughput: a byte in ``10 * divisor`` cycles, without a gap when bytes are waiting.
    Latency: the start bit begins one cycle after the byte is taken.
    """

    def __init__(self, divisor):
        _check(divisor)
        self.divisor = divisor
        super().__init__({"i": In(stream.Signature(8)), "tx": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        timer, bits, shift = Signal(range(self.divisor)), Signal(range(11)), Signal(9, init=0x1FF)
        due, ready = Signal(), Signal(init=1)  # the timer is at 0; no bits are left, or the last is in its last cycle
        m.d.comb += self.i.ready.eq(ready)
        m.d.sync += [
            timer.eq(timer - 1),
            due.eq(timer == 1),
            ready.eq((bits == 0) | ((bits == 1) & (due | (timer == 1)))),
        ]
        with m.If(self.i.valid & ready):
            m.d.sync += [
                Cat(self.tx, shift).eq(Cat(Const(0, 1), self.i.payload, Const(1, 1))),
                bits.eq(10),
                timer.eq(self.divisor - 1),
                due.eq(0),
                ready.eq(0),
            ]
        with m.Elif(due & (bits != 0)):
            m.d.sync += [Cat(self.tx, shift).eq(Cat(shift, Const(1, 1))), bits.eq(bits - 1), timer.eq(self.divisor - 1)]
        return m
