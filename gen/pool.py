"""Processes that work on one job: tasks out, results in as they come, every wait with a limit."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Self

from intaglio import Error

__all__ = ["Pool", "check_processes", "nothing_ended", "peak_kib"]

LIMIT_S = 1800  # in which at least one task must end

_job = None  # of this process


def check_processes(processes: int) -> None:
    """Raise ``ValueError`` unless it is a number of processes."""
    if type(processes) is not int or not 1 <= processes <= 64:
        raise ValueError(f"processes must be an integer in 1..64, not {processes!r}")


class Pool:
    """``processes`` processes, each with an object ``make(*arguments)`` of its own; with one, the work is done in this process.

    Members
    -------
    peaks : dict
        Most resident memory by process, in KiB, as far as results have come from it.
    """

    def __init__(self, processes: int, make: Callable, *arguments: Any) -> None:
        check_processes(processes)
        self.peaks = {}
        self.executor = None
        if processes == 1:
            self.job = make(*arguments)
        else:
            context = multiprocessing.get_context("spawn")
            self.executor = ProcessPoolExecutor(processes, context, _begin, (make, *arguments))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.executor is not None:
            self.executor.shutdown(wait=True, cancel_futures=True)

    def run(self, tasks: Iterable[tuple], limit_s: float = LIMIT_S) -> Iterator[tuple[Any, Any]]:
        """Do ``tasks``, a list of tuples of a key, a method of the object and its arguments; yield keys with results as they end.

        In other processes, a task must end within every ``limit_s`` seconds.

        Raises
        ------
        Error
            A process ended by itself, or nothing ended in time.
        """
        if self.executor is None:
            for key, method, *arguments in tasks:
                yield key, getattr(self.job, method)(*arguments)
                self.peaks[os.getpid()] = peak_kib()
            return
        pending = {self.executor.submit(_call, method, *arguments): key for key, method, *arguments in tasks}
        try:
            while pending:
                done, _ = wait(pending, limit_s, FIRST_COMPLETED)
                if not done:
                    for child in multiprocessing.active_children():
                        child.kill()
                    raise Error(nothing_ended(limit_s, pending.values()))
                for future in done:
                    key = pending.pop(future)
                    result, process, peak = future.result()
                    self.peaks[process] = peak
                    yield key, result
        except BrokenProcessPool as fault:
            raise Error(
                "a working process ended by itself (killed, or out of memory); what is complete stays, run again"
            ) from fault
        finally:
            for future in pending:
                future.cancel()


def nothing_ended(limit_s: float, keys: Iterable[Any]) -> str:
    """What is said of a wait that came to its limit, with the first of those it was for."""
    left = list(keys)
    return f"a part of the work must end within {limit_s:g} s, and none of {len(left)} did, the first {left[0]}"


def _begin(make, *arguments):
    """First in a working process: its end if the parent ends, no traceback of its own on Ctrl-C, its job."""
    global _job
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    _job = make(*arguments)


def _end_with(parent):
    parent.join()
    os._exit(1)


def _call(method, *arguments):
    return getattr(_job, method)(*arguments), os.getpid(), peak_kib()


def peak_kib() -> int:
    """Most memory that this process has had resident, in KiB."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
