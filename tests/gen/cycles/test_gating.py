"""The picture of power gating; the closed form behind it is tested beside the hardware that it describes."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from intaglio.gen.cycles.gating import main

MODEL = str(Path(__file__).parents[3] / "models/burin")


def test_timeline_has_every_bank_and_phase_and_is_the_same_each_time(tmp_path):
    arguments = ["--model", MODEL, "--preset", "desk", "--set", "gate_words=1024", "--position", "3"]
    for name in ("a.svg", "b.svg"):
        assert main([*arguments, "-o", str(tmp_path / name)]) == 0
    text = (tmp_path / "a.svg").read_bytes()
    assert text == (tmp_path / "b.svg").read_bytes()
    labels = {"".join(node.itertext()).strip() for node in ElementTree.fromstring(text).iter() if "text" in node.tag}
    assert {"phase", "linear", "cycles", *(f"bank {bank}" for bank in range(6))} <= labels and "bank 6" not in labels


def test_says_what_must_hold(tmp_path, capsys):
    assert main(["--model", MODEL, "--set", "gate_words=0", "-o", str(tmp_path / "a.svg")]) == 2
    assert "gate_words must be more than 0" in capsys.readouterr().err
