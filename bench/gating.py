"""Figures of power gating: cycles with and without it, closed form of the banks' activity, energy from a simulation's transitions."""

from typing import Any

from bench.common import Job, figure, generate_tokens
from intaglio import Error
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.cycles.decoder import token_cycles
from intaglio.gen.cycles.gating import bank_activity
from intaglio.gen.emit.decoder import generate
from intaglio.gen.emit.program import layer_program
from intaglio.gen.estimate.activity import ASAP7, read_saif
from intaglio.gen.estimate.energy import assumptions_with, estimate_energy
from intaglio.gen.presets.decoder import config_for
from intaglio.host import open as open_device

__all__ = ["figures"]

GATE: dict[str, Any] = {"gate_words": 1024, "gate_wake": 8}
PROMPT, TOKENS = [0, *b"def main("], 6


def figures(job: Job, preset: str) -> list[dict[str, Any]]:
    """All figures, as dicts of name, value, unit, goal, anchor and class."""
    folder = job.folder.with_name(f"{job.folder.name}-gated")
    top = generate(job.checkpoint, preset, folder, reuse=True, progress=job.progress, **GATE)["top"]
    with job.open() as device:
        plain = _run(device, job)
    trace = folder.with_suffix(".saif")
    with open_device(f"sim:{folder}", progress=job.progress, trace=trace) as device:
        gated, activity = _run(device, job), device.bank_activity()
    if gated["tokens"] != plain["tokens"]:
        raise Error(f"the gated decoder must give the tokens {plain['tokens']}, not {gated['tokens']}")
    model = quantise(job.checkpoint, config_for(job.checkpoint.config, preset, **GATE))
    program = layer_program(model)
    tokens = [
        token_cycles(model, position, want=position >= len(PROMPT) - 1, program=program)
        for position in range(gated["count"])
    ]
    expected = bank_activity(model.config, tokens)
    energy = estimate_energy(model.config, read_saif(trace, top), ASAP7, assumptions_with({}))
    words = f"{model.config.gate_banks} columns of {GATE['gate_words']} words, wake-up {GATE['gate_wake']} cycles"
    return [
        figure("gating.throughput_ratio", plain["cycles"] / gated["cycles"], "ratio", ">= 0.99", words),
        figure("gating.tokens_equal", 1, "share", "= 1", f"{len(gated['tokens'])} tokens"),
        figure(
            "gating.activity_over_closed_form",
            sum(activity["powered"]) / sum(expected["powered"]) if activity == expected else 0.0,
            "ratio",
            "= 1",
            "0 if any counter differs",
        ),
        figure(
            "gating.powered_share", sum(activity["powered"]) / model.config.gate_banks / gated["cycles"], "share", ""
        ),
        figure(
            "gating.energy_ratio", energy.ratio_broadcast, "ratio", "", "TOM: about 0.2, of a chip's power", "projected"
        ),
        figure(
            "gating.energy_ratio_addresses_held",
            energy.ratio_held,
            "ratio",
            "",
            "against banks that keep their address",
            "projected",
        ),
    ]


def _run(device, job):
    """Generate; the counters begin with it."""
    job.progress("power gating")
    tokens = generate_tokens(device, PROMPT, TOKENS)
    counters = device.counters()
    return {"tokens": tokens, "cycles": sum(counters["phases"].values()), "count": counters["tokens"]}
