"""Figures of one decoder layer of a published shape, with a small vocabulary: Verilog, exact model and transformers compared."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch

import intaglio.host as host
from bench.checkpoint import logits_of_transformers
from bench.common import Progress, equal_to_exact, figure, generate_tokens
from intaglio.gen.checkpoint.published import model_config
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.reader import load_checkpoint, save_checkpoint
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.emit.decoder import generate
from intaglio.gen.presets.decoder import config_for
from intaglio.sim.reference.exact_decoder import ExactDecoder

__all__ = ["SHAPES", "figures", "run_shape"]

SHAPES = ("bitnet-2b4t", "falcon3-1b")
WIDTHS: dict[str, Any] = {
    "context": 16,
    "lanes": 8,
    "lane_width": 64,
    "vector_width": 16,
    "attention_heads": 1,
    "row_scales": 1,
}  # narrow units are compiled sooner
VOCABULARY, PROMPT, TOKENS, TEXT = 512, (1, 7, 2), 5, 12


def figures(build: Path, progress: Progress) -> list[dict[str, Any]]:
    """Share of tokens that are equal, and logits against transformers', of each shape."""
    out = []
    for name in SHAPES:
        run = run_shape(name, build / "shapes", progress)
        note = f"1 layer, {run['cycles']:,} cycles a token; generated, built and simulated in {run['seconds']:.0f} s"
        slug = name.replace("-", "_")
        out.append(figure(f"shape.{slug}_equal_share", run["equal"] / TOKENS, "share", "= 1", note))
        out.append(
            figure(f"shape.{slug}_logit_error", run["error"], "ratio", "<= 0.03", "exact model against transformers")
        )
    return out


def run_shape(name: str, build: Path, progress: Progress) -> dict[str, Any]:
    """One layer of a published model, generated and simulated: ``equal`` tokens of :data:`TOKENS`, ``error`` of the logits, ``seconds``."""
    began = time.monotonic()
    published = model_config(name)
    shape = dataclasses.replace(
        published, num_hidden_layers=1, vocab_size=VOCABULARY, bos_token_id=None, eos_token_id=None
    )
    folder, out = build / name, build / f"{name}-verilog"
    save_checkpoint(folder, random_checkpoint(shape, seed=1), "BF16")
    progress(f"one layer of {name}: generating")
    checkpoint = load_checkpoint(folder)
    generate(folder, "desk", out, reuse=True, **WIDTHS)
    model = quantise(checkpoint, config_for(checkpoint.config, "desk", **WIDTHS))
    with host.open(f"sim:{out}", progress=progress) as device:
        progress(f"one layer of {name}: simulating")
        tokens = generate_tokens(device, PROMPT, TOKENS)
        counts = device.counters()
    seconds = time.monotonic() - began
    text = torch.arange(TEXT) * 37 % VOCABULARY
    integers, units = ExactDecoder(model).step(text)
    exact, logits = integers * units[:, None], logits_of_transformers(folder, text)
    return {
        "equal": equal_to_exact(model, PROMPT, tokens),
        "error": float((exact - logits).norm() / logits.norm()),
        "cycles": sum(counts["phases"].values()) // counts["tokens"],
        "seconds": seconds,
    }
