"""What Keras runs on: TensorFlow or JAX, on which device, with or without deterministic operations."""

import contextlib
import functools
import gc
import importlib
import importlib.metadata
import importlib.util
import logging
import math
import os
import random
import sys
import tempfile

import numpy as np

from runtime.errors import UserError
from runtime.memory import gpus

BACKENDS = ("tensorflow", "jax")
DEVICES = ("auto", "cpu", "gpu")
IMAGES = "channels_last"
REPEATABLE_ON_GPU = "--xla_gpu_deterministic_ops=true"
BY_EIGEN = "--xla_cpu_experimental_ynn_fusion_type=-INDIVIDUAL_CONVOLUTION"  # YNN is slower at convolutions
KNOW_YNN = ("0.10.", "0.11.", "0.12.")  # of jaxlib: XLA ends a process that has a flag which it does not know
EXTRAS = ("sklearn", "matplotlib", "jax")  # what Keras and TensorFlow import for parts of them that are not used here


def settle(name=None, device="auto", dense=False):
    """Chooses what Keras runs on, before it is imported, and hides GPUs for `device` "cpu".

    `name`: one of BACKENDS, or auto (see `fastest`, also for `dense`), else $KERAS_BACKEND, else tensorflow. Raises
    UserError if that is not installed.
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
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # else start-up notes hide our own lines
    if device == "cpu":
        os.environ.update(CUDA_VISIBLE_DEVICES="-1", JAX_PLATFORMS="cpu")


def fastest(device="auto", dense=False):
    """The backend that `--backend auto` takes, if it is installed: JAX on a GPU that it can use, else TensorFlow.

    On CPUs, a training step of convolutions takes JAX 1.5 to 1.7 times as long, and one of networks that are `dense`,
    as all that will be trained are, 0.6 to 1 times: these go to JAX (see benchmarks/NOTES.md).
    """
    on_gpu = device != "cpu" and gpus() and importlib.util.find_spec("jax_plugins")
    wanted = "jax" if on_gpu or dense else "tensorflow"
    other = next(name for name in BACKENDS if name != wanted)
    return wanted if importlib.util.find_spec(wanted) or not importlib.util.find_spec(other) else other


def start(device="auto", deterministic=False, join=None, whole=False):
    """Imports Keras and its backend, whose start-up notes on stderr are shown only if that fails.

    Products of matrices are true to float32: a GPU's TF32 rounds them to 10 bits, log-densities by whole nats.
    `deterministic`: operations give the same bits whenever they are repeated on this machine; for good, in this
    process. `join()` is called before the backend looks for its devices. `whole`: without `imported_lean`, in a process
    that is a user's own. Raises UserError if there is no GPU where `device` is "gpu", or none of what $JAX_PLATFORMS
    names.
    """
    _add_xla_flags(deterministic)
    with quiet():
        with contextlib.nullcontext() if whole else imported_lean():
            keras = _keras()
        if not whole:
            _forget_file(keras)
        backend = keras.backend.backend()
        if backend == "jax":
            import jax

            jax.config.update("jax_default_matmul_precision", "float32")
        else:
            import tensorflow as tf

            logging.getLogger("tensorflow").setLevel("ERROR")  # else each run of a grid is warned of retracing
            tf.config.experimental.enable_tensor_float_32_execution(False)
            if deterministic:
                tf.config.experimental.enable_op_determinism()
        if join:
            join()
        kinds = _device_kinds(backend) if device == "gpu" or backend == "jax" else None
        if backend == "jax" and not whole and kinds == {"cpu"}:
            _draw_vectors()
    if device == "gpu" and "gpu" not in kinds:
        raise UserError(
            f"--device gpu: {backend} sees no GPU here, only {', '.join(sorted(kinds))}; mend the driver, install "
            f"{backend} with GPU support, or leave --device out"
        )


def _keras():
    """The module. Raises UserError where Keras finds a setting of its own that it refuses."""
    try:
        return importlib.import_module("keras")
    except ValueError as error:
        raise UserError(f"Keras cannot be imported: {error} Look into its keras.json, in ~/.keras.") from error


def _forget_file(keras):
    """Sets what models and their numbers depend on to Keras' defaults, whatever the user's keras.json has for others.

    Networks for images whose channels come first would be others, of the same name.
    """
    keras.config.set_image_data_format(IMAGES)
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_max_epochs(None)
    keras.config.set_max_steps_per_epoch(None)


def _draw_vectors():
    """Has Keras on JAX draw normal and uniform noise of three or more axes as a vector, then given its shape.

    It is of the same random bits, so that values are the same but for rounding. On a CPU, XLA's compiler takes 0.7 s
    for four axes and 0.2 s for one or two: seconds for the first weights alone.
    """
    from keras.src.backend import random as of_backend  # what all of Keras draws by; it has no public name

    for name in ("normal", "uniform", "truncated_normal"):
        draw = getattr(of_backend, name)
        if not isinstance(draw, functools.partial):  # by an earlier start in this process
            setattr(of_backend, name, functools.partial(_as_vector, draw))


def _as_vector(draw, shape, *scalars, **more):
    """What `draw`, of Keras' backend, draws of this shape, more than two axes as one."""
    if len(shape) <= 2:
        return draw(shape, *scalars, **more)
    return draw((math.prod(shape),), *scalars, **more).reshape(shape)


def check_images():
    """Raises UserError where the user's own process has told Keras that channels come first, as in no model here."""
    if (found := sys.modules["keras"].config.image_data_format()) != IMAGES:
        raise UserError(f"Keras has image_data_format {found!r}; call keras.config.set_image_data_format({IMAGES!r})")


def _add_xla_flags(deterministic):
    flags = os.environ.get("XLA_FLAGS", "")
    wanted = [REPEATABLE_ON_GPU] if deterministic else []
    if importlib.util.find_spec("jaxlib") and importlib.metadata.version("jaxlib").startswith(KNOW_YNN):
        wanted += [BY_EIGEN] if "ynn_fusion_type" not in flags else []
    os.environ["XLA_FLAGS"] = " ".join([flags, *(flag for flag in wanted if flag not in flags)]).strip()


def seed(number):
    """Seeds what layers draw their first weights from.

    On JAX `keras.utils.set_random_seed` would import TensorFlow, where it is installed: two seconds and 450 MiB.
    """
    if (keras := sys.modules["keras"]).backend.backend() == "tensorflow":
        keras.utils.set_random_seed(number)
    else:
        random.seed(number)
        np.random.seed(number)


def _device_kinds(backend):
    """The kinds of device that the backend sees, as {"cpu"}. Raises UserError where it cannot use what it is to use."""
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
def imported_lean():
    """Makes imports in the block faster, and what they leave in memory less, where Keras was not imported before.

    Keras and TensorFlow find none of EXTRAS there, nor would other threads; they are imported where they are used, if
    ever: a second and 190 MiB. Nor does Python look for garbage, then or later, among all that is there by its end,
    which is modules for good: 0.6 seconds.
    """
    if "keras" in sys.modules:
        yield
        return
    backend, collected = os.environ.get("KERAS_BACKEND"), gc.isenabled()
    hidden = [name for name in EXTRAS if name not in sys.modules and backend not in (None, name)]
    try:
        sys.modules.update(dict.fromkeys(hidden))  # None: an import of it fails
        gc.disable()
        yield
        gc.freeze()
    finally:
        for name in hidden:
            if sys.modules.get(name, name) is None:
                del sys.modules[name]
        if collected:
            gc.enable()


@contextlib.contextmanager
def quiet():
    """Holds back what the block writes to stderr, unless it fails for a reason of its own, or no file can be made."""
    with contextlib.ExitStack() as stack:
        notes = None
        with contextlib.suppress(OSError):
            notes = stack.enter_context(tempfile.TemporaryFile())
        if notes is None:
            yield
            return
        sys.stderr.flush()
        screen = os.dup(2)
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


@contextlib.contextmanager
def forgetting_graphs():
    """Lets TensorFlow forget the gradients that are traced in the block, or the function that this decorates.

    It registers what a custom gradient closes over for good. Optimizers sum gradients over replicas through one, the
    Bernoulli likelihood and thin convolutions have their own, so each compiled function would keep its graph, for a
    training step some 20 MiB, and a grid of runs would grow by that with each.
    """
    ops = sys.modules.get("tensorflow.python.framework.ops")
    registered = getattr(getattr(ops, "gradient_registry", None), "_registry", {})  # no public way leads there
    before = set(registered)
    try:
        yield
    finally:
        for name in set(registered) - before:
            del registered[name]


def has_gpu():
    """Whether Keras computes on a GPU."""
    return "gpu" in _device_kinds(sys.modules["keras"].backend.backend())
