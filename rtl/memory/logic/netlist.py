"""A combinational netlist of gates by kind: each gate once, evaluated at all addresses at once, written as expressions."""

import numpy as np

from intaglio.rtl.memory.logic.cells import INV, INVERTING, canonical, dual

__all__ = ["ONE", "Netlist"]

ONE = -1  # an output that is always 1; None is one that is always 0
BLOCK = 4096  # addresses that a proof looks at at once, so that its memory is bounded


class Netlist:
    """Gates in the order in which they are made; inputs come before.

    Parameters
    ----------
    inputs : int
        Address bits; signals 0..inputs - 1 are the bits, lowest first.
    dual : bool
        Exchange AND and OR in every gate made. Built for the complement of the words at the complement of
        the address, the netlist then computes the words at the address, with the other half of the library.

    A signal is an integer. ``kinds[i]`` and ``ins[i]`` are the gate that drives signal ``inputs + i``; ``ins`` are group by group.
    """

    def __init__(self, inputs, dual=False):
        self.inputs, self.dual = inputs, dual
        self.kinds, self.ins, self.labels, self.outputs = [], [], {}, []
        self._known = {}

    def gate(self, form, groups):
        """Signal of the gate ``form`` of ``groups``, tuples of signals; the same gate is made once."""
        kind = canonical((form, tuple(map(len, groups))))
        groups = sorted((tuple(sorted(group)) for group in groups), key=lambda group: (-len(group), group))
        if form in ("aoi", "ao") and kind[0] != form and len(groups) == 1:
            groups = [(signal,) for signal in groups[0]]
        elif form in ("aoi", "ao") and kind[0] != form:
            groups = [tuple(signal for group in groups for signal in group)]
        ins = tuple(signal for group in groups for signal in group)
        key = kind, ins
        signal = self._known.get(key)
        if signal is None:
            signal = self._known[key] = self.inputs + len(self.kinds)
            self.kinds.append(dual(kind) if self.dual else kind)
            self.ins.append(ins)
        return signal

    def literal(self, bit, value):
        """The signal that is 1 where address bit ``bit`` is ``value``."""
        return bit if value else self.invert(bit)

    def invert(self, signal):
        if signal >= self.inputs and self.kinds[signal - self.inputs] == INV:
            return self.ins[signal - self.inputs][0]
        return self.gate("oai", ((signal,),))

    def label(self, signal, name):
        """Give the gate that drives ``signal`` a name for the Verilog, unless it has one."""
        if signal is not None and signal >= self.inputs:
            self.labels.setdefault(signal, name)
        return signal

    def sweep(self):
        """Drop gates that no output needs."""
        used = bytearray(self.inputs + len(self.kinds))
        for signal in self.outputs:
            if signal not in (None, ONE):
                used[signal] = 1
        for i in range(len(self.kinds) - 1, -1, -1):
            if used[self.inputs + i]:
                for signal in self.ins[i]:
                    used[signal] = 1
        new = list(range(self.inputs)) + [0] * len(self.kinds)
        kinds, ins = [], []
        for i, kind in enumerate(self.kinds):
            if used[self.inputs + i]:
                new[self.inputs + i] = self.inputs + len(kinds)
                kinds.append(kind)
                ins.append(tuple(new[signal] for signal in self.ins[i]))
        self.labels = {new[signal]: name for signal, name in self.labels.items() if used[signal]}
        self.kinds, self.ins, self._known = kinds, ins, {}
        self.outputs = [signal if signal in (None, ONE) else new[signal] for signal in self.outputs]

    def area(self, cells):
        """Sum of the areas of the cells."""
        counts = {}
        for kind in self.kinds:
            counts[kind] = counts.get(kind, 0) + 1
        return sum(cells.area(kind) * n for kind, n in counts.items())

    def evaluate(self, start=0, count=None):
        """Outputs at ``count`` addresses from ``start`` on, by default at all: one integer each, whose bit ``i`` is the output at address
        ``start + i``. ``count`` is a power of 2 that divides ``start``."""
        size = 1 << self.inputs if count is None else count
        ones = (1 << size) - 1
        values = []
        for bit in range(self.inputs):
            if 1 << bit >= size:
                values.append(ones if start >> bit & 1 else 0)
                continue
            period = ((1 << (1 << bit)) - 1) << (1 << bit)
            values.append(period * (ones // ((1 << (2 << bit)) - 1)))
        for (form, groups), ins in zip(self.kinds, self.ins, strict=True):
            place, total = 0, None
            product_of_sums = form in ("oai", "oa")
            for count in groups:
                inner = values[ins[place]]
                for signal in ins[place + 1 : place + count]:
                    inner = inner | values[signal] if product_of_sums else inner & values[signal]
                place += count
                total = inner if total is None else total & inner if product_of_sums else total | inner
            values.append(total ^ ones if INVERTING[form] else total)
        return [
            {None: 0, ONE: ones}.get(signal) if signal in (None, ONE) else values[signal] for signal in self.outputs
        ]

    def holds(self, bits):
        """Whether the outputs are ``bits [depth, width]`` at every address below ``depth``: an exhaustive proof."""
        bits = np.asarray(bits, bool)
        if len(self.outputs) != bits.shape[1]:
            return False
        count = min(1 << self.inputs, BLOCK)
        for start in range(0, len(bits), count):
            part = bits[start : start + count]
            mask = (1 << len(part)) - 1
            columns = np.packbits(part, axis=0, bitorder="little").T
            for value, column in zip(self.evaluate(start, count), columns, strict=True):
                if value & mask != int.from_bytes(column.tobytes(), "little"):
                    return False
        return True

    def __len__(self):
        """Number of gates."""
        return len(self.kinds)

    def body(self):
        """The lines of the module's body: a wire for each gate, and the outputs."""
        names = self.names()
        wires = zip(names[self.inputs :], self.expressions(names), strict=True)
        return "\n".join([*(f"    wire {wire} = {text};" for wire, text in wires), self.data(names)])

    def data(self, names):
        """The line of the outputs."""
        constants = {None: "1'b0", ONE: "1'b1"}
        outputs = [constants[signal] if signal in constants else names[signal] for signal in self.outputs]
        return "    assign data = {" + ", ".join(reversed(outputs)) + "};"

    def names(self):
        """Names of all signals: address bits, labels, numbers."""
        gates = range(self.inputs, self.inputs + len(self.kinds))
        return [f"a[{bit}]" for bit in range(self.inputs)] + [self.labels.get(i) or f"n{i}" for i in gates]

    def expressions(self, names):
        """The Verilog expression of each gate."""
        for (form, groups), ins in zip(self.kinds, self.ins, strict=True):
            inner, outer = (" | ", " & ") if form in ("oai", "oa") else (" & ", " | ")
            place, parts = 0, []
            for count in groups:
                text = inner.join([names[signal] for signal in ins[place : place + count]])
                parts.append(f"({text})" if count > 1 and len(groups) > 1 else text)
                place += count
            text = outer.join(parts)
            if INVERTING[form]:
                text = f"~({text})" if len(ins) > 1 else "~" + text
            yield text
