"""One lane: decodes its weight word, forms the dot product with the activations of every slot and accumulates the chunks of a row."""

from typing import Any

from amaranth.hdl import ClockDomain, Module, Mux, Signal, signed
from amaranth.lib import enum, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.ternary.adders import AdderDot
from intaglio.rtl.ternary.packing import Unpack
from intaglio.rtl.ternary.tables import PairCode, PairTables, TableDot, added
from intaglio.rtl.ternary.tree import BitPlanes, TernaryDot

__all__ = ["FORMS", "LANE_MODULE", "PLANES_MODULE", "TABLES_MODULE", "Lane", "Source", "lane_designs"]

LANE_MODULE = "intaglio_lane"
PLANES_MODULE, TABLES_MODULE = "intaglio_planes", "intaglio_tables"


FORMS: dict[str, tuple[str, Any, Any]] = {
    "planes": (PLANES_MODULE, BitPlanes, TernaryDot),
    "adders": (PLANES_MODULE, BitPlanes, AdderDot),
    "tables": (TABLES_MODULE, PairTables, TableDot),
}
"""Of each form of the dot product: the module and the component that stand once for all lanes, and the component in each lane."""


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

    With ``dot="planes"`` or ``"adders"``:

    x : In(lane_width) [batch][8]
        Bit planes of each slot's activations that ``word`` meets, ``LEAD`` cycles after it: one register takes the word as it comes out
        of the ROM, one the unpacked weights.
    masks : In(64) [3]
        ``TernaryDot.MASKS``.

    With ``dot="tables"`` in their place, at the same time:

    x, sums, differences : In
        Of :class:`~intaglio.rtl.ternary.tables.PairTables`.

    Always:

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

    def __init__(self, config):
        self.config = config
        _, shared, self.dot = FORMS[config.dot]
        self.operands = shared.operands(config.lane_width)
        members = {
            "word": In(config.weight_word_bits),
            **{name: In(shape).array(config.batch, count) for name, (shape, count) in self.operands.items()},
            "masks": In(64).array(len(self.dot.MASKS)),
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
        config = self.config
        if config.packing != "pairs":
            m.submodules.unpack = unpack = Unpack(config.packing, config.lane_width)
        word = Signal(config.weight_word_bits, name="held", reset_less=True)
        if config.packing == "pairs":
            weights = {"code": self._code_of(m, word)}
        else:
            weights = {name: self._chosen(m, name, getattr(unpack, name)) for name in ("plus", "minus")}
            if config.dot == "tables":
                weights = {"code": self._code(m, **weights)}
        registers = {name: Signal(len(value), name=name, reset_less=True) for name, value in weights.items()}
        m.d.sync += [word.eq(self.word), *(register.eq(weights[name]) for name, register in registers.items())]
        m.d.comb += unpack.word.eq(word) if config.packing != "pairs" else []
        for s, dot in enumerate(self.dot(config.lane_width) for _ in range(config.batch)):
            m.submodules[f"dot_{s}"] = dot
            accumulator = Signal(signed(config.lane_sum_bits), name=f"accumulator_{s}", reset_less=True)
            m.d.comb += [getattr(dot, name).eq(register) for name, register in registers.items()]
            m.d.comb += self.sum[s].eq(accumulator)
            for name in self.operands:
                m.d.comb += [a.eq(b) for a, b in zip(getattr(dot, name), getattr(self, name)[s], strict=True)]
            m.d.comb += [dot.masks[k].eq(self.masks[k]) for k in range(len(dot.MASKS))]
            before = Mux(self.first, 0, accumulator)
            if config.rank and config.adapter_trits > 1:
                before = before + Mux(self.triple & ~self.first, accumulator << 1, 0)
            total = before + dot.sum
            if config.dot == "tables":
                total = added(m, before, dot.sum, dot.negative, f"total_{s}")
            with m.If(self.enable):
                m.d.sync += accumulator.eq(total)
        return m

    def _code_of(self, m, word):
        """Code of the pairs of weights: that of the ROM's word, or with adapters that which ``source`` says."""
        if not self.config.rank:
            return word
        loaded = self._code(m, self._loaded(m, "plus"), self._loaded(m, "minus"))
        return Mux(self.source == Source.ROM, word, loaded)

    def _code(self, m, plus, minus):
        m.submodules.code = code = PairCode(self.config.lane_width)
        m.d.comb += [code.plus.eq(plus), code.minus.eq(minus)]
        return code.code

    def _chosen(self, m, name, read):
        """Plus or minus bits of the weights: those of the ROM, or with adapters those that ``source`` says."""
        if not self.config.rank:
            return read
        return Mux(self.source == Source.ROM, read, self._loaded(m, name))

    def _loaded(self, m, name):
        """Plus or minus bits of the weights of an adapter, where ``source`` is not the ROM."""
        width, rank = self.config.lane_width, self.config.rank
        loaded = self.adapter[:width] if name == "plus" else self.adapter[width:]
        row, placed = Signal(rank, name=f"row_{name}"), Signal(width, name=f"placed_{name}")
        m.d.comb += [row.eq(loaded.word_select(self.sub, rank)), placed.eq(Mux(self.high, row << rank, row))]
        return Mux(self.source == Source.A, loaded, placed)


def lane_designs(config):
    """The modules that :class:`LinearUnit` instantiates with ``lane_instance``: tuples of name, design and ports for conversion.

    ``intaglio_lane``: clk, word, masks0.., enable, first, of every slot ``s`` x<s>_0.. and sum<s>, with adapters also adapter, source, sub,
    high, triple;
    ``intaglio_planes``: data, masks0..masks5, x0..x7. With tables: no masks, but sums<s>_0.. and differences<s>_0.. to
    ``intaglio_lane``, from ``intaglio_tables``: clk, data, x0.., sums0.., differences0...
    """
    module, shared, _ = FORMS[config.dot]
    lane, operands = Lane(config), shared(config.lane_width)
    m, clk = _clocked(lane)
    ports = {"clk": clk, "word": lane.word, "enable": lane.enable, "first": lane.first}
    for s in range(config.batch):
        ports |= {f"{name}{s}_{k}": value for name in lane.operands for k, value in enumerate(getattr(lane, name)[s])}
        ports |= {f"sum{s}": lane.sum[s]}
    names = [*lane.operands, "masks"]
    ports |= _numbered(lane, ["masks"])
    if config.rank:
        ports |= {
            "adapter": lane.adapter,
            "source": lane.source.as_value(),
            "sub": lane.sub,
            "high": lane.high,
            "triple": lane.triple,
        }
    yield LANE_MODULE, m, _named(ports)
    ports = {"data": operands.data} | _numbered(operands, names)
    if shared.LATENCY:
        operands, clk = _clocked(operands)
        ports["clk"] = clk
    yield module, operands, _named(ports)


def _clocked(design):
    """A module with ``design`` and a clock for its port ``clk``."""
    m = Module()
    m.domains.sync = domain = ClockDomain(reset_less=True)
    m.submodules.lane = design
    return m, domain.clk


def _numbered(design, names):
    return {f"{name}{k}": value for name in names for k, value in enumerate(getattr(design, name))}


def _named(ports):
    return {name: (value, None) for name, value in ports.items()}
