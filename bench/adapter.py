"""Figures of low-rank adapters: the shipped one in generated Verilog, its cycles, and the text that it is for."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from bench.common import Job, figure, prompts_of
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.cycles.decoder import token_cycles
from intaglio.gen.emit.decoder import generate
from intaglio.gen.emit.program import layer_program
from intaglio.gen.presets.decoder import config_for
from intaglio.host import open as open_device
from intaglio.host.adapter.files import quantise_adapter, read_adapter
from intaglio.sim.reference.adapter import adapt
from intaglio.sim.reference.exact_decoder import ExactDecoder
from intaglio.sim.reference.loading import float_decoder
from intaglio.sim.train.adapter import headers

__all__ = ["figures"]

ADAPTER = Path("models/burin-adapter-cpp")
WIDTHS: dict[str, Any] = {"rank": 8, "adapters": 2}
PROMPTS, PROMPT_BYTES, TOKENS = 4, 48, 80
TEXT = 16_384  # bytes of the held-out headers
WINDOW = 1024


def figures(job: Job) -> list[dict[str, Any]]:
    """All figures, as dicts of name, value, unit, goal, anchor and class."""
    checkpoint, progress = job.checkpoint, job.progress
    folder = job.folder.with_name(job.folder.name + "-adapter")
    manifest = generate(checkpoint, job.manifest["preset"], folder, reuse=True, progress=progress, **WIDTHS)
    model = quantise(checkpoint, config_for(checkpoint.config, job.manifest["preset"], **WIDTHS))
    low = read_adapter(ADAPTER, manifest["adapter"])
    adapter = quantise_adapter(low, manifest["adapter"])
    text = headers()[1][:TEXT]
    run = _generate(folder, model, adapter, text, progress)
    bits = _quality(checkpoint, model, low, adapter, text, progress)
    note = f"{TEXT} bytes of held-out C++ headers; exact model, which the RTL equals"
    return [
        figure(name, value, unit, goal, anchor)
        for name, value, unit, goal, anchor in (
            (
                "adapter.tokens_equal_share",
                run["equal"] / run["tokens"],
                "share",
                "= 1",
                "RTL and exact model, greedy, every answer's logits",
            ),
            ("adapter.throughput_over_closed_form", run["closed"] / run["cycles"], "ratio", "= 1", ""),
            (
                "adapter.throughput_over_base",
                run["base_closed"] / run["cycles"],
                "ratio",
                "",
                "without the adapter: closed form",
            ),
            ("adapter.bits_per_byte_gap", abs(bits["exact adapted"] - bits["float adapted"]), "bits", "<= 0.01", note),
            ("adapter.bits_per_byte", bits["exact adapted"], "bits", "", note),
            ("adapter.float_bits_per_byte", bits["float adapted"], "bits", "", "PEFT's arithmetic in torch"),
            ("adapter.bits_per_byte_without", bits["exact base"], "bits", "", note),
            (
                "adapter.kilobits",
                _memory_bits(model.config) / 1e3,
                "kbit",
                "",
                "memory of one adapter in all lanes, its scales included",
            ),
        )
    ]


def _memory_bits(config):
    return config.adapter_words * config.lanes * 2 * config.lane_width + config.adapter_scales * 26


def _generate(folder, model, adapter, text, progress):
    """Held-out text and greedy tokens through the device; every answer against the exact model, cycles against the closed form."""
    exact, program, top = ExactDecoder(model, adapter), layer_program(model), model.config.top_k
    out = {"tokens": 0, "equal": 0, "cycles": 0, "closed": 0, "base_closed": 0}
    with open_device(f"sim:{folder}", progress=progress) as device:
        slot = device.load_adapter(ADAPTER)
        for index, prompt in enumerate(prompts_of(text, PROMPTS, PROMPT_BYTES)):
            progress(f"adapter, prompt {index + 1} of {PROMPTS}")
            tokens = [*prompt, *device.generate_tokens(prompt, TOKENS, adapter=slot)]
            device.clear_counters()
            results = device.evaluate(tokens, top=top, every=True, adapter=slot)
            out["cycles"] += sum(device.counters()["phases"].values())
            exact.reset()
            logits, _ = exact.step(tokens)
            best = torch.sort(logits, descending=True, stable=True)
            for position, result in enumerate(results):
                out["equal"] += int(
                    np.array_equal(result.tokens, best.indices[position, :top].numpy())
                    and np.array_equal(result.logits, best.values[position, :top].numpy())
                    and (
                        position < len(prompt) - 1
                        or position + 1 == len(tokens)
                        or result.token == tokens[position + 1]
                    )
                )
                # an answer with logits takes a cycle for the unit and two for each candidate more than the closed form's one word
                out["closed"] += token_cycles(model, position, program=program, adapter=True).total + 1 + 2 * top
                out["base_closed"] += token_cycles(model, position, program=program).total + 1 + 2 * top
            out["tokens"] += len(tokens)
    return out


def _quality(checkpoint, model, low, adapter, text, progress):
    """Bits per byte with and without the adapter, of the exact and the float model, over windows that begin with the separator."""
    base, tuned = float_decoder(checkpoint), adapt(float_decoder(checkpoint), low.factors, low.scaling)
    exact, exact_tuned = ExactDecoder(model), ExactDecoder(model, adapter)
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    nats = dict.fromkeys(("float base", "float adapted", "exact base", "exact adapted"), 0.0)
    for start in range(0, len(data), WINDOW):
        progress(f"adapter, bits per byte: {100 * start // len(data)} %")
        target = data[start : start + WINDOW]
        tokens = torch.cat([torch.zeros(1, dtype=torch.long), target[:-1]])
        for name, decoder in (("float base", base), ("float adapted", tuned)):
            with torch.no_grad():
                nats[name] += F.cross_entropy(decoder(tokens[None])[0].double(), target, reduction="sum").item()
        for name, model_of in (("exact base", exact), ("exact adapted", exact_tuned)):
            model_of.reset()
            integers, unit = model_of.step(tokens)
            nats[name] += F.cross_entropy(integers * unit[:, None], target, reduction="sum").item()
    return {name: value / len(data) / math.log(2) for name, value in nats.items()}
