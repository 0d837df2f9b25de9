"""The protocol: words of the command and result streams, and the faults that a device can show.

Command word: bits 0-15 token, 16-23 run, 24-28 top, 30 want, 31 first. Result packet: word 0 has the greedy next token in
bits 0-15 and the input's position in bits 16-31; with logits, word 1 has the mantissa and the signed exponent of the logit
unit, then each logit takes two words, token and value.
"""

from dataclasses import dataclass

import numpy as np

from intaglio import Error

__all__ = ["FULL", "ConfigMismatchError", "DeviceError", "DeviceTimeout", "Result", "command", "selection"]

FULL = 0xFFFF  # token field of the answer when nothing was computed: the context is full, or the sequence's adapter is not there


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
    tokens, logits : ndarray ``uint16 [top]``, ``int32 [top]``
        The greatest logits, descending, ties by the lower token; empty unless asked for.
    scale : float
        One logit unit: real logits are ``logits * scale``.
    """

    token: int
    position: int
    tokens: np.ndarray
    logits: np.ndarray
    scale: float


def command(token, *, first=False, want=False, top=0, run=0) -> int:
    """One command word: feed ``token``.

    ``first`` restarts at position 0; ``want`` asks for a result packet with ``top`` logits; ``run`` further tokens are
    generated greedily by the device itself, each with a packet.

    Raises
    ------
    ValueError
        A field does not fit its bits.
    """
    for name, value, limit in (("token", token, 0xFFFF), ("run", run, 0xFF), ("top", top, 31)):
        if not 0 <= value <= limit:
            raise ValueError(f"{name} of a command must be in 0..{limit}, not {value}")
    return token | run << 16 | top << 24 | want << 30 | first << 31


def selection(slot) -> int:
    """The word after which sequences that begin compute with the adapter in ``slot``, or with none where it is None."""
    if slot is not None and not 0 <= slot < 255:
        raise ValueError(f"slot of a selection must be in 0..254 or None, not {slot}")
    return 1 << 29 | (0 if slot is None else slot + 1)
