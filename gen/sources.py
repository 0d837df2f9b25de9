"""What an output was made with: the sources of generator and hardware, and JSON that is the same bytes for the same content."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from intaglio import gen, rtl

__all__ = ["json_text", "sources_digest"]


def json_text(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def sources_digest(*texts: Any) -> "hashlib._Hash":
    """SHA-256 state of texts and of the sources of the generator and the hardware: add further inputs with ``update``."""
    return hashlib.sha256(repr(texts).encode() + _sources())


@functools.cache
def _sources():
    """SHA-256 of every source file of the generator and of the hardware, as bytes."""
    key = hashlib.sha256()
    for package in (gen, rtl):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            key.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return key.digest()
