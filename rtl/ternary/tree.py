"""Ternary dot product as a carry-save tree over bit planes.

With ``n = plus | minus``, the masked plane ``m_b = (x_b ^ minus) & n`` is bit ``b`` of ``x``, ``~x`` or 0, and ``-x = ~x + 1``:

    sum w x = sum_b 2^b popcount(m_b) [b < 7]  -  2^7 popcount(m_7)  +  popcount(minus)
            = ... + 2^7 popcount(~m_7) - 2^7 width  ...

so that every vector counts positively. Vectors of equal weight are added three to two by bitwise full adders over whole words
of 64 bits, which is one full adder a bit in hardware and five word operations in a C++ simulator. When no weight has three
vectors left, each is seen as four vectors over the same 16 slots of 4 bits (its four shifts) and the reduction goes on. What is
left (two rows of bits a slot) is packed into nibbles and summed by ordinary adders.

No operand of an addition is wider than 64 bits with its carry: Verilator has no fast type above that. Constant masks are inputs
(``masks``, driven with ``MASKS``): Yosys, which writes Amaranth's Verilog, would resolve a mask inside its module into single
bits, which is the same hardware but tens of times slower to simulate. So the modules that are converted by themselves
(:func:`intaglio.rtl.ternary.lane.lane_designs`) get them through their ports; synthesis dissolves them when it flattens.
"""

from amaranth.hdl import Cat, Const, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["PLANES", "BitPlanes", "TernaryDot"]

PLANES = 8  # bits of an activation
WORD = 64


class BitPlanes(wiring.Component):
    """Transpose a word of activations into bit planes; wiring only. Latency 0.

    Written as the three swap steps of an 8 x 8 bit transposition (a simulator moves words, not bits).

    Members
    -------
    data : In(8 * width)
        Element ``i`` in bits ``8 i .. 8 i + 7``.
    masks : In(64) [6]
        ``MASKS``: bits that stay and bits that move up, for each step.
    x : Out(width) [8]
        Bit ``i`` of ``x[b]``: bit ``b`` of element ``i``.
    """

    LATENCY = 0
    MASKS = (
        0xAA55AA55AA55AA55,
        0x00AA00AA00AA00AA,
        0xCCCC3333CCCC3333,
        0x0000CCCC0000CCCC,
        0xF0F0F0F00F0F0F0F,
        0x00000000F0F0F0F0,
    )

    @staticmethod
    def operands(width):
        """Of the outputs, which are inputs of each lane: name, shape and number."""
        return {"x": (width, PLANES)}

    def __init__(self, width):
        self.width = width
        super().__init__({"data": In(PLANES * width), "masks": In(WORD).array(6), "x": Out(width).array(PLANES)})

    def elaborate(self, platform):
        m = Module()
        blocks = []
        for k in range(0, PLANES * self.width, WORD):
            value = Signal(WORD, name=f"block_{k // WORD}")
            m.d.comb += value.eq(self.data[k : k + WORD])
            for n, shift in enumerate((7, 14, 28)):
                keep, move = self.masks[2 * n], self.masks[2 * n + 1][: WORD - shift]
                step = Signal(WORD, name=f"block_{k // WORD}_{shift}")
                kept, raised, lowered = value & keep, value[: WORD - shift] & move, value[shift:] & move
                m.d.comb += step.eq(kept | Cat(Const(0, shift), raised) | lowered)
                value = step
            blocks.append(value)
        for b in range(PLANES):
            m.d.comb += self.x[b].eq(Cat(block[8 * b : 8 * b + 8] for block in blocks))
        return m


class TernaryDot(wiring.Component):
    """``sum_i (plus_i - minus_i) * x_i`` over ``width`` signed 8-bit activations.

    Members
    -------
    x : In(width) [8]
        Bit planes of the activations (:class:`BitPlanes`).
    plus, minus : In(width)
        Never both set at one position.
    masks : In(64) [3]
        ``MASKS``: bit 0 of every 4, bits 3..0 of every 8, bits 7..0 of every 16.
    sum : Out(signed)
        Exact, also for -128.

    Latency ``LATENCY`` = 3 cycles, one word a cycle. Registers: the two reduced rows, the sums of 16-bit slots, the result.
    """

    LATENCY = 3
    MASKS = (0x1111111111111111, 0x0F0F0F0F0F0F0F0F, 0x00FF00FF00FF00FF)

    def __init__(self, width):
        if not (isinstance(width, int) and width >= 1):
            raise ValueError(f"width must be a positive integer, not {width!r}")
        self.width = width
        bits = (128 * width).bit_length() + 1
        super().__init__(
            {
                "x": In(width).array(PLANES),
                "plus": In(width),
                "minus": In(width),
                "masks": In(WORD).array(3),
                "sum": Out(signed(bits)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        word = min(WORD, -(-self.width // 16) * 16)

        def named(name, value, width):
            signal = Signal(width, name=name)
            m.d.comb += signal.eq(value)
            return signal

        def register(name, value, width):
            signal = Signal(width, name=name, reset_less=True)
            m.d.sync += signal.eq(value)
            return signal

        # Masked planes, a vector of `word` bits for each chunk; columns[b]: the vectors of weight 2^b.
        chunks = range(0, self.width, word)
        columns = [[] for _ in range(PLANES)]
        for c, low in enumerate(chunks):
            minus = named(f"minus_{c}", self.minus[low : low + word], word)
            used = named(f"used_{c}", self.plus[low : low + word] | self.minus[low : low + word], word)
            for b in range(PLANES):
                plane = (named(f"x_{c}_{b}", self.x[b][low : low + word], word) ^ minus) & used
                columns[b].append(named(f"masked_{c}_{b}", ~plane if b == PLANES - 1 else plane, word))
            columns[0].append(minus)
        offset = 128 * word * len(chunks)

        columns = _reduce(columns, word, "word", named)
        span = word - 3
        columns = [[vector[k : k + span] for vector in column for k in range(4)] for column in columns]
        columns = _reduce(columns, span, "slot", named)

        # Rows of nibbles: slot s of nibble g of a row holds weights 2^(4 g) .. 2^(4 g + 3).
        every4, every8, every16 = self.masks[0][:span], self.masks[1][: word - 4], self.masks[2][: word - 8]
        sums = []
        for g in range(0, len(columns), 4):
            rows = []
            for r in range(2):
                parts = [
                    Cat(Const(0, k), column[r] & every4)
                    for k, column in enumerate(columns[g : g + 4])
                    if len(column) > r
                ]
                if parts:
                    value = parts[0]
                    for part in parts[1:]:
                        value = value | part
                    rows.append(register(f"row_{r}_{g}", value, word))
            sums.append(rows)

        # Sums of the nibbles: at most 60 in slots of 8 bits, then at most 120 in slots of 16.
        total = Const(0)
        for g, rows in enumerate(sums):
            halves = []
            for r, row in enumerate(rows):
                halves.append(named(f"byte_{r}_{g}", (row[: word - 4] & every8) + (row[4:] & every8), word - 3))
            byte = named(f"byte_{g}", sum(halves[1:], halves[0]), word - 2)
            half = register(f"half_{g}", (byte[: word - 8] & every16) + (byte[8:] & every16), word - 8)
            slots = [half[i : i + 7] for i in range(0, word, 16)]
            while len(slots) > 1:
                slots = [a + b for a, b in zip(slots[::2], slots[1::2], strict=False)] + slots[len(slots) & ~1 :]
            total = total + Cat(Const(0, 4 * g), named(f"nibble_{g}", slots[0], 9))
        m.d.sync += self.sum.eq(total - offset)
        return m


def _reduce(columns, width, stage, named):
    """Full adders over vectors, in rounds, until no weight has more than two; returns the new columns."""
    level = 0
    while any(len(column) > 2 for column in columns):
        result = [[] for _ in range(len(columns) + 1)]
        for b, column in enumerate(columns):
            full = len(column) // 3 * 3
            for i in range(0, full, 3):
                x, y, z = column[i : i + 3]
                odd = named(f"{stage}_{level}_{b}_{i}_xor", x ^ y, width)
                result[b].append(named(f"{stage}_{level}_{b}_{i}_sum", odd ^ z, width))
                result[b + 1].append(named(f"{stage}_{level}_{b}_{i}_carry", (x & y) | (odd & z), width))
            result[b] += column[full:]
        columns = result if result[-1] else result[:-1]
        level += 1
    return columns
