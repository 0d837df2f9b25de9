"""The schedule of an attention run: from the block map to visits in order, with what is still to come for each block."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.bus.streams import BLOCK_BITS, visit
from intaglio.rtl.memory.ram import Ram, index_bits

__all__ = ["Schedule", "schedule_cycles"]

GROUP = 8  # windows of a group of the search for the next one


def schedule_cycles(config, blocks, visits):
    """Cycles from ``start`` to the hand-over of the last of ``visits`` visits, if the taker is always ready."""
    batches = -(-blocks // config.columns)
    count = sum(config.group * (batches - block // config.columns) + 2 for block in range(blocks))
    scan = sum(1 + min(blocks, first + config.window) for first in range(0, blocks, config.window))
    return count + scan + visits * (config.group + 2)


class Schedule(wiring.Component):
    """Reads the block map once to learn, for each key block, the windows that visit it and their number; then streams the visits.

    Parameters
    ----------
    config : PrefillConfig

    Members
    -------
    blocks : In(BLOCK_BITS)
        Blocks of the run, 1 at least; stable.
    single : In(1)
        No map: one visit with the job of slot 0 to each block. Stable.
    start : In(1)
        Begin; the map is complete and stays. Its diagonal is kept, for the last visit is that of the last block.
    busy : Out(1)
    read_en, read_head, read_batch, read_block : Out
        Of :class:`~intaglio.rtl.index.block_map.BlockMap`; only words of key blocks up to the last row of the batch are read.
    read_data : In(columns)
        One cycle later.
    o_visit : Out(stream of :func:`~intaglio.rtl.bus.streams.visit`)
        Windows ascending, in a window key blocks ascending. ``next_window`` is 0 without ``next_valid``.

    Latency: :func:`schedule_cycles`; a visit a cycle with ``single``. Throughput: a visit in ``group + 3`` cycles, a block without a visit
    in 1.
    """

    def __init__(self, config):
        self.config = config
        super().__init__(
            {
                "blocks": In(BLOCK_BITS),
                "single": In(1),
                "start": In(1),
                "busy": Out(1),
                "read_en": Out(1),
                "read_head": Out(index_bits(config.group)),
                "read_batch": Out(index_bits(config.batches)),
                "read_block": Out(BLOCK_BITS),
                "read_data": In(config.columns),
                "o_visit": Out(stream.Signature(visit(config))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c, out = self.config, self.o_visit.payload
        parts = c.columns // c.window  # windows of a batch
        width, column_bits = c.batches * parts, (c.columns - 1).bit_length()
        left_bits = len(out.remaining)
        m.submodules.rows = rows = Ram(width, c.blocks)
        m.submodules.left = left = Ram(left_bits, c.blocks)

        block, batch, head = Signal(BLOCK_BITS), Signal(index_bits(c.batches)), Signal(index_bits(c.group))
        last_head, last_block = Signal(), Signal()
        m.d.comb += [
            last_head.eq(head == c.group - 1),
            last_block.eq(block + 1 == self.blocks),
            self.read_head.eq(head),
            self.read_batch.eq(batch),
            self.read_block.eq(block),
        ]
        asked, batch_1, head_1 = Signal(), Signal.like(batch), Signal.like(head)
        m.d.sync += [asked.eq(self.read_en), batch_1.eq(batch), head_1.eq(head)]

        # Counting: the windows of a block, a batch at a time.
        row, count = Signal(width), Signal(left_bits)
        part = Signal(parts)
        fields = [row[i * parts : (i + 1) * parts] for i in range(c.batches)]
        fresh = Signal(parts)
        m.d.comb += [
            part.eq(Cat(self.read_data[i * c.window : (i + 1) * c.window].any() for i in range(parts))),
            fresh.eq(part & ~Array(fields)[batch_1]),
        ]

        # Streaming: `here` has the bit of the window, `above` those after it.
        window, here, above = Signal(index_bits(c.windows)), Signal(width), Signal(width)
        idle = Signal()
        last_of_window, last_window, visited = Signal(), Signal(), Signal()
        end = Signal(BLOCK_BITS + 1)
        m.d.comb += [
            end.eq((window + 1) * c.window),
            last_window.eq(end >= self.blocks),
            last_of_window.eq(last_block | (block + 1 == end)),
            visited.eq((rows.read_data & here).any()),
        ]
        later = Signal(width, reset_less=True)
        groups = [later[i : i + GROUP] for i in range(0, width, GROUP)]
        some = Signal(len(groups), reset_less=True)
        first = [Signal(range(GROUP), name=f"first_{i}", reset_less=True) for i in range(len(groups))]
        chosen, valid = Signal(range(len(groups) * GROUP), reset_less=True), Signal(reset_less=True)
        for i, group in enumerate(groups):
            m.d.sync += some[i].eq(group.any())
            for bit in reversed(range(len(group))):
                with m.If(group[bit]):
                    m.d.sync += first[i].eq(bit)
        m.d.sync += [chosen.eq(0), valid.eq(some.any())]
        for i in reversed(range(len(groups))):
            with m.If(some[i]):
                m.d.sync += chosen.eq(Cat(first[i], Const(i, index_bits(len(groups)))))
        remaining, jobs = Signal(left_bits, reset_less=True), Signal(c.slots, reset_less=True)
        words = Array(self.read_data[i * c.window : (i + 1) * c.window] for i in range(parts))
        word = Signal(c.window)
        m.d.comb += [
            word.eq(words[window[: max(1, parts.bit_length() - 1)]] if parts > 1 else words[0]),
            out.window.eq(window),
            out.block.eq(block),
            out.jobs.eq(jobs),
            out.next_valid.eq(valid),
            out.next_window.eq(chosen),
            out.remaining.eq(remaining),
            out.last.eq(last_window & last_block),
            rows.write_addr.eq(block),
            rows.write_data.eq(row),
            left.write_addr.eq(block),
            left.read_addr.eq(rows.read_addr),
            left.read_en.eq(rows.read_en),
        ]

        m.d.comb += self.busy.eq(~idle)

        def advance(m):
            """To the next block of the window, or to the next window."""
            m.d.comb += [rows.read_en.eq(1), rows.read_addr.eq(block + 1)]
            m.d.sync += block.eq(block + 1)
            m.next = "SCAN"
            with m.If(last_of_window):
                m.d.sync += [block.eq(0), window.eq(window + 1), here.eq(here << 1), above.eq(above << 1)]
                m.next = "WINDOW"

        with m.FSM(name="state") as fsm:
            with m.State("IDLE"):
                m.d.comb += idle.eq(1)
                m.d.sync += [block.eq(0), batch.eq(0), head.eq(0), row.eq(0), count.eq(0)]
                with m.If(self.start):
                    m.next = "COUNT"
                    with m.If(self.single):
                        m.d.sync += window.eq(0)
                        m.next = "EVERY"
            with m.State("EVERY"):
                m.d.comb += [
                    self.o_visit.valid.eq(1),
                    out.jobs.eq(1),
                    out.next_valid.eq(0),
                    out.next_window.eq(0),
                    out.remaining.eq(0),
                    out.last.eq(last_block),
                ]
                with m.If(self.o_visit.ready):
                    m.d.sync += block.eq(block + 1)
                    with m.If(last_block):
                        m.next = "IDLE"
            with m.State("COUNT"):
                m.d.comb += self.read_en.eq(1)
                m.d.sync += head.eq(Mux(last_head, 0, head + 1))
                with m.If(last_head):
                    m.d.sync += batch.eq(batch + 1)
                    with m.If((batch + 1) * c.columns >= self.blocks):
                        m.next = "LAST"
            with m.State("LAST"):
                m.next = "WRITE"
            with m.State("WRITE"):
                m.d.comb += [rows.write_en.eq(1), left.write_en.eq(1), left.write_data.eq(count)]
                m.d.sync += [row.eq(0), count.eq(0), block.eq(block + 1), batch.eq((block + 1) >> column_bits)]
                m.next = "COUNT"
                with m.If(last_block):
                    m.d.sync += [block.eq(0), window.eq(0), here.eq(1), above.eq(Const(-2, width))]
                    m.next = "WINDOW"
            with m.State("WINDOW"):
                m.d.comb += [rows.read_en.eq(1), rows.read_addr.eq(block)]
                m.d.sync += batch.eq(window >> (parts.bit_length() - 1))
                m.next = "SCAN"
            with m.State("SCAN"):
                m.d.sync += [later.eq(rows.read_data & above), remaining.eq(left.read_data - 1), head.eq(0)]
                with m.If(visited):
                    m.next = "JOBS"
                with m.Else():
                    advance(m)
            with m.State("JOBS"):
                m.d.comb += self.read_en.eq(1)
                m.d.sync += head.eq(head + 1)
                with m.If(last_head):
                    m.next = "LAST_JOB"
            with m.State("LAST_JOB"):
                m.next = "VISIT"
            with m.State("VISIT"):
                m.d.comb += [self.o_visit.valid.eq(1), left.write_data.eq(remaining)]
                with m.If(self.o_visit.ready):
                    m.d.comb += left.write_en.eq(1)
                    advance(m)
                    with m.If(last_window & last_block):
                        m.next = "IDLE"

        counting = Signal()
        m.d.comb += counting.eq(fsm.ongoing("COUNT") | fsm.ongoing("LAST"))
        with m.If(asked & counting):
            m.d.sync += [
                Array(fields)[batch_1].eq(Array(fields)[batch_1] | part),
                count.eq(count + sum(fresh, Const(0, 1))),
            ]
        with m.Elif(asked):
            for h in range(c.group):
                with m.If(head_1 == h):
                    m.d.sync += [jobs[q * c.group + h].eq(word[q]) for q in range(c.window)]
        return m
