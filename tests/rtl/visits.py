"""Block maps and the visits that they ask for: what the tests of the schedule and of the cache control share."""

import inspect

import numpy as np

from intaglio.rtl.config.attention import PrefillConfig
from intaglio.sim.attention.cache import visits


def config(**changes):
    fields = {
        "head_dim": 16,
        "group": 2,
        "block": 32,
        "columns": 8,
        "context": 512,
        "window": 4,
        "lines": 6,
        "lookahead": 2,
        "drain": 4,
    }
    return PrefillConfig(**fields | changes)


CONFIGS = {
    "small": config(),
    "window of a batch": config(window=8, group=4, lines=4, lookahead=1),
    "window of one": config(window=1, group=1, context=32 * 21, lines=7, lookahead=5),
}


def sparse(seed, config, count, density):
    """Random causal map with the diagonal and, for some heads, the sink."""
    rng = np.random.default_rng(seed)
    block_map = rng.random((config.group, count, count)) < density * rng.random(count)
    block_map[0, :, 0] = True
    block_map |= np.eye(count, dtype=bool)
    return np.tril(block_map)


def mutated(module, old, new):
    """The module with one piece of its source changed."""
    source = inspect.getsource(module)
    assert source.count(old) == 1
    space = {"__name__": module.__name__}
    exec(compile(source.replace(old, new), module.__file__, "exec"), space)
    return space


def fields(visit):
    """A visit of the stream as the model writes it."""
    following = int(visit.next_window) if visit.next_valid else None
    return int(visit.window), int(visit.block), int(visit.jobs), following, int(visit.remaining)


def expected(block_map, config):
    return [(v.window, v.block, v.jobs, v.next_window, v.remaining) for v in visits(block_map, config.window)]
