"""Vector unit: norm and quantise, rotary, embedding into the residual, attention output into the result buffer."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.divider import NUMERATOR_BITS, Divider
from intaglio.rtl.arithmetic.numerics import INT8_NUMERATOR, INT16_NUMERATOR, INVERSE, MANTISSA, T_BITS
from intaglio.rtl.arithmetic.scalar import bit_length
from intaglio.rtl.memory.ram import index_bits
from intaglio.rtl.memory.rom import Rom
from intaglio.rtl.vector.pass_a import COEFFICIENT_BITS, LOAD_STAGES, MAXIMUM_BITS, PassA, max_words, segments, sum_bits
from intaglio.rtl.vector.pass_b import AMOUNT_BITS, TS_STAGES, Destination, PassB, VectorOp
from intaglio.rtl.vector.rotary import POSITION_BITS, Rotary

__all__ = ["ACC_LATENCY", "EMB_LATENCY", "Destination", "VectorOp", "VectorUnit", "gain_rom"]

ACC_LATENCY = 1  # cycles from acc_addr to acc_data
EMB_LATENCY = 4  # cycles from emb_index to emb_data
NORMALISE_STAGES = 2


def gain_rom(config, gains=None):
    """The ROM of the norms' gains."""
    return Rom("gains", COEFFICIENT_BITS * config.vector_width, config.gain_words, init=gains)


class VectorUnit(wiring.Component):
    """Vector unit; V is ``config.vector_width``. Arrays have V members.

    Parameters
    ----------
    config : DecoderConfig
    gains : sequence of int or None
        Contents of the ROM ``gains`` (``config.gain_words`` words of V gains of 16 bits, the lowest element's in the lowest bits).
        None: the ROM is an external image, as for the next two. With a batch all slots share one, which is outside.
    increments, sine : sequence of int or None
        Contents of the ROMs ``rotary`` and ``sine``, see :class:`Rotary`.

    Members
    -------
    gain_addr, gain_data : Out, In
        With a batch: the ROM of gains, latency 1.
    rotary_start, position, rotary_ready : In, In, Out
        Start of a token, see :class:`Rotary`; not while ROPE is busy. ROPE waits until it is ready.
    start : In
        Strobe, only while not busy. Samples ``kind``, ``source`` (0 residual, 1 results; NORM), ``gain_base`` (word of the gain
        ROM; NORM), ``words`` (NORM, EMBED; at least 1), ``group`` (pass of the attention unit; DRAIN) and ``embed_scale`` (17
        bits; EMBED).
    shift : In
        Sampled in the cycle after ``start`` (NORM, ROPE).
    q_mantissa : In
        Mantissa of the queries' scale (ROPE): stable from one cycle after start until not busy.
    busy, a_busy : Out
        From the cycle after start. Once ``busy`` is low, all words are written and ``w_or`` is valid. ``a_busy`` covers pass A
        (NORM, ROPE): once it is low, maxima and sum of squares are valid, until the next start.
    ending : Out
        From ``EARLY`` cycles before ``busy`` falls until the next start (not of EMBED): what is written now or in the next two
        cycles completes the operation.
    busy_next, a_busy_next, ending_next : Out
        What these are in the next cycle; combinational.
    src_addr, x_data, r_data : Out, In, In
        Read port of residual and result buffer, latency 1.
    emb_index, emb_data : Out, In
        Word of the token's embedding, latency ``EMB_LATENCY``.
    acc_en, emb_en : Out
        The operation is DRAIN, EMBED; otherwise ``acc_data``, ``emb_data`` must be 0.
    acc_addr, acc_data, sum_head, sum_value : Out, In, Out, In
        Accumulators (word of the pass, latency ``ACC_LATENCY``) and sums (head of the pass, same cycle) of the attention unit.
        ``|acc| <= 127 * sum``.
    w_en, w_dest, w_index, w_data : Out
        Write port: a word of V elements, sign-extended to 32 bits. ``w_index`` is the word's index; inside its head for KEY and
        VALUE; ``group * array / V`` onwards for RESULT.
    w_head, w_first, w_en_shift : Out
        Of ROPE: query head or KV head of the word, its first word, and ``en`` of its segment (-17..16; with the query
        mantissa's exponent it gives the query's).
    w_or : Out
        OR of ``v ^ sign(v)`` over all elements that the operation wrote, 31 bits.
    m_segment, m_value : In, Out
        Maximum of a segment (NORM: 0; ROPE: query heads, key heads, value heads); combinational.
    ss : Out
        Sum of squares (NORM).

    Cycles: :meth:`cycles`. Source: docs/numerics.md.
    """

    def __init__(self, config, gains=None, increments=None, sine=None):
        self.config, self.gains, self.increments, self.sine_table = config, gains, increments, sine
        width, depth = config.vector_width, max_words(config)
        outside = {"gain_addr": Out(index_bits(config.gain_words)), "gain_data": In(COEFFICIENT_BITS * width)}
        super().__init__(
            {
                **(outside if config.batch > 1 else {}),
                "rotary_start": In(1),
                "position": In(POSITION_BITS),
                "rotary_ready": Out(1),
                "start": In(1),
                "kind": In(VectorOp),
                "source": In(1),
                "shift": In(config.shift_bits),
                "gain_base": In(16),
                "words": In(range(depth + 1)),
                "group": In(range(max(2, config.head_groups))),
                "q_mantissa": In(16),
                "embed_scale": In(MANTISSA),
                **dict.fromkeys(("busy", "a_busy", "ending", "busy_next", "a_busy_next", "ending_next"), Out(1)),
                "src_addr": Out(range(depth)),
                "x_data": In(signed(32)).array(width),
                "r_data": In(signed(config.result_bits)).array(width),
                "emb_index": Out(range(max(2, config.hidden // width))),
                "emb_data": In(signed(8)).array(width),
                "acc_en": Out(1),
                "emb_en": Out(1),
                "acc_addr": Out(range(max(2, config.array // width))),
                "acc_data": In(signed(config.value_bits)).array(width),
                "sum_head": Out(range(max(2, config.attention_heads))),
                "sum_value": In((32767 * config.context).bit_length()),
                "w_en": Out(1),
                "w_dest": Out(Destination),
                "w_index": Out(range(depth)),
                "w_head": Out(range(max(2, config.heads))),
                "w_data": Out(signed(32)).array(width),
                "w_first": Out(1),
                "w_en_shift": Out(signed(6)),
                "w_or": Out(31),
                "m_segment": In(range(segments(config))),
                "m_value": Out(MAXIMUM_BITS),
                "ss": Out(sum_bits(config)),
            }
        )

    EARLY = 3

    @staticmethod
    def cycles(config, kind, words=None):
        """Cycles for which ``busy`` is high; ``words`` for NORM and EMBED. ROPE: with the rotary unit ready at start."""
        width = config.vector_width
        head_words = config.head_dim // width
        # from a maximum or sum to before the first word
        reciprocal = NORMALISE_STAGES + Divider.cycles(config.divider_bits) + TS_STAGES - 2
        first = LOAD_STAGES + PassA.tree_stages(width) + reciprocal
        if kind in (VectorOp.NORM8, VectorOp.NORM16):
            return 2 * words + first
        if kind is VectorOp.ROPE:  # pass B follows pass A by one head
            return config.qkv_rows // width + head_words + first
        if kind is VectorOp.DRAIN:
            return config.array // width + 2 + reciprocal
        return words + EMB_LATENCY + TS_STAGES - 1

    def elaborate(self, platform):
        m = Module()
        config, width = self.config, self.config.vector_width
        depth = max_words(config)
        m.submodules.pass_a = a = PassA(config)
        m.submodules.pass_b = b = PassB(config)
        m.submodules.rotary = rotary = Rotary(config, self.increments, self.sine_table)
        if config.batch > 1:
            gain_addr, gain_data = self.gain_addr, self.gain_data
        else:
            m.submodules.gains = gains = gain_rom(config, self.gains)
            gain_addr, gain_data = gains.addr, gains.data

        # Operation
        kind, results = Signal(VectorOp), Signal()
        last_index, base, embed_scale = Signal(range(depth)), Signal(range(depth)), Signal(MANTISSA)
        with_a, rope = Signal(), Signal()
        m.d.comb += with_a.eq(
            (self.kind == VectorOp.NORM8) | (self.kind == VectorOp.NORM16) | (self.kind == VectorOp.ROPE)
        )
        m.d.comb += [
            self.busy_next.eq(self.start | (self.busy & ~b.w_final)),
            self.a_busy_next.eq(Mux(self.start, with_a, self.a_busy & ~a.m_final)),
            self.ending_next.eq(~self.start & (self.ending | (b.w_soon & (kind != VectorOp.EMBED)))),
        ]
        m.d.sync += [self.busy.eq(self.busy_next), self.a_busy.eq(self.a_busy_next), self.ending.eq(self.ending_next)]
        with m.If(self.start):
            m.d.sync += [
                kind.eq(self.kind),
                rope.eq(self.kind == VectorOp.ROPE),
                embed_scale.eq(self.embed_scale),
                results.eq(self.source | (self.kind == VectorOp.ROPE)),
                base.eq(0),
                last_index.eq(self.words - 1),
            ]
            with m.If(self.kind == VectorOp.ROPE):
                m.d.sync += last_index.eq(config.qkv_rows // width - 1)
            with m.If(self.kind == VectorOp.DRAIN):
                m.d.sync += [last_index.eq(config.array // width - 1), base.eq(self.group * (config.array // width))]

        started = Signal()
        m.d.sync += started.eq(self.start)

        # Sources
        m.d.comb += [
            rotary.start.eq(self.rotary_start),
            rotary.position.eq(self.position),
            self.rotary_ready.eq(rotary.ready),
            rotary.word.eq(a.rotary_word),
            gain_addr.eq(a.gain_addr),
            self.src_addr.eq(a.src_addr),
            a.start.eq(self.start),
            a.wanted.eq(with_a),
            a.rope.eq(rope),
            a.results.eq(results),
            a.shift.eq(self.shift),
            a.started.eq(started),
            a.last_index.eq(last_index),
            a.rotary_ready.eq(rotary.ready),
            a.gain_base.eq(self.gain_base),
            self.ss.eq(a.sum),
            b.start.eq(self.start),
            b.kind.eq(self.kind),
            b.last_index.eq(last_index),
            b.base.eq(base),
            b.q_mantissa.eq(self.q_mantissa),
            b.embed_scale.eq(embed_scale),
            self.acc_addr.eq(b.addr),
            self.emb_index.eq(b.addr),
            self.acc_en.eq(b.acc_en),
            self.emb_en.eq(b.emb_en),
            b.started.eq(started),
        ]
        small = {"ram_style": "distributed"} if depth <= 64 else {}  # as in intaglio_ram
        for i in range(width):
            m.submodules[f"t_{i}"] = memory = Memory(shape=T_BITS, depth=depth, init=[], attrs=small)
            w, r = memory.write_port(), memory.read_port()
            m.d.comb += [
                a.x[i].eq(self.x_data[i]),
                a.r[i].eq(self.r_data[i]),
                a.gain[i].eq(gain_data[COEFFICIENT_BITS * i : COEFFICIENT_BITS * (i + 1)]),
                w.addr.eq(a.t_addr),
                w.data.eq(a.t[i]),
                w.en.eq(a.t_en),
                r.addr.eq(b.addr),
                b.t[i].eq(r.data),
                b.acc[i].eq(self.acc_data[i]),
                b.emb[i].eq(self.emb_data[i]),
                self.w_data[i].eq(b.w_data[i]),
            ]
        for i in range(width // 2):
            m.d.comb += [a.cosine[i].eq(rotary.cosine[i]), a.sine[i].eq(rotary.sine[i])]
        m.d.comb += [
            self.w_en.eq(b.w_en),
            self.w_dest.eq(b.w_dest),
            self.w_index.eq(b.w_index),
            self.w_head.eq(b.w_head),
            self.w_first.eq(b.w_first),
            self.w_en_shift.eq(b.w_shift),
            self.w_or.eq(b.w_or),
        ]
        self._reciprocals(m, a, b, kind)
        return m

    def _reciprocals(self, m, a, b, kind):
        """Maxima from pass A or sums from the attention unit: keep, normalise, divide, hand to pass B."""
        config = self.config
        drain, started = Signal(), a.started
        with m.If(self.start):
            m.d.sync += drain.eq(self.kind == VectorOp.DRAIN)

        # DRAIN: one sum a cycle.
        sum_run, sum_valid, sum_register = Signal(), Signal(), Signal(len(self.sum_value), reset_less=True)
        m.d.sync += [sum_valid.eq(sum_run), sum_register.eq(Mux(sum_run, self.sum_value, 0))]
        with m.If(self.start):
            m.d.sync += [sum_run.eq(self.kind == VectorOp.DRAIN), self.sum_head.eq(0)]
        with m.Elif(sum_run):
            m.d.sync += [self.sum_head.eq(self.sum_head + 1), sum_run.eq(self.sum_head != config.attention_heads - 1)]

        # Stage 0: the value and its segment. One of the two is 0.
        valid, value, segment = Signal(), Signal(MAXIMUM_BITS), Signal(b.segment_bits)
        m.d.comb += [valid.eq(sum_valid | a.m_valid), value.eq(sum_register | a.m_value)]
        with m.If(started):
            m.d.sync += segment.eq(0)
        with m.Elif(valid):
            m.d.sync += segment.eq(segment + 1)
        m.submodules.maxima = maxima = Memory(shape=MAXIMUM_BITS, depth=1 << b.segment_bits, init=[])
        w, r = maxima.write_port(), maxima.read_port(domain="comb")
        m.d.comb += [
            w.addr.eq(segment),
            w.data.eq(a.m_value),
            w.en.eq(a.m_valid),
            r.addr.eq(self.m_segment),
            self.m_value.eq(r.data),
        ]

        # Stage 1: bit length, whose 17 less is the shift of `normalise`, and 32 bits from the 17th or the 33rd on. Stage 2: mantissa.
        length = bit_length(m, value, "length")
        valid_1, valid_2 = Signal(), Signal()
        value_1, amount_1 = Signal(32, reset_less=True), Signal(AMOUNT_BITS, reset_less=True)
        fine = Signal(4, reset_less=True)
        coarse = Mux(value[32], value[16:], Mux(value[16:].any(), value[:32], value[:16] << 16))
        segment_1, segment_2 = (Signal(b.segment_bits, name=f"segment_{i}", reset_less=True) for i in (1, 2))
        mantissa = Signal(MANTISSA, reset_less=True)
        m.d.sync += [
            valid_1.eq(valid),
            value_1.eq(coarse),
            amount_1.eq(length),
            fine.eq(length - 1),
            segment_1.eq(segment),
            valid_2.eq(valid_1),
            mantissa.eq(value_1 >> fine),
            segment_2.eq(segment_1),
        ]

        # Divide
        m.submodules.divider = divider = Divider(b.segment_bits, config.divider_bits)
        numerator = Signal(NUMERATOR_BITS)
        m.d.sync += numerator.eq(Mux(drain, INVERSE, Mux(kind == VectorOp.NORM16, INT16_NUMERATOR, INT8_NUMERATOR)))
        m.d.comb += [
            divider.i_valid.eq(valid_2),
            divider.i_numerator.eq(numerator),
            divider.i_denominator.eq(mantissa),
            divider.i_tag.eq(segment_2),
            b.e_valid.eq(valid_1),
            b.e_segment.eq(segment_1),
            b.e_amount.eq(amount_1),
            b.soon.eq(divider.o_soon),
            b.r_valid.eq(divider.o_valid),
            b.r_segment.eq(divider.o_tag),
            b.r_value.eq(divider.o_quotient),
        ]
