"""Folders of decoders whose weight ROMs are gates: complete, clean, the same bytes again, and refused where they would be too large."""

import dataclasses
import json
import re

import pytest
import yaml

from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.emit.decoder import generate
from intaglio.gen.emit.logic import MOST_BITS
from intaglio.sim.verilator.lint import lint

MODEL = ModelConfig(
    vocab_size=20,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)
WIDTHS = {"context": 8, "lanes": 2, "lane_width": 16, "vector_width": 8, "attention_heads": 1, "top_k": 2}
GATED = {"gate_words": 8, "gate_wake": 4}


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root, steps = tmp_path_factory.mktemp("logic"), {"image": [], "logic": [], "banks": []}
    manifests = {
        name: generate(
            random_checkpoint(MODEL, 1),
            "small",
            root / name,
            progress=lambda *step, name=name: steps[name].append(step),
            **WIDTHS,
            **changes,
        )
        for name, changes in (
            ("image", {}),
            ("logic", {"rom": "logic"}),
            ("banks", {"rom": "logic", "prefix": "acme", **GATED}),
        )
    }
    return root, manifests, steps


@pytest.mark.parametrize("name", ["logic", "banks"])
def test_a_folder_is_complete_and_clean(folders, name):
    root, manifests, _ = folders
    manifest, top = manifests[name], manifests[name]["top"]
    assert manifest["config"]["rom"] == "logic"
    listed = [path for paths in manifest["files"].values() for path in paths]
    assert sorted([*listed, "manifest.json"]) == sorted(contents(root / name))
    assert not [path for path in listed if path.startswith("rom/") and "weights" in path]
    weights = [path for path in manifest["files"]["verilog"] if re.search(r"_weights_\d", path)]
    depth = 16 * (16 + 2 * 8 + 16 + 3 * 16) // (2 * 16)
    assert len(weights) == (2 * -(-depth // GATED["gate_words"]) if name == "banks" else 2)
    (core,) = manifest["files"]["core"]
    filesets = yaml.safe_load((root / name / core).read_text().split("\n", 1)[1])["filesets"]
    assert set(weights) <= set(filesets["rtl"]["files"])
    text = "".join((root / name / path).read_text() for path in manifest["files"]["verilog"])
    modules = set(re.findall(r"^module (\w+)", text, re.MULTILINE))
    assert all(module.startswith(top) for module in modules)
    assert {path.split("/")[1].removesuffix(".v") for path in weights} <= modules
    assert lint(root / name) == []


def test_other_units_do_not_see_the_difference(folders):
    """Only what holds the weight ROMs differs, but for the digest."""
    root, manifests, _ = folders

    def modules(name):
        top = manifests[name]["top"]
        own = re.compile(f"{top}|{int(manifests[name]['digest'][:8], 16)}", re.IGNORECASE)
        paths = manifests[name]["files"]["verilog"]
        return {path.replace(top, "top"): own.sub("", (root / name / path).read_text()) for path in paths}

    image, logic = modules("image"), modules("logic")
    changed = {path for path in image if image[path] != logic.get(path)}
    assert changed == {f"rtl/top_core_linear_rom_{lane}.v" for lane in range(2)}
    assert set(logic) - set(image) == {f"rtl/top_weights_{lane}.v" for lane in range(2)}


def test_the_same_bytes_however_many_processes(folders, tmp_path):
    root, *_ = folders
    generate(random_checkpoint(MODEL, 1), "small", tmp_path / "out", processes=2, rom="logic", **WIDTHS)
    assert contents(tmp_path / "out") == contents(root / "logic")


def test_what_is_too_large_is_told_before_weights_are_read(tmp_path):
    large = dataclasses.replace(MODEL, hidden_size=1024, intermediate_size=4096, num_attention_heads=128)
    (tmp_path / "config.json").write_text(json.dumps(large.to_json()))
    with pytest.raises(ValueError, match=f"at most {MOST_BITS:,} bits .*, not [0-9,]+: use rom=image"):
        generate(tmp_path, "small", tmp_path / "out", rom="logic", **WIDTHS)
    with pytest.raises(ValueError, match=r"processes must be an integer in 1\.\.64, not 0"):
        generate(random_checkpoint(MODEL, 1), "small", tmp_path / "out", processes=0, **WIDTHS)
    assert not (tmp_path / "out").exists()


def test_progress_says_how_long_it_may_take(folders):
    steps = folders[2]["logic"]
    texts, shares = zip(*steps, strict=True)
    assert any(re.fullmatch(r"2 weight ROMs as logic, about \d+ s", text) for text in texts)
    assert "2 of 2 weight ROMs as logic" in texts and list(shares) == sorted(shares)
