"""What a long step is at, shown to whoever waits for it."""

import os
import sys
import threading
import time
from typing import Self

__all__ = ["Progress", "silent"]

QUIET_SECONDS = 2.0  # of a wait that off a terminal is not worth a line
LINE_SECONDS = 5.0  # at least, between two lines off a terminal; of a long wait, a tenth of it
TICK_SECONDS, DRAW_SECONDS = 0.5, 0.1  # between repetitions of the text, and at least between two drawings of it


def silent(text: str, share: float | None = None) -> None:
    """Progress for nobody: what a step calls that was given none."""


class Progress:
    """Shows on standard error what the step under way is at, with the seconds of the wait; a context manager.

        with Progress() as show:
            generate(..., progress=show)

    On a terminal it is one line that changes and goes away. Elsewhere a wait of less than two seconds leaves nothing, a longer one a line
    now and then. A thread shows the latest text again while a step says nothing of itself. A wait begins with the first text, or with the
    first after :meth:`clear`.
    """

    def __init__(self) -> None:
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="progress", daemon=True)
        self._text: str | None = None
        self._began, self._due = 0.0, 0.0  # due: when to draw, or to write a line, again
        self._drawn = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.clear()

    def __call__(self, text: str, share: float | None = None) -> None:
        """The step is at ``text``; ``share`` of the work is done, 0 to 1, where that is known."""
        with self._lock:
            now = time.monotonic()
            if self._text is None:
                self._began, self._due = now, now + (0.0 if sys.stderr.isatty() else QUIET_SECONDS)
            self._text = text if share is None else f"{share:4.0%} {text}"
            self._show(now, now >= self._due)

    def clear(self) -> None:
        """End the wait: nothing is shown until the next text, so that other output may follow."""
        with self._lock:
            if self._drawn:
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()
            self._text, self._drawn = None, False

    def _repeat(self):
        while not self._ended.wait(TICK_SECONDS):
            with self._lock:
                now = time.monotonic()
                try:
                    self._show(now, self._text is not None and (sys.stderr.isatty() or now >= self._due))
                except (OSError, ValueError):  # standard error has been closed
                    return

    def _show(self, now, wanted):
        if not wanted:
            return
        waited = now - self._began
        line = f"intaglio: {self._text} ({waited:.0f} s)"
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K" + line[: _columns() - 1])
            self._drawn, self._due = True, now + DRAW_SECONDS
        else:
            sys.stderr.write(line + "\n")
            self._due = now + max(LINE_SECONDS, waited / 10)
        sys.stderr.flush()


def _columns():
    """Width of the terminal, 80 where it is not known."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
