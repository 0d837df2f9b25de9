"""Groups of tokens as generated Verilog: every word of every answer, every cycle, and what the host makes of them."""

from dataclasses import replace
from pathlib import Path

import pytest

import intaglio.host
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.cycles.decoder import group_cycles
from intaglio.gen.emit.decoder import generate
from intaglio.gen.emit.program import layer_program
from intaglio.gen.presets.decoder import config_for
from intaglio.host.protocol import command, group, sequence
from intaglio.rtl.control.program import PHASES
from intaglio.sim.reference.device import ReferenceDevice
from tests.rtl.top.core_bench import MODEL
from tests.rtl.top.test_batch import LLAMA, WIDTHS, random_commands

CACHE = Path(__file__).parents[3] / "build" / "test-cache"
pytestmark = pytest.mark.verilator
SHAPES = {
    "bitnet": (None, {"batch": 3, "sequences": 2, "context": 6}),
    "llama": (LLAMA, {"batch": 2, "sequences": 5, "context": 9, "attention_heads": 1, "row_scales": 1}),
    "one sequence": (
        None,
        {"batch": 5, "sequences": 1, "context": 40, "lanes": 4, "packing": "5trit", "dot": "adders"},
    ),
    "one slot": (None, {"batch": 1, "sequences": 3, "context": 7}),
}


@pytest.fixture(scope="module", params=SHAPES)
def machine(request, tmp_path_factory):
    """A simulated device and its model."""
    family, widths = SHAPES[request.param]
    described, widths = replace(MODEL, **family or {}), {**WIDTHS, **widths}
    checkpoint, out = random_checkpoint(described, 3), tmp_path_factory.mktemp("batch") / "out"
    generate(checkpoint, "small", out, **widths)
    model = quantise(checkpoint, config_for(described, "small", **widths))
    with intaglio.host.open(f"sim:{out}", cache=CACHE) as device:
        device.timeout = 10.0
        yield device, model


def packets(device, words, count):
    device.submit(words)
    return [device._packet().tolist() for _ in range(count)]


@pytest.mark.parametrize("seed", range(4))
def test_every_word_of_every_answer(machine, seed):
    device, model = machine
    c = model.config
    device.reset()
    words = random_commands(seed, c.batch, c.sequences, 25)
    want = ReferenceDevice(model).run(words)
    assert packets(device, words, len(want)) == want
    assert not device._owed


def test_a_sequence_that_begins_anew_beside_its_last_token(machine):
    """Its first key must not be written while the token before it is still attended to."""
    device, model = machine
    context = min(model.config.context, 30)
    device.reset()
    words = [command(token % 11, first=token == 0) for token in range(context - 1)]
    words += [group(2), command(3, want=True, top=3), command(5, first=True, want=True, top=3), command(6, want=True)]
    want = ReferenceDevice(model).run(words)
    assert packets(device, words, len(want)) == want


def test_every_cycle(machine):
    device, model = machine
    c, program = model.config, layer_program(model)
    device.reset()
    spent, so_far = dict.fromkeys(PHASES, 0), [0] * c.sequences
    words, groups = [], 0
    device.clear_counters()
    for size in [1, c.batch, max(1, c.batch - 1)]:
        for wants in (0, 1, size):
            positions, words = [], words + ([group(size)] if size > 1 else [])
            for i in range(size):
                number = (i + groups) % c.sequences
                words += [sequence(number)] if c.sequences > 1 else []
                first = so_far[number] == min(c.context, 12)
                so_far[number] = 0 if first else so_far[number]
                words.append(command(i + 1, first=first, want=i < wants))
                positions.append(so_far[number])
                so_far[number] += 1
            groups += 1
            for phase, cycles in group_cycles(model, positions, wants=wants, program=program).phases.items():
                spent[phase] += cycles
    count = sum(word >> 29 & 3 == 2 for word in words)
    assert len(packets(device, words, count)) == count
    device.submit([command(1, want=True)])  # all before it has ended when it is answered
    device._packet()
    for phase, cycles in group_cycles(model, [so_far[number]], program=program).phases.items():
        spent[phase] += cycles
    assert device.counters()["phases"] == spent
