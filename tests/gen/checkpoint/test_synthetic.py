"""Random checkpoints: reproducible, with the asked share of zeros."""

import numpy as np
import pytest

from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.synthetic import random_checkpoint

CONFIG = ModelConfig(
    vocab_size=20,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=16,
)


def test_reproducible_and_share_of_zeros():
    one, two, other = random_checkpoint(CONFIG), random_checkpoint(CONFIG), random_checkpoint(CONFIG, seed=1)
    up = [c.layers[0].matrices["up"].weights for c in (one, two, other)]
    assert np.array_equal(up[0], up[1]) and not np.array_equal(up[0], up[2])
    for zeros in (0, 0.25, 0.6, 1):
        weights = random_checkpoint(CONFIG, zeros=zeros).layers[0].matrices["up"].weights
        assert (weights == 0).mean() == pytest.approx(zeros, abs=0.03)
    with pytest.raises(ValueError, match="zeros must be a share"):
        random_checkpoint(CONFIG, zeros=1.5)
