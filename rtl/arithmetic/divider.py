"""Pipelined restoring divider for the reciprocals of the vector unit."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.numerics import MANTISSA
from intaglio.rtl.arithmetic.scalar import two_steps

__all__ = ["Divider"]

NUMERATOR_BITS = 33


class Divider(wiring.Component):
    """``numerator // denominator``, one division a cycle.

    The quotient has 17 bits, hence 17 steps: the top 16 bits of the numerator are below every normalised denominator.

    Parameters
    ----------
    tag_bits : int
        Width of the tag that travels with a division.
    bits_per_stage : int
        Steps in one cycle; two are done side by side (``two_steps``), the first cycle, which forms the triple, doing one.

    Members
    -------
    i_valid, i_numerator (33 bits), i_denominator (17 bits), i_tag : In
        The denominator is normalised, in [2^16, 2^17), or 0; ``numerator < denominator << 17`` unless it is 0.
    o_valid, o_quotient (17 bits), o_tag : Out
        The quotient; 0 if the denominator is 0.
    o_soon : Out
        A quotient leaves two cycles later.

    Latency: :meth:`cycles` cycles. Throughput: 1.
    """

    BITS_PER_STAGE = 3

    @staticmethod
    def cycles(bits_per_stage=BITS_PER_STAGE):
        return -(-MANTISSA // bits_per_stage)

    def __init__(self, tag_bits, bits_per_stage=BITS_PER_STAGE):
        if not isinstance(tag_bits, int) or tag_bits < 1:
            raise ValueError(f"tag_bits must be a positive integer, not {tag_bits!r}")
        self.bits_per_stage, self.latency = bits_per_stage, self.cycles(bits_per_stage)
        super().__init__(
            {
                "i_valid": In(1),
                "i_numerator": In(NUMERATOR_BITS),
                "i_denominator": In(MANTISSA),
                "i_tag": In(tag_bits),
                "o_valid": Out(1),
                "o_quotient": Out(MANTISSA),
                "o_tag": Out(tag_bits),
                "o_soon": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        parallel = self.bits_per_stage == 2
        valid, tag, denominator = self.i_valid, self.i_tag, self.i_denominator
        remainder, low = self.i_numerator[MANTISSA:], self.i_numerator[:MANTISSA]
        triple = None
        left = MANTISSA
        for stage in range(self.latency):
            if stage == self.latency - 2:
                m.d.comb += self.o_soon.eq(valid)
            bits = (
                left - (self.latency - 1 - stage) * self.bits_per_stage
                if parallel and not stage
                else min(self.bits_per_stage, left)
            )
            left -= bits
            top = low[MANTISSA - bits :]
            if parallel and bits == 2:
                remainder, pair = two_steps(m, Cat(top, remainder), denominator, triple, f"difference_{stage}")
                quotient = [bit & denominator[-1] for bit in pair]
            else:
                quotient = []
                for bit in range(bits):
                    shifted = Signal(MANTISSA + 1, name=f"shifted_{stage}_{bit}")
                    difference = Signal(MANTISSA + 2, name=f"difference_{stage}_{bit}")
                    m.d.comb += [shifted.eq(Cat(top[bits - 1 - bit], remainder)), difference.eq(shifted - denominator)]
                    fits = ~difference[-1]
                    quotient.insert(0, fits & denominator[-1])
                    remainder = Mux(fits, difference[:MANTISSA], shifted[:MANTISSA])
            # The numerator's low bits leave this register at the top while quotient bits enter at the bottom.
            low_next = Cat(*quotient, low[: MANTISSA - bits])
            values = {"remainder": remainder, "low": low_next, "denominator": denominator, "tag": tag}
            if parallel:
                values["triple"] = (denominator << 1) + denominator if triple is None else triple
            registers = {
                name: Signal(
                    MANTISSA + 2 if name == "triple" else len(tag) if name == "tag" else MANTISSA,
                    name=f"{name}_{stage}",
                    reset_less=True,
                )
                for name in values
            }
            valid_next = Signal(name=f"valid_{stage}")
            m.d.sync += valid_next.eq(valid)
            with m.If(valid):
                m.d.sync += [registers[name].eq(value) for name, value in values.items()]
            valid, (remainder, low, denominator, tag) = (
                valid_next,
                [registers[n] for n in ("remainder", "low", "denominator", "tag")],
            )
            triple = registers.get("triple")
        m.d.comb += [self.o_valid.eq(valid), self.o_quotient.eq(low), self.o_tag.eq(tag)]
        return m
