"""Float side of sparse prefill attention: the two index rules, attention over a map, activations, quantisation and memory image."""

import ast
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from intaglio.gen.checkpoint import save_checkpoint
from intaglio.gen.model import ModelConfig
from intaglio.gen.synthetic import random_checkpoint
from intaglio.rtl.prefill.config import PrefillConfig
from intaglio.sim.loading import float_decoder
from intaglio.sim.prefill import attention, exact, flexprefill, quantise
from intaglio.sim.prefill.activations import activations

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
@pytest.mark.parametrize(("changes", "message"), [
    ({"gamma": 0.0}, r"gamma must be in \(0, 1\], not 0.0"), ({"gamma": 1.01}, "gamma must be in"),
    ({"gamma": math.nan}, "gamma must be in"),
    ({"tau": -0.1}, r"tau must be in \[0, 0.8326\], not -0.1"), ({"tau": 0.84}, "tau must be in"), ({"block": 100}, "block must be one of"),
])
def test_rule_arguments(rule, changes, message):
    q, k, _ = noise(0, 2, 1, 100, 32)
    with pytest.raises(ValueError, match=message):
        rule(q, k, **{"block": 32, **changes})


@pytest.mark.parametrize("rule", [flexprefill.official, flexprefill.coverage])
def test_input_shapes(rule):
    q, k, _ = noise(0, 4, 2, 100, 32)
    for bad_q, bad_k, message in [
            (q[0], k, "q must be of shape"), (q, k[:, :50], "k must have the tokens"),
            (q[:3], k, "query heads must be a multiple of the 2"),
            (q[..., :24], k[..., :24], "head_dim must be one of"), (q.long(), k, "q must be of a floating type"),
            (q, k.index_fill(1, torch.tensor([3]), math.nan), "k must be finite"),
            (q.index_fill(1, torch.tensor([3]), math.inf), k, "q must")]:
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
        weights = np.exp((k[:i + 1] @ q[i]).astype(np.float64) / math.sqrt(head_dim))
        p = weights / weights.sum() / block
        ver[:i + 1] += p
        for j in range(i + 1):
            sla[tokens - 1 - (i - j)] += p[j]
    counts = []
    for x in (ver, sla):
        count, running = 1, 0.0
        for mass in sorted(x.tolist(), reverse=True):
            running += mass
            count += running <= gamma
        counts.append(min(max(count // 128 + 1, low), high))
    ver_b, sla_b = ([x[b * block:(b + 1) * block].sum() for b in range(nb)] for x in (ver, sla))
    means = np.stack([k[b * block:(b + 1) * block].mean(0) for b in range(nb)])
    est = np.exp(means @ q[-block:].mean(0) / math.sqrt(head_dim))
    est /= est.sum()
    distance = sum(x * math.log(2 * x / (x + y)) + y * math.log(2 * y / (x + y)) for x, y in zip(est, ver_b, strict=True)) / 2
    aware = math.sqrt(distance) < tau
    if aware:
        counts = [low, low]
    ver_b[0] = sla_b[-1] = math.inf
    ids = set()
    for c in sorted(range(nb), key=lambda b: -ver_b[b])[:counts[0]]:
        ids |= {r * nb + c for r in range(c, nb)}
    for t in ((nb - 1) - g for g in sorted(range(nb), key=lambda b: -sla_b[b])[:counts[1]]):
        ids |= {r * nb + r - t for r in range(t, nb)}
    if aware:
        rows = np.stack([q[b * block:(b + 1) * block].mean(0) for b in range(nb)])
        entries = []
        for r in range(nb):
            weights = np.exp(means[:r + 1] @ rows[r] / math.sqrt(head_dim))
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


@pytest.mark.parametrize(("tokens", "block", "head_dim", "loud", "tau", "low", "high"), [
    (400, 64, 32, 1.5, 0.1, 1, 1 << 31), (1030, 128, 64, 1.5, 0.0, 1, 1 << 31), (257, 32, 128, 0.8, TAU_MAX, 100, 1 << 31),
    (321, 32, 32, 0.7, 0.5, 1, 64), (300, 128, 32, 1.0, TAU_MAX, 1, 1 << 31),
])
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


@pytest.mark.parametrize(("tokens", "block", "low", "dense"), [
    (1, 32, 1, True), (20, 32, 1, True), (64, 32, 1, True), (65, 32, 1, False), (96, 32, 65, True), (97, 32, 65, False)])
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
    few = flexprefill.official(q, k, block=32, gamma=0.9, tau=0).keep[0]  # 120 tokens: 120 // 128 + 1 = 1 block, the sink
    assert columns_of(few) == [0]
    more = flexprefill.official(q, k, block=32, gamma=0.97, tau=0).keep[0]  # 129 tokens: 2 blocks, of which one is the sink
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
    assert found.keep[0, :14].sum() == sum(range(1, 15))  # one threshold for all rows: rows 0..13 are whole, 14 of 14.24
    assert found.keep[0, 14].nonzero().flatten().tolist() == [0, 1, 2, 14]  # 0.24 of row 14 is 3.6 entries: 3, and the diagonal
    assert found.keep[0, 15].nonzero().flatten().tolist() == [0, 15]
    wider = flexprefill.official(q, k, block=32, gamma=0.89, tau=0.2, min_budget=96).keep[0]
    assert columns_of(wider) == [0, 1, 2] and len([t for t in range(nb) if wider.diagonal(-t).all()]) > 3  # the union with verticals
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
    wide = flexprefill.official(q, k, block=64, tau=0, min_budget=128)  # sink, heaviest column; diagonals 0 and 2, not 3
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
            alone = rule(q[head:head + 1], k[shared[head]][None], block=64)
            assert alone.keep[0].equal(found.keep[head]) and alone.pattern[0] == found.pattern[head]


def test_cover():
    x = torch.tensor([[1.0, 4, 4, 4, 0], [0, 0, 0, 0, 5]]).double()
    assert flexprefill.cover(x, 0.5).tolist() == [[False, True, True, False, False], [False] * 4 + [True]]
    assert flexprefill.cover(x, 8 / 13)[0].tolist() == [False, True, True, False, False]  # reached exactly
    assert flexprefill.cover(x, 0.7)[0].tolist() == [False, True, True, True, False]
    assert flexprefill.cover(x, 1.0)[0].tolist() == [True, True, True, True, False]


@pytest.mark.parametrize(("tokens", "block", "head_dim"), [(5, 32, 32), (32, 32, 64), (100, 64, 32), (700, 128, 128), (1024, 64, 64)])
@pytest.mark.parametrize("tau", [0.0, 0.3, TAU_MAX])
def test_coverage_keeps_gamma(tokens, block, head_dim, tau):
    for loud in (0.5, 1.5, 4.0):
        q, k, _ = noise(tokens, 2, 1, tokens, head_dim, loud)
        for gamma in (0.3, 0.9, 1.0):
            found = flexprefill.coverage(q, k, block=block, gamma=gamma, tau=tau)
            assert (attention.kept_mass(q, k, found.keep, block=block) >= gamma - 1e-9).all()
            assert (found.keep[:, 0, 0].all() and not found.keep.triu(1).any())
    assert tau or set(found.pattern) == {"vertical-slash"}
    assert tau < TAU_MAX or set(found.pattern) == {"query-aware"}


@pytest.mark.parametrize("verticals", [20, 40, 80])
def test_isolated_verticals(verticals):
    random_ = torch.Generator().manual_seed(verticals)
    mass = torch.full((4096,), 0.05 / 4096)
    mass[torch.randperm(3968, generator=random_)[:verticals]] = 0.95 / verticals * (0.5 + torch.rand(verticals, generator=random_))
    q, k = verticals_of(mass)
    kept = [attention.kept_mass(q, k, rule(q, k, gamma=0.9).keep).item() for rule in (flexprefill.official, flexprefill.coverage)]
    assert kept[0] < 0.85 and kept[1] >= 0.9


@pytest.mark.parametrize(("tokens", "block"), [(20, 32), (300, 64), (513, 128)])
def test_full_map_is_dense(tokens, block):
    q, k, v = noise(tokens, 4, 2, tokens, 32)
    count = -(-tokens // block)
    expected = F.scaled_dot_product_attention(q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0), is_causal=True)
    full = torch.ones(4, count, count, dtype=torch.bool).tril()
    assert torch.allclose(attention.dense(q, k, v), expected, atol=2e-6)
    assert torch.allclose(attention.sparse(q, k, v, full, block=block), expected, atol=2e-6)
    assert torch.allclose(attention.kept_mass(q, k, full, block=block), torch.ones(4).double())
    assert torch.allclose(attention.density(full, tokens, block), torch.ones(4).double())
    assert not torch.allclose(attention.dense(q, k, v, gqa_interleave=True), expected, atol=0.1)


def test_sparse_against_a_token_mask():
    q, k, v = noise(8, 2, 2, 200, 32)
    # marks above the diagonal have no effect
    keep = (torch.rand(2, 7, 7, generator=torch.Generator().manual_seed(2)) < 0.4) | torch.eye(7).bool()
    token = torch.arange(200)
    mask = keep[:, token // 32][:, :, token // 32] & (token <= token[:, None])
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    found = attention.sparse(q, k, v, keep, block=32)
    assert torch.allclose(found, expected, atol=2e-6)
    p = torch.softmax((q @ k.mT / math.sqrt(32)).masked_fill(token > token[:, None], -math.inf).double(), -1)[:, -32:]
    assert torch.allclose(attention.kept_mass(q, k, keep, block=32), (p * mask[:, -32:]).sum((1, 2)) / 32, atol=1e-6)
    assert torch.allclose(attention.density(keep, 200, 32), mask.sum((1, 2)).double() / (200 * 201 / 2))
    changed = keep.clone()
    changed[1, 5, 2] ^= True  # a block more or less
    other = attention.sparse(q, k, v, changed, block=32)
    assert not torch.allclose(other[1, 160:192], expected[1, 160:192], atol=1e-3) and other[0].equal(found[0])


def test_attention_arguments():
    q, k, v = noise(8, 2, 2, 100, 32)
    full = torch.ones(2, 4, 4, dtype=torch.bool)
    for run, message in [
            (lambda: attention.sparse(q, k, v, full[:, :3], block=32), r"the block map must be bool \[2, 4, 4\], not"),
            (lambda: attention.sparse(q, k, v, full.long(), block=32), "the block map must be bool"),
            (lambda: attention.sparse(q, k, v, full & ~torch.eye(4).bool(), block=32), "the block map must keep every block of the"),
            (lambda: attention.dense(q, k, v[:, 1:]), "v must be of the shape"), (lambda: attention.dense(q, k, v / 0), "v must be finite"),
            (lambda: attention.density(full, 200, 32), r"the block map must be bool \[heads, 7, 7\]")]:
        with pytest.raises(ValueError, match=message):
            run()


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    config = ModelConfig(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=16, linear_class="bitlinear", rope_theta=10000.0, max_position_embeddings=64,
                         bos_token_id=0, eos_token_id=1)
    folder = tmp_path_factory.mktemp("model")
    checkpoint = random_checkpoint(config)
    save_checkpoint(folder, checkpoint)
    return folder, float_decoder(checkpoint)


@pytest.mark.parametrize("layer", [0, 2])
def test_activations_are_the_models(small_model, tmp_path, layer):
    folder, model = small_model
    text = bytes(range(256)) * 2
    q, k, v = activations(folder, text, 150, layer)  # beyond the 64 positions of the model
    assert [x.shape for x in (q, k, v)] == [(4, 150, 16), (2, 150, 16), (2, 150, 16)] and q.dtype == torch.float32
    block, seen = model.layers[layer].self_attn, []
    handle = block.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    model(torch.tensor(list(text[:150]))[None])
    handle.remove()
    out = attention.dense(q, k, v).transpose(0, 1).reshape(150, -1)
    assert (block.o_proj(block.attn_sub_norm(out)) - seen[0]).abs().amax(-1).median() < 1e-4 * seen[0].abs().max()
    wrong = attention.dense(q, k.flip(0), v).transpose(0, 1).reshape(150, -1)
    assert (block.o_proj(block.attn_sub_norm(wrong)) - seen[0]).abs().amax(-1).median() > 1e-2 * seen[0].abs().max()
    (tmp_path / "text").write_bytes(text)
    assert activations(folder, tmp_path / "text", 150, layer)[1].equal(k)


def test_activations_arguments(small_model):
    for tokens, layer, message in [(5, 3, r"layer must be an integer in 0..2, not 3"), (11, 0, r"tokens must be an integer in 1..10"),
                                   (0, 0, "tokens must be")]:
        with pytest.raises(ValueError, match=message):
            activations(small_model[0], b"0123456789", tokens, layer)


def quantised_noise(seed=0, heads=2, tokens=200, head_dim=32, block=32, loud=1.5, spread=3.0):
    """Rows whose magnitudes differ by up to ``2 ** spread``."""
    random_ = np.random.default_rng(seed)
    q, k, v = (loud * random_.standard_normal(shape) for shape in ((heads, tokens, head_dim), (tokens, head_dim), (tokens, head_dim)))
    q *= 2 ** -random_.uniform(0, spread, (heads, tokens, 1))
    k *= 2 ** -random_.uniform(0, spread, (tokens, 1))
    return q, k, v, quantise.quantise(q, k, v, block=block)


def test_quantise_is_numpy_only():
    tree = ast.parse(Path(quantise.__file__).read_text())
    names = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert set(names) == {"math", "dataclasses", "numpy"}


@pytest.mark.parametrize(("loud", "spread"), [(1.0, 0.0), (2.0, 9.0), (0.01, 3.0), (3.0, 3.0), (1e-6, 3.0)])
def test_quantise_round_trip(loud, spread):
    q, k, v, found = quantised_noise(loud=loud, spread=spread)
    blocks = [slice(i, i + 32) for i in range(0, 200, 32)]
    pooled_q, pooled_k = np.stack([q[:, b].mean(1) for b in blocks], 1), np.stack([k[b].mean(0) for b in blocks])
    for real, rows, exponents, scale in [(q, found.q, found.xq, found.query_scale), (k, found.k, found.xk, found.key_scale),
                                         (pooled_q, found.pooled_q, found.pooled_xq, found.query_scale),
                                         (pooled_k, found.pooled_k, found.pooled_xk, found.key_scale)]:
        assert rows.dtype == np.int8 and exponents.dtype == np.uint8 and exponents.max() <= 7 and np.abs(rows.astype(int)).max() <= 127
        step = scale * 2.0 ** -exponents.astype(float)
        assert (np.abs(real - rows * step[..., None]) <= step[..., None] * 0.5001).all()
        assert (np.abs(rows.astype(int)).max(-1)[exponents < 7] >= 63).all()  # no bit is given away
    assert (np.abs(v - found.v * found.value_scale) <= found.value_scale * 0.5001).all()
    assert math.isclose(found.key_scale, np.abs(k).max() / 127)
    unit = found.query_scale * found.key_scale * math.log2(math.e) / math.sqrt(32) * 256
    assert math.isclose(unit, 2.0**-found.base) and 0 <= found.base <= 15
    assert found.query_scale * 127 >= np.abs(q).max()
    assert found.base == 15 or found.query_scale / 2 * 127 < np.abs(q).max()  # the largest base


def head_group(found):
    names = {field.name for field in dataclasses.fields(exact.HeadGroup)}
    fields = {name: getattr(found, name) for name in names}
    return exact.HeadGroup(**{name: x if name == "base" else torch.from_numpy(x) for name, x in fields.items()})


def test_quantised_scores():
    q, k, _, found = quantised_noise(loud=1.5, spread=3.0)
    group = head_group(found)
    t = exact.scores(group.q, group.xq, group.k, group.xk, found.base).numpy() / 256
    real = q @ k.T * math.log2(math.e) / math.sqrt(32)
    # the roundings of rows, by absolute values, and that of t
    step_q, step_k = found.query_scale * 2.0**-found.xq.astype(float), found.key_scale * 2.0**-found.xk.astype(float)
    bound = (step_q[..., None] / 2 * np.abs(k).sum(-1) + step_k / 2 * np.abs(q).sum(-1)[..., None] + 32 * step_q[..., None] * step_k / 4)
    assert (np.abs(t - real) <= bound * math.log2(math.e) / math.sqrt(32) + 0.51 / 256).all()
    wrong = exact.scores(group.q, group.xq, group.k, group.xk ^ 1, found.base).numpy() / 256
    assert not (np.abs(wrong - real) <= bound * math.log2(math.e) / math.sqrt(32) + 0.51 / 256).all()


@pytest.mark.parametrize("tau", [0.0, 0.25])
def test_integer_index_keeps_gamma_and_is_the_float_one(tau):
    q, k, v = noise(11, 3, 1, 500, 32, 1.6)
    group = head_group(quantise.quantise(q.numpy(), k[0].numpy(), v[0].numpy(), block=64))
    threshold = math.floor(2 * tau**2 / math.log(2) * 2**28)
    keep = exact.block_map(exact.index(group, block=64, gamma16=round(0.9 * 65536), threshold=threshold))
    float_ = flexprefill.coverage(q, k, block=64, tau=tau)
    assert (attention.kept_mass(q, k, keep, block=64) >= 0.895).all()
    assert (keep ^ float_.keep).float().mean() < 0.03


@pytest.mark.parametrize("zero", ["q", "k", "v", "qkv"])
def test_zero_inputs(zero):
    arrays = {name: np.random.default_rng(1).standard_normal((1, 40, 16) if name == "q" else (40, 16)) for name in "qkv"}
    for name in zero:
        arrays[name][:] = 0
    found = quantise.quantise(**arrays, block=16)
    for name in zero:
        assert not getattr(found, name).any()
    for name, scale in (("q", found.query_scale), ("k", found.key_scale), ("v", found.value_scale)):
        assert np.isfinite(scale).all() and np.all(scale > 0)
        rows = getattr(found, name).astype(float) * 2.0 ** -getattr(found, f"x{name}", np.zeros(40, np.uint8)).astype(float)[..., None]
        assert np.abs(rows * scale - arrays[name]).max() <= np.abs(arrays[name]).max() / 127


def test_quantise_arguments():
    q, k, v, found = quantised_noise()
    bad = k.copy()
    bad[3, 3] = math.nan
    for run, message in [
            (lambda: quantise.quantise(q, bad, v), "k must be finite, not NaN"),
            (lambda: quantise.quantise(q * math.inf, k, v), "q must be finite"),
            (lambda: quantise.quantise(q[0], k, v), "q must be of shape"),
            (lambda: quantise.quantise(q, k[:-1], v), r"k must be of shape \[200, 32\]"),
            (lambda: quantise.quantise(q, k, v.astype(int)), "v must be of a floating type"),
            (lambda: quantise.quantise(q, k, v, block=16), "block must be a power of 2 in 32..128, not 16"),
            (lambda: quantise.quantise(q[..., :8], k[:, :8], v[:, :8]), "head_dim must be a power of 2"),
            (lambda: quantise.quantise(100 * q, 100 * k, v), "scores are too large"),
            (lambda: quantise.image(found, block=64, columns=8), "block must be that of the pooled rows, 7 for 200 tokens, not 64"),
            (lambda: quantise.image(found, block=32, columns=64), "columns must be a power of 2 in 8..32, not 64"),
            (lambda: quantise.image(found, block=32, columns=8, origin=100), "origin must be a multiple of 4096")]:
        with pytest.raises(ValueError, match=message):
            run()


@pytest.mark.parametrize(("head_dim", "block", "columns", "tokens"), [
    (16, 32, 8, 150), (32, 32, 32, 64), (16, 16, 8, 300), (64, 128, 16, 50)])
def test_image_addresses(head_dim, block, columns, tokens):
    *_, x = quantised_noise(3, 3, tokens, head_dim, block, spread=9.0)
    origin = 3 * 4096
    memory = quantise.image(x, block=block, columns=columns, origin=origin)
    config = PrefillConfig(head_dim=head_dim, group=3, block=block, columns=columns, context=8192)
    d, b, c, nb = head_dim, block, columns, -(-tokens // block)
    pb = -(-nb // b)
    assert (memory.stride, memory.pooled_blocks, memory.kv_base) == (nb, pb, origin)
    sizes = [("kv_base", nb * 4), ("q_base", 3 * nb * 2), ("last_base", 6), ("pooled_q_base", 3 * pb * 2), ("pooled_k_base", pb * 4)]
    end = origin
    for name, units in sizes:
        assert getattr(memory, name) % 4096 == 0 and end <= getattr(memory, name) < end + 4096
        end = getattr(memory, name) + units * b * d
    assert len(memory.data) == -(-(end - origin) // 4096) * 4096

    seen = np.zeros(len(memory.data), bool)

    def byte(address):
        seen[address - origin] = True
        return int(memory.data[address - origin])

    def q_row(base, row):  # row of the Q block at base: channels and exponent
        group, i = divmod(row, c)
        channels = [byte(base + group * c * d + ch // (d // c) * d + ch % (d // c) * c + i) for ch in range(d)]
        return channels, byte(base + b * d + row)

    def same(pair, rows, exponents, index):
        return pair == (rows[index].view(np.uint8).tolist(), int(exponents[index]))

    for t in range(tokens):
        line, row = memory.kv_base + t // b * 4 * b * d, t % b
        assert same(([byte(line + row * d + ch) for ch in range(d)], byte(line + b * d + row)), x.k, x.xk, t)
        values = line + (b + config.exponent_beats) * d
        assert [byte(values + (row // d * d + ch) * d + row % d) for ch in range(d)] == x.v[t].view(np.uint8).tolist()
        for h in range(3):
            assert same(q_row(memory.q_base + (h * nb + t // b) * 2 * b * d, t % b), x.q, x.xq, (h, t))
            if t >= tokens - b:
                assert same(q_row(memory.last_base + h * 2 * b * d, t - tokens + b), x.q, x.xq, (h, t))
    for t in range(nb):
        line = memory.pooled_k_base + t // b * 4 * b * d
        assert same(([byte(line + t % b * d + ch) for ch in range(d)], byte(line + b * d + t % b)), x.pooled_k, x.pooled_xk, t)
        for h in range(3):
            assert same(q_row(memory.pooled_q_base + (h * pb + t // b) * 2 * b * d, t % b), x.pooled_q, x.pooled_xq, (h, t))
    assert not memory.data[~seen].any()  # rows past the end and gaps


def test_image_read_back():
    *_, x = quantised_noise(4, 2, 150, 16, 32, spread=9.0)
    shape = {"group": 2, "tokens": 150, "head_dim": 16, "block": 32, "columns": 8}
    memory = quantise.image(x, block=32, columns=8, origin=8192)
    found = quantise.read_image(memory, **shape)
    for name in ("q", "xq", "k", "xk", "v", "pooled_q", "pooled_xq", "pooled_k", "pooled_xk"):
        assert np.array_equal(found[name], getattr(x, name)), name
    assert np.array_equal(found["last_q"], x.q[:, -32:]) and np.array_equal(found["last_xq"], x.xq[:, -32:])
    assert not np.array_equal(quantise.read_image(memory, **{**shape, "columns": 16})["q"], x.q)
    memory.data[memory.kv_base - memory.origin + 700] ^= 1  # a byte of V
    changed = quantise.read_image(memory, **shape)
    assert (changed["v"] != x.v).sum() == 1 and np.array_equal(changed["k"], x.k)
