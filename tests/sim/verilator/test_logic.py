"""Whole decoders whose weight ROMs are gates, in Verilator against the exact model; one flipped bit of the gates is seen."""

import pytest

from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.cycles.decoder import token_cycles
from intaglio.gen.emit import logic
from intaglio.gen.emit.decoder import generate
from intaglio.gen.presets.decoder import config_for
from intaglio.host import open as open_device
from intaglio.host.protocol import command
from intaglio.sim.reference.device import ReferenceDevice

pytestmark = pytest.mark.verilator

MODEL = ModelConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
WIDTHS = {
    "context": 12,
    "lanes": 2,
    "lane_width": 8,
    "vector_width": 4,
    "attention_heads": 1,
    "top_k": 5,
    "rom": "logic",
}
COMMANDS = [command(token, first=i == 0, want=True, top=5) for i, token in enumerate((5, 9, 31, 60, 2, 2, 7))]


def answers(folder, cache, **changes):
    """What a simulated decoder answers, cycles included, and what exact model and closed form say; tokens and logits of each position."""
    checkpoint = random_checkpoint(MODEL, 0)
    generate(checkpoint, "small", folder, **WIDTHS, **changes)
    model = quantise(checkpoint, config_for(MODEL, "small", **WIDTHS, **changes))
    with open_device(f"sim:{folder}", cache=cache, timeout=20) as device:
        found = []
        for word in COMMANDS:
            device.submit([word])
            result = device.receive()
            found.append((result.token, result.tokens.tolist(), result.logits.tolist()))
        cycles = sum(device.counters()["phases"].values())
    expected = [
        (packet[0] & 0xFFFF, packet[2::2], [(logit ^ 1 << 31) - (1 << 31) for logit in packet[3::2]])
        for packet in ReferenceDevice(model).run(COMMANDS)
    ]
    closed = sum(token_cycles(model, position).total + 2 * 5 + 1 for position in range(len(COMMANDS)))
    return (found, cycles), (expected, closed)


@pytest.mark.parametrize("changes", [{}, {"packing": "5trit", "gate_words": 512}], ids=["whole", "gated banks"])
def test_tokens_and_cycles(changes, tmp_path, simulation_cache):
    found, expected = answers(tmp_path / "out", simulation_cache, **changes)
    assert found == expected


def test_a_flipped_bit_is_seen(tmp_path, simulation_cache, monkeypatch):
    made = logic.bank

    def flipped(words, width, name):
        words = words.copy()
        words[100, 0] ^= 1 * name.endswith("_1")  # a weight of the second lane
        return made(words, width, name)

    monkeypatch.setattr(logic, "bank", flipped)
    (found, cycles), (expected, closed) = answers(tmp_path / "out", simulation_cache)
    assert found != expected and cycles == closed
