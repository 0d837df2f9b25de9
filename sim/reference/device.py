"""The exact model behind the device's protocol: command words in, the words of the result packets out."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from intaglio.gen.checkpoint.quantised import QuantisedModel
from intaglio.sim.reference.exact_decoder import ExactDecoder

__all__ = ["ReferenceDevice"]


@dataclass
class _Slot:
    """A token of a group, and what becomes of it in a run."""

    sequence: int
    token: int
    first: bool
    want: bool
    top: int


class ReferenceDevice:
    """What a generated device must answer, word for word.

    Parameters
    ----------
    model : intaglio.gen.checkpoint.quantised.QuantisedModel
    decoder : callable
        Makes the decoder of ``model``, from which those of the other sequences are made by its method ``another``.
    """

    def __init__(self, model: QuantisedModel, decoder: Callable[[QuantisedModel], Any] = ExactDecoder) -> None:
        c = model.config
        self.top_k, self.context, self.token_bits, self.batch = c.top_k, c.context, c.token_bits, c.batch
        self.decoders = [decoder(model)]  # by sequence
        self.decoders += [self.decoders[0].another() for _ in range(c.sequences - 1)]
        self.grouped = c.batch > 1 or c.sequences > 1
        self.has_adapters = c.rank > 0
        self.adapters = {}  # by slot, as of intaglio.sim.reference.exact_decoder
        self.reset()

    def reset(self) -> None:
        """As the device's reset: every sequence begins anew, the first is selected, a group under way is forgotten. Adapters stay."""
        for decoder in self.decoders:
            decoder.reset()
        self.selected, self.barred = 0, False
        self.sequence, self.group, self.count, self.groups = (
            0,
            [],
            0,
            0,
        )  # count: tokens of the group under way, 0 outside one

    def run(self, commands: Iterable[int]) -> list[list[int]]:
        """Packets (lists of 32-bit words) that answer the command words, in order; sequences go on from call to call."""
        return [packet for word in commands for packet in self._command(word)]

    def _command(self, word):
        if (self.has_adapters or self.grouped) and word >> 29 & 1:
            self._select(word)
            return []
        run = (word & 0xFFFFFF) >> self.token_bits
        slot = _Slot(
            sequence=self.sequence,
            token=word & self._no_token,
            first=bool(word >> 31 & 1),
            want=bool(word >> 30 & 1 or run and not self.count),
            top=min(word >> 24 & 31, self.top_k),
        )
        if not self.count:
            return self._run([slot], run)
        self.group.append(slot)
        if len(self.group) < self.count:
            return []
        group, self.group, self.count = self.group, [], 0
        return self._run(group, self.groups)

    def _select(self, word):
        kind = word >> 24 & 31
        if self.has_adapters:
            self.selected = word & 0xFF
        elif kind == 1:
            self.sequence = min(word & 0xFF, len(self.decoders) - 1)
        elif kind == 2 and not self.group:
            self.count, self.groups = min((word & 63) + 1, self.batch), word >> 6 & 0x3FFFF

    @property
    def _no_token(self):
        return (1 << self.token_bits) - 1

    def _run(self, group, run):
        """A group, and ``run`` more of those of its slots whose result was wanted."""
        packets = []
        for _ in range(run + 1):
            group = [slot for slot in group if self._token(slot, packets) and slot.want]
        return packets

    def _token(self, slot, packets):
        """Compute a slot's token, which then is the greedy next one; whether there was room for it."""
        decoder = self.decoders[slot.sequence]
        if slot.first:
            slot.first = False
            decoder.reset()
            self.barred = self.selected != 0 and self.selected - 1 not in self.adapters
            if self.has_adapters:
                decoder.adapt(self.adapters.get(self.selected - 1))
        position = decoder.position
        if position == self.context or self.barred:
            if slot.want:
                packets.append([self._no_token | position << self.token_bits])
            return False
        answer = decoder.step([slot.token], logits=slot.want)
        if answer is not None:
            packets.append(self._packet(answer[0][0].tolist(), float(answer[1][0]), position, slot.top))
            slot.token = packets[-1][0] & self._no_token
        return True

    def _packet(self, logits, scale, position, top):
        ranks = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
        words = [ranks[0] | position << self.token_bits]
        if top:
            fraction, exponent = math.frexp(scale)  # a mantissa of 16 bits, and (0, 0) for zero
            words.append(int(fraction * 65536) | ((exponent - 16) & 0xFFFF) << 16 if scale else 0)
        for token in ranks[:top]:
            words += [token, logits[token] & 0xFFFFFFFF]
        return words
