"""DVP-VAE: the deep hierarchy whose prior is a mixture over pseudo-inputs that a diffusion model draws."""

import abc
import math

import numpy as np
from keras import backend, initializers, layers, ops

from . import CONTEXTS, find_activation, imported
from .base import LatentModel
from .diffusion import DiffusionPrior
from .distributions import Chain, Normal
from .hierarchy import BottomUp, TopDown, resized, scales_of
from .networks import Between
from .objectives import layered

LOGVAR_U = (-12.0, -5.0)  # bounds of the log-variance of r(u|x)


def cosines(side, count):
    """The first `count` rows of the orthonormal DCT-II of `side` numbers: (count, side)."""
    m, n = np.arange(count)[:, None], np.arange(side)
    matrix = np.sqrt(2 / side) * np.cos(np.pi * m * (n + 0.5) / side)
    matrix[0] = np.sqrt(1 / side)
    return matrix.astype("float32")


def low_frequencies(images, size):
    """The size x size lowest frequencies of the DCT-II of images (..., H, W, C), orthonormal: (..., size, size, C)."""
    rows, columns = cosines(images.shape[-3], size), cosines(images.shape[-2], size)
    half = ops.tensordot(images, rows, axes=(-3, 1))  # (..., W, C, size)
    return ops.moveaxis(ops.tensordot(half, columns, axes=(-3, 1)), -3, -1)


def context_scale(images, size):
    """What low frequencies of images (N, H, W, C) are divided by, the largest of each, rounded up: (size, size, C).

    A frequency that no image has would have a range of 0: it is divided by 1.
    """
    largest = np.max(np.abs(ops.convert_to_numpy(low_frequencies(images, size))), axis=0)
    return np.maximum(np.ceil(largest), 1)


def block_means(images, rows, columns):
    """Means of rows x columns blocks of images (..., H, W, C), whose sizes they divide: (..., rows, columns, C)."""
    height, width, channels = images.shape[-3:]
    parts = (rows, height // rows, columns, width // columns, channels)
    return ops.mean(ops.reshape(images, (*ops.shape(images)[:-3], *parts)), axis=(-4, -2))


class Context(layers.Layer, abc.ABC):
    """r(u|x), a Normal around f(x), of size x size x C numbers in [-1, 1] that say what an image is like.

    Its log-variances are trained, the same for all x. Vectors u are (..., size size C).
    """

    def __init__(self, image_shape, size, logvar):
        super().__init__(dtype=backend.floatx(), autocast=False)
        self.image_shape, self.size = image_shape, size
        self.shape = (size, size, image_shape[2])
        start, bounds = initializers.Constant(logvar), Between(*LOGVAR_U)
        self.logvar = self.add_weight(shape=self.shape, initializer=start, constraint=bounds, name="logvar")
        self.built = True

    @abc.abstractmethod
    def summary(self, x):
        """f(x) of images (B, H, W, C) in [0, 1]: (B, size, size, C)."""

    @abc.abstractmethod
    def picture(self, u):
        """The image that u (..., size size C) stands for: (..., H, W, C) in [0, 1]."""

    def call(self, x):
        mean = ops.reshape(self.summary(x), (-1, math.prod(self.shape)))
        return Normal(mean, ops.zeros_like(mean) + ops.reshape(self.logvar, (-1,)))

    def maps(self, u, scales):
        """That image in [-1, 1] as means of blocks, at each of the scales: a list of (..., height, width, C)."""
        image = 2 * self.picture(u) - 1
        return [block_means(image, scale.height, scale.width) for scale in scales]


class Frequencies(Context):
    """f(x) = clip(F / S, -1, 1), the low frequencies F of `low_frequencies` and S of `context_scale`."""

    def __init__(self, image_shape, size, logvar, scale):
        super().__init__(image_shape, size, logvar)
        scale = np.ones(self.shape, "float32") if scale is None else scale
        self.scale = self.add_weight(shape=self.shape, initializer=scale, trainable=False, name="scale")

    def summary(self, x):
        return ops.clip(low_frequencies(x, self.size) / self.scale, -1.0, 1.0)

    def picture(self, u):
        """The image of these frequencies and no others, clipped."""
        frequencies = ops.reshape(u, (*ops.shape(u)[:-1], *self.shape)) * self.scale
        rows, columns = (cosines(side, self.size) for side in self.image_shape[:2])
        half = ops.tensordot(frequencies, rows, axes=(-3, 0))  # (..., size, C, H)
        image = ops.tensordot(half, columns, axes=(-3, 0))  # (..., C, H, W)
        return ops.clip(ops.moveaxis(image, -3, -1), 0.0, 1.0)


class Means(Context):
    """f(x) = 2 m - 1, m the means of size x size blocks of the image."""

    def __init__(self, image_shape, size, logvar, _):
        super().__init__(image_shape, size, logvar)
        height, width, _ = image_shape
        if height % size or width % size:
            raise ValueError(f"a context of {size}x{size} means does not fit images of {height}x{width} pixels: it "
                             "must divide them evenly; choose another --context_size")  # fmt: skip

    def summary(self, x):
        return 2 * block_means(x, self.size, self.size) - 1

    def picture(self, u):
        """The means, interpolated bilinearly, clipped."""
        means = ops.reshape(u, (*ops.shape(u)[:-1], *self.shape))
        return ops.clip((resized(means, *self.image_shape[:2]) + 1) / 2, 0.0, 1.0)


class DVP(LatentModel):
    """r(u|x) prod q(z_l | z_>l, u, x), p(u) prod p(z_l | z_>l, u) and p(x|z) (Kuzina & Tomczak 2024).

    p(z) is the mixture of p(z|u) over pseudo-inputs u, low frequencies of an image, which a diffusion model draws.
    The latent vector is [u, z_L, ..., z_1]; p(x|z) does not look at u. The density of u is known by estimates only: see
    `terms` and `expected_terms`.
    """

    def __init__(self, config, image_shape, observation, objective, dynamic, scale=None):
        super().__init__(objective, dynamic, config.seed, config.layers)
        if config.context_size > min(image_shape[:2]):
            raise ValueError(f"a context of {config.context_size} frequencies is more than images of "
                             f"{image_shape[0]}x{image_shape[1]} pixels have; make it smaller")  # fmt: skip
        self.scales = scales_of(config.scales, image_shape)
        hidden, size = config.hidden_channels, config.context_size
        activation = find_activation(config.block_activation)
        self.encoder = BottomUp(self.scales, image_shape, config.channels, hidden, config.encoder_blocks, activation)
        self.decoder = TopDown(self.scales, image_shape, config.channels, hidden, observation, image_shape[2],
                               activation)  # fmt: skip
        self.context = imported(CONTEXTS[config.context])(image_shape, size, config.gamma_min, scale)
        score = (config.score_channels, config.score_blocks, config.score_dropout)
        self.top_prior = DiffusionPrior(self.context.shape, *score, config.gamma_min, config.diffusion_steps,
                                        config.noise_schedule)  # fmt: skip
        self.dim_u = math.prod(self.context.shape)
        self.sizes = (self.dim_u, *self.decoder.sizes)
        self.built = True

    @property
    def weights_of_u(self):
        """The trained weights of p(u) and of r(u|x)."""
        return [*self.top_prior.trainable_weights, *self.context.trainable_weights]

    def bound_by_time(self, x, parts, seed):
        """`Diffused.terms_by_time` of a draw of r(u|x) for images x (B, H, W, C): a list. Stochastic."""
        return self.top_prior.distribution().terms_by_time(self.context(x).sample(1, seed)[0], parts, seed)

    def posterior(self, x):
        features = self.encoder(x := self.checked(x))
        return Chain(self.context(x), lambda u: self.decoder.posterior(features, *self._given(u)), self.dim_u)

    def prior(self, top=None):
        top = self.top_prior.distribution() if top is None else top
        return Chain(top, lambda u: self.decoder.prior(*self._given(u)), self.dim_u)

    def likelihood(self, z, training=False):
        return self.decoder(z[..., self.dim_u :])

    def terms(self, x, n, seed, prior=None, training=False):
        """As of LatentModel, log p(u) being the log of an unbiased estimate: log-weights of the model that samples."""
        u, descent, log_px_z = self._drawn(x, n, seed)
        log_p, log_q = descent.log_probs()
        log_pu = self.top_prior.distribution(seed if training else None).log_prob(u, seed)
        return layered(log_px_z, [log_pu, *log_p], [self.context(x).log_prob(u), *log_q])

    def expected_terms(self, x, n, seed, training=False):
        """As of LatentModel: the KL of each layer in closed form, that of u by the bound of infinitely many steps."""
        u, descent, log_px_z = self._drawn(x, n, seed)
        log_p, log_q = descent.expected_log_probs()
        r = self.context(x)
        log_pu = self.top_prior.distribution(seed if training else None).bound(u, seed)
        return layered(log_px_z, [log_pu, *log_p], [r.expected_log_prob(r), *log_q])

    def warmer(self, n, temperature, seed):
        """n latents of the prior, its variances multiplied by `temperature`: (n, D). Stochastic."""
        u = self.top_prior.distribution().sample(n, seed, temperature)
        contexts, batch = self._given(u)
        z = self.decoder.prior(contexts, batch, temperature).sample(1, seed)[0]
        return ops.concatenate([u, z], axis=-1)

    def mixed(self, x, kept, seed):
        """Latents (B, D) whose `kept` upper layers are what q(z|x) means, the others drawn from p. Stochastic.

        The context is the first of them, so that with none kept, it is drawn, too.
        """
        u = self.context(x).mean if kept else self.top_prior.distribution().sample(len(x), seed)
        z = self.decoder.mixed(self.encoder(x), max(0, kept - 1), seed, *self._given(u))
        return ops.concatenate([u, z], axis=-1)

    def _given(self, u):
        """What the layers below are given of u (..., D)."""
        return self.context.maps(u, self.scales), ops.shape(u)[:-1]

    def _drawn(self, x, n, seed):
        """n draws of u, (n, B, D), the Descent below each, and log p(x|z), (n, B)."""
        u = self.context(x).sample(n, seed)
        descent = self.decoder.drawn(self.encoder(x), None, seed, *self._given(u))
        return u, descent, self.decoder(ops.concatenate(descent.z, axis=-1)).log_prob(x)
