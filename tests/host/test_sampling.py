import numpy as np
import pytest

from intaglio.host.sampling import Sampler

LOGITS = np.array([3.0, 2.0, 1.0, -4.0])


def test_probabilities_are_those_of_softmax():
    expected = np.exp(LOGITS / 0.7) / np.exp(LOGITS / 0.7).sum()
    np.testing.assert_allclose(Sampler(temperature=0.7, limit=4).probabilities(LOGITS), expected, rtol=1e-12)


def test_top_k_and_top_p_keep_the_fewest():
    share = np.exp(LOGITS) / np.exp(LOGITS).sum()
    assert (Sampler(temperature=1.0, top_k=2, limit=4).probabilities(LOGITS) > 0).tolist() == [True, True, False, False]
    for top_p, kept in ((share[0] / 2, 1), (share[0] + 1e-9, 2), (share[:2].sum() - 1e-9, 2), (1.0, 4)):
        assert (Sampler(temperature=1.0, top_p=top_p, limit=4).probabilities(LOGITS) > 0).sum() == kept


def test_a_tiny_temperature_is_greedy():
    sampler = Sampler(temperature=1e-310, limit=4)
    assert all(sampler.draw([9, 8, 7, 6], LOGITS) == 9 for _ in range(50))


def test_equal_seeds_draw_equal_tokens_in_the_right_shares():
    def drawn(seed):
        sampler = Sampler(temperature=1.0, seed=seed, limit=4)
        return [sampler.draw([0, 1, 2, 3], LOGITS) for _ in range(4000)]

    assert drawn(1) == drawn(1) != drawn(2)
    expected = np.exp(LOGITS) / np.exp(LOGITS).sum()
    np.testing.assert_allclose(np.bincount(drawn(3), minlength=4) / 4000, expected, atol=0.03)


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": 0},
        {"top_k": 5},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
    ],
)
def test_refuses(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampler(limit=4, **bad)
