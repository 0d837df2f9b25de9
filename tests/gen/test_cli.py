"""``intaglio gen``: bad input ends in one line and exit code 2, nothing is written."""

import sys
import time
from pathlib import Path

import pytest

from intaglio import Error, progress
from intaglio.cli import main
from intaglio.gen.presets.decoder import WIDTHS

MODEL = str(Path(__file__).parents[2] / "models" / "burin")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", MODEL, "--preset", "huge"], "the preset must be one of desk, desk-4k, ulx3s, small, not 'huge'"),
        (["--model", MODEL, "--set", "lanes"], "--set must be WIDTH=VALUE, not 'lanes'"),
        (["--model", MODEL, "--set", "colour=3"], f"a width must be one of {', '.join(WIDTHS)}, not 'colour'"),
        (["--model", MODEL, "--set", "lanes=5"], "lanes must be even, not 5"),
        (
            ["--model", MODEL, "--set", "context=8192"],
            "context must be at most the model's max_position_embeddings = 4096, not 8192",
        ),
        (["--model", MODEL, "--set", "context=long"], "context must be in 2..65535 tokens, not 'long'"),
        (["--model", "nowhere"], "nowhere"),
        (
            ["--model", MODEL, "--prefix", "2b"],
            "must be a letter and then letters, digits or underscores, 64 characters at most, not '2b'",
        ),
        (["--model", MODEL, "--prefix", "a-b"], "not 'a-b'"),
        (["--model", MODEL, "--prefix", ""], "not ''"),
        (["--model", MODEL, "--prefix", "x" * 65], "64 characters at most"),
        (["--model", MODEL, "--prefix", "größe"], "not 'größe'"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["gen", "decoder", "-o", "out", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("intaglio: error: ") and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "kind, presets",
    [
        ("decoder", "desk, desk-4k, ulx3s, small"),
        ("prefill", "desk, small, llama-1b"),
        ("banks", "tom, desk, desk-4k, ulx3s, small"),
    ],
)
def test_a_wrong_preset_is_told_all_that_would_be_taken(kind, presets, tmp_path, capsys):
    model = [] if kind == "prefill" else ["--model", MODEL]
    assert (
        main(["gen", kind, *model, *["--all"] * (kind == "banks"), "--preset", "huge", "-o", str(tmp_path / "out")])
        == 2
    )
    assert f"the preset must be one of {presets}, not 'huge'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["decoder", "prefill", "banks"])
def test_an_output_that_cannot_be_is_told_before_work(kind, tmp_path, capsys):
    """Before the checkpoint's weights are read, or anything converted."""
    (tmp_path / "file").write_text("mine")
    model = [] if kind == "prefill" else ["--model", MODEL]
    assert main(["gen", kind, *model, *["--all"] * (kind == "banks"), "-o", str(tmp_path / "file" / "out")]) == 2
    error = capsys.readouterr().err
    assert error == f"intaglio: error: the output folder must be a folder, and {tmp_path / 'file'} is a file\n"


def test_a_long_step_is_told_off_a_terminal(tmp_path, capsys, monkeypatch):
    for name in ("QUIET_SECONDS", "LINE_SECONDS", "TICK_SECONDS"):
        monkeypatch.setattr(progress, name, getattr(progress, name) / 20)

    def slow(*_):
        time.sleep(0.5)
        raise Error("enough")

    monkeypatch.setattr("intaglio.gen.emit.attention.PrefillShell", slow)
    assert main(["gen", "prefill", "--preset", "small", "-o", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert (
        len(lines) >= 2 and lines[0].startswith("intaglio:   0% Verilog (") and lines[-1] == "intaglio: error: enough"
    )


def test_a_missing_module_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "intaglio.gen.emit.decoder", None)
    assert main(["gen", "decoder", "--model", MODEL, "-o", str(tmp_path / "out")]) == 2
    assert "pip install 'intaglio[gen]'" in capsys.readouterr().err


def test_presets_are_listed(capsys):
    assert main(["gen", "presets"]) == 0
    assert [tuple(line.split()[:2]) for line in capsys.readouterr().out.splitlines()] == [
        *(("decoder", name) for name in ("desk", "desk-4k", "ulx3s", "small")),
        *(("prefill", name) for name in ("desk", "small", "llama-1b")),
        ("banks", "tom"),
    ]
