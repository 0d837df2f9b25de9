"""Channels for tests: a device's end in Python, with faults on the bytes between."""

import random
import time

from intaglio.host.server import DeviceEnd
from intaglio.host.transport.frames import FLAG


class Line:
    """One direction of a line that damages, loses and repeats bytes."""

    def __init__(self, seed, chance):
        self.rng, self.chance, self.faults = random.Random(seed), chance, 0

    def __call__(self, data):
        out = bytearray()
        for byte in data:
            if self.rng.random() >= self.chance:
                out.append(byte)
                continue
            kind = self.rng.randrange(3)
            if byte == FLAG and kind:  # a lost or doubled flag changes nothing
                out.append(byte)
                continue
            self.faults += 1
            out += (bytes([byte ^ 1 << self.rng.randrange(8)]), b"", bytes([byte, byte]))[kind]
        return bytes(out)


class PeerChannel:
    """A channel to a transport's device, without time: what is written is answered at once."""

    name = "peer"

    def __init__(self, transport, seed=0, chance=0.0, *, filters=()):
        self.end, self.closed = DeviceEnd(transport), False
        self.lines = [Line(seed, chance), Line(seed + 1, chance)]
        self.filters = list(filters)  # functions of the bytes to the device, in order
        self.waiting = b""

    def read(self, seconds):
        self.waiting += self.lines[1](self.end.step())
        if not self.waiting:
            time.sleep(min(seconds, 0.002))
        data, self.waiting = self.waiting, b""
        return data

    def write(self, data):
        for change in self.filters:
            data = change(data)
        self.end.feed(self.lines[0](data))

    def close(self):
        self.closed = True
