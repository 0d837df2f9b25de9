"""The protocol: words of the command and result streams, and the faults that a device can show.

Command word: t bits of token, run up to bit 23, 24-28 top, 30 want, 31 first; t is 16, or more for a larger vocabulary. Result packet:
word 0 has the greedy next token in t bits and the input's position in the others; with logits, word 1 has the mantissa and the signed
exponent of the logit unit, then each logit takes two words, token and value.
"""

from dataclasses import dataclass

import numpy as np

from intaglio import Error

__all__ = ["ConfigMismatchError", "DeviceError", "DeviceTimeout", "Result", "command", "token_bits"]


def token_bits(vocab_size) -> int:
    """Bits of a token: at least 16, and so many that all ones is no token; that value answers when the context is full."""
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


def command(token, *, first=False, want=False, top=0, run=0, bits=16) -> int:
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
