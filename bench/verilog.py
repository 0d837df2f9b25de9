"""Figures of the generated Verilog: what the linter says of every preset, paths between AXI inputs and outputs without a register."""

import tempfile
from pathlib import Path
from typing import Any

from bench.common import Progress
from intaglio.gen.checkpoint.weights import Checkpoint
from intaglio.gen.emit.attention import generate as generate_prefill
from intaglio.gen.emit.decoder import generate
from intaglio.gen.emit.link import serial_verilog
from intaglio.gen.emit.verilog import convert
from intaglio.gen.presets import attention as prefill_presets
from intaglio.gen.presets import decoder as presets
from intaglio.gen.synthesis.paths import combinational_paths
from intaglio.rtl.bus.axi import port_map
from intaglio.rtl.top.kernel import KERNEL_TOP, Kernel
from intaglio.sim.verilator.lint import lint

__all__ = ["figures"]

OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "desk": ({"rank": 4, "adapters": 2}, {"gate_words": 1024}),
    "small": ({"rank": 2},),
}  # beside each preset as it is
CLOCKS = {"aclk", "ap_clk", "clk"}
LINK = {"clock_hz": 80_000_000, "baud": 2_000_000}


def figures(checkpoint: Checkpoint, progress: Progress) -> list[dict[str, Any]]:
    """Generate the shipped model with every preset, and the prefill unit with every preset."""
    warnings, paths, outputs = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        for preset in presets.PRESETS:
            for widths in ({}, *OPTIONS.get(preset, ())):
                progress(f"linting {preset} {widths or ''}")
                manifest = generate(checkpoint, preset, out, **widths)
                warnings, outputs = warnings + lint(out), outputs + 1
                if preset == "small":
                    paths += _paths(out, manifest)
        for preset in prefill_presets.PRESETS:
            progress(f"linting prefill {preset}")
            out = Path(folder) / f"prefill-{preset}"
            manifest = generate_prefill(preset, out)
            warnings, outputs = warnings + lint(out), outputs + 1
            if preset == "small":
                paths += combinational_paths(sorted(out.glob("rtl/*.v")), manifest["top"], ignore=CLOCKS)
    return [
        {
            "name": "decoder.lint_warnings",
            "value": len(warnings),
            "unit": "warnings",
            "goal": "= 0",
            "class": "simulated",
            "anchor": f"{outputs} folders, prefill too: {warnings[0]}"
            if warnings
            else f"{outputs} folders, prefill too",
        },
        {
            "name": "rtl.combinational_axi_paths",
            "value": len(paths),
            "unit": "paths",
            "goal": "= 0",
            "class": "synthesised",
            "anchor": " to ".join(paths[0]) if paths else "decoder, prefill unit, kernel, serial top",
        },
    ]


def _paths(out, manifest):
    """Paths of a decoder, and of the two tops in which it is an instance."""
    files, kernel = sorted(out.glob("rtl/*.v")), Kernel(manifest["top"])
    found = combinational_paths(files, manifest["top"], ignore=CLOCKS)
    for modules in (convert(kernel, KERNEL_TOP, port_map(kernel)), serial_verilog(manifest, **LINK)):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in modules.items():
                (Path(folder) / f"{name}.v").write_text(text)
            found += combinational_paths([*Path(folder).glob("*.v"), *files], next(iter(modules)), ignore=CLOCKS)
    return found
