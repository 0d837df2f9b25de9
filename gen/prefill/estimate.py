"""``intaglio estimate attention``: prefill attention of published models at their sizes, from the closed form of the cycles.

Nothing of this size is simulated. The closed form is the one that simulated shapes keep within 3 % (tests/sim/test_prefill_rtl.py).
"""

import json
import math
import sys
from dataclasses import asdict, dataclass

import numpy as np

from intaglio.gen.matrix import TARGETS, split
from intaglio.gen.prefill.cycles import Memory, dense_cycles, index_bound, run_cycles
from intaglio.rtl.prefill.config import PrefillConfig

__all__ = ["LENGTHS", "MODELS", "AttentionEstimate", "Model", "add_parser", "estimate", "synthetic_map", "unit_config"]

LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
LUT_PER_MAC, LUT_PER_PACKED_MAC = 59.9, 26.4  # synthesised, `make bench`, docs/prefill.md
HBM_BYTES, HBM_NS = 460e9, 120  # of a U280: data sheet, and the latency that the memory model assumes
SEED = 2602_20515


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
    def linear_macs(self):
        """Multiply-accumulates of a token in all linear layers, LM head excluded: prefill needs it once."""
        width = self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * self.hidden * (width + 3 * self.intermediate)


MODELS = {
    "llama-3.2-1b": Model(layers=16, hidden=2048, heads=32, kv_heads=8, head_dim=64, intermediate=8192),
    "llama-3.2-3b": Model(layers=28, hidden=3072, heads=24, kv_heads=8, head_dim=128, intermediate=8192),
    "qwen2.5-1.5b": Model(layers=28, hidden=1536, heads=12, kv_heads=2, head_dim=128, intermediate=8960),
}


def unit_config(model, *, tokens, columns=64, clock_hz=300_000_000):
    """The unit that the estimate takes for a model: blocks of 128, windows of 16 query blocks, a tenth of the blocks on chip."""
    blocks = -(-tokens // 128)
    return PrefillConfig(head_dim=model.head_dim, group=model.heads // model.kv_heads, block=128, columns=columns, context=blocks * 128,
                         window=16, lines=max(16, blocks // 10), lookahead=4, drain=min(32, columns), clock_hz=clock_hz)


def synthetic_map(heads, blocks, density):
    """A block map bool [heads, blocks, blocks] of about this share of the causal blocks: sink, diagonal, and verticals and slashes, drawn
    with a fixed seed until the share is reached."""
    picks = np.random.default_rng(SEED)
    row, column = np.indices((blocks, blocks))
    causal = column <= row
    wanted = density * causal.sum()
    out = np.empty((heads, blocks, blocks), bool)
    for head in range(heads):
        keep = causal & ((column == 0) | (column == row))
        for number, choice in enumerate(picks.permutation(blocks)):
            if keep.sum() >= wanted:
                break
            keep |= causal & ((column == choice) if number % 2 else (row - column == choice % max(1, blocks // 2)))
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


def estimate(model, tokens, *, units, columns, density, aware, clock_hz):
    """Project prefill attention of a prompt.

    Parameters
    ----------
    model : Model
    tokens : int
    units : int
        Prefill units side by side, each with a KV head at a time.
    columns : int
        Columns of the matrix unit of each.
    density, aware : float
        Shares: of causal blocks kept, of heads that are query-aware.
    clock_hz : int

    Returns
    -------
    AttentionEstimate
    """
    c = unit_config(model, tokens=tokens, columns=columns, clock_hz=clock_hz)
    blocks = tokens // c.block
    keep = synthetic_map(c.group, blocks, density)
    rate = HBM_BYTES / units / clock_hz / c.head_dim
    memory = Memory(latency=math.ceil(HBM_NS * clock_hz / 1e9), rate=rate)
    visits = sum(int(keep[:, first:first + c.window].any((0, 1)).sum()) for first in range(0, blocks, c.window))
    phases = run_cycles(c, keep, round(aware * c.group), visits, memory)
    cycles, index = sum(phases.values()), sum(value for name, value in phases.items() if name != "attend")
    turns = model.layers * math.ceil(model.kv_heads / units)
    tiles = int(keep.sum()) * c.row_groups * c.tiles * 2 * c.head_dim
    beats = 2 * blocks * (c.block + c.exponent_beats) + visits * (2 * c.block + c.exponent_beats) + c.group * blocks * c.block
    return AttentionEstimate(
        tokens=tokens, density=float(keep.sum() / (c.group * blocks * (blocks + 1) / 2)), cycles=phases,
        seconds=turns * cycles / clock_hz, dense_seconds=turns * dense_cycles(c, blocks) / clock_hz, index_share=index / cycles,
        index_over_bound=index / index_bound(c, blocks), utilisation=(tiles + index_bound(c, blocks)) / cycles,
        read_gb=model.layers * model.kv_heads * beats * c.head_dim / 1e9,
        linear_seconds=tokens * model.linear_macs / (units * columns * c.head_dim * clock_hz))


def units_of(target, head_dim, columns, reserved):
    """Units whose multipliers fit a target, and the columns of each on LUTs."""
    found = split(TARGETS[target].dsp, TARGETS[target].lut, head_dim, lut_per_column=round(LUT_PER_MAC * head_dim),
                  lut_per_pair=round(2 * LUT_PER_PACKED_MAC * head_dim), reserved=reserved)
    units = max(1, found.columns // columns)
    return units, max(0, columns - 2 * (found.dsp // head_dim // units))


def add_parser(kinds):
    """Add ``attention`` to the kinds of estimates."""
    parser = kinds.add_parser("attention", help="prefill attention of a long prompt", description=(
        "Project prefill attention of a published model on an FPGA, from the closed form of the cycles; every assumption is printed."))
    parser.add_argument("--model", default="llama-3.2-1b", metavar="NAME", help=f"one of {', '.join(MODELS)}; default llama-3.2-1b")
    parser.add_argument("--tokens", metavar="N,N", help="lengths, multiples of 128, default 4096 to 131072")
    parser.add_argument("--target", default="u280", metavar="NAME", help=f"one of {', '.join(TARGETS)}; default u280")
    parser.add_argument("--columns", type=int, default=64, metavar="C", help="columns of each unit, default 64")
    parser.add_argument("--density", type=float, default=0.2, help="share of the causal blocks kept, default 0.2")
    parser.add_argument("--aware", type=float, default=0.5, help="share of query-aware heads, default 0.5")
    parser.add_argument("--reserved", type=float, default=0.3, help="share of DSP slices and LUTs not given to multipliers, default 0.3")
    parser.add_argument("--clock-mhz", type=float, default=300.0, metavar="F", help="default 300")
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
    if not 1 <= args.clock_mhz <= 2000:
        raise ValueError(f"--clock-mhz must be in 1..2000, not {args.clock_mhz:g}")
    try:
        lengths = LENGTHS if args.tokens is None else tuple(int(part) for part in args.tokens.split(","))
    except ValueError:
        lengths = (0,)
    if any(length < 256 or length > 131072 or length % 128 for length in lengths):
        raise ValueError(f"--tokens must be multiples of 128 in 256..131072 with commas between them, not {args.tokens!r}")
    return lengths


def run(args):
    lengths = _checked(args)
    model, clock = MODELS[args.model], round(args.clock_mhz * 1e6)
    units, lut_columns = units_of(args.target, model.head_dim, args.columns, args.reserved)
    macs = units * args.columns * model.head_dim
    assumptions = (
        (f"{units} units of {args.columns} x {model.head_dim} multipliers ({macs:,} in all): what the DSP slices and LUTs of {args.target} "
         f"hold with {args.reserved:.0%} of both left to everything else, {lut_columns} columns of each on LUTs ({LUT_PER_MAC} and "
         f"{LUT_PER_PACKED_MAC} LUTs a multiply-accumulate, synthesised); not placed"),
        f"{clock / 1e6:g} MHz: an assumption, no unit of this size was placed",
        (f"density {args.density:g} of the causal blocks in every head (sink, diagonal, verticals, slashes drawn with a fixed seed); "
         f"{args.aware:.0%} of the heads query-aware"),
        "KV heads in turns on the units; no two phases overlap; linear layers, norms and the sampling of tokens are not in it",
        f"HBM: {HBM_BYTES / 1e9:g} GB/s shared by the units (data sheet), {HBM_NS} ns; every visit reads its block (no hits counted)",
        "linear: multiplications of the linear layers over those of the same multipliers, a bound and not an estimate",
    )
    rows = []
    for length in lengths:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{length:,} tokens")
            sys.stderr.flush()
        rows.append(estimate(model, length, units=units, columns=args.columns, density=args.density, aware=args.aware, clock_hz=clock))
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    if args.json:
        sys.stdout.write(json.dumps({"class": "projected", "model": args.model, "target": args.target, "clock_hz": clock, "units": units,
                                     "assumptions": assumptions, "lengths": [asdict(row) for row in rows]}, indent=2) + "\n")
        return
    out = [f"{args.model} on {args.target}: prefill attention of all {model.layers} layers. Every figure is *projected*.", "",
           "  tokens  density  attention s  dense s  dense / sparse  index share  index / bound  utilisation  GB read  linear s"]
    for row in rows:
        out.append(f"{row.tokens:8,}  {row.density:7.3f}  {row.seconds:11.4f}  {row.dense_seconds:7.3f}  "
                   f"{row.dense_seconds / row.seconds:14.2f}  {row.index_share:11.3f}  {row.index_over_bound:13.3f}  "
                   f"{row.utilisation:11.3f}  {row.read_gb:7.2f}  {row.linear_seconds:8.3f}")
    out += ["", "Assumptions", *(f"* {text}" for text in assumptions)]
    sys.stdout.write("\n".join(out) + "\n")
