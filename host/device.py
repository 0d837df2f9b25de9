"""A device: tokens in, tokens and logits out, and the registers beside them, over any transport.

Words of the command and result streams are described in :mod:`intaglio.host.protocol`.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from intaglio.host.adapter.files import AdapterError
from intaglio.host.adapter.loading import load_adapter
from intaglio.host.conversation import Conversation
from intaglio.host.generation import check_tokens, generate_text, generate_tokens
from intaglio.host.manifest import Manifest
from intaglio.host.many import generate_many, generate_tokens_many
from intaglio.host.opening import BaseDevice
from intaglio.host.pool import Pool
from intaglio.host.protocol import DeviceError, DeviceTimeout, RefusedError, Result, command, group, selection, sequence
from intaglio.host.text import Text, folder_of, text_of
from intaglio.host.transport import Transport

__all__ = ["Device", "open"]


class Device(BaseDevice):
    """A decoder behind a transport, see :class:`~intaglio.host.opening.BaseDevice`.

    Attributes
    ----------
    last : dict
        Statistics of the latest generation, see :meth:`generate_tokens`; empty before the first.
    tokenizer : Path or None
        The folder with the files of the model's tokenizer, where it has any.
    """

    MANIFEST, SHAPE = Manifest, "model"
    manifest: Manifest

    def __init__(self, transport: Transport, *, timeout: float = 60.0):
        super().__init__(transport, timeout=timeout)
        self.last, self._owed = {}, self.manifest.owed()
        self._taker: deque | None = None  # of the packets that are owed
        self.pool = Pool(self.manifest.sequences)
        self.tokenizer: Path | None = None
        self.token_bits = self.manifest.token_bits
        self.full = (1 << self.token_bits) - 1  # token of an answer: nothing was computed

    @classmethod
    def open(cls, target: str, *, tokenizer: str | Path | None = None, **arguments) -> Self:
        """As :meth:`intaglio.host.opening.BaseDevice.open`; ``tokenizer`` is the folder with the tokenizer's files, by default the one that
        is simulated, or that the manifest lies in."""
        device = super().open(target, **arguments)
        device.tokenizer = Path(tokenizer) if tokenizer is not None else folder_of(target, arguments.get("manifest"))
        return device

    @cached_property
    def text(self) -> Text:
        """How the model reads and writes; TextError where that is not known, see :func:`intaglio.host.text.text_of`."""
        return text_of(self.manifest, self.tokenizer)

    def counters(self) -> dict:
        """Counters since :meth:`clear_counters`, in cycles: ``cycles``, ``stall_in`` (waiting for a command), ``stall_out``
        (a result not taken), ``phases`` (by name); and ``tokens``. All but ``cycles`` wrap at 2**32."""
        counts = {name: self.read_register(name) for name in ("stall_in", "stall_out", "tokens")}
        phases = {name: self.read_register(f"phase_{name}") for name in self.manifest.phases}
        return {"cycles": self.read_cycles(), **counts, "phases": phases}

    def bank_activity(self) -> dict:
        """Activity of the weight banks since :meth:`clear_counters`, for devices whose banks' power is switched.

        ``powered`` (cycles with power), ``reads`` (words) and ``wakes`` (times switched on), a list with an entry for each column of
        banks; and ``stall``, the cycles that a word waited for its bank. All wrap at 2**32.
        """
        if "gate_bank" not in self.manifest.registers:
            raise ValueError("the device must have power gating for this (generate it with --set gate_words=1024)")
        out = {"powered": [], "reads": [], "wakes": []}
        for bank in range(self.read_register("gate_bank")):
            self.write_register("gate_bank", bank)
            for name, values in out.items():
                values.append(self.read_register(f"gate_{name}"))
        return {**out, "stall": self.read_register("gate_stall")}

    def clear_counters(self):
        """Set all counters to 0."""
        self.write_register("control", 1)

    def reset(self):
        """Reset the device and forget everything under way."""
        self._check_open()
        self.transport.reset()
        self._owed.clear()
        self._taker = None
        self.pool.lose("the device was reset, and what its sequences held is gone: begin anew (reset)")

    def drain(self):
        """Take the packets that are still to come for commands already submitted, for whoever waits for them, or forget them."""
        self._check_open()
        while self._owed:
            words = self._packet()
            if self._taker is not None:
                self._taker.append(words)

    def command(self, token, **fields) -> int:
        """One command word for this device, see :func:`intaglio.host.protocol.command`."""
        return command(token, bits=self.token_bits, **fields)

    def place(self, number: int) -> list[int]:
        """The words after which tokens belong to the sequence ``number``: none for a device of one sequence."""
        return [] if self.manifest.sequences == 1 else [sequence(number)]

    def prompt(self, tokens: Sequence[int], wanted: Sequence[bool], *, first: bool, top: int = 0) -> list[int]:
        """Words that feed consecutive tokens of a sequence, in groups of as many as the device computes side by side.

        ``wanted`` says for each whether it has a result, with ``top`` logits; ``first``, whether the sequence begins anew.
        """
        words, batch = [], self.manifest.batch
        for start in range(0, len(tokens), batch):
            part = range(start, min(start + batch, len(tokens)))
            if len(part) > 1:
                words.append(group(len(part)))
            words += [
                self.command(tokens[i], first=first and i == 0, want=wanted[i], top=top if wanted[i] else 0)
                for i in part
            ]
        return words

    def submit(self, words: npt.ArrayLike, taker: deque | None = None) -> None:
        """Send command words (see :func:`intaglio.host.protocol.command`); the last one ends the packet.

        ``taker`` gets the packets that have not been received when somebody else submits, see :meth:`receive`.
        """
        self.drain()
        self._taker = taker
        words = np.ascontiguousarray(words, dtype=np.uint32)
        last = np.zeros(len(words), dtype=bool)
        last[-1:] = True
        sent = self.transport.send(words, last, self.timeout)
        self._owed.add(words[:sent])
        if sent < len(words):
            raise self._timed_out("command", sent, len(words))

    def receive(self, taker: deque | None = None) -> Result:
        """Wait for one result packet, or take the first of those that :meth:`submit` has put into ``taker``.

        Raises
        ------
        DeviceTimeout
            Nothing moved for the time limit.
        RefusedError
            The context is full, or the sequence's adapter is not there.
        DeviceError
            The packet's length is not one that the protocol has.
        """
        words = taker.popleft() if taker else self._packet()
        token, position = int(words[0]) & self.full, int(words[0]) >> self.token_bits
        if token == self.full and position < self.manifest.model["context"]:
            raise RefusedError(
                "the device refused a token: the slot that was selected for its sequence holds no adapter"
            )
        if token == self.full:
            raise RefusedError(
                f"the device's context of {self.manifest.model['context']} tokens is full "
                f"(status 0x{self.read_register('status'):08x})"
            )
        if len(words) == 1:
            return Result(
                token=token, position=position, tokens=np.empty(0, np.uint32), logits=np.empty(0, np.int32), scale=0.0
            )
        mantissa, exponent = int(words[1]) & 0xFFFF, int(words[1] >> 16)
        exponent -= (exponent & 0x8000) << 1
        if abs(exponent) > 512:
            raise DeviceError(f"the exponent of a logit unit must be in -512..512, not {exponent} (stream result)")
        return Result(
            token=token,
            position=position,
            tokens=words[2::2],
            logits=words[3::2].view(np.int32),
            scale=mantissa * 2.0**exponent,
        )

    def _packet(self):
        """Words of the next result packet, which is then no longer owed."""
        limit = 2 + 2 * self.manifest.model["top_k"]
        words, flags = self.transport.receive(limit, self.timeout)
        if not len(flags) or not flags[-1]:
            if len(words) < limit:
                raise self._timed_out("result", len(words), "a whole packet")
            raise DeviceError(
                f"a result packet must end within {limit} words (stream result, "
                f"status 0x{self.read_register('status'):08x})"
            )
        if len(words) > 1 and len(words) % 2:
            raise DeviceError(
                f"a result packet must have 1 word or an even number of words, not {len(words)} (stream result)"
            )
        self._owed.packet(words)
        return words

    def _timed_out(self, stream, done, expected):
        cycles, status = (
            self.read_cycles(),
            self.read_register("status"),
        )  # first: their answers say also how many commands were taken
        pending = self.transport.pending
        waiting = f", {pending} command words not taken" if pending else ""
        return DeviceTimeout(
            f"no word moved for {self.timeout:g} s: stream {stream}, words done {done}, expected {expected}"
            f"{waiting}, cycle {cycles}, status 0x{status:08x}"
        )

    def load_adapter(self, folder, *, slot=None) -> int:
        """Load a low-rank adapter in PEFT's layout; see :func:`intaglio.host.adapter.loading.load_adapter`."""
        return load_adapter(self, folder, slot=slot)

    @property
    def adapters(self) -> list:
        """Slots that hold an adapter; empty for a device without any."""
        if self.manifest.adapter is None:
            return []
        loaded = self.read_register("adapter_slots") >> 16
        return [slot for slot in range(self.manifest.adapter["slots"]) if loaded >> slot & 1]

    def selection(self, adapter) -> list:
        """Command words that make the sequences after them compute with the adapter in slot ``adapter``, or with none (None)."""
        if self.manifest.adapter is None:
            if adapter is not None:
                raise AdapterError(
                    "adapter must be None: this device has no adapter hardware (generate it with --set rank=8)"
                )
            return []
        if adapter is not None and adapter not in self.adapters:
            raise AdapterError(
                f"adapter must be None or a slot that holds one ({', '.join(map(str, self.adapters)) or 'none does'}), "
                f"not {adapter}"
            )
        return [selection(adapter)]

    def evaluate(self, tokens, *, top=0, every=False, chunk=64, adapter=None) -> list:
        """Feed ``tokens`` from position 0 and return their results.

        Parameters
        ----------
        tokens : sequence of int
        top : int
            Logits in each result, 0 to the model's ``top_k``.
        every : bool
            One :class:`Result` for each token instead of for the last one only.
        chunk : int
            Tokens sent before their results are awaited.
        adapter : int or None
            The slot of the adapter to compute with.
        """
        tokens = self.check_tokens(tokens)
        if not 0 <= top <= self.manifest.model["top_k"]:
            raise ValueError(f"top must be in 0..{self.manifest.model['top_k']}, not {top}")
        wanted = [every or i == len(tokens) - 1 for i in range(len(tokens))]
        selection, leases, results = self.selection(adapter), self.pool.take(), []
        try:
            for start in range(0, len(tokens), chunk):
                part = slice(start, start + chunk)
                words = self.prompt(tokens[part], wanted[part], first=start == 0, top=top)
                self.submit([*self.place(leases[0].number), *(selection if start == 0 else []), *words])
                results.extend(self.receive() for _ in range(sum(wanted[part])))
        finally:
            self.pool.give_back(leases)
        return results

    def check_tokens(self, tokens) -> list:
        """``tokens``, integers of any kind, as a list of int; ValueError unless the device can take them as one prompt."""
        return check_tokens(self.manifest, tokens)

    def generate_tokens(self, tokens, max_tokens, **sampling):
        """Generate tokens after ``tokens``; see :func:`intaglio.host.generation.generate_tokens`."""
        return generate_tokens(self, tokens, max_tokens, **sampling)

    def generate(self, prompt: str | bytes, max_tokens: int, *, stop=None, **sampling) -> Generator[str, None, None]:
        """Generate text after ``prompt``, text or its UTF-8; see :func:`intaglio.host.generation.generate_text`."""
        return generate_text(self, self.text.encode(prompt), max_tokens, stop=stop, **sampling)

    def chat(self, messages: Sequence[Mapping[str, str]], max_tokens: int, *, stop=None, **sampling):
        """Generate the answer to a conversation, dicts of ``role`` and ``content``, by the model's chat template; as :meth:`generate`."""
        return generate_text(self, self.text.chat(messages), max_tokens, stop=stop, **sampling)

    def generate_tokens_many(self, prompts, max_tokens, **sampling) -> Iterator[tuple[int, int]]:
        """Generate tokens after each of ``prompts``; see :func:`intaglio.host.many.generate_tokens_many`."""
        return generate_tokens_many(self, prompts, max_tokens, **sampling)

    def generate_many(self, prompts: Iterable, max_tokens, *, stop=None, **sampling) -> Iterator[tuple[int, str]]:
        """Generate text after each of ``prompts``; see :func:`intaglio.host.many.generate_many`."""
        return generate_many(self, prompts, max_tokens, stop=stop, **sampling)

    def sequence(self, adapter: int | None = None) -> Conversation:
        """A sequence that goes on from turn to turn, see :class:`intaglio.host.conversation.Conversation`."""
        return Conversation(self, adapter)


open = Device.open  # intaglio.host.open
