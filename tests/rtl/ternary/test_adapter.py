"""The adapter's units in Amaranth's simulator: the vector between the factors, the join, the loader, the configuration."""

import zlib

import numpy as np
import pytest

from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.ternary.adapter.intermediate import Intermediate, MatrixGroup
from intaglio.rtl.ternary.adapter.join import Join, JoinLane
from intaglio.rtl.ternary.adapter.loader import Loader, Outcome, image_words, word_parts
from tests.rtl.ternary.linear_bench import make_config as bench_config
from tests.rtl.ternary.linear_bench import run


def make_config(**changes):
    return bench_config(**(dict(layers=2, rank=4, adapters=2) | changes))


# -- between the factors


def between(values):
    """docs/numerics.md, one part: INT8 values and their shift."""
    ored = 0
    for value in values:
        ored |= value ^ (value >> 63)
    sh = max(0, ored.bit_length() - 7)
    return [min(max((value + (1 << sh >> 1)) >> sh, -127), 127) for value in values], sh


def half_shift(e, sh):
    return min(max(-(e + sh) - 1, 0), 39)


def vectors(config, rng):
    """Sums of one part: of every size, at the ends, at ties of the rounding."""
    limit = 127 * 48 * config.adapter_limit
    edges = [0, 1, -1, 127, -127, 128, -128, 254, 255, 256, 383, 384, -384, limit, -limit, limit - 1, 64, -64]
    for _ in range(12):
        bits = int(rng.integers(1, limit.bit_length() + 1))
        yield [int(v) for v in rng.integers(-min(limit, 2**bits), min(limit, 2**bits) + 1, config.rank)]
    for edge in edges:
        yield [edge] + [0] * (config.rank - 1)
        yield [int(v) for v in rng.choice([edge, -edge, edge // 2, edge // 3], config.rank)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adapter_trits": 3, "lanes": 4, "rank": 8},
        {"lanes": 4},
        {"adapter_targets": "o"},
        {"adapter_targets": "gate", "rank": 8},
    ],
)
def test_between_the_factors(changes):
    config, rng = make_config(**changes), np.random.default_rng(1)
    dut = Intermediate(config)
    kinds = {3: [MatrixGroup.QKV], 2: [MatrixGroup.GATED], 1: [MatrixGroup.ONE]}
    kinds = [kind for names in config.adapted for kind in kinds[len(names)]]
    count = {MatrixGroup.QKV: 3, MatrixGroup.GATED: 2, MatrixGroup.ONE: 1}
    scales = [
        (int(rng.integers(1 << 15, 1 << 16)), int(rng.integers(-60, 10))) for _ in range(1 << len(dut.scale_addr))
    ]
    pool = list(vectors(config, rng))

    async def bench(ctx):
        ctx.set(dut.scale_base, 3)
        ctx.set(dut.scale_restart, 1)
        await ctx.tick()
        ctx.set(dut.scale_restart, 0)
        used, answer = 3, 0

        async def tick():
            nonlocal answer
            m, e = scales[ctx.get(dut.scale_addr)]
            answer = m | (e & 1023) << 16
            await ctx.tick()
            ctx.set(dut.scale_data, answer)

        for turn in range(2 * len(pool)):
            kind = kinds[turn % len(kinds)]
            parts = [pool[(turn + p) % len(pool)] for p in range(count[kind])]
            ctx.set(dut.start, 1)
            await tick()
            ctx.set(dut.start, 0)
            ctx.set(dut.kind, kind)
            for _ in range(6):
                await tick()
            flat = [value for part in parts for value in part]
            groups = len(flat) // config.lanes
            for g in range(groups):
                for lane in range(config.lanes):
                    ctx.set(dut.sums[lane], flat[g * config.lanes + lane])
                ctx.set(dut.valid, 1)
                ctx.set(dut.final, g == groups - 1)
                await tick()
                ctx.set(dut.valid, 0)
                ctx.set(dut.final, 0)
                if rng.random() < 0.3 and g < groups - 1:
                    await tick()
            cycles = 1
            while not ctx.get(dut.done):
                await tick()
                cycles += 1
            assert cycles == groups + Intermediate.LATENCY - 1
            for p, part in enumerate(parts):
                values, sh = between(part)
                m, e = scales[(used + p) % len(scales)]
                assert (ctx.get(dut.mantissas[p]), ctx.get(dut.shifts[p])) == (m, half_shift(e, sh))
                ctx.set(dut.part, p if kind == MatrixGroup.QKV else 0)
                word = ctx.get(dut.word)
                found = [(word >> 8 * i & 255) - (word >> 8 * i + 7 & 1) * 256 for i in range(2 * config.rank)]
                at = config.rank if kind == MatrixGroup.GATED and p == 1 else 0
                assert found[at : at + config.rank] == values
            used += len(parts)

    run(dut, bench)


# -- join


def joined(base, total, m, shift, limit):
    return min(max(base + ((((total * m) >> shift) + 1) >> 1), -limit), limit)


@pytest.mark.parametrize("changes", [{}, {"adapter_trits": 5}, {"intermediate": 16}])
def test_join_of_a_lane(changes):
    config, rng = make_config(**changes), np.random.default_rng(2)
    dut = JoinLane(config)
    widest, largest = max(config.hidden, config.intermediate), 127 * config.rank * config.adapter_limit
    cases = [
        (b, t, m, s, narrow)
        for b in (127 * config.hidden, -127 * config.hidden, 0, 5)
        for t in (largest, -largest, 0, 1, -1)
        for m, s in ((65535, 0), (65535, 39), (32768, 15), (32768, 16), (0, 3))
        for narrow in (0, 1)
    ]
    for _ in range(200):
        cases.append(
            (
                int(rng.integers(-127 * config.hidden, 127 * config.hidden + 1)),
                int(rng.integers(-largest, largest + 1)),
                int(rng.integers(1 << 15, 1 << 16)),
                int(rng.integers(0, 40)),
                int(rng.integers(2)),
            )
        )
    cases += [(127 * widest, 0, 40000, 3, 0), (-127 * widest, 0, 40000, 3, 0)]

    async def bench(ctx):
        for base, total, m, shift, narrow in cases:
            for alone in (0, 1):
                ctx.set(dut.keep, not alone)
                ctx.set(dut.sum, base)
                if not alone:
                    await ctx.tick()
                    ctx.set(dut.sum, total)
                ctx.set(dut.keep, 0)
                ctx.set(dut.alone, alone)
                ctx.set(dut.mantissa, m)
                ctx.set(dut.narrow, narrow)
                for stage in range(3):
                    ctx.set(dut.move, 1 << stage)
                    ctx.set(dut.shift, shift if stage == 1 else 63 - shift)
                    await ctx.tick()
                    ctx.set(dut.sum, 12345)
                limit = 127 * (config.hidden if narrow else widest)
                assert ctx.get(dut.total) == joined(base, 0 if alone else total, m, shift, limit)

    run(dut, bench)


def test_join_chooses_scales_by_part_and_lane():
    config = make_config()
    dut = Join(config)
    mantissas, shifts = (40000, 50000, 60000), (15, 17, 19)

    async def bench(ctx):
        for p in range(3):
            ctx.set(dut.mantissas[p], mantissas[p])
            ctx.set(dut.shifts[p], shifts[p])
        for part, odd in ((0, 0), (1, 0), (2, 0), (0, 1)):
            ctx.set(dut.keep, 1)
            for lane in range(2):
                ctx.set(dut.sums[lane], 100 * lane - 7)
            await ctx.tick()
            ctx.set(dut.keep, 0)
            ctx.set(dut.valid, 1)
            ctx.set(dut.part, part)
            ctx.set(dut.odd, odd)
            for lane in range(2):
                ctx.set(dut.sums[lane], 31 - 50 * lane)
            await ctx.tick()
            ctx.set(dut.valid, 0)
            ctx.set(dut.part, 2 - part)
            ctx.set(dut.odd, 0)
            for _ in range(Join.LATENCY - 1):
                assert not ctx.get(dut.o_valid)
                await ctx.tick()
            assert ctx.get(dut.o_valid)
            for lane in range(2):
                p = 1 if odd and lane else part
                assert ctx.get(dut.totals[lane]) == joined(
                    100 * lane - 7, 31 - 50 * lane, mantissas[p], shifts[p], 127 * 48
                )
            await ctx.tick()

    run(dut, bench)


# -- loader


class Host:
    """Drives a loader and keeps what it writes."""

    def __init__(self, config, ctx, dut):
        self.config, self.ctx, self.dut = config, ctx, dut
        self.weights, self.scales, self.lost = {}, {}, 0

    async def strobe(self, name, value):
        ctx, dut = self.ctx, self.dut
        ctx.set(dut.value, value)
        ctx.set(getattr(dut, name), 1)
        for lane in range(self.config.lanes):
            if ctx.get(dut.weight_en) >> lane & 1:
                self.weights[ctx.get(dut.weight_addr), lane] = ctx.get(dut.weight_data)
        if ctx.get(dut.scale_en):
            self.scales[ctx.get(dut.scale_addr)] = ctx.get(dut.scale_data)
        self.lost += ctx.get(dut.lost)
        await ctx.tick()
        ctx.set(getattr(dut, name), 0)
        await ctx.tick()

    async def load(self, slot, words, crc=None):
        await self.strobe("begin", slot)
        for word in words:
            await self.strobe("data", word)
        await self.strobe("commit", zlib.crc32(np.array(words, "<u4").tobytes()) if crc is None else crc)
        return Outcome(self.ctx.get(self.dut.outcome))

    def slot(self, slot):
        """Memory of a slot, None if it holds no adapter."""
        self.ctx.set(self.dut.selected, slot + 1)
        return self.ctx.get(self.dut.physical) if self.ctx.get(self.dut.ok) else None


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": 1, "adapter_targets": "o"},
        {"layers": 1, "adapter_targets": "v", "lane_width": 32, "intermediate": 64, "lanes": 4, "adapter_trits": 2},
    ],
)
def test_loader(changes):
    config, rng = make_config(**changes), np.random.default_rng(3)
    dut = Loader(config, 0xABCD1234)
    parts, lanes = word_parts(config), config.lanes

    def image():
        return [0xABCD1234, *(int(v) for v in rng.integers(0, 2**32, image_words(config) - 1))]

    def expect(host, memory, words):
        scales, weights = words[1 : 1 + config.adapter_scales], words[1 + config.adapter_scales :]
        assert host.scales == {memory * config.adapter_scales + i: word & 0x3FFFFFF for i, word in enumerate(scales)}
        mask = (1 << 2 * config.lane_width) - 1
        assert host.weights == {
            (memory * config.adapter_words + a, lane): sum(
                weights[(a * lanes + lane) * parts + k] << 32 * k for k in range(parts)
            )
            & mask
            for a in range(config.adapter_words)
            for lane in range(lanes)
        }

    async def bench(ctx):
        def host():
            return Host(config, ctx, dut)

        good = image()
        first = host()
        assert [first.slot(s) for s in range(-1, 4)] == [None] * 5 and ctx.get(dut.outcome) == Outcome.NONE
        assert await first.load(1, good) == Outcome.LOADED
        expect(first, 2, good)  # the spare of two slots is memory 2
        assert [first.slot(s) for s in range(-1, 4)] == [None, None, 2, None, None] and ctx.get(dut.loaded) == 0b10
        second = host()
        assert await second.load(0, image()) == Outcome.LOADED
        assert {a // config.adapter_words for a, _ in second.weights} == {1}
        assert [second.slot(s) for s in range(2)] == [1, 2]
        for words, slot, crc, outcome in (
            (good[:-1], 0, None, Outcome.INCOMPLETE),
            (good + good[:1], 0, None, Outcome.TOO_LONG),
            (good, 2, None, Outcome.NO_SUCH_SLOT),
            (good, 0, 5, Outcome.DAMAGED),
            ([good[0] ^ 8, *good[1:]], 0, None, Outcome.OTHER_DEVICE),
        ):
            bad = host()
            assert await bad.load(slot, words, crc) == outcome
            assert [bad.slot(s) for s in range(2)] == [1, 2] and not bad.lost
            assert {a // config.adapter_words for a, _ in bad.weights} <= {0}  # the spare alone
        # a sequence in memory 2: a first load into its slot leaves it alone, the next one takes the memory, not during a token
        ctx.set(dut.running, 1)
        ctx.set(dut.memory, 2)
        ctx.set(dut.active, 1)
        third = host()
        assert await third.load(1, good) == Outcome.LOADED and third.lost == 0 and third.slot(1) == 0
        blocked = host()
        assert await blocked.load(1, good) == Outcome.IN_USE
        assert blocked.weights == blocked.scales == {} and blocked.lost == 0 and blocked.slot(1) == 0
        ctx.set(dut.active, 0)
        fourth = host()
        assert await fourth.load(0, good) == Outcome.LOADED and fourth.lost == 1
        expect(fourth, 2, good)

    run(dut, bench)


# -- configuration


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"rank": 3}, "rank must be a multiple of lanes = 2 and divide lane_width / 2 = 8, not 3"),
        ({"rank": 6}, "rank must be a multiple of lanes = 2 and divide lane_width / 2 = 8, not 6"),
        ({"rank": 100}, r"rank must be an integer in 0\.\.8, not 100"),
        ({"rank": -2}, "rank must be an integer in 0..8, not -2"),
        ({"rank": True}, "rank must be an integer"),
        ({"rank": 4.0}, "rank must be an integer"),
        ({"adapters": 0}, r"adapters must be an integer in 1\.\.16, not 0"),
        ({"adapters": 17}, "adapters must be an integer"),
        ({"adapter_trits": 6}, r"adapter_trits must be an integer in 1\.\.5, not 6"),
        ({"adapter_trits": 0}, "adapter_trits must be"),
        ({"adapter_targets": ""}, "adapter_targets must be some of q,k,v,o,gate,up,down in this order, not ''"),
        ({"adapter_targets": "v,q"}, "in this order, not 'v,q'"),
        ({"adapter_targets": "q,q"}, "not 'q,q'"),
        ({"adapter_targets": "q,lm_head"}, "not 'q,lm_head'"),
        ({"adapter_targets": None}, "not None"),
    ],
)
def test_configuration_is_checked(changes, text):
    with pytest.raises(ValueError, match=text):
        make_config(**changes)


def test_without_rank_nothing_of_adapters_is_left():
    config = make_config(rank=0)
    assert config.adapted == () and not any("adapter" in name or name == "rank" for name in config.to_json())
    assert config.digest() == make_config(rank=0, adapters=5, adapter_trits=3, adapter_targets="q").digest()
    assert DecoderConfig.from_json(config.to_json()) == make_config(rank=0, adapters=1)
    adapted = make_config(adapter_targets="q,down")
    assert adapted.adapted == (("q", "k", "v"), ("down",)) and DecoderConfig.from_json(adapted.to_json()) == adapted
    assert adapted.digest() != config.digest()


def test_sizes_of_the_memory():
    """Words by hand: rank 4, two lanes of 16, two layers."""
    config = make_config()
    assert config.adapter_rows == {
        ("q", "k", "v"): (64, 32, 3 * 4 // 2 * 2, 64 // 2 // 4),
        ("o",): (32, 32, 4 // 2 * 2, 32 // 2 // 4),
        ("gate", "up"): (96, 32, 2 * 4 // 2 * 2, 96 // 2 // 4),
        ("down",): (32, 48, 4 // 2 * 3, 32 // 2 // 4),
    }
    assert config.adapter_words == 2 * (12 + 8 + 4 + 4 + 8 + 12 + 6 + 4) and config.adapter_scales == 14
    assert image_words(config) == 1 + 14 + 2 * config.adapter_words
