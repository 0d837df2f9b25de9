"""The block map: which key blocks each query block attends to, written from the selections, read by the schedule."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.bus.streams import BLOCK_BITS
from intaglio.rtl.memory.ram import Ram, index_bits

__all__ = ["BlockMap", "pattern_cycles"]


def pattern_cycles(config, blocks):
    """Cycles from ``start`` to ``done`` for a map of ``blocks`` blocks."""
    batches = -(-blocks // config.columns)
    return sum(config.columns + 3 + min(blocks, (batch + 1) * config.columns) for batch in range(batches))


class BlockMap(wiring.Component):
    """Memory of the map, a word of ``columns`` query blocks for each head, batch and key block, and what fills it.

    Vertical-slash heads: the selected vertical blocks V and slash groups S come in as bits; ``start`` expands them for all heads at
    once. Down a batch of rows, the slash bits of key block c are those of c - 1 moved by one row, so a shift register holds them.
    Query-aware heads: words of selected rows are written as they come.

    Parameters
    ----------
    config : PrefillConfig

    Members
    -------
    blocks : In
        Blocks of the run, 1 at least; stable.
    aware : In(group)
        Query-aware heads, which ``start`` leaves alone. dense : In(1), ``start`` keeps every causal block. Stable.
    pick_en, pick_index, pick_vertical (group bits), pick_slash (group bits) : In
        V and S of block ``pick_index`` of every head. All blocks of the run are written before ``start``.
    start : In(1)
    done : Out(1)
        The expansion's last word has been written; :func:`pattern_cycles` after ``start``.
    row_en, row_head, row_batch, row_index, row_mask (columns bits) : In
        Selection of key block ``row_index`` by the rows of a batch of a query-aware head; not while ``start`` is at work. Written two
        cycles later.
    read_en, read_head, read_batch, read_block : In
    read_data : Out(columns)
        One cycle later. Words of key blocks wholly after a batch are not written and must not be read.
    """

    def __init__(self, config):
        self.config = config
        heads, batch = index_bits(config.group), index_bits(config.batches)
        super().__init__(
            {
                "blocks": In(BLOCK_BITS),
                "aware": In(config.group),
                "dense": In(1),
                "pick_en": In(1),
                "pick_index": In(BLOCK_BITS),
                "pick_vertical": In(config.group),
                "pick_slash": In(config.group),
                "start": In(1),
                "done": Out(1),
                "row_en": In(1),
                "row_head": In(heads),
                "row_batch": In(batch),
                "row_index": In(BLOCK_BITS),
                "row_mask": In(config.columns),
                "read_en": In(1),
                "read_head": In(heads),
                "read_batch": In(batch),
                "read_block": In(BLOCK_BITS),
                "read_data": Out(config.columns),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c = self.config
        address_bits = index_bits(c.batches * c.blocks)
        m.submodules.vertical = vertical = Ram(c.group, c.blocks)
        m.submodules.slash = slash = Ram(c.group, c.blocks)
        for ram, bits in ((vertical, self.pick_vertical), (slash, self.pick_slash)):
            m.d.comb += [ram.write_en.eq(self.pick_en), ram.write_addr.eq(self.pick_index), ram.write_data.eq(bits)]

        # Expansion. In a batch, step n reads S[first - 1 - n] for n >= 0 after columns + 1 steps that fill the register.
        batch, step = Signal(index_bits(c.batches)), Signal(BLOCK_BITS)
        first, stop, last_batch = Signal(BLOCK_BITS), Signal(BLOCK_BITS), Signal()
        m.d.comb += [
            first.eq(batch * c.columns),
            last_batch.eq(first + c.columns >= self.blocks),
            stop.eq(Mux(last_batch, self.blocks, first + c.columns)),
        ]
        reading, taken, asked = Signal(), Signal(), Signal()
        source, column = Signal(BLOCK_BITS + 1), Signal(BLOCK_BITS)
        m.d.comb += [source.eq(first + c.columns - 1 - step), column.eq(step - c.columns)]
        in_range = ~source[-1] & (source < self.blocks)
        kept = Signal(range(c.columns + 3))  # bits shifted in so far, to the register's length
        bands = [Signal(c.columns + 1, name=f"band_{head}", reset_less=True) for head in range(c.group)]
        with m.FSM(name="state"):
            with m.State("IDLE"):
                with m.If(self.start):
                    m.d.sync += [batch.eq(0), step.eq(0)]
                    m.next = "EXPAND"
            with m.State("EXPAND"):
                m.d.comb += reading.eq(1)
                m.d.sync += step.eq(step + 1)
                with m.If(step == stop + c.columns - 1):
                    m.next = "FLUSH"
            with m.State("FLUSH"):
                m.d.sync += step.eq(step + 1)
                with m.If(step == stop + c.columns + 2):
                    m.d.sync += [step.eq(0), batch.eq(batch + 1)]
                    m.next = "EXPAND"
                    with m.If(last_batch):
                        m.d.comb += self.done.eq(1)
                        m.next = "IDLE"
        row_asked = Signal()
        m.d.comb += [
            slash.read_en.eq(reading),
            slash.read_addr.eq(Mux(in_range, source, 0)),
            vertical.read_en.eq(reading | self.row_en),
            vertical.read_addr.eq(Mux(self.row_en, self.row_index, column)),
        ]
        # One cycle after the read: the bits are there and enter the registers; one later, the registers are those of `column`.
        valid_bit = Signal()
        column_1, column_2, batch_1, batch_2 = (
            Signal(BLOCK_BITS),
            Signal(BLOCK_BITS),
            Signal.like(batch),
            Signal.like(batch),
        )
        picked = Signal(c.group, reset_less=True)
        m.d.sync += [
            asked.eq(reading),
            taken.eq(asked & (kept >= c.columns)),
            valid_bit.eq(in_range),
            column_1.eq(column),
            batch_1.eq(batch),
            row_asked.eq(self.row_en),
        ]
        with m.If(asked):
            for head, band in enumerate(bands):
                m.d.sync += band.eq(Cat(slash.read_data[head] & valid_bit, band[:-1]))
            m.d.sync += [
                picked.eq(vertical.read_data),
                column_2.eq(column_1),
                batch_2.eq(batch_1),
                kept.eq(kept + (kept < c.columns)),
            ]
        with m.Elif(~reading):
            m.d.sync += kept.eq(0)

        # Rows of query-aware heads.
        row_mask, row_column, row_batch, row_head = (
            Signal(c.columns, reset_less=True),
            Signal(BLOCK_BITS, reset_less=True),
            Signal.like(batch),
            Signal(index_bits(c.group)),
        )
        with m.If(self.row_en):
            m.d.sync += [
                row_mask.eq(self.row_mask),
                row_column.eq(self.row_index),
                row_batch.eq(self.row_batch),
                row_head.eq(self.row_head),
            ]

        here, here_batch = Signal(BLOCK_BITS), Signal.like(batch)
        m.d.comb += [here.eq(Mux(taken, column_2, row_column)), here_batch.eq(Mux(taken, batch_2, row_batch))]
        rows = [Signal(BLOCK_BITS, name=f"row_{lane}") for lane in range(c.columns)]
        m.d.comb += [row.eq(here_batch * c.columns + lane) for lane, row in enumerate(rows)]
        allowed = Cat((here <= row) & (row < self.blocks) for row in rows)
        forced = Cat((here == 0) | (here == row) for row in rows)
        ending = Cat(row + 2 >= self.blocks for row in rows)
        memories = []
        for head, band in enumerate(bands):
            memory = Ram(c.columns, c.batches * c.blocks)
            m.submodules[f"head_{head}"] = memory
            memories.append(memory)
            near = band[1:] | band[:-1]
            pattern = near | forced | (picked[head] | self.dense).replicate(c.columns)
            aware = row_mask | forced | (ending & vertical.read_data[head].replicate(c.columns))
            m.d.comb += [
                memory.write_addr.eq(here_batch * c.blocks + here),
                memory.write_en.eq(Mux(taken, ~self.aware[head], row_asked & (row_head == head))),
                memory.write_data.eq(Mux(taken, pattern, aware) & allowed),
                memory.read_en.eq(self.read_en),
                memory.read_addr.eq((self.read_batch * c.blocks + self.read_block)[:address_bits]),
            ]
        chosen = Signal(index_bits(c.group))
        with m.If(self.read_en):
            m.d.sync += chosen.eq(self.read_head)
        m.d.comb += self.read_data.eq(Array(memory.read_data for memory in memories)[chosen])
        return m
