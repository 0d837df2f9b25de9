"""Energy of a decoder with gated weight banks, with and without the gating: *projected* from transitions that a simulation counted.

intaglio run --device sim:OUT --trace t.saif ...
python -m intaglio.gen.estimate.energy OUT --saif t.saif [--liberty FILE] [--set leakage_factor=10]
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from intaglio import Error
from intaglio.cli import exit_code, pairs
from intaglio.gen.estimate.activity import ASAP7, Cells, Saif, read_cells, read_saif
from intaglio.rtl.config.decoder import DecoderConfig

__all__ = ["ASSUMPTIONS", "Energy", "assumptions_with", "estimate_energy"]

ASSUMPTIONS = {  # name: value, what it is and where it comes from
    "nand2_per_bit": (
        0.114,
        "NAND2 a bit of a ROM bank; measured: 1,024 x 128 bit, 70 % zero bits, ASAP7, Yosys and ABC",
    ),
    "pins_per_nand2": (2.0, "inputs that its output and inputs stand for"),
    "nand2_per_net": (3.0, "NAND2 of logic for each bit of a net of the RTL, for its leakage and switching"),
    "wires": (2.0, "capacitance of pins and wires over that of the pins"),
    "off_leakage": (0.05, "share of its leakage that a bank keeps without power, switches included"),
    "rail": (1.0, "capacitance that a wake-up charges, over that of all pins and wires of the bank"),
    "leakage_factor": (1.0, "leakage over that of the library, for a hotter or faster corner"),
}


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Joules in the traced time.

    Members
    -------
    cycles : int
    reads, wakes : int
        Words read of a lane; times a column was switched on.
    powered_share : float
        Mean share of the time that a column has power.
    activity : float
        Transitions of an output bit of a ROM for each word read.
    gated, held, broadcast : dict of str to float
        By part, and ``total``: with the gating; without it, banks that are not read keep their address; without it, every bank of
        a lane sees every address, as the logic of an ungated ROM does.
    """

    cycles: int
    reads: int
    wakes: int
    powered_share: float
    activity: float
    gated: dict
    held: dict
    broadcast: dict

    @property
    def ratio_held(self) -> float:
        return self.gated["total"] / self.held["total"]

    @property
    def ratio_broadcast(self) -> float:
        """Energy with the gating over that without."""
        return self.gated["total"] / self.broadcast["total"]


def assumptions_with(changes: Mapping[str, float]) -> dict[str, float]:
    """Values by name; raises ``ValueError`` for an unknown name or a negative value."""
    out = {name: value for name, (value, _) in ASSUMPTIONS.items()}
    for name, value in changes.items():
        if name not in out:
            raise ValueError(f"an assumption must be one of {', '.join(out)}, not {name!r}")
        if not 0 <= value < 1e9:
            raise ValueError(f"the assumption {name} must be a number of at least 0, not {value}")
        out[name] = value
    return out


def estimate_energy(config: DecoderConfig, saif: Saif, cells: Cells, assumptions: Mapping[str, float]) -> Energy:
    """Energy of the traced time at ``config.clock_hz``.

    Parameters
    ----------
    config : DecoderConfig
        With gating.
    saif : Saif
    cells : Cells
    assumptions : dict of float
        From :func:`assumptions_with`.

    Returns
    -------
    Energy

    Formulas: a transition costs ``C V^2 / 2``; a read moves the share ``activity`` of all pins of the bank (its outputs' activity
    stands for that of its inner nodes); nets of the RTL with the same times and counts are one net under several names.
    """
    if not config.gate_words:
        raise ValueError("the decoder must have power gating (generate it with --set gate_words=1024)")
    a = assumptions
    clock = saif.net("", "aclk")
    cycles = clock.transitions / 2
    if cycles < 1:
        raise Error("the SAIF must cover at least one cycle of aclk")
    unit = 2 * clock.high / cycles  # of time, a cycle
    power = [saif.net("core/linear/gate", f"power[{b}]") for b in range(config.gate_banks)]
    reads = [saif.net("core/linear/gate", f"reads[{b}]").high / unit for b in range(config.gate_banks)]
    words = sum(reads)
    outputs = [net for lane in range(config.lanes) for net in _outputs(saif, lane)]
    activity = sum(net.transitions for net in outputs) / max(1, words * config.lanes * config.weight_word_bits)
    bits = [
        min(config.gate_words, config.weight_depth - b * config.gate_words) * config.weight_word_bits * config.lanes
        for b in range(config.gate_banks)
    ]  # of a column
    seconds = cycles / config.clock_hz
    leak = [a["nand2_per_bit"] * n * cells.leakage * a["leakage_factor"] * seconds for n in bits]
    farad = [a["nand2_per_bit"] * a["pins_per_nand2"] * n * cells.pin * a["wires"] for n in bits]
    swing = cells.volt**2
    share = [net.high / saif.duration for net in power]
    read = sum(n * c for n, c in zip(reads, farad, strict=True)) * activity * swing / 2
    wakes = [(net.transitions + 1) // 2 for net in power]
    nets = {net for path, found in saif.instances.items() if not _in_bank(path) for net in found.values()}
    pins = sum(net.transitions for net in nets) * a["nand2_per_net"] * a["pins_per_nand2"] * cells.pin * a["wires"]
    common = {
        "logic switching": pins * swing / 2,
        "logic leakage": len(nets) * a["nand2_per_net"] * cells.leakage * a["leakage_factor"] * seconds,
    }
    gated = {
        "ROM leakage": sum(e * (s + (1 - s) * a["off_leakage"]) for e, s in zip(leak, share, strict=True)),
        "ROM reading": read,
        "wake-up": sum(n * c for n, c in zip(wakes, farad, strict=True)) * a["rail"] * swing,
        **common,
    }
    held = {"ROM leakage": sum(leak), "ROM reading": read, "wake-up": 0.0, **common}
    broadcast = held | {"ROM reading": words * sum(farad) * activity * swing / 2}
    return Energy(
        cycles=round(cycles),
        reads=round(words),
        wakes=sum(wakes),
        powered_share=sum(share) / len(share),
        activity=activity,
        **{
            name: parts | {"total": sum(parts.values())}
            for name, parts in (("gated", gated), ("held", held), ("broadcast", broadcast))
        },
    )


def _in_bank(path):
    return path.startswith("core/linear/rom_") and path.count("/") >= 3


def _outputs(saif, lane):
    """The bits of the word that a lane is given."""
    path = f"core/linear/lane_{lane}"
    return [net for name, net in saif.instances.get(path, {}).items() if name.startswith("word[")]


def _arguments(parser):
    parser.add_argument("folder", help="output of `intaglio gen decoder --set gate_words=...`")
    parser.add_argument(
        "--saif", required=True, metavar="FILE", help="transitions, from `intaglio run --trace FILE.saif`"
    )
    parser.add_argument(
        "--liberty", metavar="FILE", help="cell library with leakage, .lib or .lib.gz; without it anchors of ASAP7"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change one assumption")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_energy(args: argparse.Namespace) -> None:
    assumptions = assumptions_with(pairs("--set", args.set, "NAME=NUMBER", float))
    try:
        manifest = json.loads((Path(args.folder) / "manifest.json").read_text(encoding="utf-8"))
        config, top = DecoderConfig.from_json(manifest["config"]), manifest["top"]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise Error(f"{args.folder} must be a folder written by `intaglio gen decoder`: {fault}") from fault
    cells = read_cells(args.liberty) if args.liberty else ASAP7
    energy = estimate_energy(config, read_saif(args.saif, top), cells, assumptions)
    if args.json:
        record = {
            "class": "projected",
            **asdict(energy),
            "ratio_held": energy.ratio_held,
            "ratio_broadcast": energy.ratio_broadcast,
            "cells": asdict(cells),
            "assumptions": assumptions,
        }
        sys.stdout.write(json.dumps(record, indent=2) + "\n")
    else:
        sys.stdout.write(_text(config, energy, cells, assumptions))


def _text(config, e, cells, assumptions):
    text = ", ".join(
        (
            f"{config.gate_banks} columns of banks of {config.gate_words:,} words",
            f"{e.cycles:,} cycles traced",
            f"{config.clock_hz / 1e6:g} MHz",
        )
    )
    lines = [
        f"{text}. Every figure is *projected*.",
        "",
        f"  {'nJ':20} {'gated':>12} {'addresses held':>15} {'broadcast':>12}",
    ]
    lines += [
        f"  {part:20} {1e9 * e.gated[part]:12.4f} {1e9 * e.held[part]:15.4f} {1e9 * e.broadcast[part]:12.4f}"
        for part in e.gated
    ]
    lines += [
        "",
        f"gated over ungated, every bank sees every address        {e.ratio_broadcast:.4f}",
        f"gated over ungated, banks not read keep their address    {e.ratio_held:.4f}",
        f"share of the time that a column has power                {e.powered_share:.4f}",
        f"wake-ups; words read of a lane                           {e.wakes}; {e.reads:,}",
        f"transitions of an output bit a word                      {e.activity:.4f}",
        "",
        f"NAND2: {cells.leakage * 1e12:.4g} pW, {cells.pin * 1e15:.4g} fF an input, {cells.volt:g} V ({cells.source})",
        "assumptions (--set NAME=VALUE changes one)",
    ]
    lines += [f"  {name:16} {assumptions[name]:>8g}  {text}" for name, (_, text) in ASSUMPTIONS.items()]
    lines += [
        "  not counted: KV cache and buffers (memories), clock tree, isolation cells and switches, the ROMs of embedding and gains"
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m intaglio.gen.estimate.energy", description=__doc__.splitlines()[0])
    _arguments(parser)
    args = parser.parse_args(arguments)
    return exit_code(lambda: run_energy(args))


if __name__ == "__main__":
    sys.exit(main())
