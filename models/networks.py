"""Networks: layers with weights, and heads that return distributions."""

import itertools
import math
from functools import partial

import keras
from keras import Sequential, backend, layers, ops

from .convolutions import Conv2D, Conv2DTranspose
from .distributions import Normal

LOGVAR = (-6.0, 2.0)  # bounds of log-variances


def soft_bound(raw, low, high):
    """c + h tanh((raw - c) / h), in [low, high] around c: to first order the identity, and no dead gradient."""
    centre, half = (low + high) / 2, (high - low) / 2
    return centre + half * ops.tanh((raw - centre) / half)


def hard_clip(raw, low, high):
    """raw, clipped as in the code of Tomczak & Welling (2018); outside of the bounds the gradient is zero."""
    return ops.clip(raw, low, high)


def as_one_batch(layer, h, axes=1):
    """What a layer of batches (M, *shape) gives for h (..., B, *shape), `shape` being the last `axes`.

    Keras' dense layers would multiply tensors of more axes, too, but TensorFlow fuses neither biases nor gates with
    these. Where devices share the B images of a batch, these come first in M, else each device would compute all.
    """
    of_images = len(h.shape) - axes - 1
    shared = of_images > 0 and keras.distribution.distribution() is not None
    h = ops.moveaxis(h, of_images, 0) if shared else h
    flat = layer(ops.reshape(h, (-1, *h.shape[-axes:])))
    out = ops.reshape(flat, (*ops.shape(h)[:-axes], *flat.shape[1:]))
    return ops.moveaxis(out, 0, of_images) if shared else out


class GaussianHead(layers.Layer):
    """Features (..., F) to a Normal over (..., D): two linear maps, made by `dense`, the log-variance bounded.

    These are float32, whatever the precision of hidden layers is; so is the last layer of each decoder.
    """

    def __init__(self, features, units, dense=layers.Dense, bound=soft_bound):
        super().__init__(dtype=backend.floatx())
        self.mean, self.raw_logvar = (dense(units, dtype=backend.floatx()) for _ in range(2))
        self.bound = bound
        self.mean.build((None, features))
        self.raw_logvar.build((None, features))
        self.built = True

    def call(self, h):
        """Normal with mean and logvar (..., D)."""
        return Normal(as_one_batch(self.mean, h), self.bound(as_one_batch(self.raw_logvar, h), *LOGVAR))


def gaussian(make_head, features, units):
    """The head of `make_head(features, units)` as it is: q is a Normal."""
    return make_head(features, units)


class Gated(layers.Layer):
    """linear(h) * sigmoid(linear'(h)), both linear layers from `make` (Tomczak & Welling 2018, code)."""

    def __init__(self, make):
        super().__init__()
        self.linear, self.gate = make(), make()

    def build(self, shape):
        """Makes both linear maps."""
        self.linear.build(shape)
        self.gate.build(shape)
        self.built = True

    def call(self, h):
        """Features of the shape that `make`'s layer gives."""
        return self.linear(h) * ops.sigmoid(self.gate(h))


def gated_dense(units):
    """Features (..., F) to (..., units)."""
    return Gated(lambda: layers.Dense(units, kernel_initializer="he_normal"))


def gated_conv(filters, kernel, stride=1):
    """Maps (B, H, W, F) to (B, H / stride, W / stride, filters)."""
    return Gated(lambda: Conv2D(filters, kernel, stride))


class DenseStack(layers.Layer):
    """Layers over the last axis, made by `dense`: (..., F) -> (..., units[-1])."""

    def __init__(self, features, units, dense):
        super().__init__()
        self.dense = [dense(u) for u in units]
        for one, width in zip(self.dense, (features, *units), strict=False):
            one.build((None, width))
        self.built = True

    def call(self, h):
        """Features (..., units[-1])."""
        return as_one_batch(self._flat, h)

    def _flat(self, h):
        for one in self.dense:
            h = one(h)
        return h


class ConvDecoder(layers.Layer):
    """Latents (..., D) to p(x|z): dense to (H/4, W/4, 32), then five transposed convolutions.

    Filters, kernel, stride: 32f,3,1 / 16f,3,2 / 16f,3,1 / 8f,3,2 / outputs,3,1, the last one linear.
    """

    def __init__(self, latent_dim, image_shape, observation, size, activation):
        super().__init__()
        height, width, channels = image_shape
        if height % 4 or width % 4:
            raise ValueError(f"images of {height}x{width} pixels do not fit: both sides must be divisible by 4")
        start = (height // 4, width // 4, 32)
        f8, f16, f32 = (scaled(n, size) for n in (8, 16, 32))

        def up(filters, stride):
            return Conv2DTranspose(filters, 3, stride, activation=activation)

        self.net = Sequential(
            [
                layers.Input((latent_dim,)),
                layers.Dense(math.prod(start), activation=activation),
                layers.Reshape(start),
                up(f32, 1),
                up(f16, 2),
                up(f16, 1),
                up(f8, 2),
                Conv2DTranspose(observation.outputs(channels), 3, dtype=backend.floatx()),
            ]
        )
        self.observation = observation
        self.floats_per_sample = sum(math.prod(layer.output.shape[1:]) for layer in self.net.layers)
        self.built = True

    def call(self, z):
        """p(x|z) with batch (...)."""
        return self.observation.of(as_one_batch(self.net, z), soft_bound)  # of maps (..., H, W, outputs)


class LatentStacks(layers.Layer):
    """A gated layer for each of `parts`, side by side: (..., D) -> (..., len(parts) * width).

    `parts` are the sizes of the latent layers, the top one first, that z = [z2, z1] is cut into.
    """

    def __init__(self, parts, width):
        super().__init__()
        self.ends = list(itertools.accumulate(parts))
        self.parts, self.features = parts, len(parts) * width
        self.stacks = [DenseStack(size, (width,), gated_dense) for size in parts]
        self.built = True

    def call(self, z):
        """Features (..., len(parts) * width)."""
        pieces = [z[..., end - size : end] for size, end in zip(self.parts, self.ends, strict=True)]
        return ops.concatenate([stack(piece) for stack, piece in zip(self.stacks, pieces, strict=True)], axis=-1)


class DenseDecoder(layers.Layer):
    """Latents (..., D) to p(x|z): two gated layers of `width`, the first one for each of `parts`, and a linear one."""

    def __init__(self, parts, image_shape, observation, width):
        super().__init__()
        self.observation, self.maps_shape = observation, (*image_shape[:2], observation.outputs(image_shape[2]))
        self.stacks = LatentStacks(parts, width)
        self.joint = DenseStack(self.stacks.features, (width,), gated_dense)
        self.out = layers.Dense(math.prod(self.maps_shape), kernel_initializer="he_normal", dtype=backend.floatx())
        self.out.build((None, width))
        self.floats_per_sample = 2 * (self.stacks.features + width) + math.prod(self.maps_shape)  # gates count twice
        self.built = True

    def call(self, z):
        """p(x|z) with batch (...)."""
        return self.observation.of(as_one_batch(self._maps, z), hard_clip)

    def _maps(self, z):
        return ops.reshape(self.out(self.joint(self.stacks(z))), (-1, *self.maps_shape))


class GatedConvDecoder(layers.Layer):
    """Latents (..., D) to p(x|z): a gated layer of `width` for each of `parts`, one to an image, convolutions.

    These are four gated ones of 64 filters, 3x3, and a linear 1x1.
    """

    FILTERS = 64

    def __init__(self, parts, image_shape, observation, width):
        super().__init__()
        self.observation = observation
        self.stacks = LatentStacks(parts, width)
        self.image = DenseStack(self.stacks.features, (math.prod(image_shape),), gated_dense)
        convs = [gated_conv(self.FILTERS, 3) for _ in range(4)]
        outputs = observation.outputs(image_shape[2])
        out = layers.Conv2D(outputs, 1, dtype=backend.floatx())
        self.net = Sequential([layers.Input((math.prod(image_shape),)), layers.Reshape(image_shape), *convs, out])
        self.floats_per_sample = math.prod(image_shape[:2]) * (3 * self.FILTERS * len(convs) + outputs)
        self.built = True

    def call(self, z):
        """p(x|z) with batch (...)."""
        return self.observation.of(as_one_batch(lambda flat: self.net(self.image(self.stacks(flat))), z), hard_clip)


class ConditionalNormal(layers.Layer):
    """A stack of layers and the head on top of it: (..., F) to a Normal over (..., D)."""

    def __init__(self, stack, head):
        super().__init__()
        self.stack, self.head = stack, head
        self.built = True

    def call(self, h):
        """Normal with mean and logvar (..., D)."""
        return self.head(self.stack(h))


def scaled(filters, size):
    """`filters` times the network size, at least 1."""
    return max(1, round(filters * size))


class ConvNetworks:
    """The parts of a convolutional VAE or HVAE: factories of layers, for images (H, W, C) with H and W divisible by 4.

    `size` scales the filters of the convolutions; 4 gives 32 to 128 of them. Dense layers have `units` units; for None,
    300 in p(z1|z2) and 256 elsewhere.
    """

    def __init__(self, image_shape, observation, size, activation, units):
        self.image_shape, self.observation = image_shape, observation
        self.size, self.activation = size, activation
        self.features = self.image_features = self.joint_features = units or 256
        self.width = units or 300
        self.dense = partial(layers.Dense, activation=activation)

    def image_encoder(self):
        """Images (B, H, W, C) to features (B, F)."""

        def conv(filters, kernel, stride):
            filters = scaled(filters, self.size)
            return Conv2D(filters, kernel, stride, activation=self.activation)

        return Sequential(
            [
                layers.Input(self.image_shape),
                conv(8, 7, 1),
                conv(16, 3, 2),
                conv(16, 5, 1),
                conv(32, 3, 2),
                layers.Flatten(),
                layers.Dense(self.features, activation=self.activation),
            ]
        )

    def lower_image_encoder(self):
        """The same for q(z1|x, z2), with weights of its own."""
        return self.image_encoder()

    def latent_encoder(self, latent_dim):
        """Latents (..., D) to features (..., F)."""
        return DenseStack(latent_dim, (self.features, self.features), self.dense)

    def joint(self):
        """The features of an image and of a latent, concatenated (..., 2 F), to features (..., F)."""
        return DenseStack(2 * self.features, (self.features,), self.dense)

    def head(self, features, units):
        """Features (..., features) to a Normal over (..., units)."""
        return GaussianHead(features, units)

    def conditional(self, latent_dim, units):
        """p(lower | upper): latents (..., D) to a Normal over (..., units)."""
        stack = DenseStack(latent_dim, (self.width, self.width), self.dense)
        return ConditionalNormal(stack, GaussianHead(self.width, units))

    def decoder(self, *parts):
        """Latents (..., D), D the sum of the sizes of the layers in `parts`, to p(x|z)."""
        return ConvDecoder(sum(parts), self.image_shape, self.observation, self.size, self.activation)


def clipped_head(features, units):
    """Features (..., features) to a Normal over (..., units), as the paper has it."""
    return GaussianHead(features, units, partial(layers.Dense, kernel_initializer="he_normal"), hard_clip)


class GatedNetworks:
    """What the paper's networks share (Tomczak & Welling 2018): gated layers and log-variances that are clipped hard.

    Dense layers have `units` units; for None the paper's 300. `size` and `activation` have no meaning here: the gates
    are what is not linear.
    """

    head = staticmethod(clipped_head)

    def __init__(self, image_shape, observation, size, activation, units):
        self.image_shape, self.observation = image_shape, observation
        self.width = self.joint_features = units or 300

    def latent_encoder(self, latent_dim):
        """Latents (..., D) to as many features as an image has."""
        return DenseStack(latent_dim, (self.image_features,), gated_dense)

    def joint(self):
        """The features of an image and of a latent, concatenated (..., 2 F), to features (..., joint_features)."""
        return DenseStack(2 * self.image_features, (self.width,), gated_dense)

    def conditional(self, latent_dim, units):
        """p(lower | upper): latents (..., D) to a Normal over (..., units)."""
        stack = DenseStack(latent_dim, (self.width, self.width), gated_dense)
        return ConditionalNormal(stack, clipped_head(self.width, units))


class DenseNetworks(GatedNetworks):
    """The parts of the paper's dense VAE and HVAE, for any image size."""

    def __init__(self, *args):
        super().__init__(*args)
        self.image_features = self.width

    def image_encoder(self):
        """Images (B, H, W, C) to features (B, F), by two gated layers."""
        return self._image_encoder(2)

    def lower_image_encoder(self):
        """The same by one gated layer, for q(z1|x, z2)."""
        return self._image_encoder(1)

    def _image_encoder(self, depth):
        gated = [gated_dense(self.width) for _ in range(depth)]
        return Sequential([layers.Input(self.image_shape), layers.Flatten(), *gated])

    def decoder(self, *parts):
        """Latents (..., D), D the sum of the sizes of the layers in `parts`, to p(x|z)."""
        return DenseDecoder(parts, self.image_shape, self.observation, self.width)


class GatedConvNetworks(GatedNetworks):
    """The parts of the paper's convHVAE: gated convolutions and gated dense layers, for any image size.

    `make_decoder` has the arguments of GatedConvDecoder.
    """

    CONVS = ((32, 1), (32, 2), (64, 1), (64, 2), (6, 1))  # filters, stride

    def __init__(self, image_shape, *args, make_decoder=GatedConvDecoder):
        super().__init__(image_shape, *args)
        self.make_decoder = make_decoder
        self.image_features = self.CONVS[-1][0] * math.prod(math.ceil(side / 4) for side in image_shape[:2])

    def image_encoder(self):
        """Images (B, H, W, C) to features (B, 294) for 28x28 pixels."""
        return self._image_encoder((7, 3, 5, 3, 3))

    def lower_image_encoder(self):
        """The same with kernels of 3, for q(z1|x, z2)."""
        return self._image_encoder((3, 3, 3, 3, 3))

    def _image_encoder(self, kernels):
        convs = [
            gated_conv(filters, kernel, stride) for (filters, stride), kernel in zip(self.CONVS, kernels, strict=True)
        ]
        return Sequential([layers.Input(self.image_shape), *convs, layers.Flatten()])

    def decoder(self, *parts):
        """Latents (..., D), D the sum of the sizes of the layers in `parts`, to p(x|z)."""
        return self.make_decoder(parts, self.image_shape, self.observation, self.width)
