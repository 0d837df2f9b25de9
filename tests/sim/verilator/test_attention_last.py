"""The last token alone, as in generation: Verilog of the prefill unit against the exact model, bit for bit, run after run."""

import dataclasses

import numpy as np
import pytest
import torch

from intaglio.gen.cycles.attention import Memory, single_cycles
from intaglio.gen.presets.attention import prefill_config
from intaglio.host.attention.quantise import Quantised, image
from intaglio.sim.attention import cache, exact
from intaglio.sim.attention import dense as attention
from intaglio.sim.attention.report import head_group

pytestmark = pytest.mark.verilator

C = prefill_config("small")
RUN = dict(gamma16=65536, threshold=0)


def rows_of(bench, tokens, *, seed=1):
    """Any integers of ``tokens`` keys and values and of a query of each of two heads."""
    z = bench.integers(tokens, seed=seed, base=3)
    return dataclasses.replace(
        z, q=z.q[:, -1:], xq=z.xq[:, -1:], **{f"pooled_{n}": getattr(z, f"pooled_{n}")[:0] for n in ("k", "xk")}
    )


def up_to(z: Quantised, tokens, query):
    """The first tokens of a sequence, and the query of its last."""
    cut = {name: getattr(z, name)[:tokens] for name in ("k", "xk", "v", "xv")}
    return dataclasses.replace(z, q=np.roll(z.q, query, -1), **cut)


def same(z, run):
    values, exponent = exact.attend_last(torch.as_tensor(z.q[:, 0]), torch.as_tensor(z.xq[:, 0]), head_group(z))
    return np.array_equal(run.values[:, 0], values.numpy()) and (run.exponents == exponent).all()


def counts(run):
    return tuple(run.counters[name] for name in ("hits", "misses", "evictions"))


def within(run, tokens, memory):
    times = Memory(latency=memory.latency_cycles, rate=float(memory.bytes_per_cycle) / 16)
    form = single_cycles(C, tokens, run.counters["misses"], times, evictions=run.counters["evictions"])
    assert sum(run.phases.values()) == run.cycles
    assert abs(run.cycles / sum(form.values()) - 1) <= 0.03, (run.phases, form)


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 31, 32, 33, 48, 64, 65, 200, 257, 512])
def test_lengths(bench, device, tokens):
    """One row group of results, dense over all keys up to the token and no other."""
    z = rows_of(bench, tokens, seed=tokens)
    device.transport.simulation.new_memory()
    run = device.run(z, **RUN)
    assert run.values.shape == (2, 1, 16) and same(z, run) and counts(run)[:2] == (0, -(-tokens // 32))
    within(run, tokens, device.transport.simulation.model)


@pytest.mark.parametrize("tokens", [1, 9, 17, 33, 63])
def test_what_lies_past_the_end_does_not_count(bench, device, monkeypatch, tokens):
    """Rows of keys and values that other prompts have left, and rows of other queries."""
    z = rows_of(bench, tokens, seed=tokens)
    memory, write = image(z, block=32), device.transport.write_memory
    last, half = memory.kv_base + (tokens - 1) // 32 * 1088 - memory.origin, 544

    def loud(address, data):
        data, rows = data.copy(), (tokens - 1) % 32 + 1
        for at, count in ((last, rows), (last + half, rows), (memory.q_base - memory.origin, 2)):
            data[at + 16 * count : at + 512] = 127
            data[at + 512 + count : at + half] = 255
        write(address, data)

    monkeypatch.setattr(device.transport, "write_memory", loud)
    assert same(z, device.run(z, **RUN))


def test_a_sequence_grows(bench, device):
    """A row is appended and the run repeated: complete blocks are on chip, the last is read anew, and nothing of it is believed later."""
    z, before = rows_of(bench, 300, seed=9), None
    for step, tokens in enumerate([*range(60, 68), 95, 96, 97, *range(250, 258)]):
        part = up_to(z, tokens, step)
        run = device.run(part, **RUN, forget=before is None, kv_head=300)
        visits = cache.every_block(-(-tokens // 32))
        want = cache.simulate(visits, 6, 2, before=before, single=True, partial=tokens % 32 != 0)
        assert same(part, run) and counts(run) == (want.hits, want.misses, want.evictions), tokens
        within(run, tokens, device.transport.simulation.model)
        before = want
        if tokens in (61, 97):  # all but the last block, and it too when it was complete
            assert counts(run)[0] == (tokens - 1) // 32
    assert counts(run)[0] >= 3  # six lines, nine blocks: the first ones stay
    other = device.run(part, **RUN, forget=False, kv_head=300 + 256)
    assert counts(other)[0] == 0 and same(part, other)


def test_between_prompts(bench, device):
    """A dense prompt leaves its complete blocks to generation; a prompt after it is not hindered by what generation keeps."""
    case = bench.case(100, seed=5, dense=True)
    case.run(device)
    last = dataclasses.replace(
        case.z, q=case.z.q[:, -1:], xq=case.z.xq[:, -1:], pooled_k=case.z.pooled_k[:0], pooled_xk=case.z.pooled_xk[:0]
    )
    run = device.run(last, **RUN, forget=False)
    left = cache.simulate(cache.visits(case.expected["map"], 4), 6, 2, partial=True)
    want = cache.simulate(cache.every_block(4), 6, 2, before=left, single=True, partial=True)
    assert same(last, run) and counts(run) == (want.hits, want.misses, want.evictions) and want.hits >= 2
    assert np.array_equal(run.values[:, 0], case.expected["values"][:, -1])  # the prompt's own last row
    for other in (bench.case(257, seed=257), bench.case(1, seed=1), case):
        assert other.differences(other.run(device)) == set()


def test_arrays(bench, device):
    """Queries of the last token, keys and values as arrays: near the last row of float attention."""
    parts = [bench.real(150, seed=seed) for seed in (7, 8)]
    q, k, v = np.concatenate([p[0] for p in parts]), np.stack([p[1] for p in parts]), np.stack([p[2] for p in parts])
    out = device.attention(q[:, -1:], k, v, last_only=True)
    want = attention.dense(*(torch.as_tensor(x) for x in (q, k, v)))[:, -1:]
    assert out.shape == (4, 1, 16) and out.dtype == np.float32
    assert ((torch.as_tensor(out) - want).norm() / want.norm()).item() < 0.03
    with pytest.raises(ValueError, match="q must have one token with last_only, the last, not 150"):
        device.attention(q, k, v, last_only=True)


def test_wrong_bits_are_seen(bench, device, monkeypatch):
    z = rows_of(bench, 70, seed=3)
    write = device.transport.write_memory
    for part in (slice(0, 512), slice(512, 544), slice(544, 1056), slice(1056, 1088)):  # keys, scales, values, scales

        def wrong(address, data, part=part):
            data = data.copy()
            for page in range(3):
                data[page * 1088 : page * 1088 + 1088][part] ^= 4
            write(address, data)

        monkeypatch.setattr(device.transport, "write_memory", wrong)
        assert not same(z, device.run(z, **RUN)), part
        monkeypatch.undo()
    assert same(z, device.run(z, **RUN))
