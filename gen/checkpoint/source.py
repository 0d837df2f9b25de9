"""Where weights come from: a folder, read a part at a time, or a checkpoint in memory, with the same methods."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from intaglio.gen.checkpoint.model import ModelConfig
from intaglio.gen.checkpoint.reader import TABLE_ROWS, CheckpointReader
from intaglio.gen.checkpoint.text import read_text
from intaglio.gen.checkpoint.weights import Checkpoint, Layer, Ternary

__all__ = ["MemoryReader", "open_source", "tables_of", "text_of"]


class MemoryReader:
    """A :class:`Checkpoint`, which is checked already, as :class:`~intaglio.gen.checkpoint.reader.CheckpointReader` shows a folder.

    No tensor of it is suspect: whoever made it in memory means it.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.config = checkpoint, checkpoint.config

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.checkpoint.layers

    def matrix(self, index: int, name: str) -> Ternary:
        return self.layers[index].matrices[name]

    def norms(self, index: int) -> Mapping[str, np.ndarray]:
        return self.layers[index].norms

    def check_layer(self, index: int) -> tuple[dict[str, float], dict[str, float]]:
        return {name: matrix.scale for name, matrix in self.layers[index].matrices.items()}, {}

    def table(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        values = self.checkpoint.embed if name == "embedding" else self.checkpoint.head
        assert values is not None
        return values[start:stop]

    def table_blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, self.config.vocab_size, TABLE_ROWS):
            yield start, self.table(name, start, start + TABLE_ROWS)

    def check_head(self) -> None:
        """There is no stored head beside the embedding."""

    def final_norm(self) -> np.ndarray:
        return self.checkpoint.final_norm

    def stored(self, index: int) -> Iterator[tuple[str, bytes]]:
        layer = self.layers[index]
        for name, matrix in sorted(layer.matrices.items()):
            yield f"{name} {matrix.scale!r}", matrix.weights.tobytes()
        for name, gains in sorted(layer.norms.items()):
            yield name, gains.tobytes()


def open_source(model: Path | str | Checkpoint) -> CheckpointReader | MemoryReader:
    """What reads ``model``, a folder or a checkpoint in memory; raises as :class:`~intaglio.gen.checkpoint.reader.CheckpointReader`."""
    return MemoryReader(model) if isinstance(model, Checkpoint) else CheckpointReader(model)


def text_of(source: CheckpointReader | MemoryReader) -> Mapping[str, bytes]:
    """Files of the source's tokenizer by name; raises as :func:`~intaglio.gen.checkpoint.text.read_text`."""
    return source.checkpoint.text if isinstance(source, MemoryReader) else read_text(source.folder, source.config)


def tables_of(config: ModelConfig) -> tuple[str, ...]:
    """Names of the tables that a model has: the embedding, and the head that is another."""
    return ("embedding",) if config.tie_word_embeddings else ("embedding", "head")
