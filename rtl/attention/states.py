"""Maxima and sums of the rows under way, a word for each row group: merged tile by tile, then turned into logarithms or mantissas."""

from amaranth.hdl import Cat, Const, MemoryData, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.attention import FRACTION, LOG, LOG_FRACTION, LOG_TABLE, MASKED_L, MASS_FRACTION, OUT_SHIFT
from intaglio.rtl.arithmetic.numerics import MANTISSA
from intaglio.rtl.attention.softmax import EXPONENT_BITS, LOG_BITS, UNREACHED, tile_sum_bits
from intaglio.rtl.memory.ram import Ram, index_bits

__all__ = ["SHIFT_BITS", "RowStates"]

SHIFT_BITS = 6
EXPONENT_LEAST = -(1 << EXPONENT_BITS - 2)  # of a tile
SHIFT_MAX = (1 << SHIFT_BITS) - 1  # leaves nothing of a sum but its sign


class RowStates(wiring.Component):
    """State (E, l, F) of every row, ``columns`` rows a word, or after NORM their L; and one exponent M a word.

    Parameters
    ----------
    config : PrefillConfig

    Members
    -------
    merge : In(1)
        Take a tile into word ``address``; ``first``: the rows start with it. What follows stays for 3 cycles.
    address : In
        With ``merge``, ``read`` or ``walk``, of which the engine gives one in a cycle.
    e, f : In(signed(11)).array(columns), sums : In.array(columns), exponent : In(signed(7))
        Of the tile; e and f are ``UNREACHED`` (sums 0) for a row that it masks wholly. E, F and M are the maxima of e, f and ``exponent``.
    kept, added : Out(6).array(columns)
        ``F' - F`` and ``F' - f``, at most 63: from two cycles after ``merge`` until two after the next.
    read : In(1), log : Out(signed(19)).array(columns)
        L of a word after NORM, one cycle later, for one cycle.
    walk : In(1)
        Take the rows of a word one by one: normalised sums leave as ``lane_*``, and with ``norm`` the word becomes L. Ignored while
        ``busy``. No merge while a walk with ``norm`` is under way.
    norm : In(1)
    busy : Out(1)
    lane_valid : Out(1), lane_mantissa : Out(17), lane_shift : Out(6)
        ``l >> (top - 16)`` of a row, where top is the place of the highest bit of l, and ``top - 7 + E + M - F``, at most 63. Mantissa 0
        if l is 0. Rows in order.
    word_exponent : Out(signed(7))
        M of the word that was walked last.

    Latency: a merge is complete (may be read) after 4 cycles; the first ``lane_valid`` of a walk comes 4 cycles after it, then one a
    cycle; a walk takes ``columns + 7`` cycles until ``busy`` is low.
    Throughput: a merge every 4 cycles.
    """

    WALK_LATENCY = 4

    def __init__(self, config):
        self.config = config
        lanes, self.words = config.columns, config.slots * config.row_groups
        super().__init__(
            {
                "merge": In(1),
                "first": In(1),
                "address": In(index_bits(self.words)),
                "e": In(signed(config.maximum_bits)).array(lanes),
                "f": In(signed(config.maximum_bits)).array(lanes),
                "sums": In(tile_sum_bits(config)).array(lanes),
                "exponent": In(signed(EXPONENT_BITS)),
                "kept": Out(SHIFT_BITS).array(lanes),
                "added": Out(SHIFT_BITS).array(lanes),
                "read": In(1),
                "log": Out(signed(LOG_BITS)).array(lanes),
                "walk": In(1),
                "norm": In(1),
                "busy": Out(1),
                "lane_valid": Out(1),
                "lane_mantissa": Out(MANTISSA),
                "lane_shift": Out(SHIFT_BITS),
                "word_exponent": Out(signed(EXPONENT_BITS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c = self.config
        width = 2 * c.maximum_bits + c.sum_bits
        m.submodules.memory = memory = Ram(c.columns * width + EXPONENT_BITS, self.words)
        merged, merge_write, merge_address = self._merge(m, memory, width)
        walked, walk_write, walk_address = self._walk(m, memory, width)
        m.d.comb += [
            memory.read_en.eq(self.merge | self.read | (self.walk & ~self.busy)),
            memory.read_addr.eq(self.address),
            memory.write_en.eq(merge_write | walk_write),
            memory.write_addr.eq(Mux(walk_write, walk_address, merge_address)),
            memory.write_data.eq(Mux(walk_write, walked, merged)),
            *(log.eq(memory.read_data.word_select(i, width)) for i, log in enumerate(self.log)),
        ]
        return m

    def _merge(self, m, memory, width):
        c = self.config
        stage, first, address = [Signal(name=f"merge_{i}") for i in range(3)], Signal(), Signal.like(self.address)
        m.d.sync += [after.eq(before) for before, after in zip([self.merge, *stage], stage, strict=False)]
        with m.If(self.merge):
            m.d.sync += [first.eq(self.first), address.eq(self.address)]
        exponent = Signal(signed(EXPONENT_BITS), reset_less=True)
        before = Mux(first, EXPONENT_LEAST, memory.read_data[-EXPONENT_BITS:].as_signed())
        with m.If(stage[0]):
            m.d.sync += exponent.eq(Mux(before > self.exponent, before, self.exponent))
        words = []
        for i in range(c.columns):
            word = memory.read_data.word_select(i, width)
            total, held = (Signal(c.sum_bits, name=f"{name}_{i}", reset_less=True) for name in ("total", "held"))
            addend = Signal(tile_sum_bits(c), name=f"addend_{i}", reset_less=True)
            of_sum = [
                Signal(SHIFT_BITS, name=f"{name}_{i}", reset_less=True) for name in ("held_shift", "addend_shift")
            ]
            maxima = []
            for name, place, tile, shifts in (
                ("e", c.sum_bits, self.e[i], of_sum),
                ("f", c.sum_bits + c.maximum_bits, self.f[i], (self.kept[i], self.added[i])),
            ):
                old, new = (Signal(signed(c.maximum_bits), name=f"{state}_{name}_{i}") for state in ("old", "new"))
                maximum = Signal(signed(c.maximum_bits), name=f"maximum_{name}_{i}", reset_less=True)
                m.d.comb += [
                    old.eq(Mux(first, UNREACHED, word[place : place + c.maximum_bits].as_signed())),
                    new.eq(Mux(old > tile, old, tile)),
                ]
                for shift, below in zip(shifts, (old, tile), strict=True):
                    distance = Signal(c.maximum_bits, name=f"{shift.name}_distance_{i}")
                    m.d.comb += distance.eq(new - below)
                    with m.If(stage[0]):
                        m.d.sync += shift.eq(Mux(distance > SHIFT_MAX, SHIFT_MAX, distance))
                with m.If(stage[0]):
                    m.d.sync += maximum.eq(new)
                maxima.append(maximum)
            with m.If(stage[0]):
                m.d.sync += total.eq(Mux(first, 0, word[: c.sum_bits]))
            with m.If(stage[1]):
                m.d.sync += [held.eq(total >> of_sum[0]), addend.eq(self.sums[i] >> of_sum[1])]
            words += [(held + addend)[: c.sum_bits], *maxima]
        return Cat(*words, exponent), stage[2], address

    def _walk(self, m, memory, width):
        c = self.config
        latency = 4  # from the register to the logarithm
        address, norm, taken, count = (
            Signal.like(self.address),
            Signal(),
            Signal(),
            Signal(range(c.columns + latency + 1)),
        )
        rows = c.columns * width
        held, running, done = Signal(rows, reset_less=True), Signal(), Signal()
        m.d.comb += self.busy.eq(taken | running | done)
        m.d.sync += [taken.eq(self.walk & ~self.busy), done.eq(0)]
        with m.If(self.walk & ~self.busy):
            m.d.sync += [address.eq(self.address), norm.eq(self.norm)]

        # The lowest row leaves the register while its logarithm, some cycles later, enters at the top.
        row = held[:width]
        total, maximum, scaled = (
            row[: c.sum_bits],
            row[c.sum_bits : -c.maximum_bits].as_signed(),
            row[-c.maximum_bits :].as_signed(),
        )
        top = Signal(6)
        for bit in range(1, c.sum_bits):
            with m.If(total[bit]):
                m.d.comb += top.eq(bit)
        valid = [Signal(name=f"walked_{i}") for i in range(3)]
        tops = [Signal(6, name=f"top_{i}", reset_less=True) for i in range(3)]
        maxima = [Signal(signed(c.maximum_bits), name=f"walked_maximum_{i}", reset_less=True) for i in range(3)]
        empty = [Signal(name=f"empty_{i}", reset_less=True) for i in range(3)]
        gap, shift = (Signal(signed(c.maximum_bits + 1), name=name, reset_less=True) for name in ("gap", "shift"))
        plain, normal = Signal(c.sum_bits, reset_less=True), Signal(c.sum_bits, reset_less=True)
        m.d.sync += [
            valid[0].eq(running & (count < c.columns)),
            tops[0].eq(top),
            maxima[0].eq(maximum),
            gap.eq(maximum + self.word_exponent - scaled),
            self.lane_shift.eq(Mux(shift < 0, 0, Mux(shift > SHIFT_MAX, SHIFT_MAX, shift))),
            empty[0].eq(total == 0),
            plain.eq(total),
            normal.eq(plain << (c.sum_bits - 1 - tops[0]).as_unsigned()[:6]),
        ]
        for chain in (valid, tops, maxima, empty):
            m.d.sync += [after.eq(before) for before, after in zip(chain, chain[1:], strict=False)]
        m.d.comb += [
            self.lane_valid.eq(valid[1]),
            shift.eq(tops[0] + gap + OUT_SHIFT - (MANTISSA - 1)),
            self.lane_mantissa.eq(normal[-MANTISSA:]),
        ]

        m.submodules.log_table = table = Memory(MemoryData(shape=LOG_FRACTION + 1, depth=1 << LOG, init=LOG_TABLE))
        read = table.read_port()
        log, whole = Signal(LOG_FRACTION + 6), Signal(signed(LOG_BITS), reset_less=True)
        m.d.comb += [read.addr.eq(normal[-1 - LOG : -1]), log.eq((tops[2] << LOG_FRACTION) + read.data)]
        m.d.sync += whole.eq(
            Mux(empty[2], MASKED_L, (maxima[2] << FRACTION) + ((log + 8) >> 4) - (MASS_FRACTION << FRACTION))
        )
        with m.If(taken):
            m.d.sync += [
                held.eq(memory.read_data[:rows]),
                self.word_exponent.eq(memory.read_data[rows:]),
                running.eq(1),
                count.eq(0),
            ]
        with m.If(running):
            entering = Cat(whole, Const(0, width - LOG_BITS))
            m.d.sync += [held.eq(Cat(held[width:], entering)), count.eq(count + 1)]
            with m.If(count == c.columns + latency - 1):
                m.d.sync += [running.eq(0), done.eq(1)]
        return Cat(held, self.word_exponent), done & norm, address
