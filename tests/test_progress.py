"""A wait is never silent for long, on a terminal and off it, and leaves nothing behind on a terminal."""

import sys
import threading
import time

import pytest

from intaglio import progress
from intaglio.progress import Progress


@pytest.fixture
def quick(monkeypatch):
    """Seconds become twentieths."""
    for name in ("QUIET_SECONDS", "LINE_SECONDS", "TICK_SECONDS", "DRAW_SECONDS"):
        monkeypatch.setattr(progress, name, getattr(progress, name) / 20)


def test_off_a_terminal_a_short_wait_leaves_nothing(capsys):
    with Progress() as show:
        show("reading")
        show("writing", 0.5)
    assert capsys.readouterr().err == ""


def test_off_a_terminal_a_silent_step_is_told_now_and_then(quick, capsys):
    with Progress() as show:
        show("reading", 0.25)
        time.sleep(1.0)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 5 and set(lines) <= {"intaglio:  25% reading (0 s)", "intaglio:  25% reading (1 s)"}


def test_many_texts_are_not_many_lines(quick, capsys):
    with Progress() as show:
        for number in range(10_000):
            show(f"step {number}")
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 20 and lines[-1].startswith("intaglio: step ")


def test_after_clear_a_wait_begins_anew(quick, capsys):
    with Progress() as show:
        show("one")
        time.sleep(0.15)
        show.clear()
        capsys.readouterr()
        time.sleep(0.1)
        show("two")
        assert capsys.readouterr().err == ""


def test_on_a_terminal_one_line_that_goes_away(quick, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress() as show:
        show("translating", 0.125)
        time.sleep(0.2)
        show("x" * 300)
    err = capsys.readouterr().err
    assert err.startswith("\r\x1b[Kintaglio:  12% translating (0 s)\r\x1b[Kintaglio:  12% ") and err.endswith(
        "\r\x1b[K"
    )
    assert "\n" not in err and max(map(len, err.split("\r\x1b[K"))) < 80


def test_the_thread_ends_whatever_happens():
    with pytest.raises(ZeroDivisionError), Progress() as show:
        show("dividing")
        raise ZeroDivisionError
    assert not any(thread.name == "progress" for thread in threading.enumerate())
