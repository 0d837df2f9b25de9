"""The transport of Alveo cards with a stand-in for pyxrt: it checks every call, and carries out operations as the kernel does."""

import json
import sys
import types
from enum import Enum

import numpy as np
import pytest

from intaglio import Error
from intaglio.host.protocol import DeviceError, DeviceTimeout
from intaglio.host.transport import open_transport

State = Enum("ert_cmd_state", "ERT_CMD_STATE_COMPLETED ERT_CMD_STATE_TIMEOUT")
Direction = Enum("xclBOSyncDirection", "XCL_BO_SYNC_BO_TO_DEVICE XCL_BO_SYNC_BO_FROM_DEVICE")
Access = Enum("cu_access_mode", "exclusive shared none")
Flags = Enum("flags", "normal cacheable device_only")


class Buffer:
    """Host and device side of a buffer object; only ``sync`` moves data between them."""

    flags = Flags

    def __init__(self, device, size, flags, group):
        assert device.xclbin is not None and flags is Flags.normal and group in (40, 42)
        self.host, self.card, self.group = bytearray(size), bytearray(size), group

    def write(self, data, seek):
        data = memoryview(data).cast("B")
        assert seek + len(data) <= len(self.host)
        self.host[seek : seek + len(data)] = data

    def read(self, size, skip):
        return np.frombuffer(bytes(self.host[skip : skip + size]), np.int8)

    def sync(self, direction, size, offset):
        source, target = (
            (self.host, self.card) if direction is Direction.XCL_BO_SYNC_BO_TO_DEVICE else (self.card, self.host)
        )
        target[offset : offset + size] = source[offset : offset + size]


class Kernel:
    """A decoder that answers each packet of commands with its words inverted."""

    cu_access_mode = Access

    def __init__(self, device, uuid, name, mode):
        assert uuid == "uuid" and name == "intaglio_kernel" and mode is Access.exclusive
        self.device = device

    def group_id(self, argument):
        assert argument in (0, 2)
        return 40 + argument

    def __call__(self, operations, count, answers, wanted, patience):
        assert (operations.group, answers.group) == (40, 42)
        for scalar in (count, wanted, patience):
            assert type(scalar) is int and 0 <= scalar < 1 << 31
        card = self.device
        card.patiences.append(patience)
        out, taken, received = [], 0, 0
        for word in np.frombuffer(bytes(operations.card), "<u8")[:count]:
            kind, address, data = int(word) >> 60, int(word) >> 32 & 0xFFF, int(word) & 0xFFFFFFFF
            if kind < 2:
                if taken == card.deaf_after:
                    break
                card.packet.append(data ^ 0xFFFFFFFF)
                if kind == 1:
                    card.results += [w | (i == len(card.packet) - 1) << 32 for i, w in enumerate(card.packet)]
                    card.packet = []
            elif kind == 2:
                out.append(card.registers.get(address, 0) | 1 << 33 | (address not in card.registers) << 34)
            elif kind == 3:
                card.registers[address] = data
            else:
                card.resets, card.results, card.packet = card.resets + 1, [], []
            taken += 1
        while card.results and received < wanted:
            out.append(card.results.pop(0))
            received += 1
            if out[-1] >> 32 & 1:
                break
        header = len(out) << 32 | card.memory_fault << 31 | taken
        data = np.array([header, *out], "<u8").tobytes()
        answers.card[: len(data)] = data
        return types.SimpleNamespace(wait=lambda milliseconds: card.state if milliseconds > 0 else None)


class Device:
    opened = None

    def __init__(self, index):
        if index != 0:
            raise RuntimeError("no such device")
        self.xclbin, self.registers, self.results, self.packet, self.resets = None, {0x08: 0xABCD}, [], [], 0
        self.deaf_after, self.memory_fault, self.state, self.patiences = None, 0, State.ERT_CMD_STATE_COMPLETED, []
        Device.opened = self

    def load_xclbin(self, path):
        assert type(path) is str
        self.xclbin = path
        return "uuid"


@pytest.fixture
def target(tmp_path, monkeypatch):
    monkeypatch.setitem(
        sys.modules,
        "pyxrt",
        types.SimpleNamespace(
            device=Device, kernel=Kernel, bo=Buffer, xclBOSyncDirection=Direction, ert_cmd_state=State
        ),
    )
    (tmp_path / "a.xclbin").write_bytes(b"xclbin2")
    manifest = {"digest": "0" * 64, "clock_hz": 200_000_000, "kernel": {"name": "intaglio_kernel"}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return f"xrt:0?xclbin={tmp_path / 'a.xclbin'}"


def test_words_and_registers(target):
    with_card = open_transport(target)
    assert with_card.read_register(0x08) == 0xABCD
    with_card.write_register(0x18, 5)
    assert Device.opened.registers[0x18] == 5
    words = np.arange(2500, dtype=np.uint32)  # more than a run takes
    last = np.zeros(2500, bool)
    last[[1199, 2499]] = True
    assert with_card.send(words, last, 1.0) == 2500
    for part in (words[:1200], words[1200:]):
        got, ends = with_card.receive(5000, 0.5)
        assert np.array_equal(got, ~part) and ends[-1] and not ends[:-1].any()
    assert with_card.receive(10, 0.5)[0].size == 0 and Device.opened.patiences[-1] == 100_000_000
    with_card.reset()
    assert Device.opened.resets == 1
    with_card.close()
    with_card.close()
    with pytest.raises(DeviceError, match="must be open"):
        with_card.read_register(0)


def test_a_capacity_ends_a_receive(target):
    card = open_transport(target)
    assert card.send([1, 2, 3], [False, False, True], 1.0) == 3
    got, ends = card.receive(2, 1.0)
    assert list(got ^ 0xFFFFFFFF) == [1, 2] and not ends.any()
    assert list(card.receive(2, 1.0)[1]) == [True]
    assert card.receive(0, 1.0)[0].size == 0


def test_faults(target):
    card = open_transport(target)
    Device.opened.deaf_after = 1
    assert card.send([1, 2, 3], [False] * 3, 0.1) == 1
    with pytest.raises(DeviceError, match="must answer a read of register 0x40"):
        card.read_register(0x40)
    Device.opened.memory_fault = 1
    with pytest.raises(DeviceError, match="memory answered the kernel with an error"):
        card.read_register(0x08)
    Device.opened.state = State.ERT_CMD_STATE_TIMEOUT
    with pytest.raises(DeviceTimeout, match="must end its run of 1 operations within"):
        card.read_register(0x08)


def test_bad_targets(target, tmp_path, monkeypatch):
    for rest, text in (
        ("xrt:first?xclbin=a", "must name a card by its index"),
        ("xrt:0", "needs the kernel's binary"),
        ("xrt:0?xclbin=/nowhere", "must be a file"),
        ("xrt:0?bitstream=a", "must be one of manifest, xclbin"),
    ):
        with pytest.raises((Error, ValueError), match=text):
            open_transport(rest)
    with pytest.raises(DeviceError, match="card 7 must load"):
        open_transport(target.replace("xrt:0", "xrt:7"))
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="that of a card's package"):
        open_transport(target)
    (tmp_path / "manifest.json").write_text('{"kernel": {}}')
    monkeypatch.setitem(sys.modules, "pyxrt", None)
    with pytest.raises(Error, match="pyxrt, which comes with Xilinx XRT"):
        open_transport(target)
