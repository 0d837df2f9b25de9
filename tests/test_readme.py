"""The README's commands and snippets do what they say: every ``sh`` and ``python`` block is run, in order."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.verilator
@pytest.mark.slow
def test_readme(tmp_path):
    (tmp_path / "models").symlink_to(ROOT / "models")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(ROOT / "build" / "test-cache"),
    }
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    assert [kind for kind, _ in blocks].count("sh") >= 2 and "python" in dict(blocks)
    outputs = []
    for kind, text in blocks:
        command = ["bash", "-euc", text] if kind == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert "def read_header" not in outputs[0] and len(outputs[0]) > 80  # the continuation, not the prompt
    assert (tmp_path / "build" / "desk" / "manifest.json").is_file()
    assert (tmp_path / "build" / "ulx3s" / "rtl" / "burin_decoder.v").is_file()
    assert re.search(r"[0-9a-f]{8} \d+\.\d+ \{'embed': \d+", outputs[1])


def test_shown_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text())):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_files_named_in_the_docs_exist():
    """A page may name files of one folder after it, as "`rtl/kv/`: `cache.py`"; those are looked for in the whole house."""
    rooms = [ROOT / name for name in ("rtl", "gen", "sim", "host", "boards", "bench", "tests")]
    names = {path.name for room in rooms for path in room.rglob("*.*")} | {
        f"{name}.py" for name in sys.stdlib_module_names
    }
    missing = []
    for page in [*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        text = page.read_text()
        paths = re.findall(r"(?<![\w./])((?:rtl|gen|sim|host|boards|bench|tests|models|docs)/[\w./-]*\w/?)", text)
        missing += [(page.name, path) for path in paths if not (ROOT / path).exists()]
        missing += [(page.name, name) for name in re.findall(r"`(\w+\.(?:py|cpp|h))`", text) if name not in names]
    assert missing == []
