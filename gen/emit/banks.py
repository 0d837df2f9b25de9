"""Write the banks of one layer, some or all (``intaglio gen banks``); a run that was killed is taken up again.

``layout.json`` says what the folder holds; ``manifest.json`` is written last. Files that no run wrote stay where they are.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from intaglio import Error, __version__
from intaglio.gen.banks.forms import FORMS
from intaglio.gen.banks.job import Job
from intaglio.gen.banks.layout import BankLayout, Placement
from intaglio.gen.banks.parts import Parts, locked, replace
from intaglio.gen.checkpoint.quantised import default_row_scales
from intaglio.gen.checkpoint.reader import CheckpointReader
from intaglio.gen.checkpoint.source import tables_of
from intaglio.gen.cluster import check_scheduler
from intaglio.gen.emit.output import check_folder, described
from intaglio.gen.executor import workers
from intaglio.gen.native.rom import fastest_maker
from intaglio.gen.pool import check_processes, peak_kib
from intaglio.gen.sources import json_text
from intaglio.progress import silent

__all__ = ["FORMAT", "emit"]

FORMAT = "intaglio-banks"


def emit(
    model: Path | str,
    out: Path | str,
    *,
    layout: BankLayout,
    layers: Iterable[int] | None = None,
    form: str = "image",
    processes: int = 2,
    scheduler: str | None = None,
    progress: Callable[[str, float], None] | None = None,
    allow_constant: bool = False,
) -> dict[str, Any]:
    """Write banks to the folder ``out``.

    Parameters
    ----------
    model : path of a checkpoint folder
    out : path
        Must not exist, be empty, or hold banks of the same model and layout, which are added to.
    layout : BankLayout
    layers : sequence of int or None
        The layers to write; None for all, the embedding, and the head that is another.
    form : str, a name of FORMS
    processes : int, 1 to 64
    scheduler : str or None
        Address of a Dask scheduler, whose workers do the work in place of processes here (:mod:`intaglio.gen.cluster`).
    progress : callable or None
        Called with a text and the share done (0 to 1).
    allow_constant : bool
        Accept matrices of one value throughout and norms of zeros.

    Returns
    -------
    dict : ``written`` and ``kept`` (names of parts), ``bytes`` written, ``peak_kib`` (the sum of each process's own peak).

    Raises
    ------
    Error, ValueError
        The checkpoint is damaged or not ternary, or has tensors that no trained model has; an argument is out of range; the folder holds
        something else, is in use, or lacks room.
    """
    model, out, tell = Path(model).resolve(), Path(out).resolve(), progress or silent
    reader = CheckpointReader(model)
    config = reader.config
    everything = layers is None
    layers = list(range(config.num_hidden_layers)) if layers is None else sorted(set(layers))
    if not layers or not 0 <= layers[0] <= layers[-1] < config.num_hidden_layers:
        raise ValueError(f"layers must be in 0..{config.num_hidden_layers - 1}, not {layers}")
    if form not in FORMS:
        raise ValueError(f"the form of banks must be one of {', '.join(FORMS)}, not {form!r}")
    check_processes(processes)
    check_scheduler(scheduler)
    placement = Placement(weights=layout, tables=layout, row_scales=default_row_scales(config))
    parts = Parts(reader, placement, out, layers, tables_of(config) if everything else (), tell)
    about = _about(parts, form)
    if form == "logic":  # compiled before the processes ask for it, or told that it is not
        fastest_maker(lambda text: tell(text, 0.0))
    _acceptable(out, about)  # before the checkpoint is read
    with workers(processes, scheduler, Job, model, placement, form) as pool:
        parts.check(pool, allow_constant)
        with locked(out):
            _acceptable(out, about)
            if not (out / "layout.json").is_file():
                replace(out / "layout.json", about)
            parts.keep(pool)
            parts.need_room(parts.room(parts.todo(), form == "image"))
            (out / "manifest.json").unlink(missing_ok=True)
            parts.write(pool)
            _finish(out, parts, everything)
            tell("written", 1.0)
        pool.peaks[os.getpid()] = peak_kib()
    return {"written": parts.written, "kept": parts.kept, "bytes": parts.bytes, "peak_kib": sum(pool.peaks.values())}


def _acceptable(out, about):
    """Raise unless the folder may be written to; a lock in it is no content."""
    marker = out / "layout.json"
    try:
        if marker.is_file():
            if marker.read_bytes() != about:
                raise Error(
                    f"the output folder must hold banks of the same model, layout and form, and {out} holds others"
                )
            if os.path.lexists(out / "manifest.json") and (described(out) or {}).get("format") != FORMAT:
                raise Error(f"files that no generator wrote must not be in the way in {out}: move manifest.json")
        elif not out.is_dir():
            check_folder(out, "banks")
        elif others := sorted(path.name for path in out.iterdir() if path.name != ".lock"):
            raise Error(
                f"the output folder {out} must be empty or hold banks, and holds {', '.join(others[:3])}: choose another folder"
            )
    except OSError as fault:
        raise Error(f"cannot read the output folder {out}: {fault}") from fault


def _about(parts, form):
    """Content of ``layout.json``."""
    config, layout = parts.config, parts.placement.weights
    banks = {
        name: {"rows": rows, "inputs": inputs, "words": layout.banks(rows, inputs), "bits": layout.bits}
        for name, (rows, inputs) in parts.shapes.items()
    }
    for name in tables_of(config):
        banks[name] = {
            "rows": config.vocab_size,
            "inputs": config.hidden_size,
            "words": layout.banks(config.vocab_size, config.hidden_size),
            "bits": 8 * layout.width,
        }
    return json_text(
        {
            "format": FORMAT,
            "format_version": 1,
            "generator": __version__,
            "form": form,
            "layout": dataclasses.asdict(layout),
            "model": config.to_json(),
            "banks_of_a_unit": banks,
        }
    ).encode()


def _finish(out, parts, everything):
    digests = {
        part: hashlib.sha256((out / part / "banks.json").read_bytes()).hexdigest() for part in sorted(parts.inputs)
    }
    replace(
        out / "manifest.json",
        json_text({"format": FORMAT, "format_version": 1, "complete": everything, "parts": digests}).encode(),
    )
