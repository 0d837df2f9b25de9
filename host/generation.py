"""Generation: the loop that feeds tokens to a device, and its text form for byte tokenizers."""

import codecs
import time

from intaglio import Error
from intaglio.host.sampling import Sampler

__all__ = ["generate_pieces", "generate_tokens"]

BURST = 8  # tokens that the device generates by itself for one command


def generate_tokens(device, tokens, max_tokens, *, temperature=0.0, top_k=None, top_p=1.0, seed=0, burst=BURST, adapter=None):
    """Generate tokens after ``tokens``.

    Greedy generation runs on the device in bursts. With a temperature the device returns its greatest logits and the host
    draws from them. Arguments are checked by the call, before the first token is asked for.

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

    Yields
    ------
    int
        Tokens, without the end token (any of those that the model has).

    Notes
    -----
    While it runs, ``device.last`` has ``prompt_tokens``, ``generated_tokens``, ``wall_tokens_per_second`` so far, and ``finish`` None.
    Afterwards it has ``prompt_tokens``, ``generated_tokens``, ``finish`` ("eos", "length", "context", or "closed"
    if the generator was left early), ``cycles_prefill`` (to the first token), ``cycles_decode`` (from it to the last),
    ``seconds_prefill``, ``seconds_decode`` (wall), and ``first_token_seconds`` at the manifest's clock; ``tokens_per_second``
    (at that clock) and ``wall_tokens_per_second`` count decoding alone, and are None after fewer than two tokens.

    Raises
    ------
    ValueError
        A prompt that is empty, too long or outside the vocabulary, or an argument out of range.
    DeviceTimeout, DeviceError
    """
    tokens = device.check_tokens(tokens)
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
    if not 1 <= burst <= 256:
        raise ValueError(f"burst must be in 1..256, not {burst}")
    limit = device.manifest.model["top_k"]
    sampler = Sampler(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, limit=limit)
    return _generate(device, tokens, max_tokens, sampler, burst, device.selection(adapter))


def _generate(device, tokens, max_tokens, sampler, burst, selection):
    ends = device.manifest.ends
    room = device.manifest.model["context"] - len(tokens) + 1  # the last token is never fed
    limit = min(max_tokens, room)
    record = _Record(device, len(tokens))
    finish = "closed"
    try:
        for token in _results(device, tokens, limit, sampler, burst, selection):
            record.count(token not in ends)
            if token in ends:
                finish = "eos"
                return
            yield token
        finish = "length" if max_tokens <= room else "context"
    except Error:  # the device's, or its transport's: nothing more is read from it
        finish = "error"
        raise
    finally:
        device.last = record.close(finish)


def _results(device, tokens, limit, sampler, burst, selection):
    """Yield the next token ``limit`` times."""
    words = selection + [device.command(token, first=i == 0) for i, token in enumerate(tokens[:-1])]
    token, first, produced = tokens[-1], len(tokens) == 1, 0
    while produced < limit:
        run = min(burst, limit - produced, 1 << 24 - device.token_bits) - 1 if sampler.greedy else 0
        top = 0 if sampler.greedy else sampler.top_k
        device.submit([*words, device.command(token, first=first, want=True, top=top, run=run)])
        words, first = [], False
        for _ in range(run + 1):
            result = device.receive()
            token = result.token if sampler.greedy else sampler.draw(result.tokens, result.logits * result.scale)
            produced += 1
            yield token


class _Record:
    """Statistics of one generation."""

    def __init__(self, device, prompt_tokens):
        self.device, self.prompt_tokens = device, prompt_tokens
        self.generated = self.results = 0
        device.drain()
        device.clear_counters()
        self.began = self.first = time.monotonic()
        self.began_cycles = self.first_cycles = device.read_cycles()

    def count(self, counted):
        self.results += 1
        self.generated += counted
        self.latest = time.monotonic()
        if self.results == 1:
            self.first, self.first_cycles = self.latest, self.device.read_cycles()
        seconds = self.latest - self.first
        self.device.last = {"prompt_tokens": self.prompt_tokens, "generated_tokens": self.generated, "finish": None,
                            "wall_tokens_per_second": (self.results - 1) / seconds if seconds else None}

    def close(self, finish):
        row = {"prompt_tokens": self.prompt_tokens, "generated_tokens": self.generated, "finish": finish}
        if not self.results or finish == "error" or self.device.closed:
            return row
        clock = self.device.manifest.clock_hz
        decode = self.device.read_cycles() - self.first_cycles
        seconds = self.latest - self.first
        many = self.results > 1
        return row | {
            "cycles_prefill": self.first_cycles - self.began_cycles, "cycles_decode": decode,
            "seconds_prefill": self.first - self.began, "seconds_decode": seconds,
            "first_token_seconds": (self.first_cycles - self.began_cycles) / clock,
            "tokens_per_second": (self.results - 1) * clock / decode if many and decode else None,
            "wall_tokens_per_second": (self.results - 1) / seconds if many and seconds else None,
        }


def generate_pieces(device, prompt, max_tokens, *, stop=None, **sampling):
    """Generate text after ``prompt`` with a byte tokenizer.

    Parameters
    ----------
    device : Device
    prompt : str or bytes
        At least one byte; text is encoded as UTF-8. The model's beginning token, if it has one, is put before it.
    max_tokens : int
        Bytes to generate at most.
    stop : str, sequence of str, or None
        Texts that end the generation and are not yielded; ``device.last["finish"]`` is then "stop".
    sampling
        ``temperature``, ``top_k``, ``top_p``, ``seed``, ``burst`` and ``adapter`` as for :func:`generate_tokens`.

    Yields
    ------
    str
        Pieces of at least one character; bytes that are not UTF-8 become U+FFFD.

    Raises
    ------
    ValueError, DeviceTimeout, DeviceError
    """
    model = device.manifest.model
    if model["tokenizer"] != "bytes":
        raise ValueError("text needs a model whose tokenizer is 'bytes': use generate_tokens")
    data = prompt.encode("utf-8", "surrogateescape") if isinstance(prompt, str) else bytes(prompt)
    if not data:
        raise ValueError("a prompt must have at least one byte")
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if "" in stops:
        raise ValueError("stop must not be an empty text")
    begin = [] if model["bos"] is None else [model["bos"]]
    return _pieces(device, generate_tokens(device, [*begin, *data], max_tokens, **sampling), stops)


def _pieces(device, tokens, stops):
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    held = ""  # the end of the text while it may be the beginning of a stop
    try:
        for token in tokens:
            held += decoder.decode(bytes([token]))
            found = [at for at in (held.find(stop) for stop in stops) if at >= 0]
            if found:
                held = held[:min(found)]
                tokens.close()
                device.last["finish"] = "stop"
                break
            keep = _overlap(held, stops)
            piece, held = held[:len(held) - keep], held[len(held) - keep:]
            if piece:
                yield piece
        else:
            held += decoder.decode(b"", True)
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
