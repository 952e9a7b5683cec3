"""The convolutional networks of the Monte Carlo VAE paper's code (Thin et al. 2021)."""

import math

import numpy as np
from keras import Sequential, backend, layers, ops

from .convolutions import Conv2D
from .networks import GaussianHead, Networks, as_one_batch, soft_bound

MAPS = (16, 32, 64, 64)  # of the encoder, at the image's size, its half, quarter and eighth


class DoubleConv(layers.Layer):
    """Maps (B, H, W, F) to (B, H, W, filters) by two convolutions, 3x3; the first one has `middle` filters.

    The input, with zeros for maps that it lacks, is added, unless it has more maps than the output.
    """

    def __init__(self, filters, activation, middle=None):
        super().__init__()
        self.filters = filters
        self.convs = [Conv2D(maps, 3, activation=activation) for maps in (middle or filters, filters)]

    def build(self, shape):
        self.convs[0].build(shape)
        self.convs[1].build((*shape[:-1], self.convs[0].filters))
        self.built = True

    def call(self, h):
        out = self.convs[1](self.convs[0](h))
        missing = self.filters - h.shape[-1]
        return out if missing < 0 else out + ops.pad(h, [(0, 0)] * 3 + [(0, missing)])


class Nearest(layers.Layer):
    """Maps (B, h, w, F) to those of size (H, W), each from the nearest above and to the left: row i from i h // H."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def call(self, h):
        for axis, (now, new) in enumerate(zip(h.shape[1:3], self.size, strict=True), 1):
            h = ops.take(h, np.arange(new) * now // new, axis=axis)  # ops.image.resize has no second derivative
        return h


class McvaeDecoder(layers.Layer):
    """Latents (..., D) to p(x|z): dense to (H // 8, W // 8, 64), three times `Nearest` and `DoubleConv`, and a 1x1.

    The sizes are 2 (H // 8), 4 (H // 8) and H. The middles of the double convolutions have half of their inputs' maps.
    """

    def __init__(self, latent_dim, image_shape, observation, activation):
        super().__init__()
        height, width, channels = image_shape
        eighth = (height // 8, width // 8)
        sizes = (*(tuple(factor * side for side in eighth) for factor in (2, 4)), (height, width))
        net, before = [layers.Input((latent_dim,)), layers.Dense(math.prod(eighth) * MAPS[-1])], MAPS[-1]
        net.append(layers.Reshape((*eighth, before)))
        for size, maps in zip(sizes, (32, 16, 16), strict=True):
            net += [Nearest(size), DoubleConv(maps, activation, before // 2)]
            before = maps
        out = layers.Conv2D(observation.outputs(channels), 1, dtype=backend.floatx())
        self.net, self.observation = Sequential([*net, out]), observation
        self.floats_per_sample = sum(math.prod(layer.output.shape[1:]) for layer in self.net.layers)
        self.built = True

    def call(self, z):
        return self.observation.of(as_one_batch(self.net, z), soft_bound)


class McvaeNetworks(Networks):
    """Those of a VAE for images of 8x8 pixels at least; without normalisation, and for any activation (there: gelu).

    Images are encoded by double convolutions to 16, 32, 64 and 64 maps, with max-pooling by 2 between them, and two
    linear maps to mean and log-variance.
    """

    normal = head = GaussianHead

    def __init__(self, image_shape, observation, size, activation, units):
        if min(image_shape[:2]) < 8:
            sides = "x".join(map(str, image_shape[:2]))
            raise ValueError(f"images of {sides} pixels do not fit --network mcvae: both sides must be 8 or more")
        self.image_shape, self.observation, self.activation = image_shape, observation, activation
        self.image_features = math.prod(side // 8 for side in image_shape[:2]) * MAPS[-1]

    def image_encoder(self, is_lower=False):
        net = [DoubleConv(MAPS[0], self.activation)]
        for maps in MAPS[1:]:
            net += [layers.MaxPooling2D(2), DoubleConv(maps, self.activation)]
        return Sequential([layers.Input(self.image_shape), *net, layers.Flatten()])

    def decoder(self, *parts):
        return McvaeDecoder(sum(parts), self.image_shape, self.observation, self.activation)
