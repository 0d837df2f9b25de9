"""Figures of the matrix unit: LUTs and DSP blocks of its columns, mapped to UltraScale+ with Yosys."""

import json
import tempfile
from pathlib import Path
from typing import Any

from amaranth.back import rtlil
from amaranth.hdl import Elaboratable

from bench.common import Progress, figure
from intaglio import Error
from intaglio.gen.synthesis.yosys import run_yosys
from intaglio.rtl.matrix.unit import LutColumn, PackedPair

__all__ = ["cells", "figures", "synthesise_xcup"]


def synthesise_xcup(component: Elaboratable, *, dsp: bool) -> dict[str, int]:
    """Cells of ``component`` by type, and ``LUT``, the sum of its LUTs; ``dsp``: DSP blocks may be used.

    Raises
    ------
    Error
        pyosys is not installed or Yosys refuses the design.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "top.il").write_text(rtlil.convert(component, name="top"))
        steps = [
            "read_rtlil top.il",
            f"synth_xilinx -family xcup -flatten -noiopad -noclkbuf -top top{'' if dsp else ' -nodsp'}",
            "tee -q -o stat.json stat -json",
        ]
        told = run_yosys(steps, folder, "the columns", timeout=900)
        report = Path(folder) / "stat.json"
        if not report.is_file():
            raise Error(f"Yosys must map the columns; it ends with: {told}")
        cells = {kind: int(n) for kind, n in json.loads(report.read_text())["design"]["num_cells_by_type"].items()}
    return cells | {"LUT": sum(n for kind, n in cells.items() if kind.startswith("LUT") or kind == "INV")}


def cells(head_dim: int = 32) -> dict[str, float]:
    """Cells of the columns as a dict: banks, products and adder trees included, which is all but the row's register."""
    pair = synthesise_xcup(PackedPair(head_dim), dsp=True)
    booth, nibble = (synthesise_xcup(LutColumn(head_dim, form), dsp=False) for form in ("booth", "nibble"))
    return {
        "dsp_per_pair": pair["DSP48E2"],
        "macs_per_dsp": 2 * head_dim / pair["DSP48E2"],
        "lut_per_pair": pair["LUT"],
        "lut_per_packed_mac": pair["LUT"] / (2 * head_dim),
        "lut_per_booth_column": booth["LUT"],
        "lut_per_booth_mac": booth["LUT"] / head_dim,
        "lut_per_nibble_column": nibble["LUT"],
        "lut_per_nibble_mac": nibble["LUT"] / head_dim,
    }


def figures(progress: Progress) -> list[dict[str, Any]]:
    """Cost of a multiply-accumulate of either kind of column, 32 channels."""
    progress("mapping columns of the matrix unit")
    found = cells()
    return [
        figure(name, value, unit, goal, anchor, "synthesised")
        for name, value, unit, goal, anchor in (
            (
                "mpu.lut_per_mac",
                found["lut_per_booth_mac"],
                "LUT",
                "<= 70",
                "Booth column with adder tree; FAST-Prefill: about 104",
            ),
            ("mpu.macs_per_dsp", found["macs_per_dsp"], "", ">= 1.9", "two products a DSP48E2; FAST-Prefill: 0.95"),
            (
                "mpu.lut_per_packed_mac",
                found["lut_per_packed_mac"],
                "LUT",
                "",
                "banks, unpacking and adder tree of a DSP pair",
            ),
            ("mpu.lut_per_nibble_mac", found["lut_per_nibble_mac"], "LUT", "", "FAST-Prefill's form, for comparison"),
        )
    ]
