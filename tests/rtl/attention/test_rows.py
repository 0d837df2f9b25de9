"""Scores, weights, sums and means of a tile's rows against docs/prefill.md in Python integers, one number at a time."""

import random

import pytest
from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.sim import Simulator

from intaglio.rtl.arithmetic import attention as numerics
from intaglio.rtl.attention.accumulate import Accumulators
from intaglio.rtl.attention.drain import Drain, drain_cycles
from intaglio.rtl.attention.softmax import UNREACHED, TileSoftmax
from intaglio.rtl.attention.states import RowStates
from intaglio.rtl.bus.streams import TileMode
from intaglio.rtl.config.attention import PrefillConfig

SMALL = PrefillConfig(head_dim=16, group=2, block=32, columns=8, context=512, window=4, lines=6, lookahead=2, drain=4)


def clamp(x, low, high):
    return max(low, min(high, x))


def simulate(dut, *benches):
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    for bench in benches:
        simulator.add_testbench(bench, background=bench is not benches[0])
    simulator.run()


def score(dot, shift):
    return clamp((dot + ((1 << shift) >> 1)) >> shift, -numerics.SCORE_MAX - 1, numerics.SCORE_MAX)


def tile_of(picks, config, kind):
    """Dot products [key][lane], scale bytes, limit, mode, L."""
    keys, lanes = range(config.head_dim), range(config.columns)
    largest = 127 * 127 * config.head_dim
    spread = {"random": largest, "loud": largest, "quiet": 40, "negative": largest}[kind]
    dots = [
        [
            picks.choice([-largest, largest])
            if kind == "loud"
            else picks.randint(-spread, -spread // 2 if kind == "negative" else spread)
            for _ in lanes
        ]
        for _ in keys
    ]
    high = 0 if kind == "loud" else 7  # powers of two by which a row may be quieter
    return dict(
        dots=dots,
        xq=[4 * picks.randint(0, high) + picks.randrange(4) for _ in lanes],
        xk=[4 * picks.randint(24, 24 + high) + picks.randrange(4) for _ in keys],
        xv=[picks.randint(*picks.choice([(120, 136), (0, 255), (0, 0)])) for _ in keys],
        limit=picks.choice([config.head_dim, -config.columns, *range(-config.columns, config.head_dim)]),
        alike=picks.random() < 0.3,
        mode=picks.choice([TileMode.MAX, TileMode.MASS, TileMode.ATTEND]),
        log=[
            picks.choice([numerics.MASKED_L, picks.randint(-2000, 20000), picks.randint(-134912, 131071)])
            for _ in lanes
        ],
    )


def softmax_of(tile, base, bias=1):
    """``((e, f, exponent), p, weight, t, sums)``; lists over lanes, or over keys of lanes. ``bias``: rounding of the weights.

    Exponents of the queries are ``base`` more than those of the tile.
    """
    e, f, sums, columns = [], [], [], []
    for lane, xq in enumerate(tile["xq"]):
        t = [
            score(dot[lane] * (4 + xq % 4) * (4 + xk % 4), clamp(xq // 4 + base + xk // 4 - 48, 0, 31))
            for dot, xk in zip(tile["dots"], tile["xk"], strict=True)
        ]
        scaled = [x + 64 * (xv - 128) for x, xv in zip(t, tile["xv"], strict=True)]
        masked = [key > tile["limit"] + (0 if tile["alike"] else lane) for key in range(len(t))]
        for out, values in ((e, t), (f, scaled)):
            open_ = [x for x, hidden in zip(values, masked, strict=True) if not hidden]
            out.append((max(open_) >> 8) + 1 if open_ else UNREACHED)
        reference = tile["log"][lane] if tile["mode"] == TileMode.MASS else 256 * e[-1]
        p = [0 if hidden else numerics.mass_exp2(max(0, reference - x)) for x, hidden in zip(t, masked, strict=True)]
        weight = [
            0 if hidden else (numerics.WEIGHT[256 * f[-1] - x & 255] >> (256 * f[-1] - x >> 8)) + bias >> 1
            for x, hidden in zip(scaled, masked, strict=True)
        ]
        sums.append(sum(p))
        columns.append((p, weight if tile["mode"] != TileMode.MASS else [0] * len(t), t))
    exponent = -(-(max(tile["xv"]) - 128) // 4)
    rows = ([list(row) for row in zip(*(c[i] for c in columns), strict=True)] for i in range(3))
    return ((e, f, exponent), *rows, sums)


def run_softmax(config, base, tiles, gap):
    """What :func:`softmax_of` returns for each tile, keys back to back; weights as soon as they may or ``gap`` cycles later."""
    dut = TileSoftmax(config)
    out, begun = [{} for _ in tiles], []

    async def bench(ctx):
        keys = [(n, key) for n in range(len(tiles)) for key in range(config.head_dim)]
        known, due, sums, cycle, started = 0, [], 0, 0, -config.head_dim
        rows = []
        while sums < len(tiles):
            ctx.set(dut.valid, bool(keys))
            if keys:
                n, key = keys.pop(0)
                if key == 0:
                    ctx.set(dut.limit, tiles[n]["limit"])
                    ctx.set(dut.alike, tiles[n]["alike"])
                    for port, x in zip(dut.xq, tiles[n]["xq"], strict=True):
                        ctx.set(port, x + 4 * base)
                ctx.set(dut.xk, tiles[n]["xk"][key])
                ctx.set(dut.xv, tiles[n]["xv"][key])
                for port, x in zip(dut.dot, tiles[n]["dots"][key], strict=True):
                    ctx.set(port, x)
                if (n, key) == (len(tiles) - 1, config.head_dim - 1):
                    final = cycle
            if ctx.get(dut.e_valid):
                out[known]["e"] = *([ctx.get(x) for x in port] for port in (dut.e, dut.f)), ctx.get(dut.exponent)
                due.append((known, cycle + gap))
                known += 1
                if known == len(tiles):
                    assert cycle == final + dut.SCORE_LATENCY
            ready = due and due[0][1] <= cycle and cycle - started >= config.head_dim
            ctx.set(dut.start, bool(ready))
            if ready:
                n, _ = due.pop(0)
                started = cycle
                begun.append(cycle)
                ctx.set(dut.mode, tiles[n]["mode"])
                for port, x in zip(dut.log, tiles[n]["log"], strict=True):
                    ctx.set(port, x)
            if ctx.get(dut.p_valid):
                assert cycle == begun[len(rows) // config.head_dim] + len(rows) % config.head_dim + dut.WEIGHT_LATENCY
                assert ctx.get(dut.key) == len(rows) % config.head_dim
                rows.append(tuple([ctx.get(x) for x in lanes] for lanes in (dut.p, dut.weight, dut.t)))
            if ctx.get(dut.sums_valid):
                assert cycle == begun[sums] + config.head_dim + dut.WEIGHT_LATENCY
                out[sums]["sums"] = [ctx.get(x) for x in dut.sums]
                if tiles[sums]["mode"] != TileMode.MASS:
                    of_sums = (
                        *([ctx.get(x) for x in port] for port in (dut.sums_e, dut.sums_f)),
                        ctx.get(dut.sums_exponent),
                    )
                    assert of_sums == out[sums]["e"]
                sums += 1
            await ctx.tick()
            cycle += 1
            assert cycle < 100 * len(tiles) + 200, "the lanes hang"
        for n, seen in enumerate(out):
            for i, name in enumerate(("p", "weight", "t")):
                seen[name] = [row[i] for row in rows[n * config.head_dim : (n + 1) * config.head_dim]]
            if tiles[n]["mode"] == TileMode.MASS:  # weights mean nothing
                seen["weight"] = [[0] * config.columns] * config.head_dim

    simulate(dut, bench)
    return [(seen["e"], seen["p"], seen["weight"], seen["t"], seen["sums"]) for seen in out]


@pytest.mark.parametrize(("base", "gap"), [(24, 0), (29, 1), (36, 0), (44, 3), (28, 0), (5, 1), (56, 0)])
def test_softmax_lanes(base, gap):
    picks = random.Random(base)
    tiles = [tile_of(picks, SMALL, kind) for kind in ("random", "loud", "quiet", "negative") for _ in range(4)]
    tiles[0] |= dict(mode=TileMode.ATTEND, limit=SMALL.head_dim, alike=False)
    out = run_softmax(SMALL, base, tiles, gap)
    assert out == [softmax_of(tile, base) for tile in tiles]


class Accumulating(wiring.Component):
    """State memory, accumulators and drain, joined as in the engine."""

    def __init__(self, config):
        self.config = config
        super().__init__({})
        self.states, self.values = RowStates(config), Accumulators(config)
        self.drain = Drain(config)
        self.merge, self.address, self.walk, self.norm = Signal(), Signal.like(self.states.address), Signal(), Signal()

    def elaborate(self, platform):
        m = Module()
        m.submodules.states, m.submodules.values, m.submodules.drain = states, values, drain = (
            self.states,
            self.values,
            self.drain,
        )
        m.d.comb += [
            states.merge.eq(self.merge),
            states.address.eq(Mux(drain.walk, drain.walk_address, self.address)),
            states.walk.eq(self.walk | drain.walk),
            states.norm.eq(self.norm),
            drain.walk_granted.eq(~states.busy),
            drain.lane_valid.eq(states.lane_valid),
            drain.lane_mantissa.eq(states.lane_mantissa),
            drain.lane_shift.eq(states.lane_shift),
            drain.word_exponent.eq(states.word_exponent),
            values.address.eq(self.address),
            values.first.eq(states.first),
            values.read.eq(drain.read),
            values.read_address.eq(drain.read_address),
            values.read_channel.eq(drain.read_channel),
            drain.read_granted.eq(~values.valid),
            *(
                a.eq(b)
                for name in ("kept", "added")
                for a, b in zip(getattr(values, name), getattr(states, name), strict=True)
            ),
            *(a.eq(b) for a, b in zip(drain.word, values.word, strict=True)),
        ]
        return m


def merge_rows(tiles):
    """(E, [l]), (F, O[D]), M of a lane from its tiles (e, f, sum, [o]) and their exponents."""
    found, exponent = {}, -32
    for (e, f, total, o), of_tile in tiles:
        exponent = max(exponent, of_tile)
        for name, top, sums in (("l", e, [total]), ("o", f, [x << 4 for x in o])):
            if top == UNREACHED:
                continue
            old, kept = found.get(name, (top, [0] * len(sums)))
            new = max(old, top)
            found[name] = new, [(a >> new - old) + (b >> new - top) for a, b in zip(kept, sums, strict=True)]
    return (*(found.get(name, (UNREACHED, [0] * size)) for name, size in (("l", 1), ("o", len(o)))), exponent)


def means(state):
    (e, (total,)), (f, o), exponent = state
    shift = total.bit_length() - 17
    inverse = numerics.INVERSE // (total >> shift) if total else 0
    k = 9 + shift + e + exponent - f
    return [clamp((x * inverse + (1 << k - 1)) >> k, -32767, 32767) if k > 0 else 0 for x in o]


def row_tiles(picks, config, count, kind):
    """Tiles ([lane] of (e, f, sum, [o]), exponent) that a row could have: f <= e + exponent."""
    tiles = []
    for n in range(count):
        lanes, exponent = [], picks.randint(-6, 6) if kind != "jumps" else picks.randint(-32, 32)
        for lane in range(config.columns):
            if kind == "jumps":
                e = picks.choice([-511, -300, -40, 0, 5, 200, 512])
            elif kind == "falling":
                e = 60 - 3 * n
            else:
                e = picks.randint(-12, 12)
            f = e + exponent - picks.choice([0, 0, 1, 3, 20])
            if picks.random() < (0.3 if kind == "jumps" else 0.1) and (n or lane % 2):
                lanes.append((UNREACHED, UNREACHED, 0, [0] * config.head_dim))
                continue
            most = config.head_dim * 254 if kind == "full" else picks.choice([64, 127, config.head_dim * 254])
            low = most if kind == "full" else 64
            weights = picks.randint(low, most)
            lanes.append(
                (
                    e,
                    f,
                    max(1 << 27, (weights << 20) - picks.randrange(1 << 20)),
                    [
                        picks.choice([-127, 127]) * weights
                        if kind == "full"
                        else picks.randint(-127 * weights, 127 * weights)
                        for _ in range(config.head_dim)
                    ],
                )
            )
        tiles.append((lanes, exponent))
    return tiles


def lane_of(tiles, lane):
    return [(lanes[lane], exponent) for lanes, exponent in tiles]


def run_accumulators(config, slot, groups, stall=0.0):
    """Results [row group][lane][channel] of tiles ``groups[row group][tile]``, merged alternately, their exponents [row group], and the
    cycles of the drain."""
    dut, beats, exponents, picks = Accumulating(config), [], [], random.Random(1)
    took = 0

    async def bench(ctx):
        nonlocal took
        states, values, drain = dut.states, dut.values, dut.drain
        for n in range(max(map(len, groups))):
            for group, tiles in enumerate(groups):
                if n >= len(tiles):
                    continue
                ctx.set(states.first, n == 0)
                ctx.set(dut.address, slot * config.row_groups + group)
                lanes, exponent = tiles[n]
                ctx.set(states.exponent, exponent)
                for lane, (e, f, total, _) in enumerate(lanes):
                    ctx.set(states.e[lane], e)
                    ctx.set(states.f[lane], f)
                    ctx.set(states.sums[lane], total)
                ctx.set(dut.merge, 1)
                await ctx.tick()
                ctx.set(dut.merge, 0)
                await ctx.tick()
                ctx.set(values.valid, 1)
                for channel in range(config.head_dim):
                    for lane, (*_, o) in enumerate(lanes):
                        ctx.set(values.o[lane], o[channel])
                    await ctx.tick()
                ctx.set(values.valid, 0)
        await ctx.tick().repeat(values.LATENCY - 1)
        ctx.set(drain.slot, slot)
        ctx.set(drain.head, 1)
        ctx.set(drain.block, 77)
        ctx.set(drain.final_group, len(groups) - 1)
        ctx.set(drain.start, 1)
        while True:
            ctx.set(drain.o.ready, picks.random() >= stall)
            if ctx.get(drain.o.valid) and ctx.get(drain.o.ready):
                payload = ctx.get(drain.o.payload)
                assert (payload.head, payload.block) == (1, 77)
                beats.append([payload["values"][i] for i in range(config.drain)])
                exponents.append(payload.exponent)
                assert (
                    payload.last
                    == (len(beats) == len(groups) * config.columns * config.head_dim // config.drain)
                    == ctx.get(drain.done)
                )
            if ctx.get(drain.done):
                break
            await ctx.tick()
            ctx.set(drain.start, 0)
            took += 1
            assert took < 20_000, "the drain hangs"
        await ctx.tick()
        assert not ctx.get(drain.busy)

    simulate(dut, bench)
    flat = iter(beats)
    out = []
    for _ in groups:
        rows = [sum((next(flat) for _ in range(config.columns // config.drain)), []) for _ in range(config.head_dim)]
        out.append([list(lane) for lane in zip(*rows, strict=True)])
    size = len(beats) // len(groups)
    parts = [set(exponents[i : i + size]) for i in range(0, len(beats), size)]
    assert all(len(part) == 1 for part in parts)
    return out, [min(part) for part in parts], took


@pytest.mark.parametrize(
    ("kind", "count", "stall", "filled"),
    [("near", 6, 0.0, 4), ("jumps", 6, 0.4, 4), ("falling", 30, 0.0, 4), ("full", 32, 0.0, 4), ("near", 5, 0.0, 2)],
)
def test_merge_and_drain(kind, count, stall, filled):
    """Of all row groups, or of the first ``filled``."""
    picks = random.Random(count)
    groups = [row_tiles(picks, SMALL, count if group else 1, kind) for group in range(filled)]
    out, exponents, took = run_accumulators(SMALL, 5, groups, stall)
    want = [[merge_rows(lane_of(tiles, lane)) for lane in range(SMALL.columns)] for tiles in groups]
    assert out == [[means(state) for state in rows] for rows in want]
    assert exponents == [rows[0][-1] for rows in want]
    if not stall:
        assert took == drain_cycles(SMALL, filled)


def test_means_beyond_the_range_saturate():
    """Rows whose sums of values exceed what their weights allow, far and just so, either way: the largest of their sign."""
    ratios = [-1000, -200, -140, -130, 130, 140, 200, 1000]  # steps of 1/254: 130 is one too many
    assert SMALL.columns == len(ratios)
    for weight in (64, 200):
        sums = (weight << 28) // 254
        lanes = [(0, 0, sums, [ratio * weight] * SMALL.head_dim) for ratio in ratios]
        out, *_ = run_accumulators(SMALL, 3, [[(lanes, 0)]] * SMALL.row_groups)
        want = [[-32767] * SMALL.head_dim] * 4 + [[32767] * SMALL.head_dim] * 4
        assert out == [want] * SMALL.row_groups


def test_norm():
    """L of merged sums of 28-bit probabilities, and of rows without any."""
    picks, dut, tiles = random.Random(3), Accumulating(SMALL), []
    for n in range(9):
        tiles.append(
            [
                (UNREACHED, 0, [])
                if lane == 3 or picks.random() < 0.2
                else (
                    picks.choice([-511, 0, 3, 4, 512]) if lane % 2 else 7,
                    picks.randint(1, (65535 << 12) * SMALL.head_dim) if n else 1,
                    [],
                )
                for lane in range(SMALL.columns)
            ]
        )
    seen = []

    async def bench(ctx):
        ctx.set(dut.address, 11)
        for n, tile in enumerate(tiles):
            ctx.set(dut.states.first, n == 0)
            for lane, (e, total, _) in enumerate(tile):
                ctx.set(dut.states.e[lane], e)
                ctx.set(dut.states.sums[lane], total)
            ctx.set(dut.merge, 1)
            await ctx.tick()
            ctx.set(dut.merge, 0)
            await ctx.tick().repeat(3)
        ctx.set(dut.walk, 1)
        ctx.set(dut.norm, 1)
        await ctx.tick()
        ctx.set(dut.walk, 0)
        cycles = 1
        while ctx.get(dut.states.busy):
            await ctx.tick()
            cycles += 1
        assert cycles == SMALL.columns + 7
        ctx.set(dut.states.read, 1)
        await ctx.tick()
        seen.extend(ctx.get(log) for log in dut.states.log)

    simulate(dut, bench)

    def log(lane, half):
        (e, (total,)), *_ = merge_rows([((e, e, total, []), 0) for e, total, _ in (tile[lane] for tile in tiles)])
        return (
            256 * e + ((numerics.log2(total) + half) >> 4) - 256 * numerics.MASS_FRACTION
            if total
            else numerics.MASKED_L
        )

    assert seen == [log(lane, 8) for lane in range(SMALL.columns)]
    assert seen[3] == numerics.MASKED_L
