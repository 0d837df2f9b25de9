"""The prefill unit's Verilog behind every transport: the same results, decisions, counters and errors."""

import json
from contextlib import ExitStack

import numpy as np
import pytest

import intaglio.host as host
from intaglio.cli import main
from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.reader import save_checkpoint
from intaglio.gen.checkpoint.synthetic import random_checkpoint
from intaglio.host.attention import device as device_module
from intaglio.host.transport import open_transport, register
from tests.host.transport.channels import Board, served

pytestmark = pytest.mark.verilator

AWARE = 1 << 29  # a threshold above every divergence: all heads are query-aware


def use(device, bench, monkeypatch):
    """Runs of several kinds, a refusal, a memory that does not answer, a run after it; what all of them told."""
    cases, told = [bench.case(100, seed=101, threshold=AWARE), bench.case(40, seed=5, dense=True)], []
    for case in cases:
        runs = (case.run(device) for _ in range(8))
        run = next(run for run in runs if not run.counters["stall_out"])  # a busy host may look late
        assert case.differences(run) == set() and sum(run.phases.values()) == run.cycles
        told.append((run.values, run.map, run.aware, run.cycles, run.counters, run.phases))
    with monkeypatch.context() as patch:
        patch.setattr(device_module, "run_parameters", lambda *a, **k: {**parameters(*a, **k), "gamma16": 0})
        with pytest.raises(host.DeviceError, match=r"the device refused the parameters of the run \(status 0x0000008"):
            cases[0].run(device)
        patch.setattr(device_module, "run_parameters", lambda *a, **k: {**parameters(*a, **k), "kv_base_high": 9})
        with pytest.raises(host.DeviceError, match="the run was broken off: the memory answered a read with an error"):
            cases[1].run(device)
    with pytest.raises(host.DeviceError, match="error"):  # the bus refuses, and nobody ends for it
        device.transport.write_register(device.manifest.registers["magic"].offset, 1)
    run = cases[1].run(device)
    assert cases[1].differences(run) == set()
    data = device.read_memory(4096, 64)
    device.transport.reset()
    assert np.array_equal(device.read_memory(4096, 64), data) and data.any()
    q, k, v = bench.real(33, seed=3)
    told.append(device.attention(q, k[None], v[None], gamma=0.8))
    return told


parameters = device_module.run_parameters


def same(one, other):
    return json.dumps(one, default=np.ndarray.tolist) == json.dumps(other, default=np.ndarray.tolist)


@pytest.fixture(scope="module")
def target(small_prefill, simulation_cache):
    """The simulated unit as a target that takes no options."""
    register("unit", lambda rest, **_: open_transport(f"sim:{small_prefill}", cache=simulation_cache))
    yield "unit:small"
    register("unit", None)


@pytest.fixture(scope="module")
def expected(target, bench):
    with pytest.MonkeyPatch.context() as patch, host.open_attention(target) as device:
        return use(device, bench, patch)


@pytest.mark.parametrize("way", ["serial", "tcp", "tcp to serial", "recorded", "replayed"])
def test_every_way_gives_the_same(target, small_prefill, expected, bench, monkeypatch, tmp_path_factory, way):
    recording = tmp_path_factory.getbasetemp() / "unit.jsonl"
    with ExitStack() as stack:
        if "serial" in way:
            behind = open_transport(target)
            stack.callback(behind.close)
            board = stack.enter_context(Board(behind))
            reached = f"serial:{board.port}?manifest={small_prefill}"
        if "tcp" in way:
            inner = open_transport(reached if "serial" in way else target)
            reached = f"tcp:{stack.enter_context(served(inner))}"
        elif "serial" not in way:
            if way == "replayed" and not recording.exists():
                pytest.skip("replays what the test before it has recorded")
            reached = f"record:{recording}?target={target}" if way == "recorded" else f"replay:{recording}"
        with host.open_attention(reached) as device:
            assert same(use(device, bench, monkeypatch), expected)
            assert way != "replayed" or device.transport.left == 0


def test_the_command_over_tcp(small_prefill, simulation_cache, tmp_path, capsys):
    """`intaglio attention` against a server, compared with the exact model; what needs a simulation of its own is refused."""
    shape = dict(vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    heads = dict(num_key_value_heads=1, head_dim=16, linear_class="bitlinear", rope_theta=10000.0)
    config = ModelConfig(**shape, **heads, max_position_embeddings=64, bos_token_id=0, eos_token_id=1)
    save_checkpoint(tmp_path / "model", random_checkpoint(config))
    command = ["attention", "--model", str(tmp_path / "model"), "--text", __file__, "--tokens", "96", "--check"]
    with served(open_transport(f"sim:{small_prefill}", cache=simulation_cache)) as address:
        device = ["--device", f"tcp:{address}"]
        assert main([*command, *device, "--manifest", str(small_prefill)]) == 0
        out = capsys.readouterr().out
        assert out.count("  yes\n") == 1 and "MHz; dense: closed form" in out
        assert main([*command, *device, "--timeline", str(tmp_path / "t.json")]) == 2
        assert "--timeline needs a simulated device" in capsys.readouterr().err
        assert main([*command, *device, "--memory", "ddr4"]) == 2
        assert "the transport 'tcp' takes no option 'memory'" in capsys.readouterr().err
