"""Ternary linear unit against numpy, bit for bit: packing, dot product, the three modes, its cycles."""

import itertools

import numpy as np
import pytest
from amaranth.back import verilog
from amaranth.sim import Simulator

from intaglio.rtl.arithmetic.silu import SILU_BITS
from intaglio.rtl.config.decoder import word_bits
from intaglio.rtl.ternary import packing
from intaglio.rtl.ternary.adders import AdderDot
from intaglio.rtl.ternary.lane import lane_designs
from intaglio.rtl.ternary.linear import LinearUnit, PostMode
from intaglio.rtl.ternary.tree import BitPlanes, TernaryDot
from tests.rtl.ternary.linear_bench import Bench, layer, make_config, run

# -- packing


@pytest.mark.parametrize("name", ["2bit", "5trit"])
@pytest.mark.parametrize("lane_width", [8, 13, 40, 64])
def test_pack_round_trip(name, lane_width):
    weights = np.random.default_rng(1).integers(-1, 2, (50, lane_width)).astype(np.int8)
    words = packing.pack(weights, name)
    assert words.shape == (50, -(-word_bits(name, lane_width) // 8))
    assert np.array_equal(packing.unpack(words, name, lane_width), weights)


@pytest.mark.parametrize("lane_width", [2, 6, 14, 64, 96])
def test_pairs_round_trip(lane_width):
    weights = np.random.default_rng(1).integers(-1, 2, (50, lane_width)).astype(np.int8)
    weights[0] = 0
    words = packing.pack(weights, "pairs")
    assert words.shape == (50, -(-word_bits("pairs", lane_width) // 8))
    assert np.array_equal(packing.unpack(words, "pairs", lane_width), weights)


def test_all_codes_in_hardware():
    groups = np.array(list(itertools.product((-1, 0, 1), repeat=5)), np.int8)
    words = packing.pack_ints(groups, "5trit")
    assert len(set(words)) == 243
    dut = packing.Unpack("5trit", 5)

    async def bench(ctx):
        for word, group in zip(words, groups, strict=True):
            ctx.set(dut.word, word)
            plus, minus = ctx.get(dut.plus), ctx.get(dut.minus)
            assert [(plus >> k & 1) - (minus >> k & 1) for k in range(5)] == group.tolist()
            assert plus & minus == 0

    sim = Simulator(dut)
    sim.add_testbench(bench)
    sim.run()


def test_pack_refuses():
    with pytest.raises(ValueError, match=r"weights must be in -1, 0, 1, not in 0..2"):
        packing.pack(np.array([[0, 2]], np.int8), "2bit")
    with pytest.raises(ValueError, match="packing must be one of 2bit, 5trit, pairs, not '3bit'"):
        packing.pack(np.zeros((1, 4), np.int8), "3bit")
    with pytest.raises(ValueError, match="2-bit code must be"):
        packing.unpack(np.array([[0b0101]], np.uint8), "2bit", 2)
    with pytest.raises(ValueError, match="5-trit code"):
        unused = next(c for c in range(256) if c not in packing.CODE_OF_TRITS)
        packing.unpack(np.array([[unused]], np.uint8), "5trit", 5)
    with pytest.raises(
        ValueError, match="lane_width must be even where packing is pairs, not 3; 2bit and 5trit take any"
    ):
        packing.pack(np.zeros((1, 3), np.int8), "pairs")
    for code in (0b0101, 0b0110, 0b1100):
        with pytest.raises(ValueError, match="pair of zeros must have no other bit"):
            packing.unpack(np.array([[code]], np.uint8), "pairs", 2)
    with pytest.raises(ValueError, match="rows a multiple of lanes = 4 .* not 6 x 8"):
        packing.execution_order(np.zeros((6, 8)), 4, 8)


def test_execution_order():
    weight = np.arange(8 * 12).reshape(8, 12)
    ordered = packing.execution_order(weight, 2, 4)
    for lane, group, chunk in itertools.product(range(2), range(4), range(3)):
        assert np.array_equal(ordered[lane, group * 3 + chunk], weight[group * 2 + lane, chunk * 4 : chunk * 4 + 4])


# -- dot product


def planes_of(x):
    """The eight bit planes of int8 ``x`` as integers."""
    bits = x.astype(np.uint8)[None] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return [sum(int(bit) << i for i, bit in enumerate(row)) for row in bits]


def set_masks(ctx, dut):
    for port, mask in zip(dut.masks, dut.MASKS, strict=True):
        ctx.set(port, mask)


@pytest.mark.parametrize("kind", [TernaryDot, AdderDot])
@pytest.mark.parametrize("width", [1, 8, 16, 24, 64, 72, 200])
def test_dot_is_exact(width, kind):
    rng = np.random.default_rng(width)
    cases = [(np.full(width, x), np.full(width, w)) for x in (127, -127, -128, -1, 0) for w in (1, -1, 0)]
    cases += [(rng.integers(-128, 128, width), rng.integers(-1, 2, width)) for _ in range(25)]
    dut = kind(width)
    seen = []

    async def bench(ctx):
        set_masks(ctx, dut)
        for x, w in cases + cases[: dut.LATENCY]:
            for b, plane in enumerate(planes_of(x)):
                ctx.set(dut.x[b], plane)
            ctx.set(dut.plus, planes_of(w == 1)[0])
            ctx.set(dut.minus, planes_of(w == -1)[0])
            await ctx.tick()
            seen.append(ctx.get(dut.sum))

    run(dut, bench)
    assert seen[dut.LATENCY - 1 :][: len(cases)] == [int(x @ w) for x, w in cases]


@pytest.mark.parametrize("width", [4, 8, 20, 64])
def test_bit_planes(width):
    x = np.random.default_rng(3).integers(-128, 128, width)
    dut = BitPlanes(width)

    async def bench(ctx):
        set_masks(ctx, dut)
        ctx.set(dut.data, int.from_bytes(x.astype(np.int8).tobytes(), "little"))
        assert [ctx.get(plane) for plane in dut.x] == planes_of(x)

    sim = Simulator(dut)
    sim.add_testbench(bench)
    sim.run()


# -- linear unit


NO_SCALE = (0, 0)


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(packing="5trit"),
        dict(lanes=8, lane_width=8, packing="5trit"),
        dict(lanes=4, lane_width=8),
        dict(hidden=64, kv_heads=4, head_dim=16, intermediate=192, lanes=8, lane_width=64),
        dict(activation="silu"),
        dict(activation="silu", lanes=8, lane_width=8, packing="5trit"),
        dict(batch=3),
        dict(batch=3, lanes=8, dot="adders", packing="5trit"),
        dict(batch=3, activation="silu", lanes=4),
        dict(dot="tables", packing="pairs", batch=2),
        dict(dot="tables", lanes=4, lane_width=8, packing="5trit"),
        dict(
            dot="tables",
            hidden=64,
            kv_heads=4,
            head_dim=16,
            intermediate=192,
            lanes=8,
            lane_width=64,
            activation="silu",
        ),
    ],
)
def test_layer_in_every_mode(changes):
    """Every slot has activations, residual and scales of its own."""
    config = make_config(**changes)
    rng = np.random.default_rng(7)
    matrices, modes = layer(config, rng)
    bench = Bench(config, matrices)

    async def testbench(ctx):
        for slot in bench.slots:
            slot.x = [int(v) for v in rng.integers(-(2**31), 2**31, config.hidden)]
        for _token in range(2):
            for k, (matrix, mode) in enumerate(zip(matrices, modes, strict=True)):
                for slot in bench.slots:
                    slot.a = rng.integers(-127, 128, len(slot.a))
                scales = [(int(rng.integers(2**15, 2**16)), -int(rng.integers(17, 45))) for _ in bench.slots]
                await bench.run(ctx, matrix, mode, scales, restart=k == 0)

    run(bench.dut, testbench)


@pytest.mark.parametrize("name, dot, batch", [("2bit", "planes", 1), ("5trit", "adders", 3), ("pairs", "tables", 2)])
def test_extremes(name, dot, batch):
    """Accumulators, gated products and the residual at their bounds; every shift, and exponents beyond its limits.

    Every slot is at another bound."""
    config = make_config(packing=name, dot=dot, batch=batch)
    matrices, modes = layer(config, np.random.default_rng(0))
    for matrix in matrices:
        matrix[:] = 1
        matrix[1::4] = -1
    bench = Bench(config, matrices)

    async def testbench(ctx):
        for sign in (1, -1):
            for s, slot in enumerate(bench.slots):
                slot.a = np.full(len(slot.a), (127, -127, 0)[s] * sign)
            for k, (matrix, mode) in enumerate(zip(matrices, modes, strict=True)):
                for s, slot in enumerate(bench.slots):
                    bounds = [2**31 - 1, -(2**31), 5, -5]
                    slot.x = (bounds[s:] + bounds[:s]) * (config.hidden // 4)
                await bench.run(ctx, matrix, mode, [(65535 - s, -17) for s in range(batch)], restart=k == 0)
            if sign == 1:
                assert max(abs(v) for v in bench.slots[0].r[: config.intermediate]) == (127 * config.hidden) ** 3
        matrix = matrices[0][: config.hidden]
        exponents = [511, 0, -15, -16, -17, -18] + list(range(-58, -19, 3)) + [-55, -56, -57, -512]
        for i in range(len(exponents)):
            for s, slot in enumerate(bench.slots):
                slot.a = np.arange(len(slot.a)) - 20 + s
                slot.x = list(range(-config.hidden, config.hidden, 2))
            scales = [(40001 + s, exponents[(i + s) % len(exponents)]) for s in range(batch)]
            await bench.run(ctx, matrix, PostMode.RESIDUAL, scales, restart=True)

    run(bench.dut, testbench)


@pytest.mark.parametrize("batch", [1, 3])
def test_extremes_of_silu(batch):
    """The gated product at its bounds, arguments beyond theirs, and every shift."""
    config = make_config(activation="silu", batch=batch)
    matrix = np.ones((2 * config.intermediate, config.hidden), np.int8)
    matrix[1::4] = -1
    matrix[2::8, ::2] = 0
    bench = Bench(config, [matrix])

    async def testbench(ctx):
        exponents = [511, 0, -15, -16, -17, -18, *range(-58, -19, 6), -512]
        for i in range(len(exponents)):
            scales = [(65535, exponents[(i + s) % len(exponents)]) for s in range(batch)]
            for slot, (_, e) in zip(bench.slots, scales, strict=True):
                slot.a = np.full(len(slot.a), 127 if e % 2 else -127)
            await bench.run(ctx, matrix, PostMode.GATED, scales, restart=True)
            if scales[0][1] == -17:
                most = 127 * config.hidden * ((1 << (SILU_BITS - 1)) - 1)
                assert max(abs(v) for v in bench.slots[0].r[: config.intermediate]) == most

    run(bench.dut, testbench)


@pytest.mark.parametrize("batch", [1, 2])
def test_one_chunk_and_one_group(batch):
    """Rows of one chunk leave without a bubble; a single group works."""
    config = make_config(lane_width=8, lanes=8, packing="5trit", batch=batch)
    weight = np.random.default_rng(2).integers(-1, 2, (config.qkv_rows, 8)).astype(np.int8)
    bench = Bench(config, [weight])

    async def testbench(ctx):
        for s, slot in enumerate(bench.slots):
            slot.a = np.arange(len(slot.a)) * 5 - 100 + s
        await bench.run(ctx, weight, PostMode.RAW, [NO_SCALE] * batch, restart=True)
        await bench.run(ctx, weight[:8], PostMode.RAW, [NO_SCALE] * batch, restart=True)

    run(bench.dut, testbench)


def test_start_is_ignored_while_busy():
    config = make_config()
    dut = LinearUnit(config, [[0]] * config.lanes)
    cycles = 0

    async def testbench(ctx):
        nonlocal cycles
        for name, value in dict(start=1, groups=2, chunks=2).items():
            ctx.set(getattr(dut, name), value)
        await ctx.tick()
        for _ in range(5):
            assert ctx.get(dut.busy)
            cycles += 1
            await ctx.tick()
        ctx.set(dut.start, 0)
        while ctx.get(dut.busy):
            cycles += 1
            await ctx.tick()

    run(dut, testbench)
    assert cycles == 4 + LinearUnit.FILL


def test_a_flipped_weight_is_seen():
    config = make_config(batch=2)
    rng = np.random.default_rng(9)
    matrices, modes = layer(config, rng)
    bench = Bench(config, matrices, flip=(1, 3, 5))
    for slot in bench.slots:
        slot.a = rng.integers(1, 128, len(slot.a))

    async def testbench(ctx):
        await bench.operate(ctx, matrices[0], modes[0], [NO_SCALE] * 2, restart=True)
        with pytest.raises(AssertionError):
            bench.check(ctx, matrices[0], modes[0], [NO_SCALE] * 2)
        for slot in bench.slots:
            values = bench.expect(slot, matrices[0], modes[0], NO_SCALE)[1]
            assert [i for i, v in enumerate(values) if slot.r[i] != v] == [3]  # word 3 of lane 1 is in row 3

    run(bench.dut, testbench)


@pytest.mark.parametrize("name", ["act_data", "scale_m", "scale_e", "x_rd_data"])
def test_a_slot_that_takes_what_is_slot_0_s_is_seen(name):
    config = make_config(batch=2)
    rng = np.random.default_rng(11)
    matrix = rng.integers(-1, 2, (config.hidden, config.hidden)).astype(np.int8)
    bench = Bench(config, [matrix])
    for slot in bench.slots:
        slot.a = rng.integers(-127, 128, len(slot.a))
        slot.x = [int(v) for v in rng.integers(-(2**31), 2**31, config.hidden)]
    own, elaborate = getattr(bench.dut, name), bench.dut.elaborate

    def wrong(platform):
        setattr(bench.dut, name, [own[0], own[0]])
        module = elaborate(platform)
        setattr(bench.dut, name, own)
        return module

    bench.dut.elaborate = wrong

    async def testbench(ctx):
        with pytest.raises(AssertionError, match="slot 1"):
            await bench.run(ctx, matrix, PostMode.RESIDUAL, [(50000, -20), (40000, -21)], restart=True)

    run(bench.dut, testbench)


def test_lane_designs_have_the_ports_of_the_instances():
    texts = {
        name: verilog.convert(design, name=name, ports=ports)
        for name, design, ports in lane_designs(make_config(batch=2))
    }
    for port in ("clk", "word", "enable", "first", "sum0", "sum1", *(f"x{s}_{b}" for s in range(2) for b in range(8))):
        assert f" {port};" in texts["intaglio_lane"]
    assert " rst;" not in texts["intaglio_lane"]
    assert " data;" in texts["intaglio_planes"]
