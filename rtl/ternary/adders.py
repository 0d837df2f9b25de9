"""Ternary dot product as a tree of two-input adders, for devices with carry chains.

``-x = ~x + 1``: an element leaves as ``x``, ``~x`` or 0, and the missing ones enter the adders of the tree at their carry inputs.
A tree over ``n`` elements has ``n - 1`` adders; the one that is left over is added before the last stage.

On an ECP5 this takes half of the LUTs of the carry-save tree over bit planes (:mod:`intaglio.rtl.ternary.tree`), which in turn is
several times faster in a compiled simulator. Both give the same sums after the same cycles.
"""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.ternary.tree import PLANES, WORD, TernaryDot

__all__ = ["AdderDot"]


class AdderDot(wiring.Component):
    """``sum_i (plus_i - minus_i) * x_i``: members, sums and latency of :class:`~intaglio.rtl.ternary.tree.TernaryDot`.

    ``masks`` is not used. The levels of the tree are spread over the ``LATENCY`` = 3 stages, two each for 64 elements.
    """

    LATENCY = TernaryDot.LATENCY
    MASKS = TernaryDot.MASKS

    def __init__(self, width):
        if not (isinstance(width, int) and width >= 1):
            raise ValueError(f"width must be a positive integer, not {width!r}")
        self.width = width
        super().__init__(
            {
                "x": In(width).array(PLANES),
                "plus": In(width),
                "minus": In(width),
                "masks": In(WORD).array(len(self.MASKS)),
                "sum": Out(signed((128 * width).bit_length() + 1)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        terms, ones = [], [self.minus[i] for i in range(self.width)]
        for i in range(self.width):
            element = Signal(signed(PLANES), name=f"element_{i}")
            x = Cat(self.x[b][i] for b in range(PLANES))
            m.d.comb += element.eq(Mux(self.plus[i], x, Mux(self.minus[i], ~x, 0)))
            terms.append(element)

        levels = (self.width - 1).bit_length()
        for stage in range(self.LATENCY):
            if stage == self.LATENCY - 1 and len(ones) == len(terms):
                terms[0] = _added(m, terms[0], Const(0, 1), ones.pop(), f"first_{stage}")
            for level in range(levels * stage // self.LATENCY, levels * (stage + 1) // self.LATENCY):
                pairs = [
                    _added(m, a, b, ones.pop(), f"sum_{level}_{i}")
                    for i, (a, b) in enumerate(zip(terms[::2], terms[1::2], strict=False))
                ]
                terms = pairs + terms[len(terms) & ~1 :]
            if stage == self.LATENCY - 1:
                m.d.sync += self.sum.eq(terms[0])
            else:
                terms = [_register(m, term, f"term_{stage}_{i}") for i, term in enumerate(terms)]
                ones = [_register(m, one, f"one_{stage}_{i}") for i, one in enumerate(ones)]
        return m


def _added(m, a, b, one, name):
    """``a + b + one`` on a single carry chain: the carry enters from a position below, where both operands have ``one``."""
    shape = signed(max(len(a), len(b)) + 1)
    doubled, total = Signal(signed(shape.width + 1), name=f"{name}_doubled"), Signal(shape, name=name)
    m.d.comb += [doubled.eq(Cat(one, a).as_signed() + Cat(one, b).as_signed()), total.eq(doubled[1:].as_signed())]
    return total


def _register(m, value, name):
    register = Signal(value.shape(), name=name, reset_less=True)
    m.d.sync += register.eq(value)
    return register
