"""Instructions of the layer program: the words that ``gen`` writes and the sequencer reads.

One word starts one unit or performs one scalar operation. ``wait`` names the units that must be idle before the word takes effect; words
take effect in order. NORM8, LINEAR and scalar operations work on all slots of a group at once, other units on one slot, which EACH and
NEXT choose; a machine with one slot has no need of these.
"""

from dataclasses import dataclass

from amaranth.lib import data, enum

from intaglio.rtl.arithmetic.numerics import Scalar

__all__ = ["PHASES", "REGISTERS", "WORD_BITS", "Instruction", "Layout", "Op", "Phase", "Wait"]

REGISTERS = 8  # scalar registers


class Op(enum.Enum, shape=5):
    """Operations; ``imm`` is the scalar ``m * 2^e`` of the word."""

    NOP = 0
    # units
    EMBED = 1  # residual <- embedding of the token; m: scale
    NORM8 = 2  # activations <- quantised norm; rd: source (0 residual, 1 results), m: gain word, e: words
    NORM16 = 3  # operands <- quantised norm of the residual
    LINEAR = 4  # rd: mode, m: row groups, e: chunks, ra: scale (residual mode), rb: 1 where a row has words of the adapter's B
    ROPE = 5  # results -> queries, keys, values; ra: scale of queries, e: layer, rb: 1 for the slot after this one, if there is one
    ATTEND = 6  # m: group
    DRAIN = 7  # m: group
    HEAD = 8
    # scalars
    LDM = 9  # rd <- maximum of segment m, times 2^shift if e is not 0
    LDS = 10  # rd <- sum of squares
    LDI = 11  # rd <- imm
    LDX = 12  # rd <- imm * 2^(-2 shift), the shift of the vector unit's last operation
    LDR = 13  # rd <- imm * 2^(-2 (Eref + 7))
    MUL = 14  # rd <- ra * rb
    MULI = 15  # rd <- ra * imm
    DIV = 16  # rd <- ra / rb
    ADD = 17  # rd <- ra + rb
    SQRT = 18  # rd <- sqrt(ra)
    SCX = 19  # rd <- ra * 2^(-2 shift)
    STK = 20  # key scale of KV head m <- ra, of the slot whose ROPE was the last
    STV = 21  # value scale of KV head m <- ra, likewise
    # adapters
    ADAPT = 24  # the adapter's A times the activations, into the linear unit; rd: kind, m: row groups, e: chunks
    # flow
    SKIP = 22  # the token ends here unless its logits are wanted
    END = 23  # result packet; ra: unit of a logit; then as NEXT, and the end
    EACH = 25  # what follows is done for each slot; rd: 0 of all tokens, 1 of those whose result is wanted
    NEXT = 26  # from the word after EACH again, for the next slot, if there is one


class Wait(enum.IntFlag):
    NONE = 0
    LINEAR = 1
    VECTOR = 2
    PASS_A = 4
    ATTENTION = 8
    ENDING = 16  # the vector unit is idle or so near its end that what it writes is there when LINEAR reads it


class Phase(enum.Enum, shape=3):
    """What the sequencer's cycle counters tell apart: the unit operation that started last."""

    EMBED = 0
    NORM = 1
    LINEAR = 2
    ROTARY = 3
    ATTENTION = 4
    HEAD = 5


PHASES = tuple(phase.name.lower() for phase in Phase)

Layout = data.StructLayout({"op": Op, "wait": 5, "rd": 3, "ra": 3, "rb": 3, "m": 16, "e": 10})
WORD_BITS = Layout.size


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One word; ``m`` 0..65535, ``e`` -512..1023 (signed as an exponent, unsigned as a count).

    Raises
    ------
    ValueError
        A field does not fit.
    """

    op: Op
    wait: Wait = Wait.NONE
    rd: int = 0
    ra: int = 0
    rb: int = 0
    m: int = 0
    e: int = 0

    def __post_init__(self):
        for name in ("rd", "ra", "rb"):
            if not 0 <= getattr(self, name) < REGISTERS:
                raise ValueError(f"{name} of {self.op.name} must be in 0..{REGISTERS - 1}, not {getattr(self, name)}")
        if not 0 <= self.m < 1 << 16:
            raise ValueError(f"m of {self.op.name} must be in 0..65535, not {self.m}")
        if not -512 <= self.e < 1024:
            raise ValueError(f"e of {self.op.name} must be in -512..1023, not {self.e}")

    @classmethod
    def with_scalar(cls, op, scalar: Scalar, **fields):
        return cls(op=op, m=scalar.m, e=scalar.e, **fields)

    def encode(self):
        fields = {
            "op": self.op.value,
            "wait": int(self.wait),
            "rd": self.rd,
            "ra": self.ra,
            "rb": self.rb,
            "m": self.m,
            "e": self.e & 1023,
        }
        word = 0
        for name, value in fields.items():
            word |= value << Layout[name].offset
        return word
