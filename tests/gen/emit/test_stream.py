"""A decoder's images a piece at a time: the bytes of those made in memory, whatever was killed, damaged or left by another run."""

import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
import time

import pytest

from intaglio import Error
from intaglio.gen.checkpoint.model import CheckpointError, ModelConfig
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.reader import load_checkpoint, save_checkpoint
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.emit import decoder, stream
from intaglio.gen.emit.decoder import contents, generate
from intaglio.gen.emit.images import images
from intaglio.gen.presets.decoder import config_for
from intaglio.rtl.memory.rom import hex_text

SHAPE = {
    "vocab_size": 70,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
LLAMA = {"model_type": "llama", "hidden_act": "silu", "tie_word_embeddings": False}
WIDTHS = {"context": 8, "lane_width": 16}


@pytest.fixture(autouse=True)
def no_verilog(monkeypatch):
    """The Verilog is not what is tested here."""
    monkeypatch.setattr(decoder, "_modules", lambda *_: {"intaglio_decoder": "module intaglio_decoder\nendmodule\n"})


@pytest.fixture
def model(tmp_path):
    save_checkpoint(tmp_path / "model", random_checkpoint(ModelConfig(**SHAPE | LLAMA), seed=1), "BF16")
    return tmp_path / "model"


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("fields", "widths"),
    [
        ({}, {}),
        ({"tie_word_embeddings": False}, {"packing": "5trit"}),
        (LLAMA, {"row_scales": 1}),
        (LLAMA | {"tie_word_embeddings": True}, {"lanes": 4}),
        ({}, {"gate_words": 64, "attention_heads": 2}),
    ],
)
def test_the_same_images_as_in_memory(tmp_path, monkeypatch, fields, widths):
    monkeypatch.setattr(stream, "_TILE", 500)  # several tiles of a table
    save_checkpoint(tmp_path / "model", random_checkpoint(ModelConfig(**SHAPE | fields), seed=3), "BF16")
    checkpoint = load_checkpoint(tmp_path / "model")
    expected = images(quantise(checkpoint, config_for(checkpoint.config, "small", **WIDTHS | widths)))
    for source, out in ((tmp_path / "model", "folder"), (checkpoint, "memory")):
        manifest = generate(source, "small", tmp_path / out, **WIDTHS | widths)
        found = {path.name.removeprefix(f"{manifest['top']}_"): path for path in (tmp_path / out / "rom").iterdir()}
        assert set(found) == {f"{name}.hex" for name in expected}
        for name, words in expected.items():
            assert found[f"{name}.hex"].read_bytes() == hex_text(words), name
        assert not (tmp_path / out / stream.FOLDER).exists()
        assert manifest["content"] == {k: v for k, v in tree(tmp_path / out).items() if k != "manifest.json"}
    content, manifest = contents(tmp_path / "model", "small", **WIDTHS | widths)
    assert {name: (tmp_path / "folder" / name).read_bytes() for name in content} == content
    zeros = sum((m.weights == 0).sum() for layer in checkpoint.layers for m in layer.matrices.values())
    assert manifest["model"]["zero_weight_share"] == round(zeros / manifest["model"]["ternary_weights"], 6)


def test_processes_make_the_same_bytes(model, tmp_path, monkeypatch):
    monkeypatch.setattr(decoder, "NUMBERS_OF_A_PROCESS", 1)
    told = []
    generate(model, "small", tmp_path / "one", processes=1, progress=lambda text, share: told.append(share), **WIDTHS)
    generate(model, "small", tmp_path / "two", processes=2, **WIDTHS)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert told == sorted(told) and told[-1] == 1.0


class Stop(Exception):
    pass


def interrupted(model, out, text, **widths):
    """Generate until the progress says ``text``; the parts stay."""

    def stop(told, share):
        if told.startswith(text):
            raise Stop

    with pytest.raises(Stop):
        generate(model, "small", out, progress=stop, **WIDTHS | widths)
    return out / stream.FOLDER


@pytest.mark.parametrize("change", ["nothing", "piece", "image", "description"])
def test_what_is_whole_is_kept(model, tmp_path, change):
    generate(model, "small", tmp_path / "straight", **WIDTHS)
    parts = interrupted(model, tmp_path / "out", "image head_scales")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["format"] == "intaglio-unfinished"
    spoilt = {
        "piece": next((parts / "layer_01").glob("o_*")),
        "image": parts / "images" / "weights_1.hex",
        "description": parts / "layer_01" / "banks.json",
    }.get(change)
    if spoilt:
        data = spoilt.read_bytes()
        spoilt.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    told = []
    generate(model, "small", tmp_path / "out", progress=lambda text, share: told.append(text), **WIDTHS)
    assert tree(tmp_path / "out") == tree(tmp_path / "straight")
    kept = {text.split()[0] for text in told if text.endswith(" kept")}
    written = {text.split()[1] for text in told if text.startswith("image ")}
    parts = {"layer_00", "layer_01", "embedding", "head"}
    assert kept == parts - ({"layer_01"} if change in ("piece", "description") else set())
    assert written == ({"weights_1"} if change == "image" else set())


def test_a_killed_run_is_taken_up_again(tmp_path):
    shape = SHAPE | {"num_hidden_layers": 24, "hidden_size": 256, "head_dim": 64, "intermediate_size": 1024}
    save_checkpoint(tmp_path / "model", random_checkpoint(ModelConfig(**shape), seed=5))
    out = tmp_path / "out"
    command = ["gen", "decoder", "--model", str(tmp_path / "model"), "--preset", "small", "-o", str(out)]
    main = [sys.executable, "-c", "import sys; from intaglio.cli import main; sys.exit(main())"]
    run = subprocess.Popen([*main, *command], start_new_session=True)
    limit = time.monotonic() + 300
    while not list(out.glob(f"{stream.FOLDER}/layer_*")):
        assert time.monotonic() < limit and run.poll() is None, "no part was written within 300 s"
        time.sleep(0.001)
    run.send_signal(signal.SIGKILL)
    run.wait(60)
    whole = len(list(out.glob(f"{stream.FOLDER}/layer_*")))
    assert whole < 24 and json.loads((out / "manifest.json").read_text())["format"] == "intaglio-unfinished"
    told = []
    generate(tmp_path / "model", "small", out, progress=lambda text, share: told.append(text))
    assert sum(text.endswith(" kept") for text in told) >= whole
    generate(tmp_path / "model", "small", tmp_path / "straight")
    assert tree(out) == tree(tmp_path / "straight")


def test_parts_of_something_else_are_not_used(model, tmp_path):
    out = tmp_path / "out"
    parts = interrupted(model, out, "image")
    told = []
    generate(
        model, "small", out, progress=lambda text, share: told.append(text), **WIDTHS | {"lanes": 4, "packing": "5trit"}
    )
    assert not [text for text in told if text.endswith(" kept")] and not parts.exists()
    (out / stream.FOLDER).mkdir()
    (out / stream.FOLDER / "thesis.tex").write_text("x")
    with pytest.raises(Error, match=r"must not be in the way in .*: move .intaglio-parts \(thesis.tex\)"):
        generate(model, "small", out, **WIDTHS)
    assert (out / stream.FOLDER / "thesis.tex").is_file()


def test_what_is_wrong_is_told_before_anything_is_written(tmp_path, monkeypatch):
    checkpoint = random_checkpoint(ModelConfig(**SHAPE), seed=3)
    checkpoint.embed[:] = 0
    with pytest.raises(ValueError, match="the embedding must not be all zero"):
        generate(checkpoint, "small", tmp_path / "out", **WIDTHS)
    checkpoint.embed[0] = 1
    large = dataclasses.replace(checkpoint, config=dataclasses.replace(checkpoint.config, rms_norm_eps=1e308))
    with pytest.raises(ValueError, match="rms_norm_eps must fit the hardware's scalars"):
        generate(large, "small", tmp_path / "out", **WIDTHS)
    checkpoint.layers[1].norms["input"][:] = 0
    save_checkpoint(tmp_path / "model", checkpoint)
    with pytest.raises(CheckpointError, match="model.layers.1.input_layernorm.weight"):
        generate(tmp_path / "model", "small", tmp_path / "out", **WIDTHS)
    assert not (tmp_path / "out").exists()
    checkpoint.layers[1].norms["input"][:] = 1
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(Error, match="must have room for .* MB of banks, and 0 MB are free"):
        generate(checkpoint, "small", tmp_path / "out", **WIDTHS)
