"""Distributions of images, p(x|z): their log-densities, samples and how decoders make them."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.special
from keras import ops, random

from .distributions import LOG_2PI

IMAGE_AXES = (-3, -2, -1)  # H, W, C
FACTORS = 64  # up to 2 in a product, which is then far below the largest float32
BINS = 256  # grey values of a pixel, or of each of its channels


def _log_prob_of_each(distribution, x):
    """log_prob of N images (N, H, W, C) under each of M distributions, in nats, one image at a time: (N, M)."""
    return ops.stack([distribution.log_prob(image) for image in x])


def _flat(images):
    """Images (..., H, W, C) with one axis in place of three: (..., H W C)."""
    return ops.reshape(images, (*ops.shape(images)[:-3], math.prod(images.shape[-3:])))


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
        """log_prob of N images (N, H, W, C) under each of M distributions, in nats, as a matrix product: (N, M)."""
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
    """Independent pixels N(mean, sigma^2), one sigma for all; the event is an image.

    Shapes: mean (..., H, W, C); sigma is a number, or (..., 1, 1, 1).
    """

    mean: object
    sigma: object
    log_prob_of_each = _log_prob_of_each  # a product of matrices would lose digits to large squares

    def sample(self, n, seed):
        """`n` images of real numbers: (n, ..., H, W, C). Stochastic."""
        return self.mean + self.sigma * random.normal((n, *ops.shape(self.mean)), dtype=self.mean.dtype, seed=seed)

    def log_prob(self, x):
        """The log-density in nats: (..., H, W, C) -> (...)."""
        log_sigma = math.log(self.sigma) if isinstance(self.sigma, int | float) else ops.log(self.sigma)
        squared = ops.square((x - self.mean) / self.sigma)
        return -0.5 * ops.sum(LOG_2PI + 2 * log_sigma + squared, axis=IMAGE_AXES)


class Autoregressive(NamedTuple):
    """prod_i p(x_i | x_<i, planes), pixels in raster order; the event is an image (van den Oord et al. 2016, eq. 1).

    `pixels` maps images (M, H, W, C) and planes (M, H, W, P) to the distribution of all pixels, batch (M,);
    that of a pixel does not depend on itself or on later pixels. It looks back by at most `reach` rows, so it needs
    only these. Its mean would need a sum over all images. Shapes: planes (..., H, W, P); `image_shape` (H, W, C).
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
        distribution = self.pixels(x, ops.reshape(self.planes, (-1, *self.planes.shape[-3:])))
        return ops.reshape(distribution.log_prob(x), batch)

    def sample(self, n, seed, progress=lambda done: None):
        """`n` draws, pixel by pixel, H W passes: (n, ..., H, W, C). `progress` is told of each pass. Stochastic."""
        planes = ops.broadcast_to(self.planes, (n, *ops.shape(self.planes)))
        flat = ops.reshape(planes, (-1, *planes.shape[-3:]))  # (M, H, W, P)
        x = np.zeros((flat.shape[0], *self.image_shape), "float32")
        for row, column in np.ndindex(self.image_shape[:2]):
            start = max(0, row - self.reach)
            near = slice(start, start + self.reach + 1)  # of one height, for which all is compiled once
            distribution = self.pixels(ops.convert_to_tensor(x[:, near]), flat[:, near])
            x[:, row, column] = ops.convert_to_numpy(distribution.sample(1, seed))[0, :, row - start, column]
            progress(1)
        return ops.reshape(ops.convert_to_tensor(x), (*planes.shape[:-3], *self.image_shape))


def binarize(mean, seed):
    """One Bernoulli draw for each pixel mean in [0, 1]: the same shape, values 0 and 1. Stochastic."""
    noise = random.uniform(ops.shape(mean), dtype=mean.dtype, seed=seed)
    return ops.cast(noise < mean, mean.dtype)


LOG_SCALE = (-4.5, 0.0)  # and of a logistic's log-scale, for pixels in [0, 1]
MIXED_LOG_SCALE = (-8.0, 1.0)  # the same in a mixture, for pixels in [-1, 1]
COMPONENTS = 10  # logistics in a mixture


class Observation(NamedTuple):
    """How p(x|z) is made from the maps of a decoder: `of(maps, bound)` for maps (..., H, W, outputs(C)).

    `maps_of(mean)` are maps (H, W, outputs(C)), an array, whose p(x|z) has the mean (H, W, C), but for one near 0 or 1.
    Each function below makes one, given the sigma of Gaussian pixels.
    """

    outputs: Callable
    of: Callable
    maps_of: Callable


def _logit(mean):
    """log m / (1 - m) of an array, m at least 0.001 and at most 0.999."""
    return scipy.special.logit(np.clip(mean, 0.001, 0.999))


def bernoulli(sigma):
    """The Observation whose only map is the logits."""
    return Observation(lambda channels: channels, lambda maps, bound: Bernoulli(maps), _logit)


def discretized_logistic(sigma):
    """The Observation with a mean, squashed into [0, 1], and a bounded log-scale for each pixel and channel."""

    def of(maps, bound):
        mean, log_scale = ops.split(maps, 2, axis=-1)
        return DiscretizedLogistic(ops.sigmoid(mean), bound(log_scale, *LOG_SCALE))

    def maps_of(mean):
        return np.concatenate([_logit(mean), np.zeros_like(mean)], axis=-1)

    return Observation(lambda channels: 2 * channels, of, maps_of)


def mixture_of_logistics(sigma):
    """The Observation with ten logistics for each pixel: logits, means, bounded log-scales, and coefficients.

    Each logistic has 1 + 2 C + C (C - 1) / 2 = (C + 1) (C + 2) / 2 maps; its coefficients are squashed into [-1, 1].
    """

    def of(maps, bound):
        each = maps.shape[-1] // COMPONENTS
        channels = (math.isqrt(8 * each + 1) - 3) // 2
        parts = ops.reshape(maps, (*ops.shape(maps)[:-1], each, COMPONENTS))
        logits, location, log_scale, raw = ops.split(parts, [1, 1 + channels, 1 + 2 * channels], axis=-2)
        return MixtureOfLogistics(logits[..., 0, :], location, bound(log_scale, *MIXED_LOG_SCALE), ops.tanh(raw))

    def maps_of(mean):
        before, behind = 1, mean.shape[-1] * (mean.shape[-1] + 1) // 2  # logits; log-scales and coefficients
        return np.repeat(np.pad(2 * mean - 1, [(0, 0), (0, 0), (before, behind)]), COMPONENTS, axis=-1)

    return Observation(lambda channels: COMPONENTS * math.comb(channels + 2, 2), of, maps_of)


def pixels(sigma):
    """The Observation with a mean, squashed into [0, 1], and the same sigma everywhere."""
    return Observation(lambda channels: channels, lambda maps, bound: Pixels(ops.sigmoid(maps), sigma), _logit)
