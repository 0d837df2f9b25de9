"""A device of several sequences whose next token depends on the whole of its sequence: the reference device with a hash for a model."""

import zlib
from types import SimpleNamespace

import numpy as np

from intaglio.sim.reference.device import ReferenceDevice
from tests.double.design import OFFSETS, describe

GROUP_CYCLES, TOKEN_CYCLES = 100, 10


class HistoryDecoder:
    """Logits from a hash of all tokens so far."""

    def __init__(self, model):
        self.model, self.history = model, []

    def another(self):
        return HistoryDecoder(self.model)

    @property
    def position(self):
        return len(self.history)

    def reset(self):
        self.history = []

    def step(self, tokens, logits=True):
        self.history = [*self.history, *tokens]
        self.model.tokens += len(tokens)
        if not logits:
            return None
        random = np.random.default_rng(zlib.crc32(np.array(self.history, np.uint32).tobytes()))
        return random.integers(-1000, 1000, (1, self.model.config.vocab)), [2.0**-8]


def model(*, batch, sequences, vocab=40, context=48, top_k=8):
    return SimpleNamespace(
        config=SimpleNamespace(
            vocab=vocab, context=context, top_k=top_k, token_bits=16, rank=0, batch=batch, sequences=sequences
        ),
        tokens=0,
    )


class HistoryDevice(ReferenceDevice):
    def __init__(self, model):
        super().__init__(model, HistoryDecoder)
        self.rounds = 0  # groups computed

    def _run(self, group, run):
        packets = super()._run(group, run)
        self.rounds += run + 1
        return packets


class HistoryTransport:
    """The device, or another ReferenceDevice, behind the host's transport; ``commands`` has every word that it was sent."""

    watch = None

    def __init__(self, *, batch, sequences, eos=None, bos=None, tokenizer="none", device=None, **shape):
        self.model = model(batch=batch, sequences=sequences, **shape)
        self.device, c = device or HistoryDevice(self.model), self.model.config
        self.manifest = describe(
            vocab_size=c.vocab, context=c.context, top_k=c.top_k, batch=batch, sequences=sequences, eos=eos, bos=bos
        )
        self.manifest["model"]["tokenizer"] = tokenizer
        self.registers = {"magic": 0x494E5447, "version": 1, "digest": int(self.manifest["digest"][:8], 16)}
        self.commands, self.packets, self.pending, self.cycles, self.closed = [], [], 0, None, False

    def send(self, words, last, timeout):
        self.commands += words.tolist()
        self.packets += self.device.run(words.tolist())
        if self.watch:
            self.watch()
        return len(words)

    def receive(self, capacity, timeout):
        packet = self.packets.pop(0) if self.packets else []
        if len(packet) > capacity:
            self.packets.insert(0, packet[capacity:])
        words = np.array(packet[:capacity], np.uint32)
        return words, np.arange(len(words)) == len(packet) - 1

    def read_register(self, offset):
        name = next(name for name, at in OFFSETS.items() if at == offset)
        cycles = getattr(self.device, "rounds", 0) * GROUP_CYCLES + self.model.tokens * TOKEN_CYCLES
        counters = {"cycles_lo": cycles, "phase_busy": cycles, "tokens": self.model.tokens}
        return counters[name] if name in counters else self.registers.get(name, 0)

    def write_register(self, offset, value):
        if offset == OFFSETS["control"]:
            self.device.rounds = self.model.tokens = 0

    def reset(self):
        self.device.reset()
        self.packets.clear()

    def close(self):
        self.closed = True
