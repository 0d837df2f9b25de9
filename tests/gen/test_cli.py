"""``intaglio gen``: bad input ends in one line and exit code 2, nothing is written."""

import sys
from pathlib import Path

import pytest

from intaglio.cli import main

MODEL = str(Path(__file__).parents[2] / "models" / "burin")


@pytest.mark.parametrize("arguments, message", [
    (["--model", MODEL, "--preset", "huge"], "the preset must be one of desk, desk-4k, ulx3s, small, not 'huge'"),
    (["--model", MODEL, "--set", "lanes"], "--set must be WIDTH=VALUE, not 'lanes'"),
    (["--model", MODEL, "--set", "colour=3"], ("a width must be one of context, lanes, lane_width, packing, dot, vector_width, "
                                              "attention_heads, top_k, clock_hz, rank, adapters, adapter_trits, adapter_targets, "
                                              "gate_words, gate_wake, gate_isolation, "
                                              "not 'colour'")),
    (["--model", MODEL, "--set", "lanes=5"], "lanes must be even, not 5"),
    (["--model", MODEL, "--set", "context=8192"],
     "context must be at most the model's max_position_embeddings = 4096, not 8192"),
    (["--model", MODEL, "--set", "context=long"], "context must be in 2..65535 tokens, not 'long'"),
    (["--model", "nowhere"], "nowhere"),
])
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["gen", "decoder", "-o", "out", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("intaglio: error: ") and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_missing_module_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "intaglio.gen.decoder", None)
    assert main(["gen", "decoder", "--model", MODEL, "-o", str(tmp_path / "out")]) == 2
    assert "pip install 'intaglio[gen]'" in capsys.readouterr().err


def test_presets_are_listed(capsys):
    assert main(["gen", "presets"]) == 0
    assert [tuple(line.split()[:2]) for line in capsys.readouterr().out.splitlines()] == [
        *(("decoder", name) for name in ("desk", "desk-4k", "ulx3s", "small")),
        *(("prefill", name) for name in ("desk", "small", "llama-1b"))]
