"""Ternary linear unit against numpy, bit for bit: packing, dot product, the three modes, its cycles."""

import itertools

import numpy as np
import pytest
from amaranth.back import verilog
from amaranth.sim import Simulator

from intaglio.rtl.arithmetic.silu import SILU_BITS, SILU_FRACTION, silu
from intaglio.rtl.config.decoder import DecoderConfig, word_bits
from intaglio.rtl.ternary import packing
from intaglio.rtl.ternary.adders import AdderDot
from intaglio.rtl.ternary.lane import lane_designs
from intaglio.rtl.ternary.linear import LinearUnit, PostMode
from intaglio.rtl.ternary.tree import BitPlanes, TernaryDot


def make_config(**changes):
    fields = dict(
        hidden=32,
        intermediate=48,
        layers=1,
        heads=4,
        kv_heads=2,
        head_dim=8,
        vocab=16,
        context=4,
        lanes=2,
        lane_width=16,
        vector_width=8,
    )
    return DecoderConfig(**(fields | changes))


def run(dut, bench):
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


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


def split(word, count, bits):
    values = [(word >> (i * bits)) & ((1 << bits) - 1) for i in range(count)]
    return [v - (1 << bits) if v >> (bits - 1) else v for v in values]


def join(values, bits):
    return sum((int(v) & ((1 << bits) - 1)) << (i * bits) for i, v in enumerate(values))


class Bench:
    """The unit with buffers A, X, R; runs operations in order and checks values, magnitudes, cycles."""

    def __init__(self, config, matrices, flip=None):
        self.config = config
        words = np.concatenate([packing.execution_order(w, config.lanes, config.lane_width) for w in matrices], axis=1)
        if flip is not None:
            words[flip] = (words[flip] + 2) % 3 - 1  # another ternary value
        init = [packing.pack_ints(lane, config.packing) for lane in words]
        self.dut = LinearUnit(config, init)
        self.x = [0] * config.hidden
        self.r = [None] * max(config.qkv_rows, config.intermediate)
        self.a = np.zeros(max(config.hidden, config.intermediate), np.int64)
        self.written = []

    async def operate(self, ctx, rows, inputs, mode, scale=(0, 0), restart=False):
        """One operation; returns its busy cycles."""
        dut, config = self.dut, self.config
        width, lanes = config.vector_width, config.lanes
        self.written = []
        for name, value in dict(
            start=1,
            restart=restart,
            groups=rows // lanes,
            chunks=inputs // config.lane_width,
            mode=mode,
            scale_m=scale[0],
            scale_e=scale[1],
        ).items():
            ctx.set(getattr(dut, name), value)
        cycles = 0
        while True:
            # Buffers: read the old word, then write, at the coming edge.
            act = ctx.get(dut.act_addr) * config.lane_width
            x_at = ctx.get(dut.x_rd_addr) * width
            act_word = join(self.a[act : act + config.lane_width], 8)
            x_word = join(self.x[x_at : x_at + width], 32)
            for name, target, bits, granule in (
                ("x", self.x, 32, lanes),
                ("r", self.r, config.result_bits, lanes // 2),
            ):
                enable = ctx.get(getattr(dut, f"{name}_wr_en"))
                at = ctx.get(getattr(dut, f"{name}_wr_addr")) * width
                values = split(ctx.get(getattr(dut, f"{name}_wr_data")), lanes, bits) * (width // lanes)
                for i in range(width):
                    if enable >> (i // granule) & 1:
                        target[at + i] = values[i]
                        self.written.append((name, at + i))
            await ctx.tick()
            ctx.set(dut.start, 0)
            ctx.set(dut.restart, 0)
            ctx.set(dut.act_data, act_word)
            ctx.set(dut.x_rd_data, x_word)
            if not ctx.get(dut.busy):
                break
            cycles += 1
            assert cycles < 20000
        assert cycles == rows // lanes * (inputs // config.lane_width) + LinearUnit.fill(config, mode)
        return cycles


def magnitude(values):
    result = 0
    for value in values:
        result |= value ^ (value >> 80)
    return result


def residual(x, acc, m, e):
    rs = min(max(-(e + 16), 1), 40)
    return min(max(x + ((acc * m + (1 << (rs - 1))) >> rs), -(2**31)), 2**31 - 1)


def gate_argument(acc, m, e):
    rs = min(max(-(e + SILU_FRACTION), 1), 40)
    most = 1 << (SILU_BITS - 1)
    return min(max((acc * m + (1 << (rs - 1))) >> rs, -most), most - 1)


def expect(bench, matrix, mode, scale, x_before):
    """Expected (buffer, values) of an operation."""
    acc = [int(v) for v in matrix.astype(np.int64) @ bench.a[: matrix.shape[1]]]
    if mode == PostMode.RAW:
        return "r", acc
    if mode == PostMode.GATED and bench.config.activation == "silu":
        return "r", [silu(gate_argument(gate, *scale)) * up for gate, up in zip(acc[::2], acc[1::2], strict=True)]
    if mode == PostMode.GATED:
        return "r", [max(gate, 0) ** 2 * up for gate, up in zip(acc[::2], acc[1::2], strict=True)]
    return "x", [residual(x, a, *scale) for x, a in zip(x_before, acc, strict=True)]


def check(bench, matrix, mode, scale, x_before, ctx):
    name, values = expect(bench, matrix, mode, scale, x_before)
    target = bench.x if name == "x" else bench.r
    assert target[: len(values)] == values
    assert sorted(bench.written) == [(name, i) for i in range(len(values))]
    assert ctx.get(bench.dut.x_or) == (magnitude(values) if name == "x" else 0)
    assert ctx.get(bench.dut.r_or) == (magnitude(values) if name == "r" else 0)


def layer(config, rng):
    """The four matrices of a layer, in order, with their modes; gate and up rows interleaved."""
    shapes = [
        (config.qkv_rows, config.hidden),
        (config.hidden, config.hidden),
        (2 * config.intermediate, config.hidden),
        (config.hidden, config.intermediate),
    ]
    modes = (PostMode.RAW, PostMode.RESIDUAL, PostMode.GATED, PostMode.RESIDUAL)
    return [rng.integers(-1, 2, shape).astype(np.int8) for shape in shapes], modes


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
        dict(dot="tables", packing="pairs"),
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
    config = make_config(**changes)
    rng = np.random.default_rng(7)
    matrices, modes = layer(config, rng)
    bench = Bench(config, matrices)

    async def testbench(ctx):
        bench.x = [int(v) for v in rng.integers(-(2**31), 2**31, config.hidden)]
        for _token in range(2):
            for k, (matrix, mode) in enumerate(zip(matrices, modes, strict=True)):
                bench.a = rng.integers(-127, 128, len(bench.a))
                scale = (int(rng.integers(2**15, 2**16)), -int(rng.integers(17, 45)))
                before = list(bench.x)
                await bench.operate(ctx, *matrix.shape, mode, scale, restart=k == 0)
                check(bench, matrix, mode, scale, before, ctx)

    run(bench.dut, testbench)


@pytest.mark.parametrize("name, dot", [("2bit", "planes"), ("5trit", "adders"), ("pairs", "tables")])
def test_extremes(name, dot):
    """Accumulators, gated products and the residual at their bounds; every shift, and exponents beyond its limits."""
    config = make_config(packing=name, dot=dot)
    matrices, modes = layer(config, np.random.default_rng(0))
    for matrix in matrices:
        matrix[:] = 1
        matrix[1::4] = -1
    bench = Bench(config, matrices)

    async def testbench(ctx):
        for sign in (1, -1):
            bench.a = np.full(len(bench.a), 127 * sign)
            for k, (matrix, mode) in enumerate(zip(matrices, modes, strict=True)):
                scale, before = (65535, -17), [2**31 - 1, -(2**31), 5, -5] * (config.hidden // 4)
                bench.x = list(before)
                await bench.operate(ctx, *matrix.shape, mode, scale, restart=k == 0)
                check(bench, matrix, mode, scale, before, ctx)
            if sign == 1:
                assert max(abs(v) for v in bench.r[: config.intermediate]) == (127 * config.hidden) ** 3
        matrix = matrices[0][: config.hidden]
        for e in [511, 0, -15, -16, -17, -18] + list(range(-58, -19, 3)) + [-55, -56, -57, -512]:
            bench.a = np.arange(len(bench.a)) - 20
            before = [int(v) for v in range(-config.hidden, config.hidden, 2)]
            bench.x = list(before)
            await bench.operate(ctx, *matrix.shape, PostMode.RESIDUAL, (40001, e), restart=True)
            check(bench, matrix, PostMode.RESIDUAL, (40001, e), before, ctx)

    run(bench.dut, testbench)


def test_extremes_of_silu():
    """The gated product at its bounds, arguments beyond theirs, and every shift."""
    config = make_config(activation="silu")
    rows = 2 * config.intermediate
    matrix = np.ones((rows, config.hidden), np.int8)
    matrix[1::4] = -1
    matrix[2::8, ::2] = 0
    bench = Bench(config, [matrix])

    async def testbench(ctx):
        for e in [511, 0, -15, -16, -17, -18, *range(-58, -19, 6), -512]:
            bench.a = np.full(len(bench.a), 127 if e % 2 else -127)
            await bench.operate(ctx, *matrix.shape, PostMode.GATED, (65535, e), restart=True)
            check(bench, matrix, PostMode.GATED, (65535, e), None, ctx)
            if e == -17:
                assert max(abs(v) for v in bench.r[: config.intermediate]) == 127 * config.hidden * (
                    (1 << (SILU_BITS - 1)) - 1
                )

    run(bench.dut, testbench)


def test_one_chunk_and_one_group():
    """Rows of one chunk leave without a bubble; a single group works."""
    config = make_config(lane_width=8, lanes=8, packing="5trit")
    weight = np.random.default_rng(2).integers(-1, 2, (config.qkv_rows, 8)).astype(np.int8)
    bench = Bench(config, [weight])

    async def testbench(ctx):
        bench.a = np.arange(len(bench.a)) * 5 - 100
        await bench.operate(ctx, *weight.shape, PostMode.RAW, restart=True)
        check(bench, weight, PostMode.RAW, None, None, ctx)
        await bench.operate(ctx, 8, 8, PostMode.RAW, restart=True)
        check(bench, weight[:8], PostMode.RAW, None, None, ctx)

    run(bench.dut, testbench)


def test_start_is_ignored_while_busy():
    config = make_config()
    matrices, _ = layer(config, np.random.default_rng(4))
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
    config = make_config()
    rng = np.random.default_rng(9)
    matrices, modes = layer(config, rng)
    bench = Bench(config, matrices, flip=(1, 3, 5))
    bench.a = rng.integers(1, 128, len(bench.a))

    async def testbench(ctx):
        await bench.operate(ctx, *matrices[0].shape, modes[0], restart=True)
        with pytest.raises(AssertionError):
            check(bench, matrices[0], modes[0], None, None, ctx)
        values = expect(bench, matrices[0], modes[0], None, None)[1]
        assert [i for i, v in enumerate(values) if bench.r[i] != v] == [3]  # word 3 of lane 1 is in row 3

    run(bench.dut, testbench)


def test_lane_designs_have_the_ports_of_the_instances():
    texts = {
        name: verilog.convert(design, name=name, ports=ports) for name, design, ports in lane_designs(make_config())
    }
    for port in ("clk", "word", "enable", "first", "sum", *(f"x{b}" for b in range(8))):
        assert f" {port};" in texts["intaglio_lane"]
    assert " rst;" not in texts["intaglio_lane"]
    assert " data;" in texts["intaglio_planes"]
