"""``intaglio board``: bitstreams of boards."""

import sys
import time

from intaglio import Error

__all__ = ["register"]


def register(subparsers):
    """Add the command ``board``."""
    parser = subparsers.add_parser("board", help="build a board's bitstream", description=(
        "Generate, synthesise, place and route for each seed, and pack the fastest. Takes an hour or more the first time and seconds "
        "when nothing has changed. Exit code 1 if no seed reaches the board's clock."))
    parser.add_argument("name", help="ulx3s or ecpix5")
    parser.add_argument("--model", default="models/burin", metavar="DIR", help="checkpoint folder, default models/burin")
    parser.add_argument("--seeds", default="1,2,3", metavar="N,N,...", help="seeds of the placement, default 1,2,3")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="output folder")
    parser.set_defaults(run=run)


def run(args):
    try:
        from intaglio.boards.build import build
        from intaglio.boards.config import board

        chosen = board(args.name)
    except ModuleNotFoundError as fault:
        raise Error(f"building for a board needs the Python module {fault.name!r}: pip install 'intaglio[boards]'") from fault
    words = args.seeds.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise ValueError(f"--seeds must be integers with commas between, not {args.seeds!r}")
    result = build(chosen, args.model, args.out, seeds=tuple(int(word) for word in words), progress=_Progress())
    sys.stdout.write(report(result))
    return int(result["seeds"][str(result["best_seed"])]["mhz"] < result["clock_mhz"])


def report(result):
    """Text of a build's result."""
    lines = [f"{result['board']}: digest {result['digest'][:8]}; placed and routed, not run on a board", "",
             "resource             used    of"]
    for name, count in sorted(result["utilization"].items()):
        if count["used"]:
            lines.append(f"{name:16} {count['used']:8,} {count['available']:7,}  {count['used'] / count['available']:6.1%}")
    lines += ["", "seed    MHz  critical path"]
    for seed, placed in result["seeds"].items():
        path = placed["critical_path"]
        delays = f"{path['levels']} levels, {path['logic_ns']} ns logic, {path['routing_ns']} ns routing"
        lines.append(f"{seed:>4} {placed['mhz']:6.1f}  {path['from']} -> {path['to']}: {delays}")
    reached = result["seeds"][str(result["best_seed"])]["mhz"]
    verdict = "met" if reached >= result["clock_mhz"] else "MISSED: this bitstream must not be expected to work"
    best = f"best seed {result['best_seed']} with {reached:.1f} MHz"
    lines += ["", f"median {result['median_mhz']:.1f} MHz, {best}, clock {result['clock_mhz']:g} MHz {verdict}", ""]
    return "\n".join(lines)


class _Progress:
    """One changing line on a terminal; elsewhere a line whenever the step's first word changes, with the seconds so far."""

    def __init__(self):
        self.began, self.step = time.monotonic(), None

    def __call__(self, text, share):
        if sys.stderr.isatty():
            seconds = time.monotonic() - self.began
            sys.stderr.write(f"\r\x1b[K{100 * share:3.0f} % {seconds:5.0f} s  {text[:100]}" + ("\n" if share == 1 else ""))
        elif (step := text.split()[:2]) != self.step:
            sys.stderr.write(f"{time.monotonic() - self.began:6.0f} s  {text[:100]}\n")
            self.step = step
        sys.stderr.flush()
