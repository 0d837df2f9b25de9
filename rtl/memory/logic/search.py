"""Which form of the structured ROM is the smallest for a bank and a library: all forms by a model, the best of them built."""

from functools import lru_cache

import numpy as np

from intaglio.rtl.memory.logic.cells import CellSet, dual
from intaglio.rtl.memory.logic.forms import Form, build, group_bounds
from intaglio.rtl.memory.logic.trees import WideOr

__all__ = ["PYTHON", "Maker", "best_form", "forms_of", "modelled_areas", "views"]

SIZES = (3.5, 12.5)  # rows of a group
STEP = 8  # rows are multiples of it
SMALL = 32  # words; up to this, any number of rows


class Maker:
    """What builds netlists and counts for them; others do the same faster."""

    def build(self, bits, form, cells):
        """A netlist, with ``holds``, ``area``, ``body`` and a length: :func:`intaglio.rtl.memory.logic.forms.build`."""
        return build(bits, form, cells)

    def distinct(self, bits, rows, count):
        """Used subsets of all ``count`` groups of rows of bool ``bits [depth, width]``."""
        depth, width = bits.shape
        columns = -(-depth // rows)
        matrix = np.zeros((columns * rows, width), bool)
        matrix[:depth] = bits
        matrix = matrix.reshape(columns, rows, width)
        total = 0
        for group in group_bounds(rows, count):
            patterns = np.tensordot(1 << np.arange(len(group)), matrix[:, group, :], axes=(0, 1))
            total += np.count_nonzero(np.bincount(patterns.ravel(), minlength=2)[1:])
        return total


PYTHON = Maker()


@lru_cache(maxsize=8)
def views(cells):
    """Of the library and of its dual (True): the cells, and their wide ORs."""
    turned = CellSet("dual", {dual(kind): cell for kind, cell in cells.cells.items()})
    return {False: (cells, WideOr(cells)), True: (turned, WideOr(turned))}


@lru_cache(maxsize=64)
def _forms(cells, depth):
    return tuple(forms_of(cells, depth))


def forms_of(cells, depth):
    """Every form that the library has cells for, with at least two columns."""
    step, least = (STEP, SIZES[0]) if depth > SMALL else (1, 1)
    greatest = (1 << (depth - 1).bit_length()) - 1
    styles = set()
    for turned, (view, _) in views(cells).items():
        for form, groups in view.cells:
            if form in ("oai", "oa"):
                rest = list(groups)
                if 1 in rest and len(rest) > 1:
                    rest.remove(1)
                    styles.add(("inside", tuple(rest), 1, form, turned))
                if len(set(groups)) == 1 and groups[0] > 1 and len(groups) > 1:
                    styles.add(("several", (groups[0] - 1,), len(groups), form, turned))
            if form == "oai":
                if sum(groups) > 1 and groups[0] > 1:
                    styles |= {
                        ("select", groups, merge, gate, turned)
                        for merge in (2, 3)
                        for gate in ("oai", "oa")
                        if view.has((gate, (2,) * merge))
                    }
                if groups[0] == 1 and len(groups) > 1:
                    n = len(groups)
                    styles |= {
                        ("nand", (n,), merge, "oai", turned) for merge in (2, 3) if view.has(("aoi", (2,) * merge))
                    }
                    styles |= {("nand", (n,) * k, 1, "oai", turned) for k in (2, 3) if view.has(("oai", (k, 1)))}
            if form == "oa" and groups[0] == 1 and len(groups) > 1:
                n = len(groups)
                styles |= {("nand", (n,) * k, 1, "oa", turned) for k in (2, 3) if view.has(("oa", (k, 1)))}
    for style, parts, merge, gate, turned in sorted(styles):
        count = sum(parts)
        for rows in range(step, min(16 * count, greatest) + 1, step):
            if least <= rows / count <= SIZES[1]:
                yield Form(style=style, parts=parts, rows=rows, merge=merge, gate=gate, dual=turned)


def modelled_areas(bits, cells, forms, maker=PYTHON):
    """Area of each form by counting: used subsets, gates of all columns and outputs, the tree over columns, a decoder."""
    depth, width = bits.shape
    counted, found, complement = {}, [], ~bits
    for form in forms:
        view, wide = views(cells)[form.dual]
        count = sum(form.parts)
        key = form.rows, count, form.dual
        if key not in counted:
            counted[key] = maker.distinct(complement if form.dual else bits, form.rows, count)
        subsets, columns = counted[key], -(-depth // form.rows)
        pair = min(
            a for a in (view.area(("oai", (1, 1))), view.area(("oai", (2,))), view.area(("oa", (2,)))) if a is not None
        )
        area = 1.15 * pair * subsets + 2.2 * pair * form.rows + 1.5 * pair * columns
        terms = columns / form.merge
        if form.style == "inside":
            gate = view.area((form.gate, (*form.parts, 1)))
        elif form.style == "select":
            gate = form.merge * view.area(("oai", form.parts)) + view.area((form.gate, (2,) * form.merge))
        elif form.style == "several":
            gate = view.area((form.gate, (form.parts[0] + 1,) * form.merge))
        else:
            first = [wide.area(n, False, True) for n in form.parts]
            other = {"oai": "aoi", "oa": "ao"}[form.gate]
            gate = (
                sum(first) + view.area((form.gate, (len(form.parts), 1)))
                if form.merge == 1
                else form.merge * first[0] + view.area((other, (2,) * form.merge))
            )
        terms = max(1, round(terms))
        high = {
            "inside": form.gate == "oa",
            "select": form.gate == "oai",
            "several": form.gate == "oai",
            "nand": form.gate == "oa",
        }
        result = form.style != "several"
        area += width * (terms * gate + wide.area(terms, high[form.style], result))
        found.append(area)
    return found


def best_form(bits, cells, *, tries=3, forms=None, maker=PYTHON):
    """The smallest netlist of a bank and its form.

    Parameters
    ----------
    bits : bool ``[depth, width]``
    cells : CellSet
    tries : int
        Forms that are built, the best by the model.
    forms : sequence of Form or None
        Those to consider, by default all.
    maker : Maker

    Returns
    -------
    Netlist, Form

    Raises
    ------
    ValueError
        The library lacks cells for every form.
    """
    forms = _forms(cells, len(bits)) if forms is None else list(forms)
    areas = modelled_areas(bits, cells, forms, maker)
    best, built = None, 0
    for i in sorted(range(len(forms)), key=lambda i: (areas[i], i)):
        try:
            netlist = maker.build(bits, forms[i], cells)
        except ValueError:  # a gate of its edges is missing in the library
            continue
        built += 1
        area = netlist.area(cells)
        if best is None or area < best[0]:
            best = area, netlist, forms[i]
        if built == tries:
            break
    if best is None:
        raise ValueError(f"cell library {cells.name} must have the cells of one form of a ROM of {len(bits)} words")
    return best[1], best[2]
