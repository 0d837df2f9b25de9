"""Where each weight lies: lanes of units, each unit with banks of its own.

A row of a matrix is computed by one unit, ``width`` inputs a cycle; ``lanes * units`` rows at once. Row ``r`` belongs to position
``r mod (lanes * units)``, which is unit ``position mod units`` of lane ``position // units``; the unit's words are its rows one after the
other, each of ``ceil(inputs / width)`` words. Rows and inputs that a matrix lacks at the end are zeros. The words of one matrix in one
unit are cut into banks of at most ``height`` words, between rows. With one unit a lane and nothing to fill up, the banks of a lane, one
after the other, are the image of that lane's ROM in the decoder (``rtl/ternary/packing.py``, ``execution_order``).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from intaglio.gen.presets.decoder import PRESETS
from intaglio.rtl.config.decoder import word_bits
from intaglio.rtl.ternary.packing import pack

__all__ = ["LAYOUTS", "Bank", "BankLayout", "Placement", "byte_banks", "layout_for", "matrix_banks", "scale_bank"]


@dataclass(frozen=True, kw_only=True)
class BankLayout:
    """Units and their banks.

    Parameters
    ----------
    lanes, units : int
        Lanes, and units in each.
    width : int
        Weights that a unit takes in a cycle.
    height : int
        Most words of a bank.
    packing : str
        See :class:`~intaglio.rtl.config.decoder.DecoderConfig`.

    Raises
    ------
    ValueError
        A parameter is out of range.
    """

    lanes: int
    units: int
    width: int
    height: int = 1024
    packing: str = "2bit"

    def __post_init__(self) -> None:
        for name, most in (("lanes", 4096), ("units", 4096), ("width", 1 << 14), ("height", 1 << 30)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"{name} of a bank layout must be an integer in 1..{most}, not {value!r}")
        word_bits(self.packing, self.width)

    @property
    def positions(self) -> int:
        """Rows that are computed at once."""
        return self.lanes * self.units

    @property
    def bits(self) -> int:
        """Bits of a word of weights."""
        return word_bits(self.packing, self.width)

    def chunks(self, inputs: int) -> int:
        """Words of a row."""
        return -(-inputs // self.width)

    def groups(self, rows: int) -> int:
        """Rows of a unit."""
        return -(-rows // self.positions)

    def tile_rows(self, inputs: int) -> int:
        """Rows of a matrix that the first bank of every unit holds together."""
        return self.groups_in_bank(inputs) * self.positions

    def groups_in_bank(self, inputs: int) -> int:
        """Rows of a full bank; raises ``ValueError`` where not even one fits."""
        if self.chunks(inputs) > self.height:
            raise ValueError(f"a bank's height must be at least a row's {self.chunks(inputs)} words, not {self.height}")
        return self.height // self.chunks(inputs)

    def banks(self, rows: int, inputs: int) -> list[int]:
        """Words of each bank that a matrix has in every unit."""
        whole, left = divmod(self.groups(rows), self.groups_in_bank(inputs))
        chunks = self.chunks(inputs)
        return [self.groups_in_bank(inputs) * chunks] * whole + [left * chunks] * (left > 0)


@dataclass(frozen=True, kw_only=True)
class Bank:
    """The address of one bank: ``layer`` is None for embedding and head, the tables, and their rows' scales."""

    layer: int | None
    matrix: str
    lane: int
    unit: int
    tile: int

    @property
    def name(self) -> str:
        """Unique inside its layer; a Verilog identifier."""
        return f"{self.matrix}_l{self.lane:02}_u{self.unit:02}_t{self.tile:02}"


# TOM's arrays (arXiv 2602.20662): 16 lanes of 10 units; 128 weights a cycle follow from its speed; banks of 1,024 words.
LAYOUTS = {"tom": BankLayout(lanes=16, units=10, width=128, height=1024)}


def layout_for(preset: str) -> BankLayout:
    """The layout of a preset of :data:`LAYOUTS` or of the decoder's; raises ``ValueError`` for an unknown name."""
    if preset in LAYOUTS:
        return LAYOUTS[preset]
    if preset not in PRESETS:
        raise ValueError(f"the preset must be one of {', '.join([*LAYOUTS, *PRESETS])}, not {preset!r}")
    widths = PRESETS[preset].widths
    return BankLayout(lanes=widths["lanes"], units=1, width=widths["lane_width"], packing=widths.get("packing", "2bit"))


def matrix_banks(layout: BankLayout, layer: int, name: str, weights: np.ndarray) -> Iterator[tuple[Bank, np.ndarray]]:
    """Banks of one matrix (of :func:`~intaglio.gen.emit.images.execution_matrix`): pairs of :class:`Bank` and uint8 ``[depth, bytes]``."""
    for lane, unit, rows in _units(layout, weights):
        words = pack(rows, layout.packing)
        yield from _cut(layout, layer, name, lane, unit, weights.shape[1], words)


def byte_banks(layout: BankLayout, name: str, elements: np.ndarray, tile: int) -> Iterator[tuple[Bank, np.ndarray]]:
    """Banks ``tile`` of the INT8 rows ``elements`` of a table, which begin that tile, as pairs of :class:`Bank` and words."""
    for lane, unit, rows in _units(layout, elements):
        yield Bank(layer=None, matrix=name, lane=lane, unit=unit, tile=tile), np.ascontiguousarray(rows).view(np.uint8)


def scale_bank(name: str, scales: np.ndarray, tile: int) -> tuple[Bank, np.ndarray]:
    """The scales uint16 ``[rows]`` of the rows that tile ``tile`` of the table ``name`` has: one :class:`Bank`, a row's a word."""
    bank = Bank(layer=None, matrix=f"{name}_scales", lane=0, unit=0, tile=tile)
    return bank, scales.astype("<u2").reshape(-1, 1).view(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where all of a model lies.

    Parameters
    ----------
    weights : BankLayout
    tables : BankLayout
        Of embedding and head, with ``width`` INT8 elements a word.
    row_scales : int
        1: each row of a table has a scale of its own.
    """

    weights: BankLayout
    tables: BankLayout
    row_scales: int


def _units(layout, matrix):
    """Lane, unit and its words, ``[words, width]``, for every unit; zeros where the matrix ends."""
    rows, inputs = matrix.shape
    groups, chunks = layout.groups(rows), layout.chunks(inputs)
    if (rows, inputs) != (groups * layout.positions, chunks * layout.width):
        matrix = np.pad(matrix, ((0, groups * layout.positions - rows), (0, chunks * layout.width - inputs)))
    matrix = matrix.reshape(groups, layout.lanes, layout.units, chunks * layout.width)
    for lane in range(layout.lanes):
        for unit in range(layout.units):
            yield lane, unit, matrix[:, lane, unit].reshape(groups * chunks, layout.width)


def _cut(layout, layer, name, lane, unit, inputs, words):
    step = layout.groups_in_bank(inputs) * layout.chunks(inputs)
    for tile, start in enumerate(range(0, len(words), step)):
        yield Bank(layer=layer, matrix=name, lane=lane, unit=unit, tile=tile), words[start : start + step]
