"""Words of sequences and groups, and what a device owes for them."""

import numpy as np
import pytest

from intaglio.host.protocol import Owed, command, group, selection, sequence
from tests.double.sequences import HistoryDevice, model


def test_words():
    assert sequence(0) == 0x21000000 and sequence(255) == 0x210000FF
    assert group(1) == 0x22000000 and group(32, run=5) == 0x2200015F and group(64, run=(1 << 18) - 1) == 0x22FFFFFF
    assert selection(None) == 0x20000000 and selection(2) == 0x20000003
    for wrong, message in (
        (lambda: sequence(256), "number of a sequence must be in 0..255, not 256"),
        (lambda: sequence(-1), "not -1"),
        (lambda: group(0), "count of a group must be in 1..64, not 0"),
        (lambda: group(65), "not 65"),
        (lambda: group(2, run=1 << 18), "run of a group must be in 0..262143, not 262144"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


def count(owed, *packets):
    """Packets taken until nothing is owed, of ``packets`` and then answers."""
    for number in range(1000):
        if not owed:
            return number
        owed.packet(packets[number] if number < len(packets) else [5])
    raise AssertionError


FULL = [0xFFFF]


@pytest.mark.parametrize(
    "words, packets, expected",
    [
        ([group(3), command(1, want=True), sequence(1), command(2), command(3, want=True, run=9)], (), 2),
        ([group(2, run=3), command(1, want=True), command(2, want=True)], (), 8),
        ([group(2, run=3), command(1), command(2, want=True)], (), 4),
        ([group(2, run=3), command(1), command(2)], (), 0),
        ([group(2, run=3), command(1, want=True)], (), 0),  # the group is not whole yet
        ([group(9, run=1), *[command(1, want=True)] * 4], (), 8),  # of four at most
        ([group(3, run=2), *[command(1, want=True)] * 3], ([5], FULL), 7),  # goes on without the one that is full
        ([group(3, run=2), *[command(1, want=True)] * 3], (FULL, FULL, FULL), 3),
        ([group(2, run=2), *[command(1, want=True)] * 2], ([5], [5], FULL, [5]), 5),
        ([command(1, run=4), group(2), command(1), command(2, want=True), command(3, want=True, run=1)], (), 8),
        ([command(1, run=4), command(1, want=True)], ([5], FULL), 3),
        ([selection(3), sequence(3)], (), 0),
    ],
)
def test_what_is_owed(words, packets, expected):
    owed = Owed(16, batch=4, sequences=4)
    for word in words:  # however the words are cut into packets
        owed.add(np.array([word], np.uint32))
    assert count(owed, *packets) == expected
    owed.add(np.array(words, np.uint32))
    if len(words) > 2:
        assert count(owed, *packets) == expected


def test_a_reset_forgets_a_group_under_way():
    owed = Owed(16, batch=4, sequences=1)
    owed.add(np.array([group(2), command(1, want=True)], np.uint32))
    owed.clear()
    owed.add(np.array([command(1, want=True, run=1)], np.uint32))
    assert count(owed) == 2


def test_a_device_without_groups_has_adapters_alone():
    owed = Owed(16)
    owed.add(np.array([group(2), command(1, want=True)], np.uint32))
    assert count(owed) == 1


def random_words(rng, batch, sequences, context=12):
    """Groups, runs, tokens alone, sequences that fill up."""
    words = []
    for _ in range(60):
        size = int(rng.integers(1, batch + 3))  # more than there is room for are taken as the batch
        if rng.random() < 0.7:
            words.append(group(size, run=int(rng.integers(0, 5)) if rng.random() < 0.5 else 0))
            size = min(size, batch)
        for _ in range(size):
            if rng.random() < 0.6:
                words.append(sequence(int(rng.integers(0, sequences + 2))))
            if rng.random() < 0.1:  # inside a group it does nothing
                words.append(group(int(rng.integers(1, batch + 1)), run=1))
            words.append(
                command(
                    int(rng.integers(40)),
                    first=rng.random() < 0.15,
                    want=rng.random() < 0.5,
                    top=int(rng.integers(0, 4)),
                    run=int(rng.integers(1, 4)) if rng.random() < 0.2 else 0,
                )
            )
    return words


@pytest.mark.parametrize("batch, sequences", [(1, 3), (4, 1), (4, 4), (3, 7), (8, 2)])
def test_owed_agrees_with_the_device(batch, sequences):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        device, owed = HistoryDevice(model(batch=batch, sequences=sequences, context=12)), Owed(16, batch, sequences)
        refused = 0
        for word in random_words(rng, batch, sequences):
            owed.add(np.array([word], np.uint32))
            for packet in device.run([word]):
                assert owed
                owed.packet(packet)
                refused += packet[0] & 0xFFFF == 0xFFFF
            assert not owed
        assert refused
