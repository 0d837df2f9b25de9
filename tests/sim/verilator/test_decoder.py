"""Bulk equality: the Verilog of whole decoders against the exact model, every word of every result packet."""

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.reader import Ternary
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.emit.decoder import generate
from intaglio.gen.emit.images import images
from intaglio.gen.emit.program import layer_program
from intaglio.gen.presets.decoder import config_for
from intaglio.host.protocol import command
from intaglio.rtl.control.program import WORD_BITS, Op
from intaglio.rtl.memory.ram import RAM_VERILOG
from intaglio.rtl.memory.rom import hex_text, words_to_bytes
from intaglio.sim.reference.device import ReferenceDevice
from intaglio.sim.verilator.build import build
from intaglio.sim.verilator.library import Simulation

pytestmark = pytest.mark.verilator

CACHE = Path(__file__).parents[3] / "build" / "test-cache"
STUCK = 60_000  # cycles without a result word after which a token counts as stuck


@dataclass(frozen=True, kw_only=True)
class Case:
    """One build: a shape, and the largest element of the embedding, which sets a static shift."""

    model: dict
    widths: dict
    embed: float = 3.0


def _model(vocab, hidden, intermediate, layers, heads, kv_heads, **more):
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        **more,
    }


def _widths(context, lanes, lane_width, vector_width, attention_heads, top_k, packing="2bit", dot="planes"):
    return {
        "context": context,
        "lanes": lanes,
        "lane_width": lane_width,
        "vector_width": vector_width,
        "attention_heads": attention_heads,
        "top_k": top_k,
        "packing": packing,
        "dot": dot,
    }


CASES = {
    "two kv heads": Case(model=_model(61, 32, 64, 2, 4, 2), widths=_widths(12, 2, 8, 4, 1, 5)),
    "whole group": Case(
        model=_model(100, 32, 32, 1, 4, 1), widths=_widths(33, 4, 16, 8, 4, 31, "5trit", "adders"), embed=100.0
    ),
    "narrow": Case(model=_model(37, 16, 48, 3, 4, 2), widths=_widths(7, 2, 4, 2, 2, 3, "5trit"), embed=0.01),
    "one chunk": Case(
        model=_model(256, 32, 32, 2, 2, 1, rope_theta=100.0),
        widths=_widths(20, 4, 32, 8, 1, 16, "pairs", "tables"),
        embed=1e-4,
    ),
    "smallest": Case(model=_model(4, 16, 16, 1, 2, 2), widths=_widths(2, 8, 16, 8, 1, 1)),
}


class Bench:
    """The build of a case, and simulations of it with any model's ROM images."""

    def __init__(self, case, folder):
        self.case, self.folder = case, folder
        self.top = generate(self.scaled(self.checkpoint(0)), "small", folder / "generated", **case.widths)["top"]
        self.library = build(folder / "generated", cache=CACHE, rom="rom")
        self.used = 0

    def checkpoint(self, seed, **changes):
        return random_checkpoint(ModelConfig(**{**self.case.model, **changes}), seed)

    def scaled(self, checkpoint):
        """The checkpoint with its embedding brought to the case's range."""
        embed = checkpoint.embed * np.float32(self.case.embed / np.abs(checkpoint.embed).max())
        return dataclasses.replace(checkpoint, embed=embed.astype(np.float32))

    def quantised(self, checkpoint):
        """The integers of a checkpoint for this build."""
        checkpoint = self.scaled(checkpoint)
        return quantise(checkpoint, config_for(checkpoint.config, "small", **self.case.widths))

    def simulation(self, roms):
        """A simulation that holds the images ``roms``."""
        self.used += 1
        folder = self.folder / f"model_{self.used}"
        (folder / "rom").mkdir(parents=True)
        for name, image in roms.items():
            (folder / "rom" / f"{self.top}_{name}.hex").write_bytes(hex_text(image))
        with contextlib.chdir(folder):
            return Simulation(self.library)


@pytest.fixture(scope="module")
def benches(tmp_path_factory):
    made = {}

    def bench(name):
        if name not in made:
            made[name] = Bench(CASES[name], tmp_path_factory.mktemp("decoder"))
        return made[name]

    return bench


def answer(simulation, words, expected):
    """Packets for the command words; as many words as ``expected`` has are awaited, then idleness."""
    simulation.send(np.array(words, np.uint32), [0] * (len(words) - 1) + [1])
    found, packet = [], []
    for _ in range(sum(map(len, expected))):
        word, last = simulation.run(1, STUCK)
        if not len(word):
            return [*found, packet, "stuck"]
        packet.append(int(word[0]))
        if last[0]:
            found.append(packet)
            packet = []
    idle = 0
    while idle < 3:
        word, _ = simulation.run(1, 500)
        if len(word):
            return [*found, "a word too many"]
        idle = idle + 1 if not simulation.pending and not simulation.read(0x10) & 1 else 0
    return found if not packet else [*found, packet]


def every_token(rng, config, count=None):
    """A whole context of random tokens, the answer to each with all candidates, and two tokens too many."""
    tokens = rng.integers(config.vocab, size=config.context + 2 if count is None else count).tolist()
    return [command(token, first=i == 0, want=i != config.context, top=config.top_k) for i, token in enumerate(tokens)]


def mixed(rng, config):
    """Sequences that end early, prompts without answers, bursts, few and too many candidates, a burst into a full context."""
    words = []
    for _ in range(3):
        for i in range(rng.integers(1, config.context)):
            words.append(
                command(
                    int(rng.integers(config.vocab)),
                    first=i == 0,
                    want=bool(rng.random() < 0.4),
                    top=int(rng.integers(32)),
                    run=int(rng.integers(1, 4)) if rng.random() < 0.2 else 0,
                )
            )
    return [
        *words,
        command(int(rng.integers(config.vocab)), first=True),
        command(1, want=True, top=2, run=255),
        command(2, want=True),
    ]


def check(bench, model, words, simulation=None):
    reference = ReferenceDevice(model).run(words)
    with simulation or bench.simulation(images(model)) as simulation:
        assert answer(simulation, words, reference) == reference


@pytest.mark.parametrize("name", CASES)
def test_equals_the_exact_model(benches, name):
    bench = benches(name)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        model = bench.quantised(bench.checkpoint(seed))
        reference, config = ReferenceDevice(model), model.config
        with bench.simulation(images(model)) as simulation:
            for words in (every_token(rng, config), mixed(rng, config), every_token(rng, config, config.context)):
                expected = reference.run(words)
                assert answer(simulation, words, expected) == expected
            assert simulation.read(0x30) > config.context and simulation.read(0x10) == 2
            simulation.stalls(seed + 1, command=200, result=200)
            words = mixed(rng, config)
            expected = reference.run(words)
            assert answer(simulation, words, expected) == expected
            assert len({packet[0] & 0xFFFF for packet in expected}) > 1


@pytest.mark.parametrize("name", ["two kv heads", "smallest"])
def test_no_read_depends_on_a_write_in_its_cycle(name, tmp_path, monkeypatch):
    """``intaglio_ram`` promises nothing about such a read: here it gives the complement."""
    plain, wrong = (
        "read_data <= mem[read_addr]",
        "read_data <= mem[read_addr] ^ {WIDTH{write_en && write_addr == read_addr}}",
    )
    assert RAM_VERILOG.count(plain) == 2  # of small and of large memories
    monkeypatch.setattr("intaglio.gen.emit.decoder.RAM_VERILOG", RAM_VERILOG.replace(plain, wrong))
    bench = Bench(CASES[name], tmp_path)
    rng = np.random.default_rng(0)
    model = bench.quantised(bench.checkpoint(0))
    check(bench, model, every_token(rng, model.config))
    check(bench, model, mixed(rng, model.config))


def test_a_burst_equals_single_steps(benches):
    bench = benches("two kv heads")
    model = bench.quantised(bench.checkpoint(5))
    count = model.config.context - 1
    with bench.simulation(images(model)) as simulation:
        prompt = [command(7, first=True)]
        burst = answer(simulation, [*prompt, command(9, want=True, run=count - 1, top=2)], [[0] * 6] * count)
        steps, token = [], 9
        for _ in range(count):
            steps += answer(simulation, [*prompt, command(token, want=True, top=2)], [[0] * 6])
            prompt, token = [], steps[-1][0] & 0xFFFF
    assert burst == steps and len(steps) == count


def _layers(checkpoint, matrices=None, norms=None):
    """The checkpoint with functions of ``(name, part)`` applied to every layer's parts."""
    layers = tuple(
        dataclasses.replace(
            layer,
            matrices={n: matrices(n, m) if matrices else m for n, m in layer.matrices.items()},
            norms={n: np.float32(norms(n, g)) if norms else g for n, g in layer.norms.items()},
        )
        for layer in checkpoint.layers
    )
    return dataclasses.replace(checkpoint, layers=layers)


def _fill(value, names=None):
    def change(name, matrix):
        if names and name not in names:
            return matrix
        return Ternary(weights=np.full_like(matrix.weights, value), scale=matrix.scale)

    return lambda checkpoint: _layers(checkpoint, change)


def _scaled(**factors):
    return lambda checkpoint: _layers(
        checkpoint,
        lambda name, m: Ternary(weights=m.weights, scale=m.scale * factors.get(name, factors.get("every", 1.0))),
    )


def _final(change):
    return lambda checkpoint: dataclasses.replace(checkpoint, final_norm=np.float32(change(checkpoint.final_norm)))


def _gains(change):
    return lambda checkpoint: _final(change)(_layers(checkpoint, norms=lambda _, gains: change(gains)))


def _embed(change):
    return lambda checkpoint: dataclasses.replace(checkpoint, embed=np.float32(change(checkpoint.embed.copy())))


def _one_row(embed):
    embed *= 2.0**-10
    embed[3] *= 2.0**10
    return embed


def _zero_row(embed):
    embed[0] = 0
    embed[:, 0] = 0
    return embed


ADVERSARIAL = {
    "all weights 0": _fill(0),
    "all weights 1": _fill(1),
    "all weights -1": _fill(-1),
    "values 0": _fill(0, ("v",)),
    "keys 0": _fill(0, ("k",)),
    "queries and keys 1": _fill(1, ("q", "k")),
    "no gate": _fill(0, ("gate",)),
    "gate 1": _fill(1, ("gate", "up")),
    "gains 0": _gains(lambda gains: 0 * gains),
    "gains negative": _gains(lambda gains: -gains),
    "gains one-hot": _gains(lambda gains: np.where(np.arange(len(gains)) == 5, 1, 1e-9)),
    "gains spread": _gains(lambda gains: gains * 2.0 ** -np.arange(len(gains))),
    "final gains 0": _final(lambda gains: 0 * gains),
    "final gains huge": _final(lambda gains: gains * 2.0**60),
    "scales huge": _scaled(every=2.0**24),
    "scales tiny": _scaled(every=2.0**-24),
    "output overflows": _scaled(down=2.0**40, o=2.0**40),
    "scores sharp": _scaled(q=2.0**12, k=2.0**6),
    "scores flat": _scaled(q=2.0**-60),
    "values huge": _scaled(v=2.0**30),
    "values tiny": _scaled(v=2.0**-30),
    "gate tiny": _scaled(gate=2.0**-20, up=2.0**-10),
    "gate huge": _scaled(gate=2.0**20, up=2.0**10),
    "one row of the embedding": _embed(_one_row),
    "zeros in the embedding": _embed(_zero_row),
    "embedding constant": _embed(np.ones_like),
    "rows in pairs": _embed(lambda embed: np.repeat(embed[::2], 2, 0)[: len(embed)]),
    "rows equal": _embed(lambda embed: np.repeat(embed[:1], len(embed), 0)),
    "rows opposite": _embed(
        lambda embed: np.repeat(embed[:1], len(embed), 0) * (-1.0) ** np.arange(len(embed))[:, None]
    ),
}


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_adversarial_models(benches, kind):
    for name in ("two kv heads", "whole group"):
        bench = benches(name)
        model = bench.quantised(ADVERSARIAL[kind](bench.checkpoint(7)))
        check(bench, model, every_token(np.random.default_rng(8), model.config))


@pytest.mark.parametrize("epsilon", [1e-30, 1e-12, 1.0, 1e6])
def test_epsilon(benches, epsilon):
    for name in ("one chunk", "narrow"):
        bench = benches(name)
        model = bench.quantised(bench.checkpoint(9, rms_norm_eps=epsilon))
        check(bench, model, every_token(np.random.default_rng(10), model.config))


def test_ties_give_the_lower_token_first(benches):
    bench = benches("two kv heads")
    model = bench.quantised(ADVERSARIAL["rows equal"](bench.checkpoint(11)))
    words = [command(40, first=True, want=True, top=5)]
    with bench.simulation(images(model)) as simulation:
        (packet,) = answer(simulation, words, [[0] * 12])
    assert packet[0] == 0 and packet[2::2] == [0, 1, 2, 3, 4] and len(set(packet[3::2])) == 1


def _flip(name, word, byte, bits):
    def mutate(roms):
        image = roms[name].copy()
        image[word, byte] ^= bits
        return {**roms, name: image}

    return mutate


# One bit of one word of one image.
FLIPPED = {
    "a weight": ("weights_0", 5, 0, 0b01),
    "the last weight": ("weights_1", -1, -1, 0b01000000),
    "a gain": ("gains", 1, 1, 0x10),
    "the last gain": ("gains", -1, -1, 0x10),
    "an element of the embedding": ("embedding", 40, 3, 0x08),
    "a rotary phase": ("rotary", 1, 3, 0x10),
}
# A field of the n-th word of an operation, one more.
CHANGED = {
    "exponent of the queries": (Op.MULI, 0, "e"),
    "exponent of the keys": (Op.MULI, 1, "e"),
    "mantissa of down": (Op.MULI, -2, "m"),
    "unit of a logit": (Op.MULI, -1, "e"),
    "a gain's address": (Op.NORM8, 1, "m"),
    "head of a value's scale": (Op.STV, 0, "m"),
    "scale of the embedding": (Op.EMBED, 0, "m"),
}


def _mutated(model, kind):
    roms = images(model)
    if kind in FLIPPED:
        name, word, byte, bits = FLIPPED[kind]
        roms[name] = roms[name].copy()
        roms[name][word, byte] ^= bits
        return roms
    op, index, field = CHANGED[kind]
    program = layer_program(model)
    index = [i for i, instruction in enumerate(program) if instruction.op is op][index]
    program[index] = dataclasses.replace(program[index], **{field: getattr(program[index], field) + 1})
    return {**roms, "program": words_to_bytes([instruction.encode() for instruction in program], WORD_BITS)}


@pytest.mark.parametrize("kind", [*FLIPPED, *CHANGED])
def test_mutations_are_seen(benches, kind):
    bench = benches("two kv heads")
    model = bench.quantised(bench.checkpoint(12))
    words = every_token(np.random.default_rng(13), model.config)
    expected = ReferenceDevice(model).run(words)
    with bench.simulation(_mutated(model, kind)) as simulation:
        assert answer(simulation, words, expected) != expected
