"""Products of two INT8 numbers in LUTs, and of two pairs at once in one wide multiplier."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["PACKED", "SHIFT", "BoothProduct", "NibbleProduct", "PackedProduct", "extract", "ones", "pack"]

SHIFT = 19  # place of the upper product
PACKED = 16  # products that a packed sum may hold: 16 * 127 * 127 < 2^(SHIFT - 1), 17 are too many


def pack(lower, upper):
    """16 bits that stand for ``upper * 2^SHIFT + lower``: the lower operand and the upper one less the lower one's borrow."""
    return Cat(lower, (upper - lower[-1])[:8])


def extract(total):
    """Lower and upper sum of a packed sum of up to ``PACKED`` products."""
    return total[:SHIFT].as_signed(), total[SHIFT:].as_signed() + total[SHIFT - 1]


class PackedProduct(wiring.Component):
    """``(upper * 2^SHIFT + lower) * row``: two products with one multiplier of 27 x 8 bits, a DSP48E2.

    Members
    -------
    pair : In(16)
        :func:`pack` of the two operands.
    row : In(signed(8))
        Second operand of both products; all operands are in -127..127.
    product : Out(signed(SHIFT + 16))
        Both products; sums of up to ``PACKED`` of them may be added before :func:`extract`.

    Latency 0.
    """

    def __init__(self):
        super().__init__({"pair": In(16), "row": In(signed(8)), "product": Out(signed(SHIFT + 16))})

    def elaborate(self, platform):
        m = Module()
        operand = Signal(signed(SHIFT + 8))
        m.d.comb += [
            operand.eq(Cat(self.pair[:8], self.pair[7].replicate(SHIFT - 8), self.pair[8:])),
            self.product.eq(operand * self.row),
        ]
        return m


def booth_row(operand, digit):
    """``operand * (low + middle - 2 * high)``, less one if ``high``, for ``digit`` of the bits low, middle, high.

    A bit of the row depends on five bits, so that it and its adder fit a LUT6.
    """
    low, middle, high = digit
    twice = (high & ~middle & ~low) | (~high & middle & low)
    multiple = Mux(twice, operand << 1, Mux(low ^ middle, operand, 0))[:9]
    return (multiple ^ high.replicate(9)).as_signed()


def ones(row):
    """What a :class:`BoothProduct` lacks: a one for each negative Booth digit of ``row``, in its place."""
    return Cat(*(bit for i in range(1, 8, 2) for bit in (row[i], Const(0, 1))))[:7]


class BoothProduct(wiring.Component):
    """``operand * row - ones(row)`` as four rows of radix-4 Booth digits of ``row`` and three adders, for 6-input LUTs.

    The ones that complete negative rows depend on ``row`` alone; whoever sums products adds them once for all columns.

    Members
    -------
    operand, row : In(signed(8))
    product : Out(signed(16))
        Exact for all inputs.

    Latency 0.
    """

    def __init__(self):
        super().__init__({"operand": In(signed(8)), "row": In(signed(8)), "product": Out(signed(16))})

    def elaborate(self, platform):
        m = Module()
        bits = Cat(Const(0, 1), self.row)
        total, low = None, []
        for i in range(4):
            row = Signal(signed(9), name=f"row_{i}")
            m.d.comb += row.eq(booth_row(self.operand, bits[2 * i : 2 * i + 3]))
            if total is None:
                total = row
            else:
                low.append(total[:2])
                following = Signal(signed(10), name=f"sum_{i}")
                m.d.comb += following.eq((total >> 2) + row)
                total = following
        m.d.comb += self.product.eq(Cat(*low, total))
        return m


class NibbleProduct(wiring.Component):
    """``operand * row`` from four products of 4 x 4 bits: ``LL + ((HL + LH) << 4) + (HH << 8)``.

    Members
    -------
    operand, row : In(signed(8))
    product : Out(signed(16))
        Exact for all inputs.

    Latency 0.
    """

    def __init__(self):
        super().__init__({"operand": In(signed(8)), "row": In(signed(8)), "product": Out(signed(16))})

    def elaborate(self, platform):
        m = Module()
        halves = [(value[:4], value[4:].as_signed()) for value in (self.operand, self.row)]
        parts = {}
        for i, a in enumerate(halves[0]):
            for k, b in enumerate(halves[1]):
                part = Signal(signed(9), name=f"part_{'lh'[i]}{'lh'[k]}")
                terms = [Mux(b[n], a, 0) << n for n in range(4)]  # no multiplier that would become a DSP block
                m.d.comb += part.eq((terms[0] + terms[1]) + (terms[2] - terms[3] if k else terms[2] + terms[3]))
                parts[i, k] = part
        m.d.comb += self.product.eq(parts[0, 0] + ((parts[1, 0] + parts[0, 1]) << 4) + (parts[1, 1] << 8))
        return m
