"""Sequencer: takes one command per token, runs the layer program on the units, and answers with result packets.

A command word is ``token[t] | run[24 - t] | top[5] | 0 | want | first`` from its lowest bit, t being ``config.token_bits``;
docs/host.md describes the protocol. With adapters the reserved bit marks a word that selects one.
"""

from types import SimpleNamespace

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.numerics import OPERAND_SHIFT
from intaglio.rtl.arithmetic.scalar import AluOp, ScalarAlu, ScalarLayout
from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.control.program import REGISTERS, WORD_BITS, Layout, Op, Phase, Wait
from intaglio.rtl.memory.rom import Rom

__all__ = ["ALU_OPS", "Sequencer", "command_layout"]


def command_layout(token_bits):
    """Fields of a command word where tokens have ``token_bits`` bits, 16 to 20: what a token takes more, ``run`` has less."""
    return data.StructLayout(
        {"token": token_bits, "run": 24 - token_bits, "top": 5, "reserved": 1, "want": 1, "first": 1}
    )


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
ALU_OPS = {
    Op.LDM: AluOp.INT,
    Op.LDS: AluOp.INT,
    Op.LDX: AluOp.COPY,
    Op.LDR: AluOp.COPY,
    Op.SCX: AluOp.COPY,
    Op.MUL: AluOp.MUL,
    Op.MULI: AluOp.MUL,
    Op.DIV: AluOp.DIV,
    Op.ADD: AluOp.ADD,
    Op.SQRT: AluOp.SQRT,
}


class Sequencer(wiring.Component):
    """Runs the layer program, once per token.

    Members
    -------
    command, result : 32-bit streams (``valid``, ``ready``, ``data``; a result also ``last``).
    op, m, e, rd : fields of the word being started; ``start`` has a bit per unit (linear, vector, attention), for one cycle.
    busy_next : which units are at work in the next cycle, those started in this one included, a bit for each flag of ``Wait`` in its
        order; by ENDING the vector unit, until the end is so near that the activations are written when the first is read, some cycles
        after the first weight (``LinearUnit.early``).
    token, position, layer : of the token under way. ``begin`` is high for one cycle as it begins.
    scale : scalar register ``ra`` of the last LINEAR, as it stands (the next word may still set it).
    q_scale, q_base : query scale of the last ROPE, and the exponent that a query has before its own shift is added.
    store_key, store_value, store_head, store : scale writes of the KV cache.
    rank, rank_token, rank_logit : an entry of the list of the best logits, and a cycle later what it holds.
    active, phase, overflow : for the counters; ``overflow`` is high for one cycle when a token does not fit the context.

    x_shift, r_shift, vector_shift, shift : in the cycle after the start of NORM or ROPE, ``vector_shift`` is one of the first two,
        and ``shift`` keeps it.

    With adapters also:

    start_adapt, adapted : A of the operation that follows is to be computed; with ``start_linear``, its rows have words of B.
    selected, ok, physical : slot + 1 that the sequences from here on compute with (0: none); the loader's answer.
    running, memory : the sequence computes with an adapter, from this memory.
    lost : the memory is being overwritten: the sequence is barred.
    refused : high for one cycle when a token of a barred sequence is refused.

    Latency
    -------
    One word a cycle, fetched ahead; a word that waits starts in the cycle in which its units are idle; scalar words take the ALU's
    latency and a cycle. gen/cycles/decoder.py walks a program with these rules.
    """

    def __init__(self, config: DecoderConfig, length, program=None):
        self.config, self.length, self.program = config, length, program
        self.squares_bits = 36 + max(config.hidden, config.intermediate).bit_length()
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
                "start_vector": Out(1),
                "start_attend": Out(1),
                "start_head": Out(1),
                "op": Out(Op),
                "m": Out(16),
                "e": Out(10),
                "rd": Out(3),
                "busy_next": In(Layout["wait"].shape),
                "token": Out(config.token_bits),
                "position": Out(16),
                "layer": Out(10),
                "begin": Out(1),
                "scale": Out(ScalarLayout),
                "q_scale": Out(ScalarLayout),
                "q_base": Out(signed(12)),
                **dict.fromkeys(("x_shift", "r_shift"), In(config.shift_bits)),
                **dict.fromkeys(("vector_shift", "shift"), Out(config.shift_bits)),
                "segment": Out(8),
                "m_value": In(33),
                "squares": In(self.squares_bits),
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
            }
        )

    def elaborate(self, platform):
        m, s = Module(), SimpleNamespace()  # s: the sequencer's own signals, which its parts share
        m.submodules.program = rom = Rom("program", WORD_BITS, self.length, init=self.program)
        m.submodules.alu = alu = ScalarAlu(self.squares_bits)
        self._words(m, s, rom)
        self._commands(s)
        self._starts(m, s)
        self._shifts(m, s)
        self._scalars(m, s, alu)
        self._packet(m, s)
        with m.FSM(name="state") as fsm:
            m.d.comb += self.active.eq(~fsm.ongoing("IDLE"))
            self._idle_state(m, s)
            self._begin_state(m, s)
            self._issue_state(m, s, alu)
            self._answer_states(m, s)
        return m

    def _words(self, m, s, rom):
        """The word under way and what it names; the ROM's next one comes with ``s.advance``."""
        s.word = Signal(Layout)  # under way; the ROM holds the one after it
        s.registers = Array(Signal(ScalarLayout, name=f"register_{i}") for i in range(REGISTERS))
        s.ra, s.rb, s.imm = Signal(ScalarLayout), Signal(ScalarLayout), Signal(ScalarLayout, name="imm")
        word, registers = s.word, s.registers
        m.d.comb += [s.ra.eq(registers[word.ra]), s.rb.eq(registers[word.rb]), s.imm.m.eq(word.m), s.imm.e.eq(word.e)]
        m.d.comb += [self.op.eq(word.op), self.m.eq(word.m), self.e.eq(word.e), self.rd.eq(word.rd)]
        m.d.comb += [self.segment.eq(word.m), self.store.eq(s.ra), self.store_head.eq(word.m)]

        s.scale_register = Signal(range(REGISTERS))
        m.d.comb += self.scale.eq(registers[s.scale_register])

        length = range(self.length + 2)  # addresses of the ROM's word
        ahead, s.ahead_next = Signal(length), Signal(length, name="ahead_next")
        s.advance, s.begun, s.resumed = Signal(), Signal(), Signal()
        m.d.comb += [s.ahead_next.eq(Mux(s.advance, ahead + 1, ahead)), rom.addr.eq(s.ahead_next)]
        m.d.sync += ahead.eq(s.ahead_next)
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
        s.of_alu, s.of_vector = (
            of("alu", ALU_OPS),
            of("vector", [op for op, (unit, _) in _UNITS.items() if unit is Wait.VECTOR]),
        )

    def _commands(self, s):
        """The command word, and what is kept of it."""
        token_bits = self.config.token_bits
        layout = command_layout(token_bits)
        s.command = data.View(layout, self.command_data)
        s.held = Signal(
            data.StructLayout({name: layout[name].shape for name in ("token", "run", "top", "want")})
        )  # run counts down
        s.last_token = Signal(token_bits)

    def _starts(self, m, s):
        """Whether the word waits is found a cycle ahead, and whether one is to be issued."""
        s.issuing, s.waiting, s.go = Signal(), Signal(), Signal()
        m.d.sync += s.waiting.eq((self.busy_next & Mux(s.advance, s.coming.wait, s.word.wait)).any())
        m.d.comb += [
            s.go.eq(s.issuing & ~s.waiting),
            self.start_linear.eq(s.go & s.of_linear),
            self.start_vector.eq(s.go & s.of_vector),
            self.start_attend.eq(s.go & s.of_attend),
            self.start_head.eq(s.go & s.of_head),
            s.advance.eq((s.go & ~s.of_alu) | s.begun | s.resumed),
        ]

    def _shifts(self, m, s):
        """Shift of the vector unit's operation: the magnitudes are one cycle behind the end of what they are of."""
        s.shifts, s.of_results = Signal(), Signal(name="of_results")
        m.d.comb += self.vector_shift.eq(Mux(s.of_results, self.r_shift, self.x_shift))
        m.d.sync += s.shifts.eq(0)
        with m.If(s.shifts):
            m.d.sync += [
                self.shift.eq(self.vector_shift),
                self.q_base.eq(self.q_scale.e + self.vector_shift + OPERAND_SHIFT),
            ]

    def _scalars(self, m, s, alu):
        """Operands of the scalar ALU."""
        twice = -(self.shift << 1)
        shift2 = Signal.like(twice, name="shift2")
        m.d.comb += [shift2.eq(twice), alu.a.eq(s.ra), alu.b.eq(s.rb), alu.n.eq(self.m_value)]
        with m.Switch(s.word.op):
            for op, alu_op in ALU_OPS.items():
                with m.Case(op):
                    m.d.comb += alu.op.eq(alu_op)
                    if op is Op.LDM:
                        m.d.comb += alu.shift.eq(Mux(s.word.e != 0, self.shift, 0))
                    elif op is Op.LDS:
                        m.d.comb += alu.n.eq(self.squares)
                    elif op is Op.LDX:
                        m.d.comb += [alu.a.eq(s.imm), alu.shift.eq(shift2)]
                    elif op is Op.SCX:
                        m.d.comb += alu.shift.eq(shift2)
                    elif op is Op.LDR:
                        m.d.comb += [alu.a.eq(s.imm), alu.shift.eq(-((self.reference + 7) << 1))]
                    elif op is Op.MULI:
                        m.d.comb += alu.b.eq(s.imm)

    def _packet(self, m, s):
        """The result packet's words, and the sequence's place and adapter."""
        # A logit is kept with its token.
        s.rank, s.answer, s.logit, s.tail = Signal(5), Signal(32), Signal(32), Signal()
        s.logit_unit = Signal(ScalarLayout)
        m.d.comb += [self.rank.eq(s.rank), self.result_data.eq(s.answer), self.result_last.eq(s.tail)]
        s.full = Signal()  # position == context
        s.barred = Signal()  # the sequence's adapter is not there
        if self.config.rank:
            m.d.comb += self.adapted.eq(s.word.rb[0] & self.running)
            with m.If(self.lost):
                m.d.sync += [s.barred.eq(1), self.running.eq(0)]

    def _idle_state(self, m, s):
        """Waits for a command."""
        with m.State("IDLE"):
            m.d.comb += [self.command_ready.eq(1), s.ahead_next.eq(0)]
            taken = self.command_valid
            if self.config.rank:
                taken = self.command_valid & ~s.command.reserved
                with m.If(self.command_valid & s.command.reserved):
                    m.d.sync += self.selected.eq(s.command.token)
            with m.If(taken):
                m.d.sync += [
                    s.held.token.eq(s.command.token),
                    s.held.run.eq(s.command.run),
                    s.held.top.eq(s.command.top),
                    s.held.want.eq(s.command.want | (s.command.run != 0)),
                    self.phase.eq(Phase.EMBED),
                ]
                with m.If(s.command.first):
                    m.d.sync += [self.position.eq(0), s.full.eq(0)]
                    if self.config.rank:
                        m.d.sync += [
                            self.running.eq(self.ok),
                            self.memory.eq(self.physical),
                            s.barred.eq((self.selected != 0) & ~self.ok),
                        ]
                with m.If(s.command.top > self.config.top_k):
                    m.d.sync += s.held.top.eq(self.config.top_k)
                m.next = "BEGIN"

    def _begin_state(self, m, s):
        """A token begins, or is refused, with an answer if one is wanted."""
        with m.State("BEGIN"):
            m.d.comb += s.begun.eq(1)
            m.d.sync += self.token.eq(s.held.token)
            if self.config.rank:
                m.d.comb += self.refused.eq(s.barred)
            with m.If(s.full | s.barred if self.config.rank else s.full):
                m.d.comb += self.overflow.eq(s.full & ~s.barred if self.config.rank else 1)
                m.d.sync += [
                    s.answer.eq(Cat(Const(-1, self.config.token_bits), self.position[: self.config.position_bits])),
                    s.tail.eq(1),
                    s.held.run.eq(0),
                ]
                with m.If(s.held.want):
                    m.next = "REFUSE"
                with m.Else():
                    m.next = "IDLE"
            with m.Else():
                m.d.comb += self.begin.eq(1)
                m.d.sync += s.issuing.eq(1)
                m.next = "ISSUE"
        with m.State("REFUSE"):
            m.d.comb += self.result_valid.eq(1)
            with m.If(self.result_ready):
                m.next = "IDLE"

    def _issue_state(self, m, s, alu):
        """Issues words, and waits for the scalar ALU."""
        with m.State("ISSUE"):
            with m.If(~s.waiting):
                with m.Switch(s.word.op):
                    for op, (unit, phase) in _UNITS.items():
                        with m.Case(op):
                            m.d.sync += self.phase.eq(phase)
                            if unit is Wait.LINEAR:
                                m.d.sync += s.scale_register.eq(s.word.ra)
                            if op in (Op.NORM8, Op.NORM16):
                                m.d.sync += [s.of_results.eq(s.word.rd[0]), s.shifts.eq(1)]
                            elif op is Op.ROPE:
                                m.d.sync += [
                                    s.of_results.eq(1),
                                    s.shifts.eq(1),
                                    self.q_scale.eq(s.ra),
                                    self.layer.eq(s.word.e),
                                ]
                    if self.config.rank:
                        with m.Case(Op.ADAPT):
                            with m.If(self.running):
                                m.d.sync += self.phase.eq(Phase.LINEAR)
                                m.d.comb += self.start_adapt.eq(1)
                    with m.Case(Op.LDI):
                        m.d.sync += s.registers[s.word.rd].eq(s.imm)
                    with m.Case(Op.STK):
                        m.d.comb += self.store_key.eq(1)
                    with m.Case(Op.STV):
                        m.d.comb += self.store_value.eq(1)
                    with m.Case(Op.SKIP):
                        with m.If(~s.held.want):
                            self._stop(m, s)
                    with m.Case(Op.END):
                        m.d.sync += [
                            s.answer.eq(Cat(self.rank_token, self.position[: self.config.position_bits])),
                            s.tail.eq(s.held.top == 0),
                            s.last_token.eq(self.rank_token),
                            s.logit_unit.eq(s.ra),
                        ]
                        m.d.sync += s.issuing.eq(0)
                        m.next = "ANSWER"
                    with m.Case(*ALU_OPS):
                        m.d.comb += alu.start.eq(1)
                        m.d.sync += s.issuing.eq(0)
                        m.next = "SCALAR"
        with m.State("SCALAR"):
            with m.If(alu.done):
                m.d.sync += s.registers[s.word.rd].eq(alu.o)
                m.d.comb += s.resumed.eq(1)
                m.d.sync += s.issuing.eq(1)
                m.next = "ISSUE"

    def _answer_states(self, m, s):
        """Words of the result packet: token and position, unit of the logits, then tokens and logits by turns."""
        with m.State("ANSWER"):
            m.d.comb += [self.result_valid.eq(1), s.ahead_next.eq(0)]
            with m.If(self.result_ready):
                m.d.sync += [
                    s.answer.eq(Cat(s.logit_unit.m, s.logit_unit.e, s.logit_unit.e[9].replicate(6))),
                    s.tail.eq(0),
                ]
                with m.If(s.tail):
                    self._stop(m, s)
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
                m.d.sync += [s.answer.eq(s.logit), s.tail.eq(s.rank == s.held.top)]
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
                    self._stop(m, s)
                with m.Else():
                    m.next = "TOKEN"

    def _stop(self, m, s):
        """The token is done: the next of a run, or the next command. Only states that look at word 0 already go on with a run."""
        m.d.sync += [
            self.position.eq(self.position + 1),
            s.full.eq(self.position == self.config.context - 1),
            self.phase.eq(Phase.EMBED),
        ]
        m.d.comb += self.finished.eq(1)
        m.d.sync += s.issuing.eq(0)
        with m.If(s.held.run != 0):
            m.d.sync += [s.held.run.eq(s.held.run - 1), s.held.token.eq(s.last_token)]
            m.next = "BEGIN"
        with m.Else():
            m.next = "IDLE"
