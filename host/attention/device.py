"""A prefill attention unit: queries, keys and values in, attention out, over any transport that has its memory."""

import time
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from intaglio import Error
from intaglio.host.attention.manifest import MAP_VERSION, PrefillManifest
from intaglio.host.attention.parameters import WHOLE, divergence_threshold, run_parameters, share
from intaglio.host.attention.quantise import image, quantise
from intaglio.host.manifest import MAGIC
from intaglio.host.protocol import ConfigMismatchError, DeviceError, DeviceTimeout
from intaglio.host.tensors import real_array
from intaglio.host.transport import open_transport

__all__ = ["AttentionDevice", "Run", "open_attention"]

FAULTS = {
    1: "the memory answered a read with an error",
    2: "the memory ended a burst at a wrong beat",
    3: "the memory did not answer in time",
}
VOID = 1 << 23  # in tuser: the run ended early
MEMORY_TIMEOUT = 1 << 16  # cycles without a beat after which the unit gives up
CANCEL_SECONDS, LEFT_BEATS = 5.0, 1 << 16  # to wait, and beats to take at a time, when a run is broken off


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run of one KV head told.

    values int16 [G, N, D], exponents int8 [G, N] : results in steps of ``2^exponent / 254``; counters, phases : cycles and counts by name;
    cycles : of the run; aware bool [G] : query-aware heads; map : block map bool [G, nb, nb] or None.
    """

    values: np.ndarray
    exponents: np.ndarray
    cycles: int
    counters: dict
    phases: dict
    aware: np.ndarray
    map: np.ndarray | None = field(default=None)


def open_attention(target, *, timeout=60.0, progress=None, accept=None, **options) -> "AttentionDevice":
    """Open the prefill attention unit at ``SCHEME:REST``, for example ``sim:OUT``; arguments and errors as :func:`intaglio.host.open`."""
    if not timeout > 0:
        raise ValueError(f"timeout must be a positive number of seconds, not {timeout}")

    def judge(described):
        found = PrefillManifest.from_dict(described)
        if accept is not None:
            accept(found)

    transport = open_transport(target, progress=progress, accept=judge, **options)
    try:
        return AttentionDevice(transport, timeout=timeout)
    except BaseException:
        transport.close()
        raise


class AttentionDevice:
    """A device behind a transport; a context manager that closes it.

    The transport has ``manifest``, ``read_register``, ``write_register``, ``reset``, ``close``, and

    * ``write_memory(data, origin)``: bytes that the unit reads from address ``origin`` on;
    * ``receive_beats(capacity, stop, timeout)``: values int16 [n, drain] and tuser uint32 [n] with tlast in bit 31; returns at
      ``capacity`` beats, after a beat with a bit of ``stop`` in tuser, or after ``timeout`` seconds.

    Attributes
    ----------
    manifest : PrefillManifest
    runs : list of Run
        Of the latest :meth:`attention`, one for each KV head.
    """

    def __init__(self, transport, *, timeout=60.0):
        self.transport, self.timeout, self.runs = transport, timeout, []
        self.manifest = PrefillManifest.from_dict(transport.manifest)
        self._closed = False
        for name, expected in (
            ("magic", MAGIC),
            ("version", MAP_VERSION),
            ("digest", self.manifest.digest_word),
            ("capabilities", self.manifest.capabilities),
        ):
            found = self.read_register(name)
            if found != expected:
                raise ConfigMismatchError(
                    f"the device's {name} register is 0x{found:08x}, but its manifest "
                    f"(digest {self.manifest.digest[:16]}) says 0x{expected:08x}: "
                    "device and manifest must come from the same generated folder"
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Release the transport; closing twice does nothing."""
        if not self._closed:
            self._closed = True
            self.transport.close()

    def read_register(self, name) -> int:
        """Value of the register ``name``."""
        if self._closed:
            raise DeviceError("the device is closed")
        if name not in self.manifest.registers:
            raise ValueError(f"register must be one of {', '.join(sorted(self.manifest.registers))}, not {name!r}")
        return self.transport.read_register(self.manifest.registers[name].offset)

    def write_register(self, name, value):
        if self._closed:
            raise DeviceError("the device is closed")
        self.transport.write_register(self.manifest.registers[name].offset, value)

    def attention(
        self, q, k, v, *, gamma=0.9, tau=0.1, dense=False, tenant=0, hot_threshold=0, maps=False, progress=None
    ):
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
        progress : callable or None
            Called with a text and the share done.

        Returns
        -------
        numpy array, float32 [H, N, D], whatever q is. :attr:`runs` has what the runs told.

        Raises
        ------
        ValueError
            A shape does not fit the unit, a value is not finite, a parameter is out of range: before anything is sent.
        DeviceError, DeviceTimeout
            The run was refused, met a fault, or stood still for the time limit. The next call works.
        """
        c = self.manifest.config
        q, k, v = self._checked(q, k, v)
        gamma16, threshold = share(gamma, q.shape[1]), divergence_threshold(tau)
        for name, value, most in (("tenant", tenant, 255), ("hot_threshold", hot_threshold, 65535)):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
                raise ValueError(f"{name} must be an integer in 0..{most}, not {value!r}")
        group, heads = c["group"], len(k)
        quantised = [quantise(q[h * group : (h + 1) * group], k[h], v[h], block=c["block"]) for h in range(heads)]
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
                maps=maps,
                progress=tell,
            )
            self.runs.append(run)
            out[head * group : (head + 1) * group] = z.results(run.values, run.exponents)
        return out

    def _checked(self, q, k, v):
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
        if k.shape != v.shape or q.shape[1] != k.shape[1]:
            raise ValueError(
                f"q, k and v must have the same tokens, k and v the same shape, not {list(q.shape)}, {list(k.shape)}, "
                f"{list(v.shape)}"
            )
        return q, k, v

    def run(
        self,
        quantised,
        *,
        gamma16,
        threshold,
        dense=False,
        tenant=0,
        kv_head=0,
        hot_threshold=0,
        maps=False,
        progress=None,
    ) -> Run:
        """One KV head's run from its integers (:class:`~intaglio.host.attention.quantise.Quantised`)."""
        c = self.manifest.config
        group, tokens, head_dim = quantised.q.shape
        memory = image(quantised, block=c["block"], columns=c["columns"])
        if self.read_register("status") & 1:  # a run that nobody waits for
            self._break_off()
        self.transport.write_memory(memory.data, memory.origin)
        self.write_register("control", 4)
        values = run_parameters(
            memory,
            tokens=tokens,
            block=c["block"],
            gamma16=gamma16,
            threshold=threshold,
            dense=dense,
            tenant=tenant,
            kv_head=kv_head % 256,
            hot_threshold=hot_threshold,
            timeout=MEMORY_TIMEOUT,
        )
        for name, value in values.items():
            self.write_register(name, value)
        self.write_register("control", 1)
        blocks = -(-tokens // c["block"])
        try:
            beats, users = self._results(group * blocks * c["block"] * head_dim // c["drain"], progress)
        except DeviceError:  # the run has ended
            raise
        except BaseException:  # of the caller, such as Ctrl-C: the next run must not get the results of this one
            with suppress(Error):
                self._break_off()
            raise
        out, exponents = (x[:, :tokens] for x in _rows(beats, users, c, group, blocks))
        counters = {name: self.read_register(name) for name in self.manifest.counters}
        phases = {name: self.read_register(f"phase_{name}") for name in self.manifest.phases}
        cycles = self.read_register("cycles_lo") | self.read_register("cycles_hi") << 32
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
        """All beats of a run, or an error; the device is then ready for the next run."""
        beats, users, state, moved = [], [], None, time.monotonic()
        got = 0
        while got < wanted:
            some, marks = self.transport.receive_beats(wanted - got, VOID, min(1.0, self.timeout))
            beats, users, got = beats + [some], users + [marks], got + len(some)
            if len(marks) and marks[-1] & VOID:
                raise self._ended()
            if len(some) and not progress:  # results wait while registers are read
                moved = time.monotonic()
                continue
            now = (got, self.read_register("rows"), self.read_register("beats"))
            if now != state:
                state, moved = now, time.monotonic()
                if progress:
                    progress(f"{self._phase()}, {now[1]:,} rows multiplied", got / wanted)
            elif time.monotonic() - moved > self.timeout:
                raise self._stuck(got, wanted)
        return np.concatenate(beats), np.concatenate(users)

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
        end = time.monotonic() + CANCEL_SECONDS
        while time.monotonic() < end:
            _, marks = self.transport.receive_beats(LEFT_BEATS, VOID, CANCEL_SECONDS / 20)
            if len(marks) and marks[-1] & VOID or not len(marks) and not self.read_register("status") & 1:
                return
        self.transport.reset()

    def block_map(self, tokens):
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


def _rows(beats, users, c, group, blocks):
    """Values int16 [G, nb * B, D] and exponents int8 [G, nb * B] of beats [n, drain], which come (head, block) by (head, block), in any
    order of those."""
    columns, drain, dim = c["columns"], c["drain"], c["head_dim"]
    packet = c["block"] * dim // drain
    marks = users.reshape(group * blocks, packet)
    heads, places = marks[:, 0] >> 14 & 0xFF, marks[:, 0] & 0x3FFF
    whole = (
        (marks & 0x3FFFFF == marks[:, :1] & 0x3FFFFF).all()
        and (marks[:, -1] >> 31).all()
        and not (marks[:, :-1] >> 31).any()
    )
    if (
        not whole
        or len(set(zip(heads.tolist(), places.tolist(), strict=True))) != group * blocks
        or heads.max() >= group
        or places.max() >= blocks
    ):
        raise DeviceError("each (head, query block) must come once, in a packet of its own, and did not")
    rows = beats.reshape(group * blocks, c["block"] // columns, dim, columns // drain, drain)
    rows = rows.transpose(0, 1, 3, 4, 2).reshape(group * blocks, c["block"], dim)
    groups = (marks << 1).view(np.int32).reshape(len(marks), c["block"] // columns, -1)[:, :, 0] >> 25
    out = np.empty((group, blocks, c["block"], dim), np.int16)
    exponents = np.empty((group, blocks, c["block"]), np.int8)
    out[heads, places], exponents[heads, places] = rows, np.repeat(groups, columns, 1)
    return out.reshape(group, blocks * c["block"], dim), exponents.reshape(group, blocks * c["block"])
