"""Figures of attention over pages, one format for prompts and generation: the exact model of the joined machine against the float model."""

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from bench.common import Progress, figure, quality, table
from intaglio.gen.checkpoint.quantised import QuantisedModel, quantise
from intaglio.gen.checkpoint.reader import load_checkpoint
from intaglio.gen.checkpoint.weights import Checkpoint
from intaglio.gen.presets.decoder import config_for
from intaglio.host.attention.parameters import divergence_threshold, share
from intaglio.sim.attention import dense
from intaglio.sim.attention.accuracy import errors
from intaglio.sim.attention.heads import ACTIVATIONS, activation_heads
from intaglio.sim.machine.accuracy import page_results
from intaglio.sim.machine.pages import PageDecoder, Selection
from intaglio.sim.reference.loading import float_decoder
from intaglio.sim.train.corpus import Corpus
from intaglio.sim.train.long_context import ends_of

__all__ = ["figures"]

PROMPT, LAST, TEXTS, GAMMA, TAU = 4096, 1024, 6, 0.9, 0.1  # tokens of the prompt, the separator among them
SEEDS, TOKENS, HEAD_DIMS = 2, 512, (32, 64)


def figures(checkpoint: Checkpoint, progress: Progress) -> list[dict[str, Any]]:
    """Figures of ``checkpoint``, whose tokens are bytes."""
    text = Corpus().held_out
    model = quantise(checkpoint, config_for(checkpoint.config, "desk"), pages=True)
    bits = quality(checkpoint, model, text, model.config.context, progress)
    where = f"exact model, held-out text in windows of {model.config.context}"
    rows = [
        figure("pages.top1_agreement", bits["top1_agreement"], "share", ">= 0.99", where),
        figure("pages.added_bits_per_byte", bits["exact"] - bits["float"], "bits", "<= 0.005", where),
        *_prefill(checkpoint, model, text, progress),
    ]
    for kind in ACTIVATIONS:
        progress(f"attention over pages: {kind}")
        rows.append(
            figure(
                f"pages.outlier_rms.{kind}",
                max(_error(kind, size, False) for size in HEAD_DIMS),
                "",
                "",
                f"rows as they are; rotated: {max(_error(kind, size, True) for size in HEAD_DIMS):.4f}",
            )
        )
    return rows


def _prefill(checkpoint: Checkpoint, model: QuantisedModel, text: bytes, progress: Progress) -> list[dict[str, Any]]:
    """What bytes after a prompt cost when its blocks were chosen, against dense float attention."""
    config = model.config.replace(context=PROMPT + LAST)
    decoder = PageDecoder(quantise(checkpoint, config, pages=True))
    chosen = Selection(gamma16=share(GAMMA, PROMPT), threshold=divergence_threshold(TAU))
    reference = float_decoder(checkpoint)
    added, densities = [], []
    for done, end in enumerate(ends_of(text, TEXTS, PROMPT + LAST)):
        progress(f"prompts of {PROMPT} tokens: text {done + 1} of {TEXTS}")
        tokens = torch.tensor([0, *text[end - PROMPT - LAST + 1 : end]])
        target = tokens[PROMPT:]
        with torch.no_grad():
            want = reference(tokens[None])[0, PROMPT - 1 : -1].double()
        decoder.reset()
        first, unit = decoder.prefill(tokens[:PROMPT], chosen)
        densities += [dense.density(keep, PROMPT, decoder.attention.block) for _, keep in decoder.attention.maps]
        rest, units = decoder.step(tokens[PROMPT:-1])
        got = torch.cat([first[-1:] * unit[-1:, None], rest * units[:, None]])
        added.append((F.cross_entropy(got, target) / F.cross_entropy(want, target)).item() - 1)
    return [
        figure(
            "prefill.added_bits_per_byte",
            max(added),
            "ratio",
            "<= 0.003",
            f"exact, gamma {GAMMA}, against dense float: {LAST} bytes after {PROMPT} tokens, worst of {TEXTS} texts; "
            f"median {statistics.median(added):.5f}",
        ),
        figure("prefill.density", torch.stack(densities).mean().item(), "share", "", "of those prompts"),
    ]


def _error(kind: str, head_dim: int, rotate: bool) -> float:
    found = []
    for seed in range(SEEDS):
        q, k, v = activation_heads(kind, tokens=TOKENS, head_dim=head_dim, seed=seed)
        found.append(errors(page_results(q, k, v, rotate=rotate), dense.dense(q, k[None], v[None]))[0])
    return math.sqrt(statistics.fmean(error**2 for error in found))


def main() -> None:
    """These figures alone: ``python -m bench.pages --model models/burin --build build`` writes ``pages.json``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/burin"))
    parser.add_argument("--build", type=Path, default=Path("build"))
    args = parser.parse_args()
    args.build.mkdir(parents=True, exist_ok=True)
    with Progress() as progress:
        found = figures(load_checkpoint(args.model), progress)
    (args.build / "pages.json").write_text(json.dumps({"figures": found}, indent=2) + "\n")
    rows = [(f["name"], round(f["value"], 5), f["goal"], f["anchor"]) for f in found]
    sys.stdout.write(table([("figure", "value", "goal", "anchor"), *rows]) + "\n")


if __name__ == "__main__":
    main()
