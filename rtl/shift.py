"""Right shifts by a variable amount, the largest step first."""

from amaranth.hdl import Mux

__all__ = ["shifted_right"]


def shifted_right(value, amount, bits):
    """The lowest ``bits`` bits of ``value >> amount``, of the signedness of ``value``; combinational.

    Synthesis builds ``>>`` from the smallest step to the largest, each as wide as ``value``. Here the largest comes first, and
    a step is only as wide as the smaller ones after it can still read.
    """
    signed = value.shape().signed
    for step in reversed(range(len(amount))):
        value = Mux(amount[step], value >> (1 << step), value)
        if len(value) > (keep := bits + (1 << step) - 1):
            value = value[:keep].as_signed() if signed else value[:keep]
    return value
