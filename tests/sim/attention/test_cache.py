"""Visits and the models of the KV cache: order, the optimum against brute force, and how far the control is from it."""

import functools

import numpy as np
import pytest

from intaglio.sim.attention.cache import Visit, belady, lru, simulate, uncached, visits


def sparse(rng, heads, count, vertical, slash):
    """Vertical lines, slashes mostly near the diagonal, the sink and the diagonal."""
    row, column = np.arange(count)[:, None], np.arange(count)
    distance = np.clip(row - column, 0, None)
    maps = []
    for _ in range(heads):
        columns, bands = np.zeros(count, bool), np.zeros(count, bool)
        columns[rng.choice(count, max(1, int(vertical * count)), False)] = True
        bands[np.minimum(rng.geometric(8 / count, int(slash * count) + 1) - 1, count - 1)] = True
        band = bands[distance] | bands[np.clip(distance - 1, 0, None)] & (distance > 0)
        maps.append((columns | band | (column == 0) | (column == row)) & (column <= row))
    return np.stack(maps)


def minimum(sequence, lines):
    """Fewest misses by trying every choice."""

    @functools.cache
    def best(i, held):
        if i == len(sequence):
            return 0
        block = sequence[i]
        if block in held:
            return best(i + 1, held)
        options = [best(i + 1, held)]  # passed by
        if len(held) < lines:
            options.append(best(i + 1, held | {block}))
        options += [best(i + 1, held - {out} | {block}) for out in held]
        return 1 + min(options)

    return best(0, frozenset())


def test_the_order_of_visits():
    block_map = np.zeros((2, 3, 3), bool)
    block_map[:, [0, 1, 2], [0, 1, 2]] = True
    block_map[0, 1:, 0] = True
    block_map[1, 2, 1] = True
    assert visits(block_map, 2) == [
        Visit(0, 0, 0b0111, 1, 1),
        Visit(0, 1, 0b1100, 1, 1),
        Visit(1, 0, 0b0001, None, 0),
        Visit(1, 1, 0b0010, None, 0),
        Visit(1, 2, 0b0011, None, 0),
    ]
    assert uncached(visits(block_map, 2)) == 5 and uncached(visits(block_map, 2), shared=False) == block_map.sum()


@pytest.mark.parametrize("seed", range(3))
def test_visits_cover_the_map(seed):
    rng = np.random.default_rng(seed)
    block_map = sparse(rng, 3, 13, 0.2, 0.1)
    found, rebuilt = visits(block_map, 4), np.zeros_like(block_map)
    for i, visit in enumerate(found):
        for slot in range(12):
            if visit.jobs >> slot & 1:
                rebuilt[slot % 3, visit.window * 4 + slot // 3, visit.block] = True
        after = [other for other in found[i + 1 :] if other.block == visit.block]
        assert visit.remaining == len(after) and visit.next_window == (after[0].window if after else None)
    assert (rebuilt == block_map).all() and found == sorted(found, key=lambda v: (v.window, v.block))


def test_belady_is_the_optimum():
    rng = np.random.default_rng(5)
    for _ in range(150):
        sequence, lines = rng.integers(0, 5, rng.integers(1, 10)).tolist(), int(rng.integers(1, 4))
        assert belady(sequence, lines) == minimum(tuple(sequence), lines) <= lru(sequence, lines)


def drawn(seeds, counts):
    """Block maps of lines and of independent blocks."""
    for seed in seeds:
        rng = np.random.default_rng(seed)
        for count in counts:
            for heads, vertical, slash in ((4, 0.02, 0.02), (4, 0.1, 0.05), (1, 0.02, 0.02), (1, 0.25, 0.1)):
                yield sparse(rng, heads, count, vertical, slash)
            for heads, density in ((4, 0.03), (1, 0.1)):
                yield np.tril(rng.random((heads, count, count)) < density) | np.eye(count, dtype=bool)


@pytest.mark.parametrize(("window", "lines"), [(8, 28), (8, 40), (8, 64), (16, 12), (16, 24), (16, 48)])
def test_traffic_is_near_the_optimum(window, lines):
    """Within 5 % of the optimum of the same capacity: from 28 lines on with windows of 8, from 12 with 16 (docs/prefill.md)."""
    gain = []
    for block_map in drawn(range(2), (64, 128)):
        found = visits(block_map, window)
        sequence = [visit.block for visit in found]
        ours, best = simulate(found, lines, 3), belady(sequence, lines)
        assert best <= ours.misses <= 1.05 * best
        gain.append(lru(sequence, lines) / ours.misses)
    assert max(gain) > 1.3  # the comparison is worth something


@pytest.mark.parametrize("window", [1, 4, 8])
def test_traffic_of_few_lines(window):
    """Whatever the lookahead it is the same, no more than the optimum of two lines fewer, and above 1.05 of that of as many."""
    ratios = []
    for block_map in drawn(range(3), (24, 48)):
        found = visits(block_map, window)
        sequence = [visit.block for visit in found]
        for lines in (8, 10):
            runs = [simulate(found, lines, lookahead) for lookahead in (1, 3, 6)]
            assert len({run.misses for run in runs}) == 1
            assert belady(sequence, lines) <= runs[0].misses <= belady(sequence, lines - 2)
            assert all(decided < visit for run in runs for visit, decided in enumerate(run.rounds) if visit)
            ratios.append(runs[0].misses / belady(sequence, lines))
    assert max(ratios) > 1.05


@pytest.mark.parametrize("hot_threshold", [0, 2])
def test_rules_of_the_control(hot_threshold):
    """Pinned blocks stay, live ones go only where none is free, and counters add up; with wrong remaining counts they do not."""
    rng = np.random.default_rng(9)
    for lines, lookahead in ((3, 1), (5, 3), (6, 2)):
        found = visits(sparse(rng, 2, 24, 0.1, 0.1), 2)
        ours = simulate(found, lines, lookahead, hot_threshold)
        assert ours.hits + ours.misses == len(found) and ours.misses == len(ours.fetches)
        assert ours.misses <= uncached(found) and ours.evictions == len(ours.evicted) > 0
        last = {visit.block: i for i, visit in enumerate(found)}
        for decided, block in ours.evicted:
            assert last[block] > decided
        shifted = [Visit(v.window, v.block, v.jobs, None, 0) for v in found]
        assert simulate(shifted, lines, lookahead, hot_threshold).misses != ours.misses


def test_what_a_run_leaves_serves_its_owner_alone():
    found = visits(np.tril(np.ones((1, 4, 4), bool)), 2)
    first = simulate(found, 8, 2, owner=(1, 0))
    assert first.misses == 4
    assert (
        simulate(found, 8, 2, owner=(1, 0), before=first).misses == 2
    )  # block 0 gave its line to block 3, which gives it back
    assert simulate(found, 8, 2, owner=(2, 0), before=first).misses == 4


def test_errors():
    with pytest.raises(ValueError, match="lines must be at least lookahead \\+ 2, 5, not 4"):
        simulate([], 4, 3)
    with pytest.raises(ValueError, match="block_map must be causal"):
        visits(np.ones((1, 2, 2), bool), 1)
    with pytest.raises(ValueError, match="block_map must be of shape"):
        visits(np.ones((1, 2, 3), bool), 1)
