"""Output folders: what a generator did not write stays, and nothing that was not finished looks whole."""

import fcntl
import json
import os
from pathlib import Path

import pytest

from intaglio import Error
from intaglio.gen.emit import output
from intaglio.host.manifest import Manifest, ManifestError

CONTENT = {"rtl/a.v": b"module a; endmodule\n", "rom/a.hex": b"0\n", "a.h": b""}
MANIFEST = {"kind": "decoder", "inputs": "1"}


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def written(folder, content=CONTENT, kind="decoder"):
    out = output.check_folder(folder, kind)
    output.write(out, content, MANIFEST | {"kind": kind})
    return out


def test_files_of_the_user_stay(tmp_path):
    out = written(tmp_path / "out")
    mine = {"notes.txt": b"mine", "rtl/bench.v": b"", "rtl/constraints/pins.xdc": b"", "rom/.keep": b""}
    for name, data in mine.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(data)
    (out / "link").symlink_to("notes.txt")
    written(out, {"rtl/b.v": b"", "doc/x/b.txt": b""})
    assert mine.items() <= contents(out).items() and (out / "link").is_symlink()
    assert set(contents(out)) == {*mine, "link", "rtl/b.v", "doc/x/b.txt", "manifest.json"}
    written(out, {"c.v": b""})
    assert not (out / "doc").exists() and set(contents(out)) == {
        *mine,
        "link",
        "c.v",
        "manifest.json",
    }  # only emptied folders go


@pytest.mark.parametrize("name, mine", [("rtl/new.v", "rtl/new.v"), ("new/a.v", "new"), ("rtl", "rtl/x/a.v")])
def test_a_file_in_the_way_is_named_and_nothing_is_done(tmp_path, name, mine):
    out = written(tmp_path / "out")
    (out / mine).parent.mkdir(exist_ok=True)
    (out / mine).write_bytes(b"mine")
    before = contents(out)
    with pytest.raises(
        Error, match=f"must not be in the way in .*: move {mine}|{name} must be a file, and a folder is in the way"
    ):
        written(out, {name: b"theirs"})
    assert contents(out) == before
    assert output.kept(out, "1")


def test_links_do_not_lead_a_generator_out_of_its_folder(tmp_path):
    out, elsewhere = written(tmp_path / "out"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.h").write_text("mine")
    (out / "a.h").unlink()
    (out / "a.h").symlink_to(elsewhere / "a.h")  # a listed file is replaced, what it links to is not
    written(out)
    assert (elsewhere / "a.h").read_text() == "mine" and not (out / "a.h").is_symlink()
    (out / "rtl").rename(elsewhere / "rtl")
    (out / "rtl").symlink_to(elsewhere / "rtl")
    with pytest.raises(Error, match="must be inside the folder, not 'rtl/a.v'"):
        written(out)
    assert (elsewhere / "rtl" / "a.v").is_file()


@pytest.mark.parametrize("name", ["../mine.txt", "/etc/hostname", "rtl/../../mine.txt"])
def test_a_manifest_that_lists_files_outside_is_refused(tmp_path, name):
    (tmp_path / "mine.txt").write_text("mine")
    out = written(tmp_path / "out")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["content"][name] = ""
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Error, match="must be inside the folder, not"):
        written(out)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_another_kind_is_refused(tmp_path):
    kinds = ("decoder", "prefill-attention", "lane", "rom-banks")
    for kind in kinds:
        out = written(tmp_path / kind, kind=kind)
        for other in (other for other in (*kinds, "board", "kernel") if other != kind):
            with pytest.raises(Error, match="and its manifest.json is that of .*: choose another folder"):
                output.check_folder(out, other)
    board = tmp_path / "board"
    board.mkdir()
    for more, kind in (({"link": {}}, "board"), ({"kernel": {}}, "kernel"), ({"format": "intaglio-banks"}, "banks")):
        (board / "manifest.json").write_text(json.dumps({"format": output.FORMAT, **MANIFEST, "content": {}, **more}))
        with pytest.raises(Error, match="is that of a board|is that of a kernel package|is that of ROM banks"):
            output.check_folder(board, "decoder")
        assert kind == "banks" or output.check_folder(board, kind) == board


@pytest.mark.parametrize("stop", range(7))
def test_a_run_that_ends_early_leaves_nothing_that_looks_whole(tmp_path, monkeypatch, stop):
    """Ended before the n-th change to the folder: what is there is not taken for an output, and the next run makes it whole."""
    out = written(tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    former, changes = contents(out), [0]

    def counted(function):
        def change(path, *arguments, **options):
            if out in Path(path).parents:
                changes[0] += 1
                if changes[0] > stop:
                    raise KeyboardInterrupt
            return function(path, *arguments, **options)

        return change

    content = {"rtl/b.v": b"b", "a.h": b"new"}
    with monkeypatch.context() as patch:
        for name in ("write_bytes", "unlink", "replace"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        with pytest.raises(KeyboardInterrupt):
            written(out, content)
    untouched = {name: data for name, data in contents(out).items() if name != ".manifest.json.new"} == former
    assert untouched or not output.kept(out, "1")
    if not untouched:
        with pytest.raises(ManifestError, match="format must be 'intaglio-manifest', not 'intaglio-unfinished'"):
            Manifest.read(out)
    written(out, content)
    assert contents(out).items() >= {**content, "notes.txt": b"mine"}.items() and len(contents(out)) == 4
    assert output.kept(out, "1")


def test_what_was_changed_is_made_anew(tmp_path):
    out = written(tmp_path / "out")
    assert output.kept(out, "1") == json.loads((out / "manifest.json").read_text()) and not output.kept(out, "2")
    (out / "notes.txt").write_text("mine")
    assert output.kept(out, "1")
    (out / "a.h").write_text("changed")
    assert not output.kept(out, "1")
    (out / "a.h").unlink()
    assert not output.kept(out, "1")


def test_an_output_from_before_files_had_digests_is_replaced(tmp_path):
    names = ["rtl/intaglio_decoder.v", "rom/gains.hex", "lint.vlt", "intaglio_decoder.core", "intaglio_decoder.h"]
    for name in (*names, "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    files = {"verilog": names[:1], "rom": names[1:2], "lint": names[2:3]}
    (tmp_path / "manifest.json").write_text(
        json.dumps(
            {"format": output.FORMAT, **MANIFEST, "top": "intaglio_decoder", "files": files, "content": "5e" * 32}
        )
    )
    assert not output.kept(tmp_path, "1")
    written(tmp_path)
    assert set(contents(tmp_path)) == {*CONTENT, "manifest.json", "notes.txt"}


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    out = written(tmp_path / "out")
    other = os.open(out, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(Error, match="must not be in use, and another run is writing to"):
        written(out)
    os.close(other)
    written(out)


def test_a_mark_claims_a_new_folder_and_leaves_an_output_alone(tmp_path):
    output.mark(tmp_path / "new", "board")
    assert output.check_folder(tmp_path / "new", "board")
    with pytest.raises(Error, match="that of a board's build"):
        output.check_folder(tmp_path / "new", "decoder")
    before = contents(written(tmp_path / "out"))
    output.mark(tmp_path / "out", "decoder")
    assert contents(tmp_path / "out") == before
