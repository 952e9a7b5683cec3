"""The autoregressive decoder of the paper's PixelHVAE: masked convolutions over an image and what latents say of it."""

from functools import partial

import numpy as np
from keras import Sequential, backend, layers, ops

from .networks import GatedConvNetworks, LatentStacks, hard_clip
from .pixels import Autoregressive

FILTERS, KERNEL, DEPTH = 64, 3, 8


class MaskedConv2D(layers.Layer):
    """A convolution in which a pixel sees those before it in raster order, and itself if `sees_itself`.

    (van den Oord et al. 2016, section 3.4: masks A, without itself, and B.) Maps (B, H, W, F) to (B, H, W, filters).
    """

    def __init__(self, filters, kernel, sees_itself):
        super().__init__()
        self.filters, self.size = filters, kernel
        seen = np.zeros(kernel * kernel, backend.floatx())
        seen[: kernel * kernel // 2 + sees_itself] = 1
        self.mask = seen.reshape(kernel, kernel, 1, 1)

    def build(self, shape):
        self.kernel = self.add_weight(
            shape=(self.size, self.size, shape[-1], self.filters), initializer="glorot_uniform", name="kernel"
        )
        self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias")
        self.built = True

    def call(self, h):
        return ops.conv(h, self.kernel * ops.cast(self.mask, self.compute_dtype), padding="same") + self.bias


class PixelDecoder(layers.Layer):
    """Latents (..., D) to the Autoregressive p(x|z) (Tomczak & Welling 2018, code).

    Each of `parts` becomes a plane of the image's size by a gated layer. The image and these planes go through 8 masked
    convolutions of 64 filters, 3x3, with batch normalisation, and a linear 1x1. The channels of a pixel depend on
    one another as the observation has it, given the pixels before it.
    """

    def __init__(self, parts, image_shape, observation, _):
        super().__init__()
        height, width, channels = image_shape
        self.image_shape, self.observation = image_shape, observation
        self.stacks = LatentStacks(parts, height * width)
        net = [layers.Input((None, width, channels + len(parts)))]
        for depth in range(DEPTH):
            normalised = layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
            net += [MaskedConv2D(FILTERS, KERNEL, sees_itself=depth > 0), normalised, layers.ReLU()]
        outputs = observation.outputs(channels)
        self.net = Sequential([*net, layers.Conv2D(outputs, 1, dtype=backend.floatx())])
        self.floats_per_sample = height * width * (3 * DEPTH * FILTERS + len(parts) + outputs)
        self.built = True

    def call(self, z, training=False):
        """p(x|z) with batch (...); in training, normalised by the batch's own statistics, of which a trace is kept."""
        planes = self.stacks(z)  # (..., parts * H * W)
        planes = ops.reshape(planes, (*ops.shape(z)[:-1], len(self.stacks.parts), *self.image_shape[:2]))
        # JAX's trainer calls a model outside of any call context, and `pixels` is called later: it must be told
        pixels = partial(self.pixels, training=training)
        return Autoregressive(ops.moveaxis(planes, -3, -1), pixels, self.image_shape, DEPTH * (KERNEL // 2))

    def pixels(self, x, planes, training=False):
        """The distribution of each pixel of x (M, H, W, C) given earlier ones and planes (M, H, W, P): batch (M,)."""
        maps = self.net(ops.concatenate([x, planes], axis=-1), training=training)
        return self.observation.of(maps, hard_clip)


def pixel_networks(*args):
    """The parts of the paper's PixelHVAE: those of its convHVAE but for the decoder."""
    return GatedConvNetworks(*args, make_decoder=PixelDecoder)
