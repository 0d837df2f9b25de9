"""The two rules of the sparse prefill index in float: shapes, peculiarities of the published one, guarantee of ours."""

import math

import numpy as np
import pytest
import torch

from intaglio.sim.attention import dense as attention
from intaglio.sim.attention import flexprefill

TAU_MAX = flexprefill.TAU_MAX


def noise(seed, heads, kv_heads, tokens, head_dim, loud=1.0):
    random_ = torch.Generator().manual_seed(seed)
    return [loud * torch.randn(n, tokens, head_dim, generator=random_) for n in (heads, kv_heads, kv_heads)]


def verticals_of(mass, head_dim=32):
    """q, k [1, N, D] whose every query gives key j a probability proportional to ``mass[j]``."""
    q, k = torch.zeros(2, 1, len(mass), head_dim)
    q[..., 0], k[0, :, 0] = 1, mass.log() * math.sqrt(head_dim)
    return q, k


def band_of(distance, tokens, head_dim=128):
    """q, k [1, N, D] whose queries attend to the key at one distance."""
    k = torch.randn(1, tokens, head_dim, generator=torch.Generator().manual_seed(1))
    return 4 * k.roll(distance, 1), k


def columns_of(keep, margin=3):
    return [c for c in range(len(keep) - margin) if keep[c:, c].all()]


def diagonals_of(keep, margin=3):
    return [t for t in range(len(keep) - margin) if keep.diagonal(-t).all()]


@pytest.mark.parametrize("rule", [flexprefill.official, flexprefill.coverage])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 0.0}, r"gamma must be in \(0, 1\], not 0.0"),
        ({"gamma": 1.01}, "gamma must be in"),
        ({"gamma": math.nan}, "gamma must be in"),
        ({"tau": -0.1}, r"tau must be in \[0, 0.8326\], not -0.1"),
        ({"tau": 0.84}, "tau must be in"),
        ({"block": 100}, "block must be one of"),
    ],
)
def test_rule_arguments(rule, changes, message):
    q, k, _ = noise(0, 2, 1, 100, 32)
    with pytest.raises(ValueError, match=message):
        rule(q, k, **{"block": 32, **changes})


@pytest.mark.parametrize("rule", [flexprefill.official, flexprefill.coverage])
def test_input_shapes(rule):
    q, k, _ = noise(0, 4, 2, 100, 32)
    for bad_q, bad_k, message in [
        (q[0], k, "q must be of shape"),
        (q, k[:, :50], "k must have the tokens"),
        (q[:3], k, "query heads must be a multiple of the 2"),
        (q[..., :24], k[..., :24], "head_dim must be one of"),
        (q.long(), k, "q must be of a floating type"),
        (q, k.index_fill(1, torch.tensor([3]), math.nan), "k must be finite"),
        (q.index_fill(1, torch.tensor([3]), math.inf), k, "q must"),
    ]:
        with pytest.raises(ValueError, match=message):
            rule(bad_q, bad_k, block=32)
    with pytest.raises(ValueError, match="min_budget and max_budget must be positive, not 0"):
        flexprefill.official(q, k, min_budget=0)


def plain_official(q, k, block, gamma, tau, low, high):
    """The published steps on one head with loops over tokens and flat block numbers. Returns the map and whether query-aware."""
    tokens, head_dim = q.shape
    nb = -(-tokens // block)
    low, high = -(-low // block), min(-(-high // block), nb)
    ver, sla = np.zeros(tokens), np.zeros(tokens)  # sla[index N - 1 - distance]
    for i in range(tokens - block, tokens):
        weights = np.exp((k[: i + 1] @ q[i]).astype(np.float64) / math.sqrt(head_dim))
        p = weights / weights.sum() / block
        ver[: i + 1] += p
        for j in range(i + 1):
            sla[tokens - 1 - (i - j)] += p[j]
    counts = []
    for x in (ver, sla):
        count, running = 1, 0.0
        for mass in sorted(x.tolist(), reverse=True):
            running += mass
            count += running <= gamma
        counts.append(min(max(count // 128 + 1, low), high))
    ver_b, sla_b = ([x[b * block : (b + 1) * block].sum() for b in range(nb)] for x in (ver, sla))
    means = np.stack([k[b * block : (b + 1) * block].mean(0) for b in range(nb)])
    est = np.exp(means @ q[-block:].mean(0) / math.sqrt(head_dim))
    est /= est.sum()
    distance = (
        sum(x * math.log(2 * x / (x + y)) + y * math.log(2 * y / (x + y)) for x, y in zip(est, ver_b, strict=True)) / 2
    )
    aware = math.sqrt(distance) < tau
    if aware:
        counts = [low, low]
    ver_b[0] = sla_b[-1] = math.inf
    ids = set()
    for c in sorted(range(nb), key=lambda b: -ver_b[b])[: counts[0]]:
        ids |= {r * nb + c for r in range(c, nb)}
    for t in ((nb - 1) - g for g in sorted(range(nb), key=lambda b: -sla_b[b])[: counts[1]]):
        ids |= {r * nb + r - t for r in range(t, nb)}
    if aware:
        rows = np.stack([q[b * block : (b + 1) * block].mean(0) for b in range(nb)])
        entries = []
        for r in range(nb):
            weights = np.exp(means[: r + 1] @ rows[r] / math.sqrt(head_dim))
            entries += [(-w / weights.sum(), r * nb + c) for c, w in enumerate(weights)]
        running = 0.0
        for mass, number in sorted(entries):
            running -= mass
            if running > gamma * nb:
                break
            ids.add(number)
    keep = np.zeros(nb * nb, bool)
    keep[list(ids)] = True
    return keep.reshape(nb, nb), aware


@pytest.mark.parametrize(
    ("tokens", "block", "head_dim", "loud", "tau", "low", "high"),
    [
        (400, 64, 32, 1.5, 0.1, 1, 1 << 31),
        (1030, 128, 64, 1.5, 0.0, 1, 1 << 31),
        (257, 32, 128, 0.8, TAU_MAX, 100, 1 << 31),
        (321, 32, 32, 0.7, 0.5, 1, 64),
        (300, 128, 32, 1.0, TAU_MAX, 1, 1 << 31),
    ],
)
def test_official_equals_plain_loops(tokens, block, head_dim, loud, tau, low, high):
    q, k, _ = noise(tokens, 4, 2, tokens, head_dim, loud)
    found = flexprefill.official(q, k, block=block, gamma=0.9, tau=tau, min_budget=low, max_budget=high)
    assert found.keep.shape == (4, -(-tokens // block), -(-tokens // block))
    for head in range(4):
        keep, aware = plain_official(q[head].numpy(), k[head // 2].numpy(), block, 0.9, tau, low, high)
        assert found.pattern[head] == ("query-aware" if aware else "vertical-slash")
        assert np.array_equal(found.keep[head], keep)
    for column in (found.vertical, found.slash, found.estimate):
        assert torch.allclose(column.sum(-1), torch.ones(4), atol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "block", "low", "dense"),
    [
        (1, 32, 1, True),
        (20, 32, 1, True),
        (64, 32, 1, True),
        (65, 32, 1, False),
        (96, 32, 65, True),
        (97, 32, 65, False),
    ],
)
def test_official_short_prompts_are_dense(tokens, block, low, dense):
    q, k, _ = noise(0, 2, 1, tokens, 32)
    found = flexprefill.official(q, k, block=block, min_budget=low)
    assert (found.pattern == ("dense", "dense")) is dense
    if dense:
        assert torch.equal(found.keep[0], torch.ones_like(found.keep[0]).tril()) and found.vertical is None


def test_official_budget_is_in_literal_128s_and_counts_the_sink():
    mass = torch.full((512,), 0.02 / 382)
    mass[torch.arange(100, 230)] = 0.98 / 130  # 130 equal tokens in blocks 3..7 of 32
    q, k = verticals_of(mass)
    few = flexprefill.official(q, k, block=32, gamma=0.9, tau=0).keep[
        0
    ]  # 120 tokens: 120 // 128 + 1 = 1 block, the sink
    assert columns_of(few) == [0]
    more = flexprefill.official(q, k, block=32, gamma=0.97, tau=0).keep[
        0
    ]  # 129 tokens: 2 blocks, of which one is the sink
    assert len(columns_of(more)) == 2 and columns_of(more)[0] == 0
    assert attention.kept_mass(q, k, more[None], block=32) < 0.9
    assert attention.kept_mass(q, k, flexprefill.coverage(q, k, block=32, gamma=0.9, tau=0).keep, block=32) >= 0.9


def test_official_minimum_then_maximum():
    q, k, _ = noise(3, 1, 1, 1000, 32)
    for low, high, blocks in [(96, 1 << 31, None), (1, 64, 2), (96, 32, 1)]:
        found = flexprefill.official(q, k, block=32, tau=0, min_budget=low, max_budget=high).keep[0]
        assert len(columns_of(found)) == blocks if blocks else len(columns_of(found)) >= 3
        assert diagonals_of(found)[0] == 0
    loose = flexprefill.official(q, k, block=32, tau=TAU_MAX, min_budget=96, max_budget=32)
    assert loose.pattern == ("query-aware",)  # takes the minimum although the maximum is smaller
    assert len(columns_of(loose.keep[0])) >= 3


def test_official_query_aware_union_without_the_crossing_entry():
    tokens, nb = 512, 16
    q, k = torch.zeros(2, 1, tokens, 32)  # pooled row r: 1 / (r + 1) each
    found = flexprefill.official(q, k, block=32, gamma=0.89, tau=0.2)
    assert found.pattern == ("query-aware",)
    assert found.keep[0, :14].sum() == sum(
        range(1, 15)
    )  # one threshold for all rows: rows 0..13 are whole, 14 of 14.24
    assert found.keep[0, 14].nonzero().flatten().tolist() == [
        0,
        1,
        2,
        14,
    ]  # 0.24 of row 14 is 3.6 entries: 3, and the diagonal
    assert found.keep[0, 15].nonzero().flatten().tolist() == [0, 15]
    wider = flexprefill.official(q, k, block=32, gamma=0.89, tau=0.2, min_budget=96).keep[0]
    assert (
        columns_of(wider) == [0, 1, 2] and len([t for t in range(nb) if wider.diagonal(-t).all()]) > 3
    )  # the union with verticals
    assert (wider | found.keep[0]).equal(wider)
    assert flexprefill.official(q, k, block=32, gamma=0.89, tau=0).pattern == ("vertical-slash",)


def test_official_zero_gives_no_number_and_vertical_slash():
    mass = torch.full((512,), 1e-30)
    mass[32:64] = 1
    q, k = verticals_of(mass.double())
    k[0, :, 0] *= 4  # 1e-120 is 0 in float32
    found = flexprefill.official(q, k, block=32, tau=TAU_MAX)
    assert found.divergence.isnan().all() and found.pattern == ("vertical-slash",)
    ours = flexprefill.coverage(q, k, block=32, tau=0.1)
    assert ours.divergence < 0.01 and ours.pattern == ("query-aware",)


def test_slash_groups_start_at_the_largest_distance():
    q, k = torch.zeros(2, 1, 520, 32)
    found, ours = flexprefill.official(q, k, block=32), flexprefill.coverage(q, k, block=32)
    assert 0.24 < found.slash[0, 0] / found.slash[0, 1] < 0.26  # 8 distances next to the diagonal, then 32
    assert 0.99 < ours.slash[0, 0] / ours.slash[0, 1] < 1.01
    assert ours.slash[0, -1] < found.slash[0, -1]


def test_band_touches_two_diagonals():
    q, k = band_of(138, 1024)
    found, ours = flexprefill.official(q, k, block=64, tau=0), flexprefill.coverage(q, k, block=64, tau=0)
    assert found.slash[0].argmax() == 2 and ours.slash[0].argmax() == 2
    wide = flexprefill.official(
        q, k, block=64, tau=0, min_budget=128
    )  # sink, heaviest column; diagonals 0 and 2, not 3
    assert diagonals_of(wide.keep[0]) == [0, 2]
    assert set(diagonals_of(ours.keep[0])) >= {0, 2, 3}
    assert attention.kept_mass(q, k, ours.keep, block=64) > 0.99
    missing = torch.ones(16, 16).tril().bool() & ~torch.eye(16).bool().roll(3, 0)
    assert 0.8 < attention.kept_mass(q, k, missing[None], block=64) < 0.88  # 54 of 64 rows


def test_representative_queries_are_the_last_tokens():
    q, k, _ = noise(5, 1, 1, 300, 32)
    for rule in (flexprefill.official, flexprefill.coverage):
        found = rule(q, k, block=64, tau=0)
        for token, same in [(235, True), (236, False)]:
            other = q.clone()
            other[0, token] *= 3
            assert rule(other, k, block=64, tau=0).vertical.equal(found.vertical) is same


@pytest.mark.parametrize("rule", [flexprefill.official, flexprefill.coverage])
def test_grouped_heads(rule):
    q, k, _ = noise(6, 4, 2, 300, 32)
    for interleave, shared in [(False, [0, 0, 1, 1]), (True, [0, 1, 0, 1])]:
        found = rule(q, k, block=64, gqa_interleave=interleave)
        for head in range(4):
            alone = rule(q[head : head + 1], k[shared[head]][None], block=64)
            assert alone.keep[0].equal(found.keep[head]) and alone.pattern[0] == found.pattern[head]


def test_cover():
    x = torch.tensor([[1.0, 4, 4, 4, 0], [0, 0, 0, 0, 5]]).double()
    assert flexprefill.cover(x, 0.5).tolist() == [[False, True, True, False, False], [False] * 4 + [True]]
    assert flexprefill.cover(x, 8 / 13)[0].tolist() == [False, True, True, False, False]  # reached exactly
    assert flexprefill.cover(x, 0.7)[0].tolist() == [False, True, True, True, False]
    assert flexprefill.cover(x, 1.0)[0].tolist() == [True, True, True, True, False]


@pytest.mark.parametrize(
    ("tokens", "block", "head_dim"), [(5, 32, 32), (32, 32, 64), (100, 64, 32), (700, 128, 128), (1024, 64, 64)]
)
@pytest.mark.parametrize("tau", [0.0, 0.3, TAU_MAX])
def test_coverage_keeps_gamma(tokens, block, head_dim, tau):
    for loud in (0.5, 1.5, 4.0):
        q, k, _ = noise(tokens, 2, 1, tokens, head_dim, loud)
        for gamma in (0.3, 0.9, 1.0):
            found = flexprefill.coverage(q, k, block=block, gamma=gamma, tau=tau)
            assert (attention.kept_mass(q, k, found.keep, block=block) >= gamma - 1e-9).all()
            assert found.keep[:, 0, 0].all() and not found.keep.triu(1).any()
    assert tau or set(found.pattern) == {"vertical-slash"}
    assert tau < TAU_MAX or set(found.pattern) == {"query-aware"}


@pytest.mark.parametrize("tokens", [700, 704])
def test_query_aware_heads_keep_the_verticals_of_the_last_two_rows(tokens):
    q, k, _ = noise(12, 2, 1, tokens, 32, 4.0)
    found = flexprefill.coverage(q, k, block=64, tau=TAU_MAX)
    assert found.pattern == ("query-aware",) * 2
    wanted = flexprefill.cover(found.vertical, 0.9)[:, None] & torch.ones(11, 11).tril().bool()
    covered = (found.keep | ~wanted).all(-1)
    assert covered[:, -2:].all() and not covered[:, 4:-2].all()


@pytest.mark.parametrize("verticals", [20, 40, 80])
def test_isolated_verticals(verticals):
    random_ = torch.Generator().manual_seed(verticals)
    mass = torch.full((4096,), 0.05 / 4096)
    mass[torch.randperm(3968, generator=random_)[:verticals]] = (
        0.95 / verticals * (0.5 + torch.rand(verticals, generator=random_))
    )
    q, k = verticals_of(mass)
    kept = [
        attention.kept_mass(q, k, rule(q, k, gamma=0.9).keep).item()
        for rule in (flexprefill.official, flexprefill.coverage)
    ]
    assert kept[0] < 0.85 and kept[1] >= 0.9
