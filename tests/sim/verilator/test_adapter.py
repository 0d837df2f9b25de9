"""Adapters in whole decoders: generated Verilog against the exact model, every word; loading, switching, and what must not change."""

import dataclasses

import numpy as np
import pytest

from intaglio.gen.cycles.decoder import token_cycles
from intaglio.gen.emit.program import layer_program
from intaglio.host.adapter.files import QuantisedAdapter
from intaglio.host.adapter.image import image_crc
from intaglio.host.protocol import command, selection
from intaglio.sim.reference.device import ReferenceDevice
from tests.sim.adapter_bench import (
    BEGIN,
    CASES,
    COMMIT,
    DAMAGED,
    DATA,
    DEVICE,
    IN_USE,
    INCOMPLETE,
    LOADED,
    LOADING,
    NO_SUCH_SLOT,
    OTHER_DEVICE,
    SLOTS,
    STATUS,
    STUCK,
    TOO_LONG,
    answer,
    check,
    load,
)

pytestmark = pytest.mark.verilator


@pytest.mark.parametrize("name", CASES)
def test_equals_the_exact_model(adapter_benches, name):
    """Adapters in every slot, switched from sequence to sequence, with and without; strong and weak ones."""
    bench = adapter_benches(name)
    reference, slots = ReferenceDevice(bench.model), bench.config.adapters
    with bench.simulation() as simulation:
        plain = check(bench, simulation, reference, bench.words(0))
        for round_ in range(3):
            for slot in range(slots):
                adapter = bench.adapter(10 * round_ + slot, (1.0, 40.0, 1e-3)[round_])
                assert load(simulation, bench.image(adapter), slot) == LOADED
                reference.adapters[slot] = adapter
                assert simulation.read(SLOTS) == slots | sum(1 << s for s in reference.adapters) << 16
            for slot in (0, None, slots - 1):
                adapted = check(bench, simulation, reference, [selection(slot), *bench.words(0)])
                assert (adapted == plain) == (slot is None) or round_ == 2
        # no first: the sequence goes on with what it began with, whatever is selected
        check(
            bench,
            simulation,
            reference,
            [selection(0), *bench.words(1, 3), selection(None), command(1, want=True, top=2)],
        )
        check(bench, simulation, reference, bench.words(2, 2))


@pytest.mark.parametrize("name", CASES)
def test_stalls_and_background_loads(adapter_benches, name):
    """Words and results that wait, and a load while tokens are under way, change nothing."""
    bench = adapter_benches(name)
    reference = ReferenceDevice(bench.model)
    first, second = bench.adapter(1), bench.adapter(2)
    with bench.simulation() as simulation:
        assert load(simulation, bench.image(first)) == LOADED
        reference.adapters[0] = first
        simulation.stalls(5, command=200, result=200)
        check(bench, simulation, reference, [selection(0), *bench.words(3)])
        simulation.stalls(5, command=0, result=0)
        words = [selection(0), *bench.words(4)]
        expected = reference.run(words)
        simulation.send(np.array(words, np.uint32), [0] * (len(words) - 1) + [1])
        assert (
            load(simulation, bench.image(second)) == LOADED
        )  # into the spare; each access takes cycles, so that tokens go on
        found = np.concatenate([simulation.run(1, STUCK)[0] for _ in range(sum(map(len, expected)))]).tolist()
        assert found == [word for packet in expected for word in packet]
        reference.adapters[0] = second
        check(bench, simulation, reference, bench.words(4))


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_cycles_equal_the_closed_form(adapter_benches, name, adapted):
    bench = adapter_benches(name)
    phases = bench.manifest["phases"]
    with bench.simulation() as simulation:
        assert load(simulation, bench.image(bench.adapter(1))) == LOADED
        answer(simulation, [selection(0 if adapted else None), *bench.words(0, 1)], 1)
        simulation.write(0x18, 1)
        words = [word & ~(1 << 31) for word in bench.words(0)[1:]]
        answer(simulation, [word & ~(31 << 24) for word in words], len(words))
        found = {phase: simulation.read(0x40 + 4 * i) for i, phase in enumerate(phases)}
    program = layer_program(bench.model)
    closed = [
        token_cycles(bench.model, position, program=program, adapter=adapted)
        for position in range(1, bench.config.context)
    ]
    assert found == {phase: sum(cycles.phases[phase] for cycles in closed) for phase in phases}


def test_only_a_whole_image_changes_anything(adapter_benches):
    bench = adapter_benches("ternary")
    good, other = bench.image(bench.adapter(1)), bench.image(bench.adapter(2))
    flipped, foreign = other.copy(), other.copy()
    flipped[40] ^= 1 << 9
    foreign[0] ^= 1
    with bench.simulation() as simulation:
        assert load(simulation, good, 1) == LOADED
        words = [selection(1), *bench.words(5)]
        expected = answer(simulation, words, len(words) - 1)
        refused = (
            (flipped, 1, image_crc(other), DAMAGED),
            (other, 1, image_crc(other) ^ 1, DAMAGED),
            (foreign, 1, None, OTHER_DEVICE),
            (other[:-1], 1, None, INCOMPLETE),
            (other[:1], 1, None, INCOMPLETE),
            (other[:0], 1, None, INCOMPLETE),
            (np.append(other, other[-1:]), 1, None, TOO_LONG),
            (other, 3, None, NO_SUCH_SLOT),
            (other, 2**32 - 1, None, NO_SUCH_SLOT),
        )
        for image, slot, crc, outcome in refused:
            assert load(simulation, image, slot, crc) == outcome
            assert simulation.read(SLOTS) == 3 | 1 << 17
            assert answer(simulation, words, len(words) - 1) == expected
        # a load that is left in the middle, and one that begins anew
        simulation.write(BEGIN, 1)
        for word in other[:50].tolist():
            simulation.write(DATA, word)
        assert simulation.read(STATUS) & 15 == LOADING
        assert answer(simulation, words, len(words) - 1) == expected
        assert load(simulation, other, 1) == LOADED
        assert answer(simulation, words, len(words) - 1) != expected
        # words without a load are forgotten
        simulation.write(DATA, 5)
        simulation.write(COMMIT, 7)
        assert simulation.read(STATUS) & 15 == LOADED


def test_a_sequence_without_its_adapter_is_refused(adapter_benches):
    bench = adapter_benches("ternary")
    full, none = [0xFFFF], [0xFFFF | 2 << 16]
    with bench.simulation() as simulation:
        for slot in (0, 3, 200):
            assert answer(simulation, [selection(slot), *bench.words(1, 2)], 2) == [full, full]
        assert simulation.read(STATUS) == 0x100 and not simulation.read(DEVICE) & 2
        simulation.write(STATUS, 0x100)
        assert simulation.read(STATUS) == 0
        plain = answer(simulation, [selection(None), *bench.words(1, 2)], 2)
        assert [packet[0] >> 16 for packet in plain] == [0, 1]
        # the memory of a sequence is overwritten: it ends
        image = bench.image(bench.adapter(1))
        for _ in range(2):
            assert load(simulation, image) == LOADED
        adapted = answer(simulation, [selection(0), *bench.words(1, 2)], 2)
        assert adapted != plain
        assert (
            load(simulation, image) == LOADED and simulation.read(STATUS) == LOADED
        )  # the sequence keeps what is now the spare
        simulation.write(BEGIN, 2)
        assert simulation.read(STATUS) == LOADING
        assert answer(simulation, [command(1, want=True, top=3), command(1, want=True)], 2) == [none, none]
        assert simulation.read(STATUS) == 0x100 | LOADING
        assert answer(simulation, bench.words(1, 2), 2) == adapted


def test_memory_of_a_token_under_way_is_not_overwritten(adapter_benches):
    bench = adapter_benches("ternary")
    image = bench.image(bench.adapter(1))
    with bench.simulation() as simulation:
        assert load(simulation, image) == LOADED
        words = [selection(0), *bench.words(1)]
        expected = answer(simulation, words, len(words) - 1)
        answer(simulation, words[:4], 3)
        assert load(simulation, image) == LOADED
        simulation.send(np.array(words[4:], np.uint32), [0] * (len(words) - 5) + [1])
        simulation.run(0, 50)
        assert load(simulation, image) == IN_USE
        total = sum(map(len, expected[3:]))
        assert np.concatenate([simulation.run(1, STUCK)[0] for _ in range(total)]).tolist() == sum(expected[3:], [])


ADVERSARIAL = {
    "largest factors": lambda rng, f: dataclasses.replace(
        f, a=np.full_like(f.a, abs(f.a).max()), b=np.full_like(f.b, abs(f.b).max())
    ),
    "opposite rows": lambda rng, f: dataclasses.replace(f, b=f.b * (-1) ** np.arange(len(f.b), dtype=np.int8)[:, None]),
    "A zero": lambda rng, f: dataclasses.replace(f, a=0 * f.a),
    "one value": lambda rng, f: dataclasses.replace(f, a=f.a * (np.arange(f.a.shape[1]) == 3).astype(np.int8)),
    "any scale": lambda rng, f: dataclasses.replace(
        f, m=int(rng.integers(1 << 15, 1 << 16)), e=int(rng.integers(-60, 20))
    ),
    "scales at the ends": lambda rng, f: dataclasses.replace(f, m=65535, e=int(rng.choice([-512, -1, 0, 511]))),
}


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_adversarial_adapters(adapter_benches, kind):
    for name in CASES:
        bench, rng = adapter_benches(name), np.random.default_rng(6)
        reference = ReferenceDevice(bench.model)
        drawn = bench.adapter(8)
        adapter = QuantisedAdapter(
            matrices={key: ADVERSARIAL[kind](rng, factors) for key, factors in drawn.matrices.items()}
        )
        reference.adapters[0] = adapter
        with bench.simulation() as simulation:
            assert load(simulation, bench.image(adapter)) == LOADED
            check(bench, simulation, reference, [selection(0), *bench.words(9)])


def _changed(key, **changes):
    def change(adapter):
        factors = adapter.matrices[key]
        new = {name: value(getattr(factors, name)) for name, value in changes.items()}
        return QuantisedAdapter(matrices={**adapter.matrices, key: dataclasses.replace(factors, **new)})

    return change


def _flip(index):
    def change(values):
        values = values.copy()
        values.flat[index] = -1 if values.flat[index] > 0 else 1
        return values

    return change


MUTATIONS = {
    "first of A": _changed((0, "q"), a=_flip(0)),
    "last of A": _changed((1, "down"), a=_flip(-1)),
    "first of B": _changed((0, "k"), b=_flip(0)),
    "last of B": _changed((1, "down"), b=_flip(-1)),
    "up's B": _changed((1, "up"), b=_flip(17)),
    "a scale": _changed((0, "v"), e=lambda e: e + 1),
    "the last scale": _changed((1, "down"), e=lambda e: e - 1),
    "two scales": lambda adapter: _changed((0, "gate"), m=lambda _: adapter.matrices[0, "up"].m)(adapter),
}


@pytest.mark.parametrize("kind", MUTATIONS)
def test_mutations_are_seen(adapter_benches, kind):
    bench = adapter_benches("ternary")
    adapter, reference = bench.adapter(11, 4.0), ReferenceDevice(bench.model)
    reference.adapters[0] = adapter
    words = [selection(0), *bench.words(12)]
    expected = reference.run(words)
    with bench.simulation() as simulation:
        assert load(simulation, bench.image(MUTATIONS[kind](adapter))) == LOADED
        assert answer(simulation, words, len(expected)) != expected
