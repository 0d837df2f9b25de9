"""The schedule alone: from the block map to the visits of the model, in as many cycles as stated, under any taker."""

import random

import numpy as np
import pytest
from amaranth.hdl import ResetInserter, Signal
from amaranth.sim import Simulator

from intaglio.rtl.control import schedule
from intaglio.rtl.control.schedule import Schedule, schedule_cycles
from tests.rtl.visits import CONFIGS, expected, fields, mutated, sparse


def streamed(config, block_map, *, taker=None, cancel_at=None, cls=Schedule, single=False):
    """Visits and the cycle of the last, in a run from ``start``, after a run that a reset ended if asked for."""
    dut, reset, found, cycles = cls(config), Signal(), [], 0
    count = block_map.shape[1]

    async def bench(ctx):
        nonlocal cycles
        ctx.set(dut.blocks, count)
        ctx.set(dut.single, single)
        for run in range(1 if cancel_at is None else 2):
            found.clear()
            ctx.set(dut.start, 1)
            word, last, cycles = 0, False, 0
            while not last:
                ctx.set(dut.read_data, word)
                ctx.set(dut.o_visit.ready, int(taker is None or taker.random() < 0.3))
                cancelled = cancel_at is not None and run == 0 and cycles == cancel_at
                ctx.set(reset, int(cancelled))
                if ctx.get(dut.read_en):
                    assert not single
                    head, batch, block = ctx.get(dut.read_head), ctx.get(dut.read_batch), ctx.get(dut.read_block)
                    rows = range(batch * config.columns, min(count, (batch + 1) * config.columns))
                    assert block < rows.stop
                    word = sum(int(block_map[head, row, block]) << i for i, row in enumerate(rows))
                if ctx.get(dut.o_visit.valid) and ctx.get(dut.o_visit.ready):
                    visit = ctx.get(dut.o_visit.payload)
                    found.append(fields(visit))
                    last = bool(visit.last)
                await ctx.tick()
                ctx.set(dut.start, 0)
                if cancelled:
                    break
                cycles += 1
                assert cycles < 100_000
            ctx.set(reset, 0)
            assert not ctx.get(dut.busy)

    sim = Simulator(ResetInserter(reset)(dut))
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return found, cycles - 1


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("whole", [True, False])
def test_the_visits_of_the_map(name, whole):
    c = CONFIGS[name]
    count = c.blocks if whole else c.blocks - 5
    block_map = sparse(len(name), c, count, 0.4)
    want = expected(block_map, c)
    found, cycles = streamed(c, block_map)
    assert found == want and cycles == schedule_cycles(c, count, len(want))
    assert streamed(c, block_map, taker=random.Random(1))[0] == want


@pytest.mark.parametrize("count", [1, 2, 16])
def test_a_visit_to_every_block(count):
    """For the last token alone: no map is read."""
    c = CONFIGS["small"]
    for taker in (None, random.Random(2)):
        found, cycles = streamed(c, np.zeros((c.group, count, count)), taker=taker, single=True)
        assert found == [(0, block, 1, None, 0) for block in range(count)]
        assert taker or cycles == count


@pytest.mark.parametrize("density", [0.0, 1.0, 2.0])
def test_extreme_maps(density):
    c = CONFIGS["small"]
    for count in (1, 4, 9):
        block_map = np.tril(np.ones((c.group, count, count), bool)) if density == 2 else sparse(3, c, count, density)
        assert streamed(c, block_map)[0] == expected(block_map, c)


@pytest.mark.parametrize("cancel_at", [0, 7, 60, 150])
def test_a_run_after_an_abort(cancel_at):
    c = CONFIGS["small"]
    block_map = sparse(4, c, c.blocks, 0.4)
    assert streamed(c, block_map, cancel_at=cancel_at)[0] == expected(block_map, c)


def test_wrong_remaining_counts_show():
    c = CONFIGS["small"]
    block_map = sparse(4, c, c.blocks, 0.4)
    wrong = mutated(schedule, "remaining.eq(left.read_data - 1)", "remaining.eq(left.read_data)")["Schedule"]
    assert streamed(c, block_map, cls=wrong)[0] != expected(block_map, c)
