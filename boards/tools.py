"""Runs of external tools: in a process of their own, with progress, a time limit and a log."""

import hashlib
import json
import sys
from collections import deque
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from intaglio import Error
from intaglio.gen.synthesis.yosys import exit_in_time

__all__ = ["Stamp", "run_yowasp", "version"]


def version(package: str) -> str:
    """Version of an installed package; raises ``Error`` with the way to install it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as fault:
        raise Error(
            f"building for a board needs the Python package {package!r}: pip install 'intaglio[boards]'"
        ) from fault


class Stamp:
    """A folder with what a step made and the digest of what it was made of, so that the step is done once.

    Parameters
    ----------
    folder : path
    *inputs : path, bytes or str
        Files by their contents; texts as they are.
    """

    def __init__(self, folder: Path | str, *inputs: Path | bytes | str) -> None:
        self.folder, key = Path(folder), hashlib.sha256()
        for value in inputs:
            data = (
                value.read_bytes() if isinstance(value, Path) else value.encode() if isinstance(value, str) else value
            )
            key.update(len(data).to_bytes(8, "little") + data)
        self.digest = key.hexdigest()

    @property
    def done(self) -> bool:
        """Whether the step is done, and none of its files is missing or changed since."""
        try:
            stamp = json.loads((self.folder / "stamp.json").read_bytes())
            return stamp["inputs"] == self.digest and all(
                hashlib.sha256((self.folder / name).read_bytes()).hexdigest() == digest
                for name, digest in stamp["files"].items()
            )
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return False

    def begin(self, *names: str) -> None:
        """Make the folder, and remove the files that the step makes; others stay."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("stamp.json", *names):
            (self.folder / name).unlink(missing_ok=True)

    def finish(self, *names: str) -> None:
        """Record the files that the step made."""
        files = {name: hashlib.sha256((self.folder / name).read_bytes()).hexdigest() for name in names}
        partial = self.folder / "stamp.partial"
        partial.write_text(json.dumps({"inputs": self.digest, "files": files}, indent=2, sort_keys=True) + "\n")
        partial.replace(self.folder / "stamp.json")


def run_yowasp(
    package: str,
    function: str,
    arguments: Sequence[str],
    folder: Path | str,
    log: Path | str,
    *,
    timeout: float,
    told: Callable[[str], None] | None = None,
) -> None:
    """Run a tool of a YoWASP package in ``folder``; its paths must be relative to that and below it.

    Parameters
    ----------
    package, function : str
        The package, and its function that runs the tool.
    arguments : list of str
    folder, log : path
    timeout : float
        Seconds.
    told : callable or None
        Called with each line that the tool writes.

    Raises
    ------
    Error
        The package is not installed, or the tool fails or takes too long.
    """
    version(package.replace("_", "-"))
    script = f"import sys; from {package} import {function} as tool; sys.exit(tool(sys.argv[1:]))"
    last: deque[str] = deque(maxlen=21)
    with open(log, "w", buffering=1) as file:

        def tell(line):
            file.write(line)
            last.append(line)
            if told:
                told(line.rstrip())

        code = exit_in_time([sys.executable, "-c", script, *arguments], folder, timeout, tell)
    if code is None:
        raise Error(f"{function} in {folder} must end within {timeout} s; it wrote {log}")
    if code:
        raise Error(f"{function} must succeed in {folder}; it ends with code {code}: {''.join(last)[-1500:]}")
