"""The exact model against the float model: on the shipped checkpoint's held-out text, and its own consistency."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.reader import load_checkpoint
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.presets.decoder import config_for
from intaglio.rtl.arithmetic.numerics import RotaryScaling
from intaglio.sim.reference.exact_decoder import ExactDecoder
from intaglio.sim.reference.loading import float_decoder
from intaglio.sim.train.corpus import Corpus

MODEL = Path(__file__).parents[3] / "models" / "burin"


def small(**changes):
    fields = dict(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    return ModelConfig(**(fields | changes))


@pytest.fixture(scope="module")
def shipped():
    checkpoint = load_checkpoint(MODEL)
    return checkpoint, quantise(checkpoint, config_for(checkpoint.config, "desk"))


def compare(checkpoint, model, tokens):
    with torch.no_grad():
        logits = float_decoder(checkpoint)(tokens[None])[0].double()
    integers, unit = ExactDecoder(model).step(tokens)
    return logits, integers * unit[:, None]


def test_error_budget_on_held_out_text(shipped):
    checkpoint, model = shipped
    text = torch.frombuffer(bytearray(Corpus().held_out[:4096]), dtype=torch.uint8).long()
    agree, added = 0, 0.0
    for start in range(0, len(text), 1024):
        target = text[start : start + 1024]
        tokens = torch.cat([torch.zeros(1, dtype=torch.long), target[:-1]])
        logits, exact = compare(checkpoint, model, tokens)
        agree += int((logits.argmax(1) == exact.argmax(1)).sum())
        added += (
            F.cross_entropy(exact, target, reduction="sum") - F.cross_entropy(logits, target, reduction="sum")
        ).item()
    assert agree / len(text) >= 0.99
    assert abs(added) / len(text) / math.log(2) <= 0.002


def test_a_wrong_constant_breaks_the_budget(shipped):
    checkpoint, model = shipped
    layer = model.layers[0]
    wrong = dataclasses.replace(layer, constants=layer.constants | {"o": layer.constants["o"].scaled(1)})
    broken = dataclasses.replace(model, layers=(wrong, *model.layers[1:]))
    text = torch.frombuffer(bytearray(Corpus().held_out[:512]), dtype=torch.uint8).long()
    logits, exact = compare(checkpoint, broken, text)
    assert (logits.argmax(1) == exact.argmax(1)).double().mean() < 0.97


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 4, "num_hidden_layers": 1},
        {"hidden_act": "silu", "tie_word_embeddings": False},
        {"model_type": "llama", "hidden_act": "silu"},
        {"model_type": "llama", "tie_word_embeddings": False},
        {
            "model_type": "llama",
            "hidden_act": "silu",
            "rope_scaling": RotaryScaling(kind="llama3", factor=8.0, original_max_position_embeddings=24),
        },
    ],
)
def test_random_checkpoints_follow_the_float_model(changes):
    checkpoint = random_checkpoint(small(**changes), seed=3)
    model = quantise(checkpoint, config_for(checkpoint.config, "small"))
    logits, exact = compare(checkpoint, model, torch.arange(48) * 7 % 50)
    assert (logits - exact).norm() / logits.norm() < 0.05  # ties of the INT8 rounding flip now and then


def test_all_at_once_equals_one_by_one():
    checkpoint = random_checkpoint(small(), seed=5)
    model = quantise(checkpoint, config_for(checkpoint.config, "small"))
    tokens = torch.arange(20) * 11 % 50
    whole, unit = ExactDecoder(model).step(tokens)
    single = ExactDecoder(model)
    for i, token in enumerate(tokens):
        logits, one = single.step([int(token)])
        assert torch.equal(logits[0], whole[i]) and one[0] == unit[i]


def test_bad_tokens_are_refused():
    checkpoint = random_checkpoint(small(), seed=5)
    decoder = ExactDecoder(quantise(checkpoint, config_for(checkpoint.config, "small")))
    with pytest.raises(ValueError, match=r"tokens must be in 0\.\.49"):
        decoder.step([50])
    decoder.step([1] * 64)
    with pytest.raises(ValueError, match="context of 64 tokens, not reach 65"):
        decoder.step([1])
