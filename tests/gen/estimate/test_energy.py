"""Energy model: SAIF and Liberty read, formulas on a trace made by hand, errors."""

import pytest

from intaglio import Error
from intaglio.gen.estimate.activity import Cells, read_cells, read_saif
from intaglio.gen.estimate.energy import assumptions_with, estimate_energy, main
from intaglio.rtl.config.decoder import DecoderConfig

CONFIG = DecoderConfig(
    hidden=8,
    intermediate=12,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=4,
    vocab=16,
    context=4,
    lanes=2,
    lane_width=4,
    vector_width=4,
    gate_words=64,
    clock_hz=100_000_000,
)  # 120 words of 8 bits: banks of 64 and 56
CELLS = Cells(leakage=1e-9, pin=1e-15, volt=1.0, source="test")
ONES = assumptions_with({"nand2_per_bit": 1, "pins_per_nand2": 1, "nand2_per_net": 1, "wires": 1, "off_leakage": 0.5})


def saif(power=(400, 100), reads=(60, 40), toggles=10):
    """200 cycles of two units of time; the word of each lane has one bit that moves."""

    def net(name, high, count):
        return rf"({name} (T0 {400 - high}) (T1 {high}) (TZ 0) (TX 0) (TB 0) (TC {count}))"

    def bits(name, values):
        return [net(rf"{name}\[{b}\]", value, 2) for b, value in enumerate(values)]

    def instance(name, nets, *inner):
        return [f"(INSTANCE {name}", " (NET", *nets, " )", *(" " + line for part in inner for line in part), ")"]

    lanes = [instance(f"lane_{i}", [net(r"word\[0\]", 7 + i, toggles)]) for i in range(2)]
    linear = instance("linear", [], instance("gate", [*bits("power", power), *bits("reads", reads)]), *lanes)
    top = instance("TOP", [], instance("intaglio_decoder", [net("aclk", 200, 400)], instance("core", [], linear)))
    return "\n".join(["(SAIFILE", "(DURATION 400)", *(" " + line for line in top), ")"]) + "\n"


def written(tmp_path, text):
    (tmp_path / "t.saif").write_text(text)
    return tmp_path / "t.saif"


def test_formulas(tmp_path):
    found = estimate_energy(CONFIG, read_saif(written(tmp_path, saif()), "intaglio_decoder"), CELLS, ONES)
    bits = (64 * 8 * 2, 56 * 8 * 2)
    assert (found.cycles, found.reads, found.wakes) == (200, 50, 2)
    activity = 2 * 10 / (50 * 2 * 8)
    assert found.activity == pytest.approx(activity)
    assert found.held["ROM leakage"] == pytest.approx(sum(bits) * 1e-9 * 2e-6)
    assert found.gated["ROM leakage"] == pytest.approx((bits[0] + bits[1] * (0.25 + 0.75 * 0.5)) * 1e-9 * 2e-6)
    assert found.gated["ROM reading"] == pytest.approx((30 * bits[0] + 20 * bits[1]) * 1e-15 * activity / 2)
    assert found.broadcast["ROM reading"] == pytest.approx(50 * sum(bits) * 1e-15 * activity / 2)
    assert found.gated["wake-up"] == pytest.approx(sum(bits) * 1e-15)
    assert found.ratio_broadcast == pytest.approx(found.gated["total"] / found.broadcast["total"])
    hot = estimate_energy(
        CONFIG, read_saif(written(tmp_path, saif()), "intaglio_decoder"), CELLS, ONES | {"leakage_factor": 10}
    )
    assert (
        hot.held["ROM leakage"] == pytest.approx(10 * found.held["ROM leakage"]) and hot.ratio_held < found.ratio_held
    )


@pytest.mark.parametrize("power, toggles", [((400, 200), 10), ((400, 100), 20)])
def test_another_trace_is_seen(power, toggles, tmp_path):
    first, other = (
        estimate_energy(CONFIG, read_saif(written(tmp_path, text), "intaglio_decoder"), CELLS, ONES)
        for text in (saif(), saif(power=power, toggles=toggles))
    )
    assert first.gated["total"] < other.gated["total"]


LIBERTY = """library (x) { leakage_power_unit : "1nW"; capacitive_load_unit (1,pf); nom_voltage : 1.1;
cell (NAND2_X2) { area : 2; cell_leakage_power : 9; pin (A) { direction : input; capacitance : 0.9; }
  pin (B) { direction : input; capacitance : 0.9; } pin (Z) { direction : output; function : "!(A B)"; } }
cell (ND2_X1) { area : 1; cell_leakage_power : 4; pin (A) { direction : input; capacitance : 0.002; }
  pin (B) { direction : input; capacitance : 0.004; } pin (Z) { direction : output; function : "(A' + B')"; } }
cell (NAND2_ODD) { area : 0.5; cell_leakage_power : 1; pin (A) { direction : input; capacitance : 1; }
  pin (B) { direction : input; capacitance : 1; } pin (Z) { direction : output; function : "A * B"; } } }"""


def test_liberty(tmp_path):
    """The NAND2 is known by its function, not by its name."""
    (tmp_path / "x.lib").write_text(LIBERTY)
    cells = read_cells(tmp_path / "x.lib")
    assert (cells.leakage, cells.pin, cells.volt) == pytest.approx(
        (4e-9, 3e-15, 1.1)
    ) and cells.source == "ND2_X1 of x.lib"
    (tmp_path / "area.lib").write_text(LIBERTY.replace("cell_leakage_power", "x"))
    with pytest.raises(Error, match="must have a NAND2 with area, leakage and input capacitance"):
        read_cells(tmp_path / "area.lib")
    with pytest.raises(Error, match="cannot be read"):
        read_cells(tmp_path / "none.lib")


@pytest.mark.parametrize(
    "text, message",
    [
        ("module x; endmodule\n", "must be a complete SAIF with a duration"),
        (saif()[:-8], "must be a complete SAIF with a duration"),
        (saif().replace("(DURATION 400)", "(DURATION)"), "must be a complete SAIF with a duration"),
        (saif().replace("intaglio_decoder", "other"), "must have an instance intaglio_decoder"),
    ],
)
def test_damaged_saif(text, message, tmp_path):
    with pytest.raises(Error, match=message):
        read_saif(written(tmp_path, text), "intaglio_decoder")


def test_wrong_input(tmp_path, capsys):
    trace = read_saif(written(tmp_path, saif().replace("power", "other")), "intaglio_decoder")
    with pytest.raises(Error, match=r"the SAIF must have the net power\[0\] of core/linear/gate"):
        estimate_energy(CONFIG, trace, CELLS, ONES)
    with pytest.raises(ValueError, match="the decoder must have power gating"):
        estimate_energy(CONFIG.replace(gate_words=0), trace, CELLS, ONES)
    with pytest.raises(ValueError, match="an assumption must be one of nand2_per_bit"):
        assumptions_with({"magic": 1.0})
    assert main([str(tmp_path), "--saif", "x", "--set", "wires=many"]) == 2
    assert main([str(tmp_path), "--saif", "x"]) == 2
    assert "must be a folder written by `intaglio gen decoder`" in capsys.readouterr().err
