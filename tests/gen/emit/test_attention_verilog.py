"""The units of the prefill hardware as Verilog: clean for Verilator's linter, and the same text twice."""

import subprocess

import pytest

from intaglio.gen.emit.collateral import lint_waivers
from intaglio.gen.emit.verilog import convert
from intaglio.rtl.attention import engine
from intaglio.rtl.config.attention import PrefillConfig
from intaglio.rtl.control import jobs, schedule
from intaglio.rtl.index import block_map, decide, masses, passes, select
from intaglio.rtl.kv import cache, fetch
from intaglio.rtl.matrix.unit import MatrixUnit
from intaglio.rtl.memory.ram import RAM_MODULE, RAM_VERILOG
from intaglio.sim.verilator.build import find_tools

SMALL = PrefillConfig(
    head_dim=16, group=2, block=32, columns=8, context=512, window=4, lines=6, lookahead=2, drain=4, lut_columns=2
)
UNITS = {
    "block_map": lambda c: block_map.BlockMap(c),
    "cache": lambda c: cache.CacheControl(c),
    "decide": decide.Decision,
    "fetch": fetch.Fetch,
    "jobs": jobs.JobSequencer,
    "masses": masses.BlockMasses,
    "passes": passes.IndexPass,
    "schedule": lambda c: schedule.Schedule(c),
    "select": lambda c: select.Selector(c),
    "engine": lambda c: engine.TileEngine(c, MatrixUnit(c.head_dim, c.columns, c.lut_columns)),
}


def lint(folder, modules, top):
    """Warnings and errors of Verilator."""
    tools = find_tools()
    (folder / "lint.vlt").write_text(lint_waivers())
    for name, text in (modules | {RAM_MODULE: RAM_VERILOG}).items():
        (folder / f"{name}.v").write_text(text)
    files = sorted(path.name for path in folder.glob("*.v"))
    done = subprocess.run(
        [tools.verilator, "--lint-only", "-Wall", "-Wno-MULTITOP", "--top-module", top, "lint.vlt", *files],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"VERILATOR_ROOT": str(tools.root)},
        check=False,
    )
    return [line for line in done.stderr.splitlines() if line.startswith("%")]


@pytest.mark.parametrize("name", UNITS)
def test_lint(name, tmp_path):
    modules = convert(UNITS[name](SMALL), f"prefill_{name}", None)
    assert lint(tmp_path, modules, f"prefill_{name}") == []
    if name == "jobs":
        assert convert(UNITS[name](SMALL), f"prefill_{name}", None) == modules  # the same text twice
        broken = {
            key: text.replace("assign", "assign undeclared_wire = 1'b0; assign", 1) for key, text in modules.items()
        }
        assert lint(tmp_path, broken, f"prefill_{name}")
