"""Figures of the serial link: faults injected on the line of a simulated board, detected and recovered; words a second.

The board is the stand-in of the tests behind the UART of the board's top, in Verilator; the host opens its tty with pyserial.
"""

import importlib.util
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from amaranth.lib.wiring import In, Out

from bench.common import Progress, figure
from intaglio import Error
from intaglio.gen.emit.link import SERIAL_TOP, serial_verilog
from intaglio.gen.synthesis.ecp5 import CELLS, synthesise_ecp5
from intaglio.host import open as open_device
from intaglio.host.device import Device
from intaglio.host.protocol import command
from intaglio.host.transport.session import LinkLost
from intaglio.rtl.bus.axi import axi4_lite
from intaglio.rtl.bus.registers import REGISTER_ADDRESS_BITS
from intaglio.sim.verilator.board import Fault, SerialBoard, build_board

__all__ = ["BAUD", "CLOCK_HZ", "cells", "figures", "load_double", "noise", "trials", "unplugged"]

CLOCK_HZ, BAUD = 8_000_000, 1_000_000
TRIALS, CONTROL, NOISY_COMMANDS, NOISE = 1000, 100, 2000, 0.003
STALL_CYCLES = 50_000_000
BYTES = {False: 30, True: 20}  # of one exchange, to the device and from it, among which a fault may hit


def load_double() -> ModuleType:
    """The module that describes the stand-in."""
    spec = importlib.util.spec_from_file_location(
        "decoder_double", Path(__file__).parents[1] / "tests" / "double" / "design.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _signs(device):
    return device.transport.statistics.faults + device.transport.statistics.repeated


def trials(
    board: SerialBoard,
    device: Device,
    following: Sequence[int],
    count: int,
    seed: int,
    *,
    inject: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Exchanges of one command and one register access, each with one fault on the line, until ``count`` faults have happened.

    Parameters
    ----------
    board : SerialBoard
    device : Device
    following : list
        The token that the stand-in answers to each.
    inject : bool
        False injects nothing: what the measure finds without faults.

    Returns
    -------
    dict : ``injected``, ``detected`` (the link saw a sign of it), ``recovered`` (the right answer, done once), ``signs_without_fault``,
        ``kinds``
    """
    rng, kinds, armed = random.Random(seed), {}, 0
    found: dict[str, Any] = {"injected": 0, "detected": 0, "recovered": 0, "signs_without_fault": 0}
    first = faults = sum(board.faults)
    signs = _signs(device)
    index = 0
    while index < count if not inject else faults - first < count:
        progress(f"faults on the line: {index} of {count}")
        index += 1
        if index > 2 * count:
            raise Error(f"{count} faults must be injected within {2 * count} exchanges, but only {faults - first} were")
        kind = rng.choice(
            (Fault.FLIP, Fault.FLIP, Fault.FLIP, Fault.DROP, Fault.DROP, Fault.DOUBLE, Fault.DOUBLE, Fault.STALL)
        )
        back = rng.random() < 0.5
        detail = STALL_CYCLES if kind == Fault.STALL else rng.randrange(10)
        device.clear_counters()
        if inject and armed == faults - first:  # the last one has happened
            armed += 1
            board.arm(kind, from_device=back, skip=rng.randrange(BYTES[back]), detail=detail)
        token = rng.randrange(250)
        device.submit([command(token, first=True, want=True)])
        result = device.receive()
        right = result.token == following[token] and result.position == 0 and device.read_register("tokens") == 1
        injected, seen = sum(board.faults) - faults, _signs(device) - signs
        faults, signs = faults + injected, signs + seen
        found["injected"] += injected
        found["detected"] += bool(injected and seen)
        if injected and not seen:
            found.setdefault("unseen", []).append((kind.name, back, detail))
        found["recovered"] += bool(injected and right)
        found["signs_without_fault"] += bool(seen and not injected)
        kinds[kind.name.lower()] = kinds.get(kind.name.lower(), 0) + injected
    return found | {"kinds": kinds}


def noise(
    board: SerialBoard,
    device: Device,
    following: Sequence[int],
    commands: int,
    seed: int,
    chance: float,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """``commands`` commands in bursts while each byte is hit with probability ``chance``: faults injected, wrong answers, commands done."""
    rng, wrong, done = random.Random(seed), 0, 0
    device.clear_counters()
    before = sum(board.faults)
    board.noise(seed, chance)
    while done < commands:
        progress(f"noise on the line: {done} of {commands} commands")
        tokens = [rng.randrange(250) for _ in range(rng.randint(1, 60))]
        answers = device.evaluate(tokens, every=True)
        wrong += sum(
            a.token != following[t] or a.position != i for i, (t, a) in enumerate(zip(tokens, answers, strict=True))
        )
        done += len(tokens)
    board.noise(seed, 0)
    return {
        "injected": sum(board.faults) - before,
        "wrong": wrong,
        "commands": done,
        "executed": device.read_register("tokens"),
    }


def unplugged(board: SerialBoard, target: str, following: Sequence[int]) -> dict[str, Any]:
    """Whether unplugging in mid-transfer is told, and whether the device generates again once it is plugged in, and in what time."""
    device = open_device(target)
    stream = device.generate_tokens([1], 60)
    next(stream)
    board.unplug()
    try:
        list(stream)
        told = False
    except LinkLost:
        told = True
    finally:
        device.close()
    board.replug()
    began = time.monotonic()
    with open_device(target) as device:
        expected = [5]
        for _ in range(20):
            expected.append(following[expected[-1]])
        again = list(device.generate_tokens([5], 20)) == expected[1:]
    return {"told": told, "recovered": again, "seconds": time.monotonic() - began}


def cells() -> dict[str, int]:
    """Cells of the serial top without the decoder, mapped to ECP5, as a dict.

    Raises
    ------
    Error
    """
    modules = serial_verilog({"top": "decoder", "digest": 64 * "5e"}, clock_hz=80_000_000, baud=2_000_000)
    streams = {
        "aclk": In(1),
        "aresetn": In(1),
        "s_axis_tdata": In(32),
        "s_axis_tvalid": In(1),
        "s_axis_tready": Out(1),
        "s_axis_tlast": In(1),
        "m_axis_tdata": Out(32),
        "m_axis_tvalid": Out(1),
        "m_axis_tready": In(1),
        "m_axis_tlast": Out(1),
    }
    bus = {f"s_axil_{name}": member for name, member in axi4_lite(REGISTER_ADDRESS_BITS).flip().members.items()}
    ports = [
        f"{'input' if member.flow is In else 'output'} [{member.shape - 1}:0] {name}"
        for name, member in (streams | bus).items()
    ]
    modules["decoder"] = "(* blackbox *) module decoder(\n  " + ",\n  ".join(ports) + "\n);\nendmodule\n"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rtl").mkdir()
        for name, text in modules.items():
            (Path(folder) / "rtl" / f"{name}.v").write_text(text)
        usages = synthesise_ecp5(folder, SERIAL_TOP, flatten=["A:*"])
    return {kind: sum(usage.count * usage.cell(kind) for usage in usages) for kind in CELLS}


def figures(folder: Path, progress: Progress) -> list[dict[str, Any]]:
    """Figures of the link, as dicts of name, value, unit, goal, anchor and class; the stand-in is written below ``folder``."""
    double = load_double()
    design = folder / "link-double"
    if not (design / "manifest.json").exists():
        double.write_design(design)
    library = build_board(design, clock_hz=CLOCK_HZ, baud=BAUD, progress=lambda text, _: progress(text))
    with SerialBoard(library, clock_hz=CLOCK_HZ, baud=BAUD) as board:
        target = f"serial:{board.port}?baud={BAUD}&manifest={design}"
        with open_device(target) as device:
            control = trials(board, device, double.NEXT, CONTROL, 1, inject=False)
            single = trials(board, device, double.NEXT, TRIALS, 2, progress=progress)
            random_ = noise(board, device, double.NEXT, NOISY_COMMANDS, 3, NOISE, progress)
        plug = unplugged(board, target, double.NEXT)
    injected = single["injected"] + 1
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(single["kinds"].items()))
    clean = random_["wrong"] == 0 and random_["executed"] == random_["commands"]
    rows = (
        ("link.faults_injected", injected, "", ">= 1000", f"one in each exchange: {kinds}, 1 unplug"),
        (
            "link.faults_detected_share",
            (single["detected"] + plug["told"]) / injected,
            "share",
            "= 1",
            f"{control['signs_without_fault']} signs in {CONTROL} exchanges without a fault",
        ),
        ("link.faults_recovered_share", (single["recovered"] + plug["recovered"]) / injected, "share", "= 1", ""),
        (
            "link.noise_commands_right_share",
            1 - random_["wrong"] / random_["commands"] if clean else 0.0,
            "share",
            "= 1",
            f"{random_['injected']} faults in {random_['commands']} commands, each done once",
        ),
        ("link.reopen_seconds", plug["seconds"], "s", "<= 10", "plugged in again: open, 20 tokens"),
    )
    progress("mapping the link")
    used = cells()
    luts = used["LUT4"] + 2 * used["CCU2C"] + 4 * used["TRELLIS_DPR16X4"]
    return [figure(name, value, unit, goal, anchor) for name, value, unit, goal, anchor in rows] + [
        {
            "name": "link.lut",
            "value": luts,
            "unit": "LUT4",
            "goal": "<= 1500",
            "class": "synthesised",
            "anchor": f"ECP5, carries, {used['TRELLIS_DPR16X4']} distributed memories; {used['TRELLIS_FF']} registers, no block RAM",
        }
    ]
