"""What Keras runs on: which backend, which device, and what is said at its start."""

import gc
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, flags

import train
from runtime import backend
from runtime.backend import BACKENDS
from runtime.command import Parser
from runtime.errors import UserError
from runtime.memory import is_out_of_memory, memory


def told(code, *words, **environment):
    """What a fresh interpreter prints that runs this code with these words."""
    command, env = [sys.executable, "-c", code, *words], os.environ | environment
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, env=env).stdout


def test_an_unknown_or_missing_backend_is_a_sentence(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "nonsense")
    with pytest.raises(UserError, match="KERAS_BACKEND is 'nonsense'; choose from tensorflow, jax"):
        backend.settle(None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="backend jax is not installed: pip install jax"):
        backend.settle("jax")


def test_the_flag_goes_before_the_environment_and_tensorflow_is_the_default():
    code = "import os; from runtime import backend; backend.settle({}); print(os.environ['KERAS_BACKEND'])"
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}

    def settled(word, **more):
        command = [sys.executable, "-c", code.format(word)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment | more)
        return done.stdout.strip()

    assert settled(None) == "tensorflow"
    assert settled(None, KERAS_BACKEND="jax") == "jax"
    assert settled("'tensorflow'", KERAS_BACKEND="jax") == "tensorflow"


@pytest.mark.parametrize(
    ("device", "gpus", "dense", "installed", "expected"),
    [
        ("auto", ["0"], False, ("jax", "jax_plugins", "tensorflow"), "jax"),
        ("cpu", ["0"], False, ("jax", "jax_plugins", "tensorflow"), "tensorflow"),
        ("auto", [], False, ("jax", "jax_plugins", "tensorflow"), "tensorflow"),
        ("auto", ["0"], False, ("jax", "tensorflow"), "tensorflow"),
        ("auto", [], False, ("jax",), "jax"),
        ("cpu", [], True, ("jax", "tensorflow"), "jax"),
        ("auto", [], True, ("tensorflow",), "tensorflow"),
        ("auto", [], True, (), "jax"),
    ],
)
def test_auto_takes_jax_on_a_gpu_that_it_can_use_and_for_dense_networks(
    monkeypatch, device, gpus, dense, installed, expected
):
    monkeypatch.setattr(memory, "gpus", lambda: gpus)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in installed or None)
    assert backend.fastest(device, dense) == expected


@pytest.mark.parametrize(
    ("words", "dense"),
    [([], False), (["--network", "mlp"], True), (["--preset", "staticmnist_vae_vamp"], True),
     (["--network", "mlp", "conv", "--gs_key", "both"], False)],
)  # fmt: skip
def test_training_tells_whether_all_of_its_networks_are_dense(monkeypatch, words, dense):
    def settle(name, device, dense):
        raise UserError(str(dense))

    monkeypatch.setattr(backend, "settle", settle)
    parser = Parser()
    train.add_arguments(parser)
    with pytest.raises(UserError, match=str(dense)):
        train.run(parser.parse_args([*words, "--backend", "auto"]))


@pytest.mark.parametrize(
    ("version", "flags", "expected"),
    [
        ("0.10.2", None, "--xla_cpu_experimental_ynn_fusion_type=-INDIVIDUAL_CONVOLUTION"),
        ("0.10.2", "--a=1", "--a=1 --xla_cpu_experimental_ynn_fusion_type=-INDIVIDUAL_CONVOLUTION"),
        ("0.10.2", "--xla_cpu_experimental_ynn_fusion_type=", "--xla_cpu_experimental_ynn_fusion_type="),
        ("0.12.0.1", None, "--xla_cpu_experimental_ynn_fusion_type=-INDIVIDUAL_CONVOLUTION"),
        ("0.9.2", "--a=1", "--a=1"),
        ("0.13.0", "--a=1", "--a=1"),
    ],
)
def test_xla_has_a_flag_where_it_knows_it_and_the_user_has_not_set_it(monkeypatch, version, flags, expected):
    """It would end the process for a flag that it does not know."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("XLA_FLAGS", flags or "")
    for _ in range(2):
        backend._add_xla_flags(deterministic=False)
    assert os.environ["XLA_FLAGS"] == expected


def test_on_jax_tensorflow_is_not_imported(tmp_path):
    """It would take longer, and more memory, than all that a small run needs."""
    words = flags(epochs=1, runs_dir=tmp_path, backend="jax")
    code = "import sys, train; print(train.main(sys.argv[1:]), 'tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split()[-2:] == ["0", "False"], done.stderr


def test_an_import_that_fails_leaves_all_as_it_was(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    for name in ("keras", *backend.EXTRAS):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ImportError, match="halted"), backend.imported_lean():
        assert not gc.isenabled()
        import jax  # noqa: F401
    assert gc.isenabled() and not set(backend.EXTRAS) & set(sys.modules)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_script_imports_no_part_of_keras_that_it_does_not_use(backend):
    code = (
        f"import gc, sys; from runtime import backend; backend.settle({backend!r}); backend.start()\n"
        "print(*{*backend.EXTRAS, *backend.BACKENDS} & set(sys.modules), gc.isenabled())\n"
        "import jax, matplotlib.figure, sklearn.datasets"
    )
    assert told(code) == f"{backend} True\n"


def test_a_user_of_a_run_in_python_has_all_of_keras(tmp_path, script):
    done = script("train.py", *flags(epochs=1, runs_dir=tmp_path))
    assert done.returncode == 0, done.stderr
    code = (
        "import sys, experiment; experiment.load(sys.argv[1]).model\n"
        "import gc; assert gc.get_freeze_count() == 0\n"
        "import keras, numpy; keras.visualization.plot_image_gallery(numpy.zeros((1, 4, 4, 3)))\n"
        "print(keras.wrappers.SKLearnTransformer.__mro__)"
    )
    assert "sklearn.base.TransformerMixin" in told(code, done.stdout.splitlines()[-1])


@pytest.mark.keras
def test_the_backend_of_a_process_cannot_be_changed():
    backend.start()
    running = os.environ["KERAS_BACKEND"]
    backend.settle(running)
    wanted = next(name for name in backend.BACKENDS if name != running)
    with pytest.raises(UserError, match=f"Keras already runs on {running} in this process, not {wanted}"):
        backend.settle(wanted)


def test_settings_of_keras_own_file_and_variables_change_no_model(tmp_path):
    found = {"floatx": "float64", "epsilon": 0.5, "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps(found))
    code = (
        "from runtime import backend; backend.settle('tensorflow'); backend.start({}); import keras.config as k; print("
    )
    code += "k.image_data_format(), k.floatx(), k.epsilon(), k.max_epochs(), k.max_steps_per_epoch())"
    there = {"KERAS_HOME": str(tmp_path), "KERAS_MAX_EPOCHS": "1", "KERAS_MAX_STEPS_PER_EPOCH": "2"}
    assert told(code.format(""), **there) == "channels_last float32 1e-07 None None\n"
    assert told(code.format("whole=True"), **there) == "channels_first float64 0.5 1 2\n"  # a user's own


def test_a_setting_that_keras_refuses_is_a_sentence(script, tmp_path):
    (tmp_path / "keras.json").write_text('{"epsilon": 1}')
    done = script("train.py", *flags(runs_dir=tmp_path / "runs"), KERAS_HOME=str(tmp_path))
    assert done.returncode == 2 and not (tmp_path / "runs").exists()
    assert re.match("error: Keras cannot be imported: Invalid `epsilon` .* keras.json, in ~/.keras", done.stderr)


def test_channels_that_come_first_are_refused():
    import keras

    backend.check_images()
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(UserError, match=r"call keras.config.set_image_data_format\('channels_last'\)"):
            backend.check_images()
    finally:
        keras.config.set_image_data_format("channels_last")


def test_without_a_place_for_temporary_files_nothing_is_held_back(monkeypatch, capfd):
    def none():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.TemporaryFile", none)
    with backend.quiet():
        os.write(2, b"a note")
    assert capfd.readouterr().err == "a note"


@pytest.mark.parametrize("fails", [False, True])
def test_start_up_notes_are_shown_only_if_the_start_fails(tmp_path, fails):
    lines = ["import os", "os.write(2, b'a note from below')", "raise OSError('no driver')" if fails else ""]
    lines += ["class backend:", "    backend = staticmethod(lambda: 'tensorflow')"]
    lines += ["from unittest.mock import Mock", "config = Mock()"]
    (tmp_path / "keras.py").write_text("\n".join(lines))
    (tmp_path / "tensorflow.py").write_text("from unittest.mock import Mock\nconfig = Mock()")
    code = "import sys; from runtime import backend; backend.start(); print('after', file=sys.stderr)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert ("a note from below" in done.stderr) is fails and ("no driver" in done.stderr) is fails
    assert ("after" in done.stderr) is not fails and (done.returncode == 0) is not fails


@pytest.mark.parametrize(
    ("backend", "platform", "device", "expected"),
    [
        ("tensorflow", "", "gpu", "--device gpu: tensorflow sees no GPU here, only cpu; mend the driver"),
        ("jax", "", "gpu", "--device gpu: jax sees no GPU here, only cpu; mend the driver"),
        ("jax", "tpu", "auto", "JAX cannot use JAX_PLATFORMS=tpu: Unable to initialize backend 'tpu'"),
        ("jax", "cuda", "auto", "JAX cannot use JAX_PLATFORMS=cuda: "),
    ],
)
def test_a_device_that_is_asked_for_and_not_there_is_a_sentence(script, tmp_path, backend, platform, device, expected):
    hidden = {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": platform}
    words = flags(runs_dir=tmp_path / "runs", backend=backend, device=device)
    done = script("train.py", *words, **hidden)
    assert (done.returncode, done.stdout) == (2, "") and not (tmp_path / "runs").exists()
    assert done.stderr.startswith(f"error: {expected}") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_cpu_can_be_asked_for(backend):
    code = (
        f"import os; from runtime import backend; backend.settle({backend!r}, 'cpu')\n"
        "backend.start('cpu', True); import keras\n"
        "print(float(keras.ops.sum(keras.ops.ones(3))), os.environ['CUDA_VISIBLE_DEVICES'], end=' ')\n"
        "print(os.environ['JAX_PLATFORMS'])"
    )
    assert told(code) == "3.0 -1 cpu\n"


def test_what_is_said_of_memory_is_known():
    import tensorflow as tf

    with pytest.raises(tf.errors.ResourceExhaustedError) as raised:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[3]")
    errors = (raised.value, MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes."))
    assert all(map(is_out_of_memory, errors))
    assert not is_out_of_memory(ValueError("out of range"))


def test_memory_is_that_of_the_machine_or_its_container():
    import psutil

    assert 2**28 < memory() <= psutil.virtual_memory().total


@pytest.mark.skipif(os.environ["KERAS_BACKEND"] != "jax", reason="of JAX")
@pytest.mark.keras
@pytest.mark.parametrize("shape", [(), (5,), (4, 3), (5, 4, 3), [2, 3, 4, 5]])
@pytest.mark.parametrize("name", ["normal", "uniform", "truncated_normal"])
def test_noise_of_many_axes_is_drawn_as_a_vector_of_the_same_bits(name, shape):
    import jax
    import keras

    limits = (-2, 2) if name == "truncated_normal" else ()
    key = jax.numpy.array([3, 4], "uint32")
    expected = getattr(jax.random, name)(key, *limits, shape=tuple(shape), dtype="float32")
    drawn = getattr(keras.random, name)(shape, seed=key)
    assert drawn.shape == tuple(shape)
    np.testing.assert_allclose(drawn, expected, rtol=3e-7)
    operations = str(jax.make_jaxpr(lambda key: getattr(keras.random, name)(shape, seed=key))(key))
    (bits,) = re.findall(r"random_bits\[\s*bit_width=32\s*shape=\(([\d,\s]*)\)", operations)
    assert len(re.findall(r"\d+", bits)) == (1 if len(shape) > 2 else len(shape))


@pytest.mark.keras
def test_the_graphs_of_a_training_are_forgotten():
    """On TensorFlow a compiled step would leave its graph in a registry for good."""
    backend.start()
    import keras
    import numpy as np

    def trained():
        model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
        model.compile("adam", "mse")
        model.fit(np.zeros((4, 2)), np.zeros((4, 1)), verbose=0)

    def graphs():
        gc.collect()
        return sum(type(one).__name__ == "FuncGraph" for one in gc.get_objects())

    with backend.forgetting_graphs():
        trained()  # which also makes what stays, whoever trains
    before = graphs()
    for _ in range(2):
        with backend.forgetting_graphs():
            trained()
    assert graphs() == before
