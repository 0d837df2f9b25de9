"""Tokenizers that come with a checkpoint: passed on as they are, or refused before anything is written."""

import dataclasses
import hashlib
import json

import pytest

from intaglio.gen.checkpoint.model import CheckpointError, ModelConfig
from intaglio.gen.checkpoint.reader import load_checkpoint, save_checkpoint
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.checkpoint.text import check_text, read_text, tokenizer_kind
from intaglio.gen.emit.decoder import contents, generate

CONFIG = ModelConfig(
    vocab_size=12,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=64,
    bos_token_id=0,
    eos_token_id=(1, 2),
)
WIDTHS = {"lanes": 2, "lane_width": 8, "vector_width": 8, "attention_heads": 1}


def files(kind="BPE", *, vocab=None, added=(9, 10), **more):
    listed = [[c, -1.0] for c in "abcdefgh"] if kind == "Unigram" else {c: i for i, c in enumerate("abcdefgh")}
    model = {"type": kind, "vocab": listed if vocab is None else vocab}
    text = {"model": model, "added_tokens": [{"id": i, "content": f"<{i}>"} for i in added]}
    return {"tokenizer.json": json.dumps(text).encode()} | more


@pytest.mark.parametrize("kind", ["BPE", "Unigram", "WordPiece"])
def test_accepted(kind):
    check_text(files(kind), CONFIG)
    assert tokenizer_kind(files(kind), 12) == "tokenizers"
    assert tokenizer_kind({}, 256) == "bytes" and tokenizer_kind({}, 257) == "none"


@pytest.mark.parametrize(
    "text, message",
    [
        (files("WordLevel"), "must be BPE, Unigram or WordPiece, not 'WordLevel'"),
        ({"tokenizer.json": b"[]"}, "tokenizer.json must hold a JSON object, not list"),
        ({"tokenizer.json": b"{"}, "tokenizer.json must be JSON"),
        ({"tokenizer.json": b'{"model": 3}'}, "must be BPE, Unigram or WordPiece, not None"),
        (files(vocab=3), "must list its tokens"),
        (files(added=(12,)), "tokens in 0..11, those of the model, not 0..12"),
        (files(vocab={"a": 0, "b": 1}), "eos_token_id must be a token of tokenizer.json, not 2"),
        (files(vocab={"a": 1, "b": 2}), "bos_token_id must be a token of tokenizer.json, not 0"),
        (files(**{"tokenizer_config.json": b"3"}), "tokenizer_config.json must hold a JSON object, not int"),
    ],
)
def test_refused(text, message, tmp_path):
    save_checkpoint(tmp_path / "model", dataclasses.replace(random_checkpoint(CONFIG), text=text))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "model")
    with pytest.raises(CheckpointError, match=message):
        generate(tmp_path / "model", "small", tmp_path / "out", **WIDTHS)
    assert not (tmp_path / "out").exists()


def test_the_files_come_with_the_design(tmp_path):
    text = files(**{"tokenizer_config.json": b"{}", "chat_template.jinja": b"{{ 1 }}"})
    save_checkpoint(tmp_path / "model", dataclasses.replace(random_checkpoint(CONFIG), text=text))
    loaded = load_checkpoint(tmp_path / "model")
    assert loaded.text == text == read_text(tmp_path / "model", CONFIG)
    found, manifest = contents(loaded, "small", **WIDTHS)
    assert manifest["model"]["tokenizer"] == "tokenizers"
    assert manifest["files"]["tokenizer"] == [f"tokenizer/{name}" for name in sorted(text)]
    assert {
        name.removeprefix("tokenizer/"): data for name, data in found.items() if name.startswith("tokenizer/")
    } == text
    plain, without = contents(dataclasses.replace(loaded, text={}), "small", **WIDTHS)
    assert without["digest"] == manifest["digest"] and without["inputs"] != manifest["inputs"]
    assert "tokenizer" not in without["files"] and set(plain) == set(found) - set(manifest["files"]["tokenizer"])


def test_a_changed_file_is_seen(tmp_path):
    save_checkpoint(tmp_path / "model", dataclasses.replace(random_checkpoint(CONFIG), text=files()))
    manifest = generate(tmp_path / "model", "small", tmp_path / "out", **WIDTHS)
    name = "tokenizer/tokenizer.json"
    assert manifest["content"][name] == hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest()
