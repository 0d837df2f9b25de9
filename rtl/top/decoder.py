"""Decoder core: the units, the buffers between them, and the sequencer."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.numerics import XS_BITS, ZERO_EXPONENT
from intaglio.rtl.arithmetic.scalar import ScalarLayout, bit_length
from intaglio.rtl.attention.narrow.unit import AttentionUnit
from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.control.program import Op, Phase
from intaglio.rtl.control.sequencer import Sequencer
from intaglio.rtl.memory.ram import Ram
from intaglio.rtl.ternary.adapter.loader import Loader, Outcome
from intaglio.rtl.ternary.linear import LinearUnit
from intaglio.rtl.vector.unit import Destination, VectorOp, VectorUnit

__all__ = ["DecoderCore"]

_KINDS = {
    Op.EMBED: VectorOp.EMBED,
    Op.NORM8: VectorOp.NORM8,
    Op.NORM16: VectorOp.NORM16,
    Op.ROPE: VectorOp.ROPE,
    Op.DRAIN: VectorOp.DRAIN,
}


class Buffer(wiring.Component):
    """Memory of ``depth`` words of ``parts`` parts that are written apart and read together.

    Latency 1; a part that is read and written at one address in the same cycle reads as anything.
    ``write_en`` has a bit per part; ``write_data`` and ``read_data`` are whole words.
    """

    def __init__(self, part_bits, parts, depth):
        self.part_bits = part_bits
        self.rams = [Ram(part_bits, depth) for _ in range(parts)]
        bits = self.rams[0].read_addr.shape()
        super().__init__(
            {
                "write_en": In(parts),
                "write_addr": In(bits),
                "write_data": In(part_bits * parts),
                "read_addr": In(bits),
                "read_data": Out(part_bits * parts),
            }
        )

    def elaborate(self, platform):
        m = Module()
        for i, ram in enumerate(self.rams):
            part = slice(i * self.part_bits, (i + 1) * self.part_bits)
            m.submodules[f"part_{i}"] = ram
            m.d.comb += [
                ram.write_en.eq(self.write_en[i]),
                ram.write_addr.eq(self.write_addr),
                ram.write_data.eq(self.write_data[part]),
                ram.read_en.eq(1),
                ram.read_addr.eq(self.read_addr),
                self.read_data[part].eq(ram.read_data),
            ]
        return m


class DecoderCore(wiring.Component):
    """Commands in, results out; the counters' events beside them.

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
                "position": Out(16),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c, v = self.config, self.config.vector_width
        m.submodules.sequencer = s = Sequencer(c, self.length)
        m.submodules.linear = linear = LinearUnit(c, lane_instance=self.lane_instance)
        m.submodules.vector = vector = VectorUnit(c)
        m.submodules.attention = attention = AttentionUnit(c)
        m.submodules.residual = x = Buffer(32 * c.lanes, v // c.lanes, c.hidden // v)
        half = c.lanes // 2
        m.submodules.results = r = Buffer(
            c.result_bits * half, v // half, max(c.qkv_rows, c.hidden, c.intermediate) // v
        )
        m.submodules.activations = a = Buffer(8 * v, c.lane_width // v, max(c.hidden, c.intermediate) // c.lane_width)
        self._waits(m, s, linear, vector, attention)
        self._events(m, s)
        self._starts(m, s, linear, vector, attention)
        if c.rank:
            self._adapters(m, s, linear)
        self._shifts(m, s, linear, vector)
        self._reads(m, linear, vector, attention, x, r, a)
        to = {destination: Signal(name=f"write_{destination.name.lower()}") for destination in Destination}
        for destination, signal in to.items():
            m.d.comb += signal.eq(vector.w_en & (vector.w_dest == destination))
        self._results(m, to, linear, vector, x, r)
        self._activations(m, s, to, vector, a)
        self._attention(m, s, to, vector, attention)
        return m

    def _waits(self, m, s, linear, vector, attention):
        """What the sequencer waits for; a linear starts while its last activations are written."""
        c = self.config
        ending, ending_next = vector.ending, vector.ending_next
        for stage in range(vector.EARLY - linear.early(c)):
            later = Signal(name=f"ending_{stage}")
            m.d.sync += later.eq(ending)
            ending, ending_next = later & vector.ending, ending & vector.ending_next  # until the next start
        m.d.comb += s.busy_next.eq(
            Cat(
                linear.busy_next,
                vector.busy_next,
                vector.a_busy_next,
                attention.busy_next,
                vector.busy_next & ~ending_next,
            )
        )

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
            self.position.eq(s.position),
        ]

    def _starts(self, m, s, linear, vector, attention):
        """Starts of the units; the angles are needed late."""
        c = self.config
        begun = Signal()
        m.d.sync += begun.eq(s.begin)
        m.d.comb += [
            *([] if c.rank else [linear.start.eq(s.start_linear)]),
            linear.restart.eq(s.begin),
            linear.groups.eq(s.m),
            linear.chunks.eq(s.e),
            linear.mode.eq(s.rd),
            linear.scale_m[0].eq(s.scale.m),
            linear.scale_e[0].eq(s.scale.e),
            vector.start.eq(s.start_vector),
            vector.source.eq(s.rd[0]),
            vector.gain_base.eq(s.m),
            vector.words.eq(s.e),
            vector.group.eq(s.m),
            vector.embed_scale.eq(attention.emb_scale if c.row_scales else s.m),
            vector.q_mantissa.eq(s.q_scale.m),
            vector.shift.eq(s.vector_shift),
            vector.rotary_start.eq(begun),
            vector.position.eq(s.position),
            attention.attend.eq(s.start_attend),
            attention.head.eq(s.start_head),
            attention.group.eq(s.m),
            attention.layer.eq(s.layer),
            attention.position.eq(s.position),
            attention.at_position.eq(s.position),
        ]
        if c.gate_words:
            m.d.comb += [
                linear.ahead.eq(s.start_vector & (s.op == Op.NORM8)),
                self.gate_power.eq(linear.gate_power),
                self.gate_reads.eq(linear.gate_reads),
                self.gate_stall.eq(linear.gate_stall),
            ]
        with m.Switch(s.op):
            for op, kind in _KINDS.items():
                with m.Case(op):
                    m.d.comb += vector.kind.eq(kind)

    def _shifts(self, m, s, linear, vector):
        """Magnitudes of the residual and of the results, as shifts, a cycle later."""
        c = self.config
        in_vector = Signal()
        draining = Signal()
        with m.If(s.start_linear):
            m.d.sync += in_vector.eq(0)
        with m.If(s.start_vector & (s.op == Op.EMBED)):
            m.d.sync += in_vector.eq(1)
        with m.If(s.start_vector & (s.op == Op.DRAIN)):
            m.d.sync += draining.eq(1)
        with m.If(s.start_linear):
            m.d.sync += draining.eq(0)
        shifts = {}
        for name, ors in (("vector", vector.w_or), ("linear", linear.x_or[0]), ("results", linear.r_or[0])):
            shifts[name] = Signal(c.shift_bits, name=f"{name}_shift")
            m.d.sync += shifts[name].eq(bit_length(m, ors[XS_BITS - 1 :], f"{name}_bits"))
        m.d.comb += [
            s.x_shift.eq(Mux(in_vector, shifts["vector"], shifts["linear"])),
            s.r_shift.eq(Mux(draining, 0, shifts["results"])),
        ]

    def _reads(self, m, linear, vector, attention, x, r, a):
        """Reads of the buffers: the linear unit and the vector unit take turns."""
        c, v = self.config, self.config.vector_width
        m.d.comb += [
            linear.act_data[0].eq(a.read_data),
            a.read_addr.eq(linear.act_addr),
            linear.x_rd_data[0].eq(x.read_data),
            x.read_addr.eq(Mux(linear.busy, linear.x_rd_addr, vector.src_addr)),
            r.read_addr.eq(vector.src_addr),
        ]
        for i in range(v):
            m.d.comb += [
                vector.x_data[i].eq(x.read_data[32 * i : 32 * i + 32].as_signed()),
                vector.r_data[i].eq(r.read_data[c.result_bits * i : c.result_bits * (i + 1)].as_signed()),
                vector.emb_data[i].eq(attention.emb_data[i]),
                vector.acc_data[i].eq(attention.acc_data[i]),
            ]

    def _results(self, m, to, linear, vector, x, r):
        """Writes of the residual and of the results."""
        c, v = self.config, self.config.vector_width
        narrow = [Signal(signed(c.result_bits), name=f"result_{i}") for i in range(v)]
        m.d.comb += [signal.eq(vector.w_data[i]) for i, signal in enumerate(narrow)]
        # Registers before what decodes the address for every 16 words of a part; nothing reads a word in the two cycles after its write.
        for buffer, destination, words, en, addr, data_ in (
            (x, Destination.RESIDUAL, vector.w_data, linear.x_wr_en, linear.x_wr_addr, linear.x_wr_data[0]),
            (r, Destination.RESULT, narrow, linear.r_wr_en, linear.r_wr_addr, linear.r_wr_data[0]),
        ):
            m.d.sync += [
                buffer.write_en.eq(Mux(to[destination], -1, en)),
                buffer.write_addr.eq(Mux(to[destination], vector.w_index, addr)),
                buffer.write_data.eq(Mux(to[destination], Cat(*words), data_.replicate(v // c.lanes))),
            ]

    def _activations(self, m, s, to, vector, a):
        """Writes of the activations, part by part of a word."""
        c, v = self.config, self.config.vector_width
        parts = c.lane_width // v
        part, word = Signal(range(parts)), Signal.like(a.write_addr)
        m.d.comb += [
            a.write_en.eq(to[Destination.A8] << part),
            a.write_addr.eq(word),
            a.write_data.eq(Cat(*(element[:8] for element in vector.w_data)).replicate(parts)),
        ]
        with m.If(s.start_vector):
            m.d.sync += [part.eq(0), word.eq(0)]
        with m.Elif(to[Destination.A8]):
            m.d.sync += part.eq(part + 1)
            with m.If(part == parts - 1):
                m.d.sync += [part.eq(0), word.eq(word + 1)]

    def _attention(self, m, s, to, vector, attention):
        """Attention's operands, cache (scales two cycles later), accumulators, embedding."""
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
        m.d.comb += [
            attention.op_en.eq(to[Destination.OPERAND]),
            attention.op_index.eq(vector.w_index),
            attention.eq_en.eq(to[Destination.OPERAND] & vector.w_first),
            attention.eq_head.eq(vector.w_head),
            attention.eq_exp.eq(s.q_base + vector.w_en_shift),
            attention.kv_en.eq(to[Destination.KEY] | to[Destination.VALUE]),
            attention.kv_is_v.eq(to[Destination.VALUE]),
            attention.kv_head.eq(vector.w_head),
            attention.kv_index.eq(vector.w_index),
            attention.acc_en.eq(vector.acc_en),
            attention.emb_en.eq(vector.emb_en),
            attention.acc_addr.eq(vector.acc_addr),
            attention.sum_head.eq(vector.sum_head),
            vector.sum_value.eq(attention.sum),
            attention.emb_token.eq(s.token),
            attention.emb_index.eq(vector.emb_index),
            s.m_value.eq(vector.m_value),
            vector.m_segment.eq(s.segment),
            s.squares.eq(vector.ss),
            s.reference.eq(attention.at_eref),
            attention.top_index.eq(s.rank),
            s.rank_token.eq(attention.top_token),
            s.rank_logit.eq(attention.top_logit),
        ]
        for i in range(self.config.vector_width):
            m.d.comb += [attention.op_data[i].eq(vector.w_data[i]), attention.kv_data[i].eq(vector.w_data[i])]

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
