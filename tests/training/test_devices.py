"""Several devices and processes compute what one device does; one process writes, and all of them end."""

import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

import experiment
import train
from experiment import Config
from runtime.command import Parser
from runtime.errors import UserError
from training import devices, processes
from training.devices import Devices

RUN = {"data_set": "digits", "network": "mlp", "latent_dim": 4, "prior": "vamp", "num_pseudo_inputs": 7, "epochs": 2}
RUN |= {"batch_size": 30, "max_train_images": 91, "lr": "1e-3", "track": "none"}  # the last batch has one image
ON_TENSORFLOW = """
import sys
import tensorflow as tf
devices = [tf.config.LogicalDeviceConfiguration()] * 3
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
import train
{before}
sys.exit(train.main())
"""
ON_JAX = "import sys, train; sys.exit(train.main())"
WITHOUT_NOISE = """
import keras
keras.random.normal = lambda shape, mean=0.0, stddev=1.0, dtype=None, seed=None: keras.ops.zeros(shape, dtype)
"""


GATHERED = """
import engine
engine.settle("jax")
engine.start()
import jax, keras, numpy as np
import distribution, models
from experiment import Config
keras.distribution.set_distribution(distribution.data_parallel())
config = Config(model="hvae", network={network!r}, latent_dim=4, data_set="digits")
model = models.build(config, (8, 8, 1), from_data=np.zeros((500, 8, 8, 1), "float32"))
of_images = jax.sharding.PartitionSpec(None, "batch")
shared = jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(jax.devices()), ("batch",)), of_images)
compute = jax.jit(lambda z: (model.likelihood(z).logits, *model.p_z1(z[..., :2])), in_shardings=shared)
print(compute.lower(np.zeros((5, 6, 4), "float32")).compile().as_text())
"""


def words_of(**settings):
    """The words of a command that trains the run with these settings."""
    return [word for name, value in (RUN | settings).items() for word in (f"--{name}", str(value))]


def trained(folder, backend, distribute="none", before="", **settings):
    """The Run that a process of its own trains, with three devices if it is to use them."""
    program = ON_TENSORFLOW.format(before=before) if backend == "tensorflow" else ON_JAX
    words = words_of(**settings, runs_dir=folder, distribute=distribute, backend=backend)
    done = run(backend, "-c", program, *words, devices=3 if distribute == "devices" else 1)
    assert done.returncode == 0, done.stderr
    return experiment.load(done.stdout.splitlines()[-1])


def run(backend, *words, devices=1):
    """A finished process of Python with these words, its text, where JAX has so many devices."""
    env = os.environ | {"KERAS_BACKEND": backend, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def started(folder, port, index, **settings):
    """Process `index` of two that train the run on JAX, as a user starts it."""
    return member(port, index, *words_of(**settings, runs_dir=folder))


def member(port, index, *words):
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
    return trained(tmp_path_factory.mktemp("alone"), "jax")


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_each_device_computes_its_own_images_of_several_samples(network):
    """Two devices, five samples of six images: no device is given those of the other."""
    done = run("jax", "-c", GATHERED.format(network=network), devices=2)
    assert done.returncode == 0, done.stderr
    assert "num_partitions=2" in done.stdout and "all-gather" not in done.stdout


def test_devices_on_jax_compute_what_one_does_noise_included(alone, tmp_path):
    """Three devices, which divide neither the last batch nor the validation images."""
    run = trained(tmp_path, "jax", "devices")
    assert_same(alone, run)
    assert run.config.distribute == "devices" and run.name == alone.name


def test_two_processes_compute_what_one_does_and_the_first_one_writes(alone, tmp_path):
    port = free_port()
    folders = [tmp_path / "first", tmp_path / "second"]
    both = [started(folder, port, index) for index, folder in enumerate(folders)]
    said = [process.communicate(timeout=500) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert not folders[1].exists()
    assert_same(alone, experiment.load(said[0][0].splitlines()[-1]))


def wait_for(condition, processes, seconds=500):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and all(process.poll() is None for process in processes)
        time.sleep(0.05)


@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_when_a_process_is_killed_the_other_ends_and_the_run_goes_on(alone, tmp_path, killed):
    """The member is killed, not its guard; two processes go on with the run."""
    both = [started(tmp_path, port, index, epochs=2000) for port in [free_port()] for index in range(2)]
    path = tmp_path / alone.name.replace("epochs2", "epochs2000")
    wait_for((path / "history.csv").exists, both)  # which is written behind the state
    os.kill(member_of(both[killed].pid), signal.SIGKILL)
    said = [process.communicate(timeout=processes.SILENT + 60)[1] for process in both]
    assert [process.returncode for process in both] == [1, 1]
    assert "error: this process was ended by SIGKILL" in said[killed]
    assert "another process of this run has gone" in said[1 - killed]
    assert experiment.load(path).state == ("interrupted" if killed == 0 else "failed")
    go_on(path)


def test_all_processes_stop_in_the_same_step_where_one_is_asked(alone, tmp_path):
    both = [started(tmp_path, port, index, epochs=2000) for port in [free_port()] for index in range(2)]
    path = tmp_path / alone.name.replace("epochs2", "epochs2000")
    wait_for((path / "history.csv").exists, both)
    both[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [130, 130], said
    assert experiment.load(path).state == "stopped" and "goes on" in said[0][0]
    go_on(path)


def member_of(pid):
    """The process below this one."""
    import psutil

    return psutil.Process(pid).children()[0].pid


def go_on(path):
    """Trains a run that has ended for two epochs more, in two processes, from where it was."""
    before = experiment.load(path).history["val_elbo"]
    words = ["--resume", str(path), "--epochs", str(len(before) + 2)]
    both = [member(port, index, *words) for port in [free_port()] for index in range(2)]
    said = [process.communicate(timeout=500) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    after = experiment.load(said[0][0].splitlines()[-1]).history["val_elbo"]
    assert len(after) == len(before) + 2 and (after[: len(before)] == before).all()


@pytest.mark.parametrize(
    "settings",
    [{}, pytest.param({"optimizer": "adamnormgrad", "objective": "amcvae", "num_steps": 1}, marks=pytest.mark.slow)],
)
def test_devices_on_tensorflow_compute_what_one_does_but_for_the_noise(tmp_path, settings):
    """Without noise, for each device draws its own; two of three devices have no image of the last batch."""
    settings |= {"before": WITHOUT_NOISE, "binarize": "threshold"}
    one, three = (trained(tmp_path / kind, "tensorflow", kind, **settings) for kind in ("none", "devices"))
    assert_same(one, three)


@pytest.mark.parametrize(
    ("first", "then"), [("none", "devices"), pytest.param("devices", "none", marks=pytest.mark.slow)]
)
def test_a_run_on_tensorflow_goes_on_with_another_number_of_devices(tmp_path, first, then):
    """Its history and weights, the optimizer's with them, are those of a run that changed nothing."""
    settings = {"before": WITHOUT_NOISE, "binarize": "threshold"}
    whole = trained(tmp_path / "whole", "tensorflow", **settings)
    half = trained(tmp_path / "half", "tensorflow", first, epochs=1, **settings)
    words = ["--resume", str(half.path), "--epochs", "2", "--distribute", then]
    program = ON_TENSORFLOW.format(before=WITHOUT_NOISE)
    done = run("tensorflow", "-c", program, *words)
    assert done.returncode == 0, done.stderr
    assert_same(whole, experiment.load(done.stdout.splitlines()[-1]))


def test_replicas_on_tensorflow_draw_different_noise_and_the_first_one_that_of_one_device():
    program = """
import tensorflow as tf
devices = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
import keras
import numpy as np
from models.replicas import Noise
alone = keras.random.normal((3,), seed=Noise(5))
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    noise = Noise(5)
draw = tf.function(lambda: strategy.run(lambda: keras.random.normal((3,), seed=noise)))
first, second = strategy.experimental_local_results(draw())
assert np.array_equal(first, alone) and not np.isclose(first, second).any()
"""
    done = run("tensorflow", "-c", program)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--distribute", "processes", "--backend", "tensorflow"], "needs --backend jax"),
        (["--distribute", "devices", "--jobs", "2", "--gs_key", "key"], "--distribute devices does not go with --jobs"),
        (["--num_processes", "2"], "--num_processes goes with --distribute processes"),
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


@pytest.mark.parametrize(("n", "devices", "processes"), [(30, 6, 2), (31, 6, 3), (1, 4, 4), (500, 8, 2)])
def test_each_process_reads_its_part_of_a_batch(n, devices, processes):
    """Together all of it, once, and the arrays are of the same size."""
    read, sizes = [], set()
    for number in range(processes):
        one = object.__new__(Devices)
        one.devices, one.processes, one.number = devices, processes, number
        part = np.arange(n).reshape(n, 1)[slice(*one.bounds(n))]
        numbers, placed = one.placed(part, n)
        read += list(part[:, 0])
        sizes.add(len(placed))
        assert len(numbers) == n
    assert read == list(range(n)) and len(sizes) == 1 and sizes.pop() * processes % devices == 0


def test_a_batch_smaller_than_the_devices_is_refused():
    one = object.__new__(devices.Devices)
    one.devices = 3
    with pytest.raises(UserError, match="--batch_size 2 is less than the 3 devices of --distribute devices"):
        one.check(Config(batch_size=2, distribute="devices"))
    one.check(Config(batch_size=3, distribute="devices"))
