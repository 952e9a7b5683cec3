"""A diffusion model as a prior: the network that predicts noise, and what is known of its density.

Variational diffusion of Kingma et al. (2021): u_t = alpha_t u + sigma_t eps with alpha_t^2 = sigmoid(-gamma_t) and
sigma_t^2 = sigmoid(gamma_t), gamma_t of a schedule of noise_schedules.py for t from 0 to 1. Vectors u are (..., D).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from keras import activations, backend, layers, ops, random

from . import NOISE_SCHEDULES, imported
from .distributions import LOG_2PI, itself
from .networks import built
from .noise_schedules import is_number

GROUPS = 16  # of a group normalisation, at most
GAMMA_1 = 7.0
PERIODS = 10_000  # ratio of the longest period of the embedding of time to the shortest
TIME = 1000.0  # that t in [0, 1] is multiplied by, else most of these periods would hardly be begun


class Diffused(NamedTuple):
    """The distribution of u (D,) that a diffusion model draws in `steps` steps, p(u_1) prod p(u_s | u_t) p(u | u_0).

    p(u_s | u_t) is q(u_s | u_t, u) at the u that `noise_of(u_t, t)`, the predicted eps (M, D), means; and p(u | u_0) =
    N(u_0 / alpha_0, exp(gamma_0)). Its density is known by estimates only: log_prob is one, and wants a seed.
    """

    noise_of: Callable
    schedule: object
    steps: int
    dim: int
    base = property(itself)

    def gamma(self, t):
        """The log of sigma_t^2 / alpha_t^2."""
        return self.schedule.start + (self.schedule.end - self.schedule.start) * self.schedule.share(t)

    def scales(self, t):
        """alpha_t and sigma_t, in NumPy for numbers t unless the schedule is learned."""
        gamma = self.gamma(t)
        if is_number(gamma):
            return np.sqrt(1 / (1 + np.exp(gamma))), np.sqrt(1 / (1 + np.exp(-gamma)))
        return ops.sqrt(ops.sigmoid(-gamma)), ops.sqrt(ops.sigmoid(gamma))

    def backward(self, s, t):
        """For numbers s < t, q(u_s | u_t, u) = N(a u_t + b u, c^2): a, b and c."""
        (alpha_s, sigma_s), (_, sigma_t), (ratio, between) = self.scales(s), self.scales(t), self.forward(s, t)
        b = alpha_s * between**2 / sigma_t**2
        return ratio * sigma_s**2 / sigma_t**2, b, between * sigma_s / sigma_t

    def forward(self, s, t):
        """For numbers s < t, q(u_t | u_s) = N(ratio u_s, between^2): both."""
        (alpha_s, _), (alpha_t, sigma_t), rise = self.scales(s), self.scales(t), self.gamma(t) - self.gamma(s)
        expm1, sqrt = (np.expm1, np.sqrt) if is_number(rise) else (ops.expm1, ops.sqrt)
        return alpha_t / alpha_s, sigma_t * sqrt(-expm1(-rise))

    def sample(self, n, seed, temperature=1.0):
        """`n` draws in `steps` steps: (n, D); variances are multiplied by `temperature`. Stochastic."""
        return self.walk(n, seed, temperature)[-1]

    def walk(self, n, seed, temperature=1.0):
        """`n` draws and their way out of the noise: u_t / alpha_t for falling t, then u, each (n, D). Stochastic."""
        root = math.sqrt(temperature)
        u = root * random.normal((n, self.dim), seed=seed)
        seen = [u / self.scales(1.0)[0]]
        for step in range(self.steps, 0, -1):
            s, t = (step - 1) / self.steps, step / self.steps
            a, b, c = self.backward(s, t)
            u = a * u + b * self.denoised(u, t) + root * c * random.normal((n, self.dim), seed=seed)
            seen.append(u / self.scales(s)[0])
        noise = root * math.exp(self.schedule.start / 2) * random.normal((n, self.dim), seed=seed)
        return [*seen, seen[-1] + noise]

    def denoised(self, u_t, t):
        """The u that the predicted noise means, (u_t - sigma_t eps) / alpha_t, for a number t: (M, D)."""
        alpha, sigma = self.scales(t)
        return (u_t - sigma * self.noise_of(u_t, t + ops.zeros(ops.shape(u_t)[:1]))) / alpha

    def log_prob(self, u, seed):
        """log of an unbiased estimate of the density, so at most that in expectation, in nats: (..., D) -> (...).

        It is log p(u_0, .., u_1, u) - log q(u_0, .., u_1 | u) for one path of q: a log-weight like any other.
        Stochastic. `steps` passes through the network.
        """
        flat = ops.reshape(u, (-1, self.dim))
        times = np.arange(self.steps + 1) / self.steps
        path = self._path(flat, times, seed)
        gap = (flat - path[0] / self.scales(0.0)[0]) * math.exp(-self.schedule.start / 2)
        first = -0.5 * ops.sum(LOG_2PI + self.schedule.start + ops.square(gap), axis=-1)  # log p(u | u_0)
        (alpha, sigma), end = self.scales(1.0), path[-1]
        last = log(sigma) + 0.5 * ops.square((end - alpha * flat) / sigma) - 0.5 * ops.square(end)
        total = first + ops.sum(last, axis=-1)  # log p(u_1) - log q(u_1 | u)
        starts = ops.concatenate(path[1:], axis=0)  # (T * M, D), u_t of all steps
        t = ops.repeat(ops.convert_to_tensor(times[1:].astype("float32")), ops.shape(flat)[0])
        alpha, sigma = (ops.expand_dims(value, -1) for value in self.scales(t))
        denoised = (starts - sigma * self.noise_of(starts, t)) / alpha
        denoised = ops.reshape(denoised, (self.steps, -1, self.dim))
        for step in range(self.steps):
            a, b, c = self.backward(float(times[step]), float(times[step + 1]))
            eps = (path[step] - a * path[step + 1] - b * flat) / c  # of the step, as q drew it
            off = b / c * (flat - denoised[step])
            total = total - ops.sum(off * eps + 0.5 * ops.square(off), axis=-1)
        return ops.reshape(total, ops.shape(u)[:-1])

    def _path(self, u, times, seed):
        """u_t of one path of q(u_0, .., u_1 | u), of each of rising `times`: a list of (M, D). Stochastic."""
        path, before = [], None
        for time in map(float, times):
            alpha, sigma = self.scales(time)
            noise = random.normal(ops.shape(u), dtype=u.dtype, seed=seed)
            if before is None:
                path.append(alpha * u + sigma * noise)
            else:
                ratio, between = self.forward(before, time)
                path.append(ratio * path[-1] + between * noise)
            before = time
        return path

    def bound(self, u, seed):
        """An estimate of - (L_0 + L_t + L_T), the bound of infinitely many steps, in nats: (..., D) -> (...).

        Unbiased, and so at most log p(u) in expectation, where p takes infinitely many steps. L_0 is its expectation,
        and t is spread evenly over all u, so that their mean varies less. Stochastic. One pass through the network.
        """
        flat = ops.reshape(u, (-1, self.dim))
        first, term, last = self.terms(flat, spread(ops.shape(flat)[0], flat.dtype, seed), seed)
        return ops.reshape(-first - term - last, ops.shape(u)[:-1])

    def terms(self, u, t, seed):
        """L_0, an expectation, L_t at times t (M,), and L_T of that bound for u (M, D): (), (M,), (M,). Stochastic."""
        noise = random.normal(ops.shape(u), dtype=u.dtype, seed=seed)
        alpha, sigma = (ops.expand_dims(value, -1) for value in self.scales(t))
        miss = ops.sum(ops.square(noise - self.noise_of(alpha * u + sigma * noise, t)), axis=-1)
        first = 0.5 * self.dim * (LOG_2PI + self.schedule.start + 1)
        alpha_1, sigma_1 = self.scales(1.0)
        last = 0.5 * ops.sum(alpha_1**2 * ops.square(u) + sigma_1**2 - 2 * log(sigma_1) - 1, axis=-1)
        return first, self.schedule.term(t, miss), last

    def terms_by_time(self, u, parts, seed):
        """L_0, the share of each of so many equal parts of the time in L_t, and L_T, all means over u (M, D): a list.

        Their sum is an estimate of the negative bound in nats, as of `bound`. Stochastic.
        """
        found = []
        for part in range(parts):
            t = (part + spread(ops.shape(u)[0], u.dtype, seed)) / parts
            first, term, last = self.terms(u, t, seed)
            found.append(float(ops.mean(term)) / parts)
        return [first, *found, float(ops.mean(last))]


def spread(count, dtype, seed):
    """So many times in [0, 1) at equal distances, beginning anywhere: (count,). Stochastic."""
    start = random.uniform((1,), dtype=dtype, seed=seed)
    return (start + ops.cast(ops.arange(count), dtype) / ops.cast(count, dtype)) % 1.0


class DiffusionPrior(layers.Layer):
    """The Diffused distribution of the maps (k, k, C), flattened, whose noise a ScoreNetwork predicts.

    The network is given share(t) of the schedule of this name, which is t of the linear one.
    """

    def __init__(self, shape, width, blocks, dropout, gamma_0, steps, schedule="linear"):
        super().__init__()
        self.shape, self.steps, self.schedule = (
            tuple(shape),
            steps,
            imported(NOISE_SCHEDULES[schedule])(gamma_0, GAMMA_1),
        )
        self.network = ScoreNetwork(shape[-1], width, blocks, dropout)
        self.floats_per_sample = (steps + 1) * math.prod(shape[:2]) * width * (12 * blocks + 16)
        self.built = True

    def distribution(self, dropout_seed=None):
        """The Diffused distribution over (k k C,). With `dropout_seed`, of a network whose units drop out by it."""

        def noise_of(u_t, t):
            time = self.schedule.share(t)
            maps = self.network(ops.reshape(u_t, (-1, *self.shape)), time, dropout_seed=dropout_seed)
            return ops.reshape(maps, (-1, math.prod(self.shape)))

        return Diffused(noise_of, self.schedule, self.steps, math.prod(self.shape))


def log(value):
    """The logarithm of a number or a tensor."""
    return np.log(value) if is_number(value) else ops.log(value)


def conv(features, filters, kernel=3, **kwargs):
    """A convolution of maps (M, h, w, features), built."""
    return built(layers.Conv2D(filters, kernel, padding="same", **kwargs), features)


def normalised(features):
    """A group normalisation of at most 16 groups, built."""
    return built(layers.GroupNormalization(math.gcd(GROUPS, features), epsilon=1e-5), features)


class TimedResidual(layers.Layer):
    """x + conv(drop(a(gn(conv(a(gn(x)))) (1 + scale) + shift)))), a = SiLU, scale and shift linear in a(time).

    The last convolution begins with zeros. x passes a linear 1x1 where the channels change.
    """

    def __init__(self, features, filters, width, dropout):
        super().__init__()
        self.before, self.first = normalised(features), conv(features, filters)
        self.of_time = built(layers.Dense(2 * filters), width)
        self.between, self.last = normalised(filters), conv(filters, filters, kernel_initializer="zeros")
        self.skip = conv(features, filters, 1) if features != filters else None
        self.dropout = dropout
        self.built = True

    def call(self, x, time, dropout_seed=None):
        """Maps (M, h, w, filters) of maps x and the embedded time (M, width)."""
        scale, shift = ops.split(self.of_time(activations.silu(time))[:, None, None], 2, axis=-1)
        h = self.between(self.first(activations.silu(self.before(x)))) * (1 + scale) + shift
        h = activations.silu(h)
        if self.dropout and dropout_seed is not None:
            h = random.dropout(h, self.dropout, seed=dropout_seed)
        return (self.skip(x) if self.skip else x) + self.last(h)


class Attention(layers.Layer):
    """x + linear(softmax(q k' / sqrt(C)) v) over the places of a map, with one head and zeros in `linear` at first."""

    def __init__(self, features):
        super().__init__()
        self.before, self.qkv = normalised(features), conv(features, 3 * features, 1)
        self.out = conv(features, features, 1, kernel_initializer="zeros")
        self.built = True

    def call(self, x):
        features = x.shape[-1]
        places = ops.reshape(self.qkv(self.before(x)), (-1, math.prod(x.shape[1:3]), 3 * features))
        q, k, v = ops.split(places, 3, axis=-1)  # (M, h w, C)
        weights = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 2, 1))) / math.sqrt(features), axis=-1)
        return x + self.out(ops.reshape(ops.matmul(weights, v), (-1, *x.shape[1:])))


class ScoreNetwork(layers.Layer):
    """eps of noisy maps (M, k, k, C) and times (M,): a U-Net of one resolution, which begins as zero.

    `blocks` residual blocks of `width` channels, one with attention in the middle, and blocks + 1 that are also given
    what came out of those before the middle, the last first.
    """

    def __init__(self, channels, width, blocks, dropout):
        super().__init__(autocast=False)  # times would lose their digits
        self.width = width
        self.time = [built(layers.Dense(width), width) for _ in range(2)]
        self.start = conv(channels, width)
        self.down = [TimedResidual(width, width, width, dropout) for _ in range(blocks)]
        self.middle = [TimedResidual(width, width, width, dropout) for _ in range(2)]
        self.attention = Attention(width)
        self.up = [TimedResidual(2 * width, width, width, dropout) for _ in range(blocks + 1)]
        self.end = normalised(width)
        self.out = conv(width, channels, kernel_initializer="zeros", dtype=backend.floatx())
        self.built = True

    def call(self, u, t, dropout_seed=None):
        half = self.width // 2
        rates = np.exp(-math.log(PERIODS) * np.arange(half) / half).astype("float32")
        angles = TIME * ops.expand_dims(t, -1) * rates
        waves = ops.concatenate([ops.cos(angles), ops.sin(angles)], axis=-1)  # (M, width), of rising periods
        time = self.time[1](activations.silu(self.time[0](waves)))
        passed = [self.start(u)]
        for block in self.down:
            passed.append(block(passed[-1], time, dropout_seed=dropout_seed))
        h = self.middle[0](passed[-1], time, dropout_seed=dropout_seed)
        h = self.middle[1](self.attention(h), time, dropout_seed=dropout_seed)
        for block in self.up:
            h = block(ops.concatenate([h, passed.pop()], axis=-1), time, dropout_seed=dropout_seed)
        return self.out(activations.silu(self.end(h)))
