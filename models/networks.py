"""Networks: layers with weights, and heads that return distributions."""

import abc
import itertools
import math
from functools import partial

import keras
from keras import Sequential, backend, constraints, layers, ops

from .convolutions import Conv2D, Conv2DTranspose
from .distributions import Normal
from .pixels import Pixels, pixels

LOGVAR = (-6.0, 2.0)  # bounds of log-variances


def soft_bound(raw, low, high):
    """c + h tanh((raw - c) / h), in [low, high] around c: to first order the identity, and no dead gradient."""
    centre, half = (low + high) / 2, (high - low) / 2
    return centre + half * ops.tanh((raw - centre) / half)


def hard_clip(raw, low, high):
    """raw, clipped as in the code of Tomczak & Welling (2018); outside of the bounds the gradient is zero."""
    return ops.clip(raw, low, high)


class Between(constraints.Constraint):
    """Projects a weight onto [low, high] after each update."""

    def __init__(self, low, high):
        self.low, self.high = low, high

    def __call__(self, w):
        return ops.clip(w, self.low, self.high)


def built(layer, features):
    """`layer` itself, with weights for so many features of vectors or maps."""
    layer.build((None, None, None, features))
    return layer


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
        self.mean, self.raw_logvar = (built(dense(units, dtype=backend.floatx()), features) for _ in range(2))
        self.bound = bound
        self.built = True

    def call(self, h):
        return Normal(as_one_batch(self.mean, h), self.bound(as_one_batch(self.raw_logvar, h), *LOGVAR))


class LearnedSigma(layers.Layer):
    """The Observation of Gaussian pixels whose sigma is a trained weight, at first 1."""

    def __init__(self):
        super().__init__(dtype=backend.floatx())
        # of full precision also where a decoder of half precision, whose call this is inside of, reads it
        self.log_sigma = self.add_weight(shape=(), initializer="zeros", autocast=False, name="log_sigma")
        self.outputs, _, self.maps_of = pixels(1.0)
        self.built = True

    def of(self, maps, bound):
        mean = ops.sigmoid(maps)
        return Pixels(mean, ops.exp(self.log_sigma) * ops.ones_like(mean[..., :1, :1, :1]))


def gaussian_pixels(sigma):
    """The Observation of Gaussian pixels, of one sigma for all; "learned" is one that is trained."""
    return LearnedSigma() if sigma == "learned" else pixels(sigma)


def gaussian(make_head, features, units):
    """The head of `make_head(features, units)` as it is: q is a Normal."""
    return make_head(features, units)


class Gated(layers.Layer):
    """linear(h) * sigmoid(linear'(h)), both linear layers from `make` (Tomczak & Welling 2018, code)."""

    def __init__(self, make):
        super().__init__()
        self.linear, self.gate = make(), make()

    def build(self, shape):
        self.linear.build(shape)
        self.gate.build(shape)
        self.built = True

    def call(self, h):
        return self.linear(h) * ops.sigmoid(self.gate(h))


he_normal = partial(layers.Dense, kernel_initializer="he_normal")  # the paper's dense layers


def gated_dense(units):
    """Features (..., F) to (..., units)."""
    return Gated(lambda: he_normal(units))


def gated_conv(filters, kernel, stride=1):
    """Maps (B, H, W, F) to (B, H / stride, W / stride, filters)."""
    return Gated(lambda: Conv2D(filters, kernel, stride))


class DenseStack(layers.Layer):
    """Layers over the last axis, made by `dense`: (..., F) -> (..., units[-1]). Features are cast to `dtype`."""

    def __init__(self, features, units, dense, dtype=None):
        super().__init__(dtype=dtype)
        self.dense = [built(dense(out), into) for into, out in itertools.pairwise((features, *units))]
        self.built = True

    def call(self, h):
        return as_one_batch(self._flat, h)

    def _flat(self, h):
        for one in self.dense:
            h = one(h)
        return h


class Drift(layers.Layer):
    """A function u(z, x) like z, in float32, with two hidden layers of 10 D units (Thin et al. 2021, their code)."""

    def __init__(self, latent_dim, image_shape):
        super().__init__(dtype=backend.floatx())
        dense, width = partial(layers.Dense, dtype=backend.floatx()), 10 * latent_dim
        self.of_pixels = built(dense(width), math.prod(image_shape))
        self.of_z = built(dense(width, use_bias=False), latent_dim)  # the rest of the first layer
        self.hidden, self.out = built(dense(width), width), built(dense(latent_dim), width)
        self.built = True

    def of(self, x):
        """u(., x) for images (B, H, W, C): a function of chains z (n, B, D)."""
        pixels = self.of_pixels(ops.reshape(x, (-1, math.prod(x.shape[1:]))))

        def u(z):
            h = ops.leaky_relu(as_one_batch(self.of_z, z) + pixels)
            return as_one_batch(self.out, ops.leaky_relu(as_one_batch(self.hidden, h)))

        return u


class ConvDecoder(layers.Layer):
    """Latents (..., D) to p(x|z): dense to (H/4, W/4, 32), then five transposed convolutions.

    Filters, kernel, stride: 32f,3,1 / 16f,3,2 / 16f,3,1 / 8f,3,2 / outputs,3,1, the last one linear.
    """

    def __init__(self, latent_dim, image_shape, observation, size, activation):
        super().__init__()
        height, width, channels = image_shape
        if height % 4 or width % 4:
            side = 4 * math.ceil(min(height, width) / 4)
            mend = f"such as {side}x{side} (for own images, --image_size {side}); --network mlp takes any size"
            reason = "do not fit --network conv: both sides must be divisible by 4"
            raise ValueError(f"images of {height}x{width} pixels {reason}, {mend}")
        start = (height // 4, width // 4, 32)
        net = [layers.Input((latent_dim,)), layers.Dense(math.prod(start), activation=activation)]
        net.append(layers.Reshape(start))
        for filters, stride in ((32, 1), (16, 2), (16, 1), (8, 2)):
            net.append(Conv2DTranspose(scaled(filters, size), 3, stride, activation=activation))
        self.net = Sequential([*net, Conv2DTranspose(observation.outputs(channels), 3, dtype=backend.floatx())])
        self.observation = observation
        self.floats_per_sample = sum(math.prod(layer.output.shape[1:]) for layer in self.net.layers)
        self.built = True

    def call(self, z):
        return self.observation.of(as_one_batch(self.net, z), soft_bound)  # of maps (..., H, W, outputs)


class LatentStacks(layers.Layer):
    """A gated layer for each of `parts`, side by side: (..., D) -> (..., len(parts) * width).

    `parts` are the sizes of the latent layers, the top one first, that z = [z2, z1] is cut into.
    """

    def __init__(self, parts, width):
        super().__init__()
        self.parts, self.features = parts, len(parts) * width
        self.stacks = [DenseStack(size, (width,), gated_dense) for size in parts]
        self.built = True

    def call(self, z):
        stacks = zip(self.stacks, self.parts, itertools.accumulate(self.parts), strict=True)
        return ops.concatenate([stack(z[..., end - size : end]) for stack, size, end in stacks], axis=-1)


class DenseDecoder(layers.Layer):
    """Latents (..., D) to p(x|z): gated layers of `units`, the first one for each of `parts`, and a linear one."""

    def __init__(self, parts, image_shape, observation, units):
        super().__init__()
        self.observation, self.maps_shape = observation, (*image_shape[:2], observation.outputs(image_shape[2]))
        self.stacks = LatentStacks(parts, units[0])
        self.joint = DenseStack(self.stacks.features, units[1:], gated_dense)
        self.out = built(he_normal(math.prod(self.maps_shape), dtype=backend.floatx()), units[-1])
        hidden = self.stacks.features + sum(units[1:])
        self.floats_per_sample = 2 * hidden + math.prod(self.maps_shape)  # gates count twice
        self.built = True

    def call(self, z):
        maps = as_one_batch(lambda flat: self.out(self.joint(self.stacks(flat))), z)
        return self.observation.of(ops.reshape(maps, (*ops.shape(z)[:-1], *self.maps_shape)), hard_clip)


class GatedConvDecoder(layers.Layer):
    """Latents (..., D) to p(x|z): a gated layer of units[0] for each of `parts`, one to an image, convolutions.

    These are four gated ones of 64 filters, 3x3, and a linear 1x1.
    """

    def __init__(self, parts, image_shape, observation, units):
        super().__init__()
        self.observation = observation
        self.stacks = LatentStacks(parts, units[0])
        self.image = DenseStack(self.stacks.features, (math.prod(image_shape),), gated_dense)
        convs, outputs = [gated_conv(64, 3) for _ in range(4)], observation.outputs(image_shape[2])
        out = layers.Conv2D(outputs, 1, dtype=backend.floatx())
        self.net = Sequential([layers.Input((math.prod(image_shape),)), layers.Reshape(image_shape), *convs, out])
        self.floats_per_sample = math.prod(image_shape[:2]) * (3 * 64 * len(convs) + outputs)
        self.built = True

    def call(self, z):
        return self.observation.of(as_one_batch(lambda flat: self.net(self.image(self.stacks(flat))), z), hard_clip)


class ConditionalNormal(layers.Layer):
    """A stack of layers and the head on top of it: (..., F) to a Normal over (..., D)."""

    def __init__(self, stack, head):
        super().__init__()
        self.stack, self.head = stack, head
        self.built = True

    def call(self, h):
        return self.head(self.stack(h))


def scaled(filters, size):
    """`filters` times the network size, at least 1."""
    return max(1, round(filters * size))


class Networks(abc.ABC):
    """The parts of a VAE or HVAE: factories of layers for images (H, W, C).

    A subclass sets `dense(units)`, the hidden layers of `DenseStack`s, and `normal(features, units)`, features (...,
    features) to a Normal over (..., units); `head` is the same for q(z|x), which a flow may transform. It also sets how
    many features encoders have: `image_features`, those that q(z1|x, z2) joins, `lower_features`, and `joint_features`;
    and the units of each layer from z2 to these, `latent_units`, and within p(lower | upper), `prior_units`.
    """

    @abc.abstractmethod
    def image_encoder(self, is_lower=False):
        """Images (B, H, W, C) to features (B, image_features); `is_lower`: for q(z1|x, z2), (B, lower_features)."""

    @abc.abstractmethod
    def decoder(self, *parts):
        """Latents (..., D), D the sum of the sizes of the layers in `parts`, to p(x|z)."""

    def latent_encoder(self, latent_dim):
        """Latents (..., D) to features (..., lower_features)."""
        return DenseStack(latent_dim, self.latent_units, self.dense)

    def joint(self):
        """The features of an image and of a latent, concatenated (..., 2 F), to features (..., joint_features)."""
        return DenseStack(2 * self.lower_features, (self.joint_features,), self.dense)

    def conditional(self, latent_dim, units):
        """p(lower | upper): latents (..., D) to a Normal over (..., units)."""
        stack = DenseStack(latent_dim, self.prior_units, self.dense)
        return ConditionalNormal(stack, self.normal(self.prior_units[-1], units))

    def upward(self, latent_dim, units):
        """q(upper | lower): latents (..., D) to a Normal, or what `head` makes of it, over (..., units)."""
        widths = self.prior_units[::-1]
        return ConditionalNormal(DenseStack(latent_dim, widths, self.dense), self.head(widths[-1], units))


def twice(units):
    """The units of two layers from those of one; of more, as they are."""
    return units * 2 if len(units) == 1 else units


class ConvNetworks(Networks):
    """Convolutional ones, for H and W divisible by 4.

    `size` scales the filters of the convolutions; 4 gives 32 to 128 of them. Behind an encoder's are dense layers of
    these `units`, and so are those from z2 to z1, in reverse in p(z1|z2); one number is for one layer, and for two from
    z2 to z1. For None it is 300 in p(z1|z2) and 256 elsewhere.
    """

    normal = head = GaussianHead

    def __init__(self, image_shape, observation, size, activation, units):
        self.image_shape, self.observation = image_shape, observation
        self.size, self.activation = size, activation
        self.encoder_units = units or (256,)
        self.image_features = self.lower_features = self.joint_features = self.encoder_units[-1]
        self.latent_units, self.prior_units = twice(self.encoder_units), twice(units or (300,))[::-1]
        self.dense = partial(layers.Dense, activation=activation)

    def image_encoder(self, is_lower=False):
        convs = [
            Conv2D(scaled(filters, self.size), kernel, stride, activation=self.activation)
            for filters, kernel, stride in ((8, 7, 1), (16, 3, 2), (16, 5, 1), (32, 3, 2))
        ]
        dense = map(self.dense, self.encoder_units)
        return Sequential([layers.Input(self.image_shape), *convs, layers.Flatten(), *dense])

    def decoder(self, *parts):
        return ConvDecoder(sum(parts), self.image_shape, self.observation, self.size, self.activation)


class GatedNetworks(Networks):
    """What the paper's networks share (Tomczak & Welling 2018): gated layers and log-variances that are clipped hard.

    They are for any image size. Dense layers have these `units` on the way from images to latents, and in reverse on
    that back; one number is for two layers, and for None it is the paper's 300. `size` and `activation` have no meaning
    here: the gates are what is not linear. A subclass sets `make_decoder`, which takes the units in reverse.
    """

    dense = staticmethod(gated_dense)
    normal = head = staticmethod(partial(GaussianHead, dense=he_normal, bound=hard_clip))

    def __init__(self, image_shape, observation, size, activation, units, image_features=None):
        self.image_shape, self.observation = image_shape, observation
        self.units = twice(units or (300,))
        self.image_features, self.joint_features = image_features or self.units[-1], self.units[-1]
        self.lower_features = image_features or self.units[-2]
        self.prior_units, self.latent_units = self.units[::-1], (self.lower_features,)

    def decoder(self, *parts):
        return self.make_decoder(parts, self.image_shape, self.observation, self.units[::-1])


class DenseNetworks(GatedNetworks):
    """The parts of the paper's dense VAE and HVAE: images are encoded by gated layers.

    In q(z1|x, z2), the last of these is behind a concatenation of what the others make of x and a layer makes of z2.
    """

    make_decoder = DenseDecoder

    def image_encoder(self, is_lower=False):
        gated = map(gated_dense, self.units[:-1] if is_lower else self.units)
        return Sequential([layers.Input(self.image_shape), layers.Flatten(), *gated])


class GatedConvNetworks(GatedNetworks):
    """The parts of the paper's convHVAE: gated convolutions and gated dense layers; 294 features for 28x28 pixels.

    `make_decoder` has the arguments of GatedConvDecoder.
    """

    CONVS = ((32, 7, 1), (32, 3, 2), (64, 5, 1), (64, 3, 2), (6, 3, 1))  # filters, kernel (3 for q(z1|x, z2)), stride

    def __init__(self, image_shape, *args, make_decoder=GatedConvDecoder):
        features = self.CONVS[-1][0] * math.prod(math.ceil(side / 4) for side in image_shape[:2])
        super().__init__(image_shape, *args, image_features=features)
        self.make_decoder = make_decoder

    def image_encoder(self, is_lower=False):
        convs = [gated_conv(filters, 3 if is_lower else kernel, stride) for filters, kernel, stride in self.CONVS]
        return Sequential([layers.Input(self.image_shape), *convs, layers.Flatten()])
