"""Loads the query blocks of the windows into their slots, as soon as a slot is free."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.bus.streams import ADDRESS_BITS, BLOCK_BITS, FetchKind, fetch_request, offset_of
from intaglio.rtl.memory.ram import index_bits

__all__ = ["QueryLoader"]


class QueryLoader(wiring.Component):
    """Asks for the Q blocks of a run, window by window and in it slot by slot (``q * group + h``).

    A slot is asked for again when its results have been drained; blocks of a window are finished in the order of slots, so one
    pointer does.

    Parameters
    ----------
    config : PrefillConfig

    Members
    -------
    start : In(1)
        All slots are free.
    blocks : In
        Of the run, and between the heads in memory; stable.
    last_row : In
        Index of the last row of the last block. Stable.
    single : In(1)
        One Q block for the run, at ``base``, whose rows are the heads. Stable.
    base : In(44)
        Of Q block (head h, block b): ``base + (h * blocks + b) * query_block_bytes``. Stable.
    o_fetch : Out(stream of fetch_request)
    arrived : In(1), arrived_slot : In
        The queries of the slot are there.
    spent : In(1), spent_slot : In
        The last tile that needs them has been taken.
    drained : In(1), drained_slot : In
        The slot's results have left.
    loaded : Out(slots)
        Slots whose queries are there and whose accumulators may be used.

    Throughput: a request a cycle, from the cycle after ``start`` on, while slots are free.
    """

    def __init__(self, config):
        self.config = config
        slot = index_bits(config.slots)
        super().__init__(
            {
                "start": In(1),
                "blocks": In(BLOCK_BITS),
                "last_row": In(index_bits(config.block)),
                "single": In(1),
                "base": In(ADDRESS_BITS),
                "o_fetch": Out(stream.Signature(fetch_request(config))),
                "arrived": In(1),
                "arrived_slot": In(slot),
                "spent": In(1),
                "spent_slot": In(slot),
                "drained": In(1),
                "drained_slot": In(slot),
                "loaded": Out(config.slots),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c = self.config
        size = c.query_block_bytes
        free, slot = Signal(c.slots), Signal(index_bits(c.slots))
        head, block = Signal(index_bits(c.group)), Signal(BLOCK_BITS)
        row_address, address = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS)  # of head 0, of this head
        request = self.o_fetch.payload
        last_head, last_block = head == c.group - 1, Signal()
        m.d.comb += [
            last_block.eq(block == self.blocks - 1),
            request.kind.eq(FetchKind.Q),
            request.address.eq(address),
            request.index.eq(slot),
            request.last_row.eq(Mux(self.single, c.group - 1, Mux(last_block, self.last_row, c.block - 1))),
        ]
        with m.FSM(name="state"):
            with m.State("IDLE"):
                with m.If(self.start):
                    m.d.sync += [
                        free.eq(-1),
                        self.loaded.eq(0),
                        slot.eq(0),
                        head.eq(0),
                        block.eq(0),
                        row_address.eq(self.base),
                        address.eq(self.base),
                    ]
                    m.next = "ASK"
            with m.State("ASK"):
                m.d.comb += self.o_fetch.valid.eq(free.bit_select(slot, 1))
                with m.If(self.o_fetch.valid & self.o_fetch.ready):
                    m.d.sync += [
                        free.bit_select(slot, 1).eq(0),
                        slot.eq(slot + 1),
                        head.eq(head + 1),
                        address.eq(address + offset_of(self.blocks, size)),
                    ]
                    with m.If(slot == c.slots - 1):
                        m.d.sync += slot.eq(0)
                    with m.If(last_head):
                        m.d.sync += [
                            head.eq(0),
                            block.eq(block + 1),
                            row_address.eq(row_address + size),
                            address.eq(row_address + size),
                        ]
                        with m.If(last_block):
                            m.next = "IDLE"
                    with m.If(self.single):
                        m.next = "IDLE"
        with m.If(self.drained):
            m.d.sync += free.bit_select(self.drained_slot, 1).eq(1)
        with m.If(self.arrived):
            m.d.sync += self.loaded.bit_select(self.arrived_slot, 1).eq(1)
        with m.If(self.spent):
            m.d.sync += self.loaded.bit_select(self.spent_slot, 1).eq(0)
        return m
