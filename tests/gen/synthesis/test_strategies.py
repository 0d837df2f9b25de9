"""Banks by strategy: the Verilog of each is read at every address by Yosys."""

import re

import pytest

from intaglio.gen.synthesis.rom_report import random_trits
from intaglio.gen.synthesis.strategies import STRATEGIES, combinational, strategy_bank
from intaglio.rtl.ternary.packing import pack


def read_verilog(text, addresses, folder):
    """``data`` of the module's logic at each address, by Yosys' own evaluation of the Verilog."""
    from pyosys import libyosys

    name = re.search(r"^module (\w+)", text, re.MULTILINE)[1]
    path = folder / f"{name}.v"
    path.write_text(text)
    design = libyosys.Design()
    table = f"tee -q -o {folder / 'log'} eval -show data -table addr {name}"
    for step in (f"read_verilog {path}", "proc", "memory_map", "opt -full", table):
        libyosys.run_pass(step, design)
    rows = re.findall(r"^\s*\d+'([01]+)\s*\|\s*\d+'([01]+)", (folder / "log").read_text(), re.MULTILINE)
    found = {int(a, 2): int(d, 2) for a, d in rows}
    return [found[a] for a in addresses]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_verilog_reads_as_its_words(strategy, tmp_path):
    weights = random_trits(48, 6, 0.4)
    words = pack(weights, "2bit")
    built = strategy_bank(words, 12, f"bank_{strategy}", strategy)
    wanted = [int.from_bytes(row.tobytes(), "little") for row in words]
    assert read_verilog(combinational(built), range(48), tmp_path) == wanted
    flipped = weights.copy()
    flipped[17, 2] = (flipped[17, 2] + 2) % 3 - 1
    other = strategy_bank(pack(flipped, "2bit"), 12, f"bank_{strategy}_flipped", strategy)
    assert read_verilog(combinational(other), range(48), tmp_path) != wanted


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_word_and_two(strategy, tmp_path):
    one, two = (strategy_bank(words, 4, f"bank_{len(words)}", strategy) for words in ([0b1001], [0b1001, 6]))
    assert read_verilog(combinational(one), [0, 1], tmp_path) in (
        [9, 9],
        [9, 0],
    )  # a word that is not there may be anything
    assert read_verilog(combinational(two), [0, 1], tmp_path) == [9, 6]


@pytest.mark.parametrize(
    "words, width, strategy, text",
    [
        ([1], 2, "best", "strategy must be one of plain, code, planes, structured, not 'best'"),
        ([3, 1], 2, "planes", "both plus and minus"),
        ([3, 1], 3, "planes", "width of a ternary bank must be even, not 3"),
    ],
)
def test_refuses(words, width, strategy, text):
    with pytest.raises(ValueError, match=text):
        strategy_bank(words, width, "b", strategy)
