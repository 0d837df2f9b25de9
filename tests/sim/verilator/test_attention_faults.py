"""Faults of the prefill unit's Verilog, seen from the host: each ends in an error within its limit, and the next request is right."""

import time

import numpy as np
import pytest

from intaglio.host.attention import device as device_module
from intaglio.host.attention.parameters import run_parameters
from intaglio.host.attention.quantise import image
from intaglio.host.protocol import VOID, DeviceError, DeviceTimeout

pytestmark = pytest.mark.verilator

AWARE = 1 << 29
PHASES = ("load", "max", "mass", "select", "pool", "map", "attend")


@pytest.fixture
def case(bench):
    return bench.case(100, seed=101, threshold=AWARE)


@pytest.fixture(autouse=True)
def the_next_request_works(bench, device, case):
    yield
    device.transport.simulation.new_memory()
    device.timeout = 60.0
    for good in (bench.case(17, seed=17), case):
        assert good.differences(good.run(device)) == set()


def last_beat(device, case):
    """Beats of a whole run."""
    case.run(device)
    return device.read_register("beats")


@pytest.mark.parametrize("share", [0, 0.1, 0.35, 0.6, 0.8, 1])
def test_a_beat_with_an_error(device, case, share):
    device.transport.simulation.new_memory(error_beat=round(share * (last_beat(device, case) - 1)))
    with pytest.raises(
        DeviceError,
        match=r"the run was broken off: the memory answered a read with an error \(status 0x00000110, after",
    ):
        case.run(device)


@pytest.mark.parametrize("burst", [0, 3, 9, 17, 24])
def test_a_memory_that_falls_silent(device, case, burst, monkeypatch):
    monkeypatch.setattr(device_module, "MEMORY_TIMEOUT", 3000)
    device.transport.simulation.new_memory(silent_burst=burst)
    with pytest.raises(DeviceError, match="the run was broken off: the memory did not answer in time"):
        case.run(device)
    assert not device.read_register("status") & 1


def test_a_device_that_stands_still(device, case, monkeypatch):
    """Neither results nor a fault: the host's own limit ends the run, and takes it back."""
    monkeypatch.setattr(device_module, "MEMORY_TIMEOUT", 0)  # never
    device.transport.simulation.new_memory(silent_burst=12)
    device.timeout = 1.0
    began = time.monotonic()
    with pytest.raises(DeviceTimeout, match=r"nothing moved for 1 s in phase \w+: 0 of 832 beats, status 0x0000000"):
        case.run(device)
    assert time.monotonic() - began < 20 and not device.read_register("status") & 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": 0},
        {"tokens": 513},
        {"tokens": 0x3FFFF},
        {"gamma16": 0},
        {"gamma16": 65537},
        {"gamma16": 0x1FFFF},
        {"tokens": 31, "dense": 0},
    ],
    ids=str,
)
def test_wrong_parameters_are_refused(device, case, wrong, monkeypatch):
    """Nothing is read and nothing computed: the counters of the run before stay, and the next run begins at once."""
    case.run(device)
    before = {name: device.read_register(name) for name in ("beats", "rows", "misses")}
    assert all(before.values())
    with monkeypatch.context() as patch:  # undone before the next request
        patch.setattr(device_module, "run_parameters", lambda *a, **k: run_parameters(*a, **k) | wrong)
        with pytest.raises(DeviceError, match=r"the device refused the parameters of the run \(status 0x0000008"):
            case.run(device)
    assert device.read_register("status") == 0x80
    assert {name: device.read_register(name) for name in before} == before and device.read_register("cycles_lo") == 0


def begin(device, case):
    memory = image(case.z, block=32)
    device.write_memory(memory.origin, memory.data)
    device.write_register("control", 4)
    values = run_parameters(memory, tokens=case.tokens, block=32, gamma16=case.gamma16, threshold=case.threshold)
    for name, value in values.items():
        device.write_register(name, value)
    device.write_register("control", 1)


@pytest.mark.parametrize("phase", PHASES)
def test_cancel(device, case, phase):
    """A void beat within few cycles, whatever the unit is at, and no beat after it."""
    simulation = device.transport.simulation
    for later in (0, 7, 100):
        begin(device, case)
        for _ in range(100_000):
            if device._phase() == phase:
                break
            simulation.idle(1)
        else:
            raise AssertionError(f"the run never was in phase {phase}")
        simulation.idle(later)
        device.write_register("control", 2)
        words, last = simulation.run(6000, 200, at_last=False)
        assert words[-3:].tolist() == [0, 0, VOID] and last[-1] and not (words[2:-3:3] & VOID).any()
        assert device.read_register("status") == 1 << 8
        assert len(simulation.run(100, 500)[0]) == 0


def test_cancel_without_a_run(device, case):
    device.write_register("control", 2)
    assert len(device.transport.simulation.run(100, 200)[0]) == 0
    begin(device, case)
    device.write_register("control", 1)  # while busy: nothing
    assert case.differences(case.run(device)) == set()  # the host takes the run back that nobody waits for


def test_an_interrupted_call(bench, device):
    """Ctrl-C in the middle: the results of that run reach nobody."""
    calls = []

    def stop(text, share):
        calls.append(text)
        if len(calls) == 2:
            raise KeyboardInterrupt

    q, k, v = bench.real(512, seed=9)
    with pytest.raises(KeyboardInterrupt):
        device.attention(q, k[None], v[None], progress=stop)
    assert not device.read_register("status") & 1
    assert len(device.transport.simulation.run(100, 500)[0]) == 0


def test_a_fault_in_the_second_head(bench, device):
    """The call fails as a whole; what came before is told by the runs."""
    parts = [bench.real(70, seed=seed) for seed in (1, 2)]
    q, k, v = np.concatenate([p[0] for p in parts]), np.stack([p[1] for p in parts]), np.stack([p[2] for p in parts])
    write = device.transport.write_memory

    def second(address, data):
        device.transport.simulation.new_memory(error_beat=50 if device.runs else None)
        write(address, data)

    device.transport.write_memory = second
    try:
        with pytest.raises(DeviceError, match="the memory answered a read with an error"):
            device.attention(q, k, v)
    finally:
        del device.transport.write_memory
    assert len(device.runs) == 1
