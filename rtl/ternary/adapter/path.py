"""The adapter's side of the linear unit: its memories, the order in which their words are used, and the way of the sums."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.scalar import ScalarLayout
from intaglio.rtl.memory.ram import Ram, index_bits
from intaglio.rtl.ternary.adapter.intermediate import Intermediate, MatrixGroup
from intaglio.rtl.ternary.adapter.join import Join
from intaglio.rtl.ternary.lane import Lane, Source
from intaglio.rtl.ternary.post import PostMode

__all__ = ["AdapterPath"]


class AdapterPath(wiring.Component):
    """Memory of the adapters beside every lane, the vector between the factors, and the join.

    The words of an adapter lie in the order of the program and are read once a token: for each operation first those of A, then those of B.
    A word of A is one digit (the highest first) of ``lane_width`` values of one row; a word of B holds ``lane_width / rank`` rows of one
    digit, in the order in which they are used; an operation begins with a new word.

    Parameters
    ----------
    config : DecoderConfig

    Members
    -------
    adapt, adapted, kind, memory, restart, weight_*, scale_*
        As of :class:`~intaglio.rtl.ternary.linear.LinearUnit` and of :class:`~intaglio.rtl.ternary.adapter.loader.Loader`.
    begin, issuing, chunk_first, chunk_last, group_last, mode : In
        State of the unit: an operation begins; a word is issued, the first or last of its digit or row, in the last group.
    base, of_a, row_end : Out(1)
        The word is the base's; it is A's; it ends a group of rows.
    first, base_row : Out(1)
        With the word: it begins a sum; with it a group of the operation's rows (not of A) is complete.
    source, sub, gated, triple, lane_inputs(i) : Out
        Of :class:`~intaglio.rtl.ternary.lane.Lane`; ``gated`` is ``high`` of odd lanes, ``triple`` is delayed as ``enable`` is.
    word : Out(8 * lane_width)
        Activations that meet B, with ``source``.
    sums : In [lanes], totals : Out [lanes], o_valid : Out(1)
        Of the lanes, and joined, for the post stage.
    done : Out(1)
        Strobe: the vector between the factors is ready.
    """

    JOIN_LATENCY = Join.LATENCY

    def __init__(self, config):
        self.config = config
        memories = config.adapters + 1
        self.rams = [Ram(2 * config.lane_width, memories * config.adapter_words) for _ in range(config.lanes)]
        self.scales = Ram(ScalarLayout.size, memories * config.adapter_scales)
        super().__init__(
            {
                "adapt": In(1),
                "adapted": In(1),
                "kind": In(MatrixGroup),
                "restart": In(1),
                **self.outer_members(config),
                "begin": In(1),
                "issuing": In(1),
                "chunk_first": In(1),
                "chunk_last": In(1),
                "group_last": In(1),
                "mode": In(PostMode),
                "base": Out(1),
                "of_a": Out(1),
                "row_end": Out(1),
                "first": Out(1),
                "base_row": Out(1),
                "source": Out(Source),
                "sub": Out(range(config.lane_width // config.rank)),
                "gated": Out(1),
                "triple": Out(1),
                "word": Out(8 * config.lane_width),
                "sums": In(signed(config.lane_sum_bits)).array(config.lanes),
                "o_valid": Out(1),
                "totals": Out(signed(config.accumulator_bits)).array(config.lanes),
                "done": Out(1),
            }
        )

    @staticmethod
    def outer_members(config):
        """Ports that the linear unit has from here."""
        memories = config.adapters + 1
        return {
            "memory": In(range(memories)),
            "weight_en": In(config.lanes),
            "weight_addr": In(index_bits(memories * config.adapter_words)),
            "weight_data": In(2 * config.lane_width),
            "scale_en": In(1),
            "scale_addr": In(index_bits(memories * config.adapter_scales)),
            "scale_data": In(ScalarLayout.size),
        }

    def connect_outer(self, m, unit):
        for name in ("adapt", "adapted", "kind", *self.outer_members(self.config)):
            m.d.comb += getattr(self, name).eq(getattr(unit, name))
        m.d.comb += self.restart.eq(unit.restart & ~unit.busy)

    def lane_inputs(self, lane):
        """What the lane gets beside its ROM's word."""
        high = self.gated if lane % 2 else 0
        return {
            "adapter": self.rams[lane].read_data,
            "source": self.source,
            "sub": self.sub,
            "high": high,
            "triple": self.triple,
        }

    def elaborate(self, platform):
        m = Module()
        config = self.config
        trits, rows = config.adapter_trits, config.lane_width // config.rank
        memories = config.adapters + 1
        parts = max(map(len, config.adapted))
        m.submodules.vector = vector = Intermediate(config)
        m.submodules.join = join = Join(config)
        m.submodules.scales = self.scales

        # The operation, and the parts of its rows: q, k and v one after another.
        of_a, adapted, kind = Signal(), Signal(), Signal(MatrixGroup)
        in_b, digit = Signal(), Signal(range(max(2, trits)))
        digit_last = Signal()
        part, groups_left = Signal(range(max(2, parts))), Signal(16)
        m.d.comb += [
            digit_last.eq(digit == trits - 1),
            self.of_a.eq(of_a),
            self.base.eq(~of_a & ~in_b),
            self.row_end.eq(Mux(in_b | of_a, digit_last & (in_b | self.chunk_last), self.chunk_last & ~adapted)),
            self.first.eq(Mux(in_b, digit == 0, self.chunk_first & (digit == 0))),
            self.base_row.eq(self.issuing & self.row_end & ~of_a),
        ]
        with m.If(self.begin):
            m.d.sync += [
                of_a.eq(self.adapt),
                adapted.eq(self.adapted & ~self.adapt),
                in_b.eq(0),
                digit.eq(0),
                part.eq(0),
                groups_left.eq(config.hidden // config.lanes - 1),
            ]
            with m.If(self.adapt):
                m.d.sync += kind.eq(self.kind)
        with m.Elif(self.issuing):
            with m.If(in_b | (of_a & self.chunk_last)):
                m.d.sync += digit.eq(Mux(digit_last, 0, digit + 1))
            with m.If(in_b):
                m.d.sync += in_b.eq(~digit_last)
            with m.Elif(adapted & self.chunk_last):
                m.d.sync += in_b.eq(1)
            with m.If(self.row_end):
                m.d.sync += groups_left.eq(groups_left - 1)
                with m.If((groups_left == 0) & (kind == MatrixGroup.QKV)):
                    m.d.sync += [part.eq(part + 1), groups_left.eq(config.kv_dim // config.lanes - 1)]

        # Words of the memories.
        address, sub = Signal(index_bits(memories * config.adapter_words)), Signal.like(self.sub)
        with m.If(self.restart):
            with m.Switch(self.memory):
                for memory in range(memories):
                    with m.Case(memory):
                        m.d.sync += address.eq(memory * config.adapter_words)
                        m.d.comb += vector.scale_base.eq(memory * config.adapter_scales)
        with m.Elif(self.issuing & of_a):
            m.d.sync += address.eq(address + 1)
        with m.Elif(self.issuing & in_b):
            m.d.sync += sub.eq(sub + 1)
            with m.If((sub == rows - 1) | (digit_last & self.group_last)):
                m.d.sync += [sub.eq(0), address.eq(address + 1)]
        with m.If(self.begin):
            m.d.sync += sub.eq(0)
        reading, address_1 = Signal(), Signal.like(address)  # the lane holds the ROM's word for a cycle
        m.d.sync += [reading.eq(self.issuing & ~self.base), address_1.eq(address)]
        for i, ram in enumerate(self.rams):
            m.submodules[f"memory_{i}"] = ram
            m.d.comb += [
                ram.write_en.eq(self.weight_en[i]),
                ram.write_addr.eq(self.weight_addr),
                ram.write_data.eq(self.weight_data),
                ram.read_en.eq(reading),
                ram.read_addr.eq(address_1),
            ]
        m.d.comb += [
            self.scales.write_en.eq(self.scale_en),
            self.scales.write_addr.eq(self.scale_addr),
            self.scales.write_data.eq(self.scale_data),
            self.scales.read_en.eq(1),
            self.scales.read_addr.eq(vector.scale_addr),
            vector.scale_data.eq(self.scales.read_data),
        ]

        # With the words of the memories, a cycle after those of the ROM.
        source_1, sub_1, part_1, part_2 = Signal(Source), Signal.like(sub), Signal.like(part), Signal.like(part)
        m.d.sync += [
            source_1.eq(Mux(of_a, Source.A, Mux(in_b, Source.B, Source.ROM))),
            sub_1.eq(sub),
            part_1.eq(part),
            self.source.eq(source_1),
            self.sub.eq(sub_1),
            part_2.eq(part_1),
        ]
        m.d.comb += [self.gated.eq(kind == MatrixGroup.GATED), vector.part.eq(part_2), self.word.eq(vector.word)]

        # With the sums.
        flags = Cat(
            in_b & (digit != 0) | of_a & (digit != 0) & self.chunk_first,  # tripled
            self.issuing & ~of_a & ~in_b & adapted & self.chunk_last,  # the base's sum, to keep
            self.issuing & self.row_end & ~of_a,  # a group for the post stage
            ~adapted,
            self.issuing & self.row_end & of_a,  # a group of A x
            self.issuing & self.row_end & of_a & self.group_last,
            part,
        )
        for stage in range(1, 2 + Lane.DOT_LATENCY):
            delayed = Signal(len(flags), name=f"flags_{stage}")
            m.d.sync += delayed.eq(flags)
            flags = delayed
        standing = Signal(len(flags))
        m.d.sync += standing.eq(flags)
        m.d.comb += [
            self.triple.eq(flags[0]),
            join.keep.eq(standing[1]),
            join.valid.eq(standing[2]),
            join.alone.eq(standing[3]),
            join.part.eq(standing[6:]),
            join.odd.eq(self.gated),
            join.narrow.eq(self.mode == PostMode.GATED),
            self.o_valid.eq(join.o_valid),
            vector.start.eq(self.begin & self.adapt),
            vector.kind.eq(kind),
            vector.valid.eq(standing[4]),
            vector.final.eq(standing[5]),
            vector.scale_restart.eq(self.restart),
            self.done.eq(vector.done),
        ]
        for i in range(config.lanes):
            m.d.comb += [
                vector.sums[i].eq(self.sums[i]),
                join.sums[i].eq(self.sums[i]),
                self.totals[i].eq(join.totals[i]),
            ]
        for p in range(parts):
            m.d.comb += [join.mantissas[p].eq(vector.mantissas[p]), join.shifts[p].eq(vector.shifts[p])]
        return m
