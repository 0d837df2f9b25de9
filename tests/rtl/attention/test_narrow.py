"""The attention unit against docs/numerics.md in Python integers: values, extremes, cycle counts, and a wrong byte shows."""

import os
import random
import subprocess

import pytest
from amaranth.back import verilog
from amaranth.sim import Simulator

from intaglio.gen.emit.verilog import VERILOG
from intaglio.rtl.arithmetic.numerics import EXP_TABLE
from intaglio.rtl.attention.narrow import EMBEDDING_LATENCY, AttentionUnit, attend_cycles, head_cycles
from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.memory.ram import RAM_VERILOG
from intaglio.rtl.memory.rom import ROM_VERILOG
from intaglio.sim.verilator.tools import find_tools

SMALL = DecoderConfig(
    hidden=32,
    intermediate=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    vocab=20,
    context=16,
    lanes=4,
    lane_width=16,
    vector_width=4,
    attention_heads=1,
    top_k=5,
)
CONFIGS = {
    "one head": SMALL,
    "two heads": SMALL.replace(attention_heads=2),
    "three heads of 4": SMALL.replace(
        hidden=24, intermediate=24, heads=6, head_dim=4, lane_width=8, attention_heads=3, layers=3, context=11
    ),
    "all heads at once": SMALL.replace(
        kv_heads=1, attention_heads=4, head_dim=16, hidden=64, intermediate=64, layers=1
    ),
    "six heads of 32": SMALL.replace(
        hidden=192,
        intermediate=192,
        layers=1,
        heads=6,
        kv_heads=1,
        head_dim=32,
        context=5,
        lane_width=32,
        vector_width=16,
        attention_heads=6,
    ),
}
ZERO = (0, -512)


def clamp(x, low, high):
    return max(low, min(high, x))


class Model:
    """Cache and attention of docs/numerics.md."""

    def __init__(self, config):
        self.config, self.rows, self.scales, self.largest = config, {}, {}, {}

    def write(self, layer, position, head, is_v, row, scale):
        self.rows[layer, is_v, head, position] = row
        self.scales[layer, is_v, head, position] = scale
        if is_v:
            fresh = position == 0 and head == 0
            self.largest[layer] = scale[1] if fresh else max(self.largest[layer], scale[1])

    def attend(self, layer, position, query, exponents, group):
        """``(accumulators, sums)`` of the heads of a pass."""
        c = self.config
        accumulators, sums = [], []
        for head in range(group * c.attention_heads, (group + 1) * c.attention_heads):
            kv, q = head // c.group, query[head * c.head_dim : (head + 1) * c.head_dim]
            scores = []
            for t in range(position + 1):
                m_k, e_k = self.scales[layer, 0, kv, t]
                s18 = sum(a * b for a, b in zip(q, self.rows[layer, 0, kv, t], strict=True)) >> c.score_shift
                rs = clamp(-(c.score_shift + e_k + exponents[head] + 8), 0, 40)
                scores.append(clamp((s18 * m_k) >> rs, -(2**17 - 1), 2**17 - 1))
            acc, total = [0] * c.head_dim, 0
            for t, score in enumerate(scores):
                delta = max(scores) - score
                p = EXP_TABLE[delta & 255] >> (delta >> 8)
                total += p
                m_v, e_v = self.scales[layer, 1, kv, t]
                w = (((p * m_v) >> min(self.largest[layer] - e_v, 32)) + 2**15) >> 16
                acc = [a + w * v for a, v in zip(acc, self.rows[layer, 1, kv, t], strict=True)]
            accumulators += acc
            sums.append(total)
        return accumulators, sums

    def head(self, operand, embedding, scales=None):
        sums = [sum(a * b for a, b in zip(operand, row, strict=True)) for row in embedding]
        if scales:
            sums = [value * scale >> 16 for value, scale in zip(sums, scales, strict=True)]
        logits = [value >> self.config.logit_shift for value in sums]
        return sorted(enumerate(logits), key=lambda c: (-c[1], c[0]))[: self.config.top_k]


class Bench:
    """Drives the unit's ports and keeps a :class:`Model` beside it."""

    def __init__(self, config, embedding=None, head=None, scales=(None, None)):
        self.config, self.model = config, Model(config)
        self.embedding = embedding or [[0] * config.hidden for _ in range(config.vocab)]
        self.dut = AttentionUnit(config, self.words(self.embedding), head and self.words(head), scales)

    def words(self, rows):
        """Words of a ROM of rows."""
        words = []
        for row in rows:
            for c in range(0, self.config.hidden, self.config.array):
                words.append(sum((e & 255) << 8 * i for i, e in enumerate(row[c : c + self.config.array])))
        return words

    def run(self, script):
        """Runs ``await script(self)``."""

        async def bench(ctx):
            self.ctx = ctx
            await script(self)

        sim = Simulator(self.dut)
        sim.add_clock(1e-6)
        sim.add_testbench(bench)
        sim.run()

    async def strobe(self, enables, **fields):
        for name, value in fields.items():
            port = getattr(self.dut, name)
            for p, v in zip(port, value, strict=True) if isinstance(value, list) else [(port, value)]:
                self.ctx.set(p, v)
        for name in enables:
            self.ctx.set(getattr(self.dut, name), 1)
        await self.ctx.tick()
        for name in enables:
            self.ctx.set(getattr(self.dut, name), 0)

    async def operand(self, values):
        width = self.config.vector_width
        for i in range(0, len(values), width):
            await self.strobe(["op_en"], op_index=i // width, op_data=values[i : i + width])

    async def query(self, values, exponents):
        self.values, self.exponents = values, exponents
        for head, exponent in enumerate(exponents):
            await self.strobe(["eq_en"], eq_head=head, eq_exp=exponent)
        await self.operand(values)

    async def write(self, layer, position, head, is_v, row, scale):
        width = self.config.vector_width
        self.model.write(layer, position, head, is_v, row, scale)
        self.ctx.set(self.dut.layer, layer)
        self.ctx.set(self.dut.position, position)
        for i in range(0, len(row), width):  # the scale with the last word
            scales = ["vs_en" if is_v else "ks_en"] if i + width == len(row) else []
            await self.strobe(
                ["kv_en", *scales],
                kv_is_v=is_v,
                kv_head=head,
                kv_index=i // width,
                kv_data=row[i : i + width],
                sc_head=head,
                sc_m=scale[0],
                sc_e=scale[1],
            )

    async def token(self, layer, position, rows):
        """Writes ``rows[head]`` = ``(key, key_scale, value, value_scale)``."""
        for head, (key, key_scale, value, value_scale) in enumerate(rows):
            await self.write(layer, position, head, 0, key, key_scale)
            await self.write(layer, position, head, 1, value, value_scale)

    async def wait(self):
        cycles = 0
        while self.ctx.get(self.dut.busy):
            cycles += 1
            assert cycles < 5000, "busy does not fall"
            await self.ctx.tick()
        return cycles

    async def attend(self, group):
        """Starts at once, as the sequencer may after a write; ``(accumulators, sums)``."""
        width = self.config.vector_width
        position = self.ctx.get(self.dut.position)
        await self.strobe(["attend"], group=group)
        assert await self.wait() == attend_cycles(self.config, position)
        accumulators, sums = [], []
        for i in range(self.config.array // width):
            await self.strobe([], acc_addr=i, acc_en=1)
            accumulators += [self.ctx.get(p) for p in self.dut.acc_data]
        await self.strobe([], acc_en=0)
        assert not any(self.ctx.get(p) for p in self.dut.acc_data)
        for a in range(self.config.attention_heads):
            self.ctx.set(self.dut.sum_head, a)
            await self.ctx.delay(1e-9)
            sums.append(self.ctx.get(self.dut.sum))
        return accumulators, sums

    async def check(self, layer, position):
        self.ctx.set(self.dut.layer, layer)
        self.ctx.set(self.dut.position, position)
        await self.ctx.tick().repeat(2)
        assert self.ctx.get(self.dut.eref) == self.model.largest[layer]
        for group in range(self.config.head_groups):
            want = self.model.attend(layer, position, self.values, self.exponents, group)
            assert await self.attend(group) == want, f"layer {layer}, position {position}, group {group}"

    async def head(self):
        await self.strobe(["head"])
        assert await self.wait() == head_cycles(self.config)
        assert self.ctx.get(self.dut.top_count) == self.config.top_k
        out = []
        for i in range(self.config.top_k):
            self.ctx.set(self.dut.top_index, i)
            await self.ctx.tick()
            out.append((self.ctx.get(self.dut.top_token), self.ctx.get(self.dut.top_logit)))
        return out


def int8s(rng, n, limit=127):
    return [rng.randint(-limit, limit) for _ in range(n)]


def random_rows(rng, config, spread=3):
    """Rows of a token whose scores lie within a few units of each other."""
    return [
        (
            int8s(rng, config.head_dim),
            (rng.randint(2**15, 2**16 - 1), rng.randint(-spread, spread) - 20),
            int8s(rng, config.head_dim),
            (rng.randint(2**15, 2**16 - 1), rng.randint(-spread, spread) - 30),
        )
        for _ in range(config.kv_heads)
    ]


def near(config, log2_range=3):
    """Query exponent at which a full-scale score is about ``2^log2_range``, for key scales of about ``2^-4``."""
    return log2_range - (32767 * 127 * config.head_dim).bit_length() + 4


def queries(rng, config, exponent):
    return int8s(rng, config.hidden, 32767), [exponent + rng.randint(-2, 2) for _ in range(config.heads)]


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_and_positions_in_sequence(name):
    """All layers of every token to the full context, all passes; the layers and heads do not disturb each other."""
    config, rng = CONFIGS[name], random.Random(name)

    async def script(bench):
        for position in range(config.context):
            for layer in range(config.layers):
                await bench.token(layer, position, random_rows(rng, config))
                await bench.query(*queries(rng, config, near(config)))
                if position in (0, 1, 2, 7, config.context - 1):
                    await bench.check(layer, position)
        await bench.token(0, 0, random_rows(rng, config))  # a new sequence: the reference exponent starts anew
        await bench.check(0, 0)
        await bench.token(0, 1, random_rows(rng, config))
        await bench.check(0, 1)

    Bench(config).run(script)


def test_start_follows_the_write():
    """A start in the cycle after the last write of a key, a value, an operand sees them."""
    config, rng = SMALL, random.Random(5)

    async def script(bench):
        await bench.query(*queries(rng, config, near(config)))
        await bench.token(0, 0, random_rows(rng, config))
        for is_v in (0, 1):
            for _ in range(3):
                scale = (rng.randint(2**15, 2**16 - 1), -21 if is_v else -3)
                await bench.write(0, 0, config.kv_heads - 1, is_v, int8s(rng, 8), scale)
                got = await bench.attend(config.head_groups - 1)
                assert got == bench.model.attend(0, 0, bench.values, bench.exponents, config.head_groups - 1)
        bench.values = int8s(rng, config.hidden, 32767)
        await bench.operand(bench.values)
        got = await bench.attend(config.head_groups - 1)
        assert got == bench.model.attend(0, 0, bench.values, bench.exponents, config.head_groups - 1)

    Bench(config).run(script)


def sign(n):
    return [127 if i % 2 else -127 for i in range(n)]


def extreme_cases(dim, context):
    """name: (query of a head, its exponent, [(key, key scale, value, value scale)] by position)."""
    full, top = [127] * dim, (65535, -20)
    minus = [-127] * dim
    near = 3 - (32767 * 127 * dim).bit_length() + 4
    big = [32767] * dim
    zero = [0] * dim
    return {
        "all scores equal": (big, near, [(full, top, sign(dim), top)] * context),
        "largest sums": (big, near, [(full, top, full, top)] * context),
        "most negative sums": ([-32767] * dim, near, [(full, top, minus, top)] * context),
        "zero scales": (big, near, [(zero, ZERO, zero, ZERO)] * 3),
        "zero scales among others": (
            big,
            near,
            [
                (zero, ZERO, zero, ZERO),
                (full, top, full, top),
                (zero, ZERO, zero, ZERO),
                (minus, top, full, top),
                (zero, ZERO, full, top),
                (full, top, zero, ZERO),
            ],
        ),
        "zero value first": (
            big,
            near,
            [(full, top, zero, ZERO), (full, top, full, (40000, 300)), (full, top, full, (40000, -300))],
        ),
        "scores saturate": (big, 400, [(full, top, full, top), (minus, top, full, top), (zero, top, full, top)]),
        "score shift saturates": (big, -480, [(full, (65535, -500), full, top), (minus, (65535, -500), minus, top)]),
        "largest exponents": (
            big,
            2047,
            [(full, (65535, 511), full, (65535, 511)), (minus, (1 << 15, 511), full, (65535, -511))],
        ),
        "least exponents": (
            big,
            -2048,
            [(full, (65535, -511), full, (65535, -511)), (minus, ZERO, full, (65535, -511))],
        ),
        "the last alone counts": (
            big,
            near + 6,
            [(minus, top, full, top)] * (context - 1) + [(full, top, sign(dim), top)],
        ),
        "the first alone counts": (
            big,
            near + 6,
            [(full, top, sign(dim), top)] + [(minus, top, full, top)] * (context - 1),
        ),
        "rising": (big, near, [([8 * t] * dim, top, sign(dim), (65535, t - 25)) for t in range(context)]),
        "falling": (big, near, [([-8 * t] * dim, top, sign(dim), (32768, -t - 25)) for t in range(context)]),
    }


@pytest.mark.parametrize("name", extreme_cases(8, 16))
@pytest.mark.parametrize("heads", [1, 2])
def test_extremes(name, heads):
    config = SMALL.replace(attention_heads=heads)
    query, exponent, rows = extreme_cases(config.head_dim, config.context)[name]

    async def script(bench):
        await bench.query(query * config.heads, [exponent] * config.heads)
        for position, row in enumerate(rows):
            await bench.token(1, position, [row] * config.kv_heads)
            if position in (0, 2, len(rows) - 1):
                await bench.check(1, position)

    Bench(config).run(script)


def test_extremes_are_extreme():
    """The cases above reach what they name: clamped scores, vanished probabilities, the bounds of the accumulators."""
    cases = extreme_cases(8, 16)

    def outcome(name):
        query, exponent, rows = cases[name]
        model = Model(SMALL)
        for position, (key, key_scale, value, value_scale) in enumerate(rows):
            for head in range(SMALL.kv_heads):
                model.write(0, position, head, 0, key, key_scale)
                model.write(0, position, head, 1, value, value_scale)
        return model.attend(0, len(rows) - 1, query * SMALL.heads, [exponent] * SMALL.heads, 0)

    assert outcome("largest sums") == ([32767 * 127 * 16] * 8, [32767 * 16])
    assert outcome("most negative sums") == ([-32767 * 127 * 16] * 8, [32767 * 16])
    assert outcome("scores saturate")[1] == [32767]  # the others are 2^17 lower and vanish
    assert outcome("the last alone counts")[1] == outcome("the first alone counts")[1] == [32767]
    assert outcome("zero scales") == ([0] * 8, [32767 * 3])
    assert outcome("score shift saturates")[1] == [32767 + EXP_TABLE[1]]  # scores 0 and -1: shifts round down


@pytest.mark.parametrize("name", CONFIGS)
def test_head_and_embedding(name):
    """Logits and their order with ties, twice in sequence and after an attention; the embedding read beside it."""
    config, rng = CONFIGS[name], random.Random(name)
    embedding = [int8s(rng, config.hidden) for _ in range(config.vocab)]
    embedding[3] = embedding[7] = embedding[19] = [127] * config.hidden
    embedding[0] = embedding[5] = [-127] * config.hidden

    async def script(bench):
        ctx, dut = bench.ctx, bench.dut
        size = config.hidden
        for operand in ([32767] * size, [-32767] * size, int8s(rng, size, 32767), [0] * size):
            await bench.operand(operand)
            assert await bench.head() == bench.model.head(operand, embedding)
            await bench.query(*queries(rng, config, near(config)))
            await bench.token(0, 0, random_rows(rng, config))
            await bench.check(0, 0)
        words = config.hidden // config.vector_width
        for token in (0, config.vocab - 1, 4):
            ctx.set(dut.emb_token, token)
            await ctx.tick()
            got = []
            ctx.set(dut.emb_en, 1)
            for index in range(words + EMBEDDING_LATENCY):  # a new index every cycle
                ctx.set(dut.emb_index, min(index, words - 1))
                if index >= EMBEDDING_LATENCY:
                    got += [ctx.get(p) for p in dut.emb_data]
                await ctx.tick()
            assert got == embedding[token]

    Bench(config, embedding).run(script)


def test_a_wrong_byte_shows():
    """One bit of one cached byte changes the result: the comparison can fail."""
    config, rng = SMALL, random.Random(11)

    async def script(bench):
        await bench.query(*queries(rng, config, near(config, 0)))
        for position in range(4):
            await bench.token(0, position, random_rows(rng, config, spread=0))
        await bench.check(0, 3)
        cache = bench.dut.cache
        for is_v in (0, 1):
            word = cache.part_rams[0].data[
                is_v * config.layers * config.kv_heads * config.context + 2
            ]  # head 0, position 2
            good = bench.ctx.get(word)
            bench.ctx.set(word, good ^ 0x40)
            with pytest.raises(AssertionError, match="layer 0, position 3, group 0"):
                await bench.check(0, 3)
            bench.ctx.set(word, good)
        await bench.check(0, 3)

    Bench(config).run(script)


def test_converts_and_lints(tmp_path):
    """The Verilog passes Verilator's lint; only its warnings about unused bits and Amaranth's style are waived."""
    tools = find_tools()
    unit = AttentionUnit(CONFIGS["two heads"])
    ports = {"_".join(map(str, path)): (signal, None) for path, _, signal in unit.signature.flatten(unit)}
    text = verilog.convert(unit, name="attention", platform=VERILOG, ports=ports, emit_src=False)
    assert "intaglio_ram" in text and "intaglio_rom" in text
    files = {"attention.v": text, "intaglio_ram.v": RAM_VERILOG, "intaglio_rom.v": ROM_VERILOG}
    for file, content in files.items():
        (tmp_path / file).write_text(content)
    waived = ("UNUSEDSIGNAL", "PROCASSINIT", "WIDTHEXPAND", "WIDTHTRUNC", "CASEINCOMPLETE", "DECLFILENAME")
    arguments = ["--lint-only", "-Wall", *(f"-Wno-{w}" for w in waived), "--top-module", "attention", *files]
    result = subprocess.run(
        [tools.verilator, *arguments],
        cwd=tmp_path,
        env={**os.environ, **tools.environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("tied", [0, 1])
@pytest.mark.parametrize("name", ["two heads", "all heads at once"])
def test_head_with_scales_of_rows(name, tied):
    """A scale for each row of embedding and head, which may be the same; twice, with the scale of the embedding read between."""
    config, rng = CONFIGS[name].replace(row_scales=1, tied_head=tied), random.Random(name)
    embedding, head = ([int8s(rng, config.hidden) for _ in range(config.vocab)] for _ in range(2))
    scales = [[rng.choice((0, 1, 65535, rng.randint(0, 65535))) for _ in range(config.vocab)] for _ in range(2)]
    rows, own = (embedding, scales[0]) if tied else (head, scales[1])

    async def script(bench):
        for token in (3, config.vocab - 1):
            operand = int8s(rng, config.hidden, 32767)
            bench.ctx.set(bench.dut.emb_token, token)
            await bench.operand(operand)
            await bench.ctx.tick()
            assert bench.ctx.get(bench.dut.emb_scale) == scales[0][token]
            assert await bench.head() == bench.model.head(operand, rows, own)

    Bench(config, embedding, head, scales).run(script)
