"""The stores of the prefill unit, the block scores of the index and the loader of queries: against loops written from their contracts."""

import random

import pytest
from amaranth.hdl import Cat
from amaranth.sim import Simulator

from intaglio.rtl.attention import stores
from intaglio.rtl.attention.queries import QueryLoader
from intaglio.rtl.attention.stores import Stores, store_bits
from intaglio.rtl.bus.streams import FetchKind
from intaglio.rtl.config.attention import PrefillConfig
from intaglio.rtl.index import scores
from intaglio.rtl.index.decide import pool_bits
from intaglio.rtl.index.scores import ScoreStore
from intaglio.rtl.memory import transpose

SMALL = dict(head_dim=16, group=2, block=32, columns=8, context=512, window=4, lines=6, lookahead=2, drain=4)
SHAPES = [
    SMALL,
    SMALL | dict(block=16, lines=9, window=8),
    SMALL | dict(group=3, window=2, lines=5),
    SMALL | dict(columns=16, window=2),
]


def simulate(dut, bench):
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


# Stores


def store_reads(shape, cycles=200, seed=0):
    """Every word written; then a write and reads of all kinds in every cycle. Pairs (found, expected) of what the reads brought."""
    c, picks, pairs = PrefillConfig(**shape), random.Random(seed), []
    dut = Stores(c)
    sizes = {
        "key": c.lines * c.block,
        "value": c.lines * c.block,
        "query": c.slots * c.block,
        "key_scale": c.lines * c.scale_beats,
        "value_scale": c.lines * c.scale_beats,
        "query_scale": c.slots * c.scale_beats,
    }
    held = {name: [None] * size for name, size in sizes.items()}
    tile_of = {"value": c.head_dim, "query": c.columns}  # rows that a read goes across
    channels = c.head_dim // c.columns  # of a beat of queries

    def shown_at(name, place):
        """What a read there brings: a row, or channels of all rows of its tile, one channel after the other."""
        if name not in tile_of:
            return held[name][place]
        size = tile_of[name]
        first, column = place // size * size, place % size
        rows = [held[name][row].to_bytes(c.head_dim, "little") for row in range(first, first + size)]
        wide = 1 if name == "value" else channels
        return int.from_bytes(
            bytes(row[i] for i in range(column * wide, (column + 1) * wide) for row in rows), "little"
        )

    async def bench(ctx):
        def write(name, place):
            for other in sizes:
                ctx.set(getattr(dut.write, other), other == name)
            ctx.set(dut.write.scale_address if name.endswith("scale") else dut.write.address, place)
            word = picks.getrandbits(8 * c.head_dim)
            ctx.set(dut.write.data, word)
            return word

        for name, size in sizes.items():
            for place in range(size):
                held[name][place] = write(name, place)
                await ctx.tick()
        shown = dict.fromkeys("kvxyq")
        for _ in range(cycles):
            name = picks.choice(list(sizes))
            place = picks.randrange(sizes[name])
            word = write(name, place)
            line, slot = picks.randrange(c.lines), picks.randrange(c.slots)
            row, other_row, tile, beat = (
                picks.randrange(n) for n in (c.block, c.block, c.tiles, c.block + c.scale_beats)
            )
            ctx.set(dut.read.read_line, line)
            reads = {
                "k": ("key", line * c.block + row),
                "v": ("value", line * c.block + other_row),
                "x": ("key_scale", line * c.scale_beats + tile),
                "y": ("value_scale", line * c.scale_beats + tile),
                "q": ("query", slot * c.block + beat)
                if beat < c.block
                else ("query_scale", slot * c.scale_beats + beat - c.block),
            }
            met = {  # reads of what is written: they may bring anything
                kind
                for kind, (other, where) in reads.items()
                if other == name and where // tile_of.get(name, 1) == place // tile_of.get(name, 1)
            }
            for port, value in (
                ("k_row", row),
                ("v_row", other_row),
                ("x_tile", tile),
                ("q_slot", slot),
                ("q_beat", beat),
            ):
                ctx.set(getattr(dut.read, port), value)
            for kind, where in reads.items():
                if kind != "y":  # read together with x
                    asked = picks.random() < 0.8 and kind not in met and not (kind == "x" and "y" in met)
                    ctx.set(getattr(dut.read, f"{kind}_read"), asked)
                if asked:
                    shown[kind] = shown_at(*where)
            await ctx.tick()
            held[name][place] = word
            both, size = ctx.get(dut.read.x_data), 8 * c.head_dim
            found = {"x": both & (1 << size) - 1, "y": both >> size}
            found |= {kind: ctx.get(getattr(dut.read, f"{kind}_data")) for kind in "kvq"}
            pairs.extend((found[kind], word) for kind, word in shown.items() if word is not None)

    simulate(dut, bench)
    return pairs


@pytest.mark.parametrize("shape", SHAPES)
def test_stores(shape):
    """A write and five reads in each cycle; what was read stays until the next read of its kind."""
    pairs = store_reads(shape)
    assert len(pairs) > 700 and all(found == expected for found, expected in pairs)


def test_rows_and_lines_exchanged_show(monkeypatch):
    monkeypatch.setattr(stores, "Cat", lambda *parts: Cat(*(parts[::-1] if len(parts) == 2 else parts)))
    assert any(found != expected for found, expected in store_reads(SMALL, 50))


def test_values_that_are_not_transposed_show(monkeypatch):
    monkeypatch.setattr(transpose.TransposeRam, "_exchanged", lambda self, m, name, words, by: words)
    assert any(found != expected for found, expected in store_reads(SMALL, 50))


def test_bits_of_the_stores():
    """As in the memories themselves."""
    c = PrefillConfig(**SMALL)
    assert store_bits(c) == 8 * 16 * (6 * 2 * (32 + 2) + 8 * (32 + 2))


# Block scores


def score_run(shape, blocks, *, seed=0, ready=(1,), gap=10, given=None, clear=True):
    """Additions (lane, index, addend), ver and pool read back by (head, block), cycles from each ``valid`` until no addition is owed."""
    c, picks = PrefillConfig(**shape), random.Random(seed)
    dut, added, times, kept = ScoreStore(c), [], [], {}
    sums = [
        [
            (
                [picks.randrange(1 << 29) for _ in range(3)],
                picks.randrange(-(1 << (pool_bits(c) - 1)), 1 << (pool_bits(c) - 1)),
            )
            for _ in range(c.group)
        ]
        for _ in range(blocks)
    ]

    async def bench(ctx):
        cycle = 0

        async def tick():
            nonlocal cycle
            ctx.set(dut.o_add.ready, ready[cycle % len(ready)])
            if ctx.get(dut.o_add.valid) and ctx.get(dut.o_add.ready):
                payload = ctx.get(dut.o_add.payload)
                added.append((payload.lane, payload.index, payload.addend))
            cycle += 1
            await ctx.tick()
            ctx.set(dut.valid, 0)

        ctx.set(dut.blocks, given or blocks)
        for repeat in range(2):  # the second time after a clear
            if clear or not repeat:
                ctx.set(dut.clear, 1)
                await tick()
                ctx.set(dut.clear, 0)
            added.clear()
            for row in sums:
                for head, (mass, pool) in enumerate(row):
                    ctx.set(dut.valid, 1)
                    ctx.set(dut.head, head)
                    ctx.set(dut.pool, pool)
                    for port, value in zip(dut.mass, mass, strict=True):
                        ctx.set(port, value)
                    took = None
                    for n in range(gap):
                        await tick()
                        if took is None and not ctx.get(dut.busy):
                            took = n
                    times.append(took)
        for _ in range(30):
            await tick()
        for head in range(c.group):
            for block in range(blocks):
                ctx.set(dut.read_head, head)
                ctx.set(dut.read_block, block)
                await ctx.tick()
                kept[head, block] = ctx.get(dut.ver), ctx.get(dut.pool_sum)

    simulate(dut, bench)
    return sums, added, kept, times


def score_expectation(sums, blocks):
    """Scores by (lane, index), and what is read back."""
    scores_, kept = {}, {}
    for block, row in enumerate(sums):
        for head, (mass, pool) in enumerate(row):
            scores_[2 * head, block] = scores_.get((2 * head, block), 0) + sum(mass)
            for less, part in enumerate(mass):
                if blocks - 1 - block - less >= 0:
                    place = 2 * head + 1, blocks - 1 - block - less
                    scores_[place] = scores_.get(place, 0) + part
            kept[head, block] = sum(mass), pool
    return scores_, kept


def accumulated(added):
    out = {}
    for lane, index, addend in added:
        out[lane, index] = out.get((lane, index), 0) + addend
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("blocks", [1, 2, 3, 9])
def test_block_scores(shape, blocks):
    """Sums every 10 cycles with a selector that takes one every other cycle: additions are over 8 cycles after their sums."""
    for ready in ((1,), (0, 1)):
        sums, added, kept, times = score_run(shape, blocks, ready=ready, seed=blocks)
        assert (accumulated(added), kept) == score_expectation(sums, blocks)
        assert max(times) <= (8 if len(ready) > 1 else 4)


def test_wrong_block_scores_show(monkeypatch):
    sums, added, kept, _ = score_run(SMALL, 5, given=6)  # distances one too large
    wanted = score_expectation(sums, 5)
    assert kept == wanted[1] and accumulated(added) != wanted[0]
    sums, added, kept, _ = score_run(SMALL, 5, clear=False)  # a second pass that goes on where the first ended
    assert accumulated(added) != wanted[0]
    monkeypatch.setattr(scores, "signed", lambda bits: bits)  # a distance below 0 taken for a large one
    with pytest.raises((AssertionError, AttributeError)):
        sums, added, kept, times = score_run(SMALL, 5)
        assert (accumulated(added), kept) == score_expectation(sums, 5)


# Queries


def query_run(shape, blocks, *, seed=0, given=None, always=True, drain=None, rows=5, single=False):
    """Requests, cycles of them, and whether ``loaded`` was right in every cycle. ``drain``: slots that never are drained."""
    c, picks = PrefillConfig(**shape), random.Random(seed)
    dut, requests, cycles, right = QueryLoader(c), [], [], True
    base = 0x123_4567_0000

    async def bench(ctx):
        nonlocal right
        ctx.set(dut.blocks, given or blocks)
        ctx.set(dut.base, base)
        ctx.set(dut.last_row, rows - 1)
        ctx.set(dut.single, single)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        loaded, coming, working, leaving, idle, cycle = set(), [], [], [], 0, 0
        while idle < 200:
            idle, cycle = idle + 1, cycle + 1
            ready = always or picks.random() < 0.4
            ctx.set(dut.o_fetch.ready, ready)
            if ctx.get(dut.o_fetch.valid) and ready:
                payload = ctx.get(dut.o_fetch.payload)
                requests.append((payload.kind, payload.address, payload.index, payload.last_row))
                cycles.append(cycle)
                coming.append(payload.index)
                idle = 0
            for name, queue, following in (
                ("arrived", coming, working),
                ("spent", working, leaving),
                ("drained", leaving, None),
            ):
                here = bool(queue) and picks.random() < 0.3 and not (name == "drained" and queue[0] == drain)
                ctx.set(getattr(dut, name), here)
                if here:
                    slot = queue.pop(0)
                    ctx.set(getattr(dut, f"{name}_slot"), slot)
                    if following is not None:
                        following.append(slot)
                    loaded = loaded | {slot} if name == "arrived" else loaded - {slot} if name == "spent" else loaded
                    idle = 0
            await ctx.tick()
            right &= ctx.get(dut.loaded) == sum(1 << slot for slot in loaded)

    simulate(dut, bench)
    return requests, cycles, right


def query_expectation(shape, blocks):
    c = PrefillConfig(**shape)
    return [
        (
            FetchKind.Q,
            0x123_4567_0000 + (head * blocks + block) * (c.block + c.scale_beats) * c.head_dim,
            block % c.window * c.group + head,
            4 if block == blocks - 1 else c.block - 1,
        )
        for block in range(blocks)
        for head in range(c.group)
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("blocks", [1, 4, 11])
def test_queries(shape, blocks):
    for always in (True, False):
        requests, cycles, right = query_run(shape, blocks, always=always, seed=blocks)
        assert requests == query_expectation(shape, blocks) and right
        slots = min(len(requests), PrefillConfig(**shape).slots)
        if always:  # as long as slots are free: a request a cycle
            assert cycles[:slots] == list(range(1, slots + 1))


def test_queries_of_the_last_token():
    """One block, a row for each head."""
    c = PrefillConfig(**SMALL)
    requests, _, right = query_run(SMALL, 5, single=True)
    assert requests == [(FetchKind.Q, 0x123_4567_0000, 0, c.group - 1)] and right


def test_a_slot_that_is_not_drained_is_not_asked_for():
    requests, _, right = query_run(SMALL, 16, drain=3)
    assert requests == query_expectation(SMALL, 16)[: 8 + 3] and right


def test_a_wrong_stride_shows():
    assert query_run(SMALL, 5, given=6)[0][:10] != query_expectation(SMALL, 5)


@pytest.mark.parametrize("unit", [lambda c: Stores(c), lambda c: ScoreStore(c), QueryLoader])
def test_a_shape_that_does_not_fit_makes_no_unit(unit):
    with pytest.raises(ValueError, match="block must be a power of 2 in 16..128, not 48"):
        unit(PrefillConfig(**SMALL | dict(block=48)))
