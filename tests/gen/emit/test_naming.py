"""Designs side by side in one project: no name twice, and every ROM finds its images from any folder."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.emit.attention import generate as generate_prefill
from intaglio.gen.emit.decoder import generate
from intaglio.gen.emit.naming import checked_prefix, renamed, top_name
from intaglio.gen.tools import find_program, find_tools
from intaglio.rtl.memory.rom import ROM_VERILOG

MODEL = ModelConfig(
    vocab_size=20,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)
WIDTHS = {
    "context": 8,
    "lanes": 2,
    "lane_width": 16,
    "vector_width": 8,
    "attention_heads": 1,
    "top_k": 2,
    "gate_words": 16,
}


@pytest.fixture(scope="module")
def designs(tmp_path_factory, small_prefill):
    """Folders of two decoders of one shape with other weights, and of a prefill unit."""
    root = tmp_path_factory.mktemp("designs")
    for seed in (1, 2):
        generate(random_checkpoint(MODEL, seed), "small", root / f"decoder_{seed}", **WIDTHS)
    return [root / "decoder_1", root / "decoder_2", small_prefill]


def manifests(folders):
    return [json.loads((folder / "manifest.json").read_text()) for folder in folders]


def test_no_name_is_in_two_designs(designs):
    names = []
    for folder, manifest in zip(designs, manifests(designs), strict=True):
        text = "".join((folder / name).read_text() for name in manifest["files"]["verilog"])
        core = yaml.safe_load((folder / manifest["files"]["core"][0]).read_text().split("\n", 1)[1])
        names.append(
            {
                *re.findall(r"^module (\w+)", text, re.MULTILINE),
                *re.findall(r"^`define (\w+)", text, re.MULTILINE),
                *re.findall(r"^#define (\w+)", (folder / manifest["files"]["header"][0]).read_text(), re.MULTILINE),
                core["name"],
                *(Path(name).name for name in manifest["content"] if name != "lint.vlt"),
            }
        )
        assert manifest["top"] in names[-1] and f"{manifest['top']}_ram" in names[-1]
    assert all(len(found) > 50 for found in names) and len(set().union(*names)) == sum(map(len, names))


def test_one_run_of_verilator_takes_all_three(designs):
    tools = find_tools()
    files = [
        folder / name
        for folder, manifest in zip(designs, manifests(designs), strict=True)
        for name in manifest["files"]["verilog"]
    ]
    done = subprocess.run(
        [tools.verilator, "--lint-only", "-Wall", "-Wno-MULTITOP", designs[0] / "lint.vlt", *files],
        text=True,
        env={**os.environ, "VERILATOR_ROOT": str(tools.root)},
        capture_output=True,
    )
    assert [line for line in done.stderr.splitlines() if line.startswith("%")] == [] and done.returncode == 0


def test_a_chosen_prefix_serves_a_decoder_and_a_prefill_unit(designs, tmp_path, monkeypatch):
    """Also with the same one for both; the register's digest does not depend on it."""
    decoder = generate(random_checkpoint(MODEL, 1), "small", tmp_path / "decoder", prefix="acme", **WIDTHS)
    monkeypatch.setattr("intaglio.gen.emit.attention.PrefillShell", lambda *_: None)
    monkeypatch.setattr("intaglio.gen.emit.attention.port_map", lambda _: {})
    monkeypatch.setattr(
        "intaglio.gen.emit.attention.convert", lambda *_: {"intaglio_prefill": "module intaglio_prefill;\nendmodule\n"}
    )
    prefill = generate_prefill("small", tmp_path / "prefill", prefix="acme")
    assert (decoder["top"], prefill["top"]) == ("acme_decoder", "acme_prefill")
    assert not {Path(name).name for name in decoder["content"]} & {Path(name).name for name in prefill["content"]} - {
        "lint.vlt"
    }
    former, _, _ = manifests(designs)
    assert decoder["digest"] == former["digest"] and former["top"] == f"intaglio_{former['digest'][:8]}_decoder"
    for name, data in ((name, (designs[0] / name).read_text()) for name in former["content"]):
        assert (tmp_path / "decoder" / name.replace(former["top"], "acme_decoder")).read_text() == (
            data.replace(former["top"], "acme_decoder").replace(former["top"].upper(), "ACME_DECODER")
        ), name


def bench(folders, tops):
    """A module with the ROM of gains of every design; prints the first words."""
    lines = ["module bench; reg clk = 0;"]
    for number, top in enumerate(tops):
        words = (folders[number] / "rom" / f"{top}_gains.hex").read_text().split()
        lines += [
            f"wire [{4 * len(words[0]) - 1}:0] data_{number};",
            f'{top}_rom #(.WIDTH({4 * len(words[0])}), .DEPTH({len(words)}), .FILE("{top}_gains.hex"))',
            f"    rom_{number} (.clk(clk), .addr(0), .data(data_{number}));",
        ]
    shown = " ".join(f'$display("%h", data_{number});' for number in range(len(tops)))
    return (
        "\n".join(
            [*lines, "`ifndef YOSYS", f"initial begin #1 clk = 1; #1 {shown} $finish; end", "`endif", "endmodule"]
        )
        + "\n"
    )


@pytest.mark.skipif(find_program("iverilog") is None, reason="needs iverilog (apt install iverilog)")
@pytest.mark.parametrize("gathered", [False, True])
def test_images_are_found_from_another_folder(designs, tmp_path, gathered):
    """By a macro for each design, or by one for all where the images lie together."""
    folders, tops = designs[:2], [manifest["top"] for manifest in manifests(designs[:2])]
    (tmp_path / "bench.v").write_text(bench(folders, tops))
    if gathered:
        for folder in folders:
            shutil.copytree(folder / "rom", tmp_path / "images", dirs_exist_ok=True)
        defines = [f'-DINTAGLIO_ROM_DIR="{tmp_path}/images/"']
    else:
        defines = [f'-D{top.upper()}_ROM_DIR="{folder}/rom/"' for folder, top in zip(folders, tops, strict=True)]
    subprocess.run(
        [
            find_program("iverilog"),
            "-g2005-sv",
            "-o",
            "bench",
            *defines,
            "bench.v",
            *(folder / "rtl" / f"{top}_rom.v" for folder, top in zip(folders, tops, strict=True)),
        ],
        cwd=tmp_path,
        check=True,
    )
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [find_program("vvp"), "../bench"], cwd=tmp_path / "elsewhere", check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == [
        (folder / "rom" / f"{top}_gains.hex").read_text().split()[0] for folder, top in zip(folders, tops, strict=True)
    ]


@pytest.mark.parametrize("where", ["", "-DINTAGLIO_ROM_DIR", "-D{}_ROM_DIR"])
def test_yosys_finds_images_from_another_folder(designs, tmp_path, where):
    """By default in ``rom/`` of the folder in which the tool runs."""
    pytest.importorskip("pyosys", reason="needs pyosys")
    folder, (top, *_) = designs[0], [manifest["top"] for manifest in manifests(designs)]
    define = f'{where.format(top.upper())}="{folder}/rom/"' if where else ""
    (tmp_path / "bench.v").write_text(bench([folder], [top]))
    script = (
        "from pyosys import libyosys as y; d = y.Design(); "
        f"y.run_pass('read_verilog {define} {folder}/rtl/{top}_rom.v {tmp_path}/bench.v', d); y.run_pass('hierarchy -top bench', d)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path if where else folder, capture_output=True, text=True
    )
    assert done.returncode == 0 and "ERROR" not in done.stdout, done.stdout[-1000:] + done.stderr
    nowhere = script.replace(f"{folder}/rom/", "/nowhere/")
    done = subprocess.run([sys.executable, "-c", nowhere], cwd=tmp_path, capture_output=True, text=True)
    assert "Can not open file" in done.stdout + done.stderr


def test_names():
    assert (
        top_name("decoder", "ab" * 32) == "intaglio_abababab_decoder"
        and top_name("prefill", "", "acme") == "acme_prefill"
    )
    modules = {
        "intaglio_decoder": 'module intaglio_decoder(a);\n  intaglio_rom #(\n    .FILE("x.hex")\n  ) intaglio_rom (\n  );\n'
        "  intaglio_decoder_core core (\n  );\n  wire intaglio_lane;\nendmodule\n",
        "intaglio_decoder_core": "module intaglio_decoder_core(a);\nendmodule\n",
        "intaglio_rom": ROM_VERILOG,
    }
    found = renamed(modules, "decoder", "acme_decoder")
    assert list(found) == ["acme_decoder", "acme_decoder_core", "acme_decoder_rom"]
    assert found["acme_decoder"] == (
        'module acme_decoder(a);\n  acme_decoder_rom #(\n    .FILE("acme_decoder_x.hex")\n  ) intaglio_rom (\n  );\n'
        "  acme_decoder_core core (\n  );\n  wire intaglio_lane;\nendmodule\n"
    )
    assert (
        "intaglio_rom" not in found["acme_decoder_rom"] and "{`ACME_DECODER_ROM_DIR, FILE}" in found["acme_decoder_rom"]
    )
    with pytest.raises(ValueError, match="must have different names"):
        renamed({"intaglio_rom": "", "intaglio_decoder_rom": ""}, "decoder", "acme_decoder")
    assert checked_prefix(None) is None and checked_prefix("A_9") == "A_9"


@pytest.mark.parametrize("prefix", [7, "", "9a", "_a", "a b", "a\n", "a.b", "a" * 65])
def test_prefixes_that_are_refused(prefix, tmp_path):
    checkpoint = random_checkpoint(MODEL, 1)
    for make in (
        lambda: generate(checkpoint, "small", tmp_path / "out", prefix=prefix, **WIDTHS),
        lambda: generate_prefill("small", tmp_path / "out", prefix=prefix),
    ):
        with pytest.raises(
            ValueError,
            match="the prefix must be a letter and then letters, digits or underscores, 64 characters at most",
        ):
            make()
    assert not (tmp_path / "out").exists()
