"""How far a float matrix is from ternary times a scale: by blocks of rows, with numpy alone.

A model trained with ternary weights but saved as floats (TriLM and others) has matrices of -s, 0 and s, to the rounding of the stored type.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

__all__ = ["GROUP", "TOLERANCE", "Distance", "measure"]

TOLERANCE = 2.0**-8  # of the scale: the rounding of bfloat16, which has 8 significant bits, and as much again
GROUP = 128  # inputs that share a scale in models with group scales


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Of a matrix W from ``scale * t``, where t is W rounded to -1, 0 and 1 by its mean magnitude and the scale fits best.

    Members
    -------
    scale : float
        The mean magnitude where t is not 0.
    farthest : float
        Largest ``|W - scale * t|``, in units of the scale.
    error : float
        ``||W - scale * t|| / ||W||``.
    zeros : float
        Share of zeros in t.
    of_parts : str
        Where the whole is not ternary but its parts are: "row" or "group", each with a scale of its own; else "".
    """

    scale: float
    farthest: float
    error: float
    zeros: float
    of_parts: str

    @property
    def ternary(self) -> bool:
        return self.farthest <= TOLERANCE

    @property
    def text(self) -> str:
        """What it is, in words."""
        if self.ternary:
            return f"ternary times {self.scale:.6g}"
        if self.of_parts == "row":
            return "ternary with a scale for each row"
        if self.of_parts == "group":
            return f"ternary with a scale for each {GROUP} inputs"
        return (
            f"{100 * self.error:.1f} % from ternary times {self.scale:.6g}, farthest {100 * self.farthest:.0f} % of it"
        )


def measure(blocks: Callable[[], Iterable[np.ndarray]]) -> Distance:
    """Measure a matrix.

    Parameters
    ----------
    blocks : callable
        Gives the matrix anew with every call, as float32 arrays ``[rows, columns]`` one below the other.
    """
    total, count = 0.0, 0
    for block in blocks():
        total, count = total + float(np.abs(block).sum(dtype=np.float64)), count + block.size
    bound = total / count / 2  # magnitudes above half the mean round to 1; a half, as in torch, to the even 0
    ones, weight, squares, least, most, rest = 0, 0.0, 0.0, np.inf, 0.0, 0.0
    rows = groups = True
    for block in blocks():
        size = np.abs(block)
        one = size > bound
        found = size[one]
        ones, weight = ones + found.size, weight + float(found.sum(dtype=np.float64))
        squares += float(np.square(size, dtype=np.float64).sum())
        if found.size:
            least, most = min(least, float(found.min())), max(most, float(found.max()))
        rest = max(rest, float(size[~one].max(initial=0.0)))
        rows = rows and _parts_fit(size)
        groups = groups and size.shape[1] % GROUP == 0 and _parts_fit(size.reshape(-1, GROUP))
    if not ones:
        return Distance(scale=1.0, farthest=0.0, error=0.0, zeros=1.0, of_parts="")
    scale = weight / ones
    return Distance(
        scale=float(np.float32(scale)),
        farthest=max(most - scale, scale - least, rest) / scale,
        error=float(np.sqrt(max(0.0, squares - scale * weight) / squares)),
        zeros=1 - ones / count,
        of_parts="row" if rows else "group" if groups else "",
    )


def _parts_fit(size):
    """Whether each row of magnitudes has no others than 0 and one."""
    most = size.max(1, keepdims=True)
    return bool(((size <= TOLERANCE * most) | (size >= (1 - 2 * TOLERANCE) * most)).all())
