"""The attention unit: decode attention over the INT8 KV cache, and the head on the same multipliers."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from intaglio.rtl.arithmetic.numerics import ROW_SCALE_BITS
from intaglio.rtl.attention.narrow.array import MacArray, add_tree, product_bits, tree_stages
from intaglio.rtl.attention.narrow.cache import KvCache
from intaglio.rtl.attention.narrow.softmax import EXPONENT_BITS, SCORE_BITS, Scaler, Scores, Weights
from intaglio.rtl.memory.ram import Ram, index_bits
from intaglio.rtl.memory.rom import Rom
from intaglio.rtl.vector.top_k import TopK

__all__ = ["EMBEDDING_LATENCY", "AttentionUnit", "attend_cycles", "head_cycles"]

EMBEDDING_LATENCY = 4  # cycles from emb_index to emb_data
LOGIT_BITS = 32
KEY_DRAIN = 6  # cycles between the last key and the first score of the second phase, without the adder tree
VALUE_DRAIN = 8  # cycles between the last score's address and the end
HEAD_DRAIN = 5
SCALE_STAGES = 2  # of a logit's product with it
REFERENCE = 8  # cycles from attend until the reference exponent is taken: after the value scales of its token, before those of the next
_OF_CACHE = (
    "sequence",
    "layer",
    "position",
    "kv_en",
    "kv_is_v",
    "kv_head",
    "kv_index",
    "ks_en",
    "vs_en",
    "sc_head",
    "sc_m",
    "sc_e",
    "at_sequence",
)


def attend_cycles(config, position):
    """Cycles that ATTEND is busy: ``2 * (position + 1)`` and a fill of 15 + tree_stages(head_dim)."""
    return 2 * (position + 1) + 1 + KEY_DRAIN + tree_stages(config.head_dim) + VALUE_DRAIN


def head_cycles(config):
    """Cycles that HEAD is busy: one for each embedding word and a fill of 5 (7 with scales of rows) + the stages of two adder trees."""
    return (
        config.vocab * config.head_groups
        + HEAD_DRAIN
        + tree_stages(config.head_dim)
        + tree_stages(config.attention_heads)
        + SCALE_STAGES * config.row_scales
    )


class AttentionUnit(wiring.Component):
    """Attention of one token over the cache, ``attention_heads`` queries at a time, and logits with the ``top_k`` best.

    V is ``vector_width``, A is ``attention_heads``. ``busy`` rises in the cycle after ``attend`` or ``head`` and falls when
    the results are readable; nothing may be started while it is high. A start may follow a write in the next cycle; value scales may come
    up to 5 cycles after ``attend``. Counted from the start, ATTEND is busy for :func:`attend_cycles` and HEAD for :func:`head_cycles`.

    With ``batch`` above 1 the next token may be written while the unit is busy, from the cycle of the start on: rows and key scales of
    another sequence or of a position above ``at_position``, operands and exponents of the other bank than ``at_bank``; value scales from
    8 cycles after the ``attend`` of the token's last group. ``layer`` is that of both tokens. Otherwise nothing may be written.

    Parameters
    ----------
    config : DecoderConfig
    embedding, head : list of int or None
        Words of the embedding ROM for Amaranth's simulator: word ``token * head_groups + c`` holds elements
        ``c * array ..`` of the token's row, signed bytes, the first in the lowest bits. None for Verilog: the ROM
        (``embedding``) and the memories are then instances (``intaglio_rom``, ``intaglio_ram``). Likewise of the ROM ``head``, which
        there is if the head is not tied.
    scales : pair of lists of int or None
        Likewise of the ROMs ``embedding_scales`` and, of a head of its own, ``head_scales``, which there are if rows have scales.

    Members
    -------
    layer : In
        Of a write, with its strobe; of a start, stable until ``busy`` falls, and from one cycle before it.
    sequence, position, kv_en, kv_is_v, kv_head, kv_index, kv_data, ks_en, vs_en, sc_head, sc_m, sc_e : In
        As in :class:`~intaglio.rtl.attention.narrow.cache.KvCache`.
    bank : In(1)
        Where operands and exponents go, with their strobes. Without a batch there is one bank, whatever this is.
    op_en, op_index, op_data : In
        Operand (query or final hidden state): word ``op_index`` of V signed 16-bit elements out of ``hidden``.
    eq_en, eq_head, eq_exp : In
        Exponent of query head ``eq_head``, 12 bits signed.
    at_sequence, at_position, at_bank : In
        Of a start, stable until ``busy`` falls.
    attend : In(1), group : In
        Starts attention of query heads ``group * A ..`` over the tokens ``0..at_position`` of ``at_sequence``.
    at_eref : Out(signed(10))
        Largest exponent of the value scales of ``at_sequence`` and ``layer``, as the last ATTEND uses it: taken 8 cycles after
        ``attend``, there from the cycle after that until as long after the next ``attend``.
    head : In(1)
        Starts the head on the operands of ``at_bank``.
    busy, busy_next : Out(1)
        ``busy_next`` is what ``busy`` is in the next cycle; combinational.
    acc_en, acc_addr : In, acc_data : Out
        V accumulated values of the pass, one cycle later, or 0 where ``acc_en`` is low with the address; word ``acc_addr`` of
        ``A * head_dim / V``.
    sum_head : In, sum : Out
        Sum of the probabilities of head ``sum_head`` of the pass. Combinational.
    emb_token, emb_en, emb_index : In, emb_data : Out
        V embedding elements of word ``emb_index`` (of ``hidden / V``), four cycles later, or 0 where ``emb_en`` is low in the cycle
        before. ``emb_token`` must be stable one cycle before the first index. Not while HEAD is busy.
    top_index : In, top_token, top_logit, top_count : Out
        An entry of the list of the last HEAD, a cycle later, and how many there are.

    With scales of rows also:

    emb_scale : Out
        That of the row ``emb_token``, a cycle later. Not while busy.
    """

    def __init__(self, config, embedding=None, head=None, scales=(None, None)):
        self.config = config
        heads, width = config.attention_heads, config.vector_width
        self.array = MacArray(config)
        self.cache = KvCache(config)
        self.scores = Scores(config)
        self.weights = Weights(config)
        self.scaler = Scaler(config)
        self.topk = TopK(config.top_k, index_bits(config.vocab), LOGIT_BITS)
        self.score_ram = Ram(heads * SCORE_BITS, config.context)
        # A bank begins at a power of 2, so that its address takes no adder.
        self.banks, self.operand_bits = min(config.batch, 2), ceil_log2(config.head_groups)
        depth = config.head_groups if self.banks == 1 else self.banks << self.operand_bits
        self.operand_rams = [Ram(16 * width, depth) for _ in range(config.array // width)]
        self.rom = Rom("embedding", 8 * config.array, config.vocab * config.head_groups, init=embedding)
        self.head_rom = self.rom
        if not config.tied_head:
            self.head_rom = Rom("head", 8 * config.array, config.vocab * config.head_groups, init=head)
        self.scale_roms = [
            Rom(f"{name}_scales", ROW_SCALE_BITS, config.vocab, init=words)
            for name, words in zip(("embedding", "head"), scales, strict=True)
            if config.row_scales and not (name == "head" and config.tied_head)
        ]
        super().__init__(
            {name: In(getattr(self.cache, name).shape()) for name in _OF_CACHE}
            | ({"emb_scale": Out(ROW_SCALE_BITS)} if config.row_scales else {})
            | {
                "kv_data": In(signed(8)).array(width),
                "at_position": In(index_bits(config.context)),
                "at_bank": In(1),
                "at_eref": Out(signed(10)),
                "bank": In(1),
                "op_en": In(1),
                "op_index": In(index_bits(config.hidden // width)),
                "op_data": In(signed(16)).array(width),
                "eq_en": In(1),
                "eq_head": In(index_bits(config.heads)),
                "eq_exp": In(signed(EXPONENT_BITS)),
                "attend": In(1),
                "group": In(index_bits(config.head_groups)),
                "head": In(1),
                "busy": Out(1),
                "busy_next": Out(1),
                "acc_en": In(1),
                "acc_addr": In(index_bits(config.array // width)),
                "acc_data": Out(signed(config.value_bits)).array(width),
                "sum_head": In(index_bits(heads)),
                "sum": Out(self.weights.sum[0].shape()),
                "emb_token": In(index_bits(config.vocab)),
                "emb_en": In(1),
                "emb_index": In(index_bits(config.hidden // width)),
                "emb_data": Out(signed(8)).array(width),
                "top_index": In(self.topk.index.shape()),
                "top_token": Out(self.topk.token.shape()),
                "top_logit": Out(signed(LOGIT_BITS)),
                "top_count": Out(self.topk.count.shape()),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.array, m.submodules.cache = self.array, self.cache
        m.submodules.scores, m.submodules.weights, m.submodules.scaler = self.scores, self.weights, self.scaler
        m.submodules.topk, m.submodules.embedding = self.topk, self.rom
        if not self.config.tied_head:
            m.submodules.head_rom = self.head_rom
        m.submodules.score_ram = self.score_ram
        self._control(m)
        self._operands(m)
        self._attention(m)
        self._embedding(m)
        self._logits(m)
        return m

    def _control(self, m):
        config, cache = self.config, self.cache
        words = config.vocab * config.head_groups
        tree = tree_stages(config.head_dim)
        self.key_issue, self.score_issue, self.word_issue = Signal(), Signal(), Signal()  # reads of the first memory
        self.clear, self.heading = Signal(), Signal()
        self.operand_addr = Signal(index_bits(config.head_groups))
        self.word_addr = Signal(index_bits(words))
        left, wait = Signal.like(self.at_position), Signal(4 + config.row_scales)
        kv_head = Array(g * config.attention_heads // config.group for g in range(config.head_groups))
        group = Signal.like(self.group)
        fresh, since = Signal(), Signal(REFERENCE)  # the first cycle of HEAD; those of ATTEND, one bit after the other
        m.d.sync += [fresh.eq(0), since.eq(since << 1)]
        m.d.comb += [self.topk.clear.eq(fresh), cache.recall.eq(since[-2])]
        with m.If(since[-1]):
            m.d.sync += self.at_eref.eq(cache.eref)
        with m.FSM() as fsm:
            with m.State("IDLE"):
                m.d.sync += [left.eq(self.at_position), group.eq(self.group)]
                with m.If(self.attend):
                    m.d.comb += [cache.start.eq(1), cache.start_head.eq(kv_head[self.group])]
                    m.d.sync += [self.heading.eq(0), self.operand_addr.eq(self.group), since.eq(1)]
                    m.next = "BASE"
                with m.Elif(self.head):
                    m.d.sync += [fresh.eq(1), self.heading.eq(1), self.operand_addr.eq(0), self.word_addr.eq(0)]
                    m.next = "WORDS"
            with m.State("BASE"):
                m.d.comb += self.clear.eq(1)
                m.next = "KEYS"
            with m.State("KEYS"):
                m.d.comb += self.key_issue.eq(1)
                m.d.sync += [left.eq(left - 1), wait.eq(KEY_DRAIN + tree - 1)]
                with m.If(left == 0):
                    m.next = "KEY_DRAIN"
            with m.State("KEY_DRAIN"):
                m.d.sync += [wait.eq(wait - 1), left.eq(self.at_position)]
                with m.If(wait == 0):
                    m.d.comb += [cache.start.eq(1), cache.values.eq(1), cache.start_head.eq(kv_head[group])]
                    m.next = "VALUES"
            with m.State("VALUES"):
                m.d.comb += self.score_issue.eq(1)
                m.d.sync += [left.eq(left - 1), wait.eq(VALUE_DRAIN - 1)]
                with m.If(left == 0):
                    m.next = "DRAIN"
            with m.State("WORDS"):
                m.d.comb += self.word_issue.eq(1)
                m.d.sync += [self.word_addr.eq(self.word_addr + 1), self.operand_addr.eq(self.operand_addr + 1)]
                with m.If(self.operand_addr == config.head_groups - 1):
                    m.d.sync += self.operand_addr.eq(0)
                scaling = SCALE_STAGES * config.row_scales
                m.d.sync += wait.eq(HEAD_DRAIN + tree + tree_stages(config.attention_heads) + scaling - 1)
                with m.If(self.word_addr == words - 1):
                    m.next = "DRAIN"
            with m.State("DRAIN"):
                m.d.sync += wait.eq(wait - 1)
                with m.If(wait == 0):
                    m.next = "IDLE"
        self.idle = fsm.ongoing("IDLE")
        m.d.comb += self.busy_next.eq(
            (self.idle & (self.attend | self.head)) | (self.busy & ~(fsm.ongoing("DRAIN") & (wait == 0)))
        )
        m.d.sync += self.busy.eq(self.busy_next)

    def _operands(self, m):
        """Operand memory, the exponents of the queries, and the loads of the array."""
        config, array, width = self.config, self.array, self.config.vector_width
        word, part = _split(m, "op", self.op_index, config.hidden // width, len(self.operand_rams))

        def banked(address, bank):
            return address if self.banks == 1 else Cat(address[: self.operand_bits], bank)

        enable, data = Signal(len(self.operand_rams)), Signal(16 * width, reset_less=True)
        address = Signal.like(self.operand_rams[0].write_addr)
        m.d.sync += enable.eq(self.op_en << part)
        with m.If(self.op_en):
            m.d.sync += [address.eq(banked(word, self.bank)), data.eq(Cat(*self.op_data))]
        load = Signal()
        m.d.sync += load.eq(self.key_issue | self.word_issue)
        m.d.comb += [
            array.load.eq(load | self.weights.weight_valid),
            array.use_weight.eq(self.weights.weight_valid),
            array.use_embedding.eq(self.heading),
            array.clear.eq(self.clear),
        ]
        for i, ram in enumerate(self.operand_rams):
            m.submodules[f"operand_{i}"] = ram
            m.d.comb += [
                ram.write_en.eq(enable[i]),
                ram.write_addr.eq(address),
                ram.write_data.eq(data),
                ram.read_en.eq(self.key_issue | self.word_issue),
                ram.read_addr.eq(banked(self.operand_addr, self.at_bank)),
                *(
                    array.operand[i * width + j].eq(ram.read_data[16 * j : 16 * j + 16].as_signed())
                    for j in range(width)
                ),
            ]

        banks = [
            [Signal(signed(EXPONENT_BITS), name=f"exponent_{b}_{h}") for h in range(config.heads)]
            for b in range(self.banks)
        ]
        for b, exponents in enumerate(banks):
            with m.If(self.eq_en & (self.bank == b if self.banks > 1 else 1)):
                m.d.sync += Array(exponents)[self.eq_head].eq(self.eq_exp)
        with m.If(self.idle):
            for a, exponent in enumerate(self.scores.exponent):
                of_banks = [Array(exponents[a :: config.attention_heads])[self.group] for exponents in banks]
                m.d.sync += exponent.eq(Mux(self.at_bank, *reversed(of_banks)) if self.banks > 1 else of_banks[0])

    def _attention(self, m):
        config, array, cache = self.config, self.array, self.cache
        scores, weights, scaler, ram = self.scores, self.weights, self.scaler, self.score_ram
        for name in _OF_CACHE:
            m.d.comb += getattr(cache, name).eq(getattr(self, name))
        m.d.comb += [
            *(a.eq(b) for a, b in zip(cache.kv_data, self.kv_data, strict=True)),
            weights.eref.eq(self.at_eref),
            cache.row_step.eq(self.key_issue | weights.row_step),
            cache.scale_step.eq((array.dot_soon & ~self.heading) | weights.scale_step),
            *(a.eq(b) for a, b in zip(array.cached, cache.row, strict=True)),
            scores.clear.eq(self.clear),
            scores.valid.eq(array.dot_valid & ~self.heading),
            scores.scale_e.eq(cache.scale_e),
            weights.clear.eq(self.clear),
            weights.scale_e.eq(cache.scale_e),
            scaler.valid.eq(scores.valid | weights.scale_en),
            scaler.scale_m.eq(cache.scale_m),
        ]
        with m.If(self.clear):
            m.d.sync += [ram.write_addr.eq(0), ram.read_addr.eq(0)]
        with m.Else():
            m.d.sync += [
                ram.write_addr.eq(ram.write_addr + ram.write_en),
                ram.read_addr.eq(ram.read_addr + ram.read_en),
            ]
        m.d.comb += [
            ram.write_en.eq(scores.score_valid),
            ram.write_data.eq(Cat(*scores.score)),
            ram.read_en.eq(self.score_issue),
        ]
        m.d.sync += weights.valid.eq(self.score_issue)
        for a in range(config.attention_heads):
            m.d.comb += [
                scores.dot[a].eq(array.dot[a]),
                weights.maximum[a].eq(scores.maximum[a]),
                weights.score[a].eq(ram.read_data.word_select(a, SCORE_BITS).as_signed()),
                array.weight[a].eq(weights.weight[a]),
                scaler.value[a].eq(Mux(weights.scale_en, weights.value[a], scores.value[a])),
                scaler.shift[a].eq(Mux(weights.scale_en, weights.shift, scores.shift[a])),
                scores.scaled[a].eq(scaler.scaled[a]),
                weights.scaled[a].eq(scaler.scaled[a]),
            ]
        width = config.vector_width
        for j in range(width):
            m.d.sync += self.acc_data[j].eq(
                Mux(self.acc_en, Array(list(array.accumulator)[j::width])[self.acc_addr], 0)
            )
        m.d.comb += self.sum.eq(Array(list(weights.sum))[self.sum_head])

    def _embedding(self, m):
        config, width = self.config, self.config.vector_width
        parts = config.array // width
        word, part = _split(m, "emb", self.emb_index, config.hidden // width, parts)
        first, part_1, part_2, part_3 = (
            Signal.like(self.word_addr),
            *(Signal.like(part, name=f"part_{i}") for i in (1, 2, 3)),
        )
        m.d.sync += [
            first.eq(_times(self.emb_token, config.head_groups)),
            part_1.eq(part),
            part_2.eq(part_1),
            part_3.eq(part_2),
        ]
        with m.If(self.idle & ~self.head):
            m.d.sync += self.word_addr.eq(first + word)
        elements = [Signal(signed(8), name=f"embedding_{i}") for i in range(config.array)]
        m.d.comb += self.rom.addr.eq(self.word_addr)
        if not config.tied_head:
            m.d.comb += self.head_rom.addr.eq(self.word_addr)
        for i, element in enumerate(elements):
            m.d.comb += element.eq(self.rom.data[8 * i : 8 * i + 8].as_signed())
            of_head = element if config.tied_head else self.head_rom.data[8 * i : 8 * i + 8].as_signed()
            m.d.comb += self.array.embedding[i].eq(of_head)
        for j in range(width):  # four parts to one, then what is left
            column = elements[j::width]
            few = [Signal(signed(8), name=f"embedding_{j}_{i}", reset_less=True) for i in range(-(-parts // 4))]
            m.d.sync += [few[i].eq(Array(column[4 * i : 4 * i + 4])[part_2[:2]]) for i in range(len(few))]
            m.d.sync += self.emb_data[j].eq(Mux(self.emb_en, Array(few)[part_3[2:]], 0))

    def _logits(self, m):
        config, array, topk = self.config, self.array, self.topk
        stages = tree_stages(config.attention_heads)
        valid = [Signal(name=f"words_{i}") for i in range(stages + 1)]
        m.d.comb += valid[0].eq(array.dot_valid & self.heading)
        m.d.sync += [valid[i + 1].eq(valid[i]) for i in range(stages)]
        dot = add_tree(m, list(array.dot), products=config.head_dim, enables=valid, name="words")
        total = Signal(signed(product_bits(config.hidden)), reset_less=True)
        word = Signal.like(self.operand_addr)
        last = Signal()
        m.d.comb += last.eq(word == config.head_groups - 1)
        if not config.row_scales:
            m.d.sync += topk.valid.eq(valid[-1] & last)
        with m.If(valid[-1]):
            m.d.sync += [total.eq(total + dot), word.eq(word + 1)]
            with m.If(word == 0):
                m.d.sync += total.eq(dot)
            with m.If(last):
                m.d.sync += word.eq(0)
        with m.If(topk.clear):
            m.d.sync += topk.token.eq(0)
        with m.Elif(topk.valid):
            m.d.sync += topk.token.eq(topk.token + 1)
        m.d.comb += [
            topk.logit.eq(self._scaled(m, total, valid[-1] & last) >> config.logit_shift),
            topk.index.eq(self.top_index),
            self.top_count.eq(topk.count),
        ]
        m.d.sync += [self.top_token.eq(topk.top_token), self.top_logit.eq(topk.top_logit)]

    def _scaled(self, m, total, complete):
        """A row's sum, which ``complete`` precedes by a cycle, times the row's scale; tells the list when it is there."""
        if not self.config.row_scales:
            return total
        for rom in self.scale_roms:
            m.submodules[rom.name] = rom
        done, row, row_next = Signal(), Signal.like(self.topk.token), Signal.like(self.topk.token)
        m.d.comb += row_next.eq(Mux(self.topk.clear, 0, row + done))
        m.d.sync += [done.eq(complete), row.eq(row_next)]
        first, own = self.scale_roms[0], self.scale_roms[-1]
        if first is own:
            m.d.comb += own.addr.eq(Mux(self.idle, self.emb_token, row_next))
        else:
            m.d.comb += [first.addr.eq(self.emb_token), own.addr.eq(row_next)]
        m.d.comb += self.emb_scale.eq(first.data)
        value = total * own.data
        for stage in range(SCALE_STAGES):
            product, valid = (
                Signal(value.shape(), name=f"scaled_{stage}", reset_less=True),
                Signal(name=f"scaled_valid_{stage}"),
            )
            m.d.sync += product.eq(value)
            if stage < SCALE_STAGES - 1:
                m.d.sync += valid.eq(done)
                done = valid
            value = product
        m.d.sync += self.topk.valid.eq(done)
        return value >> ROW_SCALE_BITS


def _split(m, name, index, count, divisor):
    """Signals with quotient and remainder of ``index`` by a constant, exact for ``index < count`` and without a divider."""
    quotient = Signal(index_bits(-(-count // divisor)), name=f"{name}_word")
    remainder = Signal(index_bits(divisor), name=f"{name}_part")
    shift = 0
    while any((i * -(-(1 << shift) // divisor)) >> shift != i // divisor for i in range(count)):
        shift += 1
    m.d.comb += [
        quotient.eq(_times(index, -(-(1 << shift) // divisor)) >> shift),
        remainder.eq(index - _times(quotient, divisor)),
    ]
    return quotient, remainder


def _times(value, constant):
    """The product as shifts and additions, so that synthesis spends no multiplier on it."""
    return sum(value << i for i in range(1, constant.bit_length()) if constant >> i & 1) + (
        value if constant & 1 else 0
    )
