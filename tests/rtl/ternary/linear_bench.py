"""The linear unit with its buffers, slot by slot, and what docs/numerics.md says that it computes."""

import numpy as np
from amaranth.sim import Simulator

from intaglio.rtl.arithmetic.silu import SILU_BITS, SILU_FRACTION, silu
from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.ternary import packing
from intaglio.rtl.ternary.linear import LinearUnit, PostMode


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


def split(word, count, bits):
    values = [(word >> (i * bits)) & ((1 << bits) - 1) for i in range(count)]
    return [v - (1 << bits) if v >> (bits - 1) else v for v in values]


def join(values, bits):
    return sum((int(v) & ((1 << bits) - 1)) << (i * bits) for i, v in enumerate(values))


class Slot:
    """Buffers A, X, R of a slot, and where something was written in them."""

    def __init__(self, config):
        self.x = [0] * config.hidden
        self.r = [None] * max(config.qkv_rows, config.intermediate)
        self.a = np.zeros(max(config.hidden, config.intermediate), np.int64)
        self.before, self.written = None, []


class Bench:
    """The unit with buffers A, X, R of every slot; runs operations in order and checks values, magnitudes, cycles."""

    def __init__(self, config, matrices, flip=None):
        self.config = config
        words = np.concatenate([packing.execution_order(w, config.lanes, config.lane_width) for w in matrices], axis=1)
        if flip is not None:
            words[flip] = (words[flip] + 2) % 3 - 1  # another ternary value
        init = [packing.pack_ints(lane, config.packing) for lane in words]
        self.dut = LinearUnit(config, init)
        self.slots = [Slot(config) for _ in range(config.batch)]

    async def operate(self, ctx, matrix, mode, scales, restart=False):
        """One operation, with a scale for each slot; the matrix gives its shape."""
        dut, config, lanes = self.dut, self.config, self.config.lanes
        rows, inputs = matrix.shape
        for slot in self.slots:
            slot.before, slot.written = list(slot.x), []
        for name, value in dict(
            start=1, restart=restart, groups=rows // lanes, chunks=inputs // config.lane_width, mode=mode
        ).items():
            ctx.set(getattr(dut, name), value)
        for s, scale in enumerate(scales):
            ctx.set(dut.scale_m[s], scale[0])
            ctx.set(dut.scale_e[s], scale[1])
        cycles = 0
        while True:
            words = [self._buffers(ctx, s) for s in range(config.batch)]
            await ctx.tick()
            ctx.set(dut.start, 0)
            ctx.set(dut.restart, 0)
            for s, (act_word, x_word) in enumerate(words):
                ctx.set(dut.act_data[s], act_word)
                ctx.set(dut.x_rd_data[s], x_word)
            if not ctx.get(dut.busy):
                break
            cycles += 1
            assert cycles < 20000
        assert cycles == rows // lanes * (inputs // config.lane_width) + LinearUnit.fill(config, mode)

    def _buffers(self, ctx, s):
        """A cycle of a slot's buffers: read the old words of A and X, then write, at the coming edge."""
        dut, config, slot = self.dut, self.config, self.slots[s]
        width, lanes = config.vector_width, config.lanes
        act = ctx.get(dut.act_addr) * config.lane_width
        x_at = ctx.get(dut.x_rd_addr) * width
        words = join(slot.a[act : act + config.lane_width], 8), join(slot.x[x_at : x_at + width], 32)
        for name, target, bits, granule in (("x", slot.x, 32, lanes), ("r", slot.r, config.result_bits, lanes // 2)):
            enable = ctx.get(getattr(dut, f"{name}_wr_en"))
            at = ctx.get(getattr(dut, f"{name}_wr_addr")) * width
            values = split(ctx.get(getattr(dut, f"{name}_wr_data")[s]), lanes, bits) * (width // lanes)
            for i in range(width):
                if enable >> (i // granule) & 1:
                    target[at + i] = values[i]
                    slot.written.append((name, at + i))
        return words

    def expect(self, slot, matrix, mode, scale):
        """Expected (buffer, values) of the slot after the operation."""
        acc = [int(v) for v in matrix.astype(np.int64) @ slot.a[: matrix.shape[1]]]
        if mode == PostMode.RAW:
            return "r", acc
        if mode == PostMode.GATED and self.config.activation == "silu":
            return "r", [silu(gate_argument(gate, *scale)) * up for gate, up in zip(acc[::2], acc[1::2], strict=True)]
        if mode == PostMode.GATED:
            return "r", [max(gate, 0) ** 2 * up for gate, up in zip(acc[::2], acc[1::2], strict=True)]
        return "x", [residual(x, a, *scale) for x, a in zip(slot.before, acc, strict=True)]

    def check(self, ctx, matrix, mode, scales):
        """What the last operation has written, and its magnitudes."""
        for s, (slot, scale) in enumerate(zip(self.slots, scales, strict=True)):
            name, values = self.expect(slot, matrix, mode, scale)
            assert (slot.x if name == "x" else slot.r)[: len(values)] == values, f"slot {s}"
            assert sorted(slot.written) == [(name, i) for i in range(len(values))]
            assert ctx.get(self.dut.x_or[s]) == (magnitude(values) if name == "x" else 0)
            assert ctx.get(self.dut.r_or[s]) == (magnitude(values) if name == "r" else 0)

    async def run(self, ctx, matrix, mode, scales, restart=False):
        """Operate and check."""
        await self.operate(ctx, matrix, mode, scales, restart)
        self.check(ctx, matrix, mode, scales)


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
