"""The beginning of a session on the link, and what a session measures: time-outs and signs of faults.

A *channel* moves bytes. It has ``read(seconds) -> bytes``, which waits until there are some, at most so long, and then returns what
there is; ``write(data)``; ``close()``; and ``name``, for messages. It raises :class:`LinkLost` when it has ended.
"""

import secrets
import time
from dataclasses import dataclass, fields

from intaglio.host.protocol import DeviceError, DeviceTimeout
from intaglio.host.transport.frames import LINK_MAGIC, LINK_VERSION, Decoder, Frame, Kind, encode

__all__ = ["ANSWER_SECONDS", "Greeting", "LinkLost", "LinkStatistics", "Timer", "begin_session"]

ANSWER_SECONDS = (
    10.0  # within which a session must begin, a register be answered, and a device that is waited for be heard
)
FIRST_TIMEOUT, LEAST_TIMEOUT, MOST_TIMEOUT = 0.25, 0.03, 1.0  # seconds without progress until something is sent again


class LinkLost(DeviceError):
    """The channel has ended or the device has forgotten the session: open the device again."""


@dataclass(kw_only=True)
class LinkStatistics:
    """Counts since the transport was opened.

    Parameters
    ----------
    sent, received : int
        Frames; what is received and not a good frame counts.
    bad : int
        Not a good frame.
    repeated, gaps : int
        Frames of results or answers that were there already; frames after a gap.
    requests : int
        The device asked to send again.
    timeouts : int
        Something sent had no answer in time.
    """

    sent: int = 0
    received: int = 0
    bad: int = 0
    repeated: int = 0
    gaps: int = 0
    requests: int = 0
    timeouts: int = 0

    @property
    def faults(self) -> int:
        """Signs that something on the line was not as it was sent."""
        return self.bad + self.gaps + self.requests + self.timeouts

    def __str__(self):
        return ", ".join(f"{field.name} {getattr(self, field.name)}" for field in fields(self))


class Timer:
    """The time-out of repetitions: follows the round trips (RFC 6298), doubles at each repetition, returns to normal with progress."""

    def __init__(self):
        self._mean = self._deviation = None
        self._seconds, self._since = FIRST_TIMEOUT, time.monotonic()

    def sample(self, seconds):
        """A round trip, without a repetition, took ``seconds``."""
        if self._mean is None:
            self._mean, self._deviation = seconds, seconds / 2
        else:
            self._deviation += (abs(seconds - self._mean) - self._deviation) / 4
            self._mean += (seconds - self._mean) / 8

    def progress(self):
        """Something was answered."""
        if self._mean is not None:
            self._seconds = min(max(self._mean + 4 * self._deviation, 1.5 * self._mean, LEAST_TIMEOUT), MOST_TIMEOUT)
        self.start()

    def start(self):
        """Count from now on."""
        self._since = time.monotonic()

    def back_off(self):
        """Something was repeated."""
        self._seconds = min(2 * self._seconds, MOST_TIMEOUT)
        self.start()

    @property
    def seconds(self) -> float:
        return self._seconds

    @property
    def left(self) -> float:
        """Seconds until something must be repeated."""
        return self._since + self._seconds - time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Greeting:
    """What a device says of itself: the first word of its digest, and the words that it can hold."""

    digest: int
    window: int


def begin_session(channel, decoder=None, statistics=None, limit=ANSWER_SECONDS) -> Greeting:
    """Begin a session at ``channel``, which resets the device; whatever comes before the answer is noise.

    Raises
    ------
    DeviceTimeout
        No answer within ``limit`` seconds.
    DeviceError
        The answer is not the link's, or of another version.
    LinkLost
    """
    decoder, statistics, session = decoder or Decoder(), statistics or LinkStatistics(), secrets.randbits(32)
    timer, began, heard = Timer(), time.monotonic(), 0

    def greet():
        statistics.sent += 1
        channel.write(encode(Frame(kind=Kind.HELLO, words=(session,))))

    greet()
    while (left := began + limit - time.monotonic()) > 0:
        if timer.left <= 0:
            statistics.timeouts += 1
            timer.back_off()
            greet()
        data = channel.read(max(0.0, min(left, timer.left)))
        heard += len(data)
        for frame in decoder.feed(data):
            statistics.received += 1
            statistics.bad += frame is None
            if frame is not None and frame.kind == Kind.HELLO and len(frame.words) == 4 and frame.words[2] == session:
                return _greeting(channel, frame)
    found = f"{heard} bytes came, but no answer" if heard else "nothing came"
    raise DeviceTimeout(
        f"{channel.name} must answer the beginning of a session within {limit:g} s, but {found}: is the board powered, "
        "the bitstream loaded, and the baud rate right?"
    )


def _greeting(channel, frame):
    magic, version, _, digest = frame.words
    if magic != LINK_MAGIC:
        raise DeviceError(
            f"{channel.name} must greet with 0x{LINK_MAGIC:08x}, not 0x{magic:08x}: it is not an intaglio device"
        )
    if version != LINK_VERSION:
        raise DeviceError(
            f"the device at {channel.name} must have version {LINK_VERSION} of the link, not {version}: make the bitstream "
            "with the host's version of intaglio"
        )
    return Greeting(digest=digest, window=frame.window)
