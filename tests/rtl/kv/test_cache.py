"""KV cache control of sparse prefill attention against its model, under any timing of memory and consumer; with the schedule before it."""

import random

import pytest
from amaranth.hdl import Module, ResetInserter, Signal
from amaranth.lib.wiring import connect
from amaranth.sim import Simulator

from intaglio.rtl.control.schedule import Schedule
from intaglio.rtl.kv import cache as cache_rtl
from intaglio.rtl.kv.cache import CacheControl, decision_cycles
from intaglio.sim.attention.cache import every_block, simulate, visits
from tests.rtl.visits import CONFIGS, expected, fields, mutated, sparse


class Bench:
    """Runs of the cache control with a memory and a consumer of random speed; checks each decision as it is taken."""

    def __init__(self, config, seed, *, latency=30, work=60, gap=4, cls=CacheControl, alter=0):
        self.config, self.random, self.latency, self.work, self.gap = config, random.Random(seed), latency, work, gap
        self.dut, self.reset, self.alter = cls(config), Signal(), alter
        self.content, self.held, self.cycles, self.first_decision = {}, {}, 0, None

    def run(self, script):
        async def bench(ctx):
            self.ctx = ctx
            await script(self)

        sim = Simulator(ResetInserter(self.reset)(self.dut))
        sim.add_clock(1e-6)
        sim.add_testbench(bench)
        sim.run()

    def counters(self):
        return tuple(self.ctx.get(getattr(self.dut, name)) for name in ("hits", "misses", "evictions", "stalls"))

    def check_fetch(self, found, want, owner, fetches, line, block, retired):
        """The request is the model's, takes no pinned line, and no live block where a dead one could go."""
        assert len(fetches) < len(want.fetches) and want.fetches[len(fetches)][1:] == (line, block)
        index = want.fetches[len(fetches)][0]
        pinned = set(want.lines[retired:index])
        assert line not in pinned
        alive = {visit.block for visit in found[index:]} & {visit.block for visit in found[:index]}

        def live(n):
            return n in self.held and self.held[n][0] == owner and self.held[n][1] in alive

        if live(line):
            unpinned = set(range(self.config.lines)) - set(want.lines[want.rounds[index] : index])
            assert all(live(n) for n in unpinned)
        fetches.append((index, line, block))
        self.held[line] = owner, block
        self.content.pop(line, None)

    async def visit_all(
        self, found, want, owner, *, threshold=0, cancel_at=None, limit=60_000, single=False, partial=False
    ):
        ctx, dut, rng = self.ctx, self.dut, self.random
        before = self.counters()
        sent, taken, retired, fetches, busy, gap, cycle, stalls, running = 0, 0, 0, [], [], 0, 0, 0, False
        memory = []  # (cycle of completion, line, block)
        ctx.set(dut.tenant, owner[0])
        ctx.set(dut.kv_head, owner[1])
        ctx.set(dut.hot_threshold, threshold)
        ctx.set(dut.single, single)
        ctx.set(dut.partial, partial)
        cancelled = False
        while retired < len(found) or not ctx.get(dut.idle):
            offer = sent < len(found) and gap == 0 and not cancelled
            ctx.set(dut.i_visit.valid, int(offer))
            if offer:
                v = found[sent]
                ctx.set(
                    dut.i_visit.payload,
                    {
                        "window": v.window,
                        "block": v.block,
                        "jobs": v.jobs,
                        "next_valid": int(v.next_window is not None),
                        "next_window": v.next_window or 0,
                        "remaining": v.remaining + self.alter,
                        "last": int(sent == len(found) - 1),
                    },
                )
            ctx.set(dut.o_fetch.ready, int(rng.random() < 0.7 or self.latency == 0))
            ctx.set(dut.o_visit.ready, int(not cancelled and len(busy) < 2))
            due = [m for m in memory if m[0] <= cycle]
            complete = rng.choice(due) if due else None
            ctx.set(dut.done_en, int(complete is not None))
            if complete:
                memory.remove(complete)
                ctx.set(dut.done_line, complete[1])
            retire = bool(busy) and busy[0] <= cycle
            ctx.set(dut.retire, int(retire))
            ctx.set(self.reset, int(cycle == cancel_at))
            if ctx.get(dut.o_fetch.valid) and ctx.get(dut.o_fetch.ready):
                line, block = ctx.get(dut.o_fetch.p.line), ctx.get(dut.o_fetch.p.block)
                self.check_fetch(found, want, owner, fetches, line, block, retired)
                memory.append((cycle + 1 + rng.randint(0, self.latency), line, block))
            running |= offer
            stalls += running and taken < len(found) and not ctx.get(dut.o_visit.valid)
            if ctx.get(dut.o_visit.valid) and ctx.get(dut.o_visit.ready):
                line = ctx.get(dut.line)
                assert fields(ctx.get(dut.o_visit.payload))[:3] == (
                    found[taken].window,
                    found[taken].block,
                    found[taken].jobs,
                )
                assert line == want.lines[taken] and self.content[line] == (owner, found[taken].block)
                busy.append(max([cycle + 1, *busy]) + rng.randint(0, self.work))
                taken += 1
            if offer and ctx.get(dut.i_visit.ready):
                self.first_decision = self.first_decision or cycle
                sent, gap = sent + 1, rng.randint(0, self.gap)
            elif gap:
                gap -= 1
            if retire:
                busy.pop(0)
                retired += 1
            await ctx.tick()
            if complete:
                self.content[complete[1]] = owner, complete[2]
            if cycle == cancel_at:
                cancelled, busy, sent, retired = True, [], len(found), len(found)
                self.held.clear()
                memory.clear()
            cycle += 1
            assert cycle < limit
        ctx.set(dut.retire, 0)
        ctx.set(dut.done_en, 0)
        ctx.set(self.reset, 0)
        self.cycles += cycle
        if cancel_at is None:
            assert [f[1:] for f in fetches] == [f[1:] for f in want.fetches]
            after = tuple(b - a for a, b in zip(before, self.counters(), strict=True))
            assert after[:3] == (want.hits, want.misses, want.evictions)
            assert abs(after[3] - stalls) <= 1  # the cycle of the first offer
        else:
            assert not memory


def traffic(config, seed, count=None, density=0.4):
    return visits(sparse(seed, config, count or config.blocks, density), config.window)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("latency, work, gap", [(0, 0, 0), (30, 60, 4), (120, 20, 0), (4, 60, 30)])
def test_decisions_are_the_models_under_any_timing(name, latency, work, gap):
    c = CONFIGS[name]
    found = traffic(c, 11, count=16)
    assert name == "window of a batch" or simulate(found, c.lines, c.lookahead).evictions > 2

    async def script(bench):
        for threshold in (0, 1):
            await bench.visit_all(
                found,
                simulate(found, c.lines, c.lookahead, threshold, owner=threshold),
                (threshold, 3),
                threshold=threshold,
            )

    bench = Bench(c, latency + work, latency=latency, work=work, gap=gap)
    bench.run(script)
    if latency == 0:  # its request is taken at once
        assert bench.first_decision == decision_cycles(c)


async def _runs_of_owners(bench):
    """The same visits for owners that differ in one field each; a block left by another must not serve."""
    c, before = bench.config, None
    found = traffic(c, 12, count=5)
    for owner in ((1, 0), (1, 0), (2, 0), (2, 1), (1, 0)):
        want = simulate(found, c.lines, c.lookahead, owner=owner, before=before)
        await bench.visit_all(found, want, owner)
        before = want
    bench.ctx.set(bench.dut.flush, 1)
    bench.ctx.set(bench.dut.clear, 1)
    await bench.ctx.tick()
    bench.ctx.set(bench.dut.flush, 0)
    bench.ctx.set(bench.dut.clear, 0)
    assert bench.counters() == (0, 0, 0, 0)
    bench.held.clear()
    await bench.visit_all(found, simulate(found, c.lines, c.lookahead, owner=(1, 0)), (1, 0))


def test_owners_do_not_share_blocks():
    Bench(CONFIGS["small"], 1).run(_runs_of_owners)


@pytest.mark.parametrize(
    "old, new",
    [
        ("& (entry.tenant == self.tenant)", ""),
        ("& (entry.kv_head == self.kv_head)", ""),
        ("m.d.sync += valid.eq(0)", "m.d.sync += valid.eq(valid)"),
    ],
)
def test_a_stale_tag_shows(old, new):
    wrong = mutated(cache_rtl, old, new)["CacheControl"]
    with pytest.raises(AssertionError):
        Bench(CONFIGS["small"], 1, cls=wrong).run(_runs_of_owners)


ENDS = (
    (2, True),
    (2, True),
    (2, False),
    (3, True),
    (3, False),
    (3, True),
)  # blocks, and whether the last is not complete


async def _runs_of_generation(bench):
    """Single runs over more and more blocks, for two owners in turn, of which the last block is complete or not; a run of a window
    between them and after them. Returns hits of each."""
    c, before, hits = bench.config, None, []
    prefill = visits(sparse(3, c, 8, 0.5), c.window)
    runs = [(1, every_block(count), True, partial) for count, partial in ENDS]
    runs += [(owner, every_block(4), True, True) for owner in (1, 2, 1, 2)]
    runs += [(1, prefill, False, True), (1, prefill, False, False)]
    runs += [(1, every_block(count), True, True) for count in (9, 9, 9, 10)]
    runs += [(2, prefill, False, False)]
    for owner, found, single, partial in runs:
        want = simulate(found, c.lines, c.lookahead, owner=(owner, 300), before=before, single=single, partial=partial)
        await bench.visit_all(found, want, (owner, 300), single=single, partial=partial)
        before = want
        hits.append(want.hits)
    return hits


def test_blocks_stay_between_runs_of_generation():
    hits = []

    async def script(bench):
        hits.extend(await _runs_of_generation(bench))

    Bench(CONFIGS["small"], 5).run(script)
    assert hits[:6] == [0, 1, 1, 2, 2, 2]  # complete blocks that were there; never one that is not complete, or was not
    assert sum(hits[8:10]) >= 2  # six lines for eight blocks of two owners in turn
    assert hits[13] == hits[14] == 2  # nine blocks in turn: the first ones stay, also the other owner's


@pytest.mark.parametrize(
    "old, new",
    [
        ("& ~(now.last & self.partial)", ""),
        ("with m.If(ended & self.partial)", "with m.If(0)"),
        (" & ~(self.single & entry.kept)", ""),
        ("update.kept.eq(self.single)", "update.kept.eq(1)"),
    ],
)
def test_wrong_rules_of_generation_show(old, new):
    wrong = mutated(cache_rtl, old, new)["CacheControl"]
    with pytest.raises(AssertionError):
        Bench(CONFIGS["small"], 5, cls=wrong).run(_runs_of_generation)


@pytest.mark.parametrize(
    "old, new, alter",
    [
        ("(ahead != depth)", "(ahead != depth)", 1),
        ("update.remaining.eq(now.remaining)", "update.remaining.eq(0)", 0),
        ("update.pins.eq(Mux(hit, pins + 1, 1))", "update.pins.eq(Mux(hit, pins, 1))", 0),
        ("has_free | (ahead <= 1)", "has_free | (ahead <= 2)", 0),
        ("(key > best)", "(key < best)", 0),
    ],
)
def test_wrong_counts_and_rules_show(old, new, alter):
    c = CONFIGS["small"]
    found = traffic(c, 11, count=16)

    async def script(bench):
        await bench.visit_all(found, simulate(found, c.lines, c.lookahead, owner=(0, 0)), (0, 0), limit=20_000)

    wrong = mutated(cache_rtl, old, new)["CacheControl"]
    with pytest.raises(AssertionError):
        Bench(c, 2, cls=wrong, alter=alter).run(script)


@pytest.mark.parametrize("cancel_at", [0, 3, 9, 10, 11, 47, 200, 333, 500])
@pytest.mark.parametrize("latency", [0, 90])
def test_a_run_after_an_abort(cancel_at, latency):
    c = CONFIGS["small"]
    found = traffic(c, 13)

    async def script(bench):
        for stop in (cancel_at, None):
            await bench.visit_all(found, simulate(found, c.lines, c.lookahead, owner=(5, 5)), (5, 5), cancel_at=stop)

    Bench(c, cancel_at, latency=latency, work=20).run(script)


def test_schedule_and_control_together():
    """From the map to visits with their lines, in two runs; the memory answers in order after 25 cycles."""
    c = CONFIGS["small"]
    m = Module()
    m.submodules.schedule = schedule = Schedule(c)
    m.submodules.cache = cache = CacheControl(c)
    connect(m, schedule.o_visit, cache.i_visit)
    block_map = sparse(21, c, c.blocks, 0.3)
    found = visits(block_map, c.window)
    first = simulate(found, c.lines, c.lookahead)
    second = simulate(found, c.lines, c.lookahead, before=first)
    assert first.evictions and first.hits

    async def script(ctx):
        ctx.set(schedule.blocks, c.blocks)
        for want in (first, second):
            ctx.set(schedule.start, 1)
            cycle, word, taken, memory, fetches, retire_at = 0, 0, [], [], [], None
            while len(taken) < len(found) or retire_at is not None or not ctx.get(cache.idle):
                ctx.set(schedule.read_data, word)
                ctx.set(cache.o_fetch.ready, 1)
                ctx.set(cache.o_visit.ready, int(retire_at is None))
                ctx.set(cache.retire, int(retire_at == cycle))
                done = bool(memory) and memory[0][0] <= cycle
                ctx.set(cache.done_en, int(done))
                if done:
                    ctx.set(cache.done_line, memory.pop(0)[1])
                if ctx.get(schedule.read_en):
                    head, batch, block = (
                        ctx.get(port) for port in (schedule.read_head, schedule.read_batch, schedule.read_block)
                    )
                    rows = range(batch * c.columns, (batch + 1) * c.columns)
                    word = sum(int(block_map[head, row, block]) << i for i, row in enumerate(rows))
                if ctx.get(cache.o_fetch.valid):
                    fetches.append((ctx.get(cache.o_fetch.p.line), ctx.get(cache.o_fetch.p.block)))
                    memory.append((cycle + 25, fetches[-1][0]))
                if retire_at == cycle:
                    retire_at = None
                elif ctx.get(cache.o_visit.valid) and ctx.get(cache.o_visit.ready):
                    taken.append((*fields(ctx.get(cache.o_visit.payload)), ctx.get(cache.line)))
                    retire_at = cycle + 40
                await ctx.tick()
                ctx.set(schedule.start, 0)
                cycle += 1
                assert cycle < 20_000
            assert [t[:5] for t in taken] == expected(block_map, c) and [t[5] for t in taken] == want.lines
            assert fetches == [f[1:] for f in want.fetches]

    sim = Simulator(m)
    sim.add_clock(1e-6)
    sim.add_testbench(script)
    sim.run()
