"""The host's end of the link against the device's end in Python: faults, sessions, limits."""

import time

import numpy as np
import pytest

import intaglio.host as host
from intaglio.host.device import Device
from intaglio.host.protocol import command
from intaglio.host.transport import session
from intaglio.host.transport.frames import Decoder, Frame, Kind, encode
from intaglio.host.transport.link import LinkTransport
from intaglio.host.transport.peer import Peer
from intaglio.host.transport.session import LinkLost
from tests.host.transport.channels import Line, PeerChannel


@pytest.fixture
def impatient(monkeypatch):
    """Time-outs for a line without delay."""
    monkeypatch.setattr(session, "FIRST_TIMEOUT", 0.004)
    monkeypatch.setattr(session, "LEAST_TIMEOUT", 0.002)
    monkeypatch.setattr(session, "MOST_TIMEOUT", 0.02)


class Counting:
    """The stand-in, counting what it is told."""

    def __init__(self, double):
        self.device, self.words, self.writes, self.resets = double.PythonDevice(), [], [], 0
        self.manifest, self.pending = self.device.manifest, 0
        self.reset = self._reset
        self.receive, self.read_register = self.device.receive, self.device.read_register

    def send(self, words, last, timeout):
        self.words += words.tolist()
        return self.device.send(words, last, timeout)

    def write_register(self, offset, value):
        self.writes.append((offset, value))
        self.device.write_register(offset, value)

    def _reset(self):
        self.resets += 1
        self.words.clear()
        self.device.reset()


def open_link(double, seed=0, chance=0.0, **options):
    behind = Counting(double)
    return Device(LinkTransport(PeerChannel(behind, seed, chance), behind.manifest, **options), timeout=5), behind


def work(device, behind):
    """Everything that a host does; each word and write must reach the device once."""
    for round_ in range(6):
        behind.words.clear()
        results = device.evaluate(range(40), every=True, chunk=13)
        assert [r.token for r in results] == list(range(1, 41)) and len(behind.words) == 40
        [result] = device.evaluate([7], top=16)
        np.testing.assert_array_equal(result.tokens, np.arange(8, 24))
        assert list(device.generate_tokens([5, 6], 30)) == list(range(7, 37))
        behind.writes.clear()
        for value in range(5):
            device.write_register("control", value)
        assert behind.writes == [(0x18, value) for value in range(5)]
        assert device.read_register("digest") == 0x5E5E5E5E, round_


def test_without_faults_nothing_is_repeated(double):
    device, behind = open_link(double)
    with device:
        work(device, behind)
        assert device.transport.statistics.faults == device.transport.statistics.repeated == 0
        assert behind.resets == 1 and device.transport.pending == 0
    assert device.transport.channel.closed


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("seed", range(3))
def test_faults_are_repaired_and_nothing_is_done_twice(double, seed):
    device, behind = open_link(double, seed, 0.004)
    with device:
        work(device, behind)
        faults = sum(line.faults for line in device.transport.channel.lines)
        assert faults > 30 and device.transport.statistics.faults > faults / 3  # one frame may have several
        assert behind.resets == 1


@pytest.mark.parametrize("broken", [None, "numbers", "tags"])
def test_the_bench_can_fail(double, monkeypatch, broken):
    """Every frame comes twice; a device that does not check numbers, or tags, does everything twice, and the bench sees it."""
    accept, access = Peer._accept, Peer._access
    if broken == "numbers":
        monkeypatch.setattr(
            Peer,
            "_accept",
            lambda self, frame: accept(
                self,
                Frame(kind=frame.kind, mark=frame.mark, words=frame.words, seq=(self.taken + len(self.commands)) & 255),
            ),
        )
    if broken == "tags":
        monkeypatch.setattr(
            Peer, "_access", lambda self, frame: [setattr(self, "_answered", None), access(self, frame)]
        )
    device, behind = open_link(double)
    device.transport.channel.filters.append(lambda data: data * 2)
    with device:
        if broken is None:
            work(device, behind)
        else:
            with pytest.raises((AssertionError, host.DeviceError)):
                work(device, behind)


@pytest.mark.usefixtures("impatient")
def test_whole_frames_lost_doubled_and_delayed(double):
    device, behind = open_link(double)
    channel, rng, kept = device.transport.channel, np.random.default_rng(5), []

    def change(data):
        frames = [b"\x7e" + piece + b"\x7e" for piece in data.split(b"\x7e") if piece]
        out = []
        for frame in frames:
            draw = rng.random()
            out += [] if draw < 0.1 else [frame, frame] if draw < 0.2 else [frame]
        return b"".join(out)

    channel.filters.append(change)
    channel.lines[1] = change
    with device:
        work(device, behind)
        assert device.transport.statistics.timeouts and device.transport.statistics.repeated
    assert not kept


def test_garbage_before_the_first_frame(double):
    behind = Counting(double)
    channel = PeerChannel(behind)
    channel.end.feed(bytes(range(256)) * 3)
    channel.waiting = bytes(range(255, -1, -1)) * 20 + b"\x7e\x7d"
    with Device(LinkTransport(channel, behind.manifest)) as device:
        assert device.evaluate([3])[0].token == 4


def test_a_killed_host_is_followed_by_another(double):
    """The first leaves in mid-transfer, with results on their way and half a frame; the next one gets its own results only."""
    behind = Counting(double)
    first = PeerChannel(behind)
    device = Device(LinkTransport(first, behind.manifest))
    device.transport.send(
        np.array([command(i, first=i == 0, want=True, top=3) for i in range(30)], np.uint32), np.ones(30, bool), 1
    )
    first.end.feed(encode(Frame(kind=Kind.DATA, seq=30, words=(1, 2, 3)))[:9])
    second = PeerChannel(behind)
    second.end = first.end  # the same device
    began = time.monotonic()
    with Device(LinkTransport(second, behind.manifest)) as again:
        assert again.evaluate([9, 9])[0].token == 10 and behind.resets == 2
        assert time.monotonic() - began < 1


def test_reset_forgets_everything(double):
    device, behind = open_link(double)
    with device:
        device.submit([command(1, first=True, want=True, run=20)])
        device.reset()
        assert device.evaluate([7])[0].token == 8 and behind.resets == 2
        device.submit([command(double.HANG, want=True)])
        device.timeout = 0.05
        with pytest.raises(host.DeviceTimeout, match="no word moved for 0.05 s: stream result"):
            device.receive()
        device.reset()
        assert device.evaluate([7])[0].token == 8


def test_a_session_lost_by_the_device_is_told(double):
    device, _ = open_link(double)
    with device:
        device.transport.channel.end.peer._begin(None)
        with pytest.raises(LinkLost, match="no session any more.*open it again"):
            device.read_register("status")


class Silent:
    name = "silence"

    def __init__(self, answers=b""):
        self.answers, self.closed = answers, False

    def read(self, seconds):
        time.sleep(min(seconds, 0.01))
        data, self.answers = self.answers, b""
        return data

    def write(self, data):
        pass

    def close(self):
        self.closed = True


@pytest.mark.parametrize(
    "answers, message", [(b"", "but nothing came"), (b"login: ", "but 7 bytes came, but no answer")]
)
def test_silence_is_told_in_time(double, answers, message):
    channel, began = Silent(answers), time.monotonic()
    with pytest.raises(
        host.DeviceTimeout, match=f"silence must answer the beginning of a session within 0.2 s, {message}.*baud rate"
    ):
        LinkTransport(channel, double.describe(), limit=0.2)
    assert channel.closed and time.monotonic() - began < 2


def test_a_device_that_falls_silent_is_told_in_time(double):
    device, _ = open_link(double, limit=0.2)
    with device:
        device.transport.channel.filters.append(lambda data: b"")
        with pytest.raises(
            host.DeviceTimeout, match="(nothing came from peer for 0.2 s|must answer the read of the register at 0x10)"
        ):
            device.read_register("status")
        device.transport.channel.filters.clear()
        assert device.read_register("digest") == 0x5E5E5E5E
        device.transport.channel.filters.append(lambda data: b"")
        device.transport._owed = None
        with pytest.raises(host.DeviceTimeout, match="nothing came from peer for 0.2 s"):
            device.transport.receive(1, 5)


@pytest.mark.parametrize(
    "word, value, kind, message",
    [
        (0, 0x12345678, host.DeviceError, "must greet with 0x494e4c4b, not 0x12345678"),
        (1, 2, host.DeviceError, "must have version 1 of the link, not 2: make the bitstream with"),
        (
            3,
            0x5E5E5E5F,
            host.ConfigMismatchError,
            "has the digest 0x5e5e5e5f, but its manifest says 0x5e5e5e5e: load the bitstream",
        ),
    ],
)
def test_another_device_is_refused(double, monkeypatch, word, value, kind, message):
    made = Peer.next_frame

    def change(self):
        frame = made(self)
        if frame is not None and frame.kind == Kind.HELLO:
            words = list(frame.words)
            words[word] = value
            frame = Frame(kind=frame.kind, words=tuple(words), window=frame.window)
        return frame

    monkeypatch.setattr(Peer, "next_frame", change)
    behind = Counting(double)
    with pytest.raises(kind, match=message):
        LinkTransport(PeerChannel(behind), behind.manifest)
    assert not behind.words


def test_errors_of_the_register_bus(double):
    device, behind = open_link(double)

    def refuse(offset):
        raise host.DeviceError("no")

    behind.read_register = refuse
    with (
        device,
        pytest.raises(
            host.DeviceError, match="the bus of the device at peer answered the read of the register at 0x10"
        ),
    ):
        device.read_register("status")


def test_words_not_sent_are_forgotten(double):
    """The window is full: what could not be sent in time is reported and never sent."""
    device, behind = open_link(double)
    behind.pending = 10**6  # the device takes nothing more
    words = np.arange(300, dtype=np.uint32)
    with device:
        assert device.transport.send(words, np.zeros(300, bool), 0.05) == 128 and device.transport.pending == 128
        behind.pending = 0
        assert device.transport.send(words[:5], np.zeros(5, bool), 1) == 5
        assert behind.words == [*range(128), *range(5)]


@pytest.mark.usefixtures("impatient")
def test_many_words_wrap_their_numbers(double):
    device, behind = open_link(double, 3, 0.001)
    with device:
        for start in range(0, 3000, 60):
            words = [command((start + i) % 160, first=i == 0, want=True) for i in range(60)]
            device.submit(words)
            assert [device.receive().token for _ in words] == [(start + i) % 160 + 1 for i in range(60)]
        assert len(behind.words) == 3000


def test_the_window_is_kept(double):
    """A slow device never gets more than it can hold, and the host goes on when it takes some."""
    behind, seen = Counting(double), []
    channel = PeerChannel(behind)

    def look(data):
        for frame in Decoder().feed(data):
            if frame.kind == Kind.DATA:
                seen.append(len(frame.words) + len(channel.end.peer.commands))
        return data

    channel.filters.append(look)
    with Device(LinkTransport(channel, behind.manifest)) as device:
        assert len(device.evaluate([1] * 64, every=True)) == 64
    assert 15 <= max(seen) <= 128


def test_lines_of_the_tests_do_damage():
    line = Line(1, 0.1)
    assert line(bytes(1000)) != bytes(1000) and 50 < line.faults < 150
