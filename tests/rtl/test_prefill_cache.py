"""Schedule and KV cache control of sparse prefill attention against their models, under any timing of memory and consumer."""

import inspect
import random

import numpy as np
import pytest
from amaranth.sim import Simulator

from intaglio.rtl.prefill import schedule as schedule_rtl
from intaglio.rtl.prefill.config import PrefillConfig
from intaglio.rtl.prefill.schedule import schedule_cycles
from intaglio.sim.prefill.cache import visits


def config(**changes):
    fields = {"head_dim": 16, "group": 2, "block": 32, "columns": 8, "context": 512, "window": 4, "lines": 6, "lookahead": 2, "drain": 4}
    return PrefillConfig(**fields | changes)


CONFIGS = {
    "small": config(),
    "window of a batch": config(window=8, group=4, lines=4, lookahead=1),
    "window of one": config(window=1, group=1, context=32 * 21, lines=9, lookahead=5),
}


def sparse(seed, config, count, density):
    """Random causal map with the diagonal and, for some heads, the sink."""
    rng = np.random.default_rng(seed)
    block_map = rng.random((config.group, count, count)) < density * rng.random(count)
    block_map[0, :, 0] = True
    block_map |= np.eye(count, dtype=bool)
    return np.tril(block_map)


def mutated(module, old, new):
    """The module with one piece of its source changed."""
    source = inspect.getsource(module)
    assert source.count(old) == 1
    space = {"__name__": module.__name__}
    exec(compile(source.replace(old, new), module.__file__, "exec"), space)
    return space


def fields(visit):
    """A visit of the stream as the model writes it."""
    following = int(visit.next_window) if visit.next_valid else None
    return int(visit.window), int(visit.block), int(visit.jobs), following, int(visit.remaining)


def streamed(config, block_map, *, taker=None, abort_at=None, cls=schedule_rtl.Schedule):
    """Visits and the cycle of the last, in a run from ``start``, after a run that was aborted if asked for."""
    dut, found, cycles = cls(config, simulate=True), [], 0
    count = block_map.shape[1]

    async def bench(ctx):
        nonlocal cycles
        ctx.set(dut.blocks, count)
        for run in range(1 if abort_at is None else 2):
            found.clear()
            ctx.set(dut.start, 1)
            word, last, cycles = 0, False, 0
            while not last:
                ctx.set(dut.read_data, word)
                ctx.set(dut.o_visit.ready, int(taker is None or taker.random() < 0.3))
                aborted = abort_at is not None and run == 0 and cycles == abort_at
                ctx.set(dut.abort, int(aborted))
                if ctx.get(dut.read_en):
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
                if aborted:
                    break
                cycles += 1
                assert cycles < 100_000
            ctx.set(dut.abort, 0)
            assert not ctx.get(dut.busy)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return found, cycles - 1


def expected(block_map, config):
    return [(v.window, v.block, v.jobs, v.next_window, v.remaining) for v in visits(block_map, config.window)]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("whole", [True, False])
def test_schedule_streams_the_visits_of_the_map(name, whole):
    c = CONFIGS[name]
    count = c.blocks if whole else c.blocks - 5
    block_map = sparse(len(name), c, count, 0.4)
    want = expected(block_map, c)
    found, cycles = streamed(c, block_map)
    assert found == want and cycles == schedule_cycles(c, count, len(want))
    assert streamed(c, block_map, taker=random.Random(1))[0] == want


@pytest.mark.parametrize("density", [0.0, 1.0, 2.0])
def test_schedule_of_extreme_maps(density):
    c = CONFIGS["small"]
    for count in (1, 4, 9):
        block_map = np.tril(np.ones((c.group, count, count), bool)) if density == 2 else sparse(3, c, count, density)
        assert streamed(c, block_map)[0] == expected(block_map, c)


@pytest.mark.parametrize("abort_at", [0, 7, 60, 150])
def test_schedule_after_an_abort(abort_at):
    c = CONFIGS["small"]
    block_map = sparse(4, c, c.blocks, 0.4)
    assert streamed(c, block_map, abort_at=abort_at)[0] == expected(block_map, c)


def test_wrong_remaining_counts_show():
    c = CONFIGS["small"]
    block_map = sparse(4, c, c.blocks, 0.4)
    wrong = mutated(schedule_rtl, "remaining.eq(left.read_data - 1)", "remaining.eq(left.read_data)")["Schedule"]
    assert streamed(c, block_map, cls=wrong)[0] != expected(block_map, c)
