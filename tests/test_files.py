"""What is wrong with a file that the user names is told as it is, and before long work."""

import os
from pathlib import Path

import pytest

from intaglio import Error
from intaglio.files import check_output
from intaglio.gen.checkpoint.model import CheckpointError
from intaglio.gen.checkpoint.tensorfile import TensorFolder


def test_a_file_to_be_written_is_looked_at_and_left_alone(tmp_path):
    (tmp_path / "there").write_text("kept")
    assert (
        check_output(str(tmp_path / "there"), "it") == tmp_path / "there" and (tmp_path / "there").read_text() == "kept"
    )
    check_output(tmp_path / "new", "it")
    assert check_output("new", "it") == Path("new") and not (tmp_path / "new").exists()


def test_why_a_file_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for path, reason in (
        (tmp_path, "Is a directory"),
        (tmp_path / "no" / "file", "No such file"),
        (tmp_path / "file" / "x", "Not a dir"),
        (tmp_path / "loop", "Too many levels"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(Error, match=f"--map must name a file that can be written, not .*{path.name}': {reason}"):
            check_output(path, "--map")
    monkeypatch.setattr(os, "access", lambda *_: False)
    for name in ("file", "new"):
        with pytest.raises(Error, match=f"not .*{name}': Permission denied"):
            check_output(tmp_path / name, "--map")


def test_tensors_that_may_not_be_read_are_not_missing(tmp_path):
    for name in ("model.safetensors", "model.safetensors.index.json"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).symlink_to(name)
        with pytest.raises(CheckpointError, match=f"{name} must be a readable file: Too many levels"):
            TensorFolder(folder)
        (folder / name).unlink()
        (folder / name).mkdir()
        with pytest.raises(CheckpointError, match=f"{name} must be a readable file: Is a directory"):
            TensorFolder(folder)
