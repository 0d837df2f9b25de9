"""Where an adapter's sum joins the sum of the row: scaled to the matrix's own units, rounded, added, limited."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Join", "JoinLane"]


class JoinLane(wiring.Component):
    """One lane: ``clamp(base + ((((sum * mantissa) >> shift) + 1) >> 1), limit)``.

    Members
    -------
    move : In(3)
        Bit ``k`` moves stage ``k``: products, shifts, sum.
    sum : In(signed(lane_sum_bits)), keep : In(1)
        The lane's sum; ``keep``: it is that of the base, to be remembered for the adapter's, which comes next.
    alone : In(1)
        With ``move[0]``: ``sum`` is the base's and nothing joins it.
    mantissa : In(16), shift : In(6)
        With ``move[0]`` and ``move[1]``.
    narrow : In(1)
        With ``move[2]``: the limit is ``127 * hidden`` (gate and up), else ``127 * max(hidden, intermediate)``.
    total : Out(signed(accumulator_bits))
        Three cycles after ``sum``.
    """

    def __init__(self, config):
        self.config = config
        super().__init__(
            {
                "move": In(3),
                "sum": In(signed(config.lane_sum_bits)),
                "keep": In(1),
                "alone": In(1),
                "mantissa": In(16),
                "shift": In(6),
                "narrow": In(1),
                "total": Out(signed(config.accumulator_bits)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        bits = config.accumulator_bits
        factor_bits = (127 * config.rank * config.adapter_limit).bit_length() + 1
        kept, base_1, base_2 = (
            Signal(signed(bits), name=name, reset_less=True) for name in ("kept", "base_1", "base_2")
        )
        product = Signal(signed(factor_bits + 16), reset_less=True)
        moved = Signal(signed(factor_bits + 16), reset_less=True)
        factor, wide = Signal(signed(factor_bits)), Signal(signed(max(bits, factor_bits + 16) + 1))
        m.d.comb += [factor.eq(Mux(self.alone, 0, self.sum)), wide.eq(base_2 + ((moved + 1) >> 1))]
        with m.If(self.keep):
            m.d.sync += kept.eq(self.sum)
        with m.If(self.move[0]):
            m.d.sync += [product.eq(factor * self.mantissa), base_1.eq(Mux(self.alone, self.sum, kept))]
        with m.If(self.move[1]):
            m.d.sync += [moved.eq(product >> self.shift), base_2.eq(base_1)]
        with m.If(self.move[2]):
            limit = Signal(signed(bits))
            m.d.comb += limit.eq(Mux(self.narrow, 127 * config.hidden, 127 * max(config.hidden, config.intermediate)))
            m.d.sync += self.total.eq(Mux(wide > limit, limit, Mux(wide < -limit, -limit, wide)))
        return m


class Join(wiring.Component):
    """All lanes.

    Members
    -------
    sums, keep, alone
        As of :class:`JoinLane`.
    valid : In(1)
        A group of rows is complete: the sums are the adapter's, or ``alone``.
    part : In(range(parts)), odd : In(1)
        With ``valid``: which part's scale counts; odd lanes take that of part 1 where ``odd``.
    mantissas, shifts : In
        Of :class:`~intaglio.rtl.ternary.adapter.intermediate.Intermediate`.
    narrow : In(1)
        Stable during an operation.
    o_valid : Out(1), totals : Out(signed(accumulator_bits)) [lanes]
        ``LATENCY`` cycles after ``valid``.
    """

    LATENCY = 3

    def __init__(self, config):
        self.config = config
        self.parts = max(map(len, config.adapted))
        super().__init__(
            {
                "sums": In(signed(config.lane_sum_bits)).array(config.lanes),
                "keep": In(1),
                "alone": In(1),
                "valid": In(1),
                "part": In(range(max(2, self.parts))),
                "odd": In(1),
                "narrow": In(1),
                "mantissas": In(16).array(self.parts),
                "shifts": In(6).array(self.parts),
                "o_valid": Out(1),
                "totals": Out(signed(config.accumulator_bits)).array(config.lanes),
            }
        )

    def elaborate(self, platform):
        m = Module()
        move, part = Signal(3), Signal.like(self.part)
        odd = Signal()
        m.d.sync += [
            move[1].eq(self.valid),
            move[2].eq(move[1]),
            self.o_valid.eq(move[2]),
            part.eq(self.part),
            odd.eq(self.odd),
        ]
        m.d.comb += move[0].eq(self.valid)

        def chosen(values, part, name):
            signal = Signal(len(values[0]), name=name)
            with m.Switch(part):
                for p in range(self.parts):
                    with m.Case(p):
                        m.d.comb += signal.eq(values[p])
            return signal

        mantissa, shift = chosen(self.mantissas, self.part, "mantissa"), chosen(self.shifts, part, "shift")
        for i in range(self.config.lanes):
            m.submodules[f"lane_{i}"] = lane = JoinLane(self.config)
            paired = i % 2 and self.parts > 1
            m.d.comb += [
                lane.move.eq(move),
                lane.sum.eq(self.sums[i]),
                lane.keep.eq(self.keep),
                lane.alone.eq(self.alone),
                lane.mantissa.eq(Mux(self.odd, self.mantissas[1], mantissa) if paired else mantissa),
                lane.shift.eq(Mux(odd, self.shifts[1], shift) if paired else shift),
                lane.narrow.eq(self.narrow),
                self.totals[i].eq(lane.total),
            ]
        return m
