"""Vector unit against the text of docs/numerics.md in Python integers: every operation, extremes, cycle counts."""

import functools
import operator
import random
import subprocess
from dataclasses import dataclass, field

import pytest
from amaranth.back import verilog
from amaranth.sim import Simulator

from intaglio.rtl.arithmetic.numerics import SINE_TABLE, normalise, rotary_increment, rotary_pair
from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.memory.rom import ROM_VERILOG
from intaglio.rtl.vector import pass_b
from intaglio.rtl.vector.unit import EMB_LATENCY, Destination, VectorOp, VectorUnit
from intaglio.sim.verilator.build import find_tools

BASE = DecoderConfig(
    hidden=32,
    intermediate=48,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    vocab=64,
    context=65535,
    lanes=4,
    lane_width=16,
    vector_width=4,
    attention_heads=2,
    embed_shift=8,
)
CONFIGS = {
    "v4": BASE,
    "v8_one_word_a_head": BASE.replace(vector_width=8, lanes=8, attention_heads=1, embed_shift=0),
    "v2": BASE.replace(vector_width=2, lanes=2, attention_heads=1, context=100),
}


# -- reference
def or_bits(values):
    return functools.reduce(operator.or_, (v ^ (v >> 63) for v in values), 0)


def shift_of(values):
    return max(0, or_bits(values).bit_length() - 17)


def clamp(x, limit):
    return max(-limit, min(limit, x))


def pass_b_of(t, segment_max, kind):
    """Quantised elements of one segment."""
    mm, en = normalise(segment_max)
    numerator, shift, limit = (127 << 26, 26, 127) if kind is VectorOp.NORM8 else (32767 << 18, 18, 32767)
    reciprocal = numerator // mm if segment_max else 0
    ts = [v >> en if en >= 0 else v << -en for v in t]
    assert all(-1 << 17 <= v < 1 << 17 for v in ts)
    return [clamp((v * reciprocal + (1 << (shift - 1))) >> shift, limit) for v in ts], ts, en


def norm(source, gains, kind):
    sh = shift_of(source)
    xs = [v >> sh for v in source]
    t = [v * g for v, g in zip(xs, gains, strict=True)]
    largest = max(map(abs, t))
    q, _, _ = pass_b_of(t, largest, kind)
    return sh, q, largest, sum(v * v for v in xs)


def rope(config, source, increments, position, mantissa):
    """``sh``, and per segment ``(quantised, maximum, en)``."""
    sh = shift_of(source)
    xs = [v >> sh for v in source]
    pairs = [rotary_pair(position * increment % 2**32) for increment in increments]
    result = []
    for head in range(config.heads + 2 * config.kv_heads):
        x = xs[head * config.head_dim : (head + 1) * config.head_dim]
        if head >= config.heads + config.kv_heads:
            t = [v << 14 for v in x]
        else:
            t = []
            for i, (cosine, sine) in enumerate(pairs):
                t += [x[2 * i] * cosine - x[2 * i + 1] * sine, x[2 * i + 1] * cosine + x[2 * i] * sine]
        largest = max(map(abs, t))
        q, ts, en = pass_b_of(t, largest, VectorOp.NORM8)
        if head < config.heads:
            q = [clamp((v * mantissa + (1 << 17)) >> 18, 32767) for v in ts]
        result.append((q, largest, en))
    return sh, result


def drain(acc, total):
    mm, es = normalise(total)
    reciprocal = ((1 << 33) - 1) // mm
    return [clamp(((v >> (es + 7)) * reciprocal + (1 << 16)) >> 17, (1 << 17) - 1) for v in acc]


# -- bench
@dataclass(kw_only=True)
class Outcome:
    """Written words ``(dest, index, head, first, en, elements)``, and what the unit shows once idle."""

    writes: list = field(default_factory=list)
    cycles: int = 0
    w_or: int = 0
    ss: int = 0
    maxima: list = field(default_factory=list)

    def elements(self, dest):
        return [v for w in self.writes if w[0] == dest for v in w[5]]


class Bench:
    """The unit with its memories, in Amaranth's simulator; ``run`` calls ``script(bench)``."""

    def __init__(self, config, gains=()):
        self.config = config
        width = config.vector_width
        words = [
            sum((g & 0xFFFF) << 16 * i for i, g in enumerate(gains[k : k + width])) for k in range(0, len(gains), width)
        ]
        self.increments = [rotary_increment(i, config.head_dim, 10000.0) for i in range(config.head_dim // 2)]
        self.dut = VectorUnit(config, words, self.increments, SINE_TABLE)

    def run(self, script):
        async def bench(ctx):
            self.ctx = ctx
            await script(self)

        sim = Simulator(self.dut)
        sim.add_clock(1e-6)
        sim.add_testbench(bench)
        sim.run()

    async def rotate_to(self, position):
        ctx, dut = self.ctx, self.dut
        ctx.set(dut.position, position)
        ctx.set(dut.rotary_start, 1)
        await ctx.tick()
        ctx.set(dut.rotary_start, 0)

    async def rotary_settled(self):
        while not self.ctx.get(self.dut.rotary_ready):
            await self.ctx.tick()

    async def operate(self, kind, *, x=(), r=(), emb=(), acc=(), sums=(), q_mantissa=0, **inputs):
        ctx, dut, width = self.ctx, self.dut, self.config.vector_width

        def drive(port, values, word, enable=1):
            for i, signal in enumerate(port):
                k = word * width + i
                ctx.set(signal, 0 if not enable else values[k] if k < len(values) else -1)

        ctx.set(dut.kind, kind)
        sampled = ("source", "gain_base", "words", "group", "embed_scale")  # at start; the shift a cycle later
        for name in sampled:
            ctx.set(getattr(dut, name), inputs.get(name, 1))
        ctx.set(dut.start, 1)
        ctx.set(dut.shift, 1)
        assert not ctx.get(dut.busy)
        await ctx.tick()
        ctx.set(dut.start, 0)
        for name in sampled:
            ctx.set(getattr(dut, name), 1)
        ctx.set(dut.shift, inputs.get("shift", 1))
        ctx.set(dut.kind, VectorOp.EMBED)
        ctx.set(dut.q_mantissa, q_mantissa)
        outcome, emb_words, a_busy = (
            Outcome(),
            [0] * (EMB_LATENCY - 1),
            kind in (VectorOp.NORM8, VectorOp.NORM16, VectorOp.ROPE),
        )
        while ctx.get(dut.busy):
            outcome.cycles += 1
            assert outcome.cycles < 500, "the unit must become idle"
            if a_busy and not ctx.get(dut.a_busy):
                a_busy = False
                outcome.ss, outcome.maxima = ctx.get(dut.ss), self.maxima()
            else:
                assert a_busy == ctx.get(dut.a_busy)
            if ctx.get(dut.w_en):
                outcome.writes.append(
                    (
                        ctx.get(dut.w_dest),
                        ctx.get(dut.w_index),
                        ctx.get(dut.w_head),
                        ctx.get(dut.w_first),
                        ctx.get(dut.w_en_shift),
                        [ctx.get(s) for s in dut.w_data],
                    )
                )
            head = ctx.get(dut.sum_head)
            ctx.set(dut.sum_value, sums[head] if head < len(sums) else 0)
            src, emb_next, accumulator = ctx.get(dut.src_addr), ctx.get(dut.emb_index), ctx.get(dut.acc_addr)
            acc_en, emb_en = ctx.get(dut.acc_en), ctx.get(dut.emb_en)
            await ctx.tick()
            ctx.set(dut.shift, 1)
            drive(dut.x_data, x, src)
            drive(dut.r_data, r, src)
            drive(dut.acc_data, acc, accumulator, acc_en)
            drive(dut.emb_data, emb, emb_words.pop(0), emb_en)
            emb_words.append(emb_next)
        assert not a_busy and not ctx.get(dut.w_en)
        if kind in (VectorOp.NORM8, VectorOp.NORM16, VectorOp.ROPE):
            assert (outcome.ss, outcome.maxima) == (ctx.get(dut.ss), self.maxima())
        outcome.w_or = ctx.get(dut.w_or)
        assert outcome.w_or == or_bits(v for w in outcome.writes for v in w[5])
        await ctx.tick()
        return outcome

    def maxima(self):
        values = []
        for segment in range(self.config.heads + 2 * self.config.kv_heads):
            self.ctx.set(self.dut.m_segment, segment)
            values.append(self.ctx.get(self.dut.m_value))
        return values

    async def check_norm(self, kind, source, gains, base, results):
        width = self.config.vector_width
        sh, q, largest, ss = norm(source, gains, kind)
        words = len(source) // width
        out = await self.operate(
            kind,
            **({"r": source} if results else {"x": source}),
            source=int(results),
            shift=sh,
            words=words,
            gain_base=base,
        )
        dest = Destination.A8 if kind is VectorOp.NORM8 else Destination.OPERAND
        assert out.elements(dest) == q
        assert [w[1] for w in out.writes] == list(range(words))
        assert [w[3] for w in out.writes] == [1] + [0] * (words - 1)
        assert (out.maxima[0], out.ss) == (largest, ss)
        assert out.cycles == VectorUnit.cycles(self.config, kind, words) <= 2 * words + 24

    async def check_rope(self, source, position, mantissa):
        config, width = self.config, self.config.vector_width
        sh, segments = rope(config, source, self.increments, position, mantissa)
        out = await self.operate(VectorOp.ROPE, r=source, shift=sh, q_mantissa=mantissa)
        expected = []
        for i, (q, _, en) in enumerate(segments):
            for word in range(config.head_dim // width):
                if i < config.heads:
                    dest, index, head = Destination.OPERAND, i * config.head_dim // width + word, i
                else:
                    key = i < config.heads + config.kv_heads
                    dest, index = Destination.KEY if key else Destination.VALUE, word
                    head = i - config.heads if key else i - config.heads - config.kv_heads
                expected.append((dest, index, head, int(word == 0), en, q[word * width : (word + 1) * width]))
        assert out.writes == expected
        assert out.maxima == [largest for _, largest, _ in segments]
        return out


def vectors(rng, size, bits):
    """Sources of signed ``bits``: random of all sizes, and extremes."""
    low, high = -1 << bits - 1, (1 << bits - 1) - 1
    yield [0] * size
    yield [0] * (size - 1) + [low]
    yield [high] + [0] * (size - 1)
    yield [rng.choice((low, high)) for _ in range(size)]
    yield [rng.choice((-1, 0, 1)) for _ in range(size)]
    yield [0] * (size // 2) + [1] + [0] * (size - size // 2 - 1)
    for magnitude in range(1, bits):  # every shift
        yield [rng.randint(-1 << magnitude, (1 << magnitude) - 1) for _ in range(size)]
    yield [low] + [rng.randint(-9, 9) for _ in range(size - 1)]


@pytest.mark.parametrize("name", CONFIGS)
def test_norm(name):
    config = CONFIGS[name]
    rng = random.Random(name)
    width, words = config.vector_width, config.gain_words
    gains = [
        rng.choice((rng.randint(-32767, 32767), rng.randint(-40, 40), 32767, -32767, 0)) for _ in range(words * width)
    ]
    gains[: config.hidden] = [1] * config.hidden  # small maxima: shifts to the left
    bench = Bench(config, gains)

    async def script(bench):
        for results, bits, size in ((False, 32, config.hidden), (True, config.result_bits, config.intermediate)):
            for i, source in enumerate(vectors(rng, size, bits)):
                base = rng.choice((0, words - size // width, rng.randint(0, words - size // width)))
                chosen = gains[base * width : base * width + size]
                await bench.check_norm((VectorOp.NORM8, VectorOp.NORM16)[i % 2], source, chosen, base, results)
        await bench.check_norm(VectorOp.NORM8, [5] * width, gains[-width:], words - 1, False)  # one word

    bench.run(script)


@pytest.mark.parametrize("name", CONFIGS)
def test_rope(name):
    config = CONFIGS[name]
    rng = random.Random(name)

    async def script(bench):
        bits = config.accumulator_bits
        for position in (0, 1, config.context - 1, rng.randrange(config.context)):
            await bench.rotate_to(position)
            await bench.rotary_settled()
            sources = list(vectors(rng, config.qkv_rows, bits))
            for source in sources[:6] + rng.sample(sources[6:], 6):
                mantissa = rng.choice((0, 32768, 65535, rng.randint(32768, 65535)))
                out = await bench.check_rope(source, position, mantissa)
                assert (
                    out.cycles
                    == VectorUnit.cycles(config, VectorOp.ROPE)
                    <= 2 * config.qkv_rows // config.vector_width + 24
                )
        for head in range(config.heads + 2 * config.kv_heads):  # one head zero, next to a large one
            source = [rng.randint(-1 << 17, (1 << 17) - 1) for _ in range(config.qkv_rows)]
            source[head * config.head_dim : (head + 1) * config.head_dim] = [0] * config.head_dim
            await bench.check_rope(source, position, 40000)
        await bench.check_rope([rng.choice((-1 << 17, (1 << 17) - 1)) for _ in range(config.qkv_rows)], position, 65535)
        await bench.rotate_to(3)  # not ready yet: the operation waits
        await bench.check_rope([rng.randint(-5000, 5000) for _ in range(config.qkv_rows)], 3, 50000)

    Bench(config).run(script)


@pytest.mark.parametrize("name", CONFIGS)
def test_embed(name):
    config = CONFIGS[name]
    rng = random.Random(name)

    async def script(bench):
        for scale in (0, 1, 131071, 65536, rng.randrange(1 << 17)):
            emb = [rng.choice((-128, 127, 0, rng.randint(-128, 127))) for _ in range(config.hidden)]
            words = config.hidden // config.vector_width
            out = await bench.operate(VectorOp.EMBED, emb=emb, words=words, embed_scale=scale)
            half = 1 << config.embed_shift >> 1
            assert out.elements(Destination.RESIDUAL) == [(e * scale + half) >> config.embed_shift for e in emb]
            assert [w[1] for w in out.writes] == list(range(words))
            assert out.cycles == VectorUnit.cycles(config, VectorOp.EMBED, words) <= words + 8

    Bench(config).run(script)


@pytest.mark.parametrize("name", CONFIGS)
def test_drain(name):
    config = CONFIGS[name]
    rng = random.Random(name)
    largest = 32767 * config.context

    async def script(bench):
        sums = [32767, 32768, 65535, 65536, 131071, 131072, largest, largest - 1]
        sums += [min(largest, 1 << k) for k in range(15, 31)] + [rng.randint(32767, largest) for _ in range(10)]
        for total in sums:
            totals = [total, rng.randint(32767, largest)][: config.attention_heads]
            rng.shuffle(totals)
            acc = []
            for t in totals:
                limit = 127 * t
                acc += [
                    rng.choice((-limit, limit, 0, -1, 1, rng.randint(-limit, limit))) for _ in range(config.head_dim)
                ]
            group = rng.randrange(config.head_groups)
            words = config.array // config.vector_width
            out = await bench.operate(VectorOp.DRAIN, acc=acc, sums=totals, group=group)
            expected = [
                v for i, t in enumerate(totals) for v in drain(acc[i * config.head_dim : (i + 1) * config.head_dim], t)
            ]
            assert out.elements(Destination.RESULT) == expected
            assert [w[1] for w in out.writes] == [group * words + i for i in range(words)]
            assert out.cycles == VectorUnit.cycles(config, VectorOp.DRAIN) <= words + 18

    Bench(config).run(script)


def test_cycles_of_wide_units():
    for width in (16, 32):
        config = BASE.replace(hidden=512, intermediate=1536, heads=8, head_dim=64, lane_width=64, vector_width=width)
        words = config.hidden // width
        assert VectorUnit.cycles(config, VectorOp.NORM8, words) <= 2 * words + 24
        assert VectorUnit.cycles(config, VectorOp.ROPE) <= 2 * config.qkv_rows // width + 24
        assert VectorUnit.cycles(config, VectorOp.DRAIN) <= config.array // width + 18
        assert VectorUnit.cycles(config, VectorOp.EMBED, words) <= words + 8


@pytest.mark.parametrize("width", [16, 32])
def test_wide_units(width):
    """Trees of several stages: the largest element in any lane."""
    size = 4 * width
    config = BASE.replace(hidden=size, intermediate=size, head_dim=width, lane_width=width, vector_width=width)
    rng = random.Random(width)
    gains = [rng.randint(-32767, 32767) for _ in range(config.gain_words * width)]

    async def script(bench):
        for lane in rng.sample(range(width), 12):
            source = [rng.randint(-9, 9) for _ in range(size)]
            source[lane + width * rng.randrange(4)] = rng.choice((-1, 1)) * rng.randint(1 << 20, 1 << 30)
            await bench.check_norm(VectorOp.NORM8, source, gains[:size], 0, False)

    Bench(config, gains).run(script)


@pytest.mark.parametrize("constant", ["INT8_SHIFT", "DRAIN_SHIFT", "INT8_MAX"])
def test_the_bench_detects_a_wrong_constant(constant, monkeypatch):
    monkeypatch.setattr(pass_b, constant, getattr(pass_b, constant) >> 1)
    for test in (test_norm, test_drain):
        if (constant == "DRAIN_SHIFT") == (test is test_drain):
            with pytest.raises(AssertionError):
                test("v4")


def test_the_bench_detects_a_wrong_shift():
    async def script(bench):
        source = [random.Random(1).randint(-1 << 25, 1 << 25) for _ in range(32)]
        sh, q, *_ = norm(source, [77] * 32, VectorOp.NORM8)
        for error in (-1, 0, 1):
            out = await bench.operate(VectorOp.NORM8, x=source, source=0, shift=sh + error, words=8, gain_base=0)
            assert (out.ss == norm(source, [77] * 32, VectorOp.NORM8)[3] and out.elements(Destination.A8) == q) == (
                error == 0
            )

    Bench(BASE, [77] * 32).run(script)


def test_verilog_is_clean(tmp_path):
    """Verilator's lint, but for the style of Amaranth's output."""
    tools = find_tools()
    (tmp_path / "vector.v").write_text(verilog.convert(VectorUnit(BASE), name="vector", emit_src=False))
    (tmp_path / "rom.v").write_text(ROM_VERILOG)
    rules = ("CASEINCOMPLETE", "DECLFILENAME", "PROCASSINIT", "UNUSEDSIGNAL", "WIDTHEXPAND", "WIDTHTRUNC")
    waived = [f"-Wno-{rule}" for rule in rules]
    result = subprocess.run(
        [tools.verilator, "--lint-only", "-Wall", *waived, "--top-module", "vector", "vector.v", "rom.v"],
        cwd=tmp_path,
        env={"VERILATOR_ROOT": str(tools.root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
