"""The generated folder of the prefill unit: reproducible, complete, clean for Verilator's linter and for Yosys."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from intaglio import Error
from intaglio.gen.emit.attention import generate
from intaglio.gen.presets.attention import PRESETS, prefill_config
from intaglio.host.manifest import PrefillManifest
from intaglio.sim.verilator.build import find_tools


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def raw_manifest(folder):
    return yaml.safe_load((folder / "manifest.json").read_text())


def top(folder):
    return raw_manifest(folder)["top"]


def lint(folder, waivers="lint.vlt"):
    """Names of Verilator's warnings."""
    tools = find_tools()
    done = subprocess.run(
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
    found = set(re.findall(r"^%(?:Warning|Error)(?:-(\w+)|: (?!Exiting))", done.stderr + done.stdout, re.MULTILINE))
    assert bool(found) == bool(done.returncode)
    return found, done.stderr[:2000]


def test_the_same_bytes_in_another_process(small_prefill, tmp_path):
    script = "import sys; from intaglio.gen.emit.attention import generate; generate('small', sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", script, tmp_path / "out"],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        cwd=tmp_path,
    )
    assert contents(tmp_path / "out") == contents(small_prefill)


def test_lint(small_prefill, tmp_path):
    found, text = lint(small_prefill)
    assert not found, text
    (tmp_path / "none.vlt").write_text("`verilator_config\n")
    waived = re.findall(r"^lint_off -rule (\w+)$", (small_prefill / "lint.vlt").read_text(), re.MULTILINE)
    without = lint(small_prefill, tmp_path / "none.vlt")[0]
    assert without and {re.sub("^WIDTH.*", "WIDTH", name) for name in without} <= set(
        waived
    )  # the list is that of all tops


def test_yosys_reads_it(small_prefill):
    """Hierarchy, processes and checks; warnings fail but for those about small memories."""
    pytest.importorskip("pyosys", reason="needs pyosys")
    files = " ".join(sorted(f"rtl/{path.name}" for path in (small_prefill / "rtl").iterdir()))
    script = ["from pyosys import libyosys", "design = libyosys.Design()"]
    script += [
        f"libyosys.run_pass({step!r}, design)"
        for step in (f"read_verilog {files}", f"hierarchy -check -top {top(small_prefill)}", "proc", "check -assert")
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(script)], cwd=small_prefill, capture_output=True, text=True)
    assert done.returncode == 0 and "ERROR" not in done.stdout, (done.stdout + done.stderr)[-2000:]
    warnings = re.findall("Warning: (?!Replacing memory).*", done.stdout + done.stderr)
    assert not warnings, warnings[:5]


def test_the_folder_is_complete(small_prefill):
    raw = raw_manifest(small_prefill)
    manifest, name = PrefillManifest.from_dict(raw), raw["top"]
    assert name == f"intaglio_{manifest.digest[:8]}_prefill"
    listed = {name for names in raw["files"].values() for name in names}
    assert listed | {"manifest.json"} == set(contents(small_prefill)) == {*raw["content"], "manifest.json"}
    assert manifest.top == name and manifest.config == prefill_config("small").to_json()
    for file in raw["files"]["verilog"]:
        text = (small_prefill / file).read_text()
        assert re.findall(r"^module (\w+)", text, re.MULTILINE) == [Path(file).stem]
        assert str(small_prefill) not in text and "src = " not in text
    used = set().union(
        *(
            re.findall(rf"^  ({name}\w*) (?:#\(|\S+ +\()", (small_prefill / file).read_text(), re.MULTILINE)
            for file in raw["files"]["verilog"]
        )
    )
    assert used | {name} == {Path(name).stem for name in raw["files"]["verilog"]}
    header = (small_prefill / "rtl" / f"{name}.v").read_text()
    ports = set(re.findall(r"^  (?:input|output) (?:\[[\d:]+\] )?(\w+);", header, re.MULTILINE))
    assert {
        "aclk",
        "aresetn",
        "m_axis_tdata",
        "m_axi_araddr",
        "m_axi_rdata",
        "s_axil_awaddr",
        raw["monitor"]["port"],
    } <= ports
    for bus, width in (
        ("m_axis_tdata", raw["streams"]["result"]["width"]),
        ("m_axi_rdata", raw["memory_bus"]["data_width"]),
        ("m_axi_araddr", raw["memory_bus"]["address_width"]),
        ("m_axis_tuser", raw["streams"]["result"]["user_width"]),
    ):
        assert f"[{width - 1}:0] {bus};" in header


def test_core_file_and_header(small_prefill, tmp_path):
    name = top(small_prefill)
    described = yaml.safe_load((small_prefill / f"{name}.core").read_text().split("\n", 1)[1])
    named = [
        file
        for part in described["filesets"].values()
        for entry in part["files"]
        for file in ([entry] if isinstance(entry, str) else entry)
    ]
    assert all((small_prefill / file).is_file() for file in named) and len(named) == len(set(named)) > 15
    assert described["targets"]["default"]["toplevel"] == name
    manifest = PrefillManifest.from_dict(raw_manifest(small_prefill))
    checks = [
        f'#include "{small_prefill / f"{name}.h"}"',
        f'_Static_assert({name.upper()}_EXPECTED_DIGEST == {manifest.digest_word}u, "digest");',
    ]
    checks += [
        f'_Static_assert({name.upper()}_{register.upper()} == {found.offset}, "{register}");'
        for register, found in manifest.registers.items()
    ]
    (tmp_path / "header.c").write_text("\n".join(checks) + "\n")
    options = ["-x", "c", "-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    subprocess.run([find_tools().compiler, *options, tmp_path / "header.c"], check=True)


def test_only_an_earlier_output_is_replaced(small_prefill, tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for target, message in (
        ("foreign", "has no manifest of one but notes.txt"),
        ("file", "must be a folder, and .*/file is a file"),
    ):
        with pytest.raises(Error, match=message):
            generate("small", tmp_path / target)
    assert contents(tmp_path) == {"foreign/notes.txt": b"mine", "file": b"mine"}


def test_an_unchanged_output_is_kept(small_prefill):
    before, steps = contents(small_prefill), []
    described = generate("small", small_prefill, reuse=True, progress=lambda text, share: steps.append((text, share)))
    assert contents(small_prefill) == before and described == raw_manifest(small_prefill)
    assert "written" not in [text for text, _ in steps]


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("tiny", {}, "the preset must be one of desk, small, llama-1b, not 'tiny'"),
        ("small", {"width": 1}, "unknown fields of a prefill configuration: width"),
        ("small", {"block": 48}, "block must be a power of 2 in 16..128, not 48"),
        ("small", {"context": 500}, "context must be a multiple of block 32, not 500"),
        ("small", {"lines": 3}, r"lines must be an integer in 4..1024, not 3"),
        ("small", {"head_dim": 100}, "head_dim must be a power of 2 in 16..128, not 100"),
    ],
)
def test_wrong_shapes_are_told(tmp_path, preset, changes, message):
    with pytest.raises(ValueError, match=message):
        generate(preset, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_every_preset_is_a_shape():
    digests = {prefill_config(name).digest() for name in PRESETS}
    assert len(digests) == len(PRESETS)
    assert prefill_config("small", lines=7).digest() != prefill_config("small").digest()
    assert prefill_config("small", clock_hz=1).digest() == prefill_config("small").digest()  # no hardware depends on it
