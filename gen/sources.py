"""The generator itself as an input of what it writes."""

import functools
import hashlib
from pathlib import Path

from intaglio import gen, rtl

__all__ = ["sources_digest"]


@functools.cache
def sources_digest():
    """SHA-256 of every source file of the generator and of the hardware, as bytes."""
    key = hashlib.sha256()
    for package in (gen, rtl):
        root = Path(package.__file__).parent
        for path in sorted(root.rglob("*.py")):
            key.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return key.digest()
