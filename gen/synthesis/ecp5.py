"""Synthesis of generated Verilog for Lattice ECP5 with Yosys (pyosys), module by module: what it costs in cells.

Yosys runs in a process of its own, because it ends the process on an error. Hierarchy is kept, so that equal modules are mapped
once; constants (masks, enables) move across its boundaries first.

    python -m intaglio.gen.synthesis.ecp5 build/ulx3s
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from intaglio import Error
from intaglio.cli import exit_code
from intaglio.gen.emit.output import FORMAT, described
from intaglio.gen.synthesis.dsp import absorb_registers
from intaglio.gen.synthesis.yosys import run_yosys

__all__ = [
    "CELLS",
    "ECP5_85F",
    "SHIFTS",
    "Usage",
    "block_rams",
    "decoder_table",
    "netlist_ice40",
    "synthesise_ecp5",
    "table",
]

CELLS = ("LUT4", "CCU2C", "TRELLIS_DPR16X4", "TRELLIS_FF", "DP16KD", "MULT18X18D")
# Lattice FPGA-DS-02012: 84k LUT4 and as many registers, 208 EBR of 18 kbit, 156 multipliers of 18 x 18.
ECP5_85F = {"LUT4": 83640, "TRELLIS_FF": 83640, "DP16KD": 208, "MULT18X18D": 156}
# Yosys builds a shift from the smallest step to the largest, each as wide as the operand. With the largest first a step is only as wide
# as the smaller ones after it can still read.
SHIFTS = """\
(* techmap_celltype = "$shr $sshr" *)
module shift_right (A, B, Y);
    parameter A_SIGNED = 0, B_SIGNED = 0, A_WIDTH = 1, B_WIDTH = 1, Y_WIDTH = 1;
    parameter _TECHMAP_CELLTYPE_ = "";
    localparam WIDTH = A_WIDTH > Y_WIDTH ? A_WIDTH : Y_WIDTH;
    input [A_WIDTH - 1:0] A;
    input [B_WIDTH - 1:0] B;
    output [Y_WIDTH - 1:0] Y;
    wire _TECHMAP_FAIL_ = B_SIGNED || B_WIDTH > 8 || Y_WIDTH >= A_WIDTH;
    wire fill = A_SIGNED && _TECHMAP_CELLTYPE_ == "$sshr" && A[A_WIDTH - 1];
    wire extended = A_SIGNED && A[A_WIDTH - 1];
    wire [WIDTH * (B_WIDTH + 1) - 1:0] steps;
    assign steps[WIDTH * B_WIDTH +: WIDTH] = {{WIDTH{extended}}, A};
    genvar step, bit_;
    generate
        for (step = 0; step < B_WIDTH; step = step + 1)
            for (bit_ = 0; bit_ < WIDTH; bit_ = bit_ + 1)
                assign steps[WIDTH * step + bit_] = !B[step] ? steps[WIDTH * (step + 1) + bit_]
                    : bit_ + 2 ** step < WIDTH ? steps[WIDTH * (step + 1) + (bit_ + 2 ** step) % WIDTH] : fill;
    endgenerate
    assign Y = steps[Y_WIDTH - 1:0];
endmodule
"""
_LABELS = ("begin", "coarse", "map_ram", "map_ffram", "map_gates", "map_ffs", "map_luts", "map_cells", "check")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Cells of one module, without its submodules, and how often it occurs in the design.

    A module with parameters (``.._rom``, ``.._ram``) has the name of the module it is first found in.
    """

    name: str
    count: int
    cells: dict

    def cell(self, kind: str) -> int:
        return self.cells.get(kind, 0)


def block_rams(width: int, depth: int) -> int:
    """DP16KD of a memory of ``depth`` words of ``width`` bits with one write and one read port, all blocks in one shape."""
    return min(
        -(-width // w) * -(-depth // d) for w, d in ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384))
    )


def synthesise_ecp5(
    folder: Path | str,
    top: str,
    *,
    flatten: Iterable[str] = (),
    sources: Iterable[Path | str] = (),
    netlist: Path | str | None = None,
    progress: Callable[[str, float], None] | None = None,
    timeout: float = 7200,
) -> list[Usage]:
    """Map the Verilog of ``folder`` (what its manifest lists, else ``rtl/*.v``, with the images in ``rom/``) to ECP5 cells.

    Parameters
    ----------
    folder : path
    top : str
    flatten : sequence of str
        Patterns of modules that are dissolved in their parents before mapping.
    sources : sequence of path
        Further Verilog files.
    netlist : path or None
        Where to write the netlist for nextpnr, flattened after mapping, registers of multipliers inside them (gen/synthesis/dsp.py).
    progress : callable or None
        Called with a text and the share done (0 to 1).
    timeout : float
        Seconds.

    Returns
    -------
    list of Usage : every module of the design, in the order of the hierarchy, as mapped: with the registers that the netlist has inside
    multipliers.

    Raises
    ------
    Error
        pyosys is not installed, Yosys refuses the design, or it takes too long.
    """
    folder = Path(folder).resolve()
    files = [*_verilog(folder), *(str(Path(path).resolve()) for path in sources)]
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "stat.json"
        steps = [
            f"read_verilog -defer {' '.join(files)}",
            "read_verilog -lib +/lattice/cells_bb_ecp5.v",
            f"hierarchy -check -top {top}",
            "proc",
            "setattr -mod -set keep_hierarchy 1 A:*",
        ]
        steps += [f"setattr -mod -unset keep_hierarchy {pattern}" for pattern in flatten]
        steps += ["flatten", *["opt_expr", "opt_clean", "opt_hier"] * 2, "opt_expr", "opt_clean"]
        # Equal registers stay apart where the design asks for copies: Yosys looks for that at the cell, not at the signal.
        steps += ["select -set copies a:keep=1 %ci1 t:$dff* %i", "setattr -set keep 1 @copies"]
        # Inner additions of trees (rtl/attention/narrow/array.py calls their signals half_*) become carry chains here: later Yosys would
        # join them and the outer one to an addition of more operands, with LUTs before its chain.
        steps += ["wreduce", "select -set inner w:*half_* %ci:+$add[Y] t:$add %i", "alumacc @inner"]
        (Path(scratch) / "shifts.v").write_text(SHIFTS)
        steps += [f"techmap -map {scratch}/shifts.v", "opt_expr", "opt_clean"]
        steps += [
            f"synth_lattice -family ecp5 -noflatten -top {top} -run {first}:{second}"
            for first, second in zip(_LABELS, _LABELS[1:], strict=False)
        ]
        steps += [f"tee -q -o {report} stat -json"]
        if netlist:
            # Cells of scopes are for readers of hierarchies; nextpnr has no use for them.
            steps += [
                "blackbox =A:whitebox",
                "setattr -mod -unset keep_hierarchy A:*",
                "flatten",
                "delete t:$scopeinfo",
                "clean",
                f"write_json {Path(netlist).resolve()}",
            ]
        run_yosys(steps, folder, f"{top} in {folder}", timeout=timeout, progress=progress)
        if not report.is_file():
            raise Error(f"Yosys must report the cells of {top} in {folder}")
        if netlist:
            design = json.loads(Path(netlist).read_text())
            absorb_registers(design["modules"][top])
            Path(netlist).write_text(json.dumps(design, separators=(",", ":")) + "\n")
        modules = json.loads(report.read_text())["modules"]
    cells = {
        name: {
            kind: _number(n)
            for part in ("num_cells_by_type", "num_submodules_by_type")
            for kind, n in module.get(part, {}).items()
        }
        for name, module in modules.items()
    }
    counts, names = {}, {}

    def walk(name, times):
        counts[name] = counts.get(name, 0) + times
        for kind, n in cells[name].items():
            child = kind if kind in cells else "\\" + kind
            if child in cells:
                names.setdefault(child, names[name] if child.startswith("$") else child.lstrip("\\"))
                walk(child, times * n)

    names["\\" + top] = top
    walk("\\" + top, 1)
    return [
        Usage(name=names[name], count=n, cells={k: cells[name][k] for k in CELLS if k in cells[name]})
        for name, n in counts.items()
    ]


def decoder_table(folder: Path | str, *, progress: Callable[[str, float], None] | None = None) -> str:
    """:func:`table` of the decoder that was generated into ``folder``; ``progress`` as above; raises ``Error`` where there is none."""
    found = described(folder) or {}
    if found.get("kind") != "decoder" or found["format"] != FORMAT:
        raise Error(f"{folder} must hold the output of 'intaglio gen decoder'")
    return table(synthesise_ecp5(folder, found["top"], flatten=[f"{found['top']}_lane_lane*"], progress=progress))


def _verilog(folder):
    """Names of the Verilog files of a folder; the user may have put others beside those that a manifest lists."""
    listed = (described(folder) or {}).get("files", {}).get("verilog")
    return sorted(f"rtl/{path.name}" for path in (folder / "rtl").glob("*.v")) if listed is None else listed


def netlist_ice40(folder: Path | str, top: str, netlist: Path | str, *, timeout: float = 3600) -> None:
    """Map the Verilog of ``folder`` to iCE40 cells, flattened, and write the netlist for nextpnr; raises as the function above."""
    folder = Path(folder).resolve()
    steps = [f"read_verilog {' '.join(_verilog(folder))}", f"synth_ice40 -top {top} -json {Path(netlist).resolve()}"]
    run_yosys(steps, folder, f"{top} in {folder}", timeout=timeout)


def table(usages: Iterable[Usage]) -> str:
    """Markdown: the modules, the largest first (two LUTs a carry cell), and the sum of all."""
    lines = ["| module | number | " + " | ".join(CELLS) + " |", "|---|" + "---:|" * (len(CELLS) + 1)]
    for usage in sorted(usages, key=lambda u: -u.count * (u.cell("LUT4") + 2 * u.cell("CCU2C") + u.cell("DP16KD"))):
        if usage.cells:
            lines.append(
                f"| `{usage.name}` | {usage.count} | " + " | ".join(f"{usage.cell(k):,}" for k in CELLS) + " |"
            )
    total = [sum(u.count * u.cell(k) for u in usages) for k in CELLS]
    lines.append("| all | | " + " | ".join(f"{n:,}" for n in total) + " |")
    lines.append("| ECP5-85F | | " + " | ".join(f"{ECP5_85F[k]:,}" if k in ECP5_85F else "" for k in CELLS) + " |")
    return "\n".join(lines)


def _number(value):
    """Counts are numbers in some versions of Yosys and objects of strings in others."""
    return int(value["local_count"]) if isinstance(value, dict) else int(value)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m intaglio.gen.synthesis.ecp5", description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="output of `intaglio gen decoder`")
    sys.stdout.write(decoder_table(parser.parse_args(arguments).folder) + "\n")


if __name__ == "__main__":
    sys.exit(exit_code(main))
