"""Index unit: which blocks each query block attends to, from the last queries and all keys (FAST-Prefill's SIGU)."""

from types import SimpleNamespace

from amaranth.hdl import Array, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.bus.streams import (
    ADDRESS_BITS,
    BLOCK_BITS,
    FetchKind,
    RunPhase,
    TileMode,
    fetch_request,
    masses,
    offset_of,
    tile_command,
)
from intaglio.rtl.index.decide import Decision
from intaglio.rtl.index.masses import BlockMasses
from intaglio.rtl.index.passes import IndexPass
from intaglio.rtl.index.scores import ScoreStore
from intaglio.rtl.index.select import Selector
from intaglio.rtl.memory.ram import index_bits

__all__ = ["IndexUnit"]


class IndexUnit(wiring.Component):
    """Runs the index: queries, passes, decision, selection, pooled rows of query-aware heads, and the expansion into the map.

    Parameters
    ----------
    config : PrefillConfig

    Members
    -------
    start : In(1)
        Begin; the inputs below it are stable until ``done``.
    dense : In(1)
        Keep every causal block: only the map is written.
    blocks : In; tokens : In(18)
        Of the run. Not dense: tokens >= block.
    gamma16 : In(17), threshold : In(32), inverse : In(17)
        See docs/prefill.md; inverse is that of the last block's tokens.
    kv_base, last_base, pooled_q_base, pooled_k_base : In(44)
    o_fetch : Out(stream of fetch_request); query_arrived, key_arrived : In(1)
        A block of queries, of keys has come.
    o_tile : Out(stream of tile_command); retired : In(1); engine_idle : In(1)
    masses : In(:func:`~intaglio.rtl.bus.streams.masses`)
        Of the tile engine.
    pick_en, pick_index, pick_vertical, pick_slash, row_en, row_head, row_batch, row_index, row_mask, map_start : Out; map_done : In(1)
        Of :class:`~intaglio.rtl.index.block_map.BlockMap`.
    aware : Out(group)
        Query-aware heads; until the next start.
    phase : Out(RunPhase)
    busy, done : Out(1)

    Latency: :func:`intaglio.gen.cycles.attention.index_cycles`, if the memory keeps up.
    """

    def __init__(self, config):
        self.config = config
        c, block = config, BLOCK_BITS
        super().__init__(
            {
                "start": In(1),
                "dense": In(1),
                "blocks": In(block),
                "tokens": In(18),
                "gamma16": In(17),
                "threshold": In(32),
                "inverse": In(17),
                **{f"{name}_base": In(ADDRESS_BITS) for name in ("kv", "last", "pooled_q", "pooled_k")},
                "o_fetch": Out(stream.Signature(fetch_request(c))),
                "query_arrived": In(1),
                "key_arrived": In(1),
                "o_tile": Out(stream.Signature(tile_command(c))),
                "retired": In(1),
                "engine_idle": In(1),
                "masses": In(masses(c)),
                "pick_en": Out(1),
                "pick_index": Out(block),
                "pick_vertical": Out(c.group),
                "pick_slash": Out(c.group),
                "row_en": Out(1),
                "row_head": Out(index_bits(c.group)),
                "row_batch": Out(index_bits(c.batches)),
                "row_index": Out(block),
                "row_mask": Out(c.columns),
                "map_start": Out(1),
                "map_done": In(1),
                "aware": Out(c.group),
                "phase": Out(RunPhase),
                "busy": Out(1),
                "done": Out(1),
            }
        )

    def elaborate(self, platform):
        m, c = Module(), self.config
        s = SimpleNamespace()  # units inside, and signals that the parts below share
        m.submodules.passes = s.passes = IndexPass(c)
        m.submodules.masses = s.masses = BlockMasses(c)
        m.submodules.scores = s.scores = ScoreStore(c)
        m.submodules.selector = s.selector = Selector(c)
        m.submodules.decision = s.decision = Decision(c)
        s.block_bytes = c.query_block_bytes  # of a Q block
        s.row_bits = c.block.bit_length() - 1
        self._place(m, s)
        self._fetch(m, s)
        self._passes(m, s)
        self._masses(m, s)
        self._decisions(m, s)
        s.settled = Signal(range(BlockMasses.LATENCY + 2))  # the engine is idle, the masses on their way have come
        s.quiet = self.engine_idle & ~s.scores.busy & ~s.scores.valid
        m.d.comb += self.busy.eq(1)
        with m.FSM(name="state"):
            self._pass_states(m, s)
            self._selection_states(m, s)
            self._pooled_states(m, s)
        return m

    def _place(self, m, s):
        """What is being done: the last queries of all heads, or pooled rows of one head."""
        c = self.config
        s.pooled = Signal()
        s.head, s.pooled_block, s.group = (
            Signal(range(c.group + 1)),
            Signal(BLOCK_BITS),
            Signal(range(c.row_groups + 1), name="group"),
        )
        s.batch = Signal(index_bits(c.batches))
        s.asked, s.arrived, s.wanted = (
            Signal(range(c.group + 1), name=name) for name in ("asked", "arrived", "wanted")
        )
        s.address, s.head_stride = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS, name="head_stride")
        s.asking, s.mode = Signal(), Signal(TileMode)
        s.rows_below = Signal(BLOCK_BITS + 8)  # first row after the batch
        s.last_batch = Signal()
        m.d.comb += [s.rows_below.eq((s.batch + 1) * c.columns), s.last_batch.eq(s.rows_below >= self.blocks)]

    def _fetch(self, m, s):
        """Key blocks for the pass, query blocks for this unit: never both at a time."""
        c, last_block, last_pooled = self.config, Signal(BLOCK_BITS), Signal()
        m.d.comb += [last_block.eq(self.blocks - 1), last_pooled.eq(s.pooled_block == last_block >> s.row_bits)]
        m.d.comb += [
            self.o_fetch.valid.eq(s.asking | s.passes.o_fetch.valid),
            self.o_fetch.payload.eq(s.passes.o_fetch.payload),
            s.passes.o_fetch.ready.eq(self.o_fetch.ready & ~s.asking),
        ]
        with m.If(s.asking):
            m.d.comb += [
                self.o_fetch.p.kind.eq(FetchKind.Q),
                self.o_fetch.p.address.eq(s.address),
                self.o_fetch.p.index.eq(s.asked),
                self.o_fetch.p.last_row.eq(Mux(s.pooled & last_pooled, last_block[: s.row_bits], c.block - 1)),
            ]
            with m.If(self.o_fetch.ready):
                m.d.sync += [s.asked.eq(s.asked + 1), s.address.eq(s.address + s.head_stride)]
        m.d.sync += s.arrived.eq(s.arrived + self.query_arrived)
        m.d.comb += s.asking.eq(s.asked != s.wanted)

    def _passes(self, m, s):
        """The pass over keys that is under way."""
        c = self.config
        query, last_key = Signal(signed(19)), Signal(18)
        with m.If(s.pooled):
            m.d.comb += [query.eq(s.batch * c.columns), last_key.eq(s.selector.count - 1)]
        with m.Else():
            m.d.comb += [query.eq(self.tokens - c.block), last_key.eq(self.tokens - 1)]
        m.d.comb += [
            s.passes.mode.eq(s.mode),
            s.passes.blocks.eq(Mux(s.pooled, s.pooled_block + 1, self.blocks)),
            s.passes.last_row.eq(last_key[: s.row_bits]),
            s.passes.base.eq(Mux(s.pooled, self.pooled_k_base, self.kv_base)),
            s.passes.slot.eq(0),
            s.passes.heads.eq(Mux(s.pooled, 1, c.group)),
            s.passes.group.eq(Mux(s.pooled, s.group, 0)),
            s.passes.groups.eq(Mux(s.pooled, 1, c.row_groups)),
            s.passes.query.eq(query),
            s.passes.arrived.eq(self.key_arrived),
            s.passes.retired.eq(self.retired),
            self.o_tile.valid.eq(s.passes.o_tile.valid),
            self.o_tile.payload.eq(s.passes.o_tile.payload),
            s.passes.o_tile.ready.eq(self.o_tile.ready),
        ]

    def _masses(self, m, s):
        """Masses: to the block scores, or lane by lane to the memory of the selector."""
        s.mass_index = Signal(BLOCK_BITS + 8)
        m.d.comb += [
            s.masses.valid.eq(self.masses.valid & ~s.pooled),
            s.masses.key.eq(self.masses.key),
            s.masses.tag.eq(self.masses.tag),
            s.masses.pad.eq((-self.tokens)[: s.row_bits]),
            s.scores.blocks.eq(self.blocks),
            s.scores.valid.eq(s.masses.o_valid),
            s.scores.head.eq(s.masses.o_head),
            s.scores.pool.eq(s.masses.o_pool),
            s.selector.write_en.eq(self.masses.valid & s.pooled & (s.mass_index < s.selector.count)),
            s.selector.write_index.eq(s.mass_index),
            s.selector.write_lanes.eq(-1),
            s.selector.gamma16.eq(self.gamma16),
            s.selector.count.eq(Mux(s.pooled & ~s.last_batch, s.rows_below, self.blocks)),
        ]
        m.d.comb += [a.eq(b) for a, b in zip(s.masses.p, self.masses.p, strict=True)]
        m.d.comb += [a.eq(b) for a, b in zip(s.masses.t, self.masses.t, strict=True)]
        m.d.comb += [a.eq(b) for a, b in zip(s.scores.mass, s.masses.o_mass, strict=True)]
        m.d.comb += [a.eq(b) for a, b in zip(s.selector.write_data, self.masses.p, strict=True)]
        wiring.connect(m, s.scores.o_add, s.selector.i_add)
        with m.If(self.masses.valid):
            m.d.sync += s.mass_index.eq(s.mass_index + 1)

    def _decisions(self, m, s):
        """Decision, head by head, while the selector searches in all lanes."""
        c = self.config
        s.decided, s.selected = Signal(), Signal(name="selected")
        m.d.comb += [
            s.decision.count.eq(self.blocks),
            s.decision.inverse.eq(self.inverse),
            s.decision.threshold.eq(self.threshold),
            s.scores.read_head.eq(s.head),
            s.scores.read_block.eq(s.decision.o_block),
            s.decision.ver.eq(s.scores.ver),
            s.decision.pool.eq(s.scores.pool_sum),
        ]
        picking = s.selector.o_valid & ~s.pooled
        m.d.comb += [
            self.pick_en.eq(picking),
            self.pick_index.eq(s.selector.o_index),
            self.row_en.eq(s.selector.o_valid & s.pooled),
            self.row_head.eq(s.head),
            self.row_batch.eq(s.batch),
            self.row_index.eq(s.selector.o_index),
            self.row_mask.eq(s.selector.o_keep),
        ]
        for number in range(c.group):
            m.d.comb += [
                self.pick_vertical[number].eq(s.selector.o_keep[2 * number]),
                self.pick_slash[number].eq(s.selector.o_keep[2 * number + 1]),
            ]

    def _begin_pass(self, m, s, which):
        m.d.comb += s.passes.start.eq(1)
        m.d.sync += s.mode.eq(which)
        m.next = which.name

    def _pass_states(self, m, s):
        """From the queries to the masses: of the last queries, or of a batch of pooled rows."""
        c = self.config
        with m.State("IDLE"):
            m.d.comb += [self.busy.eq(0), self.phase.eq(RunPhase.IDLE)]
            m.d.sync += [
                s.pooled.eq(0),
                s.head.eq(0),
                s.asked.eq(0),
                s.arrived.eq(0),
                s.wanted.eq(0),
                s.batch.eq(0),
                s.group.eq(0),
            ]
            with m.If(self.start):
                m.d.sync += self.aware.eq(0)
                with m.If(self.dense):
                    m.next = "MAP"
                with m.Else():
                    m.d.sync += [s.wanted.eq(c.group), s.address.eq(self.last_base), s.head_stride.eq(s.block_bytes)]
                    m.next = "CLEAR"
        with m.State("CLEAR"):
            m.d.comb += [self.phase.eq(RunPhase.LOAD), s.selector.clear.eq(1), s.scores.clear.eq(1)]
            m.next = "LOAD"
        with m.State("LOAD"):
            m.d.comb += self.phase.eq(Mux(s.pooled, RunPhase.POOL, RunPhase.LOAD))
            with m.If((s.arrived == s.wanted) & ~s.selector.busy):
                self._begin_pass(m, s, TileMode.MAX)
        with m.State("MAX"):
            m.d.comb += self.phase.eq(Mux(s.pooled, RunPhase.POOL, RunPhase.MAX))
            with m.If(s.passes.done):
                m.next = "MAX_END"
        with m.State("MAX_END"):
            m.d.comb += self.phase.eq(Mux(s.pooled, RunPhase.POOL, RunPhase.MAX))
            self._begin_pass(m, s, TileMode.NORM)
        with m.State("NORM"):
            m.d.comb += self.phase.eq(Mux(s.pooled, RunPhase.POOL, RunPhase.MAX))
            with m.If(s.passes.done):
                m.next = "NORM_END"
        with m.State("NORM_END"):
            m.d.comb += self.phase.eq(Mux(s.pooled, RunPhase.POOL, RunPhase.MAX))
            m.d.sync += s.mass_index.eq(0)
            self._begin_pass(m, s, TileMode.MASS)
        with m.State("MASS"):
            m.d.comb += self.phase.eq(Mux(s.pooled, RunPhase.POOL, RunPhase.MASS))
            m.d.sync += s.settled.eq(0)
            with m.If(s.passes.done):
                m.next = "SETTLE"
        with m.State("SETTLE"):
            m.d.comb += self.phase.eq(Mux(s.pooled, RunPhase.POOL, RunPhase.MASS))
            m.d.sync += s.settled.eq(Mux(s.quiet, s.settled + 1, 0))
            with m.If(s.quiet & (s.settled == BlockMasses.LATENCY + 1)):
                m.d.sync += [s.decided.eq(s.pooled), s.selected.eq(0)]
                m.d.comb += s.selector.start.eq(1)
                m.next = "SELECT"
                with m.If(~s.pooled):
                    m.d.comb += s.decision.start.eq(1)

    def _selection_states(self, m, s):
        """Selection in all lanes; of the last queries the decisions too, head by head."""
        c = self.config
        with m.State("SELECT"):
            m.d.comb += self.phase.eq(Mux(s.pooled, RunPhase.POOL, RunPhase.SELECT))
            with m.If(s.selector.done):
                m.d.sync += s.selected.eq(1)
            with m.If(s.decision.done):
                m.d.sync += [self.aware.bit_select(s.head, 1).eq(s.decision.query_aware), s.head.eq(s.head + 1)]
                m.next = "DECIDE"
            with m.If(s.decided & s.selected):
                m.next = "BATCH"
        with m.State("DECIDE"):
            m.d.comb += self.phase.eq(RunPhase.SELECT)
            with m.If(s.selector.done):
                m.d.sync += s.selected.eq(1)
            m.next = "SELECT"
            with m.If(s.head == c.group):
                m.d.sync += s.decided.eq(1)
            with m.Else():
                m.d.comb += s.decision.start.eq(1)

    def _pooled_states(self, m, s):
        """What comes next: a batch of pooled rows, a head, the map."""
        c = self.config
        with m.State("BATCH"):  # the next pooled batch, or the first, or the next head's
            m.d.comb += self.phase.eq(RunPhase.POOL)
            m.d.sync += [s.asked.eq(0), s.arrived.eq(0), s.wanted.eq(0)]
            with m.If(~s.pooled):
                m.d.sync += [s.pooled.eq(1), s.head.eq(0), s.address.eq(self.pooled_q_base)]
                m.next = "HEAD"
            with m.Elif(s.last_batch):
                m.d.sync += [s.head.eq(s.head + 1), s.address.eq(s.address + s.block_bytes)]
                m.next = "HEAD"
            with m.Elif(s.group == c.row_groups - 1):
                m.d.sync += [
                    s.batch.eq(s.batch + 1),
                    s.group.eq(0),
                    s.pooled_block.eq(s.pooled_block + 1),
                    s.wanted.eq(1),
                    s.address.eq(s.address + s.block_bytes),
                ]
                m.next = "LOAD"
            with m.Else():
                m.d.sync += [s.batch.eq(s.batch + 1), s.group.eq(s.group + 1)]
                m.next = "LOAD"
        with m.State("HEAD"):
            m.d.comb += self.phase.eq(RunPhase.POOL)
            m.d.sync += [s.batch.eq(0), s.group.eq(0), s.pooled_block.eq(0), s.head_stride.eq(0)]
            with m.If(s.head == c.group):
                m.next = "MAP"
            with m.Elif(Array(self.aware[i] for i in range(c.group))[s.head]):
                m.d.sync += s.wanted.eq(1)
                m.next = "LOAD"
            with m.Else():
                m.d.sync += [
                    s.head.eq(s.head + 1),
                    s.address.eq(s.address + offset_of((self.blocks + c.block - 1) >> s.row_bits, s.block_bytes)),
                ]
        with m.State("MAP"):
            m.d.comb += [self.phase.eq(RunPhase.MAP), self.map_start.eq(1)]
            m.next = "MAP_WAIT"
        with m.State("MAP_WAIT"):
            m.d.comb += self.phase.eq(RunPhase.MAP)
            with m.If(self.map_done):
                m.d.comb += self.done.eq(1)
                m.next = "IDLE"
