"""``intaglio sweep``: one table of many decoders, each preset with each combination of widths; cycles, speed, area, and which are best.

Cycles are the closed form of the RTL's; area is projected (:mod:`intaglio.gen.estimate`). A combination that does not fit is a line of the
table that says why.
"""

import argparse
import csv
import io
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from intaglio import Error
from intaglio.cli import number_or_text
from intaglio.gen import plot
from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.published import model_of
from intaglio.gen.cli import add_scheduler
from intaglio.gen.cluster import check_scheduler
from intaglio.gen.cycles.decoder import group_cycles
from intaglio.gen.estimate.costs import COSTS
from intaglio.gen.estimate.decoder import estimate_decoder
from intaglio.gen.estimate.machine import MACHINES, Machine, machine_for, stand_in
from intaglio.gen.estimate.targets import TARGETS
from intaglio.gen.executor import workers
from intaglio.gen.pool import check_processes
from intaglio.gen.presets.decoder import PRESETS, config_for
from intaglio.progress import Progress, silent
from intaglio.rtl.config.decoder import DecoderConfig

__all__ = ["AREAS", "csv_text", "picture", "register", "sweep", "table"]

ASIC = "asap7"
# By target, the column that is its area, which the best ones have little of; without a target, what the ternary units take in a cycle.
AREAS = {ASIC: "die_mm2"} | dict.fromkeys(TARGETS, "memory_share")
WIDTH = "weights_per_cycle"
MOST = 10_000  # combinations


def sweep(
    model: ModelConfig,
    presets: Sequence[str],
    widths: Mapping[str, Sequence[int | str]],
    *,
    target: str | None = None,
    position: int | None = None,
    processes: int = 1,
    scheduler: str | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> list[dict[str, Any]]:
    """Every preset with every combination of widths.

    Parameters
    ----------
    model : ModelConfig
    presets : sequence of str
        Of the decoder, or "tom".
    widths : dict of sequences
        Values by width.
    target : str or None
        A name of :data:`AREAS`: "asap7" gives ``die_mm2``, an FPGA its ``memory_share`` (bits of weights, tables and KV cache in its
        memory) and ``dsp_share`` (a block for each multiplier of the attention unit).
    position : int or None
        Of the token whose cycles are counted, 0 first; the last of each one's context by default.
    processes : int, 1 to 64
    scheduler : str or None
        Address of a Dask scheduler, whose workers do the work in place of processes here.
    progress : callable or None
        Called with a text and the share done (0 to 1).

    Returns
    -------
    list of dict, in the order of presets and widths: ``preset``, the widths, and ``cycles``, ``tokens_per_second``, ``clock_hz``,
    ``context``, ``weights_per_cycle``, ``memory_bits``, the target's, and ``pareto`` (no other is as fast and as small); or ``error``.

    Raises
    ------
    Error, ValueError
        An argument is out of range.
    """
    if not presets or not all(widths.values()):
        raise ValueError("there must be a preset, and a value for each width")
    for preset in presets:
        if preset not in PRESETS and preset not in MACHINES:
            raise ValueError(f"the preset must be one of {', '.join([*MACHINES, *PRESETS])}, not {preset!r}")
    if target is not None and target not in AREAS:
        raise ValueError(f"the target must be one of {', '.join(AREAS)}, not {target!r}")
    if position is not None and (type(position) is not int or position < 0):
        raise ValueError(f"the position must be an integer from 0, not {position!r}")
    for name, values in [("preset", presets), *widths.items()]:
        if len(set(values)) != len(values):
            raise ValueError(f"the values of {name} must differ, not be {', '.join(map(str, values))}")
    combinations = [
        (preset, dict(zip(widths, values, strict=True)))
        for preset, *values in itertools.product(presets, *widths.values())
    ]
    if len(combinations) > MOST:
        raise ValueError(f"there must be at most {MOST:,} combinations, not {len(combinations):,}")
    check_processes(processes)
    check_scheduler(scheduler)
    tell, found = progress or silent, {}
    tasks = [(number, "row", *combination) for number, combination in enumerate(combinations)]
    with workers(min(processes, len(tasks)), scheduler, Rows, model, target, position) as pool:
        for number, row in pool.run(tasks):
            found[number] = row
            tell(f"{len(found)} of {len(tasks)} combinations", len(found) / len(tasks))
    rows = [found[number] for number in range(len(tasks))]
    _mark_best(rows, WIDTH if target is None else AREAS[target])
    return rows


class Rows:
    """Makes lines of the table; each process has one of its own."""

    def __init__(self, model: ModelConfig, target: str | None, position: int | None) -> None:
        self.model, self.target, self.position = model, target, position

    def row(self, preset: str, widths: dict[str, Any]) -> dict[str, Any]:
        """One line; what does not fit is told in it."""
        try:
            return {"preset": preset, **widths, **self._figures(preset, widths)}
        except (ValueError, TypeError) as fault:
            return {"preset": preset, **widths, "error": str(fault)}

    def _figures(self, preset, widths):
        c: Machine | DecoderConfig
        if preset in MACHINES:
            c = machine_for(self.model, preset, **widths)
        else:
            c = config_for(self.model, preset, **widths)
        position = c.context - 1 if self.position is None else self.position
        if position >= c.context:
            raise ValueError(f"the position must be less than the context of {c.context}, not {position}")
        if isinstance(c, Machine):
            cycles = c.token_cycles(position).total
        else:  # of a group of tokens, whose words are taken first, where there are several
            group = group_cycles(stand_in(c), [position] * c.batch).total + (c.batch if c.batch > 1 else 0)
            cycles = -(-group // c.batch)
        bits = _memory_bits(c, self.model)
        found = {
            "context": c.context,
            "clock_hz": c.clock_hz,
            WIDTH: c.lanes * c.lane_width,
            "memory_bits": bits,
            "cycles": cycles,
            "tokens_per_second": round(c.clock_hz / cycles, 3),
        }
        if self.target == ASIC:
            machine = machine_for(self.model, preset, **widths)  # knows fewer widths than the generator, and says so
            found["die_mm2"] = round(estimate_decoder(machine, COSTS).area_mm2["die"], 4)
        elif self.target is not None:
            fpga, multipliers = TARGETS[self.target], c.multipliers if isinstance(c, Machine) else c.array
            found["memory_share"] = round(bits / fpga.ram_bits, 4)
            found["dsp_share"] = round(multipliers / fpga.dsp, 4)
        return found


def _memory_bits(c, model):
    """Bits of weights, embedding, head and KV cache."""
    word = 2 * c.lane_width if isinstance(c, Machine) else c.weight_word_bits
    weights = c.layers * c.layer_weights // c.lane_width * word
    tables = (1 if model.tie_word_embeddings else 2) * 8 * c.vocab * c.hidden
    return weights + tables + c.sequences * 2 * c.layers * c.kv_heads * c.context * (8 * c.head_dim + 26)


def _mark_best(rows, area):
    """Set ``pareto`` in the rows without an error."""
    sound = [row for row in rows if "error" not in row]
    fastest, last = 0.0, None
    for row in sorted(sound, key=lambda row: (row[area], -row["tokens_per_second"])):
        point = row[area], row["tokens_per_second"]
        row["pareto"] = row["tokens_per_second"] > fastest or point == last
        if row["pareto"]:
            fastest, last = row["tokens_per_second"], point


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as text; those that are best have a star, those that do not fit say why."""
    names = _columns(rows)
    lines = [["", *names]]
    for row in rows:
        star = "*" if row.get("pareto") else ""
        lines.append([star, *(_cell(row.get(name, "")) for name in names)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    out = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    for number, row in enumerate(rows, 1):
        if "error" in row:
            out[number] = out[number].rstrip() + f"  does not fit: {row['error']}"
    return "\n".join(line.rstrip() for line in out) + "\n"


def _columns(rows):
    found = dict.fromkeys(name for row in rows for name in row)
    own = ("context", "clock_hz", "memory_bits", WIDTH, "cycles", "tokens_per_second", *AREAS.values(), "dsp_share")
    first = [name for name in found if name not in own and name not in ("pareto", "error")]
    swept = [
        name
        for name in found
        if name in ("context", "clock_hz") and any("error" in row and name in row for row in rows)
    ]
    return [*first, *swept, *(name for name in dict.fromkeys(own) if name in found and name not in swept)]


def _cell(value):
    return f"{value:,}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as comma-separated values, with all their columns."""
    out = io.StringIO()
    names = [*_columns(rows), "pareto", "error"]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def picture(rows: Sequence[Mapping[str, Any]], target: str | None, title: str) -> str:
    """SVG: speed over area, a colour for each preset, and the line of the best."""
    area = WIDTH if target is None else AREAS[target]
    drawn = plot.figure(6.4, 4.4)
    axes = drawn.add_subplot()
    sound = [row for row in rows if "error" not in row]
    for preset in dict.fromkeys(row["preset"] for row in sound):
        own = [row for row in sound if row["preset"] == preset]
        axes.scatter([row[area] for row in own], [row["tokens_per_second"] for row in own], s=18, label=preset)
    best = sorted((row[area], row["tokens_per_second"]) for row in sound if row["pareto"])
    axes.step([x for x, _ in best], [y for _, y in best], where="post", color="0.5", linewidth=1, label="best")
    labels = {
        WIDTH: "weights a cycle",
        "die_mm2": "die, mm2, projected",
        "memory_share": f"share of the memory of {target}",
    }
    axes.set(title=title, xlabel=labels[area], ylabel="tokens a second")
    for name, values in (("x", [row[area] for row in sound]), ("y", [row["tokens_per_second"] for row in sound])):
        if values and max(values) > 10 * min(values) > 0:  # a logarithmic axis has no ticks within less
            axes.set(**{f"{name}scale": "log"})
    axes.grid(True, linewidth=0.3)
    axes.legend(fontsize=8)
    return plot.svg(drawn)


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command ``sweep``."""
    parser = subparsers.add_parser(
        "sweep",
        help="one table of many decoders: cycles, speed, area",
        description=(
            "Tabulate every preset with every combination of widths: cycles of a token (the closed form of the RTL's), tokens a second at "
            "the stated clock, area where a target is given. What does not fit is named in the table. A star marks those of which no "
            "other is as fast and as small. Exit code 1 if nothing fits."
        ),
    )
    parser.add_argument(
        "--model", required=True, metavar="NAME|DIR", help="a published model (bitnet-2b4t, ...) or a checkpoint folder"
    )
    parser.add_argument("--preset", default="desk", metavar="A,B", help="presets of the decoder, or tom; default desk")
    parser.add_argument("--set", action="append", default=[], metavar="WIDTH=V,V", help="values of one width")
    parser.add_argument("--target", metavar="NAME", help=f"of the area: {', '.join(AREAS)}")
    parser.add_argument("--position", type=int, metavar="N", help="of the token, default the last of the context")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes, default 1")
    add_scheduler(parser)
    for name, what in (
        ("json", "the rows as JSON"),
        ("csv", "the rows as CSV"),
        ("svg", "a picture of speed over area"),
    ):
        parser.add_argument(f"--{name}", metavar="FILE", help=f"write {what}")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table, write the files; 1 if nothing fits."""
    widths: dict[str, list[int | str]] = {}
    for text in args.set:
        name, separator, values = text.partition("=")
        if not name or not separator or name in widths:
            raise ValueError(f"--set must be WIDTH=VALUE,VALUE, each width once, not {text!r}")
        widths[name] = [number_or_text(value) for value in values.split(",")]
    for file in filter(None, (args.json, args.csv, args.svg)):
        if not Path(file).resolve().parent.is_dir() or Path(file).is_dir():
            raise Error(f"a file to write must be in a folder that is there, not {file}")
    if args.svg:
        plot.figure(1, 1)  # told before long work if it cannot be drawn
    model, presets = model_of(args.model), args.preset.split(",")
    with Progress() as progress:
        rows = sweep(
            model,
            presets,
            widths,
            target=args.target,
            position=args.position,
            processes=args.processes,
            scheduler=args.scheduler,
            progress=progress,
        )
    sys.stdout.write(table(rows))
    if args.json:
        record = {"model": args.model, "target": args.target, "position": args.position, "rows": rows}
        Path(args.json).write_text(json.dumps(record, indent=2) + "\n")
    if args.csv:
        Path(args.csv).write_text(csv_text(rows))
    if args.svg:
        Path(args.svg).write_text(picture(rows, args.target, f"{Path(args.model).name}: {len(rows)} decoders"))
    return int(all("error" in row for row in rows))
