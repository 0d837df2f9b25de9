"""Tables that compare the strategies of read-only banks: cell area, density and timing, or cells of an FPGA.

A case is a name and one or several banks of the same size; every figure is the median of what they give.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intaglio import Error
from intaglio.gen.checkpoint.reader import load_checkpoint
from intaglio.gen.emit import output
from intaglio.gen.synthesis.area import check_period, measure
from intaglio.gen.synthesis.fpga import FAMILIES, measure_fpga
from intaglio.gen.synthesis.hardwired import adder_graph, hardwired_verilog
from intaglio.gen.synthesis.liberty import BUILT_IN, Liberty, read_liberty
from intaglio.gen.synthesis.polish import polish
from intaglio.gen.synthesis.strategies import STRATEGIES, strategy_bank
from intaglio.rtl.ternary.packing import execution_order, pack

__all__ = [
    "asic_table",
    "check_banks",
    "fpga_table",
    "library",
    "model_cases",
    "random_cases",
    "random_trits",
    "write_banks",
]


def random_trits(rows: int, inputs: int, zeros: float, seed: int = 7) -> np.ndarray:
    """Independent weights int8 ``[rows, inputs]``, plus and minus alike."""
    draw = np.random.default_rng(seed).random((rows, inputs))
    return np.where(draw < zeros, 0, np.where(draw < (1 + zeros) / 2, 1, -1)).astype(np.int8)


def random_cases(
    shares: Iterable[float], depth: int, width: int, seeds: Iterable[int]
) -> list[tuple[str, list[np.ndarray]]]:
    """``(name, [trits [depth, width / 2] for each seed])`` for each share of zero weights."""
    _check(depth, width)
    return [
        (f"random, {share:.2f}", [random_trits(depth, width // 2, share, seed) for seed in seeds]) for share in shares
    ]


def model_cases(folder: Path | str, depth: int, width: int) -> list[tuple[str, list[np.ndarray]]]:
    """Cases of one bank of a checkpoint: of layer 0, the words of one lane of ``width / 2`` weights, matrix by matrix, as many as fill
    ``depth``."""
    _check(depth, width)
    checkpoint = load_checkpoint(folder)
    cases = []
    for name, matrix in checkpoint.layers[0].matrices.items():
        weights = matrix.weights
        if weights.shape[1] % (width // 2):
            raise Error(f"width / 2 must divide the {weights.shape[1]} inputs of {name}, not be {width // 2}")
        words = execution_order(weights, 1, width // 2)[0][:depth]
        cases.append((f"{name} of layer 0" + (f", {len(words)} words" if len(words) < depth else ""), [words]))
    return cases


def _check(depth, width):
    if depth < 2 or depth > 1 << 16:
        raise Error(f"depth must be in 2..65536, not {depth}")
    if width < 2 or width % 2 or width > 4096:
        raise Error(f"width must be an even number in 2..4096, not {width}")


def library(target: str, liberty: Sequence[Path | str], dont_use: Iterable[str]) -> Liberty:
    """The cell library of ``--target`` or ``--liberty``."""
    if not liberty and target not in BUILT_IN:
        raise Error(
            f"target must be one of {', '.join([*BUILT_IN, *FAMILIES])}, or a cell library given by --liberty, not {target!r}"
        )
    return read_liberty(liberty or target, dont_use)


def asic_table(
    cases: Sequence[tuple[str, list[np.ndarray]]],
    strategies: Sequence[str],
    cells: Liberty,
    period: float | None,
    progress: Callable[[str], None],
) -> tuple[list[dict[str, Any]], str]:
    """Rows (dicts) and text. Zero shares are of weights and, as TOM counts, of bits."""
    _known(strategies, (*STRATEGIES, "polished"))
    check_period(cells, period)
    nand2, rows = cells.nand2().area, []
    for name, banks in cases:
        bits = 2 * banks[0].size
        for strategy in strategies:
            built, found = [], []
            for number, trits in enumerate(banks):
                progress(f"{name}: {strategy}, bank {number + 1} of {len(banks)}")
                built.append(_built(name, trits, strategy, cells.gates))
                found.append(measure(built[-1], cells, period))
            area = statistics.median(one.area for one in found)
            delays = [one.delay_ps for one in found if one.delay_ps is not None]
            rows.append(
                {
                    "case": name,
                    "zeros": _zeros(banks),
                    "strategy": strategy,
                    "area": area,
                    "per_bit": area / bits,
                    "mb_per_mm2": bits / 8 / area if area else float("inf"),
                    "nand2_per_bit": area / bits / nand2,
                    "delay_ps": statistics.median(delays) if delays else None,
                    "registers": found[0].registers,
                    "description": built[0].description,
                    "texts": {"": built[0].verilog, "_mapped": built[0].mapped(cells.gates)},
                }
            )
    head = (
        f"{cells.name}, {_size(cases)}, cell area without registers"
        + (f", buffered and sized for {period:g} ps" if period else "")
        + _drawn(cases)
    )
    title = (
        f"{'bank':22} {'zeros: weights':>14} {'bits':>6}  {'strategy':10} {'um2':>11} {'MB/mm2':>8} {'NAND2/bit':>9}"
    )
    lines = [head, "", f"{title} {'delay ps':>8} {'regs':>5}"]
    for row in rows:
        delay = "-" if row["delay_ps"] is None else f"{row['delay_ps']:.0f}"
        lines.append(
            f"{row['case']:22} {row['zeros']:14.3f} {(1 + row['zeros']) / 2:6.3f}  {row['strategy']:10} {row['area']:11,.1f} "
            f"{row['mb_per_mm2']:8.3f} {row['nand2_per_bit']:9.4f} {delay:>8} {row['registers']:5}"
        )
    return rows, "\n".join(lines)


def _built(name, trits, strategy, gates):
    """A bank; if it is a netlist, it was read at every address."""
    words = pack(trits, "2bit")
    base = "structured" if strategy == "polished" else strategy
    built = strategy_bank(words, 2 * trits.shape[1], "bank", base, cells=gates)
    if strategy == "polished" and built.netlist is not None:
        built = built.with_netlist(polish(built.netlist, gates), "mapped anew by ABC where that is smaller")
        if not built.netlist.holds(np.concatenate([trits == 1, trits == -1], axis=1)):
            raise Error(f"the netlist of {name} must hold its weights, which it does not: a fault of the generator")
    return built


def _zeros(banks):
    return statistics.median(float((trits == 0).mean()) for trits in banks)


def _size(cases):
    return f"{max(len(banks[0]) for _, banks in cases)} x {2 * cases[0][1][0].shape[1]} bit"


def _drawn(cases):
    return f", medians of {len(cases[0][1])} banks" if len(cases[0][1]) > 1 else ""


def check_banks(folder: Path | str) -> Path:
    """The path of a folder to which :func:`write_banks` may write; raises ``Error``."""
    return output.check_folder(folder, "rom-banks")


def write_banks(rows: Iterable[Mapping[str, Any]], folder: Path | str) -> None:
    """Write ``bank_<i>.v``, and ``bank_<i>_mapped.v`` where there is a netlist, of the last strategy of each case."""
    content, last = {}, {row["case"]: row for row in rows}
    for number, row in enumerate(last.values()):
        for suffix, text in row["texts"].items():
            if text is not None:
                content[f"bank_{number}{suffix}.v"] = f"// {row['case']}: {row['description']}\n{text}".encode()
    output.write(check_banks(folder), content, {"kind": "rom-banks"})


def fpga_table(
    cases: Sequence[tuple[str, list[np.ndarray]]],
    strategies: Sequence[str],
    family: str,
    progress: Callable[[str], None],
) -> tuple[list[dict[str, Any]], str]:
    """Rows (dicts) and text; ``hardwired`` is the whole bank as one matrix, all words at once."""
    _known(strategies, (*STRATEGIES, "hardwired"))
    rows = []
    for name, banks in cases:
        for strategy in strategies:
            found = []
            for number, trits in enumerate(banks):
                progress(f"{name}: {strategy}, bank {number + 1} of {len(banks)}")
                text = (
                    hardwired_verilog(adder_graph(trits), "bank")
                    if strategy == "hardwired"
                    else strategy_bank(pack(trits, "2bit"), 2 * trits.shape[1], "bank", strategy).verilog
                )
                found.append(measure_fpga(text, "bank", family))
            row = {key: statistics.median(getattr(one, key) for one in found) for key in ("lut", "ff", "bram", "dsp")}
            rows.append(
                {
                    "case": name,
                    "zeros": _zeros(banks),
                    "strategy": strategy,
                    **row,
                    "lut_per_weight": row["lut"] / banks[0].size,
                }
            )
    title = (
        f"{'bank':22} {'zeros: weights':>14} {'bits':>6}  {'strategy':10} {'LUT':>8} {'FF':>6} {'BRAM':>6} {'DSP':>4}"
    )
    lines = [f"{family}, {_size(cases)}{_drawn(cases)}", "", f"{title} {'LUT/weight':>10}"]
    for row in rows:
        lines.append(
            f"{row['case']:22} {row['zeros']:14.3f} {(1 + row['zeros']) / 2:6.3f}  {row['strategy']:10} {row['lut']:8,.0f} "
            f"{row['ff']:6,.0f} {row['bram']:6g} {row['dsp']:4g} {row['lut_per_weight']:10.4f}"
        )
    return rows, "\n".join(lines)


def _known(strategies, known):
    for strategy in strategies:
        if strategy not in known:
            raise Error(f"strategy must be one of {', '.join(known)}, not {strategy!r}")
