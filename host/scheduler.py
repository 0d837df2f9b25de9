"""Several requests at once on one device: which tokens go into the next group.

Requests come into sequences of the device in their order, as long as some are free; the others wait until one ends. A group has one token
of each sequence that generates, and in the slots that are left consecutive prompt tokens: those of the request that came first, then of
the next. So the earliest prompt is whole as soon as it can be, and its text begins while later prompts are read; taking turns instead would
make every first token as late as the last. Where those that generate would fill a group, one slot is kept for prompts, and they take turns.

What a request gets does not depend on the others: the device computes each token from its own sequence alone, and draws are made by the
request's own generator of random numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intaglio import Error
from intaglio.host.measure import Totals, watched
from intaglio.host.pool import Lease
from intaglio.host.protocol import RefusedError, Result, group
from intaglio.host.sampling import Sampler

if TYPE_CHECKING:
    from intaglio.host.device import Device

__all__ = ["Request", "RequestError", "Scheduler"]


class RequestError(Error):
    """Some of several requests have failed; the others have been served."""


@dataclass(eq=False)
class Request:
    """A prompt and what has become of it: ``fed`` tokens of it are in groups, ``token`` is the one to feed next once it generates."""

    index: int
    tokens: list[int]
    limit: int  # tokens to generate
    limited_by: str  # what it is when they have come: "length" or "context"
    sampler: Sampler
    lease: Lease | None = None
    fed: int = 0
    token: int = 0
    results: int = 0
    generated: int = 0
    first: float | None = None
    finish: str | None = None
    error: str | None = None

    @property
    def top(self) -> int:
        return 0 if self.sampler.greedy else self.sampler.top_k

    def draw(self, result: Result) -> int:
        return result.token if self.sampler.greedy else self.sampler.draw(result.tokens, result.logits * result.scale)

    def fail(self, fault: Exception) -> None:
        self.finish, self.error = "error", str(fault) or type(fault).__name__

    def row(self) -> dict[str, Any]:
        return {
            "prompt_tokens": len(self.tokens),
            "generated_tokens": self.generated,
            "finish": self.finish,
            "first_token_seconds": self.first,
            "error": self.error,
        }


@dataclass
class _Slot:
    """A token of a group."""

    request: Request
    token: int
    first: bool = False
    want: bool = True
    prompt: bool = False


class Scheduler:
    """Serves requests, see above; :meth:`run` yields a request and its token as they come, and a request and None when it ends.

    Whoever takes them may end a request by setting its ``finish``.
    """

    def __init__(
        self, device: Device, requests: list[Request], burst: int, selection: list[int], progress: Any
    ) -> None:
        self.device, self.requests, self.burst = device, requests, burst
        self.selection, self.progress, self.batch = selection, progress, device.manifest.batch
        self.waiting, self.prompts, self.ready = deque(requests), deque(), deque()  # ready: those that generate
        self.words, self.counts, self.fed = (
            [],
            [],
            0,
        )  # words that were not sent yet; which are prompt tokens; such that were sent
        self.packets, self.computed = (
            deque(),
            0,
        )  # packets that came while somebody else used the device; tokens to compute

    def run(self) -> Iterator[tuple[Request, int | None]]:
        device, finish = self.device, "closed"
        leases = device.pool.take(max(1, len(self.requests)))
        self.free = deque(leases)
        self.totals = Totals(device, sum(len(request.tokens) for request in self.requests))
        try:
            while self.waiting or self.prompts or self.ready:
                leases[0].check()
                self._join()
                slots = self._next_group()
                run = self._run_length(slots)
                self._write(slots, run)
                if serving := [slot.request for slot in slots if slot.want]:
                    yield from self._serve(serving, run, leases[0])
            finish = "done"
        except (Error, KeyboardInterrupt):
            finish = "error"
            raise
        finally:
            device.last = self.totals.close(finish, self.computed, [request.row() for request in self.requests])
            device.pool.give_back(leases)
        if failed := [request for request in self.requests if request.error is not None]:
            raise RequestError(
                f"{len(failed)} of {len(self.requests)} prompts failed, the first of them prompt {failed[0].index}: {failed[0].error}"
            )

    def _join(self):
        while self.waiting and self.free:
            request = self.waiting.popleft()
            request.lease = self.free.popleft()
            self.prompts.append(request)

    def _next_group(self):
        """Slots of the next group; requests whose prompt is whole with it generate from then on."""
        turns = min(len(self.ready), self.batch - bool(self.prompts))
        slots = [_Slot(request, request.token) for request in (self.ready.popleft() for _ in range(turns))]
        while self.prompts and len(slots) < self.batch:
            request = self.prompts[0]
            last = request.fed == len(request.tokens) - 1
            slots.append(_Slot(request, request.tokens[request.fed], first=request.fed == 0, want=last, prompt=True))
            request.fed += 1
            if last:
                self.prompts.popleft()
        return slots

    def _run_length(self, slots):
        """Groups that the device makes by itself after this one: none while a prompt is under way, a token is drawn here, or a request
        waits that could fill slots."""
        if self.waiting and self.batch > 1 or any(slot.prompt or not slot.request.sampler.greedy for slot in slots):
            return 0
        most = self.burst if len(slots) > 1 else min(self.burst, 1 << 24 - self.device.token_bits)
        return min(most, *(slot.request.limit - slot.request.results for slot in slots)) - 1

    def _write(self, slots, run):
        """Put a group's words behind those that wait to be sent."""
        words, selected = [] if len(slots) == 1 else [group(len(slots), run)], None
        for slot in slots:
            if slot.request is not selected:
                words += self.device.place(slot.request.lease.number)
                selected = slot.request
            words += self.selection if slot.first else []
            self.words += words
            self.counts += [0] * len(words) + [int(slot.prompt)]
            fields = {"first": slot.first, "want": slot.want, "top": slot.request.top if slot.want else 0}
            self.words.append(self.device.command(slot.token, **fields, run=run if len(slots) == 1 else 0))
            self.computed += 1 + run * slot.want
            words = []

    def _serve(self, serving, run, lease):
        """Send the words that wait, and pass on the results of the last group in them, of ``serving``, and of its run."""
        for count in range(run + 1):
            came = self._receive(serving, send=not count)
            serving = [request for request, result in came if isinstance(result, Result)]
            if not run and any(not request.results for request in serving):
                now = self.totals.seconds()  # the device rests
            for request, result in came:
                if request.finish is not None:
                    continue  # the rest of its burst
                if not isinstance(result, Result):
                    request.fail(result)
                else:
                    request.first = request.first if request.results else now
                    yield from self._pass_on(request, result)
                    lease.check()
                if request.finish is not None:
                    self.free.append(request.lease)
                    yield request, None
            if all(request.finish is not None for request in serving):
                break
        self.ready += [request for request in serving if request.finish is None]

    def _receive(self, serving, send):
        """Each of ``serving`` with its result, or with the refusal of its token."""
        came: list[tuple[Request, Result | RefusedError]] = []
        counts = self.counts
        with watched(self.device.transport, self.progress if send and any(counts) else None, counts, self.fed):
            if send:
                self.fed += sum(counts)
                words, self.words, self.counts = self.words, [], []
                self.packets = deque()  # what is left of a burst that nobody waits for goes to the one before
                self.device.submit(words, self.packets)
            for request in serving:
                try:
                    came.append((request, self.device.receive(self.packets)))
                except RefusedError as fault:
                    came.append((request, fault))
        return came

    def _pass_on(self, request, result):
        try:
            token = request.draw(result)
        except Exception as fault:  # of this request's candidates alone
            request.fail(fault)
            return
        request.results += 1
        if token in self.device.manifest.ends:
            request.finish = "eos"
            return
        request.token, request.generated = token, request.generated + 1
        self.totals.count()
        yield request, token
        if request.finish is None and request.results == request.limit:
            request.finish = request.limited_by
