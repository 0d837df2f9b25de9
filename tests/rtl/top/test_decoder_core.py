"""The decoder's core alone, in Amaranth's simulator: the smallest shapes, every word of every answer and every cycle."""

from dataclasses import replace

import pytest

from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.cycles.decoder import token_cycles
from intaglio.gen.presets.decoder import config_for
from intaglio.host.protocol import command
from intaglio.rtl.arithmetic.numerics import RotaryScaling
from intaglio.sim.reference.device import ReferenceDevice
from tests.rtl.top.core_bench import MODEL, answers, fill

LLAMA3 = RotaryScaling(kind="llama3", factor=4.0, original_max_position_embeddings=16)
FAMILIES = {
    "llama": {"model_type": "llama", "hidden_act": "silu", "rope_scaling": LLAMA3, "rms_norm_eps": 1e-6},
    "llama untied": {"model_type": "llama", "tie_word_embeddings": False},
    "bitnet silu": {
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    },  # one scale for the embedding, one for the head
}
SHAPES = {
    "two lanes": {"lanes": 2, "lane_width": 8, "vector_width": 4, "attention_heads": 1, "packing": "2bit"},
    "wide": {
        "lanes": 4,
        "lane_width": 16,
        "vector_width": 4,
        "attention_heads": 2,
        "packing": "5trit",
        "dot": "adders",
    },
}


@pytest.mark.parametrize(
    ("shape", "family"), [*((shape, None) for shape in SHAPES), *(("wide", name) for name in FAMILIES)]
)
def test_tokens_are_the_exact_models(shape, family, monkeypatch):
    """A prompt, a burst into a full context, a token too many, a second sequence; a host that does not always take a word."""
    described = replace(MODEL, **FAMILIES.get(family, {}))
    checkpoint = random_checkpoint(described, 3)
    model = quantise(checkpoint, config_for(described, "small", context=3, top_k=3, **SHAPES[shape]))
    fill(monkeypatch, model)
    commands = [
        command(4, first=True),
        command(9, want=True, top=3),
        command(2, run=2, top=1),
        command(7, first=True, want=True, top=2),
    ]
    want = ReferenceDevice(model).run(commands)
    found, active = answers(model, commands, len(want), stall=lambda cycle, found: cycle % 3 == 0 and found)
    assert found == want
    first = token_cycles(model, 0, want=False).total
    assert active[: first + 2] == [0, *[1] * first, 0]
