"""The single lane against numpy, with the weights that it is placed with."""

import numpy as np
from amaranth.sim import Simulator

from intaglio.boards.lane import ROWS, LaneTop
from intaglio.gen.checkpoint.reader import load_checkpoint
from intaglio.gen.presets.decoder import config_for
from intaglio.rtl.ternary.packing import pack_ints


def test_rows():
    config = config_for(load_checkpoint("models/burin").config, "ulx3s")
    rng = np.random.default_rng(1)
    weights = rng.integers(-1, 2, (ROWS, config.lane_width))
    x = rng.integers(-127, 128, config.lane_width)
    dut = LaneTop(config, pack_ints(weights, config.packing))
    found = []

    async def bench(ctx):
        for byte in x.astype(np.uint8):
            for place in range(8):
                ctx.set(dut.bit, int(byte) >> place & 1)
                ctx.set(dut.shift, 1)
                await ctx.tick()
        ctx.set(dut.shift, 0)
        ctx.set(dut.go, 1)
        await ctx.tick()
        ctx.set(dut.go, 0)
        for _ in range(ROWS + 20):
            if ctx.get(dut.valid):
                found.append(ctx.get(dut.sum))
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert found == (weights @ x).tolist()
