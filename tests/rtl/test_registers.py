# amaranth: UnusedElaboratable=no
"""The AXI4-Lite slave of every top: latency, what a write changes and when, reads of a moving counter."""

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import Out
from amaranth.sim import Simulator

from intaglio.rtl.registers import AXI_LITE, AxiLite

COUNTER, LATCHED, HELD = 0x20, 0x24, 0x7FC


class Device(wiring.Component):
    """A counter of 8 bits whose upper half is latched when the lower is read, and a register."""

    def __init__(self):
        super().__init__({**{f"s_axil_{name}": member for name, member in AXI_LITE.items()}, "held": Out(32), "count": Out(8)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.lite = lite = AxiLite()
        lite.connect(m, self)
        latched = Signal(4)
        m.d.sync += self.count.eq(self.count + 1)
        with m.If(lite.write & (lite.address == HELD)):
            m.d.sync += self.held.eq(lite.write_data)
        with m.If(lite.read & (lite.address == COUNTER)):
            m.d.sync += latched.eq(self.count[4:])
        lite.answer(m, {COUNTER: self.count[:4], LATCHED: latched, HELD: self.held})
        return m


def run(bench):
    dut = Device()
    simulator = Simulator(dut)
    simulator.add_clock(1e-8)

    async def of(ctx):
        await bench(ctx, dut)

    simulator.add_testbench(of)
    simulator.run()


async def read(ctx, dut, address):
    """The value, and the cycles from the one that takes the address to the one that has the answer; nothing is held longer."""
    ctx.set(dut.s_axil_araddr, address)
    ctx.set(dut.s_axil_arvalid, 1)
    while not ctx.get(dut.s_axil_arready):
        await ctx.tick()
    await ctx.tick()
    ctx.set(dut.s_axil_arvalid, 0)
    ctx.set(dut.s_axil_araddr, 0xFFF)
    cycles = 1
    while not ctx.get(dut.s_axil_rvalid):
        await ctx.tick()
        cycles += 1
    value = ctx.get(dut.s_axil_rdata)
    ctx.set(dut.s_axil_rready, 1)
    await ctx.tick()
    ctx.set(dut.s_axil_rready, 0)
    return value, cycles


async def write(ctx, dut, address, data, strobe=0xF):
    """The cycles from the one that takes address and data to the one that has the answer."""
    for name, value in (("awaddr", address), ("wdata", data), ("wstrb", strobe), ("awvalid", 1)):
        ctx.set(getattr(dut, f"s_axil_{name}"), value)
    await ctx.tick()
    assert not ctx.get(dut.s_axil_awready)  # not without the data
    ctx.set(dut.s_axil_wvalid, 1)
    assert ctx.get(dut.s_axil_awready) and ctx.get(dut.s_axil_wready)
    await ctx.tick()
    for name, value in (("awvalid", 0), ("wvalid", 0), ("awaddr", 0), ("wdata", 0xFFFFFFFF)):
        ctx.set(getattr(dut, f"s_axil_{name}"), value)
    cycles = 1
    while not ctx.get(dut.s_axil_bvalid):
        await ctx.tick()
        cycles += 1
    ctx.set(dut.s_axil_bready, 1)
    await ctx.tick()
    ctx.set(dut.s_axil_bready, 0)
    return cycles


def test_latency_and_values():
    async def bench(ctx, dut):
        assert await write(ctx, dut, HELD, 0x1234ABCD) == 2
        assert await read(ctx, dut, HELD) == (0x1234ABCD, 3)
        for strobe in (0, 0b0111, 0b1110):
            assert await write(ctx, dut, HELD, 5, strobe) == 2
        for address in (COUNTER, HELD - 4, HELD & 0x3FC, 0):
            await write(ctx, dut, address, 7)
        assert ctx.get(dut.held) == 0x1234ABCD
        for address in (0, COUNTER - 4, HELD & 0x3FC, 0xFFC):
            assert await read(ctx, dut, address) == (0, 3)

    run(bench)


def test_a_write_is_done_before_its_answer():
    async def bench(ctx, dut):
        for value in (3, 9):
            ctx.set(dut.s_axil_bready, 1)
            await write(ctx, dut, HELD, value)
            assert ctx.get(dut.held) == value

    run(bench)


@pytest.mark.parametrize("wait", range(0, 40, 3))
def test_both_halves_of_a_counter_are_of_one_cycle(wait):
    async def bench(ctx, dut):
        await ctx.tick().repeat(wait + 1)
        low, _ = await read(ctx, dut, COUNTER)
        now = ctx.get(dut.count) - 2  # the word was sampled in the cycle before its answer, which has just been taken
        high, _ = await read(ctx, dut, LATCHED)
        assert high << 4 | low == now & 0xFF

    run(bench)
