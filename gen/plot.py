"""Plots with axes, as SVG by matplotlib (the extra ``plot``): the same numbers and the same matplotlib give the same bytes."""

import io
from typing import Any

from intaglio import Error

__all__ = ["figure", "svg"]


def figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, sizes in inches; asked for before long work, it raises :class:`Error` where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as fault:
        raise Error("a plot needs the Python module matplotlib: pip install 'intaglio[plot]'") from fault
    return Figure(figsize=(width, height), layout="constrained")


def svg(drawn: Any) -> str:
    """The SVG of a figure; its letters are text, and nothing in it is drawn at random or says when it was made."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "intaglio", "svg.fonttype": "none"}):
        drawn.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
