"""Scores and softmax of the attention unit, a lane for each query head (docs/numerics.md, "Attention over the INT8 cache")."""

from amaranth.hdl import MemoryData, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.numerics import EXP_TABLE
from intaglio.rtl.attention.narrow.array import product_bits

__all__ = ["EXPONENT_BITS", "SCORE_BITS", "Scaler", "Scores", "Weights"]

SCORE_BITS = 18  # signed; log2 units with 8 fraction bits
SCORE_MAX = (1 << SCORE_BITS - 1) - 1
EXPONENT_BITS = 12  # signed exponent of a query


class Scaler(wiring.Component):
    """``(value * scale_m) >> shift`` for each head: multipliers and shifters that scores and weights, never both at work, share.

    Members
    -------
    valid, value, scale_m, shift : In
        ``shift`` 0..40.
    scaled : Out(signed(34)).array(heads)

    Latency: 2 cycles. Throughput: one value a cycle.
    """

    def __init__(self, config):
        heads = config.attention_heads
        super().__init__(
            {
                "valid": In(1),
                "value": In(signed(SCORE_BITS)).array(heads),
                "scale_m": In(16),
                "shift": In(6).array(heads),
                "scaled": Out(signed(34)).array(heads),
            }
        )

    def elaborate(self, platform):
        m = Module()
        shift_en = Signal()
        m.d.sync += shift_en.eq(self.valid)
        for a, (value, shift, scaled) in enumerate(zip(self.value, self.shift, self.scaled, strict=True)):
            product = Signal(signed(34), name=f"product_{a}", reset_less=True)
            shift_1 = Signal(6, name=f"shift_{a}", reset_less=True)
            with m.If(self.valid):
                m.d.sync += [product.eq(value * self.scale_m), shift_1.eq(shift)]
            with m.If(shift_en):
                m.d.sync += scaled.eq(product >> shift_1)
        return m


class Scores(wiring.Component):
    """Dot products of a key to scores: scale, shift, clamp; and the largest score.

    Members
    -------
    clear : In(1)
        Forgets the largest score.
    valid, dot, scale_e : In
        One dot product for each head, with the exponent of the key's scale, in the same cycle.
    value, shift, scaled
        Of the :class:`Scaler`, which has the key's mantissa: with ``valid``, and two cycles later.
    exponent : In(signed(12)).array(heads)
        Exponents of the queries; stable from two cycles before ``valid``.
    score_valid : Out(1), score : Out(signed(18)).array(heads)
    maximum : Out(signed(18)).array(heads)
        Includes a score from the cycle after its ``score_valid``.

    Latency: ``valid`` to ``score_valid`` 3 cycles. Throughput: one key a cycle.
    """

    def __init__(self, config):
        self.config = config
        heads = config.attention_heads
        super().__init__(
            {
                "clear": In(1),
                "valid": In(1),
                "dot": In(signed(product_bits(config.head_dim))).array(heads),
                "scale_e": In(signed(10)),
                "exponent": In(signed(EXPONENT_BITS)).array(heads),
                "value": Out(signed(SCORE_BITS)).array(heads),
                "shift": Out(6).array(heads),
                "scaled": In(signed(34)).array(heads),
                "score_valid": Out(1),
                "score": Out(signed(SCORE_BITS)).array(heads),
                "maximum": Out(signed(SCORE_BITS), init=-SCORE_MAX).array(heads),
            }
        )

    def elaborate(self, platform):
        m = Module()
        shift_en, clamp_en = Signal(), Signal()
        m.d.sync += [shift_en.eq(self.valid), clamp_en.eq(shift_en), self.score_valid.eq(clamp_en)]
        for a in range(self.config.attention_heads):
            bias, wanted = (Signal(signed(EXPONENT_BITS + 2), name=f"{name}_{a}") for name in ("bias", "wanted"))
            score, maximum, shifted = self.score[a], self.maximum[a], self.scaled[a]
            m.d.sync += bias.eq(-(self.config.score_shift + 8) - self.exponent[a])
            m.d.comb += [
                wanted.eq(bias - self.scale_e),
                self.value[a].eq(self.dot[a] >> self.config.score_shift),
                self.shift[a].eq(Mux(wanted < 0, 0, Mux(wanted > 40, 40, wanted[:6]))),
            ]
            with m.If(clamp_en):
                high = Mux(shifted > SCORE_MAX, SCORE_MAX, shifted[:SCORE_BITS].as_signed())
                m.d.sync += score.eq(Mux(shifted < -SCORE_MAX, -SCORE_MAX, high))
            with m.If(self.clear):
                m.d.sync += maximum.eq(-SCORE_MAX)
            with m.Elif(self.score_valid & (score > maximum)):
                m.d.sync += maximum.eq(score)
        return m


class Weights(wiring.Component):
    """Scores to the 16-bit weights of the values, and their sum.

    Members
    -------
    clear : In(1)
        Zeroes the sums.
    valid : In(1), score, maximum : In(signed(18)).array(heads)
    eref : In(signed(10))
        Largest exponent of the value scales. Stable.
    scale_step, row_step : Out(1)
        Strobes that read the value's scale (for ``scale_e`` and the scaler's ``scale_m`` two cycles later) and the value itself
        (to meet ``weight``).
    scale_en, value, shift, scaled
        Of the :class:`Scaler`.
    weight_valid : Out(1), weight : Out(signed(16)).array(heads)
        0..32767.
    sum : Out(unsigned).array(heads)
        Sum of the probabilities, 15 fraction bits; complete one cycle before the last ``weight_valid``.

    Latency: ``valid`` to ``scale_step`` 1, ``row_step`` 4, ``weight_valid`` 5 cycles. Throughput: one key a cycle.
    """

    def __init__(self, config):
        self.config = config
        heads = config.attention_heads
        super().__init__(
            {
                "clear": In(1),
                "valid": In(1),
                "score": In(signed(SCORE_BITS)).array(heads),
                "maximum": In(signed(SCORE_BITS)).array(heads),
                "scale_e": In(signed(10)),
                "eref": In(signed(10)),
                "scale_step": Out(1),
                "row_step": Out(1),
                "scale_en": Out(1),
                "value": Out(15).array(heads),
                "shift": Out(6),
                "scaled": In(signed(34)).array(heads),
                "weight_valid": Out(1),
                "weight": Out(signed(16)).array(heads),
                "sum": Out((max(EXP_TABLE) * config.context).bit_length()).array(heads),
            }
        )

    def elaborate(self, platform):
        m = Module()
        look_up, fallen, scaled = Signal(), Signal(), self.scale_en  # name the stage whose inputs are valid
        m.d.comb += self.scale_step.eq(look_up)
        m.d.sync += [
            look_up.eq(self.valid),
            fallen.eq(look_up),
            scaled.eq(fallen),
            self.row_step.eq(scaled),
            self.weight_valid.eq(self.row_step),
        ]
        distance = Signal(signed(11))
        m.d.comb += [
            distance.eq(self.eref - self.scale_e),
            self.shift.eq(Mux(distance > 31, 31, distance[:5])),
        ]  # 31 bits long
        for a in range(self.config.attention_heads):
            # A block RAM would hold four times as much; block RAM is what small devices lack.
            table = Memory(MemoryData(shape=15, depth=256, init=EXP_TABLE), attrs={"syn_romstyle": "logic"})
            m.submodules[f"exp_{a}"] = table
            read = table.read_port()
            delta = Signal(SCORE_BITS, name=f"delta_{a}", reset_less=True)
            fall = Signal(4, name=f"fall_{a}", reset_less=True)
            p = Signal(15, name=f"p_{a}", reset_less=True)
            m.d.comb += [read.en.eq(look_up), read.addr.eq(delta[:8])]
            with m.If(self.valid):
                m.d.sync += delta.eq(self.maximum[a] - self.score[a])
            with m.If(look_up):  # a table entry of 15 bits is gone after a shift by 15
                m.d.sync += fall.eq(Mux(delta[12:].any(), 15, delta[8:12]))
            with m.If(fallen):
                m.d.sync += p.eq(read.data >> fall)
            with m.If(self.clear):
                m.d.sync += self.sum[a].eq(0)
            with m.Elif(scaled):
                m.d.sync += self.sum[a].eq(self.sum[a] + p)
            m.d.comb += [self.value[a].eq(p), self.weight[a].eq((self.scaled[a] + (1 << 15))[16:32])]
        return m
