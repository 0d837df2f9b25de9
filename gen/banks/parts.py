"""The banks of a model in parts, one a folder: each layer, the embedding, a head of its own; in bounded memory, by several processes.

Everything is checked before anything is written. A part is written beside its place and renamed with its description, ``banks.json``, which
names its inputs and the digest of every file; a part is kept by a later run if both still hold. So what a killed run leaves is either whole
or does not look so.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from intaglio import Error
from intaglio.gen.banks.execution import matrix_shapes
from intaglio.gen.banks.layout import Placement
from intaglio.gen.checkpoint.constant import refuse_constant
from intaglio.gen.checkpoint.quantised import QuantisedLayer, TableScales, head_constants, layer_constants
from intaglio.gen.checkpoint.reader import CheckpointReader
from intaglio.gen.checkpoint.source import MemoryReader
from intaglio.gen.sources import json_text
from intaglio.rtl.config.decoder import logit_shift
from intaglio.rtl.memory.rom import hex_text

__all__ = ["Parts", "layer_part", "locked", "replace"]


def layer_part(index: int) -> str:
    """Name of a layer's part, and of its folder."""
    return f"layer_{index:02}"


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make the folder, and hold it for this process; the lock ends with the process, however that ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with open(out / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as busy:
                raise Error(f"the output folder must not be in use, and another run is writing to {out}") from busy
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
        if path.is_dir() and re.fullmatch(r"\.(layer_\d+|embedding|head)\.partial", path.name)
    ]


def replace(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(data)
    beside.replace(path)


class Parts:
    """The parts of one run.

    Parameters
    ----------
    source : CheckpointReader or MemoryReader
    placement : Placement
    out : Path
        The folder that gets a folder for each part.
    layers : sequence of int
    tables : sequence of str
        Of "embedding", "head"; none, or all that the model has.
    tell : callable
        Called with a text and the share done (0 to 1).

    Members
    -------
    inputs : dict of str
        The digest of what each part is made of.
    layers : dict of QuantisedLayer
        By index, without their matrices; after :meth:`check`.
    scales : TableScales or None
    written, kept : lists of parts
    about : dict
        Each part's description (``banks.json``); after :meth:`write`.
    bytes : int
        Written.
    """

    def __init__(
        self,
        source: CheckpointReader | MemoryReader,
        placement: Placement,
        out: Path,
        layers: Iterable[int],
        tables: Iterable[str],
        tell: Callable[[str, float], None],
    ) -> None:
        self.source, self.placement, self.out, self.tell = source, placement, out, tell
        self.config, self.shapes = source.config, matrix_shapes(source.config)
        self.indices = {layer_part(index): index for index in layers}
        self.tables = tuple(tables)
        self.inputs: dict[str, str] = {}
        self.layers: dict[int, QuantisedLayer] = {}
        self.scales: TableScales | None = None
        self.written, self.kept, self.about, self.bytes = [], [], {}, 0
        for rows, inputs in self.shapes.values():
            placement.weights.banks(rows, inputs)  # raises before work starts
        placement.tables.banks(self.config.vocab_size, self.config.hidden_size)

    def check(self, pool: Any, allow_constant: bool) -> None:
        """Read everything once; raise whatever is wrong with a value or does not fit the hardware's scalars."""
        tasks: list[tuple] = [(part, "check_layer", index) for part, index in self.indices.items()]
        tasks += [(table, "check_table", table) for table in self.tables]
        suspect, scales, largest = {}, {}, {}
        for count, (part, (digest, found, odd)) in enumerate(pool.run(tasks), 1):
            (largest if part in self.tables else scales)[part] = found
            self.inputs[part], suspect[part] = digest, odd
            self.tell(f"checkpoint: {count} of {len(tasks)} parts checked", 0.2 * count / len(tasks))
        if self.tables:
            self.scales = TableScales.of(largest, bool(self.placement.row_scales))
            head_constants(self.source.final_norm(), self.scales.logit, logit_shift(self.config.hidden_size))
        for part, index in self.indices.items():
            gains, constants = layer_constants(
                index, scales[part], self.source.norms(index), self.config.head_dim, self.config.hidden_act
            )
            self.layers[index] = QuantisedLayer({}, gains, constants)
        if not allow_constant:
            refuse_constant({name: value for part in sorted(suspect) for name, value in suspect[part].items()})

    def keep(self, pool: Any) -> None:
        """Find the parts of an earlier run that are whole."""
        there = [part for part in self.inputs if os.path.lexists(self.out / part)]
        if wrong := [part for part in there if not (self.out / part).is_dir()]:
            raise Error(f"files that no generator wrote must not be in the way in {self.out}: move {wrong[0]}")
        tasks = [(part, "whole", str(self.out / part), self.inputs[part]) for part in there]
        for part, described in pool.run(tasks):
            if described:
                self.kept.append(part)
                self.about[part] = described
                self.tell(f"{part} kept", 0.2)
        self.kept.sort()

    def todo(self) -> list[str]:
        return sorted(part for part in self.inputs if part not in self.kept)

    def room(self, parts: Iterable[str], text: bool) -> int:
        """Bytes that parts take, as images or as plain words."""
        need = 0
        for part in parts:
            layout = self.placement.tables if part in self.tables else self.placement.weights
            bits = 8 * layout.width if part in self.tables else layout.bits
            table = (self.config.vocab_size, self.config.hidden_size)
            shapes = [table] if part in self.tables else self.shapes.values()
            word = -(-bits // 8) * (1 + text) + text
            need += sum(layout.positions * sum(layout.banks(*shape)) * word for shape in shapes)
        return need

    def need_room(self, need: int) -> None:
        """Raise unless so many bytes are free where the parts go."""
        free = shutil.disk_usage(self.out).free
        if need > free:
            raise Error(
                f"the output folder {self.out} must have room for {need / 1e6:,.0f} MB of banks, and {free / 1e6:,.0f} MB are free"
            )

    def write(self, pool: Any) -> None:
        """Write the parts that are not kept."""
        tasks: list[tuple] = []
        left = {}
        for part in self.todo():
            folder = self.out / f".{part}.partial"
            folder.mkdir()
            if part in self.tables:
                tiles = range(len(self.placement.tables.banks(self.config.vocab_size, self.config.hidden_size)))
                tasks += [((part, tile), "write_table", part, tile, self.scales, str(folder)) for tile in tiles]
                left[part] = len(tiles)
            else:
                largest_first = sorted(self.shapes, key=lambda name: -self.shapes[name][0] * self.shapes[name][1])
                tasks += [
                    ((part, name), "write_matrix", self.indices[part], name, str(folder)) for name in largest_first
                ]
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
        about, extra = (self._table if part in self.tables else self._layer)(part, results)
        for name, data in extra.items():
            (partial / name).write_bytes(data)
            about["files"][name] = hashlib.sha256(data).hexdigest()
        self.about[part] = about | {"part": part, "inputs": self.inputs[part]}
        (partial / "banks.json").write_bytes(json_text(self.about[part]).encode())
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

    def _layer(self, part, results):
        layer, files, zeros, weights = self.layers[self.indices[part]], {}, 0, 0
        for digests, zero, count in results.values():
            files |= digests
            zeros, weights = zeros + zero, weights + count
        return (
            {
                "files": files,
                "constants": {name: [scalar.m, scalar.e] for name, scalar in layer.constants.items()},
                "zero_weights": zeros,
                "zero_weight_share": round(zeros / weights, 6),
            },
            {"gains.hex": self._gains([layer.gains[name] for name in self.config.norm_sizes])},
        )

    def _table(self, part, results):
        scales = self.scales
        assert scales is not None
        gains, unit = head_constants(self.source.final_norm(), scales.logit, logit_shift(self.config.hidden_size))
        about: dict[str, Any] = {
            "files": {name: digest for digests in results.values() for name, digest in digests.items()}
        }
        if part == "embedding":
            about |= {"embed_scale": scales.embed_scale, "embed_shift": scales.embed_shift}
        if part == self.tables[-1]:  # the one that the head reads
            about["logit_unit"] = [unit.m, unit.e]
        return about, {"gains.hex": self._gains([gains])} if part == "embedding" else {}

    def _gains(self, vectors):
        """Image of norm gains: words of ``width`` 16-bit numbers, each norm from a word of its own."""
        width = self.placement.weights.width
        padded = [np.pad(v, (0, -len(v) % width)).reshape(-1, width) for v in vectors]
        return hex_text(np.concatenate(padded).astype("<i2").view(np.uint8))
