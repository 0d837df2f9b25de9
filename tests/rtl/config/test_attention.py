"""The configuration of the prefill unit: what it refuses, what it derives."""

import pytest

from intaglio.rtl.config.attention import PrefillConfig

GOOD = dict(head_dim=32, group=6, block=128, columns=32, context=16384)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(head_dim=48), "head_dim must be a power of 2 in 16..128, not 48"),
        (dict(head_dim=8), "head_dim must be a power of 2 in 16..128, not 8"),
        (dict(block=16), "block must be a power of 2 in 32..128, not 16"),
        (dict(columns=64), "columns must be a power of 2 in 8..32, not 64"),
        (dict(group=17), "group must be an integer in 1..16, not 17"),
        (dict(context=1000), "context must be a multiple of block 128, not 1000"),
        (dict(window=3), "window must be a power of 2 in 1..32, not 3"),
        (dict(lines=4), "lines must be an integer in 5..1024, not 4"),
        (dict(lookahead=0), "lookahead must be an integer in 1..64, not 0"),
        (dict(drain=2), "drain must be a power of 2 in 4..32, not 2"),
        (dict(lut_columns=3), "lut_columns must be even, not 3"),
        (dict(lut_columns=34), "lut_columns must be an integer in 0..32, not 34"),
    ],
)
def test_refused(change, message):
    with pytest.raises(ValueError) as told:
        PrefillConfig(**GOOD | change)
    assert str(told.value) == message


def test_derived_widths_hold_the_extremes():
    for context in (128, 16384, 1 << 17):
        config = PrefillConfig(**GOOD | dict(context=context))
        assert 254 * 127 * context << 4 < 1 << config.value_bits - 1
        assert 254 * 127 * config.head_dim < 1 << config.mean_bits - 1
        assert (65535 << 12) * context < 1 << config.sum_bits and 254 * context << 4 < 1 << config.sum_bits
        assert 127 * 127 * config.head_dim < 1 << config.dot_bits - 1


def test_json_and_digest():
    config = PrefillConfig(**GOOD)
    assert PrefillConfig.from_json(config.to_json()) == config
    assert (
        PrefillConfig(**GOOD | dict(clock_hz=1)).digest()
        == config.digest()
        != PrefillConfig(**GOOD | dict(lines=17)).digest()
    )
    with pytest.raises(ValueError, match="unknown fields of a prefill configuration: depth"):
        PrefillConfig.from_json(config.to_json() | {"depth": 1})
