"""Block scores by class against sums written from docs/prefill.md."""

import random

import pytest
from amaranth.sim import Simulator

from intaglio.rtl.arithmetic.attention import SCORE_WORD
from intaglio.rtl.config.attention import PrefillConfig
from intaglio.rtl.index.masses import BlockMasses

SMALL = dict(head_dim=16, group=2, block=32, columns=8, context=512, window=4, lines=6, lookahead=2, drain=4)


def inputs(config, heads, seed, extreme):
    """Keys of one block after another: (head, row group, tile, key, p, t)."""
    picks, out = random.Random(seed), []
    most = (1 << SCORE_WORD) // config.block**2 - 1  # masses of rows add up to about 1 each
    for head in heads:
        for group in range(config.row_groups):
            for tile in range(config.tiles):
                for key in range(config.head_dim):
                    p = [most if extreme else picks.randrange(most + 1) for _ in range(config.columns)]
                    t = [-(1 << 17) if extreme else picks.randrange(-(1 << 17), 1 << 17) for _ in range(config.columns)]
                    out.append((head, group, tile, key, p, t))
    return out


def expected(config, keys, pad):
    out, size = [], config.row_groups * config.tiles * config.head_dim
    for first in range(0, len(keys), size):
        mass, pool = [0, 0, 0], 0
        for _, group, tile, key, p, t in keys[first : first + size]:
            for lane in range(config.columns):
                query = (
                    group * config.columns + lane - pad + config.block
                )  # its place, counted from the block before the last
                distance = (query - (tile * config.head_dim + key)) // config.block - 1
                mass[-distance] += p[lane]  # distance 0: that of the blocks
                pool += t[lane]
        out.append((keys[first][0], *mass, pool))
    return out


def run(config, keys, pad, gap):
    dut, out, picks = BlockMasses(config), [], random.Random(1)

    async def bench(ctx):
        ctx.set(dut.pad, pad)
        queue = list(keys)
        for _ in range(3 * len(keys) + 10):
            here = bool(queue) and picks.random() >= gap
            ctx.set(dut.valid, here)
            if here:
                head, group, tile, key, p, t = queue.pop(0)
                finish = (group, tile) == (config.row_groups - 1, config.tiles - 1)
                ctx.set(dut.tag, {"head": head, "row_group": group, "tile": tile, "finish": finish})
                ctx.set(dut.key, key)
                for lane in range(config.columns):
                    ctx.set(dut.p[lane], p[lane])
                    ctx.set(dut.t[lane], t[lane])
            await ctx.tick()
            if ctx.get(dut.o_valid):
                out.append((ctx.get(dut.o_head), *(ctx.get(x) for x in dut.o_mass), ctx.get(dut.o_pool)))

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return out


@pytest.mark.parametrize(
    ("pad", "extreme", "gap", "shape"),
    [
        (0, False, 0, {}),
        (1, False, 0.3, {}),
        (31, False, 0, {}),
        (13, True, 0, {}),
        (5, False, 0, {"columns": 16}),
        (9, False, 0, {"block": 16}),
    ],
)
def test_sums_by_class(pad, extreme, gap, shape):
    config = PrefillConfig(**SMALL | shape)
    keys = inputs(config, [0, 1, 1], pad, extreme)
    want = expected(config, keys, pad)
    out = run(config, keys, pad, gap)
    assert out == want
