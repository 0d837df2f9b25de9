"""What sparse prefill attention does to a model's own activations: blocks kept, mass kept, error, memory traffic.

By the exact model or by a device.
"""

from dataclasses import dataclass

import torch

from intaglio.host.attention.parameters import WHOLE, divergence_threshold, share
from intaglio.host.attention.quantise import quantise
from intaglio.sim.attention import cache, exact
from intaglio.sim.attention import dense as attention
from intaglio.sim.attention.activations import activations

__all__ = ["GroupReport", "device_reports", "exact_run", "head_group", "layer_reports", "traffic"]


def head_group(z):
    """The integers of :func:`~intaglio.host.attention.quantise.quantise` as tensors."""
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


def exact_run(z, *, block, gamma16, threshold, dense=False):
    """The exact model on integers: (values int16 [G, N, D], exponents int8 [G, N], block map, query-aware heads)."""
    run = head_group(z)
    heads, tokens, _ = run.q.shape
    if dense or tokens < block:
        count = -(-tokens // block)
        keep, aware = torch.ones(heads, count, count, dtype=torch.bool).tril(), torch.zeros(heads, dtype=torch.bool)
    else:
        found = exact.index(run, block=block, gamma16=gamma16, threshold=threshold)
        keep, aware = exact.block_map(found), found["query_aware"]
    return *exact.attend(run, keep, block=block), keep, aware


def _groups(model, text, tokens, layer):
    """KV heads of a layer: number, queries [G, N, D], keys, values [N, D]."""
    q, k, v = activations(model, text, tokens, layer)
    group = q.shape[0] // k.shape[0]
    for kv_head in range(k.shape[0]):
        yield kv_head, q[kv_head * group : (kv_head + 1) * group], k[kv_head], v[kv_head]


def _judged(layer, kv_head, queries, keys, values, got, keep, aware, block):
    """Report of results ``got`` [G, N, D], real numbers."""
    want = attention.sparse(queries, keys[None], values[None], keep, block=block).double()
    dense = attention.dense(queries, keys[None], values[None]).double()
    return GroupReport(
        layer=layer,
        kv_head=kv_head,
        keep=keep,
        query_aware=aware,
        density=attention.density(keep, queries.shape[1], block),
        kept_mass=attention.kept_mass(queries, keys[None], keep, block=block),
        error=((got.double() - want).norm() / want.norm()).item(),
        change=((want - dense).norm() / dense.norm()).item(),
    )


def layer_reports(model, text, *, tokens, layer, block, gamma16, threshold):
    """Reports of the KV heads of a layer of ``model`` (a checkpoint folder, or a Checkpoint) on ``text`` (bytes), by the exact model."""
    for kv_head, queries, keys, values in _groups(model, text, tokens, layer):
        z = quantise(queries.numpy(), keys.numpy(), values.numpy(), block=block)
        *out, keep, aware = exact_run(z, block=block, gamma16=gamma16, threshold=threshold, dense=gamma16 == WHOLE)
        got = torch.as_tensor(z.results(*(x.numpy() for x in out)))
        yield _judged(layer, kv_head, queries, keys, values, got, keep, aware, block)


def device_reports(device, model, text, *, tokens, layer, gamma, tau, check=False, progress=None):
    """(report, :class:`~intaglio.host.attention.device.Run`, equal) of the KV heads of a layer, by a device.

    ``equal`` is whether block map, query-aware heads and every result are those of the exact model; None without ``check``.
    """
    block = device.manifest.config["block"]
    for kv_head, queries, keys, values in _groups(model, text, tokens, layer):
        got = device.attention(queries, keys[None], values[None], gamma=gamma, tau=tau, maps=True, progress=progress)
        (run,) = device.runs
        keep, aware, equal = torch.as_tensor(run.map), torch.as_tensor(run.aware), None
        if check:
            z = quantise(queries.numpy(), keys.numpy(), values.numpy(), block=block)
            gamma16 = share(gamma, keys.shape[0])
            want = exact_run(
                z, block=block, gamma16=gamma16, threshold=divergence_threshold(tau), dense=gamma16 == WHOLE
            )
            equal = all(
                torch.equal(torch.as_tensor(a), b)
                for a, b in zip((run.values, run.exponents, run.map, run.aware), want, strict=True)
            )
        yield _judged(layer, kv_head, queries, keys, values, torch.as_tensor(got), keep, aware, block), run, equal


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
