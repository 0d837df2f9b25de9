"""A ternary matrix as a graph of adders: all products of one vector at once, weights in the wiring.

``y = W x`` for constant ``W [rows, inputs]`` in {-1, 0, 1} and signed inputs of ``bits`` bits. The pair of terms that most rows have in
common (with one relation of signs) becomes a term of its own, again until no pair occurs twice: greedy elimination of common
subexpressions. What is left of a row is added up, the narrowest terms first. Widths are exact: a term's range is that of its coefficients.

Module ``name``: ``clk``; ``x``, input ``i`` in bits ``bits i ..``; ``y``, row ``r`` in bits ``width r ..``. Latency 1 (``y`` is
registered), a vector a cycle. Source: the two-term elimination of Hartley (1996), as in da4ml (arXiv 2507.04535); own code.
"""

from dataclasses import dataclass

import numpy as np

__all__ = ["AdderGraph", "adder_graph", "hardwired_verilog"]


@dataclass(frozen=True, kw_only=True)
class AdderGraph:
    """Members
    -------
    inputs, bits : int
    nodes : list of (int, int, int)
        Term ``inputs + k`` is term ``a`` plus ``sign`` times term ``b``, for ``(a, b, sign)``.
    outputs : list of (int or None, int)
        Term and sign of each row; None is 0.
    widths : list of int
        Bits of each term, signed.
    width : int
        Bits of an output.
    """

    inputs: int
    bits: int
    nodes: list
    outputs: list
    widths: list
    width: int

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        """``y`` of integer ``x [..., inputs]``."""
        x = np.asarray(x, np.int64)
        terms = [x[..., i] for i in range(self.inputs)]
        for a, b, sign in self.nodes:
            terms.append(terms[a] + sign * terms[b])
        zero = np.zeros(x.shape[:-1], np.int64)
        return np.stack([zero if term is None else sign * terms[term] for term, sign in self.outputs], axis=-1)

    @property
    def adder_bits(self) -> int:
        """Sum of the widths of the adders: about the LUTs of an FPGA with carry chains."""
        return sum(self.widths[self.inputs :]) + sum(
            self.width for term, sign in self.outputs if term is not None and sign < 0
        )


def adder_graph(weights: np.ndarray, bits: int = 8) -> AdderGraph:
    """The graph of ``weights [rows, inputs]``.

    Raises
    ------
    ValueError
        The matrix is not two-dimensional, empty, or not ternary, or ``bits`` is less than 2.
    """
    weights = np.asarray(weights)
    if weights.ndim != 2 or not weights.size:
        raise ValueError(f"a matrix must be [rows, inputs] and not empty, not {list(weights.shape)}")
    if not np.isin(weights, (-1, 0, 1)).all():
        raise ValueError("weights must be in -1, 0, 1")
    if bits < 2:
        raise ValueError(f"bits of the inputs must be at least 2, not {bits}")
    rows, inputs = weights.shape
    capacity = inputs + int(np.count_nonzero(weights)) + 1
    matrix = np.zeros((rows, capacity), np.float32)
    matrix[:, :inputs] = weights
    reach = np.zeros((capacity, inputs), np.int32)  # coefficients of each term
    reach[:inputs] = np.eye(inputs, dtype=np.int32)
    widths = [bits] * inputs
    nodes = []

    def add(a, b, sign):
        reach[inputs + len(nodes)] = reach[a] + sign * reach[b]
        nodes.append((a, b, sign))
        widths.append(_width(reach[inputs + len(nodes) - 1], bits))
        return inputs + len(nodes) - 1

    same, opposite = np.zeros((capacity, capacity), np.float32), np.zeros((capacity, capacity), np.float32)

    def count(terms, used):
        for term in terms:
            plus, minus = matrix[:, term] > 0, matrix[:, term] < 0
            part = matrix[:, :used]
            agree = (part[plus] > 0).sum(0) + (part[minus] < 0).sum(0)
            differ = (part[plus] < 0).sum(0) + (part[minus] > 0).sum(0)
            same[term, :used] = same[:used, term] = agree
            opposite[term, :used] = opposite[:used, term] = differ
            same[term, term] = opposite[term, term] = 0

    count(range(inputs), inputs)
    while True:
        used = inputs + len(nodes)
        shared = np.maximum(same[:used, :used], opposite[:used, :used])
        most = shared.max()
        if most < 2:
            break
        candidates = np.argwhere(np.triu(shared == most))
        wide = np.array(widths)
        costs = wide[candidates].sum(axis=1) * 4096 + np.abs(wide[candidates[:, 0]] - wide[candidates[:, 1]])
        a, b = map(int, candidates[np.argmin(costs)])
        sign = 1 if same[a, b] >= opposite[a, b] else -1
        hit = (matrix[:, a] != 0) & (matrix[:, a] * sign == matrix[:, b])
        if sign < 0 and matrix[hit, a].sum() < 0:  # most rows want the difference the other way round
            a, b = b, a
        new = add(a, b, sign)
        matrix[hit, new] = matrix[hit, a]
        matrix[hit, a] = matrix[hit, b] = 0
        count((a, b, new), new + 1)
    outputs = []
    for row in matrix[:, : inputs + len(nodes)]:
        terms = [(int(t), int(row[t])) for t in np.flatnonzero(row)]
        while len(terms) > 1:
            terms.sort(key=lambda term: (widths[term[0]], term[0]), reverse=True)
            (a, s), (b, t) = terms.pop(), terms.pop()
            if s < 0 < t:
                (a, s), (b, t) = (b, t), (a, s)
            terms.append((add(a, b, s * t), s))
        outputs.append(terms[0] if terms else (None, 1))
    width = max((_width(reach[term] * sign, bits) for term, sign in outputs if term is not None), default=1)
    return AdderGraph(inputs=inputs, bits=bits, nodes=nodes, outputs=outputs, widths=widths, width=width)


def _width(coefficients, bits):
    """Bits of the sum of inputs in -2^(bits - 1) .. 2^(bits - 1) - 1 with these coefficients."""
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    least = sum(int(c) * (low if c > 0 else high) for c in coefficients)
    greatest = sum(int(c) * (high if c > 0 else low) for c in coefficients)
    return max((-least - 1).bit_length(), greatest.bit_length()) + 1


def hardwired_verilog(graph: AdderGraph, name: str) -> str:
    """The module."""
    rows = len(graph.outputs)
    lines = [
        f"// {rows} x {graph.inputs} ternary weights as {len(graph.nodes)} adders, latency 1.",
        f"module {name} (",
        "    input wire clk,",
        f"    input wire [{graph.bits * graph.inputs - 1}:0] x,",
        f"    output reg [{graph.width * rows - 1}:0] y",
        ");",
    ]
    lines += [f"    wire [{graph.bits - 1}:0] t{i} = x[{graph.bits * i} +: {graph.bits}];" for i in range(graph.inputs)]

    adders = {}
    for k, (a, b, sign) in enumerate(graph.nodes, graph.inputs):
        kind = graph.widths[a], graph.widths[b], graph.widths[k], sign
        adder = adders.setdefault(kind, f"{name}_{'add' if sign > 0 else 'sub'}_{kind[0]}_{kind[1]}_{kind[2]}")
        lines.append(f"    wire [{kind[2] - 1}:0] t{k}; {adder} u{k} (.a(t{a}), .b(t{b}), .y(t{k}));")

    def extended(term, width):
        return _extended(f"t{term}", graph.widths[term], width)

    for row, (term, sign) in enumerate(graph.outputs):
        value = f"{graph.width}'d0" if term is None else f"{'-' if sign < 0 else ''}{extended(term, graph.width)}"
        lines.append(f"    wire [{graph.width - 1}:0] y{row} = {value};")
    lines.append("    always @(posedge clk) y <= {" + ", ".join(f"y{row}" for row in reversed(range(rows))) + "};")
    lines += ["endmodule", ""]
    for (wide_a, wide_b, width, sign), adder in adders.items():
        # Kept as modules: flattened, Yosys joins adders to carry-save adders, which take twice the LUTs.
        lines += [
            f"(* keep_hierarchy *) module {adder} (",
            f"    input wire [{wide_a - 1}:0] a, input wire [{wide_b - 1}:0] b, output wire [{width - 1}:0] y",
            ");",
            f"    assign y = {_extended('a', wide_a, width)} {'+' if sign > 0 else '-'} {_extended('b', wide_b, width)};",
            "endmodule",
            "",
        ]
    return "\n".join(lines)


def _extended(name, have, width):
    """A signed value, widened."""
    return f"{{{{{width - have}{{{name}[{have - 1}]}}}}, {name}}}" if width > have else name
