"""One suite over every transport, with a stand-in for a device of each kind behind it: the same answers, counters and errors."""

import importlib.util
import json
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

import intaglio.host as host
from intaglio.cli import main
from intaglio.host.attention.device import AttentionDevice
from intaglio.host.attention.quantise import quantise
from intaglio.host.device import Device
from intaglio.host.protocol import OwedRun, group, sequence
from intaglio.host.server import DeviceEnd, Server
from intaglio.host.transport import open_transport, register, session
from intaglio.host.transport.frames import MEMORY_WORDS, Decoder, Frame, Kind, encode
from intaglio.host.transport.link import LinkTransport
from tests.double.sequences import HistoryTransport
from tests.host.transport.channels import Board, PeerChannel, served

SPEC = importlib.util.spec_from_file_location("attention_double", Path(__file__).parents[2] / "double" / "attention.py")
attention = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(attention)

WAYS = ("directly", "link", "noisy link", "serial", "tcp", "tcp to serial", "recorded", "replayed")


def real(tokens, heads=1):
    rng = np.random.default_rng(tokens)
    return [rng.normal(size=(n * heads, tokens, 16)) for n in (2, 1, 1)]


def told(run):
    """What a run told, in plain Python."""
    arrays = (run.values, run.aware, run.map)
    return [None if x is None else x.tolist() for x in arrays] + [run.cycles, run.counters, run.phases]


def use_attention(device):
    """What a host does with the unit: runs that end well and otherwise, its memory, its registers."""
    answers, z = (
        [device.info],
        {n: quantise(*(x[0] if i else x for i, x in enumerate(real(n))), block=32) for n in (7, 100)},
    )
    plain = {"gamma16": 60000, "threshold": 5}
    for tokens, more in ((100, {"maps": True}), (7, {"dense": True}), (100, {"kv_head": 9, "tenant": 3})):
        answers.append(told(device.run(z[tokens], **plain, **more)))
    q, k, v = real(70, heads=2)
    answers.append(device.attention(q, k, v, maps=True).tolist())
    answers.append([told(run) for run in device.runs])
    for head, kind, message in (
        (attention.REFUSED, host.DeviceError, r"the device refused the parameters of the run \(status 0x00000080\)"),
        (attention.FAULT, host.DeviceError, "the run was broken off: the memory answered a read with an error"),
        (attention.HANG, host.DeviceTimeout, "nothing moved for .* in phase attend: 0 of 64 beats, status 0x0000000f"),
    ):
        device.timeout = 0.3
        with pytest.raises(kind, match=message):
            device.run(z[7], kv_head=head, **plain)
        device.timeout = 60.0
        answers.append(told(device.run(z[7], **plain)))  # the next one is right
    data = np.random.default_rng(3).integers(0, 256, 4 * MEMORY_WORDS * 3 + 20).astype(np.uint8)
    device.write_memory((1 << 44) - len(data), data)
    assert device.read_memory((1 << 44) - len(data), len(data)).tolist() == data.tolist()
    answers.append(device.read_memory((1 << 44) - 12, 8).tolist())
    assert device.read_memory(0, 0).tolist() == []
    for access, message in (
        (lambda: device.read_memory(2, 4), "address of a memory access must be a multiple of 4 from 0, not 2"),
        (lambda: device.read_memory(-4, 4), "address of a memory access must be a multiple of 4 from 0, not -4"),
        (lambda: device.write_memory(0, data[:7]), "length of a memory access must be a multiple of 4 from 0, not 7"),
        (lambda: device.read_memory((1 << 44) - 4, 8), r"must end within 2\^44 bytes, not at address 0x100000000004"),
    ):
        with pytest.raises(ValueError, match=message):
            access()
    with pytest.raises(host.DeviceError, match="error"):
        device.transport.write_register(device.manifest.registers["magic"].offset, 1)
    device.transport.reset()
    answers.append(told(device.run(z[100], **plain)))
    return answers


def use_decoder(device):
    """What a host does with the stand-in for a decoder."""
    answers = [device.info, [(r.token, r.position) for r in device.evaluate(range(64), every=True)]]
    device.clear_counters()
    for top in (1, 16):
        [result] = device.evaluate([0, 1, 2], top=top)
        answers.append((result.token, result.scale, result.tokens.tolist(), result.logits.tolist()))
    answers += [device.counters(), list(device.generate_tokens([1], 100)), "".join(device.generate("ab", 5))]
    for access in (lambda: device.read_memory(0, 4), lambda: device.write_memory(0, np.zeros(4, np.uint8))):
        with pytest.raises(host.DeviceError, match="the device has no memory that the host can read or write"):
            access()
    device.timeout = 0.3
    device.submit([device.command(254, first=True, want=True)])
    with pytest.raises(host.DeviceTimeout, match="no word moved for 0.3 s: stream result"):
        device.receive()
    device.timeout = 60.0
    device.reset()
    answers.append(device.evaluate([7])[0].token)
    return answers


def use_batched(device):
    """What a host does with several sequences: prompts at once, conversations, bursts that are left, refusals in the midst of a run."""

    def figures():
        wall = ("seconds", "wall_tokens_per_second", "seconds_prefill", "seconds_decode")
        return {name: value for name, value in device.last.items() if name not in wall}

    prompts = [[1] * 9, [2, 3], [4] * 5, [5], [6] * 7]
    answers = [device.info, list(device.generate_tokens_many(prompts, 12, burst=5)), figures()]
    answers += [list(device.generate_tokens_many(prompts, 4, temperature=1.0, seed=[1, 2, 3, 4, 5])), figures()]
    with device.sequence() as one, device.sequence() as two:
        for tokens in ([1, 2, 3, 4, 5], [6]):
            answers.append(list(zip(one.generate_tokens(tokens, 6), two.generate_tokens(tokens[:1], 6), strict=True)))
            answers += [list(device.generate_tokens(tokens, 20)), figures()]
    left = device.generate_tokens_many([[1], [2]], 30, burst=16)
    answers.append([next(left) for _ in range(4)])  # in the midst of a burst
    left.close()
    answers.append([(r.token, r.position) for r in device.evaluate(range(40), every=True, chunk=40)])
    full = [sequence(1), group(4), *[device.command(2, first=i == 0) for i in range(4)]] + 11 * [group(4), *4 * [3]]
    device.submit([*full, group(2, run=2), device.command(1, want=True), sequence(0), device.command(1, want=True)])
    with pytest.raises(host.RefusedError, match="context of 48 tokens is full"):
        device.receive()
    answers.append([(r.token, r.position) for r in (device.receive() for _ in range(3))])
    device.submit([group(3), device.command(1, want=True)])  # a group that is not whole: nothing is owed
    device.drain()
    device.reset()
    answers.append(device.evaluate([7])[0].token)
    return answers


KINDS = {
    "decoder": (Device, use_decoder),
    "batched decoder": (Device, use_batched),
    "attention": (AttentionDevice, use_attention),
}


@pytest.fixture(scope="module")
def unit(small_prefill):
    return json.loads((small_prefill / "manifest.json").read_text())


@pytest.fixture(scope="module")
def behind(double, unit):
    """Makes the device behind the transport, by kind."""
    return {
        "decoder": lambda: double.PythonDevice(double.describe()),
        "batched decoder": lambda: HistoryTransport(batch=4, sequences=3),
        "attention": lambda: attention.PythonAttention(unit),
    }


@pytest.fixture
def reach(behind, tmp_path, tmp_path_factory, monkeypatch):
    """Opens a device of a kind over a way, for as long as the context lasts."""

    @contextmanager
    def opened(kind, way):
        cls, recording = KINDS[kind][0], tmp_path_factory.getbasetemp() / f"every-{kind}.jsonl"
        manifest = tmp_path / "manifest.json"
        manifest.write_text(json.dumps(behind[kind]().manifest))
        register("stand-in", lambda rest, **_: behind[kind]())
        with ExitStack() as stack:
            stack.callback(register, "stand-in", None)
            if way.endswith("link"):
                if "noisy" in way:
                    for name, seconds in (("FIRST_TIMEOUT", 0.004), ("LEAST_TIMEOUT", 0.002), ("MOST_TIMEOUT", 0.02)):
                        monkeypatch.setattr(session, name, seconds)
                inner = behind[kind]()
                channel = PeerChannel(inner, 3, 0.0002 if "noisy" in way else 0.0)
                with cls(LinkTransport(channel, inner.manifest)) as device:
                    yield device
                return
            if "serial" in way:
                board = stack.enter_context(Board(behind[kind]()))
                serial = f"serial:{board.port}?baud=3000000&manifest={manifest}"
            if "tcp" in way:
                inner = open_transport(serial) if "serial" in way else behind[kind]()
                target = f"tcp:{stack.enter_context(served(inner))}"
            elif way == "replayed" and not recording.exists():
                pytest.skip("replays what the test before it has recorded")
            else:
                target = {
                    "directly": "stand-in:x",
                    "serial": way == "serial" and serial,
                    "recorded": f"record:{recording}?target=stand-in:x",
                    "replayed": f"replay:{recording}",
                }[way]
            with cls.open(target) as device:
                yield device
                assert way != "replayed" or device.transport.left == 0

    return opened


@pytest.fixture(scope="module")
def expected(behind):
    return {kind: use(cls(behind[kind]())) for kind, (cls, use) in KINDS.items()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_gives_the_same(reach, expected, kind, way):
    with reach(kind, way) as device:
        assert KINDS[kind][1](device) == expected[kind]
        if way.endswith("link"):
            faults = sum(line.faults for line in device.transport.channel.lines)
            assert bool(faults) == bool(device.transport.statistics.faults) == ("noisy" in way)


@pytest.mark.parametrize("way", ["link", "serial", "tcp", "tcp to serial"])
def test_what_is_in_memory_arrives_whole(reach, way):
    """More than a frame, a piece of the host's and the words of one number hold, to places that the pieces do not divide."""
    data = np.random.default_rng(5).integers(0, 256, (1 << 18) + 12).astype(np.uint8)
    with reach("attention", way) as device:
        device.write_memory(4096 + 8, data)
        assert np.array_equal(device.read_memory(4096 + 8, len(data)), data)
        assert device.read_memory(4096, 8).tolist() == [0] * 8


# Frames of memory


@pytest.fixture
def end(behind):
    """The device's end of the unit, in a session, and what it answers to a frame."""
    end = DeviceEnd(behind["attention"]())

    def ask(*frames):
        end.feed(b"".join(map(encode, frames)))
        return Decoder().feed(end.step())

    ask(Frame(kind=Kind.HELLO, words=(5,)))
    end.ask = ask
    return end


def test_frames_of_memory(end):
    words = tuple(range(0x7E7E7E7E, 0x7E7E7E7E + MEMORY_WORDS))  # each byte an escape
    write = Frame(kind=Kind.MEMORY, mark=True, seq=1, words=(4096, 1, *words))
    [answer] = end.ask(write)
    assert (answer.kind, answer.mark, answer.seq, answer.words) == (Kind.MEMORY, False, 1, (0,))
    [answer] = end.ask(Frame(kind=Kind.MEMORY, seq=2, words=(4096, 1, MEMORY_WORDS)))
    assert answer.words == words and not answer.mark
    assert end.ask(Frame(kind=Kind.MEMORY, seq=2, words=(0, 0, 1))) == [answer]  # the tag comes again
    assert end.transport.read_memory(4096 + (1 << 32), 8).tolist() == [0x7E] * 4 + [0x7F] + [0x7E] * 3


@pytest.mark.parametrize(
    "words, mark",
    [
        ((), True),
        ((1,), False),
        ((0, 0), True),
        ((0, 0, 0), False),
        ((0, 0, MEMORY_WORDS + 1), False),
        ((2, 0, 1), True),
    ]
    + [((0, 1 << 12, 1), False), ((0xFFFFFFFC, 0xFFF, 1, 2), True)],
)
def test_an_access_that_cannot_be_is_answered_with_an_error(end, words, mark):
    before = end.transport.memory.copy()
    [answer] = end.ask(Frame(kind=Kind.MEMORY, mark=mark, seq=9, words=words))
    assert (answer.kind, answer.mark, answer.words) == (Kind.MEMORY, True, (0,))
    assert np.array_equal(end.transport.memory, before)
    [answer] = end.ask(Frame(kind=Kind.MEMORY, seq=10, words=(0, 0, 1)))
    assert answer.words == (0,) and not answer.mark


def test_frames_that_are_too_long_are_none():
    for kind, most in ((Kind.MEMORY, MEMORY_WORDS + 2), (Kind.DATA, 15)):
        frame = Frame(kind=kind, words=tuple(range(0x7D7D7D00, 0x7D7D7D00 + most)))
        assert Decoder().feed(encode(frame)) == [frame]
        assert Decoder().feed(encode(Frame(kind=kind, words=tuple(range(most + 1))))) == [None]
        assert Decoder().feed(encode(Frame(kind=kind, words=tuple(range(most + 16))))) == [None]


def test_a_device_without_memory_answers_and_does_nothing(double):
    end = DeviceEnd(double.PythonDevice())
    end.feed(encode(Frame(kind=Kind.HELLO, words=(5,))))
    end.step()
    for words in ((0, 0, 1), (0, 0, *range(MEMORY_WORDS))):
        end.feed(encode(Frame(kind=Kind.MEMORY, mark=len(words) > 3, seq=1, words=words)))
        assert [frame.kind for frame in Decoder().feed(end.step())] == [Kind.STATUS]


def test_a_unit_that_answers_no_memory_frame_is_told_in_time(behind):
    """A link whose other end does not know the frames: an error within the limit, and the next access works."""
    inner = behind["attention"]()
    channel = PeerChannel(inner)
    channel.end.peer.memory = False
    with AttentionDevice(LinkTransport(channel, inner.manifest, limit=0.3)) as device:
        began = time.monotonic()
        with pytest.raises(host.DeviceTimeout, match="must answer the write of the memory at 0x1000 within 0.3 s"):
            device.write_memory(4096, np.zeros(8, np.uint8))
        assert time.monotonic() - began < 3 and device.read_register("status") == 0


def test_an_answer_of_another_length_is_told(behind):
    class Short(attention.PythonAttention):
        def read_memory(self, address, length):
            return super().read_memory(address, length)[4:]

    inner = Short(behind["attention"]().manifest)
    with AttentionDevice(LinkTransport(PeerChannel(inner), inner.manifest)) as device:
        with pytest.raises(host.DeviceError, match="must answer the read of the memory at 0x0 with 2 words, not 1"):
            device.read_memory(0, 8)


# What is owed, and what a server survives


def test_what_a_prefill_unit_owes():
    owed = OwedRun(control=0x18, tokens=0x100, group=2, block=32)
    packet, void = [1, 2, 3], [1, 2, 1 << 23]
    for value in (0, 2, 4):
        owed.wrote(0x18, value)
        assert not owed
    owed.wrote(0x18, 1)  # without tokens: refused
    owed.packet(void)
    owed.packet(packet)
    assert not owed
    owed.wrote(0x100, 33)
    owed.wrote(0x18, 1)
    for _ in range(4):
        assert owed
        owed.wrote(0x18, 1)  # while a run is under way: nothing
        owed.packet(packet)
    assert not owed
    owed.wrote(0x18, 1)
    owed.packet(void)
    assert not owed
    owed.wrote(0x18, 1)
    owed.clear()
    assert not owed


def test_a_client_that_leaves_a_run_is_followed_by_another(behind):
    with served(behind["attention"]()) as address:
        first = host.open_attention(f"tcp:{address}")
        first.write_register("tokens", 512)
        first.write_register("control", 1)
        first.transport.receive(5, 1)
        first.close()
        with host.open_attention(f"tcp:{address}") as device:
            assert device.attention(*real(40)).shape == (2, 40, 16)


def test_the_commands_know_both_kinds(behind, small_prefill, capsys, monkeypatch):
    """`serve` opens a unit and refuses one of another digest; `devices` names it by its manifest."""
    register("unit", lambda rest, **_: behind["attention"]())
    monkeypatch.setattr(Server, "run", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["serve", "--device", "unit:x", "--listen", "127.0.0.1:0"]) == 130
    assert "this computer only" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(attention.PythonAttention, "read_register", lambda self, offset: 0)
        assert main(["serve", "--device", "unit:x", "--listen", "127.0.0.1:0"]) == 2
        assert "the device's magic register is 0x00000000" in capsys.readouterr().err
    register("unit", None)
    with Board(behind["attention"]()) as board:
        assert main(["devices", "--port", board.port, "--manifest", str(small_prefill)]) == 0
        assert f": {small_prefill} (intaglio_" in capsys.readouterr().out


def test_a_device_of_the_other_kind_is_told(behind):
    with served(behind["attention"]()) as address, pytest.raises(host.ManifestError, match="must be a decoder"):
        host.open(f"tcp:{address}")
    with served(behind["decoder"]()) as address, pytest.raises(host.ManifestError, match="must be a prefill"):
        host.open_attention(f"tcp:{address}")
