"""Boards without their long steps: pins, clocks, stamps of steps, and what becomes of a report of nextpnr."""

import json
import pickle
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from intaglio import Error
from intaglio.boards import cli, tools
from intaglio.boards.alveo import CARDS, package
from intaglio.boards.arty import archive
from intaglio.boards.build import FLATTEN, build, critical_path
from intaglio.boards.config import BOARDS, Board, Pin, board
from intaglio.boards.ecp5 import Pll, constraints, pll, top_verilog
from intaglio.boards.lane import build_lane
from intaglio.boards.tools import Stamp, run_yowasp
from intaglio.cli import main
from intaglio.gen.emit import output
from intaglio.gen.emit.verilog import convert
from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.top.decoder import DecoderCore

COMMANDS = {"board": lambda: cli.register}
PIN = Pin(ball="A1")
PLAIN = {
    "name": "x",
    "description": "x",
    "device": "85k",
    "package": "CABGA381",
    "speed": "6",
    "clock": PIN,
    "rx": PIN,
    "tx": PIN,
    "input_hz": 25_000_000,
}


def test_only_memories_and_the_attention_array_are_mapped_apart():
    """A module of logic that is not named would be mapped without its neighbours, and its paths would be longer."""
    config = DecoderConfig(
        hidden=32,
        intermediate=32,
        layers=1,
        heads=2,
        kv_heads=1,
        head_dim=16,
        vocab=16,
        context=8,
        lanes=2,
        lane_width=16,
        vector_width=4,
        attention_heads=2,
        top_k=2,
    )
    modules = convert(DecoderCore(config, 64), "core", None)
    apart = {name: text for name, text in modules.items() if not any(fnmatch(name, kind) for kind in FLATTEN)}
    logic = {name for name, text in apart.items() if "intaglio_ram" not in text and "intaglio_rom" not in text}
    assert logic == {
        "core_attention_array",
        "core_slot_0_activations",
        "core_slot_0_residual",
        "core_slot_0_results",
    }  # the last three: memories in parts


def test_pins_are_those_of_the_boards():
    ulx3s, ecpix5 = board("ulx3s"), board("ecpix5")
    assert (ulx3s.clock.ball, ulx3s.rx.ball, ulx3s.tx.ball, ulx3s.input_hz, ulx3s.speed) == (
        "G2",
        "M1",
        "L4",
        25_000_000,
        "6",
    )
    assert (ecpix5.clock.ball, ecpix5.rx.ball, ecpix5.tx.ball, ecpix5.input_hz, ecpix5.speed) == (
        "K23",
        "R26",
        "R24",
        100_000_000,
        "8",
    )
    assert (
        constraints(ecpix5)
        == """\
LOCATE COMP "clk_in" SITE "K23";
IOBUF PORT "clk_in" IO_TYPE=LVCMOS33;
LOCATE COMP "rx" SITE "R26";
IOBUF PORT "rx" IO_TYPE=LVCMOS33 PULLMODE=UP;
LOCATE COMP "tx" SITE "R24";
IOBUF PORT "tx" IO_TYPE=LVCMOS33 PULLMODE=UP;
FREQUENCY PORT "clk_in" 101 MHZ;
"""
    )
    assert "wifi" not in constraints(ecpix5) + top_verilog(ecpix5)
    assert """\
LOCATE COMP "wifi_gpio0" SITE "L2";
IOBUF PORT "wifi_gpio0" DRIVE=4 IO_TYPE=LVCMOS33 PULLMODE=UP;
""" in constraints(ulx3s)


@pytest.mark.parametrize(
    "input_hz, output_hz",
    [
        (25_000_000, 80_000_000),
        (100_000_000, 80_000_000),
        (25_000_000, 62_500_000),
        (12_000_000, 48_000_000),
        (25_000_000, 25_000_000),
        (100_000_000, 100_000_000),
    ],
)
def test_pll(input_hz, output_hz):
    made = pll(input_hz, output_hz)
    assert input_hz * made.feedback == output_hz * made.reference
    assert input_hz >= 3_125_000 * made.reference and 400_000_000 <= output_hz * made.post <= 800_000_000
    assert max(made.reference, made.feedback, made.post) <= 128


def test_a_pll_that_cannot_be():
    assert pll(25_000_000, 80_000_000) == Pll(reference=5, feedback=16, post=7)
    with pytest.raises(ValueError, match="must be able to make clock_hz = 80000001 of 25000000 Hz"):
        pll(25_000_000, 80_000_001)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"device": "85f"}, "device must be one of"),
        ({"speed": "9"}, "speed must be one of 6, 7, 8, not '9'"),
        ({"clock_hz": 10}, "clock_hz must be in 1000000..400000000, not 10"),
        ({"baud": 30_000_000}, "baud must be in 1..clock_hz / 4"),
    ],
)
def test_bad_boards(change, text):
    with pytest.raises(ValueError, match=text):
        Board(**PLAIN | change)


@pytest.mark.parametrize("name", BOARDS)
def test_yosys_takes_the_top(name, tmp_path):
    """PLL and reset, with a stand-in for the decoder."""
    (tmp_path / "top.v").write_text(
        top_verilog(board(name))
        + """
module intaglio_serial(input wire clk, input wire rst, input wire rx, output reg tx);
    always @(posedge clk) tx <= rx & ~rst;
endmodule
"""
    )
    script = "\n".join(
        ["from pyosys import libyosys as y", "d = y.Design()"]
        + [
            f"y.run_pass({step!r}, d)"
            for step in (
                "read_verilog top.v",
                "synth_lattice -family ecp5 -top intaglio_board",
                "check -assert",
                "select -assert-count 1 t:EHXPLLL",
                "select -assert-count 11 t:TRELLIS_FF",
                "write_json netlist.json",
            )
        ]
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    ports = json.loads((tmp_path / "netlist.json").read_text())["modules"]["intaglio_board"]["ports"]
    assert {port: ports[port]["bits"] for port in ports if port not in ("clk_in", "rx", "tx")} == (
        {"wifi_gpio0": ["1"]} if name == "ulx3s" else {}
    )


def test_a_step_is_done_once(tmp_path):
    source = tmp_path / "source"
    source.write_text("a")
    step = Stamp(tmp_path / "step", source, "option")
    assert not step.done
    (tmp_path / "step").mkdir()
    for name in ("notes.txt", "result"):
        (tmp_path / "step" / name).write_text("mine")
    step.begin("result")
    assert [path.name for path in (tmp_path / "step").iterdir()] == ["notes.txt"]  # what the step does not make stays
    (tmp_path / "step" / "result").write_text("made")
    assert not step.done
    step.finish("result")
    assert step.done and Stamp(tmp_path / "step", source, "option").done
    assert not Stamp(tmp_path / "step", source, "another").done
    (tmp_path / "step" / "result").write_text("changed")
    assert not step.done
    (tmp_path / "step" / "result").write_text("made")
    source.write_text("b")
    assert step.done and not Stamp(tmp_path / "step", source, "option").done
    (tmp_path / "step" / "stamp.json").write_text("[]")
    assert not step.done


def test_the_slowest_path_of_a_clock():
    def path(start, end, delay):
        return {
            "from": start,
            "to": end,
            "path": [
                {
                    "type": "clk-to-q",
                    "delay": 0.5,
                    "from": {"cell": "a", "port": "CLK"},
                    "to": {"cell": "a", "port": "Q"},
                },
                {
                    "type": "routing",
                    "delay": delay,
                    "net": start,
                    "from": {"cell": "a", "port": "Q"},
                    "to": {"cell": "b", "port": "A"},
                },
                {"type": "logic", "delay": 0.25, "from": {"cell": "b", "port": "A"}, "to": {"cell": "b", "port": "F"}},
                {
                    "type": "routing",
                    "delay": 0,
                    "net": "chain",
                    "from": {"cell": "b", "port": "F"},
                    "to": {"cell": "c", "port": "DI"},
                },
                {"type": "setup", "delay": 0.0, "from": {"cell": "c", "port": "DI"}, "to": {"cell": "c", "port": "DI"}},
            ],
        }

    report = {"critical_paths": [path("<async>", "posedge clk", 9.0), path("posedge clk", "posedge clk", 1.5)]}
    assert critical_path(report) == {
        "from": "posedge clk",
        "to": "posedge clk",
        "levels": 1,
        "logic_ns": 0.75,
        "routing_ns": 1.5,
    }
    with pytest.raises(Error, match="must report a path"):
        critical_path({"critical_paths": report["critical_paths"][:1]})


RESULT = {
    "board": "ulx3s",
    "clock_mhz": 80.0,
    "digest": "ab" * 32,
    "best_seed": 2,
    "median_mhz": 79.0,
    "utilization": {"DP16KD": {"used": 200, "available": 208}, "DCUA": {"used": 0, "available": 2}},
    "seeds": {
        str(seed): {
            "mhz": mhz,
            "critical_path": {"from": "a", "to": "b", "levels": 9, "logic_ns": 4.0, "routing_ns": 8.0},
        }
        for seed, mhz in ((1, 78.0), (2, 79.0))
    },
    "unrouted": {"3": 200},
}


def test_a_missed_clock_is_told(monkeypatch, capsys):
    text = cli.report(RESULT)
    assert "MISSED" in text and "96.2%" in text and "DCUA" not in text and "   3         not routed: 200 wires" in text
    assert "met" in cli.report(RESULT | {"clock_mhz": 75.0})
    monkeypatch.setattr("intaglio.boards.build.build", lambda *_, **__: RESULT)
    assert main(["board", "ulx3s", "-o", "x"], commands=COMMANDS) == 1
    assert "median 79.0 MHz" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, text",
    [
        (["de10"], "the board must be one of"),
        (["ulx3s", "--seeds", "1,x"], "--seeds must be integers with commas between, not '1,x'"),
        (["ulx3s", "--seeds", "1,1"], "seeds must be different integers from 1"),
        (["ulx3s", "--model", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_use(words, text, tmp_path, capsys):
    assert main(["board", *words, "-o", str(tmp_path / "out")], commands=COMMANDS) == 2
    assert text in capsys.readouterr().err


def test_a_missing_tool(tmp_path, monkeypatch):
    def missing(package):
        raise tools.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(tools.metadata, "version", missing)
    with pytest.raises(Error, match=r"needs the Python package 'pyosys': pip install 'intaglio\[boards\]'"):
        build(Board(**PLAIN), "models/burin", tmp_path / "out")


def test_tools_that_fail_or_hang(tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "fake_tool.py").write_text(
        "import sys, time\ndef fail(words):\n    print('no such cell', words)\n    return 3\ndef hang(words):\n    time.sleep(60)\n"
        "def work(words):\n    print('one'); print('two')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    monkeypatch.setattr(tools, "version", lambda package: "1")
    log, lines = tmp_path / "log", []
    with pytest.raises(Error, match=r"fail must succeed in .* code 3: no such cell \['--json'\]"):
        run_yowasp("fake_tool", "fail", ["--json"], tmp_path, log, timeout=30)
    with pytest.raises(Error, match="hang in .* must end within 0.5 s"):
        run_yowasp("fake_tool", "hang", [], tmp_path, log, timeout=0.5)
    run_yowasp("fake_tool", "work", [], tmp_path, log, timeout=30, told=lines.append)
    assert lines == ["one", "two"] and log.read_text() == "one\ntwo\n"


ROUTER = """
import itertools, json, sys, time
def run(words):
    seed = words[words.index("--seed") + 1]
    open("runs", "a").write(seed)
    wires = [900, 700, 500, *[600] * 20] if seed == "1" else [900, 5, *[8] * 9, 4, *[6] * 9, 0]
    for count, left in enumerate(wires if seed == "2" else itertools.chain(wires, itertools.repeat(600))):
        slow = left // 5
        print(f"Info:     iter={count} wires=70000 overused={left - slow} overuse={left} tmgfail={slow} archfail=NA", flush=True)
        time.sleep(0.001)
    for name in ("--textcfg", "--report"):
        open(words[words.index(name) + 1], "w").write(json.dumps({
            "utilization": {}, "fmax": {"clk": {"achieved": 51.0, "constraint": 50.0}}, "critical_paths": [
                {"from": "clk", "to": "clk", "path": [{"type": "routing", "delay": 1.0, "net": "a"}]}]}))
"""


def test_a_seed_that_does_not_route_is_left_out(tmp_path, monkeypatch):
    """Ten rounds without progress end it; nine do not; and it is not tried again."""
    from intaglio.boards import build as flow

    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "router.py").write_text(ROUTER)
    out = tmp_path / "out"
    output.mark(out, "board")
    (out / "netlist.json").write_text("{}")
    (out / "sources").mkdir()
    (out / "sources" / "ulx3s.lpf").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    for module in (tools, flow):
        monkeypatch.setattr(module, "version", lambda package: "1")
    monkeypatch.setattr(flow, "_NEXTPNR", ("router", "run"))
    monkeypatch.setattr(flow, "PATIENCE", 10)
    monkeypatch.setattr(flow, "generate", lambda *_, **__: {"digest": "0"})
    monkeypatch.setattr(flow, "write_sources", lambda *_: [])
    monkeypatch.setattr(flow, "synthesised", lambda *_: ([], out / "netlist.json"))
    monkeypatch.setattr(flow, "pack", lambda *_: out / "netlist.json")
    for _ in range(2):
        with pytest.raises(Error, match="at least one seed must route, not none of 1: try others"):
            build(board("ulx3s"), "model", out, seeds=(1,))
        result = build(board("ulx3s"), "model", out, seeds=(1, 2))
        (out / "seed_2" / "notes.txt").write_text("mine")
        assert result["unrouted"] == {"1": 500} and list(result["seeds"]) == ["2"] and result["best_seed"] == 2
    assert (out / "runs").read_text() == "12" and (out / "seed_2" / "notes.txt").is_file()
    assert json.loads((out / "manifest.json").read_text())["content"].keys() == {"board.json", "ulx3s.bit"}


def test_seeds_go_to_other_processes_and_back():
    from intaglio.boards.build import Seeds, Unrouted

    seeds = pickle.loads(pickle.dumps(Seeds(board("ulx3s"), Path("out"), Path("netlist.json"), None)))
    assert (seeds.board, seeds.out) == (board("ulx3s"), Path("out"))
    fault = pickle.loads(pickle.dumps(Unrouted(3, 17)))
    assert (fault.seed, fault.wires, str(fault)) == (3, 17, str(Unrouted(3, 17)))


def test_a_folder_of_another_kind_is_refused(tmp_path):
    """Before anything is made; its manifest is not written over by that of the board."""
    output.write(tmp_path / "desk", {"rtl/a.v": b"a"}, {"kind": "decoder"})
    for run in (
        lambda out: build(board("ulx3s"), "/nowhere", out),
        lambda out: build_lane("/nowhere", out),
        lambda out: archive("/nowhere", out),
        lambda out: package(CARDS["u280"], "/nowhere", out),
    ):
        with pytest.raises(Error, match="its manifest.json is that of a decoder: choose another folder"):
            run(tmp_path / "desk")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.v", "desk", "manifest.json", "rtl"]
