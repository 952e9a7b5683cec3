"""What the latents of a trained model encode: rates per layer, active units, ELBO surgery, components in use."""

import math
from typing import NamedTuple

import keras
import numpy as np
import scipy.optimize
import scipy.special
from keras import ops

from evaluation.compiled import Compiled, KeyedSeeds, NotFiniteError, by_image, evenly
from evaluation.proposals import EXPECTED, MOMENTS
from models.distributions import Mixture, Upward

BATCH = 500  # images, or latents, at once
PAIRS = 1 << 21  # of a latent and a component, of which temporaries have several numbers, at once
CHUNK_BYTES = 64 * 2**20  # of activations of weighted draws in one call
DRAWS = 20_000  # of all images together, but two of each at least, and no more than estimators of the ELBO draw
ACTIVE = 0.01  # variance over the images of a posterior mean, above which a unit is active (Burda et al. 2016)


class Latents(NamedTuple):
    """Statistics of N images and samples z ~ q(z|x) of each; lists have one entry per layer, the top layer first.

    `rates` are E[log q(z_l|.) - log p(z_l|.)] in nats, whose sum is the rate, and `rates_se` their Monte-Carlo
    errors, None where `with_rate` has replaced an estimate by a better one. `active_units` counts the dimensions,
    of `units`, whose posterior mean has a variance above 0.01 over the images; a layer's mean is taken at the mean
    of the layer that it is drawn from. With q(z) = (1/N) sum_n q(z|x_n), the top layer's rate is
    `mutual_information`, E[log q(z|x) - log q(z)], at most log N, plus `marginal_kl`, KL(q(z) || p(z)) (Hoffman &
    Johnson 2016). `components_in_use` is the perplexity exp(H(r)) of the mean responsibilities r_k = E[p(k|z)] of a
    mixture prior, between 1 and K; None for other priors. So are `clusters`, what `told_apart` says, which needs
    labels too. If only a bound on the prior's density is known, `marginal_kl` and the top rate are upper bounds.
    Where q(z|x) of the top layer is an integral, as `Upward` is, mutual information and marginal KL are None, and z
    is drawn at the mean of the layer below.
    """

    rates: list
    rates_se: list | None
    active_units: list
    units: list
    mutual_information: float | None
    marginal_kl: float | None
    components_in_use: float | None
    clusters: dict | None = None

    def with_rate(self, rate):
        """These with the rate of an estimator of the ELBO, if there is one layer alone and the rate is known."""
        if len(self.rates) > 1 or not np.isfinite(rate):
            return self
        return self._replace(rates=[rate], rates_se=None, marginal_kl=rate - self.mutual_information)


def at_once(count):
    """How many latents are compared at once with `count` components or posteriors: at most BATCH."""
    return max(1, min(BATCH, PAIRS // count))


def latents(model, images, seed=0, labels=None):
    """The `Latents` of a model on images (N, H, W, C), of classes `labels` (N,). Stochastic, a function of `seed`."""
    noise, prior, parts, moments = keras.random.SeedGenerator(seed), model.prior(), [], 0.0
    draws = max(2, min(DRAWS // len(images), EXPECTED if model.layer_rates else MOMENTS))  # an error needs two
    rows = BATCH // draws
    for start in range(0, len(images), rows):
        x = ops.convert_to_tensor(images[start : start + rows])
        posterior = model.posterior(x)
        top = posterior.top
        z, log_q = (by_image(value) for value in top.sample_and_log_prob(draws // 2, noise))
        rates = by_image(model.rates(x, draws, noise, prior))  # (B, n, L)
        values = (posterior.at_mean().mean, rates, log_q, z, top.base.mean, top.base.logvar)
        means, *rest = (ops.convert_to_numpy(value) for value in values)
        means = means.astype("float64")  # (B, D): too large to keep for a deep model
        moments += np.stack([means, means**2]).sum(axis=1) / len(images)
        parts.append(rest)
    rates, own, z, top_means, top_logvars = (np.concatenate(part) for part in zip(*parts, strict=True))
    each, z = z, z.reshape(-1, z.shape[-1])
    information = float(np.mean(own.ravel() - log_aggregate(top, z, top_means, top_logvars)))
    rates, errors = rates.astype("float64"), rates.var(axis=1, ddof=1, dtype="float64").sum(axis=0) / rates.shape[1]
    rates, errors = rates.mean(axis=(0, 1)).tolist(), (np.sqrt(errors) / len(images)).tolist()
    layers = np.split(moments[1] - moments[0] ** 2 > ACTIVE, np.cumsum(model.sizes)[:-1])
    active, units = [int(layer.sum()) for layer in layers], list(model.sizes)
    surgery = (None, None) if isinstance(posterior, Upward) else (information, rates[0] - information)
    found = Latents(rates, errors, active, units, *surgery, None)
    if not isinstance(prior.top.base, Mixture):
        return found
    few = prior.top.base.mean.shape[0] <= len(images)  # else nearly each image has a component of its own
    classes = told_apart(prior.top, each, labels) if few and labels is not None else None
    return found._replace(components_in_use=perplexity(responsibilities(prior.top, z)), clusters=classes)


def log_aggregate(posterior, z, means, logvars):
    """log (1/N) sum_n q(z | x_n) in nats of all z (M, D), q with these means and log-variances (N, D): (M,) float64.

    `posterior` is a q(z|x) of this kind, whose flow, if any, is inverted. In double precision, as single precision
    leaves few digits for narrow densities far apart.
    """
    log_det, rows = 0.0, at_once(len(means))
    starts = range(0, len(z), rows)
    if posterior.base is not posterior:
        y = [posterior.transform.inverse(ops.convert_to_tensor(z[start : start + rows])) for start in starts]
        z, log_det = (np.concatenate([ops.convert_to_numpy(one) for one in part]) for part in zip(*y, strict=True))
    z, means, precision = (part.astype("float64") for part in (z, means, np.exp(-logvars)))
    both = np.concatenate([precision, -2 * means * precision], axis=1)  # (N, 2D)
    constant = np.sum(np.log(2 * np.pi) + logvars + means**2 * precision, axis=1)
    squared = (np.concatenate([z**2, z], axis=1)[start : start + rows] @ both.T for start in starts)
    parts = [scipy.special.logsumexp(-0.5 * (part + constant), axis=1) for part in squared]
    return np.concatenate(parts) - np.log(len(means)) - log_det


class Weighted(NamedTuple):
    """What S weighted draws z ~ q(z|x) of each of N images say of p(z|x); weights are p(x, z) / q(z|x), normalised.

    `mean` (N, D) is sum_s w_s z_s, `resampled` (N, n, D) are n of the draws, chosen by their weights, and `ess` (N,) is
    1 / sum_s w_s^2. With S, mean and distribution tend to those of p(z|x).
    """

    mean: np.ndarray
    resampled: np.ndarray
    ess: np.ndarray


def weighted(model, images, num_samples, n, seed=0):
    """The `Weighted` of images (N, H, W, C), by S = `num_samples` draws. Stochastic, a function of `seed`.

    Raises NotFiniteError for a log-weight that is NaN.
    """

    def draw(self, x, key):
        z, log_q = self.model.posterior(x).sample_and_log_prob(each, KeyedSeeds(key))
        return by_image(z), by_image(self.log_joint(x)(z)[0] - log_q)  # (B, each, D), (B, each)

    most = max(1, CHUNK_BYTES // model.bytes_per_sample)
    each = evenly(num_samples, most)  # draws of an image in a call
    call, rows, calls = Compiled(model, draw), max(1, most // each), math.ceil(num_samples / each)
    rng, seeds, parts = np.random.default_rng(seed), np.random.SeedSequence(seed), []
    for start in range(0, len(images), rows):
        batch = [images[start : start + rows]]
        z, log_w = (np.concatenate(one, axis=1)[:, :num_samples]
                    for one in zip(*(call.on(batch, rows, seeds) for _ in range(calls)), strict=True))  # fmt: skip
        NotFiniteError.check(start, log_w.max(axis=1))
        w = scipy.special.softmax(log_w, axis=1)
        chosen = np.stack([rng.choice(num_samples, n, p=one) for one in w])
        resampled = np.take_along_axis(z, chosen[..., None], axis=1).astype("float32")
        parts.append(((w[..., None] * z).sum(axis=1).astype("float32"), resampled, 1 / np.square(w).sum(axis=1)))
    return Weighted(*map(np.concatenate, zip(*parts, strict=True)))


def joint_of(model):
    """A Compiled from images (B, H, W, C) and latents (B, D) to log p(x, z) of each pair, in nats: one array, (B,).

    Compiled with log p(z), which XLA rounds more than `quadrature` tolerates, but less than a figure shows.
    """
    return Compiled(model, lambda self, x, z: [self.log_joint(x)(ops.expand_dims(z, 0))[0][0]])


def responsibilities(mixture, z):
    """The mean of p(k|z) over latents z (N, D), the share of each component of a mixture: (K,) float64."""
    rows = at_once(mixture.base.mean.shape[0])
    parts = (shares(mixture, z[start : start + rows]) for start in range(0, len(z), rows))
    return sum(part.sum(axis=0, dtype="float64") for part in parts) / len(z)


def shares(mixture, z):
    """p(k|z) of latents (..., D): an array (..., K)."""
    log_parts = mixture.log_parts(z)  # not by a softmax, of which Keras would warn for K = 1
    return ops.convert_to_numpy(ops.exp(log_parts - ops.logsumexp(log_parts, axis=-1, keepdims=True)))


def told_apart(mixture, z, labels):
    """How well the components of a mixture tell the classes of N images apart, by samples z (N, n, D): a dict.

    An image belongs to the component with its highest mean p(k|z). `accuracy` has one component for each class at most,
    by the best assignment; in `accuracy_merged`, as Stirn & Knowles (2024) count, each component has the class of the
    image that is most surely its own. `nmi`, `ari`: normalised mutual information and adjusted Rand index of components
    and classes; `used`: components that some image belongs to.
    """
    from sklearn import metrics

    chosen, owner, highest, rows = [], 0, 0.0, max(1, at_once(mixture.base.mean.shape[0]) // z.shape[1])
    for start in range(0, len(z), rows):
        part = shares(mixture, z[start : start + rows]).mean(axis=1)  # (B, K)
        chosen.append(part.argmax(axis=1))
        owner = np.where(part.max(axis=0) > highest, start + part.argmax(axis=0), owner)
        highest = np.maximum(highest, part.max(axis=0))
    chosen = np.concatenate(chosen)
    counts = metrics.cluster.contingency_matrix(labels, chosen)
    hits = counts[scipy.optimize.linear_sum_assignment(counts, maximize=True)].sum()
    found = {"accuracy": hits / len(z), "accuracy_merged": np.mean(labels[owner[chosen]] == labels)}
    found |= {"nmi": metrics.normalized_mutual_info_score(labels, chosen)}
    found |= {"ari": metrics.adjusted_rand_score(labels, chosen)}
    return {name: float(value) for name, value in found.items()} | {"used": counts.shape[1]}


def perplexity(shares):
    """exp of the entropy of shares (K,), the number of components in use: between 1 and K."""
    used = shares[shares > 0]
    return float(np.exp(-np.sum(used * np.log(used))))
