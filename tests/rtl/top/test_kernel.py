"""Kernel of an accelerator card: operations from memory, answers into memory, against a list of what must happen."""

import random
from enum import IntEnum

import pytest
from amaranth.sim import Simulator

from intaglio.rtl.top.kernel import Mover, Operation

OPERATIONS, ANSWERS = 0x4_0000_0000, 0x5_0000_1000


async def until(ctx, condition):
    """The cycle in which the condition holds has ended."""
    while not (await ctx.tick().sample(condition))[-1]:
        pass


class Card:
    """Memory, decoder and registers around a mover; ``pace`` is the chance that something answers in a cycle."""

    def __init__(self, pace, *, deaf=False, fault_at=None):
        self.dut, self.pace, self.deaf, self.fault_at = Mover(), pace, deaf, fault_at
        self.random = random.Random(repr((pace, deaf)))
        self.memory, self.commands, self.results, self.writes, self.resets = {}, [], [], [], 0
        self.registers = {0x08: 0xC0FFEE00}

    def ready(self):
        return self.random.random() < self.pace

    async def read_memory(self, ctx):
        port = self.dut.gmem0
        while True:
            await until(ctx, port.arvalid)
            address = ctx.get(port.araddr)
            assert (ctx.get(port.arlen), ctx.get(port.arsize), ctx.get(port.arburst)) == (0, 3, 1)
            ctx.set(port.arready, 1)
            await ctx.tick()
            ctx.set(port.arready, 0)
            while not self.ready():
                await ctx.tick()
            ctx.set(port.rdata, self.memory[address])
            ctx.set(port.rresp, 2 if address == self.fault_at else 0)
            ctx.set(port.rvalid, 1)
            await until(ctx, port.rready)
            ctx.set(port.rvalid, 0)

    async def write_memory(self, ctx):
        port = self.dut.gmem1
        while True:
            await until(ctx, port.awvalid & port.wvalid)
            address, data = ctx.get(port.awaddr), ctx.get(port.wdata)
            assert ctx.get(port.wlast) and ctx.get(port.wstrb) == 0xFF
            for line in self.random.sample([port.awready, port.wready], 2):  # in any order
                ctx.set(line, 1)
                await ctx.tick()
                ctx.set(line, 0)
            while not self.ready():
                await ctx.tick()
            self.memory[address] = data
            ctx.set(port.bvalid, 1)
            await until(ctx, port.bready)
            ctx.set(port.bvalid, 0)

    async def decoder(self, ctx):
        """Answers each packet of commands with a packet of its words, inverted; takes no command while it has results."""
        commands, results, packet = self.dut.commands, self.dut.results, []
        while True:
            ctx.set(commands.ready, 0)
            if self.deaf or not self.ready():
                await ctx.tick()
                continue
            ctx.set(commands.ready, 1)
            _, _, valid, payload = await ctx.tick().sample(commands.valid, commands.payload)
            if not valid:
                continue
            ctx.set(commands.ready, 0)
            self.commands.append(payload)
            packet.append(payload & 0xFFFFFFFF ^ 0xFFFFFFFF)
            if payload >> 32:
                for i, word in enumerate(packet):
                    ctx.set(results.payload, word | (i == len(packet) - 1) << 32)
                    ctx.set(results.valid, 1)
                    await until(ctx, results.ready)
                    ctx.set(results.valid, 0)
                packet = []

    async def slave(self, ctx):
        bus = self.dut.registers
        while True:
            _, _, writing, reading = await ctx.tick().sample(bus.awvalid & bus.wvalid, bus.arvalid)
            if writing:
                self.registers[ctx.get(bus.awaddr)] = ctx.get(bus.wdata)
                self.writes.append((ctx.get(bus.awaddr), ctx.get(bus.wdata)))
                channel = ("awready", "wready"), "bvalid", bus.bready
            elif reading:
                address = ctx.get(bus.araddr)
                ctx.set(bus.rdata, self.registers.get(address, 0))
                ctx.set(bus.rresp, 0 if address in self.registers else 2)
                channel = ("arready",), "rvalid", bus.rready
            else:
                continue
            for name in channel[0]:
                ctx.set(getattr(bus, name), 1)
            await ctx.tick()
            for name in channel[0]:
                ctx.set(getattr(bus, name), 0)
            ctx.set(getattr(bus, channel[1]), 1)
            await until(ctx, channel[2])
            ctx.set(getattr(bus, channel[1]), 0)

    async def watch(self, ctx):
        while True:
            *_, reset = await ctx.tick().sample(self.dut.reset)
            self.resets += reset

    def run(self, *runs):
        """Each run is a list of operations, ``wanted`` and ``patience``; returns the header's fields and the answers of each."""
        outcomes = []

        async def bench(ctx):
            dut = self.dut
            for operations, wanted, patience in runs:
                for i, (kind, address, data) in enumerate(operations):
                    self.memory[OPERATIONS + 8 * i] = kind << 60 | address << 32 | data
                for name, value in (
                    ("operations", OPERATIONS),
                    ("count", len(operations)),
                    ("answers", ANSWERS),
                    ("wanted", wanted),
                    ("patience", patience),
                    ("start", 1),
                ):
                    ctx.set(getattr(dut, name), value)
                await ctx.tick()
                ctx.set(dut.start, 0)
                for _ in range(20_000):
                    *_, done = await ctx.tick().sample(dut.done)
                    if done:
                        break
                else:
                    raise AssertionError("a run must end")
                header = self.memory[ANSWERS]
                outcomes.append(
                    (
                        header & 0x7FFFFFFF,
                        header >> 31 & 1,
                        [self.memory[ANSWERS + 8 * (i + 1)] for i in range(header >> 32)],
                    )
                )

        simulator = Simulator(self.dut)
        simulator.add_clock(1e-8)
        simulator.add_testbench(bench)
        for process in (self.read_memory, self.write_memory, self.decoder, self.slave, self.watch):
            simulator.add_testbench(process, background=True)
        simulator.run()
        return outcomes


def command(data, last=False):
    return (Operation.LAST_COMMAND if last else Operation.COMMAND, 0, data)


def inverted(*words):
    return [word ^ 0xFFFFFFFF | (i == len(words) - 1) << 32 for i, word in enumerate(words)]


@pytest.mark.parametrize("pace", [1.0, 0.3])
def test_a_run(pace):
    card = Card(pace)
    operations = [
        (Operation.READ, 0x08, 0),
        command(1),
        command(2, last=True),
        (Operation.WRITE, 0x18, 7),
        (Operation.READ, 0x18, 0),
    ]
    ((taken, fault, answers),) = card.run((operations, 8, 400))
    assert (taken, fault) == (5, 0)
    registers = [a for a in answers if a >> 33 & 1]
    assert registers == [2 << 32 | 0xC0FFEE00, 2 << 32 | 7] and card.writes == [(0x18, 7)]
    assert [a for a in answers if not a >> 33 & 1] == inverted(1, 2)
    assert card.commands == [1, 1 << 32 | 2]


@pytest.mark.parametrize("pace", [1.0, 0.3])
def test_packets_come_one_a_run_and_none_is_lost(pace):
    card = Card(pace)
    first, second = [command(5, last=True)], [command(6), command(7, last=True)]
    outcomes = card.run((first, 0, 200), ([], 16, 200), (second, 16, 200), ([], 16, 200))
    assert [o[:2] for o in outcomes] == [(1, 0), (0, 0), (2, 0), (0, 0)]
    assert [o[2] for o in outcomes] == [[], inverted(5), inverted(6, 7), []]


def test_as_many_words_as_wanted():
    outcomes = Card(1.0).run(([command(i, last=i == 3) for i in range(4)], 3, 200), ([], 3, 200))
    assert [o[2] for o in outcomes] == [inverted(0, 1, 2, 3)[:3], inverted(0, 1, 2, 3)[3:]]


def test_a_decoder_that_takes_nothing():
    card = Card(1.0, deaf=True)
    ((taken, _, answers),) = card.run(([(Operation.READ, 0x08, 0), command(1), command(2)], 4, 100))
    assert taken == 1 and len(answers) == 1 and card.commands == []


def test_reset_and_faults():
    card = Card(1.0, fault_at=OPERATIONS + 8)
    ((taken, fault, answers),) = card.run(([(Operation.RESET, 0, 0), (Operation.READ, 0x3C, 0)], 0, 100))
    assert (taken, fault, answers) == (2, 1, [6 << 32]) and card.resets == 16


def test_a_reset_drops_the_word_that_nobody_wanted():
    """It has come from the decoder before, and must not be taken for an answer after it."""
    reset, first = [(Operation.RESET, 0, 0)], [command(5, last=True)]
    outcomes = Card(1.0).run((first, 0, 100), (reset, 0, 100), ([], 8, 100), (first, 8, 100))
    assert [o[2] for o in outcomes] == [[], [], [], inverted(5)]


def test_the_bench_detects_swapped_kinds(monkeypatch):
    """A mover that ends every packet where it should not."""
    monkeypatch.setattr(
        "intaglio.rtl.top.kernel.Operation", IntEnum("Operation", "LAST_COMMAND COMMAND READ WRITE RESET", start=0)
    )
    ((_, _, answers),) = Card(1.0).run(([command(1), command(2, last=True)], 8, 100))
    assert answers != inverted(1, 2)
