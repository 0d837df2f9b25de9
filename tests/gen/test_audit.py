"""The audit: silent about what the generator wrote, and a changed bit or gate anywhere is found and named."""

import hashlib
import json
import re
import shutil

import numpy as np
import pytest

from intaglio.cli import main
from intaglio.gen.audit.gates import GateError, read_gates
from intaglio.gen.banks.layout import BankLayout
from intaglio.gen.checkpoint.published import BITNET_2B4T
from intaglio.gen.checkpoint.synthetic import write_random_checkpoint
from intaglio.gen.emit.banks import emit
from intaglio.gen.emit.decoder import generate
from intaglio.rtl.memory.logic import bank, bits_of_words

CONFIG = BITNET_2B4T | {
    "num_hidden_layers": 2,
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
LAYOUT = BankLayout(lanes=2, units=2, width=16, height=24)
WIDTHS = {"lanes": 4, "lane_width": 16, "vector_width": 4, "context": 8}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The checkpoint, and outputs of it by name."""
    folder = tmp_path_factory.mktemp("audit")
    write_random_checkpoint(folder / "model", CONFIG, seed=2)
    for form in ("image", "logic"):
        emit(folder / "model", folder / f"banks_{form}", layout=LAYOUT, form=form, processes=1)
        generate(folder / "model", "small", folder / f"decoder_{form}", rom=form, processes=1, **WIDTHS)
    return folder


def audit(capsys, folder, model, *more):
    code = main(["audit", str(folder), "--model", str(model), "--processes", "1", *map(str, more)])
    return code, capsys.readouterr()


@pytest.mark.parametrize("kind", ["banks_image", "banks_logic", "decoder_image", "decoder_logic"])
def test_what_was_written_is_sound(made, capsys, tmp_path, kind):
    report, page = tmp_path / "report.json", tmp_path / "report.html"
    code, told = audit(capsys, made / kind, made / "model", "--json", report, "--html", page)
    assert code == 0 and "all as the checkpoint says" in told.out
    found = json.loads(report.read_text())
    assert found["sound"] and not found["faults"] and len(found["banks"]) >= 4
    weights = 2 * (32 * 64 + 32 * 32 + 3 * 32 * 48)
    assert sum(bank["bits"] for bank in found["banks"]) == 2 * weights
    assert all(0.6 < bank["zero_bits"] < 0.8 and 0.2 < bank["zero_weights"] < 0.6 for bank in found["banks"])
    assert all((bank["gates"] > 0) == kind.endswith("logic") for bank in found["banks"])
    assert page.read_text().count("<tr>") == 1 + len(found["banks"])


def redigested(folder, name, data):
    """Write the file, with its digest in every description: only its words tell."""
    (folder / name).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    manifest = json.loads((folder / "manifest.json").read_text())
    if "content" in manifest:
        manifest["content"][name] = digest
    else:
        part = name.split("/")[0]
        described = json.loads((folder / part / "banks.json").read_text())
        described["files"][name.split("/")[1]] = digest
        (folder / part / "banks.json").write_text(json.dumps(described))
        manifest["parts"][part] = hashlib.sha256((folder / part / "banks.json").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def one_bit(data):
    """The text of an image with bit 2 of word 3 changed."""
    lines = data.decode().split("\n")
    lines[3] = f"{int(lines[3], 16) ^ 4:0{len(lines[3])}x}"
    return "\n".join(lines).encode()


def one_gate(data):
    """The text of a bank with another gate in the last wire that has one of two inputs."""
    text = data.decode()
    last = [match for match in re.finditer(r"wire \w+ = ~?\(?.*;", text) if "|" in match[0] or "&" in match[0]][-1]
    swapped = last[0].translate(str.maketrans("&|", "|&"))
    return (text[: last.start()] + swapped + text[last.end() :]).encode()


@pytest.mark.parametrize(
    "kind, pattern, change, fault",
    [
        ("banks_image", "layer_01/down_l01_u00_t00.hex", one_bit, "bit 2 of word 3 is wrong"),
        ("banks_image", "embedding/embedding_l00_u01_t00.hex", one_bit, "bit 2 of word 3 is wrong"),
        ("banks_image", "layer_00/gains.hex", one_bit, "bit 2 of word 3 is wrong"),
        ("banks_logic", "layer_00/gate_up_l01_u01_t00.v", one_gate, "is wrong, of"),
        ("decoder_image", "rom/*_weights_2.hex", one_bit, "bit 2 of word 3 is wrong"),
        ("decoder_image", "rom/*_gains.hex", one_bit, "bit 2 of word 3 is wrong"),
        ("decoder_logic", "rtl/*_weights_1.v", one_gate, "is wrong, of"),
    ],
)
def test_a_changed_bit_or_gate_is_found_and_named(made, capsys, tmp_path, kind, pattern, change, fault):
    copy = tmp_path / "copy"
    shutil.copytree(made / kind, copy)
    (path,) = copy.glob(pattern)
    name, data = path.relative_to(copy).as_posix(), path.read_bytes()
    path.write_bytes(change(data))
    code, told = audit(capsys, copy, made / "model")
    assert code == 1 and f"{name}: is not what" in told.out and fault in told.out and "2 wrong" in told.out
    redigested(copy, name, change(data))
    code, told = audit(capsys, copy, made / "model")
    assert code == 1 and f"{name}: " in told.out and fault in told.out and "1 wrong" in told.out


def test_other_files_and_other_models(made, capsys, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(made / "decoder_image", copy)
    (header,) = copy.glob("*.h")
    header.write_bytes(header.read_bytes().replace(b"0", b"1", 1))
    (copy / "rom" / "one_more.hex").write_text("0\n")
    next(copy.glob("rom/*_sine.hex")).unlink()
    code, told = audit(capsys, copy, made / "model")
    assert code == 1 and all(
        text in told.out for text in (f"{header.name}: is not", "one_more.hex: is none", "cannot be read")
    )
    shutil.copytree(made / "banks_image", tmp_path / "banks")
    (tmp_path / "banks" / "layer_00" / "more.hex").write_text("0\n")
    assert "layer_00/more.hex: is none" in audit(capsys, tmp_path / "banks", made / "model")[1].out
    write_random_checkpoint(tmp_path / "other", CONFIG, seed=3)
    for kind in ("banks_image", "decoder_image"):
        code, told = audit(capsys, made / kind, tmp_path / "other")
        assert code == 1 and " is wrong" in told.out
    write_random_checkpoint(tmp_path / "larger", CONFIG | {"num_hidden_layers": 3}, seed=2)
    for kind in ("banks_image", "decoder_image"):
        code, told = audit(capsys, made / kind, tmp_path / "larger")
        assert code == 2 and "must be of the model of the checkpoint" in told.err
    code, told = audit(capsys, tmp_path, made / "model")
    assert code == 2 and "must be a folder that" in told.err


def test_reader_of_gates_is_strict():
    words = np.random.default_rng(1).integers(0, 256, (40, 1), np.uint8)
    made = bank(words, 8, "b")
    lines = made.netlist.body().split("\n")
    assert np.array_equal(read_gates(lines, 6, 40), bits_of_words(words, 8))
    for wrong in (
        [*lines, "    wire extra = a[0];"],
        lines[:-1],
        lines[1:],
        [lines[0], *lines],
        ["    wire x = a[0] ^ a[1];", *lines],
        ["    wire x = (a[0];", *lines],
        ["    wire x = a[9];", *lines],
        ["    initial x = 1;", *lines],
    ):
        with pytest.raises(GateError):
            read_gates(wrong, 6, 40)
