"""Index unit: which blocks each query block attends to, from the last queries and all keys (FAST-Prefill's SIGU)."""

from amaranth.hdl import Array, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.arithmetic.attention import MASS_FRACTION, SCORE_BITS
from intaglio.rtl.bus.streams import (
    ADDRESS_BITS,
    BLOCK_BITS,
    FetchKind,
    Mode,
    Phase,
    fetch_request,
    mass_tag,
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
    mass_valid, mass_p, mass_t, mass_key, mass_tag : In
        Of the tile engine.
    pick_en, pick_index, pick_vertical, pick_slash, row_en, row_head, row_batch, row_index, row_mask, map_start : Out; map_done : In(1)
        Of :class:`~intaglio.rtl.index.block_map.BlockMap`.
    aware : Out(group)
        Query-aware heads; until the next start.
    phase : Out(Phase)
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
                "mass_valid": In(1),
                "mass_p": In(MASS_FRACTION).array(c.columns),
                "mass_t": In(signed(SCORE_BITS)).array(c.columns),
                "mass_key": In(index_bits(c.head_dim)),
                "mass_tag": In(mass_tag(c)),
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
                "phase": Out(Phase),
                "busy": Out(1),
                "done": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c = self.config
        m.submodules.passes = passes = IndexPass(c)
        m.submodules.masses = masses = BlockMasses(c)
        m.submodules.scores = scores = ScoreStore(c)
        m.submodules.selector = selector = Selector(c)
        m.submodules.decision = decision = Decision(c)
        block_bytes = 2 * c.block * c.head_dim  # of a Q block
        row_bits = c.block.bit_length() - 1

        # What is being done: the last queries of all heads, or pooled rows of one head.
        pooled = Signal()
        head, pooled_block, group = Signal(range(c.group + 1)), Signal(BLOCK_BITS), Signal(range(c.row_groups + 1))
        batch = Signal(index_bits(c.batches))
        asked, arrived, wanted = (Signal(range(c.group + 1), name=name) for name in ("asked", "arrived", "wanted"))
        address, head_stride = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS)
        asking, mode = Signal(), Signal(Mode)
        rows_below = Signal(BLOCK_BITS + 8)  # first row after the batch
        last_batch = Signal()
        m.d.comb += [rows_below.eq((batch + 1) * c.columns), last_batch.eq(rows_below >= self.blocks)]

        # Key blocks for the pass, query blocks for this unit: never both at a time.
        m.d.comb += [
            self.o_fetch.valid.eq(asking | passes.o_fetch.valid),
            self.o_fetch.payload.eq(passes.o_fetch.payload),
            passes.o_fetch.ready.eq(self.o_fetch.ready & ~asking),
        ]
        with m.If(asking):
            m.d.comb += [
                self.o_fetch.p.kind.eq(FetchKind.Q),
                self.o_fetch.p.address.eq(address),
                self.o_fetch.p.index.eq(asked),
            ]
            with m.If(self.o_fetch.ready):
                m.d.sync += [asked.eq(asked + 1), address.eq(address + head_stride)]
        m.d.sync += arrived.eq(arrived + self.query_arrived)
        m.d.comb += asking.eq(asked != wanted)

        query = Signal(signed(19))
        with m.If(pooled):
            m.d.comb += query.eq(batch * c.columns)
        with m.Else():
            m.d.comb += query.eq(self.tokens - c.block)
        m.d.comb += [
            passes.mode.eq(mode),
            passes.blocks.eq(Mux(pooled, pooled_block + 1, self.blocks)),
            passes.base.eq(Mux(pooled, self.pooled_k_base, self.kv_base)),
            passes.slot.eq(0),
            passes.heads.eq(Mux(pooled, 1, c.group)),
            passes.group.eq(Mux(pooled, group, 0)),
            passes.groups.eq(Mux(pooled, 1, c.row_groups)),
            passes.query.eq(query),
            passes.arrived.eq(self.key_arrived),
            passes.retired.eq(self.retired),
            self.o_tile.valid.eq(passes.o_tile.valid),
            self.o_tile.payload.eq(passes.o_tile.payload),
            passes.o_tile.ready.eq(self.o_tile.ready),
        ]

        # Masses: to the block scores, or lane by lane to the memory of the selector.
        mass_index = Signal(BLOCK_BITS + 8)
        m.d.comb += [
            masses.valid.eq(self.mass_valid & ~pooled),
            masses.key.eq(self.mass_key),
            masses.tag.eq(self.mass_tag),
            masses.pad.eq((-self.tokens)[:row_bits]),
            scores.blocks.eq(self.blocks),
            scores.valid.eq(masses.o_valid),
            scores.head.eq(masses.o_head),
            scores.pool.eq(masses.o_pool),
            selector.write_en.eq(self.mass_valid & pooled & (mass_index < selector.count)),
            selector.write_index.eq(mass_index),
            selector.write_lanes.eq(-1),
            selector.gamma16.eq(self.gamma16),
            selector.count.eq(Mux(pooled & ~last_batch, rows_below, self.blocks)),
        ]
        m.d.comb += [a.eq(b) for a, b in zip(masses.p, self.mass_p, strict=True)]
        m.d.comb += [a.eq(b) for a, b in zip(masses.t, self.mass_t, strict=True)]
        m.d.comb += [a.eq(b) for a, b in zip(scores.mass, masses.o_mass, strict=True)]
        m.d.comb += [a.eq(b) for a, b in zip(selector.write_data, self.mass_p, strict=True)]
        wiring.connect(m, scores.o_add, selector.i_add)
        with m.If(self.mass_valid):
            m.d.sync += mass_index.eq(mass_index + 1)

        # Decision, head by head, while the selector searches in all lanes.
        decided, selected = Signal(), Signal()
        m.d.comb += [
            decision.count.eq(self.blocks),
            decision.inverse.eq(self.inverse),
            decision.threshold.eq(self.threshold),
            scores.read_head.eq(head),
            scores.read_block.eq(decision.o_block),
            decision.ver.eq(scores.ver),
            decision.pool.eq(scores.pool_sum),
        ]
        picking = selector.o_valid & ~pooled
        m.d.comb += [
            self.pick_en.eq(picking),
            self.pick_index.eq(selector.o_index),
            self.row_en.eq(selector.o_valid & pooled),
            self.row_head.eq(head),
            self.row_batch.eq(batch),
            self.row_index.eq(selector.o_index),
            self.row_mask.eq(selector.o_keep),
        ]
        for number in range(c.group):
            m.d.comb += [
                self.pick_vertical[number].eq(selector.o_keep[2 * number]),
                self.pick_slash[number].eq(selector.o_keep[2 * number + 1]),
            ]
        settled = Signal(range(BlockMasses.LATENCY + 2))  # the engine is idle, the masses on their way have come
        quiet = self.engine_idle & ~scores.busy & ~scores.valid

        def begin_pass(which):
            m.d.comb += passes.start.eq(1)
            m.d.sync += mode.eq(which)
            m.next = which.name

        m.d.comb += self.busy.eq(1)
        with m.FSM(name="state"):
            with m.State("IDLE"):
                m.d.comb += [self.busy.eq(0), self.phase.eq(Phase.IDLE)]
                m.d.sync += [
                    pooled.eq(0),
                    head.eq(0),
                    asked.eq(0),
                    arrived.eq(0),
                    wanted.eq(0),
                    batch.eq(0),
                    group.eq(0),
                ]
                with m.If(self.start):
                    m.d.sync += self.aware.eq(0)
                    with m.If(self.dense):
                        m.next = "MAP"
                    with m.Else():
                        m.d.sync += [wanted.eq(c.group), address.eq(self.last_base), head_stride.eq(block_bytes)]
                        m.next = "CLEAR"
            with m.State("CLEAR"):
                m.d.comb += [self.phase.eq(Phase.LOAD), selector.clear.eq(1), scores.clear.eq(1)]
                m.next = "LOAD"
            with m.State("LOAD"):
                m.d.comb += self.phase.eq(Mux(pooled, Phase.POOL, Phase.LOAD))
                with m.If((arrived == wanted) & ~selector.busy):
                    begin_pass(Mode.MAX)
            with m.State("MAX"):
                m.d.comb += self.phase.eq(Mux(pooled, Phase.POOL, Phase.MAX))
                with m.If(passes.done):
                    m.next = "MAX_END"
            with m.State("MAX_END"):
                m.d.comb += self.phase.eq(Mux(pooled, Phase.POOL, Phase.MAX))
                begin_pass(Mode.NORM)
            with m.State("NORM"):
                m.d.comb += self.phase.eq(Mux(pooled, Phase.POOL, Phase.MAX))
                with m.If(passes.done):
                    m.next = "NORM_END"
            with m.State("NORM_END"):
                m.d.comb += self.phase.eq(Mux(pooled, Phase.POOL, Phase.MAX))
                m.d.sync += mass_index.eq(0)
                begin_pass(Mode.MASS)
            with m.State("MASS"):
                m.d.comb += self.phase.eq(Mux(pooled, Phase.POOL, Phase.MASS))
                m.d.sync += settled.eq(0)
                with m.If(passes.done):
                    m.next = "SETTLE"
            with m.State("SETTLE"):
                m.d.comb += self.phase.eq(Mux(pooled, Phase.POOL, Phase.MASS))
                m.d.sync += settled.eq(Mux(quiet, settled + 1, 0))
                with m.If(quiet & (settled == BlockMasses.LATENCY + 1)):
                    m.d.sync += [decided.eq(pooled), selected.eq(0)]
                    m.d.comb += selector.start.eq(1)
                    m.next = "SELECT"
                    with m.If(~pooled):
                        m.d.comb += decision.start.eq(1)
            with m.State("SELECT"):
                m.d.comb += self.phase.eq(Mux(pooled, Phase.POOL, Phase.SELECT))
                with m.If(selector.done):
                    m.d.sync += selected.eq(1)
                with m.If(decision.done):
                    m.d.sync += [self.aware.bit_select(head, 1).eq(decision.query_aware), head.eq(head + 1)]
                    m.next = "DECIDE"
                with m.If(decided & selected):
                    m.next = "BATCH"
            with m.State("DECIDE"):
                m.d.comb += self.phase.eq(Phase.SELECT)
                with m.If(selector.done):
                    m.d.sync += selected.eq(1)
                m.next = "SELECT"
                with m.If(head == c.group):
                    m.d.sync += decided.eq(1)
                with m.Else():
                    m.d.comb += decision.start.eq(1)
            with m.State("BATCH"):  # the next pooled batch, or the first, or the next head's
                m.d.comb += self.phase.eq(Phase.POOL)
                m.d.sync += [asked.eq(0), arrived.eq(0), wanted.eq(0)]
                with m.If(~pooled):
                    m.d.sync += [pooled.eq(1), head.eq(0), address.eq(self.pooled_q_base)]
                    m.next = "HEAD"
                with m.Elif(last_batch):
                    m.d.sync += [head.eq(head + 1), address.eq(address + block_bytes)]
                    m.next = "HEAD"
                with m.Elif(group == c.row_groups - 1):
                    m.d.sync += [
                        batch.eq(batch + 1),
                        group.eq(0),
                        pooled_block.eq(pooled_block + 1),
                        wanted.eq(1),
                        address.eq(address + block_bytes),
                    ]
                    m.next = "LOAD"
                with m.Else():
                    m.d.sync += [batch.eq(batch + 1), group.eq(group + 1)]
                    m.next = "LOAD"
            with m.State("HEAD"):
                m.d.comb += self.phase.eq(Phase.POOL)
                m.d.sync += [batch.eq(0), group.eq(0), pooled_block.eq(0), head_stride.eq(0)]
                with m.If(head == c.group):
                    m.next = "MAP"
                with m.Elif(Array(self.aware[i] for i in range(c.group))[head]):
                    m.d.sync += wanted.eq(1)
                    m.next = "LOAD"
                with m.Else():
                    m.d.sync += [
                        head.eq(head + 1),
                        address.eq(address + ((self.blocks + c.block - 1) >> row_bits) * block_bytes),
                    ]
            with m.State("MAP"):
                m.d.comb += [self.phase.eq(Phase.MAP), self.map_start.eq(1)]
                m.next = "MAP_WAIT"
            with m.State("MAP_WAIT"):
                m.d.comb += self.phase.eq(Phase.MAP)
                with m.If(self.map_done):
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
        return m
