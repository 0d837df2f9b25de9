"""The device's end of the link in Python: the rules of docs/link.md, which ``rtl/link/endpoint.py`` follows frame by frame.

It moves no bytes and knows no time: what it is told changes its state, and :meth:`Peer.next_frame` says what it would send.
"""

from intaglio.host.transport.frames import LINK_MAGIC, LINK_VERSION, MAX_WORDS, Frame, Kind

__all__ = ["Peer"]

ACCESSES = {Kind.READ, Kind.WRITE, Kind.MEMORY}


class Peer:
    """State of the device's end.

    Parameters
    ----------
    digest : int
        First 32 bits of the manifest's digest.
    depth : int
        Words kept in each direction, at most 128.
    memory : bool
        Whether the device has a memory. Without one, MEMORY is a kind that it does not know.

    Attributes
    ----------
    session : int or None
        Number of the session; None before the first.
    resets : int
        Sessions begun: each asks for a reset of the decoder.
    commands : list of (word, last)
        Accepted and not taken yet; remove them with :meth:`take`.
    access : (Kind, address, value) or None
        An access to carry out and to answer with :meth:`answer`. Of MEMORY, the value is the words to be written, a tuple, or the number of
        words to be read, 0 if the frame had none.
    """

    def __init__(self, digest: int, *, depth: int = 32, memory: bool = False):
        self.digest, self.depth, self.memory, self.session, self.resets = digest, depth, memory, None, 0
        self._begin(None)

    def _begin(self, session):
        self.session = session
        self.commands, self.kept = [], []  # kept: result words from number `oldest` on
        self.taken = self.oldest = self.sent = 0  # sent: of the words kept
        self.access = self._answered = self._tag = None
        self._want = set()

    def receive(self, frame):
        """A frame has come; None for a bad one."""
        if frame is None:
            if self.session is not None:
                self._want.add(Kind.RESEND)
        elif frame.kind == Kind.HELLO:
            session = frame.words[0] if frame.words else None
            if session is not None and session != self.session:
                self.resets += 1
                self._begin(session)
            self._want.add(Kind.HELLO)
        elif self.session is None:
            self._want.add(Kind.CLOSED)
        else:
            self._acknowledge(frame)
            if frame.kind == Kind.RESEND or frame.kind == Kind.MEMORY and not self.memory:
                self._want.add(Kind.STATUS)
            elif frame.kind == Kind.DATA:
                self._accept(frame)
            elif frame.kind in ACCESSES:
                self._access(frame)

    def _acknowledge(self, frame):
        freed = (frame.ack - self.oldest) & 255
        if freed <= len(self.kept):
            del self.kept[:freed]
            self.oldest = frame.ack
            self.sent = 0 if frame.kind == Kind.RESEND else max(self.sent - freed, 0)

    def _accept(self, frame):
        self._want.add(Kind.STATUS)
        ahead = (frame.seq - self.taken - len(self.commands)) & 255
        if ahead == 0 and len(frame.words) <= self.depth - len(self.commands):
            self.commands += [(word, frame.mark and i == len(frame.words) - 1) for i, word in enumerate(frame.words)]
        elif ahead < 128:
            self._want.add(Kind.RESEND)

    def _access(self, frame):
        if self.access is not None:
            return
        if self._answered is not None and frame.seq == self._tag:
            self._want.add(frame.kind)
            return
        if frame.kind == Kind.MEMORY:
            low, high, value, *rest = frame.words if len(frame.words) > 2 else (0, 0, 0)
            address = low | high << 32
            value = (value, *rest) if frame.mark and len(frame.words) > 2 else value
        else:
            address, value = (*frame.words, 0, 0)[:2]
        self.access, self._answered, self._tag = (frame.kind, address, value), None, frame.seq

    def answer(self, *words: int, fault: bool = False) -> None:
        """The access has been carried out, and gave ``words``: one, or of memory those that were read. A write or a fault gives 0."""
        kind, _, _ = self.access
        self._answered = (kind, (0,) if kind == Kind.WRITE else words, fault)
        self.access = None
        self._want.add(kind)

    def take(self, count):
        """Remove ``count`` commands, which the decoder has taken."""
        before, self.taken = self.taken, (self.taken + count) & 255
        del self.commands[:count]
        quarter = self.depth // 4
        if self.session is not None and (before % quarter + count) >= quarter:
            self._want.add(Kind.STATUS)

    @property
    def room(self) -> int:
        """Result words that :meth:`put` can take."""
        return self.depth - len(self.kept) if self.session is not None else 0

    def put(self, word, last):
        """A result word of the decoder."""
        if not self.room:
            raise ValueError(f"at most {self.depth} result words can wait for acknowledgement")
        self.kept.append((int(word), bool(last)))

    def next_frame(self):
        """The frame to be sent now, or None; calling this is sending it."""
        want, fields = (
            self._want,
            {"ack": (self.taken + len(self.commands)) & 255, "window": self.depth - len(self.commands)},
        )
        for kind in (Kind.HELLO, Kind.CLOSED):
            if kind in want:
                want.discard(kind)
                words = (LINK_MAGIC, LINK_VERSION, self.session or 0, self.digest) if kind == Kind.HELLO else ()
                return Frame(kind=kind, words=words, **fields)
        if want & ACCESSES:
            want -= ACCESSES
            kind, words, fault = self._answered
            return Frame(kind=kind, mark=fault, seq=self._tag, words=words, **fields)
        if self.sent < len(self.kept) and Kind.RESEND not in want:
            want.discard(Kind.STATUS)
            seq, words, mark = (self.oldest + self.sent) & 255, [], False
            for word, mark in self.kept[self.sent : self.sent + MAX_WORDS]:
                words.append(word)
                if mark:
                    break
            self.sent += len(words)
            return Frame(kind=Kind.DATA, mark=mark, seq=seq, words=tuple(words), **fields)
        if want:
            kind = Kind.RESEND if Kind.RESEND in want else Kind.STATUS
            want.clear()
            return Frame(kind=kind, **fields)
        return None
