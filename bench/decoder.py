"""Figures of the decoder: equality, accuracy, cycles, and the speed of its simulation."""

import time
from typing import Any

from bench.common import Job, equal_to_exact, figure, generate_tokens, prompts_of, quality
from intaglio.gen.cycles.decoder import operations, token_cycles
from intaglio.gen.emit.program import layer_program
from intaglio.host.protocol import command
from intaglio.sim.reference.loading import float_decoder
from intaglio.sim.train.corpus import Corpus, xz_bits_per_byte
from intaglio.sim.train.decoder import bits_per_byte

__all__ = ["figures"]

PROMPTS, PROMPT_BYTES, TOKENS = 20, 32, 200
ROOFLINE_CONTEXT = 128


def figures(job: Job) -> list[dict[str, Any]]:
    """All figures, as dicts of name, value, unit, goal, anchor and class."""
    text, progress = Corpus().held_out, job.progress
    generated = _generate(job, text)
    bits = quality(job.checkpoint, job.quantised, text, job.quantised.config.context, progress)
    xz = xz_bits_per_byte(text)
    roofline = _roofline(job)
    return [
        figure("decoder.tokens_equal_share", generated["equal"] / generated["tokens"], "share", "= 1"),
        figure("decoder.top1_agreement", bits["top1_agreement"], "share", ">= 0.99"),
        figure("decoder.added_bits_per_byte", bits["exact"] - bits["float"], "bits", "<= 0.01"),
        figure("decoder.bits_per_byte", bits["exact"], "bits", ""),
        figure("decoder.bits_per_byte_over_xz", bits["exact"] / xz, "ratio", "<= 0.85", f"xz -9e: {xz:.4f} bits"),
        figure(
            "decoder.float_bits_per_byte_at_4096",
            bits_per_byte(float_decoder(job.checkpoint), text, 4096),
            "bits",
            "",
            "windows of 4,096 tokens",
        ),
        figure("decoder.mac_utilisation_linear", generated["utilisation"], "share", ">= 0.95"),
        figure("decoder.cycles_per_token_at_128", roofline["cycles"], "cycles", ""),
        figure(
            "decoder.cycles_over_roofline",
            roofline["ratio"],
            "ratio",
            "<= 1.2",
            f"roofline {roofline['bound']:,} cycles",
        ),
        figure("decoder.cycles_over_closed_form", generated["over_closed_form"], "ratio", "<= 1.02"),
        figure("decoder.linear_cycles_over_closed_form", generated["linear_over_closed_form"], "ratio", "= 1"),
        figure(
            "sim.ternary_macs_per_second",
            generated["macs_per_second"] / 1e6,
            "M/s",
            ">= 80",
            "an adder tree of 256 weights alone: 160, not measured by this run",
        ),
        figure("sim.cycles_per_second", generated["cycles_per_second"] / 1e3, "k/s", ""),
    ]


def _generate(job, text):
    """Generate from prompts all over the text, compare with the exact model and the closed form."""
    config, program = job.quantised.config, layer_program(job.quantised)
    weights = config.layers * config.layer_weights
    tokens = equal = processed = 0
    cycles, expected, linear, linear_expected, seconds = 0, 0, 0, 0, 0.0
    closed = {}
    with job.open() as device:
        for index, prompt in enumerate(prompts_of(text, PROMPTS, PROMPT_BYTES)):
            job.progress(f"prompt {index + 1} of {PROMPTS}")
            began = time.perf_counter()
            out = generate_tokens(device, prompt, TOKENS)
            seconds += time.perf_counter() - began
            counters = device.counters()
            phases = counters["phases"]
            cycles, linear = cycles + sum(phases.values()), linear + phases["linear"]
            processed += counters["tokens"]
            for position in range(counters["tokens"]):
                want = position >= len(prompt) - 1
                if (position, want) not in closed:
                    closed[position, want] = token_cycles(job.quantised, position, want=want, program=program)
                expected += closed[position, want].total
                linear_expected += closed[position, want].phases["linear"]
            tokens += len(out)
            equal += equal_to_exact(job.quantised, prompt, out)
    width = config.lanes * config.lane_width
    return {
        "tokens": tokens,
        "equal": equal,
        "utilisation": processed * weights / width / linear,
        "over_closed_form": cycles / expected,
        "linear_over_closed_form": linear / linear_expected,
        "macs_per_second": processed * weights / seconds,
        "cycles_per_second": cycles / seconds,
    }


def _roofline(job):
    """Cycles of the token at the end of 128 tokens of context, over the operations of each phase at its unit's width."""
    config = job.quantised.config
    with job.open() as device:
        for position in range(ROOFLINE_CONTEXT):
            device.clear_counters()
            device.submit([command(65 + position % 26, first=position == 0, want=True)])
            device.receive()
        cycles = sum(device.counters()["phases"].values())
    bound = sum(-(-count // width) for count, width in operations(config, ROOFLINE_CONTEXT - 1).values())
    return {"cycles": cycles, "bound": bound, "ratio": cycles / bound}
