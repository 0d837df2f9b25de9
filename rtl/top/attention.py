"""Core of the prefill unit: index, schedule, cache, jobs, tile engine and fetch around their stores."""

from amaranth.hdl import Cat, Module, Mux, ResetInserter, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from intaglio.rtl.attention.drain import results
from intaglio.rtl.attention.engine import TileEngine
from intaglio.rtl.attention.queries import QueryLoader
from intaglio.rtl.attention.stores import Stores
from intaglio.rtl.bus.streams import ADDRESS_BITS, BLOCK_BITS, FetchKind, RunPhase, offset_of
from intaglio.rtl.control.jobs import JobSequencer
from intaglio.rtl.control.schedule import Schedule
from intaglio.rtl.index.block_map import BlockMap
from intaglio.rtl.index.unit import IndexUnit
from intaglio.rtl.kv.cache import COUNTER_BITS, HEAD_BITS, TENANT_BITS, CacheControl
from intaglio.rtl.kv.fetch import Fetch, FetchFault, memory_port
from intaglio.rtl.matrix.unit import MatrixUnit
from intaglio.rtl.memory.ram import index_bits

__all__ = ["MONITOR", "PARAMETERS", "PrefillCore"]

PARAMETERS = {  # of a run: bits
    "dense": 1,
    "tokens": 18,
    "gamma16": 17,
    "threshold": 32,
    "inverse": 17,
    "tenant": TENANT_BITS,
    "kv_head": HEAD_BITS,
    "hot_threshold": 16,
    "timeout": 24,
    **{f"{name}_base": ADDRESS_BITS for name in ("kv", "q", "last", "pooled_q", "pooled_k")},
    "single": 1,
}
MONITOR = ("keys", "values", "draining", "fetching", "stalled", "waiting")


class PrefillCore(wiring.Component):
    """One KV head and its query heads over one prompt, from memory to the output stream.

    Parameters
    ----------
    config : PrefillConfig
    matrix : wiring.Component or None
        In place of the :class:`~intaglio.rtl.matrix.unit.MatrixUnit` of the configuration; the same members and latency.

    Members
    -------
    start : In(1)
        While not ``busy``: begin a run with the parameters (:data:`PARAMETERS`, docs/prefill.md), which stay until ``done``.
        1 <= tokens <= context; dense or single if tokens < block. ``single``: one query for each head at the last token, in one Q block.
    cancel : In(1)
        End the run at once.
    forget : In(1)
        The memory behind the blocks on chip has changed. Ignored while ``busy``; a run with an index forgets them itself.
    busy : Out(1); done : Out(1)
        High for a cycle at the end of a run, with ``failed`` if it was a fault or ``cancel``. fault : Out(FetchFault), of the last run.
    phase : Out(RunPhase), aware : Out(group)
    o : Out(stream of :func:`~intaglio.rtl.attention.drain.results`)
        Broken off by a fault or ``cancel``.
    map_head, map_batch, map_block : In; map_word : Out(columns)
        The block map of the last run, one cycle later, while not ``busy``.
    hits, misses, evictions, stalls, beats, fetch_stalled, fetch_idle, rows : Out(32)
        Since ``start``; rows: cycles in which the matrix unit takes a row.
    monitor : Out
        Bits of :data:`MONITOR`: what happens in this cycle, for time lines.
    memory : Out(AXI4 read master)
        See :class:`~intaglio.rtl.kv.fetch.Fetch`.

    Latency: :func:`intaglio.gen.cycles.attention.run_cycles`.
    """

    def __init__(self, config, *, matrix=None):
        self.config = config
        self.matrix = matrix or MatrixUnit(config.head_dim, config.columns, config.lut_columns)
        super().__init__(
            {
                "start": In(1),
                "cancel": In(1),
                "forget": In(1),
                **{name: In(bits) for name, bits in PARAMETERS.items()},
                "busy": Out(1),
                "done": Out(1),
                "failed": Out(1),
                "fault": Out(FetchFault),
                "phase": Out(RunPhase),
                "aware": Out(config.group),
                "o": Out(stream.Signature(results(config))),
                "map_head": In(index_bits(config.group)),
                "map_batch": In(index_bits(config.batches)),
                "map_block": In(BLOCK_BITS),
                "map_word": Out(config.columns),
                **{
                    name: Out(COUNTER_BITS)
                    for name in (
                        "hits",
                        "misses",
                        "evictions",
                        "stalls",
                        "beats",
                        "fetch_stalled",
                        "fetch_idle",
                        "rows",
                    )
                },
                "monitor": Out(len(MONITOR)),
                "memory": Out(memory_port(config)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        c = self.config
        restart, blocks = Signal(), Signal(BLOCK_BITS)
        units = {
            "index": IndexUnit(c),
            "block_map": BlockMap(c),
            "schedule": Schedule(c),
            "cache": CacheControl(c),
            "jobs": JobSequencer(c),
            "queries": QueryLoader(c),
            "engine": TileEngine(c, self.matrix),
            "stores": Stores(c),
        }
        for name, unit in units.items():
            m.submodules[name] = ResetInserter(restart)(unit)
        index, block_map, schedule, cache, jobs, queries, engine, stores = units.values()
        m.submodules.fetch = fetch = Fetch(c)
        attending = self.phase == RunPhase.ATTEND
        last_row = Signal(index_bits(c.block))  # of the last block
        m.d.comb += [blocks.eq((self.tokens + (c.block - 1))[c.block.bit_length() - 1 :]), last_row.eq(self.tokens - 1)]

        # Parameters and counters.
        for name in (
            "dense",
            "tokens",
            "gamma16",
            "threshold",
            "inverse",
            "kv_base",
            "last_base",
            "pooled_q_base",
            "pooled_k_base",
        ):
            m.d.comb += getattr(index, name).eq(getattr(self, name))
        for unit in (index, block_map, schedule, queries, jobs):
            m.d.comb += unit.blocks.eq(blocks)
        for unit in (queries, jobs):
            m.d.comb += unit.last_row.eq(last_row)
        for unit in (schedule, queries, jobs, cache):
            m.d.comb += unit.single.eq(self.single)
        m.d.comb += [
            cache.tenant.eq(self.tenant),
            cache.kv_head.eq(self.kv_head),
            cache.partial.eq(last_row != c.block - 1),
            cache.hot_threshold.eq(self.hot_threshold),
            cache.clear.eq(self.start & ~self.busy),
            cache.flush.eq(~self.busy & (self.forget | (self.start & ~self.dense & ~self.single))),
            fetch.clear.eq(self.start & ~self.busy),
            fetch.cancel.eq(self.cancel),
            fetch.timeout.eq(self.timeout),
            queries.base.eq(self.q_base),
            self.aware.eq(index.aware),
            self.fault.eq(fetch.fault),
            self.beats.eq(fetch.beats),
            self.fetch_stalled.eq(fetch.stalled),
            self.fetch_idle.eq(fetch.idle),
        ]
        for name in ("hits", "misses", "evictions", "stalls"):
            m.d.comb += getattr(self, name).eq(getattr(cache, name))
        m.d.sync += self.rows.eq(Mux(self.start & ~self.busy, 0, self.rows + self.matrix.go))

        # Memory. In an attention run keys and queries take turns.
        turn = Signal()
        kv, request = cache.o_fetch, fetch.i_request
        with m.If(attending):
            choose_q = queries.o_fetch.valid & (turn | ~kv.valid)
            m.d.comb += [
                request.valid.eq(kv.valid | queries.o_fetch.valid),
                kv.ready.eq(request.ready & ~choose_q),
                queries.o_fetch.ready.eq(request.ready & choose_q),
            ]
            with m.If(choose_q):
                m.d.comb += request.payload.eq(queries.o_fetch.payload)
            with m.Else():
                m.d.comb += [
                    request.p.kind.eq(FetchKind.KV),
                    request.p.index.eq(kv.p.line),
                    request.p.last_row.eq(Mux(kv.p.block == blocks - 1, last_row, c.block - 1)),
                    request.p.address.eq(self.kv_base + offset_of(kv.p.block, c.page_bytes)),
                ]
            with m.If(request.valid & request.ready):
                m.d.sync += turn.eq(~choose_q)
        with m.Else():
            m.d.comb += [
                request.valid.eq(index.o_fetch.valid),
                request.payload.eq(index.o_fetch.payload),
                index.o_fetch.ready.eq(request.ready),
            ]
        arrived = fetch.o_fetched.valid
        is_q = fetch.o_fetched.p.kind == FetchKind.Q
        m.d.comb += [
            fetch.o_fetched.ready.eq(1),
            index.query_arrived.eq(arrived & is_q),
            index.key_arrived.eq(arrived & ~is_q),
            queries.arrived.eq(arrived & is_q & attending),
            queries.arrived_slot.eq(fetch.o_fetched.p.index),
            cache.done_en.eq(arrived & ~is_q & attending),
            cache.done_line.eq(fetch.o_fetched.p.index),
        ]
        wiring.connect(m, fetch.store, stores.write)
        wiring.connect(m, engine.store, stores.read)
        wiring.connect(m, fetch.memory, wiring.flipped(self.memory))

        self._tiles(m, index, jobs, engine, queries, cache, attending)
        self._map(m, index, block_map, schedule)
        wiring.connect(m, schedule.o_visit, cache.i_visit)
        wiring.connect(m, cache.o_visit, jobs.i_visit)
        m.d.comb += [jobs.line.eq(cache.line), jobs.loaded.eq(queries.loaded)]
        wiring.connect(m, wiring.flipped(self.o), engine.o)
        m.d.comb += self.monitor.eq(
            Cat(
                engine.store.k_read,
                engine.store.v_read,
                engine.o.valid,
                fetch.busy,
                attending & ~cache.o_visit.valid,
                jobs.waiting,
            )
        )

        # A run. Its last result is the end of its arithmetic, the retirement of its last visit that of the cache's work.
        left = Signal(range(c.blocks * c.group + 1))
        with m.If(engine.o_retired.slot):
            m.d.sync += left.eq(left - 1)
        broken = self.cancel | (fetch.fault != FetchFault.NONE)
        with m.FSM(name="state") as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("IDLE"))
            with m.State("IDLE"):
                with m.If(self.start):
                    m.next = "BEGIN"
            with m.State("BEGIN"):
                m.d.comb += self.phase.eq(RunPhase.LOAD)
                with m.If(self.single):
                    m.d.comb += [schedule.start.eq(1), queries.start.eq(1)]
                    m.d.sync += left.eq(1)
                    m.next = "ATTEND"
                with m.Else():
                    m.d.comb += index.start.eq(1)
                    m.d.sync += left.eq(blocks * c.group)
                    m.next = "INDEX"
            with m.State("INDEX"):
                m.d.comb += self.phase.eq(index.phase)
                with m.If(broken):
                    m.next = "STOP"
                with m.Elif(index.done):
                    m.d.comb += [schedule.start.eq(1), queries.start.eq(1)]
                    m.next = "ATTEND"
            with m.State("ATTEND"):
                m.d.comb += self.phase.eq(RunPhase.ATTEND)
                with m.If(broken):
                    m.next = "STOP"
                with m.Elif((left == 0) & cache.idle):
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
            with m.State("STOP"):
                m.d.comb += [restart.eq(1), self.done.eq(1), self.failed.eq(1)]
                m.next = "IDLE"
        return m

    def _tiles(self, m, index, jobs, engine, queries, cache, attending):
        """Commands to the engine from the index or the jobs; what it gives back."""
        with m.If(attending):
            m.d.comb += [
                engine.i_tile.valid.eq(jobs.o_tile.valid),
                engine.i_tile.payload.eq(jobs.o_tile.payload),
                jobs.o_tile.ready.eq(engine.i_tile.ready),
            ]
        with m.Else():
            m.d.comb += [
                engine.i_tile.valid.eq(index.o_tile.valid),
                engine.i_tile.payload.eq(index.o_tile.payload),
                index.o_tile.ready.eq(engine.i_tile.ready),
            ]
        m.d.comb += [
            index.retired.eq(engine.o_retired.visit),
            index.engine_idle.eq(engine.idle),
            cache.retire.eq(engine.o_retired.visit & attending),
            queries.drained.eq(engine.o_retired.slot),
            queries.drained_slot.eq(engine.o_retired.index),
            queries.spent.eq(jobs.o_tile.valid & jobs.o_tile.ready & jobs.o_tile.p.finish),
            queries.spent_slot.eq(jobs.o_tile.p.slot),
        ]
        wiring.connect(m, engine.masses, index.masses)

    def _map(self, m, index, block_map, schedule):
        """Writes of the map from the index; reads by the schedule, or from outside between runs."""
        for name in (
            "pick_en",
            "pick_index",
            "pick_vertical",
            "pick_slash",
            "row_en",
            "row_head",
            "row_batch",
            "row_index",
            "row_mask",
        ):
            m.d.comb += getattr(block_map, name).eq(getattr(index, name))
        m.d.comb += [
            block_map.start.eq(index.map_start),
            index.map_done.eq(block_map.done),
            block_map.dense.eq(self.dense),
            block_map.aware.eq(index.aware),
            block_map.read_en.eq(schedule.read_en | ~self.busy),
            block_map.read_head.eq(Mux(self.busy, schedule.read_head, self.map_head)),
            block_map.read_batch.eq(Mux(self.busy, schedule.read_batch, self.map_batch)),
            block_map.read_block.eq(Mux(self.busy, schedule.read_block, self.map_block)),
            schedule.read_data.eq(block_map.read_data),
            self.map_word.eq(block_map.read_data),
        ]
