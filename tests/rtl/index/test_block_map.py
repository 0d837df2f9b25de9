"""The block map against the exact model's rule, written again in Python."""

import random

import pytest
from amaranth.sim import Simulator

from intaglio.rtl.config.attention import PrefillConfig
from intaglio.rtl.index.block_map import BlockMap, pattern_cycles

SMALL = dict(head_dim=16, group=3, block=32, columns=8, context=1024, window=4, lines=6, lookahead=2, drain=4)


def expected(blocks, vertical, slash, rows, aware, dense):
    """Map [head][row] as the set of its key blocks."""
    out = []
    for head in range(len(vertical)):
        out.append([])
        for row in range(blocks):
            if head in aware:
                kept = {
                    c
                    for c in range(row + 1)
                    if rows[head][row][c] or c in (0, row) or row >= blocks - 2 and vertical[head][c]
                }
            else:
                kept = {
                    c
                    for c in range(row + 1)
                    if dense
                    or vertical[head][c]
                    or slash[head][row - c]
                    or c in (0, row)
                    or c < row
                    and slash[head][row - c - 1]
                }
            out[-1].append(kept)
    return out


def run(config, blocks, vertical, slash, rows, aware, dense):
    dut, got, cycles = BlockMap(config), [], None

    def word(bits):
        return sum(bool(bit) << i for i, bit in enumerate(bits))

    async def bench(ctx):
        nonlocal cycles
        ctx.set(dut.blocks, blocks)
        ctx.set(dut.aware, sum(1 << head for head in aware))
        ctx.set(dut.dense, dense)
        ctx.set(dut.pick_en, 1)
        for block in range(blocks):
            ctx.set(dut.pick_index, block)
            ctx.set(dut.pick_vertical, word(v[block] for v in vertical))
            ctx.set(dut.pick_slash, word(s[block] for s in slash))
            await ctx.tick()
        ctx.set(dut.pick_en, 0)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        cycles = 1
        while not ctx.get(dut.done):
            await ctx.tick()
            cycles += 1
            assert cycles < 10_000, "the expansion hangs"
        await ctx.tick()
        ctx.set(dut.row_en, 1)
        for head in aware:
            for batch in range(-(-blocks // config.columns)):
                for column in range(blocks):
                    ctx.set(dut.row_head, head)
                    ctx.set(dut.row_batch, batch)
                    ctx.set(dut.row_index, column)
                    lanes = range(batch * config.columns, (batch + 1) * config.columns)
                    ctx.set(dut.row_mask, word(rows[head][row][column] if row < blocks else 1 for row in lanes))
                    await ctx.tick()
        ctx.set(dut.row_en, 0)
        await ctx.tick()
        ctx.set(dut.read_en, 1)
        for head in range(config.group):
            got.append([set() for _ in range(blocks)])
            for batch in range(-(-blocks // config.columns)):
                for column in range(min(blocks, (batch + 1) * config.columns)):
                    ctx.set(dut.read_head, head)
                    ctx.set(dut.read_batch, batch)
                    ctx.set(dut.read_block, column)
                    await ctx.tick()
                    mask = ctx.get(dut.read_data)
                    for lane in range(config.columns):
                        if mask >> lane & 1:
                            assert batch * config.columns + lane < blocks, "a row past the end"
                            got[-1][batch * config.columns + lane].add(column)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return got, cycles


@pytest.mark.parametrize(
    ("blocks", "share", "aware", "dense"),
    [
        (32, 0.2, [], False),
        (17, 0.1, [1], False),
        (8, 0.4, [0, 2], False),
        (1, 0.5, [], False),
        (5, 0.0, [2], False),
        (23, 1.0, [], False),
        (24, 0.1, [], True),
        (9, 0.15, [0, 1, 2], False),
    ],
)
def test_map(blocks, share, aware, dense):
    config, picks = PrefillConfig(**SMALL), random.Random(blocks)
    vertical, slash = ([[picks.random() < share for _ in range(blocks)] for _ in range(3)] for _ in range(2))
    rows = [[[picks.random() < share for _ in range(blocks)] for _ in range(blocks)] for _ in range(3)]
    want = expected(blocks, vertical, slash, rows, aware, dense)
    got, cycles = run(config, blocks, vertical, slash, rows, aware, dense)
    assert got == want
    assert cycles == pattern_cycles(config, blocks)
