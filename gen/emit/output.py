"""Output folders of the generators. Each lists its files in its manifest; a generator removes and overwrites only what that list names.

A write replaces the manifest first by one that is no output but still lists what is ours, then the files, then writes the manifest: what a
killed run leaves does not look whole, and the next run cleans it up. Everything else in the folder is the user's and stays.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intaglio import Error
from intaglio.gen.sources import json_text

__all__ = ["FORMAT", "UNFINISHED", "Staged", "check_folder", "described", "kept", "mark", "write"]

FORMAT = "intaglio-manifest"
UNFINISHED = "intaglio-unfinished"  # format of the manifest of an output that is being written
MANIFEST = "manifest.json"
_NAMES = {
    "decoder": "a decoder",
    "prefill-attention": "a prefill unit",
    "board": "a board's build",
    "kernel": "a kernel package",
    "lane": "a lane's build",
    "rom-banks": "banks of 'intaglio synth'",
    "banks": "ROM banks",
}


@dataclass(frozen=True)
class Staged:
    """Content that lies in a file already, which :func:`write` renames: images that are too large for memory.

    Members
    -------
    path : Path
    sha256 : str
    """

    path: Path
    sha256: str


def described(folder: Path | str) -> dict[str, Any] | None:
    """The manifest of the folder as a dict, or None where there is none of ours."""
    try:
        found = json.loads((Path(folder) / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and str(found.get("format")).startswith("intaglio-") else None


def check_folder(out: Path | str, kind: str) -> Path:
    """The folder's path if an output of ``kind`` may be written to it; nothing is written.

    Parameters
    ----------
    out : path
        Must not exist, be empty, or hold an output of the same kind.
    kind : str
        "decoder", "prefill-attention", "board", "kernel", "lane" or "rom-banks".

    Raises
    ------
    Error
        It holds something else, which is named, or cannot be written to.
    """
    out = Path(out).resolve()
    above = next(path for path in (out, *out.parents) if path.exists() or path.is_symlink())
    if not above.is_dir():
        raise Error(f"the output folder must be a folder, and {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise Error(f"the output folder {out} must be writable, and {above} may not be written to")
    if above != out:
        return out
    found = described(out)
    if found is None:
        if others := sorted(path.name for path in out.iterdir()):
            raise Error(
                f"the output folder {out} must be empty or hold an earlier output, and has no manifest of one but {_some(others)}"
            )
    elif (other := _kind(found)) != kind:
        raise Error(
            f"the output folder {out} must be empty or hold {_NAMES[kind]}, and its manifest.json is that of "
            f"{_NAMES.get(other, other)}: choose another folder"
        )
    else:
        _own(out, found)
    return out


def _some(names):
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _kind(found):
    """What a manifest is of: boards and packages have a decoder's manifest with more in it."""
    if found["format"] == "intaglio-banks":
        return "banks"
    return "kernel" if "kernel" in found else "board" if "link" in found else str(found.get("kind"))


def _own(out, found):
    """Names of the files that a manifest lists."""
    listed = found.get("content")
    if not isinstance(listed, dict):  # of outputs from before each file had its digest: those that every output had
        listed = [name for names in found.get("files", {}).values() for name in names]
        listed += [f"{found.get('top')}.{ending}" for ending in ("core", "h")]
    _inside(out, listed)
    return set(listed)


def _inside(out, names):
    """Raise unless the names, as links in the folder lead, are those of files inside it."""
    for name in names:
        path = out / name
        if Path(name).is_absolute() or ".." in Path(name).parts or not path.parent.resolve().is_relative_to(out):
            raise Error(f"the files of {out} must be inside the folder, not {name!r} at {path.parent.resolve()}")
        if path.is_dir() and not path.is_symlink():
            raise Error(f"{path} must be a file, and a folder is in the way")


def kept(out: Path, inputs: str) -> dict[str, Any] | None:
    """The manifest of the output in ``out`` if it was made of the same inputs and no listed file has changed, else None."""
    found = described(out)
    if (
        found is None
        or found["format"] != FORMAT
        or found.get("inputs") != inputs
        or not isinstance(found.get("content"), dict)
    ):
        return None
    try:
        whole = all(_file_sha256(out / name) == digest for name, digest in found["content"].items())
    except OSError:
        return None
    return found if whole else None


def _sha256(data):
    return hashlib.sha256(data).hexdigest()


def _file_sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mark(out: Path, kind: str) -> None:
    """Make a folder that is new or empty an unfinished output of ``kind``, before long work in it."""
    if described(out) is None:
        with _writing(out):
            _replace(out / MANIFEST, {"format": UNFINISHED, "kind": kind, "content": {}})


def write(out: Path, content: Mapping[str, bytes | Staged], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write files and their manifest into the folder that :func:`check_folder` gave.

    Parameters
    ----------
    out : Path
    content : dict
        Of relative path to bytes, or to a :class:`Staged` file, which is moved.
    manifest : dict
        Written with ``content``, the SHA-256 of every file by its path, added.

    Returns
    -------
    dict : the manifest as written.

    Raises
    ------
    Error
        A file that the folder's manifest does not list is in the way; another run writes to it; it cannot be written.
    """
    manifest = {
        "format": FORMAT,
        **manifest,
        "content": {
            name: data.sha256 if isinstance(data, Staged) else _sha256(data) for name, data in sorted(content.items())
        },
    }
    with _writing(out):
        own = _own(out, described(out) or {"content": {}})
        _inside(out, content)
        names = {*content, *(parent.as_posix() for name in content for parent in Path(name).parents if parent.name)}
        in_the_way = [
            name
            for name in sorted(names)
            if name not in own and os.path.lexists(out / name) and (name in content or not (out / name).is_dir())
        ]
        if in_the_way:
            raise Error(f"files that no generator wrote must not be in the way in {out}: move {_some(in_the_way)}")
        _replace(
            out / MANIFEST,
            {"format": UNFINISHED, "kind": _kind(manifest), "content": dict.fromkeys(sorted(own | set(content)), "")},
        )
        for name in own:  # also what is written again: a link must not lead elsewhere
            (out / name).unlink(missing_ok=True)
        for folder in sorted(
            {parent for name in own for parent in Path(name).parents if parent.name}, key=lambda path: -len(path.parts)
        ):
            with contextlib.suppress(OSError):  # not empty, or gone
                (out / folder).rmdir()
        for name, data in content.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(data, Staged):
                data.path.replace(out / name)
            else:
                (out / name).write_bytes(data)
        _replace(out / MANIFEST, manifest)
    return manifest


@contextlib.contextmanager
def _writing(out):
    """Make the folder, and hold it for this process; the lock ends with the process, however that ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as busy:
            raise Error(f"the output folder must not be in use, and another run is writing to {out}") from busy
        finally:
            os.close(lock)
    except OSError as fault:
        raise Error(f"cannot write the output folder {out}: {fault}") from fault


def _replace(path, manifest):
    """Write a manifest so that it is there whole or not at all."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(json_text(manifest))
    beside.replace(path)
