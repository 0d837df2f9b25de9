"""Helpers for the link's hardware: simulation, random frames, an endpoint beside its model."""

import random

from amaranth.sim import Simulator

from intaglio.host.transport.frames import Decoder, Frame, Kind
from intaglio.host.transport.peer import Peer
from intaglio.rtl.link.endpoint import Endpoint

DIGEST = 0x7E7D1234  # needs escapes


def simulate(dut, *benches, limit=400_000, background=()):
    """Run ``benches`` to their ends, at most ``limit`` cycles."""

    async def watch(ctx):
        for _ in range(limit):
            await ctx.tick()
        raise AssertionError(f"not done after {limit} cycles")

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    for bench in benches:
        sim.add_testbench(bench)
    for bench in (*background, watch):
        sim.add_testbench(bench, background=True)
    sim.run()


def random_frame(rng, kind=None):
    special = [0x7E, 0x7D, 0x5E, 0x5D, 0x20, 0, 0xFF]

    def byte():
        return rng.choice(special) if rng.random() < 0.4 else rng.randrange(256)

    words = tuple(
        int.from_bytes(bytes(byte() for _ in range(4)), "little") for _ in range(rng.choice([0, 1, 2, 4, 15]))
    )
    return Frame(
        kind=kind or rng.choice(list(Kind)), mark=rng.random() < 0.5, seq=byte(), ack=byte(), window=byte(), words=words
    )


async def give(ctx, dut, byte):
    """Give a byte, which is taken in the cycle that ends; returns the cycles waited before."""
    waited = 0
    ctx.set(dut.i.valid, 1)
    ctx.set(dut.i.payload, byte)
    while not ctx.get(dut.i.ready):
        await ctx.tick()
        waited += 1
    await ctx.tick()
    ctx.set(dut.i.valid, 0)
    return waited


class Bench:
    """An Endpoint with a decoder that takes commands and gives results when told, and the same in Python."""

    def __init__(self, seed, depth=16):
        self.rng, self.dut, self.model = (random.Random(seed), Endpoint(DIGEST, depth=depth), Peer(DIGEST, depth=depth))
        self.decoder, self.sent, self.frames = Decoder(), 0, []
        self.registers, self.executed = {}, []

    async def send(self, ctx, data):
        dut = self.dut
        ctx.set(dut.i.valid, 1)
        for byte in data:
            ctx.set(dut.i.payload, byte)
            while not ctx.get(dut.i.ready):
                await self.tick(ctx)
            await self.tick(ctx)
        ctx.set(dut.i.valid, 0)

    async def tick(self, ctx):
        dut = self.dut
        byte = ctx.get(dut.o.payload) if ctx.get(dut.o.valid) and ctx.get(dut.o.ready) else None
        await ctx.tick()
        if byte is not None:
            self.frames += self.decoder.feed(bytes([byte]))

    async def settle(self, ctx, expected=(), cycles=40):
        """Let the endpoint send whatever it wants to; compare with the model."""
        while True:
            before = len(self.frames), self.decoder._rest[:]
            for _ in range(cycles):
                await self.tick(ctx)
            if before == (len(self.frames), self.decoder._rest[:]):
                break
        expected = [*expected]
        while (frame := self.model.next_frame()) is not None:
            expected.append(frame)
        found, self.frames = self.frames, []
        assert found == expected, f"after {self.sent} steps"

    async def registers_bus(self, ctx):
        """An AXI4-Lite slave with random waits."""
        bus = self.dut.registers
        rng = random.Random(99)
        while True:
            if ctx.get(bus.arvalid):
                for _ in range(rng.randrange(3)):
                    await ctx.tick()
                address = ctx.get(bus.araddr)
                ctx.set(bus.arready, 1)
                await ctx.tick()
                ctx.set(bus.arready, 0)
                for _ in range(rng.randrange(4)):
                    await ctx.tick()
                ctx.set(bus.rdata, self.registers.get(address, 0xDEAD0000 | address))
                ctx.set(bus.rresp, 2 if address == 0xFFC else 0)
                ctx.set(bus.rvalid, 1)
                self.executed.append((Kind.READ, address, 0))
                while not ctx.get(bus.rready):
                    await ctx.tick()
                await ctx.tick()
                ctx.set(bus.rvalid, 0)
            elif ctx.get(bus.awvalid) and ctx.get(bus.wvalid):
                order = rng.randrange(3)  # both at once, or one after the other
                address, value = ctx.get(bus.awaddr), ctx.get(bus.wdata)
                assert ctx.get(bus.wstrb) == 15
                for channels in (
                    (("aw", "w"),) if order == 0 else (("aw",), ("w",)) if order == 1 else (("w",), ("aw",))
                ):
                    for channel in channels:
                        ctx.set(getattr(bus, f"{channel}ready"), 1)
                    await ctx.tick()
                    for channel in channels:
                        ctx.set(getattr(bus, f"{channel}ready"), 0)
                self.registers[address] = value
                self.executed.append((Kind.WRITE, address, value))
                ctx.set(bus.bvalid, 1)
                while not ctx.get(bus.bready):
                    await ctx.tick()
                await ctx.tick()
                ctx.set(bus.bvalid, 0)
            await ctx.tick()

    def carry_out(self, registers, executed):
        """The model's register access."""
        if self.model.access:
            kind, address, value = self.model.access
            executed.append((kind, address, value))
            if kind == Kind.WRITE:
                registers[address] = value
            self.model.answer(
                registers.get(address, 0xDEAD0000 | address), fault=kind == Kind.READ and address == 0xFFC
            )
