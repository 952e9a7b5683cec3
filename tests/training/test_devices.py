"""Several devices and processes compute the same as one device; one process writes, and all of them end together."""

import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, as_flags

import experiment
import train
from experiment import Config
from runtime.command import Parser
from runtime.errors import UserError
from training import devices, fit, processes

RUN = {"data_set": "digits", "network": "mlp", "latent_dim": 4, "prior": "vamp", "num_pseudo_inputs": 7, "epochs": 2}
RUN |= {"batch_size": 30, "max_train_images": 91, "lr": "1e-3", "track": "none"}  # the last batch has one image


GATHERED = """
from runtime import backend
backend.settle("jax")
backend.start()
import jax, keras, numpy as np
import models
from experiment import Config
from training import devices
keras.distribution.set_distribution(devices.DataParallel(auto_shard_dataset=False))
config = Config(model="hvae", network={network!r}, latent_dim=4, data_set="digits")
model = models.build(config, (8, 8, 1), from_data=np.zeros((500, 8, 8, 1), "float32"))
of_images = jax.sharding.PartitionSpec(None, "batch")
shared = jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(jax.devices()), ("batch",)), of_images)
compute = jax.jit(lambda z: (model.likelihood(z).logits, *model.p_z1(z[..., :2])), in_shardings=shared)
print(compute.lower(np.zeros((5, 6, 4), "float32")).compile().as_text())
"""


def words_of(**settings):
    """The words of a command that trains the run with these settings."""
    return as_flags(RUN | settings)


def trained(folder, distribute="none", **settings):
    """The Run that a process of its own trains on JAX, with three devices if it is to use them."""
    words = words_of(**settings, runs_dir=folder, distribute=distribute, backend="jax")
    done = run("train.py", *words, devices=3 if distribute == "devices" else 1)
    assert done.returncode == 0, done.stderr
    return experiment.load(done.stdout.splitlines()[-1])


def run(*words, devices=1):
    """A finished process of Python with these words and its text; JAX has that number of devices."""
    env = os.environ | {"KERAS_BACKEND": "jax", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def started(folder, port, index, **settings):
    """Process `index` of two that train the run on JAX, as a user starts it."""
    return process(port, index, *words_of(**settings, runs_dir=folder))


def process(port, index, *words):
    """Process `index` of two of train.py with these words, on JAX."""
    place = ["--process_address", f"127.0.0.1:{port}", "--num_processes", "2", "--process_index", str(index)]
    words = ["train.py", *words, "--distribute", "processes", "--backend", "jax", *place]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=os.environ | {"KERAS_BACKEND": "jax"}, **pipes)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def assert_same(run, other):
    """The two have the same history and best weights but for rounding."""
    for name in run.config.columns[:-1]:
        np.testing.assert_allclose(other.history[name], run.history[name], rtol=2e-4, err_msg=name)
    for one, two in zip(run.model.get_weights(), other.model.get_weights(), strict=True):
        np.testing.assert_allclose(two, one, atol=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run on JAX, on one device."""
    return trained(tmp_path_factory.mktemp("alone"))


@pytest.mark.slow
@pytest.mark.parametrize("network", [pytest.param("mlp", marks=pytest.mark.slow), "conv"])
def test_each_device_computes_its_own_images_of_several_samples(network):
    """Two devices, five samples of six images: no device is given those of the other."""
    done = run("-c", GATHERED.format(network=network), devices=2)
    assert done.returncode == 0, done.stderr
    assert "num_partitions=2" in done.stdout and "all-gather" not in done.stdout


@pytest.mark.slow
def test_several_devices_give_the_numbers_of_one_noise_included(alone, tmp_path):
    """Three devices, which divide neither the last batch nor the validation images."""
    run = trained(tmp_path, "devices")
    assert_same(alone, run)
    assert run.config.distribute == "devices" and run.name == alone.name


@pytest.mark.slow
def test_a_run_continues_on_another_number_of_devices(alone, tmp_path):
    """History and weights, and so the optimizer's variables, are those of a run on one device."""
    half = trained(tmp_path, epochs=1)
    words = ["--resume", str(half.path), "--epochs", "2", "--distribute", "devices"]
    done = run("train.py", *words, devices=3)
    assert done.returncode == 0, done.stderr
    assert_same(alone, experiment.load(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one_and_the_first_one_writes(alone, tmp_path):
    port = free_port()
    folders = [tmp_path / "first", tmp_path / "second"]
    both = [started(folder, port, index) for index, folder in enumerate(folders)]
    said = [one.communicate(timeout=500) for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert not folders[1].exists()
    assert_same(alone, experiment.load(said[0][0].splitlines()[-1]))


def wait_for(condition, processes, seconds=500):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and all(process.poll() is None for process in processes)
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_when_a_process_is_killed_the_other_ends_and_the_run_can_be_resumed(alone, tmp_path, killed):
    """The child process that trains is killed, not its guard. Two processes continue the run of the first case."""
    both = [started(tmp_path, port, index, epochs=2000) for port in [free_port()] for index in range(2)]
    path = tmp_path / alone.name.replace("epochs2", "epochs2000")
    wait_for((path / "history.csv").exists, both)  # which is written after the state
    os.kill(child_of(both[killed].pid), signal.SIGKILL)
    said = [one.communicate(timeout=processes.SILENT + 60)[1] for one in both]
    assert [one.returncode for one in both] == [1, 1]
    assert "error: the training process was ended by SIGKILL" in said[killed]
    assert "another process of this run has ended" in said[1 - killed]
    assert experiment.load(path).state == ("interrupted" if killed == 0 else "failed")
    if killed == 0:
        resumed(path)


@pytest.mark.slow
def test_all_processes_stop_after_the_same_step_if_one_is_asked(alone, tmp_path):
    both = [started(tmp_path, port, index, epochs=2000) for port in [free_port()] for index in range(2)]
    path = tmp_path / alone.name.replace("epochs2", "epochs2000")
    wait_for((path / "history.csv").exists, both)
    both[1].send_signal(signal.SIGTERM)
    said = [one.communicate(timeout=60) for one in both]
    assert [one.returncode for one in both] == [130, 130], said
    assert experiment.load(path).state == "stopped" and "resumes it" in said[0][0]
    resumed(path)


def child_of(pid):
    """The process below this one."""
    import psutil

    return psutil.Process(pid).children()[0].pid


def resumed(path):
    """Trains a run that has ended for two epochs more, in two processes, from where it was."""
    before = experiment.load(path).history["val_elbo"]
    words = ["--resume", str(path), "--epochs", str(len(before) + 2)]
    both = [process(port, index, *words) for port in [free_port()] for index in range(2)]
    said = [one.communicate(timeout=500) for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    after = experiment.load(said[0][0].splitlines()[-1]).history["val_elbo"]
    assert len(after) == len(before) + 2 and (after[: len(before)] == before).all()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--distribute", "processes", "--backend", "tensorflow"], "needs --backend jax"),
        (["--distribute", "devices", "--jobs", "2", "--gs_key", "key"], "--jobs 2 does not go with --distribute"),
        (["--num_processes", "2"], "--num_processes 2 goes with --distribute processes"),
    ],
)
def test_what_does_not_go_with_distribute_is_refused(words, expected):
    parser = Parser()
    train.add_arguments(parser)
    args = parser.parse_args(words)
    args.member = "processes" in words
    with pytest.raises(UserError, match=expected):
        train.run(args)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("one:12", 2, 2), "--process_index 2 must be less than --num_processes 2"),
        (("one:99999", 2, 0), "--process_address 'one:99999' must be HOST:PORT"),
        (("one", 2, 0), "must be HOST:PORT"),
        (("one:two", 2, 0), "must be HOST:PORT"),
    ],
)
def test_a_process_must_know_its_place(flags, expected):
    with pytest.raises(UserError, match=expected):
        processes.place(SimpleNamespace(**dict(zip(processes.VARIABLES, flags, strict=True))))


def test_the_place_of_a_process_is_read_from_variables(monkeypatch):
    nothing = SimpleNamespace(**dict.fromkeys(processes.VARIABLES))
    assert processes.place(nothing) == (None, None, None)  # JAX finds Slurm's
    for variable, value in zip(processes.VARIABLES.values(), ("one:12", "3", "2"), strict=True):
        monkeypatch.setenv(variable, value)
    assert processes.place(nothing) == ("one:12", 3, 2)
    monkeypatch.setenv("JAX_PROCESS_ID", "two")
    with pytest.raises(UserError, match="JAX_PROCESS_ID 'two' must be a whole number"):
        processes.place(nothing)


@pytest.fixture
def placed(monkeypatch):
    """Makes the Placement of one process of JAX, without JAX."""

    def make(config, count, processes=1, index=0):
        seen = SimpleNamespace(num_model_replicas=count, num_processes=processes, data_shard_id=index, scope=None)
        monkeypatch.setattr(devices, "DataParallel", lambda **_: seen)
        monkeypatch.setattr("keras.backend.backend", lambda: "jax")
        return devices.Placement(config)

    return make


@pytest.mark.parametrize(("n", "count", "processes"), [(30, 6, 2), (31, 6, 3), (1, 4, 4), (500, 8, 2)])
def test_the_processes_read_parts_of_equal_size_that_are_the_whole_batch(placed, n, count, processes):
    read, sizes = [], set()
    for index in range(processes):
        one = placed(Config(distribute="processes"), count, processes, index)
        part = np.arange(n).reshape(n, 1)[slice(*one.bounds(n))]
        numbers, padded = one.padded(part, n)
        read += list(part[:, 0])
        sizes.add(len(padded))
        assert len(numbers) == n
    assert read == list(range(n)) and len(sizes) == 1 and sizes.pop() * processes % count == 0


def test_a_batch_smaller_than_the_devices_is_refused(placed):
    with pytest.raises(UserError, match="--batch_size 2 must be at least 3, the number of devices of --distribute dev"):
        placed(Config(batch_size=2, distribute="devices"), 3)
    assert placed(Config(batch_size=3, distribute="devices"), 3).devices == 3


@pytest.mark.parametrize("kind", ["devices", "processes"])
def test_tensorflow_trains_on_one_device(tmp_path, kind):
    """It is refused before anything is written."""
    with pytest.raises(UserError, match=f"--distribute {kind} needs --backend jax"):
        fit.train(Config(data_set="digits", distribute=kind, runs_dir=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []
