"""SiLU of a fixed-point number, by a table and linear interpolation; docs/numerics.md.

``silu(z) = max(z, 0) - c(|z|)`` with ``c(a) = a / (1 + e^a)``, which is below 0.279 and vanishes for large ``a``: the table has ``c``
alone, and ``z`` may be large.
"""

import math

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.memory.rom import Rom

__all__ = ["SILU_BITS", "SILU_FRACTION", "SILU_SLOPES", "SILU_TABLE", "SILU_WORDS", "SILU_WORD_BITS", "Silu", "silu"]

SILU_FRACTION = 16  # fraction bits of z and of the result
SILU_BITS = 27  # signed bits of both: -1024 <= z < 1024
RANGE_BITS = 20  # |z| from 16 on counts as just below 16, where c is 0.1 units
NEAR = 18  # |z| below 4 is divided into 512 intervals of 2^NEAR_STEP units, from there on into 384 of 2^FAR_STEP
NEAR_STEP, FAR_STEP = 9, 11
DEPTH = 1024
GUARD = 2  # bits that the table has below the result's unit
VALUE_BITS, SLOPE_BITS = 17, 11


def _table():
    """Values and differences of c by address, in units of ``2^-(SILU_FRACTION + GUARD)``."""

    def c(units):
        a = units * 2.0**-SILU_FRACTION
        return round(a / (1 + math.exp(a)) * 2 ** (SILU_FRACTION + GUARD))

    values, slopes = [0] * DEPTH, [0] * DEPTH
    for first, last, step, base in (
        (0, 1 << (NEAR - NEAR_STEP), NEAR_STEP, 0),
        (1 << (NEAR - FAR_STEP), 1 << (RANGE_BITS - FAR_STEP), FAR_STEP, DEPTH // 2),
    ):
        for i in range(first, last):
            values[base + i] = c(i << step)
            slopes[base + i] = c((i + 1) << step) - values[base + i]
    return tuple(values), tuple(slopes)


SILU_TABLE, SILU_SLOPES = _table()
SILU_WORDS = tuple(
    value | (slope & ((1 << SLOPE_BITS) - 1)) << VALUE_BITS
    for value, slope in zip(SILU_TABLE, SILU_SLOPES, strict=True)
)
SILU_WORD_BITS = VALUE_BITS + SLOPE_BITS


def silu(z, table=SILU_TABLE, slopes=SILU_SLOPES):
    """SiLU of ``z`` in units of ``2^-SILU_FRACTION``, within one of them of the exact value.

    Parameters
    ----------
    z : int, or integer array or tensor (with ``table`` and ``slopes`` of its kind)
        Of ``SILU_BITS`` signed bits.
    """
    size = abs(z)
    limit = (1 << RANGE_BITS) - 1
    size = size - (size - limit) * (size > limit)
    far, near = size >= 1 << NEAR, size < 1 << NEAR
    index = (size >> NEAR_STEP) * near + ((size >> FAR_STEP) + DEPTH // 2) * far
    part = ((size << (FAR_STEP - NEAR_STEP)) * near + size * far) & ((1 << FAR_STEP) - 1)
    shift = FAR_STEP + GUARD
    return z * (z > 0) - (((table[index] << FAR_STEP) + slopes[index] * part + (1 << (shift - 1))) >> shift)


class Silu(wiring.Component):
    """:func:`silu`, pipelined.

    Parameters
    ----------
    table : sequence of int or None
        Contents of the ROM ``silu`` (:data:`SILU_WORDS`), for simulation. None: an external image.

    Members
    -------
    z : In(signed(SILU_BITS)), o : Out(signed(SILU_BITS))

    Latency: :attr:`LATENCY` cycles. Throughput: one a cycle.
    """

    LATENCY = 4

    def __init__(self, table=None):
        self.table = table
        super().__init__({"z": In(signed(SILU_BITS)), "o": Out(signed(SILU_BITS))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.table = table = Rom("silu", SILU_WORD_BITS, DEPTH, init=self.table)
        # 1: magnitude. 2: table read. 3: difference times place. 4: sum.
        size = Signal(SILU_BITS)
        m.d.comb += size.eq(Mux(self.z[-1], -self.z, self.z))
        place = Signal(RANGE_BITS, reset_less=True)
        m.d.sync += place.eq(Mux(size[RANGE_BITS:].any(), -1, size[:RANGE_BITS]))
        positive = Mux(self.z[-1], 0, self.z[: SILU_BITS - 1])
        for stage in (1, 2, 3):
            later = Signal(SILU_BITS - 1, name=f"positive_{stage}", reset_less=True)
            m.d.sync += later.eq(positive)
            positive = later
        far = place[NEAR:].any()
        m.d.comb += table.addr.eq(Mux(far, Cat(place[FAR_STEP:], Const(1, 1)), place[NEAR_STEP:NEAR]))
        part = Signal(FAR_STEP, reset_less=True)
        gap = Const(0, FAR_STEP - NEAR_STEP)
        m.d.sync += part.eq(Mux(far, place[:FAR_STEP], Cat(gap, place[:NEAR_STEP])))
        value = Signal(VALUE_BITS, reset_less=True)
        change = Signal(signed(SLOPE_BITS + FAR_STEP + 1), reset_less=True)
        m.d.sync += [value.eq(table.data[:VALUE_BITS]), change.eq(table.data[VALUE_BITS:].as_signed() * part)]
        shift = FAR_STEP + GUARD
        total = Signal(signed(VALUE_BITS + FAR_STEP + 2))
        m.d.comb += total.eq(Cat(Const(0, FAR_STEP), value) + change + (1 << (shift - 1)))
        m.d.sync += self.o.eq(positive - (total >> shift))
        return m
