"""Configuration of the prefill attention unit."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from intaglio.rtl.arithmetic.attention import MASS_FRACTION, MERGE_SHIFT, WEIGHT_MAX

__all__ = ["PrefillConfig"]

FORMAT = 4  # raised when the hardware changes, so that old digests no longer match


def _power(name, value, low, high):
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high or value & value - 1:
        raise ValueError(f"{name} must be a power of 2 in {low}..{high}, not {value!r}")


def _range(name, value, low, high):
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer in {low}..{high}, not {value!r}")


@dataclass(frozen=True, kw_only=True)
class PrefillConfig:
    """Shape of the heads and widths of the units.

    Parameters
    ----------
    head_dim : int
        D: channels of a head, power of 2 in 16..128. Bytes of a beat of memory.
    group : int
        G: query heads that share the KV head, at most ``columns / 2``.
    block : int
        B: tokens of a block, power of 2 in ``head_dim``..128.
    columns : int
        C: queries that the matrix unit takes at once, power of 2 in 8..``head_dim``.
    context : int
        Most tokens of a run, a multiple of ``block``, at most 2^17.
    window : int
        W: query blocks whose accumulators are on chip, power of 2 in 1..``columns``.
    lines : int
        Blocks of K and V on chip, ``lookahead + 2`` at least, at most 1,024.
    lookahead : int
        Visits by which the schedule may run ahead of the arithmetic, 1 at least.
    drain : int
        Results that leave in a cycle, power of 2 in 4..``columns``.
    lut_columns : int
        Columns of the matrix unit without DSP slices; even, at most ``columns``. The others share packed DSP slices in pairs.
    clock_hz : int
        The clock at which times are stated.

    Raises
    ------
    ValueError
        The text says what must hold and what was given.
    """

    head_dim: int
    group: int
    block: int
    columns: int
    context: int
    window: int = 8
    lines: int = 16
    lookahead: int = 3
    drain: int = 8
    lut_columns: int = 0
    clock_hz: int = 300_000_000

    def __post_init__(self):
        _power("head_dim", self.head_dim, 16, 128)
        _power("block", self.block, self.head_dim, 128)
        _power("columns", self.columns, 8, self.head_dim)
        _range("group", self.group, 1, self.columns // 2)
        _range("context", self.context, self.block, 1 << 17)
        if self.context % self.block:
            raise ValueError(f"context must be a multiple of block {self.block}, not {self.context}")
        _power("window", self.window, 1, self.columns)
        _range("lookahead", self.lookahead, 1, 64)
        _range("lines", self.lines, self.lookahead + 2, 1024)
        _power("drain", self.drain, 4, self.columns)
        _range("lut_columns", self.lut_columns, 0, self.columns)
        if self.lut_columns % 2:
            raise ValueError(f"lut_columns must be even, not {self.lut_columns}")
        _range("clock_hz", self.clock_hz, 1, 10**10)

    @property
    def blocks(self) -> int:
        """Most blocks of a run."""
        return self.context // self.block

    @property
    def row_groups(self) -> int:
        """Row groups of a block."""
        return self.block // self.columns

    @property
    def tiles(self) -> int:
        """Key tiles of a block."""
        return self.block // self.head_dim

    @property
    def scale_beats(self) -> int:
        """X: beats that hold the scale bytes of a block of rows."""
        return self.block // self.head_dim

    @property
    def query_block_bytes(self) -> int:
        """Bytes of a block of rows with their scale bytes, in memory: a Q block."""
        return (self.block + self.scale_beats) * self.head_dim

    @property
    def page_bytes(self) -> int:
        """Bytes of a block of keys and values with their scale bytes, in memory."""
        return 2 * self.query_block_bytes

    @property
    def slots(self) -> int:
        """(query block, head) pairs of a window: slot ``q * group + h``."""
        return self.window * self.group

    @property
    def batches(self) -> int:
        """Batches of ``columns`` query blocks."""
        return -(-self.blocks // self.columns)

    @property
    def windows(self) -> int:
        return -(-self.blocks // self.window)

    @property
    def dot_bits(self) -> int:
        """Signed bits of a dot product of D elements in [-127, 127]."""
        return (127 * 127 * self.head_dim).bit_length() + 1

    @property
    def mean_bits(self) -> int:
        """Signed bits of a tile's weighted sum of values: weights up to 254."""
        return self.dot_bits + 1

    @property
    def sum_bits(self) -> int:
        """Unsigned bits of l: the sum of 28-bit probabilities over all tokens."""
        return MASS_FRACTION + self.context.bit_length()

    @property
    def value_bits(self) -> int:
        """Signed bits of an accumulator O: 254 * 127 * tokens, 4 fraction bits."""
        return (WEIGHT_MAX * 127 * self.context << MERGE_SHIFT).bit_length() + 1

    @property
    def maximum_bits(self) -> int:
        """Signed bits of E and F."""
        return 11

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields) -> "PrefillConfig":
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(fields.keys() - known):
            raise ValueError(f"unknown fields of a prefill configuration: {', '.join(unknown)}")
        return cls(**fields)

    def digest(self) -> str:
        """SHA-256 of everything that the hardware depends on."""
        fields = {name: value for name, value in self.to_json().items() if name != "clock_hz"}
        return hashlib.sha256(json.dumps({"format": FORMAT, **fields}, sort_keys=True).encode()).hexdigest()
