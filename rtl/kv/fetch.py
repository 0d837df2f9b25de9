"""Blocks of K, V and Q from memory: AXI4 read bursts of up to two requests at a time, written to the stores beat by beat."""

import enum

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.bus.axi import axi4_read
from intaglio.rtl.bus.streams import ADDRESS_BITS, FetchKind, fetch_request, fetched, store_write

__all__ = ["EPOCH_BITS", "PAGE", "Fetch", "FetchFault", "memory_port", "request_beats"]

PAGE = 4096  # bytes; no burst crosses a multiple
EPOCH_BITS = 4
_DEPTH = 2  # requests in flight


def memory_port(config):
    """Signature of the AXI4 reads that bring blocks, in beats of ``head_dim`` bytes."""
    return axi4_read(ADDRESS_BITS, 8 * config.head_dim, id_bits=EPOCH_BITS)


class FetchFault(enum.IntEnum):
    """Why a run cannot go on."""

    NONE = 0
    RESPONSE = 1  # RRESP was not OKAY
    LAST = 2  # RLAST came at a wrong beat, or did not come
    TIMEOUT = 3  # no beat for `timeout` cycles


def request_beats(config, kind, rows=None):
    """Beats of a request of a kind for a block's first ``rows`` (all without): rows come in whole tiles, queries in whole row groups."""
    rows = rows or config.block
    size = config.columns if kind == FetchKind.Q else config.head_dim
    return (-(-rows // size) * size + -(-rows // config.head_dim)) * (2 if kind == FetchKind.KV else 1)


class Fetch(wiring.Component):
    """AXI4 read master of the prefill unit.

    Parameters
    ----------
    config : PrefillConfig

    Members
    -------
    i_request : In(stream of :func:`~intaglio.rtl.bus.streams.fetch_request`)
        Its address is a multiple of D (lower bits are taken as 0); it may lie anywhere in a 4 KiB page. Tiles of keys and values, row
        groups of queries and beats of scales that lie wholly past ``last_row`` are not read (:func:`request_beats`).
    o_fetched : Out(stream of :func:`~intaglio.rtl.bus.streams.fetched`)
        Requests whose last beat has been written in a cycle before, in order of requests. Withdrawn untaken by ``cancel``, ``clear`` and
        a fault only. A request counts as in flight until it is taken here; two may be in flight.
    store : Out(:func:`~intaglio.rtl.bus.streams.store_write`), of which
    key, value, query
        Write ``data`` to the keys or values of the line store or to the Q store, at ``address``.
    key_scale, value_scale, query_scale
        Write ``data`` to the scale bytes of the line store or the Q store, at ``scale_address``.
    address
        ``index * B + beat``: index is the line or slot of the request, beat the beat of K, of V or of the queries, 0..B-1.
    scale_address
        ``index * X + beat``, beat 0..X-1: the scale bytes of rows ``beat * D ..``, of row i in byte i % D. Both addresses are as wide as
        the larger of the stores needs; a store takes the lower bits.
    data
        The beat. Rows past ``last_row`` are zero, and their scale bytes, whatever memory holds there.
    clear : In(1)
        One cycle before each run: drops everything under way, a fault and the counters, and begins an epoch.
    cancel : In(1)
        Drops everything under way and takes no request; begins an epoch if anything was under way.
    timeout : In(24)
        Cycles without a beat while some are outstanding after which the unit faults; 0: never. Dropped beats count as beats: what is
        left of an earlier run may hold the bus, but not for ever.
    fault : Out(:class:`FetchFault`)
        Held until ``clear``. The unit drops everything under way and takes no request.
    busy : Out(1)
        A request is in flight.
    beats, stalled, idle : Out(32)
        Since ``clear``: beats taken; cycles in which ``arvalid`` waited; cycles with beats outstanding but none there.
    memory : :func:`memory_port`
        ``rready`` is always 1. Every burst is INCR, of whole beats, inside a page (D >= 16, so it has at most 256 beats). ``arid`` is
        the epoch, 4 bits: beats of another epoch are taken and dropped. A burst that waits for ``arready`` when all is dropped
        stays until it is taken, as AXI demands. A memory that answers 16 epochs late would be believed.

    Latency: a request's ``arvalid`` comes 2 cycles after it is taken (later if an earlier one still asks); a beat is written in the cycle
    after it came, ``o_fetched`` is valid one later.
    Throughput: a beat a cycle; a burst a cycle, and 1 cycle between requests.
    """

    def __init__(self, config):
        self.config = config
        super().__init__(
            {
                "i_request": In(stream.Signature(fetch_request(config))),
                "o_fetched": Out(stream.Signature(fetched(config))),
                "store": Out(store_write(config)),
                "clear": In(1),
                "cancel": In(1),
                "timeout": In(24),
                "fault": Out(FetchFault),
                "busy": Out(1),
                "beats": Out(32),
                "stalled": Out(32),
                "idle": Out(32),
                "memory": Out(memory_port(config)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c, bus = self.config, self.memory
        beat_bits = c.head_dim.bit_length() - 1
        page_bits = PAGE.bit_length() - 1 - beat_bits  # of a beat's place in its page
        request = self.i_request.payload
        layout = {"kind": 2, "index": len(request.index), "last_row": len(request.last_row), "place": page_bits}
        entry = data.StructLayout(layout)

        # Requests in flight: a ring of two. `wanted` await beats, `held` await the taker of completions.
        ring = [Signal(entry, name=f"entry_{i}") for i in range(_DEPTH)]
        accept, take, give = Signal(), Signal(), Signal()
        wanted, held, finishing, active = Signal(range(_DEPTH + 1)), Signal(range(_DEPTH + 1)), Signal(), Signal()
        accepted, ended, given, drop, failed = Signal(), Signal(), Signal(), Signal(), Signal()
        epoch = Signal(EPOCH_BITS)
        room = Signal()
        m.d.comb += [
            self.busy.eq((wanted != 0) | (held != 0) | finishing),
            room.eq(wanted + held + finishing < _DEPTH),
            self.i_request.ready.eq(~active & room & (self.fault == FetchFault.NONE) & ~self.cancel & ~self.clear),
            accepted.eq(self.i_request.valid & self.i_request.ready),
            self.o_fetched.valid.eq(held != 0),
            given.eq(self.o_fetched.valid & self.o_fetched.ready),
            self.o_fetched.p.kind.eq(Array(item.kind for item in ring)[give]),
            self.o_fetched.p.index.eq(Array(item.index for item in ring)[give]),
            drop.eq(self.clear | (self.cancel & self.busy) | failed),
        ]
        m.d.sync += [
            wanted.eq(wanted + accepted - ended),
            held.eq(held + finishing - given),
            finishing.eq(ended),
            accept.eq(accept ^ accepted),
            take.eq(take ^ ended),
            give.eq(give ^ given),
        ]
        for i, item in enumerate(ring):
            with m.If(accepted & (accept == i)):
                m.d.sync += [
                    item.kind.eq(request.kind),
                    item.index.eq(request.index),
                    item.last_row.eq(request.last_row),
                    item.place.eq(request.address[beat_bits : beat_bits + page_bits]),
                ]

        self._addresses(m, accepted, active, epoch, page_bits)
        taken = self._beats(m, ring, take, wanted, epoch, page_bits, ended, failed)
        with m.If(drop):
            m.d.sync += [
                wanted.eq(0),
                held.eq(0),
                finishing.eq(0),
                accept.eq(0),
                take.eq(0),
                give.eq(0),
                active.eq(0),
                epoch.eq(epoch + 1),
            ]

        m.d.sync += [
            self.beats.eq(self.beats + taken),
            self.stalled.eq(self.stalled + (bus.arvalid & ~bus.arready)),
            self.idle.eq(self.idle + ((wanted != 0) & ~taken)),
        ]
        with m.If(self.clear):
            m.d.sync += [self.beats.eq(0), self.stalled.eq(0), self.idle.eq(0), self.fault.eq(FetchFault.NONE)]
        return m

    def _parts(self, last_row, kind):
        """Last beats that a request reads of its rows and of its scales, and whether it reads all of the block, whose parts then follow one
        another without a gap."""
        c = self.config
        last_beat = Signal(range(c.block))
        last_scale = last_row[c.head_dim.bit_length() - 1 :]
        return (
            last_beat,
            last_scale,
            last_beat.all(),
            last_beat.eq(last_row | Mux(kind == FetchKind.Q, c.columns - 1, c.head_dim - 1)),
        )

    def _addresses(self, m, accepted, active, epoch, page_bits):
        """Bursts of the request taken last: of all of a block, or part by part of a short one."""
        c, bus = self.config, self.memory
        beat_bits = c.head_dim.bit_length() - 1
        request, most = self.i_request.payload, request_beats(c, FetchKind.KV)
        page, place, left = Signal(ADDRESS_BITS - page_bits - beat_bits), Signal(page_bits), Signal(range(most + 1))
        to_page, length, final = Signal(page_bits + 1), Signal(range(max(most, 1 << page_bits) + 1)), Signal()
        part, parts_left, gap = Signal(), Signal(2), Signal(range(c.block))
        kind, last_row = Signal.like(request.kind), Signal.like(request.last_row)
        last_beat, last_scale, whole, rounded = self._parts(last_row, kind)
        m.d.comb += rounded
        with m.If(final & (parts_left != 0)):
            m.d.comb += gap.eq(Mux(part, ~last_scale, ~last_beat))
        m.d.comb += [
            to_page.eq((1 << page_bits) - place),
            final.eq(left <= to_page),
            length.eq(Mux(final, left, to_page)),
            bus.arsize.eq(beat_bits),
            bus.arburst.eq(1),
        ]
        with m.If(bus.arready):
            m.d.sync += bus.arvalid.eq(0)
        with m.If(active & (~bus.arvalid | bus.arready)):
            m.d.sync += [
                bus.arvalid.eq(1),
                bus.arid.eq(epoch),
                bus.araddr.eq(Cat(Const(0, beat_bits), place, page)),
                bus.arlen.eq(length - 1),
                Cat(place, page).eq(Cat(place, page) + length + gap),
                left.eq(left - length),
                active.eq(~final | (parts_left != 0)),
            ]
            with m.If(final & (parts_left != 0)):
                m.d.sync += [
                    part.eq(~part),
                    parts_left.eq(parts_left - 1),
                    left.eq(Mux(part, last_beat, last_scale) + 1),
                ]
            # A burst of the epoch that ends now would only fetch beats to drop.
            with m.If(self.cancel | self.clear):
                m.d.sync += bus.arvalid.eq(0)
        with m.If(accepted):
            m.d.sync += [
                active.eq(1),
                Cat(place, page).eq(request.address[beat_bits:]),
                kind.eq(request.kind),
                last_row.eq(request.last_row),
                part.eq(0),
            ]
            first_beat, _, all_of_it, first_rounded = self._parts(request.last_row, request.kind)
            m.d.comb += first_rounded
            with m.If(all_of_it):
                m.d.sync += [
                    left.eq(Mux(request.kind == FetchKind.KV, most, request_beats(c, FetchKind.K))),
                    parts_left.eq(0),
                ]
            with m.Else():
                m.d.sync += [left.eq(first_beat + 1), parts_left.eq(Mux(request.kind == FetchKind.KV, 3, 1))]

    def _beats(self, m, ring, take, wanted, epoch, page_bits, ended, failed):
        """Beats of the oldest request, their place in the stores, and what may go wrong. Returns a beat that is taken."""
        c, bus = self.config, self.memory
        kind, index, begins = Signal(2), Signal.like(ring[0].index), Signal(page_bits)
        m.d.comb += [
            kind.eq(Array(item.kind for item in ring)[take]),
            index.eq(Array(item.index for item in ring)[take]),
            begins.eq(Array(item.place for item in ring)[take]),
        ]
        last_row = Signal.like(ring[0].last_row)
        m.d.comb += last_row.eq(Array(item.last_row for item in ring)[take])
        last_beat, last_scale, whole, rounded = self._parts(last_row, kind)
        m.d.comb += rounded
        part, beat, next_place = Signal(2), Signal(range(c.block)), Signal(page_bits)
        place, part_ends, last = Signal(page_bits), Signal(), Signal()
        scales = part[0]
        m.d.comb += [
            place.eq(Mux((part == 0) & (beat == 0), begins, next_place)),
            part_ends.eq(beat == Mux(scales, last_scale, last_beat)),
            last.eq(part_ends & (part == Mux(kind == FetchKind.KV, 3, 1))),
        ]
        taken, good, wrong_last, late = Signal(), Signal(), Signal(), Signal()
        quiet = Signal.like(self.timeout)
        m.d.comb += [
            bus.rready.eq(1),
            taken.eq(bus.rvalid & (bus.rid == epoch) & (wanted != 0)),
            wrong_last.eq(bus.rlast != (last | place.all() | (part_ends & ~whole))),
            late.eq((self.timeout != 0) & (quiet == self.timeout)),
            failed.eq((taken & ((bus.rresp != 0) | wrong_last)) | (~bus.rvalid & (wanted != 0) & late)),
            good.eq(taken & ~failed & ~self.cancel & ~self.clear),
            ended.eq(good & last),
        ]
        m.d.sync += quiet.eq(Mux(bus.rvalid | (wanted == 0) | late, 0, quiet + 1))
        with m.If(failed & ~self.clear):
            m.d.sync += self.fault.eq(
                Mux(taken, Mux(bus.rresp != 0, FetchFault.RESPONSE, FetchFault.LAST), FetchFault.TIMEOUT)
            )
        with m.If(good):
            m.d.sync += [beat.eq(beat + 1), next_place.eq(place + 1)]
            with m.If(part_ends):
                gap = Mux(scales, ~last_scale, ~last_beat)
                m.d.sync += [beat.eq(0), part.eq(Mux(last, 0, part + 1)), next_place.eq(place + 1 + gap)]
        with m.If(self.clear | self.cancel | failed):
            m.d.sync += [beat.eq(0), part.eq(0), quiet.eq(0)]

        queries = kind == FetchKind.Q
        scale_beat = beat[: c.scale_beats.bit_length() - 1]
        m.d.sync += [
            self.store.key.eq(good & (part == 0) & ~queries),
            self.store.key_scale.eq(good & (part == 1) & ~queries),
            self.store.value_scale.eq(good & (part == 3)),
            self.store.value.eq(good & (part == 2)),
            self.store.query.eq(good & (part == 0) & queries),
            self.store.query_scale.eq(good & scales & queries),
            self.store.address.eq(Cat(beat, index)),
            self.store.scale_address.eq(Cat(scale_beat, index)),
            self.store.data.eq(self._counted(m, beat, scales, last_row, last_scale)),
        ]
        return taken

    def _counted(self, m, beat, scales, last_row, last_scale):
        """The beat, zero where it is of rows past the last one: wholly, or in scale bytes."""
        c, beat_now = self.config, self.memory.rdata
        place = last_row[: c.head_dim.bit_length() - 1]
        every, some = Signal(), Signal()
        m.d.comb += [every.eq(Mux(scales, beat < last_scale, beat <= last_row)), some.eq(scales & (beat == last_scale))]
        keep = (every | (some & (place >= i if i else 1)) for i in range(c.head_dim))
        return Cat(Mux(kept, beat_now[8 * i : 8 * i + 8], 0) for i, kept in enumerate(keep))
