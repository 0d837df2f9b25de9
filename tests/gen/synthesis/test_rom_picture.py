"""The picture of `intaglio synth --svg`: nothing in it hides anything else."""

import xml.etree.ElementTree as ElementTree

from intaglio.gen.synthesis.rom_picture import comparison_svg


def parts(rows, kind):
    return [
        node.attrib
        for node in ElementTree.fromstring(comparison_svg(rows)).iter(f"{{http://www.w3.org/2000/svg}}{kind}")
    ]


def row(strategy, zeros, value):
    return {"strategy": strategy, "zeros": zeros, "per_bit": value}


def test_points_apart_are_plain():
    circles = parts(
        [row("plain", 0.3, 1.0), row("plain", 0.5, 0.9), row("code", 0.3, 0.5), row("code", 0.5, 0.4)], "circle"
    )
    assert [circle["r"] for circle in circles] == ["3"] * 4


def test_points_at_one_place_are_rings_the_widest_first():
    rows = [
        row("plain", 0.5, 1.0),
        row("code", 0.5, 1.0),
        row("planes", 0.5, 1.001),
        row("plain", 0.5, 1.0),
        row("code", 0.3, 0.2),
    ]
    circles = parts(rows, "circle")
    assert [circle["r"] for circle in circles] == ["12", "9", "6", "3", "3"]
    assert [circle["fill"] for circle in circles[:3]] == ["#5a5", "#259", "#999"]
    assert all(float(circle["stroke-width"]) > 0 for circle in circles[:3])


def test_a_line_along_another_is_dashed():
    rows = [row(strategy, zeros, zeros) for strategy in ("plain", "code", "planes") for zeros in (0.3, 0.5)] + [
        row("polished", 0.3, 0.1)
    ]
    lines = [path for path in parts(rows, "path") if path.get("stroke-width") == "2"]
    assert [line.get("stroke-dasharray") for line in lines] == [None, "6 6", "6 12", None]
