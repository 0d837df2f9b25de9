"""Runs inside the simulator: the protocol of the prefill unit's shell. test_prefill_cocotb.py computes the vectors and starts it."""

import json
import random
from pathlib import Path

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, gather

from intaglio.sim.verilator.axi_agents import AxilMaster, AxiMemory, AxisSink, ContractError, ram, reset, set_pauses

VECTORS = json.loads(Path(cocotb.plusargs["vectors"]).read_text())
REGISTERS = VECTORS["registers"]
OKAY, SLVERR = 0, 2
LIMIT = 20_000  # cycles without a packet that count as stuck
TIMEOUT = {"timeout_time": 1, "timeout_unit": "ms"}  # 100,000 cycles
VOID = 1 << 23
FIRST_PHASE = {"load": 1, "max": 2, "mass": 3, "select": 4, "pool": 5, "map": 6, "attend": 7}


class Bench:
    """The design with its agents, just reset; ``pause`` is the share of cycles in which each of them pauses."""

    @classmethod
    async def start(cls, dut, pause=0.0, *, memory=True):
        self = cls()
        self.dut = dut
        Clock(dut.aclk, 10, unit="ns").start()
        dut.aresetn.value = 1
        self.sink, self.lite, self.memory = AxisSink(dut, "m_axis", user=True), AxilMaster(dut, "s_axil"), None
        if memory:
            self.memory = AxiMemory(
                dut, "m_axi", random.Random(random.getrandbits(32)), pause, latency=VECTORS["latency"]
            )
        self.pause(pause)
        await self.reset()
        return self

    def pause(self, share):
        for agent in (self.sink.agent, *self.lite.channels):
            set_pauses([agent], random.Random(random.getrandbits(32)), share)
        if self.memory:
            self.memory.pause = share

    async def reset(self):
        await reset(self.dut.aclk, self.dut.aresetn)
        self.sink.clear()
        assert not self.dut.m_axis_tvalid.value and not self.dut.m_axi_arvalid.value

    async def get(self, name):
        return await self.lite.read(REGISTERS[name])

    async def put(self, name, value, strobe=0xF, response=OKAY):
        assert await self.lite.write(REGISTERS[name], value, strobe) == response

    async def begin(self, name, **parameters):
        """Start the run of the vectors ``name``."""
        vectors = VECTORS["runs"][name]
        if self.memory:
            self.memory.image, self.memory.base = bytes.fromhex(vectors["image"]), vectors["origin"]
        await self.put("control", 4)
        for register, value in {**vectors["parameters"], **parameters}.items():
            await self.put(register, value)
        self.sink.clear()
        await self.put("control", 1)

    async def packets(self, count):
        """Wait for that many."""
        waited, seen = 0, len(self.sink.packets)
        while len(self.sink.packets) < count:
            await FallingEdge(self.dut.aclk)
            waited = 0 if len(self.sink.packets) != seen else waited + 1
            seen = len(self.sink.packets)
            assert waited < LIMIT, f"stuck after {seen} of {count} packets, partial {self.sink.partial}"

    async def silence(self):
        """The run is over and nothing follows, neither results nor addresses."""
        while await self.get("status") & 1:
            pass
        bursts = len(self.memory.bursts) if self.memory else 0
        await ClockCycles(self.dut.aclk, 150)
        assert not self.sink.partial and not self.dut.m_axis_tvalid.value and not self.dut.m_axi_arvalid.value
        assert self.dut.m_axi_rready.value and (not self.memory or len(self.memory.bursts) == bursts)

    async def run(self, name, **parameters):
        """A whole run: every packet compared (rows past the last token are anything), and silence after it."""
        vectors = VECTORS["runs"][name]
        await self.begin(name, **parameters)
        await self.packets(len(vectors["packets"]))
        await self.silence()
        assert len(self.sink.packets) == len(vectors["packets"]) and await self.get("status") == 0
        for found, (users, words, masks) in zip(self.sink.packets, vectors["packets"], strict=True):
            assert all(mark & of == user for (_, mark), (user, of) in zip(found, users, strict=True))
            assert [word & int(mask, 16) for (word, _), mask in zip(found, masks, strict=True)] == [
                int(word, 16) for word in words
            ]
        assert await self.get("aware") == vectors["aware"]
        assert [await self.get(name) for name in ("hits", "misses", "evictions")] == vectors["traffic"]

    async def ended(self, status):
        """The run ends with one void beat, soon, and ``status`` (bits 4 and up) says why."""
        self.sink.stop(False)
        for _ in range(LIMIT):
            if self.sink.packets and self.sink.packets[-1][-1][1] & VOID:
                break
            await FallingEdge(self.dut.aclk)
        assert self.sink.packets[-1][-1] == (0, VOID), "no void beat"
        assert not any(mark & VOID for packet in self.sink.packets for _, mark in packet[:-1])
        await self.silence()
        assert await self.get("status") >> 4 == status
        assert not self.sink.packets[-1][-1][1] & ~VOID and sum(p[-1][1] == VOID for p in self.sink.packets) == 1

    async def phase(self, name):
        """Wait until the run is in that phase."""
        for _ in range(LIMIT):
            if int(self.dut.monitor.value) & 15 == FIRST_PHASE[name]:
                return
            await FallingEdge(self.dut.aclk)
        raise AssertionError(f"the run never was in phase {name}")


@cocotb.test(**TIMEOUT)
async def values_and_throughput(dut):
    bench = await Bench.start(dut)
    for name in ("sparse", "aware", "dense"):
        await bench.run(name)
        expected = VECTORS["runs"][name]
        phases = {phase: await bench.get(f"phase_{phase}") for phase in FIRST_PHASE}
        cycles, form = sum(phases.values()), sum(expected["phases"].values())
        assert await bench.get("cycles_lo") == cycles and await bench.get("cycles_hi") == 0
        assert abs(cycles / form - 1) <= 0.03, (name, phases, expected["phases"])
        assert await bench.get("rows") == expected["rows"] and await bench.get("stall_out") == 0
        assert await bench.get("beats") == expected["beats"] == sum(beats for _, beats in bench.memory.bursts)
        bench.memory.bursts.clear()


@cocotb.test(**TIMEOUT)
async def values_with_pauses(dut):
    bench = await Bench.start(dut)
    for pause in (0.3, 0.7):
        bench.pause(pause)
        await bench.run("aware")
        assert await bench.get("stall_out") > 100 and await bench.get("fetch_stalled") > 0
    bench.pause(0.1)
    set_pauses([bench.sink.agent], random.Random(random.getrandbits(32)), 0.9)
    await bench.run("dense")


@cocotb.test(**TIMEOUT)
async def bursts_inside_pages(dut):
    """The images do not begin at a page, so that blocks cross pages: in two bursts each."""
    bench = await Bench.start(dut, 0.2)
    await bench.run("dense")
    assert any((address + 16 * beats) % 4096 == 0 for address, beats in bench.memory.bursts)
    assert sum(beats for _, beats in bench.memory.bursts) == await bench.get("beats")


@cocotb.test(**TIMEOUT)
async def values_with_another_memory(dut):
    """That of cocotbext-axi, which knows AXI from another source; it has bursts cross no page and answers them in order."""
    bench = await Bench.start(dut, memory=False)
    vectors = VECTORS["runs"]["aware"]
    memory = ram(dut, "m_axi", vectors["origin"], bytes.fromhex(vectors["image"]))
    for share in (0.0, 0.4):
        for channel in (memory.ar_channel, memory.r_channel):
            set_pauses([channel], random.Random(random.getrandbits(32)), share)
        await bench.run("aware")


@cocotb.test(**TIMEOUT)
async def reset_in_each_phase(dut):
    bench = await Bench.start(dut)
    for name in FIRST_PHASE:
        await bench.begin("aware")
        await bench.phase(name)
        await ClockCycles(dut.aclk, 2 + random.randrange(8))
        await bench.reset()
        assert not await bench.get("status") and not await bench.get("tokens") and not await bench.get("cycles_lo")
        await ClockCycles(dut.aclk, 60)
        assert not dut.m_axi_arvalid.value and not dut.m_axis_tvalid.value
    await bench.run("aware")


@cocotb.test(**TIMEOUT)
async def reset_in_a_packet(dut):
    bench = await Bench.start(dut)
    for words in (0, 1, 5):
        await bench.begin("short")
        while bench.sink.partial < words or not dut.m_axis_tvalid.value:
            await FallingEdge(dut.aclk)
        bench.sink.stop(True)
        await ClockCycles(dut.aclk, 20)
        assert dut.m_axis_tvalid.value and not bench.sink.packets
        await bench.reset()
        await ClockCycles(dut.aclk, 20)
        assert not dut.m_axis_tvalid.value
        bench.sink.stop(False)
    await bench.run("short")


@cocotb.test(**TIMEOUT)
async def reset_while_an_address_waits(dut):
    bench = await Bench.start(dut)
    bench.memory.stopped = True
    await bench.begin("short")
    while not dut.m_axi_arvalid.value:
        await FallingEdge(dut.aclk)
    await ClockCycles(dut.aclk, 30)
    assert dut.m_axi_arvalid.value and bench.memory.waiting
    await bench.reset()
    bench.memory.stopped = False
    await bench.run("short")


@cocotb.test(**TIMEOUT)
async def cancel_in_each_phase(dut):
    bench = await Bench.start(dut, 0.1)
    for name in FIRST_PHASE:
        await bench.begin("aware")
        await bench.phase(name)
        await ClockCycles(dut.aclk, random.randrange(12) if name not in ("map", "select") else 0)
        await bench.put("control", 2)
        await bench.ended(0b10000)
    await bench.run("aware")


@cocotb.test(**TIMEOUT)
async def cancel_while_results_wait(dut):
    """Results that the unit owed are shown until taken; then comes the void beat."""
    bench = await Bench.start(dut)
    for words in (0, 3):
        await bench.begin("dense")
        while bench.sink.partial < words or not dut.m_axis_tvalid.value:
            await FallingEdge(dut.aclk)
        bench.sink.stop(True)
        await ClockCycles(dut.aclk, 100)
        await bench.put("control", 2)
        await ClockCycles(dut.aclk, 100)
        assert await bench.get("status") & 1  # the void beat waits for room
        await bench.put("control", 1)  # so that this start is none
        await bench.ended(0b10000)
        await bench.run("short")


@cocotb.test(**TIMEOUT)
async def refused_parameters(dut):
    bench = await Bench.start(dut)
    for parameters in (
        {"tokens": 0},
        {"tokens": VECTORS["context"] + 1},
        {"gamma16": 0},
        {"gamma16": 65537},
        {"tokens": 15, "dense": 0},
    ):
        await bench.begin("sparse", **parameters)
        await bench.ended(0b1000)
        assert not bench.memory.bursts and len(bench.sink.packets) == 1
    await bench.run("sparse")


@cocotb.test(**TIMEOUT)
async def faults_of_the_memory(dut):
    """A beat with an error, an early and a missing RLAST, silence: the run ends and says which; the next one works."""
    bench = await Bench.start(dut)

    def spoiled(number, **change):
        return lambda n, beat: {**beat, **change} if n == number else beat

    def silent(number):
        return lambda n, beat: beat if n < number else None

    for first in (0, 20, 400):
        for spoil, fault in (
            (spoiled(first, rresp=2), 1),
            (spoiled(first, rresp=3), 1),
            (spoiled(first + 2, rlast=1), 2),
            (silent(first), 3),
        ):
            bench.memory.beats, bench.memory.spoil = 0, spoil
            await bench.begin("sparse", timeout=200)
            await bench.ended(0b10000 | fault)
            bench.memory.spoil = None
    await bench.run("sparse")


@cocotb.test(**TIMEOUT)
async def a_late_memory_is_waited_for(dut):
    bench = await Bench.start(dut)
    bench.memory.latency = 190
    await bench.run("short", timeout=200)
    await bench.begin("short", timeout=100)
    await bench.ended(0b10011)
    await ClockCycles(dut.aclk, 300)
    bench.memory.latency = 20
    await bench.run("short", timeout=100)


@cocotb.test(**TIMEOUT)
async def registers(dut):
    bench = await Bench.start(dut)
    for pause in (0.0, 0.5):
        bench.pause(pause)
        for name, value in VECTORS["identity"].items():
            assert await bench.get(name) == value
        mapped = set(REGISTERS.values())
        for address in [a for a in range(0, 0x240, 4) if a not in mapped] + [0x400, 0xFFC]:
            assert await bench.lite.read(address) == 0
            assert await bench.lite.write(address, 0xFFFFFFFF) == SLVERR
        held = VECTORS["parameter_bits"]
        for name, bits in held.items():
            for strobe in (0b0111, 0b1000):
                await bench.put(name, 0xFFFFFFFF, strobe, response=SLVERR)
            assert await bench.get(name) == 0
            await bench.put(name, 0xFFFFFFFF)
            assert await bench.get(name) == (1 << bits) - 1
            await bench.put(name, 0)
        for name in REGISTERS:
            if name not in (*held, "control", "map_select"):
                await bench.put(name, 0xFFFFFFFF, response=SLVERR)
        for name, value in VECTORS["identity"].items():
            assert await bench.get(name) == value
        assert await bench.get("status") == 0 and await bench.get("control") == 0 and await bench.get("cycles_lo") == 0
    assert not bench.sink.packets and not bench.memory.bursts


@cocotb.test(**TIMEOUT)
async def registers_while_results_pass(dut):
    """Reads answer, parameters are refused, starts are ignored, and the run is none the worse."""
    bench = await Bench.start(dut, 0.1)
    done, names = [], list(VECTORS["parameter_bits"])

    async def traffic():
        while not await bench.get("status") & 1:
            pass
        while not done and await bench.get("status") & 1:
            answers = await gather(
                *(bench.get(name) for name in ("magic", "status", "digest", "cycles_lo", "map_0")),
                bench.put(random.choice(names), random.getrandbits(32), response=SLVERR),
                bench.put("control", random.choice((1, 4, 5))),
            )
            assert answers[0] == VECTORS["identity"]["magic"] and answers[2] == VECTORS["identity"]["digest"]

    bench.sink.clear()
    vectors = VECTORS["runs"]["sparse"]
    await bench.begin("sparse")
    task = cocotb.start_soon(traffic())
    while (
        len(bench.sink.packets) < len(vectors["packets"]) - 1
    ):  # the last packet ends the run: a start after it would be one
        await FallingEdge(dut.aclk)
    done.append(True)
    await task
    await bench.packets(len(vectors["packets"]))
    await bench.silence()
    for found, (users, words, masks) in zip(bench.sink.packets, vectors["packets"], strict=True):
        assert [word & int(mask, 16) for (word, _), mask in zip(found, masks, strict=True)] == [
            int(word, 16) for word in words
        ]
        assert all(mark & of == user for (_, mark), (user, of) in zip(found, users, strict=True))
    for name, value in vectors["parameters"].items():
        assert await bench.get(name) == value


@cocotb.test(**TIMEOUT)
async def the_map_by_registers(dut):
    bench = await Bench.start(dut, 0.1)
    await bench.run("aware")
    for head, rows in enumerate(VECTORS["runs"]["aware"]["map"]):
        for key in range(len(rows)):
            await bench.put("map_select", key | head << 24)
            assert await bench.get("map_0") == sum(row[key] << place for place, row in enumerate(rows))


@cocotb.test(expect_error=AssertionError, **TIMEOUT)
async def a_wrong_byte_is_seen(dut):
    bench = await Bench.start(dut)
    vectors = VECTORS["runs"]["short"]
    image = bytearray.fromhex(vectors["image"])
    image[vectors["parameters"]["kv_base"] - (vectors["origin"] & 0xFFFFFFFF) + 16 * 5 + 3] ^= 0x40
    vectors["image"] = image.hex()
    try:
        await bench.run("short")
    finally:
        image[vectors["parameters"]["kv_base"] - (vectors["origin"] & 0xFFFFFFFF) + 16 * 5 + 3] ^= 0x40
        vectors["image"] = image.hex()


@cocotb.test(expect_error=ContractError, **TIMEOUT)
async def the_monitor_sees_a_changed_result(dut):
    bench = await Bench.start(dut)
    bench.sink.stop(True)
    await bench.begin("short")
    while bench.sink.waiting is None:
        await FallingEdge(dut.aclk)
    bench.sink.waiting["tuser"] ^= 1
    await ClockCycles(dut.aclk, 5)


@cocotb.test(expect_error=ContractError, **TIMEOUT)
async def the_monitor_sees_a_changed_address(dut):
    bench = await Bench.start(dut)
    bench.memory.stopped = True
    await bench.begin("short")
    while bench.memory.waiting is None:
        await FallingEdge(dut.aclk)
    bench.memory.waiting = (bench.memory.waiting[0] ^ 16, *bench.memory.waiting[1:])
    await ClockCycles(dut.aclk, 5)


@cocotb.test(expect_error=ContractError, **TIMEOUT)
async def the_monitor_sees_a_burst_outside(dut):
    bench = await Bench.start(dut)
    await bench.begin("short", kv_base=VECTORS["runs"]["short"]["parameters"]["kv_base"] - 0x1000)
    await bench.silence()
