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
from intaglio.rtl.bus.streams import Mode
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
    """Dot products [key][lane], exponents, limit, mode, L."""
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
    high = 0 if kind == "loud" else 7
    return dict(
        dots=dots,
        xq=[picks.randint(0, high) for _ in lanes],
        xk=[picks.randint(0, high) for _ in keys],
        limit=picks.choice([config.head_dim, -config.columns, *range(-config.columns, config.head_dim)]),
        mode=picks.choice([Mode.MAX, Mode.MASS, Mode.ATTEND]),
        log=[
            picks.choice([numerics.MASKED_L, picks.randint(-2000, 20000), picks.randint(-134912, 131071)])
            for _ in lanes
        ],
    )


def softmax_of(tile, base, bias=1):
    """``(e, p, weight, t, sums)``; lists over lanes, or over keys of lanes. ``bias``: rounding of the weights."""
    e, sums, columns = [], [], []
    for lane, xq in enumerate(tile["xq"]):
        t = [score(row[lane] << 8, base + 8 + xq + xk) for row, xk in zip(tile["dots"], tile["xk"], strict=True)]
        masked = [key > tile["limit"] + lane for key in range(len(t))]
        open_ = [x for x, hidden in zip(t, masked, strict=True) if not hidden]
        e.append((max(open_) >> 8) + 1 if open_ else UNREACHED)
        reference = tile["log"][lane] if tile["mode"] == Mode.MASS else 256 * e[-1]
        p = [0 if hidden else numerics.mass_exp2(max(0, reference - x)) for x, hidden in zip(t, masked, strict=True)]
        weight = [min(254, ((x >> numerics.MASS_FRACTION - 9) + bias) >> 1) for x in p]
        sums.append(sum(weight) << 4 if tile["mode"] == Mode.ATTEND else sum(p))
        columns.append((p, weight, t))
    return (e, *([list(row) for row in zip(*(c[i] for c in columns), strict=True)] for i in range(3)), sums)


def run_softmax(config, base, tiles, gap):
    """What :func:`softmax_of` returns for each tile, keys back to back; weights as soon as they may or ``gap`` cycles later."""
    dut = TileSoftmax(config)
    out, begun = [{} for _ in tiles], []

    async def bench(ctx):
        keys = [(n, key) for n in range(len(tiles)) for key in range(config.head_dim)]
        known, due, sums, cycle, started = 0, [], 0, 0, -config.head_dim
        rows = []
        ctx.set(dut.base, base)
        while sums < len(tiles):
            ctx.set(dut.valid, bool(keys))
            if keys:
                n, key = keys.pop(0)
                if key == 0:
                    ctx.set(dut.limit, tiles[n]["limit"])
                    for port, x in zip(dut.xq, tiles[n]["xq"], strict=True):
                        ctx.set(port, x)
                ctx.set(dut.xk, tiles[n]["xk"][key])
                for port, x in zip(dut.dot, tiles[n]["dots"][key], strict=True):
                    ctx.set(port, x)
                if (n, key) == (len(tiles) - 1, config.head_dim - 1):
                    final = cycle
            if ctx.get(dut.e_valid):
                out[known]["e"] = [ctx.get(x) for x in dut.e]
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
                if tiles[sums]["mode"] != Mode.MASS:
                    assert [ctx.get(x) for x in dut.sums_e] == out[sums]["e"]
                sums += 1
            await ctx.tick()
            cycle += 1
            assert cycle < 100 * len(tiles) + 200, "the lanes hang"
        for n, seen in enumerate(out):
            for i, name in enumerate(("p", "weight", "t")):
                seen[name] = [row[i] for row in rows[n * config.head_dim : (n + 1) * config.head_dim]]

    simulate(dut, bench)
    return [(seen["e"], seen["p"], seen["weight"], seen["t"], seen["sums"]) for seen in out]


@pytest.mark.parametrize(("base", "gap"), [(0, 0), (3, 1), (7, 0), (15, 3), (-1, 0), (-8, 1)])
def test_softmax_lanes(base, gap):
    picks = random.Random(base)
    tiles = [tile_of(picks, SMALL, kind) for kind in ("random", "loud", "quiet", "negative") for _ in range(4)]
    tiles[0] |= dict(mode=Mode.ATTEND, limit=SMALL.head_dim)
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
            drain.lane_top.eq(states.lane_top),
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
    """(E, l, O[D]) of a lane from its tiles (e, sum << 4, [o])."""
    state = None
    for e, total, o in tiles:
        if e == UNREACHED:
            continue
        sums = [total, *(x << 4 for x in o)]
        if state is None:
            state = e, sums
        else:
            new = max(state[0], e)
            state = new, [(a >> new - state[0]) + (b >> new - e) for a, b in zip(state[1], sums, strict=True)]
    return state or (UNREACHED, [0] * (len(tiles[0][2]) + 1))


def means(state):
    _, (total, *o) = state
    shift = total.bit_length() - 17
    inverse = numerics.INVERSE // (total >> shift if shift >= 0 else total << -shift) if total else 0
    k = 25 + shift
    return [clamp((x * inverse + (1 << k - 1)) >> k, -32767, 32767) for x in o]


def row_tiles(picks, config, count, kind):
    """Tiles [tile][lane] of (e, sum << 4, [o]) that a row could have."""
    tiles = []
    for n in range(count):
        lanes = []
        for lane in range(config.columns):
            if kind == "jumps":
                e = picks.choice([-511, -300, -40, 0, 5, 200, 512])
            elif kind == "falling":
                e = 60 - 3 * n
            else:
                e = picks.randint(-12, 12)
            if picks.random() < (0.3 if kind == "jumps" else 0.1) and (n or lane % 2):
                lanes.append((UNREACHED, 0, [0] * config.head_dim))
                continue
            most = config.head_dim * 254 if kind == "full" else picks.choice([64, 127, config.head_dim * 254])
            low = most if kind == "full" else 64
            total = picks.randint(low, most)
            lanes.append(
                (
                    e,
                    total << 4,
                    [
                        picks.choice([-127, 127]) * total
                        if kind == "full"
                        else picks.randint(-127 * total, 127 * total)
                        for _ in range(config.head_dim)
                    ],
                )
            )
        tiles.append(lanes)
    return tiles


def run_accumulators(config, slot, groups, stall=0.0):
    """Results [row group][lane][channel] of tiles ``groups[row group][tile][lane]``, merged alternately, and the cycles of the drain."""
    dut, beats, picks = Accumulating(config), [], random.Random(1)
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
                for lane, (e, total, _) in enumerate(tiles[n]):
                    ctx.set(states.e[lane], e)
                    ctx.set(states.sums[lane], total)
                ctx.set(dut.merge, 1)
                await ctx.tick()
                ctx.set(dut.merge, 0)
                await ctx.tick()
                ctx.set(values.valid, 1)
                for channel in range(config.head_dim):
                    for lane, (_, _, o) in enumerate(tiles[n]):
                        ctx.set(values.o[lane], o[channel])
                    await ctx.tick()
                ctx.set(values.valid, 0)
        await ctx.tick().repeat(values.LATENCY - 1)
        ctx.set(drain.slot, slot)
        ctx.set(drain.head, 1)
        ctx.set(drain.block, 77)
        ctx.set(drain.start, 1)
        while True:
            ctx.set(drain.o.ready, picks.random() >= stall)
            if ctx.get(drain.o.valid) and ctx.get(drain.o.ready):
                payload = ctx.get(drain.o.payload)
                assert (payload.head, payload.block) == (1, 77)
                beats.append([payload["values"][i] for i in range(config.drain)])
                assert (
                    payload.last
                    == (len(beats) == config.block * config.head_dim // config.drain)
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
    for _ in range(config.row_groups):
        rows = [sum((next(flat) for _ in range(config.columns // config.drain)), []) for _ in range(config.head_dim)]
        out.append([list(lane) for lane in zip(*rows, strict=True)])
    return out, took


@pytest.mark.parametrize(
    ("kind", "count", "stall"), [("near", 6, 0.0), ("jumps", 6, 0.4), ("falling", 30, 0.0), ("full", 32, 0.0)]
)
def test_merge_and_drain(kind, count, stall):
    picks = random.Random(count)
    groups = [row_tiles(picks, SMALL, count if group else 1, kind) for group in range(SMALL.row_groups)]
    out, took = run_accumulators(SMALL, 5, groups, stall)
    want = [[means(merge_rows([tile[lane] for tile in tiles])) for lane in range(SMALL.columns)] for tiles in groups]
    assert out == want
    if not stall:
        assert took == drain_cycles(SMALL)


def test_means_beyond_the_range_saturate():
    """Rows whose sums of values exceed what their weights allow, far and just so, either way: the largest of their sign."""
    ratios = [-1000, -200, -130, -128, 128, 130, 200, 1000]  # 8 fraction bits: 128 is one too many
    assert SMALL.columns == len(ratios)
    for total in (64, 200):
        rows = [(0, total << 4, [ratio * total] * SMALL.head_dim) for ratio in ratios]
        out, _ = run_accumulators(SMALL, 3, [[rows]] * SMALL.row_groups)
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
        e, (total,) = merge_rows([tile[lane] for tile in tiles])
        return (
            256 * e + ((numerics.log2(total) + half) >> 4) - 256 * numerics.MASS_FRACTION
            if total
            else numerics.MASKED_L
        )

    assert seen == [log(lane, 8) for lane in range(SMALL.columns)]
    assert seen[3] == numerics.MASKED_L
