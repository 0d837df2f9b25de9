"""Sequencer: takes one command per token, runs the layer program on the units, and answers with result packets.

A command word is ``token[t] | run[24 - t] | top[5] | 0 | want | first`` from its lowest bit, t being ``config.token_bits``;
docs/host.md describes the protocol. With adapters the reserved bit marks a word that selects one.
"""

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
        m = Module()
        m.submodules.program = rom = Rom("program", WORD_BITS, self.length, init=self.program)
        m.submodules.alu = alu = ScalarAlu(self.squares_bits)
        word = Signal(Layout)  # under way; the ROM holds the one after it
        registers = Array(Signal(ScalarLayout, name=f"register_{i}") for i in range(REGISTERS))
        ra, rb, imm = Signal(ScalarLayout), Signal(ScalarLayout), Signal(ScalarLayout)
        m.d.comb += [ra.eq(registers[word.ra]), rb.eq(registers[word.rb]), imm.m.eq(word.m), imm.e.eq(word.e)]
        m.d.comb += [self.op.eq(word.op), self.m.eq(word.m), self.e.eq(word.e), self.rd.eq(word.rd)]
        m.d.comb += [self.segment.eq(word.m), self.store.eq(ra), self.store_head.eq(word.m)]

        scale_register = Signal(range(REGISTERS))
        m.d.comb += self.scale.eq(registers[scale_register])

        ahead, ahead_next = Signal(range(self.length + 2)), Signal(range(self.length + 2))  # address of the ROM's word
        advance, begun, resumed = Signal(), Signal(), Signal()
        m.d.comb += [ahead_next.eq(Mux(advance, ahead + 1, ahead)), rom.addr.eq(ahead_next)]
        m.d.sync += ahead.eq(ahead_next)
        coming = data.View(Layout, rom.data)
        with m.If(advance):
            m.d.sync += word.eq(coming)

        def of(name, ops):
            """Whether the word is one of ``ops``: a register, since starts are the longest way through the decoder."""
            signal = Signal(name=f"of_{name}")
            with m.If(advance):
                m.d.sync += signal.eq(Value.cast(coming.op).matches(*ops))
            return signal

        of_linear, of_attend, of_head = (of(op.name.lower(), [op]) for op in (Op.LINEAR, Op.ATTEND, Op.HEAD))
        of_alu, of_vector = (
            of("alu", ALU_OPS),
            of("vector", [op for op, (unit, _) in _UNITS.items() if unit is Wait.VECTOR]),
        )

        token_bits = self.config.token_bits
        layout = command_layout(token_bits)
        command = data.View(layout, self.command_data)
        held = Signal(
            data.StructLayout({name: layout[name].shape for name in ("token", "run", "top", "want")})
        )  # run counts down
        last_token = Signal(token_bits)

        # -- whether the word waits is found a cycle ahead, and whether one is to be issued
        issuing, waiting, go = Signal(), Signal(), Signal()
        m.d.sync += waiting.eq((self.busy_next & Mux(advance, coming.wait, word.wait)).any())
        m.d.comb += [
            go.eq(issuing & ~waiting),
            self.start_linear.eq(go & of_linear),
            self.start_vector.eq(go & of_vector),
            self.start_attend.eq(go & of_attend),
            self.start_head.eq(go & of_head),
            advance.eq((go & ~of_alu) | begun | resumed),
        ]

        # -- shift of the vector unit's operation: the magnitudes are one cycle behind the end of what they are of
        shifts, of_results = Signal(), Signal()
        m.d.comb += self.vector_shift.eq(Mux(of_results, self.r_shift, self.x_shift))
        m.d.sync += shifts.eq(0)
        with m.If(shifts):
            m.d.sync += [
                self.shift.eq(self.vector_shift),
                self.q_base.eq(self.q_scale.e + self.vector_shift + OPERAND_SHIFT),
            ]

        # -- scalar ALU
        twice = -(self.shift << 1)
        shift2 = Signal.like(twice, name="shift2")
        m.d.comb += [shift2.eq(twice), alu.a.eq(ra), alu.b.eq(rb), alu.n.eq(self.m_value)]
        with m.Switch(word.op):
            for op, alu_op in ALU_OPS.items():
                with m.Case(op):
                    m.d.comb += alu.op.eq(alu_op)
                    if op is Op.LDM:
                        m.d.comb += alu.shift.eq(Mux(word.e != 0, self.shift, 0))
                    elif op is Op.LDS:
                        m.d.comb += alu.n.eq(self.squares)
                    elif op is Op.LDX:
                        m.d.comb += [alu.a.eq(imm), alu.shift.eq(shift2)]
                    elif op is Op.SCX:
                        m.d.comb += alu.shift.eq(shift2)
                    elif op is Op.LDR:
                        m.d.comb += [alu.a.eq(imm), alu.shift.eq(-((self.reference + 7) << 1))]
                    elif op is Op.MULI:
                        m.d.comb += alu.b.eq(imm)

        # -- result packet
        rank, answer, logit, tail = Signal(5), Signal(32), Signal(32), Signal()  # a logit is kept with its token
        logit_unit = Signal(ScalarLayout)
        m.d.comb += [self.rank.eq(rank), self.result_data.eq(answer), self.result_last.eq(tail)]

        def stop():
            """The token is done: the next of a run, or the next command. Only states that look at word 0 already go on with a run."""
            m.d.sync += [
                self.position.eq(self.position + 1),
                full.eq(self.position == self.config.context - 1),
                self.phase.eq(Phase.EMBED),
            ]
            m.d.comb += self.finished.eq(1)
            m.d.sync += issuing.eq(0)
            with m.If(held.run != 0):
                m.d.sync += [held.run.eq(held.run - 1), held.token.eq(last_token)]
                m.next = "BEGIN"
            with m.Else():
                m.next = "IDLE"

        full = Signal()  # position == context
        barred = Signal()  # the sequence's adapter is not there
        if self.config.rank:
            m.d.comb += self.adapted.eq(word.rb[0] & self.running)
            with m.If(self.lost):
                m.d.sync += [barred.eq(1), self.running.eq(0)]

        with m.FSM(name="state") as fsm:
            m.d.comb += self.active.eq(~fsm.ongoing("IDLE"))
            with m.State("IDLE"):
                m.d.comb += [self.command_ready.eq(1), ahead_next.eq(0)]
                taken = self.command_valid
                if self.config.rank:
                    taken = self.command_valid & ~command.reserved
                    with m.If(self.command_valid & command.reserved):
                        m.d.sync += self.selected.eq(command.token)
                with m.If(taken):
                    m.d.sync += [
                        held.token.eq(command.token),
                        held.run.eq(command.run),
                        held.top.eq(command.top),
                        held.want.eq(command.want | (command.run != 0)),
                        self.phase.eq(Phase.EMBED),
                    ]
                    with m.If(command.first):
                        m.d.sync += [self.position.eq(0), full.eq(0)]
                        if self.config.rank:
                            m.d.sync += [
                                self.running.eq(self.ok),
                                self.memory.eq(self.physical),
                                barred.eq((self.selected != 0) & ~self.ok),
                            ]
                    with m.If(command.top > self.config.top_k):
                        m.d.sync += held.top.eq(self.config.top_k)
                    m.next = "BEGIN"
            with m.State("BEGIN"):
                m.d.comb += begun.eq(1)
                m.d.sync += self.token.eq(held.token)
                if self.config.rank:
                    m.d.comb += self.refused.eq(barred)
                with m.If(full | barred if self.config.rank else full):
                    m.d.comb += self.overflow.eq(full & ~barred if self.config.rank else 1)
                    m.d.sync += [
                        answer.eq(Cat(Const(-1, token_bits), self.position[: 32 - token_bits])),
                        tail.eq(1),
                        held.run.eq(0),
                    ]
                    with m.If(held.want):
                        m.next = "REFUSE"
                    with m.Else():
                        m.next = "IDLE"
                with m.Else():
                    m.d.comb += self.begin.eq(1)
                    m.d.sync += issuing.eq(1)
                    m.next = "ISSUE"
            with m.State("REFUSE"):
                m.d.comb += self.result_valid.eq(1)
                with m.If(self.result_ready):
                    m.next = "IDLE"
            with m.State("ISSUE"):
                with m.If(~waiting):
                    with m.Switch(word.op):
                        for op, (unit, phase) in _UNITS.items():
                            with m.Case(op):
                                m.d.sync += self.phase.eq(phase)
                                if unit is Wait.LINEAR:
                                    m.d.sync += scale_register.eq(word.ra)
                                if op in (Op.NORM8, Op.NORM16):
                                    m.d.sync += [of_results.eq(word.rd[0]), shifts.eq(1)]
                                elif op is Op.ROPE:
                                    m.d.sync += [
                                        of_results.eq(1),
                                        shifts.eq(1),
                                        self.q_scale.eq(ra),
                                        self.layer.eq(word.e),
                                    ]
                        if self.config.rank:
                            with m.Case(Op.ADAPT):
                                with m.If(self.running):
                                    m.d.sync += self.phase.eq(Phase.LINEAR)
                                    m.d.comb += self.start_adapt.eq(1)
                        with m.Case(Op.LDI):
                            m.d.sync += registers[word.rd].eq(imm)
                        with m.Case(Op.STK):
                            m.d.comb += self.store_key.eq(1)
                        with m.Case(Op.STV):
                            m.d.comb += self.store_value.eq(1)
                        with m.Case(Op.SKIP):
                            with m.If(~held.want):
                                stop()
                        with m.Case(Op.END):
                            m.d.sync += [
                                answer.eq(Cat(self.rank_token, self.position[: 32 - token_bits])),
                                tail.eq(held.top == 0),
                                last_token.eq(self.rank_token),
                                logit_unit.eq(ra),
                            ]
                            m.d.sync += issuing.eq(0)
                            m.next = "ANSWER"
                        with m.Case(*ALU_OPS):
                            m.d.comb += alu.start.eq(1)
                            m.d.sync += issuing.eq(0)
                            m.next = "SCALAR"
            with m.State("SCALAR"):
                with m.If(alu.done):
                    m.d.sync += registers[word.rd].eq(alu.o)
                    m.d.comb += resumed.eq(1)
                    m.d.sync += issuing.eq(1)
                    m.next = "ISSUE"
            with m.State("ANSWER"):
                m.d.comb += [self.result_valid.eq(1), ahead_next.eq(0)]
                with m.If(self.result_ready):
                    m.d.sync += [answer.eq(Cat(logit_unit.m, logit_unit.e, logit_unit.e[9].replicate(6))), tail.eq(0)]
                    with m.If(tail):
                        stop()
                    with m.Else():
                        m.next = "UNIT"
            with m.State("UNIT"):
                m.d.comb += [self.result_valid.eq(1), ahead_next.eq(0)]
                with m.If(self.result_ready):
                    m.d.sync += [answer.eq(self.rank_token), logit.eq(self.rank_logit), rank.eq(1)]
                    m.next = "TOKEN"
            with m.State("TOKEN"):
                m.d.comb += [self.result_valid.eq(1), ahead_next.eq(0)]
                with m.If(self.result_ready):
                    m.d.sync += [answer.eq(logit), tail.eq(rank == held.top)]
                    m.next = "LOGIT"
            with m.State("LOGIT"):
                m.d.comb += [self.result_valid.eq(1), ahead_next.eq(0)]
                with m.If(self.result_ready):
                    m.d.sync += [answer.eq(self.rank_token), logit.eq(self.rank_logit), tail.eq(0), rank.eq(rank + 1)]
                    with m.If(tail):
                        m.d.sync += rank.eq(0)
                        stop()
                    with m.Else():
                        m.next = "TOKEN"
        return m
