"""Where a training runs: on one device, on several of this machine, or on those of several processes."""

import contextlib
import math
import sys

import keras
import numpy as np

from runtime.errors import UserError


class OneDevice:
    """A training on one device. As `Devices`, it tells what each of the number of `devices` computes.

    `scope()` is a context for making a model and for `fit`; `bounds(n)` are the images of a batch of n that this
    process reads, the first one's index and that behind the last one; `padded(images, n)` is what `fit` is given for
    these.
    """

    devices = 1
    scope = staticmethod(contextlib.nullcontext)

    def bounds(self, n):
        return 0, n

    def padded(self, images, n):
        return images


ONE_DEVICE = OneDevice()


class DataParallel(keras.distribution.DataParallel):
    """Keras' DataParallel over all devices of all processes; vectors stay whole on each device."""

    def get_data_layout(self, data_shape):
        if len(data_shape) > 1:
            return super().get_data_layout(data_shape)
        return keras.distribution.TensorLayout([None], self.device_mesh)


class Devices:
    """A training on JAX on all devices of all processes: one program computes the whole batch, each device a part.

    The parts must be of equal size. If the devices do not divide a batch, zeros are added behind its images, which the
    program removes again (`models.base.without_padding`). So all numbers are those of one device, noise included,
    except for rounding. Raises UserError on TensorFlow, and if a batch has fewer images than there are devices.
    """

    def __init__(self, config):
        if keras.backend.backend() != "jax":
            raise UserError(f"--distribute {config.distribute} needs --backend jax")
        distribution = DataParallel(auto_shard_dataset=False)
        self.scope, self.devices = distribution.scope, distribution.num_model_replicas
        self.index, self.processes = distribution.data_shard_id, distribution.num_processes
        if config.batch_size < self.devices:
            least = f"{self.devices}, the number of devices of --distribute {config.distribute}"
            raise UserError(f"--batch_size {config.batch_size} must be at least {least}")

    def bounds(self, n):
        """A part of equal size for each process, as far as the images reach."""
        return tuple(min(n, self._part(n) * index) for index in (self.index, self.index + 1))

    def padded(self, images, n):
        """(ones (n,), images with zeros behind them): the ones tell n to `without_padding`."""
        missing = self._part(n) - len(images)
        return np.ones(n, np.float32), np.pad(images, [(0, missing)] + [(0, 0)] * (images.ndim - 1))

    def _part(self, n):
        return math.ceil(n / self.devices) * self.devices // self.processes


def placement(config):
    """OneDevice or Devices, as --distribute asks; with a note if there is only one. Raises UserError as Devices."""
    if config.distribute == "none":
        return ONE_DEVICE
    found = Devices(config)
    if found.devices == 1:
        print("note: --distribute: there is one device here, so it makes no difference", file=sys.stderr)
    return ONE_DEVICE if config.distribute == "devices" and found.devices == 1 else found
