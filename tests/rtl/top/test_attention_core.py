"""The prefill unit's core alone, in Amaranth's simulator: the smallest shape from memory to results, a fault, and the run after it."""

import numpy as np
import torch
from amaranth.sim import Simulator

from intaglio.host.attention.parameters import run_parameters
from intaglio.host.attention.quantise import image, quantise
from intaglio.rtl.bus.streams import Phase
from intaglio.rtl.config.attention import PrefillConfig
from intaglio.rtl.kv.fetch import FetchFault
from intaglio.rtl.top.attention import PARAMETERS, PrefillCore
from intaglio.sim.attention import exact
from intaglio.sim.attention.report import exact_run, head_group
from intaglio.sim.verilator.memory import MemoryModel, ReadSlave

CONFIG = PrefillConfig(head_dim=16, group=1, block=16, columns=8, context=64, window=1, lines=3, lookahead=1, drain=8)
TOKENS, GAMMA = 43, 50_000


def case(seed):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(TOKENS, CONFIG.head_dim)) for _ in range(3))
    return quantise(q[None], k, v, block=CONFIG.block)


class Bench:
    """Runs of the core on one memory."""

    def __init__(self):
        self.core, self.slave, self.phases = PrefillCore(CONFIG), None, []

    async def start(self, ctx, z, threshold, **faults):
        core, memory = self.core, image(z, block=CONFIG.block, columns=CONFIG.columns, origin=1 << 40)
        self.slave = ReadSlave(
            MemoryModel(latency_cycles=20, bytes_per_cycle=16),
            memory.data.tobytes(),
            beat_bytes=CONFIG.head_dim,
            base=memory.origin,
            **faults,
        )
        values = run_parameters(
            memory, tokens=TOKENS, block=CONFIG.block, base=z.base, gamma16=GAMMA, threshold=threshold
        )
        for name in PARAMETERS:
            ctx.set(getattr(core, name), values[name] | values.get(f"{name}_high", 0) << 32)
        ctx.set(core.start, 1)

    async def finish(self, ctx, most=6000):
        """Results as beats, until ``done``."""
        core, beats, busy = self.core, [], False
        for cycle in range(most):
            beat = self.slave.beat
            ctx.set(core.rvalid, beat is not None)
            if beat is not None:
                ctx.set(core.rid, beat.id)
                ctx.set(core.rdata, int.from_bytes(beat.data, "little"))
                ctx.set(core.rresp, beat.response)
                ctx.set(core.rlast, beat.last)
            ctx.set(core.arready, self.slave.arready)
            ctx.set(core.o.ready, cycle % 4 != 1)
            burst = (ctx.get(core.arid), ctx.get(core.araddr), ctx.get(core.arlen) + 1)
            self.slave.edge(burst=burst if ctx.get(core.arvalid) else None, rready=beat is not None)
            if ctx.get(core.o.valid) and ctx.get(core.o.ready):
                payload = ctx.get(core.o.payload)
                beats.append((payload.block, payload.last, list(payload["values"])))
            phase = Phase(ctx.get(core.phase))
            if not self.phases or self.phases[-1] != phase:
                self.phases.append(phase)
            done = ctx.get(core.done)
            assert ctx.get(core.busy) == busy
            await ctx.tick()
            ctx.set(core.start, 0)
            busy = True
            if done:
                assert not ctx.get(core.busy)
                return beats
        raise AssertionError("the run hangs")

    def simulate(self, script):
        simulator = Simulator(self.core)
        simulator.add_clock(1e-6)
        simulator.add_testbench(script)
        simulator.run()


def values(beats):
    """int [tokens, D] of a run's beats, which come block by block, row group by row group, channel by channel."""
    c = CONFIG
    order = [block for block, last, _ in beats if last]
    rows = torch.tensor([row for _, _, row in beats]).reshape(-1, c.row_groups, c.head_dim, c.columns)
    blocks = rows.transpose(2, 3).reshape(len(order), c.block, c.head_dim)
    assert sorted(order) == list(range(len(order)))
    return torch.cat([blocks[order.index(i)] for i in range(len(order))])[:TOKENS]


def test_runs_and_a_fault_between_them():
    bench, z = Bench(), case(1)
    keep, aware = exact_run(z, block=CONFIG.block, gamma16=GAMMA, threshold=1 << 31)[1:]
    want = exact.attend(head_group(z), torch.as_tensor(keep), block=CONFIG.block)[0]

    async def script(ctx):
        core = bench.core
        for threshold, faults in ((1 << 31, {}), (0, {"error_beat": 40}), (1 << 31, {})):
            bench.phases.clear()
            await bench.start(ctx, z, threshold, **faults)
            beats = await bench.finish(ctx)
            if faults:
                assert ctx.get(core.fault) == FetchFault.RESPONSE and not beats
                continue
            assert ctx.get(core.fault) == FetchFault.NONE and ctx.get(core.aware) == 1 and bool(aware[0])
            assert torch.equal(values(beats), want.long())
            assert bench.phases == [Phase.IDLE, *list(Phase)[1:]]
            assert ctx.get(core.beats) == bench.slave._beats and ctx.get(core.misses) > 0
            for block in range(3):
                ctx.set(core.map_block, block)
                await ctx.tick()
                column = sum(int(keep[0][row][block]) << row for row in range(3))
                assert ctx.get(core.map_word) & 7 == column

    bench.simulate(script)
