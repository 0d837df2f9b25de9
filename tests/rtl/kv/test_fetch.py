"""The fetch unit against a memory with latencies and back-pressure: contents of the stores, AXI4 rules, faults and what follows them."""

import random
from fractions import Fraction

import pytest
from amaranth.sim import Simulator

from intaglio.rtl.bus.streams import FetchKind
from intaglio.rtl.config.attention import PrefillConfig
from intaglio.rtl.kv.fetch import EPOCH_BITS, PAGE, Fetch, FetchFault, request_beats
from intaglio.sim.verilator.memory import MemoryModel, ReadSlave

SMALL = dict(head_dim=16, group=2, block=32, columns=8, context=512, window=4, lines=6, lookahead=2, drain=4)
SHAPES = [SMALL, SMALL | dict(block=16, lines=9), SMALL | dict(head_dim=128, block=128, columns=8)]
STORES = ("key", "value", "query", "key_scale", "value_scale", "query_scale")
BASE = 0xABC_0000_0000 - PAGE  # a page number that carries far
IMAGE = random.Random(0).randbytes(1 << 17)
FAST = MemoryModel(latency_cycles=20, bytes_per_cycle=256)


def parts_of(config, request):
    """(store, first byte, beats that are read, beats in memory) of the parts of a request, written from docs/prefill.md."""
    kind, address, _, rows = full(config, request)
    size = config.columns if kind == FetchKind.Q else config.head_dim
    names = {FetchKind.Q: ["query"], FetchKind.K: ["key"], FetchKind.KV: ["key", "value"]}[kind]
    first = address - BASE
    for name in names:
        for store, beats, every in (
            (name, -(-rows // size) * size, config.block),
            (f"{name}_scale", -(-rows // config.head_dim), config.scale_beats),
        ):
            yield store, first, beats, every
            first += every * config.head_dim


def full(config, request):
    """A request with its number of rows; without one, all rows of the block count."""
    return (*request, config.block)[:4]


def bursts_of(config, request):
    """Fewest bursts: of each stretch of beats, the pages that it touches."""
    stretches = []
    for _, first, beats, _ in parts_of(config, request):
        end = first + beats * config.head_dim
        if stretches and stretches[-1][1] == first:
            stretches[-1][1] = end
        else:
            stretches.append([first, end])
    return sum((end - 1) // PAGE - first // PAGE + 1 for first, end in stretches)


def beats_of(config, requests):
    return sum(request_beats(config, full(config, r)[0], full(config, r)[3]) for r in requests)


def expected(config, requests):
    """Words of the stores by (store, address); later requests overwrite. Rows past the last one are zero, their scale bytes too."""
    stores, dim = {}, config.head_dim
    for request in requests:
        *_, index, rows = full(config, request)
        for name, first, beats, every in parts_of(config, request):
            for beat in range(beats):
                word = IMAGE[first + beat * dim :][:dim]
                kept = min(max(0, rows - beat * dim), dim) if name.endswith("scale") else dim * (beat < rows)
                stores[name, index * every + beat] = word[:kept] + bytes(dim - kept)
    return stores


def some_requests(config, seed, count):
    picks, out = random.Random(seed), []
    for _ in range(count):
        kind = picks.choice(list(FetchKind))
        room = len(IMAGE) - request_beats(config, kind) * config.head_dim
        first = picks.choice(
            [picks.randrange(room // PAGE) * PAGE, picks.randrange(room), PAGE - picks.randrange(3) * config.head_dim]
        )
        out.append(
            (
                kind,
                BASE + first // config.head_dim * config.head_dim,
                picks.randrange(config.slots if kind == FetchKind.Q else config.lines),
                picks.choice([config.block, 1, picks.randint(1, config.block)]),
            )
        )
    return out


class Bus:
    """A testbench around the unit: stores, completions, and the rules of the read channels at each cycle."""

    def __init__(self, config, memory=FAST, *, seed=0, busy=0.0, hold=0.0, unready=0.0, **faults):
        self.config, self.dut, self.picks = config, Fetch(config), random.Random(seed)
        self.busy, self.hold, self.unready = busy, hold, unready  # how often: no arready, no rvalid, no taker
        self.slave = ReadSlave(memory, IMAGE, beat_bytes=config.head_dim, base=BASE, **faults)
        self.spoil = None  # changes a beat on its way
        self.stores, self.fetched, self.bursts, self.beats, self.cycles, self.shown = {}, [], [], [], 0, None

    async def tick(self, ctx):
        dut, beat = self.dut, self.slave.beat
        arready, hold = self.slave.arready and self.picks.random() >= self.busy, self.picks.random() < self.hold
        if beat is not None and self.spoil:
            beat = self.spoil(beat)
        lost, present = self.slave.beat is not None and beat is None, beat is not None and not hold
        if present:
            ctx.set(dut.memory.rid, beat.id)
            ctx.set(dut.memory.rdata, int.from_bytes(beat.data, "little"))
            ctx.set(dut.memory.rresp, beat.response)
            ctx.set(dut.memory.rlast, beat.last)
        ctx.set(dut.memory.rvalid, present)
        ctx.set(dut.memory.arready, arready)
        ctx.set(dut.o_fetched.ready, self.picks.random() >= self.unready)
        burst = self.check_address(ctx)
        if present:
            assert ctx.get(dut.memory.rready)
            self.beats.append(self.cycles)
        for name in STORES:
            if ctx.get(getattr(dut.store, name)):
                address = ctx.get(dut.store.scale_address if name.endswith("scale") else dut.store.address)
                self.stores[name, address] = ctx.get(dut.store.data).to_bytes(self.config.head_dim, "little")
        if ctx.get(dut.o_fetched.valid) and ctx.get(dut.o_fetched.ready):
            payload = ctx.get(dut.o_fetched.payload)
            self.fetched.append((payload.kind, payload.index))
        self.slave.edge(burst=burst if arready else None, rready=present or lost)
        await ctx.tick()
        self.cycles += 1

    def check_address(self, ctx):
        dut = self.dut
        if not ctx.get(dut.memory.arvalid):
            assert self.shown is None, "ARVALID must stay until ARREADY"
            return None
        now = tuple(ctx.get(getattr(dut.memory, name)) for name in ("arid", "araddr", "arlen", "arsize", "arburst"))
        assert self.shown in (None, now), "a waiting address must not change"
        identity, address, length, size, kind = now
        assert kind == 1 and 1 << size == self.config.head_dim and address % self.config.head_dim == 0
        assert address // PAGE == (address + (length + 1 << size) - 1) // PAGE, "a burst must not cross 4 KiB"
        self.shown = None if ctx.get(dut.memory.arready) else now
        if self.shown is None:
            self.bursts.append((address, length + 1))
        return identity, address, length + 1

    async def ask(self, ctx, requests, *, until=None, most=20_000):
        """Give requests and wait for their completions, or until ``until()``."""
        dut, queue = self.dut, list(requests)
        target = len(self.fetched) + len(queue)
        flying = 0
        end = self.cycles + most
        while not until(ctx) if until else len(self.fetched) < target:
            assert self.cycles < end, "the unit hangs"
            ctx.set(dut.i_request.valid, bool(queue))
            if queue:
                kind, address, index, rows = full(self.config, queue[0])
                ctx.set(dut.i_request.payload, dict(kind=kind, address=address, index=index, last_row=rows - 1))
            taken, before = ctx.get(dut.i_request.ready) and bool(queue), len(self.fetched)
            await self.tick(ctx)
            if taken:
                queue.pop(0)
            flying += taken - (len(self.fetched) - before)
            assert until or flying <= 2
        ctx.set(dut.i_request.valid, 0)

    async def pulse(self, ctx, signal):
        ctx.set(signal, 1)
        await self.tick(ctx)
        ctx.set(signal, 0)

    def run(self, bench):
        simulator = Simulator(self.dut)
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()
        return self

    def fetch(self, requests, most=20_000):
        async def bench(ctx):
            await self.pulse(ctx, self.dut.clear)
            await self.ask(ctx, requests, most=most)
            assert not ctx.get(self.dut.busy) and ctx.get(self.dut.fault) == FetchFault.NONE
            self.counts = tuple(ctx.get(getattr(self.dut, name)) for name in ("beats", "stalled", "idle"))

        return self.run(bench)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [1, 2])
def test_contents_under_latency_and_back_pressure(shape, seed):
    config, picks = PrefillConfig(**shape), random.Random(seed)
    requests = some_requests(config, seed, 6 if config.head_dim > 16 else 20)
    memory = MemoryModel(
        latency_cycles=picks.randrange(1, 60),
        bytes_per_cycle=Fraction(config.head_dim * picks.randrange(3, 9), 5),
        bursts=picks.randrange(1, 6),
    )
    bus = Bus(config, memory, seed=seed, busy=0.4 * seed, hold=0.2, unready=0.5).fetch(requests)
    assert bus.fetched == [(kind, index) for kind, _, index, _ in requests]
    assert bus.stores == expected(config, requests)
    beats = beats_of(config, requests)
    assert bus.counts[0] == beats == len(bus.beats) == sum(length for _, length in bus.bursts)
    assert bus.counts[1] > 0 and bus.counts[2] > 0
    assert len(bus.bursts) == sum(bursts_of(config, request) for request in requests)


def test_latency_is_hidden():
    config = PrefillConfig(**SHAPES[2])  # 257 beats in 9 bursts
    requests = [(FetchKind.KV, BASE + 4 * 128 * 128 * i % 65536, i) for i in range(4)]
    bus = Bus(config, MemoryModel(latency_cycles=36, bytes_per_cycle=Fraction(4600, 3))).fetch(requests)
    assert bus.beats[-1] - bus.beats[0] + 1 <= 4 * 257 + 4  # a beat a cycle
    assert bus.beats[0] <= 36 + 4
    half = Bus(config, MemoryModel(latency_cycles=36, bytes_per_cycle=64)).fetch(requests)
    assert half.beats[-1] - half.beats[0] == pytest.approx(2 * 4 * 257, rel=0.01)


@pytest.mark.parametrize("kind", list(FetchKind))
@pytest.mark.parametrize("shape", [SMALL, SMALL | dict(block=128, columns=16)])
def test_short_blocks(shape, kind):
    """Only beats of tiles with rows are asked for, rows past the end are zero."""
    config = PrefillConfig(**shape)
    counts = [1, 7, 8, 9, 15, 16, 17, 24, 25, config.block - 1, config.block, 31]
    for first in range(0, len(counts), config.lines):
        some = enumerate(counts[first : first + config.lines])
        requests = [(kind, BASE + (3 * line + 1) * PAGE - 3 * config.head_dim, line, rows) for line, rows in some]
        bus = Bus(config, MemoryModel(latency_cycles=2, bytes_per_cycle=16)).fetch(requests)
        assert bus.stores == expected(config, requests) and len(bus.beats) == beats_of(config, requests)
        assert len(bus.bursts) == sum(bursts_of(config, request) for request in requests)


def test_rows_past_the_end_that_are_kept_show(monkeypatch):
    config = PrefillConfig(**SMALL)
    request = (FetchKind.KV, BASE, 0, 19)
    monkeypatch.setattr(Fetch, "_counted", lambda self, *_: self.memory.rdata)
    stores, want = Bus(config).fetch([request]).stores, expected(config, [request])
    assert {name for name, address in want if stores[name, address] != want[name, address]} == {
        "key",
        "value",
        "key_scale",
        "value_scale",
    }


def test_a_changed_beat_shows():
    """One bit of one beat, in one word of one store."""
    config = PrefillConfig(**SMALL)
    requests = [(FetchKind.KV, BASE, 2), (FetchKind.Q, BASE + 4096, 1)]
    bus, want = Bus(config), expected(config, requests)
    bus.spoil = lambda beat: beat._replace(data=bytes([beat.data[0] ^ (len(bus.beats) == 11), *beat.data[1:]]))
    stores = bus.fetch(requests).stores
    assert stores.keys() == want.keys()
    assert {place for place in want if stores[place] != want[place]} == {("key", 2 * config.block + 11)}


def test_beats_of_every_other_epoch_are_dropped():
    """All 16 epochs in turn: a beat belongs to a run only if its id has all four bits of the run's."""
    config, epochs = PrefillConfig(**SMALL), 1 << EPOCH_BITS
    dut, seen = Fetch(config), []

    async def bench(ctx):
        ctx.set(dut.memory.arready, 1)
        for _ in range(epochs + 1):
            ctx.set(dut.clear, 1)
            await ctx.tick()
            ctx.set(dut.clear, 0)
            ctx.set(
                dut.i_request.payload, {"kind": FetchKind.K, "address": BASE, "index": 0, "last_row": config.block - 1}
            )
            ctx.set(dut.i_request.valid, 1)
            await ctx.tick()
            ctx.set(dut.i_request.valid, 0)
            while not ctx.get(dut.memory.arvalid):
                await ctx.tick()
            seen.append(ctx.get(dut.memory.arid))
            ctx.set(dut.memory.rvalid, 1)
            for other in range(1, epochs):
                ctx.set(dut.memory.rid, seen[-1] ^ other)
                await ctx.tick()
                assert not ctx.get(dut.store.key) and not ctx.get(dut.beats)
            ctx.set(dut.memory.rid, seen[-1])
            await ctx.tick()
            ctx.set(dut.memory.rvalid, 0)
            assert ctx.get(dut.store.key) and ctx.get(dut.beats) == 1

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert [b - a & epochs - 1 for a, b in zip(seen, seen[1:], strict=False)] == [1] * epochs


def test_a_request_for_a_beat_less_fails(monkeypatch):
    monkeypatch.setattr(
        "intaglio.rtl.kv.fetch.request_beats", lambda config, kind, *rows: request_beats(config, kind, *rows) - 1
    )
    with pytest.raises(AssertionError, match="the unit hangs"):
        Bus(PrefillConfig(**SMALL)).fetch([(FetchKind.K, BASE, 0)], most=500)


def test_a_burst_across_a_page_fails(monkeypatch):
    """The unit with pages of 8 KiB must fall foul of the rules that the testbench asserts."""
    monkeypatch.setattr("intaglio.rtl.kv.fetch.PAGE", 2 * PAGE)
    config = PrefillConfig(**SHAPES[2])
    with pytest.raises(AssertionError, match="must not cross 4 KiB"):
        Bus(config).fetch([(FetchKind.KV, BASE, 0)])


def faulty(bus, fault, first, second, timeout=0):
    """A run that ends with a fault, some cycles after it, and a run that must be right, late beats of the first notwithstanding."""

    async def bench(ctx):
        dut = bus.dut
        ctx.set(dut.timeout, timeout)
        await bus.pulse(ctx, dut.clear)
        await bus.ask(ctx, first, until=lambda ctx: ctx.get(dut.fault) != FetchFault.NONE)
        bus.fault_cycle = bus.cycles
        assert ctx.get(dut.fault) == fault
        assert not ctx.get(dut.busy) and not ctx.get(dut.i_request.ready)
        await bus.tick(ctx)
        bus.stores.clear()
        for _ in range(5):
            await bus.tick(ctx)
        assert ctx.get(dut.fault) == fault and not bus.stores
        bus.spoil = bus.slave.silent_burst = None
        bus.fetched.clear()
        await bus.pulse(ctx, dut.clear)
        assert ctx.get(dut.fault) == FetchFault.NONE
        await bus.ask(ctx, second)
        assert ctx.get(dut.beats) == beats_of(bus.config, second)

    bus.run(bench)
    assert bus.stores == expected(bus.config, second)
    assert bus.fetched == [(kind, index) for kind, _, index, _ in second]


@pytest.mark.parametrize("memory", [FAST, MemoryModel(latency_cycles=50, bytes_per_cycle=5)])
def test_an_error_and_the_next_run(memory):
    config = PrefillConfig(**SMALL)
    faulty(
        Bus(config, memory, error_beat=40),
        FetchFault.RESPONSE,
        some_requests(config, 7, 3),
        some_requests(config, 8, 3),
    )


@pytest.mark.parametrize("how", ["early", "never", "lost beat"])
def test_a_wrong_last_and_the_next_run(how):
    config, picks = PrefillConfig(**SMALL), random.Random(4)
    bus = Bus(config)
    bus.spoil = {
        "early": lambda beat: beat._replace(last=beat.last or len(bus.beats) == 7),
        "never": lambda beat: beat._replace(last=False),
        "lost beat": lambda beat: beat if beat.last or picks.random() < 0.8 else None,
    }[how]
    faulty(bus, FetchFault.LAST, some_requests(config, 9, 3), some_requests(config, 10, 3))


def test_silence_and_the_next_run():
    config = PrefillConfig(**SMALL)
    first = [(FetchKind.K, BASE + PAGE * i, i) for i in range(3)]
    bus = Bus(config, silent_burst=1)
    faulty(bus, FetchFault.TIMEOUT, first, some_requests(config, 10, 3), timeout=100)
    assert bus.fault_cycle - bus.beats[request_beats(config, FetchKind.K) - 1] in (101, 102)


def test_an_address_that_is_never_taken():
    config = PrefillConfig(**SMALL)
    bus = Bus(config, busy=1.0)

    async def bench(ctx):
        dut = bus.dut
        ctx.set(dut.timeout, 30)
        await bus.pulse(ctx, dut.clear)
        await bus.ask(ctx, some_requests(config, 1, 2), until=lambda ctx: ctx.get(dut.fault) != FetchFault.NONE)
        assert ctx.get(dut.fault) == FetchFault.TIMEOUT and ctx.get(dut.stalled) >= 29
        bus.busy = 0.0  # the address still waits, as it must; its beats are dropped
        await bus.pulse(ctx, dut.clear)
        await bus.ask(ctx, requests)

    requests = some_requests(config, 2, 2)
    bus.run(bench)
    assert bus.stores == expected(config, requests)


def test_abort_at_any_time_and_late_beats():
    config = PrefillConfig(**SMALL)
    bus = Bus(config, MemoryModel(latency_cycles=30, bytes_per_cycle=9), busy=0.5)

    async def bench(ctx):
        dut = bus.dut
        await bus.pulse(ctx, dut.clear)
        for turn in range(12):
            end = bus.cycles + 3 + 17 * turn
            await bus.ask(ctx, some_requests(config, turn, 20), until=lambda ctx, end=end: bus.cycles >= end)
            ctx.set(dut.i_request.valid, 1)
            for _ in range(1 + turn % 3):
                await bus.pulse(ctx, dut.cancel)
            ctx.set(dut.i_request.valid, 0)
            assert not ctx.get(dut.busy)
            await bus.tick(ctx)
            bus.stores.clear()
            bus.fetched.clear()
            requests = some_requests(config, 100 + turn, 2)
            await bus.ask(ctx, requests)
            assert bus.stores == expected(config, requests)
            assert bus.fetched == [(kind, index) for kind, _, index, _ in requests]

    bus.run(bench)
    assert len(bus.beats) < sum(length for _, length in bus.bursts) + 1
