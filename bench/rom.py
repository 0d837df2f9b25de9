"""Figures of the read-only memory as logic: area against the synthesiser's own sharing, hardwired matrices against da4ml."""

import importlib.util
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import Progress, figure
from intaglio import Error
from intaglio.gen.synthesis.area import measure
from intaglio.gen.synthesis.fpga import measure_fpga
from intaglio.gen.synthesis.hardwired import adder_graph, hardwired_verilog
from intaglio.gen.synthesis.liberty import read_liberty
from intaglio.gen.synthesis.rom_report import model_cases, random_trits
from intaglio.gen.synthesis.strategies import strategy_bank
from intaglio.rtl.ternary.packing import pack

__all__ = ["da4ml_verilog", "figures"]

DEPTH, LANE_WIDTH, ZEROS = 1024, 64, 0.40
HARDWIRED: dict[str, Any] = {"rows": 64, "inputs": 64, "zeros": 0.42}
ASAP7_DONT_USE = ("*x1p*", "*xp*", "SDF*", "ICG*")  # of its flow in OpenROAD-flow-scripts
PERIOD_PS = 2000
SEEDS = (7, 8, 9)  # of the random weights: every figure of them is the median
DRAWN = "median of seeds " + ", ".join(map(str, SEEDS))


def da4ml_verilog(weights: np.ndarray) -> str | None:
    """``top`` of da4ml's adder graph of ``weights [rows, inputs]`` without pipeline registers between its stages; None if not installed."""
    if importlib.util.find_spec("da4ml") is None:
        return None
    import da4ml
    from da4ml.cmvm import solve
    from da4ml.codegen.rtl.verilog.comb import comb_logic_gen
    from da4ml.types import minimal_kif

    solution = solve(weights.T.astype(np.float32), qintervals=[(-128.0, 127.0, 1.0)] * weights.shape[1])
    stages = solution.solutions
    widths = [sum(map(sum, map(minimal_kif, stage.inp_qint))) for stage in stages]
    widths.append(sum(map(sum, map(minimal_kif, stages[-1].out_qint))))
    lines = [f"module top (input [{widths[0] - 1}:0] x, output [{widths[-1] - 1}:0] y);"]
    lines += [f"    wire [{width - 1}:0] w{i};" for i, width in enumerate(widths)]
    lines += [f"    stage{i} stage{i}_inst (.model_inp(w{i}), .model_out(w{i + 1}));" for i in range(len(stages))]
    lines += ["    assign w0 = x;", f"    assign y = w{len(stages)};", "endmodule"]
    sources = sorted((Path(da4ml.__file__).parent / "codegen/rtl/verilog/source").glob("*.v"))
    parts = [path.read_text() for path in sources if path.stem in ("shift_adder", "negative")]
    return "\n".join([*parts, *(comb_logic_gen(stage, f"stage{i}") for i, stage in enumerate(stages)), *lines, ""])


def hardwired_cells(seed: int) -> tuple[int, int | None]:
    """LUTs on UltraScale+ of a hardwired matrix: ours, da4ml's (None if it is not installed)."""
    weights = random_trits(**HARDWIRED, seed=seed)
    ours = measure_fpga(hardwired_verilog(adder_graph(weights), "top"), "top", "xcup")
    theirs = da4ml_verilog(weights)
    if theirs is None:
        return ours.lut, None
    kept = theirs.replace(
        "module shift_adder", "(* keep_hierarchy *) module shift_adder"
    )  # as ours; whichever is smaller counts
    return ours.lut, min(measure_fpga(text, "top", "xcup").lut for text in (theirs, kept))


def _areas(trits, library, period=None, strategies=("code", "structured")):
    """Area of a bank by strategy."""
    words, found = pack(trits, "2bit"), {}
    for strategy in strategies:
        built = strategy_bank(words, 2 * trits.shape[1], "bank", strategy, cells=library.gates)
        found[strategy] = measure(built, library, period)
    return found


def figures(model: Path, pdk: Path | None, progress: Progress) -> list[dict[str, Any]]:
    """Figures of ``rom.*``.

    Parameters
    ----------
    model : path
        Checkpoint whose first matrix is a second bank.
    pdk : path or None
        Folder with the parts of the ASAP7 library (``asap7_*.lib.gz``), for the figures that need one.
    """
    out = []

    def add(name, value, unit, goal, anchor):
        out.append(figure(name, value, unit, goal, anchor, "synthesised"))

    def of_seeds(what, function):
        found = []
        for seed in SEEDS:
            progress(f"{what}, seed {seed}")
            found.append(function(seed))
        return found

    nangate, banks = read_liberty("nangate45"), {seed: random_trits(DEPTH, LANE_WIDTH, ZEROS, seed) for seed in SEEDS}
    size, bits = f"{DEPTH} x {2 * LANE_WIDTH} bit, {ZEROS:.0%} zero weights, {DRAWN}", 2 * DEPTH * LANE_WIDTH
    areas = of_seeds("mapping a bank of random weights, Nangate45", lambda seed: _areas(banks[seed], nangate))
    add(
        "rom.abc_over_ours",
        statistics.median(found["code"].area / found["structured"].area for found in areas),
        "",
        ">= 1.25",
        f"{size}; a first form 1.27 (seed 7)",
    )
    add(
        "rom.nangate45_um2_per_bit",
        statistics.median(found["structured"].area for found in areas) / bits,
        "um2",
        "",
        size,
    )
    name, (trits,) = model_cases(model, DEPTH, 2 * LANE_WIDTH)[-1]
    progress(f"mapping {name}, Nangate45")
    areas = _areas(trits, nangate)
    add(
        "rom.abc_over_ours_model",
        areas["code"].area / areas["structured"].area,
        "",
        ">= 1.25",
        f"{name}, {100 * (trits == 0).mean():.0f} % zero weights",
    )
    luts = of_seeds("mapping a hardwired matrix, UltraScale+", hardwired_cells)
    matrix = f"{HARDWIRED['rows']} x {HARDWIRED['inputs']}, {HARDWIRED['zeros']:.0%} zero weights, {DRAWN}"
    weights = HARDWIRED["rows"] * HARDWIRED["inputs"]
    add("rom.lut_per_weight", statistics.median(ours for ours, _ in luts) / weights, "LUT", "", matrix)
    if None in luts[0]:
        progress.say("rom.lut_per_weight_over_da4ml is left out: pip install 'intaglio[bench]'")
    else:
        theirs = statistics.median(theirs for _, theirs in luts) / weights
        add(
            "rom.lut_per_weight_over_da4ml",
            statistics.median(ours / theirs for ours, theirs in luts),
            "",
            "<= 1.0",
            f"da4ml {theirs:.2f} LUT a weight in the same run; {matrix}",
        )
    if pdk is not None:
        parts = sorted(Path(pdk).glob("asap7_*.lib*"))
        if not parts:
            raise Error(f"PDK folder {pdk} must have the parts of ASAP7, asap7_*.lib.gz")
        for name, dont_use, goal, anchor in (
            ("rom.asap7_mb_per_mm2", (), ">= 21.3", "TOM, 7 nm: 15.0; ABC 16.7"),
            ("rom.asap7_legal_mb_per_mm2", ASAP7_DONT_USE, ">= 15.9", "ABC 12.0"),
        ):
            library = read_liberty(parts, dont_use)
            found = [
                one["structured"]
                for one in of_seeds(
                    f"mapping a bank, ASAP7 without {len(dont_use)} kinds of cells",
                    lambda seed, library=library: _areas(banks[seed], library, PERIOD_PS, ("structured",)),
                )
            ]
            delay = statistics.median(one.delay_ps for one in found)
            add(
                name,
                statistics.median(one.mb_per_mm2(bits) for one in found),
                "MB/mm2",
                goal,
                f"{anchor}; {delay:.0f} ps without wires; {DRAWN}",
            )
    return out
