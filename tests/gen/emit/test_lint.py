"""Every preset's folder, of the shipped model too, is clean by its own waivers: with Verilator's newest and with Debian's."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from intaglio import Error
from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.reader import load_checkpoint
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.emit.attention import generate as generate_prefill
from intaglio.gen.emit.decoder import generate
from intaglio.gen.presets.decoder import PRESETS
from intaglio.gen.tools import find_program
from intaglio.sim.verilator.lint import OLDEST_LINTER, lint

pytestmark = pytest.mark.slow

MODEL = Path(__file__).parents[3] / "models" / "burin"
FOREIGN = {  # other widths of sums, results and addresses than the shipped model's
    "wide": (
        {
            "vocab_size": 1000,
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 1,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 64,
        },
        "ulx3s",
        {},
    ),
    "tiny": (
        {
            "vocab_size": 40,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
        },
        "small",
        {"context": 5, "lane_width": 8, "attention_heads": 2},
    ),
}
FOREIGN["tiny, several"] = (*FOREIGN["tiny"][:2], {**FOREIGN["tiny"][2], "batch": 3, "sequences": 5})
FOREIGN["tiny, one slot, several sequences"] = (*FOREIGN["tiny"][:2], {**FOREIGN["tiny"][2], "sequences": 256})
FOREIGN["tiny, tables"] = (
    *FOREIGN["tiny"][:2],
    {**FOREIGN["tiny"][2], "batch": 2, "dot": "tables", "packing": "pairs"},
)
FOREIGN["tiny from gates"] = (*FOREIGN["tiny"][:2], {**FOREIGN["tiny"][2], "rom": "logic"})
SHIPPED = {
    **{name: (name, {}) for name in PRESETS},
    "desk with adapters": ("desk", {"rank": 4, "adapters": 2}),
    "ulx3s with gated banks": ("ulx3s", {"gate_words": 1024}),
    "desk, several": ("desk", {"batch": 4, "sequences": 8, "gate_words": 1024}),
}
PREFILL = {"desk": "desk", "wide rows": "llama-1b"}  # small is tested with its folder
LLAMA = {"context": 1024, "columns": 32, "lut_columns": 8, "lines": 16}  # narrower than the preset, which takes minutes


@pytest.fixture(scope="module")
def shipped():
    return load_checkpoint(MODEL)


@pytest.fixture(scope="module", params=[*SHIPPED, *FOREIGN, *(f"prefill {name}" for name in PREFILL)])
def folder(request, shipped, tmp_path_factory):
    out = tmp_path_factory.mktemp("lint") / "out"
    if request.param in SHIPPED:
        preset, widths = SHIPPED[request.param]
        generate(shipped, preset, out, **widths)
    elif request.param in FOREIGN:
        model, preset, widths = FOREIGN[request.param]
        generate(random_checkpoint(ModelConfig(**model)), preset, out, **widths)
    else:
        preset = PREFILL[request.param.removeprefix("prefill ")]
        generate_prefill(preset, out, **(LLAMA if preset == "llama-1b" else {}))
    yield out
    shutil.rmtree(out)


def own_bits(text):
    """Assignments of a net from bits of itself: old linters, and other tools, take them for loops."""
    name = r"(\\\S+|[A-Za-z_$][\w$]*)"
    for line in re.findall(r"^  assign (.*);$", text, re.MULTILINE):
        target, _, value = line.partition(" = ")
        if set(re.findall(name, target)) & set(re.findall(name, value)):
            yield line


def debian():
    """Debian's Verilator and its folder, if it is at least the oldest that lints; else why not."""
    program = find_program("verilator_bin", search_path="/usr/bin")
    if program is None:
        return None, "needs Debian's Verilator: apt install verilator"
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    if tuple(map(int, re.search(r"(\d+)\.(\d+)", version).groups())) < OLDEST_LINTER:
        return None, f"needs Verilator {OLDEST_LINTER[0]}.{OLDEST_LINTER[1]:03d} or newer, not {version.strip()}"
    root = subprocess.run(
        [program, "--getenv", "VERILATOR_ROOT"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return (program, root or "/usr/share/verilator"), ""


def test_lint_is_clean(folder):
    assert lint(folder) == []
    loops = {path.name: list(own_bits(path.read_text())) for path in sorted(folder.glob("rtl/*.v"))}
    assert not {name: lines for name, lines in loops.items() if lines}


def test_debians_verilator_lints_it(folder):
    found, reason = debian()
    if found is None:
        pytest.skip(reason)
    assert lint(folder, verilator=found[0], root=found[1]) == []


def test_a_fault_is_found(small_prefill, tmp_path):
    folder = shutil.copytree(small_prefill, tmp_path / "out")
    assert lint(folder) == []
    (path,) = folder.glob("rtl/*_ram.v")
    path.write_text(
        path.read_text().replace("endmodule", "    reg late;\n    always @(posedge clk) late = write_en;\nendmodule")
    )
    assert any("BLKSEQ" in line for line in lint(folder))
    assert list(own_bits("  assign a[3] = a[4];\n")) and not list(own_bits("  assign a[3] = \\a.b [4];\n"))
    (folder / "manifest.json").unlink()
    with pytest.raises(Error, match="must be a generated folder"):
        lint(folder)
