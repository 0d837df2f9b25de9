"""Workers of a Dask cluster (the extra ``cluster``) behind the methods of :class:`~intaglio.gen.pool.Pool`.

The workers must have this version of the package and see the same folders by the same paths. A worker that is lost has its tasks done by
another one; every task's result comes once, and a result that is here is not made again.
"""

import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

from intaglio import Error
from intaglio.gen.pool import LIMIT_S, nothing_ended, peak_kib
from intaglio.gen.sources import sources_digest

__all__ = ["Cluster", "check_scheduler"]

CONNECT_S = 30  # in which the scheduler must answer
WORKERS_S = 300  # in which a first worker must be there: a queue may hold it back

_jobs: dict[tuple, Any] = {}  # of this process, a worker: the objects that tasks are methods of
_lock = threading.Lock()


def check_scheduler(scheduler: str | None) -> None:
    """Raise, before long work, unless it is None or the address of a scheduler and the extra is installed."""
    if scheduler is None:
        return
    kind, _, place = scheduler.partition("://")
    if kind not in ("tcp", "tls", "ws", "wss", "inproc") or not place:
        raise ValueError(f"the scheduler must be tcp://HOST:PORT, not {scheduler!r}")
    _distributed()


def _distributed():
    try:
        import distributed
    except ModuleNotFoundError as fault:
        raise Error(f"a cluster needs the Python module {fault.name}: pip install 'intaglio[cluster]'") from fault
    return distributed


class Cluster:
    """The workers of a scheduler, each with an object ``make(*arguments)`` of its own.

    Parameters
    ----------
    scheduler : str
        ``tcp://HOST:PORT``.

    Members
    -------
    peaks : dict
        Most resident memory by worker process, in KiB, as far as results have come from it.

    Raises
    ------
    Error, ValueError
        The address is none, nothing answers at it, or no worker comes.
    """

    def __init__(self, scheduler: str, make: Callable, *arguments: Any) -> None:
        check_scheduler(scheduler)
        self.scheduler, self.make, self.arguments, self.peaks = scheduler, make, arguments, {}
        self.count = 0
        self.token, self.sources = os.urandom(8).hex(), sources_digest().hexdigest()
        distributed = _distributed()
        try:
            self.client = distributed.Client(scheduler, timeout=CONNECT_S, set_as_default=False)
        except (OSError, TimeoutError) as fault:
            raise Error(f"a Dask scheduler must answer at {scheduler} within {CONNECT_S} s, and none did") from fault
        try:
            self.client.wait_for_workers(1, timeout=WORKERS_S)
        except TimeoutError as fault:
            self.client.close(timeout=10)
            raise Error(
                f"the scheduler {scheduler} must have a worker within {WORKERS_S} s, and none has come"
            ) from fault

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close(timeout=10)

    def run(self, tasks: Iterable[tuple], limit_s: float = LIMIT_S) -> Iterator[tuple[Any, Any]]:
        """As :meth:`intaglio.gen.pool.Pool.run`.

        Raises
        ------
        Error
            Workers ended again and again at one task, the scheduler is gone, or nothing ended in time.
        """
        distributed = _distributed()
        job, keys = (self.token, self.sources, self.make, self.arguments), {}
        for key, method, *arguments in tasks:
            self.count += 1  # earlier tasks first, as in a pool
            name = f"intaglio-{self.token}-{self.count}"
            future = self.client.submit(_call, job, name, method, arguments, key=name, priority=-self.count)
            keys[future] = key, name
        ended = distributed.as_completed(list(keys), loop=self.client.loop)
        try:
            while keys:
                self._wait(ended, [key for key, _ in keys.values()], limit_s)
                future = next(ended)
                self._sound(future, distributed.KilledWorker)
                key, name = keys.pop(future)
                result, process, peak = self._taken(name)
                self.peaks[process] = peak
                future.release()
                yield key, result
        finally:
            if keys and self.client.status == "running":
                self.client.cancel(list(keys), force=True)

    def _taken(self, name):
        """What a task left with the scheduler."""
        distributed = _distributed()
        kept = distributed.Variable(name, client=self.client)
        try:
            data = kept.get(timeout=CONNECT_S)
            kept.delete()
            distributed.Event(name, client=self.client).clear()
        except (OSError, TimeoutError) as fault:
            raise Error(f"the scheduler {self.scheduler} must stay while it is used, and does not answer") from fault
        return pickle.loads(data)

    def _wait(self, ended, left, limit_s):
        """Until a task has ended."""
        began = alive = time.monotonic()
        look = began + 5
        while not ended.has_ready():
            time.sleep(0.02)
            now = time.monotonic()
            if now >= look:
                look = now + 5
                alive = now if self._workers() else alive
            if now - alive > WORKERS_S:
                raise Error(f"the scheduler {self.scheduler} must have workers, and has had none for {WORKERS_S} s")
            if now - began > limit_s:
                raise Error(f"{nothing_ended(limit_s, left)}, on {self.scheduler}")

    def _workers(self):
        if self.client.status != "running":
            raise Error(f"the scheduler {self.scheduler} must stay while it is used, and is gone")
        try:
            return len(self.client.nthreads())
        except (OSError, TimeoutError) as fault:
            raise Error(f"the scheduler {self.scheduler} must stay while it is used, and does not answer") from fault

    def _sound(self, future, killed):
        """Raise what a task raised. One whose worker was lost since it ended is sound: its result is with the scheduler."""
        if future.status == "error":
            fault = future.exception(timeout=CONNECT_S)
            if isinstance(fault, killed):
                raise Error(
                    f"a task must not end its worker (killed, or out of memory), and workers of {self.scheduler} ended at the same one "
                    "again and again; what is complete stays, run again"
                ) from fault
            raise fault
        if future.status == "cancelled" or self.client.status != "running":
            raise Error(f"the scheduler {self.scheduler} must stay while it is used, and is gone")


def _call(job, name, method, arguments):
    """On a worker: make the object, unless it is there from an earlier task, call its method, and leave the result with the scheduler.

    What dask holds of a finished task until it is fetched is lost with its worker, and would be made again.
    """
    token, sources, make, given = job
    if sources != sources_digest().hexdigest():
        raise Error("the workers of the cluster must have the same version of intaglio as its client, and have another")
    distributed = _distributed()
    done = distributed.Event(name)
    if done.is_set():
        return  # its worker was lost after that
    with _lock:
        if token not in _jobs:
            _jobs.clear()
            _jobs[token] = make(*given)
        made = _jobs[token]
    result = getattr(made, method)(*arguments)
    found = result, f"{socket.gethostname()} {os.getpid()}", peak_kib()
    distributed.Variable(name).set(pickle.dumps(found))
    done.set()
