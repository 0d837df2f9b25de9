"""``intaglio synth``: area, timing and density of read-only banks by strategy, with a cell library or on an FPGA."""

import argparse
import sys
from pathlib import Path

from intaglio import Error
from intaglio.files import check_output
from intaglio.gen import plot
from intaglio.progress import Progress

__all__ = ["register"]

SWEEP = "0.30,0.40,0.50,0.65,0.80"
FPGA = ("ecp5", "ice40", "xc7", "xcup")
DEFAULTS = {
    "depth": 1024,
    "width": 128,
    "zeros": SWEEP,
    "seed": "7",
    "model": None,
    "strategy": None,
    "svg": None,
    "out": None,
}
ASIC_STRATEGIES, FPGA_STRATEGIES = "plain,code,planes,structured,polished", "plain,code"


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command ``synth``."""
    parser = subparsers.add_parser(
        "synth",
        help="area and timing of weight memories",
        description="Map banks of ternary weights by every strategy and compare them: um2, MB/mm2 (1e6 bytes of two-bit weights), NAND2 a "
        "bit and critical path with a cell library; LUTs, registers, block RAMs and multipliers on an FPGA. Class of the "
        "figures: synthesised, cell area without placement and wires.",
    )
    parser.add_argument(
        "--target",
        metavar="NAME",
        help="nangate45 (areas that come with intaglio), or an FPGA family: " + ", ".join(FPGA),
    )
    parser.add_argument(
        "--liberty", action="append", default=[], metavar="FILE", help="cell library, .lib or .lib.gz; several are one"
    )
    parser.add_argument("--dont-use", action="append", default=[], metavar="PATTERN", help="leave cells out, as *xp*")
    parser.add_argument(
        "--period", type=float, metavar="PS", help="clock period to buffer and size for; needs delay tables"
    )
    parser.add_argument("--depth", type=int, metavar="WORDS", help="words of the bank, default 1024")
    parser.add_argument("--width", type=int, metavar="BITS", help="bits of a word, two a weight, default 128")
    parser.add_argument("--zeros", metavar="SHARES", help=f"shares of zero weights of random banks, default {SWEEP}")
    parser.add_argument("--model", metavar="DIR", help="take the bank from this checkpoint's matrices instead")
    parser.add_argument(
        "--strategy", metavar="NAMES", help=f"default {ASIC_STRATEGIES}; on an FPGA {FPGA_STRATEGIES} (and hardwired)"
    )
    parser.add_argument("--seed", metavar="N,N", help="of the random weights, default 7; the medians of several")
    parser.add_argument("--svg", metavar="FILE", help="plot of the comparison")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="write the last strategy's banks there: Verilog, and instances of the library's cells",
    )
    parser.add_argument(
        "--folder",
        metavar="DIR",
        help="ecp5 only: report a whole design that 'intaglio gen decoder' wrote there instead",
    )
    parser.set_defaults(run=run, **DEFAULTS)


def run(args: argparse.Namespace) -> None:
    try:
        from intaglio.gen.synthesis import rom_report
    except ModuleNotFoundError as fault:
        raise Error(f"synthesis needs the Python module {fault.name!r}: pip install 'intaglio[gen]' pyosys") from fault

    target = args.target or ("liberty" if args.liberty else None)
    if target is None:
        raise Error(f"one of --target ({', '.join(['nangate45', *FPGA])}) and --liberty must be given")
    if target in FPGA and (args.liberty or args.period is not None or args.dont_use):
        raise Error(f"--liberty, --dont-use and --period are for cell libraries, not for the FPGA family {target}")
    if args.folder:
        if target != "ecp5":
            raise Error(f"--folder needs --target ecp5, not {target}")
        _alone(args, "folder", DEFAULTS)
        from intaglio.gen.synthesis.ecp5 import decoder_table

        with Progress() as progress:
            text = decoder_table(args.folder, progress=progress)
        sys.stdout.write(text + "\n")
        return
    if target in FPGA and args.out:
        raise Error(f"--out is for cell libraries, not for the FPGA family {target}")
    if args.target and args.liberty:
        raise Error(f"--liberty must be given without --target, not with --target {args.target}")
    if args.model:
        _alone(args, "model", ("zeros", "seed"))
    if args.out:
        rom_report.check_banks(args.out)
    strategies = (args.strategy or (FPGA_STRATEGIES if target in FPGA else ASIC_STRATEGIES)).split(",")
    seeds = _seeds(args.seed)
    if args.out and len(seeds) > 1:
        raise Error(f"--out writes the banks of one --seed, not of {args.seed}")
    if args.svg:
        check_output(args.svg, "--svg")
        plot.figure(1, 1)  # which says so before the work if there is nothing to plot with
    zeros = [_share(text) for text in args.zeros.split(",")]
    cases = (
        rom_report.model_cases(args.model, args.depth, args.width)
        if args.model
        else rom_report.random_cases(zeros, args.depth, args.width, seeds)
    )

    with Progress() as progress:
        if target in FPGA:
            rows, text = rom_report.fpga_table(cases, strategies, target, progress)
        else:
            library = rom_report.library(target, args.liberty, args.dont_use)
            rows, text = rom_report.asic_table(cases, strategies, library, args.period, progress)
    if args.out:
        rom_report.write_banks(rows, args.out)
    sys.stdout.write(text + "\n")
    if args.svg:
        from intaglio.gen.synthesis.rom_picture import comparison_svg

        Path(args.svg).write_text(comparison_svg(rows))


def _alone(args, option, others):
    """Refuse options that would count for nothing beside ``option``."""
    for name in others:
        if getattr(args, name) != DEFAULTS[name]:
            raise Error(f"--{name} must not be given with --{option}, where it counts for nothing")


def _seeds(text):
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = [-1]
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise Error(f"--seed must be integers of at least 0, each once, with commas between them, not {text!r}")
    return seeds


def _share(text):
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise Error(f"--zeros must be shares of zero weights in 0 to less than 1, not {text!r}")
    return value
