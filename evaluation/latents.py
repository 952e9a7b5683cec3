"""What the latents of a trained model carry: rates by layer, active units, ELBO surgery, components in use."""

from typing import NamedTuple

import keras
import numpy as np
import scipy.special
from keras import ops

from evaluation.compiled import Compiled
from models.distributions import Mixture

BATCH = 500  # images, or latents, at once
ACTIVE = 0.01  # variance of a posterior mean over the images, above which a unit counts (Burda et al. 2016)


class Latents(NamedTuple):
    """What `latents` finds of N images and one sample z ~ q(z|x) each; lists have an entry a layer, the top one first.

    `rates` are E[log q(z_l|.) - log p(z_l|.)] in nats, whose sum is the rate. `active_units` are the dimensions whose
    posterior mean has a variance over the images above 0.01, of `units`; a lower layer's mean is the one at the mean of
    the layer above. With q(z) = (1/N) sum_n q(z|x_n), the top layer's rate is `mutual_information`, E[log q(z|x) -
    log q(z)], at most log N, plus `marginal_kl`, KL(q(z) || p(z)) (Hoffman & Johnson 2016). `components_in_use` is the
    perplexity exp(H(r)) of the mean responsibilities r_k = E[p(k|z)] of a mixture prior, of 1 to K; None without one.
    Where the density of the prior is known by a bound only, `marginal_kl` and the top rate are bounds from above.
    """

    rates: list
    active_units: list
    units: list
    mutual_information: float
    marginal_kl: float
    components_in_use: float | None


def latents(model, images, seed=0):
    """The `Latents` of a model on images (N, H, W, C). Stochastic, a function of `seed`."""
    noise, top = keras.random.SeedGenerator(seed), model.prior().top
    parts, moved = [], Spread()
    for start in range(0, len(images), BATCH):
        means, *rest = _of_batch(model, images[start : start + BATCH], noise)
        moved.add(means)  # (B, D), which are many in a deep model
        parts.append(rest)
    rates, own, z, top_means, top_logvars = (np.concatenate(part) for part in zip(*parts, strict=True))
    law = model.posterior(ops.convert_to_tensor(images[:1])).top
    information = float(np.mean(own - _log_average(law, z, top_means, top_logvars)))
    rates = [float(rate) for rate in rates.mean(axis=0, dtype="float64")]
    active = np.split(moved.variance() > ACTIVE, np.cumsum(model.sizes)[:-1])
    return Latents(
        rates=rates,
        active_units=[int(layer.sum()) for layer in active],
        units=list(model.sizes),
        mutual_information=information,
        marginal_kl=rates[0] - information,
        components_in_use=perplexity(responsibilities(top, z)) if isinstance(top.base, Mixture) else None,
    )


class Spread:
    """The variances of rows (B, D) that come in batches, around the mean of them all."""

    def __init__(self):
        self.count, self.start, self.total, self.squares = 0, 0.0, 0.0, 0.0

    def add(self, rows):
        """Takes rows (B, D) into account."""
        if not self.count:
            self.start = rows.mean(axis=0)  # near the mean of all: squares lose no digits
        off = rows.astype("float64") - self.start
        self.count += len(rows)
        self.total, self.squares = self.total + off.sum(axis=0), self.squares + np.square(off).sum(axis=0)

    def variance(self):
        """Over all rows so far: (D,)."""
        return self.squares / self.count - np.square(self.total / self.count)


def _of_batch(model, x, noise):
    """Posterior means (B, D), rates (B, L); of the top layer log q(z|x) (B,), z, mean and log-variance (B, D2)."""
    x = ops.convert_to_tensor(x)
    posterior = model.posterior(x)
    top = posterior.top
    z, log_q = top.sample_and_log_prob(1, noise)
    values = (posterior.at_mean().mean, model.rates(x, noise), log_q[0], z[0], top.base.mean, top.base.logvar)
    return [ops.convert_to_numpy(value) for value in values]


def _in_batches(function, z):
    parts = [ops.convert_to_numpy(function(z[start : start + BATCH])) for start in range(0, len(z), BATCH)]
    return np.concatenate(parts)


def _log_average(law, z, means, logvars):
    """log (1/N) sum_n q(z | x_n) in nats of all z (N, D), q having these means and log-variances, (N, D): (N,) float64.

    `law` tells how q is bent, if it is. In double precision: of narrow ones far apart, single leaves few digits.
    """
    log_det = 0.0
    if law.base is not law:
        y = [
            law.transform.inverse(ops.convert_to_tensor(z[start : start + BATCH])) for start in range(0, len(z), BATCH)
        ]
        z, log_det = (np.concatenate([ops.convert_to_numpy(one) for one in part]) for part in zip(*y, strict=True))
    z, means, precision = (part.astype("float64") for part in (z, means, np.exp(-logvars)))
    both = np.concatenate([precision, -2 * means * precision], axis=1)  # (N, 2D)
    constant = np.sum(np.log(2 * np.pi) + logvars + means**2 * precision, axis=1)
    parts = []
    for start in range(0, len(z), BATCH):
        rows = z[start : start + BATCH]
        squared = np.concatenate([rows**2, rows], axis=1) @ both.T
        parts.append(scipy.special.logsumexp(-0.5 * (squared + constant), axis=1))
    return np.concatenate(parts) - np.log(len(means)) - log_det


class Joint(Compiled):
    """Images (B, H, W, C) and as many latents (B, D) to log p(x, z) of each pair, in nats: one array, (B,).

    Compiled with log p(z), of which XLA rounds more than `quadrature` bears, and less than a figure shows.
    """

    def call(self, inputs):
        x, z = inputs
        z = ops.expand_dims(z, 0)
        return [(self.model.likelihood(z).log_prob(x) + self.prior().log_prob(z))[0]]


def responsibilities(mixture, z):
    """The mean of p(k|z) over latents z (N, D): how much of them each component stands for, (K,) float64."""

    def shares(part):  # for K = 1 Keras would warn of a softmax
        log_parts = mixture.log_parts(part)
        return ops.exp(log_parts - ops.logsumexp(log_parts, axis=-1, keepdims=True))

    return _in_batches(shares, z).mean(axis=0, dtype="float64")


def perplexity(shares):
    """exp of the entropy of shares (K,): how many components are in use, of 1 to K."""
    used = shares[shares > 0]
    return float(np.exp(-np.sum(used * np.log(used))))
