"""How far a matrix is from ternary times a scale."""

import numpy as np
import pytest

from intaglio.gen.checkpoint.ternary import GROUP, TOLERANCE, measure

RNG = np.random.default_rng(0)
TRITS = RNG.integers(-1, 2, (6, 2 * GROUP)).astype(np.float32)


def of(matrix, step=4):
    return measure(lambda: [matrix[start : start + step] for start in range(0, len(matrix), step)])


def test_ternary_times_a_scale():
    found = of(TRITS * np.float32(0.3))
    assert found.ternary and found.scale == np.float32(0.3) and found.error == pytest.approx(0, abs=1e-6)
    assert found.zeros == pytest.approx((TRITS == 0).mean()) and found.text == "ternary times 0.3"


@pytest.mark.parametrize("off, ternary", [(0.9, True), (1.2, False)])
def test_the_tolerance_is_of_the_scale(off, ternary):
    for place in (np.argwhere(TRITS == 0)[0], np.argwhere(TRITS == 1)[0]):
        matrix = TRITS * np.float32(0.3)
        matrix[tuple(place)] += 0.3 * off * TOLERANCE
        found = of(matrix)
        assert found.ternary is ternary and found.farthest == pytest.approx(off * TOLERANCE, rel=0.02)


def test_distance_of_a_normal_matrix():
    matrix = RNG.normal(size=(64, 256)).astype(np.float32)
    found = of(matrix)
    rounded = np.clip(np.round(matrix / np.abs(matrix).mean()), -1, 1)
    scale = (matrix * rounded).sum() / (rounded != 0).sum()
    assert found.scale == pytest.approx(scale, rel=1e-5) and found.zeros == pytest.approx((rounded == 0).mean())
    assert found.error == pytest.approx(np.linalg.norm(matrix - scale * rounded) / np.linalg.norm(matrix), rel=1e-5)
    assert found.farthest == pytest.approx(np.abs(matrix - scale * rounded).max() / scale, rel=1e-5)
    assert not found.ternary and not found.of_parts and "from ternary times" in found.text


def test_scales_of_rows_and_of_groups():
    rows = TRITS * np.linspace(1, 2, 6, dtype=np.float32)[:, None]
    assert (of(rows).of_parts, of(rows).ternary) == ("row", False)
    groups = TRITS * np.repeat(np.linspace(1, 2, 12, dtype=np.float32).reshape(6, 2), GROUP, axis=1)
    assert of(groups).of_parts == "group" and "a scale for each 128 inputs" in of(groups).text
    assert of(groups[:, :-1]).of_parts == ""


def test_zeros_alone():
    found = of(np.zeros((4, 8), np.float32))
    assert found.ternary and found.zeros == 1.0 and found.scale == 1.0
