"""One lane: decodes its weight word, forms the dot product with the shared activations and accumulates the chunks of a row."""

from amaranth.hdl import ClockDomain, Module, Mux, Signal, signed
from amaranth.lib import enum, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.ternary.packing import Unpack
from intaglio.rtl.ternary.tree import PLANES, BitPlanes, TernaryDot

__all__ = ["LANE_MODULE", "PLANES_MODULE", "Lane", "Source", "lane_designs"]

LANE_MODULE = "intaglio_lane"
PLANES_MODULE = "intaglio_planes"


class Source(enum.Enum, shape=2):
    """Where the weights of a cycle come from."""

    ROM = 0
    A = 1  # a word of the adapter's memory
    B = 2  # a row of B in a word of the adapter's memory


class Lane(wiring.Component):
    """Lane of the linear unit.

    Members
    -------
    word : In(weight_word_bits)
        Weights, from the lane's ROM.
    x : In(lane_width) [8]
        Bit planes of the activations that ``word`` meets, in the same cycle.
    masks : In(64) [3]
        ``Lane.MASKS``.
    enable, first : In(1)
        ``DOT_LATENCY`` cycles after ``word``: add its dot product to ``sum``; ``first`` starts from 0 instead.
    sum : Out(signed(lane_sum_bits))
        A cycle after ``enable``.

    With adapters also:

    adapter : In(2 * lane_width)
        Word of the lane's adapter memory, in the cycle of ``word``: plus bits, then minus bits; of a row of B only ``rank`` of each.
    source : In(Source), sub : In(range(lane_width / rank)), high : In(1)
        With ``word``: which of them counts; the row of B in the word, and whether it meets activations ``rank ..`` instead of ``0 ..``.
    triple : In(1)
        With ``enable``: the sum is tripled first (the next ternary digit of a value).

    The decoded word is registered, so that ``x`` comes one cycle after ``word``, and ``enable`` ``latency(config)`` cycles after it.
    """

    DOT_LATENCY = TernaryDot.LATENCY
    MASKS = TernaryDot.MASKS

    def __init__(self, config):
        self.config = config
        members = {
            "word": In(config.weight_word_bits),
            "x": In(config.lane_width).array(PLANES),
            "masks": In(64).array(len(self.MASKS)),
            "enable": In(1),
            "first": In(1),
            "sum": Out(signed(config.lane_sum_bits)),
        }
        if config.rank:
            members |= {"adapter": In(2 * config.lane_width), "source": In(Source), "sub": In(range(config.lane_width // config.rank)),
                        "high": In(1), "triple": In(1)}
        super().__init__(members)

    @classmethod
    def latency(cls, config):
        """Cycles from a word to its dot product."""
        return cls.DOT_LATENCY + bool(config.rank)

    def elaborate(self, platform):
        m = Module()
        m.submodules.unpack = unpack = Unpack(self.config.packing, self.config.lane_width)
        m.submodules.dot = dot = TernaryDot(self.config.lane_width)
        accumulator = Signal(signed(self.config.lane_sum_bits), reset_less=True)
        m.d.comb += unpack.word.eq(self.word)
        if self.config.rank:
            self._select(m, unpack, dot)
        else:
            m.d.comb += [dot.plus.eq(unpack.plus), dot.minus.eq(unpack.minus)]
        m.d.comb += self.sum.eq(accumulator)
        m.d.comb += [dot.x[b].eq(self.x[b]) for b in range(PLANES)]
        m.d.comb += [dot.masks[k].eq(self.masks[k]) for k in range(len(self.MASKS))]
        before = Mux(self.first, 0, accumulator)
        if self.config.rank and self.config.adapter_trits > 1:
            before = before + Mux(self.triple & ~self.first, accumulator << 1, 0)
        with m.If(self.enable):
            m.d.sync += accumulator.eq(before + dot.sum)
        return m

    def _select(self, m, unpack, dot):
        """Weights from the ROM, or from the adapter's memory."""
        width, rank = self.config.lane_width, self.config.rank
        planes = ((unpack.plus, self.adapter[:width], dot.plus), (unpack.minus, self.adapter[width:], dot.minus))
        for name, (read, loaded, used) in zip(("plus", "minus"), planes, strict=True):
            row, placed = Signal(rank, name=f"row_{name}"), Signal(width, name=f"placed_{name}")
            chosen = Signal(width, name=f"chosen_{name}", reset_less=True)
            m.d.comb += [row.eq(loaded.word_select(self.sub, rank)), placed.eq(Mux(self.high, row << rank, row)), used.eq(chosen)]
            m.d.sync += chosen.eq(Mux(self.source == Source.ROM, read, Mux(self.source == Source.A, loaded, placed)))


def lane_designs(config):
    """The modules that :class:`LinearUnit` instantiates with ``lane_instance``: tuples of name, design and ports for conversion.

    ``intaglio_lane``: clk, word, x0..x7, masks0..masks2, enable, first, sum, with adapters also adapter, source, sub, high, triple;
    ``intaglio_planes``: data, masks0..masks5, x0..x7.
    """
    lane, planes = Lane(config), BitPlanes(config.lane_width)
    m = Module()
    m.domains.sync = domain = ClockDomain(reset_less=True)
    m.submodules.lane = lane
    ports = {"clk": domain.clk, "word": lane.word, "enable": lane.enable, "first": lane.first, "sum": lane.sum}
    ports |= _numbered("x", lane.x, PLANES) | _numbered("masks", lane.masks, len(Lane.MASKS))
    if config.rank:
        ports |= {"adapter": lane.adapter, "source": lane.source.as_value(), "sub": lane.sub, "high": lane.high, "triple": lane.triple}
    yield LANE_MODULE, m, _named(ports)
    ports = {"data": planes.data} | _numbered("x", planes.x, PLANES) | _numbered("masks", planes.masks, len(BitPlanes.MASKS))
    yield PLANES_MODULE, planes, _named(ports)


def _numbered(name, values, count):
    return {f"{name}{k}": values[k] for k in range(count)}


def _named(ports):
    return {name: (value, None) for name, value in ports.items()}
