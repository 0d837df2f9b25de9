# amaranth: UnusedElaboratable=no
"""The protocol of the link's hardware, frame by frame equal to its model in Python, and its latency."""

import dataclasses
import random

import pytest

from intaglio.host.transport.frames import Decoder, Frame, Kind, encode
from intaglio.host.transport.peer import Peer
from intaglio.rtl.link import framing
from intaglio.rtl.link.endpoint import RESET_CYCLES, Endpoint
from tests.rtl.link.link_bench import DIGEST, Bench, give, simulate


def run_protocol(seed, *, steps=60, depth=16):
    bench = Bench(seed, depth)
    dut, model, rng = bench.dut, bench.model, bench.rng
    registers, executed, resets = {}, [], []
    tag = 0

    def data_frame():
        ahead = rng.choice([0] * 8 + [1, -3, 127, 128, -128])
        words = tuple(rng.getrandbits(32) for _ in range(rng.randint(1, rng.choice([4, 15]))))
        return {
            "kind": Kind.DATA,
            "seq": (model.taken + len(model.commands) + ahead) & 255,
            "words": words,
            "mark": rng.random() < 0.5,
        }

    def frame():
        nonlocal tag
        kind = rng.choice(
            [Kind.DATA] * 5
            + [Kind.STATUS, Kind.RESEND, Kind.READ, Kind.HELLO] * 2
            + [Kind.WRITE, Kind.CLOSED, Kind.MEMORY]
        )
        fields = {"kind": kind}
        if kind == Kind.HELLO:
            fields["words"] = (model.session or 5 if rng.random() < 0.5 else rng.getrandbits(32),)
        elif kind == Kind.DATA:
            fields = data_frame()
        elif kind == Kind.MEMORY:  # of which the hardware has none
            words = tuple(rng.getrandbits(32) for _ in range(rng.choice([0, 3, 15])))
            fields |= {"mark": rng.random() < 0.5, "seq": (tag + 1) & 255, "words": words}
        elif kind in (Kind.READ, Kind.WRITE):
            tag = tag if rng.random() < 0.3 else (tag + 1) & 255
            address = rng.choice([0, 4, 0x18, 0x7FC, 0xFFC])
            fields |= {"seq": tag, "words": (address, rng.getrandbits(32))[: 1 + (kind == Kind.WRITE)]}
        ack = model.oldest + rng.choice([0, 0, model.sent, rng.randrange(len(model.kept) + 1), rng.randrange(256)])
        return Frame(**fields, ack=ack & 255, window=255)

    async def drive(ctx):
        ctx.set(dut.o.ready, 1)
        await bench.send(ctx, encode(Frame(kind=Kind.STATUS)))  # no session yet
        model.receive(Frame(kind=Kind.STATUS))
        await bench.settle(ctx)
        await bench.send(ctx, b"garbage\x7e")
        model.receive(None)
        await bench.settle(ctx)
        for bench.sent in range(steps):
            choice, expected = rng.random(), []
            if choice < 0.6 or model.session is None:
                sent = frame() if model.session is not None else Frame(kind=Kind.HELLO, words=(77,))
                data = bytearray(encode(sent))
                if rng.random() < 0.1:
                    data[rng.randrange(1, len(data) - 2)] ^= 1 << rng.randrange(8)
                before = model.resets
                for found in Decoder().feed(bytes(data)):
                    model.receive(found)
                await bench.send(ctx, data)
                if model.resets != before:
                    resets.append(bench.sent)
                    for _ in range(RESET_CYCLES + 2):
                        await bench.tick(ctx)
                    bench.executed.clear()
                    executed.clear()
                bench.carry_out(registers, executed)
            elif choice < 0.8:
                for word, last in model.commands[: rng.randint(0, 6)]:
                    assert ctx.get(dut.commands.valid) and ctx.get(dut.commands.payload) == word | last << 32
                    ctx.set(dut.commands.ready, 1)
                    await bench.tick(ctx)
                    ctx.set(dut.commands.ready, 0)
                    model.take(1)
                    await bench.settle(ctx)
                assert ctx.get(dut.commands.valid) == (len(model.commands) > 0)
            else:
                ctx.set(dut.o.ready, 0)  # a frame waits for the line while the words come
                request = Frame(kind=Kind.RESEND, ack=model.oldest)
                model.receive(request)
                await bench.send(ctx, encode(request))
                await ctx.tick().repeat(30)
                expected.append(model.next_frame())
                for _ in range(rng.randint(1, 20)):
                    word, last = rng.getrandbits(32), rng.random() < 0.2
                    ctx.set(dut.results.payload, word | last << 32)
                    ctx.set(dut.results.valid, 1)
                    assert ctx.get(dut.results.ready) == (model.room > 0)
                    if model.room:
                        model.put(word, last)
                    await ctx.tick()
                ctx.set(dut.results.valid, 0)
                ctx.set(dut.o.ready, 1)
            await bench.settle(ctx, expected)
            assert bench.executed == executed and bench.registers == registers

    simulate(dut, drive, limit=2_000_000, background=[bench.registers_bus])
    assert bench.sent == steps - 1 and resets
    return bench


@pytest.mark.parametrize("cause, cycles", [("request", 7), ("command", 5), ("one result", 6), ("three results", 8)])
def test_latency_of_the_endpoint(cause, cycles):
    dut, found = Endpoint(DIGEST, depth=16), []

    async def bench(ctx):
        ctx.set(dut.o.ready, 1)
        for byte in encode(Frame(kind=Kind.HELLO, words=(77,))):
            await give(ctx, dut, byte)
        await ctx.tick().repeat(400)  # the answer has gone
        words = {"one result": [1 << 32], "three results": [5, 6, 7 | 1 << 32]}.get(cause, [])
        if not words:
            for byte in encode(Frame(kind=Kind.RESEND) if cause == "request" else Frame(kind=Kind.DATA, words=(1,))):
                await give(ctx, dut, byte)
            found.append(1)
        while not ctx.get(dut.commands.valid if cause == "command" else dut.o.valid):
            ctx.set(dut.results.valid, bool(words))
            ctx.set(dut.results.payload, words.pop(0) if words else 0)
            await ctx.tick()
            found.append(1)

    simulate(dut, bench)
    assert len(found) == cycles


def test_a_full_buffer_takes_no_word_too_many():
    """Words at every pace, also while others are acknowledged: as many as fit are taken, each is sent once."""
    rng, bench, taken, paces = random.Random(8), Bench(3), 0, [0.0]
    dut, depth = bench.dut, 16

    async def source(ctx):
        nonlocal taken
        while True:
            valid = rng.random() < paces[-1]
            ctx.set(dut.results.valid, valid)
            ctx.set(dut.results.payload, taken)
            taken += valid and ctx.get(dut.results.ready)
            await ctx.tick()

    async def drive(ctx):
        ctx.set(dut.o.ready, 1)
        await bench.send(ctx, encode(Frame(kind=Kind.HELLO, words=(77,))))
        acknowledged = 0
        for pace in (1.0, 0.5, 0.9, 0.2, 1.0, 1.0):
            for _ in range(2):  # the second frees nothing, and the first words come while it is carried out
                await bench.send(ctx, encode(Frame(kind=Kind.STATUS, ack=acknowledged)))
            paces.append(pace)
            for _ in range(3000):  # time to fill the buffer and to send all
                await bench.tick(ctx)
            assert taken - acknowledged == depth and not ctx.get(dut.results.ready)
            acknowledged += rng.randint(1, depth)
            paces.append(rng.choice([0.0, 1.0]))

    simulate(dut, drive, background=[source])
    words = [word for frame in bench.frames if frame.kind == Kind.DATA for word in frame.words]
    assert words == [*range(len(words))] and len(words) > 3 * depth


def test_the_hardware_has_no_memory():
    """A frame of memory is answered by STATUS, one that no other frame is as long as by RESEND; neither changes anything."""
    bench = Bench(4)

    async def drive(ctx):
        ctx.set(bench.dut.o.ready, 1)
        await bench.send(ctx, encode(Frame(kind=Kind.HELLO, words=(77,))))
        for words in ((), (0, 0, 1), tuple(range(15)), tuple(range(16)), tuple(range(130))):
            for mark in (False, True):
                await bench.send(ctx, encode(Frame(kind=Kind.MEMORY, mark=mark, seq=9, words=words)))
                for _ in range(500):
                    await bench.tick(ctx)
        assert not ctx.get(bench.dut.commands.valid)

    simulate(bench.dut, drive, background=[bench.registers_bus])
    assert [frame.kind for frame in bench.frames] == [Kind.HELLO] + [Kind.STATUS] * 6 + [Kind.RESEND] * 4
    assert not bench.executed and all(frame.window == 16 and not frame.ack for frame in bench.frames)


@pytest.mark.parametrize("seed", range(2))
def test_protocol_equals_its_model(seed):
    run_protocol(seed)


@pytest.mark.parametrize("mutation", ["CRC not checked", "acknowledgement one too far"])
def test_the_protocol_test_can_fail(monkeypatch, mutation):
    if mutation == "CRC not checked":
        elaborate = framing.SerialCrc.elaborate

        def careless(self, platform):
            module = elaborate(self, platform)
            module.d.sync += self.match.eq(1)
            return module

        monkeypatch.setattr(framing.SerialCrc, "elaborate", careless)
    else:
        acknowledge = Peer._acknowledge
        monkeypatch.setattr(
            Peer,
            "_acknowledge",
            lambda self, frame: acknowledge(self, dataclasses.replace(frame, ack=frame.ack + 1 & 255)),
        )
    with pytest.raises(AssertionError):
        run_protocol(0)
