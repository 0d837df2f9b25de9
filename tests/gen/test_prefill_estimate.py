"""Projections of prefill attention: shapes, sums, bad input."""

import argparse
import json

import numpy as np
import pytest

from intaglio.gen.prefill import estimate
from intaglio.gen.prefill.cycles import Memory, attend_cycles, dense_cycles, index_bound
from intaglio.gen.prefill.presets import prefill_config


def parsed(*options):
    parser = argparse.ArgumentParser()
    estimate.add_parser(parser.add_subparsers())
    args = parser.parse_args(["attention", *options])
    args.run(args)


def test_published_shapes():
    """Multiply-accumulates of the linear layers: 0.973 and 2.819 billion, which their publishers' parameter counts give."""
    assert round(estimate.MODELS["llama-3.2-1b"].linear_macs / 1e9, 3) == 0.973
    assert round(estimate.MODELS["llama-3.2-3b"].linear_macs / 1e9, 3) == 2.819


@pytest.mark.parametrize("density", (0.1, 0.35))
def test_synthetic_map(density):
    keep = estimate.synthetic_map(2, 64, density)
    assert np.array_equal(keep, estimate.synthetic_map(2, 64, density))
    assert not np.triu(keep, 1).any() and keep[:, np.arange(64), np.arange(64)].all() and keep[:, :, 0].all()
    assert abs(keep.sum() / (2 * 64 * 65 / 2) - density) < 0.04


def test_more_work_takes_more_time():
    model = estimate.MODELS["llama-3.2-1b"]
    few, many = (estimate.estimate(model, 4096, units=4, columns=64, density=d, aware=0.5, clock_hz=300_000_000) for d in (0.2, 0.6))
    assert few.seconds < many.seconds < few.dense_seconds == many.dense_seconds
    assert few.cycles["max"] == many.cycles["max"] and few.cycles["attend"] < many.cycles["attend"]
    alone = estimate.estimate(model, 4096, units=1, columns=64, density=0.2, aware=0.5, clock_hz=300_000_000)
    assert 7.9 < alone.seconds / estimate.estimate(model, 4096, units=8, columns=64, density=0.2, aware=0.5,
                                                   clock_hz=300_000_000).seconds < 8.1


def test_closed_form_grows_with_blocks_and_with_a_slow_memory():
    c = prefill_config("desk")
    assert index_bound(c, 64) == 2 * index_bound(c, 32)
    assert 3.5 < dense_cycles(c, 64) / dense_cycles(c, 32) < 4
    keep = np.broadcast_to(np.tril(np.ones((16, 16), bool)), (c.group, 16, 16))
    quick, slow = (attend_cycles(c, keep, 16, Memory(latency=40, rate=rate)) for rate in (1.0, 1 / 400))
    assert slow > 1.5 * quick


def test_command(capsys):
    parsed("--tokens", "4096,8192", "--model", "qwen2.5-1.5b")
    text = capsys.readouterr().out
    assert "*projected*" in text and text.count("\n* ") == 6
    parsed("--tokens", "4096", "--json")
    record = json.loads(capsys.readouterr().out)
    assert record["class"] == "projected" and record["lengths"][0]["tokens"] == 4096


@pytest.mark.parametrize(("options", "message"), [
    (("--model", "gpt-9"), "--model must be one of llama-3.2-1b"), (("--target", "x"), "--target must be one of u280"),
    (("--density", "0"), "--density must be a share above 0 to 1, not 0"),
    (("--aware", "1.5"), "--aware must be a share of 0 to 1, not 1.5"),
    (("--tokens", "100"), "--tokens must be multiples of 128 in 256..131072"), (("--tokens", "a"), "--tokens must be multiples"),
    (("--clock-mhz", "0"), "--clock-mhz must be in 1..2000, not 0"), (("--reserved", "1"), "reserved must be a share"),
    (("--columns", "12"), "columns must be a power of 2")])
def test_bad_input(options, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        parsed(*options)
