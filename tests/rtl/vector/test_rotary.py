"""Rotary unit: every pair equals ``numerics.rotary_pair``; time to ready; restart."""

import pytest
from amaranth.sim import Simulator

from intaglio.rtl.arithmetic.numerics import SINE_TABLE, rotary_increment, rotary_pair
from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.vector.rotary import Rotary


def config(head_dim, vector_width):
    return DecoderConfig(
        hidden=2 * head_dim,
        intermediate=2 * head_dim,
        layers=1,
        heads=2,
        kv_heads=1,
        head_dim=head_dim,
        vocab=16,
        context=64,
        lanes=2,
        lane_width=head_dim,
        vector_width=vector_width,
    )


@pytest.mark.parametrize(("head_dim", "vector_width"), [(4, 4), (8, 4), (8, 2), (64, 16), (128, 32)])
def test_pairs(head_dim, vector_width):
    shape = config(head_dim, vector_width)
    increments = [rotary_increment(i, head_dim, 10000.0) for i in range(head_dim // 2)]
    dut = Rotary(shape, increments, SINE_TABLE)

    async def start(ctx, position):
        ctx.set(dut.position, position)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        ctx.set(dut.position, 0xAAAA)  # sampled at start
        assert not ctx.get(dut.ready)

    async def bench(ctx):
        assert not ctx.get(dut.ready)
        for position in (0, 1, 2, 77, 4095, 40000, 65535):
            if position == 77:  # abandoned a few cycles later
                await start(ctx, 12345)
                await ctx.tick().repeat(head_dim + 2)
            await start(ctx, position)
            cycles = 1
            while not ctx.get(dut.ready):
                await ctx.tick()
                cycles += 1
            assert cycles == Rotary.cycles(shape)
            got = []
            for word in range(head_dim // vector_width):
                ctx.set(dut.word, word)
                await ctx.tick()
                got += [(ctx.get(c), ctx.get(s)) for c, s in zip(dut.cosine, dut.sine, strict=True)]
            assert got == [rotary_pair(position * increment % 2**32) for increment in increments], position

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
