"""Read-only memories as logic: every netlist is read at every address."""

import numpy as np
import pytest

from intaglio.rtl.memory.logic import GENERIC, Bank, Cell, CellSet, Form, bank, bits_of_words
from intaglio.rtl.memory.logic.cells import canonical, dual, kind_name
from intaglio.rtl.memory.logic.decode import Decode
from intaglio.rtl.memory.logic.forms import build
from intaglio.rtl.memory.logic.netlist import Netlist
from intaglio.rtl.memory.logic.search import forms_of
from intaglio.rtl.memory.logic.trees import WideOr
from intaglio.rtl.ternary.packing import pack

# Non-inverting gates only, as ASAP7 without its do-not-use cells nearly is.
MONOTONE = CellSet(
    "monotone",
    {
        kind: Cell(name=kind_name(kind), area=float(sum(kind[1]) + 3))
        for kind in (
            ("oai", (1,)),
            ("oa", (1, 1)),
            ("oa", (2,)),
            ("oa", (3,)),
            ("oa", (4,)),
            ("oa", (1, 1, 1)),
            ("oa", (3, 3, 3)),
            ("ao", (3, 3, 3)),
            ("oa", (3, 3, 1)),
            ("ao", (3, 3, 1)),
            ("oa", (2, 1)),
            ("ao", (2, 1)),
            ("oai", (2, 2)),
            ("oai", (3, 3)),
            ("aoi", (2, 2)),
        )
    },
)


def trits(depth, lane_width, zeros, seed=1):
    draw = np.random.default_rng(seed).random((depth, lane_width))
    return np.where(draw < zeros, 0, np.where(draw < (1 + zeros) / 2, 1, -1)).astype(np.int8)


def planes(weights):
    return np.concatenate([weights == 1, weights == -1], axis=1)


@pytest.mark.parametrize("cells", [GENERIC, MONOTONE], ids=lambda cells: cells.name)
@pytest.mark.parametrize("depth, lane_width, zeros", [(128, 4, 0.4), (100, 3, 0.7)])
def test_every_form_holds_its_words(cells, depth, lane_width, zeros):
    weights = trits(depth, lane_width, zeros)
    forms = list(forms_of(cells, 128))
    assert {form.style for form in forms} >= {"inside", "select", "several"} and {form.dual for form in forms} == {
        False,
        True,
    }
    for form in forms[::5]:
        netlist = build(planes(weights), form, cells)
        assert netlist.holds(planes(weights)), str(form)
        assert all(cells.has(kind) for kind in netlist.kinds)


@pytest.mark.parametrize(
    "bits",
    [
        np.zeros((64, 4), bool),
        np.ones((64, 4), bool),
        np.eye(64, dtype=bool),
        ~np.eye(64, dtype=bool),
        np.arange(64)[:, None] >> np.arange(6) & 1 == 1,
    ],
    ids=["zeros", "ones", "eye", "not eye", "address"],
)
def test_extreme_words(bits):
    for form in list(forms_of(GENERIC, 64))[::3]:
        assert build(bits, form, GENERIC).holds(bits), str(form)


@pytest.mark.parametrize("depth", range(3, 20))
def test_small_banks(depth):
    words = trits(depth, 3, 0.4, seed=depth)
    assert bank(pack(words, "2bit"), 6, "small").netlist.holds(planes(words))


def test_one_flipped_weight_is_found():
    weights = trits(128, 8, 0.4)
    netlist = build(planes(weights), Form(style="inside", parts=(2, 2), rows=32), GENERIC)
    assert netlist.holds(planes(weights))
    for row, column in ((0, 0), (77, 3), (127, 7)):
        changed = weights.copy()
        changed[row, column] = (changed[row, column] + 2) % 3 - 1
        assert not netlist.holds(planes(changed))


def test_one_changed_gate_is_found():
    weights = trits(128, 8, 0.4)
    netlist = build(planes(weights), Form(style="select", parts=(3, 3), rows=48, merge=2), GENERIC)
    rng = np.random.default_rng(2)
    for i in rng.choice(len(netlist.kinds), 20, replace=False):
        kept = netlist.kinds[i]
        netlist.kinds[i] = ("oa" if kept[0] == "oai" else "ao" if kept[0] == "aoi" else "oai", kept[1])
        assert not netlist.holds(planes(weights))
        netlist.kinds[i] = kept


@pytest.mark.parametrize("rows", [8, 16, 24, 40, 48, 64])
@pytest.mark.parametrize("cells", [GENERIC, MONOTONE], ids=lambda cells: cells.name)
def test_decode(rows, cells):
    for high in (True, False):
        netlist = Netlist(8)
        decode = Decode(netlist, WideOr(cells), rows)
        lines = [decode.row(r, high) for r in range(rows)] + [decode.column(c, high) for c in range(decode.columns)]
        netlist.outputs = lines
        expected = np.zeros((256, len(lines)), bool)
        expected[np.arange(256), np.arange(256) % rows] = True
        expected[np.arange(256), rows + np.arange(256) // rows] = True
        assert netlist.holds(expected if high else ~expected)


@pytest.mark.parametrize("count", [1, 2, 5, 9, 22, 70])
def test_wide_or(count):
    for cells in (GENERIC, MONOTONE):
        wide = WideOr(cells)
        for high in (True, False):
            for result in (True, False):
                netlist = Netlist(8)
                decode = Decode(netlist, wide, 128)
                lines = [decode.row(r, high) for r in range(count)]
                start = netlist_area(netlist, cells)
                netlist.outputs = [wide.make(netlist, lines, high, result)]
                expected = (np.arange(256) % 128 < count)[:, None]
                assert netlist.holds(expected if result else ~expected)
                assert netlist_area(netlist, cells) - start <= wide.area(count, high, result) + 1e-6


def netlist_area(netlist, cells):
    return sum(cells.area(kind) for kind in netlist.kinds)


def test_kinds():
    assert canonical(("aoi", (1, 1))) == ("oai", (2,)) and canonical(("ao", (3,))) == ("oa", (1, 1, 1))
    assert canonical(("oai", (1, 2))) == ("oai", (2, 1)) and dual(("oai", (1, 1))) == ("oai", (2,))
    assert dual(("oai", (3, 3))) == ("aoi", (3, 3)) and dual(dual(("ao", (3, 2, 1)))) == ("ao", (3, 2, 1))
    names = [
        kind_name(kind)
        for kind in (("oai", (1,)), ("oai", (1, 1)), ("oai", (3,)), ("aoi", (2, 2)), ("oa", (1, 1)), ("oa", (2, 1)))
    ]
    assert names == ["INV", "NAND2", "NOR3", "AOI22", "AND2", "OA21"]


def test_the_same_text_again():
    words = pack(trits(256, 8, 0.4), "2bit")
    first = bank(words, 16, "b")
    assert isinstance(first, Bank) and first.verilog == bank(words, 16, "b").verilog
    assert (
        "select" in first.description
        or "inside" in first.description
        or "several" in first.description
        or "nand" in first.description
    )


def test_all_zeros():
    zero = bank(np.zeros((64, 2), np.uint8), 16, "zero")
    assert zero.netlist.holds(np.zeros((64, 16), bool)) and not zero.netlist.kinds


def test_a_proof_in_parts(monkeypatch):
    """A bank of more addresses than are looked at at once: the last word, and a last part that is not full, count as well."""
    monkeypatch.setattr("intaglio.rtl.memory.logic.netlist.BLOCK", 64)
    weights = trits(200, 4, 0.4)
    netlist = build(planes(weights), Form(style="select", parts=(3, 3), rows=48, merge=2), GENERIC)
    assert netlist.holds(planes(weights)) and not netlist.holds(planes(weights)[:, 1:])
    whole = [netlist.evaluate(start, 64) for start in range(0, 256, 64)]
    assert netlist.evaluate() == [sum(part[o] << 64 * i for i, part in enumerate(whole)) for o in range(8)]
    for row in (0, 63, 64, 199):
        changed = weights.copy()
        changed[row, 1] = (changed[row, 1] + 2) % 3 - 1
        assert not netlist.holds(planes(changed))


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: bank([1], 2, "2b"), "name of a bank must be an identifier, not '2b'"),
        (lambda: bank([4], 2, "b"), r"word 0 must be in 0..2\^2 - 1, not 4"),
        (lambda: bank([], 2, "b"), "at least one word"),
        (lambda: bank([1], 0, "b"), "width of a bank must be at least 1, not 0"),
        (lambda: bits_of_words(np.zeros((2, 3), np.uint8), 8), r"must be uint8 \[depth, 1\], not uint8 \[2, 3\]"),
        (lambda: bits_of_words(np.full((2, 1), 255, np.uint8), 7), "word 0 must fit 7 bits"),
        (
            lambda: Form(style="tree", parts=(2,), rows=16),
            "style must be one of inside, select, several, nand, not 'tree'",
        ),
        (
            lambda: Form(style="inside", parts=(), rows=16),
            r"parts must be numbers of groups, at least 1 each, not \(\)",
        ),
        (lambda: Form(style="inside", parts=(2,), rows=40), "rows must be 1 to 16 for each of 2 groups, not 40"),
        (lambda: CellSet("x", {("oai", (2,)): Cell(name="NOR2", area=1.0)}), "cell library x must have an inverter"),
        (
            lambda: CellSet("x", {("oai", (1,)): Cell(name="INV", area=1.0)}),
            "must have NAND2 and NOR2, or AND2 and OR2",
        ),
        (
            lambda: build(np.eye(64, dtype=bool), Form(style="inside", parts=(3, 3, 3), rows=32), GENERIC),
            "no cell for oai of groups",
        ),
        (
            lambda: build(np.eye(64, dtype=bool), Form(style="inside", parts=(3, 3), rows=64), GENERIC),
            "fewer than the 64 addresses, not 64",
        ),
    ],
)
def test_refuses(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize("high, result", [(True, True), (True, False), (False, True), (False, False)])
def test_wide_ors_of_tall_banks_are_planned_in_no_time(high, result):
    area, steps = WideOr(GENERIC).plan(50_000, high, result)
    count = 50_000
    for _, _, _, sizes in steps:
        assert sum(sizes) == count or sizes == (1,)
        count = len(sizes)
    assert count == 1 and area < 50_000 * 2
