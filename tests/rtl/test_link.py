# amaranth: UnusedElaboratable=no
"""The link's hardware: UART, frames, and the protocol, frame by frame equal to its model in Python."""

import dataclasses
import random

import pytest
from amaranth.sim import Simulator

from intaglio.host.transport import frames
from intaglio.host.transport.frames import Decoder, Frame, Kind, encode, frame_of
from intaglio.host.transport.peer import Peer
from intaglio.rtl.link import endpoint, framing
from intaglio.rtl.link.endpoint import RESET_CYCLES, Endpoint
from intaglio.rtl.link.framing import HEADER, Deframer, Framer
from intaglio.rtl.link.uart import UartReceiver, UartTransmitter, uart_divisor

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


def test_both_sides_have_the_same_numbers():
    assert [*frames.Kind] == [*endpoint.Kind] and [k.name for k in frames.Kind] == [k.name for k in endpoint.Kind]
    assert (frames.LINK_MAGIC, frames.LINK_VERSION, frames.MAX_WORDS, frames.FLAG, frames.ESCAPE) == (
        endpoint.LINK_MAGIC, endpoint.LINK_VERSION, framing.MAX_WORDS, framing.FLAG, framing.ESCAPE)


# UART

@pytest.mark.parametrize("clock_hz, baud, divisor", [
    (80_000_000, 2_000_000, 40), (25_000_000, 3_000_000, None), (80_000_000, 3_000_000, 27), (12_000_000, 3_000_000, 4),
    (10_000_000, 3_000_000, None), (1e9, 9600, None)])
def test_divisor(clock_hz, baud, divisor):
    if divisor is None:
        with pytest.raises(ValueError, match=r"baud must be within 2% of clock_hz / \d+ = |clock_hz / baud must be in 4..65535, not"):
            uart_divisor(clock_hz, baud)
    else:
        assert uart_divisor(clock_hz, baud) == divisor


def line_of(data, bit_time, *, stop=1):
    """Level of a line over cycles for bytes sent at ``bit_time`` cycles a bit, which need not be whole."""
    bits = [bit for byte in data for bit in (0, *(byte >> i & 1 for i in range(8)), stop)]
    return [bits[int(t / bit_time)] for t in range(int(len(bits) * bit_time))]


def receive(divisor, levels):
    """What a receiver makes of ``levels``: list of (cycle, byte), list of cycles of errors."""
    dut, got, errors = UartReceiver(divisor), [], []

    async def bench(ctx):
        ctx.set(dut.o.ready, 1)
        for cycle, level in enumerate([*levels, *[1] * 12 * divisor]):
            ctx.set(dut.rx, level)
            await ctx.tick()
            if ctx.get(dut.o.valid):
                got.append((cycle, ctx.get(dut.o.payload)))
            if ctx.get(dut.error):
                errors.append(cycle)

    simulate(dut, bench)
    return got, errors


@pytest.mark.parametrize("divisor, mismatch", [(4, 0), (5, -0.02), (5, 0.02), (8, -0.035), (8, 0.035), (27, -0.04), (27, 0.04)])
def test_receiver_bears_other_clocks(divisor, mismatch):
    data = bytes([0x00, 0xFF, 0x55, 0xAA, 0x7E, 0x01, 0x80])
    got, errors = receive(divisor, line_of(data, divisor * (1 + mismatch)))
    assert bytes(byte for _, byte in got) == data and not errors
    got, _ = receive(divisor, line_of(data, divisor * 1.12))
    assert bytes(byte for _, byte in got) != data  # the test can tell


@pytest.mark.parametrize("divisor", [4, 8, 9])
def test_latency_of_the_receiver(divisor):
    got, _ = receive(divisor, line_of(b"\x5a", divisor))
    assert got[0][0] + 1 == int(9.5 * divisor) + 5


def test_receiver_ignores_glitches_and_reports_breaks():
    levels = line_of(b"\xc3" * 20, 9)
    clean = [*[1] * 30, *levels]
    rng, noisy, last = random.Random(1), [], -9
    for cycle, level in enumerate(clean):  # single cycles, away from each other and from edges of the line
        near = clean[max(0, cycle - 3):cycle + 4]
        flip = cycle - last > 4 and len(set(near)) == 1 and rng.random() < 0.3
        last = cycle if flip else last
        noisy.append(level ^ flip)
    assert sum(a != b for a, b in zip(clean, noisy, strict=True)) > 50
    got, errors = receive(9, noisy)
    assert bytes(byte for _, byte in got) == b"\xc3" * 20 and not errors
    got, errors = receive(8, [*[1] * 20, *[0] * 300, *[1] * 100, *line_of(b"\x42", 8)])  # a break
    assert [byte for _, byte in got] == [0x42] and len(errors) == 1


def test_a_byte_not_taken_is_an_error():
    dut, errors = UartReceiver(4), 0

    async def bench(ctx):
        nonlocal errors
        for level in [*line_of(b"\x01\x02", 4), *[1] * 30]:
            ctx.set(dut.rx, level)
            await ctx.tick()
            errors += ctx.get(dut.error)
        assert ctx.get(dut.o.payload) == 2

    simulate(dut, bench)
    assert errors == 1


@pytest.mark.parametrize("divisor", [4, 7])
def test_transmitter(divisor):
    dut, data, levels = UartTransmitter(divisor), bytes([0x00, 0xFF, 0x7E, 0x35]), []

    async def bench(ctx):
        waiting = list(data)
        for _ in range(len(data) * 10 * divisor + 30):
            ctx.set(dut.i.valid, bool(waiting))
            ctx.set(dut.i.payload, waiting[0] if waiting else 0)
            taken = waiting and ctx.get(dut.i.ready)
            await ctx.tick()
            levels.append(ctx.get(dut.tx))
            if taken:
                waiting.pop(0)

    simulate(dut, bench)
    expected = line_of(data, divisor)
    assert levels == [*expected, *[1] * (len(levels) - len(expected))]  # from the first cycle on, without gaps


# Frames

def random_frame(rng, kind=None):
    special = [0x7E, 0x7D, 0x5E, 0x5D, 0x20, 0, 0xFF]
    byte = lambda: rng.choice(special) if rng.random() < 0.4 else rng.randrange(256)  # noqa: E731
    words = tuple(int.from_bytes(bytes(byte() for _ in range(4)), "little") for _ in range(rng.choice([0, 1, 2, 4, 15])))
    return Frame(kind=kind or rng.choice(list(Kind)), mark=rng.random() < 0.5, seq=byte(), ack=byte(), window=byte(), words=words)


def test_codec():
    rng = random.Random(2)
    sent = [random_frame(rng) for _ in range(300)]
    assert Decoder().feed(b"".join(map(encode, sent))) == sent
    decoder, got = Decoder(), []
    for byte in b"noise" + b"".join(map(encode, sent)):
        got += decoder.feed(bytes([byte]))
    assert got == [None, *sent]
    size = {n: len(encode(Frame(kind=Kind.DATA, words=(0x01010101,) * n))) for n in (0, 1, 15)}
    assert size[0] in (10, 11) and size[15] - size[0] in (59, 60, 61)  # the CRC may need escapes
    long = Decoder()
    assert long.feed(b"\x7e" + b"\x01" * 100000 + b"\x7e") == [None] and not long._rest


def test_every_single_damage_is_seen():
    """Each bit flipped, byte lost, byte doubled: never another good frame."""
    frame = Frame(kind=Kind.DATA, seq=0x7E, ack=0x7D, window=3, words=(0x11223344, 0x7E7D5E5D))
    data = encode(frame)
    damaged = [data[:i] + bytes([data[i] ^ 1 << b]) + data[i + 1:] for i in range(len(data)) for b in range(8)]
    damaged += [data[:i] + data[i + 1:] for i in range(len(data))] + [data[:i] + data[i:i + 1] + data[i:] for i in range(len(data))]
    for bad in damaged:
        good = [f for f in Decoder().feed(bad + b"\x7e") if f is not None]
        assert good in ([], [frame])
    assert frame_of(b"\x7d" + data[1:-1] + b"\x7d") is None


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


def test_deframer():
    rng, dut, got = random.Random(3), Deframer(), []
    sent, data, expected = [], bytearray(), []
    for _ in range(70):
        frame = random_frame(rng)
        piece = bytearray(encode(frame))
        damage = rng.random()
        if damage < 0.15:
            piece[rng.randrange(1, len(piece) - 1)] ^= 1 << rng.randrange(8)
        elif damage < 0.25:
            del piece[rng.randrange(len(piece))]
        elif damage < 0.3:
            piece += bytes(rng.randrange(256) for _ in range(rng.randrange(200)))
        data += piece
        sent.append(frame)
    data += b"\x7e"
    expected = [f for f in Decoder().feed(bytes(data))]

    async def bench(ctx):
        for byte in data:
            await give(ctx, dut, byte)
        await ctx.tick().repeat(3)

    async def watch(ctx):
        words = []
        while True:
            await ctx.tick()
            if ctx.get(dut.word_valid):
                assert ctx.get(dut.index) == len(words)
                words.append(ctx.get(dut.word))
            if ctx.get(dut.done):
                head = ctx.get(dut.header)
                good = ctx.get(dut.good)
                got.append(Frame(kind=Kind(head.kind), mark=bool(head.mark), seq=head.seq, ack=head.ack, window=head.window,
                                 words=tuple(words)) if good else None)
                if good and words:
                    assert (ctx.get(dut.first), ctx.get(dut.second)) == (words[0], words[-1] if words[1:] else ctx.get(dut.second))
                words = []

    simulate(dut, bench, background=[watch])
    assert got == expected and 10 < got.count(None) < 50


def test_a_lost_byte_makes_a_frame_bad():
    """Each frame without its first flag. The break is seen while byte 5, or the closing flag, is taken or in the cycle after."""
    data = encode(Frame(kind=Kind.STATUS))[1:]

    def frames(at, delay):
        dut, seen = Deframer(), []

        async def bench(ctx):
            for index, byte in enumerate(data * 2):
                ctx.set(dut.broken, index == at and delay == 0)
                await give(ctx, dut, byte)
                ctx.set(dut.broken, index == at and delay == 1)
                await ctx.tick()
                ctx.set(dut.broken, 0)
                if byte == framing.FLAG:
                    assert ctx.get(dut.done)
                    seen.append(ctx.get(dut.good))

        simulate(dut, bench)
        return seen

    for at, delay in ((5, 0), (5, 1), (len(data) - 1, 0), (len(data) - 1, 1)):
        assert frames(at, delay) == [0, 1]
    assert frames(len(data), 0) == [1, 0]


def test_latency_of_the_deframer():
    dut, data, waits = Deframer(), encode(Frame(kind=Kind.DATA, words=(0x01020304, 0x7E050607))), []

    async def bench(ctx):
        for index, byte in enumerate(data):
            waits.append(await give(ctx, dut, byte))
            if index in (8, 13, len(data) - 1):  # the ends of the words, the second of which has an escape, and of the frame
                assert not ctx.get(dut.word_valid | dut.done)
                await ctx.tick()
                waits[-1] -= 1
                assert ctx.get(dut.done if byte == framing.FLAG else dut.word_valid)
                await ctx.tick()
                assert not ctx.get(dut.word_valid | dut.done)

    simulate(dut, bench)
    assert max(waits) == 11


def test_framer():
    rng, dut = random.Random(4), Framer()
    sent, data = [random_frame(rng) for _ in range(40)], bytearray()

    async def bench(ctx):
        for frame in sent:
            head = HEADER.const({"kind": frame.kind, "mark": frame.mark, "length": len(frame.words), "seq": frame.seq, "ack": frame.ack,
                                 "window": frame.window})
            ctx.set(dut.header, head)
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            eager, asked = frame is sent[0], [0] * 3
            cycle = last = 0
            while ctx.get(dut.busy):
                asked.append(ctx.get(dut.index))
                ctx.set(dut.word, (*frame.words, *[0] * 16)[asked[-4]])
                ctx.set(dut.o.ready, eager or rng.random() < 0.8)
                if ctx.get(dut.o.valid) and ctx.get(dut.o.ready):
                    assert not eager or (cycle == 1 if last == 0 else cycle - last <= 11)
                    data.append(ctx.get(dut.o.payload))
                    last = cycle
                await ctx.tick()
                cycle += 1

    simulate(dut, bench)
    assert bytes(data) == b"".join(map(encode, sent))


# Protocol

class Bench:
    """An Endpoint with a decoder that takes commands and gives results when told, and the same in Python."""

    def __init__(self, seed, depth=16):
        self.rng, self.dut, self.model = random.Random(seed), Endpoint(DIGEST, depth=depth, simulate=True), Peer(DIGEST, depth=depth)
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
                for channels in (("aw", "w"),) if order == 0 else (("aw",), ("w",)) if order == 1 else (("w",), ("aw",)):
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
            self.model.answer(registers.get(address, 0xDEAD0000 | address), fault=kind == Kind.READ and address == 0xFFC)


def run_protocol(seed, *, steps=60, depth=16):
    bench = Bench(seed, depth)
    dut, model, rng = bench.dut, bench.model, bench.rng
    registers, executed, resets = {}, [], []
    tag = 0

    def data_frame():
        ahead = rng.choice([0] * 8 + [1, -3, 127, 128, -128])
        words = tuple(rng.getrandbits(32) for _ in range(rng.randint(1, rng.choice([4, 15]))))
        return {"kind": Kind.DATA, "seq": (model.taken + len(model.commands) + ahead) & 255, "words": words, "mark": rng.random() < 0.5}

    def frame():
        nonlocal tag
        kind = rng.choice([Kind.DATA] * 5 + [Kind.STATUS, Kind.RESEND, Kind.READ, Kind.HELLO] * 2 + [Kind.WRITE, Kind.CLOSED])
        fields = {"kind": kind}
        if kind == Kind.HELLO:
            fields["words"] = (model.session or 5 if rng.random() < 0.5 else rng.getrandbits(32),)
        elif kind == Kind.DATA:
            fields = data_frame()
        elif kind in (Kind.READ, Kind.WRITE):
            tag = tag if rng.random() < 0.3 else (tag + 1) & 255
            address = rng.choice([0, 4, 0x18, 0x7FC, 0xFFC])
            fields |= {"seq": tag, "words": (address, rng.getrandbits(32))[:1 + (kind == Kind.WRITE)]}
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
                for word, last in model.commands[:rng.randint(0, 6)]:
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
    dut, found = Endpoint(DIGEST, depth=16, simulate=True), []

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
        monkeypatch.setattr(Peer, "_acknowledge", lambda self, frame: acknowledge(
            self, dataclasses.replace(frame, ack=frame.ack + 1 & 255)))
    with pytest.raises(AssertionError):
        run_protocol(0)
