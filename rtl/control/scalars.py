"""Scalars of one slot: its registers, its ALU, and the shift of its last vector operation."""

from amaranth.hdl import Array, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.numerics import OPERAND_SHIFT
from intaglio.rtl.arithmetic.scalar import AluOp, ScalarAlu, ScalarLayout
from intaglio.rtl.control.program import REGISTERS, Layout, Op

__all__ = ["ALU_OPS", "SlotScalars", "squares_bits"]

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


def squares_bits(config):
    """Bits of the sum of squares as the ALU takes it."""
    return 36 + max(config.hidden, config.intermediate).bit_length()


class SlotScalars(wiring.Component):
    """Scalar operations of the word under way, in lockstep with those of the other slots.

    Parameters
    ----------
    config : DecoderConfig

    Members
    -------
    word : In(Layout)
        Stable while an operation is under way.
    start, done : In(1), Out(1)
        Strobe: do the word's operation of the ALU; high for the cycle in which its result goes into the register.
    load : In(1)
        Strobe: LDI.
    taken : In(1)
        Strobe, the cycle after NORM or ROPE of this slot was started: ``vector_shift`` is its shift.
    rope : In(1)
        Strobe: ROPE of this slot; register ``ra`` becomes the scale of the queries.
    referred : In(1)
        Strobe: ``eref`` is that of this slot's attention.
    of_results : In(1), x_shift, r_shift : In, vector_shift : Out
        Shifts of the residual and of the results, and that of the two which ``of_results`` names.
    m_value, squares, eref : In
        Maximum of segment ``m`` and sum of squares of this slot's vector unit; exponent of its attention.
    scale_register : In, scale : Out(ScalarLayout)
        A register as it stands.
    a : Out(ScalarLayout)
        Register ``ra`` of the word.
    q_scale : Out(ScalarLayout), q_base : Out(signed(12))
        Query scale of the last ROPE, and the exponent that a query has before its own shift is added (two cycles after ``rope``).
    """

    def __init__(self, config):
        self.config, self.squares_bits = config, squares_bits(config)
        shift = config.shift_bits
        super().__init__(
            {
                "word": In(Layout),
                **dict.fromkeys(("start", "load", "taken", "rope", "referred", "of_results"), In(1)),
                "done": Out(1),
                **dict.fromkeys(("x_shift", "r_shift"), In(shift)),
                "vector_shift": Out(shift),
                "m_value": In(33),
                "squares": In(self.squares_bits),
                "eref": In(signed(10)),
                "scale_register": In(range(REGISTERS)),
                "scale": Out(ScalarLayout),
                "a": Out(ScalarLayout),
                "q_scale": Out(ScalarLayout),
                "q_base": Out(signed(12)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.alu = alu = ScalarAlu(self.squares_bits)
        word = self.word
        registers = Array(Signal(ScalarLayout, name=f"register_{i}") for i in range(REGISTERS))
        b, imm = Signal(ScalarLayout), Signal(ScalarLayout, name="imm")
        m.d.comb += [
            self.a.eq(registers[word.ra]),
            b.eq(registers[word.rb]),
            imm.m.eq(word.m),
            imm.e.eq(word.e),
            self.scale.eq(registers[self.scale_register]),
            self.vector_shift.eq(Mux(self.of_results, self.r_shift, self.x_shift)),
            self.done.eq(alu.done),
        ]
        shift, eref = Signal.like(self.vector_shift, name="shift"), Signal.like(self.eref, name="eref_held")
        with m.If(self.rope):
            m.d.sync += self.q_scale.eq(self.a)
        with m.If(self.taken):
            m.d.sync += [
                shift.eq(self.vector_shift),
                self.q_base.eq(self.q_scale.e + self.vector_shift + OPERAND_SHIFT),
            ]
        if self.config.batch == 1:  # nobody else's attention comes between
            m.d.comb += eref.eq(self.eref)
        else:
            with m.If(self.referred):
                m.d.sync += eref.eq(self.eref)

        twice = -(shift << 1)
        shift2 = Signal.like(twice, name="shift2")
        m.d.comb += [shift2.eq(twice), alu.start.eq(self.start), alu.a.eq(self.a), alu.b.eq(b), alu.n.eq(self.m_value)]
        with m.Switch(word.op):
            for op, alu_op in ALU_OPS.items():
                with m.Case(op):
                    m.d.comb += alu.op.eq(alu_op)
                    if op is Op.LDM:
                        m.d.comb += alu.shift.eq(Mux(word.e != 0, shift, 0))
                    elif op is Op.LDS:
                        m.d.comb += alu.n.eq(self.squares)
                    elif op is Op.LDX:
                        m.d.comb += [alu.a.eq(imm), alu.shift.eq(shift2)]
                    elif op is Op.SCX:
                        m.d.comb += alu.shift.eq(shift2)
                    elif op is Op.LDR:
                        m.d.comb += [alu.a.eq(imm), alu.shift.eq(-((eref + 7) << 1))]
                    elif op is Op.MULI:
                        m.d.comb += alu.b.eq(imm)
        with m.If(alu.done):
            m.d.sync += registers[word.rd].eq(alu.o)
        with m.If(self.load):
            m.d.sync += registers[word.rd].eq(imm)
        return m
