"""Where a training runs: on one device, on several of this machine, or on those of several processes."""

import abc
import contextlib
import dataclasses
import math
import sys

import keras
import numpy as np

import models
from experiment import weights
from runtime import backend
from runtime.errors import RunError, UserError
from training import checkpoint, processes

MANY = 8  # steps in an execution; a request to stop is still heard soon


class Placement(abc.ABC):
    """What training asks of the `devices` that it runs on. The methods here suit one process.

    A process that `leads` writes the run's folder and shows its progress; one that `draws` can draw pictures.
    """

    devices = 1
    leads = True
    draws = True

    @abc.abstractmethod
    def scope(self):
        """A context for making a model, and for `fit`."""

    def steps_at_once(self, config):
        """The steps in an execution for `--steps_per_execution auto`."""
        return 1

    def bounds(self, n):
        """The images of a batch of n that this process reads: the first one's index, and that behind the last one."""
        return 0, n

    def padded(self, images, n):
        """What `fit` is given for the part of a batch of n images that `bounds` names."""
        return images

    def begin(self, config):
        """Tells the other processes to train a run of this Config."""
        return

    def done(self):
        """Notes that all processes have finished this run, or have stopped at the same step."""
        return

    def shared(self, state, model, dataset):
        """The first process's checkpoint.State or None, for every process; each has made the same model before."""
        return state

    def any_asked(self, asked):
        """Whether any process was asked to stop. All processes must call this at the same step."""
        return asked

    def reporting_lost_processes(self):
        """A context that raises RunError if another process has died."""
        return contextlib.nullcontext()


class OneDevice(Placement):
    """One device of one process."""

    def scope(self):
        """No context is needed."""
        return contextlib.nullcontext()

    def steps_at_once(self, config):
        """Several on a GPU and for dense networks, whose steps are as short as the work between two executions."""
        return MANY if models.NETWORKS[config.network].is_dense or backend.has_gpu() else 1


ONE_DEVICE = OneDevice()


class OnJax(Placement):
    """Keras' DataParallel on JAX: one program computes the whole batch, and each device has a part of it.

    The parts must be of equal size. If the devices do not divide a batch, zeros are added behind its images, which the
    program removes again (`models.base.without_padding`). So all numbers are those of one device, noise included,
    except for rounding. Raises UserError on TensorFlow, and if a batch has fewer images than there are devices.
    """

    def __init__(self, config):
        if keras.backend.backend() != "jax":
            raise UserError(f"--distribute {config.distribute} needs --backend jax")
        self.distribution = data_parallel()
        self.devices = self.distribution.num_model_replicas
        self.index, self.processes = self.distribution.data_shard_id, self.distribution.num_processes
        if config.batch_size < self.devices:
            raise UserError(
                f"--batch_size {config.batch_size} must be at least {self.devices}, the number of devices of "
                f"--distribute {config.distribute}"
            )

    def scope(self):
        """The distribution's."""
        return self.distribution.scope()

    def bounds(self, n):
        """As of Placement: a part of equal size for each process, as far as the images reach."""
        return tuple(min(n, self._part(n) * index) for index in (self.index, self.index + 1))

    def padded(self, images, n):
        """(ones (n,), images with zeros behind them): the ones tell n to `without_padding`."""
        missing = self._part(n) - len(images)
        return np.ones(n, np.float32), np.pad(images, [(0, missing)] + [(0, 0)] * (images.ndim - 1))

    def _part(self, n):
        return math.ceil(n / self.devices) * self.devices // self.processes


class Devices(OnJax):
    """All devices of this process."""


class Processes(OnJax):
    """All devices of all processes. Each process runs this program, and the first one leads."""

    draws = False  # a picture is a program of its own, which all processes would have to run

    def __init__(self, config):
        super().__init__(config)
        self.leads = processes.leads()

    def begin(self, config):
        """As of Placement; the others then call `fit.follow`."""
        if self.leads:
            processes.order({"config": dataclasses.asdict(config)})
        processes.busy(True)

    def done(self):
        """As of Placement."""
        processes.busy(False)

    def shared(self, state, model, dataset):
        """As of Placement. Raises UserError if the data of this process differ from those of the first one."""
        done = state and {name: getattr(state, name) for name in ("epoch", "step", "seconds", "rows")}
        about = processes.order({"data": dataset.sha256, "state": done})
        if about["data"] != dataset.sha256:
            raise UserError("the data files of this process differ from those of the first one; check its --data_dir")
        if about["state"] is None:
            return None
        own = state.values if self.leads else weights.values(checkpoint.variables(model))
        values = {name: np.asarray(value) for name, value in processes.broadcast(own).items()}
        return state or checkpoint.State(**about["state"], best={}, values=values)

    def any_asked(self, asked):
        """As of Placement."""
        return processes.any_of(asked)

    @contextlib.contextmanager
    def reporting_lost_processes(self):
        """As of Placement."""
        try:
            yield
        except Exception as error:
            if processes.is_loss(error):
                raise RunError(processes.LOST) from error
            raise


def data_parallel():
    """Keras' DataParallel over all devices of all processes; vectors stay whole on each device."""

    class DataParallel(keras.distribution.DataParallel):
        def get_data_layout(self, data_shape):
            if len(data_shape) > 1:
                return super().get_data_layout(data_shape)
            return keras.distribution.TensorLayout([None], self.device_mesh)

    return DataParallel(auto_shard_dataset=False)


def placement(config):
    """The Placement that --distribute asks for; with a note if there is only one device. Raises UserError as OnJax."""
    if config.distribute == "none":
        return ONE_DEVICE
    found = {"devices": Devices, "processes": Processes}[config.distribute](config)
    if found.devices == 1:
        print("note: --distribute: there is one device here, so it makes no difference", file=sys.stderr)
        return ONE_DEVICE if config.distribute == "devices" else found
    return found
