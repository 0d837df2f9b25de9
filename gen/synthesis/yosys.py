"""Yosys and ABC of the wheel pyosys, each in a process of its own, which they may end and whose memory goes with it."""

import importlib.util
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from intaglio import Error
from intaglio.gen.synthesis.liberty import Liberty

__all__ = ["GATE_LEVEL", "abc_program", "exit_in_time", "library_cells", "run_tool", "run_yosys"]

GATE_LEVEL = ("techmap", "opt -full", "techmap", "opt_clean", "select -assert-none t:$* t:$_* %d t:$scopeinfo %d")
"""From cells of words to gates of bits, for ABC. ``opt -full`` joins gates to words again here and there (a ``$mux``), which ABC does not
know and no library has: hence the second ``techmap``, and the check."""


def run_yosys(
    steps: Sequence[str],
    folder: Path | str,
    what: str,
    *,
    timeout: float,
    progress: Callable[[str, float], None] | None = None,
) -> str:
    """Run Yosys' commands ``steps`` in ``folder``; returns the end of what it wrote.

    Parameters
    ----------
    steps : list of str
    folder : path
    what : str
        What is mapped, for faults.
    timeout : float
        Seconds.
    progress : callable or None
        Called with a text and the share of the steps done (0 to 1).

    Raises
    ------
    Error
        pyosys is not installed, Yosys refuses the design, or it takes too long.
    """
    _pyosys()
    script = ["import sys", "from pyosys import libyosys", "design = libyosys.Design()"]
    script += [
        f"sys.stderr.write('step {i}\\n'); sys.stderr.flush(); libyosys.run_pass({step!r}, design)"
        for i, step in enumerate(steps)
    ]
    told = []

    def tell(line):
        word, _, number = line.strip().partition(" ")
        if word != "step" or not number.isdecimal():
            told.append(line)
        elif progress:
            name = steps[int(number)].split()
            progress("synthesis: " + name[-1 if name[0] == "synth_lattice" else 0], int(number) / len(steps))

    with tempfile.TemporaryFile("w+") as log:
        code = exit_in_time([sys.executable, "-c", "\n".join(script)], folder, timeout, tell, stdout=log)
        log.seek(0)
        text = (log.read() + "".join(told))[-2000:]
    if code is None:
        raise Error(f"synthesis of {what} must end within {timeout} s")
    if code:
        raise Error(f"Yosys must map {what}; it ends with: {text}")
    return text


def exit_in_time(
    command: Sequence[str],
    folder: Path | str,
    timeout: float,
    tell: Callable[[str], None],
    stdout: IO[str] | None = None,
) -> int | None:
    """Exit code of a program that runs in ``folder``; None if it had to be ended after ``timeout`` seconds.

    Each line that it writes goes to ``tell`` as it comes; with ``stdout``, an open file, only those of its standard error do.
    """
    late = threading.Event()
    out, err = (stdout, subprocess.PIPE) if stdout else (subprocess.PIPE, subprocess.STDOUT)
    with subprocess.Popen(command, cwd=folder, stdout=out, stderr=err, text=True, errors="replace") as process:

        def end():
            late.set()
            process.kill()

        alarm = threading.Timer(timeout, end)
        alarm.start()
        try:
            for line in process.stdout or process.stderr or ():
                tell(line)
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            alarm.cancel()
    return None if late.is_set() else code


def library_cells(stat: Mapping[str, Any], liberty: Liberty, what: str) -> dict[str, int]:
    """Number of cells by name of what ``stat -json`` found.

    Parameters
    ----------
    stat : dict
    liberty : Liberty
    what : str
        What was mapped, for faults.

    Raises
    ------
    Error
        A cell is none of the library's: it would have no area.
    """
    counts = {
        name: int(count["count"] if isinstance(count, dict) else count)
        for name, count in stat["design"]["num_cells_by_type"].items()
        if name != "$scopeinfo"
    }
    for name in counts:
        if name not in liberty.cells:
            raise Error(f"cell library {liberty.name} must have every cell that {what} needs, and lacks {name}")
    return counts


def abc_program() -> str:
    """The ABC of the wheel."""
    return str(Path(_pyosys().origin).parent / "yosys-abc")


def _pyosys():
    found = importlib.util.find_spec("pyosys")
    if found is None:
        raise Error("synthesis needs the Python module pyosys: pip install pyosys")
    return found


def run_tool(command: Sequence[str], folder: Path | str, timeout: float, tool: str) -> str:
    """Output of a tool in a process of its own, which it may end; :class:`Error` if it fails or takes too long."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as late:
        raise Error(f"{tool} must end within {timeout} s") from late
    if done.returncode:
        raise Error(
            f"{tool} must map the bank; it ends with code {done.returncode}: {(done.stdout + done.stderr)[-1000:]}"
        )
    return done.stdout
