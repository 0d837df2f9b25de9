"""Figures of sparse prefill attention: the generated Verilog on the model's own activations, every result compared with the exact model."""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import Progress, figure
from bench.guarantee import worst_kept_mass
from intaglio.gen.cycles.attention import Memory, index_bound, index_cycles, run_cycles
from intaglio.gen.emit.attention import generate
from intaglio.host import open_attention
from intaglio.host.attention.device import AttentionDevice, Run
from intaglio.rtl.config.attention import PrefillConfig
from intaglio.sim.attention import cache
from intaglio.sim.attention.activations import activations
from intaglio.sim.attention.report import device_reports, traffic

__all__ = ["figures"]

PRESET, GAMMA, TAU = "desk", 0.9, 0.1
TOKENS, LONG, LONG_LAYER = 4096, 16384, 2
CACHE = {"window": 8, "lines": 12, "lookahead": 3}  # of the 32 blocks of the shorter text
DENSE_ENOUGH = 0.2


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """A simulated run and what the closed form says of it."""

    tokens: int
    density: float
    run: Run
    expected: dict

    @property
    def ratio(self):
        return self.run.cycles / sum(self.expected.values())

    @property
    def index(self):
        return sum(cycles for name, cycles in self.run.phases.items() if name != "attend")


class _Bench:
    def __init__(self, device: AttentionDevice, model: Path, text: bytes, progress: Progress) -> None:
        self.device, self.model, self.text, self.progress = device, model, text, progress
        self.config = PrefillConfig.from_json(device.manifest.config)
        times = device.transport.simulation.model
        self.memory = Memory(latency=times.latency_cycles, rate=float(times.bytes_per_cycle / self.config.head_dim))
        self.equal = []

    def _told(self, what):
        return lambda step, share: self.progress(f"sparse attention, {what}: {share:.0%} {step}")

    def _shape(self, tokens, run, density, dense=False):
        expected = run_cycles(
            self.config, run.map, int(run.aware.sum()), run.counters["misses"], self.memory, dense=dense
        )
        return _Shape(tokens=tokens, density=density, run=run, expected=expected)

    def layer(self, tokens, layer, model=None):
        """(report, shape) of the only KV head of a layer, of ``model`` if it is given."""
        (found,) = device_reports(
            self.device,
            model or self.model,
            self.text,
            tokens=tokens,
            layer=layer,
            gamma=GAMMA,
            tau=TAU,
            check=True,
            progress=self._told(f"{tokens} tokens, layer {layer}"),
        )
        report, run, equal = found
        self.equal.append(equal)
        return report, self._shape(tokens, run, report.density.mean().item())

    def dense(self, tokens, layer):
        q, k, v = activations(self.model, self.text, tokens, layer)
        self.device.attention(q, k, v, dense=True, maps=True, progress=self._told(f"{tokens} tokens, dense"))
        return self._shape(tokens, self.device.runs[0], 1.0, dense=True)

    def efficiency(self, shape, dense_cycles, whole):
        """Speed-up over dense attention, divided by 1 / density."""
        return dense_cycles / (shape.run.cycles if whole else shape.run.phases["attend"]) * shape.density

    def dense_form(self, tokens):
        blocks = tokens // self.config.block
        keep = np.broadcast_to(np.tril(np.ones((blocks, blocks), bool)), (self.config.group, blocks, blocks))
        return run_cycles(self.config, keep, 0, 0, self.memory, dense=True)["attend"]


def figures(model: Path, long_model: Path, layers: int, build: Path, progress: Progress) -> list[dict[str, Any]]:
    """Every layer of the checkpoint folder ``model`` on a file of Python's standard library, and one layer of ``long_model`` on four times
    as much of it.
    """
    folder = build / "prefill"
    generate(PRESET, folder, reuse=True, progress=lambda text, share: progress(f"prefill unit, {text}"))
    with open_attention(f"sim:{folder}", progress=lambda text, seconds: progress(f"prefill unit, {text}")) as device:
        bench = _Bench(device, model, Path(argparse.__file__).read_bytes(), progress)
        began = time.process_time()
        found = [bench.layer(TOKENS, layer) for layer in range(layers)]
        spent = time.process_time() - began
        dense = bench.dense(TOKENS, LONG_LAYER)
        long_report, long = bench.layer(LONG, LONG_LAYER, long_model)
        return _lines(bench, found, dense, long_report, long, spent, worst_kept_mass(progress))


def _lines(bench, found, dense, long_report, long, spent, made):
    c, reports, shapes = bench.config, [report for report, _ in found], [shape for _, shape in found]
    every = [*shapes, dense, long]
    bound = {tokens: index_bound(c, tokens // c.block) for tokens in (TOKENS, LONG)}
    filled = [shape for shape in every if shape.density >= DENSE_ENOUGH]
    read = traffic([report.keep for report in reports], **CACHE)
    sequence = [visit.block for visit in cache.visits(long_report.keep.numpy(), c.window)]
    hits, misses = long.run.counters["hits"], long.run.counters["misses"]
    far = sum(index_cycles(c, 32768 // c.block, c.group // 2, bench.memory).values())
    far_share = far / (far + bench.dense_form(32768) * long.density)
    short, heads = f"{TOKENS} tokens, {len(reports)} layers", sum(len(report.keep) for report in reports)
    macs = sum(shape.run.counters["rows"] for shape in shapes) * c.columns * c.head_dim
    rows = (
        (
            "attention.equal_share",
            sum(bench.equal) / len(bench.equal),
            "",
            "= 1",
            f"{len(bench.equal)} runs: results, blocks, decisions",
        ),
        (
            "attention.kept_mass_worst_head",
            min(made, *(report.kept_mass.min().item() for report in [*reports, long_report])),
            "",
            ">= 0.9",
            f"hardware: {short}; {LONG} tokens; exact model, heads made to lose mass: up to 131072 tokens",
        ),
        ("attention.density", sum(report.density.sum().item() for report in reports) / heads, "", "<= 0.455", short),
        (
            "attention.query_aware_heads",
            sum(int(report.query_aware.sum()) for report in reports),
            f"of {heads}",
            "",
            short,
        ),
        (
            "attention.worst_error",
            max(report.error for report in reports),
            "relative",
            "<= 0.02",
            f"{short}, against float",
        ),
        (
            "attention.index_cycles_over_bound",
            max(shape.index / bound[shape.tokens] for shape in [*shapes, long]),
            "ratio",
            "<= 1.2",
            "worst; two passes of the last block",
        ),
        ("attention.index_share_4k", sum(s.index for s in shapes) / sum(s.run.cycles for s in shapes), "", "", short),
        ("attention.index_share_16k", long.index / long.run.cycles, "", "", f"{LONG} tokens, layer {LONG_LAYER}"),
        ("attention.index_share_32k", far_share, "", "", f"closed form, density {long.density:.2f}"),
        (
            "attention.mac_utilisation",
            min(s.run.counters["rows"] / s.run.cycles for s in filled),
            "",
            ">= 0.85",
            f"worst of {len(filled)} runs of density {DENSE_ENOUGH} or more, index included",
        ),
        (
            "attention.sparse_efficiency",
            min(bench.efficiency(s, dense.run.phases["attend"], False) for s in shapes),
            "",
            ">= 0.85",
            f"worst; {short}, against a simulated dense run",
        ),
        (
            "attention.sparse_efficiency_with_index_4k",
            min(bench.efficiency(s, dense.run.phases["attend"], True) for s in shapes),
            "",
            "",
            "worst; index included",
        ),
        (
            "attention.sparse_efficiency_with_index_16k",
            bench.efficiency(long, bench.dense_form(LONG), True),
            "",
            ">= 0.8",
            f"density {long.density:.2f}; dense by the closed form",
        ),
        (
            "attention.cycles_over_closed_form",
            max(max(s.ratio, 1 / s.ratio) for s in every),
            "",
            "<= 1.03",
            f"worst of {len(every)} runs, up to {LONG} tokens",
        ),
        (
            "attention.simulated_macs_per_second",
            macs / spent / 1e6,
            "M",
            "",
            "CPU seconds, comparison with the models included",
        ),
        (
            "kvcache.bytes_over_belady",
            read["ours"] / read["belady"],
            "ratio",
            "<= 1.05",
            f"{short}, cache's model, windows of {CACHE['window']}, {CACHE['lines']} lines (of drawn maps it holds from 28 lines on)",
        ),
        ("kvcache.lru_over_belady", read["lru"] / read["belady"], "ratio", "", "the same"),
        ("kvcache.uncached_over_belady", read["visits"] / read["belady"], "ratio", "", "each visit reads its block"),
        (
            "kvcache.bytes_over_belady_16k",
            misses / cache.belady(sequence, c.lines),
            "ratio",
            "<= 1.05",
            f"hardware, windows of {c.window}, {c.lines} lines",
        ),
        (
            "kvcache.lru_over_belady_16k",
            cache.lru(sequence, c.lines) / cache.belady(sequence, c.lines),
            "ratio",
            "",
            "the same visits",
        ),
        ("kvcache.hit_rate_16k", hits / (hits + misses), "", "", "of visits; paper 0.65 of jobs"),
        (
            "kvcache.job_hit_rate_16k",
            1 - misses / cache.uncached(cache.visits(long_report.keep.numpy(), c.window), shared=False),
            "",
            "",
            "of (head, query block, key block)",
        ),
    )
    return [figure(name, value, unit, goal, anchor) for name, value, unit, goal, anchor in rows]
