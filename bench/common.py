"""What the main job and the benchmark share: building the device, checking its tokens, bits per byte, tables."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from intaglio.gen.checkpoint.quantised import QuantisedModel, quantise
from intaglio.gen.checkpoint.reader import load_checkpoint
from intaglio.gen.checkpoint.weights import Checkpoint
from intaglio.gen.emit.decoder import generate
from intaglio.gen.presets.decoder import config_for
from intaglio.host import open as open_device
from intaglio.host.device import Device
from intaglio.host.sampling import Sampler
from intaglio.progress import Progress as Shown
from intaglio.sim.machine.pages import PageDecoder
from intaglio.sim.reference.exact_decoder import ExactDecoder
from intaglio.sim.reference.loading import float_decoder

__all__ = ["Job", "Progress", "equal_to_exact", "figure", "generate_tokens", "prompts_of", "quality", "table"]


def figure(name: str, value: float, unit: str, goal: str, anchor: str = "", kind: str = "simulated") -> dict[str, Any]:
    """A line of ``bench.json``; ``goal`` is a relation and a number, or empty, ``kind`` the class of the figure."""
    return {"name": name, "value": value, "unit": unit, "goal": goal, "anchor": anchor, "class": kind}


class Progress(Shown):
    """As everywhere, and the steps named in :meth:`say` stay."""

    def __call__(self, text: str, share: float | None = None) -> None:
        """``share``, or the seconds of a build, are not shown."""
        super().__call__(text)

    def say(self, text: str) -> None:
        self.clear()
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


class Job:
    """A checkpoint, its integers, and the generated folder below ``build``."""

    def __init__(self, model: Path, preset: str, build: Path, progress: Progress) -> None:
        self.checkpoint = load_checkpoint(model)
        config = self.checkpoint.config
        if (config.vocab_size, config.bos_token_id) != (256, 0):
            raise ValueError(
                f"the model must have bytes for tokens and begin with token 0, not {config.vocab_size} tokens "
                f"and {config.bos_token_id}"
            )
        if isinstance(config.eos_token_id, tuple):
            raise ValueError(f"the model must have one end token, not {config.eos_token_id}")
        self.quantised = quantise(self.checkpoint, config_for(self.checkpoint.config, preset))
        self.folder = build / preset
        began = time.monotonic()
        self.manifest = generate(self.checkpoint, preset, self.folder, reuse=True, progress=progress)
        self.generate_seconds = time.monotonic() - began
        self.progress = progress

    def open(self) -> Device:
        """The device, simulated; the first time it is built."""
        return open_device(f"sim:{self.folder}", progress=self.progress)


def generate_tokens(
    device: Device, prompt: Sequence[int], count: int, show: Callable[[int], None] | None = None, **sampling: Any
) -> list[int]:
    """Tokens that the device generates, the end token included; ``show`` is called with each as it comes."""
    generated = []
    for token in device.generate_tokens(prompt, count, **sampling):
        generated.append(token)
        if show:
            show(token)
    return [*generated, device.manifest.model["eos"]] if device.last["finish"] == "eos" else generated


def equal_to_exact(model: QuantisedModel, prompt: Sequence[int], generated: Sequence[int], **sampling: Any) -> int:
    """How many of ``generated`` tokens are those of the exact model's continuation of ``prompt``, greedy or drawn with ``sampling``.

    The exact model sees the prompt and the generated tokens at once; the first token at which it would have chosen another ends the count.
    """
    logits, units = ExactDecoder(model).step([*prompt, *generated[:-1]])
    sampler = Sampler(**sampling, limit=model.config.top_k)
    for count, token in enumerate(generated):
        row, unit = logits[len(prompt) - 1 + count], float(units[len(prompt) - 1 + count])
        best = torch.sort(row, descending=True, stable=True)  # the lower token first among equals
        top = slice(0, 1 if sampler.greedy else sampler.top_k)
        chosen = (
            best.indices[0]
            if sampler.greedy
            else sampler.draw(best.indices[top].numpy(), best.values[top].numpy() * unit)
        )
        if int(chosen) != token:
            return count
    return len(generated)


def prompts_of(text: bytes, count: int, length: int) -> list[list[int]]:
    """``count`` prompts of ``length`` bytes from all over ``text``, each beginning after a line's end."""
    prompts = []
    for i in range(count):
        start = text.find(b"\n", i * len(text) // count) + 1
        prompts.append([0, *text[start : start + length]])
    return prompts


def quality(
    checkpoint: Checkpoint, model: QuantisedModel, text: bytes, context: int, progress: Progress
) -> dict[str, Any]:
    """Bits per byte of the float and the exact model on ``text``, and the share of positions at which both prefer the same byte.

    Windows of ``context`` tokens that do not overlap; each begins with the separator.
    """
    decoder, exact = float_decoder(checkpoint), PageDecoder(model) if model.pages else ExactDecoder(model)
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    nats, agree = {"float": 0.0, "exact": 0.0}, 0
    for start in range(0, len(data), context):
        progress(f"bits per byte: {100 * start // len(data)} %")
        target = data[start : start + context]
        tokens = torch.cat([torch.zeros(1, dtype=torch.long), target[:-1]])
        with torch.no_grad():
            logits = decoder(tokens[None])[0].double()
        exact.reset()
        integers, unit = exact.step(tokens)
        nats["float"] += F.cross_entropy(logits, target, reduction="sum").item()
        nats["exact"] += F.cross_entropy(integers * unit[:, None], target, reduction="sum").item()
        agree += int((logits.argmax(1) == integers.argmax(1)).sum())
    bits = {name: value / len(data) / math.log(2) for name, value in nats.items()}
    return bits | {"top1_agreement": agree / len(data), "bytes": len(data), "context": context}


def table(rows: Sequence[Sequence[Any]]) -> str:
    """Text of a table; the first row is the heading. Numbers are aligned on the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    right = [all(not isinstance(row[i], str) for row in rows[1:]) for i in range(len(widths))]
    lines = []
    for row in cells:
        lines.append(
            "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
        )
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def _cell(value):
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
