"""A memory behind the AXI4 read port: latency, bandwidth, faults, cycle by cycle. memory.h is the same in C++.

A burst taken in cycle t (``arvalid`` and ``arready``) has its first beat on the bus in cycle ``t + latency_cycles`` at the earliest. Bursts
are answered in order. Each cycle earns credit, ``bytes_per_cycle``; a beat goes on the bus when there is credit for it, which it
spends, and stays until taken. Credit is capped at a beat and a cycle's earnings, so that an idle bus saves no bandwidth up.
"""

import math
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

__all__ = ["PRESETS", "Beat", "MemoryModel", "ReadSlave"]

OKAY, SLVERR, DECERR = 0, 2, 3

# name: (bytes a second, latency in ns). Bandwidths are those of data sheets: a pseudo channel of HBM2 has 14.4 GB/s, the 32 of a U280 460
# GB/s, a DDR4-2400 channel 19.2 GB/s, two such 38. The latencies are assumptions, in the range of published measurements
# of idle reads on such boards; nothing here was measured. Refresh, page misses and other masters are not modelled.
PRESETS = {
    "hbm2-u280": (14_400_000_000, 120),
    "hbm2-u280-all": (460_000_000_000, 120),
    "ddr4": (38_000_000_000, 90),
    "ddr4-one": (19_200_000_000, 90),
}


@dataclass(frozen=True, kw_only=True)
class MemoryModel:
    """Times of a memory.

    Parameters
    ----------
    latency_cycles : int
        From a burst's address to its first beat, 1..65535.
    bytes_per_cycle : Fraction or int
        More than 0; numerator and denominator less than 2^31.
    bursts : int
        Bursts that may be under way, 1..1024; beyond that ``arready`` is 0.

    Raises
    ------
    ValueError
        The text says what must hold and what was given.
    """

    latency_cycles: int
    bytes_per_cycle: Fraction
    bursts: int = 64

    def __post_init__(self):
        for name, most in (("latency_cycles", 65535), ("bursts", 1024)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise ValueError(f"{name} must be an integer in 1..{most}, not {value!r}")
        rate = self.bytes_per_cycle
        if isinstance(rate, bool) or not isinstance(rate, int | Fraction) or rate <= 0:
            raise ValueError(f"bytes_per_cycle must be a fraction more than 0, not {rate!r}")
        rate = Fraction(rate)
        if max(rate.numerator, rate.denominator) >= 1 << 31:
            raise ValueError(f"bytes_per_cycle must have a numerator and a denominator less than 2^31, not {rate}")
        object.__setattr__(self, "bytes_per_cycle", rate)

    @classmethod
    def preset(cls, name, clock_hz=300_000_000) -> "MemoryModel":
        """The memory of that name (:data:`PRESETS`) seen from a unit with that clock."""
        if name not in PRESETS:
            raise ValueError(f"a memory must be one of {', '.join(PRESETS)}, not {name!r}")
        if not isinstance(clock_hz, int) or isinstance(clock_hz, bool) or clock_hz < 1:
            raise ValueError(f"clock_hz must be an integer of at least 1, not {clock_hz!r}")
        rate, latency = PRESETS[name]
        return cls(
            latency_cycles=max(1, math.ceil(Fraction(latency * clock_hz, 10**9))),
            bytes_per_cycle=Fraction(rate, clock_hz),
        )


class Beat(NamedTuple):
    """What is on the R channel."""

    id: int
    data: bytes
    response: int
    last: bool


class ReadSlave:
    """The memory as an AXI4 slave for reads, a cycle at a time: look at ``arready`` and ``beat``, then call :meth:`edge`.

    Parameters
    ----------
    model : MemoryModel
    image : bytes
        Contents from address ``base``; a beat that is not wholly inside is zero and answers DECERR.
    beat_bytes : int
    base : int
    error_beat : int or None
        This beat (the first of all is 0) answers SLVERR.
    silent_burst : int or None
        From this burst on (the first of all is 0) bursts are taken and never answered.
    """

    def __init__(self, model, image, *, beat_bytes, base=0, error_beat=None, silent_burst=None):
        self.model, self.image, self.base, self.beat_bytes = model, image, base, beat_bytes
        self.error_beat, self.silent_burst = error_beat, silent_burst
        rate = model.bytes_per_cycle
        self._earn, self._cost = rate.numerator, beat_bytes * rate.denominator
        self._credit = self._cycle = self._beats = self._taken = 0
        self._bursts = deque()  # [due, id, address, beats left]
        self.beat = None

    @property
    def arready(self) -> bool:
        return len(self._bursts) < self.model.bursts

    def edge(self, *, burst=None, rready):
        """Pass a clock edge. burst: (id, address, beats) if ``arvalid`` is 1, taken if ``arready`` is."""
        ready = self.arready
        if rready:
            self.beat = None
        if burst is not None and ready:
            if self.silent_burst is None or self._taken < self.silent_burst:
                self._bursts.append([self._cycle + self.model.latency_cycles, *burst])
            self._taken += 1
        self._cycle += 1
        self._credit = min(self._credit + self._earn, self._cost + self._earn)
        if self.beat is None and self._bursts and self._bursts[0][0] <= self._cycle and self._credit >= self._cost:
            self._credit -= self._cost
            self.beat = self._next()

    def _next(self):
        head = self._bursts[0]
        _, identity, address, left = head
        first = address - self.base
        inside = 0 <= first and first + self.beat_bytes <= len(self.image)
        content = bytes(self.image[first : first + self.beat_bytes]) if inside else bytes(self.beat_bytes)
        response = SLVERR if self._beats == self.error_beat else OKAY if inside else DECERR
        self._beats += 1
        head[2:] = address + self.beat_bytes, left - 1
        if left == 1:
            self._bursts.popleft()
        return Beat(identity, content, response, left == 1)
