# amaranth: UnusedElaboratable=no
"""Index back end: tables, selection and decision in the simulator against the integer models of ``sim/attention/selection.py``."""

import random

import numpy as np
import pytest
from amaranth.sim import Simulator

from intaglio.rtl.arithmetic import attention as numerics
from intaglio.rtl.arithmetic import logarithm
from intaglio.rtl.arithmetic.logarithm import Logarithm, Power
from intaglio.rtl.config.attention import PrefillConfig
from intaglio.rtl.index.decide import Decision, decide_cycles
from intaglio.rtl.index.select import Selector, select_cycles
from intaglio.sim.attention.selection import decide, top

CONFIG = PrefillConfig(head_dim=16, group=2, block=32, columns=8, context=512, window=4, lines=6, lookahead=2, drain=4)


def simulate(dut, bench):
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def tabled(dut, values):
    """What a table gives for values, one a cycle."""
    number, result = (dut.number, dut.log) if isinstance(dut, Logarithm) else (dut.exponent, dut.power)
    got = []

    async def bench(ctx):
        for value in values + [1] * dut.LATENCY:
            ctx.set(number, value)
            await ctx.tick()
            got.append(ctx.get(result))

    simulate(dut, bench)
    return got[dut.LATENCY - 1 :][: len(values)]


@pytest.mark.parametrize(
    ("unit", "bits", "model"),
    [(Logarithm, 34, numerics.log2), (Logarithm, 5, numerics.log2), (Power, 20, numerics.exp2)],
)
def test_tables(unit, bits, model):
    dut, picks = unit(bits), random.Random(bits)
    values = [
        1,
        (1 << bits) - 1,
        *(1 << i for i in range(bits)),
        *((1 << i) - 1 for i in range(1, bits)),
        *range(1, 31),
    ]
    values += [picks.randrange(1, 1 << picks.randrange(1, bits + 1)) for _ in range(1500)]
    assert tabled(dut, values) == [model(value) for value in values]


@pytest.mark.parametrize(
    ("unit", "bits", "table", "model"), [(Logarithm, 20, "LOG_TABLE", numerics.log2), (Power, 20, "EXP", numerics.exp2)]
)
def test_one_wrong_entry_of_a_table_shows(unit, bits, table, model, monkeypatch):
    """Of the unit's table, not of the model's: every entry is looked up."""
    right, picks = getattr(logarithm, table), random.Random(5)
    for entry in (0, len(right) - 1, picks.randrange(len(right))):
        monkeypatch.setattr(logarithm, table, [value ^ (i == entry) for i, value in enumerate(right)])
        leading = len(right) if unit is Logarithm else 0  # the entry's number is below the leading one, or the fraction
        values = [leading | entry, leading | entry ^ 1]
        got = tabled(unit(bits), values)
        assert [a == model(value) for a, value in zip(got, values, strict=True)] == [False, True]


def test_table_widths_are_checked():
    with pytest.raises(ValueError, match="bits must be an integer of at least 2, not 1"):
        Logarithm(1)
    with pytest.raises(ValueError, match="bits must be an integer of at least 13, not 12"):
        Power(12)


MOST = 2**numerics.SCORE_WORD - 1


def scores(picks, count, kind, lanes=CONFIG.columns):
    """Scores [lanes][count]; a kind that is not random differs from lane to lane where it can."""

    def lane(number):
        if kind == "equal":
            return [1 << 3 * number] * count
        if kind == "huge":
            return [MOST if index == number % count else picks.randrange(3) for index in range(count)]
        if kind == "zeros":
            return [0] * count
        if kind == "most":
            return [MOST - (number > 3) * picks.randrange(2) for _ in range(count)]
        if kind == "ties":  # of odd scores: the threshold's lowest bit is set, and larger ones lie above it
            return [picks.choice((1, 3, 3, 7, 7, 7, 9)) << (number == 7) for _ in range(count)]
        if kind == "powers":
            return [1 << (index + 3 * number) % 32 for index in range(count)]
        return [
            picks.randrange(1 << picks.choice((2, 8, 24, number + 2))) * (picks.random() < 0.9) for _ in range(count)
        ]

    return [lane(number) for number in range(lanes)]


async def write(ctx, dut, lanes):
    ctx.set(dut.write_en, 1)
    for number in range(len(lanes)):
        for lane in range(len(lanes)):  # lane by lane, then all lanes: a mask that is ignored shows
            ctx.set(dut.write_data[lane], 12345)
        ctx.set(dut.write_lanes, 1 << number)
        ctx.set(dut.write_index, number % len(lanes[0]))
        await ctx.tick()
    order = list(range(len(lanes[0])))
    random.Random(7).shuffle(order)
    for part in (0x55, 0xAA):
        for index in order:
            for lane, values in enumerate(lanes):
                ctx.set(dut.write_data[lane], values[index])
            ctx.set(dut.write_lanes, part)
            ctx.set(dut.write_index, index)
            await ctx.tick()
    ctx.set(dut.write_en, 0)


async def select(ctx, dut, count, gamma16):
    """Kept bool [count, lanes] and the cycles up to done; the words must come in order, one a cycle."""
    ctx.set(dut.count, count)
    ctx.set(dut.gamma16, gamma16)
    ctx.set(dut.start, 1)
    kept, cycles = [], 0
    while not ctx.get(dut.done):
        await ctx.tick()
        ctx.set(dut.start, 0)
        cycles += 1
        assert cycles < 10000
        if ctx.get(dut.o_valid):
            assert ctx.get(dut.o_index) == len(kept)
            kept.append(ctx.get(dut.o_keep))
        else:
            assert len(kept) in (0, count)
    assert ctx.get(dut.busy)
    await ctx.tick()
    assert not ctx.get(dut.busy) and not ctx.get(dut.done)
    return [[bool(word >> lane & 1) for lane in range(len(dut.o_keep))] for word in kept], cycles


@pytest.mark.parametrize(
    ("kind", "count", "gammas"),
    [
        ("equal", 16, (1, 32768, 32769, 65536)),
        ("huge", 16, (65535, 65536)),
        ("zeros", 5, (1, 65536)),
        ("most", 16, (1, 60000, 65536)),
        ("powers", 16, (40000,)),
        ("ties", 16, (32768, 50000)),
        ("random", 1, (1, 65536)),
        ("random", 2, (32768,)),
        ("random", 16, (655, 58982, 62259)),
        ("random", 13, (50000,)),
    ],
)
def test_selection(kind, count, gammas):
    dut, lanes = Selector(CONFIG), scores(random.Random(count), count, kind)

    async def bench(ctx):
        await write(ctx, dut, lanes)
        for gamma16 in gammas:
            kept, cycles = await select(ctx, dut, count, gamma16)
            kept = np.array(kept).T
            assert (kept == top(lanes, gamma16)).all()
            assert cycles == select_cycles(count, max(map(max, lanes)).bit_length())
            for values, mask in zip(np.array(lanes), kept, strict=True):
                total, number = int(values.sum()), int(mask.sum())
                assert int(values[mask].sum()) << 16 >= gamma16 * total  # the kept mass is the share at least,
                assert (
                    number == 0 or sum(sorted(values.tolist())[count - number + 1 :]) << 16 < gamma16 * total
                )  # fewer cannot reach it,
                if number:
                    assert values[mask].min() >= values[~mask].max(initial=0)  # and no larger one is left out

    simulate(dut, bench)


@pytest.mark.parametrize("gap", [0, 0.5])
def test_additions(gap):
    """Additions one every other cycle, many to the same score in a row, after a clear; then the search sees the sums."""
    dut, picks = Selector(CONFIG), random.Random(1)
    adds = [(picks.randrange(9), picks.randrange(4), picks.randrange(MOST + 1)) for _ in range(60)]
    adds += [add for add in adds[:10] for _ in range(3)] + [
        (8, 3, MOST),
        (8, 3, MOST),
        (8, 2, 1),
        (8, 3, 1),
        (0, 0, 5),
        (1, 0, 6),
    ]
    sums = np.zeros((8, 9), np.int64)
    for index, lane, addend in adds:
        sums[lane, index] = (sums[lane, index] + addend) % (MOST + 1)

    async def bench(ctx):
        await write(ctx, dut, scores(picks, 9, "most"))
        ctx.set(dut.count, 9)
        ctx.set(dut.clear, 1)
        cycles = 0
        while not ctx.get(dut.done):
            await ctx.tick()
            ctx.set(dut.clear, 0)
            cycles += 1
        assert cycles == 9
        await ctx.tick()
        cycles = 0
        for index, lane, addend in adds:
            while picks.random() < gap:
                await ctx.tick()
            ctx.set(dut.i_add.valid, 1)
            ctx.set(dut.i_add.payload, {"index": index, "lane": lane, "addend": addend})
            while True:
                ready = ctx.get(dut.i_add.ready)
                await ctx.tick()
                cycles += 1
                if ready:
                    break
            ctx.set(dut.i_add.valid, 0)
        assert gap or cycles == 2 * len(adds) - 1
        await ctx.tick().repeat(2)
        assert [[ctx.get(ram.data[index]) for index in range(9)] for ram in dut.scores] == sums.tolist()
        kept, _ = await select(ctx, dut, 9, 45000)
        assert (np.array(kept).T == top(sums, 45000)).all()

    simulate(dut, bench)


def heads(config, tokens, seed):
    """(ver, pool) of one head after another: random ones and extremes."""
    picks, block = random.Random(seed), config.block
    count = -(-tokens // block)
    sizes = [block] * (count - 1) + [tokens - (count - 1) * block]
    low, high = -(1 << 17), (1 << 17) - 1

    def pool(means):
        return [
            block * size * mean + picks.randrange(block) * (abs(mean) < high)
            for size, mean in zip(sizes, means, strict=True)
        ]

    single = [0] * count
    single[-1] = block << 28
    found = [
        ([0] * count, pool([0] * count)),
        (single, pool([high] + [low] * (count - 1))),
        (single, pool([low] * (count - 1) + [high])),
        ([MOST] * count, pool([high] * count)),
        ([MOST] * count, [block * size * low for size in sizes]),
        ([(block << 28) // count] * count, pool([300] * count)),  # equal distributions
        ([block * (65536 // count + 9) << 12] * count, pool([0] * count)),  # almost equal: for 16 blocks J < 0
    ]
    for spread in (5000, 500, 30):  # in the last, every block counts
        ver = [picks.randrange(1 << picks.randrange(2, 29 + block.bit_length())) for _ in range(count)]
        found.append((ver, pool([picks.randrange(-spread, spread) for _ in range(count)])))
    return found


@pytest.mark.parametrize(
    ("tokens", "shape"), [(512, {}), (481, {}), (77, {}), (19, {}), (32, {}), (1, {}), (300, {"block": 16})]
)
def test_decision(tokens, shape):
    config = PrefillConfig(**CONFIG.to_json() | shape)
    dut, block = Decision(config), config.block
    count = -(-tokens // block)
    cases, negative = heads(config, tokens, tokens), []

    async def bench(ctx):
        for ver, pool in cases:
            _, (divergence,) = decide([ver], [pool], block, tokens, 1)
            divergence = int(divergence)
            for threshold in {0, max(1, min(divergence, 2**32 - 1)), max(1, min(divergence + 1, 2**32 - 1))}:
                ctx.set(dut.count, count)
                ctx.set(dut.inverse, 65536 // (tokens - (count - 1) * block))
                ctx.set(dut.threshold, threshold)
                ctx.set(dut.start, 1)
                cycles = 0
                while not ctx.get(dut.done):
                    asked = ctx.get(dut.o_block)
                    await ctx.tick()
                    ctx.set(dut.start, 0)
                    ctx.set(dut.ver, ver[asked] if asked < count else 99)
                    ctx.set(dut.pool, pool[asked] if asked < count else 99)
                    cycles += 1
                    assert cycles < 1000
                assert ctx.get(dut.divergence) == divergence
                assert bool(ctx.get(dut.query_aware)) == bool(decide([ver], [pool], block, tokens, threshold)[0][0])
                assert cycles == decide_cycles(count)
                negative.append(divergence < 0)
                await ctx.tick()
                assert not ctx.get(dut.done)
        assert any(negative) or tokens != 512

    simulate(dut, bench)
