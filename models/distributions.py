"""Distributions as values: NamedTuples of tensors, without weights.

Each has two primitives, `sample(n, seed)` and a normalised `log_prob(value)`; axes are always sample, batch, event.
`log_prob` removes the event axes. `seed` is a `keras.random.SeedGenerator`: an integer would give the several draws
inside one sample the same noise.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from keras import backend, ops, random

LOG_2PI = math.log(2 * math.pi)
IMAGE_AXES = (-3, -2, -1)  # H, W, C
FACTORS = 64  # up to 2 in a product, which is then far below the largest float32
BINS = 256  # grey values of a pixel, or of each of its channels, in a discretized law


def _sample_and_log_prob(distribution, n, seed):
    """`n` draws and their log-densities: (n, ..., D) and (n, ...). Stochastic."""
    z = distribution.sample(n, seed)
    return z, distribution.log_prob(z)


def _one_layer(distribution, z):
    """log_prob, layer by layer, of which there is one: a tuple of it."""
    return (distribution.log_prob(z),)


class Normal(NamedTuple):
    """N(mean, diag exp(logvar)); the event is the last axis. Shapes: mean and logvar (..., D)."""

    mean: object
    logvar: object
    log_prob_of_layers = _one_layer

    @property
    def top(self):
        """This Normal itself; see `Chain`."""
        return self

    def sample(self, n, seed):
        """`n` reparameterised draws, mean + exp(logvar / 2) * eps: (n, ..., D). Stochastic."""
        return self._moved(self._noise(n, seed))

    def log_prob(self, z):
        """log N(z; mean, diag exp(logvar)) in nats: (..., D) -> (...)."""
        squared = ops.square(z - self.mean) * ops.exp(-self.logvar)
        return -0.5 * (ops.sum(squared, axis=-1) + ops.sum(LOG_2PI + self.logvar, axis=-1))

    def sample_and_log_prob(self, n, seed):
        """As `sample` and `log_prob`, the latter from eps, which takes fewer steps: (n, ..., D) and (n, ...)."""
        noise = self._noise(n, seed)
        of_noise, of_logvar = ops.sum(ops.square(noise), axis=-1), ops.sum(LOG_2PI + self.logvar, axis=-1)
        return self._moved(noise), -0.5 * (of_noise + of_logvar)

    def _noise(self, n, seed):
        if isinstance(seed, int):
            raise TypeError(f"seed {seed} must be a SeedGenerator: an integer gives each draw the same noise")
        return random.normal((n, *ops.shape(self.mean)), dtype=self.mean.dtype, seed=seed)

    def _moved(self, noise):
        return self.mean + ops.exp(0.5 * self.logvar) * noise

    def expected_log_prob(self, q):
        """E[log N(z; mean, diag exp(logvar))] over z ~ q, another Normal, in closed form and nats: (...)."""
        squared = (ops.exp(q.logvar) + ops.square(q.mean - self.mean)) * ops.exp(-self.logvar)
        return -0.5 * (ops.sum(squared, axis=-1) + ops.sum(LOG_2PI + self.logvar, axis=-1))

    def at_mean(self):
        """This Normal itself; see `Chain.at_mean`."""
        return self

    @property
    def base(self):
        """This Normal itself; see `Flow`."""
        return self

    def of(self, base):
        """`base` itself; see `Flow`."""
        return base


class Flow(NamedTuple):
    """The law of forward(y), y ~ `base`, a Normal or a Mixture (Dinh et al. 2017, eq. 2); the event is the last axis.

    `transform` has `forward` and its `inverse`, which both also return the log-determinant of `forward`.
    """

    base: object
    transform: object
    log_prob_of_layers = _one_layer

    @property
    def top(self):
        """This Flow itself; see `Chain`."""
        return self

    @property
    def mean(self):
        """The image of the base's mean, which is not quite the mean: (..., D)."""
        return self.transform.forward(self.base.mean)[0]

    @property
    def logvar(self):
        """The base's, from before it is bent: (..., D)."""
        return self.base.logvar

    def of(self, base):
        """`base`, bent in the same way."""
        return Flow(base, self.transform)

    def sample(self, n, seed):
        """`n` reparameterised draws: (n, ..., D). Stochastic."""
        return self.transform.forward(self.base.sample(n, seed))[0]

    def log_prob(self, z):
        """log base(inverse(z)) - log |d forward| in nats: (..., D) -> (...)."""
        y, log_det = self.transform.inverse(z)
        return self.base.log_prob(y) - log_det

    def sample_and_log_prob(self, n, seed):
        """As `sample` and `log_prob`, without the inverse: (n, ..., D) and (n, ...). Stochastic."""
        y, log_p = self.base.sample_and_log_prob(n, seed)
        z, log_det = self.transform.forward(y)
        return z, log_p - log_det

    def log_parts(self, z):
        """log of weight times density of each component of a Mixture: (..., D) -> (..., K)."""
        y, log_det = self.transform.inverse(z)
        return self.base.log_parts(y) - ops.expand_dims(log_det, -1)

    def at_mean(self):
        """This Flow itself, which has a mean and a logvar; see `Chain.at_mean`."""
        return self


class Mixture(NamedTuple):
    """sum_k exp(log_weights[k]) N(mean[k], diag exp(logvar[k])). Shapes: log_weights (K,), mean and logvar (K, D)."""

    log_weights: object
    mean: object
    logvar: object
    sample_and_log_prob = _sample_and_log_prob
    log_prob_of_layers = _one_layer

    @property
    def top(self):
        """This Mixture itself; see `Chain`."""
        return self

    def sample(self, n, seed):
        """`n` draws: a component by its weight, then a point of that component: (n, D). Stochastic."""
        k = random.categorical(ops.expand_dims(self.log_weights, 0), n, seed=seed)[0]  # (n,)
        chosen = Normal(ops.take(self.mean, k, axis=0), ops.take(self.logvar, k, axis=0))
        return chosen.sample(1, seed)[0]

    @property
    def base(self):
        """This Mixture itself; see `Flow`."""
        return self

    def log_prob(self, z):
        """log-sum-exp over the K components in nats: (..., D) -> (...)."""
        return log_sum_exp(self.log_parts(z))

    def log_parts(self, z):
        """log of weight times density of each component: (..., D) -> (..., K).

        (z - m)^2 / v is z^2 / v - 2 z m / v + m^2 / v, so that a product of matrices takes the place of a
        (..., K, D) temporary. Differences of large numbers are small here; centred means keep them from being larger.
        """
        centre = ops.mean(self.mean, axis=0)
        z, mean, precision = z - centre, self.mean - centre, ops.exp(-self.logvar)
        constant = -0.5 * ops.sum(LOG_2PI + self.logvar + ops.square(mean) * precision, axis=-1)  # (K,)
        constant = ops.expand_dims(self.log_weights + constant, -1)
        of_component = ops.concatenate([-0.5 * precision, mean * precision, constant], axis=-1)  # (K, 2D + 1)
        of_z = ops.concatenate([ops.square(z), z, ops.ones_like(z[..., :1])], axis=-1)  # (..., 2D + 1)
        return ops.matmul(of_z, ops.transpose(of_component))


class Chain(NamedTuple):
    """p(top) p(bottom | top) over the concatenation [top, bottom] along the last axis.

    `conditional` maps top (..., D2) to a Normal over bottom (..., D1), or a Hierarchy; `split` is D2.
    """

    top: object
    conditional: Callable
    split: int

    def sample(self, n, seed):
        """`n` ancestral draws, top first: (n, ..., D2 + D1). Stochastic."""
        top = self.top.sample(n, seed)
        return ops.concatenate([top, self.conditional(top).sample(1, seed)[0]], axis=-1)

    def log_prob(self, z):
        """log p(top) + log p(bottom | top) in nats: (..., D2 + D1) -> (...)."""
        return sum(self.log_prob_of_layers(z))

    def log_prob_of_layers(self, z):
        """log p(top), then those of the layers of p(bottom | top), in nats: (..., D2 + D1) -> a tuple of (...)."""
        top, bottom = z[..., : self.split], z[..., self.split :]
        return self.top.log_prob(top), *self.conditional(top).log_prob_of_layers(bottom)

    def sample_and_log_prob(self, n, seed):
        """As `sample` and `log_prob`, with one pass through `conditional`: (n, ..., D2 + D1) and (n, ...)."""
        top, log_top = self.top.sample_and_log_prob(n, seed)
        bottom, log_bottom = self.conditional(top).sample_and_log_prob(1, seed)
        return ops.concatenate([top, bottom[0]], axis=-1), log_top + log_bottom[0]

    def at_mean(self):
        """The Normal over [top, bottom] whose lower part is p(bottom | mean of top); for embeddings, not densities."""
        bottom = self.conditional(self.top.mean).at_mean()
        mean = ops.concatenate([self.top.mean, bottom.mean], axis=-1)
        return Normal(mean, ops.concatenate([self.top.logvar, bottom.logvar], axis=-1))


def _log_prob_of_each(law, x):
    """log_prob of every image (N, H, W, C) under each law of the batch (M,), in nats: (N, M). An image at a time."""
    return ops.stack([law.log_prob(image) for image in x])


def _mean_picture(distribution, seed, progress=None):
    """The mean image, which needs no draw."""
    return distribution.mean


def _flat(images):
    """Images (..., H, W, C) with one axis in place of three: (..., H W C)."""
    return ops.reshape(images, (*ops.shape(images)[:-3], math.prod(images.shape[-3:])))


def log_sum_exp(x):
    """log sum exp(x) over the last axis: (..., K) -> (...)."""
    if backend.backend() == "tensorflow" and x.shape[-1] > 1:
        return _by_softmax(x)
    return ops.logsumexp(x, axis=-1)


@ops.custom_gradient
def _by_softmax(x):
    """`log_sum_exp`, as the largest softmax is 1 / sum exp(x - max x).

    TensorFlow's softmax makes use of all of a processor's vector instructions: this takes half of the time.
    """
    largest = ops.max(x, axis=-1)
    value = ops.where(ops.isfinite(largest), largest - ops.log(ops.max(ops.softmax(x), axis=-1)), largest)
    return value, lambda upstream: ops.expand_dims(upstream, -1) * ops.softmax(x)


@ops.custom_gradient
def sum_of_softplus(logits):
    """sum log(1 + exp(l)) over the last axis, in nats: (..., P) -> (...).

    It is sum max(l, 0) + log prod (1 + exp(-|l|)), products of FACTORS at most, none of which is above 2: one logarithm
    takes the place of many, in half of the time, and each factor is off by 6e-8 at most. The gradient of a product
    would be slow; it is sigmoid(l).
    """
    pixels = logits.shape[-1]
    factors = max(n for n in range(1, FACTORS + 1) if pixels % n == 0)
    groups = ops.reshape(1 + ops.exp(-ops.abs(logits)), (*ops.shape(logits)[:-1], pixels // factors, factors))
    value = ops.sum(ops.relu(logits), axis=-1) + ops.sum(ops.log(ops.prod(groups, axis=-1)), axis=-1)
    return value, lambda upstream: ops.expand_dims(upstream, -1) * ops.sigmoid(logits)


class Bernoulli(NamedTuple):
    """Independent pixels with p(x = 1) = sigmoid(logits); the event is an image. Shape: logits (..., H, W, C)."""

    logits: object
    picture = _mean_picture

    @property
    def mean(self):
        """sigmoid(logits): (..., H, W, C) in [0, 1]."""
        return ops.sigmoid(self.logits)

    def sample(self, n, seed):
        """`n` binary images: (n, ..., H, W, C). Stochastic."""
        return binarize(ops.broadcast_to(self.mean, (n, *ops.shape(self.logits))), seed)

    def log_prob(self, x):
        """sum of x * logits - softplus(logits) in nats: (..., H, W, C) -> (...); normalised for x in {0, 1} only."""
        return ops.sum(x * self.logits, axis=IMAGE_AXES) - sum_of_softplus(_flat(self.logits))

    def log_prob_of_each(self, x):
        """log_prob of every image (N, H, W, C) under each law of the batch (M,), in nats: (N, M), a matrix product."""
        logits = _flat(self.logits)
        return ops.matmul(_flat(x), ops.transpose(logits)) - sum_of_softplus(logits)


def _log_bin(k, low, high, width):
    """log of what a standard logistic has in bin `k`, from `low` to `high` = low + width; outer bins reach to infinity.

    sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)) loses no digits where bins are improbable.
    """
    below, above = ops.log_sigmoid(high), ops.log_sigmoid(-low)  # logs of what lies below its end, above its start
    inside = below + above + ops.log(-ops.expm1(-width))
    return ops.where(k <= 0, below, ops.where(k >= BINS - 1, above, inside))


def _logistic_noise(shape, like, seed):
    """Draws of a standard logistic, of the type of `like`: `shape`. Stochastic."""
    noise = random.uniform(shape, 1e-7, 1 - 1e-7, dtype=like.dtype, seed=seed)
    return ops.log(noise) - ops.log(1 - noise)


class DiscretizedLogistic(NamedTuple):
    """Independent pixels, a logistic in 256 bins of [0, 1]; the event is an image (Kingma et al. 2016, eq. 6).

    Pixel value k / 255 is bin k, from k / 256 to (k + 1) / 256. The first and the last bin reach to infinity, so that
    the probabilities sum to 1. Shapes: mean, of the undivided logistic, and log_scale (..., H, W, C).
    """

    mean: object
    log_scale: object
    picture = _mean_picture
    log_prob_of_each = _log_prob_of_each

    def sample(self, n, seed):
        """`n` images of 256 grey values: (n, ..., H, W, C) in [0, 1]. Stochastic."""
        noise = _logistic_noise((n, *ops.shape(self.mean)), self.mean, seed)
        value = self.mean + ops.exp(self.log_scale) * noise
        return ops.clip(ops.floor(BINS * value), 0, BINS - 1) / (BINS - 1)

    def log_prob(self, x):
        """The sum of the logs of the bins, in nats, normalised over the 256^(H W C) images: (..., H, W, C) -> (...)."""
        k = ops.round(x * (BINS - 1))
        scaled = ops.exp(-self.log_scale)
        low, high = (scaled * ((k + edge) / BINS - self.mean) for edge in (0, 1))
        return ops.sum(_log_bin(k, low, high, scaled / BINS), axis=IMAGE_AXES)


class MixtureOfLogistics(NamedTuple):
    """Independent pixels, each a mixture of K logistics in 256 bins a channel (Salimans et al. 2017, sections 2.1-2.2).

    Pixel value k / 255 is bin k, of width 2 / 255 around v = 2 k / 255 - 1. The first and the last bin reach to
    infinity, so that the probabilities sum to 1. In each component, channel c is a logistic around location[c] +
    sum_{j < c} coefficients[c (c - 1) / 2 + j] v[j], given the channels before it. The event is an image. Shapes:
    logits (..., H, W, K), location and log_scale (..., H, W, C, K), coefficients (..., H, W, C (C - 1) / 2, K).
    """

    logits: object
    location: object
    log_scale: object
    coefficients: object
    picture = _mean_picture
    log_prob_of_each = _log_prob_of_each

    @property
    def mean(self):
        """That of the logistics, as if there were no bins and no ends, then clipped: (..., H, W, C) in [0, 1]."""
        centres = []
        for channel in range(self.location.shape[-2]):
            centres.append(self._centre(channel, centres))
        mean = ops.sum(ops.stack(centres, axis=-2) * ops.expand_dims(ops.softmax(self.logits), -2), axis=-1)
        return ops.clip((mean + 1) / 2, 0, 1)

    def sample(self, n, seed):
        """`n` images of 256 values, by one component for each pixel: (n, ..., H, W, C) in [0, 1]. Stochastic."""
        one = self._chosen(n, seed)
        noise = ops.exp(one.log_scale) * _logistic_noise(ops.shape(one.location), one.location, seed)
        bins = []
        for channel in range(self.location.shape[-2]):
            value = one._centre(channel, [_signed(k) for k in bins]) + noise[..., channel, :]  # (n, ..., H, W, 1)
            bins.append(ops.clip(ops.floor((value + 1) / 2 * (BINS - 1) + 0.5), 0, BINS - 1))
        return ops.concatenate(bins, axis=-1) / (BINS - 1)

    def log_prob(self, x):
        """log-sum-exp over components in nats, normalised over the 256^(H W C) images: (..., H, W, C) -> (...)."""
        bins = ops.split(ops.round(x * (BINS - 1)), self.location.shape[-2], axis=-1)  # C of (..., H, W, 1)
        log_p = ops.log_softmax(self.logits)
        for channel, k in enumerate(bins):
            centre = self._centre(channel, [_signed(before) for before in bins[:channel]])
            scaled = ops.exp(-self.log_scale[..., channel, :])
            low, high = (scaled * (_signed(k + edge) - centre) for edge in (-0.5, 0.5))
            log_p = log_p + _log_bin(k, low, high, 2 * scaled / (BINS - 1))  # (..., H, W, K)
        return ops.sum(ops.logsumexp(log_p, axis=-1), axis=(-2, -1))

    def _centre(self, channel, before):
        """What a channel's logistics are around, given the values v before it, (..., H, W, 1 or K): (..., H, W, K)."""
        first = channel * (channel - 1) // 2
        shifts = (self.coefficients[..., first + j, :] * v for j, v in enumerate(before))
        return sum(shifts, self.location[..., channel, :])

    def _chosen(self, n, seed):
        """`n` draws of a component for each pixel, each a mixture of that one: batch (n, ...). Stochastic."""
        components = self.logits.shape[-1]
        k = random.categorical(ops.reshape(self.logits, (-1, components)), n, seed=seed)  # (M, n)
        k = ops.reshape(ops.transpose(k), (n, *ops.shape(self.logits)[:-1]))
        one_hot = ops.expand_dims(ops.one_hot(k, components, dtype=self.logits.dtype), -2)  # (n, ..., H, W, 1, K)
        parts = (ops.sum(one_hot * part, axis=-1, keepdims=True) for part in self[1:])
        return MixtureOfLogistics(ops.zeros_like(one_hot[..., 0, :1]), *parts)


def _signed(k):
    """Bins 0 to 255 as values -1 to 1."""
    return (2 * k - (BINS - 1)) / (BINS - 1)


class Pixels(NamedTuple):
    """Independent pixels N(mean, sigma^2), one sigma for all; the event is an image. Shape: mean (..., H, W, C)."""

    mean: object
    sigma: float
    picture = _mean_picture
    log_prob_of_each = _log_prob_of_each  # a product of matrices would lose digits to large squares

    def sample(self, n, seed):
        """`n` images of real numbers: (n, ..., H, W, C). Stochastic."""
        return self.mean + self.sigma * random.normal((n, *ops.shape(self.mean)), dtype=self.mean.dtype, seed=seed)

    def log_prob(self, x):
        """The log-density in nats: (..., H, W, C) -> (...)."""
        squared = ops.square((x - self.mean) / self.sigma)
        return -0.5 * ops.sum(LOG_2PI + 2 * math.log(self.sigma) + squared, axis=IMAGE_AXES)


class Autoregressive(NamedTuple):
    """prod_i p(x_i | x_<i, planes), pixels in raster order; the event is an image (van den Oord et al. 2016, eq. 1).

    `pixels` maps images (M, H, W, C) and planes (M, H, W, P) to the law of all pixels, batch (M,), that of a pixel
    being the same whatever it and those after it are. It looks back by `reach` rows at most, so that it may be given
    only these. Shapes: planes (..., H, W, P); `image_shape` (H, W, C).
    """

    planes: object
    pixels: Callable
    image_shape: tuple
    reach: int
    log_prob_of_each = _log_prob_of_each

    def log_prob(self, x):
        """The sum over pixels in nats: (..., H, W, C) -> (...)."""
        batch = ops.shape(self.planes)[:-3]
        x = ops.reshape(ops.broadcast_to(x, (*batch, *self.image_shape)), (-1, *self.image_shape))  # (M, H, W, C)
        law = self.pixels(x, ops.reshape(self.planes, (-1, *self.planes.shape[-3:])))
        return ops.reshape(law.log_prob(x), batch)

    def sample(self, n, seed, progress=lambda done: None):
        """`n` draws, pixel by pixel, H W passes: (n, ..., H, W, C). `progress` is told of each pass. Stochastic."""
        planes = ops.broadcast_to(self.planes, (n, *ops.shape(self.planes)))
        flat = ops.reshape(planes, (-1, *planes.shape[-3:]))  # (M, H, W, P)
        x = np.zeros((flat.shape[0], *self.image_shape), "float32")
        for row, column in np.ndindex(self.image_shape[:2]):
            start = max(0, row - self.reach)
            near = slice(start, start + self.reach + 1)  # of one height, for which all is compiled once
            law = self.pixels(ops.convert_to_tensor(x[:, near]), flat[:, near])
            x[:, row, column] = ops.convert_to_numpy(law.sample(1, seed))[0, :, row - start, column]
            progress(1)
        return ops.reshape(ops.convert_to_tensor(x), (*planes.shape[:-3], *self.image_shape))

    def picture(self, seed, progress=lambda done: None):
        """One draw, as the mean would need a sum over all images: (..., H, W, C). Stochastic."""
        return self.sample(1, seed, progress)[0]


def binarize(mean, seed):
    """One Bernoulli draw for each pixel mean in [0, 1]: the same shape, values 0 and 1. Stochastic."""
    noise = random.uniform(ops.shape(mean), dtype=mean.dtype, seed=seed)
    return ops.cast(noise < mean, mean.dtype)
