"""One process's share of writing banks: check what is stored, write the banks of one matrix, verify what an earlier run left."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from intaglio.gen.banks.forms import FORMS
from intaglio.gen.banks.layout import BankLayout, byte_banks, matrix_banks
from intaglio.gen.checkpoint.constant import only_value
from intaglio.gen.checkpoint.quantised import hardware_order, quantise_embedding
from intaglio.gen.checkpoint.reader import CheckpointReader, end_constants
from intaglio.gen.emit.images import EXECUTION, execution_matrix
from intaglio.gen.emit.output import sources_digest

__all__ = ["Job"]


class Job:
    """Work on one checkpoint; every process opens its own.

    Parameters
    ----------
    model : path of a checkpoint folder
    layout : BankLayout
    form : str, a name of :data:`~intaglio.gen.banks.forms.FORMS`
    """

    def __init__(self, model: Path | str, layout: BankLayout, form: str) -> None:
        self.reader, self.layout, self.form = CheckpointReader(model), layout, form

    def _digest(self):
        return sources_digest(self.layout, self.form, self.reader.config)

    def check_layer(self, index: int) -> tuple[str, dict[str, float]]:
        """Raise what reading the layer would raise; the digest of everything that its banks depend on, and its suspect tensors."""
        suspect = self.reader.check_layer(index)
        key = self._digest()
        for name, data in self.reader.stored(index):
            key.update(name.encode() + len(data).to_bytes(8, "little") + data)
        return key.hexdigest(), suspect

    def check_embedding(self) -> tuple[str, dict[str, float], float]:
        """As :meth:`check_layer`, of embedding, head and final norm; and the largest magnitude of the embedding."""
        key, ends, norm = self._digest(), [], self.reader.final_norm()
        self.reader.check_head()
        key.update(norm.tobytes())
        for _, rows in self.reader.embed_blocks():
            ends += [float(rows.min()), float(rows.max())]
            key.update(rows.tobytes())
        extremes = np.array(ends)
        return key.hexdigest(), end_constants(only_value(extremes), norm), float(np.abs(extremes).max())

    def write_matrix(
        self, index: int, name: str, folder: Path | str
    ) -> tuple[dict[str, str], dict[str, float], int, int]:
        """Write the banks of one of EXECUTION's matrices; return the files' digests, the multipliers, zeros and weights."""
        matrices, scales = {}, {}
        for part in EXECUTION[name]:
            ternary = self.reader.matrix(index, part)
            matrices[part] = hardware_order(part, ternary.weights, self.reader.config.head_dim)
            scales[part] = ternary.scale
        weights = execution_matrix(name, matrices)
        digests = self._write(folder, matrix_banks(self.layout, index, name, weights), self.layout.bits)
        return digests, scales, int(weights.size - np.count_nonzero(weights)), weights.size

    def write_embedding(self, tile: int, scale: float, folder: Path | str) -> dict[str, str]:
        """Write bank ``tile`` of every unit's INT8 embedding; return the files' digests."""
        config = self.reader.config
        rows = self.layout.groups_in_bank(config.hidden_size) * self.layout.positions
        start, stop = tile * rows, min((tile + 1) * rows, config.vocab_size)
        elements = np.empty((stop - start, config.hidden_size), np.int8)
        for first in range(start, stop, 1024):
            last = min(first + 1024, stop)
            elements[first - start : last - start] = quantise_embedding(self.reader.embed(first, last), scale)
        return self._write(folder, byte_banks(self.layout, "embedding", elements, tile), 8 * self.layout.width)

    def _write(self, folder, banks, bits):
        digests = {}
        for bank, words in banks:
            for name, data in FORMS[self.form](bank, words, bits).items():
                (Path(folder) / name).write_bytes(data)
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
                if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                    return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return described
