"""A pass of the index: every key block once, for all heads and row groups of the queries that are held on chip."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.bus.streams import ADDRESS_BITS, BLOCK_BITS, FetchKind, TileMode, fetch_request, tile_command
from intaglio.rtl.memory.ram import index_bits

__all__ = ["IndexPass", "pass_tiles"]


def pass_tiles(config, *, blocks, heads, groups, rows=None):
    """Commands of a pass (one a cycle) over blocks, the last one of ``rows`` keys (all without)."""
    last = -(-(rows or config.block) // config.head_dim)
    return ((blocks - 1) * config.tiles + last) * heads * groups


class IndexPass(wiring.Component):
    """Asks for key blocks in ascending order and gives the tile commands of MAX, MASS or NORM.

    Blocks wait in lines 0..lines-1 in turn; a line is asked for again when the engine has retired it. A pass runs over ``heads`` slots
    from ``slot`` on; in a slot over ``groups`` row groups from ``group`` on. NORM reads no keys.

    Parameters
    ----------
    config : PrefillConfig

    Members
    -------
    start : In(1)
        Begin a pass; everything else below is stable until ``done``.
    mode : In(2)
    blocks : In
        Key blocks, 1 at least.
    last_row : In
        Index of the last key of the last block: tiles wholly past it are left out.
    base : In(44)
        Address of the first key block; blocks lie ``page_bytes`` apart.
    slot, heads, group, groups : In
        Counts are 1 at least. Head h of the pass (0, 1, ...) and the g-th of its row groups have state ``h * row_groups + g``.
    query : In(signed)
        Index of lane 0 of row group ``group``, for the causal mask.
    o_fetch : Out(stream of fetch_request)
    arrived : In(1)
        A block asked for has come, in order.
    retired : In(1)
        The engine has read the last tile of a block.
    o_tile : Out(stream of tile_command)
    done : Out(1)
        High for a cycle when the last command has been taken and, but for NORM, the last block is retired.

    Latency
    -------
    One command a cycle if keys are there and the taker is ready: :func:`pass_tiles` + 2 cycles and the fetch of the first block.
    """

    def __init__(self, config):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "mode": In(2),
                "blocks": In(BLOCK_BITS),
                "last_row": In(index_bits(config.block)),
                "base": In(ADDRESS_BITS),
                "slot": In(index_bits(config.slots)),
                "heads": In(range(config.group + 1)),
                "group": In(index_bits(config.row_groups)),
                "groups": In(range(config.row_groups + 1)),
                "query": In(signed(19)),
                "o_fetch": Out(stream.Signature(fetch_request(config))),
                "arrived": In(1),
                "retired": In(1),
                "o_tile": Out(stream.Signature(tile_command(config))),
                "done": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c = self.config
        tile = self.o_tile.payload
        active, norm = Signal(), Signal()
        asked, there, over = (
            Signal(BLOCK_BITS),
            Signal(BLOCK_BITS),
            Signal(BLOCK_BITS),
        )  # blocks asked for, arrived, retired
        block, head = Signal(BLOCK_BITS), Signal.like(self.heads)
        group, key_tile = Signal.like(self.groups), Signal(index_bits(c.tiles))
        line, ask_line = Signal(index_bits(c.lines)), Signal(index_bits(c.lines))
        address, last = Signal(ADDRESS_BITS), Signal()
        m.d.comb += norm.eq(self.mode == TileMode.NORM)

        request = self.o_fetch.payload
        m.d.comb += [
            self.o_fetch.valid.eq(active & ~norm & (asked != self.blocks) & (asked - over < c.lines)),
            request.kind.eq(FetchKind.K),
            request.address.eq(address),
            request.index.eq(ask_line),
            request.last_row.eq(Mux(asked == self.blocks - 1, self.last_row, c.block - 1)),
        ]
        with m.If(self.o_fetch.valid & self.o_fetch.ready):
            m.d.sync += [
                asked.eq(asked + 1),
                address.eq(address + c.page_bytes),
                ask_line.eq(Mux(ask_line == c.lines - 1, 0, ask_line + 1)),
            ]
        with m.If(self.arrived):
            m.d.sync += there.eq(there + 1)
        with m.If(self.retired):
            m.d.sync += over.eq(over + 1)

        last_tile, last_group, last_head, last_block = Signal(), Signal(), Signal(), Signal()
        dim_bits = c.head_dim.bit_length() - 1
        m.d.comb += [
            last_tile.eq(norm | (key_tile == Mux(last_block, self.last_row >> dim_bits, c.tiles - 1))),
            last_group.eq(group == self.groups - 1),
            last_head.eq(head == self.heads - 1),
            last_block.eq(norm | (block == self.blocks - 1)),
            last.eq(last_tile & last_group & last_head & last_block),
        ]
        offset = Signal(signed(21))
        m.d.comb += offset.eq(self.query + group * c.columns - block * c.block - key_tile * c.head_dim)
        m.d.comb += [
            tile.mode.eq(self.mode),
            tile.slot.eq(self.slot + head),
            tile.row_group.eq(self.group + group),
            tile.line.eq(line),
            tile.tile.eq(key_tile),
            tile.state.eq(head * c.row_groups + group),
            tile.limit.eq(Mux(offset > c.head_dim, c.head_dim, Mux(offset < -c.columns, -c.columns, offset))),
            tile.first.eq((block == 0) & (key_tile == 0)),
            tile.load.eq(~norm & (key_tile == 0)),
            tile.finish.eq(~norm & last_tile & last_group),
            tile.retire.eq(~norm & last_tile & last_group & last_head),
            tile.head.eq(self.slot + head),
            tile.block.eq(block),
            self.o_tile.valid.eq(active & (norm | (block != there))),
        ]
        with m.FSM(name="state"):
            with m.State("IDLE"):
                with m.If(self.start):
                    m.d.sync += [
                        active.eq(1),
                        asked.eq(0),
                        there.eq(0),
                        over.eq(0),
                        block.eq(0),
                        head.eq(0),
                        group.eq(0),
                        key_tile.eq(0),
                        line.eq(0),
                        ask_line.eq(0),
                        address.eq(self.base),
                    ]
                    m.next = "TILES"
            with m.State("TILES"):
                with m.If(self.o_tile.valid & self.o_tile.ready):
                    m.d.sync += key_tile.eq(key_tile + 1)
                    with m.If(last_tile):
                        m.d.sync += [key_tile.eq(0), group.eq(group + 1)]
                        with m.If(last_group):
                            m.d.sync += [group.eq(0), head.eq(head + 1)]
                            with m.If(last_head):
                                m.d.sync += [
                                    head.eq(0),
                                    block.eq(block + 1),
                                    line.eq(Mux(line == c.lines - 1, 0, line + 1)),
                                ]
                    with m.If(last):
                        m.d.sync += active.eq(0)
                        m.next = "END"
            with m.State("END"):
                with m.If(norm | (over == self.blocks)):
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
        return m
