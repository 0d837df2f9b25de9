"""Gated weight banks in whole decoders: Verilog, with garbage in every bank that is not awake, against exact model and closed form."""

from pathlib import Path

import numpy as np
import pytest

from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.cycles.decoder import token_cycles
from intaglio.gen.cycles.gating import bank_activity
from intaglio.gen.emit.decoder import generate
from intaglio.gen.emit.program import layer_program
from intaglio.gen.presets.decoder import config_for
from intaglio.host import open as open_device
from intaglio.host.protocol import command
from intaglio.rtl.ternary import gate
from intaglio.sim.reference.device import ReferenceDevice

pytestmark = pytest.mark.verilator

CACHE = Path(__file__).parents[3] / "build" / "test-cache"
MODEL = ModelConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
WIDTHS = {"context": 12, "lanes": 2, "lane_width": 8, "vector_width": 4, "attention_heads": 1, "top_k": 5}
TOKENS = (5, 9, 31, 60, 2, 2, 7)
WANTED = (True, False, True, True, False, True, True)


def device(folder, **changes):
    """The quantised model, and the device simulated."""
    checkpoint = random_checkpoint(MODEL, 0)
    generate(checkpoint, "small", folder, **WIDTHS, **changes)
    return quantise(checkpoint, config_for(MODEL, "small", **WIDTHS, **changes)), open_device(
        f"sim:{folder}", cache=CACHE, timeout=20
    )


def answers(device):
    """The words of every answer, as tokens and logits."""
    out = []
    for position, (token, want) in enumerate(zip(TOKENS, WANTED, strict=True)):
        device.submit([command(token, first=position == 0, want=want, top=5 if want else 0)])
        if want:
            result = device.receive()
            out.append((result.token, result.tokens.tolist(), result.logits.tolist()))
    while device.read_register("status") & 1:
        pass
    return out


def expected(model):
    out = []
    for packet in ReferenceDevice(model).run(
        [
            command(token, first=i == 0, want=want, top=5 if want else 0)
            for i, (token, want) in enumerate(zip(TOKENS, WANTED, strict=True))
        ]
    ):
        out.append((packet[0] & 0xFFFF, packet[2::2], np.array(packet[3::2], np.uint32).view(np.int32).tolist()))
    return out


@pytest.mark.parametrize(
    "changes, stalls",
    [({"gate_words": 128, "gate_wake": 8}, False), ({"gate_words": 64, "gate_wake": 50, "gate_isolation": 0}, True)],
)
def test_tokens_cycles_and_activity(changes, stalls, tmp_path):
    """A wake-up longer than a norm costs cycles, as many as the closed form says; a shorter one none."""
    model, opened = device(tmp_path / "out", **changes)
    with opened:
        opened.clear_counters()
        assert answers(opened) == expected(model)
        activity, phases = opened.bank_activity(), opened.counters()["phases"]
        opened.clear_counters()
        assert sum(sum(values) for name, values in opened.bank_activity().items() if name != "stall") == 0
    program = layer_program(model)
    tokens = [token_cycles(model, position, want=want, program=program) for position, want in enumerate(WANTED)]
    assert activity == bank_activity(model.config, tokens)
    closed = {name: sum(token.phases[name] for token in tokens) for name in phases}
    closed["head"] += sum(WANTED) * (2 * 5 + 2 - 1)  # words of an answer beyond the first
    assert phases == closed
    assert bool(activity["stall"]) == stalls
    assert sum(activity["reads"]) == len(TOKENS) * model.config.weight_depth
    ungated = quantise(random_checkpoint(MODEL, 0), config_for(MODEL, "small", **WIDTHS))
    cost = sum(t.total for t in tokens) - sum(token_cycles(ungated, p, want=w).total for p, w in enumerate(WANTED))
    assert (cost > 0) == stalls


def awake_too_early(monkeypatch):
    """The gate counts one cycle less than the bank needs."""
    made = gate.BankGate.__init__

    def init(self, config):
        made(self, config)
        self.wake_cycles -= 1

    monkeypatch.setattr(gate.BankGate, "__init__", init)


def test_a_mutation_is_seen(tmp_path, monkeypatch):
    awake_too_early(monkeypatch)
    model, opened = device(tmp_path / "out", gate_words=128, gate_wake=50)
    with opened:
        assert answers(opened) != expected(model)
