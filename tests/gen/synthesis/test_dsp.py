"""Registers of multipliers: which are moved into them, and that the netlist still computes the same."""

import json

import pytest

from intaglio.gen.synthesis.dsp import absorb_registers
from intaglio.gen.synthesis.ecp5 import synthesise_ecp5

pytestmark = pytest.mark.slow

TWICE = """product <= p;
wire signed [23:0] p = left * right;
reg mixed;
assign z = mixed;
always @(posedge clk) mixed <= p[5];"""
PORTS = "input clk, load, go, rst, input signed [15:0] a, input signed [7:0] b"
BODY = """
reg signed [15:0] left; reg signed [7:0] right; reg signed [23:0] product;
always @(posedge clk) if (load) begin left <= a; right <= b; end
always @(posedge clk) if (go) product <= left * right;
assign y = product;
"""


def absorbed(folder, body=BODY, outputs="output signed [23:0] y"):
    """The flat module before, and how many registers are moved, and the module after."""
    (folder / "rtl").mkdir(exist_ok=True)
    (folder / "rtl" / "top.v").write_text(f"module top({PORTS}, {outputs});\n{body}endmodule\n")
    synthesise_ecp5(folder, "top", netlist=folder / "netlist.json", timeout=60)
    return json.loads((folder / "netlist.json").read_text())["modules"]["top"]["cells"]


def registers(cells):
    return sum(cell["type"] == "TRELLIS_FF" for cell in cells.values())


def used(cells):
    (multiplier,) = (cell for cell in cells.values() if cell["type"] == "MULT18X18D")
    return {name: value for name, value in multiplier["parameters"].items() if name.endswith(("_CLK", "_CE"))}


INPUTS = {"REG_INPUTA_CLK": "CLK0", "REG_INPUTA_CE": "CE0", "REG_INPUTB_CLK": "CLK0", "REG_INPUTB_CE": "CE0"}


def test_all_registers_are_moved(tmp_path):
    cells = absorbed(tmp_path)
    assert registers(cells) == 0 and used(cells) == INPUTS | {"REG_OUTPUT_CLK": "CLK0", "REG_OUTPUT_CE": "CE1"}


@pytest.mark.parametrize(
    "change, kept, outer",
    [
        (
            ("assign y = product;", "assign y = product; assign z = right[3];"),
            16 + 8,
            "output signed [23:0] y, output z",
        ),
        (
            (
                "if (load) begin left <= a; right <= b; end",
                "begin if (load) left <= a; if (rst) right <= 0; else right <= b; end",
            ),
            16 + 8,
            None,
        ),
        (("if (go) product <= left * right", "if (rst) product <= 0; else product <= left * right"), 24, None),
        (("if (go) product", "product"), 0, None),
        (("product <= left * right;", TWICE), 24 + 1, "output signed [23:0] y, output z"),
    ],
    ids=[
        "an input is read elsewhere",
        "an input has a reset",
        "the output has a reset",
        "an output without enable",
        "a product is read twice",
    ],
)
def test_what_is_moved(change, kept, outer, tmp_path):
    assert change[0] in BODY
    cells = absorbed(tmp_path, BODY.replace(*change), outer or "output signed [23:0] y")
    assert registers(cells) == kept


def test_a_register_between_two_multipliers_is_moved_into_one(tmp_path):
    """Into the first, as its output; the one beside it then stays outside of the second."""
    body = BODY.replace(
        "assign y = product;",
        """wire signed [11:0] p = a[7:0] * b[3:0];
reg signed [11:0] middle; reg signed [7:0] other; reg signed [19:0] last;
always @(posedge clk) if (go) begin middle <= p; other <= b; end
always @(posedge clk) if (load) last <= middle * other;
assign y = product; assign z = last;""",
    )
    cells = absorbed(tmp_path, body, "output signed [23:0] y, output signed [19:0] z")
    owners = [cell["parameters"] for cell in cells.values() if cell["type"] == "MULT18X18D"]
    assert [sum(name in owner for owner in owners) for name in ("REG_INPUTA_CLK", "REG_OUTPUT_CLK")] == [
        1,
        3,
    ] and registers(cells) == 8


def test_moving_twice_moves_nothing(tmp_path):
    absorbed(tmp_path)
    module = json.loads((tmp_path / "netlist.json").read_text())["modules"]["top"]
    assert absorb_registers(module) == 0
