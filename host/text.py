"""Text of a model: prompts to tokens, tokens to text a piece at a time, chats by the model's own template.

Models of at most 256 tokens speak bytes. Others bring ``tokenizer.json`` (Hugging Face's format), which the library ``tokenizers``
reads, and perhaps a chat template, which ``jinja2`` renders; both come with the extra ``text`` and are asked for only where needed.
"""

import codecs
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from intaglio import Error
from intaglio.host.manifest import Manifest

__all__ = [
    "ByteText",
    "Decoder",
    "Pieces",
    "Text",
    "TextError",
    "TokenizerText",
    "check_stops",
    "folder_of",
    "prompt_tokens",
    "text_of",
]

TOKENIZER, TOKENIZER_CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"


class TextError(Error, ValueError):
    """Text that the model's tokenizer cannot take, or a tokenizer or template that cannot be used."""


class Decoder(Protocol):
    """Tokens of one answer to text."""

    def push(self, token: int) -> str:
        """The text that is certain with this token, perhaps none."""

    def finish(self) -> str:
        """What is left; what is no character is U+FFFD."""


class Text(Protocol):
    """How a model reads and writes."""

    def encode(self, prompt: str | bytes, *, begin: bool = True) -> list[int]:
        """Tokens of a prompt, the model's beginning token first if it has one and this is to ``begin`` a text. Bytes are UTF-8."""

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens of a conversation, up to where the model's answer begins.

        Parameters
        ----------
        messages : sequence of dict
            Each with ``role`` ("system", "user" or "assistant") and ``content``.
        """

    def decoder(self) -> Decoder:
        """A decoder for one answer."""


class ByteText:
    """Tokens that are bytes.

    Parameters
    ----------
    bos : int or None
        The token before every prompt.
    """

    def __init__(self, bos: int | None = None) -> None:
        self.bos = bos

    def encode(self, prompt: str | bytes, *, begin: bool = True) -> list[int]:
        data = prompt.encode("utf-8", "surrogateescape") if isinstance(prompt, str) else bytes(prompt)
        if not data:
            raise TextError("a prompt must have at least one byte")
        return [*([self.bos] if begin and self.bos is not None else []), *data]

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        raise TextError("a chat must have a model with a chat template, not one whose tokens are bytes")

    def decoder(self) -> Decoder:
        return _ByteDecoder()


class _ByteDecoder:
    def __init__(self) -> None:
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token):
        return self.utf8.decode(bytes([token]))

    def finish(self):
        return self.utf8.decode(b"", True)


class TokenizerText:
    """Text by ``tokenizer.json``; special tokens in an answer are not shown.

    Parameters
    ----------
    files : mapping of str to bytes
        ``tokenizer.json``, and where the model has them ``tokenizer_config.json`` and ``chat_template.jinja``.

    Raises
    ------
    TextError
        The library ``tokenizers`` is not installed or refuses the file.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        try:
            import tokenizers
        except ImportError as fault:
            raise TextError(
                "text of this model must have the library tokenizers: pip install 'intaglio[text]'"
            ) from fault
        try:
            self.tokenizer = tokenizers.Tokenizer.from_str(files[TOKENIZER].decode("utf-8"))
        except Exception as fault:  # the library raises Exception itself
            raise TextError(f"{TOKENIZER} must be a tokenizer that the library tokenizers can read: {fault}") from fault
        self.config = json.loads(files.get(TOKENIZER_CONFIG, b"{}"))
        self.template = files[TEMPLATE].decode("utf-8") if TEMPLATE in files else _template(self.config)

    def encode(self, prompt: str | bytes, *, begin: bool = True) -> list[int]:
        tokens = self.tokenizer.encode(_characters(prompt), add_special_tokens=begin).ids
        if not tokens:
            raise TextError("a prompt must have at least one token")
        return tokens

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return self.tokenizer.encode(self.rendered(messages), add_special_tokens=False).ids

    def rendered(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The conversation as the template writes it."""
        if self.template is None:
            raise TextError(f"a chat must have a model with a chat template ({TOKENIZER_CONFIG} or {TEMPLATE})")
        try:
            import jinja2
            from jinja2.ext import loopcontrols
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as fault:
            raise TextError("a chat must have the library jinja2: pip install 'intaglio[text]'") from fault

        def refuse(reason):
            raise TextError(f"the chat template refuses the conversation: {reason}")

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
        special = {
            name: _content(self.config.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        }
        try:
            return environment.from_string(self.template).render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                **{name: text for name, text in special.items() if text is not None},
            )
        except jinja2.TemplateError as fault:
            raise TextError(f"the chat template fails: {fault}") from fault

    def decoder(self) -> Decoder:
        return _StreamDecoder(self.tokenizer)


class _StreamDecoder:
    def __init__(self, tokenizer: Any) -> None:
        from tokenizers.decoders import DecodeStream

        self.tokenizer, self.stream, self.held = tokenizer, DecodeStream(skip_special_tokens=True), []

    def push(self, token):
        self.held.append(token)
        piece = self.stream.step(self.tokenizer, token)
        if piece is None:
            return ""
        self.held.clear()
        return piece

    def finish(self):
        return self.tokenizer.decode(self.held, skip_special_tokens=True)


def _characters(prompt):
    if isinstance(prompt, str):
        return prompt
    try:
        return bytes(prompt).decode("utf-8")
    except UnicodeDecodeError as fault:
        raise TextError(f"a prompt must be UTF-8: {fault}") from fault


def _content(token):
    """A special token as ``tokenizer_config.json`` has it: a text, an object with one, or nothing."""
    return token.get("content") if isinstance(token, dict) else token


def _template(config):
    """The chat template of a ``tokenizer_config.json``: one, or the default one of several by name; or None."""
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found


def check_stops(stop: str | Iterable[str] | None) -> tuple:
    """The texts of ``stop``; ValueError if one is empty."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if "" in stops:
        raise ValueError("stop must not be an empty text")
    return stops


class Pieces:
    """The text of one answer, a piece at a time; ``stopped`` is true when one of ``stops`` has come, before which the text ends."""

    def __init__(self, decoder: Decoder, stops: tuple[str, ...]) -> None:
        self._decoder, self._stops, self.stopped = decoder, stops, False
        self._held = ""  # the end of the text while it may be the beginning of a stop

    def push(self, token: int) -> str:
        """The text that is certain with this token, perhaps none."""
        held = self._held + self._decoder.push(token)
        found = [at for at in (held.find(stop) for stop in self._stops) if at >= 0]
        self.stopped = bool(found)
        certain = min(found) if found else len(held) - _overlap(held, self._stops)
        self._held = held[certain:]
        return held[:certain]

    def finish(self) -> str:
        """What is left of a text that was not stopped."""
        return "" if self.stopped else self._held + self._decoder.finish()


def _overlap(text, stops):
    """Length of the longest end of ``text`` that begins one of ``stops``."""
    for length in range(min(len(text), max((len(stop) for stop in stops), default=0)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0


def prompt_tokens(text: Text, prompt: Any) -> list[int]:
    """Tokens of a prompt: of a text or its UTF-8, of a conversation (dicts of ``role`` and ``content``), or those that it is already."""
    if isinstance(prompt, str | bytes):
        return text.encode(prompt)
    prompt = list(prompt)
    return text.chat(prompt) if prompt and isinstance(prompt[0], Mapping) else prompt


def folder_of(target: str, manifest: str | Path | None = None) -> Path | None:
    """Where the files of a device lie that is opened as ``target``: beside its manifest, or the simulated folder; None if nobody says."""
    if manifest is not None:
        return Path(manifest) if Path(manifest).is_dir() else Path(manifest).parent
    scheme, _, rest = target.partition(":")
    return Path(rest.partition("?")[0]) if scheme == "sim" else None


def text_of(manifest: Manifest, folder: Path | str | None = None) -> Text:
    """How the model of a manifest reads and writes.

    Parameters
    ----------
    manifest : Manifest
    folder : Path, str or None
        For a model with a tokenizer: the generated folder, or the checkpoint's.

    Raises
    ------
    TextError
        The model has no tokenizer, or its files are not there, are not those that the device was generated with, or cannot be used.
    """
    kind = manifest.model["tokenizer"]
    if kind == "bytes":
        return ByteText(manifest.model["bos"])
    if kind == "none":
        raise TextError(
            "text needs a model with a tokenizer, and this one came without: give tokens (--tokens, generate_tokens)"
        )
    if folder is None:
        raise TextError(
            "text needs the tokenizer's files, which lie in the generated folder: give it (--tokenizer DIR, open(tokenizer=DIR)), or tokens"
        )
    files = {}
    for name, digest in manifest.tokenizer.items():
        path = Path(folder) / "tokenizer" / name
        path = path if path.is_file() else Path(folder) / name
        try:
            files[name] = path.read_bytes()
        except OSError as fault:
            raise TextError(f"the tokenizer's file {path} must be readable: {fault.strerror or fault}") from fault
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise TextError(f"{path} must be the file that the device was generated with, and its SHA-256 is another")
    return TokenizerText(files)
