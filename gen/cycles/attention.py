"""The closed form of the cycles of a prefill attention run, phase by phase.

Constants that are not named in a formula are the depths of pipelines, read off the units' docstrings. A memory counts by its latency
(cycles from an address to the first beat) and by the beats that it gives in a cycle, at most 1; two requests are under way at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from intaglio.rtl.arithmetic.attention import MASS_FRACTION, SCORE_WORD
from intaglio.rtl.attention.drain import drain_cycles
from intaglio.rtl.bus.streams import FetchKind
from intaglio.rtl.config.attention import PrefillConfig
from intaglio.rtl.control.jobs import job_tiles
from intaglio.rtl.index.block_map import pattern_cycles
from intaglio.rtl.index.decide import decide_cycles
from intaglio.rtl.index.passes import pass_tiles
from intaglio.rtl.index.select import select_cycles
from intaglio.rtl.kv.fetch import request_beats

__all__ = ["Memory", "attend_cycles", "dense_cycles", "index_bound", "index_cycles", "run_cycles", "single_cycles"]

MASS_BITS = SCORE_WORD  # of the largest block score
ROW_BITS = MASS_FRACTION + 1
PASS = 40  # from the arrival of the first keys to the first tile, and from the last row to what follows
SETTLE = 26  # until the last masses are in the block scores
DECISION = 8  # from the schedule's count to the first visit
COMMAND, SCORES, SUMS = (
    5,
    11,
    4,
)  # from a block to its first tile, from a tile's last key to its weights, from the last value to a drain
RETIRE = 2  # from the end of a visit to the next decision
REQUEST = 5  # from a request to its address, and from the last beat to its completion


@dataclass(frozen=True, kw_only=True)
class Memory:
    """``latency`` in cycles, ``rate`` in beats a cycle."""

    latency: int
    rate: float = 1.0

    def fetch(self, beats: int) -> int:
        """Cycles of a request by itself."""
        return round(self.following([0.0, 0.0], beats, 0.0))

    def following(self, ends: Sequence[float], beats: int, ready: float) -> float:
        """End of a request after two that end at ``ends``: it begins when there is room for it, and not before ``ready``."""
        return max(max(ends[0], ready) + REQUEST + self.latency, ends[1]) + beats / min(1.0, self.rate)


def index_bound(c: PrefillConfig, blocks: int) -> int:
    """Cycles of the index's own multiplications: two passes of the last block of every head over all keys."""
    return 2 * pass_tiles(c, blocks=blocks, heads=c.group, groups=c.row_groups) * c.head_dim


def _last_rows(c, tokens):
    """Rows of the last block."""
    return (tokens - 1) % c.block + 1


def _pass(c, memory, *, keys, heads, groups):
    """A pass of MAX or MASS: a block's tiles and a cycle for each load of queries, when its keys are there; ``lines`` blocks have room."""
    ends, retired, now, blocks = [0.0, 0.0], [], 0.0, -(-keys // c.block)
    for block in range(blocks):
        rows = c.block if block < blocks - 1 else _last_rows(c, keys)
        ends = [
            ends[1],
            memory.following(
                ends, request_beats(c, FetchKind.K, rows), retired[block - c.lines] if block >= c.lines else 0.0
            ),
        ]
        compute = pass_tiles(c, blocks=1, heads=heads, groups=groups, rows=rows) * c.head_dim + heads * groups
        now = max(now, ends[1]) + compute
        retired.append(now)
    return round(now) + PASS


def index_cycles(
    c: PrefillConfig, blocks: int, aware: int, memory: Memory, *, tokens: int | None = None
) -> dict[str, int]:
    """Cycles of the phases load, max, mass, select, pool and map, by name, of ``tokens`` (whole blocks without); ``aware`` query-aware
    heads. Empty phases take a few."""
    norm = c.columns + 8
    queries = request_beats(c, FetchKind.Q)
    one = _pass(c, memory, keys=tokens or blocks * c.block, heads=c.group, groups=c.row_groups)
    decision = c.group * (decide_cycles(blocks) + 2)
    pool, batches = 0, -(-blocks // c.columns)
    for batch in range(batches):
        keys = min(blocks, (batch + 1) * c.columns)
        part = _pass(c, memory, keys=keys, heads=1, groups=1)
        pool += 2 * part + SETTLE + norm + select_cycles(keys, ROW_BITS)
        if batch % c.row_groups == 0:
            pool += memory.fetch(request_beats(c, FetchKind.Q, min(c.block, blocks - batch * c.columns)))
    ends = [0.0, 0.0]
    for _ in range(c.group):
        ends = [ends[1], memory.following(ends, queries, 0.0)]
    return {
        "load": round(ends[1]),
        "max": one + c.group * c.row_groups * norm,
        "mass": one + SETTLE,
        "select": max(decision, select_cycles(blocks, MASS_BITS)),
        "pool": aware * pool + c.group,
        "map": pattern_cycles(c, blocks) + 2,
    }


def _drain_busy(c):
    """Cycles of a drain while the engine works: it reads accumulators only in the cycles that belong to keys, half of them."""
    reads = c.head_dim * (c.columns // c.drain + 1)
    return drain_cycles(c) + c.row_groups * reads


class _Walk:
    """The phase attend in time: fetches of blocks, jobs, results that leave. Times are cycles from its begin."""

    def __init__(self, c: PrefillConfig, memory: Memory, total: int, rows: int) -> None:
        self.c, self.memory, self.now, self.rows = c, memory, 0.0, rows
        self.share = drain_cycles(c) / _drain_busy(c)
        self.owed, self.drained = [], []  # cycles that are left of results that leave or wait; ends of all before
        self.accepted, self.ends, self.queries_next = 0.0, [0.0, 0.0], True
        self.queries, self.keys = [], []  # when each block asked for is there
        # Query blocks of the run; times at which key blocks may be asked for, and their rows.
        self.total, self.wanted, self.asked = total, [], 0

    def advance(self, cycles, speed):
        """Pass time, in which results leave at a speed."""
        end = self.now + cycles
        while self.owed and self.now + self.owed[0] / speed <= end:
            self.now += self.owed.pop(0) / speed
            self.drained.append(self.now)
        if self.owed:
            self.owed[0] -= (end - self.now) * speed
        self.now = end

    def wait(self, times, index):
        """Until the query block or key block of that index is there."""
        while len(times) <= index:
            self.fetch()
        if times[index] > self.now:
            self.advance(times[index] - self.now, 1.0)

    def fetch(self):
        """The next request: query and key blocks take turns, two requests are under way at a time."""
        index, never = len(self.queries), float("inf")
        query = (
            never
            if index == self.total
            else 0.0
            if index < self.c.slots
            else self.drained[index - self.c.slots]
            if index - self.c.slots < len(self.drained)
            else never
        )
        key, rows = self.wanted[len(self.keys)] if len(self.keys) < len(self.wanted) else (never, 0)
        if min(query, key) == never:  # every slot is in use: until one is free
            self.advance(self.owed[0], 1.0)
            return
        ready = max(self.accepted + 2, self.ends[0], min(query, key))
        of_queries = query <= ready and (self.queries_next or key > ready)
        if of_queries:
            rows = self.rows if index >= self.total - self.c.group else self.c.block
        beats = request_beats(self.c, FetchKind.Q if of_queries else FetchKind.KV, rows)
        end = self.memory.following(self.ends, beats, ready)
        self.accepted, self.ends, self.queries_next = ready, [self.ends[1], end], not of_queries
        (self.queries if of_queries else self.keys).append(end)

    def job(self, cycles, results):
        """The tiles of a job; ``results``, those of the last one of a (head, query block), then leave, or wait for others."""
        self.advance(cycles, self.share)
        if results:
            if len(self.owed) == 2:
                self.advance(self.owed[0], 1.0)
            self.owed.append(float(results))


def _missing(visits, misses):
    """Which visits read their block: the first to each, and of the others as many as the ``misses`` say, evenly."""
    seen, first = set(), []
    for _, key in visits:
        first.append(key not in seen)
        seen.add(key)
    again = max(0, misses - sum(first))
    others, given, out = max(1, len(first) - sum(first)), 0, []
    for new in first:
        if new:
            out.append(misses > 0)
            continue
        given += 1
        out.append(given * again // others > (given - 1) * again // others)
    return out


def attend_cycles(
    c: PrefillConfig, block_map: np.ndarray, misses: int, memory: Memory, *, tokens: int | None = None
) -> int:
    """Cycles of the phase attend, by a walk over the jobs of a block map bool [G, nb, nb] (numpy) of ``tokens`` (whole blocks without).

    Before the first visit comes the schedule's count. A visit waits for its key block, if that is one of the ``misses``, a job for its
    query block; both are asked for as soon as there is room for them. A tile takes ``2 * head_dim`` cycles. Results of a finished (head,
    query block) leave while others are computed, slower than by themselves (:func:`_drain_busy`); one may leave and one wait, and the next
    to finish waits for the first. The last results leave at the end.
    """
    heads, blocks, _ = block_map.shape
    rows_of_last = _last_rows(c, tokens or blocks * c.block)
    visits = [
        (first, key)
        for first in range(0, blocks, c.window)
        for key in range(min(first + c.window, blocks))
        if block_map[:, first : first + c.window, key].any()
    ]
    walk, missing, loaded = _Walk(c, memory, blocks * c.group, rows_of_last), _missing(visits, misses), -1
    decided = (
        sum(c.group * (-(-blocks // c.columns) - key // c.columns) + 2 for key in range(blocks)) + c.group + DECISION
    )
    retired = []
    for number, (first, key) in enumerate(visits):
        while loaded < min(number + c.lookahead, len(visits) - 1):  # visits that may be decided by now
            loaded += 1
            decided = max(decided, retired[-1] if loaded > c.lookahead else 0.0) + c.lines + 3
            if missing[loaded]:
                walk.wanted.append((decided, rows_of_last if visits[loaded][1] == blocks - 1 else c.block))
        if missing[number]:
            walk.wait(walk.keys, walk.asked)
            walk.asked += 1
        rows = block_map[:, first : first + c.window, key]
        for query in range(first, min(first + c.window, blocks)):
            count = rows_of_last if query == blocks - 1 else c.block
            tiles = 2 * c.head_dim * job_tiles(c, query == key, count)
            results = drain_cycles(c, -(-count // c.columns)) if query == key else 0
            for head in range(heads):
                if rows[head, query - first]:
                    walk.wait(walk.queries, query * heads + head)
                    walk.job(tiles, results)
        retired.append(walk.now)
    alone = c.head_dim if blocks == 1 else 0  # nothing hides the weights of the first tile
    return round(walk.now + sum(walk.owed) + alone + PASS)


def run_cycles(
    c: PrefillConfig,
    block_map: np.ndarray,
    aware: int,
    misses: int,
    memory: Memory,
    *,
    dense: bool = False,
    tokens: int | None = None,
) -> dict[str, int]:
    """Cycles of all phases by name, of ``tokens`` (whole blocks without): ``aware`` query-aware heads, ``misses`` key blocks read in the
    phase attend."""
    phases = index_cycles(c, block_map.shape[1], aware, memory, tokens=tokens)
    if dense:
        phases = {name: 0 for name in phases} | {"load": 1, "map": phases["map"]}
    return phases | {"attend": attend_cycles(c, block_map, misses, memory, tokens=tokens)}


def single_cycles(c: PrefillConfig, tokens: int, misses: int, memory: Memory, *, evictions: int = 0) -> dict[str, int]:
    """Cycles of all phases of a run of the last token alone. The blocks read are the last ones, for the cache keeps the first, and the last
    of those take the lines of others.

    Tile by tile, since little hides what one waits for: a tile's keys come after the weights of the tile before have begun, its values
    after its weights and those of the tile before. A block that must take the line of another is asked for no earlier than the block
    before the one before it has been computed.
    """
    blocks, last, dim = -(-tokens // c.block), _last_rows(c, tokens), c.head_dim
    walk = _Walk(c, memory, 1, c.group)
    ready: list[float] = []  # when each block may be computed
    retired: list[float] = []  # when each has been
    decided, free, weighed, owed = (
        2.0,
        0.0,
        -1.0,
        0.0,
    )  # last decision; matrix unit free; weights begin, and values may follow

    def decide(number: int) -> None:
        """Visits that round ``number`` decides."""
        nonlocal decided
        while len(ready) <= min(number + c.lookahead, blocks - 1):
            missing = len(ready) >= blocks - misses
            if len(ready) > number + 1 and len(ready) >= blocks - evictions:
                return
            decided = max(decided, retired[-1] + RETIRE if retired else 0.0) + c.lines + 3
            if missing:
                walk.wanted.append((decided, last if len(ready) == blocks - 1 else c.block))
                while len(walk.keys) < len(walk.wanted):
                    walk.fetch()
            ready.append((walk.keys[-1] if missing else decided) + COMMAND)

    decide(0)
    walk.wait(walk.queries, 0)
    loaded = max(walk.now, ready[0]) + dim  # they are shifted in for the first tile
    for block in range(blocks):
        for tile in range(-(-(last if block == blocks - 1 else c.block) // dim)):
            begin = max(free, ready[block], loaded, weighed + 1)
            values = max(free, owed)  # of the tile before, which come first if they may
            if values <= begin:
                begin = max(values + dim, begin)
            else:
                values = max(begin + dim, owed)
            free = max(begin, values) + dim
            weighed = max(begin + dim + SCORES, values + dim - 5)
            owed = weighed + dim + 5
            if block and not tile:
                retired.append(values + dim)
                decide(block)
    phases = dict.fromkeys(("load", "max", "mass", "select", "pool", "map"), 0)
    return phases | {"load": 1, "attend": round(max(free, owed) + dim + drain_cycles(c, 1) + SUMS)}


def dense_cycles(c: PrefillConfig, blocks: int, misses: int = 0, memory: Memory | None = None) -> int:
    """Cycles of a dense run, by the closed form; without ``memory`` from one that is never slower than the arithmetic."""
    keep = np.broadcast_to(np.tril(np.ones((blocks, blocks), bool)), (c.group, blocks, blocks))
    return sum(run_cycles(c, keep, 0, misses, memory or Memory(latency=40), dense=True).values())
