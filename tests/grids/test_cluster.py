"""A grid on a Ray cluster of two nodes, one of which is lost; and what is refused. `make test-cluster` runs it."""

import contextlib
import os
import signal
import socket
import threading
import time

import pytest
from conftest import ROOT, flags

import experiment
import train
from grids import cluster, workers
from runtime.command import STOPPED

pytest.importorskip("ray", reason="Ray is not installed; make test-cluster tests grids on a cluster")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """A cluster with a head, which has no CPUs, and two nodes of one CPU each, started in another folder than this."""
    from ray.cluster_utils import Cluster

    with contextlib.chdir(tmp_path_factory.mktemp("nodes")):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        cluster.workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def words(tmp_path, cluster, *more):
    given = flags(runs_dir=tmp_path, gs_key="key", network="mlp", epochs=40, save_minutes=0.001)
    del given[given.index("--network_size") : given.index("--network_size") + 2]
    return [*given, "--seed", "0", "1", "--cluster", cluster.address, *more]


def test_what_no_node_has_is_refused(tmp_path, nodes, capfd):
    assert train.main([*words(tmp_path, nodes, "--gpus_per_run", "1")]) == 2
    assert "no node has 1 CPUs and 1 GPUs for a run" in capfd.readouterr().err
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
        assert train.main([*words(tmp_path, nodes), "--cluster", nobody]) == 2
    assert f"--cluster {nobody}: " in (said := capfd.readouterr().err) and "ray start --head" in said


def test_a_lost_node_costs_no_run(tmp_path, nodes, script):
    """One run goes on on the other node, from its last state, when that has trained its own.

    The folder of the runs is relative to where the command is given.
    """

    def lose():
        while len(list(tmp_path.glob("key/*/history.csv"))) < 2:
            time.sleep(0.1)
        nodes.remove_node(nodes.workers.pop(), allow_graceful=False)

    losing = threading.Thread(target=lose, daemon=True)
    losing.start()
    done = script("train.py", *words(os.path.relpath(tmp_path, ROOT), nodes))
    losing.join(timeout=10)
    assert done.returncode == 0 and "[2/2 ended]" in done.stdout
    runs = [experiment.load(path.parent) for path in tmp_path.glob("key/*/config.json")]
    assert [(run.state, len(run.history["epoch"])) for run in runs] == [("finished", 40)] * 2
    logs = [path.read_text() for path in tmp_path.glob("key/logs/*.log")]
    assert sorted("resuming" in log for log in logs) == [False, True]


def test_what_a_node_cannot_run_is_told_in_the_log_of_the_run(tmp_path, nodes):
    import ray

    def is_missing():
        raise FileNotFoundError("no such checkout")

    def is_lost():
        os.kill(os.getpid(), signal.SIGKILL)

    ray.init(address=nodes.address, log_to_driver=False)
    try:
        for number, (function, said) in enumerate({is_missing: "no such checkout", is_lost: "worker"}.items()):
            log = tmp_path / f"{number}.log"
            task = cluster.Task(ray, ray.remote(num_cpus=1, max_retries=0)(function).remote(), log)
            task.wait()
            assert task.code == 1 and said in workers.note_of(None, task.code, log)
        task = cluster.Task(ray, ray.remote(num_cpus=1)(lambda: time.sleep(600)).remote(), tmp_path / "stopped.log")
        task.terminate()
        task.wait()
        assert task.code == STOPPED and not task.log.exists()
    finally:
        ray.shutdown()
