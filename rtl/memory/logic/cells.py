"""Shapes of gates, and what they cost: the view of a cell library that the structured ROM is built with.

A *kind* is ``(type, groups)``: ``oai`` is the complement of an AND of ORs, ``aoi`` the complement of an OR of ANDs, ``oa`` and ``ao`` are
the same without complement; ``groups`` are the inputs of each inner gate, descending. So a NAND3 is ``("oai", (1, 1, 1))``, a NOR3
``("oai", (3,))``, an inverter ``("oai", (1,))`` and an OAI33 ``("oai", (3, 3))``. Every shape has one kind only (:func:`canonical`).
"""

from dataclasses import dataclass

__all__ = ["GENERIC", "INV", "Cell", "CellSet", "canonical", "dual", "kind_name"]

INV = ("oai", (1,))
INVERTING = {"oai": True, "aoi": True, "oa": False, "ao": False}
_DUAL = {"oai": "aoi", "aoi": "oai", "oa": "ao", "ao": "oa"}


def canonical(kind):
    """The one kind of a shape: groups descending; a gate of one level is an ``oai`` or ``oa``."""
    form, groups = kind
    groups = tuple(sorted(groups, reverse=True))
    if form in ("aoi", "ao") and (len(groups) == 1 or groups[0] == 1):
        form = "oai" if form == "aoi" else "oa"
        groups = (len(groups),) if groups[0] == 1 else (1,) * groups[0]
    return form, groups


def dual(kind):
    """AND and OR exchanged: the kind that computes the complement from complemented inputs."""
    return canonical((_DUAL[kind[0]], kind[1]))


def kind_name(kind):
    """As cell libraries name it: NAND2, NOR3, AOI22, OA21, INV."""
    form, groups = canonical(kind)
    inputs = sum(groups)
    if inputs == 1:
        return "INV" if form == "oai" else "BUF"
    if groups[0] == 1:
        return ("NAND" if form == "oai" else "AND") + str(inputs)
    if len(groups) == 1:
        return ("NOR" if form == "oai" else "OR") + str(inputs)
    return form.upper() + "".join(map(str, groups))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a library: ``pins`` group by group in the order of its kind."""

    name: str
    area: float
    pins: tuple = ()
    output: str = ""


class CellSet:
    """The cheapest cell of each kind.

    Parameters
    ----------
    name : str
    cells : dict of kind to Cell
    nand2 : float or None
        Area of the smallest NAND2, the unit of ``NAND2 per bit``; by default that of the kind.

    Raises
    ------
    ValueError
        There is no inverter, or neither NAND2 and NOR2 nor AND2 and OR2.
    """

    def __init__(self, name, cells):
        self.name = name
        self.cells = {canonical(kind): cell for kind, cell in cells.items()}
        if INV not in self.cells:
            raise ValueError(f"cell library {name} must have an inverter")
        pairs = [(("oai", (1, 1)), ("oai", (2,))), (("oa", (1, 1)), ("oa", (2,)))]
        if not any(a in self.cells and b in self.cells for a, b in pairs):
            raise ValueError(f"cell library {name} must have NAND2 and NOR2, or AND2 and OR2")
        self._fits = {}

    def area(self, kind):
        """Area, or None where the library has no such cell."""
        cell = self.cells.get(canonical(kind))
        return None if cell is None else cell.area

    def has(self, kind):
        return canonical(kind) in self.cells

    def fit(self, form, groups):
        """The cheapest cell that can do the work of ``(form, groups)``, some inputs doubled.

        Returns
        -------
        tuple of int or None
            Sizes (at least ``groups``, in the same order) of a kind that the library has; None if it has none.
        """
        key = form, tuple(groups)
        if key not in self._fits:
            best = None
            for (other, have), cell in self.cells.items():
                if len(have) != len(groups) or canonical((form, have)) != (other, have):
                    continue
                order = sorted(range(len(groups)), key=lambda i: -groups[i])
                if all(have[place] >= groups[i] for place, i in enumerate(order)) and (
                    best is None or cell.area < best[0]
                ):
                    sizes = [0] * len(groups)
                    for place, i in enumerate(order):
                        sizes[i] = have[place]
                    best = cell.area, tuple(sizes)
            self._fits[key] = best and best[1]
        return self._fits[key]


def _generic():
    """One unit an input and one a cell, as in most libraries: an inverter is 2, a NAND2 3, an OAI33 7."""
    kinds = [INV]
    kinds += [("oai", (1,) * n) for n in (2, 3, 4)] + [("oai", (n,)) for n in (2, 3, 4)]
    for form in ("oai", "aoi"):
        kinds += [(form, groups) for groups in ((2, 1), (2, 2), (2, 1, 1), (2, 2, 1), (3, 1), (3, 3), (3, 2))]
    return CellSet("generic", {kind: Cell(name=kind_name(kind), area=float(sum(kind[1]) + 1)) for kind in kinds})


GENERIC = _generic()
