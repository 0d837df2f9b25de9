"""``intaglio estimate``: projections of machines larger than the RTL builds. Every kind of estimate adds a parser of its own."""

import argparse
import dataclasses
import json
import sys

from intaglio import Error
from intaglio.cli import pairs
from intaglio.gen.estimate import attention

__all__ = ["register"]


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command ``estimate``."""
    parser = subparsers.add_parser("estimate", help="project speed, area and power of a machine that is not built")
    kinds = parser.add_subparsers(title="what to estimate", metavar="KIND", required=True)
    _add_decoder(kinds)
    attention.add_parser(kinds)


def _add_decoder(kinds):
    decoder = kinds.add_parser(
        "decoder",
        help="tokens a second, area and power of a decoder",
        description=(
            "Project tokens a second, area and power of a decoder, LM head included, from the closed forms of the cycles that the RTL "
            "confirmed; every assumption is printed."
        ),
    )
    decoder.add_argument(
        "--model",
        required=True,
        metavar="NAME|DIR",
        help="a published model (bitnet-2b4t, falcon3-1b, llama3-8b) or a checkpoint folder",
    )
    decoder.add_argument(
        "--preset",
        default="tom",
        metavar="NAME",
        help="tom (the default: 16 lanes x 10 units x 128 weights, 500 MHz, no vector wider than a head), or a preset of "
        "the decoder: desk, desk-4k, ulx3s or small",
    )
    decoder.add_argument("--context", type=int, metavar="N", help="tokens in the KV cache; the last one is projected")
    decoder.add_argument(
        "--set", action="append", default=[], metavar="WIDTH=VALUE", help="change one width of the machine"
    )
    decoder.add_argument(
        "--cost", action="append", default=[], metavar="NAME=VALUE", help="change one cost, e.g. weight_um2=0.00588"
    )
    decoder.add_argument("--json", action="store_true", help="print JSON")
    decoder.set_defaults(run=run_decoder)


def run_decoder(args: argparse.Namespace) -> None:
    try:
        from intaglio.gen.checkpoint.published import model_of
        from intaglio.gen.estimate.costs import costs_with
        from intaglio.gen.estimate.decoder import estimate_decoder
        from intaglio.gen.estimate.machine import machine_for
    except ModuleNotFoundError as fault:
        raise Error(f"the estimate needs the Python module {fault.name!r}: pip install 'intaglio[gen]'") from fault

    model = model_of(args.model)
    widths = pairs("--set", args.set, "NAME=NUMBER", int)
    if args.context is not None:
        if "context" in widths:
            raise ValueError("context must be given by --context or by --set, not by both")
        widths["context"] = args.context
    machine = machine_for(model, args.preset, **widths)
    costs = costs_with(pairs("--cost", args.cost, "NAME=NUMBER", float))
    estimate = estimate_decoder(machine, costs)
    if args.json:
        record = {
            "class": "projected",
            "model": args.model,
            "preset": args.preset,
            "machine": {name: value for name, value in vars(machine).items() if name != "model"},
            **dataclasses.asdict(estimate),
            "costs": {name: dataclasses.asdict(cost) for name, cost in costs.items()},
        }
        sys.stdout.write(json.dumps(record, indent=2) + "\n")
    else:
        sys.stdout.write(_text(args.model, args.preset, machine, costs, estimate))


def _text(model, preset, machine, costs, e):
    from intaglio.gen.estimate.decoder import TOM_TOKENS_PER_SECOND

    lines = [
        f"{model} on {preset}, {machine.clock_hz / 1e6:g} MHz, context {machine.context:,}. Every figure is *projected*.",
        "",
        f"tokens per second, LM head included    {e.tokens_per_second:>12,.0f}",
        f"tokens per second without the head     {e.tokens_per_second_without_head:>12,.0f}"
        + (
            f"   (anchor: {TOM_TOKENS_PER_SECOND:,}, TOM, arXiv 2602.20662)"
            if (model, preset) == ("bitnet-2b4t", "tom")
            else ""
        ),
        f"limit of the ternary units alone       {e.tokens_per_second_arrays:>12,.0f}",
        "",
        "cycles of a token",
    ]
    lines += [f"  {name:36} {cycles:>12,}  {cycles / e.cycles:6.1%}" for name, cycles in e.phases.items()]
    lines += [f"  {'all':36} {e.cycles:>12,}", "", "storage"]
    lines += [f"  {name.replace('_', ' '):36} {bits / 8e6:>12,.1f} MB" for name, bits in e.storage.items()]
    lines += ["", "area"]
    lines += [f"  {name:36} {area:>12,.3f} mm2" for name, area in e.area_mm2.items()]
    lines += ["", f"power at full speed, {1e3 * e.watts['total'] / e.tokens_per_second:.3f} mJ a token"]
    lines += [f"  {name:36} {watts:>12,.4f} W" for name, watts in e.watts.items()]
    lines += ["", "assumptions"]
    lines += [f"  - {text}" for text in e.assumptions]
    lines += ["", "costs (--cost NAME=VALUE changes one)"]
    lines += [f"  {name:16} {cost.value:>10.6g} {cost.unit:11} {cost.source}" for name, cost in costs.items()]
    return "\n".join(lines) + "\n"
