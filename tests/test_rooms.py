"""The rooms of the house: who may import whom, also inside functions."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each imports only what stands before it; docs/architecture.md draws it.
HOUSES = ("rtl", "gen", "sim", "boards")
ROOMS_OF_RTL = (
    "memory arithmetic bus config ternary vector matrix kv attention index control link top"
).split()  # lowest first


class _Running(ast.NodeTransformer):
    def visit_If(self, node):
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)


def imported(path):
    """Dotted names of the project's modules and names that a file imports when it runs: what its types alone need does not count."""
    for node in ast.walk(_Running().visit(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name


def rooms(house, root=ROOT):
    """Graph of the rooms of a house, and of the modules that stand in none: name to what it imports."""
    graph = {}
    for path in sorted((root / house).rglob("*.py")):
        own = path.relative_to(root / house).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        found = graph.setdefault(own, set())
        for name in imported(path):
            parts = name.split(".")
            if parts[:2] == ["intaglio", house] and len(parts) > 2 and parts[2] != own:
                if (root / house / parts[2]).is_dir() or (root / house / f"{parts[2]}.py").is_file():
                    found.add(parts[2])
    return graph


@pytest.mark.parametrize("house", [*HOUSES, "host"])
def test_no_circles_between_rooms(house):
    graph = rooms(house)
    assert len(graph) > 2
    TopologicalSorter(graph).prepare()


def test_rooms_of_the_hardware_stand_in_order():
    graph = rooms("rtl")
    assert set(graph) == set(ROOMS_OF_RTL)
    wrong = {
        (room, other)
        for room, others in graph.items()
        for other in others
        if ROOMS_OF_RTL.index(other) > ROOMS_OF_RTL.index(room)
    }
    assert not wrong


def test_houses_import_what_stands_before_them():
    for number, house in enumerate(HOUSES):
        later = {f"intaglio.{other}" for other in HOUSES[number + 1 :]}
        for path in (ROOT / house).rglob("*.py"):
            assert not {name for name in imported(path) if ".".join(name.split(".")[:2]) in later}, path
    for path in (ROOT / "host").rglob("*.py"):
        houses = {f"intaglio.{other}" for other in HOUSES}
        assert not {name for name in imported(path) if ".".join(name.split(".")[:2]) in houses}, path


def test_a_circle_is_found(tmp_path):
    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / "rtl" / name).mkdir(parents=True)
        (tmp_path / "rtl" / name / "unit.py").write_text(f"def late():\n    from intaglio.rtl.{other}.unit import x\n")
    with pytest.raises(CycleError):
        TopologicalSorter(rooms("rtl", tmp_path)).prepare()
