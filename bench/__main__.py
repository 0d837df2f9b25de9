"""Measure every figure afresh; print a table and write ``bench.json`` in the build folder. Exit code 1 if a goal is missed."""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import (
    adapter,
    attention,
    batch,
    checkpoint,
    cluster,
    decoder,
    gating,
    generator,
    guarantee,
    lane,
    link,
    long_context,
    matrix,
    pages,
    rom,
    scale,
    shapes,
    verilog,
)
from bench.common import Job, Progress, table
from intaglio.cli import exit_code
from intaglio.gen.tools import find_program, use_all

_HOLDS = {
    "=": lambda value, goal: value == goal,
    ">=": lambda value, goal: value >= goal,
    "<=": lambda value, goal: value <= goal,
}


def holds(figure: Mapping[str, Any]) -> bool | None:
    """Whether the figure meets its goal; None without a goal."""
    if not figure["goal"]:
        return None
    relation, goal = figure["goal"].split()
    return _HOLDS[relation](figure["value"], float(goal))


def commit() -> str | None:
    """The commit of the working tree; None outside of git."""
    git = find_program("git")
    if git is None:
        return None
    done = subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/burin"))
    parser.add_argument(
        "--long-model",
        type=Path,
        default=Path("models/burin-16k"),
        help="the model trained on from it for long contexts",
    )
    parser.add_argument("--preset", default="desk")
    parser.add_argument("--build", type=Path, default=Path("build"))
    parser.add_argument("--pdk", type=Path, help="folder with the ASAP7 cell library, for the figures that need one")
    parser.add_argument(
        "--tool", action="append", default=[], metavar="NAME=PROGRAM", help="use this program for verilator or g++"
    )
    args = parser.parse_args(argv)
    use_all(args.tool)
    torch.set_num_threads(2)
    args.build.mkdir(parents=True, exist_ok=True)
    with Progress() as progress:
        job = Job(args.model, args.preset, args.build, progress)
        layers = job.checkpoint.config.num_hidden_layers
        figures = [
            *decoder.figures(job),
            *batch.figures(job),
            *long_context.figures(args.long_model, args.model, progress),
            *adapter.figures(job),
            *gating.figures(job, args.preset),
            *generator.figures(progress),
            *checkpoint.figures(args.build, progress),
            *verilog.figures(job.checkpoint, progress),
            *matrix.figures(progress),
            *link.figures(args.build, progress),
            *scale.figures(progress, args.build),
            *shapes.figures(args.build, progress),
            *cluster.figures(progress, args.build),
            *attention.figures(args.model, args.long_model, layers, args.build, progress),
            *guarantee.figures(progress),
            *pages.figures(job.checkpoint, progress),
            *rom.figures(args.model, args.pdk, progress),
            *lane.figures(progress),
        ]
        progress.say("measured")
    (args.build / "bench.json").write_text(json.dumps({"commit": commit(), "figures": figures}, indent=2) + "\n")
    verdict = {None: "", True: "met", False: "MISSED"}
    rows = [("figure", "value", "unit", "goal", "", "class", "anchor")]
    for f in figures:
        rows.append((f["name"], round(f["value"], 5), f["unit"], f["goal"], verdict[holds(f)], f["class"], f["anchor"]))
    sys.stdout.write(table(rows) + f"\n\n{args.build / 'bench.json'} written\n")
    return int(any(holds(f) is False for f in figures))


if __name__ == "__main__":
    sys.exit(exit_code(main))
