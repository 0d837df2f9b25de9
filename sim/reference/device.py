"""The exact model behind the device's protocol: command words in, the words of the result packets out."""

import math
from collections.abc import Iterable

from intaglio.gen.checkpoint.quantised import QuantisedModel
from intaglio.sim.reference.exact_decoder import ExactDecoder

__all__ = ["ReferenceDevice"]


class ReferenceDevice:
    """What a generated device must answer, word for word.

    Parameters
    ----------
    model : intaglio.gen.checkpoint.quantised.QuantisedModel
    """

    def __init__(self, model: QuantisedModel) -> None:
        self.decoder = ExactDecoder(model)
        self.top_k = model.config.top_k
        self.context = model.config.context
        self.token_bits = model.config.token_bits
        self.has_adapters = model.config.rank > 0
        self.adapters = {}  # by slot, as of intaglio.sim.reference.exact_decoder
        self.selected, self.barred = 0, False

    def run(self, commands: Iterable[int]) -> list[list[int]]:
        """Packets (lists of 32-bit words) that answer the command words, in order; the sequence goes on from call to call."""
        return [packet for word in commands for packet in self._command(word)]

    def _command(self, word):
        if self.has_adapters and word >> 29 & 1:
            self.selected = word & 0xFF
            return []
        no_token = (1 << self.token_bits) - 1
        token, run, top = word & no_token, (word & 0xFFFFFF) >> self.token_bits, min(word >> 24 & 31, self.top_k)
        want = bool(word >> 30 & 1 or run)
        if word >> 31 & 1:
            self.decoder.reset()
            self.barred = self.selected != 0 and self.selected - 1 not in self.adapters
            self.decoder.adapt(self.adapters.get(self.selected - 1))
        packets = []
        for _ in range(run + 1):
            position = self.decoder.position
            if position == self.context or self.barred:
                return packets + ([[no_token | position << self.token_bits]] if want else [])
            answer = self.decoder.step([token], logits=want)
            if answer is not None:
                packets.append(self._packet(answer[0][0].tolist(), float(answer[1][0]), position, top))
                token = packets[-1][0] & no_token
        return packets

    def _packet(self, logits, scale, position, top):
        ranks = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
        words = [ranks[0] | position << self.token_bits]
        if top:
            fraction, exponent = math.frexp(scale)  # a mantissa of 16 bits, and (0, 0) for zero
            words.append(int(fraction * 65536) | ((exponent - 16) & 0xFFFF) << 16 if scale else 0)
        for token in ranks[:top]:
            words += [token, logits[token] & 0xFFFFFFFF]
        return words
