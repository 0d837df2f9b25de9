"""What `make lint` refuses: a public function without types (by ruff), or with some of them (by mypy)."""

import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command, text=""):
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, input=text, capture_output=True, text=True)


@pytest.mark.parametrize("room", ["gen/emit", "sim/reference", "host", "boards", "bench"])
def test_a_public_function_needs_types(room):
    where = ("ruff", "check", "--no-cache", "--stdin-filename", f"{room}/new.py", "-")
    assert "ANN201" in run(*where, text="def shape(rows):\n    return rows\n").stdout
    done = run(
        *where, text="def shape(rows: int) -> int:\n    return _same(rows)\n\n\ndef _same(rows):\n    return rows\n"
    )
    assert done.returncode == 0, done.stdout


def test_all_of_its_parameters_need_types():
    where = ("mypy", "--config-file", "pyproject.toml", "--cache-dir", os.devnull, "-c")
    assert "missing a type annotation" in run(*where, "def shape(rows, columns: int) -> int: return columns").stdout
    assert "Incompatible return value" in run(*where, "def shape(rows: int) -> str: return rows").stdout


def test_the_installed_package_says_that_it_has_types():
    assert (resources.files("intaglio") / "py.typed").is_file()
