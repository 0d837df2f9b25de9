"""What a float model makes of text far behind: bits per byte of the same bytes after more or less of it, and names from far back."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

__all__ = ["Recall", "bits_of_last", "ends_of", "name_text", "recall"]

LETTERS_SHOWN, NAME_LETTERS = 4, 10


def ends_of(text: bytes, count: int, needed: int) -> list[int]:
    """``count`` places in ``text`` spread evenly from ``needed`` to its end: where the texts of :func:`bits_of_last` end.

    Raises
    ------
    ValueError
        The text is shorter than ``needed``.
    """
    if len(text) < needed:
        raise ValueError(f"the text must have {needed} bytes or more, not {len(text)}")
    return [needed + (len(text) - needed) * i // max(count - 1, 1) for i in range(count)]


@torch.no_grad()
def bits_of_last(
    model: Callable[[torch.Tensor], torch.Tensor], text: bytes, end: int, *, last: int, before: int
) -> float:
    """Bits per byte of the ``last`` bytes of ``text[:end]``, read after a separator (token 0) and the ``before`` bytes in front.

    Parameters
    ----------
    model : callable
        From tokens ``[1, time]``, int64, to logits ``[1, time, 256]``.
    text : bytes
    end, last, before : int
        ``last + before`` must not be more than ``end``.

    Returns
    -------
    float
    """
    if not 0 < last + before <= end <= len(text):
        raise ValueError(
            f"last + before ({last} + {before}) must be at most end, and end ({end}) at most the text's {len(text)} bytes"
        )
    target = torch.tensor(list(text[end - last - before : end]))
    tokens = torch.cat([torch.zeros(1, dtype=torch.long), target[:-1]])
    return F.cross_entropy(model(tokens[None])[0, -last:].float(), target[-last:]).item() / math.log(2)


def name_text(text: bytes, *, distance: int, names: int, seed: int) -> tuple[bytes, list[tuple[int, int]]]:
    """``text`` with functions of made-up names in front, each called at its end.

    Parameters
    ----------
    text : bytes
        What stands between definitions and calls; its last ``distance`` bytes are taken.
    distance : int
    names : int
    seed : int
        Of the names, no two of which begin alike, and of the calls' order.

    Returns
    -------
    whole : bytes
    spans : list of (int, int)
        Of each call's letters that the name's first four do not show: ``whole[start:end]``.
    """
    if len(text) < distance:
        raise ValueError(f"the text must have {distance} bytes or more, not {len(text)}")
    drawn = random.Random(seed)
    made = {}
    while len(made) < names:
        name = "".join(drawn.choice("bdfgklmnprstvz" if i % 2 == 0 else "aeiou") for i in range(NAME_LETTERS))
        made.setdefault(name[:LETTERS_SHOWN], name)
    order = list(made.values())
    whole = bytearray(
        "".join(f"def {name}(value):\n    return value + {i}\n\n\n" for i, name in enumerate(order)).encode()
    )
    whole += text[len(text) - distance :]
    whole += b"\n\n\ndef main(total):\n"
    drawn.shuffle(order)
    spans = []
    for name in order:
        whole += b"    total = "
        spans.append((len(whole) + LETTERS_SHOWN, len(whole) + NAME_LETTERS))
        whole += f"{name}(total)\n".encode()
    return bytes(whole), spans


@dataclass(frozen=True)
class Recall:
    """Of ``names``, how many had all of their hidden letters predicted; of ``letters``, how many were the top choice."""

    names: int
    names_right: int
    letters: int
    letters_right: int

    def __add__(self, other: "Recall") -> "Recall":
        return Recall(
            self.names + other.names,
            self.names_right + other.names_right,
            self.letters + other.letters,
            self.letters_right + other.letters_right,
        )


@torch.no_grad()
def recall(
    model: Callable[[torch.Tensor], torch.Tensor],
    whole: bytes,
    spans: Sequence[tuple[int, int]],
    cut: int | None = None,
) -> Recall:
    """How often the model knows the letters ``spans`` of a text by :func:`name_text`.

    Parameters
    ----------
    model : callable
        As for :func:`bits_of_last`.
    whole, spans
        From :func:`name_text`.
    cut : int or None
        Bytes at the end of ``whole`` that the model sees; by default all.

    Returns
    -------
    Recall
    """
    start, first = len(whole) - cut if cut else 0, spans[0][0]
    if not 0 <= start <= first:
        raise ValueError(
            f"cut must be from {len(whole) - first} bytes, so that every call is left, to the text's {len(whole)}, not {cut}"
        )
    tokens = torch.tensor([0, *whole[start:-1]])
    best = model(tokens[None])[0].argmax(-1)  # best[i] is the choice for whole[start + i]
    right = [[best[at - start].item() == whole[at] for at in range(*span)] for span in spans]
    return Recall(len(right), sum(all(name) for name in right), sum(map(len, right)), sum(map(sum, right)))
