"""``intaglio gen``: write Verilog."""

import argparse
import sys

from intaglio import Error
from intaglio.cli import number_or_text, pairs
from intaglio.progress import Progress

__all__ = ["add_scheduler", "register"]


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command ``gen``."""
    parser = subparsers.add_parser("gen", help="generate Verilog from a model")
    kinds = parser.add_subparsers(title="what to generate", metavar="KIND", required=True)
    decoder = kinds.add_parser(
        "decoder",
        help="the whole decoder of a checkpoint",
        description=(
            "Write Verilog, ROM images and manifest of the whole decoder of a checkpoint, in bounded memory. A run that was killed is "
            "taken up again by the same command."
        ),
    )
    decoder.add_argument(
        "--model", required=True, metavar="DIR", help="checkpoint folder: config.json and model.safetensors"
    )
    decoder.add_argument(
        "--preset", default="desk", metavar="NAME", help="widths of the units, default desk; see 'intaglio gen presets'"
    )
    decoder.add_argument("-o", "--out", required=True, metavar="DIR", help="output folder")
    _add_prefix(decoder, "decoder")
    decoder.add_argument(
        "--set", action="append", default=[], metavar="WIDTH=VALUE", help="change one width of the preset"
    )
    _add_processes(decoder, "processes that read weights and make ROMs, for large models")
    add_scheduler(decoder)
    _allow_constant(decoder)
    decoder.set_defaults(run=run_decoder)
    prefill = kinds.add_parser(
        "prefill",
        help="sparse attention for long prompts",
        description="Write Verilog and manifest of the prefill attention unit.",
    )
    prefill.add_argument(
        "--preset", default="desk", metavar="NAME", help="shape of the unit, default desk; see 'intaglio gen presets'"
    )
    prefill.add_argument("-o", "--out", required=True, metavar="DIR", help="output folder")
    _add_prefix(prefill, "prefill")
    prefill.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change one field of the preset"
    )
    prefill.set_defaults(run=run_prefill)
    banks = kinds.add_parser(
        "banks",
        help="the ROM banks of one layer or of a whole model, in bounded memory",
        description=(
            "Write the ROM banks of a checkpoint, a layer at a time, in bounded memory. A run that was killed is taken up again by the "
            "same command."
        ),
    )
    banks.add_argument("--model", required=True, metavar="DIR", help="checkpoint folder: config.json and safetensors")
    which = banks.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--layer", type=int, action="append", metavar="N", help="write layer N, from 0; may be given again"
    )
    which.add_argument(
        "--all", action="store_true", help="write every layer, the embedding, and the head that is another"
    )
    banks.add_argument(
        "--preset",
        default="tom",
        metavar="NAME",
        help="units and banks: tom (the default: 16 lanes x 10 units x 128 weights), or a preset of the decoder",
    )
    banks.add_argument(
        "--form",
        choices=("image", "logic"),
        default="image",
        help="what the banks of weights are: files for $readmemh (the default), or modules of gates",
    )
    _add_processes(banks, "processes")
    add_scheduler(banks)
    banks.add_argument("-o", "--out", required=True, metavar="DIR", help="output folder")
    _allow_constant(banks)
    banks.set_defaults(run=run_banks)
    presets = kinds.add_parser(
        "presets", help="list the presets", description="List the presets of decoder, prefill unit and banks."
    )
    presets.set_defaults(run=run_presets)


def _add_prefix(parser, kind):
    parser.add_argument(
        "--prefix",
        metavar="NAME",
        help=f"the top is NAME_{kind}, and modules, ROM images and macros begin with that; by "
        "default NAME has the digest in it, so that two designs can stand in one project",
    )


def _add_processes(parser, what):
    parser.add_argument("--processes", type=int, default=2, metavar="N", help=f"{what}, default 2")


def add_scheduler(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--scheduler`` of commands with independent jobs."""
    parser.add_argument(
        "--scheduler",
        metavar="tcp://HOST:PORT",
        help="let the workers of this Dask scheduler do the work; they must see the same folders",
    )


def _allow_constant(parser):
    parser.add_argument(
        "--allow-constant",
        action="store_true",
        help="accept matrices of one value throughout and norms of zeros, which no trained model has",
    )


def run_presets(args: argparse.Namespace) -> None:
    from intaglio.gen.presets.attention import PRESETS as PREFILL
    from intaglio.gen.presets.decoder import PRESETS

    for kind, presets in (("decoder", PRESETS), ("prefill", PREFILL)):
        sys.stdout.writelines(f"{kind:8} {name:10} {preset.description}\n" for name, preset in presets.items())
    sys.stdout.write(
        "banks    tom        16 lanes x 10 units x 128 weights, banks of 1,024 words; also every preset of the decoder\n"
    )


def _need(fault):
    return Error(f"the generator needs the Python module {fault.name!r}: pip install 'intaglio[gen]'")


def run_banks(args: argparse.Namespace) -> None:
    try:
        from intaglio.gen.banks.layout import layout_for
        from intaglio.gen.emit.banks import emit
    except ModuleNotFoundError as fault:
        raise _need(fault) from fault

    with Progress() as progress:
        done = emit(
            args.model,
            args.out,
            layout=layout_for(args.preset),
            layers=None if args.all else args.layer,
            form=args.form,
            processes=args.processes,
            scheduler=args.scheduler,
            progress=progress,
            allow_constant=args.allow_constant,
        )
    sys.stdout.write(
        f"{args.out}: {len(done['written'])} parts written ({done['bytes'] / 1e6:,.1f} MB), {len(done['kept'])} kept, "
        f"at most {done['peak_kib'] / 1024:,.0f} MiB resident\n"
    )


def run_decoder(args: argparse.Namespace) -> None:
    try:
        from intaglio.gen.emit.decoder import generate
    except ModuleNotFoundError as fault:
        raise _need(fault) from fault

    widths = pairs("--set", args.set, "WIDTH=VALUE", number_or_text)
    with Progress() as progress:
        described = generate(
            args.model,
            args.preset,
            args.out,
            prefix=args.prefix,
            progress=progress,
            allow_constant=args.allow_constant,
            processes=args.processes,
            scheduler=args.scheduler,
            **widths,
        )
    sys.stdout.write(
        f"{args.out}: {described['top']}, {len(described['files']['verilog'])} modules, "
        f"{described['model']['ternary_weights']:,} ternary weights, digest {described['digest'][:8]}\n"
    )


def run_prefill(args: argparse.Namespace) -> None:
    try:
        from intaglio.gen.emit.attention import generate
    except ModuleNotFoundError as fault:
        raise _need(fault) from fault

    fields = pairs("--set", args.set, "FIELD=VALUE", number_or_text)
    with Progress() as progress:
        described = generate(args.preset, args.out, prefix=args.prefix, progress=progress, **fields)
    sys.stdout.write(
        f"{args.out}: {described['top']}, {len(described['files']['verilog'])} modules, prompts of up to "
        f"{described['config']['context']:,} tokens, digest {described['digest'][:8]}\n"
    )
