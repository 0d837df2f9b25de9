"""The plot of `intaglio synth --svg`: nothing in it hides anything else, and it is the same each time."""

import re
import sys
import xml.etree.ElementTree as ElementTree

from intaglio.cli import main
from intaglio.gen.synthesis.cli import register
from intaglio.gen.synthesis.rom_picture import comparison_svg

STRATEGIES = ("plain", "code", "planes", "structured", "polished")
ROWS = [  # all of them along one line
    {"strategy": strategy, "zeros": zeros, "per_bit": 1 - zeros} for strategy in STRATEGIES for zeros in (0.3, 0.5)
]


def test_a_line_is_narrower_than_those_under_it():
    groups = {node.get("id"): node for node in ElementTree.fromstring(comparison_svg(ROWS)).iter() if node.get("id")}
    drawn = [name for name in groups if name in STRATEGIES]
    styles = [next(node.get("style") for node in groups[name].iter() if node.get("style")) for name in drawn]
    widths = [float(re.search(r"stroke-width: ([\d.]+)", style)[1]) for style in styles]
    assert drawn == list(STRATEGIES) and all(under > over for under, over in zip(widths, widths[1:], strict=False))


def test_axes_say_what_they_count():
    text = comparison_svg(ROWS)
    assert all(label in text for label in ("share of zero weights", "share of zero bits", "um2 a bit", *STRATEGIES))
    assert "LUTs a weight" in comparison_svg([{"strategy": "plain", "zeros": 0.4, "lut_per_weight": 2.0}])


def test_same_rows_same_bytes():
    assert comparison_svg(ROWS) == comparison_svg(ROWS)


def test_without_matplotlib_the_extra_is_named_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    arguments = ["synth", "--target", "nangate45", "--svg", str(tmp_path / "a.svg")]
    assert main(arguments, {"synth": lambda: register}) == 2
    assert "pip install 'intaglio[plot]'" in capsys.readouterr().err and not list(tmp_path.iterdir())
