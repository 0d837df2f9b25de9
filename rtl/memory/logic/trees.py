"""Wide ORs from the cells of a library: the cheapest arrangement of levels, by dynamic programming."""

from intaglio.rtl.memory.logic.cells import INV

__all__ = ["WideOr"]

LIMIT = 5  # inputs of a cell
MOST = 1024  # signals up to which every number of cells is considered: the search grows with their square
SPARE = 3  # cells of a level beyond the fewest that are considered


class WideOr:
    """ORs of signals of one polarity, active high (True) or low (False).

    OR of high signals: NOR gives low, OR high; of low signals: NAND gives high, AND low.
    """

    def __init__(self, cells):
        self.cells, self._plans = cells, {}

    def _steps(self, high):
        """Per kind of step: form, whether groups are single, polarity of the result, area by inputs."""
        for form in ("oai", "oa"):
            areas = {
                n: area
                for n in range(2, LIMIT + 1)
                if (area := self.cells.area((form, (n,) if high else (1,) * n))) is not None
            }
            if areas:
                yield form, (form == "oa") == high, areas

    def plan(self, count, high, result):
        """Area and steps for ``count`` signals of polarity ``high`` to one of polarity ``result``."""
        key = count, high, result
        if key in self._plans:
            return self._plans[key]
        invert = self.cells.area(INV)
        if count == 1:
            found = (0.0, ()) if high == result else (invert, (("invert", None, result, (1,)),))
            self._plans[key] = found
            return found
        self._plans[key] = (float("inf"), ())  # of a recursion into itself
        best = (float("inf"), ())
        for form, after, areas in self._steps(high):
            if after == high:
                areas = areas | {1: 0.0}
            else:
                areas = areas | {1: invert}
            for level_area, sizes in _levels(count, areas):
                rest = self.plan(len(sizes), after, result)
                if level_area + rest[0] < best[0] - 1e-9:
                    best = level_area + rest[0], ((form, high, after, sizes), *rest[1])
        self._plans[key] = best
        return best

    def area(self, count, high, result):
        return self.plan(count, high, result)[0]

    def make(self, netlist, signals, high, result):
        """The OR of ``signals``, without doubles."""
        signals = list(dict.fromkeys(signals))
        for form, high_before, after, sizes in self.plan(len(signals), high, result)[1]:
            if form == "invert":
                signals = [netlist.invert(signals[0])]
                continue
            place, level = 0, []
            for size in sizes:
                part = signals[place : place + size]
                place += size
                if size == 1:
                    level.append(part[0] if after == high_before else netlist.invert(part[0]))
                else:
                    level.append(netlist.gate(form, (tuple(part),) if high_before else tuple((s,) for s in part)))
            signals = level
        return signals[0]


def _levels(count, areas):
    """Ways to take ``count`` signals into fewer cells: for each number of cells the cheapest sizes."""
    if count > MOST:
        return [_of_size(count, n, areas) for n in areas if n > 1]
    most = -(-count // max(areas)) + SPARE
    best = {(0, 0): (0.0, ())}
    for used in range(1, count + 1):
        for cells in range(-(-used // max(areas)), min(used, most) + 1):
            options = [
                (best[used - n, cells - 1][0] + area, (*best[used - n, cells - 1][1], n))
                for n, area in areas.items()
                if (used - n, cells - 1) in best
            ]
            if options:
                best[used, cells] = min(options)
    return [best[count, cells] for cells in range(1, min(count, most + 1)) if (count, cells) in best]


def _of_size(count, n, areas):
    """Cells of ``n`` inputs as far as they go."""
    whole, rest = divmod(count, n)
    sizes = (n,) * whole + ((rest,) if rest in areas else (1,) * rest)
    return sum(areas[size] for size in sizes), sizes
