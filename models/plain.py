"""Plain dense networks, such as those of the IWAE paper (Burda et al. 2016): one activation, and no gates."""

import math
from functools import partial

from keras import Sequential, backend, layers, ops

from .networks import DenseStack, GaussianHead, Networks, as_one_batch, built, soft_bound


class PlainDecoder(layers.Layer):
    """Latents (..., D) to p(x|z): hidden layers of these `units`, made by `dense`, and a linear one."""

    def __init__(self, latent_dim, image_shape, observation, units, dense):
        super().__init__()
        self.observation, self.maps_shape = observation, (*image_shape[:2], observation.outputs(image_shape[2]))
        self.stack = DenseStack(latent_dim, units, dense)
        self.out = built(layers.Dense(math.prod(self.maps_shape), dtype=backend.floatx()), units[-1])
        self.floats_per_sample = sum(units) + math.prod(self.maps_shape)
        self.built = True

    def call(self, z):
        maps = as_one_batch(lambda flat: self.out(self.stack(flat)), z)
        return self.observation.of(ops.reshape(maps, (*ops.shape(z)[:-1], *self.maps_shape)), soft_bound)

    def start_at(self, mean):
        """Sets the last biases so that p(x|z) has this mean (H, W, C), were it not for the last kernel."""
        self.out.bias.assign(self.observation.maps_of(mean).reshape(-1))


class PlainNetworks(Networks):
    """Dense layers of these `units` from images to latents, in reverse on the way back; None is the paper's 200, 200.

    In q(z1|x, z2), the last of several is behind a concatenation of what the others make of x and a layer makes of z2.
    Weights begin as in the paper (Glorot & Bengio 2010), and so do the biases of the output: with them, an image begins
    as the mean of the training images. That is no setting, as beginning with a grey image has no use of its own.
    """

    normal = head = GaussianHead

    def __init__(self, image_shape, observation, size, activation, units):
        self.image_shape, self.observation = image_shape, observation
        self.dense = partial(layers.Dense, activation=activation)
        self.units = units or (200, 200)
        self.lower_units, self.prior_units = self.units[:-1] or self.units, self.units[::-1]
        self.image_features = self.joint_features = self.units[-1]
        self.lower_features, self.latent_units = self.lower_units[-1], self.lower_units[-1:]

    def image_encoder(self, is_lower=False):
        dense = map(self.dense, self.lower_units if is_lower else self.units)
        return Sequential([layers.Input(self.image_shape), layers.Flatten(), *dense])

    def decoder(self, *parts):
        return PlainDecoder(sum(parts), self.image_shape, self.observation, self.units[::-1], self.dense)
