"""From visits to tiles: the jobs of a visit, their row groups, their key tiles."""

from amaranth.hdl import Array, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.bus.streams import BLOCK_BITS, TileMode, tile_command, visit
from intaglio.rtl.memory.ram import index_bits

__all__ = ["JobSequencer", "job_tiles"]


def job_tiles(config, diagonal, rows=None):
    """Tiles of a job: all of a block of ``rows`` queries (all without), or those not wholly above the diagonal."""
    groups = -(-(rows or config.block) // config.columns)
    if not diagonal:
        return groups * config.tiles
    return sum((group * config.columns + config.columns - 1) // config.head_dim + 1 for group in range(groups))


class JobSequencer(wiring.Component):
    """Turns each visit into tile commands: jobs by ascending bit, row groups, key tiles.

    Parameters
    ----------
    config : PrefillConfig

    Members
    -------
    i_visit : In(stream of :func:`~intaglio.rtl.bus.streams.visit`)
        Taken when its last tile has been taken. ``line`` is the place of its block.
    line : In
        Stable with ``i_visit``.
    blocks : In; last_row : In
        Of the run; index of the last row of the last block. Row groups wholly past it have no tiles. Stable.
    single : In(1)
        The jobs, all of slot 0, have one row group, whose lanes are all at the last row of the last block. Stable.
    loaded : In(slots)
        Slots whose queries are there, and whose accumulators may start anew.
    o_tile : Out(stream of :func:`~intaglio.rtl.bus.streams.tile_command`)
    waiting : Out(1)
        A job waits for its queries.

    Latency
    -------
    A job takes 1 cycle more than its tiles (:func:`job_tiles`) if the taker is always ready, a visit 1 more than its jobs.
    """

    def __init__(self, config):
        self.config = config
        super().__init__(
            {
                "i_visit": In(stream.Signature(visit(config))),
                "line": In(index_bits(config.lines)),
                "blocks": In(BLOCK_BITS),
                "last_row": In(index_bits(config.block)),
                "single": In(1),
                "loaded": In(config.slots),
                "o_tile": Out(stream.Signature(tile_command(config))),
                "waiting": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c = self.config
        now, tile = self.i_visit.payload, self.o_tile.payload
        left, begun = Signal(c.slots), Signal(c.slots)
        slot, group, key_tile = (
            Signal(index_bits(c.slots)),
            Signal(index_bits(c.row_groups)),
            Signal(index_bits(c.tiles)),
        )
        head = Signal(index_bits(c.group))
        fresh = Signal()

        lowest = Signal(index_bits(c.slots))
        for bit in reversed(range(c.slots)):
            with m.If(left[bit]):
                m.d.comb += lowest.eq(bit)
        ready = Signal()
        m.d.comb += ready.eq(self.loaded.bit_select(lowest, 1))

        row_block, diagonal = Signal(BLOCK_BITS), Signal()
        m.d.comb += diagonal.eq(row_block == now.block)
        tiles_here = Array(
            Const((g * c.columns + c.columns - 1) // c.head_dim, index_bits(c.tiles)) for g in range(c.row_groups)
        )
        here, groups = (
            Signal.like(key_tile),
            Signal.like(group),
        )  # the last that count: of a diagonal block, of the query block
        last_block = self.blocks - 1
        m.d.comb += [
            here.eq(Mux(self.single, self.last_row >> c.head_dim.bit_length() - 1, tiles_here[group])),
            groups.eq(Mux(row_block == last_block, self.last_row >> c.columns.bit_length() - 1, c.row_groups - 1)),
        ]
        last_tile, last_group, last_job = Signal(), Signal(), Signal()
        m.d.comb += [
            last_tile.eq(key_tile == Mux(diagonal, here, c.tiles - 1)),
            last_group.eq(self.single | (group == groups)),
            last_job.eq(left == 0),
        ]
        difference = Mux(self.single, self.last_row, group * c.columns) - key_tile * c.head_dim
        offset = Signal.like(difference, name="offset")
        m.d.comb += offset.eq(difference)
        m.d.comb += [
            tile.mode.eq(TileMode.ATTEND),
            tile.slot.eq(slot),
            tile.row_group.eq(group),
            tile.line.eq(self.line),
            tile.tile.eq(key_tile),
            tile.state.eq(slot * c.row_groups + group),
            tile.limit.eq(Mux(diagonal & (offset < c.head_dim), offset, c.head_dim)),
            tile.alike.eq(self.single),
            tile.first.eq(fresh & (key_tile == 0)),
            tile.load.eq((key_tile == 0) & (fresh | ~self.single)),
            tile.finish.eq(diagonal & last_group & last_tile),
            tile.retire.eq(last_job & last_group & last_tile),
            tile.head.eq(head),
            tile.block.eq(row_block),
        ]

        with m.FSM(name="state"):
            with m.State("VISIT"):
                m.d.sync += left.eq(now.jobs)
                with m.If(self.i_visit.valid):
                    with m.If(now.jobs == 0):
                        m.d.comb += self.i_visit.ready.eq(1)
                    with m.Else():
                        m.next = "JOB"
            with m.State("JOB"):
                m.d.comb += self.waiting.eq(~ready)
                with m.If(ready):
                    m.d.sync += [
                        slot.eq(lowest),
                        group.eq(0),
                        key_tile.eq(0),
                        fresh.eq(~begun.bit_select(lowest, 1)),
                        left.eq(left & (left - 1)),
                        begun.bit_select(lowest, 1).eq(1),
                    ]
                    query_of = Array(Const(s // c.group, index_bits(c.window)) for s in range(c.slots))
                    head_of = Array(Const(s % c.group, index_bits(c.group)) for s in range(c.slots))
                    in_window = now.window * c.window + query_of[lowest]
                    m.d.sync += [row_block.eq(Mux(self.single, last_block, in_window)), head.eq(head_of[lowest])]
                    m.next = "TILES"
            with m.State("TILES"):
                m.d.comb += self.o_tile.valid.eq(1)
                with m.If(self.o_tile.ready):
                    m.d.sync += key_tile.eq(key_tile + 1)
                    with m.If(last_tile):
                        m.d.sync += [key_tile.eq(0), group.eq(group + 1)]
                        with m.If(last_group):
                            with m.If(diagonal):
                                m.d.sync += begun.bit_select(slot, 1).eq(0)
                            m.next = "JOB"
                            with m.If(last_job):
                                m.d.comb += self.i_visit.ready.eq(1)
                                m.next = "VISIT"
        return m
