"""Ways to a device for tests: a device's end in Python, with faults on the bytes between or behind a tty, and a server."""

import os
import pty
import random
import threading
import time
import tty
from contextlib import contextmanager

from intaglio.host.server import DeviceEnd, Server
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


class Board:
    """A tty with the device's end of the link in Python behind it."""

    def __init__(self, transport):
        self.end, self.mutters = DeviceEnd(transport), b""
        self.master, self.slave = pty.openpty()
        tty.setraw(self.slave)
        os.set_blocking(self.master, False)
        self.port, self.stop = os.ttyname(self.slave), threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.stop.is_set():
            try:
                data = os.read(self.master, 4096)
            except BlockingIOError:
                data = b""
                time.sleep(0.001)
            except OSError:
                return
            self.end.feed(data)
            if out := self.mutters + self.end.step():
                os.write(self.master, out)
                self.mutters = b""

    def unplug(self):
        self.stop.set()
        self.thread.join(10)
        os.close(self.master)
        os.close(self.slave)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self.stop.is_set():
            self.unplug()


@contextmanager
def served(transport):
    """The address of a server that puts ``transport`` behind TCP, and closes it."""
    stop = threading.Event()
    with Server(transport, "127.0.0.1:0") as server:
        thread = threading.Thread(target=server.run, args=(stop.is_set,))
        thread.start()
        try:
            yield server.address
        finally:
            stop.set()
            thread.join(60)
            transport.close()
