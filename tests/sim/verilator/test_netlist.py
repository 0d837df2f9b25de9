"""Netlists of ECP5 cells in simulation: cells as Yosys's models have them, and a whole decoder that is still the exact model."""

import json

import pytest

import intaglio.host as host
from bench.common import equal_to_exact
from intaglio import Error
from intaglio.boards.build import synthesised, write_sources
from intaglio.boards.config import board
from intaglio.boards.ecp5 import TOP as BOARD_TOP
from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.emit.decoder import generate
from intaglio.gen.presets.decoder import config_for
from intaglio.gen.synthesis.ecp5 import CELLS
from intaglio.gen.synthesis.yosys import run_yosys
from intaglio.sim.verilator.board import SerialBoard
from intaglio.sim.verilator.build import build
from intaglio.sim.verilator.netlist import TOP, netlist_verilog

MODEL = ModelConfig(
    vocab_size=256,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=64,
)
WIDTHS = {"dot": "adders", "packing": "5trit"}
BOARD = board("ulx3s")


def bits(value, width):
    return format(value, f"0{width}b")


def cell(kind, outputs, connections, **parameters):
    directions = {port: "output" if port in outputs else "input" for port in connections}
    return {
        "hide_name": 0,
        "type": kind,
        "parameters": parameters,
        "attributes": {},
        "port_directions": directions,
        "connections": connections,
    }


def netlist(path, cells, ports):
    module = {
        "attributes": {"top": bits(1, 32)},
        "cells": cells,
        "netnames": {},
        "ports": {name: {"direction": direction, "bits": [bit]} for name, (direction, bit) in ports.items()},
    }
    path.write_text(json.dumps({"creator": "test", "modules": {"gate": module}}))
    return path


def chain(**changes):
    """One cell of each kind of which Yosys has a model; rx shifts through eight registers and all else hangs on them."""

    def register(d, q, **parameters):
        return cell(
            "TRELLIS_FF",
            "Q",
            {"CLK": [2], "DI": [d], "LSR": ["0"], "CE": ["1"], "Q": [q]},
            CEMUX="1 ",
            CLKMUX="CLK",
            GSR="DISABLED",
            LSRMUX="LSR",
            REGSET="RESET",
            **parameters,
        )

    table = bits(0b1011_0110_0001_1101, 16)
    cells = {f"ff{i}": register(3 if i == 0 else 9 + i, 10 + i) for i in range(8)}
    cells |= {
        "low": cell("LUT4", "Z", {"A": [10], "B": [11], "C": [12], "D": [13], "Z": [20]}, INIT=table),
        "high": cell("LUT4", "Z", {"A": [14], "B": [15], "C": [16], "D": ["1"], "Z": [21]}, INIT=bits(0x7E81, 16)),
        "mux": cell("PFUMX", "Z", {"ALUT": [20], "BLUT": [21], "C0": [17], "Z": [22]}),
        "mux6": cell("L6MUX21", "Z", {"D0": [22], "D1": [21], "SD": [12], "Z": [23]}),
        "first": cell(
            "CCU2C",
            ("S0", "S1", "COUT"),
            {
                "CIN": ["0"],
                "A0": [10],
                "B0": [11],
                "C0": [12],
                "D0": ["1"],
                "A1": [13],
                "B1": [14],
                "C1": [15],
                "D1": ["1"],
                "S0": [24],
                "S1": [25],
                "COUT": [26],
            },
            INIT0=table,
            INIT1=bits(0x96AA, 16),
            INJECT1_0="YES",
            INJECT1_1="NO",
        ),
        "second": cell(
            "CCU2C",
            ("S0", "S1", "COUT"),
            {
                "CIN": [26],
                "A0": [14],
                "B0": [11],
                "C0": [16],
                "D0": [17],
                "A1": [13],
                "B1": [10],
                "C1": [15],
                "D1": [12],
                "S0": [27],
                "S1": [28],
                "COUT": [29],
            },
            INIT0=bits(0x66AC, 16),
            INIT1=table,
            INJECT1_0="NO",
            INJECT1_1="NO",
        ),
        "held": cell(
            "TRELLIS_FF",
            "Q",
            {"CLK": [2], "DI": [23], "LSR": [13], "CE": [24], "Q": [30]},
            CEMUX="CE",
            CLKMUX="CLK",
            GSR="DISABLED",
            LSRMUX="LSR",
            REGSET="SET",
            SRMODE="LSR_OVER_CE",
        ),
        "inverse": cell(
            "TRELLIS_FF",
            "Q",
            {"CLK": [2], "DI": [28], "LSR": [29], "CE": [27], "Q": [31]},
            CEMUX="INV",
            CLKMUX="CLK",
            GSR="DISABLED",
            LSRMUX="LSR",
            REGSET="RESET",
            SRMODE="LSR_OVER_CE",
        ),
        "ram": cell(
            "TRELLIS_DPR16X4",
            "DO",
            {
                "DI": [30, 31, 20, 21],
                "WAD": [10, 11, 12, 13],
                "WRE": [14],
                "WCK": [2],
                "RAD": [15, 16, 17, 22],
                "DO": [32, 33, 34, 35],
            },
            INITVAL=bits(0x0123_4567_89AB_CDEF, 64),
            WCKMUX="WCK",
            WREMUX="WRE",
        ),
        "sum": cell("LUT4", "Z", {"A": [32], "B": [33], "C": [34], "D": [35], "Z": [36]}, INIT=bits(0x6996, 16)),
        "out": cell("LUT4", "Z", {"A": [36], "B": [25], "C": [30], "D": [31], "Z": [4]}, INIT=bits(0x6996, 16)),
    }
    for name, parameters in changes.items():
        cells[name]["parameters"] |= parameters
    return cells


PORTS = {"clk_in": ("input", 2), "rx": ("input", 3), "tx": ("output", 4)}
WRAPPER = (
    f"module gold(input clk_in, input rx, output tx); {TOP} n(.clk(clk_in), .rst(1'b0), .rx(rx), .tx(tx)); endmodule\n"
)


def prove(folder, read, modelled):
    """Have Yosys prove over 14 cycles that the Verilog made of the cells ``read`` is what its own models make of ``modelled``."""
    (folder / "made.v").write_text(netlist_verilog(netlist(folder / "read.json", read, PORTS))[TOP] + WRAPPER)
    netlist(folder / "gate.json", modelled, PORTS)
    flat = ["proc", "flatten", "opt", "memory", "opt -full"]
    run_yosys(
        [
            "read_verilog made.v",
            "hierarchy -top gold",
            *flat,
            "design -stash gold",
            "read_json gate.json",
            "read_verilog -overwrite +/lattice/cells_sim_ecp5.v",
            "hierarchy -top gate",
            *flat,
            "design -stash gate",
            "design -copy-from gold -as gold gold",
            "design -copy-from gate -as gate gate",
            "miter -equiv -flatten -make_outputs gold gate miter",
            "hierarchy -top miter",
            "async2sync",
            "sat -verify -seq 14 -prove trigger 0 miter",
        ],
        folder,
        "cells",
        timeout=120,
    )


def test_cells_are_those_of_yosys(tmp_path):
    prove(tmp_path, chain(), chain())


@pytest.mark.parametrize(
    "changes",
    [
        {"low": {"INIT": bits(0b1011_0110_0001_1100, 16)}},
        {"first": {"INJECT1_1": "YES"}},
        {"second": {"INIT0": bits(0x66AD, 16)}},
        {"held": {"REGSET": "RESET"}},
        {"held": {"CEMUX": "INV"}},
        {"inverse": {"CEMUX": "CE"}},
        {"ram": {"INITVAL": bits(0x0123_4567_89AB_CDE7, 64)}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_cell_read_wrongly_is_seen(changes, tmp_path):
    with pytest.raises(Error, match="proof did fail"):
        prove(tmp_path, chain(**changes), chain())


def test_unknown_cells_and_forms_are_refused(tmp_path):
    cells = chain(held={"CLKMUX": "INV"})
    with pytest.raises(Error, match="TRELLIS_FF held: CLKMUX must be one of .CLK., not 'INV'"):
        netlist_verilog(netlist(tmp_path / "n.json", cells, PORTS))
    cells = {"pad": cell("TRELLIS_IO", "O", {"B": [3], "O": [4]})}
    with pytest.raises(Error, match="cell pad must be one of LUT4, .* not TRELLIS_IO"):
        netlist_verilog(netlist(tmp_path / "n.json", cells, PORTS))


@pytest.mark.verilator
@pytest.mark.slow
def test_a_decoder_as_cells_is_the_exact_model(tmp_path, simulation_cache):
    """Mapped, flattened, in simulation behind its UART: block RAM, distributed RAM, multipliers, carry chains and all."""
    checkpoint = random_checkpoint(MODEL, 4)
    manifest = generate(checkpoint, "small", tmp_path / "decoder", clock_hz=BOARD.clock_hz, **WIDTHS)
    usages, path = synthesised(tmp_path, write_sources(BOARD, manifest, tmp_path / "sources"), lambda *_: None)
    assert all(sum(u.count * u.cell(kind) for u in usages) for kind in CELLS)
    cells = json.loads(path.read_text())["modules"][BOARD_TOP]["cells"].values()
    moved = {name for cell in cells if cell["type"] == "MULT18X18D" for name in cell["parameters"]}
    assert {"REG_INPUTA_CLK", "REG_INPUTB_CLK", "REG_OUTPUT_CLK"} <= moved
    library = build(tmp_path / "decoder", cache=simulation_cache, board=netlist_verilog(path))
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"link": {"baud": BOARD.baud}}))
    prompt = [0, 17, 200, 3]
    with SerialBoard(library, clock_hz=BOARD.clock_hz, baud=BOARD.baud) as simulated:
        with host.open(f"serial:{simulated.port}?baud={BOARD.baud}&manifest={tmp_path}") as device:
            tokens = list(device.generate_tokens(prompt, 12))
    assert equal_to_exact(quantise(checkpoint, config_for(MODEL, "small", **WIDTHS)), prompt, tokens) == 12
