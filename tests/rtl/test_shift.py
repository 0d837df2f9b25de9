"""Shifts by steps equal Python's."""

import pytest
from amaranth.hdl import Module, Signal, signed, unsigned
from amaranth.sim import Simulator

from intaglio.rtl.shift import shifted_right


@pytest.mark.parametrize(("shape", "amount_bits", "bits"), [
    (signed(51), 6, 18), (signed(32), 5, 18), (unsigned(32), 4, 17), (signed(9), 3, 9), (unsigned(7), 2, 1), (signed(5), 4, 3),
])
def test_equals_the_operator(shape, amount_bits, bits):
    m = Module()
    value, amount, out = Signal(shape), Signal(amount_bits), Signal(bits)
    m.d.comb += out.eq(shifted_right(value, amount, bits))
    low = -(1 << shape.width - 1) if shape.signed else 0
    high = low + (1 << shape.width) - 1
    ones = [low + (1 << i) for i in range(shape.width)]  # a single bit finds every way through the steps

    async def bench(context):
        for given in (low, high, 0, high // 3, low // 3, *ones):
            context.set(value, given)
            for by in range(1 << amount_bits):
                context.set(amount, by)
                assert context.get(out) == given >> by & (1 << bits) - 1, f"{given} >> {by}"

    simulator = Simulator(m)
    simulator.add_testbench(bench)
    simulator.run()
