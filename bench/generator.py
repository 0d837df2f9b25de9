"""Figures of the generator: time and memory against the number of weights, size of the Verilog."""

import ast
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.common import Progress, figure
from intaglio import Error

__all__ = ["figures"]

LAYERS = (3, 48)  # of 380,928 weights: 1.1 and 18.3 million, 16 times as many
_CHILD = """
import json, resource, sys, time
from intaglio.gen.emit.decoder import generate
from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.synthetic import random_checkpoint
config = ModelConfig(vocab_size=256, hidden_size=192, intermediate_size=512, num_hidden_layers=int(sys.argv[1]),
                     num_attention_heads=6, num_key_value_heads=1, head_dim=32, max_position_embeddings=1024,
                     rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0)
checkpoint = random_checkpoint(config, seed=1)
began = time.process_time()
manifest = generate(checkpoint, "desk", sys.argv[2])
children = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"weights": manifest["model"]["ternary_weights"], "modules": len(manifest["files"]["verilog"]),
                  "seconds": time.process_time() - began + children.ru_utime + children.ru_stime,
                  "kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + children.ru_maxrss}))
"""


HOUSE = ("intaglio", "rtl", "gen", "sim", "host", "boards", "bench")


def _statements():
    """Statements of the syntax trees of the project, so that formatting does not count."""
    root = Path(__file__).parents[1]
    files = [path for folder in HOUSE for path in (root / folder).rglob("*.py")]
    return sum(isinstance(node, ast.stmt) for path in files for node in ast.walk(ast.parse(path.read_bytes())))


def figures(progress: Progress) -> list[dict[str, Any]]:
    """Generate random decoders of two depths in processes of their own; CPU seconds, and peak resident memory
    of the generator and of its Yosys, added up."""
    runs = []
    for layers in LAYERS:
        progress(f"generating {layers} layers")
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            done = subprocess.run(
                [sys.executable, "-c", _CHILD, str(layers), str(out)],
                capture_output=True,
                text=True,
                timeout=900,
                check=False,
            )
            if done.returncode:
                raise Error(f"generating {layers} layers failed: {done.stderr.strip().splitlines()[-1]}")
            run = json.loads(done.stdout)
            run["verilog_kib"] = sum(path.stat().st_size for path in (out / "rtl").iterdir()) / 1024
            run["rom_kib"] = sum(path.stat().st_size for path in (out / "rom").iterdir()) / 1024
        runs.append(run)
    small, large = runs
    millions = large["weights"] / 1e6
    growth = {
        "weights": large["weights"] / small["weights"],
        "seconds": large["seconds"] / small["seconds"],
        "kib": large["kib"] / small["kib"],
    }
    anchor = f"{growth['weights']:.0f} times the weights"
    return [
        figure(name, value, unit, goal, note)
        for name, value, unit, goal, note in (
            (
                "gen.seconds_per_million_weights",
                large["seconds"] / millions,
                "s",
                "",
                f"CPU time, {millions:.1f} M weights",
            ),
            ("gen.growth_1m_to_16m", growth["seconds"], "ratio", "<= 17.6", anchor),
            ("gen.memory_growth_1m_to_16m", growth["kib"], "ratio", "<= 17.6", anchor),
            (
                "gen.verilog_kib_per_million_weights",
                large["verilog_kib"] / millions,
                "KiB",
                "",
                f"ROM images {large['rom_kib']:.0f} KiB",
            ),
            ("gen.distinct_modules", large["modules"], "modules", "", ""),
            (
                "house.statements",
                _statements(),
                "statements",
                "",
                "of Python, outside tests; 18,744 before rooms by function",
            ),
        )
    ]
