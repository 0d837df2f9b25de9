"""Quantisation of queries, keys and values for sparse prefill attention, and their memory image."""

import ast
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from intaglio.host.attention import condition, quantise
from intaglio.rtl.config.attention import PrefillConfig
from intaglio.sim.attention import dense as attention
from intaglio.sim.attention import exact, flexprefill


def noise(seed, heads, kv_heads, tokens, head_dim, loud=1.0):
    random_ = torch.Generator().manual_seed(seed)
    return [loud * torch.randn(n, tokens, head_dim, generator=random_) for n in (heads, kv_heads, kv_heads)]


def quantised_noise(seed=0, heads=2, tokens=200, head_dim=32, block=32, loud=1.5, spread=3.0):
    """Rows whose magnitudes differ by up to ``2 ** spread``, conditioned, and quantised."""
    random_ = np.random.default_rng(seed)
    q, k, v = (
        loud * random_.standard_normal(shape)
        for shape in ((heads, tokens, head_dim), (tokens, head_dim), (tokens, head_dim))
    )
    q *= 2 ** -random_.uniform(0, spread, (heads, tokens, 1))
    k *= 2 ** -random_.uniform(0, spread, (tokens, 1))
    return *conditioned(q, k, v, block), quantise.quantise(q, k, v, block=block)


def conditioned(q, k, v, block):
    return condition.condition(q, k, v, condition.calibrate(q[:, :block], k[:block]))


def test_quantise_is_numpy_only():
    names = set()
    for module in (quantise, condition):
        tree = ast.parse(Path(module.__file__).read_text())
        names |= {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
        names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == {"math", "dataclasses", "numpy", condition.__name__}


@pytest.mark.parametrize(("loud", "spread"), [(1.0, 0.0), (2.0, 9.0), (0.01, 3.0), (3.0, 3.0), (1e-6, 3.0)])
def test_quantise_round_trip(loud, spread):
    q, k, v, found = quantised_noise(loud=loud, spread=spread)
    blocks = [slice(i, i + 32) for i in range(0, 200, 32)]
    pooled_q, pooled_k = np.stack([q[:, b].mean(1) for b in blocks], 1), np.stack([k[b].mean(0) for b in blocks])
    for real, rows, exponents, scale in [
        (q, found.q, found.xq, found.query_scale),
        (k, found.k, found.xk, found.key_scale),
        (pooled_q, found.pooled_q, found.pooled_xq, found.query_scale),
        (pooled_k, found.pooled_k, found.pooled_xk, found.key_scale),
    ]:
        assert (
            rows.dtype == np.int8
            and exponents.dtype == np.uint8
            and exponents.max() <= 7
            and np.abs(rows.astype(int)).max() <= 127
        )
        step = scale * 2.0 ** -exponents.astype(float)
        assert (np.abs(real - rows * step[..., None]) <= step[..., None] * 0.5001).all()
        assert (np.abs(rows.astype(int)).max(-1)[exponents < 7] >= 63).all()  # no bit is given away
    assert (np.abs(v - found.v * found.value_scale) <= found.value_scale * 0.5001).all()
    assert math.isclose(found.key_scale, np.abs(k).max() / 127)
    unit = found.query_scale * found.key_scale * math.log2(math.e) / math.sqrt(32) * 256
    assert math.isclose(unit, 2.0**-found.base) and -8 <= found.base <= 15
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
    step_q, step_k = (
        found.query_scale * 2.0 ** -found.xq.astype(float),
        found.key_scale * 2.0 ** -found.xk.astype(float),
    )
    bound = (
        step_q[..., None] / 2 * np.abs(k).sum(-1)
        + step_k / 2 * np.abs(q).sum(-1)[..., None]
        + 32 * step_q[..., None] * step_k / 4
    )
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
    arrays = {
        name: np.random.default_rng(1).standard_normal((1, 40, 16) if name == "q" else (40, 16)) for name in "qkv"
    }
    for name in zero:
        arrays[name][:] = 0
    found = quantise.quantise(**arrays, block=16)
    arrays = dict(zip("qkv", conditioned(**arrays, block=16), strict=True))
    for name in zero:
        assert not getattr(found, name).any()
    for name, scale in (("q", found.query_scale), ("k", found.key_scale), ("v", found.value_scale)):
        assert np.isfinite(scale).all() and np.all(scale > 0)
        rows = (
            getattr(found, name).astype(float)
            * 2.0 ** -getattr(found, f"x{name}", np.zeros(40, np.uint8)).astype(float)[..., None]
        )
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
        (
            lambda: quantise.image(found, block=64, columns=8),
            "block must be that of the pooled rows, 7 for 200 tokens, not 64",
        ),
        (lambda: quantise.image(found, block=32, columns=64), "columns must be a power of 2 in 8..32, not 64"),
        (lambda: quantise.image(found, block=32, columns=8, origin=100), "origin must be a multiple of 4096"),
    ]:
        with pytest.raises(ValueError, match=message):
            run()


@pytest.mark.parametrize(
    ("head_dim", "block", "columns", "tokens"),
    [(16, 32, 8, 150), (32, 32, 32, 64), (16, 16, 8, 300), (64, 128, 16, 50)],
)
def test_image_addresses(head_dim, block, columns, tokens):
    *_, x = quantised_noise(3, 3, tokens, head_dim, block, spread=9.0)
    origin = 3 * 4096
    memory = quantise.image(x, block=block, columns=columns, origin=origin)
    config = PrefillConfig(head_dim=head_dim, group=3, block=block, columns=columns, context=8192)
    d, b, c, nb = head_dim, block, columns, -(-tokens // block)
    pb = -(-nb // b)
    assert (memory.stride, memory.pooled_blocks, memory.kv_base) == (nb, pb, origin)
    sizes = [
        ("kv_base", nb * 4),
        ("q_base", 3 * nb * 2),
        ("last_base", 6),
        ("pooled_q_base", 3 * pb * 2),
        ("pooled_k_base", pb * 4),
    ]
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
        assert same(
            ([byte(line + t % b * d + ch) for ch in range(d)], byte(line + b * d + t % b)), x.pooled_k, x.pooled_xk, t
        )
        for h in range(3):
            assert same(
                q_row(memory.pooled_q_base + (h * pb + t // b) * 2 * b * d, t % b), x.pooled_q, x.pooled_xq, (h, t)
            )
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
