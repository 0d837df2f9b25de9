"""Figures of a generation: what the device computed, in its own cycles, and the time on the wall.

A device computes by itself while the host looks elsewhere, behind a serial line or a server most of all, and ``cycles`` runs on while it
waits. So its counters are read only when it rests, and only those that stand still then: tokens, phases, and the waits of results. What is
left when the waits are taken off is the same number of cycles whatever the transport is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from intaglio import Error
from intaglio.host.protocol import SELECT
from intaglio.host.transport import Transport

if TYPE_CHECKING:
    from intaglio.host.device import Device


__all__ = ["Measure", "Totals", "Work", "counted", "watched", "work"]

TRIES = 3  # readings of the status until a device that has answered must rest
WRAP = (1 << 32) - 1


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a resting device has done since its counters were cleared: ``tokens``, and ``cycles`` spent on them."""

    tokens: int
    cycles: int

    def __sub__(self, earlier: Work) -> Work:
        return Work(tokens=(self.tokens - earlier.tokens) & WRAP, cycles=(self.cycles - earlier.cycles) & WRAP)


def work(device: Device) -> Work | None:
    """The device's :class:`Work`, or None if it is still at work, or has been waiting or at work for so long that 32 bits do not tell."""
    if all(device.read_register("status") & 1 for _ in range(TRIES)):
        return None
    busy = sum(device.read_register(f"phase_{name}") for name in device.manifest.phases) & WRAP
    if device.read_cycles() - busy > WRAP:  # which has 64 bits: a phase may have begun anew from 0
        return None
    return Work(tokens=device.read_register("tokens"), cycles=busy - device.read_register("stall_out") & WRAP)


class Measure:
    """Statistics of one generation; made when it begins, which clears the counters.

    :meth:`close` gives a dict: ``prompt_tokens``, ``generated_tokens``, ``finish``;

    * of the device: ``cycles_prefill`` (computing the prompt, the first token's logits included), ``cycles_decode`` and ``tokens_decode``
      (what it computed after that, in a burst perhaps past the last token that was wanted), ``first_token_seconds`` and
      ``tokens_per_second``, both at the manifest's clock. Waits for the host are in none of them;
    * on the wall: ``seconds_prefill``, ``seconds_decode``, ``wall_tokens_per_second``.

    Each is None where it cannot be told: after an error, for what comes after the first token when the generator was left early (the device
    may be at work then), when 2**32 cycles of waits or work make the counters ambiguous, and speeds after fewer than two tokens.
    """

    def __init__(self, device: Device, prompt_tokens: int) -> None:
        self.device, self.prompt_tokens = device, prompt_tokens
        self.generated = self.results = 0
        self.prefill: Work | None = None
        device.drain()
        device.clear_counters()
        self.began = self.first = self.resumed = self.latest = time.monotonic()

    def count(self, counted: bool) -> None:
        """A result has come; ``counted``: it is a token, not the end."""
        self.results += 1
        self.generated += counted
        self.latest = time.monotonic()
        if self.results == 1:
            self.first, self.prefill = self.latest, work(self.device)
            self.resumed = time.monotonic()
        self.device.last = {
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated,
            "finish": None,
            "wall_tokens_per_second": self._wall_speed(),
        }

    def _wall_speed(self):
        seconds = self.latest - self.resumed
        return (self.results - 1) / seconds if self.results > 1 and seconds > 0 else None

    def close(self, finish: str) -> dict[str, Any]:
        """The dict described above."""
        row = {
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated,
            "finish": finish,
        } | dict.fromkeys(
            (
                "cycles_prefill",
                "cycles_decode",
                "tokens_decode",
                "first_token_seconds",
                "tokens_per_second",
                "seconds_prefill",
                "seconds_decode",
                "wall_tokens_per_second",
            )
        )
        if not self.results or finish == "error" or self.device.closed:
            return row
        row |= {
            "seconds_prefill": self.first - self.began,
            "wall_tokens_per_second": self._wall_speed(),
            "seconds_decode": self.latest - self.resumed if self.results > 1 else 0.0,
        }
        clock = self.device.manifest.clock_hz
        if self.prefill is None or self.prefill.tokens != self.prompt_tokens:
            return row  # something else was computed meanwhile
        row |= {"cycles_prefill": self.prefill.cycles, "first_token_seconds": self.prefill.cycles / clock}
        if finish == "closed":
            return row
        whole = None
        with suppress(Error):  # the text is whole; what is wrong with the device, the next call tells
            self.device.drain()  # the rest of a burst
            whole = work(self.device)
        if whole is None or (decode := whole - self.prefill).tokens < self.results - 1:
            return row
        return row | {
            "cycles_decode": decode.cycles,
            "tokens_decode": decode.tokens,
            "tokens_per_second": decode.tokens * clock / decode.cycles if decode.cycles and self.results > 1 else None,
        }


class Totals:
    """Statistics of several generations at once; made when they begin, which clears the counters.

    :meth:`close` gives a dict: ``prompt_tokens``, ``generated_tokens``, ``finish`` ("done", "closed" or "error"), ``requests`` (a list with
    a dict for each: ``prompt_tokens``, ``generated_tokens``, ``finish``, ``first_token_seconds``, from the beginning of all, at the
    manifest's clock, and ``error``, None or a text);

    * of the device: ``cycles`` and ``tokens`` (all that it computed, in bursts perhaps past the last token that was wanted), and
      ``tokens_per_second``, generated tokens of all for the time of all, at the manifest's clock. Waits for the host are in none of them;
    * on the wall: ``seconds``, ``wall_tokens_per_second``.

    Figures of the device are None where they cannot be told, as those of :class:`Measure`.
    """

    def __init__(self, device: Device, prompt_tokens: int) -> None:
        self.device, self.prompt_tokens, self.generated = device, prompt_tokens, 0
        device.drain()
        device.clear_counters()
        self.began = self.latest = time.monotonic()
        device.last = self._row(None)

    def seconds(self) -> float | None:
        """Seconds of the device's work until now, when it rests."""
        done = work(self.device)
        return None if done is None else done.cycles / self.device.manifest.clock_hz

    def count(self) -> None:
        """A token has come."""
        self.generated += 1
        self.latest = time.monotonic()
        self.device.last = self._row(None)

    def _row(self, finish):
        seconds = self.latest - self.began
        return {
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated,
            "finish": finish,
            "seconds": seconds,
            "wall_tokens_per_second": self.generated / seconds if seconds > 0 else None,
        }

    def close(self, finish: str, computed: int, requests: list[dict[str, Any]]) -> dict[str, Any]:
        """The dict described above; ``computed`` is the number of tokens that the device should have computed."""
        done = None
        if finish == "done":
            with suppress(Error):  # the texts are whole; what is wrong with the device, the next call tells
                self.device.drain()  # the rest of a burst
                done = work(self.device)
            if done is not None and done.tokens != computed:
                done = None  # something else was computed meanwhile
            if done is None:
                requests = [row | {"first_token_seconds": None} for row in requests]
        speed = self.generated * self.device.manifest.clock_hz / done.cycles if done and done.cycles else None
        return self._row(finish) | {
            "cycles": done and done.cycles,
            "tokens": done and done.tokens,
            "tokens_per_second": speed,
            "requests": requests,
        }


def counted(words: Iterable[int]) -> list[int]:
    """For :func:`watched`: 1 for each command word that is a token, 0 for others."""
    return [0 if word & SELECT else 1 for word in words]


@contextmanager
def watched(
    transport: Transport, progress: Callable[[int], None] | None, counts: Sequence[int], before: int = 0
) -> Iterator[None]:
    """While it lasts, ``progress`` is called now and then with the sum of ``before`` and of ``counts`` of the words that were taken.

    ``counts`` has a number for each of the words that are sent.
    """
    if progress is None:
        yield
        return
    sums = [before, *(before + count for count in accumulate(counts))]
    transport.watch = lambda: progress(sums[max(0, len(counts) - transport.pending)])
    try:
        yield
    finally:
        transport.watch = None
