"""Sequences and groups of the exact model's device: each sequence's packets are those that a device of one sequence gives."""

import dataclasses

import numpy as np
import pytest

from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.presets.decoder import config_for
from intaglio.host.device import Device
from intaglio.host.protocol import command, group, sequence
from intaglio.sim.reference.device import ReferenceDevice
from intaglio.sim.reference.exact_decoder import ExactDecoder
from tests.double.sequences import HistoryTransport
from tests.sim.reference.test_exact_decoder import small

BATCH, SEQUENCES, CONTEXT = 3, 4, 10


@pytest.fixture(scope="module")
def one():
    """A model of one sequence, and how to widen it."""
    config = small(max_position_embeddings=CONTEXT)
    widths = dict(context=CONTEXT, lane_width=16, vector_width=4, top_k=4, lanes=2)
    return quantise(random_checkpoint(config, seed=3), config_for(config, "small", **widths))


def many(one, batch=BATCH, sequences=SEQUENCES):
    return ReferenceDevice(
        dataclasses.replace(one, config=dataclasses.replace(one.config, batch=batch, sequences=sequences))
    )


def test_another_decoder_shares_weights_alone(one):
    decoder = ExactDecoder(one)
    before, _ = decoder.step([1, 2, 3])
    other = decoder.another()
    assert other.position == 0 and other.layers is decoder.layers
    found, _ = other.step([4])
    assert found.tolist() == ExactDecoder(one).step([4])[0].tolist() and decoder.position == 3
    assert decoder.step([7])[0].tolist() == ExactDecoder(one).step([1, 2, 3, 7])[0][-1:].tolist() != before.tolist()


@pytest.mark.parametrize("batch, sequences", [(BATCH, SEQUENCES), (1, SEQUENCES), (8, 1), (8, 3)])
def test_each_sequence_equals_a_device_of_its_own(one, batch, sequences):
    """Random groups: every packet is that of the same tokens fed one by one to a device that has nothing else."""
    rng = np.random.default_rng(batch + 10 * sequences)
    device, alone, at = many(one, batch, sequences), [ReferenceDevice(one) for _ in range(sequences)], 0
    refusals = 0
    for _ in range(25):
        size, run = int(rng.integers(1, batch + 1)), int(rng.choice([0, 0, 1, 3]))
        words, slots = [group(size, run=run)], []
        for _ in range(size):
            if rng.random() < 0.7:
                at = int(rng.integers(sequences))
                words.append(sequence(at))
            token = dict(first=rng.random() < 0.1, want=rng.random() < 0.6, top=int(rng.integers(0, 3)))
            slots.append((at, int(rng.integers(50)), token))
            words.append(command(slots[-1][1], **token, run=7))  # which does not count in a group
        expected = []
        for _ in range(run + 1):
            following = []
            for number, token, fields in slots:
                packets = alone[number].run([command(token, **fields)])
                expected += packets
                refusals += bool(packets and packets[0][0] & 0xFFFF == 0xFFFF)
                if packets and packets[0][0] & 0xFFFF != 0xFFFF:
                    following.append((number, packets[0][0] & 0xFFFF, fields | {"first": False}))
            slots = following
        assert device.run(words) == expected
    assert refusals


def test_a_prompt_in_groups_equals_the_prompt(one):
    tokens = [7, 3, 9, 1, 4, 4, 2]
    words = [command(token, first=i == 0, want=i == 6, top=2) for i, token in enumerate(tokens)]
    grouped = [group(3), *words[:3], group(3), *words[3:6], group(1, run=3), words[6]]
    expected = ReferenceDevice(one).run([*words[:6], command(2, want=True, top=2, run=3)])
    assert many(one).run(grouped) == expected and len(expected) == 4  # and the refusal is that of position 10


def test_sequences_selected_and_begun_anew(one):
    device = many(one)
    device.run([command(1, first=True), sequence(2), command(5, first=True), sequence(200), command(6)])
    assert [decoder.position for decoder in device.decoders] == [1, 0, 1, 1]  # 200: the last there is
    packets = device.run([sequence(2), command(5, want=True), command(5, first=True, want=True)])
    assert [packet[0] >> 16 for packet in packets] == [1, 0]
    device.run([group(2), command(1)])
    device.reset()
    assert device.run([command(1, want=True)]) == ReferenceDevice(one).run([command(1, first=True, want=True)])
    assert device.run([group(2), command(1), group(2, 3)]) == []  # inside a group the word does nothing
    assert len(device.run([command(2, want=True)])) == 1


def test_a_run_goes_on_without_those_that_are_full(one):
    device = many(one)
    device.run([sequence(1), *[command(3, first=i == 0) for i in range(CONTEXT - 2)]])
    packets = device.run(
        [group(2, run=4), sequence(0), command(1, first=True, want=True), sequence(1), command(3, want=True)]
    )
    none = [packet[0] & 0xFFFF == 0xFFFF for packet in packets]
    assert none == [False] * 4 + [False, True] + [False] * 2 and packets[5][0] >> 16 == CONTEXT
    both = device.run([group(2, run=200), *[command(1, want=True), command(2)]])
    assert [packet[0] & 0xFFFF == 0xFFFF for packet in both] == [True]  # sequence 1 is full still: the run ends


def test_the_manifest_tells_the_batch(one):
    from intaglio.gen.emit.collateral import manifest
    from intaglio.host.manifest import Manifest

    def told(model):
        fields = dict(bos=0, eos=(1, 2), tokenizer="bytes", preset="x", top="t", digest="5e" * 32, files={})
        return manifest(model, **fields, zero_share=0.0, inputs="", adapter={})

    raw = told(many(one).decoders[0].model)
    found = Manifest.from_dict(raw)
    assert (found.batch, found.sequences) == (BATCH, SEQUENCES)
    fields = raw["streams"]["command"]["fields"]
    assert fields["select"] == [29, 1] and fields["count"] == [0, 6] and fields["groups"] == [6, 18]
    plain = told(one)
    assert Manifest.from_dict(plain).batch == Manifest.from_dict(plain).sequences == 1
    assert not {"batch", "sequences"} & plain["model"].keys() and "kind" not in plain["streams"]["command"]["fields"]


def test_the_host_on_the_exact_model(one):
    """Several prompts at once: the tokens are those of the exact decoder alone."""
    shape = dict(vocab=50, context=CONTEXT, top_k=4)
    transport = HistoryTransport(batch=BATCH, sequences=SEQUENCES, device=many(one), **shape)
    prompts = [[1, 2, 3, 4], [5], [6, 7], [8] * 8, [9], [1, 2]]
    with Device(transport) as device:
        found = [[] for _ in prompts]
        for index, token in device.generate_tokens_many(prompts, 5):
            found[index].append(token)
        assert found == [ExactDecoder(one).generate(prompt, 5) for prompt in prompts]
        with device.sequence() as talk:
            answer = list(talk.generate_tokens([1, 2], 2))
            assert list(talk.generate_tokens([3], 3)) == ExactDecoder(one).generate([1, 2, *answer, 3], 3)
