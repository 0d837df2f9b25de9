"""The index unit alone, between a memory, a tile engine and a block map that the test plays: every request, tile and selection."""

import random

import numpy as np
import pytest
from amaranth.sim import Simulator

from intaglio.gen.cycles.attention import Memory, index_cycles
from intaglio.rtl.bus.streams import FetchKind, RunPhase, TileMode
from intaglio.rtl.config.attention import PrefillConfig
from intaglio.rtl.index.decide import decide_cycles
from intaglio.rtl.index.select import select_cycles
from intaglio.rtl.index.unit import IndexUnit
from intaglio.sim.attention.selection import decide, divergence, top

SMALL = PrefillConfig(head_dim=16, group=3, block=16, columns=8, context=320, window=4, lines=5, lookahead=2, drain=4)
TILES = PrefillConfig(head_dim=16, group=2, block=32, columns=16, context=256, window=2, lines=4, lookahead=1, drain=8)
BASES = {"kv_base": 0x1000, "last_base": 0xABC_0000_0000, "pooled_q_base": 0x7_0000_0000, "pooled_k_base": 0x5000}
FIELDS = ("mode", "slot", "row_group", "line", "tile", "state", "limit", "first", "load", "finish", "retire")
ONE = 1 << 28
DEPTH = 20  # of the engine that is played: from the last key of a tile to its masses


class Scores:
    """What the engine finds: p and t of the last queries of each head, p of the pooled rows of each head."""

    def __init__(self, config, tokens, seed):
        self.config, self.tokens = config, tokens
        rng, block = np.random.default_rng(seed), config.block
        self.count, heads = -(-tokens // block), config.group
        keys, pooled_keys = self.count * block, -(-self.count // block) * block
        weights = rng.random((heads, block, keys)) ** rng.integers(1, 40, (heads, 1, 1))
        visible = np.arange(keys) <= np.arange(tokens - block, tokens)[:, None]
        shares = weights * visible
        self.p = (shares / shares.sum(-1, keepdims=True) * (ONE - 1)).astype(np.int64)
        self.t = rng.integers(-900, 900, (heads, block, keys)) * (np.arange(keys) < tokens)
        rows = config.batches * config.columns
        self.pooled = rng.integers(0, ONE, (heads, rows, pooled_keys))
        self.pooled >>= rng.integers(0, 27, (heads, rows, 1))
        self.pooled *= np.arange(pooled_keys) <= np.arange(rows)[:, None]

    def blocks(self):
        """ver, sla, pool [heads][block] written from docs/prefill.md."""
        c, first = self.config, self.tokens - self.config.block
        ver, sla, pool = (np.zeros((c.group, self.count), np.int64) for _ in range(3))
        for row in range(c.block):
            for key in range(self.tokens):
                pool[:, key // c.block] += self.t[:, row, key]
                if key <= first + row:
                    ver[:, key // c.block] += self.p[:, row, key]
                    sla[:, (first + row - key) // c.block] += self.p[:, row, key]
        return ver, sla, pool


def pass_commands(config, mode, *, blocks, rows, heads, group, groups, query):
    """Tile commands of a pass, written from docs/prefill.md, Order of the work; the last block has ``rows`` rows."""
    c, norm, out = config, mode == TileMode.NORM, []
    for block in range(1 if norm else blocks):
        tiles = 1 if norm else -(-rows // c.head_dim) if block == blocks - 1 else c.tiles
        for head in range(heads):
            for g in range(groups):
                for tile in range(tiles):
                    limit = query + g * c.columns - block * c.block - tile * c.head_dim
                    finish = not norm and (g, tile) == (groups - 1, tiles - 1)
                    state = head * c.row_groups + g
                    limit = max(-c.columns, min(c.head_dim, limit))
                    first, load, retire = block == tile == 0, not norm and tile == 0, finish and head == heads - 1
                    out.append(
                        (mode, head, group + g, block % c.lines, tile, state, limit, first, load, finish, retire)
                    )
    return out


def expected(scores, aware):
    """``(requests, commands)`` of a run."""
    c, tokens, count = scores.config, scores.tokens, scores.count
    bytes_, pooled_blocks = (c.block + c.scale_beats) * c.head_dim, -(-count // c.block)
    requests = [(FetchKind.Q, BASES["last_base"] + head * bytes_, head, c.block) for head in range(c.group)]
    commands = []

    def one(base, keys, **fields):
        blocks = -(-keys // c.block)
        rows = keys - (blocks - 1) * c.block
        for mode in (TileMode.MAX, TileMode.NORM, TileMode.MASS):
            commands.extend(pass_commands(c, mode, blocks=blocks, rows=rows, **fields))
            if mode != TileMode.NORM:
                requests.extend(
                    (FetchKind.K, base + b * 2 * bytes_, b % c.lines, rows if b == blocks - 1 else c.block)
                    for b in range(blocks)
                )

    one(BASES["kv_base"], tokens, heads=c.group, group=0, groups=c.row_groups, query=tokens - c.block)
    for head in np.flatnonzero(aware):
        for batch in range(-(-count // c.columns)):
            block, group = divmod(batch, c.row_groups)
            if group == 0:
                address = BASES["pooled_q_base"] + (head * pooled_blocks + block) * bytes_
                requests.append((FetchKind.Q, address, 0, min(c.block, count - block * c.block)))
            keys = min(count, (batch + 1) * c.columns)
            one(BASES["pooled_k_base"], keys, heads=1, group=group, groups=1, query=batch * c.columns)
    return requests, commands


class Bench:
    """Memory: a request is there after some cycles, in order. Engine: a tile takes ``speed`` cycles, and one more with a load."""

    def __init__(self, config, *, seed=0, latency=9, speed=2, stall=0.0):
        self.config, self.dut, self.picks = config, IndexUnit(config), random.Random(seed)
        self.latency, self.speed, self.stall = latency, speed, stall

    def sends(self, scores, tile, head, pooled, begin):
        """(cycle, key, p, t) of a MASS tile's keys."""
        c = self.config
        for j in range(c.head_dim):
            key = tile.block * c.block + tile.tile * c.head_dim + j
            if pooled:
                first = self.query
                p, t = scores.pooled[head, first : first + c.columns, key], [77] * c.columns
            else:
                rows = slice(tile.row_group * c.columns, (tile.row_group + 1) * c.columns)
                p, t = scores.p[tile.head, rows, key], scores.t[tile.head, rows, key]
            shown = [int(x) if j <= tile.limit + lane else 0 for lane, x in enumerate(p)]  # the engine's mask
            yield begin + j + DEPTH, j, shown, [int(x) for x in t]

    async def run(self, ctx, scores, *, gamma16, threshold, dense=False, map_time=7):
        """Everything that the unit asks and says in a run."""
        dut, c, picks = self.dut, self.config, self.picks
        found = {name: [] for name in ("requests", "commands", "picks", "rows")}
        found["phases"] = dict.fromkeys(RunPhase, 0)
        for name, value in BASES.items():
            ctx.set(getattr(dut, name), value)
        ctx.set(dut.blocks, scores.count)
        ctx.set(dut.tokens, scores.tokens)
        ctx.set(dut.gamma16, gamma16)
        ctx.set(dut.threshold, threshold)
        ctx.set(dut.inverse, 65536 // (scores.tokens - (scores.count - 1) * c.block))
        ctx.set(dut.dense, dense)
        ctx.set(dut.start, 1)
        coming, masses, retire, free, map_at, cycle, heads = [], [], [], 0, None, 0, None
        while True:
            assert cycle < 60_000, "the unit hangs"
            arrived = coming.pop(0)[1] if coming and coming[0][0] <= cycle else None
            ctx.set(dut.query_arrived, arrived == FetchKind.Q)
            ctx.set(dut.key_arrived, arrived == FetchKind.K)
            ctx.set(dut.retired, bool(retire) and retire[0] <= cycle and bool(retire.pop(0)))
            mass = masses.pop(0) if masses and masses[0][0] <= cycle else None
            ctx.set(dut.masses.valid, mass is not None)
            if mass:
                _, key, p, t, tag = mass
                ctx.set(dut.masses.key, key)
                ctx.set(dut.masses.tag, tag)
                for lane in range(c.columns):
                    ctx.set(dut.masses.p[lane], p[lane])
                    ctx.set(dut.masses.t[lane], t[lane])
            ctx.set(dut.engine_idle, cycle > free + DEPTH and not masses and not mass)
            ctx.set(dut.o_fetch.ready, picks.random() >= self.stall)
            ctx.set(dut.o_tile.ready, cycle >= free and picks.random() >= self.stall)
            ctx.set(dut.map_done, cycle == map_at)
            if ctx.get(dut.o_fetch.valid) and ctx.get(dut.o_fetch.ready):
                request = ctx.get(dut.o_fetch.payload)
                found["requests"].append((request.kind, request.address, request.index, request.last_row + 1))
                coming.append((cycle + self.latency, request.kind))
            if ctx.get(dut.o_tile.valid) and ctx.get(dut.o_tile.ready):
                tile = ctx.get(dut.o_tile.payload)
                found["commands"].append(tuple(int(getattr(tile, name)) for name in FIELDS))
                pooled = ctx.get(dut.phase) == RunPhase.POOL
                if pooled:
                    heads = np.flatnonzero([ctx.get(dut.aware) >> h & 1 for h in range(c.group)])
                    self.query = ctx.get(dut.row_batch) * c.columns
                free = cycle + (1 if tile.mode == TileMode.NORM else self.speed + tile.load)
                if tile.mode == TileMode.MASS:
                    # As many keys as cycles, at least: the masses of a tile follow those of the one before.
                    begin = max(cycle, masses[-1][0] + 1 - DEPTH if masses else 0)
                    tag = {name: getattr(tile, name) for name in ("head", "row_group", "tile", "finish")}
                    head = ctx.get(dut.row_head) if pooled else 0
                    assert not pooled or head in heads
                    masses += [(*send, tag) for send in self.sends(scores, tile, head, pooled, begin)]
                    free = max(free, begin + c.head_dim)
                if tile.retire:
                    retire.append(free + 3)
            if ctx.get(dut.pick_en):
                bits = [
                    [ctx.get(word) >> h & 1 for h in range(c.group)] for word in (dut.pick_vertical, dut.pick_slash)
                ]
                found["picks"].append((ctx.get(dut.pick_index), *bits))
            if ctx.get(dut.row_en):
                place = tuple(ctx.get(getattr(dut, f"row_{name}")) for name in ("head", "batch", "index"))
                found["rows"].append((*place, ctx.get(dut.row_mask)))
            if ctx.get(dut.map_start):
                assert map_at is None
                map_at = cycle + map_time
            found["phases"][RunPhase(ctx.get(dut.phase))] += 1
            assert ctx.get(dut.busy) == (cycle > 0)
            done = ctx.get(dut.done)
            assert done == (cycle == map_at)
            await ctx.tick()
            ctx.set(dut.start, 0)
            cycle += 1
            if done:
                break
        ctx.set(dut.map_done, 0)
        assert not ctx.get(dut.busy) and not coming and not masses and not retire
        found["aware"] = [ctx.get(dut.aware) >> h & 1 for h in range(c.group)]
        return found

    def simulate(self, script):
        simulator = Simulator(self.dut)
        simulator.add_clock(1e-6)
        simulator.add_testbench(script)
        simulator.run()


def some_aware(scores):
    """A threshold between the divergences of heads, and who is query-aware with it."""
    ver, _, pool = scores.blocks()
    c = scores.config
    found = sorted(divergence(v, p, c.block, scores.tokens) for v, p in zip(ver, pool, strict=True))
    threshold = max(1, min(found[-1], 2**32 - 1))  # all but the last
    aware, _ = decide(ver, pool, c.block, scores.tokens, threshold)
    assert aware.any() and not aware.all()
    return threshold, aware


def check(found, scores, gamma16, aware):
    c, count = scores.config, scores.count
    requests, commands = expected(scores, aware)
    assert found["requests"] == requests
    assert found["commands"] == [tuple(map(int, command)) for command in commands]
    assert found["aware"] == [int(a) for a in aware]
    ver, sla, _ = scores.blocks()
    vertical, slash = top(ver, gamma16), top(sla, gamma16)
    assert found["picks"] == [
        (i, *([int(x[h, i]) for h in range(c.group)] for x in (vertical, slash))) for i in range(count)
    ]
    rows = []
    for head in np.flatnonzero(aware):
        for batch in range(-(-count // c.columns)):
            width = min(count, (batch + 1) * c.columns)
            lanes = scores.pooled[head, batch * c.columns : (batch + 1) * c.columns, :width]
            keep = top(lanes, gamma16)
            rows += [
                (head, batch, i, sum(int(keep[lane, i]) << lane for lane in range(c.columns))) for i in range(width)
            ]
    assert found["rows"] == rows


@pytest.mark.parametrize(
    ("config", "tokens", "timing"),
    [
        (SMALL, 283, {}),
        (SMALL, 320, dict(latency=70, stall=0.4, speed=1)),
        (SMALL, 16, dict(latency=0)),
        (TILES, 77, dict(latency=30)),
        (TILES, 256, dict(latency=2, stall=0.2)),
    ],
    ids=["18 blocks", "20 blocks, slow memory", "1 block", "2 tiles, 3 blocks", "2 tiles, 8 blocks"],
)
def test_requests_tiles_and_selections(config, tokens, timing):
    scores = Scores(config, tokens, tokens)
    threshold, aware = some_aware(scores) if scores.count > 1 else (1 << 31, np.ones(config.group, bool))
    bench = Bench(config, seed=tokens, **timing)

    async def script(ctx):
        check(await bench.run(ctx, scores, gamma16=50_000, threshold=threshold), scores, 50_000, aware)

    bench.simulate(script)


def test_runs_one_after_another():
    """Nothing of a run is left in the next: dense, no head query-aware, all heads, other sizes, a share of everything."""
    runs = [(60, 30_000, 0), (283, 65_536, 1 << 31), (17, 1, 0)]
    bench = Bench(SMALL, speed=1, latency=3)

    async def script(ctx):
        for tokens, gamma16, threshold in runs:
            scores = Scores(SMALL, tokens, tokens)
            found = await bench.run(ctx, scores, gamma16=gamma16, threshold=threshold)
            check(found, scores, gamma16, np.full(SMALL.group, threshold > 0))
            found = await bench.run(ctx, scores, gamma16=gamma16, threshold=threshold, dense=True, map_time=1)
            assert found["aware"] == [0] * SMALL.group
            assert not any(found[name] for name in ("requests", "commands", "picks", "rows"))
            assert {phase for phase, cycles in found["phases"].items() if cycles} == {RunPhase.IDLE, RunPhase.MAP}

    bench.simulate(script)


def test_cycles_are_the_closed_forms():
    """With an engine as fast as the true one and a memory that keeps up, phase by phase."""
    scores, latency = Scores(SMALL, 283, 5), 12
    threshold, aware = some_aware(scores)
    bench = Bench(SMALL, speed=SMALL.head_dim, latency=latency)

    async def script(ctx):
        found = (await bench.run(ctx, scores, gamma16=50_000, threshold=threshold))["phases"]
        want = index_cycles(SMALL, scores.count, int(aware.sum()), Memory(latency=latency - 5, rate=1e9), tokens=283)
        # The engine that is played has neither the true one's pipeline nor its logarithms: a few dozen cycles a pass less.
        assert found[RunPhase.LOAD] <= want["load"] + 2 * 50
        passes = 2 * scores.count * SMALL.group * SMALL.row_groups * (SMALL.head_dim + 1)
        assert passes <= found[RunPhase.MAX] + found[RunPhase.MASS] <= want["max"] + want["mass"]
        ver, sla, _ = scores.blocks()  # the closed form takes scores of as many bits as they may have
        search = select_cycles(scores.count, int(max(ver.max(), sla.max())).bit_length())
        decisions = SMALL.group * (decide_cycles(scores.count) + 2)
        assert found[RunPhase.SELECT] - max(search, decisions) in range(3) and found[RunPhase.SELECT] <= want["select"]
        assert found[RunPhase.MAP] == 8

    bench.simulate(script)


def test_a_query_that_never_comes_leaves_the_unit_loading():
    """The contract: every block that is asked for comes. Without one of the queries no pass may begin."""
    scores, bench = Scores(SMALL, 60, 1), Bench(SMALL)

    async def script(ctx):
        dut = bench.dut
        ctx.set(dut.blocks, scores.count)
        ctx.set(dut.tokens, scores.tokens)
        ctx.set(dut.o_fetch.ready, 1)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        asked = 0
        for cycle in range(200):
            asked += ctx.get(dut.o_fetch.valid)
            ctx.set(dut.query_arrived, cycle in (50, 60))  # two of three
            await ctx.tick()
            assert ctx.get(dut.phase) == RunPhase.LOAD and not ctx.get(dut.o_tile.valid)
        assert asked == SMALL.group
        ctx.set(dut.query_arrived, 1)
        await ctx.tick()
        ctx.set(dut.query_arrived, 0)
        await ctx.tick()
        assert ctx.get(dut.phase) == RunPhase.MAX

    bench.simulate(script)
