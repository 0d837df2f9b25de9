"""``intaglio check``: everything that stands in the way, at once, in the words of what ``gen`` refuses one at a time."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from intaglio.cli import main
from intaglio.gen import check as command
from intaglio.gen.check import check
from intaglio.gen.checkpoint import tensorfile
from intaglio.gen.checkpoint.model import CheckpointError, ModelConfig
from intaglio.gen.checkpoint.reader import MATRIX_TENSORS, CheckpointReader, load_checkpoint, save_checkpoint
from intaglio.gen.checkpoint.synthetic import random_checkpoint

BURIN = Path(__file__).parents[2] / "models" / "burin"
CONFIG = ModelConfig(
    vocab_size=300,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=64,
)


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(tmp_path / "model", random_checkpoint(CONFIG))
    return tmp_path / "model"


def change(folder, **fields):
    path = folder / "config.json"
    data = json.loads(path.read_text())
    for name, value in fields.items():
        data.pop(name, None) if value is ... else data.__setitem__(name, value)
    path.write_text(json.dumps(data))
    return data


def run(folder):
    return main(["check", str(folder)], commands={"check": lambda: command.register})


def test_the_shipped_model(capsys):
    assert run(BURIN) == 0
    out = capsys.readouterr().out
    assert "1,523,712 ternary weights" in out and "tokens are bytes" in out and "nothing in the way" in out
    assert "preset desk: weights 372.0 KiB, embedding and head 48.0 KiB, KV cache of 1024 tokens 282.0 KiB" in out


def test_presets_that_do_not_fit(folder):
    found = check(folder)
    assert not found.problems and found.tokenizer == "none"
    assert found.presets["desk"].startswith("does not fit: context must be at most") and "KV" in found.presets["small"]


def test_all_of_a_configuration_at_once(folder):
    data = change(
        folder,
        attention_bias=True,
        mlp_bias=True,
        rope_scaling={"rope_type": "dynamic", "factor": 2.0},
        quantization_config={"quant_method": "bitnet", "use_rms_norm": True, "linear_class": "odd"},
        num_key_value_heads=3,
        hidden_act="gelu",
        rms_norm_eps=-1,
    )
    found = check(folder).problems
    for text in (
        "attention_bias",
        "mlp_bias",
        "rope_type",
        "use_rms_norm",
        "linear_class",
        "num_key_value_heads",
        "hidden_act",
        "rms_norm_eps",
    ):
        assert sum(text in problem for problem in found) == 1, text
    assert len(found) == 8
    with pytest.raises(CheckpointError) as refused:
        ModelConfig.from_json(data)
    assert str(refused.value) == found[0]


@pytest.mark.parametrize(
    "fields, count",
    [
        ({"model_type": "mamba"}, 1),
        ({"quantization_config": "bitnet"}, 1),
        ({"hidden_size": ..., "vocab_size": ...}, 1),
        ({"hidden_size": "x", "head_dim": ..., "vocab_size": 0}, 2),
        ({"hidden_size": 15, "head_dim": ...}, 1),
        ({"eos_token_id": [1, 900], "bos_token_id": -1}, 2),
    ],
)
def test_what_hides_the_rest(folder, fields, count):
    data = change(folder, **fields)
    found = check(folder).problems
    assert len(found) >= count and len(set(found)) == len(found)
    with pytest.raises(CheckpointError) as refused:
        ModelConfig.from_json(data)
    assert str(refused.value) in found


def test_all_tensors_at_once(folder, capsys):
    entries = tensorfile.TensorFolder(folder)
    tensors = {name: entries.read(name) for name in entries.entries}
    for layer in range(2):
        del tensors[f"model.layers.{layer}.mlp.up_proj.weight"]
    tensors["model.norm.bias"] = tensors["model.norm.weight"]
    tensors["model.norm.weight"] = tensors["model.layers.0.self_attn.q_proj.weight_scale"]
    (folder / "model.safetensors").write_bytes(tensorfile.to_bytes(tensors))
    assert run(folder) == 1
    out = capsys.readouterr().out
    for text in (
        "4 in the way",
        "layers.0.mlp.up_proj.weight [4, 16] is missing",
        "layers.1.mlp",
        "model.norm.weight must have shape [16]",
    ):
        assert text in out
    assert "not model.norm.bias (1 unexpected)" in out
    with pytest.raises(CheckpointError, match=r"model.norm.weight must have shape \[16\]"):
        CheckpointReader(folder)


def test_tokenizer_and_files(folder, tmp_path):
    (folder / "tokenizer.json").write_text('{"model": {"type": "WordLevel"}}')
    assert "must be BPE, Unigram or WordPiece" in check(folder).problems[0]
    (folder / "model.safetensors").write_bytes(b"x")
    assert len(check(folder).problems) == 2
    assert "must be a readable file" in check(tmp_path / "nowhere").problems[0]


def test_without_torch():
    script = (
        "import sys; sys.modules['torch'] = None; from intaglio.cli import main; sys.exit(main(['check', sys.argv[1]]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(BURIN)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_ternary_check_of_packed_weights(folder, capsys):
    assert main(["check", str(folder), "--ternary-check"], commands={"check": lambda: command.register}) == 0
    out = capsys.readouterr().out
    layers = load_checkpoint(folder).layers
    for index, layer in enumerate(layers):
        for name, matrix in layer.matrices.items():
            share = 100 * (matrix.weights == 0).mean()
            assert f"model.layers.{index}.{MATRIX_TENSORS[name]}: packed, zeros {share:.1f} %" in out
    assert not check(folder).matrices


def floats(folder, dtype="BF16", spoil=None):
    """Make a checkpoint's weights floats times its scales, as models without a quantization_config have them."""
    checkpoint, files = load_checkpoint(folder), tensorfile.TensorFolder(folder)
    tensors = {name: files.read(name) for name in files.entries if not name.endswith("weight_scale")}
    for index, layer in enumerate(checkpoint.layers):
        for number, (name, matrix) in enumerate(layer.matrices.items()):
            values = matrix.weights * np.float32(0.0137 * (1 + number))
            values = values if spoil is None else spoil(index, name, values)
            tensors[f"model.layers.{index}.{MATRIX_TENSORS[name]}.weight"] = tensorfile.Tensor.from_float32(
                values, dtype
            )
    (folder / "model.safetensors").write_bytes(tensorfile.to_bytes(tensors))
    change(folder, quantization_config=...)
    return checkpoint


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_floats_that_are_ternary_are_read(folder, tmp_path, dtype, capsys):
    before = floats(folder, dtype)
    report = check(folder, ternary=True)
    assert not report.problems and len(report.matrices) == 14
    assert "ternary times 0.0137" in report.matrices["model.layers.1.self_attn.q_proj"].replace("136719", "137")
    assert run(folder) == 0 and "floats, each matrix ternary times a scale" in capsys.readouterr().out
    after = load_checkpoint(folder)
    for layer, other in zip(before.layers, after.layers, strict=True):
        for number, (name, matrix) in enumerate(other.matrices.items()):
            np.testing.assert_array_equal(matrix.weights, layer.matrices[name].weights)
            assert matrix.scale == pytest.approx(0.0137 * (1 + number), rel=2**-8)
    save_checkpoint(tmp_path / "again", after)
    again = load_checkpoint(tmp_path / "again")
    assert all(
        again.layers[0].matrices[name].scale == pytest.approx(matrix.scale)
        for name, matrix in after.layers[0].matrices.items()
    )
    assert ModelConfig.from_json(CheckpointReader(folder).config.to_json()) == CheckpointReader(folder).config


def test_floats_that_are_not_are_refused_all_at_once(folder):
    def spoil(index, name, values):
        if (index, name) == (0, "k"):
            return values * np.linspace(1, 2, len(values), dtype=np.float32)[:, None]
        if (index, name) == (1, "up"):
            return np.random.default_rng(0).normal(size=values.shape).astype(np.float32)
        return values

    floats(folder, "F32", spoil)
    for found in (check(folder), check(folder, ternary=True)):
        assert len(found.problems) == 2
        assert (
            "layers.0.self_attn.k_proj.weight must be ternary times one scale, and is ternary with a scale"
            in (found.problems[0])
        )
        assert "layers.1.mlp.up_proj" in found.problems[1] and "quantization_mode 'online'" in found.problems[1]
        assert " % from ternary times " in found.problems[1]
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(folder)
    assert str(refused.value) == found.problems[0]
    change(
        folder,
        quantization_config={"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"},
    )  # the way out
    assert not check(folder).problems and load_checkpoint(folder)


def test_packed_weights_need_their_configuration(folder):
    change(folder, quantization_config=...)
    found = check(folder).problems
    assert sum("packed weights need a quantization_config" in text for text in found) == 14


def test_damaged_codes_are_told_by_the_ternary_check(folder):
    entry = tensorfile.TensorFolder(folder).entries["model.layers.1.mlp.up_proj.weight"]
    with open(entry.path, "r+b") as file:
        file.seek(entry.offset)
        file.write(b"\xff")
    assert not check(folder).problems
    assert "up_proj.weight must hold ternary codes" in check(folder, ternary=True).problems[0]
