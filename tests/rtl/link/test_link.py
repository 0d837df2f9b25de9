# amaranth: UnusedElaboratable=no
"""The link's hardware: UART and frames."""

import random

import pytest

from intaglio.host.transport import frames
from intaglio.host.transport.frames import Decoder, Frame, Kind, encode, frame_of
from intaglio.rtl.link import endpoint, framing
from intaglio.rtl.link.framing import HEADER, Deframer, Framer
from intaglio.rtl.link.uart import UartReceiver, UartTransmitter, uart_divisor
from tests.rtl.link.link_bench import give, random_frame, simulate


def test_both_sides_have_the_same_numbers():
    assert [*frames.Kind] == [*endpoint.Kind] and [k.name for k in frames.Kind] == [k.name for k in endpoint.Kind]
    assert (frames.LINK_MAGIC, frames.LINK_VERSION, frames.MAX_WORDS, frames.FLAG, frames.ESCAPE) == (
        endpoint.LINK_MAGIC,
        endpoint.LINK_VERSION,
        framing.MAX_WORDS,
        framing.FLAG,
        framing.ESCAPE,
    )


# UART


@pytest.mark.parametrize(
    "clock_hz, baud, divisor",
    [
        (80_000_000, 2_000_000, 40),
        (25_000_000, 3_000_000, None),
        (80_000_000, 3_000_000, 27),
        (12_000_000, 3_000_000, 4),
        (10_000_000, 3_000_000, None),
        (1e9, 9600, None),
    ],
)
def test_divisor(clock_hz, baud, divisor):
    if divisor is None:
        with pytest.raises(
            ValueError, match=r"baud must be within 2% of clock_hz / \d+ = |clock_hz / baud must be in 4..65535, not"
        ):
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


@pytest.mark.parametrize(
    "divisor, mismatch", [(4, 0), (5, -0.02), (5, 0.02), (8, -0.035), (8, 0.035), (27, -0.04), (27, 0.04)]
)
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
        near = clean[max(0, cycle - 3) : cycle + 4]
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
    damaged = [data[:i] + bytes([data[i] ^ 1 << b]) + data[i + 1 :] for i in range(len(data)) for b in range(8)]
    damaged += [data[:i] + data[i + 1 :] for i in range(len(data))] + [
        data[:i] + data[i : i + 1] + data[i:] for i in range(len(data))
    ]
    for bad in damaged:
        good = [f for f in Decoder().feed(bad + b"\x7e") if f is not None]
        assert good in ([], [frame])
    assert frame_of(b"\x7d" + data[1:-1] + b"\x7d") is None


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
                got.append(
                    Frame(
                        kind=Kind(head.kind),
                        mark=bool(head.mark),
                        seq=head.seq,
                        ack=head.ack,
                        window=head.window,
                        words=tuple(words),
                    )
                    if good
                    else None
                )
                if good and words:
                    assert (ctx.get(dut.first), ctx.get(dut.second)) == (
                        words[0],
                        words[-1] if words[1:] else ctx.get(dut.second),
                    )
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
            if index in (
                8,
                13,
                len(data) - 1,
            ):  # the ends of the words, the second of which has an escape, and of the frame
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
            head = HEADER.const(
                {
                    "kind": frame.kind,
                    "mark": frame.mark,
                    "length": len(frame.words),
                    "seq": frame.seq,
                    "ack": frame.ack,
                    "window": frame.window,
                }
            )
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
