"""``intaglio synth`` on small banks, and its errors."""

import re
from pathlib import Path

import numpy as np
import pytest

from intaglio import Error
from intaglio.cli import main
from intaglio.gen.synthesis.area import Measured, measure
from intaglio.gen.synthesis.cli import register
from intaglio.gen.synthesis.liberty import BUILT_IN, read_liberty
from intaglio.gen.synthesis.polish import polish
from intaglio.gen.synthesis.rom_report import random_trits
from intaglio.gen.synthesis.strategies import strategy_bank
from intaglio.gen.synthesis.yosys import library_cells
from intaglio.rtl.memory.logic import bank, bits_of_words
from intaglio.rtl.ternary.packing import pack


def synth(*arguments):
    return main(["synth", *arguments], {"synth": lambda: register})


def test_table_and_plot(tmp_path, capsys):
    assert (
        synth(
            "--target",
            "nangate45",
            "--depth",
            "64",
            "--width",
            "16",
            "--zeros",
            "0.4,0.8",
            "--svg",
            str(tmp_path / "a.svg"),
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.startswith("random")]
    assert len(rows) == 10 and {row[4] for row in rows} == {"plain", "code", "planes", "structured", "polished"}
    for row in rows:  # zeros of weights and of bits
        assert float(row[3]) == pytest.approx((1 + float(row[2])) / 2, abs=1e-3)
        area, density, nand2 = float(row[5].replace(",", "")), float(row[6]), float(row[7])
        assert density == pytest.approx(64 * 16 / 8 / area, abs=2e-3) and nand2 == pytest.approx(
            area / 1024 / 0.798, abs=1e-3
        )
    assert "zeros: weights" in lines[2] and "<svg" in (tmp_path / "a.svg").read_text()


def test_mapped_bank_reads_as_its_words(tmp_path, capsys):
    """The instances of cells with the library's own functions, at every address."""
    from pyosys import libyosys

    assert (
        synth(
            "--target",
            "nangate45",
            "--depth",
            "32",
            "--width",
            "8",
            "--zeros",
            "0.4",
            "--strategy",
            "structured",
            "--out",
            str(tmp_path),
        )
        == 0
    )
    text = (tmp_path / "bank_0_mapped.v").read_text()
    (tmp_path / "m.v").write_text(re.sub(r"always @\(posedge clk\) a <=", "always @* a =", text))
    design = libyosys.Design()
    table = f"tee -q -o {tmp_path / 'log'} eval -show data -table addr bank"
    for step in (
        f"read_verilog {tmp_path / 'm.v'}",
        f"read_liberty {BUILT_IN['nangate45']}",
        "proc",
        "flatten bank",
        "opt bank",
        table,
    ):
        libyosys.run_pass(step, design)
    found = {
        int(a, 2): int(d, 2)
        for a, d in re.findall(r"^\s*\d+'([01]+)\s*\|\s*\d+'([01]+)", (tmp_path / "log").read_text(), re.M)
    }
    words = pack(random_trits(32, 4, 0.4), "2bit")
    assert [found[i] for i in range(32)] == [int(word[0]) for word in words]


def test_fpga(capsys):
    assert (
        synth(
            "--target", "ice40", "--depth", "16", "--width", "8", "--zeros", "0.4", "--strategy", "plain,code,hardwired"
        )
        == 0
    )
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("random")]
    assert (
        [row[4] for row in rows] == ["plain", "code", "hardwired"]
        and int(rows[1][5]) > 0
        and int(rows[2][5].replace(",", "")) > 16
    )


def test_polished_bank_holds_its_words_and_is_no_larger(tmp_path):
    cells = read_liberty("nangate45").gates
    words = pack(random_trits(128, 16, 0.85), "2bit")
    built = bank(words, 32, "bank", cells=cells)
    after = built.with_netlist(polish(built.netlist, cells), "polished")
    assert after.netlist.holds(bits_of_words(words, 32)) and after.netlist.area(cells) < built.netlist.area(cells)
    assert "polished" in after.verilog and after.verilog != built.verilog
    changed = bits_of_words(words, 32)
    changed[100, 20] ^= True
    assert not after.netlist.holds(changed)


def test_structured_is_smaller_than_what_the_synthesiser_finds():
    cells = read_liberty("nangate45")
    words = pack(random_trits(256, 32, 0.4), "2bit")
    areas = {
        strategy: measure(strategy_bank(words, 64, "bank", strategy, cells=cells.gates), cells).area
        for strategy in ("code", "structured")
    }
    assert areas["code"] / areas["structured"] > 1.25, areas


TIMES = " ".join(
    f'{name} (t) {{ index_1 ("1, 10"); index_2 ("1, 10"); values ("2, 6", "4, 9"); }}'
    for name in ("cell_rise", "cell_fall", "rise_transition", "fall_transition")
)


def timed_library(path):
    """A library with delay tables; inverters of two sizes, whose function is written as IHP's is."""
    lines = [
        'library (tiny) { delay_model : table_lookup; time_unit : "1ps"; capacitive_load_unit (1, ff);',
        "  lu_table_template (t) { variable_1 : input_net_transition; variable_2 : total_output_net_capacitance;",
        '    index_1 ("1, 10"); index_2 ("1, 10"); }',
    ]
    for name, area, inputs, function in (
        ("inv_1", 1, "A", "!(A)"),
        ("inv_2", 2, "A", "!(A)"),
        ("buf_1", 2, "A", "A"),
        ("nand2_1", 2, "AB", "!(A*B)"),
        ("nor2_1", 2, "AB", "(A+B)'"),
    ):
        pins = " ".join(f"pin ({pin}) {{ direction : input; capacitance : {area}; }}" for pin in inputs)
        sense = "positive" if name == "buf_1" else "negative"
        arcs = " ".join(
            f'timing () {{ related_pin : "{pin}"; timing_sense : {sense}_unate; {TIMES} }}' for pin in inputs
        )
        lines.append(
            f'  cell ({name}) {{ area : {area}; {pins} pin (Y) {{ direction : output; function : "{function}"; '
            f"max_capacitance : 100; {arcs} }} }}"
        )
    path.write_text("\n".join([*lines, "}"]))
    return path


@pytest.mark.parametrize(
    "depth, seed, strategies",
    [(3, 0, ("plain",)), (64, 4, ("plain", "planes")), (64, 8, ("code",)), (100, 4, ("code",))],
)
def test_banks_are_mapped_whole_timed_and_untimed(depth, seed, strategies, tmp_path):
    """A multiplexer of words that is left over stops ABC, and has no area where nothing is timed. With these seeds it used to be."""
    timed, untimed = read_liberty(timed_library(tmp_path / "tiny.lib")), read_liberty("nangate45")
    words = pack(random_trits(depth, 8, 0.4, seed), "2bit")
    for strategy in strategies:
        built = strategy_bank(words, 16, "bank", strategy)
        sized = measure(built, timed, 500)
        assert sized.buffered and sized.area > 0 and sized.delay_ps > 0
    assert measure(built, timed).delay_ps > 0 and measure(built, untimed).gates > depth / 4


@pytest.mark.parametrize("counts", [{"INV_X1": 3, "$mux": 1}, {"$_NOT_": 1}, {"NAND2_X1": 1, "FOO": 2}])
def test_a_cell_without_area_is_not_passed_over(counts):
    name = next(name for name in counts if not name.endswith("_X1"))
    with pytest.raises(
        Error, match=re.escape(f"cell library nangate45 must have every cell that the bank needs, and lacks {name}")
    ):
        library_cells({"design": {"num_cells_by_type": counts}}, read_liberty("nangate45"), "the bank")
    good = {"INV_X1": {"count": 2, "area": 1.0}, "NAND2_X1": 1, "$scopeinfo": 4}
    assert library_cells({"design": {"num_cells_by_type": good}}, read_liberty("nangate45"), "the bank") == {
        "INV_X1": 2,
        "NAND2_X1": 1,
    }


def test_several_seeds_give_medians(capsys):
    def areas(seeds):
        assert (
            synth(
                "--target",
                "nangate45",
                "--depth",
                "64",
                "--width",
                "8",
                "--zeros",
                "0.4",
                "--strategy",
                "structured",
                "--seed",
                seeds,
            )
            == 0
        )
        text = capsys.readouterr().out
        return text, next(
            float(line.split()[5].replace(",", "")) for line in text.splitlines() if line.startswith("random")
        )

    single = [areas(seed)[1] for seed in ("1", "2", "3")]
    text, median = areas("1,2,3")
    assert median == sorted(single)[1] and len(set(single)) == 3 and "medians of 3 banks" in text


def test_a_bank_of_zeros_alone(tmp_path, capsys):
    assert (
        synth(
            "--target",
            "nangate45",
            "--depth",
            "4",
            "--width",
            "2",
            "--zeros",
            "0.999",
            "--strategy",
            "plain,code,planes",
            "--svg",
            str(tmp_path / "a.svg"),
        )
        == 0
    )
    assert capsys.readouterr().out.count(" inf ") == 3


@pytest.mark.parametrize(
    "arguments, text",
    [
        ((), "one of --target (nangate45, ecp5, ice40, xc7, xcup) and --liberty must be given"),
        (
            ("--target", "tsmc7"),
            "target must be one of nangate45, xcup, xc7, ecp5, ice40, or a cell library given by --liberty, not 'tsmc7'",
        ),
        (
            ("--target", "nangate45", "--zeros", "1.5"),
            "--zeros must be shares of zero weights in 0 to less than 1, not '1.5'",
        ),
        (("--target", "nangate45", "--zeros", "few"), "not 'few'"),
        (("--target", "nangate45", "--depth", "1"), "depth must be in 2..65536, not 1"),
        (("--target", "nangate45", "--width", "7"), "width must be an even number in 2..4096, not 7"),
        (
            ("--target", "nangate45", "--strategy", "tree"),
            "strategy must be one of plain, code, planes, structured, polished, not 'tree'",
        ),
        (
            ("--target", "nangate45", "--period", "500", "--depth", "16", "--width", "4"),
            "must have delay tables for a period of 500 ps",
        ),
        (("--liberty", "/nowhere.lib"), "cell library /nowhere.lib cannot be read"),
        (("--target", "ecp5", "--period", "500"), "are for cell libraries, not for the FPGA family ecp5"),
        (("--target", "xcup", "--out", "x"), "--out is for cell libraries, not for the FPGA family xcup"),
        (("--target", "xcup", "--folder", "x"), "--folder needs --target ecp5, not xcup"),
        (("--target", "nangate45", "--model", "/nowhere"), "/nowhere"),
        (
            ("--target", "nangate45", "--model", "/nowhere", "--seed", "3"),
            "--seed must not be given with --model, where it counts for nothing",
        ),
        (("--target", "nangate45", "--model", "/nowhere", "--zeros", "0.5"), "--zeros must not be given with --model"),
        (
            ("--target", "ecp5", "--folder", "x", "--period", "500"),
            "are for cell libraries, not for the FPGA family ecp5",
        ),
        (("--target", "ecp5", "--folder", "x", "--depth", "64"), "--depth must not be given with --folder"),
        (
            ("--target", "nangate45", "--liberty", "a.lib"),
            "--liberty must be given without --target, not with --target nangate45",
        ),
        (
            ("--target", "nangate45", "--seed", "-3"),
            "--seed must be integers of at least 0, each once, with commas between them, not '-3'",
        ),
        (("--target", "nangate45", "--seed", "3,x"), "not '3,x'"),
        (("--target", "nangate45", "--seed", "3,3"), "not '3,3'"),
        (("--target", "nangate45", "--seed", "3,4", "--out", "x"), "--out writes the banks of one --seed, not of 3,4"),
        (
            ("--target", "nangate45", "--svg", "/nowhere/a.svg"),
            "--svg must name a file that can be written, not '/nowhere/a.svg'",
        ),
        (("--target", "ecp5", "--period", "0"), "are for cell libraries, not for the FPGA family ecp5"),
    ],
)
def test_refuses(arguments, text, capsys):
    assert synth(*arguments) == 2
    shown = capsys.readouterr()
    assert text in shown.err and "Traceback" not in shown.err and not shown.out


@pytest.mark.parametrize("period", ["0", "-1", "inf", "nan"])
def test_refuses_a_period(period, tmp_path, capsys):
    library = str(timed_library(tmp_path / "tiny.lib"))
    assert synth("--liberty", library, "--period", period) == 2
    assert "the clock period must be a finite number of picoseconds above 0" in capsys.readouterr().err


def test_the_benchs_figures_of_random_weights_are_medians_of_seeds(monkeypatch):
    """On small banks: what each line says, and that the middle one of the seeds is in it."""
    from bench import rom

    class Progress(list):
        __call__ = say = list.append

    def areas(trits, *_, **__):
        drawn.append(trits)
        code = (1, 3, 2, 4)[len(drawn) - 1]
        return {name: Measured(area=area, gates=1, registers=1) for name, area in (("code", code), ("structured", 1))}

    drawn = []
    monkeypatch.setattr(rom, "DEPTH", 32)
    monkeypatch.setattr(rom, "LANE_WIDTH", 8)
    monkeypatch.setattr(rom, "_areas", areas)
    monkeypatch.setattr(rom, "hardwired_cells", {7: (4096, 4096), 8: (8192, 16384), 9: (6144, 8192)}.get)
    told = Progress()
    figures = {line["name"]: line for line in rom.figures(Path(__file__).parents[3] / "models/burin", None, told)}
    assert figures["rom.abc_over_ours"]["value"] == 2 and figures["rom.abc_over_ours_model"]["value"] == 4
    assert all(not np.array_equal(a, b) for n, a in enumerate(drawn[:3]) for b in drawn[:n])
    assert figures["rom.lut_per_weight"]["value"] == 1.5 and figures["rom.lut_per_weight_over_da4ml"]["value"] == 0.75
    assert all(
        "median of seeds 7, 8, 9" in line["anchor"] for name, line in figures.items() if not name.endswith("_model")
    )
    assert any("seed 9" in text for text in told)


def test_random_trits():
    weights = random_trits(1000, 64, 0.4)
    assert abs((weights == 0).mean() - 0.4) < 0.01 and abs((weights == 1).mean() - 0.3) < 0.01
    assert (random_trits(1000, 64, 0.4) == weights).all() and not np.array_equal(
        random_trits(1000, 64, 0.4, 8), weights
    )
