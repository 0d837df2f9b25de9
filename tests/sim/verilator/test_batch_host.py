"""Several prompts at once and conversations on the Verilog of a device with a batch: each gets the exact model's tokens."""

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest

import intaglio.host
from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.emit.decoder import generate
from intaglio.gen.presets.decoder import config_for
from intaglio.host.protocol import command, sequence
from intaglio.sim.reference.device import ReferenceDevice
from intaglio.sim.reference.exact_decoder import ExactDecoder
from tests.double.sequences import HistoryTransport
from tests.host.test_protocol import random_words

CACHE = Path(__file__).parents[3] / "build" / "test-cache"
BATCH, SEQUENCES, CONTEXT = 3, 4, 12
MODEL = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    bos_token_id=0,
    eos_token_id=3,
)
WIDTHS = {"context": CONTEXT, "lanes": 4, "lane_width": 8, "vector_width": 4, "attention_heads": 2, "top_k": 4}

pytestmark = pytest.mark.verilator


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of the device, and its model."""
    folder, checkpoint = tmp_path_factory.mktemp("batch") / "out", random_checkpoint(MODEL, seed=4)
    widths = WIDTHS | {"batch": BATCH, "sequences": SEQUENCES}
    generate(checkpoint, "small", folder, **widths)
    return folder, quantise(checkpoint, config_for(MODEL, "small", **widths))


@pytest.fixture
def device(made):
    with intaglio.host.open(f"sim:{made[0]}", cache=CACHE) as opened:
        yield opened


def test_several_prompts(made, device):
    assert (device.manifest.batch, device.manifest.sequences) == (BATCH, SEQUENCES)
    pick, exact = random.Random(1), ExactDecoder(made[1])
    prompts = [[pick.randrange(40) for _ in range(pick.choice([1, 3, 8, 12]))] for _ in range(9)]
    found = [[] for _ in prompts]
    for index, token in device.generate_tokens_many(prompts, 7):
        found[index].append(token)
    for prompt, tokens in zip(prompts, found, strict=True):
        expected = exact.generate(prompt, 7, stop=3)
        assert tokens == [token for token in expected if token != 3]
    last = device.last
    assert {row["finish"] for row in last["requests"]} > {"length"} and last["cycles"] and last["tokens_per_second"]
    assert all(row["first_token_seconds"] for row in last["requests"])
    assert list(device.generate_tokens(prompts[0], 7)) == found[0]
    # draws of each are those of its own, by the double's host
    options = {"temperature": 1.5, "seed": list(range(9))}
    drawn = sorted(device.generate_tokens_many(prompts, 7, **options), key=lambda event: event[0])
    model = dataclasses.replace(made[1], config=dataclasses.replace(made[1].config, batch=1, sequences=1))
    transport = HistoryTransport(
        batch=1, sequences=1, device=ReferenceDevice(model), vocab=40, context=CONTEXT, top_k=4, eos=3
    )
    with intaglio.host.Device(transport) as alone:
        assert drawn == [
            (index, token)
            for index, prompt in enumerate(prompts)
            for token in alone.generate_tokens(prompt, 7, temperature=1.5, seed=index)
        ]


def test_conversations(made, device):
    exact = ExactDecoder(made[1])
    with device.sequence() as one, device.sequence() as two:
        said = {one: [], two: []}
        for tokens in ([1, 2, 4, 5], [6]):
            for talk in (one, two):
                answer = list(talk.generate_tokens(tokens[:3] if talk is one else tokens, 3))
                said[talk] += tokens[:3] if talk is one else tokens
                expected = exact.generate(said[talk], 3, stop=3)
                assert answer == [token for token in expected if token != 3]
                said[talk] += answer
                assert list(device.generate_tokens([7], 4)) == [t for t in exact.generate([7], 4, stop=3) if t != 3]


def test_random_words(made, device):
    """Groups, runs, sequences that fill up, words of sequences that are not there: packet for packet."""
    begin = [word for number in range(SEQUENCES) for word in (sequence(number), command(number, first=True))]
    words = [*begin, *random_words(np.random.default_rng(2), BATCH, SEQUENCES)]
    device.submit(words)
    for packet in ReferenceDevice(made[1]).run(words):
        found, _ = device.transport.receive(99, 60.0)
        assert found.tolist() == packet
