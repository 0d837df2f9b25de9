"""Banks: every weight where the layout says, complete or not there, the same bytes however they were made."""

import hashlib
import json
import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from intaglio import Error
from intaglio.cli import main
from intaglio.gen.banks import parts as parts_module
from intaglio.gen.banks.execution import execution_matrix, matrix_shapes
from intaglio.gen.banks.layout import LAYOUTS, BankLayout, layout_for
from intaglio.gen.checkpoint.model import CheckpointError, ModelConfig
from intaglio.gen.checkpoint.published import BITNET_2B4T, model_config
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.reader import load_checkpoint
from intaglio.gen.checkpoint.synthetic import write_random_checkpoint
from intaglio.gen.emit.banks import emit
from intaglio.gen.emit.images import images
from intaglio.gen.presets.decoder import config_for

CONFIG = BITNET_2B4T | {
    "num_hidden_layers": 3,
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
ODD = BankLayout(lanes=3, units=2, width=10, height=12)  # divides nothing: rows, inputs and banks are filled up
COMMAND = [sys.executable, "-c", "import sys; from intaglio.cli import main; sys.exit(main())", "gen", "banks", "--all"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_random_checkpoint(folder, CONFIG, seed=2)
    return folder


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def trits(text, layout):
    """Weights ``[words, width]`` of an image, decoded here: plus in the low half of a word, minus in the high half."""
    words = [int(line, 16) for line in text.split()]
    return np.array([[(word >> i & 1) - (word >> layout.width + i & 1) for i in range(layout.width)] for word in words])


def read_back(folder, layout, name, rows, inputs, decode=trits):
    """The matrix that the banks of ``folder`` hold, by the layout's description."""
    positions = layout.lanes * layout.units
    chunks = -(-inputs // layout.width)
    out = np.full((-(-rows // positions) * positions, chunks * layout.width), 99)
    for lane in range(layout.lanes):
        for unit in range(layout.units):
            banks = sorted(folder.glob(f"{name}_l{lane:02}_u{unit:02}_t*.hex"))
            words = np.concatenate([decode(bank.read_text(), layout) for bank in banks])
            assert all(len(bank.read_text().split()) <= layout.height for bank in banks)
            out[lane * layout.units + unit :: positions] = words.reshape(-1, chunks * layout.width)
    assert not out[rows:].any() and not out[:, inputs:].any()
    return out[:rows, :inputs]


def test_every_weight_is_where_the_layout_says(model, tmp_path):
    done = emit(model, tmp_path / "out", layout=ODD, processes=1)
    assert done["written"] == ["embedding", "layer_00", "layer_01", "layer_02"] and not done["kept"]
    checkpoint = load_checkpoint(model)
    quantised = quantise(
        checkpoint, config_for(checkpoint.config, "small", lanes=2, lane_width=16, vector_width=4, context=8)
    )
    for index, layer in enumerate(quantised.layers):
        part = tmp_path / "out" / f"layer_{index:02}"
        for name, (rows, inputs) in matrix_shapes(checkpoint.config).items():
            np.testing.assert_array_equal(
                read_back(part, ODD, name, rows, inputs), execution_matrix(name, layer.matrices)
            )
        described = json.loads((part / "banks.json").read_text())
        assert described["constants"] == {name: [scalar.m, scalar.e] for name, scalar in layer.constants.items()}
        gains = np.concatenate([layer.gains[name] for name in ("input", "attn_sub", "post_attention", "ffn_sub")])
        assert_gains(part, [32, 32, 32, 48], gains)

    part = tmp_path / "out" / "embedding"
    np.testing.assert_array_equal(read_back(part, ODD, "embedding", 50, 32, int8), quantised.embedding)
    described = json.loads((part / "banks.json").read_text())
    assert (described["embed_scale"], described["embed_shift"]) == (quantised.embed_scale, quantised.config.embed_shift)
    assert described["logit_unit"] == [quantised.logit_constant.m, quantised.logit_constant.e]
    assert_gains(part, [32], quantised.final_gains)

    bank = tmp_path / "out" / "layer_01" / "down_l01_u01_t00.hex"  # one weight changed is seen
    text = bank.read_text()
    bank.write_text(text[:5] + ("1" if text[5] != "1" else "0") + text[6:])
    down = execution_matrix("down", quantised.layers[1].matrices)
    assert not np.array_equal(read_back(bank.parent, ODD, "down", *down.shape), down)


def assert_gains(part, sizes, expected):
    words = [bytes.fromhex(line)[::-1] for line in (part / "gains.hex").read_text().split()]
    numbers, width = np.frombuffer(b"".join(words), "<i2"), ODD.width
    found, at = [], 0
    for size in sizes:
        found.append(numbers[at : at + size])
        at += -(-size // width) * width
    assert at == len(numbers)
    np.testing.assert_array_equal(np.concatenate(found), expected)


def test_layers_of_a_llama(tmp_path):
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu"}
    write_random_checkpoint(tmp_path / "model", CONFIG | llama | {"tie_word_embeddings": False}, seed=4)
    emit(tmp_path / "model", tmp_path / "out", layout=ODD, layers=[1], processes=1)
    checkpoint = load_checkpoint(tmp_path / "model")
    widths = {"lanes": 2, "lane_width": 16, "vector_width": 4, "context": 8}
    layer = quantise(checkpoint, config_for(checkpoint.config, "small", **widths)).layers[1]
    part = tmp_path / "out" / "layer_01"
    described = json.loads((part / "banks.json").read_text())
    assert described["constants"] == {name: [scalar.m, scalar.e] for name, scalar in layer.constants.items()}
    assert_gains(part, [32, 32], np.concatenate([layer.gains[name] for name in ("input", "post_attention")]))


@pytest.mark.parametrize("tied", [False, True])
def test_head_and_scales_of_a_llama(tmp_path, tied):
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu"}
    write_random_checkpoint(tmp_path / "model", CONFIG | llama | {"tie_word_embeddings": tied}, seed=4)
    done = emit(tmp_path / "model", tmp_path / "out", layout=ODD, processes=1)
    tables = ["embedding"] if tied else ["embedding", "head"]
    assert done["written"] == [*tables, "layer_00", "layer_01", "layer_02"]
    assert emit(tmp_path / "model", tmp_path / "out", layout=ODD, processes=1)["written"] == []
    checkpoint = load_checkpoint(tmp_path / "model")
    widths = {"lanes": 2, "lane_width": 16, "vector_width": 4, "context": 8}
    model = quantise(checkpoint, config_for(checkpoint.config, "small", **widths))
    assert not np.array_equal(model.embedding, model.head) or tied
    for name in tables:
        part = tmp_path / "out" / name
        np.testing.assert_array_equal(read_back(part, ODD, name, 50, 32, int8), getattr(model, name))
        scales = [int(line, 16) for bank in sorted(part.glob("*_scales_*")) for line in bank.read_text().split()]
        assert scales == model.row_scales[name].tolist()
    described = json.loads((tmp_path / "out" / tables[-1] / "banks.json").read_text())
    assert described["logit_unit"] == [model.logit_constant.m, model.logit_constant.e]


def int8(text, layout):
    return np.array([list(bytes.fromhex(line)[::-1]) for line in text.split()]).astype(np.uint8).view(np.int8)


@pytest.mark.parametrize("packing", ["2bit", "5trit"])
def test_banks_of_one_unit_a_lane_are_the_decoders_roms(model, tmp_path, packing):
    checkpoint = load_checkpoint(model)
    widths = {"lanes": 4, "lane_width": 16, "vector_width": 4, "context": 8, "packing": packing}
    roms = images(quantise(checkpoint, config_for(checkpoint.config, "small", **widths)))
    emit(model, tmp_path, layout=BankLayout(lanes=4, units=1, width=16, height=7, packing=packing), processes=1)
    for lane in range(4):
        text = "".join(
            bank.read_text()
            for layer in sorted(tmp_path.glob("layer_*"))
            for name in ("qkv", "o", "gate_up", "down")
            for bank in sorted(layer.glob(f"{name}_l{lane:02}_*.hex"))
        )
        rom = [bytes(word[::-1]).hex() for word in roms[f"weights_{lane}"]]
        assert text.split() == rom


def test_processes_and_parts_make_the_same_bytes(model, tmp_path):
    told = []
    emit(model, tmp_path / "one", layout=ODD, processes=1, progress=lambda text, share: told.append(share))
    done = emit(model, tmp_path / "two", layout=ODD, processes=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two") and done["peak_kib"] > 3 * 10_000  # three processes
    assert told == sorted(told) and told[-1] == 1.0
    for layers in ([2], [0, 1], [1]):
        emit(model, tmp_path / "parts", layout=ODD, layers=layers, processes=1)
        assert json.loads((tmp_path / "parts" / "manifest.json").read_text())["complete"] is False
    done = emit(model, tmp_path / "parts", layout=ODD, processes=1)
    assert done["kept"] == ["layer_00", "layer_01", "layer_02"] and done["written"] == ["embedding"]
    assert tree(tmp_path / "one") == tree(tmp_path / "parts")


@pytest.mark.parametrize("change", ["flip", "cut", "remove", "describe"])
def test_a_part_that_is_not_whole_is_written_again(model, tmp_path, change):
    emit(model, tmp_path, layout=ODD, processes=1)
    notes = [tmp_path / "notes.txt", tmp_path / "layer_01" / "notes.txt", tmp_path / ".mine.partial" / "notes.txt"]
    for path in notes:  # the user's; they stay
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    assert emit(model, tmp_path, layout=ODD, processes=1)["written"] == []
    before, bank = tree(tmp_path), tmp_path / "layer_01" / "o_l02_u00_t00.hex"
    data = bank.read_bytes()
    match change:
        case "flip":
            bank.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        case "cut":
            bank.write_bytes(data[:-2])
        case "remove":
            bank.unlink()
        case "describe":
            (tmp_path / "layer_01" / "banks.json").write_text("{")
    done = emit(model, tmp_path, layout=ODD, processes=1)
    assert done["written"] == ["layer_01"] and tree(tmp_path) == before


def test_a_changed_layer_alone_is_written_again(tmp_path):
    write_random_checkpoint(tmp_path / "model", CONFIG, seed=2)
    emit(tmp_path / "model", tmp_path / "out", layout=ODD, processes=1)
    from intaglio.gen.checkpoint.tensorfile import TensorFolder

    entry = TensorFolder(tmp_path / "model").entries["model.layers.2.mlp.up_proj.weight"]
    with open(entry.path, "r+b") as file:
        file.seek(entry.offset)
        byte = file.read(1)[0]
        file.seek(entry.offset)
        file.write(bytes([byte & 0xFC | (byte + 1) % 3]))
    assert emit(tmp_path / "model", tmp_path / "out", layout=ODD, processes=1)["written"] == ["layer_02"]


def test_a_killed_run_is_taken_up_again(tmp_path):
    """Killed as soon as something is complete: no manifest, no working process left, and the next run ends as an uninterrupted one."""
    config = CONFIG | {"num_hidden_layers": 30, "hidden_size": 256, "intermediate_size": 1024}
    write_random_checkpoint(tmp_path / "model", config, seed=4)
    out = tmp_path / "out"
    command = [*COMMAND, "--model", str(tmp_path / "model"), "-o", str(out), "--preset", "small"]
    run = subprocess.Popen(command, start_new_session=True)
    limit = time.monotonic() + 600
    while not list(out.glob("layer_*")):
        assert time.monotonic() < limit and run.poll() is None, "no layer was written within 600 s"
        time.sleep(0.001)
    run.send_signal(signal.SIGKILL)
    run.wait(60)
    while members(run.pid):
        assert time.monotonic() < limit, "the working processes must end with their parent"
        time.sleep(0.05)
    whole = len([path for path in out.iterdir() if path.is_dir() and not path.name.startswith(".")])
    assert not (out / "manifest.json").exists() and whole < 31 and list(out.glob(".*.partial"))
    done = emit(tmp_path / "model", out, layout=layout_for("small"), processes=1)
    assert len(done["kept"]) == whole and len(done["written"]) == 31 - whole and not list(out.glob(".*.partial"))
    emit(tmp_path / "model", tmp_path / "straight", layout=layout_for("small"), processes=1)
    assert tree(out) == tree(tmp_path / "straight")


def members(group):
    """Living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of_group) == group and state != "Z":
            found.append(path.parent.name)
    return found


def test_a_working_process_that_dies_is_told(model, tmp_path):
    def kill(text, share):
        for child in multiprocessing.active_children():
            child.kill()  # no error where one has ended in the meantime

    with pytest.raises(Error, match="a working process ended by itself"):
        emit(model, tmp_path / "out", layout=ODD, processes=2, progress=kill)
    assert not list(tmp_path.glob("out/layer_*"))


def spoil(tmp_path, name, data, at=0):
    """A model whose tensor ``name`` begins otherwise."""
    from intaglio.gen.checkpoint.tensorfile import TensorFolder

    write_random_checkpoint(tmp_path / "model", CONFIG, seed=2)
    entry = TensorFolder(tmp_path / "model").entries[name]
    with open(entry.path, "r+b") as file:
        file.seek(entry.offset + at)
        file.write(data)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "model.layers.2.mlp.down_proj.weight",
            b"\x0c",
            "layers.2.mlp.down_proj.weight must hold ternary codes 0, 1 and 2, not the 3",
        ),
        ("model.layers.2.mlp.ffn_sub_norm.weight", b"\xc0\x7f", "ffn_sub_norm.weight must be finite"),
        ("model.layers.2.mlp.up_proj.weight_scale", b"\xc0\x7f", "up_proj.weight_scale must be finite"),
        ("model.layers.2.mlp.up_proj.weight_scale", b"\0\0", "up_proj.weight_scale must be above 0"),
        ("model.embed_tokens.weight", b"\x80\x7f", "embed_tokens.weight must be finite"),
        ("model.embed_tokens.weight", b"\0\0" * 1600, "the embedding must not be all zero"),
        ("model.norm.weight", b"\x80\xff", "norm.weight must be finite"),
    ],
)
def test_a_damaged_value_anywhere_is_told_before_anything_is_written(tmp_path, name, data, message):
    spoil(tmp_path, name, data)
    with pytest.raises((CheckpointError, ValueError), match=message):
        emit(tmp_path / "model", tmp_path / "out", layout=ODD, processes=1)
    assert not (tmp_path / "out").exists()


def test_folders_and_arguments_that_are_refused(model, tmp_path, monkeypatch):
    def refuse(message, kind=ValueError, out=tmp_path / "new", **changes):
        with pytest.raises(kind, match=message):
            emit(model, out, **{"layout": ODD, "processes": 1} | changes)
        assert not (tmp_path / "new").exists()

    refuse(r"layers must be in 0..2, not \[3\]", layers=[3])
    refuse(r"layers must be in 0..2, not \[-1, 1\]", layers=[1, -1])
    refuse("the form of banks must be one of image, logic, words, not 'brass'", form="brass")
    refuse("processes must be an integer in 1..64, not 0", processes=0)
    refuse(
        "a bank's height must be at least a row's 5 words, not 4",
        layout=BankLayout(lanes=1, units=1, width=10, height=4),
    )
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    refuse("must be empty or hold banks, and holds thesis.tex", Error, foreign)
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]
    refuse("the output folder must be a folder, and .*thesis.tex is a file", Error, foreign / "thesis.tex")
    emit(model, tmp_path / "out", layout=ODD, layers=[0], processes=1)
    refuse(
        "same model, layout and form", Error, tmp_path / "out", layout=BankLayout(lanes=3, units=2, width=10, height=13)
    )
    with open(tmp_path / "out" / ".lock", "w") as lock:
        parts_module.fcntl.flock(lock, parts_module.fcntl.LOCK_EX)
        refuse("must not be in use", Error, tmp_path / "out")
    monkeypatch.setattr(parts_module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    refuse("must have room for .* MB of banks, and 0 MB are free", Error, tmp_path / "out", layers=[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lanes": 0}, "lanes of a bank layout must be an integer in 1..4096, not 0"),
        ({"units": 2.0}, "units of a bank layout must be an integer in 1..4096, not 2.0"),
        ({"height": 1 << 31}, "height of a bank layout must be an integer in 1..1073741824, not 2147483648"),
        ({"packing": "3bit"}, "packing must be one of 2bit, 5trit, pairs, not '3bit'"),
    ],
)
def test_layouts_that_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        BankLayout(**{"lanes": 2, "units": 2, "width": 8} | change)


def test_tom_at_full_size():
    layout, config = LAYOUTS["tom"], model_config("bitnet-2b4t")
    words = {name: layout.banks(*shape) for name, shape in matrix_shapes(config).items()}
    assert words == {"qkv": [480], "o": [320], "gate_up": [1020, 720], "down": [864]}
    assert (
        layout.bits == 256 and sum(map(sum, words.values())) == 3404
    )  # words of a unit's layer; 3,392 with nothing to fill up
    with pytest.raises(ValueError, match="the preset must be one of tom, desk, .*, not 'dick'"):
        layout_for("dick")
    assert layout_for("ulx3s") == BankLayout(lanes=8, units=1, width=64, packing="5trit")
    assert isinstance(config, ModelConfig)


def test_command(model, tmp_path, capsys):
    assert (
        main(["gen", "banks", "--model", str(model), "--layer", "1", "--processes", "1", "-o", str(tmp_path / "out")])
        == 0
    )
    assert (
        "1 parts written" in capsys.readouterr().out
        and (tmp_path / "out" / "layer_01" / "gate_up_l15_u09_t00.hex").is_file()
    )
    for arguments, message in (
        (["--layer", "7"], "layers must be in 0..2, not [7]"),
        (["--all", "--preset", "big"], "the preset must be one of tom, desk"),
    ):
        assert main(["gen", "banks", "--model", str(model), "-o", str(tmp_path / "new"), *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("intaglio: error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()
