"""The tile engine with a matrix unit of a few lines, against the exact model; tiles follow one another without a bubble."""

import random

import pytest
import torch
from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from intaglio.rtl.attention.engine import TileEngine
from intaglio.rtl.bus.streams import TileMode
from intaglio.rtl.config.attention import PrefillConfig
from intaglio.sim.attention import exact

SHAPE = dict(head_dim=16, group=2, block=32, columns=8, context=512, window=4, lines=6, lookahead=2, drain=4)
SMALL = PrefillConfig(**SHAPE)
SQUARE = PrefillConfig(**SHAPE | dict(block=16, columns=16, group=1, drain=8))


def clamp(x, low, high):
    return max(low, min(high, x))


class PlainMatrix(wiring.Component):
    """What the engine needs of a matrix unit, a product at a time."""

    def __init__(self, head_dim, columns):
        self.head_dim, self.columns, self.latency = head_dim, columns, 5
        super().__init__(
            {
                "load_a": In(1),
                "load_a_data": In(signed(8)).array(columns),
                "load_b": In(1),
                "load_b_data": In(signed(8)).array(columns),
                "go": In(1),
                "bank": In(1),
                "row": In(signed(8)).array(head_dim),
                "valid": Out(1),
                "dot": Out(signed(20)).array(columns),
            }
        )

    def elaborate(self, platform):
        m = Module()
        valid = [Signal(name=f"valid_{i}") for i in range(self.latency)]
        m.d.sync += [after.eq(before) for before, after in zip([self.go, *valid], valid, strict=False)]
        m.d.comb += self.valid.eq(valid[-1])
        for i in range(self.columns):
            banks = [[Signal(signed(8), name=f"bank_{name}_{i}_{k}") for k in range(self.head_dim)] for name in "ab"]
            for bank, load, data in (
                (banks[0], self.load_a, self.load_a_data[i]),
                (banks[1], self.load_b, self.load_b_data[i]),
            ):
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
        self.v = [
            [word_of(group.v[b * c.block + i // dim * dim :, i % dim][:dim]) for i in range(c.block)]
            for b in range(blocks)
        ]
        self.x = [
            [
                word_of(torch.cat([x[b * c.block + i * dim :][:dim] for x in (group.xk, group.xv)]))
                for i in range(c.tiles)
            ]
            for b in range(blocks)
        ]
        self.q = []
        for head, first in slots:
            rows, beats = group.q[head, first : first + c.block], []
            for g in range(c.row_groups):
                part = rows[g * c.columns : (g + 1) * c.columns]
                for n in range(c.columns):
                    beats.append(
                        word_of(
                            [
                                part[i, n * (dim // c.columns) + k]
                                for k in range(dim // c.columns)
                                for i in range(c.columns)
                            ]
                        )
                    )
            scales = group.xq[head, first : first + c.block]
            self.q.append(beats + [word_of(scales[i * dim : (i + 1) * dim]) for i in range(c.scale_beats)])

    async def serve(self, ctx, dut):
        async for *_, k_en, v_en, x_en, q_en, line, k_row, v_row, x_tile, slot, beat in ctx.tick().sample(
            dut.store.k_read,
            dut.store.v_read,
            dut.store.x_read,
            dut.store.q_read,
            dut.store.read_line,
            dut.store.k_row,
            dut.store.v_row,
            dut.store.x_tile,
            dut.store.q_slot,
            dut.store.q_beat,
        ):
            if k_en:
                ctx.set(dut.store.k_data, self.k[line][k_row])
            if v_en:
                ctx.set(dut.store.v_data, self.v[line][v_row])
            if x_en:
                ctx.set(dut.store.x_data, self.x[line][x_tile])
            if q_en:
                ctx.set(dut.store.q_data, self.q[slot][beat])


def run_engine(config, matrix, stores, commands, *, stall=0.0):
    """Masses, results and retirements in order, and the cycles of the last command and of the end."""
    dut, picks, seen = (TileEngine(config, matrix), random.Random(9), dict(masses=[], beats=[], retired=[], taken=[]))

    async def bench(ctx):
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
            if ctx.get(dut.masses.valid):
                tag = ctx.get(dut.masses.tag)
                seen["masses"].append(
                    (
                        int(tag.head),
                        int(tag.row_group),
                        int(tag.tile),
                        ctx.get(dut.masses.key),
                        [ctx.get(x) for x in dut.masses.p],
                        [ctx.get(x) for x in dut.masses.t],
                    )
                )
            if ctx.get(dut.o.valid) and ctx.get(dut.o.ready):
                result = ctx.get(dut.o.payload)
                values = [result["values"][i] for i in range(config.drain)]
                seen["beats"].append((int(result.head), int(result.block), values, result.exponent))
            gone = ctx.get(dut.o_retired)
            if gone.visit or gone.slot:
                seen["retired"].append((int(gone.visit), int(gone.slot), int(gone.index) if gone.slot else None))
            await ctx.tick()
            cycle += 1
            assert cycle < 60_000, "the engine hangs"
        seen["cycles"] = cycle

    async def serve(ctx):
        await stores.serve(ctx, dut)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.add_testbench(serve, background=True)
    simulator.run()
    return seen


def command(config, mode, slot, row_group, line, tile, query, **flags):
    """A tile of ``line`` = key block against a row group whose first token is ``query``."""
    limit = clamp(query - line * config.block - tile * config.head_dim, -config.columns, config.head_dim)
    return dict(
        mode=mode,
        slot=slot,
        row_group=row_group,
        line=line,
        tile=tile,
        state=slot * config.row_groups + row_group,
        limit=limit,
        head=slot % config.group,
        **flags,
    )


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
                    out.append(
                        command(
                            config,
                            TileMode.ATTEND,
                            slot,
                            row_group,
                            line,
                            tile,
                            query,
                            block=block,
                            load=tile == 0,
                            first=line == 0 and tile == 0,
                            finish=end and line == block,
                            retire=end and slot == config.group - 1,
                        )
                    )
    return out


def group_of(seed, tokens, config, base):
    random_ = torch.Generator().manual_seed(seed)

    def values(low, high, *shape):
        return torch.randint(low, high + 1, shape, generator=random_, dtype=torch.int16)

    def scales(least, *shape):
        return values(4 * least, 4 * least + 31, *shape)

    heads, dim = config.group, config.head_dim
    return exact.HeadGroup(
        q=values(-127, 127, heads, tokens, dim),
        xq=scales(28 + base, heads, tokens),
        k=values(-127, 127, tokens, dim),
        xk=scales(24, tokens),
        v=values(-127, 127, tokens, dim),
        xv=values(90, 150, tokens),
        pooled_q=None,
        pooled_xq=None,
        pooled_k=None,
        pooled_xk=None,
    )


def attended(config, seen):
    """Results by (head, block) from beats, and their exponents in the last column."""
    out = {}
    for head, block, values, exponent in seen["beats"]:
        out.setdefault((head, block), []).extend((value, exponent) for value in values)
    shape = (config.row_groups, config.head_dim, config.columns, 2)
    found = {}
    for key, flat in out.items():
        both = torch.tensor(flat).reshape(shape).transpose(1, 2).reshape(config.block, config.head_dim, 2)
        assert (both[..., 1] == both[:, :1, 1]).all()
        found[key] = torch.cat([both[..., 0], both[:, :1, 1]], 1)
    return found


def wanted(group, keep, block):
    """The same of all rows of the exact model, [G, N, D + 1]."""
    values, exponents = exact.attend(group, keep, block=block)
    return torch.cat([values.long(), exponents[..., None].long()], -1)


@pytest.mark.parametrize(("c", "base", "stall"), [(SMALL, 4, 0.0), (SMALL, 0, 0.3), (SQUARE, 6, 0.0)])
def test_attend(c, base, stall):
    group = group_of(base, 2 * c.block, c, base)
    stores = Stores(c, group, [(head, c.block) for head in range(c.group)])
    commands = attend_commands(c, 1)
    seen = run_engine(c, PlainMatrix(c.head_dim, c.columns), stores, commands, stall=stall)
    keep = torch.ones(c.group, 2, 2, dtype=torch.bool).tril()
    want = wanted(group, keep, c.block)
    out = attended(c, seen)
    assert sorted(out) == [(head, 1) for head in range(c.group)]
    for head in range(c.group):
        assert torch.equal(out[head, 1], want[head, c.block :])
    assert [x for x in seen["retired"] if x[0]] == [(1, 0, None)] * 2
    assert [x for x in seen["retired"] if x[1]] == [(0, 1, head) for head in range(c.group)]
    if not stall:
        steps = [b - a for a, b in zip(seen["taken"], seen["taken"][1:], strict=False)]
        assert c is SQUARE or set(steps[4:-1]) == {2 * c.head_dim}  # no bubble between tiles


@pytest.mark.parametrize(("c", "base", "stall"), [(SMALL, 5, 0.0), (SMALL, 0, 0.3), (SQUARE, 3, 0.0)])
def test_index(c, base, stall):
    group = group_of(base + 50, 2 * c.block, c, base)
    stores = Stores(c, group, [(head, c.block) for head in range(c.group)])
    tiles = [
        (line, slot, g, tile)
        for line in range(2)
        for slot in range(c.group)
        for g in range(c.row_groups)
        for tile in range(c.tiles)
    ]
    commands = []
    for mode in (TileMode.MAX, TileMode.NORM, TileMode.MASS):
        if mode == TileMode.NORM:
            commands += [command(c, mode, slot, g, 0, 0, 0) for slot in range(c.group) for g in range(c.row_groups)]
            continue
        commands += [
            command(
                c,
                mode,
                slot,
                g,
                line,
                tile,
                c.block + g * c.columns,
                load=tile == 0,
                first=line == 0 and tile == 0,
                retire=(slot, g, tile) == (c.group - 1, c.row_groups - 1, c.tiles - 1),
            )
            for line, slot, g, tile in tiles
        ]
    seen = run_engine(c, PlainMatrix(c.head_dim, c.columns), stores, commands, stall=stall)
    t = exact.scores(group.q[:, c.block :], group.xq[:, c.block :], group.k, group.xk)
    masked = (torch.arange(2 * c.block) > torch.arange(c.block, 2 * c.block)[:, None]).expand_as(t)
    logs = exact.log_sums(t, masked, c.head_dim)
    p = exact.masses(t, logs, masked)
    want = []
    for line, slot, g, tile in tiles:
        rows = slice(g * c.columns, (g + 1) * c.columns)
        for key in range(c.head_dim):
            column = line * c.block + tile * c.head_dim + key
            want.append((slot, g, tile, key, p[slot, rows, column].tolist(), t[slot, rows, column].tolist()))
    assert seen["masses"] == want
    assert seen["retired"] == [(1, 0, None)] * 4
    if not stall:
        steps = [b - a for a, b in zip(seen["taken"], seen["taken"][1:], strict=False)][4 : len(tiles) - 1]
        assert set(steps) <= {c.head_dim, c.head_dim + 1}
