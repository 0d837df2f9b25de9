"""The tile engine around its matrix unit against docs/prefill.md in Python integers, one number at a time."""

import random

import pytest
import torch
from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from intaglio.rtl.prefill import numerics
from intaglio.rtl.prefill.accumulate import Accumulators
from intaglio.rtl.prefill.config import PrefillConfig
from intaglio.rtl.prefill.drain import Drain, drain_cycles
from intaglio.rtl.prefill.engine import TileEngine
from intaglio.rtl.prefill.ports import Mode
from intaglio.rtl.prefill.softmax import UNREACHED, TileSoftmax
from intaglio.rtl.prefill.states import RowStates
from intaglio.sim.prefill import exact

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


class Accumulating(wiring.Component):
    """State memory, accumulators and drain, joined as in the engine."""

    def __init__(self, config):
        self.config = config
        super().__init__({})
        self.states, self.values = RowStates(config, simulate=True), Accumulators(config, simulate=True)
        self.drain = Drain(config)
        self.merge, self.address, self.walk, self.norm = Signal(), Signal.like(self.states.address), Signal(), Signal()

    def elaborate(self, platform):
        m = Module()
        m.submodules.states, m.submodules.values, m.submodules.drain = states, values, drain = self.states, self.values, self.drain
        m.d.comb += [
            states.merge.eq(self.merge), states.address.eq(Mux(drain.walk, drain.walk_address, self.address)),
            states.walk.eq(self.walk | drain.walk), states.norm.eq(self.norm), drain.walk_granted.eq(~states.busy),
            drain.lane_valid.eq(states.lane_valid), drain.lane_mantissa.eq(states.lane_mantissa), drain.lane_top.eq(states.lane_top),
            values.address.eq(self.address), values.first.eq(states.first), values.read.eq(drain.read),
            values.read_address.eq(drain.read_address), values.read_channel.eq(drain.read_channel), drain.read_granted.eq(~values.valid),
            *(a.eq(b) for name in ("kept", "added") for a, b in zip(getattr(values, name), getattr(states, name), strict=True)),
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
            most = config.head_dim * 127 if kind == "full" else picks.choice([64, 127, config.head_dim * 127])
            low = most if kind == "full" else 64
            total = picks.randint(low, most)
            lanes.append((e, total << 4, [picks.choice([-127, 127]) * total if kind == "full" else picks.randint(-127 * total, 127 * total)
                                          for _ in range(config.head_dim)]))
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
                assert payload.last == (len(beats) == config.block * config.head_dim // config.drain) == ctx.get(drain.done)
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


@pytest.mark.parametrize(("kind", "count", "stall"), [("near", 6, 0.0), ("jumps", 6, 0.4), ("falling", 30, 0.0), ("full", 32, 0.0)])
def test_merge_and_drain(kind, count, stall):
    picks = random.Random(count)
    groups = [row_tiles(picks, SMALL, count if group else 1, kind) for group in range(SMALL.row_groups)]
    out, took = run_accumulators(SMALL, 5, groups, stall)
    want = [[means(merge_rows([tile[lane] for tile in tiles])) for lane in range(SMALL.columns)] for tiles in groups]
    assert out == want
    if not stall:
        assert took == drain_cycles(SMALL)
    last = groups[-1]
    wrong = [[(e - (e > UNREACHED), total, o) for e, total, o in tile] if n % 2 else tile for n, tile in enumerate(last)]
    assert [means(merge_rows([tile[lane] for tile in wrong])) for lane in range(SMALL.columns)] != out[-1]


def test_norm():
    """L of merged sums of 16-bit probabilities, and of rows without any."""
    picks, dut, tiles = random.Random(3), Accumulating(SMALL), []
    for n in range(9):
        tiles.append([(UNREACHED, 0, []) if lane == 3 or picks.random() < 0.2 else
                      (picks.choice([-511, 0, 3, 4, 512]) if lane % 2 else 7, picks.randint(1, 65535 * SMALL.head_dim) if n else 1, [])
                      for lane in range(SMALL.columns)])
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
        return 256 * e + ((numerics.log2(total) + half) >> 4) - 4096 if total else numerics.MASKED_L

    assert seen == [log(lane, 8) for lane in range(SMALL.columns)]
    assert seen != [log(lane, 0) for lane in range(SMALL.columns)] and seen[3] == numerics.MASKED_L


class PlainMatrix(wiring.Component):
    """What the engine needs of a matrix unit, a product at a time."""

    def __init__(self, head_dim, columns):
        self.head_dim, self.columns, self.latency = head_dim, columns, 5
        super().__init__({
            "load_a": In(1), "load_a_data": In(signed(8)).array(columns), "load_b": In(1), "load_b_data": In(signed(8)).array(columns),
            "go": In(1), "bank": In(1), "row": In(signed(8)).array(head_dim),
            "valid": Out(1), "dot": Out(signed(20)).array(columns),
        })

    def elaborate(self, platform):
        m = Module()
        valid = [Signal(name=f"valid_{i}") for i in range(self.latency)]
        m.d.sync += [after.eq(before) for before, after in zip([self.go, *valid], valid, strict=False)]
        m.d.comb += self.valid.eq(valid[-1])
        for i in range(self.columns):
            banks = [[Signal(signed(8), name=f"bank_{name}_{i}_{k}") for k in range(self.head_dim)] for name in "ab"]
            for bank, load, data in ((banks[0], self.load_a, self.load_a_data[i]), (banks[1], self.load_b, self.load_b_data[i])):
                with m.If(load):
                    m.d.sync += [a.eq(b) for a, b in zip(bank, [*bank[1:], data], strict=True)]
            dots = [Signal(signed(20), name=f"dot_{i}_{s}") for s in range(self.latency)]
            m.d.sync += dots[0].eq(sum(Mux(self.bank, b, a) * x for a, b, x in zip(*banks, self.row, strict=True)))
            m.d.sync += [after.eq(before) for before, after in zip(dots, dots[1:], strict=False)]
            m.d.comb += self.dot[i].eq(dots[-1])
        return m


def word_of(values):
    return sum((int(x) & 255) << 8 * i for i, x in enumerate(values))


class Stores:
    """Lines (block b in line b) and Q slots of a run, and the engine's ports."""

    def __init__(self, config, group, slots):
        c, dim = config, config.head_dim
        blocks = len(group.k) // c.block
        self.k = [[word_of(group.k[b * c.block + i]) for i in range(c.block)] for b in range(blocks)]
        self.v = [[word_of(group.v[b * c.block + i // dim * dim:, i % dim][:dim]) for i in range(c.block)] for b in range(blocks)]
        self.x = [[word_of(group.xk[b * c.block + i * dim:][:dim]) for i in range(c.tiles)] for b in range(blocks)]
        self.q = []
        for head, first in slots:
            rows, beats = group.q[head, first:first + c.block], []
            for g in range(c.row_groups):
                part = rows[g * c.columns:(g + 1) * c.columns]
                for n in range(c.columns):
                    beats.append(word_of([part[i, n * (dim // c.columns) + k] for k in range(dim // c.columns) for i in range(c.columns)]))
            exponents = group.xq[head, first:first + c.block]
            self.q.append(beats + [word_of(exponents[i * dim:(i + 1) * dim]) for i in range(c.exponent_beats)])

    async def serve(self, ctx, dut):
        async for *_, k_en, v_en, x_en, q_en, line, k_row, v_row, x_tile, slot, beat in ctx.tick().sample(
                dut.k_read, dut.v_read, dut.x_read, dut.q_read, dut.read_line, dut.k_row, dut.v_row, dut.x_tile, dut.q_slot, dut.q_beat):
            if k_en:
                ctx.set(dut.k_data, self.k[line][k_row])
            if v_en:
                ctx.set(dut.v_data, self.v[line][v_row])
            if x_en:
                ctx.set(dut.x_data, self.x[line][x_tile])
            if q_en:
                ctx.set(dut.q_data, self.q[slot][beat])


def run_engine(config, matrix, stores, commands, base, *, stall=0.0):
    """Masses, results and retirements in order, and the cycles of the last command and of the end."""
    dut, picks, seen = TileEngine(config, matrix, simulate=True), random.Random(9), dict(masses=[], beats=[], retired=[], taken=[])

    async def bench(ctx):
        ctx.set(dut.base, base)
        queue, cycle, waits = list(commands), 0, 0
        while queue or not ctx.get(dut.idle):
            if queue:
                ctx.set(dut.i_tile.payload, queue[0])
            ctx.set(dut.i_tile.valid, bool(queue) and waits == 0)
            ctx.set(dut.o.ready, picks.random() >= stall)
            if ctx.get(dut.i_tile.valid) and ctx.get(dut.i_tile.ready):
                seen["taken"].append(cycle)
                queue.pop(0)
                waits = picks.randrange(60) if picks.random() < stall else 0
            else:
                waits = max(0, waits - 1)
            if ctx.get(dut.mass_valid):
                tag = ctx.get(dut.mass_tag)
                seen["masses"].append((int(tag.head), int(tag.row_group), int(tag.tile), ctx.get(dut.mass_key),
                                       [ctx.get(x) for x in dut.mass_p], [ctx.get(x) for x in dut.mass_t]))
            if ctx.get(dut.o.valid) and ctx.get(dut.o.ready):
                result = ctx.get(dut.o.payload)
                seen["beats"].append((int(result.head), int(result.block), [result["values"][i] for i in range(config.drain)]))
            gone = ctx.get(dut.o_retired)
            if gone.visit or gone.slot:
                seen["retired"].append((int(gone.visit), int(gone.slot), int(gone.index) if gone.slot else None))
            await ctx.tick()
            cycle += 1
            assert cycle < 60_000, "the engine hangs"
        seen["cycles"] = cycle

    async def serve(ctx):
        await stores.serve(ctx, dut)

    simulate(dut, bench, serve)
    return seen


def command(config, mode, slot, row_group, line, tile, query, **flags):
    """A tile of ``line`` = key block against a row group whose first token is ``query``."""
    limit = clamp(query - line * config.block - tile * config.head_dim, -config.columns, config.head_dim)
    return dict(mode=mode, slot=slot, row_group=row_group, line=line, tile=tile, state=slot * config.row_groups + row_group,
                limit=limit, head=slot % config.group, **flags)


def attend_commands(config, block):
    """All key blocks up to ``block`` for the heads of query block ``block``, slot by slot."""
    out = []
    for line in range(block + 1):
        for slot in range(config.group):
            for row_group in range(config.row_groups):
                query = block * config.block + row_group * config.columns
                final = (row_group + 1) * config.columns - 1
                tiles = [t for t in range(config.tiles) if line < block or t * config.head_dim <= final]
                for tile in tiles:
                    end = row_group == config.row_groups - 1 and tile == tiles[-1]
                    out.append(command(config, Mode.ATTEND, slot, row_group, line, tile, query, block=block, load=tile == 0,
                                       first=line == 0 and tile == 0, finish=end and line == block,
                                       retire=end and slot == config.group - 1))
    return out


def group_of(seed, tokens, config, base):
    random_ = torch.Generator().manual_seed(seed)

    def values(low, high, *shape):
        return torch.randint(low, high + 1, shape, generator=random_, dtype=torch.int8)

    heads, dim = config.group, config.head_dim
    return exact.HeadGroup(q=values(-127, 127, heads, tokens, dim), xq=values(0, 7, heads, tokens), k=values(-127, 127, tokens, dim),
                           xk=values(0, 7, tokens), v=values(-127, 127, tokens, dim), base=base, pooled_q=None, pooled_xq=None,
                           pooled_k=None, pooled_xk=None)


def attended(config, seen):
    """Results by (head, block) from beats."""
    out, size = {}, config.columns // config.drain
    for head, block, values in seen["beats"]:
        out.setdefault((head, block), []).extend(values)
    assert size
    shape = (config.row_groups, config.head_dim, config.columns)
    return {key: torch.tensor(flat).reshape(shape).transpose(1, 2).reshape(config.block, config.head_dim) for key, flat in out.items()}


@pytest.mark.parametrize(("base", "stall"), [(4, 0.0), (0, 0.3)])
def test_engine_attend(base, stall):
    c = SMALL
    group = group_of(base, 64, c, base)
    stores = Stores(c, group, [(head, 32) for head in range(c.group)])
    commands = attend_commands(c, 1)
    seen = run_engine(c, PlainMatrix(c.head_dim, c.columns), stores, commands, base, stall=stall)
    keep = torch.ones(c.group, 2, 2, dtype=torch.bool).tril()
    want = exact.attend(group, keep, block=c.block)
    out = attended(c, seen)
    assert sorted(out) == [(0, 1), (1, 1)]
    for head in range(c.group):
        assert torch.equal(out[head, 1], want[head, 32:].long())
    keep[:, 1, 0] = False
    assert not torch.equal(out[0, 1], exact.attend(group, keep, block=c.block)[0, 32:].long())
    assert [x for x in seen["retired"] if x[0]] == [(1, 0, None)] * 2
    assert [x for x in seen["retired"] if x[1]] == [(0, 1, 0), (0, 1, 1)]
    if not stall:
        steps = [b - a for a, b in zip(seen["taken"], seen["taken"][1:], strict=False)]
        assert set(steps[4:-1]) == {2 * c.head_dim}  # no bubble between tiles


@pytest.mark.parametrize(("base", "stall"), [(5, 0.0), (0, 0.3)])
def test_engine_index(base, stall):
    c = SMALL
    group = group_of(base + 50, 64, c, base)
    stores = Stores(c, group, [(head, 32) for head in range(c.group)])
    tiles = [(line, slot, g, tile) for line in range(2) for slot in range(c.group) for g in range(c.row_groups) for tile in range(c.tiles)]
    commands = []
    for mode in (Mode.MAX, Mode.NORM, Mode.MASS):
        if mode == Mode.NORM:
            commands += [command(c, mode, slot, g, 0, 0, 0) for slot in range(c.group) for g in range(c.row_groups)]
            continue
        commands += [command(c, mode, slot, g, line, tile, 32 + g * c.columns, load=tile == 0, first=line == 0 and tile == 0,
                             retire=(slot, g, tile) == (c.group - 1, c.row_groups - 1, c.tiles - 1)) for line, slot, g, tile in tiles]
    seen = run_engine(c, PlainMatrix(c.head_dim, c.columns), stores, commands, base, stall=stall)
    t = exact.scores(group.q[:, 32:], group.xq[:, 32:], group.k, group.xk, base)
    masked = (torch.arange(64) > torch.arange(32, 64)[:, None]).expand_as(t)
    logs = exact.log_sums(t, masked, c.head_dim)
    p = exact.masses(t, logs, masked)
    want = []
    for line, slot, g, tile in tiles:
        rows = slice(g * c.columns, (g + 1) * c.columns)
        for key in range(c.head_dim):
            column = line * c.block + tile * c.head_dim + key
            want.append((slot, g, tile, key, p[slot, rows, column].tolist(), t[slot, rows, column].tolist()))
    assert seen["masses"] == want
    assert not torch.equal(p, exact.masses(t, logs + 1, masked))
    assert seen["retired"] == [(1, 0, None)] * 4
    if not stall:
        steps = [b - a for a, b in zip(seen["taken"], seen["taken"][1:], strict=False)][4:len(tiles) - 1]
        assert set(steps) == {c.head_dim, c.head_dim + 1}
