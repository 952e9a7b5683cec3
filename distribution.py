"""How a training is spread over devices and machines: which part of a batch is whose, who writes, who stops when."""

import abc
import contextlib
import dataclasses
import math
import sys

import keras
import numpy as np

import checkpoint
import engine
import members
import models
import weights
from errors import RunError, UserError

MANY = 8  # steps in an execution, after which a request to stop is still heard soon


class Spread(abc.ABC):
    """What training asks of the devices that it runs on: `devices` of them, all of this process unless said so."""

    devices = 1
    leads = True  # whether this process writes the run's folder, and says how it gets on
    draws = True  # whether pictures can be drawn

    @abc.abstractmethod
    def scope(self):
        """A context for making a model, and for `fit`."""

    def check(self, config):
        """Raises UserError for settings with which the numbers would be others than those of one device."""
        if config.batch_size < self.devices:
            raise UserError(f"--batch_size {config.batch_size} is less than the {self.devices} devices of "
                            f"--distribute {config.distribute}; make it larger")  # fmt: skip

    def optimizer(self, optimizer):
        """The same optimizer, made to see the gradient of the whole batch."""
        return optimizer

    def jit(self, wanted):
        """What Keras is told of compiling by XLA."""
        return wanted

    def steps_at_once(self, config):
        """What --steps_per_execution auto is."""
        return 1

    def ready(self, model):
        """Changes a compiled model as `fit` needs it."""
        return

    def bounds(self, n):
        """Of n images of a batch, the first one that this process reads, and the one behind its last."""
        return 0, n

    def placed(self, images, n):
        """What `fit` is given for the part of n images that `bounds` names."""
        return images

    def begin(self, config):
        """Tells the other processes that a run of this Config is trained now."""
        return

    def done(self):
        """Notes that all processes have come to the end of this run, or to where it is stopped."""
        return

    def shared(self, state, model, dataset):
        """The checkpoint.State, or None, of the first process, where every process has made this model."""
        return state

    def agreed(self, asked):
        """Whether any process is asked to stop; all of them must come here in the same step."""
        return asked

    def saying_losses(self):
        """A context that raises RunError where another process has gone."""
        return contextlib.nullcontext()


class Alone(Spread):
    """One device of one process."""

    def scope(self):
        """Nothing."""
        return contextlib.nullcontext()

    def steps_at_once(self, config):
        """Several where steps are so short that a look between them counts: on a GPU, and of dense networks."""
        return MANY if models.NETWORKS[config.network].is_dense or engine.has_gpu() else 1


ALONE = Alone()


class Mirrored(Spread):
    """MirroredStrategy on TensorFlow: each device has the weights, and its part of the batch.

    Of n images the first ceil(n / devices) go to the first device, and so on; the last ones may have fewer, or none.
    """

    def __init__(self, names):
        import tensorflow as tf

        self.devices = len(names)
        with engine.quiet():
            self.strategy = tf.distribute.MirroredStrategy(names)

    def scope(self):
        """The strategy's."""
        return self.strategy.scope()

    def check(self, config):
        """Raises UserError as of Spread, and for what each device would do with its part of the batch alone."""
        import models

        super().check(config)
        what = {
            f"--network {config.network}": models.NETWORKS[config.network].normalises_batches,
            f"--precision {config.precision}": models.PRECISIONS[config.precision].scales_loss,
            f"--accumulate {config.accumulate}": config.accumulate > 1,
            f"--steps_per_execution {config.steps_per_execution}": config.steps_per_execution > 1,
            "--jit on": config.jit == "on",
        }
        for flag, is_given in what.items():
            if is_given:
                raise UserError(f"{flag} does not go with --distribute devices on TensorFlow; take --backend jax")

    def placed(self, images, n):
        """A copy: TensorFlow computes in place on the parts that it makes of an array, and would change the images."""
        return images.copy()

    def optimizer(self, optimizer):
        """The same optimizer, that adds up gradients of all devices first: Keras would clip those of each."""
        apply = optimizer.apply

        def apply_sums(grads, trainable_variables=None):
            import tensorflow as tf

            apply(tf.distribute.get_replica_context().all_reduce("SUM", list(grads)), trainable_variables)

        optimizer.apply, optimizer._all_reduce_sum_gradients = apply_sums, lambda pairs: pairs
        return optimizer

    def jit(self, wanted):
        """Never: sums over devices cannot be compiled."""
        return False

    def ready(self, model):
        """Keeps Keras from building the model, which is built, by a mean of parts of a batch, which differ in size."""
        model._maybe_symbolic_build = lambda **_: None


class OnJax(Spread):
    """Keras' DataParallel on JAX: one program on the whole batch, of which each device has a part.

    The parts are of equal size: where devices do not divide a batch, zeros stand behind its images, which the program
    leaves out again (models/replicas.py). All numbers, noise included, are those of one device but for rounding.
    """

    def __init__(self):
        self.distribution = data_parallel()
        self.devices = self.distribution.num_model_replicas
        self.number, self.processes = self.distribution.data_shard_id, self.distribution.num_processes

    def scope(self):
        """The distribution's."""
        return self.distribution.scope()

    def bounds(self, n):
        """As of Spread: a part of equal size for each process."""
        return tuple(min(n, self._part(n) * number) for number in (self.number, self.number + 1))

    def placed(self, images, n):
        """B numbers, and this process' images with zeros behind them."""
        missing = self._part(n) - len(images)
        padded = np.pad(images, [(0, missing)] + [(0, 0)] * (images.ndim - 1)) if missing else images
        return np.ones(n, np.float32), padded

    def _part(self, n):
        return math.ceil(n / self.devices) * self.devices // self.processes


class Devices(OnJax):
    """All devices of this process."""


class Processes(OnJax):
    """All devices of all processes, each of which runs this program; the first one leads."""

    draws = False  # a picture is a program of its own, which all processes would have to run

    def __init__(self):
        super().__init__()
        self.leads = members.leads()

    def begin(self, config):
        """As of Spread; what the others then do is `training.follow`."""
        if self.leads:
            members.order({"config": dataclasses.asdict(config)})
        members.busy(True)

    def done(self):
        """As of Spread."""
        members.busy(False)

    def shared(self, state, model, dataset):
        """As of Spread. Raises UserError where the data of this process are others than those of the first one."""
        done = state and {name: getattr(state, name) for name in ("epoch", "step", "seconds", "rows")}
        about = members.order({"data": dataset.sha256, "state": done})
        if about["data"] != dataset.sha256:
            raise UserError("the data files of this process are not those of the first one; mend its --data_dir")
        if about["state"] is None:
            return None
        own = state.values if self.leads else weights.values(checkpoint.variables(model))
        values = {name: np.asarray(value) for name, value in members.broadcast(own).items()}
        return state or checkpoint.State(**about["state"], best={}, values=values)

    def agreed(self, asked):
        """As of Spread."""
        return members.any_of(asked)

    @contextlib.contextmanager
    def saying_losses(self):
        """As of Spread."""
        try:
            yield
        except Exception as error:
            if members.is_loss(error):
                raise RunError(members.LOST) from error
            raise


def data_parallel():
    """Keras' DataParallel over all devices of all processes, for which vectors are not divided."""

    class DataParallel(keras.distribution.DataParallel):
        def get_data_layout(self, data_shape):
            if len(data_shape) > 1:
                return super().get_data_layout(data_shape)
            return keras.distribution.TensorLayout([None], self.device_mesh)

    return DataParallel(auto_shard_dataset=False)


def spread(config):
    """The Spread that the settings ask for; raises UserError where it does not go with them.

    Where there is one device only, says so.
    """
    if config.distribute == "none":
        return ALONE
    if config.distribute == "processes":
        found = Processes()
    elif keras.backend.backend() == "jax":
        found = Devices()
    else:
        import tensorflow as tf

        names = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        found = Mirrored([device.name for device in names])
    if found.devices == 1:
        print("note: --distribute: there is one device here, so it makes no difference", file=sys.stderr)
        return ALONE if config.distribute == "devices" else found
    found.check(config)
    return found
