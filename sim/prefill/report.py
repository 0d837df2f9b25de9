"""What sparse prefill attention does to a model's own activations, by the exact model: blocks kept, mass kept, error, memory traffic."""

from dataclasses import dataclass

import torch

from intaglio.host.prefill.quantise import quantise
from intaglio.sim.prefill import attention, cache, exact
from intaglio.sim.prefill.activations import activations

__all__ = ["GroupReport", "head_group", "layer_reports", "traffic"]


def head_group(z):
    """The integers of :func:`~intaglio.host.prefill.quantise.quantise` as tensors."""
    fields = {name: getattr(z, name) for name in exact.HeadGroup.__dataclass_fields__}
    return exact.HeadGroup(**{name: x if isinstance(x, int) else torch.as_tensor(x) for name, x in fields.items()})


@dataclass(frozen=True, kw_only=True)
class GroupReport:
    """One KV head of a layer.

    keep bool [G, nb, nb]; query_aware bool [G]; density, kept_mass [G] (of the last block's true attention mass);
    error, change : relative errors of the results against float attention over the same blocks, and of that against dense attention.
    """

    layer: int
    kv_head: int
    keep: torch.Tensor
    query_aware: torch.Tensor
    density: torch.Tensor
    kept_mass: torch.Tensor
    error: float
    change: float


def layer_reports(model, text, *, tokens, layer, block, gamma16, threshold):
    """Reports of the KV heads of a layer of the checkpoint folder ``model`` on ``text`` (bytes)."""
    q, k, v = activations(model, text, tokens, layer)
    group = q.shape[0] // k.shape[0]
    for kv_head in range(k.shape[0]):
        queries, keys, values = q[kv_head * group:(kv_head + 1) * group], k[kv_head], v[kv_head]
        z = quantise(queries.numpy(), keys.numpy(), values.numpy(), block=block)
        run = head_group(z)
        found = exact.index(run, block=block, gamma16=gamma16, threshold=threshold)
        keep = exact.block_map(found)
        got = exact.attend(run, keep, block=block).double() / 256 * torch.as_tensor(z.value_scale)
        want = attention.sparse(queries, keys[None], values[None], keep, block=block).double()
        dense = attention.dense(queries, keys[None], values[None]).double()
        yield GroupReport(
            layer=layer, kv_head=kv_head, keep=keep, query_aware=found["query_aware"],
            density=attention.density(keep, tokens, block), kept_mass=attention.kept_mass(queries, keys[None], keep, block=block),
            error=((got - want).norm() / want.norm()).item(), change=((want - dense).norm() / dense.norm()).item())


def traffic(keeps, *, window, lines, lookahead, hot_threshold=0):
    """Blocks of K and V read for a list of maps [G, nb, nb], one run each: by the cache, by Belady's optimum, by LRU, without a cache.

    Returns
    -------
    dict of str to int : visits, ours, belady, lru, and single (each job reads its block anew).
    """
    total = dict.fromkeys(("visits", "ours", "belady", "lru", "single"), 0)
    for keep in keeps:
        found = cache.visits(keep.numpy(), window)
        sequence = [visit.block for visit in found]
        total["visits"] += len(found)
        total["ours"] += cache.simulate(found, lines, lookahead, hot_threshold).misses
        total["belady"] += cache.belady(sequence, lines)
        total["lru"] += cache.lru(sequence, lines)
        total["single"] += cache.uncached(found, shared=False)
    return total
