"""The prefill unit's core alone, in Amaranth's simulator: the smallest shape from memory to results, a fault, and the run after it."""

import numpy as np
import torch
from amaranth.sim import Simulator

from intaglio.host.attention.parameters import run_parameters
from intaglio.host.attention.quantise import image, quantise
from intaglio.rtl.bus.streams import RunPhase
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
        core, memory = self.core, image(z, block=CONFIG.block, origin=1 << 40)
        self.slave = ReadSlave(
            MemoryModel(latency_cycles=20, bytes_per_cycle=16),
            memory.data.tobytes(),
            beat_bytes=CONFIG.head_dim,
            base=memory.origin,
            **faults,
        )
        values = run_parameters(memory, tokens=TOKENS, block=CONFIG.block, gamma16=GAMMA, threshold=threshold)
        for name in PARAMETERS:
            ctx.set(getattr(core, name), values[name] | values.get(f"{name}_high", 0) << 32)
        ctx.set(core.start, 1)

    async def finish(self, ctx, most=6000):
        """Results as beats, until ``done``."""
        core, beats, busy = self.core, [], False
        for cycle in range(most):
            beat = self.slave.beat
            ctx.set(core.memory.rvalid, beat is not None)
            if beat is not None:
                ctx.set(core.memory.rid, beat.id)
                ctx.set(core.memory.rdata, int.from_bytes(beat.data, "little"))
                ctx.set(core.memory.rresp, beat.response)
                ctx.set(core.memory.rlast, beat.last)
            ctx.set(core.memory.arready, self.slave.arready)
            ctx.set(core.o.ready, cycle % 4 != 1)
            burst = (ctx.get(core.memory.arid), ctx.get(core.memory.araddr), ctx.get(core.memory.arlen) + 1)
            self.slave.edge(burst=burst if ctx.get(core.memory.arvalid) else None, rready=beat is not None)
            if ctx.get(core.o.valid) and ctx.get(core.o.ready):
                payload = ctx.get(core.o.payload)
                beats.append((payload.block, payload.last, list(payload["values"]), payload.exponent))
            phase = RunPhase(ctx.get(core.phase))
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
    """int [tokens, D] of a run's beats, which come block by block, row group by row group, channel by channel, and exponents [tokens]."""
    c = CONFIG
    order = [block for block, last, *_ in beats if last]
    assert sorted(order) == list(range(len(order)))
    beats = sorted(beats, key=lambda beat: beat[0])  # beats of a block stay in their order
    rows = torch.tensor([row for _, _, row, _ in beats]).reshape(-1, c.head_dim, c.columns).transpose(1, 2)
    assert len(rows) == -(-TOKENS // c.columns)  # no row group wholly past the end
    marks = torch.tensor([exponent for *_, exponent in beats]).reshape(len(rows), -1)
    assert (marks == marks[:, :1]).all()
    return [x[:TOKENS] for x in (rows.reshape(-1, c.head_dim), marks[:, 0].repeat_interleave(c.columns))]


def test_runs_and_a_fault_between_them():
    bench, z = Bench(), case(1)
    keep, aware = exact_run(z, block=CONFIG.block, gamma16=GAMMA, threshold=1 << 31)[2:]
    (want,), (exponents,) = exact.attend(head_group(z), torch.as_tensor(keep), block=CONFIG.block)

    async def script(ctx):
        core, visits = bench.core, set()
        for threshold, faults in ((1 << 31, {}), (1 << 31, {}), (0, {"error_beat": 40}), (1 << 31, {})):
            bench.phases.clear()
            await bench.start(ctx, z, threshold, **faults)
            beats = await bench.finish(ctx)
            if faults:
                assert ctx.get(core.fault) == FetchFault.RESPONSE and not beats
                continue
            assert ctx.get(core.fault) == FetchFault.NONE and ctx.get(core.aware) == 1 and bool(aware[0])
            found, marks = values(beats)
            assert torch.equal(found, want.long()) and torch.equal(marks, exponents.long())
            assert bench.phases == [RunPhase.IDLE, *list(RunPhase)[1:]]
            assert ctx.get(core.beats) == bench.slave._beats and ctx.get(core.misses) > 0
            visits.add(ctx.get(core.hits) + ctx.get(core.misses))  # of this run alone
            for block in range(3):
                ctx.set(core.map_block, block)
                await ctx.tick()
                column = sum(int(keep[0][row][block]) << row for row in range(3))
                assert ctx.get(core.map_word) & 7 == column
        assert len(visits) == 1

    bench.simulate(script)


def test_keys_and_queries_take_turns():
    """A dense run on a slow memory, in whose first window both wait from the start: neither is asked for twice in a row."""
    config = PrefillConfig(
        head_dim=16, group=2, block=16, columns=8, context=64, window=4, lines=6, lookahead=4, drain=8
    )
    core, asked = PrefillCore(config), []

    async def script(ctx):
        for name, value in {"dense": 1, "tokens": 64, "gamma16": 1, "kv_base": 0, "q_base": 1 << 20}.items():
            ctx.set(getattr(core, name), value)
        ctx.set(core.memory.arready, 1)
        ctx.set(core.start, 1)
        due, beats = [], []  # bursts and the cycle of their first beat; beats of the one under way
        for cycle in range(600):
            if not beats and due and due[0][0] <= cycle:
                _, identity, length = due.pop(0)
                beats = [(identity, i == length - 1) for i in range(length)]
            ctx.set(core.memory.rvalid, bool(beats))
            if beats:
                identity, last = beats.pop(0)
                ctx.set(core.memory.rid, identity)
                ctx.set(core.memory.rlast, last)
            if ctx.get(core.memory.arvalid):
                address = ctx.get(core.memory.araddr)
                due.append((cycle + 40, ctx.get(core.memory.arid), ctx.get(core.memory.arlen) + 1))
                asked.append("q" if address >= 1 << 20 else "kv")  # no block crosses a page: one burst each
            await ctx.tick()
            ctx.set(core.start, 0)

    simulator = Simulator(core)
    simulator.add_clock(1e-6)
    simulator.add_testbench(script)
    simulator.run()
    begin = asked.index("kv")  # the queries' first requests come sooner: the schedule counts first
    assert begin <= 2 and asked[begin : begin + 7] == ["kv", "q"] * 3 + ["kv"]
