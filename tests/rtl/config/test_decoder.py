"""The decoder's configuration: what must hold, what errors say, JSON and digest."""

import json

import pytest

from intaglio.rtl.config.decoder import DecoderConfig
from intaglio.rtl.control.program import Instruction, Op

FIELDS = dict(
    hidden=192, intermediate=512, layers=4, heads=6, kv_heads=1, head_dim=32, vocab=256, context=256, attention_heads=6
)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"layers": 0}, "layers must be a positive integer, not 0"),
        ({"head_dim": 100}, "head_dim must be a power of 2 in 4..256, not 100"),
        ({"hidden": 200}, "hidden must be heads * head_dim = 192, not 200"),
        ({"kv_heads": 4}, "kv_heads must divide heads = 6, not 4"),
        ({"context": 1}, "context must be in 2..65535 tokens, not 1"),
        ({"vocab": 1 << 20}, "vocab must be in 2..1048575, not 1048576"),
        (
            {"vocab": 65536, "context": 32768},
            (
                "context must be at most 32767 tokens where tokens have 17 bits (they share a word of the "
                "result), not 32768"
            ),
        ),
        (
            {"vocab": 1048575, "context": 4096},
            (
                "context must be at most 4095 tokens where tokens have 20 bits (they share a word of "
                "the result), not 4096"
            ),
        ),
        ({"packing": "3bit"}, "packing must be one of 2bit, 5trit, pairs, not '3bit'"),
        (
            {"packing": "pairs"},
            "dot must be tables where packing is pairs, not 'planes'; 2bit and 5trit go with every dot",
        ),
        ({"dot": "lookup"}, "dot must be one of planes, adders, tables, not 'lookup'"),
        ({"rom": "gates"}, "rom must be one of image, logic, not 'gates'"),
        ({"lanes": 3}, "lanes must be even, not 3"),
        ({"lane_width": 100}, "lane_width must divide hidden = 192, not 100"),
        ({"lane_width": 96}, "lane_width must divide intermediate = 512, not 96"),
        ({"vector_width": 12}, "vector_width must be a power of 2 and at least 2, not 12"),
        ({"vector_width": 64, "lane_width": 64}, "vector_width must divide head_dim = 32, not 64"),
        ({"vector_width": 2, "lanes": 4}, "vector_width must be a multiple of lanes = 4, not 2"),
        ({"attention_heads": 4}, "attention_heads must divide heads / kv_heads = 6, not 4"),
        ({"top_k": 40}, "top_k must be in 1..31 and at most vocab = 256, not 40"),
        ({"embed_shift": 30}, "embed_shift must be in 0..24, not 30"),
        ({"layers": 1024}, "layers must be at most 1023, not 1024"),
        (
            {"hidden": 32768, "heads": 1024, "kv_heads": 1024, "attention_heads": 1},
            "hidden (its cubed sums must fit 64 bits) must be at most 16384, not 32768",
        ),
        (
            {"hidden": 6400, "heads": 200, "kv_heads": 200, "attention_heads": 1},
            "heads + 2 * kv_heads must be at most 256, not 600",
        ),
        (
            {"intermediate": 6912, "vector_width": 4},
            "max(hidden, intermediate) / vector_width must be at most 1023, not 1728",
        ),
        (
            {"layers": 1000, "vector_width": 4},
            (
                "words of norm gains, (layers * (3 * hidden + intermediate) + hidden) / vector_width "
                "must be at most 65536, not 272048"
            ),
        ),
        (
            {"layers": 1000, "vector_width": 4, "sub_norms": 0},
            (
                "words of norm gains, ((2 * layers + 1) * hidden + max(hidden, intermediate)) / vector_width "
                "must be at most 65536, not 96176"
            ),
        ),
        ({"activation": "gelu"}, "activation must be one of relu2, silu, not 'gelu'"),
        ({"sub_norms": True}, "sub_norms must be 0 or 1, not True"),
        ({"tied_head": 2}, "tied_head must be 0 or 1, not 2"),
    ],
)
def test_errors_say_what_must_hold_and_what_was_given(change, message):
    with pytest.raises(ValueError) as caught:
        DecoderConfig(**(FIELDS | change))
    assert str(caught.value) == message


def test_json_round_trip_and_digest():
    config = DecoderConfig(**FIELDS)
    again = DecoderConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config and again.digest() == config.digest()
    assert config.replace(lanes=8).digest() != config.digest()
    assert config.to_json()["rom"] == "image" and config.replace(rom="logic").digest() != config.digest()
    with pytest.raises(ValueError, match="unknown field of the decoder's configuration: wide"):
        DecoderConfig.from_json(config.to_json() | {"wide": 1})
    with pytest.raises(ValueError, match="missing field of the decoder's configuration: hidden"):
        DecoderConfig.from_json({k: v for k, v in config.to_json().items() if k != "hidden"})


def test_widths_hold_the_extremes():
    c = DecoderConfig(**FIELDS)
    assert 127 * c.intermediate < 1 << (c.accumulator_bits - 1) <= 2 * 127 * c.intermediate
    assert (127 * c.hidden) ** 3 < 1 << (c.result_bits - 1)
    assert 32767 * 127 * c.context < 1 << (c.value_bits - 1)
    assert 32767 * 127 * c.head_dim >> c.score_shift < 1 << 17
    assert 32767 * 127 * c.hidden >> c.logit_shift < 1 << 31
    assert c.weight_depth * c.lanes * c.lane_width == c.layers * c.layer_weights == 1_523_712


def test_instructions_check_their_fields():
    for fields, message in (
        ({"rd": 8}, r"rd of MUL must be in 0\.\.7, not 8"),
        ({"m": 1 << 16}, "m of MUL must be in"),
        ({"e": -513}, "e of MUL must be in"),
    ):
        with pytest.raises(ValueError, match=message):
            Instruction(op=Op.MUL, **fields)


def test_fields_of_the_usual_model_are_no_part_of_the_digest():
    usual = DecoderConfig(**FIELDS)
    assert not {"activation", "sub_norms", "tied_head"} & set(usual.to_json())
    other = usual.replace(activation="silu", sub_norms=0, tied_head=0)
    assert DecoderConfig.from_json(other.to_json()) == other and other.digest() != usual.digest()
    assert (127 * other.hidden) << 26 < 1 << (other.result_bits - 1)
