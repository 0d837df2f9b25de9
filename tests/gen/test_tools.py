"""Where programs are found: the environment's own before older ones on the path, and the user's word before both."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from amaranth.hdl import Module, Signal

from intaglio.cli import main
from intaglio.gen import tools
from intaglio.gen.emit.verilog import convert
from intaglio.gen.estimate.measure import PARTS
from intaglio.gen.tools import BuildError, find_program, find_tools, use, use_all

ROOT = Path(__file__).parents[2]
OLD = {  # program of an older distribution: what it says of its version
    "verilator": "Verilator 5.006 2023-01-22",
    "verilator_bin": "Verilator 5.006 2023-01-22",
    "yosys": "Yosys 0.41 (git sha1 0000000)",
    "yosys-abc": "UC Berkeley, ABC 1.01",
    "nextpnr-ecp5": "0.4",
    "nextpnr-ice40": "0.4",
    "ecppack": "1.2",
    "icepack": "1",
}


@pytest.fixture
def no_choice(monkeypatch):
    monkeypatch.setattr(tools, "_named", {})


@pytest.fixture
def old_tools_first(tmp_path, monkeypatch, no_choice):
    """Older tools before all others on the path; each notes that it was called. Returns the file of the notes."""
    folder, called = tmp_path / "old", tmp_path / "called"
    folder.mkdir()
    for name, version in OLD.items():
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> "{called}"\necho "{version}"\nexit 0\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("AMARANTH_USE_YOSYS", raising=False)
    return called


def _design():
    m, a, b = Module(), Signal(4), Signal(4)
    m.d.sync += b.eq(a + b)
    return m, {"a": (a, None), "b": (b, None)}


def test_older_tools_on_the_path_are_not_taken(old_tools_first, tmp_path):
    found = find_tools()
    assert old_tools_first.parent / "old" not in (found.verilator.parent, found.compiler.parent)
    m, ports = _design()
    (tmp_path / "top.v").write_text("\n".join(convert(m, "top", ports).values()))
    subprocess.run(
        [found.verilator, "--lint-only", "-Wno-fatal", tmp_path / "top.v"],
        check=True,
        env={**os.environ, **found.environment},
    )
    assert "endmodule" in PARTS["lane"][0]("lane", None)
    assert not old_tools_first.exists(), old_tools_first.read_text()


def test_the_whole_run_of_a_test_takes_none(old_tools_first):
    """The test that failed where Debian's Verilator was the first, in a session of its own."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/rtl/attention/test_narrow.py::test_converts_and_lints",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout
    assert not old_tools_first.exists(), old_tools_first.read_text()


def test_programs_are_looked_for_in_one_place():
    """Nothing else searches the path, or starts a program by its bare name and so leaves it to the path."""
    programs = "verilator|verilator_bin|yosys|nextpnr-\\w+|ecppack|icepack|g\\+\\+|gcc|c\\+\\+|tclsh|iverilog|vvp|git"
    started = re.compile(rf'shutil\.which\(|(?:run|Popen|check_call|check_output)\(\s*\[\s*"(?:{programs})"')
    files = [
        path
        for room in ("rtl", "gen", "sim", "host", "boards", "bench", "tests")
        for path in (ROOT / room).rglob("*.py")
    ]
    assert len(files) > 100
    wrong = {path.relative_to(ROOT).as_posix() for path in files if started.search(path.read_text())}
    assert wrong == {"gen/tools.py"}


def test_the_environments_own_programs_come_first(old_tools_first, tmp_path, monkeypatch):
    assert find_program("verilator") == tmp_path / "old" / "verilator"  # the environment has none by this name
    own = tmp_path / "environment"
    own.mkdir()
    shutil.copy(tmp_path / "old" / "verilator", own / "verilator")
    monkeypatch.setattr(sys, "executable", str(own / "python"))
    assert find_program("verilator") == own / "verilator" and find_program("no such program") is None


def test_the_user_names_another(old_tools_first, tmp_path):
    old = tmp_path / "old"
    use("verilator", str(old / "verilator"))
    assert find_program("verilator") == old / "verilator_bin"  # the program behind the script
    with pytest.raises(
        BuildError, match=rf"Verilator must be 5.036 or newer, not 'Verilator 5.006 .* \({old}/verilator_bin\)"
    ):
        find_tools()
    for name in ("verilator", "verilator_bin"):
        (old / name).write_text("#!/bin/sh\n[ $1 = --version ] && echo Verilator 5.050 || echo /there\n")
    compiler = old / "g++-9"
    shutil.copy(old / "yosys", compiler)
    use_all([f"g++={compiler}"])
    found = find_tools()
    assert (found.verilator, found.root, found.compiler) == (old / "verilator_bin", Path("/there"), compiler)
    assert "5.050" in found.identity and found.environment == {"VERILATOR_ROOT": "/there"}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("verilator", "a tool must be named as NAME=PROGRAM, not 'verilator'"),
        ("yosys=/bin/true", "a tool that can be named must be one of verilator, g\\+\\+, not 'yosys'"),
        ("verilator=/nowhere", "the program for verilator must be one that can be run, not '/nowhere'"),
    ],
)
def test_wrong_choices(no_choice, capsys, choice, message):
    with pytest.raises(BuildError, match=message):
        use_all([choice])
    assert main(["--tool", choice, "gen", "presets"]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.skipif(find_program("make") is None, reason="needs make")
def test_make_passes_the_users_choice_on():
    def command(*variables):
        return subprocess.run(
            [find_program("make"), "-n", "-o", ".venv/.ready", "test-quick", "VENV=.venv", *variables],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert "--tool" not in command()
    assert "--tool verilator=/opt/v --tool g++=g++-13" in command("VERILATOR=/opt/v", "CXX=g++-13")
