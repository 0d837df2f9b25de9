"""``intaglio estimate attention``: prefill attention of published models at their sizes, from the closed form of the cycles.

Nothing of this size is simulated. The closed form is the one that simulated shapes keep within 3 % (tests/sim/verilator/test_attention.py).
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from intaglio import Error
from intaglio.gen.estimate.targets import TARGETS, Target
from intaglio.progress import Progress

if TYPE_CHECKING:
    import argparse

    import numpy as np

    from intaglio.rtl.config.attention import PrefillConfig


__all__ = [
    "LENGTHS",
    "MODELS",
    "AttentionEstimate",
    "Model",
    "add_parser",
    "estimate",
    "least_density",
    "synthetic_map",
]

LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
SEED, BLOCK = 2602_20515, 128


@dataclass(frozen=True, kw_only=True)
class Model:
    """Shape of a published decoder (its config.json): head_dim D, FFN of three matrices."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int

    @property
    def linear_macs(self) -> int:
        """Multiply-accumulates of a token in all linear layers, LM head excluded: prefill needs it once."""
        width = self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * self.hidden * (width + 3 * self.intermediate)


MODELS = {
    "llama-3.2-1b": Model(layers=16, hidden=2048, heads=32, kv_heads=8, head_dim=64, intermediate=8192),
    "llama-3.2-3b": Model(layers=28, hidden=3072, heads=24, kv_heads=8, head_dim=128, intermediate=8192),
    "qwen2.5-1.5b": Model(layers=28, hidden=1536, heads=12, kv_heads=2, head_dim=128, intermediate=8960),
}


def least_density(blocks: int) -> float:
    """Share of the causal blocks that are always kept: those of the first column (the sink) and of the diagonal."""
    return (2 * blocks - 1) / (blocks * (blocks + 1) / 2)


def synthetic_map(heads: int, blocks: int, density: float) -> np.ndarray:
    """A block map bool [heads, blocks, blocks] of this share of the causal blocks, rounded to a block (:func:`least_density` at the least).

    Sink and diagonal, and verticals and slashes (these of the nearer half of the distances) by turns, drawn with a fixed seed; the last
    one drawn has only as many blocks as are wanted. When all slashes are drawn the rest are verticals.
    """
    import numpy as np

    picks = np.random.default_rng(SEED)
    row, column = np.indices((blocks, blocks))
    causal = column <= row
    wanted = round(density * causal.sum())
    out = np.empty((heads, blocks, blocks), bool)
    for head in range(heads):
        keep, order = causal & ((column == 0) | (column == row)), picks.permutation(blocks)
        for number, choice in enumerate([*order, *order]):
            slash = number % 2 == 0 and number < blocks
            more = np.flatnonzero(
                causal & ~keep & ((row - column == choice % max(1, blocks // 2)) if slash else (column == choice))
            )
            keep.flat[more[: max(0, wanted - keep.sum())]] = True
            if keep.sum() >= wanted:
                break
        out[head] = keep
    return out


@dataclass(frozen=True, kw_only=True)
class AttentionEstimate:
    """Of one length. cycles of a run (one KV head of a layer) by phase; seconds of all layers; dense_seconds by the same hardware; the
    index's share of the cycles and its cycles over its own multiplications; utilisation of the multipliers; read_gb from memory by all
    layers; linear_seconds: the linear layers' multiplications on the same multipliers, if none ever waited."""

    tokens: int
    density: float
    cycles: dict
    seconds: float
    dense_seconds: float
    index_share: float
    index_over_bound: float
    utilisation: float
    read_gb: float
    linear_seconds: float


def estimate(
    model: Model, tokens: int, *, units: int, config: PrefillConfig, target: Target, density: float, aware: int
) -> AttentionEstimate:
    """Project prefill attention of a prompt.

    Parameters
    ----------
    model : Model
    tokens : int
        A multiple of the block.
    units : int
        Prefill units side by side, each with a KV head at a time.
    config : PrefillConfig
        Of each.
    target : Target
        Whose memory the units share.
    density : float
        Share of causal blocks kept.
    aware : int
        Query-aware heads of each KV head.

    Returns
    -------
    AttentionEstimate
    """
    from intaglio.gen.cycles.attention import Memory, dense_cycles, index_bound, run_cycles
    from intaglio.rtl.control.jobs import job_tiles

    c, blocks, clock = config, tokens // config.block, config.clock_hz
    keep = synthetic_map(c.group, blocks, density)
    memory = Memory(
        latency=math.ceil(target.latency_ns * clock / 1e9), rate=target.bytes_per_second / units / clock / c.head_dim
    )
    visits = sum(int(keep[:, first : first + c.window].any((0, 1)).sum()) for first in range(0, blocks, c.window))
    every = sum(min(first + c.window, blocks) for first in range(0, blocks, c.window))  # visits of a dense run
    phases = run_cycles(c, keep, aware, visits, memory)
    cycles, index = sum(phases.values()), sum(value for name, value in phases.items() if name != "attend")
    turns = model.layers * math.ceil(model.kv_heads / units)
    diagonal = c.group * blocks
    tiles = 2 * c.head_dim * ((int(keep.sum()) - diagonal) * job_tiles(c, False) + diagonal * job_tiles(c, True))
    beats = 2 * blocks * (c.block + c.scale_beats) + 2 * visits * (c.block + c.scale_beats) + c.group * blocks * c.block
    return AttentionEstimate(
        tokens=tokens,
        density=float(keep.sum() / (c.group * blocks * (blocks + 1) / 2)),
        cycles=phases,
        seconds=turns * cycles / clock,
        dense_seconds=turns * dense_cycles(c, blocks, every, memory) / clock,
        index_share=index / cycles,
        index_over_bound=index / index_bound(c, blocks),
        utilisation=(tiles + index_bound(c, blocks)) / cycles,
        read_gb=model.layers * model.kv_heads * beats * c.head_dim / 1e9,
        linear_seconds=tokens * model.linear_macs / (units * c.columns * c.head_dim * clock),
    )


def add_parser(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``attention`` to the kinds of estimates."""
    parser = kinds.add_parser(
        "attention",
        help="prefill attention of a long prompt",
        description=(
            "Project prefill attention of a published model on an FPGA, from the closed form of the cycles; every assumption is printed."
        ),
    )
    parser.add_argument(
        "--model", default="llama-3.2-1b", metavar="NAME", help=f"one of {', '.join(MODELS)}; default llama-3.2-1b"
    )
    parser.add_argument("--tokens", metavar="N,N", help="lengths, multiples of 128, default 4096 to 131072")
    parser.add_argument("--target", default="u280", metavar="NAME", help=f"one of {', '.join(TARGETS)}; default u280")
    parser.add_argument("--columns", type=int, default=64, metavar="C", help="columns of each unit, default 64")
    parser.add_argument("--density", type=float, default=0.2, help="share of the causal blocks kept, default 0.2")
    parser.add_argument("--aware", type=float, default=0.5, help="share of query-aware heads, default 0.5")
    parser.add_argument(
        "--reserved",
        type=float,
        default=0.3,
        help="share of DSP slices, LUTs and memory on chip left to everything else, default 0.3",
    )
    parser.add_argument(
        "--clock-mhz",
        type=float,
        metavar="F",
        help="default " + ", ".join(f"{target.clock_hz / 1e6:g} ({name})" for name, target in TARGETS.items()),
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def _checked(args):
    for name, names in (("model", MODELS), ("target", TARGETS)):
        if getattr(args, name) not in names:
            raise ValueError(f"--{name} must be one of {', '.join(names)}, not {getattr(args, name)!r}")
    for name, low in (("density", 0.0), ("aware", -1.0)):
        value = getattr(args, name)
        if not low < value <= 1 or value < 0:
            raise ValueError(f"--{name} must be a share {'above 0' if low == 0 else 'of 0'} to 1, not {value:g}")
    if args.clock_mhz is not None and not 1 <= args.clock_mhz <= 2000:
        raise ValueError(f"--clock-mhz must be in 1..2000, not {args.clock_mhz:g}")
    try:
        lengths = LENGTHS if args.tokens is None else tuple(int(part) for part in args.tokens.split(","))
    except ValueError:
        lengths = (0,)
    if any(length < 256 or length > 131072 or length % 128 for length in lengths):
        raise ValueError(
            f"--tokens must be multiples of 128 in 256..131072 with commas between them, not {args.tokens!r}"
        )
    for length in lengths:
        if args.density < least_density(length // BLOCK):
            raise ValueError(
                f"--density must be at least {least_density(length // BLOCK):.4f} at {length:,} tokens, where sink and "
                f"diagonal alone are that, not {args.density:g}"
            )
    return lengths


def run(args: argparse.Namespace) -> None:
    try:
        import intaglio.gen.cycles.attention  # noqa: F401
    except ModuleNotFoundError as fault:
        raise Error(f"the estimate needs the Python module {fault.name!r}: pip install 'intaglio[gen]'") from fault

    from intaglio.gen.estimate.fit import LUT_PER_MAC, LUT_PER_PACKED_MAC, fit_units, memory_bits

    lengths = _checked(args)
    model, target = MODELS[args.model], TARGETS[args.target]
    clock = target.clock_hz if args.clock_mhz is None else round(args.clock_mhz * 1e6)
    fit = fit_units(
        model, args.target, tokens=max(lengths), columns=args.columns, reserved=args.reserved, clock_hz=clock
    )
    units, c = fit.units, fit.config
    macs, aware = units * c.columns * c.head_dim, round(args.aware * c.group)
    assumptions = (
        (
            f"{units} unit{'s' if units > 1 else ''} of {c.columns} x {c.head_dim} multipliers ({macs:,} in all): what the DSP slices and "
            f"LUTs of {args.target} hold with {args.reserved:.0%} of both left to everything else, {fit.lut_columns} columns of each on "
            f"LUTs ({LUT_PER_MAC} and {LUT_PER_PACKED_MAC} LUTs a multiply-accumulate, synthesised); not placed"
        ),
        (
            f"on chip {units * memory_bits(c) / 1e6:.0f} of {target.ram_bits / 1e6:.0f} Mbit: {c.lines} blocks of K and V and windows of "
            f"{c.window} query blocks in each unit, the same at every length; bits, not filled up to the shapes of RAM blocks"
        ),
        f"{clock / 1e6:g} MHz: an assumption, no unit of this size was placed",
        (
            f"density {args.density:g} of the causal blocks in every head (sink, diagonal, verticals, slashes drawn with a fixed seed); "
            f"{aware} of the {c.group} heads of each KV head query-aware"
        ),
        "KV heads in turns on the units; no two phases overlap; linear layers, norms and the sampling of tokens are not in it",
        (
            f"memory: {target.memory}, {target.bytes_per_second / 1e9:g} GB/s shared by the units (data sheet, its peak), "
            f"{target.latency_ns:g} ns (assumed); every visit reads its block (no hits counted)"
        ),
        "linear: multiplications of the linear layers over those of the same multipliers, a bound and not an estimate",
    )
    rows = []
    with Progress() as progress:
        for length in lengths:
            progress(f"{length:,} tokens")
            rows.append(
                estimate(model, length, units=units, config=c, target=target, density=args.density, aware=aware)
            )
    if args.json:
        sys.stdout.write(
            json.dumps(
                {
                    "class": "projected",
                    "model": args.model,
                    "target": args.target,
                    "clock_hz": clock,
                    "units": units,
                    "unit": c.to_json(),
                    "assumptions": assumptions,
                    "lengths": [asdict(row) for row in rows],
                },
                indent=2,
            )
            + "\n"
        )
        return
    out = [
        f"{args.model} on {args.target}: prefill attention of all {model.layers} layers. Every figure is *projected*.",
        "",
        "  tokens  density  attention s  dense s  dense / sparse  index share  index / bound  utilisation  GB read  linear s",
    ]
    for row in rows:
        out.append(
            f"{row.tokens:8,}  {row.density:7.3f}  {row.seconds:11.4f}  {row.dense_seconds:7.3f}  "
            f"{row.dense_seconds / row.seconds:14.2f}  {row.index_share:11.3f}  {row.index_over_bound:13.3f}  "
            f"{row.utilisation:11.3f}  {row.read_gb:7.2f}  {row.linear_seconds:8.3f}"
        )
    out += ["", "Assumptions", *(f"* {text}" for text in assumptions)]
    sys.stdout.write("\n".join(out) + "\n")
