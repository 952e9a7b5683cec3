"""Keras' backend: TensorFlow or JAX, on which device, with or without deterministic operations."""

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import sys
import tempfile
import warnings

from runtime.errors import UserError
from runtime.memory import gpus

BACKENDS = ("tensorflow", "jax")
DEVICES = ("auto", "cpu", "gpu")
IMAGES = "channels_last"
DEFAULTS = {"image_data_format": IMAGES, "floatx": "float32", "epsilon": 1e-7, "max_epochs": None}
DEFAULTS |= {"max_steps_per_epoch": None, "dtype_policy": "float32"}  # Keras' own
REPEATABLE_ON_GPU = "--xla_gpu_deterministic_ops=true"
BY_EIGEN = "--xla_cpu_experimental_ynn_fusion_type=-INDIVIDUAL_CONVOLUTION"  # YNN's convolutions round differently
KNOW_YNN = ("0.10.", "0.11.", "0.12.")  # jaxlib's versions with this flag; XLA ends a process with an unknown flag


def settle(name=None, device="auto", dense=False):
    """Chooses Keras' backend before Keras is imported, and hides GPUs for `device` "cpu".

    `name` is one of BACKENDS, or "auto" (see `fastest`, also for `dense`); without a name it is $KERAS_BACKEND, or
    tensorflow. Raises UserError if that backend is unknown or not installed, or if Keras already runs on another one.
    """
    if name == "auto":
        name = fastest(device, dense)
    name = name or os.environ.get("KERAS_BACKEND") or "tensorflow"
    if name not in BACKENDS:
        raise UserError(f"KERAS_BACKEND is {name!r}; choose from {', '.join(BACKENDS)}")
    if importlib.util.find_spec(name) is None:
        raise UserError(f"backend {name} is not installed: pip install {name}, or choose another with --backend")
    if "keras" in sys.modules and sys.modules["keras"].backend.backend() != name:
        raise UserError(f"Keras already runs on {sys.modules['keras'].backend.backend()} in this process, not {name}")
    os.environ["KERAS_BACKEND"] = name
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # else TensorFlow's start-up notes hide our own lines
    if device == "cpu":
        os.environ.update(CUDA_VISIBLE_DEVICES="-1", JAX_PLATFORMS="cpu")


def fastest(device="auto", dense=False):
    """The backend that `--backend auto` chooses: JAX on a GPU that it can use, and for dense networks; else TensorFlow.

    If the chosen one is not installed, it is the other one. `dense` says that all networks to be trained are dense. On
    CPUs, a training step takes JAX 1.5 to 1.7 times as long as TensorFlow with convolutional networks, and 0.6 to 1
    times as long with dense ones (see benchmarks/NOTES.md).
    """
    on_gpu = device != "cpu" and gpus() and importlib.util.find_spec("jax_plugins")
    wanted = "jax" if on_gpu or dense else "tensorflow"
    other = next(name for name in BACKENDS if name != wanted)
    return wanted if importlib.util.find_spec(wanted) or not importlib.util.find_spec(other) else other


def start(device="auto", deterministic=False, join=None, keep_settings=False):
    """Imports Keras and its backend. What they print on stderr meanwhile is shown only if the import fails.

    Matrix products have float32's precision: a GPU's TF32 would round factors to 10 bits, and shift log-densities by
    whole nats. With `deterministic`, operations give the same bits whenever they are repeated on this machine; this
    cannot be undone in this process. `join()` is called before the backend looks for its devices. Keras' settings are
    its defaults, unless `keep_settings` leaves those of the user's keras.json, as in a user's own process.
    Raises UserError if `device` is "gpu" and there is none, or if what the environment says cannot be used.
    """
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        if not os.environ.get(name, "0").isdecimal():  # a negative number would end the process
            del os.environ[name]
    # Keras' own under NumPy 2, which would end whoever is told to take warnings for errors
    warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy keyword", DeprecationWarning)
    os.environ["KERAS_NNX_ENABLED"] = "0"  # models are built without it, whatever another project has set
    speaks = _add_xla_flags(deterministic) and os.environ.get("KERAS_BACKEND") == "jax"  # else XLA ends in silence
    with contextlib.nullcontext() if speaks else quiet():
        try:
            with contextlib.nullcontext() if keep_settings or "keras" in sys.modules else _settings_of_nobody():
                import keras
        except (ValueError, TypeError, AttributeError) as error:
            mend = "unset the variable that says so, or correct keras.json, in ~/.keras or $KERAS_HOME"
            raise UserError(f"Keras cannot be imported: {error}; {mend}") from error
        if not keep_settings:
            _configure(keras, DEFAULTS)
        backend = keras.backend.backend()
        if backend == "jax":
            import jax

            jax.config.update("jax_default_matmul_precision", "float32")
        else:
            import tensorflow as tf

            logging.getLogger("tensorflow").setLevel("ERROR")  # else TensorFlow warns of tracing functions again
            tf.config.experimental.enable_tensor_float_32_execution(False)
            if deterministic:
                tf.config.experimental.enable_op_determinism()
        if join:
            join()
        kinds = _device_kinds(backend) if device == "gpu" or backend == "jax" else None
    if device == "gpu" and "gpu" not in kinds:
        mend = f"mend the driver, install {backend} with GPU support, or leave --device out"
        raise UserError(f"--device gpu: {backend} sees no GPU, only {', '.join(sorted(kinds))}; {mend}")


def seed(number):
    """Seeds the first weights of layers. On JAX, Keras imports TensorFlow for this, whose notes are not shown."""
    with quiet():
        sys.modules["keras"].utils.set_random_seed(number)


@contextlib.contextmanager
def _settings_of_nobody():
    """Keras, imported in this block, reads and writes no settings of the user's; nor does matplotlib in this process.

    Afterwards $KERAS_HOME is the user's again, where Keras keeps data sets, too.
    """
    home = {name: value for name, value in os.environ.items() if name == "KERAS_HOME"}
    # a device is no folder: there is no keras.json, nor can one be written; it is an empty file
    os.environ.update(KERAS_HOME=os.devnull, MATPLOTLIBRC=os.devnull, MPLBACKEND="agg")  # Keras imports matplotlib
    for name in ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH"):
        os.environ.pop(name, None)
    try:
        yield
    finally:
        del os.environ["KERAS_HOME"]
        os.environ.update(home)


def _add_xla_flags(deterministic):
    """Adds ours to $XLA_FLAGS, and returns those of the user."""
    flags = os.environ.get("XLA_FLAGS", "")
    wanted = [REPEATABLE_ON_GPU] if deterministic else []
    if importlib.util.find_spec("jaxlib") and importlib.metadata.version("jaxlib").startswith(KNOW_YNN):
        wanted += [BY_EIGEN] if "ynn_fusion_type" not in flags else []
    os.environ["XLA_FLAGS"] = " ".join([flags, *(flag for flag in wanted if flag not in flags)]).strip()
    return flags


def _configure(keras, settings):
    """Sets these settings of Keras, on which models depend, and which a user's keras.json or a variable may change."""
    for name, value in settings.items():
        getattr(keras.config, f"set_{name}")(value)


@contextlib.contextmanager
def borrowed(name=None, device="auto", dense=False, deterministic=False):
    """Keras with its default settings for the block, in a user's own process, to which its settings come back after it.

    The arguments are those of `settle` and `start`; Keras stays on the backend on which it runs there already.
    """
    running = "keras" in sys.modules and sys.modules["keras"].backend.backend()
    settle(running if running and name in (None, "auto") else name, device, dense)
    start(device, deterministic, keep_settings=True)
    keras = sys.modules["keras"]
    before = {setting: getattr(keras.config, setting)() for setting in DEFAULTS}
    _configure(keras, DEFAULTS)
    try:
        yield
    finally:
        _configure(keras, before)


def check_settings():
    """Raises UserError if the user's own process has set Keras to what no model here supports."""
    if (running := sys.modules["keras"].backend.backend()) not in BACKENDS:
        raise UserError(f"Keras runs on {running} in this process; start it with KERAS_BACKEND={' or '.join(BACKENDS)}")
    for name, needed in {"image_data_format": IMAGES, "floatx": "float32"}.items():
        if (found := getattr(sys.modules["keras"].config, name)()) != needed:
            raise UserError(f"Keras has {name} {found!r}; call keras.config.set_{name}({needed!r})")


def _device_kinds(backend):
    """The kinds of device that the backend sees, such as {"cpu"}. Raises UserError if $JAX_PLATFORMS cannot be used."""
    if backend == "jax":
        import jax

        try:
            return {device.platform for device in jax.devices()}
        except (RuntimeError, AssertionError) as error:  # the latter for cuda without a GPU
            reason = str(error).strip().split("\n")[0] or "there is no such device"
            asked = os.environ.get("JAX_PLATFORMS")
            raise UserError(f"JAX cannot use JAX_PLATFORMS={asked}: {reason}; unset it, or mend that device") from error
    import tensorflow as tf

    return {device.device_type.lower() for device in tf.config.list_physical_devices()}


@contextlib.contextmanager
def quiet():
    """Holds back what the block writes to stderr, and shows it only if the block raises an error other than UserError.

    Without a place for temporary files, or a stderr, nothing is held back.
    """
    with contextlib.ExitStack() as stack:
        screen = None
        with contextlib.suppress(OSError):
            notes = stack.enter_context(tempfile.TemporaryFile())
            if sys.stderr:
                sys.stderr.flush()
            screen = os.dup(2)
        if screen is None:
            yield
            return
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except UserError:
            raise
        except BaseException:
            notes.seek(0)
            os.write(screen, notes.read())
            raise
        finally:
            os.dup2(screen, 2)
            os.close(screen)


def has_gpu():
    """Whether Keras computes on a GPU."""
    return "gpu" in _device_kinds(sys.modules["keras"].backend.backend())
