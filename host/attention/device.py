"""A prefill attention unit: queries, keys and values in, attention out, over any transport."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from intaglio import Error
from intaglio.host.attention.parameters import WHOLE, divergence_threshold, run_parameters, share
from intaglio.host.attention.quantise import Quantised, image, quantise
from intaglio.host.manifest import PrefillManifest
from intaglio.host.opening import BaseDevice
from intaglio.host.protocol import VOID, DeviceError, DeviceTimeout
from intaglio.host.tensors import real_array
from intaglio.host.transport import Transport

__all__ = ["AttentionDevice", "Run", "open_attention"]

FAULTS = {
    1: "the memory answered a read with an error",
    2: "the memory ended a burst at a wrong beat",
    3: "the memory did not answer in time",
}
MEMORY_TIMEOUT = 1 << 16  # cycles without a beat after which the unit gives up
HEADS = 1 << 16  # KV heads of all layers whose blocks the unit tells apart
LOOK_SECONDS = 1.0  # without a result after which registers tell whether the unit is still at work
MEMORY_BYTES = 1 << 18  # written between two calls of progress
CANCEL_SECONDS, CANCEL_TRIES, LEFT_WORDS = (
    0.1,
    64,
    1 << 16,
)  # to wait, how often, and words to take at a time, when a run is broken off


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run of one KV head told.

    values int16 [G, N, D], exponents int8 [G, N] : results in steps of ``2^exponent / 254`` (of the last token alone N is 1);
    counters, phases : cycles and counts by name; cycles : of the run; aware bool [G] : query-aware heads; map : block map
    bool [G, nb, nb] or None.
    """

    values: np.ndarray
    exponents: np.ndarray
    cycles: int
    counters: dict
    phases: dict
    aware: np.ndarray
    map: np.ndarray | None = field(default=None)


class AttentionDevice(BaseDevice):
    """A prefill unit behind a transport, see :class:`~intaglio.host.opening.BaseDevice`.

    Attributes
    ----------
    runs : list of Run
        Of the latest :meth:`attention`, one for each KV head.
    """

    MANIFEST, SHAPE = PrefillManifest, "config"
    manifest: PrefillManifest

    def __init__(self, transport: Transport, *, timeout: float = 60.0):
        super().__init__(transport, timeout=timeout)
        self.runs = []

    def attention(
        self,
        q: npt.ArrayLike,
        k: npt.ArrayLike,
        v: npt.ArrayLike,
        *,
        gamma: float = 0.9,
        tau: float = 0.1,
        dense: bool = False,
        tenant: int = 0,
        hot_threshold: int = 0,
        maps: bool = False,
        last_only: bool = False,
        progress: Callable[[str, float], None] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Sparse causal attention.

        Parameters
        ----------
        q : float [H, N, D]; k, v : float [Hkv, N, D]
            numpy arrays, torch tensors or lists of either, of any floating type, after rotary embedding; q is not scaled. H / Hkv is the
            unit's group, D its head_dim, N at most its context. Query head h uses KV head ``h * Hkv // H``.
        gamma : float
            Share of the last block's attention mass that the chosen blocks keep at least, above 0 to 1; so near to 1 that nothing
            may be left out, the run is dense.
        tau : float
            Bound on the square root of the divergence below which a head chooses blocks row by row; 0: none does.
        dense : bool
            All blocks. Prompts shorter than a block are dense always.
        tenant, hot_threshold : int
            Of the cache, docs/prefill.md.
        maps : bool
            Read the block map after each run.
        last_only : bool
            q [H, 1, D] is of the last token alone, as in generation: one row of results a head, over all blocks. ``gamma``, ``tau``,
            ``dense`` and ``maps`` are nothing to it.
        progress : callable or None
            Called with a text and the share done.

        Returns
        -------
        numpy array, float32 as q, [H, N, D] or [H, 1, D], whatever q is. :attr:`runs` has what the runs told.

        Raises
        ------
        ValueError
            A shape does not fit the unit, a value is not finite, a parameter is out of range: before anything is sent.
        DeviceError, DeviceTimeout
            The run was refused, met a fault, or stood still for the time limit. The next call works.
        """
        c = self.manifest.config
        q, k, v = self._checked(q, k, v, last_only)
        gamma16, threshold = share(gamma, k.shape[1]), divergence_threshold(tau)
        for name, value, most in (("tenant", tenant, 255), ("hot_threshold", hot_threshold, 65535)):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
                raise ValueError(f"{name} must be an integer in 0..{most}, not {value!r}")
        group, heads = c["group"], len(k)
        quantised = [
            quantise(q[h * group : (h + 1) * group], k[h], v[h], block=c["block"], last_only=last_only)
            for h in range(heads)
        ]
        out = np.empty(q.shape, np.float32)
        self.runs = []
        for head, z in enumerate(quantised):

            def tell(text, done, head=head):
                if progress:
                    progress(f"KV head {head + 1} of {heads}: {text}", (head + done) / heads)

            run = self.run(
                z,
                gamma16=gamma16,
                threshold=threshold,
                dense=dense or gamma16 == WHOLE,
                tenant=tenant,
                kv_head=head,
                hot_threshold=hot_threshold,
                maps=maps and not last_only,
                progress=tell,
            )
            self.runs.append(run)
            out[head * group : (head + 1) * group] = z.results(run.values, run.exponents)
        return out

    def _checked(self, q, k, v, last_only):
        c = self.manifest.config
        arrays = []
        for name, x in (("q", q), ("k", k), ("v", v)):
            x = real_array(name, x)
            if x.ndim != 3:
                raise ValueError(f"{name} must be of shape [heads, tokens, head_dim], not {list(x.shape)}")
            if x.shape[2] != c["head_dim"]:
                raise ValueError(f"head_dim of {name} must be {c['head_dim']}, the unit's, not {x.shape[2]}")
            if not 1 <= x.shape[1] <= c["context"]:
                raise ValueError(f"tokens of {name} must be in 1..{c['context']}, the unit's context, not {x.shape[1]}")
            if not np.isfinite(x).all():
                raise ValueError(f"{name} must be finite, not NaN or infinite")
            arrays.append(x)
        q, k, v = arrays
        if len(k) < 1 or len(q) != c["group"] * len(k):
            raise ValueError(
                f"query heads must be {c['group']}, the unit's group, times the KV heads, not {len(q)} for {len(k)}"
            )
        if last_only and q.shape[1] != 1:
            raise ValueError(f"q must have one token with last_only, the last, not {q.shape[1]}")
        if k.shape != v.shape or not last_only and q.shape[1] != k.shape[1]:
            raise ValueError(
                f"q, k and v must have the same tokens, k and v the same shape, not {list(q.shape)}, {list(k.shape)}, "
                f"{list(v.shape)}"
            )
        return q, k, v

    def run(
        self,
        quantised: Quantised,
        *,
        gamma16: int,
        threshold: int,
        dense: bool = False,
        tenant: int = 0,
        kv_head: int = 0,
        hot_threshold: int = 0,
        maps: bool = False,
        forget: bool = True,
        progress: Callable[[str, float], None] | None = None,
    ) -> Run:
        """One KV head's run from its integers (:class:`~intaglio.host.attention.quantise.Quantised`). Without ``forget`` complete blocks
        must be those of the runs of this tenant and KV head before: they may be on chip."""
        c = self.manifest.config
        group, tokens = len(quantised.q), len(quantised.k)
        memory = image(quantised, block=c["block"])
        if self.read_register("status") & 1:  # a run that nobody waits for
            self._break_off()
        for first in range(0, len(memory.data), MEMORY_BYTES):
            if progress:
                progress("operands", 0.0)
            self.write_memory(memory.origin + first, memory.data[first : first + MEMORY_BYTES])
        if forget:
            self.write_register("control", 4)
        values = run_parameters(
            memory,
            tokens=tokens,
            block=c["block"],
            gamma16=gamma16,
            threshold=threshold,
            dense=dense,
            single=quantised.last_only,
            tenant=tenant,
            kv_head=kv_head % HEADS,
            hot_threshold=hot_threshold,
            timeout=MEMORY_TIMEOUT,
        )
        for name, value in values.items():
            self.write_register(name, value)
        self.write_register("control", 1)
        whole, short = _packet_beats(c, tokens)
        if quantised.last_only:
            wanted = _packet_beats(c, 1)[1]
        else:
            wanted = group * ((tokens - 1) // c["block"] * whole + short)
        try:
            words, ends = self._results(wanted, progress)
        except DeviceError:  # the run has ended
            raise
        except BaseException:  # of the caller, such as Ctrl-C: the next run must not get the results of this one
            with suppress(Error):
                self._break_off()
            raise
        if quantised.last_only:
            out, exponents = _last_rows(words, ends, c, group, tokens)
        else:
            out, exponents = _rows(words, ends, c, group, tokens)
        counters = {name: self.read_register(name) for name in self.manifest.counters}
        phases = {name: self.read_register(f"phase_{name}") for name in self.manifest.phases}
        cycles = self.read_cycles()
        aware = np.array([bool(self.read_register("aware") >> h & 1) for h in range(group)])
        return Run(
            values=out,
            exponents=exponents,
            cycles=cycles,
            counters=counters,
            phases=phases,
            aware=aware,
            map=self.block_map(tokens) if maps else None,
        )

    def _results(self, wanted, progress):
        """The words of all beats of a run, or an error; the device is then ready for the next run. What is asked of the device depends on
        nothing but its answers, so that a recording can be replayed."""
        size = _beat_words(self.manifest.config)
        words, ends, got, state, silent = [], [], 0, None, 0
        look = min(LOOK_SECONDS, self.timeout)
        while got < wanted * size:
            some, last = self.transport.receive(wanted * size - got, look)
            if len(some):
                words, ends, got, silent = words + [some], ends + [last], got + len(some), 0
                if last[-1] and some[-1] & VOID:
                    raise self._ended()
                if progress:
                    progress(f"{got // size:,} of {wanted:,} results", got / (wanted * size))
                continue
            now = (self.read_register("rows"), self.read_register("beats"))
            if now != state:
                state, silent, phase = now, 0, self._phase()
                if progress:
                    progress(f"{phase}, {now[0]:,} rows multiplied", got / (wanted * size))
            elif (silent := silent + 1) * look >= self.timeout:
                raise self._stuck(got // size, wanted)
        return np.concatenate(words), np.concatenate(ends)

    def _phase(self):
        return self.manifest.monitor["phases"][self.read_register("status") >> 1 & 7]

    def _ended(self):
        status = self.read_register("status")
        if status >> 7 & 1:
            return DeviceError(f"the device refused the parameters of the run (status 0x{status:08x})")
        fault = status >> 4 & 7
        return DeviceError(
            f"the run was broken off: {FAULTS.get(fault, 'cancelled')} (status 0x{status:08x}, after "
            f"{self.read_register('beats')} beats, {self.read_register('cycles_lo')} cycles)"
        )

    def _stuck(self, got, wanted):
        """Break the run off, and say where it stood."""
        phase, status = self._phase(), self.read_register("status")
        self._break_off()
        return DeviceTimeout(
            f"nothing moved for {self.timeout:g} s in phase {phase}: {got} of {wanted} beats, status 0x{status:08x}"
        )

    def _break_off(self):
        """Break the run under way off and take what is left of it."""
        self.write_register("control", 2)
        for _ in range(CANCEL_TRIES):
            words, last = self.transport.receive(LEFT_WORDS, CANCEL_SECONDS)
            if len(words) and last[-1] and words[-1] & VOID or not len(words) and not self.read_register("status") & 1:
                return
        self.transport.reset()

    def block_map(self, tokens: int) -> npt.NDArray[np.bool_]:
        """Block map bool [G, nb, nb] (head, query block, key block) of the last run."""
        c = self.manifest.config
        columns, blocks = c["columns"], -(-tokens // c["block"])
        keep = np.zeros((c["group"], -(-blocks // columns) * columns, blocks), bool)
        words = [f"map_{number}" for number in range(-(-columns // 32))]
        for head in range(c["group"]):
            for batch in range(keep.shape[1] // columns):
                for key in range(min(blocks, (batch + 1) * columns)):
                    self.write_register("map_select", key | batch << 14 | head << 24)
                    bits = sum(self.read_register(name) << 32 * number for number, name in enumerate(words))
                    keep[head, batch * columns : (batch + 1) * columns, key] = [
                        bits >> row & 1 for row in range(columns)
                    ]
        return keep[:, :blocks]


def _beat_words(c):
    """Words of a beat: its values, and tuser."""
    return -(-c["drain"] // 2) + 1


def _packet_beats(c, tokens):
    """Beats of the results of a whole block and of the last: those of the row groups that have rows."""
    group = c["columns"] * c["head_dim"] // c["drain"]
    return c["block"] // c["columns"] * group, -(-((tokens - 1) % c["block"] + 1) // c["columns"]) * group


def _rows(words, ends, c, group, tokens):
    """Values int16 [G, N, D] and exponents int8 [G, N] of the words of beats, which come (head, block) by (head, block), in any order of
    those."""
    columns, drain, dim, block = c["columns"], c["drain"], c["head_dim"], c["block"]
    blocks, (whole, short) = -(-tokens // block), _packet_beats(c, tokens)
    beats, last = words.reshape(-1, _beat_words(c)), ends.reshape(-1, _beat_words(c))
    values, marks = np.ascontiguousarray(beats[:, :-1]).view(np.int16)[:, :drain], beats[:, -1]
    stops = np.flatnonzero(last[:, -1]) + 1
    out = np.zeros((group, blocks * block, dim), np.int16)
    exponents = np.zeros((group, blocks * block), np.int8)
    seen = set()
    for first, stop in zip([0, *stops[:-1]], stops, strict=True):
        head, place = int(marks[first]) >> 14 & 0xFF, int(marks[first]) & 0x3FFF
        seen.add((head, place))
        right = stop - first == (short if place == blocks - 1 else whole)
        if (
            not right
            or head >= group
            or place >= blocks
            or ((marks[first:stop] ^ marks[first]) & 0x3FFFFF).any()
            or last[first:stop].sum() != 1
        ):
            seen.clear()
            break
        rows = values[first:stop].reshape(-1, dim, columns // drain, drain).transpose(0, 2, 3, 1).reshape(-1, dim)
        groups = (marks[first:stop] << 1).view(np.int32).reshape(len(rows) // columns, -1)[:, 0] >> 25
        begin = place * block
        out[head, begin : begin + len(rows)] = rows
        exponents[head, begin : begin + len(rows)] = np.repeat(groups, columns)
    if len(seen) != group * blocks or len(stops) != group * blocks:
        raise DeviceError("each (head, query block) must come once, in a packet of its own, and did not")
    return out[:, :tokens], exponents[:, :tokens]


def _last_rows(words, ends, c, group, tokens):
    """Values int16 [G, 1, D] and exponents int8 [G, 1] of the last token, whose packet has a head in each lane."""
    columns, drain, dim = c["columns"], c["drain"], c["head_dim"]
    beats, last = words.reshape(-1, _beat_words(c)), ends.reshape(-1, _beat_words(c))
    marks = beats[:, -1]
    if (marks & 0x3FFFFF != (tokens - 1) // c["block"]).any() or not last[-1, -1] or last.sum() != 1:
        raise DeviceError("the results of the last token must come in one packet, and did not")
    values = np.ascontiguousarray(beats[:, :-1]).view(np.int16)[:, :drain].reshape(dim, columns // drain, drain)
    exponent = (marks[:1] << 1).view(np.int32)[0] >> 25
    rows = values.transpose(1, 2, 0).reshape(columns, 1, dim)
    return rows[:group], np.full((group, 1), exponent, np.int8)


open_attention = AttentionDevice.open  # intaglio.host.open_attention
