"""Distributions as values: NamedTuples of tensors, without weights.

Each has two primitives, `sample(n, seed)` and a normalised `log_prob(value)`; axes are always sample, batch, event.
`log_prob` removes the event axes. `seed` is a `keras.random.SeedGenerator`: an integer would give the several draws
inside one sample the same noise.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from keras import backend, ops, random

from .gradients import either

LOG_2PI = math.log(2 * math.pi)
MOST_SQUARES = 1e4  # sum m^2 / v of a component, above which float32 loses some 1e-3 nats
SURE = -60.0, -1e-6  # bounds of log Z, within which float32 has (1 - Z)^(T - 1) and its complement
BLOCK = 4096  # components at once, in densities and in draws
AT_HAND = 2**16  # proposals whose acceptance is computed at once
AT_ONCE = 8  # dimensions, where differences from the means are computed first


def itself(distribution):
    """The distribution itself, which has no parts: its `top` (see `Chain`), `base` (see `Flow`) or `at_mean`."""
    return distribution


def _one_layer(distribution, z):
    """log_prob of the only layer, as a tuple: ((...),)."""
    return (distribution.log_prob(z),)


class Normal(NamedTuple):
    """N(mean, diag exp(logvar)); the event is the last axis. Shapes: mean and logvar (..., D)."""

    mean: object
    logvar: object
    log_prob_of_layers = _one_layer
    top = base = property(itself)
    at_mean = itself

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


def warmed(distribution, temperature):
    """A Normal or a Mixture with its variances multiplied by `temperature`, or a Flow of such a one."""
    if temperature == 1:
        return distribution
    if "base" in distribution._fields:
        return distribution._replace(base=warmed(distribution.base, temperature))
    return distribution._replace(logvar=distribution.logvar + math.log(temperature))


class Flow(NamedTuple):
    """The distribution of forward(y) for y ~ `base`, a Normal or a Mixture (Dinh et al. 2017, eq. 2).

    The event is the last axis. `transform` has `forward` and its `inverse`; both also return the
    log-determinant of `forward`.
    """

    base: object
    transform: object
    log_prob_of_layers = _one_layer
    top = property(itself)
    at_mean = itself

    @property
    def mean(self):
        """The transformed mean of the base, which is not exactly the mean: (..., D)."""
        return self.transform.forward(self.base.mean)[0]

    @property
    def logvar(self):
        """The log-variance of the base, before the transform: (..., D)."""
        return self.base.logvar

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


class Mixture(NamedTuple):
    """sum_k exp(log_weights[k]) N(mean[k], diag exp(logvar[k])). Shapes: log_weights (K,), mean and logvar (K, D)."""

    log_weights: object
    mean: object
    logvar: object
    log_prob_of_layers = _one_layer
    top = base = property(itself)

    def sample(self, n, seed):
        """`n` draws: a component by its weight, then a point of that component: (n, D). Stochastic."""
        k = _drawn(self.log_weights, n, seed)
        chosen = Normal(ops.take(self.mean, k, axis=0), ops.take(self.logvar, k, axis=0))
        return chosen.sample(1, seed)[0]

    def sample_and_log_prob(self, n, seed):
        """`n` draws and their log-densities: (n, D) and (n,). Stochastic."""
        z = self.sample(n, seed)
        return z, self.log_prob(z)

    def log_prob(self, z):
        """log-sum-exp over the K components in nats: (..., D) -> (...). Of many, a block after the other."""
        if (k := self.mean.shape[0]) <= BLOCK:
            return log_sum_exp(self.log_parts(z))
        blocks = (Mixture(*(part[start : start + BLOCK] for part in self)) for start in range(0, k, BLOCK))
        return log_sum_exp(ops.stack([block.log_prob(z) for block in blocks], axis=-1))

    def log_parts(self, z):
        """log of weight times density of each component: (..., D) -> (..., K).

        (z - m)^2 / v is z^2 / v - 2 z m / v + m^2 / v, so that a product of matrices takes the place of a
        (..., K, D) temporary. Near a component, the rounding of these terms is that of m^2 / v, where 0 is the mean of
        all means; where this would be more than some 1e-3 nats, the differences are computed first.
        """
        centre = ops.mean(self.mean, axis=0)
        z, mean, precision = z - centre, self.mean - centre, ops.exp(-self.logvar)
        constant = self.log_weights - 0.5 * ops.sum(LOG_2PI + self.logvar, axis=-1)  # (K,)
        squares = ops.sum(ops.square(mean) * precision, axis=-1)
        return either(
            ops.max(squares) > MOST_SQUARES,
            lambda: constant - 0.5 * _squared_distances(z, mean, precision),
            lambda: _by_product(z, mean, precision, constant - 0.5 * squares),
        )


def _drawn(log_weights, n, seed):
    """`n` indices of components by their weights (K,). Stochastic.

    Many components are laid in sqrt(K) rows: a row is drawn, and then a component within it, since JAX draws noise for
    each one that it chooses from.
    """
    if (k := log_weights.shape[0]) <= BLOCK:
        return random.categorical(ops.expand_dims(log_weights, 0), n, seed=seed)[0]
    size = math.isqrt(k - 1) + 1
    rows = ops.reshape(ops.pad(log_weights, (0, size**2 - k), constant_values=-math.inf), (size, size))
    row = random.categorical(ops.expand_dims(log_sum_exp(rows), 0), n, seed=seed)[0]
    within = random.categorical(ops.take(rows, row, axis=0), 1, seed=seed)[:, 0]
    return row * size + within


class Mixtures(NamedTuple):
    """A mixture for each of B images, of the same components: log_weights (B, K), mean and logvar (K, D)."""

    log_weights: object
    mean: object
    logvar: object

    def log_prob(self, z):
        """log-sum-exp over the K components in nats: (..., B, D) -> (..., B)."""
        same = Mixture(ops.zeros_like(self.mean[:, 0]), self.mean, self.logvar)
        return log_sum_exp(self.log_weights + same.log_parts(z))


def _by_product(z, mean, precision, constant):
    """constant - z^2 precision / 2 + z mean precision, summed over the event: (..., D) -> (..., K)."""
    of_component = ops.concatenate([-0.5 * precision, mean * precision, ops.expand_dims(constant, -1)], axis=-1)
    of_z = ops.concatenate([ops.square(z), z, ops.ones_like(z[..., :1])], axis=-1)  # (..., 2D + 1)
    return ops.matmul(of_z, ops.transpose(of_component))


def _squared_distances(z, mean, precision):
    """sum (z - mean)^2 precision, over a few dimensions of the event at a time: (..., D) -> (..., K)."""
    total = 0.0
    for first in range(0, z.shape[-1], AT_ONCE):
        some = slice(first, first + AT_ONCE)
        off = ops.expand_dims(z[..., some], -2) - mean[:, some]  # (..., K, AT_ONCE)
        total = total + ops.sum(ops.square(off) * precision[:, some], axis=-1)
    return total


class Resampled(NamedTuple):
    """Of at most T = `proposals` draws z of `base`, the first that is accepted, with probability a(z), or the last one.

    p(z) = base(z) ((1 - (1 - Z)^(T - 1)) a(z) / Z + (1 - Z)^(T - 1)) with Z = E[a(z)] (Bauer & Mnih 2019, eq. 8).
    `log_accept` maps z (..., D) to log a(z) (...). It is normalised as far as `log_z`, a scalar, is log Z.
    """

    base: object
    log_accept: Callable
    log_z: object
    proposals: int
    log_prob_of_layers = _one_layer
    top = property(itself)

    def sample(self, n, seed):
        """`n` draws, by this procedure with T n proposals: (n, D). Stochastic."""
        z = self.base.sample(self.proposals * n, seed)
        z = ops.reshape(z, (self.proposals, n, z.shape[-1]))
        one_by_one = self.proposals * n > AT_HAND  # with the activations of all of them, gigabytes
        log_accept = ops.map(self.log_accept, z) if one_by_one else self.log_accept(z)
        kept = ops.log(random.uniform((self.proposals, n), dtype=z.dtype, seed=seed)) < log_accept
        kept = ops.concatenate([ops.cast(kept[:-1], z.dtype), ops.ones_like(z[:1, :, 0])])
        first = ops.reshape(ops.argmax(kept, axis=0), (1, n, 1))
        return ops.take_along_axis(z, first, axis=0)[0]

    def log_prob(self, z):
        """In nats: (..., D) -> (...)."""
        log_z = ops.clip(self.log_z, *SURE)
        log_last = (self.proposals - 1) * ops.log1p(-ops.exp(log_z))
        log_earlier = ops.log(-ops.expm1(log_last)) + self.log_accept(z) - log_z
        return self.base.log_prob(z) + ops.logaddexp(log_earlier, log_last)

    def sample_and_log_prob(self, n, seed):
        """`n` draws and their log-densities: (n, D) and (n,). Stochastic."""
        z = self.sample(n, seed)
        return z, self.log_prob(z)


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


class Upward(NamedTuple):
    """p(bottom) p(top | bottom) over the concatenation [top, bottom] along the last axis: a `Chain`, drawn upwards.

    `conditional` maps bottom (..., D1) to a Normal or a Flow over top (..., D2); `split` is D2.
    """

    bottom: object
    conditional: Callable
    split: int

    @property
    def top(self):
        """p(top | mean of bottom), in the place of p(top), which is an integral."""
        return self.conditional(self.bottom.mean)

    def sample(self, n, seed):
        """`n` ancestral draws, bottom first: (n, ..., D2 + D1). Stochastic."""
        return self.sample_and_log_prob(n, seed)[0]

    def log_prob(self, z):
        """log p(bottom) + log p(top | bottom) in nats: (..., D2 + D1) -> (...)."""
        return sum(self.log_prob_of_layers(z))

    def log_prob_of_layers(self, z):
        """log p(top | bottom) and log p(bottom), in nats: (..., D2 + D1) -> two of (...)."""
        top, bottom = z[..., : self.split], z[..., self.split :]
        return self.conditional(bottom).log_prob(top), self.bottom.log_prob(bottom)

    def sample_and_log_prob(self, n, seed):
        """As `sample` and `log_prob`, with one pass through `conditional`: (n, ..., D2 + D1) and (n, ...)."""
        bottom, log_bottom = self.bottom.sample_and_log_prob(n, seed)
        top, log_top = self.conditional(bottom).sample_and_log_prob(1, seed)
        return ops.concatenate([top[0], bottom], axis=-1), log_top[0] + log_bottom

    def at_mean(self):
        """The Normal over [top, bottom] whose top is that at the mean of bottom; for embeddings, not densities."""
        top, bottom = self.top, self.bottom
        mean = ops.concatenate([top.mean, bottom.mean], axis=-1)
        return Normal(mean, ops.concatenate([top.logvar, bottom.logvar], axis=-1))


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
