"""Scalar ALU: sequential arithmetic on unsigned scalar floats, the hardware twin of :class:`intaglio.rtl.numerics.Scalar`."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["AluOp", "ScalarAlu", "ScalarLayout", "bit_length"]

ScalarLayout = data.StructLayout({"m": 16, "e": signed(10)})


class AluOp(enum.Enum, shape=3):
    INT = 0   # integer ``n`` times 2^e of a
    MUL = 1
    DIV = 2
    ADD = 3
    SQRT = 4
    COPY = 5  # a times 2^shift, zero stays zero


def bit_length(m, value, name):
    """Bit length of an unsigned value as a combinational signal: a tree of halves."""
    width = len(value)
    if width == 1:
        return value
    half = 1 << (width - 1).bit_length() - 1
    low, high = bit_length(m, value[:half], f"{name}_l"), bit_length(m, value[half:], f"{name}_h")
    out = Signal(range(width + 1), name=name)
    m.d.comb += out.eq(Mux(value[half:].any(), high + half, low))
    return out


class ScalarAlu(wiring.Component):
    """One operation at a time: ``start`` with operands, ``done`` for one cycle with the result.

    Parameters
    ----------
    int_bits : int
        Width of the integer operand.

    Members
    -------
    op, a, b, n, shift : operands, held from ``start`` until ``done``; ``shift`` (signed, 10 bits) serves COPY and INT, which
        take it in the cycle after ``start``.
    start : strobe, only when no operation is under way, ``done`` included.
    done, o : result, valid while ``done``.

    Latency
    -------
    From ``start`` to ``done``: :data:`ScalarAlu.LATENCY` cycles, by operation.
    """

    LATENCY = {AluOp.INT: 2, AluOp.MUL: 2, AluOp.DIV: 10, AluOp.ADD: 2, AluOp.SQRT: 10, AluOp.COPY: 2}

    def __init__(self, int_bits):
        self.int_bits = int_bits
        super().__init__({
            "op": In(AluOp), "start": In(1), "a": In(ScalarLayout), "b": In(ScalarLayout), "n": In(int_bits),
            "shift": In(signed(10)), "done": Out(1), "o": Out(ScalarLayout),
        })

    def elaborate(self, platform):
        m = Module()
        # The operands come through the register file's multiplexers and from other units.
        a, b, n, shift = (Signal.like(getattr(self, name), name=f"{name}_held") for name in ("a", "b", "n", "shift"))
        m.d.sync += [a.eq(self.a), b.eq(self.b), n.eq(self.n), shift.eq(self.shift)]
        a_zero, b_zero = Signal(), Signal()
        m.d.comb += [a_zero.eq(a.m == 0), b_zero.eq(b.m == 0)]

        # INT: the top 16 bits of n
        length = bit_length(m, n, "n_bits")
        n_bits = Signal.like(length)
        m.d.sync += n_bits.eq(length)
        padded = Signal(self.int_bits + 16)
        m.d.comb += padded.eq(Cat(Const(0, 16), n) >> n_bits)  # n << 16 >> bits: top bit lands at bit 15

        # MUL
        product = Signal(32)
        m.d.sync += product.eq(a.m * b.m)

        # ADD
        swap, gap = Signal(), Signal(signed(11))
        big, small = Signal(ScalarLayout), Signal(16)
        m.d.comb += swap.eq(b.e > a.e)
        m.d.comb += gap.eq(Mux(swap, b.e - a.e, a.e - b.e))
        total = Signal(17)
        m.d.sync += [
            big.m.eq(Mux(swap, b.m, a.m)),
            big.e.eq(Mux(swap, b.e, a.e)),
            small.eq(Mux(gap > 15, 0, Mux(swap, a.m, b.m) >> gap[:4])),
        ]
        m.d.comb += total.eq(big.m + small)

        # DIV: restoring, 2 quotient bits a cycle, after one for the leading bit
        remainder, quotient, count = Signal(18), Signal(18), Signal(4)
        rest, bits = remainder, []
        for step in range(2):
            shifted = Signal(18, name=f"shifted_{step}")
            fits = Signal(name=f"fits_{step}")
            left = Signal(17, name=f"left_{step}")
            m.d.comb += [shifted.eq(rest << 1), fits.eq(shifted >= b.m), left.eq(Mux(fits, shifted - b.m, shifted))]
            rest = left
            bits.append(fits)

        # SQRT: digit by digit, 2 root bits a cycle
        radicand, root, error = Signal(32), Signal(16), Signal(18)
        r_rest, r_root, r_in = error, root, radicand
        for step in range(2):
            trial = Signal(20, name=f"trial_{step}")
            more = Signal(20, name=f"more_{step}")
            fits = Signal(name=f"root_bit_{step}")
            n_rest, n_root, n_in = (Signal(18, name=f"r_rest_{step}"), Signal(16, name=f"r_root_{step}"),
                                    Signal(32, name=f"r_in_{step}"))
            m.d.comb += [
                more.eq(Cat(r_in[30:32], r_rest)),
                trial.eq(Cat(Const(1, 2), r_root)),
                fits.eq(more >= trial),
                n_rest.eq(Mux(fits, more - trial, more)),
                n_root.eq(Cat(fits, r_root)),
                n_in.eq(Cat(Const(0, 2), r_in)),
            ]
            r_rest, r_root, r_in = n_rest, n_root, n_in

        odd = Signal()
        m.d.comb += odd.eq(a.e[0])
        with m.FSM(name="state") as fsm:
            m.d.comb += self.done.eq(fsm.ongoing("FINISH"))
            with m.State("IDLE"):
                with m.If(self.start):
                    m.next = "FIRST"
            with m.State("FIRST"):
                # first difference of the division: quotient bit of weight 2^16
                m.d.sync += [count.eq(0), remainder.eq(Mux(a.m >= b.m, a.m - b.m, a.m)), quotient.eq(a.m >= b.m)]
                m.d.sync += [radicand.eq(Mux(odd, a.m << 15, a.m << 16)), root.eq(0), error.eq(0)]
                with m.Switch(self.op):
                    with m.Case(AluOp.DIV):
                        m.next = "DIV"
                    with m.Case(AluOp.SQRT):
                        m.next = "SQRT"
                    with m.Default():
                        m.next = "FINISH"
            with m.State("DIV"):
                m.d.sync += [remainder.eq(rest), quotient.eq(Cat(bits[1], bits[0], quotient)), count.eq(count + 1)]
                with m.If(count == 7):
                    m.next = "FINISH"
            with m.State("SQRT"):
                m.d.sync += [radicand.eq(r_in), root.eq(r_root), error.eq(r_rest), count.eq(count + 1)]
                with m.If(count == 7):
                    m.next = "FINISH"
            with m.State("FINISH"):
                m.next = "IDLE"
                with m.Switch(self.op):
                    with m.Case(AluOp.INT):
                        with m.If(n_bits != 0):
                            m.d.comb += [self.o.m.eq(padded), self.o.e.eq(n_bits - 16 + shift)]
                        with m.Else():
                            m.d.comb += [self.o.m.eq(0), self.o.e.eq(0)]
                    with m.Case(AluOp.COPY):
                        m.d.comb += [self.o.m.eq(a.m), self.o.e.eq(Mux(a_zero, a.e, a.e + shift))]
                    with m.Case(AluOp.MUL):
                        m.d.comb += [
                            self.o.m.eq(Mux(product[31], product[16:], product[15:])),
                            self.o.e.eq(a.e + b.e + Mux(product[31], 16, 15)),
                        ]
                        with m.If(a_zero | b_zero):
                            m.d.comb += [self.o.m.eq(0), self.o.e.eq(0)]
                    with m.Case(AluOp.DIV):
                        m.d.comb += [
                            self.o.m.eq(Mux(quotient[16], quotient[1:], quotient)),
                            self.o.e.eq(a.e - b.e - Mux(quotient[16], 15, 16)),
                        ]
                        with m.If(a_zero | b_zero):
                            m.d.comb += [self.o.m.eq(0), self.o.e.eq(0)]
                    with m.Case(AluOp.ADD):
                        m.d.comb += [
                            self.o.m.eq(Mux(total[16], total[1:], total)),
                            self.o.e.eq(big.e + total[16]),
                        ]
                        with m.If(b_zero):
                            m.d.comb += self.o.eq(a)
                        with m.Elif(a_zero):
                            m.d.comb += self.o.eq(b)
                    with m.Case(AluOp.SQRT):
                        m.d.comb += [self.o.m.eq(root), self.o.e.eq((a.e - 16 + odd) >> 1)]
                        with m.If(a_zero):
                            m.d.comb += self.o.eq(a)
        return m
