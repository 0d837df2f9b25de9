"""Frames of the link (docs/link.md): bytes to frames, frames to bytes, and their CRC, a bit a cycle."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import crc, data, stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["ESCAPE", "FLAG", "HEADER", "MAX_WORDS", "Deframer", "Framer", "SerialCrc"]

FLAG, ESCAPE, FLIP = 0x7E, 0x7D, 0x20
MAX_WORDS = 15
HEADER = data.StructLayout({"kind": 3, "mark": 1, "length": 4, "seq": 8, "ack": 8, "window": 8})

# CRC-32/ISO-HDLC over single bits, the least significant of each byte first.
_CRC32 = crc.Algorithm(
    crc_width=32,
    polynomial=0x04C11DB7,
    initial_crc=0xFFFFFFFF,
    reflect_input=False,
    reflect_output=True,
    xor_output=0xFFFFFFFF,
)


class SerialCrc(wiring.Component):
    """CRC-32 of bytes, one bit a cycle: a few dozen gates, where a byte a cycle takes hundreds.

    Members
    -------
    clear : In(1)
        Begin anew; not together with ``add``.
    add : In(1), byte : In(8)
        Add a byte; only while not ``busy``.
    busy : Out(1)
        For 9 cycles after ``add``.
    crc : Out(32), match : Out(1)
        The CRC so far, and whether the bytes so far end with the CRC of those before; valid while not ``busy``.
    """

    def __init__(self):
        super().__init__({"clear": In(1), "add": In(1), "byte": In(8), "busy": Out(1), "crc": Out(32), "match": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.processor = processor = _CRC32(data_width=1).create()
        left, bits, running = Signal(range(8)), Signal(8), Signal()
        m.d.comb += [
            processor.start.eq(self.clear),
            processor.valid.eq(running),
            processor.data.eq(bits[0]),
            self.crc.eq(processor.crc),
        ]
        m.d.sync += [
            self.match.eq(processor.match_detected),
            self.busy.eq(running),
        ]  # 32 bits compared: from a register
        with m.If(self.add):
            m.d.sync += [left.eq(7), bits.eq(self.byte), running.eq(1), self.busy.eq(1)]
        with m.Elif(running):
            m.d.sync += [left.eq(left - 1), bits.eq(bits >> 1), running.eq(left != 0)]
        return m


class Deframer(wiring.Component):
    """Frames out of bytes. Words are given out before the frame is known to be good: what is done with them must be undone
    if it is not.

    Members
    -------
    i : In(stream of 8 bits)
    broken : In(1)
        A byte was lost here: the frame that it is in is bad.
    header : Out(HEADER)
        Of the frame under way, valid from the cycle before ``word_valid`` and ``done`` on.
    word : Out(32), index : Out(4), word_valid : Out(1)
        A word of the payload, for one cycle.
    first, second : Out(32)
        The first word, and the latest of the others, until the next frame's come; valid from the cycle before ``done`` on.
    done : Out(1), good : Out(1)
        A frame, or noise, has ended; it was a good frame.

    Throughput: a byte in at most 12 cycles. Latency: ``word_valid`` and ``done`` come 2 cycles after the byte that ends the word or the
    frame is taken. Every output is a register.
    """

    def __init__(self):
        super().__init__(
            {
                "i": In(stream.Signature(8)),
                "broken": In(1),
                "header": Out(HEADER),
                "word": Out(32),
                "index": Out(4),
                "word_valid": Out(1),
                "first": Out(32),
                "second": Out(32),
                "done": Out(1),
                "good": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.crc = check = SerialCrc()
        byte, fresh, flag, escape = (
            Signal(8),
            Signal(),
            Signal(),
            Signal(),
        )  # the byte taken in the last cycle, and what it is
        ready = Signal(init=1)
        m.d.comb += self.i.ready.eq(ready)
        m.d.sync += [
            fresh.eq(self.i.valid & ready),
            byte.eq(self.i.payload),
            flag.eq(self.i.payload == FLAG),
            escape.eq(self.i.payload == ESCAPE),
            ready.eq((ready & ~self.i.valid) | (~ready & ~fresh & ~check.busy)),
        ]
        count, escaped, bad = (
            Signal(7),
            Signal(),
            Signal(),
        )  # count: bytes so far; it stays at 127, more than any frame has
        words = count[2:]
        value, following = Signal(8), Signal(32)
        whole, payload = (
            Signal(),
            Signal(),
        )  # the count is that of a frame of this length; the word under way is of the payload
        m.d.comb += [value.eq(byte ^ (escaped << 5)), check.byte.eq(value), following.eq(Cat(self.word[8:], value))]
        m.d.sync += [
            self.done.eq(0),
            self.word_valid.eq(0),
            self.index.eq(words - 1),
            whole.eq((count[:2] == 0) & (words == self.header.length + 2)),
            payload.eq((words != 0) & (words <= self.header.length)),
            self.good.eq(~bad & ~self.broken & ~escaped & check.match & whole),
        ]
        with m.If(self.word_valid):
            with m.If(self.index == 0):
                m.d.sync += self.first.eq(self.word)
            with m.Else():
                m.d.sync += self.second.eq(self.word)
        with m.If(self.broken):
            m.d.sync += bad.eq(1)
        with m.If(fresh):
            with m.If(flag):
                m.d.comb += check.clear.eq(1)
                m.d.sync += [self.done.eq((count != 0) | bad), count.eq(0), bad.eq(0), escaped.eq(0)]
            with m.Elif(escape & ~escaped):
                m.d.sync += escaped.eq(1)
            with m.Else():
                m.d.comb += check.add.eq(1)
                m.d.sync += [escaped.eq(0), self.word.eq(following)]
                with m.If(~count.all()):
                    m.d.sync += count.eq(count + 1)
                with m.If(count[:2] == 3):
                    with m.If(words == 0):
                        m.d.sync += self.header.eq(following)
                    m.d.sync += self.word_valid.eq(payload)
        return m


class Framer(wiring.Component):
    """Bytes of a frame.

    Members
    -------
    start : In(1), header : In(HEADER)
        Begin a frame; only while not ``busy``.
    busy : Out(1)
        Until the last byte has been taken.
    index : Out(4), word : In(32)
        The number of the word of payload that is wanted, and the word, 3 cycles later at the latest; ``step`` is high in the first cycle
        after one was taken.
    o : Out(stream of 8 bits)

    Throughput: a byte in at most 11 cycles if each is taken at once; ``10 + 4 * length`` bytes and one for each escape.
    Latency: ``o`` is valid 2 cycles after ``start``. Every output is a register.
    """

    def __init__(self):
        super().__init__(
            {
                "start": In(1),
                "header": In(HEADER),
                "busy": Out(1),
                "index": Out(4),
                "step": Out(1),
                "word": In(32),
                "o": Out(stream.Signature(8)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.crc = check = SerialCrc()
        shift, lane, length, ending = Signal(32), Signal(2), Signal(4), Signal()
        special, free, more = Signal(), Signal(), Signal()
        m.d.comb += [free.eq(~self.o.valid), check.byte.eq(shift[:8])]
        m.d.sync += [self.step.eq(0), more.eq(self.index != length)]
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)

        def put(byte):
            m.d.sync += [self.o.valid.eq(1), self.o.payload.eq(byte)]

        def next_byte():
            m.d.sync += [shift.eq(shift >> 8), lane.eq(lane + 1)]
            m.next = "LOOK"
            with m.If(lane == 3):
                m.next = "LOAD"

        with m.FSM(name="state"):
            with m.State("IDLE"):
                with m.If(self.start):
                    m.d.sync += [
                        shift.eq(self.header),
                        length.eq(self.header.length),
                        self.index.eq(0),
                        lane.eq(0),
                        ending.eq(0),
                        self.busy.eq(1),
                    ]
                    m.next = "OPEN"
            with m.State("OPEN"):
                m.d.comb += check.clear.eq(1)
                put(FLAG)
                m.next = "LOOK"
            with m.State("LOOK"):
                m.d.sync += special.eq((shift[:8] == FLAG) | (shift[:8] == ESCAPE))
                with m.If(~check.busy):
                    m.d.comb += check.add.eq(~ending)
                    m.next = "BYTE"
            with m.State("BYTE"):
                with m.If(free):
                    put(Mux(special, ESCAPE, shift[:8]))
                    with m.If(special):
                        m.next = "ESCAPED"
                    with m.Else():
                        next_byte()
            with m.State("ESCAPED"):
                with m.If(free):
                    put(shift[:8] ^ FLIP)
                    next_byte()
            with m.State("LOAD"):
                with m.If(ending):
                    m.next = "CLOSE"
                with m.Elif(more):
                    m.d.sync += [shift.eq(self.word), self.index.eq(self.index + 1), self.step.eq(1)]
                    m.next = "LOOK"
                with m.Elif(~check.busy):
                    m.d.sync += [shift.eq(check.crc), ending.eq(1)]
                    m.next = "LOOK"
            with m.State("CLOSE"):
                with m.If(free):
                    put(FLAG)
                    m.next = "LAST"
            with m.State("LAST"):
                with m.If(free):
                    m.d.sync += self.busy.eq(0)
                    m.next = "IDLE"
        return m
