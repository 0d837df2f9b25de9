"""Protocol of the prefill unit's shell: cocotb on its Verilog, with values from the exact model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from intaglio.gen.cycles.attention import Memory, run_cycles
from intaglio.gen.emit.attention import generate
from intaglio.gen.presets.attention import prefill_config
from intaglio.host.attention.parameters import run_parameters
from intaglio.host.attention.quantise import image, quantise
from intaglio.rtl.bus.streams import FetchKind
from intaglio.rtl.control.jobs import job_tiles
from intaglio.rtl.kv.fetch import request_beats
from intaglio.rtl.top.attention import PARAMETERS
from intaglio.rtl.top.attention_registers import VERSION, parameter_words
from intaglio.sim.attention import cache, exact
from intaglio.sim.attention.report import head_group
from intaglio.sim.verilator.cocotb_runner import build_bench, run_bench

pytestmark = pytest.mark.verilator

MODULE = Path(__file__).with_name("cocotb_attention.py")
SHAPE = {"block": 16, "context": 128, "window": 2, "lines": 4, "lookahead": 1}
C = prefill_config("small", **SHAPE)
ORIGIN = 0xABC_DEF0_1000 - 21 * 16  # not the beginning of a page
LATENCY = 20
RUNS = {  # tokens, parameters
    "sparse": (80, {"gamma16": 40000, "threshold": 0}),
    "aware": (55, {"gamma16": 30000, "threshold": 1 << 29}),
    "dense": (37, {"gamma16": 65536, "threshold": 0, "dense": True}),
    "short": (16, {"gamma16": 65536, "threshold": 0}),
}
TESTS = (
    "values_and_throughput",
    "values_with_pauses",
    "values_with_another_memory",
    "bursts_inside_pages",
    "reset_in_each_phase",
    "reset_in_a_packet",
    "reset_while_an_address_waits",
    "cancel_in_each_phase",
    "cancel_while_results_wait",
    "refused_parameters",
    "faults_of_the_memory",
    "a_late_memory_is_waited_for",
    "registers",
    "registers_while_results_pass",
    "the_map_by_registers",
    "a_wrong_byte_is_seen",
    "the_monitor_sees_a_changed_result",
    "the_monitor_sees_a_changed_address",
    "the_monitor_sees_a_burst_outside",
)


def words_of(values):
    """int16 [n, drain] as one number each, in hex."""
    return [row.astype("<i2").tobytes()[::-1].hex() for row in values]


def packets(values, exponents, tokens):
    """((tuser, mask) of each word, words, masks of what counts) of each (block, head) in the order in which they leave.
    Row groups wholly past
    the end do not."""
    count = -(-tokens // C.block)
    padded = np.zeros((2, C.group, count * C.block, C.head_dim), np.int16)  # values, masks
    padded[0, :, :tokens], padded[1, :, :tokens] = values, -1
    parts = padded.reshape(2, C.group, count, C.row_groups, C.columns // C.drain, C.drain, C.head_dim)
    parts = parts.transpose(0, 2, 1, 3, 6, 4, 5).reshape(2, count, C.group, -1, C.drain)

    def users(block, head):  # a row group has one exponent, any if none of its rows counts
        for first in range(block * C.block, min(tokens, (block + 1) * C.block), C.columns):
            exponent = int(exponents[head, first]) & 0x7F
            mark = block | head << 14 | exponent << 24, 0x7FFFFFFF
            yield from [mark] * (C.columns // C.drain * C.head_dim)

    def packet(block, head):
        marks = list(users(block, head))
        return marks, *(words_of(part[block, head])[: len(marks)] for part in parts)

    return [packet(block, head) for block in range(count) for head in range(C.group)]


def vectors_of(name, seed):
    tokens, parameters = RUNS[name]
    rng = np.random.default_rng(seed)
    k, v = rng.normal(size=(tokens, C.head_dim)), rng.normal(size=(tokens, C.head_dim))
    z = quantise(rng.normal(size=(C.group, tokens, C.head_dim)) + k, k, v, block=C.block)
    group, count, dense = head_group(z), -(-tokens // C.block), parameters.get("dense", False)
    keep, aware = torch.ones(C.group, count, count, dtype=torch.bool).tril(), torch.zeros(C.group, dtype=torch.bool)
    if not dense:
        found = exact.index(group, block=C.block, gamma16=parameters["gamma16"], threshold=parameters["threshold"])
        keep, aware = exact.block_map(found), found["query_aware"]
    values, exponents = (x.numpy() for x in exact.attend(group, keep, block=C.block))
    keep = keep.numpy()
    traffic = cache.simulate(cache.visits(keep, C.window), C.lines, C.lookahead)
    memory = image(z, block=C.block, origin=1 << 40)
    registers = run_parameters(memory, tokens=tokens, block=C.block, timeout=3000, **parameters)
    for base in ("kv_base", "q_base", "last_base", "pooled_q_base", "pooled_k_base"):
        address = getattr(memory, base) - memory.origin + ORIGIN
        registers |= {base: address & 0xFFFFFFFF, f"{base}_high": address >> 32}

    # Rows multiplied and beats read, by count: index passes (queries of the last block; pooled rows in batches), then jobs.
    last = (tokens - 1) % C.block + 1
    passes = [] if dense else [(C.group * C.row_groups, tokens)]
    passes += [
        (1, min(count, (batch + 1) * C.columns))
        for _ in range(int(aware.sum()))
        for batch in range(-(-count // C.columns))
    ]
    rows = sum(2 * groups * -(-keys // C.head_dim) * C.head_dim for groups, keys in passes)
    for row in range(count):
        filled = last if row == count - 1 else C.block
        others = int(keep[:, row, :row].sum())
        rows += 2 * C.head_dim * (C.group * job_tiles(C, True, filled) + others * job_tiles(C, False, filled))

    def blocks(kind, number):
        """Beats of so many rows in blocks."""
        whole, short = divmod(number, C.block)
        return whole * request_beats(C, kind) + (request_beats(C, kind, short) if short else 0)

    kv_beats = blocks(FetchKind.KV, tokens) + (traffic.misses - count) * request_beats(C, FetchKind.KV)
    beats = sum(2 * blocks(FetchKind.K, keys) for _, keys in passes) + kv_beats + C.group * blocks(FetchKind.Q, tokens)
    if not dense:
        beats += C.group * blocks(FetchKind.Q, C.block) + int(aware.sum()) * blocks(FetchKind.Q, count)
    return {
        "image": memory.data.tobytes().hex(),
        "origin": ORIGIN,
        "parameters": registers,
        "packets": packets(values, exponents, tokens),
        "aware": sum(int(bit) << head for head, bit in enumerate(aware.tolist())),
        "map": keep.astype(int).tolist(),
        "traffic": [traffic.hits, traffic.misses, traffic.evictions],
        "rows": rows,
        "beats": beats,
        "phases": run_cycles(
            C, keep, int(aware.sum()), traffic.misses, Memory(latency=LATENCY), dense=dense, tokens=tokens
        ),
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory, simulation_cache):
    folder = tmp_path_factory.mktemp("shell") / "generated"
    manifest = generate("small", folder, **SHAPE)
    bits = {name: min(32, PARAMETERS[name.removesuffix("_high")] - low) for name, low in parameter_words()}
    vectors = {
        "registers": {name: register["offset"] for name, register in manifest["registers"].items()},
        "parameter_bits": bits,
        "runs": {name: vectors_of(name, seed) for seed, name in enumerate(RUNS)},
        "context": C.context,
        "latency": LATENCY,
        "identity": {
            "magic": 0x494E5447,
            "version": VERSION,
            "digest": int(manifest["digest"][:8], 16),
            "capabilities": C.blocks | C.group << 16,
        },
    }
    file = folder.parent / "vectors.json"
    file.write_text(json.dumps(vectors))
    return run_bench(
        build_bench(folder, cache=simulation_cache), folder, MODULE, plusargs=[f"+vectors={file}"], tests=len(TESTS)
    )


@pytest.mark.parametrize("name", TESTS)
def test_protocol(results, name):
    assert set(results) == set(TESTS)
    assert results[name] is None, results[name]
