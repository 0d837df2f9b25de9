"""Runs inside the simulator: the protocol of the decoder's shell. test_shell_cocotb.py computes the vectors and starts it."""

import json
import random
from pathlib import Path

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, gather

from intaglio.sim.verilator.axi_agents import AxilMaster, AxisSink, AxisSource, ContractError, reset, set_pauses

VECTORS = json.loads(Path(cocotb.plusargs["vectors"]).read_text())
OKAY, SLVERR = 0, 2
LIMIT = 10_000  # cycles without a packet that count as stuck
TIMEOUT = {"timeout_time": 1, "timeout_unit": "ms"}  # 100,000 cycles


class Bench:
    """The design with its agents, just reset; ``pause`` is the share of cycles in which each of them pauses."""

    @classmethod
    async def start(cls, dut, pause=0.0):
        self = cls()
        self.dut = dut
        Clock(dut.aclk, 10, unit="ns").start()
        dut.aresetn.value = 1
        self.source, self.sink, self.lite = (
            AxisSource(dut, "s_axis"),
            AxisSink(dut, "m_axis"),
            AxilMaster(dut, "s_axil"),
        )
        self.pause(pause)
        await self.reset()
        return self

    def pause(self, share):
        for agent in (self.source.agent, self.sink.agent, *self.lite.channels):
            set_pauses([agent], random.Random(random.getrandbits(32)), share)

    async def reset(self):
        self.source.clear()
        await reset(self.dut.aclk, self.dut.aresetn)
        self.sink.clear()
        assert not self.dut.m_axis_tvalid.value

    async def get(self, name):
        return await self.lite.read(VECTORS["registers"][name])

    async def put(self, name, value, strobe=0xF, response=OKAY):
        assert await self.lite.write(VECTORS["registers"][name], value, strobe) == response

    async def counters(self):
        return {
            name: await self.get(name) for name in VECTORS["registers"] if name.startswith(("phase", "stall", "tokens"))
        }

    async def run(self, name):
        """Send the commands of the vectors ``name``, compare every packet, and see that nothing follows."""
        vectors = VECTORS[name]
        first, count, waited = len(self.sink.packets), len(vectors["packets"]), 0
        self.source.send(vectors["commands"])
        seen = first
        while not self.source.idle() or len(self.sink.packets) < first + count:
            await FallingEdge(self.dut.aclk)
            waited = 0 if len(self.sink.packets) != seen else waited + 1
            seen = len(self.sink.packets)
            assert waited < LIMIT, f"stuck after {seen - first} of {count} packets, partial {self.sink.partial}"
        while await self.get("status") & 1:
            pass
        await ClockCycles(self.dut.aclk, 100)
        assert self.sink.packets[first:] == vectors["packets"]
        assert not self.sink.partial and not self.dut.m_axis_tvalid.value


@cocotb.test(**TIMEOUT)
async def values_and_throughput(dut):
    bench = await Bench.start(dut)
    await bench.put("control", 1)
    await bench.run("every token")
    found, expected = await bench.counters(), VECTORS["cycles"]
    assert {name: found[f"phase_{name}"] for name in expected["phases"]} == expected["phases"]
    assert found["stall_out"] == 0 and found["tokens"] == len(expected["tokens"])
    gaps = [after - before for before, after in zip(bench.sink.times, bench.sink.times[1:], strict=False)]
    assert gaps == [total + 1 for total in expected["tokens"][1:]]  # one cycle takes the next command


@cocotb.test(**TIMEOUT)
async def values_with_back_pressure(dut):
    bench = await Bench.start(dut)
    for pause in (0.7, 0.9):
        bench.pause(pause)
        await bench.put("control", 1)
        await bench.run("every token")
        found, expected = await bench.counters(), VECTORS["cycles"]["phases"]
        assert found["stall_out"] > 0
        found["phase_head"] -= found["stall_out"]
        assert {name: found[f"phase_{name}"] for name in expected} == expected
        await bench.run("mixed")


@cocotb.test(**TIMEOUT)
async def mixed_commands(dut):
    bench = await Bench.start(dut)
    await bench.run("mixed")
    await bench.run("mixed")


@cocotb.test(**TIMEOUT)
async def reset_in_a_token(dut):
    bench = await Bench.start(dut)
    for share in range(1, 10):
        bench.source.send(VECTORS["every token"]["commands"])
        await ClockCycles(dut.aclk, 2 + share * VECTORS["cycles"]["tokens"][0] * 2 // 10 + random.randrange(20))
        assert await bench.get("status") & 1
        await bench.reset()
        assert not await bench.get("status") and not await bench.get("position") and not await bench.get("tokens")
        await bench.run("after a reset")


@cocotb.test(**TIMEOUT)
async def reset_in_a_packet(dut):
    bench = await Bench.start(dut)
    for words in range(7):
        bench.sink.clear()
        bench.source.send(VECTORS["long packet"]["commands"][:1])
        while bench.sink.partial < words or not dut.m_axis_tvalid.value:
            await FallingEdge(dut.aclk)
        bench.sink.stop(True)
        await ClockCycles(dut.aclk, 20)
        assert dut.m_axis_tvalid.value and not bench.sink.packets
        await bench.reset()
        await ClockCycles(dut.aclk, 20)
        assert not dut.m_axis_tvalid.value
        bench.sink.stop(False)
        await bench.run("after a reset")


@cocotb.test(**TIMEOUT)
async def full_context(dut):
    bench = await Bench.start(dut, 0.3)
    await bench.run("overflow")
    assert await bench.get("status") == 2
    await bench.put("status", 1)
    await bench.put("status", 2, strobe=0b0111, response=SLVERR)
    await bench.put("position", 2, response=SLVERR)
    assert await bench.get("status") == 2
    await bench.put("status", 2)
    assert await bench.get("status") == 0
    assert await bench.get("position") == VECTORS["context"]
    assert await bench.get("tokens") == VECTORS["context"]
    await bench.run("overflow")
    assert await bench.get("status") == 2


@cocotb.test(**TIMEOUT)
async def registers(dut):
    bench = await Bench.start(dut)
    for pause in (0.0, 0.6):
        bench.pause(pause)
        for name, value in VECTORS["identity"].items():
            assert await bench.get(name) == value
        mapped = set(VECTORS["registers"].values())
        for address in [a for a in range(0, 0x80, 4) if a not in mapped] + [0x400, 0xFFC]:
            assert await bench.lite.read(address) == 0
            assert await bench.lite.write(address, 0xFFFFFFFF) == SLVERR
        for name in VECTORS["registers"]:
            if name not in ("control", "status"):
                await bench.put(name, 0xFFFFFFFF, response=SLVERR)
        for name, value in {**VECTORS["identity"], "status": 0, "position": 0, "control": 0, "cycles_hi": 0}.items():
            assert await bench.get(name) == value
        assert await bench.get("cycles_lo") > 100 and await bench.get("stall_in") > 100


@cocotb.test(**TIMEOUT)
async def clearing_the_counters(dut):
    bench = await Bench.start(dut)
    await bench.run("after a reset")
    await bench.put("control", 0)
    for strobe in (0b0001, 0b1110, 0b0100):
        await bench.put("control", 1, strobe, response=SLVERR)
    before = await bench.counters()
    assert before["tokens"] == len(VECTORS["after a reset"]["commands"]) and before["phase_head"] > 0
    assert await bench.get("cycles_lo") > sum(before[name] for name in before if name.startswith("phase"))
    await bench.put("control", 1)
    after = await bench.counters()
    assert 0 < after.pop("stall_in") < 20 and not any(after.values())
    assert await bench.get("cycles_lo") < 100


@cocotb.test(**TIMEOUT)
async def registers_while_tokens_pass(dut):
    bench = await Bench.start(dut, 0.2)
    done = []

    async def traffic():
        while not done:
            reads = ("magic", "position", "status", "digest", "cycles_lo")
            answers = await gather(
                *(bench.get(name) for name in reads),
                bench.put("version", random.getrandbits(32), response=SLVERR),
                bench.put("cycles_lo", 0, response=SLVERR),
            )
            assert answers[0] == VECTORS["identity"]["magic"] and answers[3] == VECTORS["identity"]["digest"]
            assert answers[1] <= VECTORS["context"]

    task = cocotb.start_soon(traffic())
    await bench.run("mixed")
    done.append(True)
    await task


@cocotb.test(expect_error=ContractError, **TIMEOUT)
async def the_monitor_sees_a_changed_word(dut):
    bench = await Bench.start(dut)
    bench.sink.stop(True)
    bench.source.send(VECTORS["long packet"]["commands"][:1])
    while bench.sink.waiting is None:
        await FallingEdge(dut.aclk)
    bench.sink.waiting["tdata"] ^= 1
    await ClockCycles(dut.aclk, 5)
