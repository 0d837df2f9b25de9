"""Adapters in whole decoders: generated Verilog against the exact model, every word; loading, switching, and what must not change."""

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from intaglio.cli import main
from intaglio.gen.collateral import adapter_layout
from intaglio.gen.cycles import token_cycles
from intaglio.gen.decoder import generate
from intaglio.gen.model import ModelConfig
from intaglio.gen.presets import config_for
from intaglio.gen.program import layer_program
from intaglio.gen.quantised import quantise
from intaglio.gen.synthetic import random_checkpoint
from intaglio.host import AdapterError, DeviceError
from intaglio.host import open as open_device
from intaglio.host.adapter import LowRank, QuantisedAdapter, quantise_adapter, read_adapter
from intaglio.host.adapter_image import adapter_image, image_crc
from intaglio.host.protocol import command, selection
from intaglio.host.transport import register
from intaglio.sim.exact import ExactDecoder
from intaglio.sim.library import Simulation
from intaglio.sim.reference import ReferenceDevice
from intaglio.sim.train_adapter import save_adapter
from intaglio.sim.transport import SimulationTransport
from intaglio.sim.verilator import build

pytestmark = pytest.mark.verilator

CACHE = Path(__file__).parents[2] / "build" / "test-cache"
STUCK = 60_000
SLOTS, STATUS, BEGIN, DATA, COMMIT, DEVICE = 0x80, 0x84, 0x88, 0x8C, 0x90, 0x10
NONE, LOADING, LOADED, NO_SUCH_SLOT, IN_USE, OTHER_DEVICE, INCOMPLETE, TOO_LONG, DAMAGED = range(9)


def _model(vocab, hidden, intermediate, layers, heads, kv_heads):
    return {"vocab_size": vocab, "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": hidden // heads}


CASES = {
    "ternary": (_model(61, 32, 64, 2, 4, 2), {
        "context": 12, "lanes": 2, "lane_width": 8, "vector_width": 4, "attention_heads": 1, "top_k": 5, "rank": 2, "adapters": 3}),
    "three trits, some matrices": (_model(40, 16, 32, 2, 2, 1), {
        "context": 9, "lanes": 4, "lane_width": 16, "vector_width": 4, "attention_heads": 2, "top_k": 31, "packing": "5trit", "rank": 8,
        "adapters": 1, "adapter_trits": 3, "adapter_targets": "v,gate"}),
}


class Bench:
    """The build of a case with one model; ``adapter`` draws adapters for it."""

    def __init__(self, case, folder):
        model, widths = CASES[case]
        checkpoint = random_checkpoint(ModelConfig(**model), 3)
        self.manifest = generate(checkpoint, "small", folder / "generated", **widths)
        self.digest = int(self.manifest["digest"][:8], 16)
        self.model = quantise(checkpoint, config_for(checkpoint.config, "small", **widths))
        self.config = self.model.config
        self.layout = adapter_layout(checkpoint, self.config)["adapter"]
        self.library = build(folder / "generated", cache=CACHE, rom="rom")
        self.folder = folder / "generated"

    def simulation(self):
        with contextlib.chdir(self.folder):
            return Simulation(self.library)

    def adapter(self, seed, strength=1.0, zero=()):
        """Random factors whose products are of the order of the base's."""
        rng = np.random.default_rng(seed)
        factors = {}
        for layer in range(self.config.layers):
            for name in (name for names in self.layout["operations"] for name in names):
                out, inputs = self.layout["shapes"][name]
                scale = self.layout["scales"][layer][name] * strength * 0.0 ** (name in zero)
                factors[layer, name] = (rng.normal(size=(self.config.rank, inputs)).astype(np.float32),
                                        (scale * rng.normal(size=(out, self.config.rank))).astype(np.float32))
        return quantise_adapter(LowRank(rank=self.config.rank, scaling=2.0, factors=factors), self.layout)

    def image(self, adapter):
        return adapter_image(adapter, self.layout, self.digest)

    def words(self, seed, count=None):
        """A sequence of random tokens, all candidates wanted."""
        rng = np.random.default_rng(seed)
        tokens = rng.integers(self.config.vocab, size=count or self.config.context).tolist()
        return [command(token, first=i == 0, want=True, top=self.config.top_k) for i, token in enumerate(tokens)]


@pytest.fixture(scope="module")
def benches(tmp_path_factory):
    made = {}

    def bench(name):
        if name not in made:
            made[name] = Bench(name, tmp_path_factory.mktemp("adapter"))
        return made[name]

    return bench


def load(simulation, words, slot=0, crc=None):
    """Send an image; returns the outcome."""
    simulation.write(BEGIN, slot)
    for word in words.tolist():
        simulation.write(DATA, word)
    simulation.write(COMMIT, image_crc(words) if crc is None else crc)
    return simulation.read(STATUS) & 15


def answer(simulation, words, packets):
    """Packets for the command words, ``packets`` of them."""
    simulation.send(np.array(words, np.uint32), [0] * (len(words) - 1) + [1])
    found, packet = [], []
    while len(found) < packets:
        word, last = simulation.run(1, STUCK)
        assert len(word), f"stuck after {len(found)} packets"
        packet.append(int(word[0]))
        if last[0]:
            found.append(packet)
            packet = []
    assert not len(simulation.run(1, 500)[0])
    return found


def check(bench, simulation, reference, words):
    expected = reference.run(words)
    assert answer(simulation, words, len(expected)) == expected
    return expected


@pytest.mark.parametrize("name", CASES)
def test_equals_the_exact_model(benches, name):
    """Adapters in every slot, switched from sequence to sequence, with and without; strong and weak ones."""
    bench = benches(name)
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
        check(bench, simulation, reference, [selection(0), *bench.words(1, 3), selection(None), command(1, want=True, top=2)])
        check(bench, simulation, reference, bench.words(2, 2))


@pytest.mark.parametrize("name", CASES)
def test_stalls_and_background_loads(benches, name):
    """Words and results that wait, and a load while tokens are under way, change nothing."""
    bench = benches(name)
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
        assert load(simulation, bench.image(second)) == LOADED  # into the spare; each access takes cycles, so that tokens go on
        found = np.concatenate([simulation.run(1, STUCK)[0] for _ in range(sum(map(len, expected)))]).tolist()
        assert found == [word for packet in expected for word in packet]
        reference.adapters[0] = second
        check(bench, simulation, reference, bench.words(4))


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_cycles_equal_the_closed_form(benches, name, adapted):
    bench = benches(name)
    phases = bench.manifest["phases"]
    with bench.simulation() as simulation:
        assert load(simulation, bench.image(bench.adapter(1))) == LOADED
        answer(simulation, [selection(0 if adapted else None), *bench.words(0, 1)], 1)
        simulation.write(0x18, 1)
        words = [word & ~(1 << 31) for word in bench.words(0)[1:]]
        answer(simulation, [word & ~(31 << 24) for word in words], len(words))
        found = {phase: simulation.read(0x40 + 4 * i) for i, phase in enumerate(phases)}
    program = layer_program(bench.model)
    closed = [token_cycles(bench.model, position, program=program, adapter=adapted) for position in range(1, bench.config.context)]
    assert found == {phase: sum(cycles.phases[phase] for cycles in closed) for phase in phases}


def test_only_a_whole_image_changes_anything(benches):
    bench = benches("ternary")
    good, other = bench.image(bench.adapter(1)), bench.image(bench.adapter(2))
    flipped, foreign = other.copy(), other.copy()
    flipped[40] ^= 1 << 9
    foreign[0] ^= 1
    with bench.simulation() as simulation:
        assert load(simulation, good, 1) == LOADED
        words = [selection(1), *bench.words(5)]
        expected = answer(simulation, words, len(words) - 1)
        refused = ((flipped, 1, image_crc(other), DAMAGED), (other, 1, image_crc(other) ^ 1, DAMAGED), (foreign, 1, None, OTHER_DEVICE),
                   (other[:-1], 1, None, INCOMPLETE), (other[:1], 1, None, INCOMPLETE), (other[:0], 1, None, INCOMPLETE),
                   (np.append(other, other[-1:]), 1, None, TOO_LONG), (other, 3, None, NO_SUCH_SLOT),
                   (other, 2**32 - 1, None, NO_SUCH_SLOT))
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


def test_a_sequence_without_its_adapter_is_refused(benches):
    bench = benches("ternary")
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
        assert load(simulation, image) == LOADED and simulation.read(STATUS) == LOADED  # the sequence keeps what is now the spare
        simulation.write(BEGIN, 2)
        assert simulation.read(STATUS) == LOADING
        assert answer(simulation, [command(1, want=True, top=3), command(1, want=True)], 2) == [none, none]
        assert simulation.read(STATUS) == 0x100 | LOADING
        assert answer(simulation, bench.words(1, 2), 2) == adapted


def test_memory_of_a_token_under_way_is_not_overwritten(benches):
    bench = benches("ternary")
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
    "largest factors": lambda rng, f: dataclasses.replace(f, a=np.full_like(f.a, abs(f.a).max()), b=np.full_like(f.b, abs(f.b).max())),
    "opposite rows": lambda rng, f: dataclasses.replace(f, b=f.b * (-1) ** np.arange(len(f.b), dtype=np.int8)[:, None]),
    "A zero": lambda rng, f: dataclasses.replace(f, a=0 * f.a),
    "one value": lambda rng, f: dataclasses.replace(f, a=f.a * (np.arange(f.a.shape[1]) == 3).astype(np.int8)),
    "any scale": lambda rng, f: dataclasses.replace(f, m=int(rng.integers(1 << 15, 1 << 16)), e=int(rng.integers(-60, 20))),
    "scales at the ends": lambda rng, f: dataclasses.replace(f, m=65535, e=int(rng.choice([-512, -1, 0, 511]))),
}


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_adversarial_adapters(benches, kind):
    for name in CASES:
        bench, rng = benches(name), np.random.default_rng(6)
        reference = ReferenceDevice(bench.model)
        drawn = bench.adapter(8)
        adapter = QuantisedAdapter(matrices={key: ADVERSARIAL[kind](rng, factors) for key, factors in drawn.matrices.items()})
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
    "first of A": _changed((0, "q"), a=_flip(0)), "last of A": _changed((1, "down"), a=_flip(-1)),
    "first of B": _changed((0, "k"), b=_flip(0)), "last of B": _changed((1, "down"), b=_flip(-1)),
    "up's B": _changed((1, "up"), b=_flip(17)),
    "a scale": _changed((0, "v"), e=lambda e: e + 1), "the last scale": _changed((1, "down"), e=lambda e: e - 1),
    "two scales": lambda adapter: _changed((0, "gate"), m=lambda _: adapter.matrices[0, "up"].m)(adapter),
}


@pytest.mark.parametrize("kind", MUTATIONS)
def test_mutations_are_seen(benches, kind):
    bench = benches("ternary")
    adapter, reference = bench.adapter(11, 4.0), ReferenceDevice(bench.model)
    reference.adapters[0] = adapter
    words = [selection(0), *bench.words(12)]
    expected = reference.run(words)
    with bench.simulation() as simulation:
        assert load(simulation, bench.image(MUTATIONS[kind](adapter))) == LOADED
        assert answer(simulation, words, len(expected)) != expected


@pytest.fixture(scope="module")
def folders(benches, tmp_path_factory):
    """PEFT's files of four adapters for the bench "ternary", of some of its matrices."""
    bench, out = benches("ternary"), []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        factors = {(layer, name): (rng.normal(size=(2, bench.layout["shapes"][name][1])),
                                   0.3 * rng.normal(size=(bench.layout["shapes"][name][0], 2)))
                   for layer in range(2) for name in ("q", "v", "up", "down")}
        out.append(tmp_path_factory.mktemp("peft"))
        save_adapter(out[-1], factors, base="random", digest=bench.layout["base"], alpha=4, rank=2, dtype="F32")
    return out


@pytest.fixture(scope="module")
def target(benches):
    """The bench "ternary" as a target of the host, built once for all tests."""
    bench = benches("ternary")
    register("bench", lambda rest, *, manifest, progress: SimulationTransport(bench.simulation(), json.loads(json.dumps(bench.manifest))))
    yield "bench:ternary"
    register("bench", None)


def test_device_api(benches, folders, target):
    bench, prompt = benches("ternary"), [0, 49, 50, 51]
    model = ExactDecoder(bench.model)
    expected = {None: model.generate(prompt, 6)}
    for i, folder in enumerate(folders):
        model.adapt(quantise_adapter(read_adapter(folder, bench.layout), bench.layout))
        expected[i] = model.generate(prompt, 6)
    assert len({tuple(tokens) for tokens in expected.values()}) > 3
    with open_device(target) as device:
        assert device.adapters == []
        with pytest.raises(AdapterError, match=r"a slot that holds one \(none does\), not 0"):
            device.evaluate(prompt, adapter=0)
        assert [device.load_adapter(folder) for folder in folders[:3]] == [0, 1, 2] and device.adapters == [0, 1, 2]
        for use in (0, None, 2, 1, None):
            assert list(device.generate_tokens(prompt, 6, adapter=use)) == expected[use]
            assert device.evaluate(prompt, adapter=use)[-1].token == expected[use][0]
        with pytest.raises(AdapterError, match="memory for 3 adapters, which are all loaded: name the slot to replace"):
            device.load_adapter(folders[3])
        for slot in (3, -1, True, "1"):
            with pytest.raises(AdapterError, match=r"slot must be in 0\.\.2"):
                device.load_adapter(folders[3], slot=slot)
        damaged = bytearray((folders[3] / "adapter_model.safetensors").read_bytes())
        damaged[-3] ^= 4
        bad = folders[3].parent / "damaged"
        bad.mkdir()
        (bad / "adapter_model.safetensors").write_bytes(damaged)
        (bad / "adapter_config.json").write_bytes((folders[3] / "adapter_config.json").read_bytes())
        with pytest.raises(AdapterError, match="it is damaged"):
            device.load_adapter(bad, slot=1)
        # words damaged on the way
        write, count = device.transport.write_register, iter(range(10**6))
        device.transport.write_register = lambda offset, value: write(offset, value ^ (offset == DATA and next(count) == 99))
        with pytest.raises(DeviceError, match="nothing has changed: the CRC-32 differs"):
            device.load_adapter(folders[3], slot=1)
        device.transport.write_register = write
        assert list(device.generate_tokens(prompt, 6, adapter=1)) == expected[1]
        assert device.load_adapter(folders[3], slot=1) == 1
        assert list(device.generate_tokens(prompt, 6, adapter=1)) == expected[3]
        device.submit([selection(0), command(1, first=True, want=True)])
        device.receive()
        device.reset()
        assert device.adapters == []
        device.submit([selection(2), command(1, first=True, want=True)])
        with pytest.raises(DeviceError, match="the slot that was selected for its sequence holds no adapter"):
            device.receive()


def test_command(target, folders, capsysbinary):
    base = ["run", "--device", target, "--prompt", "123", "--max-tokens", "5"]
    adapters = [f"--adapter={folder}" for folder in folders[:2]]
    texts = []
    for arguments in ([], adapters[:1], adapters, [*adapters, "--use", "2"], [*adapters, "--use", "0"]):
        assert main([*base, *arguments]) == 0
        texts.append(capsysbinary.readouterr().out)
    assert texts[0] == texts[4] and texts[1] == texts[2] != texts[0] and texts[3] not in (texts[0], texts[1])
    for arguments, text in (([*adapters, "--use", "3"], b"--use must be in 0..2"), (["--use", "1"], b"--use must be in 0..0"),
                            (["--adapter", str(folders[0].parent)], b"adapter_config.json must be a readable JSON file"),
                            ([f"--adapter={folder}" for folder in folders], b"memory for 3 adapters")):
        assert main([*base, *arguments]) == 2
        error = capsysbinary.readouterr().err
        assert text in error and b"Traceback" not in error
