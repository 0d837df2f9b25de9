"""A conversation: a sequence of the device that goes on from turn to turn."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from intaglio.host.generation import check_request, generate_in, text_pieces
from intaglio.host.pool import SequenceError

if TYPE_CHECKING:
    from intaglio.host.device import Device

__all__ = ["Conversation"]

CLOSED = "the conversation is closed"


class Conversation:
    """A sequence of the device that goes on from turn to turn; a context manager that frees it.

    A turn costs its own tokens alone: what was given and generated before is in the device. An end token is not part of it; a stop text is,
    up to the token with its end. Turns are generated token by token, without bursts, so that nothing is in the device that was not
    yielded. Several may be open, and take turns as they like, as many as the device has sequences.

    Parameters
    ----------
    device : Device
    adapter : int or None
        The slot of the adapter to compute with.

    Raises
    ------
    SequenceError
        No sequence is free. Of the other calls: it is closed, or the device was reset, or a turn has failed (:meth:`reset` it).
    """

    def __init__(self, device: Device, adapter: int | None = None) -> None:
        self.device, self._selection = device, device.selection(adapter)
        self._lease = device.pool.hold()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def tokens(self) -> list[int]:
        """What the sequence holds: tokens given and generated."""
        return self._lease.fed + self._lease.pending

    def reset(self) -> None:
        """Forget it all; the next turn begins anew."""
        self._check_open()
        self._lease.clear()

    def close(self) -> None:
        """Free the sequence; closing twice does nothing."""
        if not self._closed:
            self._closed, self._lease.lost = True, CLOSED
            self.device.pool.give_back([self._lease])

    def _check_open(self):
        if self._closed:
            raise SequenceError(CLOSED)

    def generate_tokens(self, tokens: Iterable[int], max_tokens: int, **sampling: Any) -> Iterator[int]:
        """Feed ``tokens`` after what the sequence holds and generate, as :meth:`intaglio.host.device.Device.generate_tokens`.

        Parameters
        ----------
        tokens : sequence of int
        max_tokens : int
        sampling
            ``temperature``, ``top_k``, ``top_p``, ``seed`` and ``progress``.
        """
        self._check_open()
        self._lease.check()
        progress = sampling.pop("progress", None)
        held = len(self.tokens)
        tokens, sampler = check_request(self.device.manifest, tokens, max_tokens, held=held, burst=1, **sampling)

        def turn():
            self._lease.check()
            if len(self.tokens) != held:
                raise SequenceError("a turn must begin before the conversation goes on otherwise")
            fed = self._lease.pending + tokens
            yield from generate_in(
                self.device,
                self._lease,
                fed,
                max_tokens,
                sampler,
                burst=1,
                selection=self._selection,
                progress=progress,
            )

        return turn()

    def generate(
        self, prompt: Any, max_tokens: int, *, stop: Any = None, **sampling: Any
    ) -> Generator[str, None, None]:
        """Text after what the sequence holds and ``prompt``: text, UTF-8, or tokens; else as :meth:`generate_tokens`.

        The first turn begins with the model's beginning token, where it has one and the prompt is text.
        """
        text = self.device.text
        tokens = text.encode(prompt, begin=not self.tokens) if isinstance(prompt, str | bytes) else prompt
        return text_pieces(self.device, self.generate_tokens(tokens, max_tokens, **sampling), stop)

    def chat(
        self, messages: Sequence[Mapping[str, str]], max_tokens: int, *, stop: Any = None, **sampling: Any
    ) -> Generator[str, None, None]:
        """The answer to a whole conversation, as :meth:`intaglio.host.device.Device.chat`.

        Where it begins with what the sequence holds, the rest alone is fed; else the sequence begins anew.
        """
        self._check_open()
        tokens, held = self.device.text.chat(messages), self.tokens
        if self._lease.lost or tokens[: len(held)] != held or len(tokens) == len(held):
            self.reset()
        return text_pieces(self.device, self.generate_tokens(tokens[len(self.tokens) :], max_tokens, **sampling), stop)
