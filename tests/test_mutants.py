"""The mutations of `make mutants`: small, in place, the same from a seed; and that a test which notices is told from one which does not."""

import ast
from pathlib import Path

import pytest

from bench.mutants import EQUIVALENT, TESTS, Workshop, concerning, report
from bench.mutations import KINDS, draw, mutations
from intaglio import Error

ROOT = Path(__file__).parents[1]
CONDITION = "count[3] == self.most if self.most == 7 else ready"
SOURCE = b"""
class Unit:
    def elaborate(self, platform):
        m = Module()
        ready, count = Signal(init=1), Signal(range(9 + 1))
        m.submodules.part = ResetInserter(stop)(part)
        with m.If(ready & ~self.busy):
            m.d.sync += [count.eq(count + 1), *(a.eq(0) for a in self.all)]
        with m.Elif(count[3] == self.most if self.most == 7 else ready):
            m.d.comb += self.o.eq((count << 1) - Const(5, 4))
        return m

    def cycles(self):
        return self.count + 1
"""


def test_what_may_change():
    """Hardware only: neither widths nor what Python decides, nor a function that describes none."""
    found = [(one.kind, one.line, one.change) for one in mutations("unit.py", SOURCE)]
    assert found == [
        ("reset", 5, "1 -> (1) ^ 1"),
        ("reset", 6, "ResetInserter(stop) -> nothing"),
        ("condition", 7, "ready & ~self.busy -> (ready & ~self.busy) == 0"),
        ("boolean", 7, "& -> |"),
        ("inversion", 7, "~ -> nothing"),
        ("assignment", 8, "count.eq(count + 1) -> []"),
        ("arithmetic", 8, "+ -> -"),
        ("constant", 8, "1 -> 2"),
        ("assignment", 8, "a.eq(0) -> []"),
        ("constant", 8, "0 -> 1"),
        ("condition", 9, f"{CONDITION} -> ({CONDITION}) == 0"),
        ("comparison", 9, "== -> !="),
        ("assignment", 10, "self.o.eq((count << 1) - Const(5, 4)) -> []"),
        ("arithmetic", 10, "<< -> >>"),
        ("constant", 10, "1 -> 2"),
        ("arithmetic", 10, "- -> +"),
    ]


def test_every_mutation_is_python_and_a_change():
    for path in sorted((ROOT / "rtl").rglob("*.py")):
        source = path.read_bytes()
        for one in mutations(path.relative_to(ROOT).as_posix(), source)[::90]:
            changed = one.apply(source)
            assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source)), one


def test_draws_are_the_same_from_a_seed_and_over_all_rooms():
    drawn = draw(ROOT, 5, 60)
    assert drawn == draw(ROOT, 5, 60) == draw(ROOT, 5, 80)[:60] != draw(ROOT, 6, 60)
    assert len({(one.path, one.start, one.new) for one in drawn}) == 60
    rooms = {path.parent.name for path in (ROOT / "rtl").glob("*/__init__.py")} - {"config"}  # which has no hardware
    assert {one.path.split("/")[1] for one in drawn} == rooms
    assert {one.kind for one in draw(ROOT, 5, 200)} == set(KINDS)
    assert {one.path.split("/")[1] for one in draw(ROOT, 5, 9, "kv")} == {"kv"}
    with pytest.raises(ValueError, match="a room must be one of arithmetic, attention, .*, not 'prefill'"):
        draw(ROOT, 5, 9, "prefill")


def test_every_file_has_tests_that_are_there():
    for path in (ROOT / "rtl").rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if mutations(name, path.read_bytes()):
            assert all((ROOT / test).exists() for test in concerning(name))
    assert all((ROOT / "rtl" / begin).exists() or (ROOT / "rtl" / f"{begin}.py").exists() for begin in TESTS)
    with pytest.raises(ValueError, match="must name tests that concern rtl/new/unit.py"):
        concerning("rtl/new/unit.py")


def test_equivalent_changes_are_of_sources_as_they_are():
    """An entry whose line is gone would hide nothing, but mislead."""
    known = {
        (one.path, one.text, one.change)
        for name in {path for path, _, _ in EQUIVALENT}
        for one in mutations(name, (ROOT / name).read_bytes())
    }
    assert set(EQUIVALENT) <= known and all(EQUIVALENT.values())


def test_killed_survived_and_stuck(tmp_path):
    """In a tree of one unit: what its test sees, what it does not, and what hangs; the tree itself stays as it is."""
    tree, copy = tmp_path / "tree", tmp_path / "copy"
    for folder in (
        "rtl/bus",
        "gen",
        "sim",
        "host",
        "boards",
        "intaglio",
        "tests/rtl/bus",
        "tests/rtl/top",
        "bench",
        "models",
    ):
        (tree / folder).mkdir(parents=True)
    (tree / "pyproject.toml").write_text("")
    unit = tree / "rtl/bus/streams.py"
    unit.write_text("def part(m):\n    m.d.comb += [a.eq(1), b.eq(2)]\n")
    (tree / "tests/rtl/top/test_kernel.py").write_text("def test_other():\n    pass\n")
    (tree / "tests/rtl/bus/test_registers.py").write_text(
        "import time\nfrom pathlib import Path\n\n"
        "def test_source():\n"
        "    text = Path('rtl/bus/streams.py').read_text()\n"
        "    if 'b.eq(3)' in text:\n"
        "        time.sleep(600)\n"
        "    assert 'a.eq(1)' in text\n"
    )
    copy.mkdir()
    workshop, found = Workshop(tree, copy), {}
    for one in mutations("rtl/bus/streams.py", unit.read_bytes()):
        found[one.change] = workshop.kill(one, limit=10.0 if one.new == "3" else None)
    assert found == {
        "a.eq(1) -> []": ("killed", "tests/rtl/bus/test_registers.py::test_source"),
        "1 -> 2": ("killed", "tests/rtl/bus/test_registers.py::test_source"),
        "b.eq(2) -> []": ("survived", None),
        "2 -> 3": ("limit", "tests/rtl/bus/test_registers.py"),
    }
    assert unit.read_text() == (copy / "rtl/bus/streams.py").read_text() and "b.eq(2)" in unit.read_text()
    workshop.stop()
    with pytest.raises(Error, match="must not run in a workshop that was stopped"):
        workshop.kill(one)
    assert list(tree.rglob("__pycache__")) == []
    (tree / "tests/rtl/bus/test_registers.py").write_text("assert False\n")
    (copy / "again").mkdir()
    with pytest.raises(RuntimeError, match="test_registers.py must pass before anything is changed"):
        Workshop(tree, copy / "again").baseline("tests/rtl/bus/test_registers.py")


def test_the_share_counts_what_can_be_noticed():
    outcomes = ["killed"] * 5 + ["limit", "survived", "equivalent", "equivalent"]
    found = report(3, 9, [{"outcome": outcome} for outcome in outcomes])
    assert found["figures"][0]["value"] == 6 / 7 and found["figures"][0]["unit"] == "of 7 mutants, seed 3"
    assert found["figures"][0]["name"] == "tests.mutants_killed_share"
