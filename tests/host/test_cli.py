import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import intaglio
from intaglio import progress
from intaglio.cli import main
from intaglio.host import cli
from intaglio.host.device import Device
from intaglio.host.transport import register

MODEL = Path(__file__).parents[2] / "models" / "burin"
COMMANDS = {"run": lambda: cli.register}


def run(*argv):
    return main(["run", *argv], commands=COMMANDS)


def test_text_to_output_and_speed_beside(python_scheme, capsys):
    assert run("--device", python_scheme, "--prompt", "abc", "--max-tokens", "5", "--counters") == 0
    out, err = capsys.readouterr()
    assert out == "defgh\n"
    assert "prompt: 4 tokens, first token after 0.001 ms at 80 MHz (40 cycles" in err
    assert "generated: 5 tokens (end: length)" in err and "tokens/s at 80 MHz" in err and "tokens/s wall" in err
    assert "phase busy" in err and "stall_in" in err


@pytest.fixture
def slow_scheme(double):
    """The stand-in, but a token takes a twentieth of a second, and each word of a prompt a look."""

    class Slow(double.PythonDevice):
        watch = None

        def send(self, words, last, timeout):
            self.pending = len(words)
            while self.pending:
                time.sleep(0.05)
                super().send(words[-self.pending :][:1], last[-1:], timeout)
                self.pending -= 1
                if self.watch:
                    self.watch()
            return len(words)

        def receive(self, capacity, timeout):
            time.sleep(0.05)
            return super().receive(capacity, timeout)

    register("slow", lambda rest, *, manifest=None, progress=None: Slow())
    yield "slow:any"
    register("slow", None)


@pytest.fixture
def quick(monkeypatch):
    for name in ("QUIET_SECONDS", "LINE_SECONDS", "TICK_SECONDS", "DRAW_SECONDS"):
        monkeypatch.setattr(progress, name, getattr(progress, name) / 40)


def test_progress_on_a_terminal_while_the_text_goes_to_a_file(slow_scheme, quick, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run("--device", slow_scheme, "--prompt", "abc", "--max-tokens", "5") == 0
    out, err = capsys.readouterr()
    assert out == "defgh\n" and "\r\x1b[Kintaglio:  50% prompt, 2 of 4 tokens (0 s)" in err
    assert (
        re.search(r"\r\x1b\[Kintaglio: 3 tokens, \d+\.\d tokens/s", err)
        and "\r\x1b[Kprompt: 4 tokens, first token" in err
    )


def test_progress_off_a_terminal(slow_scheme, quick, capsys):
    assert run("--device", slow_scheme, "--prompt", "x" * 12, "--max-tokens", "9") == 0
    lines = capsys.readouterr().err.splitlines()
    assert (
        1 <= sum("of 13 tokens" in line for line in lines) < 8 and 1 <= sum("tokens/s (" in line for line in lines) < 8
    )
    assert not any("\x1b" in line for line in lines)


def test_no_progress_line_in_the_text_of_a_terminal(slow_scheme, quick, monkeypatch):
    """Both streams are one terminal: the line is gone before the first character, and does not come back."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run("--device", slow_scheme, "--prompt", "abc", "--max-tokens", "5") == 0
    before, text, after = terminal.getvalue().partition("defgh\n")
    assert text and before.endswith("\r\x1b[K") and "prompt, 3 of 4" in before and "\x1b" not in after


def test_prompt_from_standard_input(python_scheme, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x")))
    assert run("--device", python_scheme, "--max-tokens", "1") == 0
    assert capsys.readouterr().out == "y\n"


def test_text_appears_as_it_is_generated(python_scheme, monkeypatch):
    seen = []

    class Out(io.StringIO):
        def flush(self):
            seen.append(self.getvalue())

    monkeypatch.setattr(sys, "stdout", Out())
    assert run("--device", python_scheme, "--prompt", "abc", "--max-tokens", "3") == 0
    assert seen[:3] == ["d", "de", "def"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--prompt", ""], "at least one byte"),
        (["--prompt", "a", "--max-tokens", "0"], "max_tokens must be at least 1"),
        (["--prompt", "a", "--cache", "x"], "takes no option 'cache'"),
        (["--prompt", "a", "--top-p", "2"], "top_p must be"),
        (["--prompt", "a", "--timeout", "0"], "timeout must be"),
        (["--prompt", "a", "--stop", ""], "stop must not be an empty text"),
        (["--prompt", "a", "--adapter", "/nowhere"], "a device must have adapter hardware"),
    ],
)
def test_faults_are_one_line(python_scheme, capsys, arguments, message):
    assert run("--device", python_scheme, *arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("intaglio: error: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--prompt", "a", "--top-k", "99"], "top_k must be in 1..16"),
        (["--prompt", "a", "--max-tokens", "0"], "max_tokens must be"),
        (["--prompt", "a" * 64], "at most 64 tokens, the device's context, not 65"),
        (["--prompt", "a", "--stop", ""], "stop must not be"),
        (["--prompt", "a", "--adapter", "/nowhere"], "a device must have adapter hardware"),
        (
            ["--prompt", "a", "--trace", "/nowhere/x.vcd"],
            "a trace must name a file that can be written, not '/nowhere/x.vcd': No such",
        ),
        (["--prompt", "a", "--trace", "x.jpg"], "a trace file must end in .vcd, .fst or .saif"),
    ],
)
def test_what_does_not_fit_is_told_before_a_simulation_is_built(
    double, tmp_path, capsys, monkeypatch, arguments, message
):
    import intaglio.sim.verilator.transport as simulated

    monkeypatch.setattr(simulated, "build", lambda *_, **__: pytest.fail("built"))
    folder = double.write_design(tmp_path / "design")
    assert run("--device", f"sim:{folder}", *arguments) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert run("--device", f"record:{tmp_path}/no/x.jsonl?target=sim:{folder}", "--prompt", "a") == 2
    assert "a recording must name a file that can be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, message",
    [
        (
            ["run", "--prompt", "a"],
            "must be a decoder, .* but it is a prefill attention unit, which `intaglio attention`",
        ),
        (
            ["attention", "--model", str(MODEL), "--text", __file__, "--tokens", "256"],
            "must be a prefill attention unit, .* but it is a decoder, which `intaglio run`",
        ),
    ],
)
def test_a_folder_of_the_other_kind_is_told_before_it_is_built(
    double, small_prefill, tmp_path, capsys, monkeypatch, argv, message
):
    import intaglio.sim.verilator.transport as simulated

    monkeypatch.setattr(simulated, "build", lambda *_, **__: pytest.fail("built"))
    folder = double.write_design(tmp_path / "design") if argv[0] == "attention" else small_prefill
    assert main([*argv, "--device", f"sim:{folder}"]) == 2
    err = capsys.readouterr().err
    assert re.search(message, err) and err.count("\n") == 1


def test_ctrl_c(python_scheme, capsys, monkeypatch):
    def interrupted(self, taker=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(Device, "receive", interrupted)
    assert run("--device", python_scheme, "--prompt", "a") == 130


def test_version_help_and_no_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"], commands=COMMANDS)
    assert ended.value.code == 0 and capsys.readouterr().out == f"intaglio {intaglio.__version__}\n"
    with pytest.raises(SystemExit):
        main(["--help"], commands=COMMANDS)
    assert "generate text with a device" in capsys.readouterr().out
    assert main([], commands=COMMANDS) == 2
    assert "run" in capsys.readouterr().err


def test_only_the_chosen_command_is_loaded(python_scheme):
    def explode():
        raise AssertionError

    assert (
        main(
            ["run", "--device", python_scheme, "--prompt", "a", "--max-tokens", "1"],
            commands={**COMMANDS, "other": explode},
        )
        == 0
    )


def test_a_command_that_cannot_be_imported_says_why(capsys):
    def missing():
        raise ImportError("no module named 'torch': pip install 'intaglio[torch]'")

    commands = {**COMMANDS, "generate": missing}
    with pytest.raises(SystemExit):
        main(["--help"], commands=commands)
    assert "not available in this installation" in capsys.readouterr().out
    assert main(["generate", "--any", "thing"], commands=commands) == 2
    assert "the command 'generate' is not available: no module named 'torch'" in capsys.readouterr().err


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a script's background ignores it; a user's terminal does not
from intaglio.cli import main
from intaglio.host import cli
def register(subparsers):
    subparsers.add_parser("wait").set_defaults(run=lambda args: (print("ready", flush=True), time.sleep(60)))
sys.exit(main(["wait"], commands={"wait": lambda: register}))
"""


def test_ctrl_c_of_a_process_leaves_no_traceback():
    with subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(10) == 130 and process.stderr.read() == b""
