"""Figures of a board: frequency of its placed bitstream, and tokens a second from simulated cycles. Builds first what is not built.

python -m bench.board --board ulx3s        # or: make bench-board BOARD=ulx3s; up to half an hour for each seed the first time
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.common import Progress, equal_to_exact, figure, table
from intaglio import Error
from intaglio.boards.build import build
from intaglio.boards.config import Board, board
from intaglio.cli import exit_code
from intaglio.gen.checkpoint.quantised import QuantisedModel, quantise
from intaglio.gen.checkpoint.reader import load_checkpoint
from intaglio.gen.cycles.decoder import token_cycles
from intaglio.gen.presets.decoder import config_for
from intaglio.host import open as open_device
from intaglio.host.device import Device
from intaglio.host.protocol import command
from intaglio.host.transport.link import LinkTransport
from intaglio.host.transport.serial import SerialChannel
from intaglio.sim.verilator.board import SerialBoard
from intaglio.sim.verilator.build import build as build_simulation
from intaglio.sim.verilator.netlist import netlist_verilog

__all__ = ["context_cycles", "figures", "netlist_equal"]

PROMPT, TOKENS = b"import os\n\ndef main(", 12  # of the run of the netlist
SECONDS = 300.0  # that it may take for an answer: it runs at some 7,000 cycles a second


def context_cycles(folder: Path, model: QuantisedModel, progress: Progress) -> list[int]:
    """Cycles of each token of a whole context, all with logits, as the simulated device counts them; checked with the closed form."""
    counted = []
    with open_device(f"sim:{folder}", progress=progress) as device:
        for position in range(model.config.context):
            device.clear_counters()
            device.submit([command(65 + position % 26, first=position == 0, want=True)])
            device.receive()
            counted.append(sum(device.counters()["phases"].values()))
            if counted[-1] != token_cycles(model, position).total:
                raise Error(
                    f"the token at {position} must take {token_cycles(model, position).total} cycles, not {counted[-1]}"
                )
    return counted


def netlist_equal(chosen: Board, folder: Path, model: QuantisedModel, progress: Progress) -> int:
    """How many of ``TOKENS`` tokens the netlist that was placed generates as the exact model does, over its UART."""
    prompt = [0, *PROMPT]
    library = build_simulation(
        folder / "decoder",
        board=netlist_verilog(folder / "netlist" / "netlist.json"),
        progress=lambda text, seconds: progress(f"netlist: {text}", 0),
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    with SerialBoard(library, clock_hz=chosen.clock_hz, baud=chosen.baud) as simulated:
        link = LinkTransport(SerialChannel(simulated.port, chosen.baud), manifest, limit=SECONDS)
        with Device(link, timeout=SECONDS) as device:
            return equal_to_exact(model, prompt, list(device.generate_tokens(prompt, TOKENS)))


def figures(name: str, model: Path, folder: Path, progress: Progress) -> list[dict[str, Any]]:
    """Figures of the board ``name`` as dicts of name, value, unit, goal, anchor and class."""
    chosen = board(name)
    result = build(chosen, model, folder, progress=progress)
    checkpoint = load_checkpoint(model)
    quantised = quantise(checkpoint, config_for(checkpoint.config, chosen.preset, clock_hz=chosen.clock_hz))
    cycles = context_cycles(folder / "decoder", quantised, progress)
    mean, fmax = sum(cycles) / len(cycles), result["median_mhz"]
    clock = min(fmax, result["clock_mhz"])
    path = result["seeds"][str(result["best_seed"])]["critical_path"]
    rates = ", ".join(f"seed {seed}: {placed['mhz']:.1f}" for seed, placed in result["seeds"].items())
    rates += "".join(f", seed {seed}: not routed" for seed in result["unrouted"])

    def line(what, value, unit, goal, kind, anchor=""):
        return figure(f"board.{name}_{what}", value, unit, goal, anchor, kind)

    return [
        line("fmax_mhz", fmax, "MHz", ">= 80", "placed", f"{rates}; slowest: {path['from']} -> {path['to']}"),
        line(
            "cycles_per_token",
            mean,
            "cycles",
            "",
            "simulated",
            f"mean of a context of {len(cycles)} tokens, all with logits",
        ),
        line(
            "netlist_tokens_equal_share",
            netlist_equal(chosen, folder, quantised, progress) / TOKENS,
            "",
            ">= 1",
            "synthesised, simulated",
            f"{TOKENS} tokens of the placed netlist, cell by cell",
        ),
        line(
            "tokens_per_second", clock * 1e6 / mean, "tokens/s", ">= 10000", "placed, simulated", f"at {clock:.1f} MHz"
        ),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", default="ulx3s")
    parser.add_argument("--model", type=Path, default=Path("models/burin"))
    parser.add_argument("--build", type=Path, default=Path("build"))
    args = parser.parse_args(argv)
    with Progress() as progress:
        found = figures(args.board, args.model, args.build / args.board, progress)
    rows = [("figure", "value", "unit", "goal", "class", "note")]
    rows += [(f["name"], round(f["value"], 2), f["unit"], f["goal"], f["class"], f["anchor"]) for f in found]
    sys.stdout.write(table(rows) + "\n")
    (args.build / args.board / "bench.json").write_text(json.dumps(found, indent=2) + "\n")
    missed = [f for f in found if f["goal"] and f["value"] < float(f["goal"].split()[1])]
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(exit_code(main))
