"""Figures at the size of BitNet b1.58 2B4T: the generator on a random checkpoint of that exact layout, and the projected speed."""

import json
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
from intaglio.gen.checkpoint.published import BITNET_2B4T, model_config
from intaglio.gen.checkpoint.synthetic import write_random_checkpoint
from intaglio.gen.estimate.costs import COSTS
from intaglio.gen.estimate.decoder import estimate_decoder
from intaglio.gen.estimate.machine import machine_for

__all__ = ["figures"]

ROOM = 3.6e9  # checkpoint 1.18 GB, banks 1.73 GB, a layer as logic 0.37 GB
LIMIT_S = 7200
_CHILD = """
import json, resource, sys, time
from intaglio.gen.banks.emit import emit
from intaglio.gen.banks.layout import layout_for
layers = json.loads(sys.argv[3])
began = time.monotonic()
done = emit(sys.argv[1], sys.argv[2], layout=layout_for("tom"), layers=layers, processes=2, form=sys.argv[4])
children = resource.getrusage(resource.RUSAGE_CHILDREN)
cpu = time.process_time() + children.ru_utime + children.ru_stime
print(json.dumps({"seconds": time.monotonic() - began, "cpu": cpu, "bytes": done["bytes"], "written": len(done["written"])}))
"""


def figures(progress: Progress, folder: Path | None = None) -> list[dict[str, Any]]:
    """Seconds of one layer, minutes of the whole model, peak memory of all processes together, tokens a second.

    Parameters
    ----------
    folder : path or None
        Where the checkpoint and the banks (3 GB) are put for the time being; by default where temporary files go.
    """
    scratch = tempfile.mkdtemp(prefix="intaglio-scale-", dir=folder)
    try:
        if (free := shutil.disk_usage(scratch).free) < ROOM:
            raise Error(f"the figures at full size need {ROOM / 1e9} GB in {scratch}, and {free / 1e9:.1f} GB are free")
        write_random_checkpoint(
            f"{scratch}/model", BITNET_2B4T, seed=1, zeros=0.4, progress=lambda text, share: progress(f"2B4T: {text}")
        )
        layer = _emit(scratch, "layer", [7], progress)
        logic = _emit(scratch, "logic", [7], progress, "logic")
        whole = _emit(scratch, "whole", None, progress)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    estimate = estimate_decoder(machine_for(model_config("bitnet-2b4t"), "tom"), COSTS)
    note = (
        f"{estimate.cycles:,} cycles; without head {estimate.tokens_per_second_without_head:,.0f}; 3,306 (TOM) without"
    )
    of_layer, of_whole = (
        f"{run['bytes'] / 1e6:,.0f} MB of images, {run['cpu']:.0f} s of CPU" for run in (layer, whole)
    )
    of_logic = f"{logic['bytes'] / 1e6:,.0f} MB of gates, read at every address, {logic['cpu']:.0f} s of CPU, {logic['peak'] / 1e9:.2f} GB"
    return [
        figure(name, value, unit, goal, anchor, kind)
        for name, value, unit, goal, anchor, kind in (
            (
                "decoder2b.projected_tokens_per_second",
                estimate.tokens_per_second,
                "tokens/s",
                ">= 3306",
                note,
                "projected",
            ),
            ("gen.layer2b_seconds", layer["seconds"], "s", "<= 60", of_layer, "simulated"),
            ("gen.layer2b_logic_seconds", logic["seconds"], "s", "<= 30", of_logic, "simulated"),
            ("gen.model2b_minutes", whole["seconds"] / 60, "min", "<= 30", of_whole, "simulated"),
            (
                "gen.model2b_peak_gb",
                max(layer["peak"], whole["peak"]) / 1e9,
                "GB",
                "<= 2",
                "resident, all processes",
                "simulated",
            ),
        )
    ]


def _emit(scratch, out, layers, progress, form="image"):
    """Run the generator in a process of its own and watch the memory of its whole family."""
    began = time.monotonic()
    command = [sys.executable, "-c", _CHILD, f"{scratch}/model", f"{scratch}/{out}", json.dumps(layers), form]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    peak, ended = [0], threading.Event()

    def watch():
        while not ended.wait(0.05):
            peak[0] = max(peak[0], _resident(run.pid))
            progress(f"2B4T: banks, {out}, {time.monotonic() - began:.0f} s, {peak[0] / 1e6:,.0f} MB resident")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        text, errors = run.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        run.kill()
        raise
    finally:
        ended.set()
        watcher.join()
    if run.returncode:
        raise Error(f"the generator of banks failed: {(errors.strip().splitlines() or ['without a word'])[-1]}")
    return json.loads(text) | {"peak": peak[0]}


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
