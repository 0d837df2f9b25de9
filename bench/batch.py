"""Figures of several tokens at once: equality, cycles of groups against tokens alone and against the units' widths, prompts."""

import random
from typing import Any

from bench.common import Job, equal_to_exact, figure
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.cycles.decoder import group_cycles, operations, token_cycles
from intaglio.gen.emit.decoder import generate
from intaglio.gen.emit.program import layer_program
from intaglio.gen.presets.decoder import config_for
from intaglio.host import open as open_device
from intaglio.host.protocol import command, group, sequence
from intaglio.sim.train.corpus import Corpus

__all__ = ["figures"]

BATCH, CONTEXT, LONG, PROMPT, SEED = 8, 128, 1000, 768, 11
TOKENS = 48  # of each text


def figures(job: Job) -> list[dict[str, Any]]:
    """Simulated on a machine of the desk's widths with 8 slots and 8 sequences."""
    widths: dict[str, Any] = {"batch": BATCH, "sequences": BATCH}
    folder, text, picks = job.folder.parent / "desk-batch", Corpus().held_out, random.Random(SEED)
    generate(job.checkpoint, "desk", folder, reuse=True, progress=job.progress, **widths)
    model = quantise(job.checkpoint, config_for(job.checkpoint.config, "desk", **widths))

    def passage(count):
        at = picks.randrange(len(text) - count)
        return [0, *text[at : at + count - 1]]

    with open_device(f"sim:{folder}", progress=job.progress) as device:
        equal = _equal(job, device, [passage(picks.randrange(1, 90)) for _ in range(3 * BATCH)])
        short = _group(job, device, model, [passage(CONTEXT - 1) for _ in range(BATCH)])
        prompt = _prompt(job, device, model, passage(PROMPT))
    long = BATCH * token_cycles(job.quantised, LONG - 1).total / group_cycles(model, [LONG - 1] * BATCH).total
    return [
        figure("batch.tokens_equal_alone_share", equal, "share", "= 1", f"{3 * BATCH} texts of {TOKENS} tokens"),
        figure("batch.throughput_8_over_1", short["over_alone"], "ratio", ">= 3.5", f"{CONTEXT} tokens of context"),
        figure("batch.throughput_8_over_1_long", long, "ratio", "", f"{LONG} tokens of context, closed form"),
        figure("batch.cycles_over_roofline", short["over_bound"], "ratio", "<= 1.15", f"{CONTEXT} tokens of context"),
        figure("machine.cycles_over_closed_form", max(row["over_form"] for row in (short, prompt)), "ratio", "= 1"),
        figure(
            "prefill.linear_share_of_bound", prompt["linear_share"], "share", ">= 0.95", f"{PROMPT} tokens, on chip"
        ),
        figure(
            "prefill.batch_speedup", prompt["over_alone"], "ratio", "", f"{PROMPT} tokens, on chip, token by token is 1"
        ),
    ]


def _equal(job, device, prompts):
    """Share of tokens that are those of each text alone, by the exact model."""
    found = [[] for _ in prompts]
    for index, token in device.generate_tokens_many(prompts, TOKENS):
        found[index].append(token)
    equal = sum(
        equal_to_exact(job.quantised, prompt, tokens) for prompt, tokens in zip(prompts, found, strict=True) if tokens
    )
    return equal / sum(map(len, found))


def _group(job, device, model, prompts):
    """A token of each of 8 sequences after their prompts."""
    for number, prompt in enumerate(prompts):
        words = [sequence(number)]
        for at in range(0, len(prompt), BATCH):
            part = prompt[at : at + BATCH]
            words += [group(len(part)), *(command(token, first=at + i == 0) for i, token in enumerate(part))]
        device.submit(words)
    device.submit([command(1, want=True)])  # that all is done
    device.receive()
    device.clear_counters()
    tokens = [word for number in range(BATCH) for word in (sequence(number), command(1, want=True))]
    device.submit([group(BATCH), *tokens])
    for _ in range(BATCH):
        device.receive()
    cycles = sum(device.counters()["phases"].values())
    places = [len(prompt) for prompt in prompts]
    places[-1] += 1
    ops = operations(model.config, places[0])
    bound = sum(-(-count // width) * (1 if name == "linear" else BATCH) for name, (count, width) in ops.items())
    return {
        "over_alone": sum(token_cycles(job.quantised, place).total for place in places) / cycles,
        "over_bound": cycles / bound,
        "over_form": cycles / group_cycles(model, places).total,
    }


def _prompt(job, device, model, prompt):
    """A prompt in groups of consecutive tokens, against one token after the other."""
    next(iter(device.generate_tokens(prompt, 1)), None)
    cycles, program = device.last["cycles_prefill"], layer_program(model)
    groups = [
        group_cycles(
            model, range(at, min(at + BATCH, len(prompt))), wants=int(at + BATCH >= len(prompt)), program=program
        )
        for at in range(0, len(prompt), BATCH)
    ]
    alone = layer_program(job.quantised)
    weights, width = operations(model.config, 0)["linear"]
    bound = len(prompt) * weights / (width * BATCH)
    return {
        "over_alone": sum(
            token_cycles(job.quantised, place, want=place == len(prompt) - 1, program=alone).total
            for place in range(len(prompt))
        )
        / cycles,
        "over_form": cycles / sum(group.total for group in groups),
        "linear_share": bound / sum(group.linear_busy for group in groups),
    }
