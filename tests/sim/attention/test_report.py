"""The exact model's error budgets, the guarantee of mass, the report on the shipped model, the command and its picture."""

import argparse
import dataclasses
import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from intaglio import Error, progress
from intaglio.cli import main
from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.reader import load_checkpoint, save_checkpoint
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.host.attention.parameters import divergence_threshold, share
from intaglio.host.attention.quantise import quantise
from intaglio.sim.attention import dense as attention
from intaglio.sim.attention import exact
from intaglio.sim.attention.picture import block_map_svg
from intaglio.sim.attention.report import head_group, layer_reports, traffic

MODEL = Path(__file__).parents[3] / "models" / "burin"
TEXT = Path(argparse.__file__)
GAMMA16, THRESHOLD = share(0.9, 4096), divergence_threshold(0.1)
ERROR_BUDGET = (
    0.02  # relative error of the exact model's results against float attention over the same blocks, shipped model
)
RANDOM_BUDGET = 0.03  # the same for random heads with sharp scores


def random_heads(seed, *, heads=2, tokens=200, head_dim=32):
    picks = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(*shape, head_dim, generator=picks) for shape in ((heads, tokens), (tokens,), (tokens,)))
    return q, k, v


def integers(q, k, v, block, **wrong):
    z = quantise(q.numpy(), k.numpy(), v.numpy(), block=block)
    run = head_group(z)

    def results(keep):
        return torch.as_tensor(
            z.results(*(x.numpy() for x in exact.attend(exact.HeadGroup(**{**vars(run), **wrong}), keep, block=block)))
        ).double()

    return run, results


def error(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_exact_model_within_budget_and_mutation():
    q, k, v = random_heads(1)
    q *= 3
    keep = torch.ones(2, 7, 7, dtype=torch.bool).tril()
    keep[:, 4:, 1] = False
    want = attention.sparse(q, k[None], v[None], keep, block=32).double()
    run, results = integers(q, k, v, 32)
    assert error(results(keep), want) < RANDOM_BUDGET
    _, wrong = integers(q, k, v, 32, xk=run.xk + 4)
    assert error(wrong(keep), want) > RANDOM_BUDGET


def test_quiet_tiles_keep_their_mass():
    """One loud key and a thousand quiet ones that together outweigh it: weights relative to a global maximum would all round to 0."""
    tokens, block = 1056, 32
    q, k, v = random_heads(2, heads=1, tokens=tokens)
    q, k = q / 4, k / 4
    q[..., 0], k[:, 0], k[0, 0] = 1.0, 0.0, 6.2 * math.sqrt(32)  # e^6.2 = 493 times any other key
    keep = torch.ones(1, 33, 33, dtype=torch.bool).tril()
    _, results = integers(q, k, v, block)
    want = attention.sparse(q, k[None], v[None], keep, block=block).double()
    assert error(results(keep)[:, -32:], want[:, -32:]) < 0.03
    assert error((v[0] * torch.ones(1, 32, 32)).double(), want[:, -32:]) > 0.3  # the loud key alone is far off


@pytest.mark.parametrize("seed", range(4))
def test_isolated_verticals_keep_gamma(seed):
    tokens, block = 1000, 32
    q, k, v = random_heads(seed, tokens=tokens)
    loud = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))[: 20 + 20 * seed]
    q[..., 0], k[:, 0] = 4.0, 0.0
    k[loud, 0] = 6.0
    run, _ = integers(q, k, v, block)
    for threshold in (0, THRESHOLD, 1 << 40):  # vertical-slash, by divergence, query-aware
        keep = exact.block_map(exact.index(run, block=block, gamma16=GAMMA16, threshold=threshold))
        assert attention.kept_mass(q, k[None], keep, block=block).min() >= 0.9


def test_shipped_model_at_4096_tokens():
    found = [
        report
        for report in layer_reports(
            MODEL, TEXT.read_bytes(), tokens=4096, layer=2, block=128, gamma16=GAMMA16, threshold=THRESHOLD
        )
    ]
    for report in found:
        assert report.kept_mass.min() >= 0.9
        assert report.error < ERROR_BUDGET
        assert report.density.mean() < 0.4
    assert 0 < sum(int(report.query_aware.sum()) for report in found) < 6  # both patterns occur
    read = traffic([report.keep for report in found], window=8, lines=12, lookahead=3)
    assert read["belady"] <= read["ours"] <= 1.05 * read["belady"]
    assert read["ours"] < read["lru"] < read["visits"] < read["single"]


def test_picture():
    keep = [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    text = block_map_svg([[("a", keep, False), ("b", keep, True)]])
    paths = [node.get("d") for node in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}path")]
    assert paths[1] == "M0 0h1v1h-1zM0 1h2v1h-2zM1 2h2v1h-2z"
    assert len(paths) == 4


def test_command(tmp_path, capsys):
    picture = tmp_path / "map.svg"
    assert (
        main(
            [
                "attention",
                "--model",
                str(MODEL),
                "--text",
                str(TEXT),
                "--tokens",
                "300",
                "--block",
                "32",
                "--map",
                str(picture),
            ]
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("exact model, 300 tokens, blocks of 32") and len(lines) == 2 + 4 + 3
    for line in lines[2:6]:
        assert 0 < float(line.split()[2]) <= 1 and 0.9 <= float(line.split()[3]) <= 1 and float(line.split()[7]) < 0.03
    assert len(ElementTree.parse(picture).getroot().findall("{*}text")) == 24


def test_command_for_a_share_of_everything(capsys):
    assert (
        main(
            ["attention", "--model", str(MODEL), "--text", str(TEXT), "--tokens", "64", "--block", "32", "--gamma", "1"]
        )
        == 0
    )
    for line in capsys.readouterr().out.splitlines()[2:6]:
        assert line.split()[2:4] == ["1.000", "1.0000"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gamma", "1.5"], "gamma must be above 0 and at most 1, not 1.5"),
        (["--tau", "-1"], "tau must be in 0..0.8326, not -1.0"),
        (["--block", "48"], "--block must be 32, 64 or 128, not 48"),
        (["--tokens", "100"], "--tokens must be at least two blocks, 256, not 100"),
        (["--map", "/nowhere/a.svg"], "--map must name a file that can be written, not '/nowhere/a.svg': No such file"),
        (["--text", str(MODEL)], f"the text {MODEL} cannot be read: Is a directory"),
        (["--layers", "4"], "--layers must be numbers in 0..3"),
        (["--text", "/dev/null"], "the text must have at least two blocks, 256 bytes, not 0"),
        (["--lines", "4"], "--lines must be at least --lookahead + 2"),
        (["--window", "3"], "--window must be a power of 2, not 3"),
        (["--map", "a.png"], "--map must end in .svg, not 'a.png'"),
        (["--text", "/nowhere"], "the text /nowhere cannot be read: No such file"),
        (["--model", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input(options, message, capsys):
    assert main(["attention", "--model", str(MODEL), "--text", str(TEXT), *options]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


def test_of_a_shorter_text_all_is_taken_and_waits_are_told(tmp_path, capsys, monkeypatch):
    (tmp_path / "text").write_bytes(b"import os\n" * 9)
    for name in ("QUIET_SECONDS", "LINE_SECONDS", "TICK_SECONDS"):
        monkeypatch.setattr(progress, name, 0.0)
    assert (
        main(["attention", "--model", str(MODEL), "--text", str(tmp_path / "text"), "--block", "32", "--layers", "0"])
        == 0
    )
    out, err = capsys.readouterr()
    assert (
        out.startswith("exact model, 90 tokens") and "intaglio: the text has 90 bytes: all are taken, not 4096\n" in err
    )
    assert f"intaglio: reading {MODEL}" in err and "layer 0 (" in err


def test_a_model_whose_tokens_are_not_bytes_is_refused(capsys, monkeypatch):
    other = SimpleNamespace(config=SimpleNamespace(vocab_size=128256))
    monkeypatch.setattr("intaglio.gen.checkpoint.reader.load_checkpoint", lambda *_, **__: other)
    assert main(["attention", "--model", "other", "--text", str(TEXT)]) == 2
    assert "the model's tokens must be bytes, a vocabulary of 256, not one of 128256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {},
            [],
            "head_dim of the unit must be 32, the model's, not 16: generate one with `intaglio gen prefill --set head_dim=32`",
        ),
        ({"head_dim": 32}, [], "group of the unit must be 6, the model's, not 2"),
        (
            {"head_dim": 32, "group": 6, "context": 512},
            ["--tokens", "513"],
            "--tokens must be at most 512, the unit's context, not 513",
        ),
        ({"head_dim": 32, "group": 6}, ["--tokens", "31"], "--tokens must be at least two blocks, 64, not 31"),
        ({"head_dim": 32, "group": 6, "context": 512}, [], "built"),
        ({"head_dim": 32, "group": 6}, ["--memory", "core"], "a memory must be one of hbm2-u280"),
        ({}, ["--timeline", "/nowhere/t.json"], "--timeline must name a file"),
    ],
)
def test_a_unit_that_does_not_fit_is_told_before_it_is_built(
    small_prefill, tmp_path, capsys, monkeypatch, changes, options, message
):
    def build(*_, **__):
        raise Error("built")

    monkeypatch.setattr("intaglio.sim.verilator.transport.build", build)
    manifest = json.loads((small_prefill / "manifest.json").read_text())
    manifest["config"] |= changes
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert main(["attention", "--model", str(MODEL), "--text", str(TEXT), "--device", f"sim:{tmp_path}", *options]) == 2
    assert capsys.readouterr().err.startswith(f"intaglio: error: {message}")


@pytest.mark.verilator
def test_command_with_a_device(small_prefill, simulation_cache, tmp_path, capsys):
    """Every layer of a small model on the simulated unit; where nothing bounds the tokens, its context does."""
    config = ModelConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        linear_class="bitlinear",
        rope_theta=10000.0,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
    )
    save_checkpoint(tmp_path / "model", random_checkpoint(config))
    argv = [
        "attention",
        "--model",
        str(tmp_path / "model"),
        "--text",
        str(TEXT),
        "--device",
        f"sim:{small_prefill}",
        "--check",
        "--cache",
        str(simulation_cache),
        "--map",
        str(tmp_path / "a.svg"),
        "--timeline",
        str(tmp_path / "t.json"),
    ]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "512 tokens, blocks of 32" in out and out.count("  yes\n") == 2 and "NO" not in out
    assert len(ElementTree.parse(tmp_path / "a.svg").getroot().findall("{*}text")) == 4
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]


def test_values_that_are_not_finite():
    q, k, v = (x.numpy() for x in random_heads(4, tokens=32))
    k[3, 4] = np.nan
    with pytest.raises(ValueError, match="k must be finite"):
        quantise(q, k, v, block=32)


def test_a_model_of_constant_matrices_is_refused_unless_told(tmp_path, capsys):
    checkpoint = load_checkpoint(MODEL)
    layer = checkpoint.layers[0]
    values = dataclasses.replace(layer.matrices["v"], weights=np.zeros_like(layer.matrices["v"].weights))
    layers = (dataclasses.replace(layer, matrices={**layer.matrices, "v": values}), *checkpoint.layers[1:])
    save_checkpoint(tmp_path, dataclasses.replace(checkpoint, layers=layers))
    command = [
        "attention",
        "--model",
        str(tmp_path),
        "--text",
        str(TEXT),
        "--tokens",
        "64",
        "--block",
        "32",
        "--layers",
        "0",
    ]
    assert main(command) == 2
    assert "model.layers.0.self_attn.v_proj.weight (all 0): the file is damaged" in capsys.readouterr().err
    assert main([*command, "--allow-constant"]) == 0
