"""``intaglio sweep``: the closed form's cycles in every line, what does not fit told in its own, the best marked."""

import csv
import json
from pathlib import Path

import pytest

from intaglio.cli import main
from intaglio.gen import sweep as command
from intaglio.gen.checkpoint.published import model_of
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.reader import load_checkpoint
from intaglio.gen.cycles.decoder import group_cycles, token_cycles
from intaglio.gen.estimate.machine import stand_in
from intaglio.gen.presets.decoder import config_for
from intaglio.gen.sweep import sweep

BURIN = Path(__file__).parents[2] / "models" / "burin"
MODEL = model_of(str(BURIN))


def run(*arguments):
    return main(["sweep", "--model", str(BURIN), *arguments], commands={"sweep": lambda: command.register})


def test_cycles_are_those_of_the_model():
    rows = sweep(MODEL, ["desk", "small"], {"lanes": [2, 3], "context": [64], "gate_words": [0, 1024]}, position=20)
    assert len(rows) == 8
    checkpoint = load_checkpoint(BURIN)
    for row in rows:
        widths = {name: row[name] for name in ("lanes", "context", "gate_words")}
        try:
            config = config_for(MODEL, row["preset"], **widths)
        except ValueError as fault:
            assert row["error"] == str(fault) and "cycles" not in row and "pareto" not in row
            continue
        assert row["cycles"] == token_cycles(quantise(checkpoint, config), 20).total
        assert row["tokens_per_second"] == pytest.approx(config.clock_hz / row["cycles"], abs=1e-3)
    assert {"error" in row for row in rows} == {True, False}


@pytest.mark.parametrize(
    ("target", "columns"),
    [(None, {"weights_per_cycle"}), ("asap7", {"die_mm2"}), ("a7-100t", {"memory_share", "dsp_share"})],
)
def test_the_best_are_marked(target, columns):
    widths = {"lanes": [2, 4, 8, 3], "vector_width": [8, 16], "context": [128]}
    rows = sweep(MODEL, ["desk", "ulx3s", "tom"], widths, target=target)
    area = next(iter(sorted(columns - {"dsp_share"})))
    sound = [row for row in rows if "error" not in row]
    assert len(rows) == 24 and len(sound) == 20 and all(columns < set(row) for row in sound)
    for row in sound:
        beaten = any(
            other[area] <= row[area]
            and other["tokens_per_second"] >= row["tokens_per_second"]
            and (other[area], other["tokens_per_second"]) != (row[area], row["tokens_per_second"])
            for other in sound
        )
        assert row["pareto"] is not beaten


def test_a_batch_counts_for_each_token():
    one, two = sweep(MODEL, ["desk"], {"batch": [1, 2], "context": [64]}, position=20)
    config = config_for(MODEL, "desk", batch=2, context=64)
    assert two["cycles"] == -(-(group_cycles(stand_in(config), [20, 20]).total + 2) // 2) < one["cycles"]
    assert sweep(MODEL, ["desk"], {"batch": [2], "sequences": [3]})[0]["memory_bits"] > two["memory_bits"]
    projected = sweep(MODEL, ["desk"], {"batch": [2]}, target="asap7")
    assert "a width must be one of context, lanes" in projected[0]["error"]


def test_processes_make_the_same_rows():
    widths = {"lanes": [2, 4, 5]}
    assert sweep(MODEL, ["desk"], widths, processes=2) == sweep(MODEL, ["desk"], widths)


def test_files_and_table(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    files = {kind: tmp_path / f"sweep.{kind}" for kind in ("json", "csv", "svg")}
    options = [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
    assert run("--preset", "desk,ulx3s", "--set", "lanes=2,3,4", "--target", "asap7", *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and lines[0].split()[:2] == ["preset", "lanes"] and lines[0].endswith("die_mm2")
    assert lines[2].endswith("does not fit: lanes must be even, not 3") and sum(line[0] == "*" for line in lines) >= 1
    record = json.loads(files["json"].read_text())
    assert record["target"] == "asap7" and [row["lanes"] for row in record["rows"]] == [2, 3, 4] * 2
    with open(files["csv"], newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["error"] != "" for row in found] == [False, True, False] * 2
    assert [int(row["cycles"]) for row in found if row["cycles"]] == [
        row["cycles"] for row in record["rows"] if "cycles" in row
    ]
    before = files["svg"].read_bytes()
    assert b"tokens a second" in before and b"die, mm2, projected" in before
    assert run("--preset", "desk,ulx3s", "--set", "lanes=2,3,4", "--target", "asap7", *options) == 0
    assert files["svg"].read_bytes() == before


def test_nothing_fits(capsys):
    assert run("--set", "lanes=3,5") == 1
    assert capsys.readouterr().out.count("does not fit: lanes must be even") == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--preset", "desk,dusk"], "the preset must be one of tom, desk, desk-4k, ulx3s, small, not 'dusk'"),
        (["--preset", "desk,desk"], "the values of preset must differ, not be desk, desk"),
        (["--set", "lanes=2,2"], "the values of lanes must differ, not be 2, 2"),
        (["--set", "lanes"], "--set must be WIDTH=VALUE,VALUE, each width once, not 'lanes'"),
        (["--set", "lanes=2", "--set", "lanes=4"], "each width once, not 'lanes=4'"),
        (["--target", "brass"], "the target must be one of asap7, u280, a7-100t, not 'brass'"),
        (["--position", "-1"], "the position must be an integer from 0, not -1"),
        (["--json", "/nowhere/a.json"], "a file to write must be in a folder that is there, not /nowhere/a.json"),
        (["--processes", "0"], "processes must be an integer in 1..64, not 0"),
        (["--set", "context=" + ",".join(map(str, range(2, 10010)))], "at most 10,000 combinations, not 10,008"),
    ],
)
def test_bad_use(arguments, text, capsys):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
