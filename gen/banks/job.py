"""One process's share of writing banks: check what is stored, write the banks of one matrix, verify what an earlier run left."""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from intaglio.gen.banks.execution import EXECUTION, execution_matrix
from intaglio.gen.banks.forms import FORMS
from intaglio.gen.banks.layout import Bank, Placement, byte_banks, matrix_banks, scale_bank
from intaglio.gen.checkpoint.constant import only_value
from intaglio.gen.checkpoint.quantised import TableScales, hardware_order
from intaglio.gen.checkpoint.reader import end_constants
from intaglio.gen.checkpoint.source import open_source
from intaglio.gen.checkpoint.weights import Checkpoint
from intaglio.gen.sources import sources_digest
from intaglio.rtl.memory.rom import hex_text

__all__ = ["Job"]

_ROWS = 1024  # of a table that are rounded at once
_CHUNK = 1 << 22  # bytes of an image that are looked at together


class Job:
    """Work on one checkpoint; every process opens its own.

    A file is written beside its place and renamed, so that a job which is done again, or by two processes, leaves what one leaves.

    Parameters
    ----------
    model : path of a checkpoint folder, or a Checkpoint
    placement : Placement
    form : str, a name of :data:`~intaglio.gen.banks.forms.FORMS`
    """

    def __init__(self, model: Path | str | Checkpoint, placement: Placement, form: str) -> None:
        self.source, self.placement, self.form = open_source(model), placement, form

    def _digest(self):
        return sources_digest(self.placement, self.form, self.source.config)

    def check_layer(self, index: int) -> tuple[str, dict[str, float], dict[str, float]]:
        """Raise what reading the layer would raise; the digest of all that its banks depend on, its multipliers, its suspect tensors."""
        scales, suspect = self.source.check_layer(index)
        key = self._digest()
        for name, data in self.source.stored(index):
            key.update(name.encode() + len(data).to_bytes(8, "little") + data)
        return key.hexdigest(), scales, suspect

    def check_table(self, name: str) -> tuple[str, float, dict[str, float]]:
        """As :meth:`check_layer`, of "embedding" or "head" with the final norm; with the table's largest magnitude."""
        key, ends, norm = self._digest(), [], self.source.final_norm()
        if name == "embedding":
            self.source.check_head()
        key.update(name.encode() + norm.tobytes())
        for _, rows in self.source.table_blocks(name):
            ends += [float(rows.min()), float(rows.max())]
            key.update(rows.tobytes())
        extremes = np.array(ends)
        return key.hexdigest(), float(np.abs(extremes).max()), end_constants(name, only_value(extremes), norm)

    def write_matrix(self, index: int, name: str, folder: Path | str) -> tuple[dict[str, str], int, int]:
        """Write the banks of one of EXECUTION's matrices; return the files' digests, zeros and weights."""
        matrices = {
            part: hardware_order(part, self.source.matrix(index, part).weights, self.source.config.head_dim)
            for part in EXECUTION[name]
        }
        weights, layout = execution_matrix(name, matrices), self.placement.weights
        digests = self._write(folder, matrix_banks(layout, index, name, weights), layout.bits)
        return digests, int(weights.size - np.count_nonzero(weights)), weights.size

    def write_table(self, name: str, tile: int, scales: TableScales, folder: Path | str) -> dict[str, str]:
        """Write bank ``tile`` of every unit's INT8 embedding or head, and its rows' scales; return the files' digests."""
        config, layout = self.source.config, self.placement.tables
        rows = layout.tile_rows(config.hidden_size)
        start, stop = tile * rows, min((tile + 1) * rows, config.vocab_size)
        elements, of_rows = np.empty((stop - start, config.hidden_size), np.int8), []
        for first in range(start, stop, _ROWS):
            last = min(first + _ROWS, stop)
            elements[first - start : last - start], own = scales.quantise(name, self.source.table(name, first, last))
            of_rows += [] if own is None else [own]
        digests = self._write(folder, byte_banks(layout, name, elements, tile), 8 * layout.width)
        if of_rows:
            digests |= self._write(folder, [scale_bank(name, np.concatenate(of_rows), tile)], 16)
        return digests

    def _write(self, folder: Path | str, banks: Iterable[tuple[Bank, np.ndarray]], bits: int) -> dict[str, str]:
        digests = {}
        for bank, words in banks:
            for name, data in FORMS[self.form](bank, words, bits).items():
                with _replacing(Path(folder) / name) as file:
                    file.write(data)
                digests[name] = hashlib.sha256(data).hexdigest()
        return digests

    def whole(self, folder: Path | str, inputs: str) -> dict[str, Any] | None:
        """The description of ``folder`` if it was made of ``inputs`` and every file that it lists is as it was written; else None."""
        folder = Path(folder)
        try:
            described = json.loads((folder / "banks.json").read_bytes())
            if described["inputs"] != inputs:
                return None
            for name, digest in described["files"].items():
                with open(folder / name, "rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                        return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return described

    def assemble(
        self, path: Path | str, pieces: Sequence[Path | str], word: int, start: int, stop: int
    ) -> tuple[str, str]:
        """Write the image of a ROM: words ``start .. stop - 1`` of files of words, taken one after the other.

        Parameters
        ----------
        path : path
        pieces : sequence of paths
        word : int
            Bytes of a word.
        start, stop : int

        Returns
        -------
        (str, str) : SHA-256 of the words' bytes, and of the image.
        """
        raw, text, at = hashlib.sha256(), hashlib.sha256(), 0
        with _replacing(Path(path)) as out:
            for piece in pieces:
                size = os.path.getsize(piece) // word
                first, last = max(start, at), min(stop, at + size)
                with open(piece, "rb") as file:
                    file.seek((first - at) * word)
                    for begin in range(first, last, _CHUNK // word + 1):
                        data = file.read(word * (min(begin + _CHUNK // word + 1, last) - begin))
                        lines = hex_text(np.frombuffer(data, np.uint8).reshape(-1, word))
                        raw.update(data)
                        text.update(lines)
                        out.write(lines)
                at += size
        return raw.hexdigest(), text.hexdigest()

    def is_file(self, path: Path | str, digest: str) -> bool:
        """Whether a file is there and has the SHA-256 ``digest``."""
        try:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == digest
        except OSError:
            return False


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that is renamed to ``path`` when it is whole, and is not there before."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")
    try:
        with open(beside, "wb") as file:
            yield file
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
