"""A whole decoder whose weight ROMs are gates, in Verilator against the exact model; test_icarus.py has the mutation and gated banks."""

import pytest

from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.cycles.decoder import token_cycles
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


def test_tokens_and_cycles(tmp_path, simulation_cache):
    checkpoint = random_checkpoint(MODEL, 0)
    generate(checkpoint, "small", tmp_path / "out", **WIDTHS)
    model = quantise(checkpoint, config_for(MODEL, "small", **WIDTHS))
    found = []
    with open_device(f"sim:{tmp_path / 'out'}", cache=simulation_cache, timeout=20) as device:
        for word in COMMANDS:
            device.submit([word])
            result = device.receive()
            found.append((result.token, result.tokens.tolist(), result.logits.tolist()))
        cycles = sum(device.counters()["phases"].values())
    assert found == [
        (packet[0] & 0xFFFF, packet[2::2], [(logit ^ 1 << 31) - (1 << 31) for logit in packet[3::2]])
        for packet in ReferenceDevice(model).run(COMMANDS)
    ]
    assert cycles == sum(token_cycles(model, position).total + 2 * 5 + 1 for position in range(len(COMMANDS)))
