"""The prefill unit's Verilog under Verilator against the exact model, bit for bit: maps, decisions, outputs, cache traffic, cycles."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest

from intaglio.sim.attention import cache
from intaglio.sim.attention import dense as attention
from intaglio.sim.verilator.memory import MemoryModel

pytestmark = pytest.mark.verilator

AWARE = 1 << 29  # a threshold above every divergence: all heads are query-aware
SLOW = MemoryModel(latency_cycles=400, bytes_per_cycle=2)
KINDS = (
    "equal keys",
    "zeros",
    "zero values",
    "outliers",
    "one key",
    "constant queries",
    "tiny",
    "outlier_channel",
    "key_offset",
    "sink",
    "heavy",
    "sparse_values",
    "spike_flat",
    "verticals",
)


def within(case, run, memory):
    """The run's cycles against the closed form's: 3 %."""
    form = case.cycles(memory)
    assert sum(run.phases.values()) == run.cycles
    assert abs(run.cycles / sum(form.values()) - 1) <= 0.03, {name: (run.phases[name], form[name]) for name in form}


def compare(case, device):
    device.transport.simulation.new_memory()  # reads of what earlier runs have left there are errors
    run = case.run(device)
    assert case.differences(run) == set()
    within(case, run, device.transport.simulation.model)
    return run


@pytest.mark.parametrize(
    "tokens", [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 129, 160, 255, 256, 257, 384, 511, 512]
)
def test_lengths(bench, device, tokens):
    """One token, a tile, a block, a window and a batch, each less one and one more; a whole context."""
    run = compare(bench.case(tokens, seed=tokens), device)
    assert run.values.shape == (2, tokens, 16) and run.values.any()


def filled_past_the_end(device, monkeypatch, case):
    """Rows past the end, of which memory need not hold zeros, are loud in the next memories."""
    from intaglio.host.attention.quantise import image

    memory, write = image(case.z, block=32), device.transport.write_memory
    count, half = -(-case.tokens // 32), 32 * 16 + 32
    heads = [memory.q_base + (head * count + count - 1) * half for head in range(2)]
    pooled = [memory.pooled_q_base + head * half for head in range(2)] + [memory.pooled_k_base]
    last = memory.kv_base + (count - 1) * 2 * half
    blocks = [(base, (case.tokens - 1) % 32 + 1) for base in (last, last + half, *heads)]
    blocks += [(base, count) for base in pooled]

    def loud(address, data):
        data = data.copy()
        for base, rows in blocks:
            at = base - memory.origin
            data[at + rows * 16 : at + 32 * 16] = 127
            data[at + 32 * 16 + rows : at + half] = 255 if base == last + half else 60
        write(address, data)

    monkeypatch.setattr(device.transport, "write_memory", loud)


@pytest.mark.parametrize("tokens", [1, 15, 33, 41, 63, 111, 200])
def test_what_lies_past_the_end_does_not_count(bench, device, monkeypatch, tokens):
    """Nor does it cost: beats of tiles and row groups without a row are not read."""
    case = bench.case(tokens, seed=tokens, threshold=AWARE)
    filled_past_the_end(device, monkeypatch, case)
    compare(case, device)


@pytest.mark.parametrize("tokens", [32, 33, 200, 512])
@pytest.mark.parametrize("threshold", [1 << 24, AWARE])
def test_query_aware_heads(bench, device, tokens, threshold):
    run = compare(bench.case(tokens, seed=tokens + 1, threshold=threshold), device)
    assert threshold != AWARE or run.aware.all()


def test_one_of_two_heads_is_query_aware(bench, device):
    """A threshold between the divergences of the heads."""
    from intaglio.sim.attention import exact
    from intaglio.sim.attention.report import head_group

    base = bench.case(224, seed=3)
    found = exact.index(head_group(base.z), block=32, gamma16=base.gamma16, threshold=0)["divergence"].tolist()
    case = bench.case(224, seed=3, threshold=max(found))
    assert sorted(compare(case, device).aware.tolist()) == [False, True]
    assert compare(bench.case(224, seed=3, threshold=max(found) + 1), device).aware.all()  # the bound is exact
    assert not compare(bench.case(224, seed=3, threshold=min(found)), device).aware.any()


@pytest.mark.parametrize("gamma16", [1, 6554, 32768, 65535, 65536])
@pytest.mark.parametrize("threshold", [0, AWARE])
def test_shares(bench, device, gamma16, threshold):
    run = compare(bench.case(300, seed=4, gamma16=gamma16, threshold=threshold), device)
    if gamma16 == 1:
        assert run.map.sum() < 2 * 55 / 2
    if gamma16 == 65536 and not threshold:
        assert run.map.sum() == 2 * 55  # every block has mass


@pytest.mark.parametrize("tokens", [40, 128, 333])
def test_dense(bench, device, tokens):
    case = bench.case(tokens, seed=5, dense=True)
    run = compare(case, device)
    count = -(-tokens // 32)
    assert (run.map == np.tri(count, dtype=bool)).all() and run.phases["max"] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threshold", [0, AWARE])
def test_adversarial_activations(bench, device, kind, threshold):
    compare(bench.case(271, kind=kind, threshold=threshold), device)


@pytest.mark.parametrize(
    ("base", "least", "extreme"),
    [(-24, 0, True), (0, 0, False), (3, 7, True), (15, 7, True), (15, 0, False), (9, 0, True)],
)
@pytest.mark.parametrize("threshold", [0, 1 << 25, AWARE])
def test_any_integers(bench, device, base, least, extreme, threshold):
    """Scores that clamp, that vanish, maxima that jump: more than any activations give."""
    z = bench.integers(203, seed=abs(base), base=base, least=least, extreme=extreme)
    compare(bench.Case(z=z, gamma16=50000, threshold=threshold), device)


def test_equal_scores_go_by_the_lower_block(bench, device):
    """Zero queries: every block of the past has the same mass, and the share cuts between equals."""
    run = compare(bench.case(256, kind="zeros", gamma16=15000), device)
    assert run.map[:, -1].tolist() == [[True, True, False, False, False, True, True, True]] * 2


@pytest.mark.parametrize("hot_threshold", [0, 1, 3])
def test_hot_tier(bench, device, hot_threshold):
    run = compare(bench.case(512, seed=6, hot_threshold=hot_threshold, gamma16=64000), device)
    assert run.counters["evictions"] > 3


def test_the_cache_is_really_small(bench, device):
    run = compare(bench.case(512, seed=6, gamma16=64000), device)
    visits = cache.visits(run.map, 4)
    assert run.counters["hits"] + run.counters["misses"] == len(visits) and run.counters["misses"] > 16
    assert run.counters["rows"] > 0 and run.counters["beats"] > 68 * run.counters["misses"]


MEMORIES = {
    "hbm2-u280-all": "hbm2-u280-all",
    "ddr4-one": "ddr4-one",
    "far": MemoryModel(latency_cycles=500, bytes_per_cycle=16),
    "narrow": MemoryModel(latency_cycles=20, bytes_per_cycle=Fraction(9, 2)),
    "slow": SLOW,
    "one burst": MemoryModel(latency_cycles=60, bytes_per_cycle=16, bursts=1),
}


@pytest.mark.parametrize("name", MEMORIES)
def test_memories(bench, open_small, name):
    """Other times of the memory: other cycles, the same values, maps and traffic."""
    with open_small(memory=MEMORIES[name]) as device:
        for case in (
            bench.case(200, seed=200),
            bench.case(33, seed=34, threshold=AWARE),
            bench.case(333, seed=5, dense=True),
            bench.case(17, seed=17),
        ):
            run = case.run(device)
            assert case.differences(run) == set()
            if name != "one burst":  # the closed form has no limit to bursts
                within(case, run, device.transport.simulation.model)


@pytest.mark.parametrize("share", [60, 250])
def test_stalled_results(bench, device, share):
    """Results that are taken at random change no value and no decision."""
    for seed in (1, 2):
        device.transport.simulation.stalls(seed, result=share)
        case = bench.case(200, seed=200)
        run = case.run(device)
        assert case.differences(run) == set() and run.counters["stall_out"] > 100


def test_one_after_another(bench, device):
    """Long, short, dense, query-aware in turn: no run leaves anything behind."""
    for case in (
        bench.case(257, seed=257),
        bench.case(1, seed=1),
        bench.case(200, seed=201, threshold=AWARE),
        bench.case(40, seed=5, dense=True),
        bench.case(65, seed=65),
        bench.case(257, seed=257),
        bench.case(31, seed=31),
    ):
        compare(case, device)


def test_the_same_run_twice_is_the_same(bench, device):
    case = bench.case(257, seed=257)
    one, two, *_ = [
        run for run in (case.run(device) for _ in range(8)) if not run.counters["stall_out"]
    ]  # a busy host may look late
    assert one.cycles == two.cycles and one.counters == two.counters and one.phases == two.phases


def start(device, case, *, forget=False, **parameters):
    """A run by registers alone, over the memory as it is; returns hits and misses."""
    from intaglio.host.attention.parameters import run_parameters
    from intaglio.host.attention.quantise import image

    memory = image(case.z, block=32)
    if forget:
        device.write_memory(memory.origin, memory.data)
        device.write_register("control", 4)
    values = (
        run_parameters(
            memory,
            tokens=case.tokens,
            block=32,
            gamma16=case.gamma16,
            threshold=case.threshold,
            dense=case.dense,
            timeout=5000,
        )
        | parameters
    )
    for name, value in values.items():
        device.write_register(name, value)
    device.write_register("control", 1)
    wanted = case.tokens and 2 * -(-case.tokens // 8) * 8 * 16 // 4
    words, _ = device.transport.simulation.run(3 * wanted, 1_000_000, at_last=False)
    device.transport.simulation.idle(200)  # the last visit's end
    assert len(words) == 3 * wanted and not device.read_register("status") & 1
    return device.read_register("hits"), device.read_register("misses")


def test_what_a_dense_run_finds_on_chip(bench, device):
    """Blocks stay for the same tenant and KV head, until the host forgets them; a run with an index forgets them itself."""
    case, sparse = bench.case(100, seed=5, dense=True), bench.case(100, seed=100)
    visits = cache.visits(case.expected["map"], 4)
    first = cache.simulate(visits, 6, 2, partial=True)
    again = cache.simulate(visits, 6, 2, before=first, partial=True)
    none, some = (0, len(visits)), (again.hits, again.misses)
    assert (first.hits, first.misses) == none and again.hits > 0
    assert start(device, case, forget=True) == none
    assert start(device, case) == some
    device.write_register("control", 4)
    assert start(device, case) == none
    assert start(device, case, tenant=1) == none
    assert start(device, case, tenant=1, kv_head=9) == none
    assert start(device, sparse, forget=True) == none
    assert start(device, case, forget=True) == none


def test_tags_of_the_run_before(bench, device):
    """The model of the cache, run by run, with what the lines held."""
    before, first = None, True
    for tokens, tenant in ((257, 0), (128, 1), (200, 0), (200, 0), (257, 1)):
        case = bench.case(tokens, seed=5, dense=True)
        want = cache.simulate(
            cache.visits(case.expected["map"], 4), 6, 2, owner=(tenant, 0), before=before, partial=tokens % 32 != 0
        )
        assert start(device, case, forget=first, tenant=tenant) == (want.hits, want.misses), (tokens, tenant)
        before, first = want, False


def test_several_kv_heads(bench, device):
    """Queries, keys and values as arrays: each KV head is a run, and the results are near those of floats."""
    import torch

    parts = [bench.real(150, seed=seed) for seed in (7, 8, 9)]
    q, k, v = np.concatenate([p[0] for p in parts]), np.stack([p[1] for p in parts]), np.stack([p[2] for p in parts])
    told = []
    out = device.attention(
        q.astype(np.float32), k, v, gamma=0.8, tau=0.3, tenant=3, maps=True, progress=lambda *x: told.append(x)
    )
    assert out.shape == (6, 150, 16) and len(device.runs) == 3
    assert [share for _, share in told] == sorted(share for _, share in told) and told[-1][0].startswith(
        "KV head 3 of 3"
    )
    keep = torch.as_tensor(np.concatenate([run.map for run in device.runs]))
    want = attention.sparse(torch.as_tensor(q), torch.as_tensor(k), torch.as_tensor(v), keep, block=32)
    assert ((torch.as_tensor(out) - want).norm() / want.norm()).item() < 0.03
    tensors = device.attention(
        torch.as_tensor(q, dtype=torch.bfloat16), torch.as_tensor(k).float(), torch.as_tensor(v), dense=True
    )
    want = attention.dense(torch.as_tensor(q), torch.as_tensor(k), torch.as_tensor(v))
    assert ((torch.as_tensor(tensors) - want).norm() / want.norm()).item() < 0.03
    assert all(run.map is None for run in device.runs)


# Mutations: what a wrong byte, bit or parameter does to the comparison above.


def flipped(device, monkeypatch, place, bit):
    """The next memories have one bit changed."""
    write = device.transport.write_memory

    def wrong(address, data):
        data = data.copy()
        data[place] ^= 1 << bit
        write(address, data)

    monkeypatch.setattr(device.transport, "write_memory", wrong)


LINE = 2 * (32 * 16 + 32)  # bytes of a KV line


@pytest.mark.parametrize(
    ("what", "place", "bit"),
    [
        ("a key", 2 * LINE + 5 * 16 + 3, 6),
        ("the mantissa of a key's scale", LINE + 32 * 16 + 7, 0),
        ("a value", 3 * LINE + 32 * 16 + 32 + 100, 5),
        ("the scale of a value", 3 * LINE + 2 * 32 * 16 + 32 + 9, 2),
    ],
)
def test_a_wrong_byte_is_seen(bench, device, monkeypatch, what, place, bit):
    case = bench.case(200, seed=200)
    flipped(device, monkeypatch, place, bit)
    assert "values" in case.differences(case.run(device))
    monkeypatch.undo()
    assert case.differences(case.run(device)) == set()


@pytest.mark.parametrize("tokens", [200, 257])
def test_wrong_last_queries_are_seen(bench, device, monkeypatch, tokens):
    """The last queries with the other sign. A small share: large ones keep most blocks of random activations whatever the queries."""
    from intaglio.host.attention.quantise import image

    case = bench.case(tokens, seed=tokens, gamma16=12000)
    memory, write = image(case.z, block=32), device.transport.write_memory

    def wrong(address, data):
        data, at = data.copy(), memory.last_base - memory.origin
        for head in range(2):
            elements = data[at + head * 544 :][:512].view(np.int8)
            elements[:] = -elements
        write(address, data)

    assert case.differences(case.run(device)) == set()
    monkeypatch.setattr(device.transport, "write_memory", wrong)
    assert case.differences(case.run(device)) >= {"map", "values"}


def test_wrong_parameters_are_seen(bench, device):
    case = bench.case(257, seed=257, gamma16=40000)
    assert case.differences(case.run(device, gamma16=30000)) >= {"map", "values"}
    assert case.differences(case.run(device, threshold=AWARE)) >= {"map", "aware", "values"}
    assert case.differences(case.run(device, dense=True)) >= {"map", "values"}
    wrong = dataclasses.replace(case.z, xq=case.z.xq ^ 4)
    assert "values" in case.differences(device.run(wrong, gamma16=40000, threshold=0, maps=True))


def test_a_wrong_bit_of_the_map_is_seen(bench, device):
    """One block more or less in the model: other values."""
    from intaglio.sim.attention import exact
    from intaglio.sim.attention.report import head_group

    case = bench.case(200, seed=200, gamma16=30000)
    run = case.run(device)
    keep = case.expected["map"].copy()
    head, row, key = next(zip(*np.nonzero(keep & ~np.eye(7, dtype=bool)), strict=True))
    keep[head, row, key] = False
    import torch

    other = exact.attend(head_group(case.z), torch.as_tensor(keep), block=32)[0].numpy()
    changed = (other != run.values).any(-1)
    assert changed[head, row * 32 : row * 32 + 32].any() and changed.sum() <= 32


def test_a_wrong_closed_form_is_seen(bench, device, monkeypatch):
    from intaglio.gen.cycles import attention as cycles

    case = bench.case(200, seed=200)
    run = case.run(device)
    monkeypatch.setattr(cycles, "job_tiles", lambda c, diagonal, rows: 8)  # tiles above the diagonal counted
    with pytest.raises(AssertionError):
        within(case, run, device.transport.simulation.model)
