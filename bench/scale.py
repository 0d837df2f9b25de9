"""Figures at full size: the generator on random checkpoints of the exact layouts of BitNet b1.58 2B4T and Falcon3-1B, and the projected
speed."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from bench.common import Progress, figure
from intaglio import Error
from intaglio.gen.checkpoint.published import BITNET_2B4T, FALCON3_1B, model_config
from intaglio.gen.checkpoint.synthetic import write_random_checkpoint
from intaglio.gen.estimate.costs import COSTS
from intaglio.gen.estimate.decoder import estimate_decoder
from intaglio.gen.estimate.machine import machine_for

__all__ = ["figures"]

ROOM = 5e9  # 2B4T: checkpoint 1.2 GB, banks 1.7, a layer as logic 0.4; or Falcon3-1B: checkpoint 1.4, parts 0.8, images 1.7
LIMIT_S = 7200
_COMMAND = "import sys; from intaglio.cli import main; sys.exit(main())"


def figures(progress: Progress, folder: Path | None = None) -> list[dict[str, Any]]:
    """Seconds of a check and of one layer, minutes of whole models, peak memory of all processes together, tokens a second.

    Parameters
    ----------
    folder : path or None
        Where checkpoints and outputs (5 GB) are put for the time being; by default where temporary files go.
    """
    scratch = Path(tempfile.mkdtemp(prefix="intaglio-scale-", dir=folder))
    try:
        if (free := shutil.disk_usage(scratch).free) < ROOM:
            raise Error(f"the figures at full size need {ROOM / 1e9} GB in {scratch}, and {free / 1e9:.1f} GB are free")
        found = _of_2b4t(scratch, progress) + _of_falcon(scratch, progress)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    estimate = estimate_decoder(machine_for(model_config("bitnet-2b4t"), "tom"), COSTS)
    note = (
        f"{estimate.cycles:,} cycles; without head {estimate.tokens_per_second_without_head:,.0f}; 3,306 (TOM) without"
    )
    speed = estimate.tokens_per_second
    return [figure("decoder2b.projected_tokens_per_second", speed, "tokens/s", ">= 3306", note, "projected"), *found]


def _of_2b4t(scratch, progress):
    model = _checkpoint(scratch / "2b4t", BITNET_2B4T, progress)
    check = _watched(["check", model], "check of 2B4T", progress)
    banks = ["gen", "banks", "--model", model, "-o"]
    layer = _watched([*banks, str(scratch / "layer"), "--layer", "7"], "banks of a layer of 2B4T", progress)
    logic = _watched(
        [*banks, str(scratch / "logic"), "--layer", "7", "--form", "logic"], "a layer of 2B4T as logic", progress
    )
    whole = _watched([*banks, str(scratch / "whole"), "--all"], "banks of 2B4T", progress)
    size = _size(scratch / "layer"), _size(scratch / "whole")
    of_logic = (
        f"{_size(scratch / 'logic') / 1e6:,.0f} MB of gates, each read at every address, {logic['peak'] / 1e9:.2f} GB"
    )
    for name in ("2b4t", "layer", "logic", "whole"):
        shutil.rmtree(scratch / name)
    peak = max(layer["peak"], whole["peak"]) / 1e9
    return [
        figure("check.seconds", check["seconds"], "s", "", "2B4T's layout, start of Python included"),
        figure("gen.layer2b_seconds", layer["seconds"], "s", "<= 60", f"{size[0] / 1e6:,.0f} MB of images"),
        figure("gen.layer2b_logic_seconds", logic["seconds"], "s", "<= 30", of_logic),
        figure("gen.model2b_minutes", whole["seconds"] / 60, "min", "<= 30", f"{size[1] / 1e6:,.0f} MB of images"),
        figure("gen.model2b_peak_gb", peak, "GB", "<= 2", "resident, all processes"),
    ]


def _of_falcon(scratch, progress):
    model = _checkpoint(scratch / "falcon", FALCON3_1B, progress)
    command = ["gen", "decoder", "--preset", "desk", "--model", model, "-o", str(scratch / "decoder")]
    run = _watched(command, "decoder of Falcon3-1B", progress)
    images = f"preset desk, {_size(scratch / 'decoder') / 1e6:,.0f} MB"
    return [
        figure("gen.falcon3_1b_minutes", run["seconds"] / 60, "min", "<= 30", images),
        figure("gen.falcon3_1b_peak_gb", run["peak"] / 1e9, "GB", "<= 2", "resident, all processes"),
    ]


def _checkpoint(folder, config, progress):
    """Write a random checkpoint; returns its folder as text."""
    write_random_checkpoint(
        folder, config, seed=1, zeros=0.4, progress=lambda text, share: progress(f"{folder.name}: {text}")
    )
    return str(folder)


def _size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _watched(arguments, what, progress):
    """Run ``intaglio`` in a process of its own and watch the memory of its whole family: ``seconds``, and ``peak`` in bytes."""
    began = time.monotonic()
    command = [sys.executable, "-c", _COMMAND, *arguments]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    peak, ended = [0], threading.Event()

    def watch():
        while not ended.wait(0.05):
            peak[0] = max(peak[0], _resident(run.pid))
            progress(f"{what}, {time.monotonic() - began:.0f} s, {peak[0] / 1e6:,.0f} MB resident")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        _, errors = run.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        run.kill()
        raise
    finally:
        ended.set()
        watcher.join()
    if run.returncode:
        raise Error(f"the {what} failed: {(errors.strip().splitlines() or ['without a word'])[-1]}")
    return {"seconds": time.monotonic() - began, "peak": peak[0]}


def _resident(group):
    """Bytes that the processes of a group hold, shared pages counted for each."""
    total, page = 0, os.sysconf("SC_PAGESIZE")
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int((path / "stat").read_text().rpartition(")")[2].split()[2]) == group:
                total += int((path / "statm").read_text().split()[1]) * page
        except (OSError, ValueError, IndexError):
            continue
    return total
