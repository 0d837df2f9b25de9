"""From an address to a row and a column, each one-hot: ``address = column * rows + row``, for any number of rows."""

__all__ = ["Decode"]

FIELD = 3  # address bits that are decoded at once


class Decode:
    """Lines of rows and columns, made when they are asked for, in either polarity. There are at least two columns.

    Parameters
    ----------
    netlist : Netlist
        Its inputs are the address.
    wide : WideOr
    rows : int
        ``m 2^k`` with odd ``m``: the lowest ``k`` bits are decoded directly, the others as one-hot blocks, of which every ``m``-th
        has the same rows and ``m`` in a row are a column.
    """

    def __init__(self, netlist, wide, rows):
        self.netlist, self.wide, self.rows = netlist, wide, rows
        low = min((rows & -rows).bit_length() - 1, netlist.inputs)
        self.low, self.m = low, max(1, rows >> low)
        self.columns = -(-(1 << netlist.inputs) // rows)
        self._lines = {}

    def row(self, index, high):
        """1 (0 if not ``high``) where the row is ``index``."""
        third, low = index >> self.low, index & ((1 << self.low) - 1)
        parts = [lambda high: self._field(0, self.low, low, high)] if self.low else []
        if self.m > 1:
            parts.append(lambda high: self._third(third, high))
        return self.netlist.label(self._both(("row", index), parts, high), f"r{index}{'' if high else 'n'}")

    def column(self, index, high):
        """1 (0 if not ``high``) where the column is ``index``."""
        if self.m == 1:
            line = self._field(self.low, self.netlist.inputs, index, high)
        else:
            line = self._blocks(("column", index), range(index * self.m, (index + 1) * self.m), high)
        return self.netlist.label(line, f"c{index}{'' if high else 'n'}")

    def _third(self, index, high):
        return self._blocks(("third", index), range(index, 1 << self.netlist.inputs - self.low, self.m), high)

    def _blocks(self, key, indices, high):
        if (key, high) not in self._lines:
            count = 1 << self.netlist.inputs - self.low
            indices = [i for i in indices if i < count]
            areas = [self.wide.area(len(indices), polarity, high) for polarity in (True, False)]
            polarity = areas[0] < areas[1]
            lines = [self._field(self.low, self.netlist.inputs, i, polarity) for i in indices]
            self._lines[key, high] = self.wide.make(self.netlist, lines, polarity, high)
        return self._lines[key, high]

    def _field(self, start, stop, value, high):
        """1 (0 if not ``high``) where address bits ``start..stop - 1`` are ``value``."""
        if stop - start == 1:
            return self.netlist.literal(start, bool(value) == high)
        key = "field", start, stop, value
        if stop - start <= FIELD:
            parts = [
                lambda high, bit=bit: self.netlist.literal(bit, bool(value >> (bit - start) & 1) == high)
                for bit in range(start, stop)
            ]
        else:
            middle = start + (stop - start + 1) // 2
            parts = [
                lambda high: self._field(start, middle, value & ((1 << middle - start) - 1), high),
                lambda high: self._field(middle, stop, value >> middle - start, high),
            ]
        return self._both(key, parts, high)

    def _both(self, key, parts, high):
        """AND of parts, each a function of the polarity; inverting gates where the library has them."""
        if len(parts) == 1:
            return parts[0](high)
        if (key, high) not in self._lines:
            n, cells = len(parts), self.wide.cells
            # high: NOR of low lines or AND of high ones; low: NAND of high lines or OR of low ones.
            options = (
                [(("oai", (n,)), False), (("oa", (1,) * n), True)]
                if high
                else [(("oai", (1,) * n), True), (("oa", (n,)), False)]
            )
            kind, polarity = min((o for o in options if cells.has(o[0])), key=lambda o: cells.area(o[0]))
            lines = tuple(part(polarity) for part in parts)
            groups = (lines,) if len(kind[1]) == 1 else tuple((line,) for line in lines)
            self._lines[key, high] = self.netlist.gate(kind[0], groups)
        return self._lines[key, high]
