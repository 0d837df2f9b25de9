"""The device's end of the link (docs/link.md): frames on one side, the decoder's streams and registers on the other."""

from enum import IntEnum

from amaranth.hdl import Cat, Const, Module, Mux, ResetInserter, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.bus.axi import axi4_lite
from intaglio.rtl.bus.register_master import RegisterMaster
from intaglio.rtl.bus.registers import REGISTER_ADDRESS_BITS
from intaglio.rtl.link.buffer import WordBuffer, check_depth
from intaglio.rtl.link.framing import MAX_WORDS, Deframer, Framer

__all__ = ["LINK_MAGIC", "LINK_VERSION", "RESET_CYCLES", "Endpoint", "Kind"]

LINK_MAGIC, LINK_VERSION = 0x494E4C4B, 1  # "INLK"
RESET_CYCLES = 16


class Kind(IntEnum):
    MEMORY, HELLO, STATUS, RESEND, DATA, READ, WRITE, CLOSED = range(8)


class _Session:
    """State of the session. Words are numbered modulo 256: taken <= accepted commands; oldest kept <= next to send <= written results.

    ``ack`` and ``room`` are those of the last cycle, both of the same; ``kept`` lacks a word written in the last cycle.
    """

    def __init__(self):
        self.begin = Signal(name="begin")  # a new session: everything but the frame being sent is as after power-up
        self.opened, self.number = Signal(name="opened"), Signal(32, name="session")
        self.accepted, self.taken = Signal(8, name="accepted"), Signal(8, name="taken")
        self.oldest, self.sending, self.written = (
            Signal(8, name="oldest"),
            Signal(8, name="sending"),
            Signal(8, name="written"),
        )
        self.ack, self.room, self.kept = Signal(8, name="ack"), Signal(8, name="room"), Signal(8, name="kept")
        self.wrote = Signal(name="wrote")  # a result word, in the last cycle
        self.want = {name: Signal(name=f"want_{name}") for name in ("hello", "answer", "status", "resend", "closed")}


class Endpoint(wiring.Component):
    """Protocol of the device.

    Parameters
    ----------
    digest : int
        32 bits, told in the answer to HELLO.
    depth : int
        Words of each buffer, a power of 2 in 16..128.

    Members
    -------
    i, o : streams of 8 bits
        Bytes from and to the host.
    broken : In(1)
        A byte from the host was lost here.
    commands : Out, results : In
        Streams of 33 bits: a word, and above it whether it ends a packet. Both ``commands.payload`` and ``valid`` and ``results.ready``
        are registers. ``results`` takes a word a cycle, ``commands`` gives one in two.
    registers : AXI4-Lite, the master's side (:func:`~intaglio.rtl.bus.axi.axi4_lite`).
    reset : Out(1)
        Reset of the decoder, high for ``RESET_CYCLES`` from the cycle after the beginning of a session on.

    Latency
    -------
    A command word is offered 5 cycles after the closing flag of its frame is taken. A frame begins 4 cycles after its cause if nothing is
    being sent, so 7 after the closing flag of a frame that asks for it; one of result words ``length + 5`` cycles after the first word.

    Throughput: that of the bytes (:class:`Deframer`, :class:`Framer`).
    """

    def __init__(self, digest, *, depth=32):
        if not isinstance(digest, int) or not 0 <= digest <= 0xFFFFFFFF:
            raise ValueError(f"digest must be an integer of 32 bits, not {digest!r}")
        check_depth(depth)
        self.digest, self.depth = digest, depth
        self.command_buffer, self.result_buffer = (WordBuffer(33, depth) for _ in range(2))
        super().__init__(
            {
                "i": In(stream.Signature(8)),
                "o": Out(stream.Signature(8)),
                "broken": In(1),
                "commands": Out(stream.Signature(33)),
                "results": In(stream.Signature(33)),
                "reset": Out(1),
                "registers": Out(axi4_lite(REGISTER_ADDRESS_BITS)),
            }
        )

    def elaborate(self, platform):
        m, s = Module(), _Session()
        rx, tx, bus = Deframer(), Framer(), RegisterMaster(REGISTER_ADDRESS_BITS)
        m.submodules.deframer, m.submodules.framer, m.submodules.registers = rx, tx, ResetInserter(s.begin)(bus)
        m.submodules.command_buffer, m.submodules.result_buffer = self.command_buffer, self.result_buffer
        m.d.comb += [
            rx.i.payload.eq(self.i.payload),
            rx.i.valid.eq(self.i.valid),
            self.i.ready.eq(rx.i.ready),
            rx.broken.eq(self.broken),
            self.o.payload.eq(tx.o.payload),
            self.o.valid.eq(tx.o.valid),
            tx.o.ready.eq(self.o.ready),
        ]
        m.d.sync += [s.room.eq(self.depth - (s.accepted - s.taken)[:8]), s.ack.eq(s.accepted)]
        wiring.connect(m, bus.bus, wiring.flipped(self.registers))
        resetting = Signal(range(RESET_CYCLES + 1))
        m.d.comb += self.reset.eq(resetting != 0)
        with m.If(self.reset):
            m.d.sync += resetting.eq(resetting - 1)
        # Where two write one register in the same cycle, the later holds: what arrives is never lost to what is being sent.
        self._send(m, s, rx, tx, bus)
        self._streams(m, s)
        self._receive(m, s, rx, bus)
        with m.If(s.begin):
            m.d.sync += [
                s.opened.eq(1),
                resetting.eq(RESET_CYCLES),
                s.number.eq(rx.first),
                *(count.eq(0) for count in (s.accepted, s.taken, s.oldest, s.sending, s.written, s.kept)),
                s.wrote.eq(0),
                self.commands.valid.eq(0),
                self.results.ready.eq(0),
                *(flag.eq(name == "hello") for name, flag in s.want.items()),
            ]
        return m

    def _send(self, m, s, rx, tx, bus):
        """Choose the next frame, count the words of a DATA frame, and send it."""
        want, results = s.want, self.result_buffer
        cursor, count, mark, kind, seq, stale = Signal(8), Signal(4), Signal(), Signal(3), Signal(8), Signal()
        hello = Signal(32)
        with m.Switch(tx.index):
            for index, word in enumerate(
                (Const(LINK_MAGIC, 32), Const(LINK_VERSION, 32), s.number, Const(self.digest, 32))
            ):
                with m.Case(index):
                    m.d.comb += hello.eq(word)
        m.d.comb += [results.read_addr.eq(cursor), tx.header.eq(Cat(kind, mark, count, seq, s.ack, s.room))]
        m.d.sync += tx.word.eq(
            Mux(kind == Kind.DATA, results.read_data[:32], Mux(kind == Kind.HELLO, hello, bus.answer))
        )
        with m.If(tx.step):
            m.d.sync += cursor.eq(cursor + 1)
        with m.FSM(name="send"):
            with m.State("CHOOSE"):
                m.d.sync += [mark.eq(0), count.eq(0), seq.eq(0), cursor.eq(s.sending), stale.eq(0)]
                with m.If(want["hello"]):
                    m.d.sync += [kind.eq(Kind.HELLO), count.eq(4), want["hello"].eq(0)]
                    m.next = "START"
                with m.Elif(want["closed"]):
                    m.d.sync += [kind.eq(Kind.CLOSED), want["closed"].eq(0)]
                    m.next = "START"
                with m.Elif(want["answer"]):
                    m.d.sync += [
                        kind.eq(Mux(bus.wrote, Kind.WRITE, Kind.READ)),
                        count.eq(1),
                        seq.eq(bus.answer_tag),
                        mark.eq(bus.fault),
                        want["answer"].eq(0),
                    ]
                    m.next = "START"
                with m.Elif((s.sending != s.written) & ~want["resend"]):
                    m.d.sync += [kind.eq(Kind.DATA), seq.eq(s.sending), want["status"].eq(0)]
                    m.next = "COUNT"
                with m.Elif(want["status"] | want["resend"]):
                    m.d.sync += [
                        kind.eq(Mux(want["resend"], Kind.RESEND, Kind.STATUS)),
                        want["status"].eq(0),
                        want["resend"].eq(0),
                    ]
                    m.next = "START"
            with m.State("COUNT"):
                with m.If(rx.done):
                    pass  # ``sending`` stays while a frame is compared with it
                with m.Elif((cursor == s.written) | (count == MAX_WORDS) | mark):
                    m.d.sync += cursor.eq(seq)
                    with m.If((s.sending == seq) & ~stale):  # no acknowledgement or repetition has moved it meanwhile
                        m.d.sync += s.sending.eq(seq + count)
                    m.next = "START"
                with m.Else():
                    m.d.sync += [cursor.eq(cursor + 1), count.eq(count + 1), mark.eq(results.read_data[32])]
            with m.State("START"):
                m.d.comb += tx.start.eq(1)
                m.next = "BUSY"
            with m.State("BUSY"):
                with m.If(~tx.busy):
                    m.next = "CHOOSE"
        with m.If(s.begin):
            m.d.sync += stale.eq(1)

    def _streams(self, m, s):
        """The buffers' other sides. A quarter of the command buffer taken since the last time is told by STATUS."""
        commands, results, width = self.command_buffer, self.result_buffer, self.depth.bit_length()
        full, nearly = s.kept[width - 1], s.kept[1 : width - 1].all()  # nearly: room for one or two more
        write = self.results.valid & self.results.ready
        m.d.comb += [
            commands.read_addr.eq(s.taken),
            results.write_addr.eq(s.written),
            results.write_data.eq(self.results.payload),
            results.write_en.eq(write),
        ]
        quarter = Signal()
        m.d.sync += quarter.eq(0)
        with m.If(quarter):
            m.d.sync += s.want["status"].eq(1)
        with m.If(~self.commands.valid):
            m.d.sync += [
                self.commands.payload.eq(commands.read_data),
                self.commands.valid.eq((s.taken != s.accepted) & ~self.reset),
            ]
        with m.Elif(self.commands.ready):
            m.d.sync += [
                self.commands.valid.eq(0),
                s.taken.eq(s.taken + 1),
                quarter.eq(s.taken[: (self.depth // 4).bit_length() - 1].all() & ~s.begin),
            ]
        two_less, one_less = s.wrote & write, s.wrote | write  # than there is room for by ``kept``
        m.d.sync += [
            s.kept.eq(s.kept + s.wrote),
            s.wrote.eq(write),
            self.results.ready.eq(~(full | (nearly & (two_less | (s.kept[0] & one_less))) | self.reset)),
        ]
        with m.If(write):
            m.d.sync += s.written.eq(s.written + 1)

    def _receive(self, m, s, rx, bus):
        """Keep what comes, and do what a frame says, in the cycle after its end; in between it is compared with the session."""
        want, header, commands = s.want, rx.header, self.command_buffer
        fits, lost, access = Signal(), Signal(), Signal()
        m.d.comb += [
            fits.eq(rx.index < s.room),
            commands.write_en.eq(rx.word_valid & (header.kind == Kind.DATA) & fits),
            commands.write_addr.eq(s.accepted + rx.index),
            commands.write_data.eq(Cat(rx.word, header.mark & (rx.index == header.length - 1))),
            bus.request.eq(access),
            bus.write.eq(header.kind == Kind.WRITE),
            bus.tag.eq(header.seq),
            bus.address.eq(rx.first),
            bus.data.eq(rx.second),
        ]
        with m.If(rx.word_valid & ~fits):
            m.d.sync += lost.eq(1)
        frame, damaged = Signal(), Signal()
        freed, frees, passes, same, expected, early = Signal(8), Signal(), Signal(), Signal(), Signal(), Signal()
        acked, ahead = (header.ack - s.oldest)[:8], (header.seq - s.accepted)[:8]
        m.d.sync += [
            frame.eq(rx.done & rx.good),
            damaged.eq(rx.done & ~rx.good),
            same.eq(rx.first == s.number),
            access.eq(rx.done & rx.good & s.opened & ((header.kind == Kind.READ) | (header.kind == Kind.WRITE))),
            freed.eq(acked),
            frees.eq(acked <= s.kept),
            passes.eq(acked > (s.sending - s.oldest)[:8]),
            expected.eq(ahead == 0),
            early.eq(~ahead[7]),
        ]
        with m.If(frame | damaged):
            m.d.sync += lost.eq(0)
        with m.If(damaged & s.opened):
            m.d.sync += want["resend"].eq(1)
        with m.If(frame):
            with m.If(header.kind == Kind.HELLO):
                m.d.comb += s.begin.eq(~s.opened | ~same)
                m.d.sync += want["hello"].eq(1)
            with m.Elif(~s.opened):
                m.d.sync += want["closed"].eq(1)
            with m.Else():
                with m.If(frees):
                    m.d.sync += [s.oldest.eq(header.ack), s.kept.eq(s.kept - freed + s.wrote)]
                    with m.If(passes | (header.kind == Kind.RESEND)):
                        m.d.sync += s.sending.eq(header.ack)
                with m.Switch(header.kind):
                    with m.Case(Kind.RESEND, Kind.MEMORY):  # there is no memory here
                        m.d.sync += want["status"].eq(1)
                    with m.Case(Kind.DATA):
                        m.d.sync += want["status"].eq(1)
                        with m.If(expected & ~lost):
                            m.d.sync += s.accepted.eq(s.accepted + header.length)
                        with m.Elif(early):
                            m.d.sync += want["resend"].eq(1)
        with m.If(bus.done | (access & bus.known)):
            m.d.sync += want["answer"].eq(1)
