"""Adder graphs of constant ternary matrices."""

import re

import numpy as np
import pytest

from intaglio.gen.synthesis.hardwired import adder_graph, hardwired_verilog


def trits(rows, inputs, zeros, seed=3):
    draw = np.random.default_rng(seed).random((rows, inputs))
    return np.where(draw < zeros, 0, np.where(draw < (1 + zeros) / 2, 1, -1))


CASES = {
    "random": trits(16, 24, 0.42),
    "dense": trits(9, 12, 0.0),
    "sparse": trits(12, 16, 0.8),
    "zeros": np.zeros((3, 4), int),
    "ones": np.ones((4, 8), int),
    "minus": -np.ones((4, 8), int),
    "one": np.array([[-1]]),
}


def extremes(inputs, weights):
    random = np.random.default_rng(4).integers(-128, 128, (50, inputs))
    worst = np.where(weights > 0, 127, -128), np.where(weights > 0, -128, 127)
    return np.concatenate([random, *worst])


@pytest.mark.parametrize("name", CASES)
def test_graph_equals_the_matrix(name):
    weights = CASES[name]
    graph = adder_graph(weights)
    x = extremes(weights.shape[1], weights)
    assert (graph.evaluate(x) == x @ weights.T).all()
    assert np.abs(x @ weights.T).max() < 1 << graph.width - 1 or (x @ weights.T).min() == -(1 << graph.width - 1)


def test_terms_fit_their_widths():
    weights = CASES["random"]
    graph = adder_graph(weights)
    x = extremes(24, weights)
    terms = list(x.T)
    for (a, b, sign), width in zip(graph.nodes, graph.widths[24:], strict=True):
        terms.append(terms[a] + sign * terms[b])
        assert -(1 << width - 1) <= terms[-1].min() and terms[-1].max() < 1 << width - 1


def test_sharing_saves_adders():
    weights = trits(64, 64, 0.42, seed=7)
    graph = adder_graph(weights)
    assert len(graph.nodes) < 0.48 * np.count_nonzero(weights)  # da4ml: 0.456
    assert (graph.evaluate(np.eye(64, dtype=int)).T == weights).all()


def test_one_flipped_weight_is_found():
    weights = CASES["random"].copy()
    graph = adder_graph(weights)
    weights[5, 7] = (weights[5, 7] + 2) % 3 - 1
    x = extremes(24, weights)
    assert (graph.evaluate(x) != x @ weights.T).any()


def verilog_result(text, x, width, folder):
    from pyosys import libyosys

    (folder / "m.v").write_text(re.sub(r"always @\(posedge clk\) y <=", "always @* y =", text))
    design = libyosys.Design()
    value = sum((int(v) & 255) << 8 * i for i, v in enumerate(x))
    shown = f"tee -q -o {folder / 'log'} eval -set x {8 * len(x)}'h{value:x} -show y m"
    flat = ("hierarchy -top m", "proc", "setattr -mod -unset keep_hierarchy *", "flatten", "opt")
    for step in (f"read_verilog {folder / 'm.v'}", *flat, shown):
        libyosys.run_pass(step, design)
    result = int(re.search(r"= \d+'([01]+)", (folder / "log").read_text())[1], 2)
    rows = [result >> width * r & (1 << width) - 1 for r in range(len(bin(result)) // width + 1)]
    return [v - (1 << width) if v >> width - 1 else v for v in rows]


@pytest.mark.parametrize("name", ["random", "minus", "zeros"])
def test_verilog_equals_the_matrix(name, tmp_path):
    weights = CASES[name]
    graph = adder_graph(weights)
    for x in extremes(weights.shape[1], weights)[[0, 1, -1]]:
        found = verilog_result(hardwired_verilog(graph, "m"), x, graph.width, tmp_path)
        wanted = (weights @ x).tolist()
        assert (found + [0] * len(wanted))[: len(wanted)] == wanted


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: adder_graph(np.zeros(4)), r"must be \[rows, inputs\] and not empty, not \[4\]"),
        (lambda: adder_graph(np.full((2, 2), 2)), "weights must be in -1, 0, 1"),
        (lambda: adder_graph(np.ones((2, 2)), bits=1), "bits of the inputs must be at least 2, not 1"),
    ],
)
def test_refuses(call, text):
    with pytest.raises(ValueError, match=text):
        call()
