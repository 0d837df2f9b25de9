"""Write the banks of one layer, some or all, in bounded memory and several processes; a run that was killed is taken up again.

Everything is checked before anything is written. A part (a layer, the embedding) is written beside its place and renamed with its
description, ``banks.json``, which names its inputs and the digest of every file; a part is kept by a later run if both still hold. So what
a killed run leaves is either whole or does not look so. ``manifest.json`` is written last. Files that no run wrote stay where they are.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from intaglio import Error, __version__
from intaglio.gen.banks.forms import FORMS
from intaglio.gen.banks.job import Job
from intaglio.gen.banks.layout import BankLayout
from intaglio.gen.checkpoint.constant import refuse_constant
from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.quantised import embedding_scales, head_constants, layer_constants
from intaglio.gen.checkpoint.reader import CheckpointReader
from intaglio.gen.emit.images import EXECUTION
from intaglio.gen.emit.output import check_folder, described, json_text
from intaglio.gen.native.rom import fastest_maker
from intaglio.gen.pool import Pool, check_processes, peak_kib
from intaglio.progress import silent
from intaglio.rtl.config.decoder import logit_shift
from intaglio.rtl.memory.rom import hex_text

__all__ = ["FORMAT", "emit", "matrix_shapes"]

FORMAT = "intaglio-banks"


def matrix_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Rows and inputs of each of EXECUTION's matrices."""
    shapes = config.matrix_shapes
    return {name: (sum(shapes[part][0] for part in parts), shapes[parts[0]][1]) for name, parts in EXECUTION.items()}


def emit(
    model: Path | str,
    out: Path | str,
    *,
    layout: BankLayout,
    layers: Iterable[int] | None = None,
    form: str = "image",
    processes: int = 2,
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
        The layers to write; None for all and the embedding.
    form : str, a name of FORMS
    processes : int, 1 to 64
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
        The checkpoint is damaged, not ternary or not tied, or has tensors that no trained model has; an argument is out of range; the
        folder holds something else, is in use, or lacks room.
    """
    reader = CheckpointReader(model)
    config = reader.config
    everything = layers is None
    if everything and not config.tie_word_embeddings:
        raise Error(
            "the head must be tied to the embedding where banks of all are written: name the layers, or use 'gen decoder'"
        )
    layers = list(range(config.num_hidden_layers)) if layers is None else sorted(set(layers))
    if not layers or not 0 <= layers[0] <= layers[-1] < config.num_hidden_layers:
        raise ValueError(f"layers must be in 0..{config.num_hidden_layers - 1}, not {layers}")
    if form not in FORMS:
        raise ValueError(f"the form of banks must be one of {', '.join(FORMS)}, not {form!r}")
    check_processes(processes)
    shapes = matrix_shapes(config)
    for rows, inputs in [*shapes.values(), (config.vocab_size, config.hidden_size)]:
        layout.banks(rows, inputs)  # raises before work starts
    run = _Run(reader, layout, form, Path(out).resolve(), progress or silent)
    if form == "logic":
        fastest_maker(
            lambda text: run.tell(text, 0.0)
        )  # compiled before the processes ask for it, or told that it is not
    _acceptable(run.out, run.about())  # before the checkpoint is read
    with Pool(processes, Job, model, layout, form) as pool:
        run.check(pool, layers, everything, allow_constant)
        with _locked(run.out, run.about()):
            run.keep(pool)
            run.need_room()
            run.write(pool)
            run.finish(everything)
        pool.peaks[os.getpid()] = peak_kib()
    return {"written": run.written, "kept": run.kept, "bytes": run.bytes, "peak_kib": sum(pool.peaks.values())}


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


@contextlib.contextmanager
def _locked(out, about):
    """Make the folder, and hold it for this process; the lock ends with the process, however that ends."""
    marker = out / "layout.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with open(out / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as busy:
                raise Error(f"the output folder must not be in use, and another run is writing to {out}") from busy
            _acceptable(out, about)
            if not marker.is_file():
                _replace(marker, about)
            for left in _partial(out):  # of a run that was killed
                shutil.rmtree(left)
            try:
                yield
            finally:
                for left in _partial(out):
                    shutil.rmtree(left, ignore_errors=True)
    except OSError as fault:
        raise Error(f"cannot write the output folder {out}: {fault}") from fault


def _partial(out):
    """Folders of parts that are being written."""
    return [
        path
        for path in out.glob(".*.partial")
        if path.is_dir() and re.fullmatch(r"\.(layer_\d+|embedding)\.partial", path.name)
    ]


def _replace(path, data):
    """Write a file so that it is there whole or not at all."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(data)
    beside.replace(path)


class _Run:
    """State of one call of :func:`emit`; parts are ``layer_00`` and so on, and ``embedding``."""

    def __init__(
        self, reader: CheckpointReader, layout: BankLayout, form: str, out: Path, tell: Callable[[str, float], None]
    ) -> None:
        self.reader, self.layout, self.form, self.out, self.tell = reader, layout, form, out, tell
        self.shapes = matrix_shapes(reader.config)
        self.inputs, self.written, self.kept, self.bytes, self.largest = {}, [], [], 0, 0.0

    def about(self):
        """Content of ``layout.json``."""
        config = self.reader.config
        layout, hidden = self.layout, config.hidden_size
        banks = {
            name: {"rows": rows, "inputs": inputs, "words": layout.banks(rows, inputs), "bits": layout.bits}
            for name, (rows, inputs) in self.shapes.items()
        }
        banks["embedding"] = {
            "rows": config.vocab_size,
            "inputs": hidden,
            "words": layout.banks(config.vocab_size, hidden),
            "bits": 8 * layout.width,
        }
        return json_text(
            {
                "format": FORMAT,
                "format_version": 1,
                "generator": __version__,
                "form": self.form,
                "layout": dataclasses.asdict(layout),
                "model": config.to_json(),
                "banks_of_a_unit": banks,
            }
        ).encode()

    def check(self, pool, layers, everything, allow_constant):
        tasks, suspect = (
            [(index, "check_layer", index) for index in layers] + [("embedding", "check_embedding")] * everything,
            {},
        )
        for count, (key, result) in enumerate(pool.run(tasks), 1):
            if key == "embedding":
                self.inputs["embedding"], suspect[key], self.largest = result
                embedding_scales(self.largest)
            else:
                self.inputs[_part(key)], suspect[_part(key)] = result
            self.tell(f"checkpoint: {count} of {len(tasks)} parts checked", 0.2 * count / len(tasks))
        if not allow_constant:
            refuse_constant({name: value for part in sorted(suspect) for name, value in suspect[part].items()})

    def keep(self, pool):
        """Find the parts of an earlier run that are whole."""
        there = [part for part in self.inputs if os.path.lexists(self.out / part)]
        if wrong := [part for part in there if not (self.out / part).is_dir()]:
            raise Error(f"files that no generator wrote must not be in the way in {self.out}: move {wrong[0]}")
        tasks = [(part, "whole", str(self.out / part), self.inputs[part]) for part in there]
        for part, whole in pool.run(tasks):
            if whole:
                self.kept.append(part)
                self.tell(f"{part} kept", 0.2)
        self.kept.sort()

    def todo(self):
        return sorted(part for part in self.inputs if part not in self.kept)

    def need_room(self):
        layout, config, need = self.layout, self.reader.config, 0
        if self.form != "image":
            return
        for part in self.todo():
            shapes = [(config.vocab_size, config.hidden_size)] if part == "embedding" else self.shapes.values()
            bits = 8 * layout.width if part == "embedding" else layout.bits
            need += sum(layout.positions * sum(layout.banks(*shape)) * (2 * -(-bits // 8) + 1) for shape in shapes)
        free = shutil.disk_usage(self.out).free
        if need > free:
            raise Error(
                f"the output folder {self.out} must have room for {need / 1e6:,.0f} MB of banks, and {free / 1e6:,.0f} MB are free"
            )

    def write(self, pool):
        (self.out / "manifest.json").unlink(missing_ok=True)
        tasks: list[tuple] = []
        left = {}
        for part in self.todo():
            (self.out / f".{part}.partial").mkdir()
            folder = str(self.out / f".{part}.partial")
            if part == "embedding":
                scale = embedding_scales(self.largest)[0]
                tiles = range(len(self.layout.banks(self.reader.config.vocab_size, self.reader.config.hidden_size)))
                tasks += [((part, tile), "write_embedding", tile, scale, folder) for tile in tiles]
                left[part] = len(tiles)
            else:
                largest_first = sorted(self.shapes, key=lambda name: -self.shapes[name][0] * self.shapes[name][1])
                tasks += [((part, name), "write_matrix", _index(part), name, folder) for name in largest_first]
                left[part] = len(self.shapes)
        results = {part: {} for part in left}
        for count, ((part, piece), result) in enumerate(pool.run(tasks), 1):
            results[part][piece] = result
            left[part] -= 1
            if not left[part]:
                self._complete(part, results.pop(part))
            self.tell(f"{part} {piece} written", 0.2 + 0.8 * count / len(tasks))

    def _complete(self, part, results):
        """Describe a part, and put it in its place."""
        partial = self.out / f".{part}.partial"
        about, extra = self._embedding(results) if part == "embedding" else self._layer(_index(part), results)
        for name, data in extra.items():
            (partial / name).write_bytes(data)
            about["files"][name] = hashlib.sha256(data).hexdigest()
        (partial / "banks.json").write_bytes(json_text(about | {"part": part, "inputs": self.inputs[part]}).encode())
        self.bytes += sum(path.stat().st_size for path in partial.iterdir())
        if (self.out / part).exists():
            self._exchange(partial, self.out / part)
        else:
            partial.rename(self.out / part)
        self.written.append(part)

    def _exchange(self, partial, place):
        """Put the files of a part where an earlier one is that is not whole, its description last; other files there stay."""
        try:
            former = [
                name for name in json.loads((place / "banks.json").read_bytes())["files"] if Path(name).name == name
            ]
        except (OSError, ValueError, KeyError, TypeError):
            former = []
        for name in ("banks.json", *former):
            (place / name).unlink(missing_ok=True)
        for path in sorted(partial.iterdir(), key=lambda path: path.name == "banks.json"):
            path.replace(place / path.name)
        partial.rmdir()

    def _layer(self, index, results):
        scales, files, zeros, weights = {}, {}, 0, 0
        for digests, of_matrix, zero, count in results.values():
            files |= digests
            scales |= of_matrix
            zeros, weights = zeros + zero, weights + count
        config = self.reader.config
        gains, constants = layer_constants(index, scales, self.reader.norms(index), config.head_dim, config.hidden_act)
        return (
            {
                "files": files,
                "constants": {name: [scalar.m, scalar.e] for name, scalar in constants.items()},
                "zero_weight_share": round(zeros / weights, 6),
            },
            {"gains.hex": self._gains([gains[name] for name in config.norm_sizes])},
        )

    def _embedding(self, results):
        config = self.reader.config
        scale, embed_scale, embed_shift = embedding_scales(self.largest)
        gains, unit = head_constants(self.reader.final_norm(), scale, logit_shift(config.hidden_size))
        return (
            {
                "files": {name: digest for digests in results.values() for name, digest in digests.items()},
                "embed_scale": embed_scale,
                "embed_shift": embed_shift,
                "logit_unit": [unit.m, unit.e],
            },
            {"gains.hex": self._gains([gains])},
        )

    def _gains(self, vectors):
        """Image of norm gains: words of ``width`` 16-bit numbers, each norm from a word of its own."""
        width = self.layout.width
        padded = [np.pad(v, (0, -len(v) % width)).reshape(-1, width) for v in vectors]
        return hex_text(np.concatenate(padded).astype("<i2").view(np.uint8))

    def finish(self, everything):
        parts = {
            part: hashlib.sha256((self.out / part / "banks.json").read_bytes()).hexdigest()
            for part in sorted(self.inputs)
        }
        _replace(
            self.out / "manifest.json",
            json_text({"format": FORMAT, "format_version": 1, "complete": everything, "parts": parts}).encode(),
        )
        self.tell("written", 1.0)


def _part(index):
    return f"layer_{index:02}"


def _index(part):
    return int(part.removeprefix("layer_"))
