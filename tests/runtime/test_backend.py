"""Keras' backend: which one, on which device, and what it prints when it starts."""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, flags

import train
from runtime import backend, progress
from runtime.command import Parser
from runtime.errors import UserError
from runtime.memory import is_out_of_memory, memory


def told(code, *words, **environment):
    """What a new interpreter prints that runs this code with these words."""
    command, env = [sys.executable, "-c", code, *words], os.environ | environment
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, env=env).stdout


def test_an_unknown_or_missing_backend_is_an_error_in_one_sentence(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "nonsense")
    with pytest.raises(UserError, match="KERAS_BACKEND is 'nonsense'; choose from tensorflow, jax"):
        backend.settle(None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="backend jax is not installed: pip install jax"):
        backend.settle("jax")


def test_the_flag_overrides_the_environment_and_tensorflow_is_the_default():
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
def test_auto_chooses_jax_on_a_gpu_that_it_can_use_and_for_dense_networks(
    monkeypatch, device, gpus, dense, installed, expected
):
    monkeypatch.setattr(backend, "gpus", lambda: gpus)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in installed or None)
    assert backend.fastest(device, dense) == expected


@pytest.mark.parametrize(
    ("words", "dense"),
    [([], False), (["--network", "mlp"], True), (["--preset", "staticmnist_vae_vamp"], True),
     (["--network", "mlp", "conv", "--gs_key", "both"], False)],
)  # fmt: skip
def test_training_tells_settle_whether_all_networks_are_dense(monkeypatch, words, dense):
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
def test_xla_gets_a_flag_that_it_knows_unless_the_user_has_set_it(monkeypatch, version, flags, expected):
    """XLA ends the process if it does not know a flag."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("XLA_FLAGS", flags or "")
    for _ in range(2):
        backend._add_xla_flags(deterministic=False)
    assert os.environ["XLA_FLAGS"] == expected


@pytest.mark.keras
def test_the_backend_of_a_process_cannot_be_changed():
    backend.start()
    running = os.environ["KERAS_BACKEND"]
    backend.settle(running)
    wanted = next(name for name in backend.BACKENDS if name != running)
    with pytest.raises(UserError, match=f"Keras already runs on {running} in this process, not {wanted}"):
        backend.settle(wanted)


def test_settings_of_the_users_keras_json_change_no_model(tmp_path):
    """In a user's own process, `keep_settings` keeps them."""
    found = {"floatx": "float64", "epsilon": 0.5, "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps(found))
    code = (
        "from runtime import backend; backend.settle('tensorflow')\n"
        "for keep in (True, False):\n"
        "    backend.start(keep_settings=keep); import keras.config as k\n"
        "    print(k.image_data_format(), k.floatx(), k.epsilon(), k.max_epochs(), k.max_steps_per_epoch())"
    )
    there = {"KERAS_HOME": str(tmp_path), "KERAS_MAX_EPOCHS": "1", "KERAS_MAX_STEPS_PER_EPOCH": "2"}
    assert told(code, **there) == "channels_first float64 0.5 1 2\nchannels_last float32 1e-07 None None\n"


def test_the_folder_in_which_keras_keeps_data_sets_stays_where_it_is(tmp_path):
    """So that training finds what `vampvae.py data --list` shows. In a user's own process, all variables stay."""
    code = (
        "import os; from data.files import keras_folder; from runtime import backend; backend.settle('tensorflow')\n"
        "for keep in {}:\n"
        "    backend.start(keep_settings=keep)\n"
        "    print(keras_folder(), os.environ['MPLBACKEND'])"
    )
    there = {"KERAS_HOME": str(tmp_path), "MPLBACKEND": "svg"}
    assert told(code.format("[True, False]"), **there) == f"{tmp_path}/datasets svg\n" * 2
    assert told(code.format("[False]"), **there) == f"{tmp_path}/datasets agg\n"


STARTED = (
    "from runtime import backend\nfrom runtime.errors import UserError\nbackend.settle('{}')\n"
    "try:\n    backend.start(keep_settings={})\n    import keras; print(keras.config.epsilon())\n"
    "except UserError as error:\n    print(error)"
)


@pytest.mark.parametrize(
    "content",
    [
        '{"epsilon": 1, "floatx": [], "nnx_enabled": true, "backend": 7}',
        pytest.param("[]", marks=pytest.mark.slow),
        pytest.param("{", marks=pytest.mark.slow),
    ],
)
def test_nothing_that_keras_refuses_ends_a_script(tmp_path, content):
    (tmp_path / "keras.json").write_text(content)
    there = {"KERAS_HOME": str(tmp_path), "KERAS_NNX_ENABLED": "1", "KERAS_MAX_EPOCHS": "x"}
    assert told(STARTED.format("tensorflow", False), **there) == "1e-07\n"
    assert (tmp_path / "keras.json").read_text() == content


@pytest.mark.parametrize(
    ("content", "said"), [('{"epsilon": 1}', "Invalid `epsilon`"), ("[]", "'list' object has no attribute 'get'")]
)
def test_what_keras_refuses_of_a_users_own_process_is_one_sentence(tmp_path, content, said):
    (tmp_path / "keras.json").write_text(content)
    found = told(STARTED.format("tensorflow", True), KERAS_HOME=str(tmp_path))
    assert re.match(f"Keras cannot be imported: {said}.*; unset the variable that says so, or correct keras", found)


def test_a_variable_that_jax_refuses_is_one_sentence():
    found = told(STARTED.format("jax", False), JAX_ENABLE_X64="rubbish")
    assert found.startswith("Keras cannot be imported: invalid truth value 'rubbish' for environment 'JAX_ENABLE_X64'")


@pytest.mark.slow
def test_numbers_of_threads_that_are_none_are_left_out_of_account():
    wrong = {"TF_NUM_INTRAOP_THREADS": "-3", "TF_NUM_INTEROP_THREADS": "x"}
    code = f"{STARTED}\nprint(keras.ops.ones((3, 3)).shape)".format("tensorflow", False)
    assert told(code, **wrong) == "1e-07\n(3, 3)\n"


def test_a_flag_that_ends_the_process_is_named(script):
    """By XLA, which does not raise an exception: what it prints must not be held back."""
    done = script("-c", STARTED.format("jax", False), XLA_FLAGS="--rubbish")
    assert done.returncode and "Unknown flag in XLA_FLAGS: --rubbish" in done.stderr


@pytest.mark.parametrize(
    ("name", "other", "needed"),
    [("image_data_format", "channels_first", "channels_last"), ("floatx", "float16", "float32")],
)
def test_settings_that_no_model_supports_are_refused(monkeypatch, name, other, needed):
    import keras

    backend.check_settings()
    with monkeypatch.context() as patch, pytest.raises(UserError, match="Keras runs on torch in this process"):
        patch.setattr(keras.backend, "backend", lambda: "torch")
        backend.check_settings()
    set_to = getattr(keras.config, f"set_{name}")
    set_to(other)
    try:
        with pytest.raises(UserError, match=rf"call keras.config.set_{name}\('{needed}'\)"):
            backend.check_settings()
    finally:
        set_to(needed)


def test_without_a_place_for_temporary_files_stderr_is_not_held_back(monkeypatch, capfd):
    def none():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.TemporaryFile", none)
    with backend.quiet():
        os.write(2, b"a note")
    assert capfd.readouterr().err == "a note"


def test_no_stderr_is_needed(monkeypatch, capfd):
    """A server, or a program without a console, has none."""
    monkeypatch.setattr(sys, "stderr", None)
    with backend.quiet():
        os.write(2, b"a note")
    monkeypatch.setattr(progress, "EVERY", 1e-9)
    assert sum(progress.Progress(iterable=range(3))) == 3
    assert capfd.readouterr() == ("", "")


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
        ("tensorflow", "", "gpu", "--device gpu: tensorflow sees no GPU, only cpu; mend the driver"),
        pytest.param("jax", "", "gpu", "--device gpu: jax sees no GPU, only cpu; mend", marks=pytest.mark.slow),
        pytest.param("jax", "tpu", "auto", "JAX cannot use JAX_PLATFORMS=tpu: Unable to", marks=pytest.mark.slow),
        ("jax", "cuda", "auto", "JAX cannot use JAX_PLATFORMS=cuda: "),
    ],
)
def test_a_device_that_does_not_exist_is_an_error_in_one_sentence(
    script, tmp_path, backend, platform, device, expected
):
    hidden = {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": platform}
    words = flags(runs_dir=tmp_path / "runs", backend=backend, device=device)
    done = script("train.py", *words, **hidden)
    assert (done.returncode, done.stdout) == (2, "") and not (tmp_path / "runs").exists()
    assert done.stderr.startswith(f"error: {expected}") and done.stderr.count("\n") == 1


def test_device_cpu_hides_gpus_from_both_backends():
    code = (
        "import os; from runtime import backend; backend.settle('jax', 'cpu'); backend.start('cpu', True)\n"
        "import jax; print({device.platform for device in jax.devices()}, os.environ['CUDA_VISIBLE_DEVICES'])"
    )
    assert told(code) == "{'cpu'} -1\n"


def test_errors_that_mean_out_of_memory_are_recognised():
    import tensorflow as tf

    with pytest.raises(tf.errors.ResourceExhaustedError) as raised:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[3]")
    of_jax = ("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.", "INTERNAL: Out of memory allocating 1 bytes.")
    assert all(map(is_out_of_memory, (raised.value, MemoryError(), *map(RuntimeError, of_jax))))
    assert not is_out_of_memory(ValueError("out of range"))


def test_memory_is_that_of_the_machine_or_its_container(monkeypatch):
    import psutil

    assert 2**28 < memory() <= psutil.virtual_memory().total
    for share, expected in (("1000", 1000), ("rubbish", memory())):
        monkeypatch.setenv("VAMPVAE_MEMORY", share)
        assert memory() == expected


@pytest.mark.keras
def test_float32_products_are_not_rounded_on_a_gpu():
    """As TF32 would round factors to 10 bits."""
    backend.start()
    if os.environ["KERAS_BACKEND"] == "jax":
        import jax

        assert jax.config.jax_default_matmul_precision == "float32"
    else:
        import tensorflow as tf

        assert not tf.config.experimental.tensor_float_32_execution_enabled()
