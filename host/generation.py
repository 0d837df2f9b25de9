"""Generation: the loop that feeds tokens to a device, and its text form."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from intaglio import Error
from intaglio.host.manifest import Manifest
from intaglio.host.measure import Measure, counted, watched
from intaglio.host.sampling import Sampler
from intaglio.host.text import Pieces, check_stops

if TYPE_CHECKING:
    from intaglio.host.device import Device
    from intaglio.host.pool import Lease

__all__ = ["BURST", "check_request", "check_tokens", "generate_in", "generate_text", "generate_tokens", "text_pieces"]

BURST = 8  # tokens that the device generates by itself for one command


def generate_tokens(
    device: Device,
    tokens: Iterable[int],
    max_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    burst: int = BURST,
    adapter: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Generator[int, None, None]:
    """Generate tokens after ``tokens``.

    Greedy generation runs on the device in bursts, after the first token, which is asked for alone: the counters are read when it has come
    and the device rests. With a temperature the device returns its greatest logits and the host draws from them. Arguments are checked by
    the call, before the first token is asked for. A device that computes several tokens side by side gets the prompt in groups.

    Parameters
    ----------
    device : Device
    tokens : sequence of int
        The prompt as the device gets it, its beginning token included.
    max_tokens : int
        Tokens to generate at most.
    temperature, top_k, top_p, seed
        See :class:`Sampler`; all but a temperature of 0 are ignored by greedy generation.
    burst : int
        Tokens for each command of greedy generation, 1 to 256.
    adapter : int or None
        The slot of the adapter to compute with.
    progress : callable or None
        Called now and then until the first token comes, with the tokens of the prompt that the device has taken.

    Yields
    ------
    int
        Tokens, without the end token (any of those that the model has).

    Notes
    -----
    While it runs, ``device.last`` has ``prompt_tokens``, ``generated_tokens``, ``wall_tokens_per_second`` so far, and ``finish`` None.
    Afterwards ``finish`` is "eos", "length", "context", or "closed" if the generator was left early, and there are the figures of
    :class:`~intaglio.host.measure.Measure`.

    Raises
    ------
    ValueError
        A prompt that is empty, too long or outside the vocabulary, or an argument out of range.
    SequenceError
        Conversations have all sequences of the device; or a later generation has taken this one's.
    DeviceTimeout, DeviceError
    """
    tokens, sampler = check_request(
        device.manifest, tokens, max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, burst=burst
    )
    selection = device.selection(adapter)

    def generation():
        leases = device.pool.take()
        try:
            yield from generate_in(
                device, leases[0], tokens, max_tokens, sampler, burst=burst, selection=selection, progress=progress
            )
        finally:
            device.pool.give_back(leases)

    return generation()


def check_tokens(manifest: Manifest, tokens: Iterable[int], held: int = 0) -> list:
    """``tokens``, integers of any kind, as a list of int.

    ValueError unless a device of this manifest can take them as one prompt, in a sequence that holds ``held`` tokens.
    """
    try:
        tokens = [operator.index(token) for token in tokens]
    except TypeError as fault:
        raise ValueError(f"a prompt must be one sequence of integers, not {type(tokens).__name__} ({fault})") from fault
    vocabulary, context = manifest.model["vocab_size"], manifest.model["context"]
    if not tokens:
        raise ValueError("a prompt must have at least one token")
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise ValueError(f"tokens must be in 0..{vocabulary - 1}, not {token}")
    if held >= context:
        raise ValueError(f"the device's context of {context} tokens must not be full: begin the sequence anew (reset)")
    if len(tokens) > context - held:
        less = f" less the {held} that the sequence holds" if held else ""
        raise ValueError(
            f"a prompt must have at most {context - held} tokens, the device's context{less}, not {len(tokens)}"
        )
    return tokens


def check_request(
    manifest: Manifest,
    tokens: Iterable[int],
    max_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    burst: int = BURST,
    held: int = 0,
) -> tuple[list[int], Sampler]:
    """The tokens as a list and a :class:`Sampler`; ValueError unless a device of this manifest can generate so (:func:`check_tokens`)."""
    tokens = check_tokens(manifest, tokens, held)
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
    if not 1 <= burst <= 256:
        raise ValueError(f"burst must be in 1..256, not {burst}")
    return tokens, Sampler(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, limit=manifest.model["top_k"])


def generate_in(
    device: Device,
    lease: Lease,
    tokens: list[int],
    max_tokens: int,
    sampler: Sampler,
    *,
    burst: int,
    selection: list[int],
    progress: Callable[[int], None] | None,
) -> Iterator[int]:
    """:func:`generate_tokens` after what the sequence ``lease`` has been fed, of arguments that :func:`check_request` has found right.

    ``selection`` are the words before a sequence that begins. With a ``burst`` of 1 the lease is kept true: what it was fed, and what is
    pending.
    """
    ends = device.manifest.ends
    room = device.manifest.model["context"] - len(lease.fed) - len(tokens) + 1  # the last token is never fed
    limit = min(max_tokens, room)
    measure, turn = Measure(device, len(tokens)), lease.begin()
    finish = "closed"
    try:
        for token in _results(device, lease, turn, tokens, limit, sampler, burst, selection, progress):
            measure.count(token not in ends)
            if token in ends:
                lease.pending = []
                finish = "eos"
                return
            yield token
        finish = "length" if max_tokens <= room else "context"
    except _StopError:
        finish = "stop"
    except (Error, KeyboardInterrupt) as fault:  # the device's, or its transport's: nothing more is read from it
        finish = "error"
        if lease.turn == turn and not lease.lost:
            lease.lost = f"a turn of the sequence has failed ({str(fault) or 'interrupted'}): begin it anew (reset)"
        raise
    finally:
        device.last = measure.close(finish)


class _StopError(Exception):
    """Thrown into the generator of tokens by that of text: its end is there."""


def _results(device, lease, turn, tokens, limit, sampler, burst, selection, progress):
    """Yield the next token ``limit`` times."""
    top = 0 if sampler.greedy else sampler.top_k
    packets = deque()  # that came while somebody else used the device

    def submit(fed, words):
        lease.check(turn)
        device.submit(words, packets)
        lease.fed += fed
        lease.pending = []

    def draw():
        lease.check(turn)
        result = device.receive(packets)
        token = result.token if sampler.greedy else sampler.draw(result.tokens, result.logits * result.scale)
        lease.pending = [token]
        return token

    place, wanted = device.place(lease.number), [False] * (len(tokens) - 1) + [True]
    words = device.prompt(tokens, wanted, first=not lease.fed, top=top)
    words = [*place, *([] if lease.fed else selection), *words]
    with watched(device.transport, progress, counted(words)):
        submit(tokens, words)
        token = draw()
    yield token
    produced = 1
    while produced < limit:
        run = min(burst, limit - produced, 1 << 24 - device.token_bits) - 1 if sampler.greedy else 0
        submit([token], [*place, device.command(token, want=True, top=top, run=run)])
        for _ in range(run + 1):
            token = draw()
            produced += 1
            yield token


def generate_text(
    device: Device, tokens: Iterable[int], max_tokens: int, *, stop: str | Iterable[str] | None = None, **sampling: Any
) -> Generator[str, None, None]:
    """Generate text after a prompt's tokens, by the decoder of ``device.text``.

    Parameters
    ----------
    device : Device
    tokens : sequence of int
        The prompt, of ``device.text.encode`` or ``device.text.chat``.
    max_tokens : int
        Tokens to generate at most.
    stop : str, sequence of str, or None
        Texts that end the generation and are not yielded; ``device.last["finish"]`` is then "stop".
    sampling
        ``temperature``, ``top_k``, ``top_p``, ``seed``, ``burst``, ``adapter`` and ``progress`` as for :func:`generate_tokens`.

    Yields
    ------
    str
        Pieces of at least one character; what is no character becomes U+FFFD.

    Raises
    ------
    ValueError, TextError, SequenceError, DeviceTimeout, DeviceError
    """
    return text_pieces(device, generate_tokens(device, tokens, max_tokens, **sampling), stop)


def text_pieces(device: Device, tokens: Any, stop: str | Iterable[str] | None) -> Generator[str, None, None]:
    """The text of ``tokens``, a generator of this module, up to a ``stop``; see :func:`generate_text`."""
    return _pieces(Pieces(device.text.decoder(), check_stops(stop)), tokens)


def _pieces(pieces, tokens):
    try:
        for token in tokens:
            piece = pieces.push(token)
            if pieces.stopped:
                with suppress(StopIteration):
                    tokens.throw(_StopError())
                break
            if piece:
                yield piece
        else:
            piece = pieces.finish()
    finally:
        tokens.close()
    if piece:
        yield piece
