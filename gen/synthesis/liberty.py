"""Cell libraries in the Liberty format: areas, logic functions, leakage and which cells are registers; no timing is interpreted here.

A file may be compressed (``.gz``). Several files are one library. Cells are told by the truth tables of their functions
(:mod:`intaglio.gen.synthesis.liberty_function`), however these are written and whatever the cells are called.
"""

import fnmatch
import functools
import gzip
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from intaglio import Error
from intaglio.gen.synthesis.liberty_function import gate_kind, truth_table
from intaglio.rtl.memory.logic.cells import INV, Cell, CellSet

__all__ = ["BUILT_IN", "NAND2", "Liberty", "LibertyCell", "read_liberty"]

BUILT_IN = {"nangate45": Path(__file__).parent / "cells" / "nangate45.lib"}
"""Libraries that come with the project: areas only."""

_GROUP = re.compile(
    r"(?:\b(library|cell|ff|latch|statetable|pin)\s*\(([^)]*)\)\s*\{)|([{}])|\"[^\"\\]*(?:\\.[^\"\\]*)*\"|(/\*)",
    re.DOTALL,
)
_LIBRARY = re.compile(r"\blibrary\s*\(")
_AREA = re.compile(r"\barea\s*:\s*\"?([-+.\deE]+)")
_FUNCTION = re.compile(r"\bfunction\s*:\s*(?:\"([^\"\\]*(?:\\.[^\"\\]*)*)\"|([^\";\s][^\";]*);)", re.DOTALL)
_THREE_STATE = re.compile(r"\bthree_state\s*:")
_DONT_USE = re.compile(r"\bdont_use\s*:\s*\"?true\b")
_DIRECTION = re.compile(r"\bdirection\s*:\s*\"?(\w+)")
_TIMING = re.compile(r"\bcell_rise\s*\(")
_LEAKAGE = re.compile(
    r"leakage_power\s*\(\)\s*\{\s*value\s*:\s*([\d.eE+-]+);\s*when[^;]*;\s*related_pg_pin\s*:\s*\"?VDD"
)
_PIN = re.compile(r"\bpin\s*\(")
_CAPACITANCE = re.compile(r"\bcapacitance\s*:\s*([\d.eE+-]+)")
NAND2 = ("oai", (1, 1))
INPUTS = 9  # of a gate whose function is looked at


@dataclass(frozen=True, kw_only=True)
class LibertyCell:
    """One cell: area, input pins, functions by output pin; ``state``: None, ``ff``, ``latch`` or ``statetable``; ``body``: its text."""

    name: str
    area: float
    inputs: tuple
    functions: dict
    state: str | None
    body: str = field(default="", repr=False)

    @property
    def sequential(self) -> bool:
        return self.state is not None

    @functools.cached_property
    def gate(self) -> tuple[tuple, tuple[str, ...]] | None:
        """``(kind, pins in its order)`` (:func:`~intaglio.gen.synthesis.liberty_function.gate_kind`); None for no gate of one output."""
        if self.sequential or len(self.functions) != 1 or not 1 <= len(self.inputs) <= INPUTS:
            return None
        table = truth_table(next(iter(self.functions.values())), self.inputs)
        return None if table is None else gate_kind(table, self.inputs)

    @property
    def leakage(self) -> float:
        """Mean over the states that the text gives, in the file's unit; 0 if it gives none."""
        found = [float(value) for value in _LEAKAGE.findall(self.body)]
        return statistics.mean(found) if found else 0.0

    @property
    def capacitance(self) -> float:
        """Sum over the inputs, in the file's unit."""
        pins = [pin for pin in _PIN.split(self.body)[1:] if (found := _DIRECTION.search(pin)) and found[1] == "input"]
        return sum(float(found[1]) for pin in pins if (found := _CAPACITANCE.search(pin)))


@dataclass(frozen=True, kw_only=True)
class Liberty:
    """A library.

    Members
    -------
    name : str
    paths : tuple of Path
    cells : dict of str to LibertyCell
        Without those that were to be left out.
    timed : bool
        Whether there are delay tables.
    """

    name: str
    paths: tuple
    cells: dict
    timed: bool
    dont_use: tuple = ()

    @functools.cached_property
    def text(self) -> str:
        """One Liberty text of all files without the cells that are not to be used: what ABC and Yosys read."""
        bodies = []
        for path in self.paths:
            text = _text(path)
            for name, (start, stop) in sorted(_spans(text, path).items(), key=lambda item: -item[1][0]):
                if name not in self.cells:
                    text = text[:start] + text[stop:]
            start = text.index("{", next(_LIBRARY.finditer(text)).start()) + 1
            bodies.append(text[start : text.rindex("}")])
        return "library (" + re.sub(r"\W", "_", self.name) + ") {\n" + "\n".join(bodies) + "\n}\n"

    @functools.cached_property
    def gates(self) -> CellSet:
        """The :class:`CellSet` of the gates that a ROM can be built with.

        Raises
        ------
        Error
            A gate that every ROM needs is missing.
        """
        found = {}
        for cell in sorted(self.cells.values(), key=lambda c: (c.area, c.name)):
            if cell.gate and cell.gate[0] not in found:
                kind, pins = cell.gate
                found[kind] = Cell(name=cell.name, area=cell.area, pins=pins, output=next(iter(cell.functions)))
        try:
            return CellSet(self.name, found)
        except ValueError as fault:
            raise Error(str(fault)) from fault

    def of_kind(self, kind: tuple, what: str) -> list[LibertyCell]:
        """The gates of a kind of :mod:`intaglio.rtl.memory.logic.cells` by area; :class:`Error`, which says ``what``, if there is none."""
        found = sorted((c for c in self.cells.values() if c.gate and c.gate[0] == kind), key=lambda c: (c.area, c.name))
        if not found:
            raise Error(f"cell library {self.name} must have {what}")
        return found

    def inverters(self) -> list[LibertyCell]:
        return self.of_kind(INV, "an inverter")

    def nand2(self) -> LibertyCell:
        """The smallest NAND2, whose area is the unit of gate counts."""
        return self.of_kind(NAND2, "a NAND2")[0]


def read_liberty(paths: Path | str | Sequence[Path | str], dont_use: Iterable[str] = ()) -> Liberty:
    """Read a library.

    Parameters
    ----------
    paths : path, name of a built-in library, or sequence of these
    dont_use : sequence of str
        Patterns (``*xp*``) of cells to leave out, besides those that the library itself marks ``dont_use``.

    Raises
    ------
    Error
        A file is missing, not Liberty, or has no cells with an area.
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    cells, timed, names = {}, False, []
    for path in paths:
        path = Path(BUILT_IN.get(str(path), path))
        text = _text(path)
        names.append(path.name.removesuffix(".gz").removesuffix(".lib"))
        found = _cells(text, path)
        timed = timed or bool(_TIMING.search(text))
        cells.update(found)
    kept = {
        name: cell
        for name, cell in cells.items()
        if not _DONT_USE.search(cell.body) and not any(fnmatch.fnmatchcase(name, pattern) for pattern in dont_use)
    }
    if not kept:
        raise Error(f"cell library {'+'.join(names)} must have cells that may be used; all {len(cells)} are left out")
    return Liberty(
        name=names[0] if len(names) == 1 else "+".join(names),
        paths=tuple(Path(BUILT_IN.get(str(p), p)) for p in paths),
        cells=kept,
        timed=timed,
        dont_use=tuple(dont_use),
    )


def _text(path):
    try:
        raw = path.read_bytes()
    except OSError as fault:
        raise Error(f"cell library {path} cannot be read: {fault.strerror}") from fault
    try:
        return (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8", "replace")
    except (OSError, EOFError) as fault:
        raise Error(f"cell library {path} must be Liberty text or gzip of it: {fault}") from fault


def _cells(text, path):
    """Cells by name."""
    return _parse(text, path)[0]


def _spans(text, path):
    """Where each cell's text begins and ends."""
    return _parse(text, path)[1]


def _parse(text, path):
    if not _LIBRARY.search(text):
        raise Error(f"cell library {path} must begin with a group library(...), which it does not have")
    depth, stack, cells, spans, skip = 0, [], {}, {}, 0
    for match in _GROUP.finditer(text):
        if match.start() < skip:
            continue
        if match[4]:
            end = text.find("*/", match.end())
            skip = len(text) if end < 0 else end + 2
        elif match[1]:
            depth += 1
            stack.append((depth, match[1], match[2].strip().strip('"'), match.end(), [], match.start()))
            if len(stack) > 1:
                stack[-2][4].append(stack[-1])
        elif match[3] == "{":
            depth += 1
        elif match[3] == "}":
            if stack and stack[-1][0] == depth:
                _, kind, name, start, inner, outer = stack.pop()
                if kind == "pin" and stack:
                    stack[-1][4][-1] = ("pin", name, text[start : match.start()])
                elif kind in ("ff", "latch", "statetable") and stack:
                    stack[-1][4][-1] = (kind, name, "")
                elif kind == "cell":
                    spans[name] = outer, match.end()
                    cell = _cell(name, text[start : match.start()], inner)
                    if cell:
                        cells[name] = cell
            depth -= 1
            if depth < 0:
                break
    if depth:
        raise Error(f"cell library {path} must have as many closing as opening braces; it is cut off or damaged")
    if not cells:
        raise Error(f"cell library {path} must have cells with an area; none was found")
    return cells, spans


def _cell(name, text, inner):
    head = text.split("pin", 1)[0]
    area = _AREA.search(head) or _AREA.search(text)
    if area is None:
        return None
    inputs, functions = [], {}
    for _, names, body in (item for item in inner if item[0] == "pin"):
        pins = [name.strip().strip('"') for name in names.split(",")]
        direction = _DIRECTION.search(body)
        function = _FUNCTION.search(body)
        if direction and direction[1] == "input":
            inputs += pins
        elif function and not _THREE_STATE.search(body):
            functions |= dict.fromkeys(pins, function[1] or function[2])
    return LibertyCell(
        name=name,
        area=float(area[1]),
        inputs=tuple(inputs),
        functions=functions,
        state=next((item[0] for item in inner if item[0] != "pin"), None),
        body=text,
    )
