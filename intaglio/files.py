"""Files that the user names: what is wrong with one is told before long work, not after it."""

import errno
import os
from pathlib import Path

from intaglio import Error

__all__ = ["check_output", "user_cache"]


def check_output(path: Path | str, what: str) -> Path:
    """The ``path`` of a file to be written, if it can be; nothing is created, and a file that is there stays as it is.

    Parameters
    ----------
    path : str or Path
    what : str
        What it is, for the message: "the option --map", say.

    Raises
    ------
    Error
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.stat()
        if not path.parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        there = os.path.lexists(path)
        if there:
            path.stat()  # a link that leads nowhere, or in circles
        if not os.access(path if there else path.parent, os.W_OK if there else os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as fault:
        raise Error(
            f"{what} must name a file that can be written, not {str(path)!r}: {fault.strerror or fault}"
        ) from fault
    return path


def user_cache() -> Path:
    """The user's cache folder: ``$XDG_CACHE_HOME/intaglio``, else ``~/.cache/intaglio``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "intaglio"
