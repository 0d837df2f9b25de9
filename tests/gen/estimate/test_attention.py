"""Projections of prefill attention: shapes, sums, bad input."""

import argparse
import json
import re

import numpy as np
import pytest
from amaranth.hdl import Fragment

from intaglio import Error
from intaglio.gen.cycles.attention import Memory, attend_cycles, dense_cycles, index_bound
from intaglio.gen.estimate import attention as estimate
from intaglio.gen.estimate.fit import LUT_PER_MAC, LUT_PER_PACKED_MAC, fit_units, memory_bits, unit_config
from intaglio.gen.estimate.targets import TARGETS
from intaglio.gen.presets.attention import prefill_config
from intaglio.rtl.memory.ram import Ram
from intaglio.rtl.top.attention_shell import PrefillShell


def parsed(*options):
    parser = argparse.ArgumentParser()
    estimate.add_parser(parser.add_subparsers())
    args = parser.parse_args(["attention", *options])
    args.run(args)


def test_published_shapes():
    """Multiply-accumulates of the linear layers: 0.973 and 2.819 billion, which their publishers' parameter counts give."""
    assert round(estimate.MODELS["llama-3.2-1b"].linear_macs / 1e9, 3) == 0.973
    assert round(estimate.MODELS["llama-3.2-3b"].linear_macs / 1e9, 3) == 2.819


@pytest.mark.parametrize("density", (0.07, 0.1, 0.35, 0.6, 0.785, 0.9, 1.0))
@pytest.mark.parametrize("blocks", (2, 33, 64))
def test_synthetic_map(blocks, density):
    density = max(density, estimate.least_density(blocks))
    keep = estimate.synthetic_map(2, blocks, density)
    assert np.array_equal(keep, estimate.synthetic_map(2, blocks, density))
    assert not np.triu(keep, 1).any() and keep[:, np.arange(blocks), np.arange(blocks)].all() and keep[:, :, 0].all()
    assert (keep.sum((1, 2)) == round(density * blocks * (blocks + 1) / 2)).all()


def project(model, tokens, *, units, target="u280", density=0.2, columns=64):
    config = unit_config(model, tokens=tokens, columns=columns)
    return estimate.estimate(
        model, tokens, units=units, config=config, target=TARGETS[target], density=density, aware=2
    )


def test_more_work_takes_more_time():
    model = estimate.MODELS["llama-3.2-1b"]
    few, many = (project(model, 4096, units=4, density=density) for density in (0.2, 0.6))
    assert few.seconds < many.seconds < few.dense_seconds == many.dense_seconds
    assert few.cycles["max"] == many.cycles["max"] and few.cycles["attend"] < many.cycles["attend"]
    assert 7.9 < project(model, 4096, units=1).seconds / project(model, 4096, units=8).seconds < 8.1
    every = project(model, 4096, units=4, density=1.0)
    assert (
        every.density == 1 and many.dense_seconds < every.seconds < 1.1 * many.dense_seconds and every.utilisation < 1
    )


def test_the_memory_is_the_targets():
    """Its 1.3 GB/s are shared: the same units are slower, sparse and dense, than on a target of 460 GB/s."""
    model = estimate.MODELS["llama-3.2-1b"]
    wide, narrow = (project(model, 4096, units=4, target=target) for target in ("u280", "a7-100t"))
    assert (
        narrow.seconds > 2 * wide.seconds
        and narrow.dense_seconds > 1.2 * wide.dense_seconds
        and narrow.read_gb == wide.read_gb
    )
    assert narrow.read_gb * 1e9 / narrow.seconds < TARGETS["a7-100t"].bytes_per_second


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", estimate.MODELS)
@pytest.mark.parametrize("columns", (8, 16, 32, 64))
def test_what_is_granted_fits_the_target(target, name, columns):
    """Whatever is granted needs no more than the target has; what is refused is told with what the target has."""
    has, model = TARGETS[target], estimate.MODELS[name]
    try:
        fit = fit_units(model, target, tokens=8192, columns=columns, reserved=0.3, clock_hz=300_000_000)
    except Error as fault:
        assert target == "a7-100t" and re.search(r"a7-100t (holds \d+ columns|has \d)", str(fault))
        return
    except ValueError as fault:
        assert "group" in str(fault)
        return
    pairs = fit.units * (columns - fit.lut_columns) // 2
    assert fit.config.columns == columns and fit.units * memory_bits(fit.config) <= 0.7 * has.ram_bits
    assert pairs * model.head_dim * has.pair_dsp <= 0.7 * has.dsp
    assert (
        pairs * round(2 * LUT_PER_PACKED_MAC * model.head_dim)
        + fit.units * fit.lut_columns * round(LUT_PER_MAC * model.head_dim)
        <= 0.7 * has.lut
    )


def test_units_with_less_memory_have_narrower_windows_and_fewer_lines():
    model = estimate.MODELS["llama-3.2-1b"]
    large = fit_units(model, "u280", tokens=4096, columns=64, reserved=0.3, clock_hz=10**8)
    small = fit_units(model, "a7-100t", tokens=16384, columns=8, reserved=0.3, clock_hz=10**8)
    assert (large.units, large.config.window, large.config.lines) == (5, 16, 16) and small.units == 1
    assert (
        small.config.window < 8
        and memory_bits(unit_config(model, tokens=16384, columns=8)) > 0.7 * TARGETS["a7-100t"].ram_bits
    )


def test_memory_of_a_unit_is_that_of_its_rams(monkeypatch):
    """All but the small buffers are counted."""
    found, original = [], Ram.__init__

    def init(self, width, depth, **options):
        found.append(width * depth)
        original(self, width, depth, **options)

    monkeypatch.setattr(Ram, "__init__", init)
    config = prefill_config("small")
    Fragment.get(PrefillShell(config, 1), None)
    assert 0.95 * sum(found) < memory_bits(config) <= sum(found)


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
    assert "*projected*" in text and text.count("\n* ") == 7
    parsed("--tokens", "4096", "--json")
    record = json.loads(capsys.readouterr().out)
    assert record["class"] == "projected" and record["lengths"][0]["tokens"] == 4096 and record["unit"]["lines"] == 16
    parsed("--tokens", "4096", "--target", "a7-100t", "--columns", "8", "--density", "1")
    text = capsys.readouterr().out
    assert "   4,096    1.000 " in text and "1.334 GB/s" in text and "* 100 MHz" in text and "HBM" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "gpt-9"), "--model must be one of llama-3.2-1b"),
        (("--target", "x"), "--target must be one of u280"),
        (("--density", "0"), "--density must be a share above 0 to 1, not 0"),
        (
            ("--density", "0.1", "--tokens", "8192,4096"),
            "--density must be at least 0.1193 at 4,096 tokens, where sink and diagonal alone",
        ),
        (
            ("--target", "a7-100t"),
            (
                "a unit of 64 columns of 64 multipliers; a7-100t holds 12 columns, 2 in pairs on its 240 DSP slices and "
                "10 on its 63,400 LUTs, with 30% of both left to everything else; --columns 8 fits"
            ),
        ),
        (
            ("--target", "a7-100t", "--columns", "8"),
            "the memory must hold Q, K and V of a layer, 409 MB at 131,072 tokens; a7-100t has 268 MB",
        ),
        (
            ("--target", "a7-100t", "--columns", "8", "--tokens", "32768", "--reserved", "0.42"),
            r"must hold a unit's memories on chip, at the least 3\.\d Mbit for 32,768 tokens; a7-100t has 5.0 Mbit, 2.9 with 42% left",
        ),
        (("--aware", "1.5"), "--aware must be a share of 0 to 1, not 1.5"),
        (("--tokens", "100"), "--tokens must be multiples of 128 in 256..131072"),
        (("--tokens", "a"), "--tokens must be multiples"),
        (("--clock-mhz", "0"), "--clock-mhz must be in 1..2000, not 0"),
        (("--reserved", "1"), "reserved must be a share"),
        (("--columns", "12"), "columns must be a power of 2"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        parsed(*options)
