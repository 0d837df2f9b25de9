"""The protocol: words of the command and result streams, and the faults that a device can show.

Command word: t bits of token, run up to bit 23, 24-28 top, 30 want, 31 first; t is 16, or more for a larger vocabulary. Result packet:
word 0 has the greedy next token in t bits and the input's position in the others; with logits, word 1 has the mantissa and the signed
exponent of the logit unit, then each logit takes two words, token and value. A prefill unit has no commands: its registers begin a run, and
docs/prefill.md has its results.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intaglio import Error

__all__ = [
    "VOID",
    "ConfigMismatchError",
    "DeviceError",
    "DeviceTimeout",
    "Owed",
    "OwedRun",
    "Result",
    "command",
    "selection",
    "token_bits",
]

SELECT = 1 << 29  # of a command word: it selects an adapter
VOID = 1 << 23  # in tuser of a prefill unit's result: the run ended early


def token_bits(vocab_size: int) -> int:
    """Bits of a token: at least 16, and so many that all ones is no token; that value answers when nothing was computed: the context is
    full, or the sequence's adapter is not there."""
    return max(16, vocab_size.bit_length())


class DeviceError(Error):
    """The device or its link did something that the protocol does not allow."""


class DeviceTimeout(DeviceError, TimeoutError):
    """No word moved for the device's time limit."""


class ConfigMismatchError(DeviceError):
    """The device is not the one that the manifest describes."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One result packet.

    Parameters
    ----------
    token : int
        The greedy next token.
    position : int
        Position of the input token.
    tokens, logits : ndarray ``uint32 [top]``, ``int32 [top]``
        The greatest logits, descending, ties by the lower token; empty unless asked for.
    scale : float
        One logit unit: real logits are ``logits * scale``.
    """

    token: int
    position: int
    tokens: np.ndarray
    logits: np.ndarray
    scale: float


def command(token: int, *, first: bool = False, want: bool = False, top: int = 0, run: int = 0, bits: int = 16) -> int:
    """One command word: feed ``token``, which has ``bits`` bits (:func:`token_bits`).

    ``first`` restarts at position 0; ``want`` asks for a result packet with ``top`` logits; ``run`` further tokens are
    generated greedily by the device itself, each with a packet.

    Raises
    ------
    ValueError
        A field does not fit its bits.
    """
    for name, value, limit in (("token", token, (1 << bits) - 1), ("run", run, (1 << 24 - bits) - 1), ("top", top, 31)):
        if not 0 <= value <= limit:
            raise ValueError(f"{name} of a command must be in 0..{limit}, not {value}")
    return token | run << bits | top << 24 | want << 30 | first << 31


def selection(slot: int | None) -> int:
    """The word after which sequences that begin compute with the adapter in ``slot``, or with none where it is None; it has no answer.

    Raises
    ------
    ValueError
        The slot is out of range.
    """
    if slot is not None and not 0 <= slot < 255:
        raise ValueError(f"slot of a selection must be in 0..254 or None, not {slot}")
    return SELECT | (0 if slot is None else slot + 1)


class Owed:
    """The result packets that a device still owes for commands it was sent; true while there are any. A selection owes none.

    Parameters
    ----------
    bits : int
        Bits of a token (:func:`token_bits`).
    """

    def __init__(self, bits: int = 16) -> None:
        self.bits = bits
        self._counts = deque()  # packets still to come, for each command that has not been answered in full

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, words: npt.NDArray[np.uint32]) -> None:
        """Commands ``uint32 [n]`` were sent."""
        words = words[words & SELECT == 0]
        runs, wanted = (words & 0xFFFFFF) >> self.bits, words >> 30 & 1
        self._counts.extend((runs + (wanted | (runs != 0)))[(wanted | runs) != 0].tolist())

    def wrote(self, offset: int, value: int) -> None:
        """A register was written, which makes a decoder owe nothing."""

    def packet(self, words: Sequence[int]) -> None:
        """A packet came; a refusal (context full, adapter not there) ends the command's run."""
        if self._counts:
            self._counts[0] -= 1
            refused = (1 << self.bits) - 1
            if int(words[0]) & refused == refused or not self._counts[0]:
                self._counts.popleft()

    def clear(self) -> None:
        self._counts.clear()


class OwedRun:
    """The result packets that a prefill unit still owes for the run that it was told to begin; true while there are any.

    Parameters
    ----------
    control, tokens : int
        Offsets of these registers.
    group, block : int
        Of the unit: a run has a packet for each of ``group`` heads and ``block`` tokens.
    """

    def __init__(self, *, control: int, tokens: int, group: int, block: int) -> None:
        self._control, self._offset, self._group, self._block = control, tokens, group, block
        self._tokens = self._left = 0

    def __bool__(self) -> bool:
        return self._left > 0

    def add(self, words: npt.NDArray[np.uint32]) -> None:
        """Commands were sent, of which a prefill unit has none."""

    def wrote(self, offset: int, value: int) -> None:
        """A register was written. A run that is refused gives one packet, as one that is broken off."""
        if offset == self._offset:
            self._tokens = value
        elif offset == self._control and value & 1 and not self._left:
            self._left = max(1, self._group * -(-self._tokens // self._block))

    def packet(self, words: Sequence[int]) -> None:
        """A packet came, whose last word is tuser."""
        self._left = 0 if int(words[-1]) & VOID else max(0, self._left - 1)

    def clear(self) -> None:
        self._tokens = self._left = 0
