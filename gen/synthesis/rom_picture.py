"""Pictures of the read-only memory as logic (SVG): the comparison of strategies, and how the structured form is built.

python -m intaglio.gen.synthesis.rom_picture docs/rom_structure.svg
"""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["comparison_svg", "structure_svg"]

COLOURS = {
    "plain": "#999",
    "code": "#259",
    "planes": "#5a5",
    "structured": "#c60",
    "polished": "#a00",
    "hardwired": "#a3a",
}
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 640, 400, 70, 30, 130, 60
RADIUS = 3  # of a point


def comparison_svg(rows: Sequence[Mapping[str, Any]]) -> str:
    """Area a bit (or LUTs a weight) over the share of zero weights, one line a strategy; rows of :mod:`intaglio.gen.synthesis.rom_report`.

    Points that lie on one another are rings around the first, and a line along another one is dashed, so that nothing hides anything.
    """
    key, label = ("per_bit", "um2 a bit") if "per_bit" in rows[0] else ("lut_per_weight", "LUTs a weight")
    greatest = 1.1 * max(row[key] for row in rows) or 1.0
    least_x, most_x = min(row["zeros"] for row in rows), max(row["zeros"] for row in rows)
    span = (most_x - least_x) or 1

    def x(value):
        return LEFT + (value - least_x) / span * (WIDTH - LEFT - RIGHT)

    def y(value):
        return HEIGHT - BOTTOM - value / greatest * (HEIGHT - TOP - BOTTOM)

    out = _head(WIDTH, HEIGHT)
    for step in range(6):
        value = greatest * step / 5
        out.append(
            f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    for share in sorted({round(row["zeros"], 2) for row in rows}):
        out.append(
            f'<text x="{x(share):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{share:.2f}</text>'
            f'<text x="{x(share):.1f}" y="{HEIGHT - BOTTOM + 32}" text-anchor="middle" fill="#777">{(1 + share) / 2:.2f}</text>'
        )
    out.append(f'<text x="{LEFT}" y="{HEIGHT - 10}">share of zero weights (grey: of zero bits)</text>')
    out.append(f'<text x="{LEFT}" y="18">{label}</text>')
    paths, points = [], []  # points: place, ring and colour
    for place, strategy in enumerate(dict.fromkeys(row["strategy"] for row in rows)):
        places = [
            (x(a), y(b)) for a, b in sorted((row["zeros"], row[key]) for row in rows if row["strategy"] == strategy)
        ]
        colour = COLOURS.get(strategy, "#000")
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
        dash = f' stroke-dasharray="6 {6 * paths.count(path)}"' if path in paths else ""
        paths.append(path)
        out.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        for at in places:
            points.append((at, sum(math.dist(at, other) < RADIUS for other, *_ in points), colour))
        out.append(f'<text x="{WIDTH - RIGHT + 12}" y="{TOP + 20 + 18 * place}" fill="{colour}">{strategy}</text>')
    out += [
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{RADIUS * (ring + 1)}" fill="{colour}" stroke="white" stroke-width="{min(ring, 1)}"/>'
        for (a, b), ring, colour in sorted(points, key=lambda point: -point[1])
    ]  # the widest first
    return "\n".join([*out, "</svg>", ""])


def structure_svg() -> str:
    """Address to rows and columns; subsets of a group of rows; the gates of one output."""
    out = _head(960, 470)

    def box(left, top, width, height, lines, fill):
        out.append(f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="4" fill="{fill}" stroke="#555"/>')
        for i, text in enumerate(lines):
            out.append(f'<text x="{left + width / 2}" y="{top + 18 + 16 * i}" text-anchor="middle">{text}</text>')

    def arrow(points, text=None):
        path = "L".join(f"{a} {b}" for a, b in points)
        out.append(f'<path d="M{path}" fill="none" stroke="#333" marker-end="url(#head)"/>')
        if text:
            (a, b), (c, d) = points[0], points[-1]
            out.append(f'<text x="{(a + c) / 2}" y="{(b + d) / 2 - 6}" text-anchor="middle">{text}</text>')

    out.append(
        '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="3" orient="auto">'
        '<path d="M0 0L7 3L0 6z" fill="#333"/></marker></defs>'
    )
    box(20, 60, 110, 60, ["address", "10 bits, registered"], "#eee")
    box(190, 20, 150, 60, ["row lines, one-hot", "48"], "#def")
    box(190, 120, 150, 60, ["column lines, one-hot", "22"], "#def")
    arrow([(130, 80), (190, 50)])
    arrow([(130, 100), (190, 150)])
    for g in range(6):
        top = 20 + 44 * g
        box(420, top, 200, 36, [f"S{g + 1}: subsets of rows {8 * g}..{8 * g + 7}"], "#fe9" if g < 3 else "#fd7")
        arrow([(340, 50), (380, 50), (380, top + 18), (420, top + 18)])
    out.append(
        '<text x="520" y="300" text-anchor="middle">each used OR of 8 row lines is one gate,</text>'
        '<text x="520" y="316" text-anchor="middle">shared by all columns and all 128 outputs</text>'
    )
    box(690, 70, 240, 70, ["V = (S1 + S2 + S3)(S4 + S5 + S6)", "one OAI33 a column and output", "gives NOT V"], "#fcc")
    arrow([(620, 82), (650, 82), (650, 95), (690, 95)])
    arrow([(620, 214), (650, 214), (650, 120), (690, 120)])
    box(690, 190, 240, 70, ["three columns meet in an OAI222:", "C1 V1 + C2 V2 + C3 V3"], "#fcc")
    arrow([(810, 140), (810, 190)])
    arrow([(340, 150), (360, 150), (360, 340), (660, 340), (660, 225), (690, 225)], "column lines")
    box(690, 300, 240, 50, ["NOR and NAND over the columns", "one tree an output"], "#fcc")
    arrow([(810, 260), (810, 300)])
    box(690, 390, 240, 50, ["data, 128 bits", "plus plane and minus plane"], "#eee")
    arrow([(810, 350), (810, 390)])
    out.append(
        '<text x="20" y="400">S1 also holds the rows of S4..S6, and S4 those of S1..S3:</text>'
        '<text x="20" y="418">in those rows the factor is 1, and the product is the OR of all six.</text>'
        '<text x="20" y="440">Sizes: 1024 x 128 bit, Nangate45, 40 % zero weights.</text>'
    )
    return "\n".join([*out, "</svg>", ""])


def _head(width, height):
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(structure_svg())
