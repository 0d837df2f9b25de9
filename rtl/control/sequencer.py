"""Sequencer: runs the layer program on the units once for each group of tokens, and answers with result packets.

Which tokens are in a group, :class:`~intaglio.rtl.control.group.Group` says; docs/host.md and docs/batch.md describe the protocol.
"""

from types import SimpleNamespace

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.scalar import ScalarLayout
from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.control.group import Group, command_layout
from intaglio.rtl.control.program import REGISTERS, WORD_BITS, Layout, Op, Phase, Wait
from intaglio.rtl.control.scalars import ALU_OPS, SlotScalars, squares_bits
from intaglio.rtl.memory.ram import index_bits
from intaglio.rtl.memory.rom import Rom

__all__ = ["ALU_OPS", "Sequencer", "command_layout"]

_UNITS = {
    Op.EMBED: (Wait.VECTOR, Phase.EMBED),
    Op.NORM8: (Wait.VECTOR, Phase.NORM),
    Op.NORM16: (Wait.VECTOR, Phase.NORM),
    Op.ROPE: (Wait.VECTOR, Phase.ROTARY),
    Op.DRAIN: (Wait.VECTOR, Phase.ATTENTION),
    Op.LINEAR: (Wait.LINEAR, Phase.LINEAR),
    Op.ATTEND: (Wait.ATTENTION, Phase.ATTENTION),
    Op.HEAD: (Wait.ATTENTION, Phase.HEAD),
}


class Sequencer(wiring.Component):
    """Runs the layer program, once per group of tokens.

    Members
    -------
    command, result : 32-bit streams (``valid``, ``ready``, ``data``; a result also ``last``).
    op, m, e, rd : fields of the word being started; ``start_linear``, ``start_attend``, ``start_head`` and, with a bit for each slot,
        ``start_vector`` are high for one cycle.
    busy_next : which units are at work in the next cycle, those started in this one included, a bit for each flag of ``Wait`` in its
        order; by ENDING the vector units, until the end is so near that the activations are written when the first is read, some cycles
        after the first weight (``LinearUnit.early``).
    tokens, positions, sequences : of the group under way, a member for each slot; ``live`` has a bit for each that is computed.
        ``begin`` is high for one cycle as it begins.
    slot, writer : the slot that one-slot operations are of; the one whose ROPE or NORM16 was the last. ``bank`` changes with every ROPE,
        ``at_bank`` is that of the operands of the last ATTEND or HEAD, from the cycle of its start.
    layer : of the layer under way.
    scale : scalar register ``ra`` of the last LINEAR, as it stands (the next word may still set it), of each slot.
    q_scale, q_base : query scale of the last ROPE, and the exponent that a query has before its own shift is added, of each slot.
    store_key, store_value, store_head, store : scale writes of the KV cache, for ``writer``.
    rank, rank_token, rank_logit : an entry of the list of the best logits, and a cycle later what it holds.
    active, phase, overflow : for the counters; ``overflow`` is high for one cycle when a token does not fit the context.
    finished, position : high for one cycle when a group has been computed; tokens so far of the last sequence.

    x_shift, r_shift, vector_shift : of each slot; in the cycle after the start of NORM or ROPE, ``vector_shift`` is one of the first two.
    m_value, squares : of each slot's vector unit; ``reference`` of the attention unit.

    With adapters also:

    start_adapt, adapted : A of the operation that follows is to be computed; with ``start_linear``, its rows have words of B.
    selected, ok, physical : slot + 1 that the sequences from here on compute with (0: none); the loader's answer.
    running, memory : the sequence computes with an adapter, from this memory.
    lost : the memory is being overwritten: the sequence is barred.
    refused : high for one cycle when a token of a barred sequence is refused.

    Latency
    -------
    One word a cycle, fetched ahead; a word that waits starts in the cycle in which its units are idle; scalar words take the ALU's
    latency and a cycle, NEXT one more where it goes back. gen/cycles/decoder.py walks a program with these rules.
    """

    def __init__(self, config: DecoderConfig, length, program=None):
        self.config, self.length, self.program = config, length, program
        batch, slot = config.batch, index_bits(config.batch)
        memory = range(config.adapters + 1)
        adapter = (
            {}
            if not config.rank
            else {
                "start_adapt": Out(1),
                "adapted": Out(1),
                "selected": Out(8),
                "ok": In(1),
                "physical": In(memory),
                "running": Out(1),
                "memory": Out(memory),
                "lost": In(1),
                "refused": Out(1),
            }
        )
        super().__init__(
            {
                **adapter,
                "command_valid": In(1),
                "command_ready": Out(1),
                "command_data": In(32),
                "result_valid": Out(1),
                "result_ready": In(1),
                "result_data": Out(32),
                "result_last": Out(1),
                "start_linear": Out(1),
                "start_vector": Out(batch),
                "start_attend": Out(1),
                "start_head": Out(1),
                "op": Out(Op),
                "m": Out(16),
                "e": Out(10),
                "rd": Out(3),
                "busy_next": In(Layout["wait"].shape),
                "tokens": Out(config.token_bits).array(batch),
                "positions": Out(16).array(batch),
                "sequences": Out(index_bits(config.sequences)).array(batch),
                "live": Out(batch),
                "slot": Out(slot),
                "writer": Out(slot),
                "bank": Out(1),
                "at_bank": Out(1),
                "layer": Out(10),
                "begin": Out(1),
                "scale": Out(ScalarLayout).array(batch),
                "q_scale": Out(ScalarLayout).array(batch),
                "q_base": Out(signed(12)).array(batch),
                **dict.fromkeys(("x_shift", "r_shift"), In(config.shift_bits).array(batch)),
                "vector_shift": Out(config.shift_bits).array(batch),
                "segment": Out(8),
                "m_value": In(33).array(batch),
                "squares": In(squares_bits(config)).array(batch),
                "reference": In(signed(10)),
                "store_key": Out(1),
                "store_value": Out(1),
                "store_head": Out(8),
                "store": Out(ScalarLayout),
                "rank": Out(5),
                "rank_token": In(config.token_bits),
                "rank_logit": In(signed(32)),
                "active": Out(1),
                "phase": Out(Phase),
                "overflow": Out(1),
                "finished": Out(1),
                "position": Out(16),
            }
        )

    def elaborate(self, platform):
        m, s = Module(), SimpleNamespace()  # s: the sequencer's own signals, which its parts share
        m.submodules.program = rom = Rom("program", WORD_BITS, self.length, init=self.program)
        m.submodules.group = s.group = Group(self.config)
        self._words(m, s, rom)
        self._group(m, s)
        self._slots(m, s)
        self._starts(m, s)
        self._scalars(m, s)
        self._packet(m, s)
        with m.FSM(name="state") as fsm:
            m.d.comb += [self.active.eq(~fsm.ongoing("IDLE") | s.group.busy), s.group.open.eq(fsm.ongoing("IDLE"))]
            self._idle_state(m, s)
            self._issue_state(m, s)
            self._answer_states(m, s)
        return m

    def _words(self, m, s, rom):
        """The word under way and what it names; the ROM's next one comes with ``s.advance``."""
        s.word = Signal(Layout)  # under way; the ROM holds the one after it
        word = s.word
        m.d.comb += [self.op.eq(word.op), self.m.eq(word.m), self.e.eq(word.e), self.rd.eq(word.rd)]
        m.d.comb += [self.segment.eq(word.m), self.store_head.eq(word.m)]

        length = range(self.length + 2)  # addresses of the ROM's word
        s.ahead, s.ahead_next = Signal(length), Signal(length, name="ahead_next")
        s.advance, s.begun, s.resumed = Signal(), Signal(), Signal()
        m.d.comb += [s.ahead_next.eq(Mux(s.advance, s.ahead + 1, s.ahead)), rom.addr.eq(s.ahead_next)]
        m.d.sync += s.ahead.eq(s.ahead_next)
        s.coming = data.View(Layout, rom.data)
        with m.If(s.advance):
            m.d.sync += word.eq(s.coming)

        def of(name, ops):
            """Whether the word is one of ``ops``: a register, since starts are the longest way through the decoder."""
            signal = Signal(name=f"of_{name}")
            with m.If(s.advance):
                m.d.sync += signal.eq(Value.cast(s.coming.op).matches(*ops))
            return signal

        s.of_linear, s.of_attend, s.of_head = (of(op.name.lower(), [op]) for op in (Op.LINEAR, Op.ATTEND, Op.HEAD))
        s.of_alu = of("alu", [*ALU_OPS, Op.NEXT] if self.config.batch > 1 else ALU_OPS)  # which do not end at once
        s.of_vector = of("vector", [op for op, (unit, _) in _UNITS.items() if unit is Wait.VECTOR])

    def _group(self, m, s):
        """Commands to groups."""
        group = s.group
        for name in ("command_valid", "command_data"):
            m.d.comb += getattr(group, name).eq(getattr(self, name))
        m.d.comb += [
            self.command_ready.eq(group.command_ready),
            group.done.eq(self.finished),
            group.finished.eq(self.finished),
            group.best_slot.eq(self.slot),
            group.best.eq(self.rank_token),
            self.position.eq(group.position),
            self.live.eq(group.live),
        ]
        for name in ("tokens", "positions", "sequences"):
            m.d.comb += [a.eq(b) for a, b in zip(getattr(self, name), getattr(group, name), strict=True)]
        if self.config.rank:
            for name in ("ok", "physical", "lost"):
                m.d.comb += getattr(group, name).eq(getattr(self, name))
            for name in ("selected", "running", "memory"):
                m.d.comb += getattr(self, name).eq(getattr(group, name))

    def _slots(self, m, s):
        """The slot of one-slot operations; ROPE may be of the one after it."""
        batch = self.config.batch
        s.position = Array(self.positions)[self.slot]
        s.refused = s.group.full.bit_select(self.slot, 1)
        s.more, s.writes = Const(0, 1), Const(1, 1)
        s.one, s.one_ahead = Const(1, 1), Const(0, 1)
        if batch == 1:
            return
        left, after, loop = (
            Signal(batch),
            Signal(batch),
            Signal.like(s.ahead, name="loop"),
        )  # slots to do; less this one
        s.left, s.loop, s.more, s.writes = left, loop, Signal(name="more"), Signal(name="writes")
        s.one, s.one_ahead = Signal(batch, name="one"), Signal(batch, name="one_ahead")
        m.d.comb += [
            s.one.eq(left & -left),
            after.eq(left & ~s.one),
            s.one_ahead.eq(after & -after),
            s.more.eq(after.any()),
        ]
        for i in reversed(range(batch)):
            with m.If(left[i]):
                m.d.comb += self.slot.eq(i)
        s.after = after

    def _starts(self, m, s):
        """Whether the word waits is found a cycle ahead, and whether one is to be issued."""
        s.issuing, s.waiting, s.go = Signal(), Signal(), Signal()
        waits = (self.busy_next & Mux(s.advance, s.coming.wait, s.word.wait)).any()
        if self.config.batch > 1:
            # A sequence that begins anew overwrites what the slot before may still attend to.
            fresh, over = Signal(), Mux(s.advance, s.coming, s.word)
            m.d.sync += fresh.eq(Cat(position == 0 for position in self.positions) & s.one_ahead != 0)
            over = data.View(Layout, over)
            waits = waits | (fresh & (over.op == Op.ROPE) & over.rb[0] & self.busy_next[3])
        m.d.sync += s.waiting.eq(waits)
        rope = s.go & (s.word.op == Op.ROPE)
        slots = s.one
        if self.config.batch > 1:
            ahead = s.word.rb[0] & (s.word.op == Op.ROPE)
            slots = Mux(s.word.op == Op.NORM8, s.group.live, Mux(ahead, s.one_ahead, s.one))
            with m.If(rope):
                m.d.sync += [self.bank.eq(~self.bank), s.writes.eq(~ahead | s.more)]
            with m.If(rope | (s.go & (s.word.op == Op.NORM16))):
                for i in range(self.config.batch):
                    with m.If(slots[i]):
                        m.d.sync += self.writer.eq(i)
            bank = Signal(name="bank_held")
            with m.If(self.start_attend | self.start_head):
                m.d.sync += bank.eq(self.bank)
            m.d.comb += self.at_bank.eq(Mux(self.start_attend | self.start_head, self.bank, bank))
        m.d.comb += [
            s.go.eq(s.issuing & ~s.waiting),
            self.start_linear.eq(s.go & s.of_linear),
            self.start_vector.eq((s.go & s.of_vector).replicate(self.config.batch) & slots),
            self.start_attend.eq(s.go & s.of_attend),
            self.start_head.eq(s.go & s.of_head),
            s.advance.eq((s.go & ~s.of_alu) | s.begun | s.resumed),
        ]

    def _scalars(self, m, s):
        """Scalar operations of all slots."""
        s.scale_register, s.of_results, s.shifts = (
            Signal(range(REGISTERS)),
            Signal(name="of_results"),
            Signal(self.config.batch),
        )
        s.alu_start, s.load = Signal(), Signal()
        m.d.sync += s.shifts.eq(0)
        s.scalars = [SlotScalars(self.config) for _ in range(self.config.batch)]
        for i, unit in enumerate(s.scalars):
            m.submodules[f"scalars_{i}" if self.config.batch > 1 else "scalars"] = unit
            m.d.comb += [
                unit.word.eq(s.word),
                unit.start.eq(s.alu_start),
                unit.load.eq(s.load),
                unit.taken.eq(s.shifts[i]),
                unit.rope.eq(self.start_vector[i] & (s.word.op == Op.ROPE)),
                unit.referred.eq(self.start_vector[i] & (s.word.op == Op.DRAIN)),
                unit.of_results.eq(s.of_results),
                unit.x_shift.eq(self.x_shift[i]),
                unit.r_shift.eq(self.r_shift[i]),
                self.vector_shift[i].eq(unit.vector_shift),
                unit.m_value.eq(self.m_value[i]),
                unit.squares.eq(self.squares[i]),
                unit.eref.eq(self.reference),
                unit.scale_register.eq(s.scale_register),
                self.scale[i].eq(unit.scale),
                self.q_scale[i].eq(unit.q_scale),
                self.q_base[i].eq(unit.q_base),
            ]
        m.d.comb += self.store.eq(Array(unit.a.as_value() for unit in s.scalars)[self.writer])

    def _packet(self, m, s):
        """The result packet's words."""
        # A logit is kept with its token.
        s.rank, s.answer, s.logit, s.tail = Signal(5), Signal(32), Signal(32), Signal()
        s.logit_unit = Signal(ScalarLayout)
        m.d.comb += [self.rank.eq(s.rank), self.result_data.eq(s.answer), self.result_last.eq(s.tail)]
        place = s.position[: self.config.position_bits]
        s.refusal = Cat(Const(-1, self.config.token_bits), place)
        s.best = Cat(self.rank_token, place)
        s.top = Array(s.group.tops)[self.slot]
        if self.config.rank:
            m.d.comb += self.adapted.eq(s.word.rb[0] & self.running)

    def _idle_state(self, m, s):
        """Waits for a group, and begins or refuses it."""
        group = s.group
        with m.State("IDLE"):
            with m.If(~group.valid):
                m.d.comb += s.ahead_next.eq(0)
                m.d.sync += self.phase.eq(Phase.EMBED)
            with m.Else():
                m.d.comb += [s.begun.eq(1), self.overflow.eq(group.full.any())]
                refused = ~group.live.any()
                if self.config.rank:
                    m.d.comb += [self.refused.eq(group.barred), self.overflow.eq(group.full[0] & ~group.barred)]
                    refused = refused | group.barred
                with m.If(refused):
                    m.d.sync += s.tail.eq(1)
                    if self.config.batch > 1:
                        m.d.sync += s.left.eq(group.wants)
                    m.next = "REFUSE"
                    with m.If(~group.wants.any()):
                        m.d.comb += group.done.eq(1)
                        m.next = "IDLE"
                with m.Else():
                    m.d.comb += self.begin.eq(1)
                    m.d.sync += s.issuing.eq(1)
                    m.next = "ISSUE"
        with m.State("REFUSE"):
            m.d.comb += [self.result_valid.eq(1), self.result_data.eq(s.refusal), s.ahead_next.eq(0)]
            with m.If(self.result_ready):
                if self.config.batch > 1:
                    m.d.sync += s.left.eq(s.after)
                with m.If(~s.more):
                    m.d.comb += group.done.eq(1)
                    m.d.sync += s.tail.eq(0)
                    m.next = "IDLE"

    def _issue_state(self, m, s):
        """Issues words, and waits for the scalar ALUs."""
        batch = self.config.batch
        with m.State("ISSUE"):
            with m.If(~s.waiting):
                with m.Switch(s.word.op):
                    for op, (unit, phase) in _UNITS.items():
                        with m.Case(op):
                            m.d.sync += self.phase.eq(phase)
                            if unit is Wait.LINEAR:
                                m.d.sync += s.scale_register.eq(s.word.ra)
                            if op in (Op.NORM8, Op.NORM16, Op.ROPE):
                                m.d.sync += s.shifts.eq(self.start_vector)
                            if op in (Op.NORM8, Op.NORM16):
                                m.d.sync += s.of_results.eq(s.word.rd[0])
                            elif op is Op.ROPE:
                                m.d.sync += [s.of_results.eq(1), self.layer.eq(s.word.e)]
                    if self.config.rank:
                        with m.Case(Op.ADAPT):
                            with m.If(self.running):
                                m.d.sync += self.phase.eq(Phase.LINEAR)
                                m.d.comb += self.start_adapt.eq(1)
                    with m.Case(Op.LDI):
                        m.d.comb += s.load.eq(1)
                    with m.Case(Op.STK):
                        m.d.comb += self.store_key.eq(s.writes)
                    with m.Case(Op.STV):
                        m.d.comb += self.store_value.eq(s.writes)
                    with m.Case(Op.SKIP):
                        with m.If(~s.group.wants.any()):
                            self._stop(m, s)
                    with m.Case(Op.END):
                        m.d.sync += [
                            s.answer.eq(Mux(s.refused, s.refusal, s.best)),
                            s.tail.eq((s.top == 0) | s.refused),
                            s.logit_unit.eq(Array(unit.a.as_value() for unit in s.scalars)[self.slot]),
                        ]
                        m.d.comb += s.group.best_en.eq(1)
                        m.d.sync += s.issuing.eq(0)
                        m.next = "ANSWER"
                    if batch > 1:
                        with m.Case(Op.EACH):
                            m.d.sync += [s.left.eq(Mux(s.word.rd[0], s.group.wants, s.group.live)), s.loop.eq(s.ahead)]
                        with m.Case(Op.NEXT):
                            m.d.sync += s.left.eq(s.after)
                            with m.If(s.more):
                                self._again(m, s)
                            with m.Else():
                                m.d.comb += s.resumed.eq(1)
                    with m.Case(*ALU_OPS):
                        m.d.comb += s.alu_start.eq(1)
                        m.d.sync += s.issuing.eq(0)
                        m.next = "SCALAR"
        with m.State("SCALAR"):
            with m.If(s.scalars[0].done):
                m.d.comb += s.resumed.eq(1)
                m.d.sync += s.issuing.eq(1)
                m.next = "ISSUE"
        if batch > 1:
            with m.State("AGAIN"):
                m.d.comb += s.resumed.eq(1)
                m.d.sync += s.issuing.eq(1)
                m.next = "ISSUE"

    def _again(self, m, s):
        """Back to the word after EACH."""
        m.d.comb += s.ahead_next.eq(s.loop)
        m.d.sync += s.issuing.eq(0)
        m.next = "AGAIN"

    def _answer_states(self, m, s):
        """Words of the result packet: token and position, unit of the logits, then tokens and logits by turns."""

        def end():
            """After the packet's last word: the next slot, or the end."""
            if self.config.batch > 1:
                m.d.sync += s.left.eq(s.after)
            with m.If(s.more):
                if self.config.batch > 1:
                    self._again(m, s)
            with m.Else():
                self._stop(m, s)

        with m.State("ANSWER"):
            m.d.comb += [self.result_valid.eq(1), s.ahead_next.eq(0)]
            with m.If(self.result_ready):
                m.d.sync += [
                    s.answer.eq(Cat(s.logit_unit.m, s.logit_unit.e, s.logit_unit.e[9].replicate(6))),
                    s.tail.eq(0),
                ]
                with m.If(s.tail):
                    end()
                with m.Else():
                    m.next = "UNIT"
        with m.State("UNIT"):
            m.d.comb += [self.result_valid.eq(1), s.ahead_next.eq(0)]
            with m.If(self.result_ready):
                m.d.sync += [s.answer.eq(self.rank_token), s.logit.eq(self.rank_logit), s.rank.eq(1)]
                m.next = "TOKEN"
        with m.State("TOKEN"):
            m.d.comb += [self.result_valid.eq(1), s.ahead_next.eq(0)]
            with m.If(self.result_ready):
                m.d.sync += [s.answer.eq(s.logit), s.tail.eq(s.rank == s.top)]
                m.next = "LOGIT"
        with m.State("LOGIT"):
            m.d.comb += [self.result_valid.eq(1), s.ahead_next.eq(0)]
            with m.If(self.result_ready):
                m.d.sync += [
                    s.answer.eq(self.rank_token),
                    s.logit.eq(self.rank_logit),
                    s.tail.eq(0),
                    s.rank.eq(s.rank + 1),
                ]
                with m.If(s.tail):
                    m.d.sync += s.rank.eq(0)
                    end()
                with m.Else():
                    m.next = "TOKEN"

    def _stop(self, m, s):
        """The group is done: the next of a run, or the next command. Only states that look at word 0 already go on with a run."""
        m.d.sync += [self.phase.eq(Phase.EMBED), s.issuing.eq(0)]
        m.d.comb += self.finished.eq(1)
        m.next = "IDLE"
