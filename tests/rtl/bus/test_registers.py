# amaranth: UnusedElaboratable=no
"""The AXI4-Lite slave of every top: latency, what a write changes and when, what is refused, reads of a moving counter."""

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from intaglio.rtl.bus.axi import axi4_lite
from intaglio.rtl.bus.registers import OKAY, REGISTER_ADDRESS_BITS, SLVERR, AxiLite

COUNTER, LATCHED, HELD = 0x20, 0x24, 0x7FC


class Device(wiring.Component):
    """A counter of 8 bits whose upper half is latched when the lower is read, and a register that takes all but 13."""

    def __init__(self):
        super().__init__({"s_axil": In(axi4_lite(REGISTER_ADDRESS_BITS)), "held": Out(32), "count": Out(8)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.lite = lite = AxiLite((COUNTER, LATCHED, HELD))
        wiring.connect(m, wiring.flipped(self.s_axil), lite.bus)
        latched, able = Signal(4), lite.write_data != 13
        m.d.sync += self.count.eq(self.count + 1)
        with m.If(lite.written(HELD) & able):
            m.d.sync += self.held.eq(lite.write_data)
        with m.If(lite.read & lite.at[COUNTER]):
            m.d.sync += latched.eq(self.count[4:])
        lite.answer(m, {COUNTER: self.count[:4], LATCHED: latched, HELD: self.held}, {HELD: able})
        return m


def run(bench):
    dut = Device()
    simulator = Simulator(dut)
    simulator.add_clock(1e-8)

    async def of(ctx):
        await bench(ctx, dut)

    simulator.add_testbench(of)
    simulator.run()


async def offer(ctx, dut, channel, **values):
    """Put a word on a channel until it is taken; nothing is held longer."""
    for name, value in values.items():
        ctx.set(getattr(dut.s_axil, f"{channel}{name}"), value)
    ctx.set(getattr(dut.s_axil, f"{channel}valid"), 1)
    while not ctx.get(getattr(dut.s_axil, f"{channel}ready")):
        await ctx.tick()
    await ctx.tick()
    ctx.set(getattr(dut.s_axil, f"{channel}valid"), 0)
    for name, value in values.items():
        ctx.set(getattr(dut.s_axil, f"{channel}{name}"), ~value)


async def answer(ctx, dut, channel, wait=0):
    """Fields of the answer on a channel, taken ``wait`` cycles after it is there; the cycles waited for it, from 1 on."""
    cycles = 1
    while not ctx.get(getattr(dut.s_axil, f"{channel}valid")):
        await ctx.tick()
        cycles += 1
        assert cycles < 50
    fields = {"b": ("bresp",), "r": ("rdata", "rresp")}[channel]
    found = [ctx.get(getattr(dut.s_axil, f"{field}")) for field in fields]
    for _ in range(wait):
        await ctx.tick()
        assert ctx.get(getattr(dut.s_axil, f"{channel}valid"))
        assert found == [ctx.get(getattr(dut.s_axil, f"{field}")) for field in fields]
    ctx.set(getattr(dut.s_axil, f"{channel}ready"), 1)
    await ctx.tick()
    ctx.set(getattr(dut.s_axil, f"{channel}ready"), 0)
    assert not ctx.get(getattr(dut.s_axil, f"{channel}valid"))
    return *found, cycles


async def read(ctx, dut, address):
    """The value, the response, and the cycles from the one that takes the address to the one that has the answer."""
    await offer(ctx, dut, "ar", addr=address)
    return await answer(ctx, dut, "r")


async def write(ctx, dut, address, data, strobe=0xF):
    """The response, and the cycles from the one that takes address and data to the one that has the answer."""
    for name, value in (("awaddr", address), ("wdata", data), ("wstrb", strobe), ("awvalid", 1), ("wvalid", 1)):
        ctx.set(getattr(dut.s_axil, f"{name}"), value)
    while not (ctx.get(dut.s_axil.awready) and ctx.get(dut.s_axil.wready)):
        await ctx.tick()
    await ctx.tick()
    for name, value in (("awvalid", 0), ("wvalid", 0), ("awaddr", 0), ("wdata", 0xFFFFFFFF)):
        ctx.set(getattr(dut.s_axil, f"{name}"), value)
    return await answer(ctx, dut, "b")


def test_latency_and_values():
    async def bench(ctx, dut):
        assert await write(ctx, dut, HELD, 0x1234ABCD) == (OKAY, 4)
        assert await read(ctx, dut, HELD) == (0x1234ABCD, OKAY, 4)
        for address in (0, COUNTER - 4, HELD & 0x3FC, 0xFFC):
            assert await read(ctx, dut, address) == (0, OKAY, 4)

    run(bench)


def test_what_changes_nothing_is_told():
    async def bench(ctx, dut):
        assert await write(ctx, dut, HELD, 0x1234ABCD) == (OKAY, 4)
        for strobe in range(15):
            assert await write(ctx, dut, HELD, 5, strobe) == (SLVERR if strobe else OKAY, 4)
        for address in (COUNTER, LATCHED, HELD - 4, HELD & 0x3FC, 0):
            assert await write(ctx, dut, address, 7) == (SLVERR, 4)
            assert await write(ctx, dut, address, 7, 0) == (OKAY, 4)
        assert await write(ctx, dut, HELD, 13) == (SLVERR, 4)
        assert ctx.get(dut.held) == 0x1234ABCD

    run(bench)


@pytest.mark.parametrize("channels", ["aw w", "w aw"])
def test_address_and_data_come_in_any_order_and_a_read_passes(channels):
    async def bench(ctx, dut):
        values = {"aw": {"addr": HELD}, "w": {"data": 99, "strb": 0xF}}
        first, second = channels.split()
        await offer(ctx, dut, first, **values[first])
        for _ in range(3):
            assert (await read(ctx, dut, HELD))[:2] == (0, OKAY)
        assert not ctx.get(getattr(dut.s_axil, f"{first}ready")) and ctx.get(getattr(dut.s_axil, f"{second}ready"))
        await offer(ctx, dut, second, **values[second])
        assert await answer(ctx, dut, "b", wait=5) == (OKAY, 4)
        assert (await read(ctx, dut, HELD))[:2] == (99, OKAY)

    run(bench)


def test_reads_and_writes_that_wait_take_turns():
    async def bench(ctx, dut):
        order = []
        for name, value in (
            ("awaddr", HELD),
            ("wdata", 1),
            ("wstrb", 15),
            ("araddr", HELD),
            ("awvalid", 1),
            ("wvalid", 1),
            ("arvalid", 1),
            ("bready", 1),
            ("rready", 1),
        ):
            ctx.set(getattr(dut.s_axil, f"{name}"), value)
        for _ in range(60):
            order += [name for name in "br" if ctx.get(getattr(dut.s_axil, f"{name}valid"))]
            await ctx.tick()
        assert order == ["b", "r"] * (len(order) // 2) and len(order) >= 10

    run(bench)


def test_a_write_is_done_before_its_answer():
    async def bench(ctx, dut):
        for value in (3, 9):
            assert await write(ctx, dut, HELD, value) == (OKAY, 4)
            assert ctx.get(dut.held) == value

    run(bench)


@pytest.mark.parametrize("wait", range(0, 40, 3))
def test_both_halves_of_a_counter_are_of_one_cycle(wait):
    async def bench(ctx, dut):
        await ctx.tick().repeat(wait + 1)
        low, *_ = await read(ctx, dut, COUNTER)
        now = ctx.get(dut.count) - 2  # the word was sampled in the cycle before its answer, which has just been taken
        high, *_ = await read(ctx, dut, LATCHED)
        assert high << 4 | low == now & 0xFF

    run(bench)
