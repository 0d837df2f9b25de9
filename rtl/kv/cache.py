"""KV cache control: which line holds which key block, decided ahead of the arithmetic by what the visits say of the future."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.bus.streams import BLOCK_BITS, visit
from intaglio.rtl.memory.ram import Ram, index_bits

__all__ = ["COUNTER_BITS", "CacheControl", "decision_cycles"]

COUNTER_BITS = 32
TENANT_BITS, HEAD_BITS = 8, 16  # a KV head of a layer


def decision_cycles(config):
    """Cycles from a visit's offer (or the begin of a round that tries it again) to its decision."""
    return config.lines + 3


def _entry(config):
    """What is known of a line: whose block it holds; visits to come; the window of the next; visits decided and not yet retired; ``kept``:
    the run that visited it last was single."""
    return data.StructLayout(
        {
            "tenant": TENANT_BITS,
            "kv_head": HEAD_BITS,
            "block": BLOCK_BITS,
            "remaining": config.windows.bit_length(),
            "next_window": index_bits(config.windows),
            "pins": (config.lookahead + 1).bit_length(),
            "kept": 1,
        }
    )


class CacheControl(wiring.Component):
    """Decides visit by visit, asks for blocks, and hands visits on in order when their block is there.

    Decisions are those of :func:`intaglio.sim.attention.cache.simulate`, whatever memory and consumer take: they are taken in rounds, one
    for every visit retired (and one at the begin); pulses of ``retire`` wait until the round before has ended. A round decides visits in
    order, up to ``lookahead`` past the oldest that is not retired: resident block; else the lowest free line; else, for that visit or
    the one after it alone, eviction. It ends at a visit that may not evict. Lines of visits that are not retired are pinned, and there
    are ``lookahead + 2`` lines, so the next visit is always decided before the one before it is retired.

    Parameters
    ----------
    config : PrefillConfig

    Members
    -------
    tenant : In(8), kv_head : In(16)
        Stable from the first visit to the last.
    single : In(1)
        The run visits every block once, and so will the next: lines without a visit to come that such a run has used do not count as free
        in another. They may be evicted, the highest block first. Stable.
    partial : In(1)
        The run's last block is not complete: its visit, the last, is a miss, and its line is free afterwards, its block forgotten. Stable.
    hot_threshold : In
        Blocks with so many remaining visits or fewer are evicted before the others. Stable.
    i_visit : In(stream of :func:`~intaglio.rtl.bus.streams.visit`)
        Taken when decided. After one with ``last`` the next run's are taken when all have been retired.
    o_fetch : Out(stream), fields line, block
        In order of visits. Every request taken must be completed once.
    done_en, done_line : In
        The block of the line is there.
    o_visit : Out(stream of visits), line : Out
        The next visit, its block being in ``line``. The consumer may hold it as long as it works, or take it and work.
    retire : In(1)
        The oldest visit not yet retired no longer reads its line. Only after it was taken; in any cycle.
    flush : In(1)
        Forget all blocks. Between runs only.
    clear : In(1)
        Zero the counters.
    idle : Out(1)
        Nothing is under way and nothing asked for is missing: a run may begin.
    hits, misses, evictions : Out(32)
    stalls : Out(32)
        Cycles of a run without a visit for the consumer, until it takes the last. A consumer that holds its visit while it works (as
        :class:`~intaglio.rtl.control.jobs.JobSequencer` does) waits in just these.

    Latency
    -------
    :func:`decision_cycles` for a decision; 3 for a retirement.
    """

    def __init__(self, config):
        self.config = config
        line = index_bits(config.lines)
        super().__init__(
            {
                "tenant": In(TENANT_BITS),
                "kv_head": In(HEAD_BITS),
                "single": In(1),
                "partial": In(1),
                "hot_threshold": In(config.windows.bit_length()),
                "i_visit": In(stream.Signature(visit(config))),
                "o_fetch": Out(stream.Signature(data.StructLayout({"line": line, "block": BLOCK_BITS}))),
                "done_en": In(1),
                "done_line": In(line),
                "o_visit": Out(stream.Signature(visit(config))),
                "line": Out(line),
                "retire": In(1),
                "flush": In(1),
                "clear": In(1),
                "idle": Out(1),
                **{name: Out(COUNTER_BITS) for name in ("hits", "misses", "evictions", "stalls")},
            }
        )

    def elaborate(self, platform):
        m = Module()
        c, now = self.config, self.i_visit.payload
        depth, line_bits = c.lookahead + 1, index_bits(c.lines)
        layout = _entry(c)
        m.submodules.entries = entries = Ram(layout.size, c.lines)
        entry = layout(entries.read_data)
        valid, loaded = Signal(c.lines), Signal(c.lines)
        update = Signal(layout)
        m.d.comb += entries.write_data.eq(update.as_value())

        # Visits decided and not retired, a ring: `ahead` of them, of which `waiting` have not been taken by the consumer.
        ring_visit = Array(Signal(visit(c), name=f"ring_visit_{i}", reset_less=True) for i in range(depth))
        ring_line = Array(Signal(line_bits, name=f"ring_line_{i}", reset_less=True) for i in range(depth))
        tail, offered, oldest = (Signal(range(depth), name=name) for name in ("tail", "offered", "oldest"))
        ahead, waiting, retired = (Signal(range(depth + 1), name=name) for name in ("ahead", "waiting", "retired"))

        def following(pointer):
            return Mux(pointer == depth - 1, 0, pointer + 1)

        push, take, begin = Signal(), Signal(), Signal()
        ended = Signal()
        m.d.comb += [
            self.o_visit.payload.eq(ring_visit[offered]),
            self.line.eq(ring_line[offered]),
            self.o_visit.valid.eq((waiting != 0) & loaded.bit_select(self.line, 1)),
            take.eq(self.o_visit.valid & self.o_visit.ready),
        ]
        m.d.sync += [
            waiting.eq(waiting + push - take),
            retired.eq(retired + self.retire - begin),
            ahead.eq(ahead + push - begin),
        ]
        with m.If(take):
            m.d.sync += offered.eq(following(offered))

        scan, reading, hit, has_free, has_victim, pins, chosen = self._scan(m, entry, valid)
        missing, asked = self._lines(m, entries, update, loaded, scan, reading, hit, pins, chosen)

        over, running = Signal(), Signal()  # the round has ended; the consumer has not yet taken the run's last visit
        counts = {
            "hits": hit & push,
            "misses": asked,
            "evictions": asked & ~has_free,
            "stalls": running & ~self.o_visit.valid,
        }
        with m.FSM(name="state"):
            with m.State("ROUND"):
                m.d.comb += self.idle.eq((ahead == 0) & (missing == 0) & ~running)
                m.d.sync += [scan.eq(0), hit.eq(0), has_free.eq(0), has_victim.eq(0)]
                with m.If(~over & ~ended & (ahead != depth)):
                    with m.If(self.i_visit.valid):
                        m.d.sync += running.eq(1)
                        m.next = "SCAN"
                with m.Elif(retired != 0):
                    m.d.comb += [entries.read_en.eq(1), entries.read_addr.eq(ring_line[oldest])]
                    m.next = "RETIRE"
            with m.State("SCAN"):
                m.d.comb += reading.eq(1)
                m.d.sync += scan.eq(scan + 1)
                with m.If(scan == c.lines - 1):
                    m.next = "JUDGE"
            with m.State("JUDGE"):
                m.next = "COMPARE"
            with m.State("COMPARE"):
                m.next = "DECIDE"
            with m.State("DECIDE"):
                with m.If(hit):
                    m.d.comb += push.eq(1)
                with m.Elif(has_free | (ahead <= 1)):
                    m.d.comb += [self.o_fetch.valid.eq(1), push.eq(self.o_fetch.ready)]
                with m.Else():
                    m.d.sync += over.eq(1)
                    m.next = "ROUND"
                with m.If(push):
                    m.d.comb += [self.i_visit.ready.eq(1), entries.write_en.eq(1)]
                    m.d.sync += [
                        ring_visit[tail].eq(now),
                        ring_line[tail].eq(chosen),
                        tail.eq(following(tail)),
                        ended.eq(now.last),
                        valid.bit_select(chosen, 1).eq(1),
                    ]
                    with m.If(~hit):
                        m.d.sync += loaded.bit_select(chosen, 1).eq(0)
                    m.next = "ROUND"
            with m.State("RETIRE"):
                m.d.comb += [
                    entries.write_en.eq(1),
                    entries.write_addr.eq(ring_line[oldest]),
                    update.eq(entry),
                    update.pins.eq(entry.pins - 1),
                    begin.eq(1),
                ]
                m.d.sync += [oldest.eq(following(oldest)), over.eq(0)]
                with m.If(ahead == 1):
                    m.d.sync += ended.eq(0)
                    with m.If(ended & self.partial):
                        m.d.sync += valid.bit_select(ring_line[oldest], 1).eq(0)
                m.next = "ROUND"
        with m.If(take & self.o_visit.p.last):
            m.d.sync += running.eq(0)
        with m.If(self.flush):
            m.d.sync += valid.eq(0)
        for name, happens in counts.items():
            counter = getattr(self, name)
            m.d.sync += counter.eq(Mux(self.clear, 0, counter + happens))
        return m

    def _scan(self, m, entry, valid):
        """Where a visit's block is or could go: entry n is read in one cycle, judged in the next, compared with the best in the third."""
        c, now = self.config, self.i_visit.payload
        line_bits = index_bits(c.lines)
        scan, judged, compared = Signal(range(c.lines + 1)), Signal(range(c.lines)), Signal(range(c.lines))
        reading, judging, comparing = Signal(), Signal(), Signal()
        match, free, candidate = (Signal(name=name, reset_less=True) for name in ("match", "free", "candidate"))
        key = Signal(1 + len(entry.next_window) + BLOCK_BITS, reset_less=True)
        known = valid.bit_select(judged, 1)
        m.d.sync += [judging.eq(reading), comparing.eq(judging), judged.eq(scan), compared.eq(judged)]
        m.d.sync += [
            match.eq(
                known
                & ~(now.last & self.partial)
                & (entry.tenant == self.tenant)
                & (entry.kv_head == self.kv_head)
                & (entry.block == now.block)
            ),
            free.eq(~known | ((entry.pins == 0) & (entry.remaining == 0) & ~(self.single & entry.kept))),
            candidate.eq(entry.pins == 0),
            key.eq(Cat(entry.block, entry.next_window, entry.remaining <= self.hot_threshold)),
        ]
        hit, has_free, has_victim = Signal(), Signal(), Signal()
        hit_line, free_line, victim = (
            Signal(line_bits, name=name, reset_less=True) for name in ("hit_line", "free_line", "victim")
        )
        best = Signal.like(key)
        pins, judged_pins = Signal.like(entry.pins, reset_less=True), Signal.like(entry.pins, reset_less=True)
        m.d.sync += judged_pins.eq(entry.pins)
        with m.If(comparing):
            with m.If(match):
                m.d.sync += [hit.eq(1), hit_line.eq(compared), pins.eq(judged_pins)]
            with m.If(free & ~has_free):
                m.d.sync += [has_free.eq(1), free_line.eq(compared)]
            with m.If(candidate & ~free & (~has_victim | (key > best))):
                m.d.sync += [has_victim.eq(1), victim.eq(compared), best.eq(key)]
        chosen = Signal(line_bits)
        m.d.comb += chosen.eq(Mux(hit, hit_line, Mux(has_free, free_line, victim)))
        return scan, reading, hit, has_free, has_victim, pins, chosen

    def _lines(self, m, entries, update, loaded, scan, reading, hit, pins, chosen):
        """The entry that a decision writes, the block that it asks for, and what has come."""
        c, now = self.config, self.i_visit.payload
        missing, asked = Signal(range(c.lines + 1)), Signal()
        m.d.comb += [
            asked.eq(self.o_fetch.valid & self.o_fetch.ready),
            self.o_fetch.p.line.eq(chosen),
            self.o_fetch.p.block.eq(update.block),
            update.tenant.eq(self.tenant),
            update.kv_head.eq(self.kv_head),
            update.block.eq(now.block),
            update.kept.eq(self.single),
            update.remaining.eq(now.remaining),
            update.next_window.eq(now.next_window),
            update.pins.eq(Mux(hit, pins + 1, 1)),
            entries.write_addr.eq(chosen),
            entries.read_addr.eq(scan),
            entries.read_en.eq(reading),
        ]
        m.d.sync += missing.eq(missing + asked - self.done_en)
        with m.If(self.done_en):
            m.d.sync += loaded.bit_select(self.done_line, 1).eq(1)
        return missing, asked
