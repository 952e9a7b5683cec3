"""Networks: layers with weights and no rules of probability, but for the heads that return a Normal."""

import math

from keras import Sequential, layers, ops

from .distributions import Normal

LOGVAR_LOW, LOGVAR_HIGH = -6.0, 2.0


class GaussianHead(layers.Layer):
    """Features (..., F) to a Normal over (..., D): two linear maps, the log-variance bounded to [-6, 2].

    logvar = c + h tanh((raw - c) / h) with c = -2 and h = 4: the identity to first order around c, and never a dead
    gradient inside, as a hard clip has.
    """

    def __init__(self, features, units):
        super().__init__()
        self.mean, self.raw_logvar = layers.Dense(units), layers.Dense(units)
        self.mean.build((None, features))
        self.raw_logvar.build((None, features))
        self.built = True

    def call(self, h):
        """Normal with mean and logvar (..., D)."""
        centre, half = (LOGVAR_LOW + LOGVAR_HIGH) / 2, (LOGVAR_HIGH - LOGVAR_LOW) / 2
        logvar = centre + half * ops.tanh((self.raw_logvar(h) - centre) / half)
        return Normal(self.mean(h), logvar)


class DenseStack(layers.Layer):
    """Dense layers with one activation over the last axis: (..., F) -> (..., units[-1])."""

    def __init__(self, features, units, activation):
        super().__init__()
        self.stack = [layers.Dense(u, activation=activation) for u in units]
        for dense, width in zip(self.stack, (features, *units), strict=False):
            dense.build((None, width))
        self.built = True

    def call(self, h):
        """Features (..., units[-1])."""
        for dense in self.stack:
            h = dense(h)
        return h


class ConvDecoder(layers.Layer):
    """Latents (..., D) to logits (..., H, W, C): dense to (H/4, W/4, 32), then five transposed convolutions.

    Filters, kernel, stride: 32f,3,1 / 16f,3,2 / 16f,3,1 / 8f,3,2 / C,3,1, the last one linear.
    """

    def __init__(self, latent_dim, image_shape, size, activation):
        super().__init__()
        height, width, channels = image_shape
        if height % 4 or width % 4:
            raise ValueError(f"images of {height}x{width} pixels do not fit: both sides must be divisible by 4")
        start = (height // 4, width // 4, 32)
        f8, f16, f32 = (scaled(n, size) for n in (8, 16, 32))

        def up(filters, stride):
            return layers.Conv2DTranspose(filters, 3, stride, padding="same", activation=activation)

        self.net = Sequential(
            [
                layers.Input((latent_dim,)),
                layers.Dense(math.prod(start), activation=activation),
                layers.Reshape(start),
                up(f32, 1),
                up(f16, 2),
                up(f16, 1),
                up(f8, 2),
                layers.Conv2DTranspose(channels, 3, padding="same"),
            ]
        )
        self.image_shape = image_shape
        self.floats_per_sample = sum(math.prod(layer.output.shape[1:]) for layer in self.net.layers)
        self.built = True

    def call(self, z):
        """Logits (..., H, W, C)."""
        flat = self.net(ops.reshape(z, (-1, z.shape[-1])))  # (n * B, H, W, C)
        return ops.reshape(flat, (*ops.shape(z)[:-1], *self.image_shape))


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

    `size` scales the filters of the convolutions; 4 gives 32 to 128 of them.
    """

    FEATURES = 256

    def __init__(self, image_shape, size, activation):
        self.image_shape, self.size, self.activation = image_shape, size, activation

    def image_encoder(self):
        """Images (B, H, W, C) to features (B, 256)."""

        def conv(filters, kernel, stride):
            filters = scaled(filters, self.size)
            return layers.Conv2D(filters, kernel, stride, padding="same", activation=self.activation)

        return Sequential(
            [
                layers.Input(self.image_shape),
                conv(8, 7, 1),
                conv(16, 3, 2),
                conv(16, 5, 1),
                conv(32, 3, 2),
                layers.Flatten(),
                layers.Dense(self.FEATURES, activation=self.activation),
            ]
        )

    def latent_encoder(self, latent_dim):
        """Latents (..., D) to features (..., 256)."""
        return DenseStack(latent_dim, (self.FEATURES, self.FEATURES), self.activation)

    def joint(self):
        """The features of an image and of a latent, concatenated (..., 512), to features (..., 256)."""
        return DenseStack(2 * self.FEATURES, (self.FEATURES,), self.activation)

    def head(self, units):
        """Features (..., 256) to a Normal over (..., units)."""
        return GaussianHead(self.FEATURES, units)

    def conditional(self, latent_dim, units):
        """p(lower | upper): latents (..., D) to a Normal over (..., units)."""
        return ConditionalNormal(DenseStack(latent_dim, (300, 300), self.activation), GaussianHead(300, units))

    def decoder(self, latent_dim):
        """Latents (..., D) to logits (..., H, W, C)."""
        return ConvDecoder(latent_dim, self.image_shape, self.size, self.activation)
