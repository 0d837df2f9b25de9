"""Block scores of the index from the probabilities of its second pass."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.attention import MASS_FRACTION, SCORE_BITS, SCORE_WORD
from intaglio.rtl.bus.streams import mass_tag
from intaglio.rtl.memory.ram import index_bits

__all__ = ["BlockMasses"]


class BlockMasses(wiring.Component):
    """Sums the probabilities of one head over a block of keys, apart by the distance of query and key.

    Keys come in any order of row groups and tiles, but head by head and block by block; the sums leave after the last key of a tile
    whose tag has ``finish``. Query i of the representative ones lies in the last block of the grid if ``i >= pad``, else in the one
    before; a key past the query's place in its own block belongs to the next smaller block distance. Hence three classes: the
    distance of the blocks, one less, two less.

    Parameters
    ----------
    config : PrefillConfig

    Members
    -------
    valid : In(1)
    p : In(28).array(columns)
        Probabilities of one key.
    t : In(signed(18)).array(columns)
        Its scores.
    key : In
        Place of the key in its tile.
    tag : In(mass_tag)
    pad : In
        ``blocks * block - tokens``: rows missing in the last block. Stable during a run.
    o_valid : Out(1)
    o_head : Out
    o_mass : Out(36).array(3)
        Sums of p by class.
    o_pool : Out(signed(40))
        Sum of t, all classes.

    Latency: :attr:`LATENCY` cycles from the last key to ``o_valid``. Throughput: one key a cycle.
    """

    LATENCY = 3

    def __init__(self, config):
        self.config = config
        super().__init__(
            {
                "valid": In(1),
                "p": In(MASS_FRACTION).array(config.columns),
                "t": In(signed(SCORE_BITS)).array(config.columns),
                "key": In(index_bits(config.head_dim)),
                "tag": In(mass_tag(config)),
                "pad": In(index_bits(config.block)),
                "o_valid": Out(1),
                "o_head": Out(index_bits(config.group)),
                "o_mass": Out(SCORE_WORD).array(3),
                "o_pool": Out(signed(40)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c = self.config
        bits = (c.block - 1).bit_length()
        place = Signal(bits)
        m.d.comb += place.eq(self.tag.tile * c.head_dim + self.key)
        terms, scores = [[], [], []], []
        for lane in range(c.columns):
            row, before, beyond = (
                Signal(signed(bits + 2), name=f"row_{lane}"),
                Signal(name=f"before_{lane}"),
                Signal(name=f"beyond_{lane}"),
            )
            m.d.comb += [
                row.eq(self.tag.row_group * c.columns + lane - self.pad),
                before.eq(row < 0),
                beyond.eq(place > row[:bits]),
            ]
            chosen = (~before & ~beyond, before ^ beyond, before & beyond)
            for kind, condition in enumerate(chosen):
                terms[kind].append(Mux(condition, self.p[lane], 0))
            scores.append(self.t[lane])

        summed, last, head = Signal(), Signal(2), Signal.like(self.o_head)
        mass = [
            Signal(MASS_FRACTION + c.columns.bit_length(), name=f"mass_{kind}", reset_less=True) for kind in range(3)
        ]
        pool = Signal(signed(SCORE_BITS + c.columns.bit_length()), reset_less=True)
        m.d.sync += [summed.eq(self.valid), last[0].eq(self.valid & (self.key == c.head_dim - 1) & self.tag.finish)]
        with m.If(self.valid):
            m.d.sync += [total.eq(_tree(part)) for total, part in zip([*mass, pool], [*terms, scores], strict=True)]
            m.d.sync += head.eq(self.tag.head)
        m.d.sync += [last[1].eq(last[0]), self.o_valid.eq(last[1])]
        totals = [Signal(SCORE_WORD, name=f"total_{kind}") for kind in range(3)]
        total_pool = Signal(signed(40))
        for total, part, out in zip([*totals, total_pool], [*mass, pool], [*self.o_mass, self.o_pool], strict=True):
            with m.If(summed | last[1]):  # after the last key the sums start anew, with the key that follows at once
                m.d.sync += total.eq(Mux(last[1], 0, total) + Mux(summed, part, 0))
            with m.If(last[1]):
                m.d.sync += out.eq(total)
        held = Signal.like(head)
        m.d.sync += held.eq(head)
        with m.If(last[1]):
            m.d.sync += self.o_head.eq(held)
        return m


def _tree(terms):
    while len(terms) > 1:
        terms = [sum(terms[i + 1 : i + 2], terms[i]) for i in range(0, len(terms), 2)]
    return terms[0]
