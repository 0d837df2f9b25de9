"""One lane: decodes its weight word, forms the dot product with the shared activations and accumulates the chunks of a row."""

from amaranth.hdl import ClockDomain, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.ternary.adders import AdderDot
from intaglio.rtl.ternary.packing import Unpack
from intaglio.rtl.ternary.tree import PLANES, BitPlanes, TernaryDot

__all__ = ["LANE_MODULE", "PLANES_MODULE", "Lane", "lane_designs"]

LANE_MODULE = "intaglio_lane"
PLANES_MODULE = "intaglio_planes"


class Lane(wiring.Component):
    """Lane of the linear unit.

    Members
    -------
    word : In(weight_word_bits)
        Weights, from the lane's ROM.
    x : In(lane_width) [8]
        Bit planes of the activations that ``word`` meets, ``LEAD`` cycles after it: one register takes the word as it comes out
        of the ROM, one the unpacked weights.
    masks : In(64) [3]
        ``Lane.MASKS``.
    enable, first : In(1)
        ``DOT_LATENCY`` cycles after ``word``: add its dot product to ``sum``; ``first`` starts from 0 instead.
    sum : Out(signed(accumulator_bits))
        A cycle after ``enable``.
    """

    LEAD = 2
    DOT_LATENCY = LEAD + TernaryDot.LATENCY
    MASKS = TernaryDot.MASKS

    def __init__(self, config):
        self.config = config
        super().__init__({
            "word": In(config.weight_word_bits),
            "x": In(config.lane_width).array(PLANES),
            "masks": In(64).array(len(self.MASKS)),
            "enable": In(1),
            "first": In(1),
            "sum": Out(signed(config.accumulator_bits)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.unpack = unpack = Unpack(self.config.packing, self.config.lane_width)
        m.submodules.dot = dot = {"planes": TernaryDot, "adders": AdderDot}[self.config.dot](self.config.lane_width)
        accumulator = Signal(signed(self.config.accumulator_bits), reset_less=True)
        word = Signal(self.config.weight_word_bits, name="held", reset_less=True)
        plus, minus = (Signal(self.config.lane_width, name=name, reset_less=True) for name in ("plus", "minus"))
        m.d.sync += [word.eq(self.word), plus.eq(unpack.plus), minus.eq(unpack.minus)]
        m.d.comb += [unpack.word.eq(word), dot.plus.eq(plus), dot.minus.eq(minus), self.sum.eq(accumulator)]
        m.d.comb += [dot.x[b].eq(self.x[b]) for b in range(PLANES)]
        m.d.comb += [dot.masks[k].eq(self.masks[k]) for k in range(len(self.MASKS))]
        with m.If(self.enable):
            m.d.sync += accumulator.eq(Mux(self.first, 0, accumulator) + dot.sum)
        return m


def lane_designs(config):
    """The modules that :class:`LinearUnit` instantiates with ``lane_instance``: tuples of name, design and ports for conversion.

    ``intaglio_lane``: clk, word, x0..x7, masks0..masks2, enable, first, sum; ``intaglio_planes``: data, masks0..masks5, x0..x7.
    """
    lane, planes = Lane(config), BitPlanes(config.lane_width)
    m = Module()
    m.domains.sync = domain = ClockDomain(reset_less=True)
    m.submodules.lane = lane
    ports = {"clk": domain.clk, "word": lane.word, "enable": lane.enable, "first": lane.first, "sum": lane.sum}
    ports |= _numbered("x", lane.x, PLANES) | _numbered("masks", lane.masks, len(Lane.MASKS))
    yield LANE_MODULE, m, _named(ports)
    ports = {"data": planes.data} | _numbered("x", planes.x, PLANES) | _numbered("masks", planes.masks, len(BitPlanes.MASKS))
    yield PLANES_MODULE, planes, _named(ports)


def _numbered(name, values, count):
    return {f"{name}{k}": values[k] for k in range(count)}


def _named(ports):
    return {name: (value, None) for name, value in ports.items()}
