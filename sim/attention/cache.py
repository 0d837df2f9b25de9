"""The visits of an attention run to its key blocks, and exact models of what a cache of blocks fetches for them.

The control (docs/prefill.md, KV cache) decides in *rounds*: round r begins when r visits have been retired, and ends before round
r + 1 begins. In round r the visits up to ``r + lookahead`` are decided in their order: a resident block is a hit; otherwise the lowest
free line is taken; otherwise visit r + 1 or an earlier one evicts; otherwise the round ends. Nothing depends on time.

It evicts what Belady's optimum would, but must keep every block that it fetches: the optimum may pass one by. So it is near the optimum
(within 5 %) where the lines are many beside the blocks that two windows share, not where they are few (docs/prefill.md has the numbers).
"""

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Traffic", "Visit", "belady", "every_block", "lru", "simulate", "uncached", "visits"]


@dataclass(frozen=True)
class Visit:
    """A visit of a window's jobs to a key block: jobs has bit ``q * G + h``; next_window is None if ``remaining`` is 0."""

    window: int
    block: int
    jobs: int
    next_window: int | None
    remaining: int


@dataclass
class Traffic:
    """What :func:`simulate` counts.

    lines, rounds : line of each visit, and the round that decided it. fetches : (visit, line, block) in order. evicted : (visit, block)
    in order. tags : what each line holds after the run, by the line's number; kept :
    lines that a single run has used last.
    """

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    lines: list = field(default_factory=list)
    rounds: list = field(default_factory=list)
    fetches: list = field(default_factory=list)
    evicted: list = field(default_factory=list)
    tags: dict = field(default_factory=dict)
    kept: set = field(default_factory=set)


def visits(block_map, window):
    """Visits in the order of the schedule.

    Parameters
    ----------
    block_map : bool [G, nb, nb]
        (head, query block, key block), causal.
    window : int
        Query blocks of a window.

    Returns
    -------
    list of Visit
    """
    block_map = np.asarray(block_map, bool)
    heads, count, keys = block_map.shape
    if count != keys:
        raise ValueError(f"block_map must be of shape [G, nb, nb], not {block_map.shape}")
    if np.triu(block_map, 1).any():
        raise ValueError("block_map must be causal, not True above the diagonal")
    windows = -(-count // window)
    padded = np.zeros((windows * window, heads, count), bool)
    padded[:count] = block_map.transpose(1, 0, 2)
    slots = padded.reshape(windows, window * heads, count)
    found, later = [], {}
    for w in reversed(range(windows)):
        for block in reversed(slots[w].any(0).nonzero()[0].tolist()):
            jobs = sum(1 << slot for slot in slots[w, :, block].nonzero()[0].tolist())
            next_window, remaining = later.get(block, (None, 0))
            found.append(Visit(w, block, jobs, next_window, remaining))
            later[block] = w, remaining + 1
    return found[::-1]


def every_block(count):
    """Visits of a single run (docs/prefill.md) over so many blocks."""
    return [Visit(0, block, 1, None, 0) for block in range(count)]


def simulate(visits, lines, lookahead, hot_threshold=0, *, owner=0, before=None, single=False, partial=False):
    """The control's decisions.

    Parameters
    ----------
    visits : list of Visit
    lines, lookahead : int
        ``lines >= lookahead + 2``.
    hot_threshold : int
        Blocks with so many remaining visits or fewer are evicted before the others; 0 is the pure order of next visits.
    owner : hashable
        Tenant and KV head.
    before : Traffic
        Of the run before; without it all lines are empty.
    single : bool
        The run has one query for each head: it visits every block once, and so will the next.
    partial : bool
        The last block is not complete: it is read anew, and forgotten after the run.

    Returns
    -------
    Traffic
    """
    if lines < lookahead + 2:
        raise ValueError(f"lines must be at least lookahead + 2, {lookahead + 2}, not {lines}")
    done = Traffic(tags=dict(before.tags), kept=set(before.kept)) if before else Traffic()
    held = done.tags  # line -> (owner, block)
    pins, later = [0] * lines, [None] * lines  # later: (remaining, next_window) of a live line
    decided = 0
    for retired in range(len(visits)):
        if retired:
            pins[done.lines[retired - 1]] -= 1
        while decided <= min(retired + lookahead, len(visits) - 1):
            visit = visits[decided]
            fresh = partial and decided == len(visits) - 1
            line = next((n for n in range(lines) if held.get(n) == (owner, visit.block) and not fresh), None)
            if line is not None:
                done.hits += 1
            else:
                taken = done.kept if single else ()
                line = next((n for n in range(lines) if not pins[n] and not later[n] and n not in taken), None)
                if line is None:
                    if decided > retired + 1:
                        break
                    line = max(
                        (n for n in range(lines) if not pins[n]),
                        key=lambda n: (
                            *((later[n][0] <= hot_threshold, later[n][1]) if later[n] else (True, 0)),
                            held[n][1],
                        ),
                    )
                    done.evictions += 1
                    done.evicted.append((decided, held[line][1]))
                done.misses += 1
                done.fetches.append((decided, line, visit.block))
                held[line] = owner, visit.block
            pins[line] += 1
            (done.kept.add if single else done.kept.discard)(line)
            later[line] = (visit.remaining, visit.next_window) if visit.remaining else None
            done.lines.append(line)
            done.rounds.append(retired)
            decided += 1
    if partial:
        del held[done.lines[-1]]
        done.kept.discard(done.lines[-1])
    return done


def belady(sequence, lines):
    """Fewest misses of any cache of ``lines`` blocks, which may pass a block by without keeping it (Belady's MIN)."""
    following, where = [0] * len(sequence), {}
    for i in reversed(range(len(sequence))):
        following[i] = where.get(sequence[i], len(sequence))
        where[sequence[i]] = i
    held, misses = {}, 0
    for block, following_visit in zip(sequence, following, strict=True):
        misses += block not in held
        held[block] = following_visit
        if len(held) > lines:
            del held[max(held, key=held.get)]
    return misses


def lru(sequence, lines):
    """Misses of a cache that evicts the block used least recently."""
    held, misses = OrderedDict(), 0
    for block in sequence:
        misses += block not in held
        held[block] = True
        held.move_to_end(block)
        if len(held) > lines:
            held.popitem(last=False)
    return misses


def uncached(visits, *, shared=True):
    """Blocks read without a cache: one a visit, or with ``shared=False`` one for every job."""
    return sum(1 if shared else visit.jobs.bit_count() for visit in visits)
