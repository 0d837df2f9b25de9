"""Cell libraries: functions to kinds, registers, several files, damaged ones."""

import gzip

import pytest

from intaglio import Error
from intaglio.gen.synthesis.liberty import BUILT_IN, read_liberty
from intaglio.gen.synthesis.liberty_function import truth_table
from intaglio.rtl.memory.logic import kind_name

CELL = 'cell ({name}) {{ area : {area}; {pins} pin (Y) {{ direction : output; function : "{function}"; }} }}'


def library(*cells):
    parts = ["library (test) {"]
    for name, area, inputs, function in cells:
        pins = " ".join(f"pin ({pin}) {{ direction : input; }}" for pin in inputs)
        parts.append(CELL.format(name=name, area=area, pins=pins, function=function))
    return "\n".join([*parts, "}"])


BASE = (("INV", 1.0, "A", "!A"), ("NAND", 2.0, "AB", "(A B)'"), ("NOR", 2.0, "AB", "!(A+B)"))


def gates(tmp_path, *cells):
    (tmp_path / "a.lib").write_text(library(*BASE, *cells))
    return {kind_name(kind): cell for kind, cell in read_liberty(tmp_path / "a.lib").gates.cells.items()}


def test_built_in():
    cells = read_liberty("nangate45")
    assert BUILT_IN["nangate45"].is_file() and not cells.timed and cells.nand2().area == 0.798
    areas = {kind_name(kind): cell.area for kind, cell in cells.gates.cells.items()}
    assert (areas["INV"], areas["NAND2"], areas["AOI22"], areas["OAI21"], areas["OAI33"]) == (
        0.532,
        0.798,
        1.33,
        1.064,
        1.862,
    )
    assert "XOR2" not in areas and "XOR2_X1" in cells.cells


@pytest.mark.parametrize(
    "text, value",
    [
        ("!(A)", lambda a, b, c: not a),
        ("(!A)", lambda a, b, c: not a),
        ("A'", lambda a, b, c: not a),
        ("((A))''", lambda a, b, c: a),
        ("!A'", lambda a, b, c: a),
        ("A B", lambda a, b, c: a and b),
        ("A B'", lambda a, b, c: a and not b),
        ("A(B+C)", lambda a, b, c: a and (b or c)),
        ("A+B C", lambda a, b, c: a or b and c),
        ("A | B & C", lambda a, b, c: a or b and c),
        ("A^B C", lambda a, b, c: (a != b) and c),
        ("A C ^ B", lambda a, b, c: a and c != b),
        ("!A^B", lambda a, b, c: a == b),
        ("(A B C)' + 0", lambda a, b, c: not (a and b and c)),
        ("A * 1", lambda a, b, c: a),
        (" ~ ( A * ! C ) ", lambda a, b, c: not (a and not c)),
        ("1", lambda a, b, c: True),
        ('\\"A\\" + \\"C\\"', lambda a, b, c: a or c),
        ("A \\\n + B", lambda a, b, c: a or b),
    ],
)
def test_expressions(text, value):
    wanted = sum(1 << i for i in range(8) if value(*(bool(i >> k & 1) for k in range(3))))
    assert truth_table(text, "ABC") == wanted


@pytest.mark.parametrize(
    "text", ["", "A +", "+ A", "(A", "A)", "A B)", "!", "'A", "IQ", "A % B", "A ? B : C", "2", "A ^", "1A", "()"]
)
def test_what_is_no_expression_of_the_inputs(text):
    assert truth_table(text, "ABC") is None


@pytest.mark.parametrize(
    "function", ["!A", "!(A)", "(!A)", "A'", "((A)')", "(A')", "! ( A )", "A^1", "!(A 1)", "!(A + A)", "~A"]
)
def test_an_inverter_is_one_however_its_function_is_written(function, tmp_path):
    """``--period`` needs one."""
    (tmp_path / "a.lib").write_text(library(("X", 1.0, "A", function), *BASE[1:], ("BUF", 0.5, "A", "(A)")))
    cells = read_liberty(tmp_path / "a.lib")
    assert [cell.name for cell in cells.inverters()] == ["X"] and cells.gates.cells[("oa", (1,))].name == "BUF"


def test_what_is_no_gate(tmp_path):
    """Outputs of three states, cells that the library marks, a function without quotation marks, pins that share a group."""
    text = """library (x) {
      cell (EINV) { area : 0.1; pin (A, T) { direction : input; } pin (Z) { direction : output; function : "!A"; three_state : "T"; } }
      cell (OLD) { area : 0.2; dont_use : true; pin (A) { direction : input; } pin (Z) { direction : output; function : "!A"; } }
      cell (INV) { area : 1; pin ("A") { direction : "input"; } pin (Z) { direction : output; function : A'; } }
      cell (ND2) { area : 2; pin (A, B) { direction : input; } pin (Z) { direction : output; function : "!(A\\
        B)"; } } }"""
    (tmp_path / "a.lib").write_text(text)
    cells = read_liberty(tmp_path / "a.lib")
    assert (
        [cell.name for cell in cells.inverters()] == ["INV"]
        and "OLD" not in cells.text
        and cells.nand2().inputs == ("A", "B")
    )
    assert cells.cells["EINV"].gate is None


@pytest.mark.parametrize(
    "function, inputs, name, pins",
    [
        ("!((A1 | A2) & (B1 | B2))", ("A1", "A2", "B1", "B2"), "OAI22", ("A1", "A2", "B1", "B2")),
        ("(!A1*!B1) + (!A1*!B2) + (!A2*!B1) + (!A2*!B2)", ("A1", "A2", "B1", "B2"), "AOI22", ("A1", "A2", "B1", "B2")),
        ("(C+(A*B))'", ("A", "B", "C"), "AOI21", ("A", "B", "C")),
        ("A * (C + B)", ("A", "B", "C"), "OA21", ("B", "C", "A")),
        ("A^B", ("A", "B"), None, ()),
        ("!A * B", ("A", "B"), None, ()),
        ("S*B + !S*A", ("A", "B", "S"), None, ()),
        ("A * Z", ("A", "B"), None, ()),
    ],
)
def test_functions(function, inputs, name, pins, tmp_path):
    found = gates(tmp_path, ("X", 9.0, inputs, function))
    cell = next((n for n, c in found.items() if c.name == "X"), None)
    assert cell == name and (name is None or found[name].pins == pins)


def test_the_cheapest_cell_counts_and_patterns_leave_out(tmp_path):
    (tmp_path / "a.lib").write_text(library(*BASE, ("NANDxp5", 1.5, "AB", "!(A&B)"), ("NANDx4", 4.0, "AB", "!(A&B)")))
    assert read_liberty(tmp_path / "a.lib").nand2().area == 1.5
    kept = read_liberty(tmp_path / "a.lib", dont_use=["*xp*"])
    assert kept.nand2().area == 2.0 and "NANDxp5" not in kept.text and "NANDx4" in kept.text
    with pytest.raises(Error, match="must have cells that may be used; all 5 are left out"):
        read_liberty(tmp_path / "a.lib", dont_use=["*"])


def test_several_files_and_gzip_are_one_library(tmp_path):
    (tmp_path / "a.lib").write_text(library(*BASE[:2]))
    (tmp_path / "b.lib.gz").write_bytes(gzip.compress(library(BASE[2]).encode()))
    cells = read_liberty([tmp_path / "a.lib", tmp_path / "b.lib.gz"])
    assert set(cells.cells) == {"INV", "NAND", "NOR"} and cells.name == "a+b"
    (tmp_path / "c.lib").write_text(cells.text)
    assert read_liberty(tmp_path / "c.lib").cells == cells.cells


@pytest.mark.parametrize(
    "content, text",
    [
        (b"", "must begin with a group library"),
        (b"hello", "must begin with a group library"),
        (b"/* a library of */ cells { }", "must begin with a group library"),
        (b"library (x) { }", "must have cells with an area; none was found"),
        (b"library (x) { cell (A) { area : 1; ", "as many closing as opening braces; it is cut off or damaged"),
        (b"\x1f\x8bnot gzip", "must be Liberty text or gzip of it"),
        (gzip.compress(b"library (x) { cell (A) { area : 1; } }")[:-9], "must be Liberty text or gzip of it"),
    ],
)
def test_damaged(content, text, tmp_path):
    (tmp_path / "bad.lib").write_bytes(content)
    with pytest.raises(Error, match=text):
        read_liberty(tmp_path / "bad.lib")


def test_missing_file_and_missing_cells(tmp_path):
    with pytest.raises(Error, match="none.lib cannot be read"):
        read_liberty(tmp_path / "none.lib")
    (tmp_path / "a.lib").write_text(library(BASE[1], BASE[2]))
    with pytest.raises(Error, match="cell library a must have an inverter"):
        _ = read_liberty(tmp_path / "a.lib").gates
    (tmp_path / "a.lib").write_text(library(BASE[0], BASE[2]))
    with pytest.raises(Error, match="must have NAND2 and NOR2, or AND2 and OR2"):
        _ = read_liberty(tmp_path / "a.lib").gates
    with pytest.raises(Error, match="must have a NAND2"):
        read_liberty(tmp_path / "a.lib").nand2()
