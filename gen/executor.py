"""Where independent jobs are done: by processes here, or by the workers of a Dask cluster, behind the same methods."""

from collections.abc import Callable
from typing import Any

from intaglio.gen.cluster import Cluster
from intaglio.gen.pool import Pool

__all__ = ["workers"]


def workers(processes: int, scheduler: str | None, make: Callable, *arguments: Any) -> Pool | Cluster:
    """What runs tasks: a :class:`~intaglio.gen.pool.Pool` or, given a scheduler's address, a :class:`~intaglio.gen.cluster.Cluster`.

    Parameters
    ----------
    processes : int
        Of the pool.
    scheduler : str or None
        ``tcp://HOST:PORT``.
    make : callable
        A module's function or class, which makes the object whose methods the tasks are, of ``arguments``.
    """
    return Pool(processes, make, *arguments) if scheduler is None else Cluster(scheduler, make, *arguments)
