"""Quantisation of queries, keys and values for sparse prefill attention, and their memory image."""

import ast
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from intaglio.host.attention import condition, quantise
from intaglio.rtl.arithmetic import attention as numerics
from intaglio.rtl.config.attention import PrefillConfig
from intaglio.sim.attention import dense as attention
from intaglio.sim.attention import exact, flexprefill

IN_POWERS = math.log2(math.e) / math.sqrt(32)  # queries are in powers of two


def step_of(scales):
    return (4 + scales % 4) * np.exp2(20 - (scales // 4).astype(float))


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
    return condition.condition(q, k, v, condition.calibrate(q[:, :block], k[:block], v[:block]))


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
    for real, rows, scales in [
        (q * IN_POWERS, found.q, found.xq),
        (k, found.k, found.xk),
        (pooled_q * IN_POWERS, found.pooled_q, found.pooled_xq),
        (pooled_k, found.pooled_k, found.pooled_xk),
        (v, found.v, found.xv),
    ]:
        assert rows.dtype == np.int8 and scales.dtype == np.uint8 and np.abs(rows.astype(int)).max() <= 127
        step = np.exp2((scales.astype(float) - 128) / 4) if rows is found.v else step_of(scales)
        assert (np.abs(real - rows * step[..., None]) <= step[..., None] * 0.5001).all()
        assert (np.abs(rows.astype(int)).max(-1) >= 101).all()  # no more than a mantissa's step is given away


def test_constants_are_the_unit_s():
    for name in ("SCALE_FRACTION", "VALUE_FRACTION", "VALUE_BIAS", "WEIGHT_MAX"):
        assert getattr(quantise, name) == getattr(numerics, name)
    assert 2 * quantise.SCALE_MOST + numerics.FRACTION == numerics.SHIFT_BIAS
    assert quantise.SCALE_MOST - quantise.SCALE_LEAST == 63


def test_no_token_waits_for_a_later_one():
    """Integers and scales of a prompt are those of a longer one that begins with it, whatever follows."""
    q, k, v = (np.random.default_rng(2).standard_normal(shape) for shape in ((2, 160, 32), (160, 32), (160, 32)))
    short = quantise.quantise(q[:, :96], k[:96], v[:96], block=32)
    for x in (q, k, v):
        x[..., 96:, :] *= 1000
    long = quantise.quantise(q, k, v, block=32)
    for name in ("k", "xk", "v", "xv"):
        assert np.array_equal(getattr(long, name)[:96], getattr(short, name))
    for name, rows in (("q", 96), ("xq", 96), ("pooled_q", 3), ("pooled_xq", 3)):
        assert np.array_equal(getattr(long, name)[:, :rows], getattr(short, name))
    assert long.value_exponent == short.value_exponent == 0


@pytest.mark.parametrize("loud", [(1e-20, 1e20, 1.0), (1e20, 1e-20, 1e-30), (1e-12, 1e9, 1e30), (1e3, 1e3, 1e6)])
def test_any_range_of_floats(loud):
    """A product of queries and keys that means something keeps it, and so do values, wherever their ranges lie."""
    q, k, v = (np.random.default_rng(3).standard_normal(shape) for shape in ((1, 64, 32), (64, 32), (64, 32)))
    real = [x * n for x, n in zip((q, k, v), loud, strict=True)]
    found = quantise.quantise(*real, block=32)
    scores = (found.q[0] * step_of(found.xq[0])[:, None]) @ (found.k * step_of(found.xk)[:, None]).T
    want = real[0][0] @ real[1].T * IN_POWERS
    assert np.abs(scores - want).max() < 0.03 * np.abs(want).max()
    values = found.v * np.exp2((found.xv.astype(float) - 128) / 4 + found.value_exponent)[:, None]
    assert np.abs(values @ condition.hadamard(32) - real[2]).max() < 0.02 * np.abs(real[2]).max()
    huge = quantise.quantise(real[0] * 1e30, real[1] * 1e30, real[2], block=32)  # beyond all scales, and not refused
    assert np.abs(huge.q.astype(int)).max() == np.abs(huge.k.astype(int)).max() == 127


def head_group(found):
    names = {field.name for field in dataclasses.fields(exact.HeadGroup)}
    fields = {name: getattr(found, name) for name in names}
    return exact.HeadGroup(**{name: torch.from_numpy(x) for name, x in fields.items()})


def test_quantised_scores():
    q, k, _, found = quantised_noise(loud=1.5, spread=3.0)
    group = head_group(found)
    t = exact.scores(group.q, group.xq, group.k, group.xk).numpy() / 256
    real = q @ k.T * math.log2(math.e) / math.sqrt(32)
    # the roundings of rows, by absolute values, and that of t
    step_q, step_k = step_of(found.xq) / IN_POWERS, step_of(found.xk)
    bound = (
        step_q[..., None] / 2 * np.abs(k).sum(-1)
        + step_k / 2 * np.abs(q).sum(-1)[..., None]
        + 32 * step_q[..., None] * step_k / 4
    )
    assert (np.abs(t - real) <= bound * math.log2(math.e) / math.sqrt(32) + 0.51 / 256).all()
    wrong = exact.scores(group.q, group.xq, group.k, group.xk ^ 4).numpy() / 256
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
    for name, steps in (("q", step_of(found.xq)), ("k", step_of(found.xk)), ("v", np.exp2(found.xv / 4 - 32))):
        arrays["q"] = arrays["q"] * (IN_POWERS * 2**0.5 if name == "q" else 1)
        rows = getattr(found, name) * steps[..., None]
        assert np.abs(rows - arrays[name]).max() <= np.abs(arrays[name]).max() / 100
    exponents = np.zeros((1, 40), np.int8)
    assert np.isfinite(found.results(np.full((1, 40, 16), 32258, np.int16), exponents)).all()


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
        (lambda: quantise.image(found, block=64), "block must be that of the pooled rows, 7 for 200 tokens, not 64"),
        (lambda: quantise.image(found, block=32, origin=100), "origin must be a multiple of 4096"),
    ]:
        with pytest.raises(ValueError, match=message):
            run()


@pytest.mark.parametrize(("head_dim", "block", "tokens"), [(16, 32, 150), (32, 32, 64), (16, 16, 300), (64, 128, 50)])
def test_image_addresses(head_dim, block, tokens):
    *_, x = quantised_noise(3, 3, tokens, head_dim, block, spread=9.0)
    origin = 3 * 4096
    memory = quantise.image(x, block=block, origin=origin)
    config = PrefillConfig(head_dim=head_dim, group=3, block=block, columns=8, context=8192)
    d, b, nb = head_dim, block, -(-tokens // block)
    pb, size = -(-nb // b), (block + config.scale_beats) * head_dim
    assert (config.query_block_bytes, config.page_bytes) == (size, 2 * size)
    assert (memory.stride, memory.pooled_blocks, memory.kv_base) == (nb, pb, origin)
    sizes = [
        ("kv_base", nb * 2),
        ("q_base", 3 * nb),
        ("last_base", 3),
        ("pooled_q_base", 3 * pb),
        ("pooled_k_base", pb * 2),
    ]
    end = origin
    for name, units in sizes:
        assert getattr(memory, name) % 4096 == 0 and end <= getattr(memory, name) < end + 4096
        end = getattr(memory, name) + units * size
    assert len(memory.data) == -(-(end - origin) // 4096) * 4096

    seen = np.zeros(len(memory.data), bool)

    def row_at(base, row):
        """Row of the block at base: channels and scale."""
        places = [base - origin + row * d, base - origin + b * d + row]
        seen[places[0] : places[0] + d] = seen[places[1]] = True
        return memory.data[places[0] :][:d].view(np.int8).tolist(), int(memory.data[places[1]])

    def same(found, rows, scales, index):
        return found == (rows[index].tolist(), int(scales[index]))

    for t in range(tokens):
        page = memory.kv_base + t // b * 2 * size
        assert same(row_at(page, t % b), x.k, x.xk, t) and same(row_at(page + size, t % b), x.v, x.xv, t)
        for h in range(3):
            assert same(row_at(memory.q_base + (h * nb + t // b) * size, t % b), x.q, x.xq, (h, t))
            if t >= tokens - b:
                assert same(row_at(memory.last_base + h * size, t - tokens + b), x.q, x.xq, (h, t))
    for t in range(nb):
        assert same(row_at(memory.pooled_k_base + t // b * 2 * size, t % b), x.pooled_k, x.pooled_xk, t)
        for h in range(3):
            assert same(row_at(memory.pooled_q_base + (h * pb + t // b) * size, t % b), x.pooled_q, x.pooled_xq, (h, t))
    assert not memory.data[~seen].any()  # rows past the end and gaps


def test_image_read_back():
    *_, x = quantised_noise(4, 2, 150, 16, 32, spread=9.0)
    shape = {"group": 2, "tokens": 150, "head_dim": 16, "block": 32}
    memory = quantise.image(x, block=32, origin=8192)
    found = quantise.read_image(memory, **shape)
    for name in ("q", "xq", "k", "xk", "v", "xv", "pooled_q", "pooled_xq", "pooled_k", "pooled_xk"):
        assert np.array_equal(found[name], getattr(x, name)), name
    assert np.array_equal(found["last_q"], x.q[:, -32:]) and np.array_equal(found["last_xq"], x.xq[:, -32:])
    memory.data[memory.kv_base - memory.origin + 700] ^= 1  # a byte of V
    changed = quantise.read_image(memory, **shape)
    assert (changed["v"] != x.v).sum() == 1 and np.array_equal(changed["k"], x.k)
