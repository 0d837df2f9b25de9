"""Adapters through the host's device and the command line, on the simulated decoder."""

import json

import numpy as np
import pytest

from intaglio.cli import main
from intaglio.host import AdapterError, DeviceError
from intaglio.host import open as open_device
from intaglio.host.adapter.files import quantise_adapter, read_adapter
from intaglio.host.protocol import command, selection
from intaglio.host.transport import register
from intaglio.sim.reference.exact_decoder import ExactDecoder
from intaglio.sim.train.adapter import save_adapter
from intaglio.sim.verilator.transport import SimulationTransport
from tests.sim.adapter_bench import DATA

pytestmark = pytest.mark.verilator


@pytest.fixture(scope="module")
def folders(adapter_benches, tmp_path_factory):
    """PEFT's files of four adapters for the bench "ternary", of some of its matrices."""
    bench, out = adapter_benches("ternary"), []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        factors = {
            (layer, name): (
                rng.normal(size=(2, bench.layout["shapes"][name][1])),
                0.3 * rng.normal(size=(bench.layout["shapes"][name][0], 2)),
            )
            for layer in range(2)
            for name in ("q", "v", "up", "down")
        }
        out.append(tmp_path_factory.mktemp("peft"))
        save_adapter(out[-1], factors, base="random", digest=bench.layout["base"], alpha=4, rank=2, dtype="F32")
    return out


@pytest.fixture(scope="module")
def target(adapter_benches):
    """The bench "ternary" as a target of the host, built once for all tests."""
    bench = adapter_benches("ternary")
    register(
        "bench",
        lambda rest, *, manifest, progress: SimulationTransport(
            bench.simulation(), json.loads(json.dumps(bench.manifest))
        ),
    )
    yield "bench:ternary"
    register("bench", None)


def test_device_api(adapter_benches, folders, target):
    bench, prompt = adapter_benches("ternary"), [0, 49, 50, 51]
    model = ExactDecoder(bench.model)
    expected = {None: model.generate(prompt, 6)}
    for i, folder in enumerate(folders):
        model.adapt(quantise_adapter(read_adapter(folder, bench.layout), bench.layout))
        expected[i] = model.generate(prompt, 6)
    assert len({tuple(tokens) for tokens in expected.values()}) > 3
    with open_device(target) as device:
        assert device.adapters == []
        with pytest.raises(AdapterError, match=r"a slot that holds one \(none does\), not 0"):
            device.evaluate(prompt, adapter=0)
        assert [device.load_adapter(folder) for folder in folders[:3]] == [0, 1, 2] and device.adapters == [0, 1, 2]
        for use in (0, None, 2, 1, None):
            assert list(device.generate_tokens(prompt, 6, adapter=use)) == expected[use]
            assert device.evaluate(prompt, adapter=use)[-1].token == expected[use][0]
        with pytest.raises(AdapterError, match="memory for 3 adapters, which are all loaded: name the slot to replace"):
            device.load_adapter(folders[3])
        for slot in (3, -1, True, "1"):
            with pytest.raises(AdapterError, match=r"slot must be in 0\.\.2"):
                device.load_adapter(folders[3], slot=slot)
        damaged = bytearray((folders[3] / "adapter_model.safetensors").read_bytes())
        damaged[-3] ^= 4
        bad = folders[3].parent / "damaged"
        bad.mkdir()
        (bad / "adapter_model.safetensors").write_bytes(damaged)
        (bad / "adapter_config.json").write_bytes((folders[3] / "adapter_config.json").read_bytes())
        with pytest.raises(AdapterError, match="it is damaged"):
            device.load_adapter(bad, slot=1)
        # words damaged on the way
        write, count = device.transport.write_register, iter(range(10**6))
        device.transport.write_register = lambda offset, value: write(
            offset, value ^ (offset == DATA and next(count) == 99)
        )
        with pytest.raises(DeviceError, match="nothing has changed: the CRC-32 differs"):
            device.load_adapter(folders[3], slot=1)
        device.transport.write_register = write
        assert list(device.generate_tokens(prompt, 6, adapter=1)) == expected[1]
        assert device.load_adapter(folders[3], slot=1) == 1
        assert list(device.generate_tokens(prompt, 6, adapter=1)) == expected[3]
        device.submit([selection(0), command(1, first=True, want=True)])
        device.receive()
        device.reset()
        assert device.adapters == []
        device.submit([selection(2), command(1, first=True, want=True)])
        with pytest.raises(DeviceError, match="the slot that was selected for its sequence holds no adapter"):
            device.receive()


def test_command(target, folders, capsysbinary):
    base = ["run", "--device", target, "--prompt", "123", "--max-tokens", "5"]
    adapters = [f"--adapter={folder}" for folder in folders[:2]]
    texts = []
    for arguments in ([], adapters[:1], adapters, [*adapters, "--use", "2"], [*adapters, "--use", "0"]):
        assert main([*base, *arguments]) == 0
        texts.append(capsysbinary.readouterr().out)
    assert texts[0] == texts[4] and texts[1] == texts[2] != texts[0] and texts[3] not in (texts[0], texts[1])
    for arguments, text in (
        ([*adapters, "--use", "3"], b"--use must be in 0..2"),
        (["--use", "1"], b"--use must be in 0..0"),
        (["--adapter", str(folders[0].parent)], b"adapter_config.json must be a readable JSON file"),
        ([f"--adapter={folder}" for folder in folders], b"--adapter must be given at most 3 times"),
    ):
        assert main([*base, *arguments]) == 2
        error = capsysbinary.readouterr().err
        assert text in error and b"Traceback" not in error
