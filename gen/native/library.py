"""The shared object of a C++ source, made when it is first needed and kept in the user's cache folder."""

import hashlib
import os
import platform
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from intaglio.files import user_cache
from intaglio.gen.tools import find_program

__all__ = ["compiled"]

FLAGS = ("-O2", "-ftree-vectorize", "-std=c++17", "-shared", "-fPIC")  # for any machine: the cache may be shared


@lru_cache(maxsize=8)
def compiled(source: Path) -> tuple[Path | None, str]:
    """The shared object of ``source``, or None and why there is none: no compiler, or a folder that cannot be written."""
    compiler = find_program("g++") or find_program("c++")
    if compiler is None:
        return None, "there is no C++ compiler (g++)"
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
        key = hashlib.sha256("\0".join([source.read_text(), version, platform.machine(), *FLAGS]).encode()).hexdigest()
        folder = user_cache() / "native"
        place = folder / f"{source.stem}-{key[:32]}.so"
        if not place.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                made = Path(scratch) / place.name
                command = [str(compiler), *FLAGS, "-o", str(made), str(source)]
                subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
                os.replace(made, place)
    except (OSError, subprocess.SubprocessError) as fault:
        return None, f"the C++ compiler did not make it: {fault}"
    return place, ""
