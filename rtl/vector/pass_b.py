"""Pass B of the vector unit: shift, multiply by the reciprocal, round, clamp, write. Also EMBED and DRAIN."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, enum, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.numerics import INT8_MAX, INT8_SHIFT, INT16_MAX, INT16_SHIFT, MANTISSA, T_BITS, XS_BITS
from intaglio.rtl.memory.copies import COPY
from intaglio.rtl.vector.pass_a import max_words, segments

__all__ = ["AMOUNT_BITS", "DRAIN_SHIFT", "Destination", "PassB", "Rounding", "VectorOp"]

AMOUNT_BITS = 6  # shift of `normalise`, plus 17 so that it is not negative
DRAIN_SHIFT = 7  # o = (acc >> (es + 7)) * R
INVERSE_SHIFT = 17
TS_STAGES = 5  # address -> data -> ts -> product -> rounded -> written word


class VectorOp(enum.Enum, shape=unsigned(3)):
    """Operations of the vector unit."""

    NORM8 = 0
    NORM16 = 1
    ROPE = 2
    EMBED = 3
    DRAIN = 4


class Destination(enum.Enum, shape=unsigned(3)):
    """Where a word of pass B goes, and how wide its elements are."""

    A8 = 0  # INT8 activations
    OPERAND = 1  # 16 bits, operand memory of the attention unit
    KEY = 2  # INT8, key cache
    VALUE = 3  # INT8, value cache
    RESULT = 4  # 18 bits, result buffer
    RESIDUAL = 5  # 32 bits, residual buffer


class Rounding(enum.Enum, shape=unsigned(2)):
    """Rounding shift and clamp of a word."""

    INT8 = 0
    INT16 = 1
    INVERSE = 2
    EMBED = 3


class LaneB(wiring.Component):
    """One element: shift, multiplication, rounding, clamp. ``valid[k]`` moves stage ``k``: 0 the element arrives.

    ``kind`` and ``amount`` are taken a cycle before. ``acc`` is 0 but in DRAIN, ``emb`` but in EMBED, which takes ``amount`` =
    ``MANTISSA``: no shift.
    """

    def __init__(self, value_bits, embed_shift):
        self.embed_shift = embed_shift
        super().__init__(
            {
                "valid": In(4),
                "kind": In(VectorOp),
                "amount": In(AMOUNT_BITS),
                "factor": In(MANTISSA),
                "mode": In(Rounding),  # of the word at stage 2
                "t": In(signed(T_BITS)),
                "acc": In(signed(value_bits)),
                "emb": In(signed(8)),
                "q": Out(signed(32)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        source = Signal(signed(max(T_BITS + MANTISSA, len(self.acc) + MANTISSA - DRAIN_SHIFT)))
        ts = Signal(signed(XS_BITS), reset_less=True)
        product = Signal(signed(XS_BITS + MANTISSA), reset_less=True)
        q = Signal(signed(32), reset_less=True)
        from_t = Signal(attrs=COPY)
        amount = Signal.like(self.amount, name="amount_1", reset_less=True, attrs=COPY)
        m.d.sync += [from_t.eq((self.kind != VectorOp.EMBED) & (self.kind != VectorOp.DRAIN)), amount.eq(self.amount)]
        other = (self.acc << (MANTISSA - DRAIN_SHIFT)) | (self.emb << MANTISSA)
        m.d.comb += [source.eq(Mux(from_t, self.t << MANTISSA, other)), self.q.eq(q)]
        with m.If(self.valid[0]):
            m.d.sync += ts.eq(source >> amount)
        with m.If(self.valid[1]):
            m.d.sync += product.eq(ts * self.factor)
        # All modes share one adder and one clamp. Limits are 2^n - 1: a value is beyond them when the bits from n on differ from
        # the sign, or when it is -2^n.
        half, total = Signal(INT8_SHIFT), Signal(signed(XS_BITS + MANTISSA + 1), reset_less=True)
        value, limit, clip = Signal(signed(32)), Signal(32), Signal()
        sign = total[-1]
        mode_3 = Signal(Rounding, reset_less=True, attrs=COPY)
        modes = (
            (Rounding.INT8, INT8_SHIFT, INT8_MAX),
            (Rounding.INT16, INT16_SHIFT, INT16_MAX),
            (Rounding.INVERSE, INVERSE_SHIFT, (1 << 17) - 1),
            (Rounding.EMBED, self.embed_shift, None),
        )
        with m.Switch(self.mode):
            for mode, shift, _ in modes:
                with m.Case(mode):
                    m.d.comb += half.eq(1 << shift >> 1)
        with m.If(self.valid[2]):
            m.d.sync += [total.eq(product + half), mode_3.eq(self.mode)]
        with m.Switch(mode_3):
            for mode, shift, maximum in modes:
                with m.Case(mode):
                    m.d.comb += value.eq(total >> shift)
                    if maximum is not None:  # 8 by 17 bits always fit
                        top, low = total[shift + maximum.bit_length() : -1], total[shift : shift + maximum.bit_length()]
                        m.d.comb += [limit.eq(maximum), clip.eq(Mux(sign, ~top.all() | ~low.any(), top.any()))]
        with m.If(self.valid[3]):
            m.d.sync += q.eq(Mux(clip, (limit ^ sign.replicate(32)) | 1, value))
        return m


class PassB(wiring.Component):
    """Pass B.

    Parameters
    ----------
    config : DecoderConfig

    Members
    -------
    start, started : In
        Strobe, and the cycle after it; the first word is read in that at the earliest.
    kind : In
        The operation; sampled with ``start``.
    last_index, base, q_mantissa, embed_scale : In
        Stable while busy: index of the last word, offset of the written index (DRAIN), factors.
    soon : In
        Strobe: the reciprocal of the next segment appears on ``r_*`` two cycles later.
    r_valid, r_segment, r_value : In
        A reciprocal.
    e_valid, e_segment, e_amount : In
        Shift of a segment, plus 17; at least three cycles before its reciprocal.
    addr : Out
        Word of the T buffer, of the attention unit's accumulators (both answer one cycle later) or of the embedding (four).
    acc_en, emb_en : Out
        The operation is DRAIN, EMBED; otherwise ``acc``, ``emb`` are 0.
    t, acc, emb : In, arrays
    w_en, w_dest, w_index, w_head, w_data, w_first, w_shift : Out
        Write port, see ``VectorUnit``.
    w_or : Out
        OR of ``v ^ sign(v)`` over all elements written since start.
    w_final : Out
        The last word of the operation is on the write port.
    w_soon : Out
        It will be three cycles later (not of EMBED).

    Latency: ``TS_STAGES`` cycles from address to write port (EMBED three more). Throughput: a word a cycle.
    """

    def __init__(self, config):
        self.config = config
        width, depth = config.vector_width, max_words(config)
        self.segment_bits = segment_bits = (max(2, segments(config), config.attention_heads) - 1).bit_length()
        super().__init__(
            {
                "start": In(1),
                "started": In(1),
                "kind": In(VectorOp),
                "last_index": In(range(depth)),
                "base": In(range(depth)),
                "q_mantissa": In(16),
                "embed_scale": In(MANTISSA),
                "soon": In(1),
                "r_valid": In(1),
                "r_segment": In(segment_bits),
                "r_value": In(MANTISSA),
                "e_valid": In(1),
                "e_segment": In(segment_bits),
                "e_amount": In(AMOUNT_BITS),
                "addr": Out(range(depth)),
                "acc_en": Out(1),
                "emb_en": Out(1),
                "t": In(signed(T_BITS)).array(width),
                "acc": In(signed(config.value_bits)).array(width),
                "emb": In(signed(8)).array(width),
                "w_en": Out(1),
                "w_dest": Out(Destination),
                "w_index": Out(range(depth)),
                "w_head": Out(range(max(2, config.heads))),
                "w_data": Out(signed(32)).array(width),
                "w_first": Out(1),
                "w_shift": Out(signed(6)),
                "w_or": Out(31),
                "w_final": Out(1),
                "w_soon": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, width = self.config, self.config.vector_width
        head_words = config.head_dim // width
        word = data.StructLayout(
            {
                "final": 1,
                "first": 1,
                "dest": Destination,
                "index": len(self.w_index),
                "head": len(self.w_head),
                "segment": self.segment_bits,
                "amount": AMOUNT_BITS,
            }
        )
        kind = Signal(VectorOp)
        rope, embed, drain, norm16 = (Signal(name=name) for name in ("rope", "embed", "drain", "norm16"))
        with m.If(self.start):
            m.d.sync += [
                rope.eq(self.kind == VectorOp.ROPE),
                embed.eq(self.kind == VectorOp.EMBED),
                drain.eq(self.kind == VectorOp.DRAIN),
                norm16.eq(self.kind == VectorOp.NORM16),
                kind.eq(self.kind),
            ]

        m.d.comb += [self.acc_en.eq(drain), self.emb_en.eq(embed)]

        amount_r, factor_r = self._segments(m)

        # Issue: a word goes when its segment's reciprocal will be there two stages later.
        run, issue, final, last, last_in_part = Signal(), Signal(), Signal(), Signal(), Signal()
        ready = Signal(range((1 << self.segment_bits) + 1))
        position = Signal(range(max(2, head_words)))
        head, segment = Signal(range(max(2, config.heads))), Signal(self.segment_bits)
        words = [Signal(word, name=f"word_{stage}", reset_less=stage > 0) for stage in range(TS_STAGES + 1)]
        of_heads, amount = Signal(), Signal(AMOUNT_BITS)
        query_words, key_words = config.hidden // width, (config.hidden + config.kv_dim) // width
        query, key = Signal(), Signal()
        m.d.comb += [
            of_heads.eq(rope | drain),
            issue.eq(run & (embed | ready.any())),
            final.eq(self.addr == self.last_index),
            last.eq(Mux(of_heads, position == head_words - 1, final)),
            query.eq(self.addr < query_words),
            key.eq(self.addr < key_words),
            last_in_part.eq(head == Mux(rope & ~query, config.kv_heads - 1, config.heads - 1)),
            amount_r.addr.eq(segment),
            words[0].final.eq(final),
            words[0].first.eq(Mux(of_heads, position == 0, self.addr == 0)),
            words[0].index.eq(Mux(rope & ~query, position, self.base + self.addr)),
            words[0].head.eq(head),
            words[0].segment.eq(segment),
            words[0].amount.eq(amount),
            amount.eq(Mux(embed, MANTISSA, amount_r.data)),
        ]
        with m.Switch(kind):
            with m.Case(VectorOp.NORM8):
                m.d.comb += words[0].dest.eq(Destination.A8)
            with m.Case(VectorOp.NORM16):
                m.d.comb += words[0].dest.eq(Destination.OPERAND)
            with m.Case(VectorOp.ROPE):
                m.d.comb += words[0].dest.eq(
                    Mux(query, Destination.OPERAND, Mux(key, Destination.KEY, Destination.VALUE))
                )
            with m.Case(VectorOp.EMBED):
                m.d.comb += words[0].dest.eq(Destination.RESIDUAL)
            with m.Case(VectorOp.DRAIN):
                m.d.comb += words[0].dest.eq(Destination.RESULT)
        with m.If(self.start):
            m.d.sync += [run.eq(1), self.addr.eq(0), position.eq(0), head.eq(0), segment.eq(0)]
        with m.Elif(issue):
            m.d.sync += [run.eq(~final), self.addr.eq(self.addr + 1), position.eq(Mux(last, 0, position + 1))]
            with m.If(last & of_heads):
                m.d.sync += [segment.eq(segment + 1), head.eq(Mux(last_in_part, 0, head + 1))]
        m.d.sync += ready.eq(ready + self.soon - (issue & last & ~embed))

        # Control of the pipeline; EMBED's data arrive three cycles later.
        valid_e, valid, arrived = Signal(3), Signal(TS_STAGES), Signal()
        word_e = [Signal(word, name=f"word_e_{i}", reset_less=True) for i in range(3)]
        m.d.comb += arrived.eq(Mux(embed, valid_e[-1], valid[0]))
        m.d.sync += [
            valid.eq(Cat(issue, arrived, valid[1:])),
            valid_e.eq(Cat(valid[0], valid_e)),
            words[1].eq(words[0]),
            *(later.eq(now) for now, later in zip([words[1], *word_e], word_e, strict=False)),
            words[2].eq(Mux(embed, word_e[-1], words[1])),
            *(words[stage + 1].eq(words[stage]) for stage in range(2, TS_STAGES)),
        ]

        # Factor, together with ts. The reciprocal may be arriving.
        factor, mode_2, mode = Signal(MANTISSA), Signal(Rounding), Signal(Rounding)
        m.d.comb += factor_r.addr.eq(words[1].segment)
        bypass = self.r_valid & (self.r_segment == words[1].segment)
        with m.If(embed):
            m.d.sync += [factor.eq(self.embed_scale), mode_2.eq(Rounding.EMBED)]
        with m.Elif(rope & (words[1].dest == Destination.OPERAND)):
            m.d.sync += [factor.eq(self.q_mantissa), mode_2.eq(Rounding.INT16)]
        with m.Else():
            m.d.sync += [
                factor.eq(Mux(bypass, self.r_value, factor_r.data)),
                mode_2.eq(Mux(drain, Rounding.INVERSE, Mux(norm16, Rounding.INT16, Rounding.INT8))),
            ]
        m.d.sync += mode.eq(mode_2)

        self._lanes(m, kind, words, arrived, valid, factor, mode)
        self._outputs(m, words, valid)
        return m

    def _segments(self, m):
        """Shifts and reciprocals of the segments, small memories read in the same cycle; returns their read ports."""
        memories = []
        for name, bits in (("amounts", AMOUNT_BITS), ("reciprocals", MANTISSA)):
            memory = Memory(shape=bits, depth=1 << self.segment_bits, init=[])
            m.submodules[name] = memory
            memories.append((memory.write_port(), memory.read_port(domain="comb")))
        (amount_w, amount_r), (factor_w, factor_r) = memories
        m.d.comb += [
            amount_w.en.eq(self.e_valid),
            amount_w.addr.eq(self.e_segment),
            amount_w.data.eq(self.e_amount),
            factor_w.en.eq(self.r_valid),
            factor_w.addr.eq(self.r_segment),
            factor_w.data.eq(self.r_value),
        ]
        return amount_r, factor_r

    def _lanes(self, m, kind, words, arrived, valid, factor, mode):
        """The elements of a word side by side, and the OR of their sizes."""
        config = self.config
        ors = []
        for i in range(config.vector_width):
            lane = LaneB(config.value_bits, config.embed_shift)
            m.submodules[f"lane_{i}"] = lane
            m.d.comb += [
                lane.valid.eq(Cat(arrived, valid[1:4])),
                lane.kind.eq(kind),
                lane.amount.eq(words[0].amount),
                lane.factor.eq(factor),
                lane.mode.eq(mode),
                lane.t.eq(self.t[i]),
                lane.acc.eq(self.acc[i]),
                lane.emb.eq(self.emb[i]),
                self.w_data[i].eq(lane.q),
            ]
            ors.append(lane.q[:31] ^ lane.q[31].replicate(31))
        while len(ors) > 1:
            ors = [a | b for a, b in zip(ors[::2], ors[1::2], strict=True)]
        with m.If(self.started):
            m.d.sync += self.w_or.eq(0)
        with m.Elif(self.w_en):
            m.d.sync += self.w_or.eq(self.w_or | ors[0])

    def _outputs(self, m, words, valid):
        """The word that leaves the pipeline."""
        out = words[TS_STAGES]
        m.d.comb += [
            self.w_soon.eq(valid[TS_STAGES - 4] & words[TS_STAGES - 3].final),
            self.w_en.eq(valid[TS_STAGES - 1]),
            self.w_final.eq(self.w_en & out.final),
            self.w_dest.eq(out.dest),
            self.w_index.eq(out.index),
            self.w_head.eq(out.head),
            self.w_first.eq(out.first),
            self.w_shift.eq(out.amount - MANTISSA),
        ]
