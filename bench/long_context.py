"""Figures of the model for long contexts: what far text is worth to it, and what it lost against the model whose training it continues."""

import statistics
from pathlib import Path
from typing import Any

from bench.common import Progress, figure
from intaglio.gen.checkpoint.reader import load_checkpoint
from intaglio.sim.reference.loading import float_decoder
from intaglio.sim.train.corpus import Corpus
from intaglio.sim.train.decoder import bits_per_byte
from intaglio.sim.train.long_context import Recall, bits_of_last, ends_of, name_text, recall

__all__ = ["figures"]

TEXTS, LAST, NEAR, FAR = 8, 1024, 4096, 16384
DISTANCE, CUT, NAME_TEXTS, NAMES = 8000, 1000, 4, 8


def figures(model: Path, before: Path, progress: Progress) -> list[dict[str, Any]]:
    """``model``: folder of the long model's checkpoint; ``before``: of the one whose training it continues."""
    text = Corpus().held_out
    long, short = (float_decoder(load_checkpoint(folder)) for folder in (model, before))
    ratios, sums = [], {NEAR: 0.0, FAR: 0.0}
    for done, end in enumerate(ends_of(text, TEXTS, FAR + LAST)):
        progress(f"long context: text {done + 1} of {TEXTS}")
        found = {length: bits_of_last(long, text, end, last=LAST, before=length) for length in (NEAR, FAR)}
        ratios.append(found[FAR] / found[NEAR])
        sums = {length: sums[length] + bits for length, bits in found.items()}
    lost = {}
    for length in (1024, NEAR):
        progress(f"long context: held-out text in windows of {length}")
        bits = [bits_per_byte(decoder, text, length) for decoder in (long, short)]
        lost[length] = (
            bits[0] / bits[1],
            f"{bits[0]:.4f} and {bits[1]:.4f} bits; held-out text in windows of {length} tokens",
        )
    far, cut = _recall(long, text, progress)
    return [
        figure(
            "model.bits_16k_over_4k",
            sums[FAR] / sums[NEAR],
            "ratio",
            "<= 1.00",
            f"{TEXTS} texts together, last {LAST} bytes; median {statistics.median(ratios):.4f}, worst {max(ratios):.4f}",
        ),
        figure("model.bits_4k_over_before", lost[NEAR][0], "ratio", "<= 1.01", lost[NEAR][1]),
        figure("model.bits_1k_over_before", lost[1024][0], "ratio", "<= 1.01", lost[1024][1]),
        figure(
            "model.names_right_8000_back",
            far.names_right / far.names,
            "share",
            "",
            f"of {far.names}; last {CUT} bytes alone: {cut.names_right / cut.names:.3f}",
        ),
        figure(
            "model.name_letters_right_8000_back",
            far.letters_right / far.letters,
            "share",
            "",
            f"of {far.letters}; last {CUT} bytes alone: {cut.letters_right / cut.letters:.3f}",
        ),
    ]


def _recall(model, text, progress):
    """``(all seen, last CUT bytes seen)`` over texts that end all over the held-out one."""
    total, total_cut = Recall(0, 0, 0, 0), Recall(0, 0, 0, 0)
    for seed, end in enumerate(ends_of(text, NAME_TEXTS, DISTANCE)):
        progress(f"long context: names, text {seed + 1} of {NAME_TEXTS}")
        whole, spans = name_text(text[:end], distance=DISTANCE, names=NAMES, seed=seed)
        total += recall(model, whole, spans)
        total_cut += recall(model, whole, spans, cut=CUT)
    return total, total_cut
