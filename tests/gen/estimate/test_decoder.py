"""Estimates: the RTL's own cycles where the machine is the RTL's, hand-counted sums where it is larger, and no unknown or wrong input."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from intaglio.cli import main
from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.published import model_config
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.reader import load_checkpoint
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.cycles.decoder import token_cycles
from intaglio.gen.estimate import measure as measure_module
from intaglio.gen.estimate.cli import register
from intaglio.gen.estimate.costs import COSTS, costs_with
from intaglio.gen.estimate.decoder import estimate_decoder
from intaglio.gen.estimate.machine import MACHINES, WideTiming, machine_for
from intaglio.gen.presets.decoder import PRESETS, config_for
from intaglio.rtl.ternary.linear import LinearUnit

MODEL = Path(__file__).parents[3] / "models" / "burin"
BITNET = model_config("bitnet-2b4t")


@pytest.fixture(scope="module")
def shipped():
    checkpoint = load_checkpoint(MODEL)
    return checkpoint.config, quantise(checkpoint, config_for(checkpoint.config, "desk"))


def same(machine, model, positions):
    program = machine.program()
    return all(
        vars(machine.token_cycles(position, want=want, program=program))
        == vars(token_cycles(model, position, want=want))
        for position in positions
        for want in (True, False)
    )


def test_the_shipped_models_estimate_is_the_closed_form_of_the_rtl(shipped, monkeypatch):
    """Which tests/sim/verilator/test_decoder.py and the benchmark hold to the counters of the simulated device."""
    config, model = shipped
    machine = machine_for(config, "desk")
    assert same(machine, model, (0, 1, 2, 127, 1023))
    estimate = estimate_decoder(machine, COSTS)
    closed = token_cycles(model, 1023)
    assert estimate.cycles == closed.total and estimate.phases == closed.phases
    assert estimate.tokens_per_second == model.config.clock_hz / closed.total
    for name in ("linear", "attend", "head"):  # a unit that is a cycle off is seen
        with monkeypatch.context() as patch:
            original = getattr(WideTiming, name)
            patch.setattr(WideTiming, name, lambda self, *arguments, original=original: original(self, *arguments) + 1)
            assert not same(machine, model, (0,))


@pytest.mark.parametrize(
    ("preset", "widths", "family"),
    [
        ("small", {}, {}),
        ("small", {"attention_heads": 2, "vector_width": 8}, {}),
        ("small", {"dot": "adders"}, {}),
        ("desk", {}, {}),
        ("small", {}, {"model_type": "llama", "hidden_act": "silu", "tie_word_embeddings": False}),
        ("desk", {}, {"hidden_act": "silu"}),
    ],
)
def test_other_machines_of_the_rtl(preset, widths, family):
    config = ModelConfig(
        vocab_size=300,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16,
        **family,
    )
    context = {"context": 64}
    model = quantise(random_checkpoint(config), config_for(config, preset, **widths, **context))
    assert same(machine_for(config, preset, **widths, **context), model, (0, 5, 63))


def test_what_is_given_is_checked_and_not_what_it_replaces():
    """A model of 300 positions and heads of 8 elements does not fit the preset's 1,024 tokens and vectors of 16 elements."""
    config = ModelConfig(
        vocab_size=12,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=8,
        max_position_embeddings=300,
    )
    with pytest.raises(ValueError, match=re.escape("context must be an integer in 2..300, not 1024")):
        machine_for(config, "desk", vector_width=8)
    with pytest.raises(ValueError, match=re.escape("vector_width must be an integer in 2..8, not 16")):
        machine_for(config, "desk", context=256)
    machine = machine_for(config, "desk", context=256, vector_width=8)
    assert (machine.context, machine.vector_width, machine.lanes, machine.top_k) == (256, 8, 4, 12)
    assert same(
        machine, quantise(random_checkpoint(config), config_for(config, "desk", context=256, vector_width=8)), (0, 255)
    )
    with pytest.raises(ValueError, match=re.escape("top_k must be an integer in 1..12, not 13")):
        machine_for(config, "desk", context=256, vector_width=8, top_k=13)


@pytest.mark.parametrize(("name", "weights"), [("falcon3-1b", 1_132_462_080), ("llama3-8b", 6_979_321_856)])
def test_published_llamas(name, weights):
    machine = machine_for(model_config(name), "tom")
    assert machine.layers * machine.layer_weights == weights
    estimate = estimate_decoder(machine, COSTS)
    assert estimate.storage["embedding"] == 2 * machine.vocab * machine.hidden * 8
    assert 0 < estimate.tokens_per_second < estimate.tokens_per_second_arrays


def test_tom_by_hand():
    machine = machine_for(BITNET, "tom")
    assert (machine.attention_units, machine.attention_tokens, machine.multipliers) == (5, 8, 160 * 128)
    token, without = machine.token_cycles(1023), machine.token_cycles(1023, want=False)
    assert LinearUnit.FILL == 10  # of a matrix; 8 more for the wires
    # groups of 160 rows x words of 128 inputs: q, k, v; o; gate and up; down
    assert token.linear_busy == 30 * (24 * 20 + 16 * 20 + 87 * 20 + 16 * 54 + 4 * (10 + 8))
    # 2 x 1,024 / 8 tokens, fills of 1 + 6 + 8, tree of 128 elements, two trees of 8 tokens, wires
    assert WideTiming(machine).attend(1023) == 2 * 128 + 15 + 4 + 2 * 2 + 8
    # 8 rows a cycle, fill 5, trees of 128 and 20, 8 lists of 16 candidates, wires
    assert WideTiming(machine).head() == 128256 // 8 + 5 + 4 + 3 + 8 * 16 + 8
    assert token.total - without.total == pytest.approx(WideTiming(machine).head(), abs=200)  # with the final norm
    assert 3306 < 500e6 / token.total < 500e6 / without.total < 4914
    storage = estimate_decoder(machine, COSTS).storage
    assert storage["weights"] == 2 * 128 * 160 * 30 * (24 * 20 + 16 * 20 + 87 * 20 + 16 * 54)
    assert storage["embedding"] == 8 * 328_335_360 and storage["kv_cache"] == 1024 * 30 * (2 * 640 * 8 + 10 * 26)


def test_wider_is_faster_and_a_longer_context_slower():
    def speed(**changes):
        machine = machine_for(BITNET, "tom", **changes)
        return machine.clock_hz / machine.token_cycles(machine.context - 1).total

    base = speed()
    assert speed(context=4096) < base < speed(context=128)
    assert speed(attention_tokens=4) < base < speed(attention_tokens=16)
    assert speed(vector_width=64) < base < speed(reach=0) and speed(lanes=80) < base < speed(lane_width=256)
    assert speed(clock_hz=250_000_000) == base / 2


def test_area_and_power_are_the_sums_of_the_printed_costs():
    machine = machine_for(BITNET, "tom")
    one = costs_with(dict.fromkeys(COSTS, 1))
    estimate = estimate_decoder(machine, one)
    area, storage = estimate.area_mm2, estimate.storage
    assert area["weights"] == storage["weights"] / 1e6 and area["multipliers"] == 20480 / 1e6
    assert area["die"] == pytest.approx(sum(value for name, value in area.items() if name != "die"))
    half = estimate_decoder(machine, costs_with(dict.fromkeys(COSTS, 1) | {"utilisation": 0.5, "volt": 2}))
    assert half.area_mm2["die"] == 2 * area["die"]
    for name in ("weights, reading", "ternary units", "multipliers"):  # switching goes with the square of the voltage
        assert half.watts[name] == 4 * estimate.watts[name]
    parts = [value for name, value in estimate.watts.items() if not name.startswith("total")]
    assert estimate.watts["total"] == pytest.approx(sum(parts))
    gated = estimate_decoder(machine, COSTS).watts
    assert gated["leakage, ROM gated"] < 0.1 * (
        gated["total without gating"] - gated["total"] + gated["leakage, ROM gated"]
    )


def run(capsys, *arguments):
    code = main(["estimate", "decoder", *arguments], commands={"estimate": lambda: register})
    out, err = capsys.readouterr()
    return code, out, err


def test_command(capsys):
    code, out, _ = run(capsys, "--model", "bitnet-2b4t")
    assert code == 0 and "LM head included" in out and "*projected*" in out and "assumptions" in out
    assert all(name in out and cost.source in out for name, cost in COSTS.items())
    code, out, _ = run(
        capsys,
        "--model",
        "bitnet-2b4t",
        "--json",
        "--context",
        "2048",
        "--cost",
        "weight_um2=0.00588",
        "--set",
        "reach=0",
    )
    record = json.loads(out)
    assert record["class"] == "projected" and record["machine"]["context"] == 2048 and record["machine"]["reach"] == 0
    assert record["costs"]["weight_um2"] == {"value": 0.00588, "unit": "um2/bit", "source": "given"}
    assert len(record["assumptions"]) == 9 and record["tokens_per_second"] < record["tokens_per_second_without_head"]
    code, out, _ = run(capsys, "--model", str(MODEL), "--preset", "desk", "--json")
    assert json.loads(out)["machine"]["lanes"] == 4


def test_defaults_fit_the_shipped_model(capsys):
    """Whose heads are narrower than the default machine's vector unit, and whose context could be shorter than its cache."""
    code, out, _ = run(capsys, "--model", str(MODEL), "--json")
    assert code == 0 and json.loads(out)["machine"]["vector_width"] == 32
    short = dataclasses.replace(ModelConfig.from_json(MODEL / "config.json"), max_position_embeddings=64)
    assert machine_for(short, "tom").context == 64


def test_help_lists_every_preset_that_is_taken(capsys):
    with pytest.raises(SystemExit):
        run(capsys, "--help")
    text = " ".join(capsys.readouterr().out.split()).replace("desk- 4k", "desk-4k")  # argparse breaks lines at hyphens
    listed = [part for part in text.split("--") if part.startswith("preset NAME")][-1]
    assert all(re.search(rf"\b{name}\b", listed) for name in (*MACHINES, *PRESETS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model", "bitnet-3b"],
            "the model must be a checkpoint folder or one of bitnet-2b4t, falcon3-1b, llama3-8b, not",
        ),
        (["--preset", "dick"], f"the preset must be one of {', '.join([*MACHINES, *PRESETS])}, not 'dick'"),
        (["--context", "5000"], "context must be an integer in 2..4096, not 5000"),
        (["--set", "lanes=many"], "--set must be NAME=NUMBER, not 'lanes=many'"),
        (["--set", "lanes"], "--set must be NAME=NUMBER, not 'lanes'"),
        (["--set", "colour=3"], "a width must be one of context, lanes, lane_width"),
        (["--set", "vector_width=96"], "vector_width must be a power of 2 that divides head_dim = 128, not 96"),
        (["--set", "attention_heads=3"], "attention_heads must divide heads / kv_heads = 4, not 3"),
        (["--set", "attention_units=3"], "attention_units must divide heads / attention_heads = 5, not 3"),
        (["--set", "reach=-1"], "reach must be an integer in 0..1000, not -1"),
        (["--context", "256", "--set", "context=512"], "context must be given by --context or by --set, not by both"),
        (["--set", "reach=1", "--set", "reach=2"], "--set must give each name once, not reach twice"),
        (["--set", "top_k=32"], "top_k must be an integer in 1..31, not 32"),
        (["--preset", "desk", "--context", "5000"], "context must be an integer in 2..4096, not 5000"),
        (
            ["--preset", "desk", "--set", "vector_width=3"],
            "vector_width must be a power of 2 that divides head_dim = 128, not 3",
        ),
        (["--cost", "utilisation=0"], "the cost utilisation must be more than 0"),
        (["--cost", "utilisation=1.5"], "the cost utilisation is a share and must be at most 1, not 1.5"),
        (["--cost", "gold=1"], "a cost must be one of weight_um2"),
        (["--cost", "volt=nan"], "the cost volt must be a finite number of at least 0, not nan"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, message):
    model = [] if "--model" in arguments else ["--model", "bitnet-2b4t"]
    code, out, err = run(capsys, *model, *arguments)
    assert code == 2 and not out and err.startswith("intaglio: error: ") and message in err and err.count("\n") == 1


LIBERTY = """library (tiny) {
  cell (INV) { area : 1; leakage_power () { value : 2; when : "A"; related_pg_pin : VDD; }
    pin (A) { direction : input;
      capacitance : 3; }
    pin (Y) { direction : output; function : "!A"; } }
  cell (BUF) { area : 1; leakage_power () { value : 2; when : "A"; related_pg_pin : VDD; }
    pin (A) { direction : input;
      capacitance : 3; }
    pin (Y) { direction : output; function : "A"; } }
  cell (NAND2) { area : 1; leakage_power () { value : 2; when : "A"; related_pg_pin : VDD; }
    pin (A) { direction : input;
      capacitance : 1.5; }
    pin (B) { direction : input;
      capacitance : 1.5; }
    pin (Y) { direction : output; function : "!(A&B)"; } }
  cell (NOR2) { area : 1; leakage_power () { value : 2; when : "A"; related_pg_pin : VDD; }
    pin (A) { direction : input;
      capacitance : 1.5; }
    pin (B) { direction : input;
      capacitance : 1.5; }
    pin (Y) { direction : output; function : "!(A|B)"; } }
  %s
}
"""
REGISTER = """cell (DFF) { area : 1; ff (IQ, IQN) { clocked_on : "C"; next_state : "D"; } leakage_power () { value : 2; when : "D";
      related_pg_pin : VDD; }
    pin (C) { direction : input; clock : true;
      capacitance : 1; }
    pin (D) { direction : input;
      capacitance : 2; }
    pin (Q) { direction : output; function : "IQ"; } }"""


def test_measuring_a_part(tmp_path, monkeypatch):
    """In a library whose cells all have area 1, leakage 2 and 3 fF, whatever is mapped has them in these proportions."""

    def library(text):
        text = text.replace("  cell (", "\n  cell (").replace("    pin (", "\n    pin (")
        (tmp_path / "tiny.lib").write_text(text)
        return [tmp_path / "tiny.lib"]

    whole = library(LIBERTY % REGISTER)
    monkeypatch.setattr(measure_module, "HEIGHT", 16)
    monkeypatch.setitem(measure_module.PARTS, "weight", (measure_module._weights, 16, (7, 8)))
    area, leakage, capacitance = measure_module.measure("weight", whole)
    assert area > 10 and leakage == pytest.approx(2e-6 * area) and capacitance == pytest.approx(3 * area)
    for text, message in (
        ("library (x) { }", "must have cells with an area; none was found"),
        ("library (x) {\n  cell (A) { }\n}", "must have cells with an area; none was found"),
    ):
        with pytest.raises(measure_module.Error, match=message):
            measure_module.measure("weight", library(text))
    with pytest.raises(measure_module.Error, match="gone.lib cannot be read"):
        measure_module.measure("weight", [tmp_path / "gone.lib"])
