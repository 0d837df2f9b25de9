"""Scalar ALU: sequential arithmetic on unsigned scalar floats, the hardware twin of :class:`intaglio.rtl.arithmetic.numerics.Scalar`."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["AluOp", "ScalarAlu", "ScalarLayout", "bit_length", "two_steps"]

ScalarLayout = data.StructLayout({"m": 16, "e": signed(10)})


class AluOp(enum.Enum, shape=3):
    INT = 0  # integer ``n`` times 2^e of a
    MUL = 1
    DIV = 2
    ADD = 3
    SQRT = 4
    COPY = 5  # a times 2^shift, zero stays zero


def bit_length(m, value, name):
    """Bit length of an unsigned value as a combinational signal: of 16 bits at a time, side by side."""
    parts = [value[at : at + 16] for at in range(0, len(value), 16)]
    out = None
    for i, part in enumerate(parts):
        length = Signal(5, name=f"{name}_{i}")
        with m.Switch(part):
            for bits in range(len(part), 0, -1):
                with m.Case("0" * (len(part) - bits) + "1" + "-" * (bits - 1)):
                    m.d.comb += length.eq(bits)
        whole = Cat(length[:4], Mux(length[4], i + 1, Const(i, range(len(parts) + 1))))
        out = whole if out is None else Mux(part.any(), whole, out)
    return out[: len(value).bit_length()]


def two_steps(m, shifted, denominator, triple, name):
    """Two steps of a restoring division at once: the denominator is subtracted once, twice and three times side by side.

    Parameters
    ----------
    shifted : Value
        The remainder with the next two bits of the numerator, below four times the denominator.
    denominator, triple : Value
        It, and three times it.

    Returns
    -------
    Value, list : the new remainder, of the denominator's width; quotient bits, low first.
    """
    differences = []
    for times, multiple in enumerate((denominator, denominator << 1, triple), start=1):
        difference = Signal(len(denominator) + 3, name=f"{name}_{times}")
        m.d.comb += difference.eq(shifted - multiple)
        differences.append(difference)
    one, two, three = (~difference[-1] for difference in differences)
    remainder = Mux(two, Mux(three, differences[2], differences[1]), Mux(one, differences[0], shifted))
    return remainder[: len(denominator)], [Mux(two, three, one), two]


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
        super().__init__(
            {
                "op": In(AluOp),
                "start": In(1),
                "a": In(ScalarLayout),
                "b": In(ScalarLayout),
                "n": In(int_bits),
                "shift": In(signed(10)),
                "done": Out(1),
                "o": Out(ScalarLayout),
            }
        )

    def elaborate(self, platform):
        m = Module()
        # The operands come through the register file's multiplexers and from other units.
        a, b, n, shift = (Signal.like(getattr(self, name), name=f"{name}_held") for name in ("a", "b", "n", "shift"))
        m.d.sync += [a.eq(self.a), b.eq(self.b), n.eq(self.n), shift.eq(self.shift)]
        a_none, b_none = a.m == 0, b.m == 0
        a_zero, b_zero, n_zero = Signal(), Signal(), Signal()
        m.d.sync += [a_zero.eq(a_none), b_zero.eq(b_none), n_zero.eq(n == 0)]

        of = {op: Signal(name=f"of_{op.name.lower()}") for op in AluOp}
        m.d.sync += [signal.eq(self.op == op) for op, signal in of.items()]

        # INT: the top 16 bits of n
        length = bit_length(m, n, "n_bits")
        n_bits = Signal.like(length)
        m.d.sync += n_bits.eq(length)
        n_less = Cat(n_bits[:4], n_bits[4:] - 1).as_signed()  # n_bits - 16
        top = (Cat(Const(0, 16), n) >> n_bits)[:16]  # n << 16 >> bits: top bit lands at bit 15

        # MUL
        product = Signal(32)
        m.d.sync += product.eq(a.m * b.m)

        # ADD
        swap, over, under = Signal(), Signal(signed(11)), Signal(signed(11))
        big, small = Signal(ScalarLayout), Signal(16)
        m.d.comb += [over.eq(a.e - b.e), under.eq(b.e - a.e), swap.eq((over[-1] | a_none) & ~b_none)]
        total = Signal(17)
        m.d.sync += [
            big.m.eq(Mux(swap, b.m, a.m)),
            big.e.eq(Mux(swap, b.e, a.e)),
            small.eq(
                Mux(
                    over[-1],
                    Mux(under[4:].any() | b_none, 0, a.m >> under[:4]),
                    Mux(over[4:].any() | a_none, 0, b.m >> over[:4]),
                )
            ),
        ]
        m.d.comb += total.eq(big.m + small)

        # DIV: restoring, 2 quotient bits a cycle, after one for the leading bit
        remainder, quotient, count, triple = Signal(16), Signal(18), Signal(4), Signal(18)
        m.d.sync += triple.eq((b.m << 1) + b.m)
        rest, bits = two_steps(m, remainder << 2, b.m, triple, "left")

        # SQRT: digit by digit, 2 root bits a cycle
        radicand, root, error = Signal(32), Signal(16), Signal(18)
        r_rest, r_root, r_in = error, root, radicand
        for step in range(2):
            trial = Signal(20, name=f"trial_{step}")
            more = Signal(20, name=f"more_{step}")
            fits = Signal(name=f"root_bit_{step}")
            n_rest, n_root, n_in = (
                Signal(18, name=f"r_rest_{step}"),
                Signal(16, name=f"r_root_{step}"),
                Signal(32, name=f"r_in_{step}"),
            )
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
        # Exponent of all but INT and COPY, to which the last step adds one at most.
        base, up, carried = Signal(signed(10)), Signal(signed(10)), Signal()
        with m.If(of[AluOp.MUL]):
            m.d.sync += base.eq(a.e + b.e + 15)
        with m.Elif(of[AluOp.DIV]):
            m.d.sync += base.eq(a.e - b.e - 16)
        with m.Elif(of[AluOp.ADD]):
            m.d.sync += base.eq(Mux(swap, b.e, a.e))
        with m.Else():
            m.d.sync += base.eq(Mux(a_zero, a.e, ((a.e >> 1) + odd) - 8))
        m.d.comb += [
            up.eq(base + 1),
            carried.eq((of[AluOp.MUL] & product[31]) | (of[AluOp.DIV] & quotient[16]) | (of[AluOp.ADD] & total[16])),
        ]

        # The result is one of these. Zeros make themselves, but for a division by zero and the exponents.
        mantissas = {
            AluOp.INT: top,
            AluOp.COPY: a.m,
            AluOp.MUL: Mux(product[31], product[16:], product[15:31]),
            AluOp.DIV: Mux(quotient[16], quotient[1:17], quotient[:16]) & ~b_zero.replicate(16),
            AluOp.ADD: Mux(total[16], total[1:], total[:16]),
            AluOp.SQRT: root,
        }
        chosen = Const(0, 16)
        for op, value in mantissas.items():
            chosen = chosen | Mux(of[op], value, 0)
        moved, nothing = Signal(signed(10)), Signal()
        m.d.comb += [
            moved.eq(Mux(of[AluOp.INT], n_less, a.e) + Mux(of[AluOp.COPY] & a_zero, 0, shift)),
            nothing.eq(Mux(of[AluOp.INT], n_zero, (of[AluOp.MUL] | of[AluOp.DIV]) & (a_zero | b_zero))),
            self.o.m.eq(chosen),
            self.o.e.eq(Mux(nothing, 0, Mux(of[AluOp.INT] | of[AluOp.COPY], moved, Mux(carried, up, base)))),
        ]

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
                m.d.sync += [remainder.eq(rest), quotient.eq(Cat(*bits, quotient)), count.eq(count + 1)]
                with m.If(count == 7):
                    m.next = "FINISH"
            with m.State("SQRT"):
                m.d.sync += [radicand.eq(r_in), root.eq(r_root), error.eq(r_rest), count.eq(count + 1)]
                with m.If(count == 7):
                    m.next = "FINISH"
            with m.State("FINISH"):
                m.next = "IDLE"
        return m
