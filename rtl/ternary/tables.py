"""Ternary dot product by tables: the sums and differences of pairs of activations are formed once for all lanes, which look up theirs.

Elements ``j`` and ``pairs + j`` of a word (``pairs = width / 2``) are pair ``j``. A pair of weights takes one of

    0,   +- x,   +- y,   +- (x + y),   +- (x - y)

so a lane chooses among four values that stand beside all lanes, which is a LUT of six inputs a bit, and its register is cleared for 0.
Signs cost nothing: a sum of two terms with signs is ``s (a + r b)``, where ``s`` is that of the first and ``r = +-1`` says whether the
second's differs; ``r`` is an operand of the adder (``a + ~b + 1``), and ``s`` goes on to the next level, at last to the accumulator.

Larger groups cost more in LUTs of six inputs: three activations have 13 sums, which are four LUTs a bit for three weights.
"""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.ternary.tree import PLANES, WORD, TernaryDot

__all__ = ["ENTRY", "PairCode", "PairTables", "TableDot", "added"]

ENTRY = PLANES + 1  # bits of a sum of two activations


class PairTables(wiring.Component):
    """Sums and differences of the pairs of a word of activations, with the activations themselves. Latency 1.

    Members
    -------
    data : In(8 * width)
        Element ``i`` in bits ``8 i .. 8 i + 7``.
    x : Out(signed(8)) [width]
        The elements.
    sums, differences : Out(signed(9)) [width / 2]
        Of pair ``j``: ``x[j] + x[width / 2 + j]``, ``x[j] - x[width / 2 + j]``.
    """

    LATENCY = 1
    MASKS = ()

    @staticmethod
    def operands(width):
        """Of the outputs, which are inputs of each lane: name, shape and number."""
        entry = signed(ENTRY)
        return {"x": (signed(PLANES), width), "sums": (entry, width // 2), "differences": (entry, width // 2)}

    def __init__(self, width):
        self.width = width
        outputs = {name: Out(shape).array(count) for name, (shape, count) in self.operands(width).items()}
        super().__init__({"data": In(PLANES * width), "masks": In(WORD).array(0), **outputs})

    def elaborate(self, platform):
        m = Module()
        pairs = self.width // 2
        x = [self.data[PLANES * i : PLANES * (i + 1)].as_signed() for i in range(self.width)]
        m.d.sync += [register.eq(value) for register, value in zip(self.x, x, strict=True)]
        for j, (a, b) in enumerate(zip(x[:pairs], x[pairs:], strict=True)):
            m.d.sync += [self.sums[j].eq(a + b), self.differences[j].eq(a - b)]
        return m


class PairCode(wiring.Component):
    """Code of the pairs of a word of weights, as the packing ``pairs`` has it in memory. Latency 0.

    Members
    -------
    plus, minus : In(width)
        Bit ``i``: weight ``i`` is +1, is -1.
    code : Out(2 * width)
        Four planes of ``width / 2`` bits (:mod:`intaglio.rtl.ternary.packing`).
    """

    def __init__(self, width):
        self.width = width
        super().__init__({"plus": In(width), "minus": In(width), "code": Out(2 * width)})

    def elaborate(self, platform):
        m = Module()
        pairs = self.width // 2

        def named(name, value):
            signal = Signal(pairs, name=name)
            m.d.comb += signal.eq(value)
            return signal

        plus, minus = (self.plus[:pairs], self.plus[pairs:]), (self.minus[:pairs], self.minus[pairs:])
        used = [named(f"used_{k}", plus[k] | minus[k]) for k in range(2)]
        both = named("both", used[0] & used[1])
        second = named("second", (both & (plus[0] ^ plus[1])) | ~used[0])
        zero = named("zero", ~(used[0] | used[1]))
        sign = named("sign", minus[0] | (~plus[0] & minus[1]))
        # A sign is told relative to that of the term that its own is added to: of pair j, to pair j without its highest bit.
        before, low = [Const(0, 1)], 1
        while low < pairs:
            before.append(sign[: min(low, pairs - low)])
            low *= 2
        m.d.comb += self.code.eq(Cat(both, second & ~zero, zero, sign ^ Cat(before)))
        return m


class TableDot(wiring.Component):
    """``sum_i (plus_i - minus_i) * x_i`` over ``width`` signed 8-bit activations, or its negative.

    Members
    -------
    x, sums, differences : In
        Of :class:`PairTables`.
    code : In(2 * width)
        Of :class:`PairCode`.
    sum : Out(signed)
        Exact, also for -128, where ``negative`` is 0; else the negative of that.
    negative : Out(1)

    Latency and throughput of :class:`~intaglio.rtl.ternary.tree.TernaryDot`. Registers: the entries that were looked up, half of the
    levels of the tree, the rest.
    """

    LATENCY = TernaryDot.LATENCY
    MASKS = ()

    def __init__(self, width):
        if not (isinstance(width, int) and width >= 2 and width % 2 == 0):
            raise ValueError(f"width must be even and positive, not {width!r}")
        self.width, self.levels = width, (width // 2 - 1).bit_length()
        super().__init__(
            {
                **{name: In(shape).array(count) for name, (shape, count) in PairTables.operands(width).items()},
                "masks": In(WORD).array(0),
                "code": In(2 * width),
                "sum": Out(signed(ENTRY + self.levels)),
                "negative": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        pairs = self.width // 2
        both, second, zero, sign = (self.code[k * pairs : (k + 1) * pairs] for k in range(4))
        terms = []
        for j in range(pairs):
            entry = Signal(signed(ENTRY), name=f"entry_{j}", reset_less=True)
            single = Mux(second[j], self.x[pairs + j], self.x[j])
            m.d.sync += entry.eq(Mux(both[j], Mux(second[j], self.differences[j], self.sums[j]), single))
            with m.If(zero[j]):  # a register's clear, not a gate a bit
                m.d.sync += entry.eq(0)
            terms.append(entry)
        sign = _register(m, sign, "sign_0")
        half = -(-self.levels // 2)
        for stage, levels in ((1, half), (2, self.levels - half)):
            for _ in range(levels):
                low = 1 << ((len(terms) - 1).bit_length() - 1)
                summed = [
                    added(m, a, b, sign[low + j], f"sum_{low}_{j}")
                    for j, (a, b) in enumerate(zip(terms[:low], terms[low:], strict=False))
                ]
                terms = summed + terms[len(summed) : low]
            if stage == 1:
                terms = [_register(m, term, f"term_{j}") for j, term in enumerate(terms)]
                sign = _register(m, sign[: len(terms)], "sign_1")
        m.d.sync += [self.sum.eq(terms[0]), self.negative.eq(sign[0])]
        return m


def added(m, a, b, negative, name):
    """``a + b``, or where ``negative`` ``a - b = a + ~b + 1``, on a single carry chain: the carry enters from a position below."""
    shape = signed(max(len(a), len(b)) + 1)
    second, doubled = (
        Signal(signed(len(b)), name=f"{name}_second"),
        Signal(signed(shape.width + 1), name=f"{name}_doubled"),
    )
    total = Signal(shape, name=name)
    m.d.comb += [
        second.eq(b ^ negative.replicate(len(b))),
        doubled.eq(Cat(negative, a).as_signed() + Cat(negative, second).as_signed()),
        total.eq(doubled[1:].as_signed()),
    ]
    return total


def _register(m, value, name):
    register = Signal(value.shape(), name=name, reset_less=True)
    m.d.sync += register.eq(value)
    return register
