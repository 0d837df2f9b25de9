"""What the post stage does for one slot: its row sums, as the control that all slots share says, to results."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from intaglio.rtl.arithmetic.numerics import RESIDUAL_FRACTION
from intaglio.rtl.arithmetic.silu import SILU_BITS, SILU_WORDS, Silu
from intaglio.rtl.memory.copies import COPY

__all__ = ["RESIDUAL_BITS", "PostSlot"]

RESIDUAL_BITS = 32
SPLIT = 16  # bits of relu^2 that one multiplier takes; at most 16, so that they fit where the scale goes


class PostSlot(wiring.Component):
    """Data path of :class:`~intaglio.rtl.ternary.post.Post` for one slot.

    Parameters
    ----------
    config, external
        As of the post stage.

    Members
    -------
    clear, scale_m, scale_e, sums, x_rd_data, x_wr_data, r_wr_data, x_or, r_or
        As of the post stage, of one slot.
    valid : In(3)
        ``valid`` of the post stage, and one and two cycles later.
    gated : In(1)
        The mode is GATED.
    place : In
        Which ``lanes`` elements of ``x_rd_data`` the group is added to.
    store, write, write_x : In(1)
        Take the group's results; they are being written; to X.
    """

    def __init__(self, config, external):
        self.config, self.external = config, external
        width, lanes = config.vector_width, config.lanes
        super().__init__(
            {
                "clear": In(1),
                "valid": In(3),
                "gated": In(1),
                "place": In(max(1, ceil_log2(width // lanes))),
                "store": In(1),
                "write": In(1),
                "write_x": In(1),
                "scale_m": In(16),
                "scale_e": In(signed(10)),
                "sums": In(signed(config.accumulator_bits)).array(lanes),
                "x_rd_data": In(width * RESIDUAL_BITS),
                "x_wr_data": Out(lanes * RESIDUAL_BITS),
                "r_wr_data": Out(lanes * config.result_bits),
                "x_or": Out(RESIDUAL_BITS - 1),
                "r_or": Out(config.result_bits - 1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, lanes, valid, gated = self.config, self.config.lanes, self.valid, self.gated
        copies = config.vector_width // lanes
        with_silu = config.activation == "silu"

        def register(name, shape, value, enable=None, attrs=None):
            signal = Signal(shape, name=name, reset_less=True, attrs=attrs)
            with m.If(1 if enable is None else enable):
                m.d.sync += signal.eq(value)
            return signal

        # Stage 1: products. Stage 2: second product, shift. Stage 3: sums.
        # rs - 1; (p + (1 << (rs - 1))) >> rs = ((p >> (rs - 1)) + 1) >> 1
        less = Signal(signed(12), name="shift_less_1")
        scale_m, scale_e = register("scale_m_0", 16, self.scale_m), register("scale_e_0", signed(10), self.scale_e)
        m.d.comb += less.eq(-scale_e - (RESIDUAL_FRACTION + 1))
        shift = [
            register(f"shift_{i}", 6, Mux(less < 0, 0, Mux(less > 39, 39, less[:6])), attrs=COPY) for i in range(lanes)
        ]
        half = config.gate_bits - 1
        factor_bits = 17 if with_silu else max(17, half + 1)
        old_group = self.x_rd_data.word_select(self.place, lanes * RESIDUAL_BITS) if copies > 1 else self.x_rd_data
        raw, new, combined = [], [], []
        square = gate = None  # of the even lane before
        for i in range(lanes):
            total = self.sums[i]
            raw_1 = register(f"raw_1_{i}", total.shape(), total, valid[0])
            raw.append(register(f"raw_2_{i}", total.shape(), raw_1, valid[1]))
            # GATED borrows the multiplier: of even lanes for relu^2, of odd lanes a stage later for the low part of relu^2 * up.
            left = Signal(signed(config.accumulator_bits), name=f"left_{i}")
            right = Signal(signed(factor_bits), name=f"right_{i}")
            product = Signal(signed(config.accumulator_bits + factor_bits), name=f"product_{i}", reset_less=True)
            if with_silu:
                enable, other_left, other_right = valid[0], total, scale_m
            elif i % 2:
                enable = Mux(gated, valid[1], valid[0])
                other_left, other_right = (
                    register(f"up_{i // 2}", signed(config.gate_bits), total, valid[0]),
                    square[:SPLIT],
                )
            else:
                relu = Signal(half, name=f"relu_{i // 2}")
                m.d.comb += relu.eq(Mux(total[-1], 0, total[:half]))
                enable, other_left, other_right, square = valid[0], relu, relu, product[: 2 * half]
            m.d.comb += [left.eq(Mux(gated, other_left, total)), right.eq(Mux(gated, other_right, scale_m))]
            with m.If(enable):
                m.d.sync += product.eq(left * right)
            if i % 2 and not with_silu:
                high = register(
                    f"high_{i // 2}", signed(config.result_bits - SPLIT), square[SPLIT:] * other_left, valid[1]
                )
                gated_value = Signal(signed(config.result_bits), name=f"gated_{i // 2}")
                m.d.comb += gated_value.eq(product + (high << SPLIT))
                combined.append(gated_value)
            shifted = register(f"shifted_{i}", signed(config.accumulator_bits + 16), product >> shift[i], valid[1])
            if with_silu and i % 2:
                combined.append(self._silu_gate(m, register, i // 2, gate, raw_1[: config.gate_bits].as_signed()))
            gate = shifted
            old = Signal(signed(RESIDUAL_BITS), name=f"old_{i}")
            m.d.comb += old.eq(old_group[i * RESIDUAL_BITS : (i + 1) * RESIDUAL_BITS])
            # old + ((shifted + 1) >> 1) as one addition
            sum_ = Cat(Const(1, 1), old).as_signed() + shifted
            doubled = Signal.like(sum_, name=f"doubled_{i}")  # a wider one would be assigned from its own sign
            m.d.comb += doubled.eq(sum_)
            moved = doubled[1:].as_signed()
            top = moved[RESIDUAL_BITS - 1 :]
            value = Signal(RESIDUAL_BITS, name=f"new_{i}")
            m.d.comb += value.eq(
                Mux(
                    top.all() | ~top.any(),
                    moved[:RESIDUAL_BITS],
                    Mux(moved[-1], 1 << (RESIDUAL_BITS - 1), (1 << (RESIDUAL_BITS - 1)) - 1),
                )
            )
            new.append(value)

        results = []
        for i in range(lanes):
            value = Signal(signed(config.result_bits), name=f"result_{i}")
            m.d.comb += value.eq(Mux(gated, combined[i % (lanes // 2)], raw[i]))
            results.append(value)
        x_data = register("x_data", lanes * RESIDUAL_BITS, Cat(new), valid[2])
        r_data = register("r_data", lanes * config.result_bits, Cat(results), self.store)

        m.d.comb += [self.x_wr_data.eq(x_data), self.r_wr_data.eq(r_data)]

        # Magnitudes.
        def magnitude(data, count, width):
            values = [data[i * width : (i + 1) * width] for i in range(count)]
            total = values[0][:-1] ^ values[0][-1].replicate(width - 1)
            for value in values[1:]:
                total = total | (value[:-1] ^ value[-1].replicate(width - 1))
            return total

        with m.If(self.clear):
            m.d.sync += [self.x_or.eq(0), self.r_or.eq(0)]
        with m.Elif(self.write_x):
            m.d.sync += self.x_or.eq(self.x_or | magnitude(x_data, lanes, RESIDUAL_BITS))
        with m.Elif(self.write):
            m.d.sync += self.r_or.eq(self.r_or | magnitude(r_data, lanes, config.result_bits))
        return m

    def _silu_gate(self, m, register, pair, shifted, up):
        """``silu(z) * up`` of a pair of lanes, from the gate's shifted product (of stage 2) and the up sum (of stage 1)."""
        config = self.config
        m.submodules[f"silu_{pair}"] = unit = Silu(None if self.external else SILU_WORDS)
        rounded = Signal(signed(len(shifted)), name=f"rounded_{pair}")
        m.d.comb += rounded.eq((shifted + 1) >> 1)
        top, most = rounded[SILU_BITS - 1 :], 1 << (SILU_BITS - 1)
        z = Mux(top.all() | ~top.any(), rounded[:SILU_BITS], Mux(rounded[-1], most, most - 1))
        m.d.comb += unit.z.eq(register(f"z_{pair}", SILU_BITS, z))
        for stage in range(2, 4 + Silu.LATENCY):
            up = register(f"up_{pair}_{stage}", signed(config.gate_bits), up)
        product = register(f"gated_product_{pair}", signed(config.result_bits), unit.o * up)
        return register(f"gated_value_{pair}", signed(config.result_bits), product)
