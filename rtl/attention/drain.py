"""Results of a (head, query block): the accumulators of its rows over their sums, a few a cycle."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.attention import INVERSE
from intaglio.rtl.arithmetic.divider import Divider
from intaglio.rtl.arithmetic.numerics import INT16_MAX, MANTISSA
from intaglio.rtl.attention.softmax import EXPONENT_BITS
from intaglio.rtl.attention.states import SHIFT_BITS
from intaglio.rtl.bus.streams import BLOCK_BITS
from intaglio.rtl.memory.ram import index_bits

__all__ = ["Drain", "drain_cycles", "results"]

PIPELINE = 5


def results(config):
    """``drain`` results of consecutive queries in one channel: int16 in steps of ``2^exponent / 254``; ``last`` of a (head, query block).

    Beats of a block come row group by row group, in it channel by channel, in it by ascending query.
    """
    return data.StructLayout(
        {
            "values": data.ArrayLayout(signed(16), config.drain),
            "head": index_bits(config.group),
            "block": BLOCK_BITS,
            "exponent": signed(EXPONENT_BITS),
            "last": 1,
        }
    )


def drain_cycles(config, groups=None):
    """Cycles from ``start`` to ``done`` of so many row groups (all without) if every read is granted at once and every result taken."""
    group = 4 + config.columns + Divider.cycles() + 1 + config.head_dim * (config.columns // config.drain + 1)
    return (groups or config.row_groups) * group + PIPELINE


class Drain(wiring.Component):
    """Divides the accumulators of a slot by their sums and sends the means.

    Parameters
    ----------
    config : PrefillConfig

    Members
    -------
    start : In(1), slot, head, block, final_group : In
        Begin with a slot whose last tile has been merged; ``final_group`` is its last row group. Ignored while ``busy``.
    walk : Out(1), walk_address : Out, walk_granted : In(1)
        Asks for the sums of a row group; ``lane_valid``, ``lane_mantissa``, ``lane_shift``, ``word_exponent`` of
        :class:`~intaglio.rtl.attention.states.RowStates` then bring them.
    read : Out(1), read_address, read_channel : Out, read_granted : In(1), word : In
        Reads accumulators, see :class:`~intaglio.rtl.attention.accumulate.Accumulators`.
    o : Out(stream of :func:`results`)
    done : Out(1)
        With the cycle in which the last beat is taken.
    busy : Out(1)

    Latency: :func:`drain_cycles`. Throughput: ``columns / drain + 1`` cycles a channel of a row group.
    """

    def __init__(self, config):
        self.config = config
        words, lanes = config.slots * config.row_groups, config.columns
        super().__init__(
            {
                "start": In(1),
                "slot": In(index_bits(config.slots)),
                "head": In(index_bits(config.group)),
                "block": In(BLOCK_BITS),
                "final_group": In(index_bits(config.row_groups)),
                "walk": Out(1),
                "walk_address": Out(index_bits(words)),
                "walk_granted": In(1),
                "lane_valid": In(1),
                "lane_mantissa": In(MANTISSA),
                "lane_shift": In(SHIFT_BITS),
                "word_exponent": In(signed(EXPONENT_BITS)),
                "read": Out(1),
                "read_address": Out(index_bits(words)),
                "read_channel": Out(index_bits(config.head_dim)),
                "read_granted": In(1),
                "word": In(signed(config.value_bits)).array(lanes),
                "o": Out(stream.Signature(results(config))),
                "done": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c = self.config
        chunks = c.columns // c.drain
        m.submodules.divider = divider = Divider(SHIFT_BITS)
        slot, head, block, final_group = (
            Signal.like(given) for given in (self.slot, self.head, self.block, self.final_group)
        )
        group, channel, chunk = (
            Signal(index_bits(c.row_groups)),
            Signal(index_bits(c.head_dim)),
            Signal(index_bits(chunks)),
        )
        inverses = Signal(c.columns * MANTISSA, reset_less=True)
        shifts_held = Signal(c.columns * SHIFT_BITS, reset_less=True)
        word, count = Signal(c.columns * c.value_bits, reset_less=True), Signal(range(c.columns))
        step, feed, final = Signal(), Signal(), Signal()
        m.d.comb += [
            divider.i_valid.eq(self.lane_valid & self.busy),
            divider.i_numerator.eq(INVERSE),
            divider.i_denominator.eq(self.lane_mantissa),
            divider.i_tag.eq(self.lane_shift),
            self.walk_address.eq(slot * c.row_groups + group),
            self.read_address.eq(self.walk_address),
            self.read_channel.eq(channel),
        ]
        with m.If(divider.o_valid):
            m.d.sync += [
                inverses.eq(Cat(inverses[MANTISSA:], divider.o_quotient)),
                shifts_held.eq(Cat(shifts_held[SHIFT_BITS:], divider.o_tag)),
            ]
        last_channel, last_group, last_chunk = channel == c.head_dim - 1, group == final_group, chunk == chunks - 1
        m.d.comb += self.busy.eq(1)
        with m.FSM(name="state"):
            with m.State("IDLE"):
                m.d.comb += self.busy.eq(0)
                m.d.sync += [slot.eq(self.slot), head.eq(self.head), block.eq(self.block), group.eq(0)]
                m.d.sync += final_group.eq(self.final_group)
                with m.If(self.start):
                    m.next = "WALK"
            with m.State("WALK"):
                m.d.comb += self.walk.eq(1)
                with m.If(self.walk_granted):
                    m.d.sync += count.eq(0)
                    m.next = "DIVIDE"
            with m.State("DIVIDE"):
                with m.If(divider.o_valid):
                    m.d.sync += count.eq(count + 1)
                    with m.If(count == c.columns - 1):
                        m.d.sync += channel.eq(0)
                        m.next = "READ"
            with m.State("READ"):
                m.d.comb += self.read.eq(1)
                with m.If(self.read_granted):
                    m.next = "WORD"
            with m.State("WORD"):
                m.d.sync += [word.eq(Cat(*self.word)), chunk.eq(0)]
                m.next = "BEATS"
            with m.State("BEATS"):
                m.d.comb += [feed.eq(1), final.eq(last_channel & last_group & last_chunk)]
                with m.If(step):
                    m.d.sync += [chunk.eq(chunk + 1), word.eq(word >> c.drain * c.value_bits)]
                    with m.If(last_chunk):
                        m.d.sync += channel.eq(channel + 1)
                        with m.If(~last_channel):
                            m.d.comb += [self.read.eq(1), self.read_channel.eq(channel + 1)]
                            m.next = "READ"
                            with m.If(self.read_granted):
                                m.next = "WORD"
                        with m.Elif(last_group):
                            m.next = "FLUSH"
                        with m.Else():
                            m.d.sync += group.eq(group + 1)
                            m.next = "WALK"
            with m.State("FLUSH"):
                with m.If(self.done):
                    m.next = "IDLE"

        valid, last = ([Signal(name=f"{name}_{i}") for i in range(PIPELINE)] for name in ("valid", "last"))
        exponents = [Signal(signed(EXPONENT_BITS), name=f"exponent_{i}", reset_less=True) for i in range(PIPELINE)]
        result = self.o.payload
        m.d.comb += [
            step.eq(~valid[-1] | self.o.ready),
            self.o.valid.eq(valid[-1]),
            self.done.eq(self.o.valid & self.o.ready & last[-1]),
            result.head.eq(head),
            result.block.eq(block),
            result.exponent.eq(exponents[-1]),
            result.last.eq(last[-1]),
        ]
        with m.If(step):
            for start, chain in ((feed, valid), (final, last), (self.word_exponent, exponents)):
                m.d.sync += [after.eq(before) for before, after in zip([start, *chain], chain, strict=False)]
        bits = c.value_bits + MANTISSA + 1
        for lane in range(c.drain):
            value, inverse = (
                Signal(signed(c.value_bits), name=f"value_{lane}", reset_less=True),
                Signal(MANTISSA, name=f"inverse_{lane}"),
            )
            shifts = [Signal(SHIFT_BITS, name=f"shift_{lane}_{i}", reset_less=True) for i in range(3)]
            product, again = (
                Signal(signed(bits), name=f"{name}_{lane}", reset_less=True) for name in ("product", "again")
            )
            twice = Signal(signed(bits + 1), name=f"twice_{lane}", reset_less=True)
            rounded = Signal(signed(bits + 1), name=f"rounded_{lane}")
            mean = Signal(signed(16), name=f"mean_{lane}", reset_less=True)
            first = Cat(*(inverses.word_select(i + lane, MANTISSA) for i in range(0, c.columns, c.drain)))
            falls = Cat(*(shifts_held.word_select(i + lane, SHIFT_BITS) for i in range(0, c.columns, c.drain)))
            m.d.comb += [rounded.eq((twice + 1) >> 1), result["values"][lane].eq(mean)]
            with m.If(step):
                m.d.sync += [
                    value.eq(word.word_select(lane, c.value_bits)),
                    inverse.eq(first.word_select(chunk, MANTISSA)),
                    shifts[0].eq(falls.word_select(chunk, SHIFT_BITS)),
                    shifts[1].eq(shifts[0]),
                    shifts[2].eq(shifts[1]),
                    product.eq(value * inverse),
                    again.eq(product),
                    twice.eq(Cat(0, again).as_signed() >> shifts[2]),
                    mean.eq(Mux(rounded > INT16_MAX, INT16_MAX, Mux(rounded < -INT16_MAX, -INT16_MAX, rounded))),
                ]
        return m
