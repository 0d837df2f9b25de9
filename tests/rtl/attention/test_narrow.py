"""The attention unit against docs/numerics.md in Python integers: values, extremes, cycle counts, and a wrong byte shows."""

import os
import random
import subprocess

import pytest
from amaranth.back import verilog

from intaglio.gen.emit.verilog import VERILOG
from intaglio.gen.tools import find_tools
from intaglio.rtl.arithmetic.numerics import EXP_TABLE
from intaglio.rtl.attention.narrow import EMBEDDING_LATENCY, AttentionUnit
from intaglio.rtl.memory.ram import RAM_VERILOG
from intaglio.rtl.memory.rom import ROM_VERILOG
from tests.rtl.attention.narrow_bench import CONFIGS, SMALL, ZERO, Bench, Model, int8s, near, queries, random_rows


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
            with pytest.raises(AssertionError, match="sequence 0, layer 0, position 3, group 0"):
                await bench.check(0, 3)
            bench.ctx.set(word, good)
        await bench.check(0, 3)

    Bench(config).run(script)


@pytest.mark.parametrize("changes", [{}, {"sequences": 3, "batch": 2}])
def test_converts_and_lints(changes, tmp_path):
    """The Verilog passes Verilator's lint; only its warnings about unused bits and Amaranth's style are waived."""
    tools = find_tools()
    unit = AttentionUnit(CONFIGS["two heads"].replace(**changes))
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
