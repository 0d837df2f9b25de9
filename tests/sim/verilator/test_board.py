"""One device behind every transport, and a board behind a real tty: its UART and link in Verilator, faults on the line."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import intaglio.host as host
from bench import link as bench
from intaglio.host.protocol import command
from intaglio.host.transport import open_transport
from intaglio.host.transport.session import LinkLost
from intaglio.sim.verilator.board import Fault, SerialBoard, build_board
from intaglio.sim.verilator.library import SimulationError
from tests.host.transport.channels import served

pytestmark = pytest.mark.verilator

CACHE = Path(__file__).parents[3] / "build" / "test-cache"
CLOCK_HZ, BAUD = bench.CLOCK_HZ, bench.BAUD
double = bench.load_double()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return double.write_design(tmp_path_factory.mktemp("design") / "generated")


@pytest.fixture(scope="module")
def library(folder):
    return build_board(folder, clock_hz=CLOCK_HZ, baud=BAUD, cache=CACHE)


@pytest.fixture
def board(library):
    with SerialBoard(library, clock_hz=CLOCK_HZ, baud=BAUD) as board:
        yield board


@pytest.fixture
def target(board, folder):
    return f"serial:{board.port}?baud={BAUD}&manifest={folder}"


# One suite over every transport


def exercise(device):
    """What a host does with the stand-in; the answers, which must be the same over every transport."""
    answers = [
        device.info["digest"],
        device.info["capabilities"],
        [(r.token, r.position) for r in device.evaluate(range(64), every=True)],
    ]
    device.clear_counters()
    for top in (1, 16):
        [result] = device.evaluate([0, 1, 2], top=top)
        answers.append((result.token, result.position, result.scale, result.tokens.tolist(), result.logits.tolist()))
    answers.append(device.read_register("tokens"))
    answers.append(list(device.generate_tokens([1], 100)))  # to the end of the context
    answers.append(device.last["finish"])
    answers.append(list(device.generate_tokens([5], 8, temperature=0.7, seed=3)))
    answers.append("".join(device.generate("ab", 5)))
    device.submit([command(0, first=True)] + [command(0)] * 63 + [command(7, want=True)])
    with pytest.raises(host.DeviceError, match=r"context of 64 tokens is full \(status 0x0*2\)"):
        device.receive()
    device.write_register("status", 2)
    answers.append(device.read_register("status"))
    device.submit([command(9, first=True, want=True, run=5)])
    device.reset()
    answers.append(device.evaluate([7])[0].token)
    return answers


@pytest.fixture(scope="module")
def expected(folder):
    with host.open(f"sim:{folder}", cache=CACHE) as device:
        answers = exercise(device)
    assert answers[2] == [(i + 1, i) for i in range(64)] and answers[-1] == 8  # the stand-in's table
    return answers


@pytest.mark.parametrize("kind", ["serial", "tcp", "tcp to serial", "recorded", "replayed"])
def test_every_transport_gives_the_same(kind, folder, target, expected, tmp_path_factory):
    recording = tmp_path_factory.getbasetemp() / "exercise.jsonl"
    if kind == "serial":
        with host.open(target) as device:
            assert exercise(device) == expected
    elif kind.startswith("tcp"):
        behind = open_transport(target) if "serial" in kind else open_transport(f"sim:{folder}", cache=CACHE)
        with served(behind) as address, host.open(f"tcp:{address}") as device:
            assert exercise(device) == expected
    elif kind == "recorded":
        with host.open(f"record:{recording}?target={target}") as device:
            assert exercise(device) == expected
    else:
        if not recording.exists():
            pytest.skip("replays what the test before it has recorded")
        with host.open(f"replay:{recording}") as device:
            assert exercise(device) == expected and device.transport.left == 0


def figures(device):
    """What the device's counters say of generations: the same on every transport, for a cycle of the decoder depends on nothing outside."""
    names = ("cycles_prefill", "cycles_decode", "tokens_decode", "first_token_seconds", "tokens_per_second", "finish")
    found = []
    for prompt, count, options in (
        ("abc", 1, {}),
        ("abc", 2, {}),
        ("abc", 3, {}),
        ("a", 40, {}),
        ("abc", 20, {"stop": "hi"}),
        ("abc", 9, {"temperature": 0.8, "seed": 2}),
        ("\x7b", 20, {}),
    ):
        text = "".join(device.generate(prompt, count, **options))
        found.append((text, *(device.last[name] for name in names)))
    return found


@pytest.fixture(scope="module")
def expected_figures(folder):
    with host.open(f"sim:{folder}", cache=CACHE) as device:
        found = figures(device)
    assert [row[1:4] for row in found[:3]] == [
        (25, 0, 0),
        (25, 7, 1),
        (25, 14, 2),
    ]  # six cycles a token, and one for each answer
    return found


@pytest.mark.parametrize("kind", ["serial", "tcp", "tcp to serial", "recorded", "replayed"])
def test_figures_are_the_same_on_every_transport(kind, folder, target, expected_figures, tmp_path_factory):
    recording = tmp_path_factory.getbasetemp() / "figures.jsonl"
    if kind == "serial":
        with host.open(target) as device:
            assert figures(device) == expected_figures
    elif kind.startswith("tcp"):
        behind = open_transport(target) if "serial" in kind else open_transport(f"sim:{folder}", cache=CACHE)
        with served(behind) as address, host.open(f"tcp:{address}") as device:
            assert figures(device) == expected_figures
    elif kind == "recorded":
        with host.open(f"record:{recording}?target={target}") as device:
            assert figures(device) == expected_figures
    else:
        if not recording.exists():
            pytest.skip("replays what the test before it has recorded")
        with host.open(f"replay:{recording}") as device:
            assert figures(device) == expected_figures and device.transport.left == 0


@pytest.mark.parametrize("kind", ["sim", "serial", "tcp"])
def test_a_silent_device_times_out_and_recovers(kind, folder, target):
    @contextmanager
    def opened():
        if kind == "serial":
            with host.open(target, timeout=0.3) as device:
                yield device
        elif kind == "sim":
            with host.open(f"sim:{folder}", cache=CACHE, timeout=0.3) as device:
                yield device
        else:
            with (
                served(open_transport(f"sim:{folder}", cache=CACHE)) as address,
                host.open(f"tcp:{address}", timeout=0.3) as device,
            ):
                yield device

    with opened() as device:
        device.submit([command(double.HANG, first=True), command(1, want=True)])
        with pytest.raises(
            host.DeviceTimeout,
            match=r"stream result, words done 0.* 1 command words not taken, cycle \d+, status 0x0*1",
        ):
            device.receive()
        device.reset()
        assert device.evaluate([7])[0].token == 8


# The board


def test_single_faults_are_detected_and_repaired(board, target):
    with host.open(target) as device:
        found = bench.trials(board, device, double.NEXT, 60, seed=11)
        assert found["injected"] == 60 and len(found["kinds"]) == 4 and all(found["kinds"].values())
        assert found["detected"] == found["recovered"] == 60


def test_noise_loses_nothing_and_repeats_nothing(board, target):
    with host.open(target) as device:
        found = bench.noise(board, device, double.NEXT, 400, seed=5, chance=0.004)
        assert found["injected"] > 10 and found["wrong"] == 0 and found["executed"] == found["commands"] >= 400


def test_the_filter_hides_glitches(board, target):
    with host.open(target) as device:
        for bit in range(10):
            board.arm(Fault.GLITCH, skip=bit, detail=bit)
            assert device.evaluate([bit])[0].token == bit + 1
        assert board.faults == (10, 0) and device.transport.statistics.bad == device.transport.statistics.requests == 0


@pytest.mark.parametrize("host_baud", [0.975 * BAUD, 1.025 * BAUD])
def test_clocks_of_both_ends_differ(library, folder, host_baud):
    with SerialBoard(library, clock_hz=CLOCK_HZ, baud=BAUD, host_baud=host_baud) as board:
        with host.open(f"serial:{board.port}?manifest={folder}") as device:
            assert [r.token for r in device.evaluate(range(40), every=True)] == list(range(1, 41))
            assert device.transport.statistics.bad == device.transport.statistics.requests == 0


def test_another_bitstream_is_refused(board, tmp_path):
    wrong = double.write_design(tmp_path / "wrong", digest="ab" * 32)
    with pytest.raises(
        host.ConfigMismatchError, match="but its manifest says 0xabababab: load the bitstream of this manifest"
    ):
        host.open(f"serial:{board.port}?manifest={wrong}")


def test_unplugged_and_plugged_in_again(board, target):
    found = bench.unplugged(board, target, double.NEXT)
    assert found["told"] and found["recovered"] and found["seconds"] < 10


def test_the_reset_button_is_noticed(board, target):
    with host.open(target) as device:
        device.evaluate([3])
        board.reset()
        with pytest.raises(LinkLost, match="no session any more"):
            device.evaluate([3])
    with host.open(target) as device:
        assert device.evaluate([3])[0].token == 4


def test_garbage_before_the_first_frame(board, target):
    for data in (b"\xff" * 300, bytes(range(256)), b"\x7e" * 20 + b"\x7d", np.random.default_rng(1).bytes(500)):
        with open(board.port, "wb", buffering=0) as line:
            line.write(data)
        with host.open(target) as device:
            assert device.evaluate([3])[0].token == 4


def test_a_killed_host_is_followed_by_another(board, target):
    """A process is killed in the middle of a transfer; the next one opens the same board within seconds, without a power cycle."""
    code = (
        "import intaglio.host as host\nfrom intaglio.host.protocol import command\n"
        f"with host.open({target!r}) as device:\n    print('open', flush=True)\n    while True:\n"
        "        device.evaluate(range(60), every=True, top=16)\n"
    )
    for delay in (0.0, 0.13):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "open\n"
            time.sleep(delay)
            os.kill(process.pid, signal.SIGKILL)
        began = time.monotonic()
        with host.open(target) as device:
            assert [r.token for r in device.evaluate(range(20), every=True)] == list(range(1, 21))
        assert time.monotonic() - began < 10


def test_a_board_that_has_failed_is_told(library):
    board = SerialBoard(library, clock_hz=CLOCK_HZ, baud=BAUD)
    with pytest.raises(ValueError, match="detail of a flip or glitch must be in 0..9, not 10"):
        board.arm(Fault.FLIP, detail=10)
    with pytest.raises(ValueError, match="only be on the line to the device"):
        board.arm(Fault.GLITCH, from_device=True)
    board.close()
    board.close()
    with pytest.raises(SimulationError, match="the board is closed"):
        board.reset()
    assert not Path(board.port).exists()
