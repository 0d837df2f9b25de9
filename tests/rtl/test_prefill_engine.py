"""The tile engine around its matrix unit against docs/prefill.md in Python integers, one number at a time."""

import random

import pytest
from amaranth.sim import Simulator

from intaglio.rtl.prefill import numerics
from intaglio.rtl.prefill.config import PrefillConfig
from intaglio.rtl.prefill.ports import Mode
from intaglio.rtl.prefill.softmax import UNREACHED, TileSoftmax

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
    dots = [[picks.choice([-largest, largest]) if kind == "loud" else picks.randint(-spread, -spread // 2 if kind == "negative" else spread)
             for _ in lanes] for _ in keys]
    high = 0 if kind == "loud" else 7
    return dict(dots=dots, xq=[picks.randint(0, high) for _ in lanes], xk=[picks.randint(0, high) for _ in keys],
                limit=picks.choice([config.head_dim, -config.columns, *range(-config.columns, config.head_dim)]),
                mode=picks.choice([Mode.MAX, Mode.MASS, Mode.ATTEND]),
                log=[picks.choice([numerics.MASKED_L, picks.randint(-2000, 20000), picks.randint(-134912, 131071)]) for _ in lanes])


def softmax_of(tile, base, bias=256):
    """``(e, p, weight, t, sums)``; lists over lanes, or over keys of lanes. ``bias``: rounding of the weights."""
    e, sums, columns = [], [], []
    for lane, xq in enumerate(tile["xq"]):
        t = [score(row[lane], base + xq + xk) for row, xk in zip(tile["dots"], tile["xk"], strict=True)]
        masked = [key > tile["limit"] + lane for key in range(len(t))]
        open_ = [x for x, hidden in zip(t, masked, strict=True) if not hidden]
        e.append((max(open_) >> 8) + 1 if open_ else UNREACHED)
        reference = tile["log"][lane] if tile["mode"] == Mode.MASS else 256 * e[-1]
        p = [0 if hidden else numerics.exp2(max(0, reference - x)) for x, hidden in zip(t, masked, strict=True)]
        weight = [min(127, (x + bias) >> 9) for x in p]
        sums.append(sum(weight) << 4 if tile["mode"] == Mode.ATTEND else sum(p))
        columns.append((p, weight, t))
    return (e, *([list(row) for row in zip(*(c[i] for c in columns), strict=True)] for i in range(3)), sums)


def run_softmax(config, base, tiles, gap):
    """What :func:`softmax_of` returns for each tile, keys back to back; weights as soon as they may or ``gap`` cycles later."""
    dut = TileSoftmax(config, simulate=True)
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
                seen[name] = [row[i] for row in rows[n * config.head_dim:(n + 1) * config.head_dim]]

    simulate(dut, bench)
    return [(seen["e"], seen["p"], seen["weight"], seen["t"], seen["sums"]) for seen in out]


@pytest.mark.parametrize(("base", "gap"), [(0, 0), (3, 1), (7, 0), (15, 3)])
def test_softmax_lanes(base, gap):
    picks = random.Random(base)
    tiles = [tile_of(picks, SMALL, kind) for kind in ("random", "loud", "quiet", "negative") for _ in range(4)]
    tiles[0] |= dict(mode=Mode.ATTEND, limit=SMALL.head_dim)
    out = run_softmax(SMALL, base, tiles, gap)
    assert out == [softmax_of(tile, base) for tile in tiles]
    if base == 7:  # weights that truncate must show
        assert out != [softmax_of(tile, base, bias=0) for tile in tiles]
