"""Several prompts at once: what their callers give and get. :mod:`intaglio.host.scheduler` serves them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from intaglio.host.generation import BURST, check_request
from intaglio.host.scheduler import Request, Scheduler
from intaglio.host.text import Pieces, check_stops, prompt_tokens

if TYPE_CHECKING:
    from intaglio.host.device import Device

__all__ = ["generate_many", "generate_tokens_many", "text_events", "token_events"]


def _each(name, value, count):
    """``value`` for each of ``count`` prompts: a list or tuple has one for each."""
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} must be one value or a list of one for each of {count} prompts, not of {len(value)}")
    return value


def _schedule(device, prompts, max_tokens, *, burst=BURST, adapter=None, progress=None, **sampling):
    """A scheduler of prompts that are lists of tokens; everything that a request must have is checked."""
    unknown = sampling.keys() - {"temperature", "top_k", "top_p", "seed"}
    if unknown:
        raise TypeError(f"generate_many takes no argument {min(unknown)!r}")
    columns = {name: _each(name, value, len(prompts)) for name, value in sampling.items()}
    requests = []
    for index, (tokens, most) in enumerate(zip(prompts, _each("max_tokens", max_tokens, len(prompts)), strict=True)):
        own = {name: column[index] for name, column in columns.items()}
        with _named(index):
            tokens, sampler = check_request(device.manifest, tokens, most, burst=burst, **own)
        room = device.manifest.model["context"] - len(tokens) + 1  # the last token is never fed
        limited_by = "length" if most <= room else "context"
        requests.append(
            Request(index=index, tokens=tokens, limit=min(most, room), limited_by=limited_by, sampler=sampler)
        )
    return Scheduler(device, requests, burst, device.selection(adapter), progress)


@contextmanager
def _named(index):
    """Faults of a prompt say which it is."""
    try:
        yield
    except ValueError as fault:
        raise ValueError(f"prompt {index}: {fault}") from fault


def _listed(prompts):
    if isinstance(prompts, str | bytes):
        raise ValueError("prompts must be a list of prompts, not one text")
    return list(prompts)


def generate_tokens_many(
    device: Device, prompts: Iterable[Iterable[int]], max_tokens: int | Sequence[int], **sampling: Any
) -> Iterator[tuple[int, int]]:
    """Generate tokens after each of several prompts, as many at a time as the device has sequences.

    A prompt's tokens are those that :func:`intaglio.host.generation.generate_tokens` gives for it alone.

    Parameters
    ----------
    device : Device
    prompts : sequence of sequences of int
    max_tokens : int
        Tokens to generate at most, for each prompt.
    sampling
        ``temperature``, ``top_k``, ``top_p`` and ``seed`` as for :func:`~intaglio.host.generation.generate_tokens`. These and
        ``max_tokens`` are one value for all prompts, or a list with one for each. ``burst`` and ``adapter`` are for all. ``progress`` is
        called now and then with the tokens of all prompts that the device has taken.

    Yields
    ------
    (int, int)
        Index of a prompt, and its next token, as they come; without end tokens.

    Notes
    -----
    Everything is checked by the call. ``device.last`` has ``prompt_tokens``, ``generated_tokens`` and ``wall_tokens_per_second`` of all
    while it runs, and the figures of :class:`~intaglio.host.measure.Totals` afterwards.

    Raises
    ------
    ValueError
        A prompt that cannot be served, or an argument out of range; before anything is sent.
    RequestError
        At the end, where requests have failed; the others have been served.
    SequenceError
        Conversations have all sequences of the device; or a later generation has taken these.
    DeviceTimeout, DeviceError
    """
    events = token_events(device, prompts, max_tokens, **sampling)
    return ((index, token) for index, token, _ in events if token is not None)


def token_events(
    device: Device, prompts: Iterable[Iterable[int]], max_tokens: int | Sequence[int], **sampling: Any
) -> Iterator[tuple[int, int | None, str | None]]:
    """As :func:`generate_tokens_many`, but yields (index, token, None), and (index, None, finish) when a prompt's tokens end."""
    scheduler = _schedule(device, _listed(prompts), max_tokens, **sampling)
    return ((request.index, token, request.finish if token is None else None) for request, token in scheduler.run())


def generate_many(
    device: Device,
    prompts: Iterable[Any],
    max_tokens: int | Sequence[int],
    *,
    stop: str | Iterable[str] | None = None,
    **sampling: Any,
) -> Iterator[tuple[int, str]]:
    """Generate text after each of several prompts, as :func:`generate_tokens_many`.

    A prompt is text, UTF-8, a list of tokens, or a conversation (a list of dicts of ``role`` and ``content``). ``stop`` is a text, or
    several, that end a prompt's text, and are not yielded.

    Yields
    ------
    (int, str)
        Index of a prompt, and a piece of its text of at least one character.
    """
    events = text_events(device, prompts, max_tokens, stop=stop, **sampling)
    return ((index, piece) for index, piece, _ in events if piece)


def text_events(
    device: Device, prompts: Iterable[Any], max_tokens: Any, *, stop: str | Iterable[str] | None = None, **sampling: Any
) -> Iterator[tuple[int, str, str | None]]:
    """As :func:`generate_many`, but yields (index, piece, finish): ``finish`` is None but with a prompt's last piece, perhaps empty."""
    text, stops, tokens = device.text, check_stops(stop), []
    for index, prompt in enumerate(_listed(prompts)):
        with _named(index):
            tokens.append(prompt_tokens(text, prompt))
    scheduler = _schedule(device, tokens, max_tokens, **sampling)
    return _texts(scheduler, [Pieces(text.decoder(), stops) for _ in tokens])


def _texts(scheduler, pieces):
    with closing(scheduler.run()) as events:
        for request, token in events:
            own, piece = pieces[request.index], ""
            try:
                if token is not None:
                    piece = own.push(token)
                elif request.error is None:
                    piece = own.finish()
            except Exception as fault:  # the library tokenizers raises Exception itself
                request.fail(fault)
            if own.stopped and token is not None:
                request.finish = "stop"
            if piece or token is None:
                yield request.index, piece, request.finish if token is None else None
