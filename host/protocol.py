"""The protocol: words of the command and result streams, and the faults that a device can show.

Command word: t bits of token, run up to bit 23, 24-28 top, 30 want, 31 first; t is 16, or more for a larger vocabulary. Result packet:
word 0 has the greedy next token in t bits and the input's position in the others; with logits, word 1 has the mantissa and the signed
exponent of the logit unit, then each logit takes two words, token and value. With bit 29 a command word is no token: bits 28:24 are
its kind, and it selects an adapter or a sequence, or begins a group (docs/adapters.md, docs/batch.md). A prefill unit has no commands:
its registers begin a run, and docs/prefill.md has its results.
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
    "RefusedError",
    "Result",
    "command",
    "group",
    "selection",
    "sequence",
    "token_bits",
]

SELECT = 1 << 29  # of a command word: it is no token
SEQUENCE, GROUP = 1, 2  # kinds of such words; 0 selects an adapter
VOID = 1 << 23  # in tuser of a prefill unit's result: the run ended early


def token_bits(vocab_size: int) -> int:
    """Bits of a token: at least 16, and so many that all ones is no token; that value answers when nothing was computed: the context is
    full, or the sequence's adapter is not there."""
    return max(16, vocab_size.bit_length())


class DeviceError(Error):
    """The device or its link did something that the protocol does not allow."""


class RefusedError(DeviceError):
    """The device refused a token, which changed nothing: its sequence is full, or its adapter is not there."""


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


def sequence(number: int) -> int:
    """The word after which tokens belong to the sequence ``number``; it has no answer.

    Raises
    ------
    ValueError
        The number is out of range.
    """
    if not 0 <= number <= 255:
        raise ValueError(f"number of a sequence must be in 0..255, not {number}")
    return SELECT | SEQUENCE << 24 | number


def group(count: int, run: int = 0) -> int:
    """The word that makes the next ``count`` tokens one group, which the device computes side by side.

    Afterwards the device makes ``run`` groups by itself, each of the greedy tokens of those whose result was wanted.

    Raises
    ------
    ValueError
        A field does not fit its bits.
    """
    for name, value, low, high in (("count", count, 1, 64), ("run", run, 0, (1 << 18) - 1)):
        if not low <= value <= high:
            raise ValueError(f"{name} of a group must be in {low}..{high}, not {value}")
    return SELECT | GROUP << 24 | run << 6 | count - 1


class Owed:
    """The result packets that a device still owes for commands it was sent; true while there are any.

    Only tokens are answered, and those of a group not before the last of them was sent.

    Parameters
    ----------
    bits : int
        Bits of a token (:func:`token_bits`).
    batch, sequences : int
        Tokens of a group at most, and sequences, of the device. Where both are 1 it knows no groups.
    """

    def __init__(self, bits: int = 16, batch: int = 1, sequences: int = 1) -> None:
        self.bits, self.batch, self.grouped = bits, batch, batch > 1 or sequences > 1
        self.clear()

    def clear(self) -> None:
        self._runs: deque[_Run] = deque()  # those that have not been answered in full
        self._open: _Run | None = None  # a group of which tokens are to come
        self._to_come, self._under_way = 0, False  # tokens of it; some of them were sent

    def __bool__(self) -> bool:
        return bool(self._runs)

    def add(self, words: npt.NDArray[np.uint32]) -> None:
        """Commands ``uint32 [n]`` were sent."""
        for word in words.tolist():
            if word & SELECT:
                if self.grouped and word >> 24 & 31 == GROUP and not self._under_way:
                    self._open, self._to_come = _Run(left=word >> 6 & 0x3FFFF), min((word & 63) + 1, self.batch)
                continue
            wanted = word >> 30 & 1
            if self._open is None:
                left = (word & 0xFFFFFF) >> self.bits
                self._begin(_Run(left=left, due=1 if wanted or left else 0))
                continue
            self._open.due += wanted
            self._to_come -= 1
            self._under_way = self._to_come > 0
            if not self._to_come:
                self._begin(self._open)
                self._open = None

    def _begin(self, run):
        if run.due:
            self._runs.append(run)

    def wrote(self, offset: int, value: int) -> None:
        """A register was written, which makes a decoder owe nothing."""

    def packet(self, words: Sequence[int]) -> None:
        """A packet came; a refusal (context full, adapter not there) ends its token's part in the run."""
        if not self._runs:
            return
        run, refused = self._runs[0], (1 << self.bits) - 1
        run.due -= 1
        run.stay += int(words[0]) & refused != refused
        if not run.due:
            if run.left and run.stay:
                run.left, run.due, run.stay = run.left - 1, run.stay, 0
            else:
                self._runs.popleft()


@dataclass
class _Run:
    """A group and those that the device makes after it.

    ``due``: packets of the group under way that are still to come; ``left``: groups after it; ``stay``: tokens that take part in the next.
    """

    left: int
    due: int = 0
    stay: int = 0


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
