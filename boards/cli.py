"""``intaglio board``: bitstreams of boards, packages for cards."""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from intaglio import Error
from intaglio.gen.cli import add_scheduler
from intaglio.progress import Progress

__all__ = ["register"]


KINDS = {
    "ulx3s": "bitstream, placed and routed",
    "ecpix5": "bitstream, placed and routed",
    "hx8k": "bitstream of one lane on an iCE40, placed and routed",
    "arty": "build plan for Vivado (arty.zip), only generated",
    "u280": "kernel package for Vitis, only generated",
    "u55c": "kernel package for Vitis, only generated",
}


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command ``board``."""
    parser = subparsers.add_parser(
        "board",
        help="build for a board or a card",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Build for a board or a card:\n\n"
        + "\n".join(f"  {name:8} {what}" for name, what in KINDS.items())
        + "\n\nA decoder's bitstream takes up to half an hour for each seed the first time, and seconds when\n"
        "nothing has changed. Exit code 1 if no seed reaches the board's clock.",
    )
    parser.add_argument("name", help="one of " + ", ".join(KINDS))
    parser.add_argument(
        "--model", default="models/burin", metavar="DIR", help="checkpoint folder, default models/burin"
    )
    parser.add_argument(
        "--seeds", default="1,2,3", metavar="N,N,...", help="seeds of the placement (ulx3s, ecpix5), default 1,2,3"
    )
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="seeds that are placed at the same time, default 1"
    )
    add_scheduler(parser)
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="output folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.name not in KINDS:
        raise ValueError(f"the board must be one of {', '.join(KINDS)}, not {args.name!r}")
    words = args.seeds.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise ValueError(f"--seeds must be integers with commas between, not {args.seeds!r}")
    try:
        with Progress() as progress:
            return _run(args, tuple(int(word) for word in words), progress)
    except ModuleNotFoundError as fault:
        raise Error(
            f"building for a board needs the Python module {fault.name!r}: pip install 'intaglio[boards]'"
        ) from fault


def _run(args, seeds, progress):
    if args.name == "hx8k":
        from intaglio.boards.lane import build_lane

        result = build_lane(args.model, args.out, seed=seeds[0], progress=progress)
        progress.clear()
        sys.stdout.write(f"one lane on an iCE40 HX8K, placed and routed, not run on a board: {result['mhz']:.1f} MHz\n")
        sys.stdout.write("".join(_usage(result["utilization"])))
    elif args.name == "arty":
        from intaglio.boards.arty import archive

        path = archive(args.model, args.out, progress=progress)
        progress.clear()
        sys.stdout.write(f"{path}: build plan for Vivado, generated and not run\n")
    elif args.name in ("u280", "u55c"):
        from intaglio.boards.alveo import CARDS, package

        described = package(CARDS[args.name], args.model, args.out, progress=progress)
        progress.clear()
        sys.stdout.write(
            f"{args.out}: kernel package for Vitis, generated and not run; digest {described['digest'][:8]}\n"
        )
    else:
        from intaglio.boards.build import build
        from intaglio.boards.config import board

        result = build(
            board(args.name),
            args.model,
            args.out,
            seeds=seeds,
            processes=args.processes,
            scheduler=args.scheduler,
            progress=progress,
        )
        progress.clear()
        sys.stdout.write(report(result))
        return int(result["seeds"][str(result["best_seed"])]["mhz"] < result["clock_mhz"])
    return 0


def report(result: Mapping[str, Any]) -> str:
    """Text of a build's result."""
    lines = [
        f"{result['board']}: digest {result['digest'][:8]}; placed and routed, not run on a board",
        "",
        *(line.rstrip() for line in _usage(result["utilization"])),
        "",
        "seed    MHz  critical path",
    ]
    for seed, placed in result["seeds"].items():
        path = placed["critical_path"]
        delays = f"{path['levels']} nets, {path['logic_ns']} ns logic, {path['routing_ns']} ns routing"
        lines.append(f"{seed:>4} {placed['mhz']:6.1f}  {path['from']} -> {path['to']}: {delays}")
    lines += [
        f"{seed:>4}         not routed: {wires} wires in use twice or too slow at best"
        for seed, wires in result["unrouted"].items()
    ]
    reached = result["seeds"][str(result["best_seed"])]["mhz"]
    verdict = "met" if reached >= result["clock_mhz"] else "MISSED: this bitstream must not be expected to work"
    best = f"best seed {result['best_seed']} with {reached:.1f} MHz"
    lines += ["", f"median {result['median_mhz']:.1f} MHz, {best}, clock {result['clock_mhz']:g} MHz {verdict}", ""]
    return "\n".join(lines)


def _usage(utilization):
    yield "resource             used    of\n"
    for name, count in sorted(utilization.items()):
        if count["used"]:
            yield f"{name:16} {count['used']:8,} {count['available']:7,}  {count['used'] / count['available']:6.1%}\n"
