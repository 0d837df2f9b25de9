"""The host's end of the link (docs/link.md): a transport over any channel (:mod:`intaglio.host.transport.session`).

No thread works behind the caller: bytes move while a method of the transport runs, and the device keeps what it has to say meanwhile.
"""

import time
from collections import deque
from collections.abc import Callable
from itertools import islice

import numpy as np
import numpy.typing as npt

from intaglio.host.protocol import ConfigMismatchError, DeviceError, DeviceTimeout
from intaglio.host.transport.frames import MAX_WORDS, MEMORY_WORDS, Decoder, Frame, Kind, encode
from intaglio.host.transport.session import ANSWER_SECONDS, LinkLost, LinkStatistics, Timer, begin_session

__all__ = ["LinkTransport"]

UNDER_WAY = 127  # words at most, because they are numbered modulo 256


class LinkTransport:
    """A device behind a channel (see ``intaglio.host.transport.Transport``).

    Parameters
    ----------
    channel : channel
        Closed with the transport, also if this fails.
    manifest : dict
    limit : float
        Seconds within which a session must begin, a register be answered, and a device that is waited for be heard.

    Attributes
    ----------
    statistics : LinkStatistics

    Raises
    ------
    DeviceTimeout
        Nothing answers.
    DeviceError
        What answers is not a link, or is of another version.
    ConfigMismatchError
        The device was made from something else than the manifest.
    LinkLost
    """

    cycles = None  # the device must be asked
    watch: Callable[[], None] | None = None

    def __init__(self, channel, manifest, *, limit=ANSWER_SECONDS):
        self.channel, self.manifest, self.limit = channel, manifest, limit
        self.statistics, self._decoder, self._closed, self._tag = LinkStatistics(), Decoder(), False, 0
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self):
        """Begin a session; the device resets its decoder. Words are numbered from 0 on; on the line, modulo 256."""
        self._queue = deque()  # commands (word, last) from number _acknowledged on
        self._acknowledged = self._next = self._highest = self._taken = self._expected = 0
        self._results = deque()
        self._access = self._answer = (
            None  # the frame of the access under way, to a register or memory, and that of its answer
        )
        self._owe_status = self._owe_resend = False
        self._measured = None  # a number of a command, and when the frame before it was sent
        self._went_back = (-1, 0.0)
        self._timer = Timer()
        greeting = begin_session(self.channel, self._decoder, self.statistics, self.limit)
        expected = int(self.manifest["digest"][:8], 16)
        if greeting.digest != expected:
            raise ConfigMismatchError(
                f"the device at {self.channel.name} has the digest 0x{greeting.digest:08x}, but its manifest says "
                f"0x{expected:08x}: load the bitstream of this manifest, or give the manifest of that bitstream"
            )
        self._limit = self._window = greeting.window
        self._heard = time.monotonic()

    def reset(self):
        self._check_open()
        self._begin()

    def close(self):
        if not self._closed:
            self._closed = True
            self.channel.close()

    def _check_open(self):
        if self._closed:
            raise DeviceError("the transport is closed")

    # Frames out

    def _frame(self, kind, **rest) -> Frame:
        return Frame(kind=kind, ack=self._expected & 255, window=255, **rest)

    def _write(self, *frames):
        self.statistics.sent += len(frames)
        self._owe_status = False  # every frame acknowledges
        self.channel.write(b"".join(map(encode, frames)))

    def _flush(self):
        """Send the commands that the window allows."""
        limit = min(self._limit, self._acknowledged + UNDER_WAY, self._acknowledged + len(self._queue))
        frames = []
        while self._next < limit:
            words, mark = [], False
            start = self._next - self._acknowledged
            for word, mark in islice(self._queue, start, start + min(MAX_WORDS, limit - self._next)):
                words.append(word)
                if mark:
                    break
            frames.append(self._frame(Kind.DATA, mark=mark, seq=self._next & 255, words=tuple(words)))
            self._next += len(words)
        if self._next > self._highest:
            self._highest = self._next
            if self._measured is None:
                self._measured = (self._next, time.monotonic())
        if frames:
            self._write(*frames)

    def _go_back(self):
        """Send again all that is not acknowledged. Round trips that a repetition may have changed are not measured."""
        self._next, self._measured = self._acknowledged, None
        self._went_back = (self._acknowledged, time.monotonic())

    def _repeat(self):
        """Nothing has come for too long: send again what has no answer, or ask the device to."""
        self._timer.back_off()
        if self._access is not None:
            self.statistics.timeouts += 1
            self._write(self._access)
        elif self._next > self._acknowledged:
            self.statistics.timeouts += 1
            self._go_back()
        else:
            self._write(self._frame(Kind.RESEND))  # the device may be computing; if not, this finds what was lost

    # Frames in

    def _pump(self, seconds):
        """Send what there is to send, wait at most ``seconds`` for bytes, and do what they say."""
        self._flush()
        data = self.channel.read(max(0.0, min(seconds, self._timer.left)))
        for frame in self._decoder.feed(data):
            self._receive(frame)
        if not data and self._timer.left <= 0:  # whatever came while this process did not run has been read
            self._repeat()
        if self._owe_resend:
            self._owe_resend = False
            self._write(self._frame(Kind.RESEND))
        elif self._owe_status:
            self._write(self._frame(Kind.STATUS))
        if time.monotonic() - self._heard > self.limit:
            raise DeviceTimeout(
                f"nothing came from {self.channel.name} for {self.limit:g} s though the device was asked again and again "
                f"({self.statistics}): is it powered and connected?"
            )

    def _receive(self, frame):
        self.statistics.received += 1
        if frame is None:
            self.statistics.bad += 1
            self._owe_resend = True
            return
        self._heard = time.monotonic()
        if frame.kind == Kind.CLOSED:
            raise LinkLost(
                f"the device at {self.channel.name} has no session any more, it was reset or loaded anew: open it again"
            )
        if frame.kind == Kind.HELLO:  # the answer again
            self.statistics.repeated += 1
            return
        self._advance(frame)
        if frame.kind == Kind.DATA:
            self._take(frame)
        elif frame.kind == Kind.RESEND:
            self.statistics.requests += 1
            number, when = self._went_back
            if self._access is not None:
                self._write(self._access)
            if self._next > self._acknowledged and (
                number != self._acknowledged or time.monotonic() - when > self._timer.seconds / 2
            ):
                self._go_back()
        elif frame.kind in (Kind.READ, Kind.WRITE, Kind.MEMORY):
            if self._access is not None and (frame.kind, frame.seq) == (self._access.kind, self._tag):
                self._answer, self._access = frame, None
                self._timer.progress()
            else:
                self.statistics.repeated += 1

    def _advance(self, frame):
        """Acknowledgement and window."""
        ahead = (frame.ack - self._acknowledged) & 255
        if ahead >= 128:  # an old frame
            return
        if ahead > self._highest - self._acknowledged:
            raise DeviceError(
                f"the device at {self.channel.name} acknowledged {ahead} command words, and only "
                f"{self._highest - self._acknowledged} were sent ({self.statistics})"
            )
        if ahead:
            for _ in range(ahead):
                self._queue.popleft()
            self._acknowledged += ahead
            self._next = max(self._next, self._acknowledged)
            if self._measured is not None and self._acknowledged >= self._measured[0]:
                self._timer.sample(time.monotonic() - self._measured[1])
                self._measured = None
            self._timer.progress()
        self._limit = max(self._limit, self._acknowledged + frame.window)
        self._taken = max(self._taken, self._acknowledged + frame.window - self._window)

    def _take(self, frame):
        """Result words: those that are next."""
        old = (self._expected - frame.seq) & 255
        if old >= 128:
            self.statistics.gaps += 1
            self._owe_resend = True
            return
        self._owe_status = True
        if old >= len(frame.words):
            self.statistics.repeated += 1
            return
        last = len(frame.words) - 1
        self._results.extend((word, frame.mark and i == last) for i, word in enumerate(frame.words) if i >= old)
        self._expected += len(frame.words) - old
        self._timer.progress()

    # What a transport offers

    @property
    def pending(self) -> int:
        return self._acknowledged + len(self._queue) - self._taken

    def _wait(self, ready, seconds):
        """Move bytes until ``ready()``, or nothing has moved for ``seconds``."""
        self._check_open()
        state, moved = None, time.monotonic()
        self._heard = moved
        self._timer.start()
        while not ready():
            now = time.monotonic()
            if state != (state := (self._acknowledged, self._taken, self._expected)):
                moved = now
            if now - moved >= seconds:
                return
            self._pump(moved + seconds - now)
            if self.watch is not None:
                self.watch()

    def send(self, words, last, timeout) -> int:
        """As :meth:`Transport.send`; returns when the device has accepted the words, not when its decoder has taken them. Words that were
        sent and are not acknowledged count as taken: they will arrive."""
        first = self._acknowledged + len(self._queue)
        self._queue.extend(zip(np.asarray(words).tolist(), np.asarray(last).tolist(), strict=True))
        goal = first + len(words)
        self._wait(lambda: self._acknowledged >= goal, timeout)
        while self._acknowledged + len(self._queue) > max(self._highest, first):
            self._queue.pop()
        return self._acknowledged + len(self._queue) - first

    def receive(self, capacity, timeout):
        words, flags = [], []

        def ready():
            while self._results and len(words) < capacity and not (flags and flags[-1]):
                word, flag = self._results.popleft()
                words.append(word)
                flags.append(flag)
            return len(words) == capacity or (flags and flags[-1])

        self._wait(ready, timeout)
        return np.array(words, dtype=np.uint32), np.array(flags, dtype=bool)

    def read_register(self, offset: int) -> int:
        return self._exchange(f"read of the register at 0x{offset:x}", 1, kind=Kind.READ, words=(offset,))[0]

    def write_register(self, offset: int, value: int) -> None:
        self._exchange(f"write of the register at 0x{offset:x}", 1, kind=Kind.WRITE, words=(offset, value))

    def write_memory(self, address: int, data: npt.NDArray[np.uint8]) -> None:
        words = np.ascontiguousarray(data, np.uint8).view("<u4")
        for first in range(0, len(words), MEMORY_WORDS):
            self._memory("write", 1, address + 4 * first, words[first : first + MEMORY_WORDS].tolist(), mark=True)

    def read_memory(self, address: int, length: int) -> npt.NDArray[np.uint8]:
        words = []
        for first in range(0, length // 4, MEMORY_WORDS):
            count = min(MEMORY_WORDS, length // 4 - first)
            words += self._memory("read", count, address + 4 * first, (count,))
        return np.array(words, "<u4").view(np.uint8)

    def _memory(self, verb, length, address, rest, **fields):
        words = (address & 0xFFFFFFFF, address >> 32, *rest)
        return self._exchange(f"{verb} of the memory at 0x{address:x}", length, kind=Kind.MEMORY, words=words, **fields)

    def _exchange(self, what, length, **fields):
        """One access: the ``length`` words of its answer."""
        self._check_open()
        self._tag = (self._tag + 1) & 255
        self._access, self._answer = self._frame(seq=self._tag, **fields), None
        self._write(self._access)
        began = time.monotonic()
        try:
            self._wait(lambda: self._answer is not None or time.monotonic() - began > self.limit, self.limit)
        finally:
            self._access = None
        if self._answer is None:
            raise DeviceTimeout(
                f"the device at {self.channel.name} must answer the {what} within {self.limit:g} s, but it did not "
                f"({self.statistics})"
            )
        if self._answer.mark:
            raise DeviceError(f"the bus of the device at {self.channel.name} answered the {what} with an error")
        if len(self._answer.words) != length:
            raise DeviceError(
                f"the device at {self.channel.name} must answer the {what} with {length} words, not {len(self._answer.words)}"
            )
        return self._answer.words
