"""The layer program of a model: what the sequencer does for one token."""

import numpy as np

from intaglio.gen.checkpoint.quantised import QuantisedModel
from intaglio.rtl.arithmetic.numerics import GAIN_MAX, Scalar
from intaglio.rtl.control.program import Instruction, Op, Wait
from intaglio.rtl.ternary.adapter.intermediate import MATRIX_GROUP
from intaglio.rtl.ternary.linear import PostMode

__all__ = ["layer_program", "ordered_gains"]

_SCALE, _DEVIATION, _Q, _K, _V, _WORK, _UNIT, _OUT = range(8)  # scalar registers


def ordered_gains(model: QuantisedModel) -> list[np.ndarray]:
    """Gains in the order of the program, a list of int16 arrays: per layer input, attn_sub, post_attention, ffn_sub; then final.

    Without sub-norms the list ends with gains of 1, for vectors that are quantised as they are.
    """
    c = model.config
    order = ("input", "attn_sub", "post_attention", "ffn_sub") if c.sub_norms else ("input", "post_attention")
    ones = [] if c.sub_norms else [np.full(max(c.hidden, c.intermediate), GAIN_MAX, np.int16)]
    return [layer.gains[name] for layer in model.layers for name in order] + [model.final_gains] + ones


def _words(elements, width):
    """Words of ``width`` that hold the elements. :class:`DecoderConfig` has them full; a machine that is only estimated need not."""
    return -(-elements // width)


def layer_program(model: QuantisedModel) -> list[Instruction]:
    """The program of a :class:`~intaglio.gen.checkpoint.quantised.QuantisedModel` as a list of :class:`Instruction`.

    Raises
    ------
    ValueError
        A constant does not fit its field; counts fit by the limits of :class:`~intaglio.rtl.config.decoder.DecoderConfig`.
    """
    c = model.config
    v = c.vector_width
    gains = _GainAddress(v)
    embed = Instruction(
        op=Op.EMBED, m=0 if c.row_scales else model.embed_scale, e=_words(c.hidden, v), wait=Wait.VECTOR
    )
    several = c.batch > 1  # what units that are there once do, is done for each slot in turn
    each, again = [Instruction(op=Op.EACH)] * several, [Instruction(op=Op.NEXT, wait=Wait.VECTOR)] * several
    # With scales of rows, a cycle in which that of the token's row is read.
    out = [*each, *[Instruction(op=Op.NOP)] * c.row_scales, embed, *again]

    def deviation(epsilon):
        """Scale of the vector just quantised, ``M / sqrt(SS + E)``, into _SCALE; the epsilon is in _DEVIATION already or given."""
        out.append(Instruction(op=Op.LDS, rd=_WORK, wait=Wait.PASS_A))
        if epsilon is not None:
            out.append(Instruction.with_scalar(Op.LDX, epsilon, rd=_DEVIATION))
        out.extend(
            [
                Instruction(op=Op.ADD, rd=_WORK, ra=_WORK, rb=_DEVIATION),
                Instruction(op=Op.SQRT, rd=_WORK, ra=_WORK),
                Instruction(op=Op.LDM, rd=_SCALE, m=0),
                Instruction(op=Op.DIV, rd=_SCALE, ra=_SCALE, rb=_WORK),
            ]
        )

    def norm(elements, source, op=Op.NORM8, wait=Wait.VECTOR | Wait.LINEAR):
        out.append(Instruction(op=op, rd=source, m=gains.take(elements), e=_words(elements, v), wait=wait))

    ones = (2 * c.layers + 1) * _words(c.hidden, v)

    def plain(elements):
        """Quantise results without a norm; their scale, in the unit of the results, is the maximum alone, into _SCALE."""
        out.append(Instruction(op=Op.NORM8, rd=1, m=ones, e=_words(elements, v), wait=Wait.VECTOR | Wait.LINEAR))

    def maximum():
        out.append(Instruction(op=Op.LDM, rd=_SCALE, m=0, e=1, wait=Wait.PASS_A))

    def rows(layer, ahead=0):
        """Queries, keys and values of a slot, and the scales of the last two."""
        yield Instruction(op=Op.ROPE, ra=_Q, e=layer, rb=ahead, wait=Wait.VECTOR | Wait.LINEAR)
        for store, register, base in ((Op.STK, _K, c.heads), (Op.STV, _V, c.heads + c.kv_heads)):
            for head in range(c.kv_heads):
                yield Instruction(op=Op.LDM, rd=_WORK, m=base + head, e=1, wait=Wait.PASS_A)
                yield Instruction(op=Op.MUL, rd=_WORK, ra=_WORK, rb=register)
                yield Instruction(op=store, ra=_WORK, m=head)

    def linear(mode, rows, inputs, scale=0, names=()):
        chunks = _words(inputs, c.lane_width)
        adapted = names in c.adapted
        if adapted:
            out.append(
                Instruction(
                    op=Op.ADAPT,
                    rd=MATRIX_GROUP[names].value,
                    m=len(names) * c.rank // c.lanes,
                    e=chunks,
                    wait=Wait.ENDING | Wait.LINEAR,
                )
            )
        out.append(
            Instruction(
                op=Op.LINEAR,
                rd=mode.value,
                m=_words(rows, c.lanes),
                e=chunks,
                ra=scale,
                rb=int(adapted),
                wait=Wait.ENDING | Wait.LINEAR,
            )
        )

    for index, layer in enumerate(model.layers):
        constant = layer.constants

        def times(rd, name, constant=constant):
            out.append(Instruction.with_scalar(Op.MULI, constant[name], rd=rd, ra=_SCALE))

        norm(c.hidden, 0)
        linear(PostMode.RAW, c.qkv_rows, c.hidden, names=("q", "k", "v"))
        deviation(model.residual_epsilon)
        for rd, name in ((_Q, "q"), (_K, "k"), (_V, "v")):
            times(rd, name)
        out.extend(each)
        out.extend(rows(index))
        if several:
            out.extend(each)
        for group in range(c.head_groups):
            out.append(Instruction(op=Op.ATTEND, m=group, wait=Wait.VECTOR | Wait.ATTENTION))
            if several and group == c.head_groups - 1:
                out.extend(rows(index, 1))  # of the next slot, while the attention unit works
            out.append(Instruction(op=Op.DRAIN, m=group, wait=Wait.ATTENTION | Wait.VECTOR))
        out.extend(again)
        if c.sub_norms:
            norm(c.hidden, 1)
            out.append(Instruction.with_scalar(Op.LDR, model.attention_epsilon, rd=_DEVIATION))
            deviation(None)
        else:
            plain(c.hidden)
            out.append(Instruction.with_scalar(Op.LDR, Scalar.of_float(1.0), rd=_WORK))
            out.append(Instruction(op=Op.SQRT, rd=_WORK, ra=_WORK))  # 2^-(Eref + 7): one over the unit
            maximum()
            out.append(Instruction(op=Op.DIV, rd=_SCALE, ra=_SCALE, rb=_WORK))
        linear(PostMode.RESIDUAL, c.hidden, c.hidden, _OUT, names=("o",))
        times(_OUT, "o")  # in time: the first row needs its scale after the dot product's stages

        norm(c.hidden, 0)
        if c.activation == "silu":  # needs the gate's scale with the first row, as RESIDUAL does
            deviation(model.residual_epsilon)
            linear(PostMode.GATED, 2 * c.intermediate, c.hidden, _OUT, names=("gate", "up"))
            times(_OUT, "gate")
            times(_UNIT, "up")
        else:
            linear(PostMode.GATED, 2 * c.intermediate, c.hidden, names=("gate", "up"))
            deviation(model.residual_epsilon)
            times(_WORK, "gate")
            times(_UNIT, "up")
            out.append(Instruction(op=Op.MUL, rd=_WORK, ra=_WORK, rb=_WORK))
            out.append(Instruction(op=Op.MUL, rd=_UNIT, ra=_WORK, rb=_UNIT))
        if c.sub_norms:
            out.append(Instruction(op=Op.MUL, rd=_UNIT, ra=_UNIT, rb=_UNIT))
            out.append(Instruction.with_scalar(Op.LDI, model.gated_epsilon, rd=_DEVIATION))
            out.append(Instruction(op=Op.DIV, rd=_DEVIATION, ra=_DEVIATION, rb=_UNIT))
            norm(c.intermediate, 1)
            out.append(Instruction(op=Op.SCX, rd=_DEVIATION, ra=_DEVIATION))
            deviation(None)
        else:
            plain(c.intermediate)
            maximum()
            out.append(Instruction(op=Op.MUL, rd=_SCALE, ra=_SCALE, rb=_UNIT))
        linear(PostMode.RESIDUAL, c.hidden, c.intermediate, _OUT, names=("down",))
        times(_OUT, "down")

    out.append(Instruction(op=Op.SKIP, wait=Wait.LINEAR))
    out.extend([Instruction(op=Op.EACH, rd=1)] * several)
    norm(c.hidden, 0, op=Op.NORM16)
    deviation(model.residual_epsilon)
    out.append(Instruction.with_scalar(Op.MULI, model.logit_constant, rd=_OUT, ra=_SCALE))
    out.append(Instruction(op=Op.HEAD, wait=Wait.VECTOR | Wait.ATTENTION))
    out.append(Instruction(op=Op.END, ra=_OUT, wait=Wait.ATTENTION))
    return out


class _GainAddress:
    """Words of the gain ROM, taken in the order of the program."""

    def __init__(self, vector_width: int) -> None:
        self.vector_width, self.next = vector_width, 0

    def take(self, elements):
        base, self.next = self.next, self.next + _words(elements, self.vector_width)
        return base
