"""Frames of the link (docs/link.md) and their bytes."""

import re
import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

__all__ = ["LINK_MAGIC", "LINK_VERSION", "MAX_WORDS", "MEMORY_WORDS", "Decoder", "Frame", "Kind", "encode", "frame_of"]

LINK_MAGIC, LINK_VERSION = 0x494E4C4B, 1  # "INLK"
MAX_WORDS, MEMORY_WORDS = 15, 128  # of the payload of a frame; of memory in a frame, beside the address
FLAG, ESCAPE, FLIP = 0x7E, 0x7D, 0x20
_LIMIT = 2 * (8 + 4 * (2 + MEMORY_WORDS))  # bytes between two flags, escapes included, that no frame has more of

_SPECIAL = re.compile(rb"[\x7d\x7e]")
_ESCAPED = re.compile(rb"\x7d(.)", re.DOTALL)


class Kind(IntEnum):
    MEMORY, HELLO, STATUS, RESEND, DATA, READ, WRITE, CLOSED = range(8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One frame; see docs/link.md for the fields."""

    kind: Kind
    mark: bool = False
    seq: int = 0
    ack: int = 0
    window: int = 0
    words: tuple = ()


def encode(frame: Frame) -> bytes:
    """Bytes of ``frame``, its two flags included."""
    head = frame.kind | frame.mark << 3 | (len(frame.words) & 15) << 4
    body = struct.pack(f"<BBBB{len(frame.words)}I", head, frame.seq, frame.ack, frame.window, *frame.words)
    body += struct.pack("<I", zlib.crc32(body))
    return b"\x7e" + _SPECIAL.sub(lambda found: bytes((ESCAPE, found[0][0] ^ FLIP)), body) + b"\x7e"


def frame_of(piece: bytes) -> Frame | None:
    """The frame whose bytes lay between two flags, or None if they are not a good frame."""
    if piece.count(ESCAPE):
        if re.search(rb"(?:\A|[^\x7d])(?:\x7d\x7d)*\x7d\Z", piece):
            return None  # the flag was escaped
        piece = _ESCAPED.sub(lambda found: bytes((found[1][0] ^ FLIP,)), piece)
    length, part = divmod(len(piece) - 8, 4)
    if (
        length < 0
        or part
        or length & 15 != piece[0] >> 4
        or zlib.crc32(piece[:-4]) != int.from_bytes(piece[-4:], "little")
    ):
        return None
    kind = Kind(piece[0] & 7)
    if length > (MEMORY_WORDS + 2 if kind == Kind.MEMORY else MAX_WORDS):
        return None
    head, seq, ack, window, *words = struct.unpack(f"<BBBB{length}I", piece[:-4])
    return Frame(kind=kind, mark=bool(head & 8), seq=seq, ack=ack, window=window, words=tuple(words))


class Decoder:
    """Frames out of a stream of bytes."""

    def __init__(self):
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Frame | None]:
        """The frames that end in ``data``; None stands for what lay between two flags and was not a good frame."""
        *ended, rest = bytes(data).split(b"\x7e")
        frames = []
        for piece in ended:
            self._rest += piece
            if self._rest:
                frames.append(frame_of(bytes(self._rest)))
                self._rest.clear()
        self._rest += rest
        del self._rest[_LIMIT:]
        return frames
