"""Mutants: changes the RTL's source in one place at a time, in a copy, and reports which test notices.

Prints a line for each, writes ``mutants.json`` in the build folder, and ends with 1 if fewer are noticed than the goal asks for. The list
follows from seed, number and sources alone, so that a run can be repeated; ``--only`` keeps to one room of ``rtl``.
"""

import argparse
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from bench.common import Progress
from bench.mutations import Mutation, draw
from intaglio import Error
from intaglio.cli import exit_code

__all__ = ["EQUIVALENT", "TESTS", "Workshop", "concerning", "main"]

GOAL = 0.98
COPIED = ("rtl", "gen", "sim", "host", "boards", "intaglio", "tests", "bench", "models", "pyproject.toml")
SLACK = 60.0  # seconds that tests may take beyond three times their own

# Tests that concern a file, by the beginning of its path in rtl/, the cheapest first; the longest beginning counts.
TESTS = {
    "arithmetic/divider": ["arithmetic/test_divider.py", "attention/test_rows.py"],
    "arithmetic/logarithm": ["index/test_selection.py"],
    "arithmetic/silu": ["arithmetic/test_silu.py"],
    "arithmetic/scalar": ["arithmetic/test_scalar.py", "control/test_sequencer.py"],
    "attention": ["attention/test_rows.py", "attention/test_engine.py"],
    "attention/engine": ["attention/test_engine.py"],
    "attention/queries": ["attention/test_stores.py"],
    "attention/stores": ["attention/test_stores.py"],
    "memory/transpose": ["memory/test_transpose.py"],
    "attention/narrow": ["attention/test_narrow.py", "attention/test_narrow_slots.py"],
    "attention/narrow/cache": ["attention/test_narrow_cache.py"],
    "bus": ["bus/test_registers.py", "top/test_kernel.py"],
    "bus/register_master": ["link/test_link.py", "link/test_protocol.py"],
    "control/jobs": ["control/test_jobs.py"],
    "control/schedule": ["control/test_schedule.py"],
    "control/group": ["control/test_sequencer.py", "../sim/verilator/test_batch.py"],
    "control/scalars": ["control/test_sequencer.py", "../sim/verilator/test_batch.py"],
    "control/sequencer": ["control/test_sequencer.py", "../sim/verilator/test_batch.py"],
    "index": ["index/test_selection.py"],
    "index/block_map": ["index/test_block_map.py"],
    "index/masses": ["index/test_masses.py"],
    "index/passes": ["index/test_passes.py", "index/test_index_unit.py"],
    "index/scores": ["attention/test_stores.py"],
    "index/unit": ["index/test_index_unit.py"],
    "kv/cache": ["kv/test_cache.py"],
    "kv/fetch": ["kv/test_fetch.py"],
    "link": ["link/test_link.py", "link/test_protocol.py"],
    "matrix": ["matrix/test_unit.py"],
    "memory": ["memory/test_rom.py", "memory/test_logic.py", "attention/test_narrow_cache.py"],
    "ternary": ["ternary/test_linear.py"],
    "ternary/gate": ["ternary/test_gate.py"],
    "ternary/adapter": ["ternary/test_adapter.py", "ternary/test_linear.py", "../sim/verilator/test_adapter.py"],
    "top/attention": ["top/test_attention_core.py"],
    "top/attention_shell": ["top/test_attention_cocotb.py"],
    "top/decoder": ["top/test_decoder_core.py"],
    "top/decoder_shell": ["top/test_decoder_cocotb.py"],
    "top/slot": ["top/test_decoder_core.py"],
    "top/activity": ["ternary/test_gate.py"],
    "top/kernel": ["top/test_kernel.py"],
    "ternary/tables": ["ternary/test_tables.py"],
    "vector": ["vector/test_unit.py"],
    "vector/pass_b": ["vector/test_pass_b.py", "vector/test_unit.py"],
    "vector/rotary": ["vector/test_rotary.py", "vector/test_unit.py"],
    "vector/top_k": ["vector/test_top_k.py"],
}

# Changes that no test can notice, with the reason: (file, line without indentation, change). They are named in the report, not counted.
EQUIVALENT = {
    (
        "rtl/link/uart.py",
        "timer, bits, shift = Signal(range(self.divisor)), Signal(range(11)), Signal(9, init=0x1FF)",
        "0x1FF -> (0x1FF) ^ 1",
    ): "until a byte is taken, which overwrites all of it, there are no bits to send, and nothing is shifted to the line",
    (
        "rtl/arithmetic/silu.py",
        "m.d.sync += place.eq(Mux(size[RANGE_BITS:].any(), -1, size[:RANGE_BITS]))",
        "1 -> 2",
    ): "where z saturates, c rounds to 0 two units from the end of its range too",
    (
        "rtl/vector/pass_a.py",
        "fresh = Signal(init=1)",
        "1 -> (1) ^ 1",
    ): "the first segment begins with m_value 0, which the start writes, whether it is taken for fresh or not",
}


def concerning(path: str) -> list[str]:
    """Paths of the tests that concern a file of ``rtl``, cheapest first.

    Raises
    ------
    ValueError
        No test is known to concern it.
    """
    name = path.removeprefix("rtl/").removesuffix(".py")
    fitting = [begin for begin in TESTS if name == begin or name.startswith(begin + "/")]
    if not fitting:
        raise ValueError(f"bench/mutants.py must name tests that concern {path}")
    return [os.path.normpath(f"tests/rtl/{test}") for test in TESTS[max(fitting, key=len)]]


class Workshop:
    """A copy of the tree, in which sources are changed and tests are run.

    Parameters
    ----------
    root : Path
        The tree; nothing in it is changed.
    folder : Path
        An empty folder for the copy.
    seconds : dict or None
        What tests take as they are, by path, shared by workshops of the same tree.
    """

    def __init__(self, root: Path, folder: Path, seconds: dict[str, float] | None = None) -> None:
        self.folder, self.seconds = folder, {} if seconds is None else seconds
        self.process: subprocess.Popen[str] | None = None
        self.stopped = False
        for name in COPIED:
            if (root / name).is_dir():
                shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(root / name, folder / name)
        for part in ("rtl", "gen", "sim", "host", "boards"):  # so that the copy is imported, not what is installed
            (folder / "intaglio" / part).symlink_to(folder / part)

    def test(self, path: str, limit: float | None = None) -> tuple[str, str | None, float]:
        """``(outcome, test, seconds)``: "passed", "failed" with the first test that failed, or "limit"."""
        command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", path]
        if self.stopped:
            raise Error(f"{path} must not run in a workshop that was stopped")
        began = time.monotonic()
        self.process = subprocess.Popen(
            command,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            start_new_session=True,  # so that what tests start ends with them
        )
        with self.process as process:
            try:
                text, _ = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                self._end()
                process.communicate()
                return "limit", path, time.monotonic() - began
            except BaseException:
                self._end()
                raise
        seconds = time.monotonic() - began
        if process.returncode == 0:
            return "passed", None, seconds
        named = re.search(r"^(?:FAILED|ERROR) (\S+?\.py.*?)(?: - .*)?$", text, re.MULTILINE)
        if process.returncode != 1 and not named:
            raise Error(f"pytest must run {path}, but ended with {process.returncode}:\n{text[-2000:]}")
        return "failed", named[1] if named else path, seconds

    def stop(self) -> None:
        """End the tests that run, if any, and run no others."""
        self.stopped = True
        self._end()

    def _end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def baseline(self, path: str) -> float:
        """Seconds that the tests take as they are.

        Raises
        ------
        Error
            They fail.
        """
        if path not in self.seconds:
            outcome, test, seconds = self.test(path)
            if outcome != "passed":
                raise Error(f"{test} must pass before anything is changed")
            self.seconds[path] = seconds
        return self.seconds[path]

    def kill(self, mutation: Mutation, limit: float | None = None) -> tuple[str, str | None]:
        """``(outcome, test)`` of a mutation: "killed" by a test, "limit" where tests hang, or "survived"."""
        target = self.folder / mutation.path
        source = target.read_bytes()
        for path in concerning(mutation.path):
            allowed = 3 * self.baseline(path) + SLACK if limit is None else limit
            target.write_bytes(mutation.apply(source))
            try:
                outcome, test, _ = self.test(path, allowed)
            finally:
                target.write_bytes(source)
            if outcome != "passed":
                return ("killed" if outcome == "failed" else "limit"), test
        return "survived", None


def report(seed: int, count: int, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What ``mutants.json`` holds."""
    counted = [entry for entry in results if entry["outcome"] != "equivalent"]
    noticed = sum(entry["outcome"] in ("killed", "limit") for entry in counted)
    figure = {
        "name": "tests.mutants_killed_share",
        "value": noticed / len(counted) if counted else 1.0,
        "unit": f"of {len(counted)} mutants, seed {seed}",
        "goal": f">= {GOAL}",
        "anchor": "one change in one place of the RTL; unit tests",
        "class": "measured",
    }
    return {"seed": seed, "count": count, "figures": [figure], "mutants": results}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=72)
    parser.add_argument("--only", metavar="ROOM", help="a folder of rtl")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--build", type=Path, default=Path("build"))
    args = parser.parse_args(argv)
    for name in ("count", "jobs"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, not {getattr(args, name)}")
    root = Path(__file__).resolve().parents[1]
    drawn = draw(root, args.seed, args.count, args.only)
    args.build.mkdir(parents=True, exist_ok=True)
    with Progress() as progress, tempfile.TemporaryDirectory(prefix="intaglio-mutants-") as folder:
        seconds, results, free = {}, {}, queue.SimpleQueue()
        workshops = []
        for number in range(args.jobs):
            Path(folder, str(number)).mkdir()
            workshops.append(Workshop(root, Path(folder, str(number)), seconds))
            free.put(workshops[-1])

        def work(mutation):
            reason = EQUIVALENT.get((mutation.path, mutation.text, mutation.change))
            workshop, began = free.get(), time.monotonic()
            try:
                outcome, test = ("equivalent", None) if reason else workshop.kill(mutation)
            finally:
                free.put(workshop)
            entry = {"file": mutation.path, "line": mutation.line, "kind": mutation.kind, "text": mutation.text}
            entry |= {"change": mutation.change, "outcome": outcome, "test": test, "reason": reason}
            return entry | {"seconds": round(time.monotonic() - began, 1)}

        pool = ThreadPoolExecutor(args.jobs)
        try:
            futures = {pool.submit(work, mutation): number for number, mutation in enumerate(drawn)}
            for future in as_completed(futures):
                number, entry = futures[future], future.result()
                results[number] = entry
                change = " ".join(entry["change"].split())
                what = f"{entry['file']}:{entry['line']} {entry['kind']} {change}"
                progress.say(
                    f"{number + 1:3} {entry['outcome']:10} {what}: {entry['test'] or entry['reason'] or entry['text']}"
                )
                progress(f"mutants: {len(results)} of {len(drawn)}")
                found = report(args.seed, args.count, [results[number] for number in sorted(results)])
                (args.build / "mutants.json").write_text(json.dumps(found, indent=1) + "\n")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for workshop in workshops:
                workshop.stop()
            pool.shutdown()
    figure = found["figures"][0]
    sys.stdout.write(
        f"{figure['name']} {figure['value']:.4f} {figure['unit']}; {args.build / 'mutants.json'} written\n"
    )
    return int(figure["value"] < GOAL)


def _terminated(*_: object) -> None:
    raise KeyboardInterrupt  # no test and no copy is left behind


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(exit_code(main))
