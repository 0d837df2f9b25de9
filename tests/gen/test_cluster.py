"""Work on a Dask cluster: the same bytes as here; a worker that is killed in mid-job loses nothing, and nothing is done twice."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from intaglio import Error
from intaglio.cli import main
from intaglio.gen import cluster as cluster_module
from intaglio.gen.checkpoint.model import CheckpointError
from intaglio.gen.cluster import Cluster
from intaglio.gen.emit import decoder
from intaglio.gen.emit.decoder import generate

distributed = pytest.importorskip("distributed")

BURIN = Path(__file__).parents[2] / "models" / "burin"
JOBS = """
import os, signal, time
from pathlib import Path
from intaglio.gen.checkpoint.model import CheckpointError

class Job:
    def __init__(self, log):
        self.log = Path(log)

    def say(self, text):
        with open(self.log, "a") as file:
            file.write(text + "\\n")

    def work(self, number):
        self.say(f"begin {number} {os.getpid()}")
        time.sleep(0.3)
        self.say(f"end {number}")
        return number * number

    def refuse(self):
        raise CheckpointError("tensor x must be there")

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def wait(self):
        time.sleep(60)
"""


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A cluster of two worker processes, which know the jobs above."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "cluster_jobs.py").write_text(JOBS)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(folder)
    sys.path.insert(0, str(folder))
    import dask

    options = {"distributed.scheduler.allowed-failures": 1}
    with (
        dask.config.set(options),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", local_directory=str(folder)
        ) as found,
    ):
        yield found
    sys.path.remove(str(folder))
    os.environ.pop("PYTHONPATH") if before is None else os.environ.__setitem__("PYTHONPATH", before)


@pytest.fixture
def jobs(local, tmp_path):
    import cluster_jobs

    with Cluster(local.scheduler_address, cluster_jobs.Job, str(tmp_path / "log")) as found:
        found.log = tmp_path / "log"
        found.log.write_text("")
        yield found


def lines(jobs, word):
    return [line.split()[1:] for line in jobs.log.read_text().splitlines() if line.startswith(word)]


def test_a_worker_killed_in_mid_job(jobs):
    results, killed = [], None
    for key, result in jobs.run((n, "work", n) for n in range(12)):
        results.append((key, result))
        if killed is None:
            limit, before = time.monotonic() + 30, lines(jobs, "begin")
            while not (left := lines(jobs, "begin")[len(before) :]):  # one that has just begun
                assert time.monotonic() < limit
                time.sleep(0.001)
            killed, pid = left[0]
            os.kill(int(pid), signal.SIGKILL)
    assert sorted(results) == [(n, n * n) for n in range(12)]
    ends = sorted(int(number) for (number,) in lines(jobs, "end"))
    assert ends == list(range(12))  # none twice
    begins = sorted(int(number) for number, _ in lines(jobs, "begin"))
    assert begins == sorted([*range(12), int(killed)])
    assert jobs.peaks


def test_the_decoder_has_the_same_bytes(local, tmp_path, monkeypatch):
    monkeypatch.setattr(decoder, "_modules", lambda *_: {"intaglio_decoder": "module intaglio_decoder\nendmodule\n"})
    for out, where in (("here", {}), ("there", {"scheduler": local.scheduler_address})):
        generate(BURIN, "desk", tmp_path / out, **where)
    files = [path.relative_to(tmp_path / "here") for path in (tmp_path / "here").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert all((tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes() for name in files)


def test_what_a_task_raises(jobs, local):
    with pytest.raises(CheckpointError, match="tensor x must be there"):
        list(jobs.run([("a", "refuse")]))
    with pytest.raises(Error, match=r"a task must not end its worker \(killed, or out of memory\)"):
        list(jobs.run([("a", "die")]))
    jobs.sources = "other"
    with pytest.raises(Error, match="the workers of the cluster must have the same version of intaglio"):
        list(jobs.run([("a", "work", 1)]))
    assert list(jobs.run([])) == []


def test_waits_have_limits(jobs, local, monkeypatch):
    with pytest.raises(Error, match="must end within 0.3 s, and none of 2 did, the first one, on tcp://"):
        list(jobs.run([("one", "wait"), ("two", "wait")], 0.3))
    local.scale(0)
    limit = time.monotonic() + 60
    while jobs.client.nthreads():
        assert time.monotonic() < limit
        time.sleep(0.1)
    monkeypatch.setattr(cluster_module, "WORKERS_S", 0.5)
    with pytest.raises(Error, match="must have a worker within 0.5 s, and none has come"):
        Cluster(local.scheduler_address, int)
    with pytest.raises(Error, match="must have workers, and has had none for 0.5 s"):
        list(jobs.run([("a", "work", 1)]))
    local.scale(2)


def test_addresses(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster_module, "CONNECT_S", 1)
    command = ["gen", "banks", "--model", str(BURIN), "--layer", "0", "-o", str(tmp_path / "out"), "--scheduler"]
    for address, text in (
        ("localhost:8786", "the scheduler must be tcp://HOST:PORT, not 'localhost:8786'"),
        ("tcp://127.0.0.1:9", "a Dask scheduler must answer at tcp://127.0.0.1:9 within 1 s, and none did"),
    ):
        assert main([*command, address]) == 2
        error = capsys.readouterr().err
        assert text in error and error.count("intaglio: error") == 1
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main([*command, "tcp://127.0.0.1:9"]) == 2
    assert "a cluster needs the Python module distributed: pip install 'intaglio[cluster]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
