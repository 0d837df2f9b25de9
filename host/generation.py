"""Generation: the loop that feeds tokens to a device, and its text form."""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from intaglio import Error
from intaglio.host.manifest import Manifest
from intaglio.host.measure import Measure, watched
from intaglio.host.sampling import Sampler

if TYPE_CHECKING:
    from intaglio.host.device import Device


__all__ = ["check_request", "check_stops", "check_tokens", "generate_text", "generate_tokens"]

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
    the call, before the first token is asked for.

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
    DeviceTimeout, DeviceError
    """
    tokens, sampler = check_request(
        device.manifest, tokens, max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, burst=burst
    )
    return _generate(device, tokens, max_tokens, sampler, burst, device.selection(adapter), progress)


def check_tokens(manifest: Manifest, tokens: Iterable[int]) -> list:
    """``tokens``, integers of any kind, as a list of int; ValueError unless a device of this manifest can take them as one prompt."""
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
    if len(tokens) > context:
        raise ValueError(f"a prompt must have at most {context} tokens, the device's context, not {len(tokens)}")
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
) -> tuple[list[int], Sampler]:
    """The tokens as a list and a :class:`Sampler`; ValueError unless a device of this manifest can generate so."""
    tokens = check_tokens(manifest, tokens)
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
    if not 1 <= burst <= 256:
        raise ValueError(f"burst must be in 1..256, not {burst}")
    return tokens, Sampler(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, limit=manifest.model["top_k"])


def _generate(device, tokens, max_tokens, sampler, burst, selection, progress):
    ends = device.manifest.ends
    room = device.manifest.model["context"] - len(tokens) + 1  # the last token is never fed
    limit = min(max_tokens, room)
    measure = Measure(device, len(tokens))
    finish = "closed"
    try:
        for token in _results(device, tokens, limit, sampler, burst, selection, progress):
            measure.count(token not in ends)
            if token in ends:
                finish = "eos"
                return
            yield token
        finish = "length" if max_tokens <= room else "context"
    except _StopError:
        finish = "stop"
    except Error:  # the device's, or its transport's: nothing more is read from it
        finish = "error"
        raise
    finally:
        device.last = measure.close(finish)


class _StopError(Exception):
    """Thrown into the generator of tokens by that of text: its end is there."""


def _results(device, tokens, limit, sampler, burst, selection, progress):
    """Yield the next token ``limit`` times."""
    words = selection + [device.command(token, first=i == 0) for i, token in enumerate(tokens[:-1])]
    top = 0 if sampler.greedy else sampler.top_k

    def draw(result):
        return result.token if sampler.greedy else sampler.draw(result.tokens, result.logits * result.scale)

    with watched(device.transport, progress, len(tokens)):
        device.submit([*words, device.command(tokens[-1], first=len(tokens) == 1, want=True, top=top)])
        token = draw(device.receive())
    yield token
    produced = 1
    while produced < limit:
        run = min(burst, limit - produced, 1 << 24 - device.token_bits) - 1 if sampler.greedy else 0
        device.submit([device.command(token, want=True, top=top, run=run)])
        for _ in range(run + 1):
            token = draw(device.receive())
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
    ValueError, TextError, DeviceTimeout, DeviceError
    """
    decoder = device.text.decoder()
    return _pieces(decoder, generate_tokens(device, tokens, max_tokens, **sampling), check_stops(stop))


def check_stops(stop: str | Iterable[str] | None) -> tuple:
    """The texts of ``stop``; ValueError if one is empty."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if "" in stops:
        raise ValueError("stop must not be an empty text")
    return stops


def _pieces(decoder, tokens, stops):
    held = ""  # the end of the text while it may be the beginning of a stop
    try:
        for token in tokens:
            held += decoder.push(token)
            found = [at for at in (held.find(stop) for stop in stops) if at >= 0]
            if found:
                held = held[: min(found)]
                with suppress(StopIteration):
                    tokens.throw(_StopError())
                break
            keep = _overlap(held, stops)
            piece, held = held[: len(held) - keep], held[len(held) - keep :]
            if piece:
                yield piece
        else:
            held += decoder.finish()
    finally:
        tokens.close()
    if held:
        yield held


def _overlap(text, stops):
    """Length of the longest end of ``text`` that begins one of ``stops``."""
    for length in range(min(len(text), max((len(stop) for stop in stops), default=0)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0
