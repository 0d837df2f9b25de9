import io
import os
import signal
import subprocess
import sys

import pytest

import intaglio
from intaglio.cli import main
from intaglio.host import cli
from intaglio.host.device import Device

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


def test_speed_while_it_runs(python_scheme, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(cli.time, "monotonic", iter(range(10 ** 6)).__next__)
    assert run("--device", python_scheme, "--prompt", "abc", "--max-tokens", "5") == 0
    out, err = capsys.readouterr()
    assert out == "defgh\n" and "waiting for the first token" in err
    assert "\r\x1b[Kintaglio: 3 tokens, 0." in err and err.count("tokens/s") >= 4


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


@pytest.mark.parametrize("arguments, message", [
    (["--prompt", ""], "at least one byte"), (["--prompt", "a", "--max-tokens", "0"], "max_tokens must be at least 1"),
    (["--prompt", "a", "--cache", "x"], "takes no option 'cache'"), (["--prompt", "a", "--top-p", "2"], "top_p must be"),
    (["--prompt", "a", "--timeout", "0"], "timeout must be"),
])
def test_faults_are_one_line(python_scheme, capsys, arguments, message):
    assert run("--device", python_scheme, *arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("intaglio: error: ") and message in err and err.count("\n") == 1


def test_ctrl_c(python_scheme, capsys, monkeypatch):
    def interrupted(self):
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

    assert main(["run", "--device", python_scheme, "--prompt", "a", "--max-tokens", "1"],
                commands={**COMMANDS, "other": explode}) == 0


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
