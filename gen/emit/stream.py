"""The ROM images of a decoder, of any size, in bounded memory: parts as :mod:`intaglio.gen.banks` writes them, put together to images.

With one unit a lane the banks of a lane, one after the other, are its ROM; a table is a layout of one lane. Parts and images lie in a
folder of their own, ``.intaglio-parts``, in the output folder until the output is written; what a killed run left there of the same model
and widths is taken up again.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from intaglio import Error
from intaglio.gen.banks.layout import Bank, BankLayout, Placement
from intaglio.gen.banks.parts import Parts, locked, replace
from intaglio.gen.emit.images import weight_names
from intaglio.gen.emit.output import Staged
from intaglio.gen.sources import json_text, sources_digest
from intaglio.rtl.config.decoder import DecoderConfig

__all__ = ["FOLDER", "FORM", "placement_of", "staging", "streamed_images"]

FOLDER = ".intaglio-parts"
FORM = "words"  # of the parts
_TILE = 1 << 25  # bytes of a table that one job rounds
_FORMAT = "intaglio-parts"


def placement_of(config: DecoderConfig) -> Placement:
    """Where a decoder's weights and tables lie."""
    row = config.hidden // config.array  # words of a row of a table
    return Placement(
        weights=BankLayout(
            lanes=config.lanes, units=1, width=config.lane_width, height=1 << 30, packing=config.packing
        ),
        tables=BankLayout(lanes=1, units=1, width=config.array, height=max(row, _TILE // config.array)),
        row_scales=config.row_scales,
    )


@contextlib.contextmanager
def staging(out: Path, about: Any) -> Iterator[Path]:
    """The folder ``.intaglio-parts`` in ``out``, held for this process; it is removed if all went well.

    Parts of something else than ``about`` (compared by its ``repr``), which a killed run left, are removed first.

    Raises
    ------
    Error
        A folder that no generator wrote has that name, or another run uses it.
    """
    folder, marker = out / FOLDER, out / FOLDER / "parts.json"
    text = json_text({"format": _FORMAT, "inputs": sources_digest(about).hexdigest()}).encode()
    if folder.exists() and not marker.is_file() and (others := _others(folder)):
        raise Error(f"files that no generator wrote must not be in the way in {out}: move {FOLDER} ({others[0]})")
    with locked(folder):
        if marker.is_file() and marker.read_bytes() != text:
            for left in folder.iterdir():
                if left.is_dir():
                    shutil.rmtree(left)
            marker.unlink()
        replace(marker, text)
        (folder / "images").mkdir(exist_ok=True)
        for left in (folder / "images").glob(".*.new"):
            left.unlink()
        yield folder
    shutil.rmtree(folder)


def _others(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def streamed_images(
    parts: Parts, pool: Any, config: DecoderConfig, tell: Callable[[str, float], None]
) -> tuple[dict[str, Staged], dict[str, np.ndarray], dict[str, str], int]:
    """Write parts and images of weights and tables.

    Parameters
    ----------
    parts : Parts
        Checked; its ``out`` is the folder of :func:`staging`.
    pool : Pool or Cluster of :class:`~intaglio.gen.banks.job.Job`
    config : DecoderConfig
    tell : callable
        Called with a text and the share done (0 to 1).

    Returns
    -------
    (dict, dict, dict, int) : the :class:`~intaglio.gen.emit.output.Staged` images by ROM; of weights that become logic, the words as uint8
    ``[depth, bytes]``; by ROM the SHA-256 of its words; how many weights are zero.
    """
    parts.keep(pool)
    every = parts.inputs
    parts.need_room(parts.room(parts.todo(), False) + parts.room(every, True))
    parts.tell = lambda text, share: tell(text, 0.7 * share)
    parts.write(pool)
    logic, digests, tasks, inputs = {}, {}, [], {}
    for name, (pieces, word, start, stop) in _images(parts, config).items():
        if config.rom == "logic" and name in weight_names(config):
            words = np.concatenate([np.fromfile(piece, np.uint8).reshape(-1, word) for piece in pieces])[start:stop]
            logic[name], digests[name] = words, hashlib.sha256(words.tobytes()).hexdigest()
            continue
        path = parts.out / "images" / f"{name}.hex"
        made_of = [parts.about[piece.parent.name]["files"][piece.name] for piece in pieces]
        inputs[name] = sources_digest(made_of, word, start, stop).hexdigest()
        tasks.append((name, "assemble", str(path), [str(piece) for piece in pieces], word, start, stop))
    kept = _kept(parts.out / "images", inputs, pool)
    results = kept | {}
    left = [task for task in tasks if task[0] not in kept]
    for count, (name, (raw, text)) in enumerate(pool.run(left), 1):
        results[name] = {"inputs": inputs[name], "words": raw, "sha256": text}
        replace(parts.out / "images" / f"{name}.json", json_text(results[name]).encode())
        tell(f"image {name} written", 0.7 + 0.3 * count / len(left))
    digests |= {name: about["words"] for name, about in results.items()}
    staged = {name: Staged(parts.out / "images" / f"{name}.hex", about["sha256"]) for name, about in results.items()}
    return staged, logic, digests, sum(about.get("zero_weights", 0) for about in parts.about.values())


def _images(parts, config):
    """By ROM: the files of its words, bytes of a word, first word and end."""
    layout, tables, found = parts.placement.weights, parts.placement.tables, {}
    word, names = -(-layout.bits // 8), iter(weight_names(config))
    for lane in range(config.lanes):
        pieces = []
        for part, index in parts.indices.items():
            for matrix, shape in parts.shapes.items():
                for tile in range(len(layout.banks(*shape))):
                    bank = Bank(layer=index, matrix=matrix, lane=lane, unit=0, tile=tile)
                    pieces.append(parts.out / part / f"{bank.name}.bin")
        step = config.gate_words or config.weight_depth
        for start in range(0, config.weight_depth, step):
            found[next(names)] = pieces, word, start, min(start + step, config.weight_depth)
    tiles = range(len(tables.banks(config.vocab, config.hidden)))
    for table in parts.tables:
        kinds = {table: (config.array, config.vocab * config.hidden // config.array)}
        if config.row_scales:
            kinds[f"{table}_scales"] = 2, config.vocab
        for name, (size, depth) in kinds.items():
            banks = [Bank(layer=None, matrix=name, lane=0, unit=0, tile=tile) for tile in tiles]
            found[name] = [parts.out / table / f"{bank.name}.bin" for bank in banks], size, 0, depth
    return found


def _kept(folder, inputs, pool):
    """Descriptions of the images of an earlier run that are whole, by name."""
    found = {}
    for name, made_of in inputs.items():
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            about = json.loads((folder / f"{name}.json").read_bytes())
            if about["inputs"] == made_of and isinstance(about["words"], str):
                found[name] = about
    tasks = [(name, "is_file", str(folder / f"{name}.hex"), about["sha256"]) for name, about in found.items()]
    return {name: found[name] for name, whole in pool.run(tasks) if whole}
