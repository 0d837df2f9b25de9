"""Decoder core: the slots of the tokens, the units that they share, and the sequencer."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.numerics import ZERO_EXPONENT
from intaglio.rtl.arithmetic.scalar import ScalarLayout
from intaglio.rtl.attention.narrow.unit import AttentionUnit
from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.control.program import Op, Phase
from intaglio.rtl.control.sequencer import Sequencer
from intaglio.rtl.memory.ram import index_bits
from intaglio.rtl.ternary.adapter.loader import Loader, Outcome
from intaglio.rtl.ternary.linear import LinearUnit
from intaglio.rtl.top.slot import TokenSlot
from intaglio.rtl.vector.unit import Destination, VectorOp, VectorUnit, gain_rom

__all__ = ["DecoderCore"]

_KINDS = {
    Op.EMBED: VectorOp.EMBED,
    Op.NORM8: VectorOp.NORM8,
    Op.NORM16: VectorOp.NORM16,
    Op.ROPE: VectorOp.ROPE,
    Op.DRAIN: VectorOp.DRAIN,
}


class DecoderCore(wiring.Component):
    """Commands in, results out; the counters' events beside them: ``computed`` is the number of tokens of the group that has ``finished``.

    Parameters
    ----------
    config : DecoderConfig
    length : int
        Words of the layer program.
    lane_instance : bool
        Lanes are instances of one module, ``intaglio_lane``, which the generator emits once.
    digest : int
        What the image of an adapter must begin with.

    With adapters, the members of :class:`Loader` that the host reaches are here as ``adapter_*``.
    """

    def __init__(self, config: DecoderConfig, length, lane_instance=True, digest=0):
        self.config, self.length, self.lane_instance, self.digest = config, length, lane_instance, digest
        adapter = (
            {}
            if not config.rank
            else {
                "adapter_value": In(32),
                "adapter_begin": In(1),
                "adapter_data": In(1),
                "adapter_commit": In(1),
                "adapter_outcome": Out(Outcome),
                "adapter_loaded": Out(config.adapters),
                "adapter_refused": Out(1),
            }
        )
        gate = (
            {}
            if not config.gate_words
            else {"gate_power": Out(config.gate_banks), "gate_reads": Out(config.gate_banks), "gate_stall": Out(1)}
        )
        super().__init__(
            {
                **adapter,
                **gate,
                "command_valid": In(1),
                "command_ready": Out(1),
                "command_data": In(32),
                "result_valid": Out(1),
                "result_ready": In(1),
                "result_data": Out(32),
                "result_last": Out(1),
                "active": Out(1),
                "phase": Out(Phase),
                "overflow": Out(1),
                "finished": Out(1),
                "computed": Out(range(config.batch + 1)),
                "position": Out(16),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c = self.config
        m.submodules.sequencer = s = Sequencer(c, self.length)
        m.submodules.linear = linear = LinearUnit(c, lane_instance=self.lane_instance)
        m.submodules.attention = attention = AttentionUnit(c)
        members = linear.signature.members
        slots = [TokenSlot(c, {name: members[name].shape for name in TokenSlot.LINEAR}) for _ in range(c.batch)]
        for i, slot in enumerate(slots):
            m.submodules[f"slot_{i}"] = slot
        if c.batch > 1:
            m.submodules.gains = gains = gain_rom(c)
            norm = Signal(index_bits(c.batch))  # one of the slots whose norm is under way, all at the same word
            for i in reversed(range(c.batch)):
                with m.If(s.start_vector[i]):
                    m.d.sync += norm.eq(i)
            m.d.comb += [
                gains.addr.eq(Array(slot.gain_addr for slot in slots)[norm]),
                *(slot.gain_data.eq(gains.data) for slot in slots),
            ]
        self._waits(m, s, linear, slots, attention)
        self._events(m, s)
        self._linear(m, s, linear, slots)
        self._vector(m, s, slots, attention)
        if c.rank:
            self._adapters(m, s, linear)
        self._attention(m, s, slots, attention)
        return m

    def _waits(self, m, s, linear, slots, attention):
        """What the sequencer waits for; a linear starts while its last activations are written."""
        c = self.config
        busy, a_busy, done, done_next = Signal(), Signal(), Signal(name="ended"), Signal(name="ended_next")
        m.d.comb += [
            busy.eq(Cat(slot.busy_next for slot in slots).any()),
            a_busy.eq(Cat(slot.a_busy_next for slot in slots).any()),
            done.eq(Cat(slot.ending | ~s.live[i] for i, slot in enumerate(slots)).all()),
            done_next.eq(Cat(slot.ending_next | ~s.live[i] for i, slot in enumerate(slots)).all()),
        ]
        ending, ending_next = done, done_next
        for stage in range(VectorUnit.EARLY - linear.early(c)):
            later = Signal(name=f"ending_{stage}")
            m.d.sync += later.eq(ending)
            ending, ending_next = later & done, ending & done_next  # until the next start
        m.d.comb += s.busy_next.eq(Cat(linear.busy_next, busy, a_busy, attention.busy_next, busy & ~ending_next))

    def _events(self, m, s):
        """Commands, results, and what is counted."""
        m.d.comb += [
            s.command_valid.eq(self.command_valid),
            s.command_data.eq(self.command_data),
            self.command_ready.eq(s.command_ready),
            self.result_valid.eq(s.result_valid),
            self.result_data.eq(s.result_data),
            self.result_last.eq(s.result_last),
            s.result_ready.eq(self.result_ready),
            self.active.eq(s.active),
            self.phase.eq(s.phase),
            self.overflow.eq(s.overflow),
            self.finished.eq(s.finished),
            self.computed.eq(sum(s.live, Const(0, 1))),
            self.position.eq(s.position),
        ]

    def _linear(self, m, s, linear, slots):
        """Starts of the linear unit, and its ends in the slots."""
        c = self.config
        m.d.comb += [
            *([] if c.rank else [linear.start.eq(s.start_linear)]),
            linear.restart.eq(s.begin),
            linear.groups.eq(s.m),
            linear.chunks.eq(s.e),
            linear.mode.eq(s.rd),
        ]
        for i, slot in enumerate(slots):
            m.d.comb += [
                linear.scale_m[i].eq(s.scale[i].m),
                linear.scale_e[i].eq(s.scale[i].e),
                slot.start_linear.eq(s.start_linear),
                slot.linear_busy.eq(linear.busy),
                slot.act_addr.eq(linear.act_addr),
                slot.x_rd_addr.eq(linear.x_rd_addr),
                linear.act_data[i].eq(slot.act_data),
                linear.x_rd_data[i].eq(slot.x_rd_data),
                *(
                    getattr(slot, name).eq(getattr(linear, name))
                    for name in ("x_wr_en", "x_wr_addr", "r_wr_en", "r_wr_addr")
                ),
                *(
                    getattr(slot, name).eq(getattr(linear, name)[i])
                    for name in ("x_wr_data", "r_wr_data", "x_or", "r_or")
                ),
            ]
        if c.gate_words:
            m.d.comb += [
                linear.ahead.eq(s.start_vector.any() & (s.op == Op.NORM8)),
                self.gate_power.eq(linear.gate_power),
                self.gate_reads.eq(linear.gate_reads),
                self.gate_stall.eq(linear.gate_stall),
            ]

    def _vector(self, m, s, slots, attention):
        """Starts of the vector units; the angles are needed late."""
        c = self.config
        begun = Signal()
        m.d.sync += begun.eq(s.begin)
        kind = Signal(VectorOp)
        with m.Switch(s.op):
            for op, of in _KINDS.items():
                with m.Case(op):
                    m.d.comb += kind.eq(of)
        for i, slot in enumerate(slots):
            m.d.comb += [
                slot.start.eq(s.start_vector[i]),
                slot.kind.eq(kind),
                slot.source.eq(s.rd[0]),
                slot.gain_base.eq(s.m),
                slot.words.eq(s.e),
                slot.group.eq(s.m),
                slot.embed_scale.eq(attention.emb_scale if c.row_scales else s.m),
                slot.q_mantissa.eq(s.q_scale[i].m),
                slot.shift.eq(s.vector_shift[i]),
                slot.rotary_start.eq(begun),
                slot.position.eq(s.positions[i]),
                slot.m_segment.eq(s.segment),
                s.x_shift[i].eq(slot.x_shift),
                s.r_shift[i].eq(slot.r_shift),
                s.m_value[i].eq(slot.m_value),
                s.squares[i].eq(slot.ss),
                *(a.eq(b) for a, b in zip(slot.emb_data, attention.emb_data, strict=True)),
                *(a.eq(b) for a, b in zip(slot.acc_data, attention.acc_data, strict=True)),
                slot.sum_value.eq(attention.sum),
            ]

    def _attention(self, m, s, slots, attention):
        """Attention's operands, cache (scales two cycles later), accumulators, embedding, each of the slot whose turn it is."""
        c = self.config

        def of(index, pick):
            """What ``pick`` takes of the slot."""
            return pick(slots[0]) if c.batch == 1 else Array(pick(slot) for slot in slots)[index]

        def to(*destinations):
            return lambda slot: slot.w_en & Cat(slot.w_dest == destination for destination in destinations).any()

        write, at = s.writer, s.slot
        stored = Signal(data.StructLayout({"key": 1, "value": 1, "head": 8, "scale": ScalarLayout}))
        m.d.sync += [
            stored.key.eq(s.store_key),
            stored.value.eq(s.store_value),
            stored.head.eq(s.store_head),
            stored.scale.eq(s.store),
            attention.ks_en.eq(stored.key),
            attention.vs_en.eq(stored.value),
            attention.sc_head.eq(stored.head),
            attention.sc_m.eq(stored.scale.m),
            attention.sc_e.eq(Mux(stored.scale.m == 0, ZERO_EXPONENT, stored.scale.e)),
        ]
        operand = Signal()
        m.d.comb += [
            operand.eq(of(write, to(Destination.OPERAND))),
            attention.op_en.eq(operand),
            attention.op_index.eq(of(write, lambda slot: slot.w_index)),
            attention.eq_en.eq(operand & of(write, lambda slot: slot.w_first)),
            attention.eq_head.eq(of(write, lambda slot: slot.w_head)),
            attention.eq_exp.eq(
                (s.q_base[0] if c.batch == 1 else Array(s.q_base)[write]) + of(write, lambda slot: slot.w_en_shift)
            ),
            attention.kv_en.eq(of(write, to(Destination.KEY, Destination.VALUE))),
            attention.kv_is_v.eq(of(write, lambda slot: slot.w_dest == Destination.VALUE)),
            attention.kv_head.eq(of(write, lambda slot: slot.w_head)),
            attention.kv_index.eq(of(write, lambda slot: slot.w_index)),
            attention.sequence.eq(Array(s.sequences)[write]),
            attention.position.eq(Array(s.positions)[write]),
            attention.bank.eq(s.bank),
            attention.attend.eq(s.start_attend),
            attention.head.eq(s.start_head),
            attention.group.eq(s.m),
            attention.layer.eq(s.layer),
            attention.at_sequence.eq(Array(s.sequences)[at]),
            attention.at_position.eq(Array(s.positions)[at]),
            attention.at_bank.eq(s.at_bank),
            attention.acc_en.eq(of(at, lambda slot: slot.acc_en)),
            attention.acc_addr.eq(of(at, lambda slot: slot.acc_addr)),
            attention.sum_head.eq(of(at, lambda slot: slot.sum_head)),
            attention.emb_en.eq(of(at, lambda slot: slot.emb_en)),
            attention.emb_index.eq(of(at, lambda slot: slot.emb_index)),
            attention.emb_token.eq(Array(s.tokens)[at]),
            s.reference.eq(attention.at_eref),
            attention.top_index.eq(s.rank),
            s.rank_token.eq(attention.top_token),
            s.rank_logit.eq(attention.top_logit),
        ]
        for i in range(c.vector_width):
            m.d.comb += [
                attention.op_data[i].eq(of(write, lambda slot, i=i: slot.w_data[i])),
                attention.kv_data[i].eq(of(write, lambda slot, i=i: slot.w_data[i])),
            ]

    def _adapters(self, m, s, linear):
        """The loader between registers, sequencer and the linear unit's memories."""
        m.submodules.loader = loader = Loader(self.config, self.digest)
        for name in ("value", "begin", "data", "commit"):
            m.d.comb += getattr(loader, name).eq(getattr(self, f"adapter_{name}"))
        for name in ("weight_en", "weight_addr", "weight_data", "scale_en", "scale_addr", "scale_data"):
            m.d.comb += getattr(linear, name).eq(getattr(loader, name))
        m.d.comb += [
            self.adapter_outcome.eq(loader.outcome),
            self.adapter_loaded.eq(loader.loaded),
            self.adapter_refused.eq(s.refused),
            loader.active.eq(s.active),
            loader.running.eq(s.running),
            loader.memory.eq(s.memory),
            loader.selected.eq(s.selected),
            s.lost.eq(loader.lost),
            s.ok.eq(loader.ok),
            s.physical.eq(loader.physical),
            linear.start.eq(s.start_linear | s.start_adapt),
            linear.adapt.eq(s.start_adapt),
            linear.adapted.eq(s.adapted),
            linear.kind.eq(s.rd),
            linear.memory.eq(s.memory),
        ]
