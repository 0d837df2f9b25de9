"""Audit of a folder of banks (``intaglio gen banks``): a matrix at a time, in several processes."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from intaglio import Error
from intaglio.gen.audit.files import check_image, check_logic, compared, read
from intaglio.gen.audit.report import Report
from intaglio.gen.banks.execution import EXECUTION, execution_matrix
from intaglio.gen.banks.forms import FORMS, module_name
from intaglio.gen.banks.layout import BankLayout, byte_banks, matrix_banks, scale_bank
from intaglio.gen.checkpoint.quantised import (
    TableScales,
    default_row_scales,
    hardware_order,
    head_constants,
    layer_constants,
)
from intaglio.gen.checkpoint.reader import CheckpointReader
from intaglio.gen.pool import Pool
from intaglio.rtl.config.decoder import logit_shift
from intaglio.rtl.memory.rom import hex_text
from intaglio.rtl.ternary.packing import unpack

__all__ = ["audit_banks"]

_TABLES = ("embedding", "head")


def audit_banks(
    folder: Path, model: Path | str, processes: int, progress: Callable[[str, float], None], report: Report
) -> None:
    """Add to ``report`` what is wrong in ``folder``.

    Raises
    ------
    Error
        The folder's description cannot be read, or is that of another model.
    """
    try:
        about = json.loads((folder / "layout.json").read_bytes())
        layout, form, described = BankLayout(**about["layout"]), about["form"], about["model"]
        parts = json.loads((folder / "manifest.json").read_bytes())["parts"]
        indices = {part: None if part in _TABLES else int(part.removeprefix("layer_")) for part in parts}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise Error(f"the layout.json and manifest.json of {folder} must be those of banks: {fault}") from fault
    reader = CheckpointReader(model)
    if described != json.loads(json.dumps(reader.config.to_json())):
        raise Error(f"the banks of {folder} must be of the model of the checkpoint, and layout.json has another")
    if form not in FORMS:
        raise Error(f"the form of the banks of {folder} must be one of {', '.join(FORMS)}, not {form!r}")
    layers = reader.config.num_hidden_layers
    if wrong := [part for part, index in indices.items() if index is not None and not 0 <= index < layers]:
        raise Error(f"the parts of {folder} must be layers 0..{layers - 1} or a table, not {wrong[0]}")
    report.files += 2
    whole = {}
    for part, digest in parts.items():
        whole[part] = _described(report, folder, part, digest)
    for path in folder.iterdir():
        if path.is_dir() and path.name not in parts:
            report.fault(path.name, "is no part that the manifest names")
    tasks: list[tuple] = []
    for part, index in indices.items():
        if index is None:
            tasks.append((part, "table", part, str(folder), whole[part]))
        else:
            tasks += [((part, name), "matrix", index, name, str(folder), part, whole[part]) for name in EXECUTION]
    scales: dict[str, dict[str, float]] = {}
    with Pool(processes, _Auditor, model, layout, form) as pool:
        for count, (key, (found, more)) in enumerate(pool.run(tasks), 1):
            report.files += found.files
            report.faults += found.faults
            report.banks += found.banks
            if key in _TABLES:
                continue
            scales.setdefault(key[0], {}).update(more)
            progress(f"{key[0]} {key[1]} read", count / len(tasks))
            if len(scales[key[0]]) == sum(map(len, EXECUTION.values())):
                part = key[0]
                _layer_ends(report, folder, part, indices[part], scales.pop(part), reader, layout, whole[part])
    report.faults.sort()
    report.banks.sort(key=lambda bank: bank.file)


def _described(report: Report, folder: Path, part: str, digest: str) -> dict[str, str]:
    """Digests of a part's files, as its description has them; what is there and not in it is a fault."""
    data = read(report, folder, f"{part}/banks.json")
    if data is None:
        return {}
    if hashlib.sha256(data).hexdigest() != digest:
        report.fault(f"{part}/banks.json", "is not what the manifest says")
    try:
        files = dict(json.loads(data)["files"])
    except (ValueError, KeyError, TypeError) as fault:
        report.fault(f"{part}/banks.json", f"is no description: {fault}")
        return {}
    there = {path.name for path in (folder / part).iterdir()} - {"banks.json"}
    for name in sorted(there - set(files)):
        report.fault(f"{part}/{name}", "is none of the part's files")
    return files


def _gains(vectors, width):
    padded = [np.pad(v, (0, -len(v) % width)).reshape(-1, width) for v in vectors]
    return hex_text(np.concatenate(padded).astype("<i2").view(np.uint8))


def _layer_ends(report, folder, part, index, scales, reader, layout, digests):
    """Gains and constants of a layer."""
    config = reader.config
    gains, constants = layer_constants(index, scales, reader.norms(index), config.head_dim, config.hidden_act)
    _end(report, folder, part, digests, _gains([gains[name] for name in config.norm_sizes], layout.width))
    wanted = {name: [scalar.m, scalar.e] for name, scalar in constants.items()}
    _told(report, folder, part, {"constants": wanted})


def _end(report, folder, part, digests, expected):
    if (found := _listed(report, folder, part, "gains.hex", digests)) is not None:
        compared(report, f"{part}/gains.hex", found, expected)


def _listed(report, folder, part, file, digests):
    """A part's file, whose digest is that of the description; None if it cannot be read."""
    found = read(report, folder, f"{part}/{file}")
    if found is not None and hashlib.sha256(found).hexdigest() != digests.get(file):
        report.fault(f"{part}/{file}", "is not what the part's description says")
    return found


def _told(report: Report, folder: Path, part: str, wanted: dict[str, Any]) -> None:
    try:
        told = json.loads((folder / part / "banks.json").read_bytes())
    except (OSError, ValueError):  # is a fault already
        return
    for name, value in wanted.items():
        if told.get(name) != value:
            report.fault(f"{part}/banks.json", f"{name} must be {value}, not {told.get(name)}")


class _Auditor:
    """What each process does."""

    def __init__(self, model: Path | str, layout: BankLayout, form: str) -> None:
        self.reader, self.layout, self.form = CheckpointReader(model), layout, form

    def matrix(
        self, index: int, name: str, folder: str, part: str, digests: dict[str, str]
    ) -> tuple[Report, dict[str, float]]:
        """Faults and banks of one of EXECUTION's matrices, and its scales."""
        report, layout = Report(folder=folder, model=""), self.layout
        matrices, scales = {}, {}
        for one in EXECUTION[name]:
            ternary = self.reader.matrix(index, one)
            matrices[one] = hardware_order(one, ternary.weights, self.reader.config.head_dim)
            scales[one] = ternary.scale
        weights = execution_matrix(name, matrices)
        for bank, words in matrix_banks(layout, index, name, weights):
            file = f"{bank.name}.{'v' if self.form == 'logic' else 'hex'}"
            found = _listed(report, Path(folder), part, file, digests)
            if found is None:
                continue
            zeros = float((unpack(words, layout.packing, layout.width) == 0).mean())  # with those that fill it up
            place = f"{part}/{file}"
            if self.form == "logic":
                check_logic(report, place, found, words, layout.bits, zeros, module_name(bank))
            else:
                check_image(report, place, found, words, layout.bits, zeros)
        return report, scales

    def table(self, name: str, folder: str, digests: dict[str, str]) -> tuple[Report, None]:
        """Banks of the embedding or of a head of its own, scales of its rows, gains and constants."""
        report, layout, config = Report(folder=folder, model=""), self.layout, self.reader.config
        tables = _TABLES[: 1 if config.tie_word_embeddings else 2]
        if name not in tables:
            report.fault(name, "is a head of its own, which the model does not have")
            return report, None
        largest = {one: max(float(np.abs(rows).max()) for _, rows in self.reader.table_blocks(one)) for one in tables}
        scales = TableScales.of(largest, bool(default_row_scales(config)))
        step = layout.tile_rows(config.hidden_size)
        for tile, start in enumerate(range(0, config.vocab_size, step)):
            stop = min(start + step, config.vocab_size)
            elements, of_rows = np.empty((stop - start, config.hidden_size), np.int8), []
            for first in range(start, stop, 1024):
                last = min(first + 1024, stop)
                block = elements[first - start : last - start]
                block[:], own = scales.quantise(name, self.reader.table(name, first, last))
                of_rows += [] if own is None else [own]
            banks = list(byte_banks(layout, name, elements, tile))
            if of_rows:
                banks.append(scale_bank(name, np.concatenate(of_rows), tile))
            for bank, words in banks:
                file = f"{bank.name}.hex"
                if (found := _listed(report, Path(folder), name, file, digests)) is not None:
                    compared(report, f"{name}/{file}", found, hex_text(words))
        gains, unit = head_constants(self.reader.final_norm(), scales.logit, logit_shift(config.hidden_size))
        wanted: dict[str, Any] = {}
        if name == "embedding":
            _end(report, Path(folder), name, digests, _gains([gains], layout.width))
            wanted = {"embed_scale": scales.embed_scale, "embed_shift": scales.embed_shift}
        if name == tables[-1]:  # the one that the head reads
            wanted["logit_unit"] = [unit.m, unit.e]
        _told(report, Path(folder), name, wanted)
        return report, None
