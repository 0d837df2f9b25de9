"""Rows of pages: the quantiser and the mean rows against float64, and the torch twin against plain integers."""

import random

import pytest
import torch

from intaglio.rtl.arithmetic import rows
from intaglio.sim.machine.rows import pool, quantise_rows

FORMS = {"query": rows.QUERY, "value": rows.VALUE}


def scale(name, x):
    """The real scale that a byte stands for."""
    return (4 + x % 4) * 2.0 ** (20 - x // 4) if name == "query" else 2.0 ** ((x - 128) / 4)


def smaller(name, x):
    """The byte of the next smaller scale; None at the end."""
    steps = x - 1 if name == "value" else (x - 1 if x % 4 else x + 7)
    return steps if 0 <= steps <= 255 else None


def draw(picks):
    """A row of pass A: of any loudness, now and then all alike, a power of two, one channel alone, or next to one of these."""
    bits = picks.randint(0, 33)
    t = [picks.randint(-(1 << bits), 1 << bits) for _ in range(8)]
    kind = picks.randrange(6)
    if kind == 0:
        t = [picks.choice((-1, 1)) * ((1 << bits) + picks.choice((-1, 0, 1)))] * 8
    elif kind == 1:
        t = [0] * 7 + [picks.randint(-(1 << bits), 1 << bits)]
    return [max(-(1 << 33), min((1 << 33) - 1, x)) for x in t]


@pytest.mark.parametrize("name", FORMS)
def test_rows_against_float64(name):
    picks, form, seen = random.Random(name), FORMS[name], set()
    for _ in range(6000):
        t, sh, m, e = draw(picks), picks.randint(0, 9), picks.randint(1 << 15, (1 << 16) - 1), picks.randint(-60, -28)
        q, x = rows.quantise_row(t, sh, m, e, form)
        real = [value * m * 2.0 ** (sh + e) for value in t]
        loudest, unit, below = max(map(abs, real)), scale(name, x), smaller(name, x)
        if not loudest:
            assert q == [0] * 8 and unit == scale(name, form.byte(form.least))
            continue
        assert max(abs(value / unit - n) for value, n in zip(real, q, strict=True)) < 0.51
        if form.least + 4 <= [n for n in range(form.least, form.most + 1) if form.byte(n) == x][0]:
            assert loudest > 127.2 * scale(name, below)  # it is the smallest that covers the row
            assert max(map(abs, q)) >= 101
        seen.add(x)
    assert len(seen) > 100


@pytest.mark.parametrize("name", FORMS)
def test_ends_of_the_scales(name):
    form, t = FORMS[name], [100_000, -50_000, 3, 0]
    least, most = (scale(name, form.byte(n)) for n in (form.least, form.most))
    for e in range(-90, 60):
        q, x = rows.quantise_row(t, 0, 1 << 15, e, form)
        real, unit = [value * 2.0 ** (15 + e) for value in t], scale(name, x)
        if real[0] < 127 * least:  # rounded to steps of a scale that is too large for it
            assert unit < 2 * least and max(abs(v / unit - n) for v, n in zip(real, q, strict=True)) < 0.51
        elif real[0] > 128 * most:  # made smaller: the same direction
            assert unit == most and 101 <= q[0] <= 127 and abs(q[1] + q[0] / 2) <= 1
    assert rows.quantise_row(t, 0, 1 << 15, -200, form)[0] == [0] * 4
    assert rows.quantise_row(t, 0, 0, 0, form) == ([0] * 4, form.byte(form.least))
    assert rows.quantise_row([0] * 4, 9, 40000, 60, form) == ([0] * 4, form.byte(form.least))


@pytest.mark.parametrize("name", FORMS)
def test_the_twin_in_torch(name):
    picks, form = random.Random(7), FORMS[name]
    cases = [
        (draw(picks), picks.randint(0, 9), picks.choice((0, 1 << 15, (1 << 16) - 1, 54321)), picks.randint(-90, 40))
        for _ in range(1500)
    ]
    q, x = quantise_rows(
        torch.tensor([t for t, *_ in cases]),
        torch.tensor([m for _, _, m, _ in cases]),
        torch.tensor([sh + e for _, sh, _, e in cases]),
        form,
    )
    for i, case in enumerate(cases):
        assert (q[i].tolist(), int(x[i])) == rows.quantise_row(*case, form)


def test_mean_rows():
    picks = random.Random(3)
    for _ in range(300):
        count, spread = picks.randint(1, 128), picks.choice((0, 3, 12))
        block = [[picks.randint(-127, 127) for _ in range(4)] for _ in range(count)]
        scales = [picks.randint(80 - spread, 80 + spread) for _ in range(count)]
        if picks.random() < 0.2:
            scales[picks.randrange(count)] = 252  # a zero row's
        q, x = rows.pool(block, scales)
        divisor = 1 << (count - 1).bit_length()
        mean = [
            sum(row[d] * scale("query", s) for row, s in zip(block, scales, strict=True)) / divisor for d in range(4)
        ]
        unit = scale("query", x)
        loudest = max(scale("query", s) for s in scales if s != 252) if count > 1 or scales != [252] else 0
        if x % 4 == 0 and 0 < x < 252:
            lost = loudest * 2**-8 * count / divisor  # what shifts to the right take
            assert (
                max(abs(value / unit - n) for value, n in zip(mean, q, strict=True)) <= 0.5 + lost / unit + 127 * 2**-7
            )
    assert rows.pool([[0, 0]] * 5, [252] * 5)[0] == [0, 0]
    assert rows.pool([[127, -127]] * 4, [80] * 4) == ([127, -127], 80)
    assert rows.pool([[127, -127]] * 3, [80] * 3) == ([95, -95], 80)  # three rows, divided by four


def test_mean_rows_in_torch():
    picks = random.Random(4)
    for _ in range(100):
        count, low, high = picks.randint(1, 40), *picks.choice(((0, 255), (60, 90), (240, 255)))
        blocks = [[[picks.randint(-127, 127) for _ in range(4)] for _ in range(count)] for _ in range(2)]
        scales = [[picks.randint(low, high) for _ in range(count)] for _ in range(2)]
        q, x = pool(torch.tensor(blocks), torch.tensor(scales))
        for i in range(2):
            assert (q[i].tolist(), int(x[i])) == rows.pool(blocks[i], scales[i])


def test_scales_are_those_of_the_documents():
    assert [rows.QUERY.byte(n) for n in (83, 80, 79, 0, -172)] == [3, 0, 7, 80, 252]
    assert [rows.VALUE.byte(n) for n in (-128, 0, 127)] == [0, 128, 255]
    assert rows.QUERY.thresholds == (1275, 1530, 1785, 2040) and rows.VALUE.thresholds == (1212, 1442, 1715, 2040)
