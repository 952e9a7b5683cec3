"""Where a training runs: on one device, on several of this machine, or on those of several processes."""

import contextlib
import math
import sys

import keras
import numpy as np

from runtime.errors import UserError


class DataParallel(keras.distribution.DataParallel):
    """Keras' DataParallel over all devices of all processes; vectors stay whole on each device."""

    def get_data_layout(self, data_shape):
        if len(data_shape) > 1:
            return super().get_data_layout(data_shape)
        return keras.distribution.TensorLayout([None], self.device_mesh)


class Placement:
    """The devices of a training, and the part of each batch that this process reads; one device without a Config.

    With --distribute, one program on JAX computes the whole batch, and each device has a part of it. The parts must be
    of equal size. If the devices do not divide a batch, zeros are added behind its images, which the program removes
    again (`models.base.without_padding`). So all numbers are those of one device, noise included, except for rounding.
    Raises UserError on TensorFlow, and if a batch has fewer images than there are devices.
    """

    def __init__(self, config=None):
        self.devices, self.processes, self.index, self.is_distributed = 1, 1, 0, False
        self.scope = contextlib.nullcontext  # for making a model, and for `fit`
        if config is None or config.distribute == "none":
            return
        if keras.backend.backend() != "jax":
            raise UserError(f"--distribute {config.distribute} needs --backend jax")
        distribution = DataParallel(auto_shard_dataset=False)
        self.devices, self.processes = distribution.num_model_replicas, distribution.num_processes
        if config.batch_size < self.devices:
            least = f"{self.devices}, the number of devices of --distribute {config.distribute}"
            raise UserError(f"--batch_size {config.batch_size} must be at least {least}")
        if self.devices == 1:
            print("note: --distribute: there is one device here, so it makes no difference", file=sys.stderr)
        self.is_distributed = self.devices > 1 or config.distribute == "processes"
        if self.is_distributed:
            self.index, self.scope = distribution.data_shard_id, distribution.scope

    def bounds(self, n):
        """The images of a batch of n that this process reads: the first one's index, and that behind the last one."""
        return tuple(min(n, self._part(n) * index) for index in (self.index, self.index + 1))

    def padded(self, images, n):
        """What `fit` is given for these images of n: with --distribute, (ones (n,), images with zeros behind them).

        The ones tell n to `without_padding`.
        """
        if not self.is_distributed:
            return images
        missing = self._part(n) - len(images)
        return np.ones(n, np.float32), np.pad(images, [(0, missing)] + [(0, 0)] * (images.ndim - 1))

    def _part(self, n):
        return math.ceil(n / self.devices) * self.devices // self.processes


ONE_DEVICE = Placement()
