"""Structured ROMs in C++: the bytes of the reference, a wrong one found, and numpy where there is no compiler."""

import numpy as np
import pytest

from intaglio.gen.native import library
from intaglio.gen.native.rom import NativeMaker, fastest_maker
from intaglio.rtl.memory.logic import GENERIC, CellSet, bank, bits_of_words
from intaglio.rtl.memory.logic.cells import INV, Cell, canonical
from intaglio.rtl.memory.logic.search import PYTHON, forms_of
from intaglio.rtl.ternary.packing import pack


@pytest.fixture(scope="module")
def maker():
    maker = fastest_maker()
    assert isinstance(maker, NativeMaker)  # the tests' machine has a C++ compiler, as its simulations need
    return maker


def words(depth, width, zeros, seed=1):
    rng = np.random.default_rng(seed)
    trits = rng.choice([0, 1, -1], (depth, width), p=[zeros, (1 - zeros) / 2, (1 - zeros) / 2]).astype(np.int8)
    trits[:, 0], trits[:, 1] = 0, 1
    return pack(trits, "2bit")


@pytest.mark.parametrize(
    "depth, width, zeros", [(2, 4, 0.4), (20, 6, 0.4), (33, 5, 0.5), (200, 24, 0.4), (256, 16, 0.97), (777, 8, 0.3)]
)
def test_same_bank_as_the_reference(maker, depth, width, zeros):
    data = words(depth, width, zeros)
    ours, reference = bank(data, 2 * width, "b", maker=maker), bank(data, 2 * width, "b")
    assert ours.verilog == reference.verilog and ours.description == reference.description


OTHERS = CellSet(  # no NAND or NOR, larger gates only: inputs and groups are doubled, every other polarity
    "others",
    {
        canonical(kind): Cell(name="", area=area)
        for kind, area in (
            (INV, 2.0),
            (("oa", (1, 1)), 3.5),
            (("oa", (2,)), 3.5),
            (("oa", (1, 1, 1)), 4.25),
            (("oai", (2, 2, 2)), 6.5),
            (("aoi", (3, 3)), 6.75),
            (("oa", (3, 2)), 6.0),
            (("ao", (2, 2)), 5.0),
            (("oai", (2, 1)), 4.0),
        )
    },
)


@pytest.mark.parametrize("cells", [GENERIC, OTHERS], ids=["generic", "others"])
def test_same_netlist_in_every_form(maker, cells):
    depth, width = 150, 6
    data, built = words(depth, width, 0.4), 0
    for form in list(forms_of(cells, depth))[:: 5 if cells is GENERIC else 1]:
        texts = []
        for by in (maker, PYTHON):
            try:
                made = bank(data, 2 * width, "b", cells=cells, form=form, maker=by)
                texts.append((made.verilog, made.netlist.area(cells)))
                built += 1
            except ValueError:  # the library lacks a cell
                texts.append(None)
        assert texts[0] == texts[1], form
    assert built > 10


@pytest.mark.parametrize("depth", [200, 1500])
def test_a_wrong_bit_is_found_at_every_place(maker, depth):
    data = words(depth, 8, 0.4)
    bits = bits_of_words(data, 16)
    netlist = bank(data, 16, "b", maker=maker).netlist
    assert netlist.holds(bits) and not netlist.holds(bits[:, :15])
    rng = np.random.default_rng(3)
    for address, output in [
        (0, 0),
        (depth - 1, 15),
        *zip(rng.integers(0, depth, 50), rng.integers(0, 16, 50), strict=True),
    ]:
        bits[address, output] ^= True
        assert not netlist.holds(bits)
        bits[address, output] ^= True


def test_without_a_compiler_numpy_is_told_of(monkeypatch, tmp_path):
    library.compiled.cache_clear()
    told = []
    try:
        monkeypatch.setattr(library, "find_program", lambda name: None)
        assert fastest_maker(told.append) is PYTHON
        library.compiled.cache_clear()
        monkeypatch.undo()
        broken = tmp_path / "broken.cpp"
        broken.write_text("no C++")
        assert library.compiled(broken)[0] is None
    finally:
        library.compiled.cache_clear()
    assert told == ["gates are made by numpy, some 50 times slower: there is no C++ compiler (g++)"]
