"""A block map as a picture: one square a head, a mark for each kept block."""

__all__ = ["block_map_svg"]

SIDE, GAP, HEAD = 240, 16, 20  # of a square, in pixels


def block_map_svg(rows):
    """SVG text.

    Parameters
    ----------
    rows : list of list of (title str, keep bool [nb, nb], marked bool)
        Squares in rows; marked ones (query-aware heads) have another colour.
    """
    width = max(len(row) for row in rows) * (SIDE + GAP) + GAP
    height = len(rows) * (SIDE + HEAD + GAP) + GAP
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for line, row in enumerate(rows):
        for place, (title, keep, marked) in enumerate(row):
            x, y, count = GAP + place * (SIDE + GAP), GAP + HEAD + line * (SIDE + HEAD + GAP), len(keep)
            out.append(
                f'<text x="{x}" y="{y - 6}">{title}</text><g transform="translate({x} {y}) scale({SIDE / count:.6g})">'
                f'<path fill="#eee" d="M0 0V{count}H{count}Z"/><path fill="{"#c60" if marked else "#259"}" d="{_runs(keep)}"/></g>'
            )
    return "\n".join([*out, "</svg>", ""])


def _runs(keep):
    """Path of the kept blocks, neighbours in a row joined."""
    parts = []
    for number, row in enumerate(keep):
        start = None
        for column, kept in enumerate([*map(bool, row), False]):
            if kept and start is None:
                start = column
            elif not kept and start is not None:
                parts.append(f"M{start} {number}h{column - start}v1h{start - column}z")
                start = None
    return "".join(parts)
