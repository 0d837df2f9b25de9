"""What the tests of adapters in whole decoders share: the cases, their builds, and sending images and command words."""

import contextlib
from pathlib import Path

import numpy as np

from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.quantised import quantise
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.gen.emit.collateral import adapter_layout
from intaglio.gen.emit.decoder import generate
from intaglio.gen.presets.decoder import config_for
from intaglio.host.adapter.files import LowRank, quantise_adapter
from intaglio.host.adapter.image import adapter_image, image_crc
from intaglio.host.protocol import command
from intaglio.sim.verilator.build import build
from intaglio.sim.verilator.library import Simulation

CACHE = Path(__file__).parents[2] / "build" / "test-cache"
STUCK = 60_000
SLOTS, STATUS, BEGIN, DATA, COMMIT, DEVICE = 0x80, 0x84, 0x88, 0x8C, 0x90, 0x10
NONE, LOADING, LOADED, NO_SUCH_SLOT, IN_USE, OTHER_DEVICE, INCOMPLETE, TOO_LONG, DAMAGED = range(9)


def _model(vocab, hidden, intermediate, layers, heads, kv_heads):
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
    }


CASES = {
    "ternary": (
        _model(61, 32, 64, 2, 4, 2),
        {
            "context": 12,
            "lanes": 2,
            "lane_width": 8,
            "vector_width": 4,
            "attention_heads": 1,
            "top_k": 5,
            "rank": 2,
            "adapters": 3,
            "packing": "pairs",
            "dot": "tables",
        },
    ),
    "three trits, some matrices": (
        _model(40, 16, 32, 2, 2, 1) | {"model_type": "llama", "hidden_act": "silu", "tie_word_embeddings": False},
        {
            "context": 9,
            "lanes": 4,
            "lane_width": 16,
            "vector_width": 4,
            "attention_heads": 2,
            "top_k": 31,
            "packing": "5trit",
            "rank": 8,
            "adapters": 1,
            "adapter_trits": 3,
            "adapter_targets": "v,gate",
        },
    ),
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
                factors[layer, name] = (
                    rng.normal(size=(self.config.rank, inputs)).astype(np.float32),
                    (scale * rng.normal(size=(out, self.config.rank))).astype(np.float32),
                )
        return quantise_adapter(LowRank(rank=self.config.rank, scaling=2.0, factors=factors), self.layout)

    def image(self, adapter):
        return adapter_image(adapter, self.layout, self.digest)

    def words(self, seed, count=None):
        """A sequence of random tokens, all candidates wanted."""
        rng = np.random.default_rng(seed)
        tokens = rng.integers(self.config.vocab, size=count or self.config.context).tolist()
        return [command(token, first=i == 0, want=True, top=self.config.top_k) for i, token in enumerate(tokens)]


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
