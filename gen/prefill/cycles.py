"""The closed form of the cycles of a prefill attention run, phase by phase.

Constants that are not named in a formula are the depths of pipelines, read off the units' docstrings. A memory counts by its latency
(cycles from an address to the first beat) and by the beats that it gives in a cycle, at most 1.
"""

from dataclasses import dataclass

import numpy as np

from intaglio.rtl.prefill.block_map import pattern_cycles
from intaglio.rtl.prefill.decide import decide_cycles
from intaglio.rtl.prefill.drain import drain_cycles
from intaglio.rtl.prefill.fetch import request_beats
from intaglio.rtl.prefill.jobs import job_tiles
from intaglio.rtl.prefill.passes import pass_tiles
from intaglio.rtl.prefill.ports import FetchKind
from intaglio.rtl.prefill.select import select_cycles

__all__ = ["Memory", "attend_cycles", "dense_cycles", "index_bound", "index_cycles", "run_cycles"]

MASS_BITS = 24  # of the largest block score: 128 rows of 16-bit probabilities, and one more
ROW_BITS = 17
PASS = 40  # from the arrival of the first keys to the first tile, and from the last row to what follows
REQUEST = 5  # from a request to its address, and from the last beat to its completion


@dataclass(frozen=True, kw_only=True)
class Memory:
    """``latency`` in cycles, ``rate`` in beats a cycle."""

    latency: int
    rate: float = 1.0

    def fetch(self, beats):
        """Cycles of a request by itself."""
        return REQUEST + self.latency + round(beats / min(1.0, self.rate))


def index_bound(c, blocks):
    """Cycles of the index's own multiplications: two passes of the last block of every head over all keys."""
    return 2 * pass_tiles(c, blocks=blocks, heads=c.group, groups=c.row_groups) * c.head_dim


def _pass(c, memory, *, blocks, heads, groups):
    """A pass of MAX or MASS: the fetch of the first keys, tiles, a cycle for each load of queries; or the beats, if they take longer."""
    beats = request_beats(c, FetchKind.K)
    compute = pass_tiles(c, blocks=blocks, heads=heads, groups=groups) * c.head_dim + blocks * heads * groups
    return memory.fetch(beats) + PASS + max(compute, round((blocks - 1) * beats / min(1.0, memory.rate)))


def index_cycles(c, blocks, aware, memory):
    """Cycles of the phases load, max, mass, select, pool and map, by name; ``aware`` query-aware heads. Empty phases take a few."""
    norm = c.columns + 8
    queries = request_beats(c, FetchKind.Q)
    one = _pass(c, memory, blocks=blocks, heads=c.group, groups=c.row_groups)
    decision = c.group * (decide_cycles(blocks) + 2)
    pool, batches = 0, -(-blocks // c.columns)
    for batch in range(batches):
        pooled = batch * c.columns // c.block + 1
        part = _pass(c, memory, blocks=pooled, heads=1, groups=1)
        pool += 2 * part + norm + select_cycles(min(blocks, (batch + 1) * c.columns), ROW_BITS)
        if batch % c.row_groups == 0:
            pool += memory.fetch(queries)
    return {
        "load": memory.fetch(c.group * queries), "max": one + c.group * c.row_groups * norm, "mass": one,
        "select": max(decision, select_cycles(blocks, MASS_BITS)), "pool": aware * pool + c.group, "map": pattern_cycles(c, blocks) + 2,
    }


def _drain_busy(c):
    """Cycles of a drain while the engine works: it reads accumulators only in the cycles that belong to keys, half of them."""
    reads = c.head_dim * (c.columns // c.drain + 1)
    return drain_cycles(c) + c.row_groups * reads


def attend_cycles(c, block_map, misses, memory):
    """Cycles of the phase attend, by a walk over the jobs of a block map bool [G, nb, nb] (numpy).

    Before the first tile come the schedule's count, the first visit and its blocks. A tile takes ``2 * head_dim`` cycles. Results of a
    finished (head, query block) leave while others are computed, slower than by themselves (:func:`_drain_busy`); one may leave and one
    wait, and the next to finish waits for the first. If the memory needs more cycles for the beats of ``misses`` key blocks and of the
    query blocks, those count. The last results leave at the end.
    """
    heads, blocks, _ = block_map.shape
    whole, diagonal = (2 * c.head_dim * job_tiles(c, kind) for kind in (False, True))
    alone, share = drain_cycles(c), drain_cycles(c) / _drain_busy(c)
    visits = [(first, key) for first in range(0, blocks, c.window) for key in range(min(first + c.window, blocks))]
    compute, owed, left = 0.0, 0, 0.0  # cycles; results that leave or wait; what is left of the first of them, in cycles by itself
    for first, key in visits:
        jobs = int(block_map[:, first:first + c.window, key].sum())
        finishing = heads if first <= key else 0
        for job in range(jobs):
            spent = diagonal if job < finishing else whole
            compute += spent
            while owed and spent * share >= left:
                spent -= left / share
                owed, left = owed - 1, alone
            left -= spent * share if owed else 0
            if job < finishing:
                if owed == 2:
                    compute += left
                    owed, left = 1, alone
                left = left if owed else alone
                owed += 1
    counting = sum(c.group * (-(-blocks // c.columns) - key // c.columns) + 2 for key in range(blocks))
    begin = (counting + c.group + 12 + c.lines + memory.fetch(request_beats(c, FetchKind.KV))
             + memory.fetch(request_beats(c, FetchKind.Q)) - memory.latency)
    beats = misses * request_beats(c, FetchKind.KV) + heads * blocks * request_beats(c, FetchKind.Q)
    end = left + (owed - 1) * alone + PASS
    return begin + round(max(compute, beats / min(1.0, memory.rate)) + end)


def run_cycles(c, block_map, aware, misses, memory, *, dense=False):
    """Cycles of all phases by name: ``aware`` query-aware heads, ``misses`` key blocks read in the phase attend."""
    phases = index_cycles(c, block_map.shape[1], aware, memory)
    if dense:
        phases = {name: 0 for name in phases} | {"load": 1, "map": phases["map"]}
    return phases | {"attend": attend_cycles(c, block_map, misses, memory)}


def dense_cycles(c, blocks):
    """Cycles of a dense run, by the closed form, from a memory that is never slower than the arithmetic."""
    keep = np.broadcast_to(np.tril(np.ones((blocks, blocks), bool)), (c.group, blocks, blocks))
    return sum(run_cycles(c, keep, 0, 0, Memory(latency=40), dense=True).values())
