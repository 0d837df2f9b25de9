"""Mutations of the RTL's source: places in Python that describe hardware, each with one small change.

Only what becomes hardware is changed: the arguments of ``.eq()``, the conditions of ``m.If`` and ``m.Elif``, whole assignments, initial
values, resets. Widths, names, ranges and what Python itself decides while it elaborates stay as they are.
"""

import ast
import bisect
import hashlib
import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["KINDS", "Mutation", "draw", "mutations"]

KINDS = ("comparison", "arithmetic", "boolean", "inversion", "constant", "condition", "assignment", "reset")
_COMPARISONS = {ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Lt: ("<", "<="), ast.LtE: ("<=", "<")}
_COMPARISONS |= {ast.Gt: (">", ">="), ast.GtE: (">=", ">")}
_ARITHMETIC = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "+")}
_ARITHMETIC |= {ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<")}
_BOOLEAN = {ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"), ast.BitXor: ("^", "&")}
_INERT = {"Signal", "Const", "range", "index_bits", "len", "like", "bit_length", "replicate", "isinstance"}  # widths


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """One change: bytes ``start`` to ``end`` of a file become ``new``.

    ``line`` is the first changed line's number, ``text`` that line without indentation; (``path``, ``text``, ``change``) names the
    mutation as long as the line stays as it is, wherever it moves.
    """

    path: str
    kind: str
    line: int
    text: str
    start: int
    end: int
    old: str
    new: str

    @property
    def change(self) -> str:
        return f"{self.old} -> {self.new or 'nothing'}"

    def apply(self, source: bytes) -> bytes:
        assert source[self.start : self.end].decode() == self.old
        return source[: self.start] + self.new.encode() + source[self.end :]


class _Finder(ast.NodeVisitor):
    def __init__(self, path: str, source: bytes) -> None:
        self.path, self.source, self.lines, self.found, self.hardware = path, source, source.splitlines(True), [], False
        self.begins = [0]
        for line in self.lines:
            self.begins.append(self.begins[-1] + len(line))

    def span(self, node: Any) -> tuple[int, int]:
        return self.begins[node.lineno - 1] + node.col_offset, self.begins[node.end_lineno - 1] + node.end_col_offset

    def add(self, kind, start, end, new):
        line = bisect.bisect_right(self.begins, start)
        old, text = self.source[start:end].decode(), self.lines[line - 1].decode().strip()
        self.found.append(
            Mutation(path=self.path, kind=kind, line=line, text=text, start=start, end=end, old=old, new=new)
        )

    def operator(self, kind, left, right, pair):
        """The operator lies between its operands, perhaps with brackets around it."""
        begin, end = self.span(left)[1], self.span(right)[0]
        at = self.source.index(pair[0].encode(), begin, end)
        self.add(kind, at, at + len(pair[0]), pair[1])

    def visit_FunctionDef(self, node):  # noqa: N802
        before = self.hardware
        self.hardware = before or node.name == "elaborate" or any(argument.arg == "m" for argument in node.args.args)
        for statement in node.body:
            self.visit(statement)
        self.hardware = before

    def visit_Call(self, node):  # noqa: N802
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if self.hardware and name == "eq":
            for argument in node.args:
                self.expression(argument)
        elif self.hardware and name in ("If", "Elif") and isinstance(node.func, ast.Attribute):
            start, end = self.span(node.args[0])
            self.add("condition", start, end, f"({self.source[start:end].decode()}) == 0")
            self.expression(node.args[0])
        elif self.hardware and isinstance(node.func, ast.Call) and getattr(node.func.func, "id", "") == "ResetInserter":
            self.add("reset", *self.span(node.func), "")
        if name == "Signal" and self.hardware:
            for keyword in node.keywords:
                if keyword.arg == "init":
                    start, end = self.span(keyword.value)
                    self.add("reset", start, end, f"({self.source[start:end].decode()}) ^ 1")
        self.generic_visit(node)

    def visit_AugAssign(self, node):  # noqa: N802
        target = ast.unparse(node.target)
        if self.hardware and target.startswith("m.d."):
            self.statements(node.value)
        self.generic_visit(node)

    def statements(self, node):
        """Assignments that one statement adds, which may be left out each."""
        if isinstance(node, ast.List | ast.Tuple):
            for element in node.elts:
                self.statements(element)
        elif isinstance(node, ast.Starred):
            self.statements(node.value)
        elif isinstance(node, ast.GeneratorExp | ast.ListComp):
            self.statements(node.elt)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "eq":
            self.add("assignment", *self.span(node), "[]")

    def expression(self, node):
        """Operators and constants of what becomes hardware."""
        match node:
            case ast.Call():
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name not in _INERT:
                    for argument in node.args:
                        self.expression(argument)
                if isinstance(node.func, ast.Attribute):
                    self.expression(node.func.value)
                return
            case ast.Subscript():
                self.expression(node.value)
                return
            case ast.IfExp():
                self.expression(node.body)
                self.expression(node.orelse)
                return
            case ast.GeneratorExp() | ast.ListComp():
                self.expression(node.elt)
                return
            case ast.Compare(ops=[operator]) if type(operator) in _COMPARISONS:
                self.operator("comparison", node.left, node.comparators[0], _COMPARISONS[type(operator)])
            case ast.BinOp(op=operator) if type(operator) in _ARITHMETIC:
                self.operator("arithmetic", node.left, node.right, _ARITHMETIC[type(operator)])
            case ast.BinOp(op=operator) if type(operator) in _BOOLEAN:
                self.operator("boolean", node.left, node.right, _BOOLEAN[type(operator)])
            case ast.UnaryOp(op=ast.Invert()):
                start, _ = self.span(node)
                self.add("inversion", start, start + 1, "")
            case ast.Constant(value=value) if type(value) is int:
                self.add("constant", *self.span(node), str(value + 1))
        for child in ast.iter_child_nodes(node):
            self.expression(child)


def mutations(path: str, source: bytes) -> list[Mutation]:
    """All mutations of a file, in its order.

    Parameters
    ----------
    path : str
        As it is to be named.
    source : bytes

    Returns
    -------
    list of Mutation
    """
    finder = _Finder(path, source)
    finder.visit(ast.parse(source))
    unique = {(found.start, found.end, found.new): found for found in finder.found}
    return sorted(unique.values(), key=lambda found: (found.start, found.end, found.new))


def draw(root: Path, seed: int, count: int, only: str | None = None) -> list[Mutation]:
    """``count`` mutations of the files of ``root/rtl``, rooms by turns, and in a room kinds by turns.

    Parameters
    ----------
    root : Path
    seed, count : int
        Equal seeds give equal lists from equal sources; a longer list begins with the shorter.
    only : str or None
        One room, a folder of ``rtl``.

    Raises
    ------
    ValueError
        There is no such room, or nothing in it to change.
    """
    rooms = {}
    for path in sorted(Path(root, "rtl").rglob("*.py")):
        name = path.relative_to(root).as_posix()
        found = mutations(name, path.read_bytes())
        if found:
            rooms.setdefault(name.split("/")[1], []).extend(found)
    if only is not None and only not in rooms:
        raise ValueError(f"a room must be one of {', '.join(rooms)}, not {only!r}")
    rooms = {room: found for room, found in rooms.items() if only in (None, room)}
    queues = {room: _order(seed, found) for room, found in rooms.items()}
    out = []
    while len(out) < count and any(queues.values()):
        for queue in queues.values():
            if queue and len(out) < count:
                out.append(queue.pop(0))
    return out


def _order(seed, found):
    """A room's mutations at random, kinds by turns. Each is placed by a hash of itself: a change of other lines leaves it where it is."""
    seen, kinds = Counter(), {kind: [] for kind in KINDS}
    for one in found:
        name = (one.path, one.text, one.change)
        digest = hashlib.sha256(repr((seed, seen[name], *name)).encode()).digest()
        kinds[one.kind].append((digest, one))
        seen[name] += 1
    turns = sorted(
        KINDS, key=lambda kind: hashlib.sha256(repr((seed, found[0].path.split("/")[1], kind)).encode()).digest()
    )
    queues = [[one for _, one in sorted(kinds[kind], key=lambda pair: pair[0])] for kind in turns]
    return [one for row in itertools.zip_longest(*queues) for one in row if one is not None]
