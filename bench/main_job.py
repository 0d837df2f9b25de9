"""The main job: the shipped model becomes Verilog, generates text in simulation, and is compared with the exact model token by token.

Ends with a table and writes it to ``run.json`` in the build folder. The bits per byte are kept from run to run while neither the
model nor the code that computes them changes.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.common import Job, Progress, equal_to_exact, generate_tokens, quality, table
from intaglio.cli import exit_code
from intaglio.gen.cycles.decoder import operations
from intaglio.gen.tools import use_all
from intaglio.sim.train.corpus import Corpus, xz_bits_per_byte

RUNS: tuple[tuple[str, dict[str, Any]], ...] = (  # prompts and how to continue them
    ('def read_header(self, stream):\n    """Read ', {}),
    ('class Connection:\n    """A connection to ', {"temperature": 0.8, "seed": 2, "top_p": 0.9}),
    ("    def test_open_file(self):\n        ", {"temperature": 0.8, "seed": 2, "top_p": 0.9}),
)
TOKENS = 160
CONTEXT_STATED = 128


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--preset", default="desk")
    parser.add_argument("--build", type=Path, default=Path("build"))
    parser.add_argument(
        "--tool", action="append", default=[], metavar="NAME=PROGRAM", help="use this program for verilator or g++"
    )
    args = parser.parse_args(argv)
    use_all(args.tool)
    torch.set_num_threads(2)
    args.build.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with Progress() as progress:
        job = Job(args.model, args.preset, args.build, progress)
        progress.say(
            f"Verilog in {job.folder}: {len(job.manifest['files']['verilog'])} modules, "
            f"{job.manifest['model']['ternary_weights']:,} ternary weights ({job.generate_seconds:.1f} s)"
        )
        run = generate_text(job, progress)
        bits = cached_quality(args.model, job, args.build, progress)
    rows, record = report(job, run, bits)
    record["seconds"] = round(time.monotonic() - began, 1)
    (args.build / "run.json").write_text(json.dumps(record, indent=2) + "\n")
    sys.stdout.write("\n" + table(rows) + f"\n\n{args.build / 'run.json'} written after {record['seconds']} s\n")
    return 0 if record["tokens_equal"] == record["tokens"] else 1


def generate_text(job: Job, progress: Progress) -> dict[str, Any]:
    """Generate from every prompt, showing the text as it comes; the counters add up over the prompts."""
    total: dict[str, Any] = {
        "tokens": 0,
        "tokens_equal": 0,
        "processed": 0,
        "phases": {},
        "seconds": 0.0,
        "prefill_cycles": 0,
        "decode_cycles": 0,
        "decode_results": 0,
    }
    with job.open() as device:
        progress.say("simulation ready")
        for prompt, sampling in RUNS:
            tokens = [0, *prompt.encode()]
            sys.stdout.write(f"\n--- {'greedy' if not sampling else sampling}\n{prompt}")
            began = time.monotonic()
            generated = generate_tokens(device, tokens, TOKENS, show=_show, **sampling)
            total["seconds"] += time.monotonic() - began
            sys.stdout.write("\n")
            counters = device.counters()
            total["tokens"] += len(generated)
            total["tokens_equal"] += equal_to_exact(job.quantised, tokens, generated, **sampling)
            total["processed"] += counters["tokens"]
            total["prefill_cycles"] += device.last["cycles_prefill"]
            total["decode_cycles"] += device.last["cycles_decode"]
            total["decode_results"] += device.last["tokens_decode"]
            for name, cycles in counters["phases"].items():
                total["phases"][name] = total["phases"].get(name, 0) + cycles
        total["clock_hz"] = device.manifest.clock_hz
    return total


def _show(token):
    sys.stdout.write(bytes([token]).decode("ascii", "replace"))
    sys.stdout.flush()


def cached_quality(model: Path | str, job: Job, build: Path, progress: Progress) -> dict[str, Any]:
    """Bits per byte over the whole held-out text, computed when the model or the reference code is new."""
    text = Corpus().held_out
    key = hashlib.sha256(text)
    root = Path(__file__).parents[1]
    sources = [
        *sorted(path for path in Path(model).iterdir() if path.is_file()),
        *sorted(root.glob("sim/reference/*.py")),
        *(
            root / name
            for name in (
                "gen/checkpoint/reader.py",
                "gen/checkpoint/quantised.py",
                "rtl/arithmetic/numerics.py",
                "bench/common.py",
            )
        ),
    ]
    for path in sources:
        key.update(path.read_bytes())
    key.update(json.dumps(job.quantised.config.to_json()).encode())
    file = build / f"quality-{key.hexdigest()[:16]}.json"
    if file.is_file():
        return json.loads(file.read_text())
    bits = quality(job.checkpoint, job.quantised, text, job.quantised.config.context, progress) | {
        "xz": xz_bits_per_byte(text)
    }
    partial = file.with_suffix(".partial")  # a killed run leaves no half of a file
    partial.write_text(json.dumps(bits, indent=2) + "\n")
    partial.replace(file)
    return bits


def report(job: Job, run: Mapping[str, Any], bits: Mapping[str, Any]) -> tuple[list[tuple], dict[str, Any]]:
    """Rows of the table and the record of ``run.json``."""
    config, processed = job.quantised.config, run["processed"]
    per_token = {name: cycles / processed for name, cycles in run["phases"].items()}
    macs, width = operations(config, CONTEXT_STATED - 1)["linear"]
    utilisation = macs / width / per_token["linear"]
    speed = run["decode_results"] * run["clock_hz"] / max(run["decode_cycles"], 1)
    clock = f"{run['clock_hz'] / 1e6:g} MHz"
    rows = [
        ("figure", "value", "unit", "class"),
        ("tokens equal to the exact model", f"{run['tokens_equal']} of {run['tokens']}", "tokens", "simulated"),
        *((f"cycles per token, {name}", round(cycles, 1), "cycles", "simulated") for name, cycles in per_token.items()),
        ("cycles per token, all phases", round(sum(per_token.values()), 1), "cycles", "simulated"),
        ("MAC utilisation, linear phases", round(utilisation, 4), "share", "simulated"),
        (f"generation at {clock}", round(speed, 1), "tokens/s", "simulated"),
        ("generation, wall clock", round(processed / run["seconds"], 1), "tokens/s", "simulated"),
        ("bits per byte, float model", round(bits["float"], 4), "bits", "simulated"),
        ("bits per byte, exact model", round(bits["exact"], 4), "bits", "simulated"),
        ("bits per byte, xz -9e", round(bits["xz"], 4), "bits", "anchor"),
        ("exact model over xz -9e", round(bits["exact"] / bits["xz"], 4), "ratio", "simulated"),
        ("same top byte, exact and float", round(bits["top1_agreement"], 4), "share", "simulated"),
    ]
    record = {
        "tokens": run["tokens"],
        "tokens_equal": run["tokens_equal"],
        "preset": job.manifest["preset"],
        "digest": job.manifest["digest"],
        "clock_hz": run["clock_hz"],
        "cycles_per_token": {n: round(c, 2) for n, c in per_token.items()},
        "mac_utilisation_linear": round(utilisation, 5),
        "tokens_per_second_simulated": round(speed, 2),
        "tokens_per_second_wall": round(processed / run["seconds"], 2),
        "bits_per_byte": bits,
    }
    return rows, record


if __name__ == "__main__":
    sys.exit(exit_code(main))
