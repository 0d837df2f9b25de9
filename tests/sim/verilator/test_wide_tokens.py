"""A vocabulary that does not fit 16 bits: the Verilog behind the host's device against the exact model, tokens beyond 65,535 included."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import intaglio.host
from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.emit.decoder import generate
from intaglio.gen.presets.decoder import config_for
from intaglio.host.protocol import DeviceError, command, token_bits
from intaglio.rtl.control.sequencer import command_layout
from intaglio.sim.reference.device import ReferenceDevice

CACHE = Path(__file__).parents[3] / "build" / "test-cache"
VOCAB, BITS, CONTEXT = 70_001, 17, 9
MODEL = ModelConfig(
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    bos_token_id=0,
    eos_token_id=None,
)
WIDTHS = {"context": CONTEXT, "lanes": 4, "lane_width": 8, "vector_width": 4, "attention_heads": 2, "top_k": 4}


def test_fields_of_the_words():
    for vocab, bits in (
        (2, 16),
        (65535, 16),
        (65536, 17),
        (128256, 17),
        (131071, 17),
        (131072, 18),
        ((1 << 20) - 1, 20),
    ):
        model = dataclasses.replace(MODEL, vocab_size=vocab)
        config = config_for(model, "small", **WIDTHS | {"top_k": 2})
        assert token_bits(vocab) == config.token_bits == bits and vocab - 1 < (1 << bits) - 1
        layout = command_layout(bits)
        word = command(vocab - 1, run=3, top=2, want=True, first=True, bits=bits)
        fields = {name: word >> layout[name].offset & (1 << layout[name].width) - 1 for name in layout.members}
        assert (
            fields == {"token": vocab - 1, "run": 3, "top": 2, "reserved": 0, "want": 1, "first": 1}
            and layout.size == 32
        )
    with pytest.raises(ValueError, match=r"run of a command must be in 0..15, not 16"):
        command(1, run=16, bits=20)
    with pytest.raises(ValueError, match=r"token of a command must be in 0..131071, not 131072"):
        command(131072, bits=17)


@pytest.mark.verilator
def test_tokens_beyond_16_bits(tmp_path):
    checkpoint = random_checkpoint(MODEL, seed=3)
    checkpoint.embed[:65_600] *= 0.4  # so that the last tokens win
    manifest = generate(checkpoint, "small", tmp_path / "out", **WIDTHS)
    assert manifest["streams"]["command"]["fields"]["token"] == [0, BITS]
    assert manifest["streams"]["result"]["fields"] == {"token": [0, BITS], "position": [BITS, 15]}
    reference = ReferenceDevice(quantise(checkpoint, config_for(MODEL, "small", **WIDTHS)))
    prompt = [0, 70_000, 65_535, 65_536]
    with intaglio.host.open(f"sim:{tmp_path / 'out'}", cache=CACHE) as device:
        words = [device.command(token, first=i == 0, want=True, top=4) for i, token in enumerate(prompt)]
        packets = reference.run(words)
        for packet, result in zip(packets, device.evaluate(prompt, top=4, every=True), strict=True):
            assert [result.token, result.position] == [packet[0] & (1 << BITS) - 1, packet[0] >> BITS]
            assert result.tokens.tolist() == packet[2::2]
            assert result.logits.tolist() == np.array(packet[3::2], np.uint32).view(np.int32).tolist()
        expected = [
            packet[0] & (1 << BITS) - 1
            for packet in reference.run(
                [
                    *(device.command(token, first=i == 0) for i, token in enumerate(prompt[:-1])),
                    device.command(prompt[-1], want=True, run=5),
                ]
            )
        ]
        assert list(device.generate_tokens(prompt, 6)) == expected and max(expected) > 65_535  # mutation: 16-bit tokens
        device.submit([device.command(1)])
        with pytest.raises(DeviceError, match="context of 9 tokens is full"):
            for _ in range(2):
                device.submit([device.command(1, want=True)])
                device.receive()
