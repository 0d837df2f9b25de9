# amaranth: UnusedElaboratable=no
"""The matrix unit: products proved by SAT for all inputs, dot products against Python integers, DSP blocks and LUTs by synthesis."""

import random
import subprocess
import sys

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Cat, Module, Signal, signed
from amaranth.sim import Simulator

from bench.matrix import synthesise_xcup
from intaglio.rtl.matrix import products, unit
from intaglio.rtl.matrix.products import PACKED, BoothProduct, NibbleProduct, PackedProduct, extract, ones, pack
from intaglio.rtl.matrix.unit import LutColumn, MatrixUnit, PackedPair, dot_bits, latency, tree_groups

LIMIT = 127


def yosys(path, module, ports, *steps):
    """Whether Yosys (in a process of its own, which it ends on an error) gets through ``steps`` on ``module``."""
    pytest.importorskip("pyosys", reason="needs pyosys")
    (path / "top.il").write_text(rtlil.convert(module, name="top", ports=ports))
    steps = ["read_rtlil top.il", "hierarchy -top top", "proc", "flatten", "opt", *steps]
    script = [
        "from pyosys import libyosys",
        "design = libyosys.Design()",
        *(f"libyosys.run_pass({step!r}, design)" for step in steps),
    ]
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(script)], cwd=path, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0 or "proof did fail" in run.stdout + run.stderr, run.stdout[-2000:] + run.stderr[-2000:]
    return run.returncode == 0


def proved(path, m, inputs, wrong, cases=("",)):
    """Whether no inputs make ``wrong`` true; ``cases`` are options of ``sat`` that split the inputs."""
    found = Signal(name="found")
    m.d.comb += found.eq(wrong)
    return yosys(path, m, [*inputs, found], *(f"sat -verify -prove found 0 {case}" for case in cases))


def lut_product_proved(path, dut, lacking):
    m = Module()
    m.submodules.dut = dut
    a, b = Signal(signed(8), name="a"), Signal(signed(8), name="b")
    m.d.comb += [dut.operand.eq(a), dut.row.eq(b)]
    cases = [f"-set b[7:2] {high}" for high in range(64)]  # SAT is slow at products of two variables
    return proved(path, m, [a, b], dut.product + lacking(b) != a * b, cases)


@pytest.mark.parametrize("form", ["booth", "nibble"])
def test_lut_products_of_all_inputs(tmp_path, form):
    dut, lacking = (BoothProduct(), ones) if form == "booth" else (NibbleProduct(), lambda row: 0)
    assert lut_product_proved(tmp_path, dut, lacking)


def test_a_wrong_booth_digit_shows(tmp_path, monkeypatch):
    right = products.booth_row
    monkeypatch.setattr(
        products, "booth_row", lambda operand, digit: right(operand, Cat(digit[0], digit[1], digit[2] & ~digit[1]))
    )
    assert not lut_product_proved(tmp_path, BoothProduct(), ones)  # -1 taken for 1


@pytest.mark.parametrize("least", [-LIMIT, -LIMIT - 1])
def test_packed_products(tmp_path, least):
    """Both products of all operands in -127..127; -128 as upper operand less its borrow does not fit.

    Row 1 proves that the multiplier's operand is ``upper * 2^SHIFT + lower``; every other product then is a sum of test_packed_sums.
    """
    m = Module()
    m.submodules.dut = dut = PackedProduct()
    values = lower, upper, row = [Signal(signed(8), name=name) for name in ("lower", "upper", "row")]
    m.d.comb += [dut.pair.eq(pack(lower, upper)), dut.row.eq(row)]
    low, high = extract(dut.product)
    allowed = (lower >= least) & (upper >= least) & (row >= least)
    cases = [f"-set row {value & 255}" for value in (1, LIMIT, LIMIT - 1)]
    assert proved(tmp_path, m, values, allowed & ((low != lower * row) | (high != upper * row)), cases) == (
        least == -LIMIT
    )


@pytest.mark.parametrize(
    "shift, largest, safe",
    [
        (19, PACKED * LIMIT * LIMIT, True),
        (19, (PACKED + 1) * LIMIT * LIMIT, False),
        (19, PACKED * 128 * 128, False),
        (18, PACKED * LIMIT * LIMIT, False),
        (18, PACKED // 2 * LIMIT * LIMIT, True),
    ],
)
def test_packed_sums(tmp_path, monkeypatch, shift, largest, safe):
    """The sums come out for all lower and upper sums up to ``largest``; one product more, -128, or a smaller shift break them."""
    monkeypatch.setattr(products, "SHIFT", shift)
    m = Module()
    lower, upper = (Signal(signed(20), name=name) for name in ("lower", "upper"))
    total = Signal(signed(shift + 21))
    m.d.comb += total.eq((upper << shift) + lower)
    low, high = extract(total)
    inside = (lower >= -largest) & (lower <= largest) & (upper >= -largest) & (upper <= largest)
    assert proved(tmp_path, m, [lower, upper], inside & ((low != lower) | (high != upper))) == safe


def run(dut, cycles):
    """Drives ``cycles`` of ports to values; ``(cycle, dot)`` of every valid result."""
    results = []

    async def bench(ctx):
        for cycle, ports in enumerate([*cycles, *[{}] * dut.latency]):
            for name in ("load_a", "load_b", "go"):
                ctx.set(getattr(dut, name), name in ports)
            for name, value in ports.items():
                for port, v in (
                    zip(getattr(dut, name), value, strict=True)
                    if isinstance(value, list)
                    else [(getattr(dut, name), value)]
                ):
                    ctx.set(port, v)
            await ctx.tick()
            if ctx.get(dut.valid):
                results.append((cycle + 1, [ctx.get(dot) for dot in dut.dot]))

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return results


class Model:
    """Banks and dot products in integers."""

    def __init__(self, dut):
        self.banks = [[[None] * dut.head_dim for _ in range(dut.columns)] for _ in range(2)]
        self.latency, self.expected = dut.latency, []

    def step(self, cycle, ports):
        if "go" in ports:
            vectors = self.banks[ports["bank"]]
            self.expected.append(
                (cycle + self.latency, [sum(a * b for a, b in zip(v, ports["row"], strict=True)) for v in vectors])
            )
        for bank, name in enumerate("ab"):
            if f"load_{name}" in ports:
                for vector, value in zip(self.banks[bank], ports[f"load_{name}_data"], strict=True):
                    vector[:] = [*vector[1:], value]


def traffic(rng, head_dim, columns, number, values):
    """Both banks loaded, then rows, loads and pauses in all combinations."""
    cycles = [
        {"load_a": 1, "load_b": 1, "load_a_data": values(rng, columns), "load_b_data": values(rng, columns)}
        for _ in range(head_dim)
    ]
    for _ in range(number):
        ports = {}
        for name in "ab":
            if rng.random() < 0.4:
                ports |= {f"load_{name}": 1, f"load_{name}_data": values(rng, columns)}
        if rng.random() < 0.7:
            ports |= {"go": 1, "bank": rng.randrange(2), "row": values(rng, head_dim)}
        cycles.append(ports)
    return cycles


VALUES = {
    "random": lambda rng, n: [rng.randint(-LIMIT, LIMIT) for _ in range(n)],
    "extreme": lambda rng, n: [rng.choice((-LIMIT, LIMIT)) for _ in range(n)],
    "one sign": lambda rng, n: [rng.choice((-LIMIT, LIMIT))] * n,
    "small": lambda rng, n: [rng.choice((-1, 0, 0, 1)) for _ in range(n)],
}


def compare(dut, values, seed, number=60):
    cycles, model = traffic(random.Random(seed), dut.head_dim, dut.columns, number, VALUES[values]), Model(dut)
    for cycle, ports in enumerate(cycles):
        model.step(cycle, ports)
    return run(dut, cycles), model.expected


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(
    "shape", [(16, 4, 2, "booth"), (16, 3, 1, "nibble"), (32, 2, 0, "booth"), (4, 1, 1, "booth")], ids=str
)
def test_dot_products(shape, values):
    """All columns and both banks, which are loaded in the same cycles as rows go through."""
    result, expected = compare(MatrixUnit(*shape), values, str(shape))
    assert result == expected and len(result) > 20


@pytest.mark.parametrize("head_dim", [1, 3, 17, 33])
def test_odd_sizes(head_dim):
    for values in ("random", "one sign"):
        result, expected = compare(MatrixUnit(head_dim, 3, 1), values, head_dim, 10)
        assert result == expected


def largest_sums(dut):
    """Results and expectation of vectors and rows whose products are all 127 * 127 or its negative."""
    c = dut.columns
    cycles, model = [{"load_a": 1, "load_a_data": [LIMIT, -LIMIT] * (c // 2)}] * dut.head_dim, Model(dut)
    cycles += [{"load_b": 1, "load_b_data": [-LIMIT] * (c // 2) + [LIMIT] * (c - c // 2)}] * dut.head_dim
    cycles += [{"go": 1, "bank": bank, "row": [sign * LIMIT] * dut.head_dim} for bank in (0, 1) for sign in (1, -1)]
    for cycle, ports in enumerate(cycles):
        model.step(cycle, ports)
    return run(dut, cycles), model.expected


def test_sums_of_the_largest_products():
    result, expected = largest_sums(MatrixUnit(32, 4, 2))
    assert result == expected
    assert expected[0][1] == [32 * 16129, -32 * 16129] * 2


@pytest.mark.parametrize("wrong", ["shift", "length", "borrow"])
def test_a_wrong_packed_pair_shows(monkeypatch, wrong):
    if wrong == "shift":
        for module in (products, unit):
            monkeypatch.setattr(module, "SHIFT", 18)
    elif wrong == "length":
        monkeypatch.setattr(unit, "PACKED", 64)
    else:
        monkeypatch.setattr(unit, "pack", lambda lower, upper: Cat(lower, upper))
    result, expected = largest_sums(MatrixUnit(32, 2))
    assert len(result) == len(expected) and result != expected


def test_a_wrong_booth_column_shows(monkeypatch):
    monkeypatch.setattr(unit, "ones", lambda row: ones(row) & 0x3F)  # the highest digit is never completed
    result, expected = compare(MatrixUnit(16, 1, 1), "random", 1)
    assert result != expected


def test_sizes():
    assert [dot_bits(d) for d in (1, 4, 32, 128)] == [15, 17, 20, 22]
    assert [latency(d) for d in (1, 4, 16, 32, 64, 128)] == [3, 4, 5, 5, 5, 6]
    assert [tree_groups(d) for d in (16, 32, 128)] == [[4, 4, 1], [4, 4, 2], [4, 4, 4, 2]]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, 4), "head_dim must be a positive integer, not 0"),
        ((4, "2"), "columns must be a positive integer, not '2'"),
        ((4, 4, 1), "lut_columns must be at most 4 and leave an even number of columns, not 1"),
        ((4, 4, 6), "lut_columns must be at most 4"),
        ((4, 4, 2, "wallace"), "lut_form must be one of booth, nibble, not 'wallace'"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        MatrixUnit(*arguments)


def test_cells_of_the_columns():
    """One DSP block a pair of products; the Booth column below 70 LUTs a product, banks and tree included."""
    pytest.importorskip("pyosys", reason="needs pyosys")
    pair, booth = synthesise_xcup(PackedPair(4), dsp=True), synthesise_xcup(LutColumn(4, "booth"), dsp=False)
    assert pair["DSP48E2"] == 4 and "DSP48E2" not in booth
    assert booth["LUT"] <= 70 * 4
