"""Figure of the executor: work on a Dask cluster, one of whose workers is killed in mid-job, against the same work here."""

import hashlib
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import dask
import distributed

from bench.common import Progress, figure
from intaglio.gen.banks.layout import BankLayout
from intaglio.gen.checkpoint.published import FALCON3_1B
from intaglio.gen.checkpoint.synthetic import write_random_checkpoint
from intaglio.gen.emit.banks import emit

__all__ = ["figures"]

CONFIG = FALCON3_1B | {"num_hidden_layers": 12, "hidden_size": 512, "intermediate_size": 2048, "head_dim": 64}
LAYOUT = BankLayout(lanes=4, units=1, width=64)


def figures(progress: Progress, folder: Path | None = None) -> list[dict[str, Any]]:
    """Files that the cluster has not made, or made otherwise.

    Parameters
    ----------
    folder : path or None
        Where checkpoint and outputs (0.5 GB) are put for the time being.
    """
    with tempfile.TemporaryDirectory(prefix="intaglio-cluster-", dir=folder) as scratch:
        root, killed = Path(scratch), []
        write_random_checkpoint(root / "model", CONFIG | {"vocab_size": 8192}, seed=1)
        emit(root / "model", root / "here", layout=LAYOUT, progress=progress)
        with (
            dask.config.set({"logging.distributed": "error"}),
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, dashboard_address=":0", local_directory=scratch
            ) as cluster,
            distributed.Client(cluster, set_as_default=False) as client,
        ):

            def told(text, share):
                progress(f"cluster: {text}")
                if not killed and text.endswith("written"):
                    killed.append(next(iter(client.run(os.getpid).values())))
                    os.kill(killed[0], signal.SIGKILL)

            done = emit(
                root / "model", root / "there", layout=LAYOUT, scheduler=cluster.scheduler_address, progress=told
            )
        here, there = _tree(root / "here"), _tree(root / "there")
        lost = sum(there.get(name) != digest for name, digest in here.items()) + len(set(there) - set(here))
    assert killed
    note = f"{len(here):,} files of {len(done['written'])} parts; 1 of 2 workers killed"
    return [figure("cluster.jobs_lost", lost, "files", "= 0", note)]


def _tree(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
