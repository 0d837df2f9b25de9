import random

import pytest
import torch
from amaranth.sim import Simulator

from intaglio.rtl.arithmetic.numerics import Scalar
from intaglio.rtl.arithmetic.scalar import AluOp, ScalarAlu
from intaglio.sim.reference.scalars import Scalars, bit_length, normalise

CORNERS = [
    Scalar(0, 0),
    Scalar(1 << 15, 0),
    Scalar(65535, 7),
    Scalar(1 << 15, -31),
    Scalar(65535, -100),
    Scalar(40000, 100),
]


def scalars(seed, count):
    rng = random.Random(seed)
    return CORNERS + [Scalar(rng.randrange(1 << 15, 1 << 16), rng.randrange(-120, 120)) for _ in range(count)]


def expected(op, a, b, n, shift):
    return {
        AluOp.MUL: lambda: a * b,
        AluOp.DIV: lambda: a / b,
        AluOp.ADD: lambda: a + b,
        AluOp.SQRT: a.sqrt,
        AluOp.COPY: lambda: a.scaled(shift),
        AluOp.INT: lambda: Scalar.of_int(n, shift),
    }[op]()


@pytest.mark.parametrize("op", list(AluOp))
def test_alu_equals_scalar(op):
    latency = ScalarAlu.LATENCY[op]
    dut = ScalarAlu(46)
    cases = []
    rng = random.Random(op.value)
    for a in scalars(1, 40):
        for b in scalars(rng.randrange(1 << 30), 3):
            n = rng.getrandbits(rng.randrange(0, 47))
            cases.append((a, b, n, rng.randrange(-60, 60)))

    async def bench(ctx):
        ctx.set(dut.op, op)
        for a, b, n, shift in cases:
            ctx.set(dut.a, {"m": a.m, "e": a.e})
            ctx.set(dut.b, {"m": b.m, "e": b.e})
            ctx.set(dut.n, n)
            ctx.set(dut.shift, shift)
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            cycles = 1
            while not ctx.get(dut.done):
                await ctx.tick()
                cycles += 1
                assert cycles < 40
            assert cycles == latency
            want = expected(op, a, b, n, shift)
            got = ctx.get(dut.o)
            assert (got.m, got.e) == (want.m, want.e), (a, b, n, shift)
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


def test_torch_twins_equal_scalar():
    values = scalars(3, 200)
    a = [x for x in values for _ in range(12)]
    b = [y for x in values for y in (CORNERS + random.Random(x.m).sample(values, 6))]
    ta, tb = (Scalars(torch.tensor([x.m for x in v]), torch.tensor([x.e for x in v])) for v in (a, b))
    for name, twin in (("__mul__", ta * tb), ("__truediv__", ta / tb), ("__add__", ta + tb), ("sqrt", ta.sqrt())):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            want = x.sqrt() if name == "sqrt" else getattr(x, name)(y)
            assert (int(twin.m[i]), int(twin.e[i])) == (want.m, want.e), (name, x, y)


def test_bit_length_and_normalise():
    numbers = [0, 1, 2, 3] + [(1 << k) + d for k in range(2, 62) for d in (-1, 0, 1)]
    assert bit_length(torch.tensor(numbers)).tolist() == [n.bit_length() for n in numbers]
    mantissa, shift = normalise(torch.tensor(numbers))
    for n, mm, s in zip(numbers, mantissa.tolist(), shift.tolist(), strict=True):
        assert (n >> s if s >= 0 else n << -s) == mm
        assert mm == 0 or 1 << 16 <= mm < 1 << 17


def test_exponent_range_is_checked():
    with pytest.raises(OverflowError, match=r"must be in -512..511, not 512"):
        Scalar(1 << 15, 512)
