import subprocess
import sys

import numpy as np
import pytest
import torch

import intaglio.host as host
from intaglio.host.device import Device
from intaglio.host.protocol import command


def test_host_needs_numpy_alone():
    code = (
        "import sys, intaglio.host, intaglio.host.cli, intaglio.cli\n"
        "assert not {'torch', 'amaranth', 'cocotb', 'intaglio.sim', 'intaglio.gen', 'intaglio.rtl'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tokens_are_integers_of_any_kind(device):
    for tokens in (
        [1, 2, 3],
        np.array([1, 2, 3], np.uint8),
        torch.tensor([1, 2, 3]),
        b"\x01\x02\x03",
        range(1, 4),
        iter([1, 2, 3]),
    ):
        assert device.check_tokens(tokens) == [1, 2, 3]
    for tokens in ([1.5], np.ones(3), torch.ones(3), torch.tensor([[1, 2, 3]]), [[1, 2]], "abc", [None], 7, None):
        with pytest.raises(ValueError, match="a prompt must be one sequence of integers, not"):
            device.check_tokens(tokens)


@pytest.mark.parametrize(
    "target, message",
    [("nothing", "SCHEME:REST"), ("sim:", "SCHEME:REST"), (":x", "SCHEME:REST"), ("nosuch:x", "not 'nosuch'")],
)
def test_refuses_targets(target, message):
    with pytest.raises(ValueError, match=message):
        host.open(target)


def test_opens_a_scheme(python_scheme):
    with host.open(python_scheme) as device:
        assert device.info["context"] == 64 and device.info["digest"] == "5e" * 32
    assert device.transport.closed
    with pytest.raises(host.DeviceError, match="closed"):
        device.read_register("status")
    with pytest.raises(ValueError, match="takes no option 'cache'"):
        host.open(python_scheme, cache="x")
    with pytest.raises(ValueError, match="timeout must be a positive"):
        host.open(python_scheme, timeout=0)


@pytest.mark.parametrize("name, value", [("magic", 0), ("version", 2), ("digest", 0x5E5E5E5F)])
def test_refuses_another_device(double, name, value):
    with pytest.raises(host.ConfigMismatchError, match=f"{name} register is 0x{value:08x}.*same generated folder"):
        Device(double.PythonDevice(registers={name: value}))


def test_registers(device):
    with pytest.raises(ValueError, match="register must be one of .*not 'nosuch'"):
        device.read_register("nosuch")
    with pytest.raises(ValueError, match="read-only"):
        device.write_register("magic", 1)
    with pytest.raises(ValueError, match="32 bits"):
        device.write_register("control", 1 << 32)
    device.transport.cycles = 7
    assert device.counters() == {
        "cycles": 7,
        "stall_in": 0,
        "stall_out": 0,
        "tokens": 0,
        "phases": {"busy": 7, "send": 0},
    }
    device.clear_counters()
    assert device.read_cycles() == 0


def test_command_words():
    assert command(0x1234, run=0x56, top=0x1F) == 0x1F561234
    assert command(0, want=True) == 1 << 30 and command(0, first=True) == 1 << 31
    for fields, message in (
        ({"token": 65536}, "token of a command must be in 0..65535, not 65536"),
        ({"token": 1, "run": 256}, "run of a command must be in 0..255, not 256"),
    ):
        with pytest.raises(ValueError, match=message):
            command(**fields)


def test_evaluate(device):
    [result] = device.evaluate([0, 1, 2], top=3)
    assert (result.token, result.position, result.scale) == (3, 2, 2.0**-4)
    np.testing.assert_array_equal(result.tokens, [3, 4, 5])
    np.testing.assert_array_equal(result.logits, [1000, 990, 980])
    every = device.evaluate(range(64), every=True, chunk=5)
    assert [(r.token, r.position) for r in every] == [(i + 1, i) for i in range(64)]
    with pytest.raises(ValueError, match="top must be in 0..16, not 17"):
        device.evaluate([1], top=17)


def test_negative_logits_and_exponents(device):
    device.transport.packets.append([5, 0xFFE08000, 5, 0xFFFFFFFF])
    result = device.receive()
    assert result.logits.tolist() == [-1] and result.scale == 0x8000 * 2.0**-32
    device.transport.packets.append([5, 0x7FFF8000, 5, 0xFFFFFFFF])
    with pytest.raises(host.DeviceError, match="exponent of a logit unit must be in -512..512, not 32767"):
        device.receive()


def test_a_silent_device_times_out(double, device):
    message = r"0.05 s: stream result, words done 0, .*cycle 20, status 0x00000000"
    with pytest.raises(host.DeviceTimeout, match=message) as caught:
        device.evaluate([1, 2, double.HANG])
    assert isinstance(caught.value, TimeoutError) and isinstance(caught.value, host.DeviceError)
    device.reset()
    assert device.evaluate([7])[0].token == 8


def test_a_full_context_is_told(double, device):
    device.evaluate(range(64))
    device.submit([command(1, want=True)])
    with pytest.raises(host.DeviceError, match="context of 64 tokens is full"):
        device.receive()
    device.submit([command(1, want=True, run=3), command(2), command(2, want=True), command(2, want=True)])
    with pytest.raises(host.DeviceError, match="full"):
        device.receive()
    assert device.evaluate([7])[0].token == 8  # the other refusals are not taken for answers


@pytest.mark.parametrize("packet, message", [([1, 2, 3], "not 3"), ([0] * 35, "must end within 34 words")])
def test_refuses_malformed_packets(device, packet, message):
    device.transport.packets.append(packet)
    with pytest.raises(host.DeviceError, match=message):
        device.receive()
