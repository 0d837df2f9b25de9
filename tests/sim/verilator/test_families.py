"""A LlamaForCausalLM as generated Verilog: every logit and every cycle, and what breaks if its SiLU is another."""

import numpy as np
import pytest

import intaglio.host as host
from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.reader import load_checkpoint, save_checkpoint
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.cycles.decoder import token_cycles
from intaglio.gen.emit.decoder import generate
from intaglio.gen.presets.decoder import config_for
from intaglio.host.protocol import command
from intaglio.rtl.arithmetic.numerics import RotaryScaling
from intaglio.sim.reference.exact_decoder import ExactDecoder
from tests.gen.emit.test_decoder import lint

pytestmark = pytest.mark.verilator

LLAMA = ModelConfig(
    model_type="llama",
    hidden_act="silu",
    tie_word_embeddings=False,
    linear_class="autobitlinear",
    rope_scaling=RotaryScaling(kind="llama3", factor=8.0, original_max_position_embeddings=8),
    rope_theta=1000042.0,
    rms_norm_eps=1e-6,
    vocab_size=70,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
TOKENS, TOP = [3, 60, 12, 44, 44, 9, 69, 0, 31, 7, 25, 2], 8


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The generated folder, and its integers."""
    root = tmp_path_factory.mktemp("llama")
    save_checkpoint(root / "model", random_checkpoint(LLAMA, seed=2), "BF16", storage="floats")
    generate(root / "model", "small", root / "small", prefix="llama", context=len(TOKENS))
    checkpoint = load_checkpoint(root / "model")
    return root / "small", quantise(checkpoint, config_for(checkpoint.config, "small", context=len(TOKENS)))


@pytest.mark.slow
def test_lint_is_clean(llama):
    found, text = lint(llama[0])
    assert not found, text


def test_logits_and_cycles(llama, simulation_cache):
    folder, model = llama
    exact = ExactDecoder(model)
    logits, units = exact.step(TOKENS)
    other = ExactDecoder(model)
    other.silu_tables = tuple(part.clone() for part in other.silu_tables)
    other.silu_tables[0][40:60] += 400
    changed, _ = other.step(TOKENS)
    with host.open(f"sim:{folder}", cache=simulation_cache) as device:
        for position, token in enumerate(TOKENS):
            device.clear_counters()
            device.submit([command(token, first=position == 0, want=True, top=TOP)])
            found = device.receive()
            best = np.argsort(-logits[position].numpy(), kind="stable")[:TOP]
            assert found.tokens.tolist() == best.tolist()
            assert found.logits.tolist() == logits[position, best].tolist()
            assert found.scale == float(units[position])
            answered = token_cycles(model, position).total + 1 + 2 * TOP  # of which the closed form has the first word
            assert sum(device.counters()["phases"].values()) == answered
    assert not (changed[-1] == logits[-1]).all()
