"""Tables of logarithms and powers of two in the index unit, pipelined."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.attention import EXP, FRACTION, LOG, LOG_FRACTION, LOG_TABLE
from intaglio.rtl.memory.ram import index_bits

__all__ = ["Logarithm", "Power"]


class Logarithm(wiring.Component):
    """``LOG(n)`` of docs/prefill.md: 4096 log2 n from the most significant bit and the 11 bits below it.

    Parameters
    ----------
    bits : int
        Width of n, 2 at least.

    Members
    -------
    number : In(bits)
        n, 1 at least; the result for 0 means nothing.
    log : Out(12 + bits of the largest msb)

    Latency: :attr:`LATENCY` cycles. Throughput: one a cycle.

    Raises
    ------
    ValueError
        ``bits`` is less than 2.
    """

    LATENCY = 3

    def __init__(self, bits):
        if not isinstance(bits, int) or bits < 2:
            raise ValueError(f"bits must be an integer of at least 2, not {bits!r}")
        self.bits = bits
        super().__init__({"number": In(bits), "log": Out(LOG_FRACTION + index_bits(bits))})

    def elaborate(self, platform):
        m = Module()
        number = Signal(self.bits, reset_less=True)
        top = [Signal(index_bits(self.bits), name=f"top_{stage}", reset_less=True) for stage in range(3)]
        mantissa = Signal(LOG, reset_less=True)
        m.d.sync += [number.eq(self.number), top[0].eq(0), top[1].eq(top[0]), top[2].eq(top[1])]
        for bit in range(1, self.bits):
            with m.If(self.number[bit]):
                m.d.sync += top[0].eq(bit)
        # Shifted left until the msb is at bits - 1 + LOG: the bits below it are then at a fixed place.
        shifted = Cat(Const(0, LOG), number) << (Const(self.bits - 1) - top[0]).as_unsigned()
        m.d.sync += mantissa.eq(shifted[self.bits - 1 : self.bits - 1 + LOG])
        m.submodules.table = table = Memory(shape=LOG_FRACTION, depth=1 << LOG, init=LOG_TABLE)
        port = table.read_port()
        m.d.comb += [port.addr.eq(mantissa), self.log.eq(Cat(port.data, top[2]))]
        return m


class Power(wiring.Component):
    """``EXP(x)`` of docs/prefill.md: ``2^(-x/256)`` with 16 fraction bits, 0 from ``x = 16 * 256`` on.

    Parameters
    ----------
    bits : int
        Width of x, more than 12.

    Members
    -------
    exponent : In(bits)
    power : Out(16)

    Latency: :attr:`LATENCY` cycles. Throughput: one a cycle.

    Raises
    ------
    ValueError
        ``bits`` is 12 or less.
    """

    LATENCY = 2

    def __init__(self, bits):
        if not isinstance(bits, int) or bits <= FRACTION + 4:
            raise ValueError(f"bits must be an integer of at least {FRACTION + 5}, not {bits!r}")
        super().__init__({"exponent": In(bits), "power": Out(16)})

    def elaborate(self, platform):
        m = Module()
        whole, beyond = Signal(4, reset_less=True), Signal(reset_less=True)
        m.submodules.table = table = Memory(shape=16, depth=1 << FRACTION, init=EXP)
        port = table.read_port()
        m.d.comb += port.addr.eq(self.exponent[:FRACTION])
        m.d.sync += [
            whole.eq(self.exponent[FRACTION : FRACTION + 4]),
            beyond.eq(self.exponent[FRACTION + 4 :].any()),
            self.power.eq(Mux(beyond, 0, port.data >> whole)),
        ]
        return m
