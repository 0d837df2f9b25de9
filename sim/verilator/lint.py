"""Verilator's linter on a generated folder, as its users run it."""

import json
import os
import subprocess
from pathlib import Path

from intaglio import Error
from intaglio.gen.tools import find_tools

__all__ = ["OLDEST_LINTER", "lint"]

OLDEST_LINTER = (5, 6)  # Debian 12's, for lint only; a simulation needs a newer one


def lint(folder, *, verilator=None, root=None, timeout=600):
    """First lines of what ``verilator --lint-only -Wall lint.vlt rtl/*.v`` finds, ``[]`` if nothing.

    Parameters
    ----------
    folder : path
        A generated folder.
    verilator, root : path or None
        The program ``verilator_bin`` and its folder of includes; by default those that simulate.
    timeout : float
        Seconds.

    Raises
    ------
    Error
        The folder has no manifest, or Verilator does not end.
    """
    if verilator is None:
        tools = find_tools()
        verilator, root = tools.verilator, tools.root
    try:
        manifest = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
        top, files = manifest["top"], [*manifest["files"]["lint"], *manifest["files"]["verilog"]]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise Error(f"{folder} must be a generated folder ({fault!r})") from fault
    try:
        done = subprocess.run(
            [str(verilator), "--lint-only", "-Wall", "--top-module", top, *files],
            cwd=folder,
            capture_output=True,
            text=True,
            env={**os.environ, "VERILATOR_ROOT": str(root)},
            timeout=timeout,
        )
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise Error(f"Verilator's linter must end within {timeout} s: {fault}") from fault
    found = [
        line
        for line in done.stderr.splitlines()
        if line.startswith("%") and not line.startswith("%Error: Exiting due to")
    ]
    if bool(found) != bool(done.returncode):
        raise Error(f"Verilator's linter ended with code {done.returncode}: {done.stderr[-1000:]}")
    return found
