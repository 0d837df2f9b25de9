"""One lane: decodes its weight word, forms the dot product with the shared activations and accumulates the chunks of a row."""

from amaranth.back import verilog
from amaranth.hdl import ClockDomain, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.ternary.packing import Unpack
from intaglio.rtl.ternary.tree import PLANES, TernaryDot

__all__ = ["LANE_MODULE", "Lane", "lane_verilog"]

LANE_MODULE = "intaglio_lane"


class Lane(wiring.Component):
    """Lane of the linear unit.

    Members
    -------
    word : In(weight_word_bits)
        Weights, from the lane's ROM.
    x : In(lane_width) [8]
        Bit planes of the activations that ``word`` meets, in the same cycle.
    enable, first : In(1)
        ``DOT_LATENCY`` cycles after ``word``: add its dot product to ``sum``; ``first`` starts from 0 instead.
    sum : Out(signed(accumulator_bits))
        A cycle after ``enable``.
    """

    DOT_LATENCY = TernaryDot.LATENCY

    def __init__(self, config):
        self.config = config
        super().__init__({
            "word": In(config.weight_word_bits),
            "x": In(config.lane_width).array(PLANES),
            "enable": In(1),
            "first": In(1),
            "sum": Out(signed(config.accumulator_bits)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.unpack = unpack = Unpack(self.config.packing, self.config.lane_width)
        m.submodules.dot = dot = TernaryDot(self.config.lane_width)
        accumulator = Signal(signed(self.config.accumulator_bits), reset_less=True)
        m.d.comb += [
            unpack.word.eq(self.word),
            dot.plus.eq(unpack.plus),
            dot.minus.eq(unpack.minus),
            self.sum.eq(accumulator),
        ]
        m.d.comb += [dot.x[b].eq(self.x[b]) for b in range(PLANES)]
        with m.If(self.enable):
            m.d.sync += accumulator.eq(Mux(self.first, 0, accumulator) + dot.sum)
        return m


def lane_verilog(config, name=LANE_MODULE):
    """Verilog of one lane, for :class:`LinearUnit` with ``lane_instance``: ports clk, word, x0..x7, enable, first, sum."""
    lane = Lane(config)
    m = Module()
    m.domains.sync = domain = ClockDomain(reset_less=True)
    m.submodules.lane = lane
    ports = {"clk": (domain.clk, None), "word": (lane.word, None), "enable": (lane.enable, None), "first": (lane.first, None),
             "sum": (lane.sum, None)}
    ports |= {f"x{b}": (lane.x[b], None) for b in range(PLANES)}
    return verilog.convert(m, name=name, ports=ports, emit_src=False)
