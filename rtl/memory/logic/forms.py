"""The structured ROM: every used subset of a group of rows is built once and shared by all columns and outputs.

The words are a matrix of ``columns x rows``; ``C_c`` is the line of column ``c``, one-hot. The rows are cut into groups of ``size``; for
column ``c`` and output ``o``, ``S_g`` is the OR of those row lines of group ``g`` whose word has bit ``o`` set. There are at most
``2^size`` different ``S_g``, and they serve all columns and outputs. The output is ``OR_c C_c V`` with ``V = OR_g S_g``.

``V`` is also a product: with the groups in two parts, ``V = (S_1 + S_2 + B) (S_3 + S_4 + A)``, where ``A``, ``B`` are 1 in the rows of the
first and the second part. ``B`` is built into the signals ``S_1`` for nothing, so that one OAI22 (or OAI33 with six groups) forms ``V``.

A :class:`Form` says which cells do that. Each has a dual, for complemented words and address, from the AOI half of the library.

``inside``   ``oai[parts, 1]``: the column line is one more factor; its output is an active-low term.
``select``   ``oai[parts]`` gives not V; ``merge`` of them meet their column lines in one ``oai[2, 2, ...]``.
``several``  ``oai[size + 1, ...]``: ``merge`` columns in one gate, each an OR of its groups and its column line; an AND over columns.
``nand``     NANDs over active-low ``S_g``; their outputs meet the column line in one ``oai[n, 1]``.
"""

from dataclasses import dataclass

import numpy as np

from intaglio.rtl.memory.logic.cells import INVERTING
from intaglio.rtl.memory.logic.decode import Decode
from intaglio.rtl.memory.logic.netlist import ONE, Netlist
from intaglio.rtl.memory.logic.trees import WideOr

__all__ = ["Form", "build", "group_bounds"]

STYLES = ("inside", "select", "several", "nand")


@dataclass(frozen=True, kw_only=True)
class Form:
    """How the structured ROM is built.

    Parameters
    ----------
    style : str
        See above.
    parts : tuple of int
        Groups of each part; ``several`` and ``nand``: of each OR, each NAND.
    rows : int
        Rows of the matrix, in groups as equal as can be of at most 16; multiples of 8 or 16 decode cheaply.
    merge : int
        Columns that meet in one gate (``select``, ``several``).
    gate : str
        ``oai``, or ``oa`` for the non-inverting cell.
    dual : bool
    """

    style: str
    parts: tuple
    rows: int
    merge: int = 1
    gate: str = "oai"
    dual: bool = False

    def __post_init__(self):
        if self.style not in STYLES:
            raise ValueError(f"style must be one of {', '.join(STYLES)}, not {self.style!r}")
        if not self.parts or any(not isinstance(n, int) or n < 1 for n in self.parts):
            raise ValueError(f"parts must be numbers of groups, at least 1 each, not {self.parts!r}")
        if not sum(self.parts) <= self.rows <= 16 * sum(self.parts):
            raise ValueError(f"rows must be 1 to 16 for each of {sum(self.parts)} groups, not {self.rows}")

    def __str__(self):
        parts = "+".join(map(str, self.parts))
        return f"{self.style} {self.gate}, {self.rows} rows in {parts} groups, merge {self.merge}{', dual' if self.dual else ''}"


def group_bounds(rows, count):
    """The rows of each of ``count`` groups, as equal as can be."""
    return [list(range(rows * g // count, rows * (g + 1) // count)) for g in range(count)]


class _Subsets:
    """Signals ``S_g`` by group and pattern."""

    def __init__(self, netlist, wide, decode, groups, fills):
        self.netlist, self.wide, self.decode = netlist, wide, decode
        self.groups, self.fills = groups, fills
        self._known = {}
        cells = wide.cells
        nand, either = cells.area(("oai", (1, 1))), cells.area(("oa", (2,)))
        self.low_halves = either is None or (nand is not None and nand <= either)
        nor, both = cells.area(("oai", (2,))), cells.area(("oa", (1, 1)))
        self.high_halves = both is None or (nor is not None and nor <= both)

    def get(self, group, pattern, high):
        """``S`` of the rows of ``group`` in ``pattern`` (and its fill); None if it is constantly 0."""
        key = group, pattern, high
        if key not in self._known:
            rows = self.groups[group]
            half = (len(rows) + 1) // 2
            set_rows = [r for i, r in enumerate(rows) if pattern >> i & 1]
            members = [[r for r in set_rows if r < rows[half - 1] + 1], [r for r in set_rows if r > rows[half - 1]]]
            fill = self.fills.get(group)
            lower, upper = bool(members[0] or fill), bool(members[1])
            # high from two low halves is a NAND (else an OR of high ones), low from two high halves a NOR (else an AND of low ones)
            polarity = (not self.low_halves if high else self.high_halves) if lower and upper else high
            halves = [self._half(members[0], fill, polarity)] if lower else []
            halves += [self._half(members[1], None, polarity)] if upper else []
            signal = self._join(halves, polarity, high) if halves else None
            self._known[key] = self.netlist.label(signal, f"s{group}_{pattern:x}{'' if high else 'n'}")
        return self._known[key]

    def _join(self, halves, polarity, high):
        if len(halves) == 1:
            return halves[0]
        form = "oai" if polarity != high else "oa"
        return self.netlist.gate(form, (tuple(halves),) if polarity else tuple((h,) for h in halves))

    def _half(self, rows, fill, high):
        key = tuple(rows), fill, high
        if key not in self._known:
            count = len(rows) + (fill is not None)
            polarity = min((True, False), key=lambda p: self.wide.area(count, p, high))
            lines = [self.decode.row(r, polarity) for r in rows] + ([fill(polarity)] if fill else [])
            self._known[key] = self.wide.make(self.netlist, lines, polarity, high)
        return self._known[key]


def _patterns(bits, groups):
    """``[group][column, output]``: the rows of the group that are set, as an integer."""
    return [np.tensordot(1 << np.arange(len(rows)), bits[:, rows, :], axes=(0, 1)) for rows in groups]


def build(bits, form, cells):
    """Netlist of a bank.

    Parameters
    ----------
    bits : bool ``[depth, width]``, depth at least 2
    form : Form
    cells : CellSet

    Raises
    ------
    ValueError
        The library has no cell for the form.
    """
    depth, width = bits.shape
    inputs = (depth - 1).bit_length()
    if form.rows >= 1 << inputs:
        raise ValueError(f"rows must be fewer than the {1 << inputs} addresses, not {form.rows}")
    netlist = Netlist(inputs, dual=form.dual)
    cells = _Dual(cells) if form.dual else cells
    wide = WideOr(cells)
    decode = Decode(netlist, wide, form.rows)
    matrix = np.zeros((decode.columns * form.rows, width), bool)
    matrix[:depth] = bits
    if form.dual:  # word a is at the complemented address, and complemented
        whole = np.zeros((1 << inputs, width), bool)
        whole[:depth] = ~bits
        matrix[: 1 << inputs] = whole[::-1]
        if len(matrix) > 1 << inputs:
            matrix[1 << inputs :] = False
    matrix = matrix.reshape(decode.columns, form.rows, width)
    count = sum(form.parts)
    groups = group_bounds(form.rows, count)
    if form.style in ("inside", "select"):
        parts = np.split(np.arange(count), np.cumsum(form.parts)[:-1])
    else:
        parts = [np.arange(count)]
    fills = {}
    if len(parts) > 1:
        line = {}

        def inside(p, high):
            if (p, high) not in line:
                rows = [r for g in parts[p] for r in groups[g]]
                polarity = min((True, False), key=lambda q: wide.area(len(rows), q, high))
                line[p, high] = wide.make(netlist, [decode.row(r, polarity) for r in rows], polarity, high)
            return line[p, high]

        for p, part in enumerate(parts):
            if len(parts) == 2:
                fills[int(part[0])] = lambda high, other=1 - p: inside(other, high)
            else:
                fills[int(part[0])] = lambda high, p=p: inside(p, not high)
    subsets = _Subsets(netlist, wide, decode, groups, fills)
    patterns = _patterns(matrix, groups)
    style = {"inside": _inside, "select": _select, "several": _several, "nand": _nand}[form.style]
    constant = {True: ONE, False: None}
    netlist.outputs = [
        constant[bool(bits[0, o])]
        if (bits[:, o] == bits[0, o]).all()
        else style(netlist, wide, decode, subsets, form, [p[:, o].tolist() for p in patterns], parts)
        for o in range(width)
    ]
    netlist.sweep()
    return netlist


class _Dual:
    """A library seen by a dual netlist."""

    def __new__(cls, cells):
        from intaglio.rtl.memory.logic.cells import CellSet, dual

        return CellSet(f"dual of {cells.name}", {dual(kind): cell for kind, cell in cells.cells.items()})


def _gate(netlist, cells, form, groups):
    """A gate that the library may have in a larger size only: inputs and whole groups are doubled."""
    if form in ("aoi", "ao") and len(groups) == 1:
        form, groups = {"aoi": "oai", "ao": "oa"}[form], [(signal,) for signal in groups[0]]
    groups = list(groups)
    sizes = cells.fit(form, tuple(map(len, groups)))
    for _ in range(2):
        if sizes is None:
            groups.append(groups[-1])
            sizes = cells.fit(form, tuple(map(len, groups)))
    if sizes is None:
        raise ValueError(f"cell library {cells.name} has no cell for {form} of groups {tuple(map(len, groups[:-2]))}")
    return netlist.gate(
        form, tuple(tuple(group) + (group[0],) * (size - len(group)) for group, size in zip(groups, sizes, strict=True))
    )


def _leaves(subsets, patterns, part, column, high):
    found = [subsets.get(int(g), patterns[g][column], high) for g in part]
    return [signal for signal in found if signal is not None]


def _inside(netlist, wide, decode, subsets, form, patterns, parts):
    terms, high = [], not INVERTING[form.gate]
    for c in range(decode.columns):
        groups = [_leaves(subsets, patterns, part, c, True) for part in parts]
        if all(groups):
            terms.append(_gate(netlist, wide.cells, form.gate, [*groups, [decode.column(c, True)]]))
    return wide.make(netlist, terms, high, True)


def _select(netlist, wide, decode, subsets, form, patterns, parts):
    pairs = []
    for c in range(decode.columns):
        groups = [_leaves(subsets, patterns, part, c, True) for part in parts]
        if all(groups):
            pairs.append((_gate(netlist, wide.cells, "oai", groups), decode.column(c, False)))
    terms = [_gate(netlist, wide.cells, form.gate, pairs[i : i + form.merge]) for i in range(0, len(pairs), form.merge)]
    return wide.make(netlist, terms, INVERTING[form.gate], True)


def _several(netlist, wide, decode, subsets, form, patterns, parts):
    """Output 1 unless a selected column has V = 0: gates of complement first, so the AND over columns is an OR of active-low terms."""
    groups = []
    for c in range(decode.columns):
        groups.append([*_leaves(subsets, patterns, parts[0], c, True), decode.column(c, False)])
    terms = [
        _gate(netlist, wide.cells, form.gate, groups[i : i + form.merge]) for i in range(0, len(groups), form.merge)
    ]
    # inverting: the terms are 1 where the word's bit is 0; their OR is the complement of the output
    return wide.make(netlist, terms, INVERTING[form.gate], False)


def _nand(netlist, wide, decode, subsets, form, patterns, parts):
    terms, ready = [], []
    splits = np.split(parts[0], np.cumsum(form.parts)[:-1])
    for c in range(decode.columns):
        found = []
        for split in splits:
            leaves = _leaves(subsets, patterns, split, c, False)
            if leaves:
                found.append(wide.make(netlist, leaves, False, True))
        if not found:
            continue
        if form.merge == 1:
            terms.append(_gate(netlist, wide.cells, form.gate, [found, [decode.column(c, True)]]))
        else:
            ready.append((found[0], decode.column(c, True)))
    if form.merge > 1:
        other = {"oai": "aoi", "oa": "ao"}[form.gate]
        terms = [_gate(netlist, wide.cells, other, ready[i : i + form.merge]) for i in range(0, len(ready), form.merge)]
    return wide.make(netlist, terms, not INVERTING[form.gate], True)
