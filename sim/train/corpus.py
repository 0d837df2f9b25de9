"""Text that every Python installation has: the standard library's own source and documentation strings.

The corpus is split by file, never inside one: a file is held out when the first byte of the SHA-256 of its path
(relative to the library, with ``/``) is below :data:`HELD_OUT_BELOW`. Tests, code-page tables and bundled packages are
never held out; code-page tables are not text and are left out of training too.
"""

import hashlib
import lzma
import sysconfig
from pathlib import Path

__all__ = ["HELD_OUT_BELOW", "Corpus", "xz_bits_per_byte"]

HELD_OUT_BELOW = 4
SEPARATOR = b"\0"  # between files; also the token that begins a prompt
_SKIPPED = {"site-packages", "encodings", "__pycache__", "_bundled", "lib2to3"}


class Corpus:
    """The standard library's source, split into training text and one held-out text.

    Parameters
    ----------
    root : Path or None
        Library folder; by default that of the running Python.

    Attributes
    ----------
    held_out : bytes
        The held-out files, in order of path, each after a zero byte.
    train_library, train_tests : bytes
        The other modules, and the test packages, in the same form.

    Raises
    ------
    FileNotFoundError
        The library has no source files (a Python installed as byte code only).
    """

    def __init__(self, root: Path | str | None = None) -> None:
        root = Path(root or sysconfig.get_paths()["stdlib"])
        parts = {"held_out": [], "train_library": [], "train_tests": []}
        for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
            name = path.relative_to(root)
            if _SKIPPED & set(name.parts):
                continue
            data = path.read_bytes().replace(SEPARATOR, b"")
            if any(part in ("test", "tests", "idle_test") for part in name.parts):
                kind = "train_tests"
            elif hashlib.sha256(name.as_posix().encode()).digest()[0] < HELD_OUT_BELOW:
                kind = "held_out"
            else:
                kind = "train_library"
            parts[kind].append((name.as_posix(), data))
        if not parts["train_library"]:
            raise FileNotFoundError(f"no Python source below {root}: the corpus must be a library with .py files")
        self.files = {kind: [name for name, _ in found] for kind, found in parts.items()}
        self.held_out = _join(parts["held_out"])
        self.train_library = _join(parts["train_library"])
        self.train_tests = _join(parts["train_tests"])


def _join(found):
    return b"".join(SEPARATOR + data for _, data in found)


def xz_bits_per_byte(text: bytes) -> float:
    """Bits per byte that ``xz -9e`` needs for ``text``, its container included."""
    return 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
