"""LUTs, registers, block RAMs and multipliers of one Verilog module on an FPGA family, mapped by Yosys (pyosys)."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from intaglio import Error
from intaglio.gen.synthesis.yosys import run_yosys

__all__ = ["FAMILIES", "FpgaCells", "measure_fpga"]

FAMILIES = {
    "xcup": "synth_xilinx -family xcup -flatten -noiopad -noclkbuf -top {top}",
    "xc7": "synth_xilinx -family xc7 -flatten -noiopad -noclkbuf -top {top}",
    "ecp5": "synth_lattice -family ecp5 -top {top}",
    "ice40": "synth_ice40 -top {top}",
}
"""Yosys' command for each family."""

_BLOCKS = {"RAMB36": 1.0, "RAMB18": 0.5, "DP16KD": 1.0, "PDPW16KD": 1.0, "SB_RAM40": 1.0}
_MULTIPLIERS = ("DSP48", "MULT18X18D", "SB_MAC16")


@dataclass(frozen=True, kw_only=True)
class FpgaCells:
    """Members: LUTs (two for each carry cell of ECP5, whose LUTs it takes), registers, block RAMs (halves are 0.5), multipliers."""

    lut: int
    ff: int
    bram: float
    dsp: int


def measure_fpga(verilog: str, top: str, family: str, *, timeout: float = 1800) -> FpgaCells:
    """Cells of module ``top`` in ``verilog``.

    Raises
    ------
    Error
        The family is unknown, pyosys is missing, or Yosys fails or takes too long.
    """
    if family not in FAMILIES:
        raise Error(f"family must be one of {', '.join(FAMILIES)}, not {family!r}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "top.v").write_text(verilog)
        steps = ["read_verilog top.v", FAMILIES[family].format(top=top), "tee -q -o stat.json stat -json"]
        output = run_yosys(steps, folder, top, timeout=timeout)
        if not (folder / "stat.json").is_file():
            raise Error(f"Yosys must map {top}; it ends with: {output[-1000:]}")
        cells = {
            kind: int(n)
            for kind, n in json.loads((folder / "stat.json").read_text())["design"]["num_cells_by_type"].items()
        }

    def total(*starts):
        return sum(n for kind, n in cells.items() if kind.startswith(starts))

    lut = total("LUT", "INV", "SB_LUT4") + 2 * cells.get("CCU2C", 0)
    return FpgaCells(
        lut=lut,
        ff=total("FD", "TRELLIS_FF", "SB_DFF"),
        dsp=total(*_MULTIPLIERS),
        bram=sum(n * share for kind, n in cells.items() for start, share in _BLOCKS.items() if kind.startswith(start)),
    )
