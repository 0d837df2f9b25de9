"""The simulated prefill unit, built once, and what the exact model says of a run; decoders with adapters, built once."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

import intaglio.host as host
from intaglio.gen.cycles.attention import Memory, run_cycles
from intaglio.gen.presets.attention import prefill_config
from intaglio.host.attention.quantise import Quantised, quantise
from intaglio.sim.attention import cache, exact
from intaglio.sim.attention.heads import ACTIVATIONS, MASSES, activation_heads, mass_head
from intaglio.sim.attention.report import head_group
from tests.sim.adapter_bench import Bench as AdapterBench

C = prefill_config("small")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run of one KV head: integers, parameters, and what must come of it."""

    z: Quantised
    gamma16: int = 59000
    threshold: int = 0
    dense: bool = False
    hot_threshold: int = 0
    expected: dict = field(init=False)

    def __post_init__(self):
        group, tokens = head_group(self.z), self.z.k.shape[0]
        count = -(-tokens // C.block)
        if self.dense or tokens < C.block:
            keep, aware = torch.ones(C.group, count, count, dtype=torch.bool).tril(), [False] * C.group
        else:
            found = exact.index(group, block=C.block, gamma16=self.gamma16, threshold=self.threshold)
            keep, aware = exact.block_map(found), found["query_aware"].tolist()
        traffic = cache.simulate(cache.visits(keep.numpy(), C.window), C.lines, C.lookahead, self.hot_threshold)
        object.__setattr__(
            self,
            "expected",
            {
                "map": keep.numpy(),
                "aware": aware,
                **{
                    name: x.numpy()
                    for name, x in zip(("values", "exponents"), exact.attend(group, keep, block=C.block), strict=True)
                },
                "traffic": (traffic.hits, traffic.misses, traffic.evictions),
            },
        )

    @property
    def tokens(self):
        return self.z.k.shape[0]

    def run(self, device, **changes):
        arguments = {
            "gamma16": self.gamma16,
            "threshold": self.threshold,
            "dense": self.dense,
            "hot_threshold": self.hot_threshold,
            "maps": True,
        } | changes
        return device.run(self.z, **arguments)

    def differences(self, run):
        """Names of what is not as the exact model has it."""
        found = {
            "map": run.map,
            "aware": run.aware.tolist(),
            "values": run.values,
            "exponents": run.exponents,
            "traffic": tuple(run.counters[name] for name in ("hits", "misses", "evictions")),
        }
        return {name for name, value in self.expected.items() if not np.array_equal(found[name], value)}

    def cycles(self, memory):
        """Closed form by phases for a MemoryModel."""
        times = Memory(latency=memory.latency_cycles, rate=float(memory.bytes_per_cycle) / C.head_dim)
        return run_cycles(
            C,
            self.expected["map"],
            sum(self.expected["aware"]),
            self.expected["traffic"][1],
            times,
            dense=self.dense or self.tokens < C.block,
            tokens=self.tokens,
        )


def integers(tokens, *, seed=1, base=6, least=0, extreme=False):
    """Any integers that the memory may hold, with scales of eight powers of two (from ``least`` on), times ``2^-base``; values' of all.
    ``extreme``: all elements 127 or -127."""
    rng, count = np.random.default_rng(seed), -(-tokens // C.block)

    def elements(*shape):
        if extreme:
            return rng.choice(np.array([-127, 127], np.int8), shape)
        return rng.integers(-127, 128, shape).astype(np.int8)

    def scales(loud, *shape):
        return rng.integers(4 * (loud + least), 4 * (loud + 8), shape).astype(np.uint8)

    return Quantised(
        q=elements(C.group, tokens, C.head_dim),
        xq=scales(28 + base, C.group, tokens),
        k=elements(tokens, C.head_dim),
        xk=scales(24, tokens),
        v=elements(tokens, C.head_dim),
        xv=rng.integers(0, 256, tokens).astype(np.uint8),
        pooled_q=elements(C.group, count, C.head_dim),
        pooled_xq=scales(28 + base, C.group, count),
        pooled_k=elements(count, C.head_dim),
        pooled_xk=scales(24, count),
    )


def real(tokens, *, seed=1, kind="random"):
    """Float q [G, N, D], k, v [N, D] of a kind."""
    if kind in ACTIVATIONS:
        return tuple(
            x.numpy() for x in activation_heads(kind, heads=C.group, tokens=tokens, head_dim=C.head_dim, seed=seed)
        )
    if kind in MASSES:
        q, k, v = (x.numpy() for x in mass_head(kind, tokens, head_dim=C.head_dim, block=C.block, seed=seed))
        return np.repeat(q, C.group, 0), k, v
    rng = np.random.default_rng(seed)
    k, v = (rng.normal(size=(tokens, C.head_dim)) for _ in range(2))
    q = rng.normal(size=(C.group, tokens, C.head_dim)) + 0.7 * k  # queries look at their own place
    if kind == "equal keys":
        k[:] = k[0]
    elif kind == "zeros":
        q, k, v = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    elif kind == "zero values":
        v[:] = 0
    elif kind == "outliers":
        for x in (q, k, v):
            x[..., ::17, 3] *= 1e4
    elif kind == "one key":
        k *= 0.02
        k[tokens // 3] = 6
        q = np.abs(q)
    elif kind == "constant queries":
        q[:] = q[:, :1]
    elif kind == "tiny":
        q, k, v = q * 1e-20, k * 1e-20, v * 1e-20
    elif kind != "random":
        raise ValueError(kind)
    return q, k, v


class Bench:
    """How tests make cases; they are computed once."""

    config, Case, integers, real = C, Case, staticmethod(integers), staticmethod(real)

    def __init__(self):
        self.known = {}

    def case(self, tokens, *, kind="random", seed=1, **parameters):
        key = repr((tokens, kind, seed, sorted(parameters.items())))
        if key not in self.known:
            self.known[key] = Case(z=quantise(*real(tokens, seed=seed, kind=kind), block=C.block), **parameters)
        return self.known[key]


@pytest.fixture(scope="session")
def bench():
    return Bench()


@pytest.fixture(scope="session")
def open_small(small_prefill, simulation_cache):
    """Opens the simulated unit anew, with options of the transport."""
    torch.set_num_threads(1)
    opened = []

    def start(**options):
        device = host.open_attention(f"sim:{small_prefill}", cache=simulation_cache, **options)
        opened.append(device)
        return device

    yield start
    for device in opened:
        device.close()


@pytest.fixture(scope="session")
def shared_device(open_small):
    return open_small()


@pytest.fixture
def device(shared_device, monkeypatch):
    """The simulated unit as it is after the tests before, with nothing of them left."""
    yield shared_device
    shared_device.timeout = 60.0
    shared_device.transport.simulation.new_memory()
    shared_device.transport.simulation.stalls(1)


@pytest.fixture(scope="session")
def adapter_benches(tmp_path_factory):
    """Gives the bench of a case by name, built when it is first asked for."""
    made = {}

    def bench(name):
        if name not in made:
            made[name] = AdapterBench(name, tmp_path_factory.mktemp("adapter"))
        return made[name]

    return bench


@pytest.fixture
def one_thread():
    """torch on one thread: what is small is no quicker on two, and much slower on a machine that is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
