"""``intaglio check``: everything that stands in the way, at once, in the words of what ``gen`` refuses one at a time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from intaglio.cli import main
from intaglio.gen import check as command
from intaglio.gen.check import check
from intaglio.gen.checkpoint import tensorfile
from intaglio.gen.checkpoint.model import CheckpointError, ModelConfig
from intaglio.gen.checkpoint.reader import CheckpointReader, save_checkpoint
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
        ({"quantization_config": ...}, 1),
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
