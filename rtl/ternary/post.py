"""Post stage of the linear unit: row sums to results, to the result buffer or into the residual stream."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import enum, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from intaglio.rtl.arithmetic.silu import Silu
from intaglio.rtl.ternary.slot import RESIDUAL_BITS, PostSlot

__all__ = ["RESIDUAL_BITS", "Post", "PostMode", "r_address_bits", "x_address_bits"]


class PostMode(enum.Enum, shape=2):
    """What becomes of the row sums ``a_0 .. a_lanes-1`` of a group."""

    RAW = 0  # a_i to R
    GATED = 1  # relu(a_2j)^2 * a_2j+1, or silu(a_2j * m * 2^e) * a_2j+1, to R
    RESIDUAL = 2  # X + ((a_i * m + (1 << (rs - 1))) >> rs), saturated, to X


def x_address_bits(config):
    """Bits of an address of buffer X (``hidden / vector_width`` words)."""
    return max(1, ceil_log2(config.hidden // config.vector_width))


def r_address_bits(config):
    """Bits of an address of buffer R (as many elements as q, k and v, or the gated product, whichever is more)."""
    return max(1, ceil_log2(-(-max(config.qkv_rows, config.intermediate) // config.vector_width)))


class Post(wiring.Component):
    """Results of one group of rows a cycle, of ``batch`` slots in lockstep: addresses and enables are theirs together.

    Parameters
    ----------
    config : DecoderConfig
    external : bool
        The ROM of the SiLU, if there is one, is an external image.

    Members
    -------
    clear : In(1)
        Start of an operation: results count from element 0, magnitudes from 0.
    mode : In(PostMode), scale_m : In(16) [batch], scale_e : In(signed(10)) [batch]
        Stable from the cycle before the first ``valid`` until the operation's last write; the scale counts for RESIDUAL, and for GATED
        with SiLU, where it is the gate's.
    valid : In(1), sums : In(signed(accumulator_bits)) [batch][lanes]
        Row sums of the next group.
    x_*, r_*, x_or, r_or
        As of :class:`~intaglio.rtl.ternary.linear.LinearUnit`.
    write : Out(1)
        The results of a group are being written in this cycle, ``LATENCY + extra(config, mode)`` cycles after ``valid``.
    """

    LATENCY = 3

    @staticmethod
    def extra(config, mode):
        """Cycles that a mode takes more than ``LATENCY``: SiLU, its argument before it and the product with its result after it."""
        return Silu.LATENCY + 3 if config.activation == "silu" and mode == PostMode.GATED else 0

    def __init__(self, config, external=True):
        self.config, self.external = config, external
        width, lanes, batch = config.vector_width, config.lanes, config.batch
        x_bits, r_bits = x_address_bits(config), r_address_bits(config)
        super().__init__(
            {
                "clear": In(1),
                "mode": In(PostMode),
                "scale_m": In(16).array(batch),
                "scale_e": In(signed(10)).array(batch),
                "valid": In(1),
                "sums": In(signed(config.accumulator_bits)).array(batch, lanes),
                "x_rd_addr": Out(x_bits),
                "x_rd_data": In(width * RESIDUAL_BITS).array(batch),
                "x_wr_en": Out(width // lanes),
                "x_wr_addr": Out(x_bits),
                "x_wr_data": Out(lanes * RESIDUAL_BITS).array(batch),
                "r_wr_en": Out(2 * width // lanes),
                "r_wr_addr": Out(r_bits),
                "r_wr_data": Out(lanes * config.result_bits).array(batch),
                "x_or": Out(RESIDUAL_BITS - 1).array(batch),
                "r_or": Out(config.result_bits - 1).array(batch),
                "write": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        place_bits = ceil_log2(config.vector_width // config.lanes)
        with_silu = config.activation == "silu"
        valid = [self.valid, Signal(name="valid_1"), Signal(name="valid_2"), self.write]
        if with_silu:
            valid[3] = Signal(name="valid_3")
        group = [Signal(max(x_address_bits(config), r_address_bits(config)) + place_bits + 1, name="group_1")]
        m.d.sync += [stage.eq(previous) for stage, previous in zip(valid[1:], valid[:-1], strict=True)]
        with m.If(self.clear):
            m.d.sync += group[0].eq(0)
        with m.Elif(valid[1]):
            m.d.sync += group[0].eq(group[0] + 1)
        for stage in (2, 3):
            group.append(Signal.like(group[0], name=f"group_{stage}", reset_less=True))
            m.d.sync += group[-1].eq(group[-2])
        gated, residual = Signal(), Signal()
        m.d.sync += [gated.eq(self.mode == PostMode.GATED), residual.eq(self.mode == PostMode.RESIDUAL)]
        gated_copies_bits = place_bits + 1

        m.d.comb += self.x_rd_addr.eq(group[0] >> place_bits)

        store, r_group = valid[2], group[2]
        if with_silu:  # GATED takes longer, and its results are counted as they are written
            late = valid[2] & gated
            for stage in range(3, 3 + self.extra(config, PostMode.GATED)):
                later = Signal(name=f"gated_{stage}")
                m.d.sync += later.eq(late)
                late = later
            store = Mux(gated, late, valid[2])
            m.d.sync += self.write.eq(store)
            written = Signal.like(group[0], name="written")
            with m.If(self.clear):
                m.d.sync += written.eq(0)
            with m.Elif(self.write & gated):
                m.d.sync += written.eq(written + 1)
            r_group = Mux(gated, written, group[2])

        # Writes. A RAW group fills two granules of R.
        m.d.comb += [
            self.x_wr_addr.eq(group[2] >> place_bits),
            self.r_wr_addr.eq(Mux(gated, r_group >> gated_copies_bits, group[2] >> place_bits)),
        ]
        place, gated_place = group[2][:place_bits], r_group[:gated_copies_bits]
        with m.If(self.write):
            with m.If(residual):
                m.d.comb += self.x_wr_en.eq(1 << place)
            with m.Elif(gated):
                m.d.comb += self.r_wr_en.eq(1 << gated_place)
            with m.Else():
                m.d.comb += self.r_wr_en.eq(3 << Cat(Signal(name="zero"), place))

        for s, slot in enumerate(PostSlot(config, self.external) for _ in range(config.batch)):
            m.submodules[f"slot_{s}"] = slot
            m.d.comb += [
                slot.clear.eq(self.clear),
                slot.valid.eq(Cat(valid[:3])),
                slot.gated.eq(gated),
                slot.place.eq(group[1][:place_bits]),
                slot.store.eq(store),
                slot.write.eq(self.write),
                slot.write_x.eq(self.write & residual),
                *(total.eq(given) for total, given in zip(slot.sums, self.sums[s], strict=True)),
                *(getattr(slot, name).eq(getattr(self, name)[s]) for name in ("scale_m", "scale_e", "x_rd_data")),
                *(
                    getattr(self, name)[s].eq(getattr(slot, name))
                    for name in ("x_wr_data", "r_wr_data", "x_or", "r_or")
                ),
            ]
        return m
