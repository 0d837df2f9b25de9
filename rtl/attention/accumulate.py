"""Accumulators of the rows under way, merged by shifts; division and output of those that are complete."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.attention import MERGE_SHIFT
from intaglio.rtl.attention.states import SHIFT_BITS
from intaglio.rtl.memory.ram import Ram, index_bits

__all__ = ["Accumulators"]


class Accumulators(wiring.Component):
    """Accumulators O, a word of ``columns`` values for each row group and channel.

    Parameters
    ----------
    config : PrefillConfig

    Members
    -------
    valid : In(1)
        The next channel of a tile, channels 0, 1, ... are counted: ``O' = (O >> kept) + ((o << 4) >> added)``.
    o : In(signed(mean_bits)).array(columns)
    address : In
        Row group, as the state memory counts them. ``first``: O is 0.
    kept, added : In(6).array(columns)
    read : In(1), read_address : In, read_channel : In
        Read a word; granted in cycles without ``valid``.
    word : Out(signed(value_bits)).array(columns)
        One cycle after a granted read, for one cycle.

    Latency: a channel may be read :attr:`LATENCY` cycles after its ``valid``. Throughput: one channel a cycle.
    """

    LATENCY = 5

    def __init__(self, config):
        self.config = config
        lanes, words = config.columns, config.slots * config.row_groups
        super().__init__(
            {
                "valid": In(1),
                "o": In(signed(config.mean_bits)).array(lanes),
                "address": In(index_bits(words)),
                "first": In(1),
                "kept": In(SHIFT_BITS).array(lanes),
                "added": In(SHIFT_BITS).array(lanes),
                "read": In(1),
                "read_address": In(index_bits(words)),
                "read_channel": In(index_bits(config.head_dim)),
                "word": Out(signed(config.value_bits)).array(lanes),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c = self.config
        width = c.value_bits
        m.submodules.memory = memory = Ram(c.columns * width, c.slots * c.row_groups * c.head_dim)
        channel, place = Signal(index_bits(c.head_dim)), Signal.like(memory.read_addr)
        places = [Signal.like(place, name=f"place_{i}") for i in range(4)]
        stage, first = [Signal(name=f"stage_{i}") for i in range(4)], Signal()
        m.d.comb += [
            place.eq(Cat(channel, self.address)),
            memory.read_en.eq(self.valid | self.read),
            memory.read_addr.eq(Mux(self.valid, place, Cat(self.read_channel, self.read_address))),
        ]
        with m.If(self.valid):
            m.d.sync += channel.eq(channel + 1)
        for start, chain in ((self.valid, stage), (place, places)):
            m.d.sync += [after.eq(before) for before, after in zip([start, *chain], chain, strict=False)]
        m.d.sync += first.eq(self.first)
        merged = []
        for i in range(c.columns):
            old = memory.read_data.word_select(i, width).as_signed()
            m.d.comb += self.word[i].eq(old)
            parts = []
            o = Signal(signed(c.mean_bits), name=f"o_{i}", reset_less=True)
            with m.If(self.valid):
                m.d.sync += o.eq(self.o[i])
            sources = (
                ("kept", self.kept[i], Mux(first, 0, old), width),
                ("added", self.added[i], o << MERGE_SHIFT, c.mean_bits + MERGE_SHIFT),
            )
            for name, amount, value, bits in sources:
                shift = Signal(SHIFT_BITS, name=f"{name}_{i}", reset_less=True)
                fine = Signal(3, name=f"{name}_fine_{i}", reset_less=True)
                coarse_shifted = Signal(signed(bits), name=f"{name}_coarse_{i}", reset_less=True)
                shifted = Signal(signed(bits), name=f"{name}_shifted_{i}", reset_less=True)
                with m.If(self.valid):
                    m.d.sync += shift.eq(amount)
                with m.If(stage[0]):
                    m.d.sync += [coarse_shifted.eq(value >> (shift & 0b111000)), fine.eq(shift[:3])]
                with m.If(stage[1]):
                    m.d.sync += shifted.eq(coarse_shifted >> fine)
                parts.append(shifted)
            total = Signal(signed(width), name=f"merged_{i}", reset_less=True)
            with m.If(stage[2]):
                m.d.sync += total.eq(parts[0] + parts[1])
            merged.append(total)
        m.d.comb += [memory.write_en.eq(stage[3]), memory.write_addr.eq(places[3]), memory.write_data.eq(Cat(*merged))]
        return m
