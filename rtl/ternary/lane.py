"""One lane: decodes its weight word, forms the dot product with the activations of every slot and accumulates the chunks of a row."""

from amaranth.hdl import ClockDomain, Module, Mux, Signal, signed
from amaranth.lib import enum, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.ternary.adders import AdderDot
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
    x : In(lane_width) [batch][8]
        Bit planes of each slot's activations that ``word`` meets, ``LEAD`` cycles after it: one register takes the word as it comes out
        of the ROM, one the unpacked weights.
    masks : In(64) [3]
        ``Lane.MASKS``.
    enable, first : In(1)
        ``DOT_LATENCY`` cycles after ``word``: add its dot product to ``sum``; ``first`` starts from 0 instead.
    sum : Out(signed(lane_sum_bits)) [batch]
        A cycle after ``enable``.

    With adapters also:

    adapter : In(2 * lane_width)
        Word of the lane's adapter memory, a cycle after ``word``: plus bits, then minus bits; of a row of B only ``rank`` of each.
    source : In(Source), sub : In(range(lane_width / rank)), high : In(1)
        With ``adapter``: which of the two counts; the row of B in the word, and whether it meets activations from ``rank`` on, not from 0.
    triple : In(1)
        With ``enable``: the sum is tripled first (the next ternary digit of a value).
    """

    LEAD = 2
    DOT_LATENCY = LEAD + TernaryDot.LATENCY
    MASKS = TernaryDot.MASKS

    def __init__(self, config):
        self.config = config
        members = {
            "word": In(config.weight_word_bits),
            "x": In(config.lane_width).array(config.batch, PLANES),
            "masks": In(64).array(len(self.MASKS)),
            "enable": In(1),
            "first": In(1),
            "sum": Out(signed(config.lane_sum_bits)).array(config.batch),
        }
        if config.rank:
            members |= {
                "adapter": In(2 * config.lane_width),
                "source": In(Source),
                "sub": In(range(config.lane_width // config.rank)),
                "high": In(1),
                "triple": In(1),
            }
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        m.submodules.unpack = unpack = Unpack(self.config.packing, self.config.lane_width)
        word = Signal(self.config.weight_word_bits, name="held", reset_less=True)
        plus, minus = (Signal(self.config.lane_width, name=name, reset_less=True) for name in ("plus", "minus"))
        m.d.sync += [
            word.eq(self.word),
            plus.eq(self._chosen(m, "plus", unpack.plus)),
            minus.eq(self._chosen(m, "minus", unpack.minus)),
        ]
        m.d.comb += unpack.word.eq(word)
        kind = {"planes": TernaryDot, "adders": AdderDot}[self.config.dot]
        for s, dot in enumerate(kind(self.config.lane_width) for _ in range(self.config.batch)):
            m.submodules[f"dot_{s}"] = dot
            accumulator = Signal(signed(self.config.lane_sum_bits), name=f"accumulator_{s}", reset_less=True)
            m.d.comb += [dot.plus.eq(plus), dot.minus.eq(minus), self.sum[s].eq(accumulator)]
            m.d.comb += [dot.x[b].eq(self.x[s][b]) for b in range(PLANES)]
            m.d.comb += [dot.masks[k].eq(self.masks[k]) for k in range(len(self.MASKS))]
            before = Mux(self.first, 0, accumulator)
            if self.config.rank and self.config.adapter_trits > 1:
                before = before + Mux(self.triple & ~self.first, accumulator << 1, 0)
            with m.If(self.enable):
                m.d.sync += accumulator.eq(before + dot.sum)
        return m

    def _chosen(self, m, name, read):
        """Plus or minus bits of the weights: those of the ROM, or with adapters those that ``source`` says."""
        width, rank = self.config.lane_width, self.config.rank
        if not rank:
            return read
        loaded = self.adapter[:width] if name == "plus" else self.adapter[width:]
        row, placed = Signal(rank, name=f"row_{name}"), Signal(width, name=f"placed_{name}")
        m.d.comb += [row.eq(loaded.word_select(self.sub, rank)), placed.eq(Mux(self.high, row << rank, row))]
        return Mux(self.source == Source.ROM, read, Mux(self.source == Source.A, loaded, placed))


def lane_designs(config):
    """The modules that :class:`LinearUnit` instantiates with ``lane_instance``: tuples of name, design and ports for conversion.

    ``intaglio_lane``: clk, word, masks0..masks2, enable, first, of every slot ``s`` x<s>_0..x<s>_7 and sum<s>, with adapters also
    adapter, source, sub, high, triple;
    ``intaglio_planes``: data, masks0..masks5, x0..x7.
    """
    lane, planes = Lane(config), BitPlanes(config.lane_width)
    m = Module()
    m.domains.sync = domain = ClockDomain(reset_less=True)
    m.submodules.lane = lane
    ports = {"clk": domain.clk, "word": lane.word, "enable": lane.enable, "first": lane.first}
    for s in range(config.batch):
        ports |= _numbered(f"x{s}_", lane.x[s], PLANES) | {f"sum{s}": lane.sum[s]}
    ports |= _numbered("masks", lane.masks, len(Lane.MASKS))
    if config.rank:
        ports |= {
            "adapter": lane.adapter,
            "source": lane.source.as_value(),
            "sub": lane.sub,
            "high": lane.high,
            "triple": lane.triple,
        }
    yield LANE_MODULE, m, _named(ports)
    ports = (
        {"data": planes.data}
        | _numbered("x", planes.x, PLANES)
        | _numbered("masks", planes.masks, len(BitPlanes.MASKS))
    )
    yield PLANES_MODULE, planes, _named(ports)


def _numbered(name, values, count):
    return {f"{name}{k}": values[k] for k in range(count)}


def _named(ports):
    return {name: (value, None) for name, value in ports.items()}
