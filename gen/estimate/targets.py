"""How many columns of the matrix unit fit a target: pairs on its DSP blocks, the others in its LUTs."""

from dataclasses import dataclass

from intaglio import Error

__all__ = ["TARGETS", "Split", "Target", "split"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What an FPGA and the memory beside it have.

    Members
    -------
    dsp, lut : int
    pair_dsp : int
        DSP slices of one packed product, 27 x 8 bits: 1 of 27 x 18 (DSP48E2), 2 of 25 x 18 (DSP48E1); as Yosys maps it too.
    clock_hz : int
        An assumption.
    ram_bits : int
        Memory on chip: block RAM and UltraRAM.
    memory : str
        What the memory beside it is.
    memory_bytes : int
    bytes_per_second, latency_ns : float
        Of that memory: its peak, and an assumption.
    """

    dsp: int
    lut: int
    pair_dsp: int
    clock_hz: int
    ram_bits: int
    memory: str
    memory_bytes: int
    bytes_per_second: float
    latency_ns: float


# Xilinx DS963 (Alveo U280: 2,016 block RAMs, 960 UltraRAMs), DS180 (Artix-7 100T: 135 block RAMs), Digilent's manual of the Arty A7.
TARGETS = {
    "u280": Target(
        dsp=9024,
        lut=1_304_000,
        pair_dsp=1,
        clock_hz=300_000_000,
        ram_bits=2016 * 36_864 + 960 * 294_912,
        memory="HBM2",
        memory_bytes=8 << 30,
        bytes_per_second=460e9,
        latency_ns=120.0,
    ),
    "a7-100t": Target(
        dsp=240,
        lut=63_400,
        pair_dsp=2,
        clock_hz=100_000_000,
        ram_bits=135 * 36_864,
        memory="DDR3L of the board Arty A7-100T, 16 bits at 667 MT/s",
        memory_bytes=256 << 20,
        bytes_per_second=2 * 667e6,
        latency_ns=150.0,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Split:
    """Columns of a :class:`~intaglio.rtl.matrix.unit.MatrixUnit`, and what they take."""

    columns: int
    lut_columns: int
    dsp: int
    lut: int


def split(
    target_dsp: int,
    target_lut: int,
    head_dim: int,
    *,
    lut_per_column: int,
    lut_per_pair: int,
    reserved: float = 0.0,
    limit: int | None = None,
) -> Split:
    """The most columns that fit, as many of them as can be in pairs on DSP blocks.

    Parameters
    ----------
    target_dsp, target_lut : int
    head_dim : int
        Multiplications of a column; a pair takes as many DSP blocks.
    lut_per_column, lut_per_pair : int
        LUTs of a LUT column and of a packed pair (banks and adders); ``bench.matrix`` measures them.
    reserved : float
        Share of both that is left to the rest of the design.
    limit : int or None
        Columns that are wanted at most.

    Returns
    -------
    Split

    Raises
    ------
    Error
        A number is out of its range, or not one column fits.
    """
    for name, value, least in (
        ("target_dsp", target_dsp, 0),
        ("target_lut", target_lut, 0),
        ("head_dim", head_dim, 1),
        ("lut_per_column", lut_per_column, 1),
        ("lut_per_pair", lut_per_pair, 0),
        ("limit", 1 if limit is None else limit, 1),
    ):
        if not (isinstance(value, int) and value >= least):
            raise Error(f"{name} must be an integer of {least} at least, not {value!r}")
    if not 0 <= reserved < 1:
        raise Error(f"reserved must be a share of 0 to less than 1, not {reserved!r}")
    dsp, lut = (total - _ceil(total * reserved) for total in (target_dsp, target_lut))
    pairs = dsp // head_dim
    if lut_per_pair:
        pairs = min(pairs, lut // lut_per_pair)
    if limit is not None:
        pairs = min(pairs, limit // 2)
    if 2 * lut_per_column < lut_per_pair:  # a pair that takes more LUTs than two columns
        fitting = [2 * p + (lut - p * lut_per_pair) // lut_per_column for p in range(pairs + 1)]
        pairs = max(range(pairs + 1), key=lambda p: (fitting[p] if limit is None else min(limit, fitting[p]), p))
    columns = (lut - pairs * lut_per_pair) // lut_per_column
    if limit is not None:
        columns = min(columns, limit - 2 * pairs)
    if 2 * pairs + columns == 0:
        raise Error(
            f"a column of {head_dim} must fit {dsp} DSP blocks and {lut} LUTs, not need {lut_per_column} LUTs, "
            f"or a pair {head_dim} DSP blocks and {lut_per_pair} LUTs"
        )
    return Split(
        columns=2 * pairs + columns,
        lut_columns=columns,
        dsp=pairs * head_dim,
        lut=pairs * lut_per_pair + columns * lut_per_column,
    )


def _ceil(value):
    return -int(-value // 1)
