"""Generated folders: reproducible, complete, clean for Verilator's linter and for Yosys; foreign folders are left alone."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from intaglio import Error, __version__
from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.reader import save_checkpoint
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.emit.attention import generate as generate_prefill
from intaglio.gen.emit.decoder import generate
from intaglio.gen.presets.decoder import config_for
from intaglio.host.manifest import Manifest
from intaglio.sim.verilator.build import find_tools

pytestmark = pytest.mark.slow

MODEL = ModelConfig(
    vocab_size=61,
    hidden_size=96,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
)
WIDTHS = {
    "desk": {"context": 32, "lane_width": 32},
    "ulx3s": {"context": 30, "lane_width": 48},
    "small": {"context": 4, "attention_heads": 3, "top_k": 1, "rank": 4, "adapters": 2, "adapter_trits": 2},
}
NAMED = {"ulx3s": "acme", "small": "intaglio"}  # presets with a prefix of their own
ONE_PROCESS = (
    "import sys; from intaglio.gen.emit.decoder import generate; "
    "generate(sys.argv[1], 'desk', sys.argv[2], context=32, lane_width=32)"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Generated folders by preset, and the checkpoint's folder as ``model``."""
    root = tmp_path_factory.mktemp("generated")
    save_checkpoint(root / "model", random_checkpoint(MODEL))
    for preset, widths in WIDTHS.items():
        generate(root / "model", preset, root / preset, prefix=NAMED.get(preset), **widths)
    return root


def top(folder):
    return json.loads((folder / "manifest.json").read_text())["top"]


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def lint(folder, waivers="lint.vlt"):
    """Names of Verilator's warnings."""
    tools = find_tools()
    result = subprocess.run(
        [
            tools.verilator,
            "--lint-only",
            "-Wall",
            "--top-module",
            top(folder),
            waivers,
            *sorted(path.relative_to(folder) for path in folder.glob("rtl/*.v")),
        ],
        cwd=folder,
        env={**os.environ, "VERILATOR_ROOT": str(tools.root)},
        capture_output=True,
        text=True,
    )
    found = re.findall(r"^%(?:Warning|Error)(?:-(\w+)|: (?!Exiting))", result.stderr + result.stdout, re.MULTILINE)
    assert bool(found) == bool(result.returncode)
    return set(found), result.stderr[:2000]


def test_the_same_bytes_in_another_process(folders, tmp_path):
    expected = contents(folders / "desk")
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", ONE_PROCESS, folders / "model", tmp_path / seed],
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=tmp_path,
        )
        assert contents(tmp_path / seed) == expected


@pytest.mark.parametrize("preset", WIDTHS)
def test_lint_is_clean(folders, preset):
    found, text = lint(folders / preset)
    assert not found, text


def test_every_waiver_is_needed(folders, tmp_path):
    (tmp_path / "none.vlt").write_text("`verilator_config\n")
    found = set().union(*(lint(folders / preset, tmp_path / "none.vlt")[0] for preset in WIDTHS))
    found = {re.sub("^WIDTH.*", "WIDTH", name) for name in found}  # new versions have several, old ones that alone
    waived = re.findall(r"^lint_off -rule (\w+)$", (folders / "desk" / "lint.vlt").read_text(), re.MULTILINE)
    assert sorted(waived) == sorted(found)


@pytest.mark.parametrize("preset", WIDTHS)
def test_yosys_accepts_it(folders, preset):
    files = " ".join(sorted(f"rtl/{path.name}" for path in (folders / preset / "rtl").iterdir()))
    script = ["from pyosys import libyosys", "design = libyosys.Design()"]
    script += [
        f"libyosys.run_pass({step!r}, design)"
        for step in (f"read_verilog {files}", f"hierarchy -check -top {top(folders / preset)}", "proc", "check -assert")
    ]
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(script)], cwd=folders / preset, capture_output=True, text=True
    )
    assert result.returncode == 0 and "ERROR" not in result.stdout, (result.stdout + result.stderr)[-2000:]
    warnings = re.findall(
        "Warning: (?!Replacing memory).*", result.stdout + result.stderr
    )  # those are a few words only
    assert not warnings, warnings[:5]


@pytest.mark.parametrize("preset", WIDTHS)
def test_the_folder_is_complete(folders, preset):
    folder = folders / preset
    manifest = Manifest.read(folder)
    raw = yaml.safe_load((folder / "manifest.json").read_text())
    listed = {name for names in raw["files"].values() for name in names}
    assert listed | {"manifest.json"} == set(contents(folder)) == {*raw["content"], "manifest.json"}
    assert (
        manifest.top == f"{NAMED.get(preset, f'intaglio_{manifest.digest[:8]}')}_decoder"
        and manifest.model["vocab_size"] == 61
    )
    assert all(Path(name).name.startswith(manifest.top) for name in listed - {"lint.vlt"})
    assert len(raw["files"]["rom"]) == raw["config"]["lanes"] + 5
    assert 30 <= len(raw["files"]["verilog"]) <= 60
    for name in raw["files"]["verilog"]:
        text = (folder / name).read_text()
        assert re.findall(r"^module (\w+)", text, re.MULTILINE) == [Path(name).stem]
        assert str(folder) not in text and "src = " not in text
    used = set().union(
        *(
            re.findall(rf"^  ({manifest.top}\w*) (?:#\(|\S+ +\()", (folder / name).read_text(), re.MULTILINE)
            for name in raw["files"]["verilog"]
        )
    )
    assert used | {manifest.top} == {Path(name).stem for name in raw["files"]["verilog"]}


def test_a_rom_has_as_many_words_as_its_instance_says(folders):
    text = "".join(path.read_text() for path in sorted((folders / "desk" / "rtl").glob("*.v")))
    instances = re.findall(r'\.DEPTH\(32\'d(\d+)\),\s+\.FILE\("(\w+\.hex)"\)', text)
    found = {name: int(depth) for depth, name in instances}
    words = {path.name: len(path.read_text().split()) for path in (folders / "desk" / "rom").iterdir()}
    assert found == words


def test_core_file_and_header(folders, tmp_path):
    folder = folders / "desk"
    name = top(folder)
    core = (folder / f"{name}.core").read_text()
    assert core.startswith("CAPI=2:\n")
    described = yaml.safe_load(core.split("\n", 1)[1])
    named = [
        file
        for part in described["filesets"].values()
        for entry in part["files"]
        for file in ([entry] if isinstance(entry, str) else entry)
    ]
    assert all((folder / file).is_file() for file in named) and len(named) == len(set(named)) > 30
    assert described["targets"]["default"]["toplevel"] == name
    assert described["name"] == f"intaglio:generated:{name}:{__version__}"
    assert [next(iter(entry.values())) for entry in described["filesets"]["rom"]["files"]] == [
        {"file_type": "mem", "copyto": image}
        for image in json.loads((folder / "manifest.json").read_text())["files"]["rom"]
    ]
    manifest = Manifest.read(folder)
    checks = [
        f'#include "{folder / f"{name}.h"}"',
        f'_Static_assert({name.upper()}_EXPECTED_DIGEST == {manifest.digest_word}u, "digest");',
    ]
    checks += [
        f'_Static_assert({name.upper()}_{register.upper()} == {found.offset}, "{register}");'
        for register, found in manifest.registers.items()
    ]
    (tmp_path / "header.c").write_text("\n".join(checks) + "\n")
    options = ["-x", "c", "-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    subprocess.run([find_tools().compiler, *options, tmp_path / "header.c"], check=True)


def test_another_weight_is_another_digest(folders, tmp_path):
    other = random_checkpoint(MODEL)
    other.layers[1].matrices["down"].weights[-1, -1] ^= 1
    former, prefix = Manifest.read(folders / "desk"), top(folders / "desk").removesuffix("_decoder")
    manifest = generate(other, "desk", tmp_path / "out", prefix=prefix, **WIDTHS["desk"])
    assert manifest["digest"] != former.digest
    one, two = contents(folders / "desk"), contents(tmp_path / "out")
    changed = {name for name in one if one[name] != two[name]}
    roms = {name for name in changed if name.startswith("rom/")}
    assert len(roms) == 1 and changed - roms == {"manifest.json", f"{former.top}.h", f"rtl/{former.top}.v"}


def test_only_an_earlier_output_is_replaced(folders, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    project = tmp_path / "project"  # a manifest of another kind beside a folder of the same name
    (project / "rtl").mkdir(parents=True)
    (project / "manifest.json").write_text('{"name": "mine"}')
    small = {"prefix": "intaglio", **WIDTHS["small"]}
    for target, message in (
        (foreign, "must be empty or hold an earlier output, and has no manifest of one but notes.txt"),
        (tmp_path / "file", "must be a folder, and .*/file is a file"),
        (tmp_path / "file" / "out", "/file is a file"),
        (project, "has no manifest of one but manifest.json, rtl"),
    ):
        with pytest.raises(Error, match=message):  # before the model is read
            generate(tmp_path / "no model", "small", target, **small)
    assert contents(tmp_path) == {
        "file": b"mine",
        "foreign/notes.txt": b"mine",
        "project/manifest.json": b'{"name": "mine"}',
    }

    steps = []
    out = tmp_path / "out"
    out.mkdir()
    generate(folders / "model", "small", out, progress=lambda text, share: steps.append(share), **small)
    assert steps == sorted(steps) and (steps[0], steps[-1]) == (0.0, 1.0)
    mine = {"bench.v": b"", "rtl/pins.xdc": b"pins", "notes/notes.txt": b"mine"}
    for name, data in mine.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(data)
    generate(folders / "model", "small", out, **small)
    assert contents(out) == contents(folders / "small") | mine
    with pytest.raises(Error, match="must be empty or hold a prefill unit, and its manifest.json is that of a decoder"):
        generate_prefill("small", out)
    generate(folders / "model", "small", out, **{**small, "prefix": "acme"})  # every file has another name now
    assert {name for name in contents(out) if "intaglio" in name} == set() and mine.items() <= contents(out).items()
    assert (set(contents(out)) - set(mine)) == {
        *json.loads((out / "manifest.json").read_text())["content"],
        "manifest.json",
    }


def test_an_unchanged_output_is_kept(folders, tmp_path):
    out = tmp_path / "out"
    generate(folders / "model", "small", out, prefix="intaglio", **WIDTHS["small"])

    def regenerated(prefix="intaglio", **widths):
        steps = []
        generate(
            folders / "model",
            "small",
            out,
            prefix=prefix,
            reuse=True,
            progress=lambda text, share: steps.append(text),
            **widths,
        )
        return "written" in steps

    assert not regenerated(**WIDTHS["small"])
    (out / "notes.txt").write_text("mine")
    assert not regenerated(**WIDTHS["small"]) and (out / "notes.txt").is_file()
    (out / "notes.txt").unlink()
    with (out / "rom" / "intaglio_decoder_gains.hex").open("a") as file:
        file.write("0\n")
    assert regenerated(**WIDTHS["small"]) and contents(out) == contents(folders / "small")
    assert regenerated(prefix="acme", **WIDTHS["small"])
    assert regenerated(**{**WIDTHS["small"], "top_k": 2}) and not regenerated(**{**WIDTHS["small"], "top_k": 2})


def test_a_shape_that_does_not_fit_is_told_before_weights_are_read(tmp_path):
    large = dataclasses.replace(MODEL, vocab_size=1 << 20)  # the protocol's tokens have 20 bits
    (tmp_path / "config.json").write_text(json.dumps(large.to_json()))
    with pytest.raises(ValueError, match="vocab must be in 2..1048575, not 1048576"):
        generate(tmp_path, "small", tmp_path / "out", attention_heads=3)


@pytest.mark.parametrize(
    ("preset", "widths", "message"),
    [
        ("tiny", {}, "preset must be one of desk"),
        ("desk", {"width": 1}, "a width must be one of context"),
        ("desk", {"context": 4096}, "max_position_embeddings = 2048"),
        ("small", {"top_k": 62}, "at most vocab = 61"),
        ("desk", {"lane_width": 50}, "lane_width must divide hidden = 96"),
    ],
)
def test_wrong_widths_are_told(folders, tmp_path, preset, widths, message):
    with pytest.raises(ValueError, match=message):
        generate(folders / "model", preset, tmp_path / "out", **widths)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("heads, kv_heads, expected", [(6, 1, 2), (6, 2, 1), (8, 2, 2), (4, 4, 1)])
def test_a_presets_attention_heads_divide_the_group(heads, kv_heads, expected):
    model = ModelConfig(
        vocab_size=64,
        hidden_size=16 * heads,
        intermediate_size=32 * heads,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=16,
    )
    assert config_for(model, "ulx3s", lane_width=32).attention_heads == expected
    with pytest.raises(ValueError, match="attention_heads must divide heads / kv_heads"):
        config_for(model, "ulx3s", lane_width=32, attention_heads=heads + 1)
