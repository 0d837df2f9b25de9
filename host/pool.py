"""Sequences of a device, and who has which of them."""

from dataclasses import dataclass, field

from intaglio import Error

__all__ = ["Lease", "Pool", "SequenceError"]


class SequenceError(Error):
    """All sequences of the device are taken, or what one held is gone."""


@dataclass(eq=False)
class Lease:
    """A sequence of the device while somebody has it.

    ``fed`` are the tokens that it holds, ``pending`` the one that was generated last and has not been fed; ``lost`` is empty, or says why
    the sequence does not hold them any more. ``turn`` counts the generations in it, of which the latest alone may go on.
    """

    number: int
    fed: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    lost: str = ""
    turn: int = 0

    def begin(self) -> int:
        """Begin a turn; its number."""
        self.turn += 1
        return self.turn

    def check(self, turn: int | None = None) -> None:
        """SequenceError where what the sequence held is lost, or ``turn`` is not the latest."""
        if self.lost:
            raise SequenceError(self.lost)
        if turn not in (None, self.turn):
            raise SequenceError("a turn must end before the next one, or a reset, if it is to go on")

    def clear(self) -> None:
        """The next token begins the sequence anew."""
        self.fed, self.pending, self.lost = [], [], ""
        self.turn += 1


class Pool:
    """The sequences of a device: conversations keep theirs until they are closed, generations for as long as they last.

    A generation that was left and never closed keeps its sequences too, so the oldest of them gives way where no sequence is free.
    """

    def __init__(self, count: int) -> None:
        self.count, self._free = count, list(range(count))
        self._conversations: list[Lease] = []
        self._generations: list[list[Lease]] = []  # the oldest first

    def take(self, most: int = 1) -> list[Lease]:
        """Sequences for a generation: as many as are free, ``most`` at most, and at least one."""
        leases = [self._next(), *(self._next() for _ in range(min(most - 1, len(self._free))))]
        self._generations.append(leases)
        return leases

    def hold(self) -> Lease:
        """A sequence for a conversation."""
        self._conversations.append(self._next())
        return self._conversations[-1]

    def _next(self):
        if not self._free:
            if not self._generations:
                raise SequenceError(
                    f"a sequence must be free, but conversations have all {self.count} that the device holds: close one of them"
                )
            oldest = self._generations[0]
            self.give_back(oldest)
            for lease in oldest:
                lease.lost = "the sequence of this generation was given to a later one: close it, or let it end, before the next begins"
        self._free.sort()
        return Lease(self._free.pop(0))

    def give_back(self, leases: list[Lease]) -> None:
        """These are free again; those that already were stay so."""
        if leases in self._generations:
            self._generations.remove(leases)
        elif all(lease in self._conversations for lease in leases):
            for lease in leases:
                self._conversations.remove(lease)
        else:
            return
        self._free += [lease.number for lease in leases]

    def lose(self, why: str) -> None:
        """No sequence holds what it held."""
        for lease in (*self._conversations, *(lease for leases in self._generations for lease in leases)):
            lease.lost = why
