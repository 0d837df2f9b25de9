"""Figures of sparse prefill attention on the model's own activations, by the exact model and the cache's model: no RTL run yet."""

import argparse
from pathlib import Path

from intaglio.host.prefill.parameters import divergence_threshold, share
from intaglio.sim.prefill.report import layer_reports, traffic

__all__ = ["figures"]

TOKENS, BLOCK, GAMMA, TAU = 4096, 128, 0.9, 0.1
CACHE = {"window": 8, "lines": 12, "lookahead": 3}  # of the 32 blocks of the text


def figures(model, layers, progress):
    """Every layer of the checkpoint folder ``model`` on a file of Python's standard library."""
    text = Path(argparse.__file__).read_bytes()
    found = []
    for layer in range(layers):
        progress(f"sparse attention, layer {layer + 1} of {layers}")
        found += layer_reports(model, text, tokens=TOKENS, layer=layer, block=BLOCK, gamma16=share(GAMMA),
                               threshold=divergence_threshold(TAU))
    read = traffic([report.keep for report in found], **CACHE)
    note = f"exact model, {TOKENS} tokens, {len(found)} runs"
    held = f"cache's model, {CACHE['lines']} lines"
    heads = sum(len(report.keep) for report in found)
    return [
        {"name": name, "value": value, "unit": unit, "goal": goal, "anchor": anchor, "class": "simulated"}
        for name, value, unit, goal, anchor in (
            ("attention.kept_mass_worst_head", min(report.kept_mass.min().item() for report in found), "", ">= 0.9", note),
            ("attention.density", sum(report.density.sum().item() for report in found) / heads, "", "", note),
            ("attention.query_aware_heads", sum(int(report.query_aware.sum()) for report in found), f"of {heads}", "", note),
            ("attention.worst_error", max(report.error for report in found), "relative", "<= 0.02", f"{note}, against float"),
            ("kvcache.bytes_over_belady", read["ours"] / read["belady"], "ratio", "<= 1.05", held),
            ("kvcache.lru_over_belady", read["lru"] / read["belady"], "ratio", "", held),
            ("kvcache.uncached_over_belady", read["visits"] / read["belady"], "ratio", "", "each visit reads its block"),
        )
    ]
