"""cocotb on Verilator for a generated folder: build once for each design, run a module of tests, report every test.

The only file that knows cocotb's runner, whose interface is marked experimental.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

from cocotb_tools.check_results import get_results
from cocotb_tools.runner import Verilator

from intaglio.gen.tools import BuildError, find_tools
from intaglio.sim.verilator.build import default_cache

__all__ = ["build_bench", "run_bench"]

# Optimisation: the simulation's own share of the time is small. The last: the package's make file knows no precompiled headers.
_LEVELS = ("OPT_FAST=-O1", "OPT_SLOW=-O0", "OPT_GLOBAL=-O0", "CFG_CXXFLAGS_PCH_I=-include")
_FLAGS = ("--no-timing", "--x-assign", "unique", "-Wno-fatal", "-Wno-lint", "-Wno-style")


class _Runner(Verilator):
    """cocotb's runner with the Python package's Verilator, and with the top's ports as the only visible signals."""

    def __init__(self, tools, modules):
        super().__init__()
        self.tools, self.modules = tools, modules

    def _set_env_common(self):
        super()._set_env_common()
        self.env.update(self.tools.environment)
        self.env["PYTHONPATH"] = os.pathsep.join([str(self.modules), self.env["PYTHONPATH"]])

    def _simulator_in_path_build_only(self):
        self.executable = str(self.tools.verilator)

    def _build_command(self):
        translate, make = super()._build_command()
        programs = [f"PYTHON3={sys.executable}", f"CXX={self.tools.compiler}", f"LINK={self.tools.compiler}"]
        return [[word for word in translate if word != "--public-flat-rw"], [*make, *programs, *_LEVELS]]


def build_bench(folder, *, cache=None):
    """Build the generated folder for cocotb, unless the cache has it; returns the folder of the build.

    The simulation reads ROM images from ``rom/`` in the folder in which it is started: a build serves every model of its shape.

    Raises
    ------
    BuildError
    """
    folder, tools = Path(folder).absolute(), find_tools()
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    top = manifest["top"]
    sources = [folder / name for name in manifest["files"]["verilog"]]
    public = "".join(
        f'public_flat_rw -module "{top}" -var "{name}"\n' for name in _ports(folder / "rtl" / f"{top}.v", top)
    )
    parts = [tools.identity, metadata.version("cocotb"), repr((_LEVELS, _FLAGS)), public]
    parts += [path.read_text(encoding="utf-8") for path in sources]
    entry = Path(cache or default_cache()) / f"cocotb-{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}"
    if entry.exists():
        return entry
    entry.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".build-", dir=entry.parent))
    try:
        (work / "ports.vlt").write_text("`verilator_config\n" + public)
        runner = _Runner(tools, folder)
        try:
            runner.build(
                sources=[work / "ports.vlt", *sources],
                hdl_toplevel=top,
                build_dir=work / "bench",
                build_args=_FLAGS,
                always=True,
                log_file=work / "log",
            )
        except RuntimeError as fault:
            raise BuildError(f"the build for cocotb failed: {(work / 'log').read_text()[-2000:]}") from fault
        for path in (work / "bench").glob("*.gch"):
            path.unlink()
        try:
            os.rename(work / "bench", entry)
        except OSError:
            if not entry.exists():  # else another process has just finished the same entry
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return entry


def _ports(path, top):
    """Names in the header of the module ``top``."""
    text = path.read_text(encoding="utf-8")
    header = text[text.index(f"module {top}") :]
    return [name.strip() for name in header[header.index("(") + 1 : header.index(")")].split(",")]


def run_bench(build, folder, module, *, seed=1, plusargs=(), tests=None):
    """Run the cocotb tests of a Python module.

    Parameters
    ----------
    build : path
        From :func:`build_bench`.
    folder : path
        A folder that holds ``rom/``; the simulation runs in it and leaves its log there.
    module : path
        The Python file with the tests.
    seed : int
        Of every random choice; cocotb prints it.
    plusargs : sequence of str
        ``+name=value``, for the tests to read.
    tests : int or None
        How many tests must have run.

    Returns
    -------
    dict : test name to None, or to the text of its failure.

    Raises
    ------
    BuildError
        The simulation ended without results, or with another number of tests.
    """
    folder, module = Path(folder).absolute(), Path(module).absolute()
    runner = _Runner(find_tools(), module.parent)
    results, log = folder / "results.xml", folder / "cocotb.log"
    top = next(
        path.stem for path in Path(build).glob("*") if os.access(path, os.X_OK) and path.is_file() and not path.suffix
    )
    try:
        runner.test(
            hdl_toplevel=top,
            hdl_toplevel_lang="verilog",
            test_module=module.stem,
            build_dir=build,
            test_dir=folder,
            results_xml=str(results),
            seed=seed,
            plusargs=list(plusargs),
            log_file=log,
        )
    except SystemExit:
        pass  # a failed test; the results say which, and get_results() raises where there are none
    try:
        count, failed = get_results(results)
    except RuntimeError as fault:
        raise BuildError(f"{fault}; {log.read_text()[-2000:]}") from fault
    found = {case.get("name"): _failure(case) for case in ElementTree.parse(results).getroot().iter("testcase")}
    if count != len(found) or failed != sum(text is not None for text in found.values()) or tests not in (None, count):
        raise BuildError(
            f"the bench must run {tests or len(found)} tests, not {count} ({failed} failed); {log.read_text()[-2000:]}"
        )
    return found


def _failure(case):
    """Text of a test's failure or error, or None."""
    for kind in ("failure", "error", "skipped"):
        if (element := case.find(kind)) is not None:
            return f"{kind}: {element.get('message') or ''} {element.text or ''}".strip()
    return None
