"""Scales of rows, and what a Llama's integers are."""

import numpy as np
import pytest

from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.quantised import quantise, quantise_rows
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.checkpoint.weights import Checkpoint
from intaglio.gen.emit.images import images
from intaglio.gen.presets.decoder import config_for
from intaglio.rtl.arithmetic.numerics import GAIN_MAX

LLAMA = ModelConfig(
    model_type="llama",
    hidden_act="silu",
    tie_word_embeddings=False,
    vocab_size=33,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)


def test_rows_are_within_half_a_step_of_their_own():
    rng = np.random.default_rng(1)
    rows = (rng.normal(size=(40, 64)) * 2.0 ** rng.uniform(-9, 0, (40, 1))).astype(np.float32)
    rows[5] = 0
    unit = np.abs(rows).max() / 127 / 65535
    values, scales = quantise_rows(rows, unit)
    assert values.dtype == np.int8 and scales.dtype == np.uint16 and scales.max() == 65535
    assert scales[5] == 0 and not values[5].any()
    error = np.abs(values * (scales * unit)[:, None] - rows)
    assert (error <= (scales * unit / 2)[:, None] * (1 + 1e-9)).all()
    assert (np.abs(values).max(1)[scales > 500] == 127).all()


def test_a_llamas_roms():
    config = config_for(LLAMA, "small")
    assert (config.activation, config.sub_norms, config.tied_head, config.row_scales) == ("silu", 0, 0, 1)
    checkpoint = random_checkpoint(LLAMA)
    model = quantise(checkpoint, config)
    roms = images(model)
    assert {"head", "silu", "embedding_scales", "head_scales"} < set(roms)
    gains = roms["gains"].view("<i2")
    assert (
        gains.shape[0] == config.gain_words and (gains[-config.intermediate // config.vector_width :] == GAIN_MAX).all()
    )
    plain = images(quantise(checkpoint, config_for(LLAMA, "small", row_scales=0)))
    assert set(roms) - set(plain) == {"embedding_scales", "head_scales"}


def test_a_head_of_zeros_is_refused():
    checkpoint = random_checkpoint(LLAMA)
    empty = Checkpoint(**(vars(checkpoint) | {"head": np.zeros_like(checkpoint.head)}))
    with pytest.raises(ValueError, match="the head must not be all zero"):
        quantise(empty, config_for(LLAMA, "small"))
