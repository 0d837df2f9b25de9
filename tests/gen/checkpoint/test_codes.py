"""Packing: round trip, Hugging Face's own packer and its documented example, and refusal of what is not ternary."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers.integrations.bitnet import pack_weights

from intaglio.gen.checkpoint.codes import pack, unpack
from intaglio.gen.checkpoint.model import CheckpointError

ternary = st.tuples(st.integers(1, 9), st.integers(1, 17)).flatmap(
    lambda shape: hnp.arrays(np.int8, (4 * shape[0], shape[1]), elements=st.integers(-1, 1))
)


@given(ternary)
def test_round_trip(weights):
    packed = pack(weights)
    assert packed.dtype == np.uint8 and packed.shape == (weights.shape[0] // 4, weights.shape[1])
    restored = unpack(packed)
    assert restored.dtype == np.int8
    np.testing.assert_array_equal(restored, weights)


@given(ternary)
def test_equals_transformers_packer(weights):
    np.testing.assert_array_equal(pack(weights), pack_weights(torch.from_numpy(weights.copy())).numpy())


def test_transformers_documented_example():
    packed = np.array([[0b10100001, 0b00011000], [0b10010000, 0b00001010]], np.uint8)
    expected = [[0, -1], [-1, 1], [-1, 1], [-1, 1], [1, 0], [0, -1], [1, -1], [1, -1]]
    np.testing.assert_array_equal(unpack(packed), expected)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6))))
def test_any_bytes_unpack_or_are_refused(packed):
    codes = np.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)])
    if (codes == 3).any():
        with pytest.raises(CheckpointError, match="codes 0, 1 and 2, not the 3 in byte"):
            unpack(packed)
    else:
        np.testing.assert_array_equal(pack(unpack(packed)), packed)


@pytest.mark.parametrize(
    "weights",
    [
        np.zeros((6, 4), np.int8),
        np.zeros(4, np.int8),
        np.full((4, 4), 2, np.int8),
        np.full((4, 4), -2, np.int8),
        np.full((4, 4), 0.5),
    ],
)
def test_pack_refuses(weights):
    with pytest.raises(CheckpointError, match="must be"):
        pack(weights)


@pytest.mark.parametrize("packed", [np.zeros((4, 4), np.int8), np.zeros(4, np.uint8)])
def test_unpack_refuses_type_and_rank(packed):
    with pytest.raises(CheckpointError, match="must be uint8"):
        unpack(packed, "tensor t")
