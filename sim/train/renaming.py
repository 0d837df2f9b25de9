"""Training windows whose identifiers are made up, so that only text far behind says how a name goes on.

Names of the corpus are learnt by heart; a name that occurs nowhere else must be copied from where the window has it first.
"""

import builtins
import keyword
import re
from collections import Counter
from collections.abc import Iterable

import torch

__all__ = ["IGNORED", "Renamer"]

IGNORED = -100  # a target that cross_entropy leaves out
COMMON = 200  # a word that occurs more often in the corpus keeps its name
_WORD = re.compile(rb"[A-Za-z_][A-Za-z0-9_]{5,}")


class Renamer:
    """Renames about half of a window's less common identifiers of six letters or more, each to a made-up name of its length.

    Parameters
    ----------
    texts : list of bytes
        The corpus.
    """

    def __init__(self, texts: Iterable[bytes]) -> None:
        counts = Counter()
        for text in texts:
            counts.update(_WORD.findall(text))
        self.kept = {word for word, count in counts.items() if count > COMMON}
        self.kept |= {word.encode() for word in (*keyword.kwlist, *dir(builtins))}

    def __call__(self, window: torch.Tensor, positions: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Rename in one window, in place.

        Parameters
        ----------
        window : int64 tensor ``[time]`` of bytes
        positions : int64 tensor ``[length]``, increasing
            Those of the window's bytes that the model reads. Only names that it reads twice or more are renamed.
        generator : torch.Generator

        Returns
        -------
        bool tensor ``[time]``, true for the letters of each name where the model first reads it, which nothing foretells.
        """
        text = bytes(window.tolist())
        read = torch.full((len(text) + 1,), -1)
        read[positions] = torch.arange(len(positions))
        places = {}
        for found in _WORD.finditer(text):
            if found[0] not in self.kept:
                places.setdefault(found[0], []).append(found.start())
        unforeseen = torch.zeros(len(text), dtype=torch.bool)
        words = list(places)
        for word, starts in places.items():
            seen = [at for at in starts if read[at] >= 0 and read[at + len(word) - 1] - read[at] == len(word) - 1]
            if len(seen) < 2 or torch.rand((), generator=generator) < 0.5:
                continue
            name = torch.tensor(list(self._made_up(words, len(word), generator)))
            for at in starts:
                window[at : at + len(word)] = name
            unforeseen[seen[0] : seen[0] + len(word)] = True
        return unforeseen

    @staticmethod
    def _made_up(words: list[bytes], length: int, generator: torch.Generator) -> bytes:
        """Bits of two to four letters of the window's own words."""
        name = b""
        while len(name) < length:
            pick, size, at = (int(torch.randint(n, (), generator=generator)) for n in (len(words), 3, 1 << 30))
            word = words[pick].strip(b"_0123456789") or b"x"
            at %= len(word)
            name += word[at : at + 2 + size]
        return name[:length]
