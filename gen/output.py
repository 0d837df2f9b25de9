"""Output folders of the generators: written beside the target and swapped, sealed by digests, reused where nothing has changed."""

import functools
import hashlib
import json
import shutil
from pathlib import Path

from intaglio import Error, gen, rtl

__all__ = ["FORMAT", "check_folder", "content_digest", "json_text", "kept", "sources_digest", "write"]

FORMAT = "intaglio-manifest"


def json_text(value):
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def check_folder(out):
    """The folder's path if it may be written.

    Raises
    ------
    Error
        It holds something else than an earlier output.
    """
    out = Path(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir()) and not _is_output(out)):
        raise Error(f"the output folder must be empty or an earlier output, and {out} is neither")
    return out


def _is_output(out):
    """Whether the folder has a manifest of ours: nothing else may be replaced."""
    try:
        described = json.loads((out / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(described, dict) and described.get("format") == FORMAT


def sources_digest(*texts):
    """SHA-256 state of texts and of the sources of the generator and the hardware: add further inputs with ``update``."""
    return hashlib.sha256(repr(texts).encode() + _sources())


@functools.cache
def _sources():
    """SHA-256 of every source file of the generator and of the hardware, as bytes."""
    key = hashlib.sha256()
    for package in (gen, rtl):
        root = Path(package.__file__).parent
        for path in sorted(root.rglob("*.py")):
            key.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return key.digest()


def content_digest(content):
    """Digest of files, a dict of relative path to bytes."""
    key = hashlib.sha256()
    for name in sorted(content):
        key.update(name.encode() + b"\0" + hashlib.sha256(content[name]).digest())
    return key.hexdigest()


def kept(out, inputs):
    """The manifest of the output in ``out`` if it was made of the same inputs and is whole, else None."""
    try:
        described = json.loads((out / "manifest.json").read_bytes())
        if described.get("inputs") != inputs:
            return None
        content = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*")
                   if path.is_file() and path.name != "manifest.json"}
    except (OSError, ValueError):
        return None
    return described if content_digest(content) == described.get("content") else None


def write(out, content, manifest):
    """Write beside the target and swap, manifest last, so that a killed run leaves no output that looks whole."""
    partial, former = (out.with_name(f".{out.name}.{kind}") for kind in ("partial", "former"))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for name, data in content.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (partial / "manifest.json").write_bytes(manifest)
        shutil.rmtree(former, ignore_errors=True)
        if out.exists():
            out.rename(former)
        partial.rename(out)
        shutil.rmtree(former, ignore_errors=True)
    except OSError as fault:
        shutil.rmtree(partial, ignore_errors=True)
        raise Error(f"cannot write the output folder {out}: {fault}") from fault
