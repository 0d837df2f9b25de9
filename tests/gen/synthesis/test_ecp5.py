"""Mapping to ECP5 with Yosys: memories become block RAM without logic around them, and a lane stays small."""

import json

import numpy as np
import pytest

from intaglio import Error
from intaglio.gen.emit.output import write
from intaglio.gen.emit.verilog import convert
from intaglio.gen.synthesis.ecp5 import CELLS, SHIFTS, Usage, block_rams, decoder_table, synthesise_ecp5, table
from intaglio.gen.synthesis.yosys import run_yosys
from intaglio.rtl.attention.narrow.array import MacArray
from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.memory.ram import RAM_VERILOG
from intaglio.rtl.memory.rom import ROM_VERILOG, hex_text
from intaglio.rtl.ternary.lane import FORMS, lane_designs

pytestmark = pytest.mark.slow

# Widths of burin and the preset ulx3s.
CONFIG = DecoderConfig(
    hidden=192,
    intermediate=512,
    layers=4,
    heads=6,
    kv_heads=1,
    head_dim=32,
    vocab=256,
    context=128,
    lanes=8,
    lane_width=64,
    packing="5trit",
    dot="adders",
    vector_width=8,
    attention_heads=2,
)
# Width, depth, and the most LUTs for each bit: where the words lie in several blocks, a multiplexer chooses between them.
ROMS = {
    "weights": (CONFIG.weight_word_bits, CONFIG.weight_depth, 2),
    "embedding": (8 * CONFIG.array, CONFIG.head_groups * CONFIG.vocab, 2),
    "embedding of one head": (256, 6 * CONFIG.vocab, 2),
    "embedding of three heads": (768, 2 * CONFIG.vocab, 0),
    "shallow": (36, 512, 0),
    "deep": (4, 4096, 2),
}
RAMS = {
    "keys": (8 * CONFIG.vector_width, 2 * CONFIG.layers * CONFIG.context),
    "scales": (26, 2 * CONFIG.layers * CONFIG.context),
}


def folder_of(root, modules, images=None):
    for name, content in ({f"rtl/{n}.v": text.encode() for n, text in modules.items()} | (images or {})).items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return root


def module_with(instance, ports):
    return f"module top({', '.join(ports)});\n{instance}\nendmodule\n"


def mapped(root, width, depth, kind):
    """Cells of an ``intaglio_rom`` of random words or an ``intaglio_ram``."""
    bits = max(1, (depth - 1).bit_length())
    if kind == "rom":
        words = np.random.default_rng(1).integers(0, 256, (depth, -(-width // 8)), np.uint8)
        words[:, -1] &= (1 << (width - 1) % 8 + 1) - 1
        ports = ["input clk", f"input [{bits - 1}:0] addr", f"output [{width - 1}:0] data"]
        instance = f'intaglio_rom #(.WIDTH({width}), .DEPTH({depth}), .FILE("a.hex")) memory (.*);'
        modules, images = {"intaglio_rom": ROM_VERILOG}, {"rom/a.hex": hex_text(words)}
    else:
        ports = [
            "input clk",
            "input write_en, read_en",
            f"input [{bits - 1}:0] write_addr, read_addr",
            f"input [{width - 1}:0] write_data",
            f"output [{width - 1}:0] read_data",
        ]
        instance = f"intaglio_ram #(.WIDTH({width}), .DEPTH({depth})) memory (.*);"
        modules, images = {"intaglio_ram": RAM_VERILOG}, {}
    connected = ", ".join(f".{name}({name})" for name in names(ports))
    top = module_with(instance.replace(".*", connected), ports)
    usages = synthesise_ecp5(folder_of(root, modules | {"top": top}, images), "top", flatten=["intaglio_*"], timeout=60)
    return {kind: sum(u.count * u.cell(kind) for u in usages) for kind in CELLS}


def names(ports):
    return [
        word
        for port in ports
        for word in port.split("]")[-1].replace("input", "").replace("output", "").replace(",", " ").split()
    ]


@pytest.mark.parametrize("name", ROMS)
def test_roms_are_block_ram(name, tmp_path):
    width, depth, luts = ROMS[name]
    cells = mapped(tmp_path, width, depth, "rom")
    assert -(-width * depth // 18432) <= cells["DP16KD"] <= block_rams(width, depth)  # the last rows may share blocks
    assert cells["TRELLIS_FF"] <= 2 and cells["TRELLIS_DPR16X4"] == cells["MULT18X18D"] == 0
    assert cells["LUT4"] <= luts * width


@pytest.mark.parametrize("name", RAMS)
def test_rams_are_block_ram_without_collision_logic(name, tmp_path):
    width, depth = RAMS[name]
    assert mapped(tmp_path, width, depth, "ram") == dict.fromkeys(CELLS, 0) | {"DP16KD": block_rams(width, depth)}


@pytest.mark.parametrize("dot, luts, carries, registers", [("planes", 3000, 120, 520), ("adders", 850, 400, 560)])
def test_lane(tmp_path, dot, luts, carries, registers):
    """64 weights of a lane, with its masks as constants."""
    modules = {}
    for name, design, ports in lane_designs(CONFIG.replace(dot=dot)):
        modules |= convert(design, name, ports)
    ports = [
        "input clk, enable, first",
        f"input [{CONFIG.weight_word_bits - 1}:0] word",
        *(f"input [{CONFIG.lane_width - 1}:0] x0_{b}" for b in range(8)),
        f"output [{CONFIG.accumulator_bits - 1}:0] sum0",
    ]
    connected = [f".{name}({name})" for name in names(ports)] + [
        f".masks{k}(64'd{mask})" for k, mask in enumerate(FORMS[dot][2].MASKS)
    ]
    modules["top"] = module_with(f"intaglio_lane lane ({', '.join(connected)});", ports)
    usages = synthesise_ecp5(folder_of(tmp_path, modules), "top", flatten=["intaglio_*"], timeout=120)
    cells = {kind: sum(u.count * u.cell(kind) for u in usages) for kind in CELLS}
    assert cells["DP16KD"] == cells["MULT18X18D"] == cells["TRELLIS_DPR16X4"] == 0
    assert cells["LUT4"] <= luts and cells["CCU2C"] <= carries and cells["TRELLIS_FF"] <= registers, cells


def test_additions_of_trees_are_carry_chains(tmp_path):
    """The LUTs of the attention array are those of its operands' multiplexers."""
    array = MacArray(CONFIG)
    usages = synthesise_ecp5(folder_of(tmp_path, convert(array, "top", None)), "top", timeout=120)
    cells = {kind: sum(u.count * u.cell(kind) for u in usages) for kind in CELLS}
    assert cells["MULT18X18D"] == CONFIG.array and cells["LUT4"] <= CONFIG.array * (16 + 8) + 8, cells


@pytest.mark.parametrize(
    "shape, amount, bits", [("signed [50:0]", 6, 18), ("[60:0]", 6, 16), ("signed [8:0]", 3, 4), ("[6:0]", 2, 1)]
)
def test_shifts_by_the_largest_step_first_are_equal(shape, amount, bits, tmp_path):
    """Proved by SAT for all inputs; a shift that keeps all bits, or whose amount has a sign, is left to Yosys."""
    arrow = ">>>" if "signed" in shape else ">>"
    (tmp_path / "top.v").write_text(
        f"module top(input {shape} a, input [{amount - 1}:0] b, output [{bits - 1}:0] y);\n"
        f"assign y = a {arrow} b;\nendmodule\n"
    )
    (tmp_path / "map.v").write_text(SHIFTS)
    run_yosys(
        [
            "read_verilog top.v",
            "hierarchy -top top",
            "wreduce",
            "copy top gold",
            "techmap -map map.v top",
            "opt_clean",
            "select -assert-none top/t:$shr top/t:$sshr",
            "select -clear",
            "miter -equiv -flatten -make_outputs gold top proof",
            "sat -verify -prove trigger 0 proof",
        ],
        tmp_path,
        "the proof",
        timeout=120,
    )


def test_a_shift_takes_the_largest_step_first(tmp_path):
    """The vector unit's: 364 LUTs as Yosys builds it."""
    top = module_with("assign y = a >>> b;", ["input signed [50:0] a", "input [5:0] b", "output [17:0] y"])
    (usage,) = synthesise_ecp5(folder_of(tmp_path, {"top": top}), "top", timeout=60)
    assert usage.cell("LUT4") <= 260


def test_copies_of_a_register_stay_apart(tmp_path):
    inner = (
        "module inner(input clk, input d, input a, output reg q);\n(* keep = 1 *) reg copy;\n"
        "always @(posedge clk) begin copy <= d; q <= copy ^ a; end\nendmodule\n"
    )
    top = module_with(
        "inner first(clk, d, a[0], q[0]);\ninner second(clk, d, a[1], q[1]);",
        ["input clk, d", "input [1:0] a", "output [1:0] q"],
    )
    (usage,) = synthesise_ecp5(folder_of(tmp_path, {"inner": inner, "top": top}), "top", flatten=["inner"], timeout=60)
    assert usage.cell("TRELLIS_FF") == 4


def test_a_broken_design_is_refused(tmp_path):
    folder_of(tmp_path, {"top": "module top(input a); missing m(.a(a)); endmodule\n"})
    with pytest.raises(Error, match="must map top"):
        synthesise_ecp5(tmp_path, "top")


def test_table():
    text = table([Usage(name="a", count=2, cells={"LUT4": 10}), Usage(name="b", count=1, cells={"LUT4": 30})])
    assert text.splitlines()[2].startswith("| `b` | 1 | 30 |") and "| all | | 50 |" in text


def test_the_netlist_is_flat_and_has_no_scopes(tmp_path):
    inner = "module inner(input clk, input d, output reg q);\nalways @(posedge clk) q <= d;\nendmodule\n"
    top = module_with(
        "wire a;\ninner first(clk, d, a);\ninner second(clk, ~a, q);", ["input clk", "input d", "output q"]
    )
    path = tmp_path / "netlist.json"
    synthesise_ecp5(folder_of(tmp_path, {"inner": inner, "top": top}), "top", netlist=path, timeout=60)
    kinds = {cell["type"] for cell in json.loads(path.read_text())["modules"]["top"]["cells"].values()}
    assert "TRELLIS_FF" in kinds and kinds <= {"TRELLIS_FF", "LUT4"}


def test_files_that_a_manifest_does_not_list_are_not_read(tmp_path):
    """What the user has put beside the Verilog is no source; a folder of another kind is refused."""
    write(
        tmp_path,
        {"rtl/top.v": b"module top(input a, input b, output c); assign c = a ^ b; endmodule\n"},
        {"kind": "lane", "files": {"verilog": ["rtl/top.v"]}},
    )
    (tmp_path / "rtl" / "bench.v").write_text("module top; initial $finish; endmodule\n")
    (usage,) = synthesise_ecp5(tmp_path, "top", timeout=60)
    assert usage.cell("LUT4") == 1
    for folder in (tmp_path, tmp_path / "rtl"):
        with pytest.raises(Error, match="must hold the output of 'intaglio gen decoder'"):
            decoder_table(folder)
