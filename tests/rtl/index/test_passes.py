"""Passes of the index: commands and requests against loops written from docs/prefill.md."""

import random

import pytest
from amaranth.sim import Simulator

from intaglio.rtl.bus.streams import FetchKind, TileMode
from intaglio.rtl.config.attention import PrefillConfig
from intaglio.rtl.index.passes import IndexPass, pass_tiles

SMALL = dict(head_dim=16, group=2, block=32, columns=8, context=512, window=4, lines=4, lookahead=2, drain=4)
FIELDS = (
    "mode",
    "slot",
    "row_group",
    "line",
    "tile",
    "state",
    "limit",
    "first",
    "load",
    "finish",
    "retire",
    "head",
    "block",
)


def expected(config, mode, *, blocks, last_row, slot, heads, group, groups, query):
    out, norm = [], mode == TileMode.NORM
    for block in range(1 if norm else blocks):
        tiles = 1 if norm else last_row // config.head_dim + 1 if block == blocks - 1 else config.tiles
        for head in range(heads):
            for g in range(groups):
                for tile in range(tiles):
                    offset = query + g * config.columns - block * config.block - tile * config.head_dim
                    last = not norm and (g, tile) == (groups - 1, tiles - 1)
                    out.append(
                        dict(
                            mode=mode,
                            slot=slot + head,
                            row_group=group + g,
                            line=block % config.lines,
                            tile=tile,
                            state=head * config.row_groups + g,
                            limit=max(-config.columns, min(config.head_dim, offset)),
                            first=block == 0 and tile == 0,
                            load=not norm and tile == 0,
                            finish=last,
                            retire=last and head == heads - 1,
                            head=slot + head,
                            block=block,
                        )
                    )
    return out


def run(config, passes, *, latency=0, stall=0.0, retire_after=0, seed=0):
    """Commands, requests and cycles of passes one after another; a block is retired some cycles after its last tile was taken."""
    dut, picks = IndexPass(config), random.Random(seed)
    results = []

    async def bench(ctx):
        for mode, fields in passes:
            out, asked, coming, leaving, cycles, held = [], [], [], [], 0, 0
            ctx.set(dut.mode, mode)
            ctx.set(dut.base, 4096)
            for name, value in fields.items():
                ctx.set(getattr(dut, name), value)
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            while True:
                cycles += 1
                assert cycles < 50_000, "the pass hangs"
                ctx.set(dut.o_tile.ready, picks.random() >= stall)
                ctx.set(dut.o_fetch.ready, picks.random() >= stall)
                ctx.set(dut.arrived, bool(coming) and coming[0] <= cycles)
                ctx.set(dut.retired, bool(leaving) and leaving[0] <= cycles)
                if coming and coming[0] <= cycles:
                    coming.pop(0)
                if leaving and leaving[0] <= cycles:
                    leaving.pop(0)
                    held -= 1
                if ctx.get(dut.o_fetch.valid) and ctx.get(dut.o_fetch.ready):
                    request = ctx.get(dut.o_fetch.payload)
                    asked.append((request.kind, request.address, request.index, request.last_row))
                    coming.append(cycles + latency)
                    held += 1
                    assert held <= config.lines, "a line was overwritten"
                if ctx.get(dut.o_tile.valid) and ctx.get(dut.o_tile.ready):
                    payload = ctx.get(dut.o_tile.payload)
                    out.append({name: int(getattr(payload, name)) for name in FIELDS})
                    if payload.retire:
                        leaving.append(cycles + retire_after)
                done = ctx.get(dut.done)
                await ctx.tick()
                if done:
                    break
            results.append((out, asked, cycles))

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return results


FULL = dict(blocks=7, last_row=31, slot=0, heads=2, group=0, groups=4, query=7 * 32 - 32 - 13)
SHORT = FULL | dict(last_row=15)
POOLED = dict(blocks=1, last_row=6, slot=1, heads=1, group=2, groups=1, query=8)


@pytest.mark.parametrize("timing", [{}, dict(latency=70, stall=0.3, retire_after=25), dict(latency=1, retire_after=90)])
def test_commands_and_requests(timing):
    config = PrefillConfig(**SMALL)
    passes = [
        (TileMode.MAX, FULL),
        (TileMode.NORM, FULL),
        (TileMode.MASS, FULL),
        (TileMode.MAX, SHORT),
        (TileMode.MASS, SHORT | dict(last_row=16)),
        (TileMode.MAX, POOLED),
        (TileMode.NORM, POOLED),
    ]
    for (mode, fields), (out, asked, cycles) in zip(passes, run(config, passes, **timing), strict=True):
        assert out == expected(config, mode, **fields)
        blocks = 0 if mode == TileMode.NORM else fields["blocks"]
        assert asked == [
            (FetchKind.K, 4096 + b * 2 * (32 + 2) * 16, b % config.lines, fields["last_row"] if b == blocks - 1 else 31)
            for b in range(blocks)
        ]
        if not timing:
            tiles = (
                len(out)
                if mode == TileMode.NORM
                else pass_tiles(
                    config, blocks=blocks, heads=fields["heads"], groups=fields["groups"], rows=fields["last_row"] + 1
                )
            )
            assert tiles == len(out) and cycles <= tiles + 4
