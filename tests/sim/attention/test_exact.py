"""The exact model of prefill attention against plain Python integers, written from docs/prefill.md one number at a time."""

import dataclasses
import math
import random

import pytest
import torch

from intaglio.rtl.arithmetic import attention as numerics
from intaglio.sim.attention import exact


def group_of(seed, *, tokens, heads=2, head_dim=16, block=32, base=6, spread=127):
    """Random integers; a few tokens are loud, so that maxima jump."""
    random_ = torch.Generator().manual_seed(seed)

    def elements(*shape):
        return torch.randint(-spread, spread + 1, shape, generator=random_, dtype=torch.int8)

    def scales(least, *shape):
        return torch.randint(4 * least, 4 * least + 32, shape, generator=random_, dtype=torch.uint8)

    count = -(-tokens // block)
    return exact.HeadGroup(
        q=elements(heads, tokens, head_dim),
        xq=scales(24 + base, heads, tokens),
        k=elements(tokens, head_dim),
        xk=scales(28, tokens),
        v=elements(tokens, head_dim),
        xv=torch.randint(100, 140, (tokens,), generator=random_, dtype=torch.uint8),
        pooled_q=elements(heads, count, head_dim),
        pooled_xq=scales(24 + base, heads, count),
        pooled_k=elements(count, head_dim),
        pooled_xk=scales(28, count),
    )


def score(group, head, row, key):
    dot = sum(int(a) * int(b) for a, b in zip(group.q[head, row], group.k[key], strict=True))
    xq, xk = int(group.xq[head, row]), int(group.xk[key])
    s = max(0, min(31, xq // 4 + xk // 4 - 48))
    return max(-(1 << 17), min((1 << 17) - 1, (dot * (4 + xq % 4) * (4 + xk % 4) + ((1 << s) >> 1)) >> s))


def merged(state, e, sums):
    """Sums relative to ``2^e`` into a state (E, sums), or a new one."""
    if state is None:
        return e, sums
    new = max(state[0], e)
    return new, [(a >> (new - state[0])) + (b >> (new - e)) for a, b in zip(state[1], sums, strict=True)]


def attended(group, head, row, blocks, block, by_row=False):
    """One result row and its exponent: tiles in order, sums rescaled by shifts."""
    head_dim, tokens = group.q.shape[2], group.q.shape[1]
    sums, means, exponent = None, None, -32
    for start in (b * block + t for b in blocks for t in range(0, block, head_dim)):
        keys = [key for key in range(start, start + head_dim) if key <= row and key < tokens]
        if not keys:
            continue
        t = {key: score(group, head, row, key) for key in keys}
        scaled = {key: t[key] + 64 * (int(group.xv[key]) - 128) for key in keys}
        e, f = (max(x.values()) // 256 + 1 for x in (t, scaled))
        weights = {key: numerics.weight(256 * f - scaled[key]) for key in keys}
        sums = merged(sums, e, [sum(numerics.mass_exp2(256 * e - x) for x in t.values())])
        means = merged(
            means, f, [sum(weights[key] * int(group.v[key, d]) for key in keys) << 4 for d in range(head_dim)]
        )
        counted = group.xv[keys] if by_row else group.xv[start : start + head_dim]
        exponent = max(exponent, *(-(-(int(x) - 128) // 4) for x in counted))
    (e, (total,)), (f, o) = sums, means
    shift = total.bit_length() - 17
    inverse, k = numerics.INVERSE // (total >> shift), 9 + shift + e + exponent - f
    return [max(-32767, min(32767, (x * inverse + (1 << (k - 1))) >> k)) for x in o], exponent


def test_tables():
    n = torch.tensor([1, 2, 3, 1023, 1024, 1025, 65535, (1 << 40) + 12345])
    assert exact.log2(n).tolist() == [numerics.log2(x) for x in n.tolist()]
    assert max(abs(numerics.log2(x) / 4096 - math.log2(x)) for x in range(1, 70000, 7)) < 0.0005
    x = torch.arange(9000)
    assert exact.exp2(x).tolist() == [numerics.mass_exp2(i) for i in range(9000)]
    assert max(abs(numerics.exp2(i) / 65536 - 2 ** (-i / 256)) for i in range(5000)) <= 2**-16
    assert all(
        abs(numerics.mass_exp2(i) / 2**28 - 2 ** (-i / 256)) <= 2**-28 + 2 ** (-i / 256 - 16) for i in range(9000)
    )
    assert all(numerics.mass_exp2(i) >> 12 == numerics.exp2(i) for i in range(9000))
    assert exact.weight(x).tolist() == [numerics.weight(i) for i in range(9000)]
    assert all(abs(numerics.weight(i) - 254 * 2 ** (-i / 256)) <= 0.76 for i in range(9000))
    assert max(map(numerics.weight, range(1, 257))) == 254 == numerics.WEIGHT_MAX


@pytest.mark.parametrize(("tokens", "base"), [(96, 6), (70, 0), (128, 15), (33, 3), (40, -24), (64, 31)])
def test_attention_row_by_row(tokens, base):
    group = group_of(tokens, tokens=tokens, base=base)
    count = -(-tokens // 32)
    picks = random.Random(base)
    keep = torch.tensor(
        [[[c == r or c < r and picks.random() < 0.5 for c in range(count)] for r in range(count)] for _ in range(2)]
    )
    out, exponents = exact.attend(group, keep, block=32)
    for head, row in [(0, 0), (1, tokens - 1), *((picks.randrange(2), picks.randrange(tokens)) for _ in range(25))]:
        blocks = keep[head, row // 32].nonzero().flatten().tolist()
        got = out[head, row].tolist(), int(exponents[head, row])
        assert got == attended(group, head, row, blocks, 32), (head, row)
    out_by_row, exponents_by_row = exact.attend(group, keep, block=32, by_row=True)
    for head, row in ((h, r) for h in range(2) for r in range(tokens - 18, tokens)):
        blocks = keep[head, row // 32].nonzero().flatten().tolist()
        got = out_by_row[head, row].tolist(), int(exponents_by_row[head, row])
        assert got == attended(group, head, row, blocks, 32, by_row=True), (head, row)
    assert not torch.equal(exponents_by_row, exponents)
    other = keep.clone()
    other[:, -1, 0] ^= True  # a block more or less in the last rows
    (changed, exponents), head, row = exact.attend(group, other, block=32), 1, tokens - 1
    assert not torch.equal(changed, out)
    blocks = other[head, row // 32].nonzero().flatten().tolist()
    got = changed[head, row].tolist(), int(exponents[head, row])
    assert got == attended(group, head, row, blocks, 32)
    first = row // 32 * 32  # and no other row
    assert torch.equal(changed[:, :first], out[:, :first])


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 32, 33, 70])
def test_the_last_token(tokens):
    """One row, over all keys, as dense attention of the whole prompt has it."""
    group = group_of(tokens, tokens=tokens, base=4)
    values, exponent = exact.attend_last(group.q[:, -1], group.xq[:, -1], group)
    count = -(-tokens // 32)
    for head in range(2):
        assert (values[head].tolist(), exponent) == attended(group, head, tokens - 1, range(count), 32)
    out, exponents = exact.attend(group, torch.ones(2, count, count, dtype=torch.bool).tril(), block=32)
    assert torch.equal(values, out[:, -1]) and (exponents[:, -1] == exponent).all()
    if tokens > 1:
        assert not torch.equal(values, exact.attend_last(group.q[:, -1] // 2, group.xq[:, -1], group)[0])


@pytest.mark.parametrize("tokens", [96, 77, 40])
def test_block_scores(tokens):
    block, group = 32, group_of(tokens, tokens=tokens)
    found = exact.index(group, block=block, gamma16=58983, threshold=0)
    count = -(-tokens // block)
    for head in range(2):
        ver, sla, pool = [0] * count, [0] * count, [0] * count
        for row in range(tokens - block, tokens):
            t = [score(group, head, row, key) for key in range(tokens)]
            state = None
            for start in range(0, row + 1, 16):
                part = t[start : min(start + 16, row + 1)]
                e = (max(part) >> 8) + 1
                total = sum(numerics.mass_exp2(256 * e - x) for x in part)
                if state:
                    new = max(e, state[0])
                    state = new, (state[1] >> (new - state[0])) + (total >> (new - e))
                else:
                    state = e, total
            log = 256 * state[0] + ((numerics.log2(state[1]) + 8) >> 4) - 256 * 28
            for key in range(tokens):
                pool[key // block] += t[key]
                if key <= row:
                    p = numerics.mass_exp2(max(0, log - t[key]))
                    ver[key // block] += p
                    sla[(row - key) // block] += p
        assert (found["ver"][head].tolist(), found["sla"][head].tolist(), found["pool"][head].tolist()) == (
            ver,
            sla,
            pool,
        )
        assert abs(sum(ver) / (block << 28) - 1) < 0.004


def test_map_rules():
    group = group_of(5, tokens=256)
    found = exact.index(group, block=32, gamma16=40000, threshold=0)
    keep = exact.block_map(found)
    for head in range(2):
        for row in range(8):
            for column in range(8):
                vertical, slash = found["vertical"][head], found["slash"][head]
                want = column <= row and bool(
                    vertical[column]
                    or slash[row - column]
                    or column < row
                    and slash[row - column - 1]
                    or column in (0, row)
                )
                assert bool(keep[head, row, column]) == want
    everything = exact.index(group, block=32, gamma16=40000, threshold=1 << 40)
    assert everything["query_aware"].all()
    keep = exact.block_map(everything)
    assert keep.diagonal(dim1=1, dim2=2).all() and keep[:, :, 0].all() and not keep.triu(1).any()
    assert (keep[:, -1] >= everything["vertical"]).all()
    assert not torch.equal(keep, exact.block_map(found))


@pytest.mark.parametrize(("tokens", "new"), [(256, 64), (250, 58), (250, 90), (96, 32)])
def test_queries_of_the_last_tokens_alone(tokens, new):
    """What continues a sequence: index, map and results are those of the last rows, whatever the queries before were."""
    group, first = group_of(tokens, tokens=tokens), (tokens - new) // 32
    last = dataclasses.replace(
        group,
        q=group.q[:, -new:],
        xq=group.xq[:, -new:],
        pooled_q=group.pooled_q[:, first:],
        pooled_xq=group.pooled_xq[:, first:],
    )
    for threshold in (0, 1 << 40):
        whole, part = (exact.index(g, block=32, gamma16=40000, threshold=threshold) for g in (group, last))
        for name in whole:
            want = whole[name][:, first:] if name == "rows" else whole[name]
            assert torch.equal(torch.as_tensor(want), torch.as_tensor(part[name]))
        keep = exact.block_map(whole)[:, first:]
        assert torch.equal(exact.block_map(part), keep)
    want, got = (exact.attend(g, m, block=32) for g, m in ((group, exact.block_map(whole)), (last, keep)))
    assert all(torch.equal(a[:, -new:], b) for a, b in zip(want, got, strict=True))


def test_bad_shapes():
    with pytest.raises(ValueError, match="tokens must be at least a block, 32, not 20"):
        exact.index(group_of(1, tokens=20), block=32, gamma16=58983, threshold=0)
    group = group_of(1, tokens=64)
    with pytest.raises(ValueError, match="must keep every block of the diagonal"):
        exact.attend(group, torch.zeros(2, 2, 2, dtype=torch.bool), block=32)
    with pytest.raises(ValueError, match=r"must be of shape \(2, 2, 2\), not \(2, 3, 3\)"):
        exact.attend(group, torch.ones(2, 3, 3, dtype=torch.bool), block=32)
