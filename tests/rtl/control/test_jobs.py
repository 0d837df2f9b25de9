"""Jobs of a visit: the tile commands against loops written from docs/prefill.md."""

import random

import pytest
from amaranth.sim import Simulator

from intaglio.rtl.bus.streams import TileMode
from intaglio.rtl.config.attention import PrefillConfig
from intaglio.rtl.control.jobs import JobSequencer, job_tiles

SMALL = dict(head_dim=16, group=2, block=32, columns=8, context=512, window=4, lines=6, lookahead=2, drain=4)
SHAPES = [
    SMALL,
    SMALL | dict(columns=16, group=3, window=2),
    SMALL | dict(block=64, group=1, window=8, context=1536),
    SMALL | dict(block=16),
]


FIELDS = (
    "mode",
    "slot",
    "row_group",
    "line",
    "tile",
    "state",
    "limit",
    "alike",
    "first",
    "load",
    "finish",
    "retire",
    "head",
    "block",
)


def expected(config, visits, blocks, rows):
    begun, out = set(), []
    for seen in visits:
        jobs = [slot for slot in range(config.slots) if seen["jobs"] >> slot & 1]
        for slot in jobs:
            row = seen["window"] * config.window + slot // config.group
            here = rows if row == blocks - 1 else config.block
            tiles = [
                (group, tile)
                for group in range(-(-here // config.columns))
                for tile in range(config.tiles)
                if row != seen["block"] or tile * config.head_dim <= group * config.columns + config.columns - 1
            ]
            assert len(tiles) == job_tiles(config, row == seen["block"], here)
            for group, tile in tiles:
                limit = group * config.columns - tile * config.head_dim if row == seen["block"] else config.head_dim
                final = (group, tile) == tiles[-1]
                out.append(
                    dict(
                        mode=TileMode.ATTEND,
                        slot=slot,
                        row_group=group,
                        line=seen["line"],
                        tile=tile,
                        state=slot * config.row_groups + group,
                        limit=min(limit, config.head_dim),
                        alike=0,
                        first=slot not in begun and tile == 0,
                        load=tile == 0,
                        finish=final and row == seen["block"],
                        retire=final and slot == jobs[-1],
                        head=slot % config.group,
                        block=row,
                    )
                )
            begun.add(slot)
            if row == seen["block"]:
                begun.discard(slot)
    return out


def some_visits(config, seed):
    picks, visits = random.Random(seed), []
    for window in range(min(3, config.windows)):
        for block in range((window + 1) * config.window):
            jobs = 0
            for slot in range(config.slots):
                row = window * config.window + slot // config.group
                if row == block or block < row and picks.random() < 0.4:
                    jobs |= 1 << slot
            visits.append(dict(window=window, block=block, jobs=jobs, line=picks.randrange(config.lines)))
    return visits


def expected_single(config, blocks, rows):
    """A row group over all key blocks, its lanes at row ``rows - 1`` of the last."""
    out = []
    for block in range(blocks):
        here = rows if block == blocks - 1 else config.block
        for tile in range(-(-here // config.head_dim)):
            last = tile == -(-here // config.head_dim) - 1
            limit = rows - 1 - tile * config.head_dim if block == blocks - 1 else config.head_dim
            fields = dict.fromkeys(("slot", "row_group", "state", "head"), 0)
            fields |= dict(mode=TileMode.ATTEND, line=block % 3, tile=tile, limit=min(limit, config.head_dim), alike=1)
            fields |= dict(
                first=block == tile == 0, load=block == tile == 0, finish=last and block == blocks - 1, retire=last
            )
            out.append(fields | dict(block=blocks - 1))
    return out


def run(config, visits, blocks, rows, *, single=False, seed=0, stall=0.0, wait=0.0):
    """Tile commands and cycles; ``wait``: how often a slot is not there."""
    dut, picks, out = JobSequencer(config), random.Random(seed), []
    cycles = 0

    async def bench(ctx):
        nonlocal cycles
        queue, everything = list(visits), (1 << config.slots) - 1
        ctx.set(dut.blocks, blocks)
        ctx.set(dut.last_row, rows - 1)
        ctx.set(dut.single, single)
        while queue:
            shown = queue[0]
            ctx.set(dut.line, shown["line"])
            ctx.set(dut.i_visit.payload, {name: shown[name] for name in ("window", "block", "jobs")})
            ctx.set(dut.i_visit.valid, 1)
            ctx.set(dut.o_tile.ready, picks.random() >= stall)
            blocked = picks.random() < wait
            ctx.set(dut.loaded, 0 if blocked else everything)
            if ctx.get(dut.o_tile.valid) and ctx.get(dut.o_tile.ready):
                payload = ctx.get(dut.o_tile.payload)
                out.append({name: int(getattr(payload, name)) for name in FIELDS})
            if ctx.get(dut.i_visit.ready):
                queue.pop(0)
            await ctx.tick()
            cycles += 1
            assert cycles < 200_000, "the sequencer hangs"

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return out, cycles


@pytest.mark.parametrize("rows", [1, 8, 9, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_commands_and_cycles(shape, rows):
    """The last block has ``rows`` rows: row groups past them are left out."""
    config = PrefillConfig(**shape)
    visits = some_visits(config, 1)
    blocks = min(3, config.windows) * config.window
    want = expected(config, visits, blocks, rows)
    out, cycles = run(config, visits, blocks, rows)
    assert rows > config.block - config.columns or out != expected(config, visits, blocks, config.block)
    assert out == want
    jobs = sum(seen["jobs"].bit_count() for seen in visits)
    assert cycles == len(out) + jobs + len(visits)


@pytest.mark.parametrize("rows", [1, 8, 15, 16, 17, 32])
@pytest.mark.parametrize("blocks", [1, 2, 9])
def test_the_last_token_alone(blocks, rows):
    config = PrefillConfig(**SMALL)
    visits = [dict(window=0, block=block, jobs=1, line=block % 3) for block in range(blocks)]
    out, cycles = run(config, visits, blocks, rows, single=True)
    assert out == expected_single(config, blocks, rows) and cycles == len(out) + 2 * blocks
    assert out != run(config, visits, blocks, rows)[0]


def test_stalls_change_nothing():
    config = PrefillConfig(**SMALL)
    visits = some_visits(config, 2)
    assert run(config, visits, 12, 17, seed=3, stall=0.5, wait=0.5)[0] == expected(config, visits, 12, 17)


def test_every_job_waits_for_its_queries():
    config = PrefillConfig(**SMALL | dict(group=1, window=1))
    dut = JobSequencer(config)

    async def bench(ctx):
        ctx.set(dut.o_tile.ready, 1)
        ctx.set(dut.i_visit.valid, 1)
        for block in range(2):
            ctx.set(dut.i_visit.payload, {"window": 1, "block": block, "jobs": 1})
            ctx.set(dut.loaded, 0)
            for _ in range(20):
                await ctx.tick()
                assert not ctx.get(dut.o_tile.valid)
            assert ctx.get(dut.waiting)
            ctx.set(dut.loaded, 1)
            for _ in range(40):
                if ctx.get(dut.i_visit.ready):
                    break
                await ctx.tick()
            assert ctx.get(dut.i_visit.ready), "the job must go on when its queries are there"
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
