"""Protocol of the shell: cocotb on the Verilog of a small decoder, with values from the exact model."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.cycles.decoder import token_cycles
from intaglio.gen.emit.decoder import generate
from intaglio.gen.emit.program import layer_program
from intaglio.gen.presets.decoder import config_for
from intaglio.host.protocol import command
from intaglio.rtl.control.program import WORD_BITS, Op
from intaglio.rtl.memory.rom import hex_text, words_to_bytes
from intaglio.sim.reference.device import ReferenceDevice
from intaglio.sim.verilator.build import BuildError
from intaglio.sim.verilator.cocotb_runner import build_bench, run_bench

pytestmark = pytest.mark.verilator

CACHE = Path(__file__).parents[3] / "build" / "test-cache"
MODULE = Path(__file__).with_name("cocotb_decoder.py")
MODEL = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)
WIDTHS = {"context": 5, "lanes": 2, "lane_width": 8, "vector_width": 4, "attention_heads": 2, "top_k": 4}
VALUES = (
    "values_and_throughput",
    "values_with_back_pressure",
    "mixed_commands",
    "reset_in_a_token",
    "reset_in_a_packet",
    "full_context",
    "registers_while_tokens_pass",
)
OTHERS = ("registers", "clearing_the_counters", "the_monitor_sees_a_changed_word")


def vectors(model, manifest):
    """Commands and the packets that answer them, by name, and what the registers hold."""
    rng = np.random.default_rng(20)
    context, top_k = model.config.context, model.config.top_k

    def token():
        return int(rng.integers(model.config.vocab))

    commands = {
        "every token": [command(token(), first=i == 0, want=True) for i in range(context)],
        "mixed": [
            command(
                token(),
                first=i % 6 == 0,
                want=bool(rng.random() < 0.5),
                top=int(rng.integers(32)),
                run=int(rng.integers(3)) * (i % 4 == 1),
            )
            for i in range(18)
        ],
        "after a reset": [command(token()), command(token(), want=True, top=2)],
        "long packet": [command(token(), want=True, top=top_k)],
        "overflow": [command(token(), first=i == 0, want=i > context - 2) for i in range(context + 2)],
    }
    out = {name: {"commands": words, "packets": ReferenceDevice(model).run(words)} for name, words in commands.items()}
    cycles = [token_cycles(model, position) for position in range(context)]
    registers = {name: register["offset"] for name, register in manifest["registers"].items()}
    return {
        **out,
        "registers": registers,
        "context": context,
        "cycles": {
            "tokens": [c.total for c in cycles],
            "phases": {name: sum(c.phases[name] for c in cycles) for name in manifest["phases"]},
        },
        "identity": {
            "magic": 0x494E5447,
            "version": 1,
            "digest": int(manifest["digest"][:8], 16),
            "capabilities": context | top_k << 16,
        },
    }


@pytest.fixture(scope="module")
def design(tmp_path_factory):
    """A generated decoder, its build, and its vectors as a file."""
    folder = tmp_path_factory.mktemp("shell") / "generated"
    checkpoint = random_checkpoint(MODEL, 21)
    manifest = generate(checkpoint, "small", folder, **WIDTHS)
    model = quantise(checkpoint, config_for(MODEL, "small", **WIDTHS))
    file = folder.parent / "vectors.json"
    file.write_text(json.dumps(vectors(model, manifest)))
    return model, folder, build_bench(folder, cache=CACHE), file


def run(design, folder):
    return run_bench(design[2], folder, MODULE, plusargs=[f"+vectors={design[3]}"], tests=len(VALUES + OTHERS))


@pytest.fixture(scope="module")
def results(design):
    return run(design, design[1])


@pytest.mark.parametrize("name", VALUES + OTHERS)
def test_protocol(results, name):
    assert set(results) == {*VALUES, *OTHERS}
    assert results[name] is None, results[name]


def test_a_flipped_weight_is_seen(design, tmp_path):
    folder = shutil.copytree(design[1] / "rom", tmp_path / "rom").parent
    image = next((folder / "rom").glob("*_weights_0.hex"))
    words = image.read_text().split()
    words[0] = f"{int(words[0], 16) ^ 0b01:0{len(words[0])}x}"
    image.write_text("\n".join(words) + "\n")
    results = run(design, folder)
    assert {name for name, failure in results.items() if failure} >= {"values_with_back_pressure", "mixed_commands"}
    assert results["registers"] is None and results["the_monitor_sees_a_changed_word"] is None


def test_a_slower_program_is_seen(design, tmp_path):
    """A word that only waits, in the place of SKIP: answers to nobody's tokens, or at the wrong time."""
    folder = shutil.copytree(design[1] / "rom", tmp_path / "rom").parent
    program = layer_program(design[0])
    index = next(i for i, word in enumerate(program) if word.op is Op.SKIP)
    program[index] = dataclasses.replace(program[index], op=Op.NOP)
    image = words_to_bytes([word.encode() for word in program], WORD_BITS)
    next((folder / "rom").glob("*_program.hex")).write_bytes(hex_text(image))
    results = run(design, folder)
    assert results["values_and_throughput"] is None and results["mixed_commands"]


def test_a_wrong_number_of_tests_is_told(design, tmp_path):
    folder = shutil.copytree(design[1] / "rom", tmp_path / "rom").parent
    empty = tmp_path / "empty_bench.py"
    empty.write_text("")
    with pytest.raises(BuildError, match="Simulation terminated abnormally"):
        run_bench(design[2], folder, empty)
