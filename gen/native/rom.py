"""Structured ROMs by ``rom.cpp``: the netlists of :mod:`intaglio.rtl.memory.logic.forms`, gate for gate."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np

from intaglio.gen.native.library import compiled
from intaglio.rtl.memory.logic.cells import GENERIC, CellSet
from intaglio.rtl.memory.logic.forms import STYLES, Form
from intaglio.rtl.memory.logic.search import PYTHON, Maker, views

__all__ = ["NativeMaker", "NativeNetlist", "fastest_maker"]

SOURCE = Path(__file__).with_name("rom.cpp")
FORMS = ("oai", "aoi", "oa", "ao")
LEAST_DEPTH = 33  # words; below, any number of rows may be tried, which the C++ does not know
ROOM = 8  # bytes beyond a column that may be read

_INT, _I64, _POINTER, _ARRAY = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
_INTS = ctypes.POINTER(ctypes.c_int)
_FIT = ctypes.CFUNCTYPE(_INT, _INT, _INT, _INT, _INTS, _INTS)
_PLAN = ctypes.CFUNCTYPE(ctypes.c_double, _INT, _INT, _INT, _INT, _INTS, _INT)
_SIGNATURES = {
    "library": (_POINTER, (_FIT, _PLAN, _ARRAY)),
    "library_free": (None, (_POINTER,)),
    "distinct": (_I64, (_ARRAY, _I64, _INT, _INT, _INT, _INT)),
    "build": (_POINTER, (_POINTER, *[_INT] * 6, _ARRAY, _INT, _ARRAY, _I64, _INT, _ARRAY)),
    "free": (None, (_POINTER,)),
    "gates": (_I64, (_POINTER,)),
    "pins": (_I64, (_POINTER,)),
    "export": (None, (_POINTER, *[_ARRAY] * 5)),
    "holds": (_INT, (_POINTER, _ARRAY, _I64, _INT)),
    "body": (_POINTER, (_POINTER,)),
    "body_data": (_POINTER, (_POINTER,)),
    "body_size": (_I64, (_POINTER,)),
    "body_free": (None, (_POINTER,)),
}


def fastest_maker(progress: Callable[[str], None] | None = None) -> Maker:
    """The C++ if a compiler is there, else numpy; ``progress`` is called with a line that says so."""
    library, reason = compiled(SOURCE)
    if library is None:
        if progress:
            progress(f"gates are made by numpy, some 50 times slower: {reason}")
        return PYTHON
    return NativeMaker(library)


def _columns(bits):
    """Each output's bits, packed, lowest first, with room: uint8 ``[width, bytes]``."""
    packed = np.packbits(np.ascontiguousarray(bits.T), axis=1, bitorder="little")
    return np.ascontiguousarray(np.pad(packed, ((0, 0), (0, ROOM))))


class NativeMaker(Maker):
    """As :class:`~intaglio.rtl.memory.logic.search.Maker`, by the shared object ``library``."""

    def __init__(self, library: Path) -> None:
        loaded = ctypes.CDLL(str(library))
        self.calls = {}
        for name, (result, arguments) in _SIGNATURES.items():
            self.calls[name] = getattr(loaded, "rom_" + name)
            self.calls[name].restype, self.calls[name].argtypes = result, arguments
        self._libraries, self._packed = {}, []

    def distinct(self, bits: np.ndarray, rows: int, count: int) -> int:
        columns = self._columns_of(bits)
        return self.calls["distinct"](columns.ctypes.data, columns.shape[1], bits.shape[1], bits.shape[0], rows, count)

    def _columns_of(self, bits):
        """Packed columns of an array that is asked for again and again: the words and their complement."""
        for known, columns in self._packed:
            if known is bits:
                return columns
        columns = _columns(bits)
        self._packed = [*self._packed[-1:], (bits, columns)]
        return columns

    def build(self, bits: np.ndarray, form: Form, cells: CellSet = GENERIC) -> "NativeNetlist":
        depth, width = bits.shape
        inputs = (depth - 1).bit_length()
        if depth < LEAST_DEPTH:
            return super().build(bits, form, cells)
        if form.rows >= 1 << inputs:
            raise ValueError(f"rows must be fewer than the {1 << inputs} addresses, not {form.rows}")
        addresses, columns = 1 << inputs, -(-(1 << inputs) // form.rows)
        matrix = np.zeros((columns * form.rows, width), bool)
        if form.dual:  # word a is at the complemented address, and complemented
            matrix[addresses - depth : addresses] = ~bits[::-1]
        else:
            matrix[:depth] = bits
        laid = _columns(matrix)
        ones = bits.sum(axis=0)
        constant = np.where(ones == depth, 1, np.where(ones == 0, 0, 2)).astype(np.uint8)
        parts = np.array(form.parts, np.intc)
        handle = self.calls["build"](
            self._library(cells),
            int(form.dual),
            inputs,
            form.rows,
            STYLES.index(form.style),
            FORMS.index(form.gate),
            form.merge,
            parts.ctypes.data,
            len(parts),
            laid.ctypes.data,
            laid.shape[1],
            width,
            constant.ctypes.data,
        )
        if not handle:
            raise ValueError(f"cell library {cells.name} has no cell for the form {form}")
        return NativeNetlist(self, handle, inputs, width)

    def _library(self, cells):
        """Handle of what C++ knows of a cell library; it asks back here."""
        if cells not in self._libraries:
            both = views(cells)

            def fit(turned, form, count, sizes, found):
                sizes = both[bool(turned)][0].fit(FORMS[form], tuple(sizes[:count]))
                for i, size in enumerate(sizes or ()):
                    found[i] = size
                return 0 if sizes else -1

            def plan(turned, count, high, result, numbers, room):
                area, steps = both[bool(turned)][1].plan(count, bool(high), bool(result))
                flat = [len(steps)]
                for form, before, after, sizes in steps:
                    flat += [-1 if form == "invert" else FORMS.index(form), int(bool(before)), int(bool(after))]
                    flat += [len(sizes), *sizes]
                assert len(flat) <= room
                for i, number in enumerate(flat):
                    numbers[i] = number
                return area

            tables = np.array([number for turned in (False, True) for number in _tables(both[turned][0])], np.intc)
            asked = _FIT(fit), _PLAN(plan)
            self._libraries[cells] = self.calls["library"](*asked, tables.ctypes.data), asked
        return self._libraries[cells][0]


def _tables(cells):
    """What decoder and subsets choose by the library: see decode.py and forms.py."""
    nand, either = cells.area(("oai", (1, 1))), cells.area(("oa", (2,)))
    nor, both = cells.area(("oai", (2,))), cells.area(("oa", (1, 1)))
    found = [
        int(either is None or (nand is not None and nand <= either)),
        int(both is None or (nor is not None and nor <= both)),
    ]
    for n in (2, 3):
        for options in (
            [(("oai", (1,) * n), True), (("oa", (n,)), False)],
            [(("oai", (n,)), False), (("oa", (1,) * n), True)],
        ):
            have = [option for option in options if cells.has(option[0])]
            best = min(have, key=lambda option: cells.area(option[0]), default=None)
            found.append(-1 if best is None else FORMS.index(best[0][0]) * 2 + best[1])
    return found


class NativeNetlist:
    """A netlist in C++; see :class:`~intaglio.rtl.memory.logic.netlist.Netlist`."""

    def __init__(self, maker: NativeMaker, handle: int, inputs: int, width: int) -> None:
        self.maker, self.handle, self.inputs, self.width = maker, handle, inputs, width

    def __del__(self) -> None:
        self.maker.calls["free"](self.handle)

    def __len__(self) -> int:
        return self.maker.calls["gates"](self.handle)

    def _exported(self):
        gates, pins = len(self), self.maker.calls["pins"](self.handle)
        kinds, ends, ins = np.empty(gates, np.uint64), np.empty(gates, np.uint32), np.empty(pins, np.int32)
        outputs, labels = np.empty(self.width, np.int32), np.empty((gates, 4), np.int32)
        self.maker.calls["export"](self.handle, *(a.ctypes.data for a in (kinds, ends, ins, outputs, labels)))
        return kinds, ends, ins, outputs, labels

    def area(self, cells: CellSet) -> float:
        """Sum of the areas of the cells."""
        codes, first, counts = np.unique(self._exported()[0], return_index=True, return_counts=True)
        return sum(cells.area(_kind(int(codes[i]))) * int(counts[i]) for i in np.argsort(first))

    def holds(self, bits: np.ndarray) -> bool:
        """Whether the outputs are ``bits [depth, width]`` at every address below ``depth``: an exhaustive proof."""
        bits = np.asarray(bits, bool)
        if bits.shape[1] != self.width:
            return False
        columns = _columns(bits)
        return bool(self.maker.calls["holds"](self.handle, columns.ctypes.data, columns.shape[1], len(bits)))

    def body(self) -> str:
        """The lines of the module's body: a wire for each gate, and the outputs."""
        calls = self.maker.calls
        text = calls["body"](self.handle)
        try:
            return ctypes.string_at(calls["body_data"](text), calls["body_size"](text)).decode()
        finally:
            calls["body_free"](text)


def _kind(code):
    """See rom.cpp."""
    return FORMS[code & 3], tuple(code >> (8 + 4 * i) & 15 for i in range(code >> 2 & 63))
