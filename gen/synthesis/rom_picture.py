"""The plot of ``intaglio synth``: the strategies of read-only memories compared."""

from collections.abc import Mapping, Sequence
from typing import Any

from intaglio.gen import plot

__all__ = ["comparison_svg"]

COLOURS = {
    "plain": "#999",
    "code": "#259",
    "planes": "#5a5",
    "structured": "#c60",
    "polished": "#a00",
    "hardwired": "#a3a",
}


def comparison_svg(rows: Sequence[Mapping[str, Any]]) -> str:
    """Area a bit (or LUTs a weight) over the share of zero weights, one line a strategy; rows of :mod:`intaglio.gen.synthesis.rom_report`.

    Every line and its points are narrower than those before, over which they are drawn, so that nothing hides anything.
    """
    key, label = ("per_bit", "um2 a bit") if "per_bit" in rows[0] else ("lut_per_weight", "LUTs a weight")
    drawn = plot.figure(6.4, 4.0)
    axes = drawn.subplots()
    strategies = list(dict.fromkeys(row["strategy"] for row in rows))
    for wider, strategy in zip(range(len(strategies), 0, -1), strategies, strict=True):
        points = sorted((row["zeros"], row[key]) for row in rows if row["strategy"] == strategy)
        style = {"color": COLOURS.get(strategy, "#000"), "linewidth": 0.5 + wider, "markersize": 2.5 + 2 * wider}
        axes.plot(*zip(*points, strict=True), marker="o", label=strategy, gid=strategy, **style)
    axes.set(xlabel="share of zero weights", ylabel=label)
    axes.set_ylim(bottom=0)
    bits = axes.secondary_xaxis("top", functions=(lambda zeros: (1 + zeros) / 2, lambda bits: 2 * bits - 1))
    bits.set_xlabel("share of zero bits")
    axes.grid(alpha=0.4)
    axes.legend()
    return plot.svg(drawn)
