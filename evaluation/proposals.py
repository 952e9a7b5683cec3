"""The densities from which importance sampling draws latents: q(z|x), or a t-density fitted to p(z|x) per image."""

import math
from typing import NamedTuple

import numpy as np
from keras import ops, random

from evaluation.compiled import Compiled, KeyedSeeds, NotFiniteError, by_image, evenly, key_of
from models.gradients import value_and_gradient

MOMENTS = 64  # draws of q(z|x), whose mean and variances start a fit
EXPECTED = 20  # draws of q(z|x) that estimate the ELBO of a deep model
MOST_ROUNDS = 6  # of a fit
GRADIENT = 2  # samples that take as long as one gradient, or somewhat longer
SETTLED = 0.5  # nats, KL(new || old) of the Gaussians: a round that changes a fit less is the last one
FEWEST_POINTS = 32  # in a round of a fit, at least
NARROWEST, WIDEST = 0.25, 10.0  # limits of a curvature in one round, relative to that of the round before
WIDER = 1.05  # times the fitted scale, as a proposal should rather be too wide than too narrow
HEAVIEST = 3  # degrees of freedom of the tails, at least: posteriors of few dimensions differ most from a Gaussian
DEFENSIVE = 0.1  # share of draws from q(z|x), so that no weight is more than ten times as large as with q alone


class Calls(NamedTuple):
    """How the samples of images are divided into compiled calls.

    S = `num_samples` are drawn per image, in calls of `n` samples for each of `rows` images; other calls have at most
    `most` samples. At most `images` are prepared before their samples are drawn.
    """

    num_samples: int
    n: int
    rows: int
    most: int
    images: int


class PosteriorProposal(Compiled):
    """Draws of q(z|x): one compiled call from images (B, H, W, C) to the log-weights of n samples each.

    Like every proposal, it is made for `calls`, takes `at_once` images at a time, and may be used by several threads:
    what it draws is a function of the SeedSequence that it gets.
    """

    def __init__(self, model, calls):
        super().__init__(model)
        self.n, self.at_once = calls.n, calls.rows
        self.expected = ExpectedTerms(model, self) if model.layer_rates else None
        self.draws_terms = self.expected is None  # its draws estimate the ELBO too
        self.expected_rows = max(1, min(calls.most // EXPECTED, self.at_once))

    def call(self, inputs):
        """log p(x|z) and log p(z) - log q(z|x), each (B, n), of images (B, H, W, C) and a key. Stochastic."""
        x, key = inputs
        terms = self.model.terms(x, self.n, KeyedSeeds(key), self.prior())
        return ops.transpose(terms.log_px_z), ops.transpose(terms.log_pz - terms.log_qz_x)

    def prepared(self, x, first, seeds):
        """The arrays of B rows that `drawn` takes for images (B, H, W, C), and the expectations of log p(x|z) and
        log p(z) - log q(z|x), each (B, EXPECTED), of a model that knows them, else None.
        """
        return [x], None if self.expected is None else self.expected.on([x], self.expected_rows, seeds)

    def drawn(self, arrays, seeds):
        """`call` on these arrays, as float64."""
        return [np.asarray(part, "float64") for part in self.predict_on_batch([*arrays, key_of(seeds)])]


class ExpectedTerms(Compiled):
    """From images and a key to log p(x|z) and log p(z) - log q(z|x) of a model's `expected_terms`, each (B, EXPECTED).
    Stochastic.
    """

    def call(self, inputs):
        x, key = inputs
        terms = self.model.expected_terms(x, EXPECTED, KeyedSeeds(key))
        return ops.transpose(terms.log_px_z), ops.transpose(terms.log_pz - terms.log_qz_x)


class FittedProposal:
    """Draws of (1 - a) t(z; mean, scale scale') + a q(z|x), a = 0.1, with a t-density fitted to p(z|x) of each image.

    A round of the fit draws points e on the sphere of radius sqrt(D), in orthogonal pairs +e and -e, and computes the
    gradients g of log p(x, z) at z = mean + scale e with respect to e. By Stein's lemma, E[g] and -E[e g'] are the mean
    gradient and curvature under a Gaussian; the next Gaussian is that of the quadratic with this gradient and curvature
    (the fixed point of variational inference with a full covariance: Opper & Archambeau 2009, eq. 14). The fit of an
    image ends with the first round that changes it little, after some 4 D gradients, or up to 12 D if q(z|x) is far
    from p(z|x). Rounds after the first take no more work than S samples. The t-density has D degrees of freedom; the
    share of q is defensive importance sampling (Hesterberg 1995).
    """

    draws_terms = False

    def __init__(self, model, calls):
        self.start = InitialDraws(model)
        self.gradients = Gradients(model, self.start)
        self.draws = FittedDraws(model, calls.n, self.start)
        self.num_samples, self.most = calls.num_samples, calls.most
        self.at_once = min(calls.images, max(calls.rows, calls.most // MOMENTS))

    def prepared(self, x, first, seeds):
        """The arrays of B rows that `drawn` takes for images (B, H, W, C), and log p(x|z) and log p(z) - log q(z|x) of
        draws of q(z|x), each (B, MOMENTS). Stochastic. Raises NotFiniteError for NaN, counting images from `first`.
        """
        of_start, of_rounds = seeds.spawn(2)
        rng = np.random.default_rng(of_rounds)
        log_px_z, log_ratio, z = self.start.on([x], evenly(self.at_once, self.most // MOMENTS), of_start)
        NotFiniteError.check(first, log_px_z, log_ratio, z)
        mean, dim = z.mean(axis=1), z.shape[-1]
        scale = z.std(axis=1)[:, :, None] * np.eye(dim)
        turns = math.ceil(FEWEST_POINTS / (2 * dim))
        rows = evenly(self.at_once, self.most // (6 * dim * turns))  # a gradient takes more memory than a value
        moving = np.arange(len(x))
        for _ in range(min(MOST_ROUNDS, 1 + self.num_samples // (GRADIENT * 2 * dim * turns))):
            e = directions(rng, len(moving), dim, turns)
            mean[moving], scale[moving], change = self._round(x[moving], mean[moving], scale[moving], e, rows)
            moving = moving[change > SETTLED]
            if not len(moving):
                break
        scale = WIDER * scale
        values = [mean, scale, np.linalg.inv(scale), np.linalg.slogdet(scale)[1]]
        return [x, *(value.astype("float32") for value in values)], (log_px_z, log_ratio)

    def _round(self, x, mean, scale, e, rows):
        """The next mean (B, D) and scale (B, D, D), the old ones where these are not finite, and the change between the
        two Gaussians, KL(new || old) in nats, (B,).
        """
        dim = mean.shape[1]
        z = mean[:, None] + e @ scale.swapaxes(1, 2)
        (g,) = self.gradients.on([x, z.astype("float32")], rows)
        g = g @ scale
        curvature = -e.swapaxes(1, 2) @ g / e.shape[1]
        usable = np.isfinite(curvature).all(axis=(1, 2))
        symmetric = np.where(usable[:, None, None], curvature + curvature.swapaxes(1, 2), 2 * np.eye(dim)) / 2
        values, vectors = np.linalg.eigh(symmetric)
        values = np.maximum(values, NARROWEST)[:, None]
        pull = np.where(usable[:, None], g.mean(axis=1), 0)
        step = np.einsum("bij,bj->bi", vectors / values @ vectors.swapaxes(1, 2), pull)
        step *= np.minimum(1, np.sqrt(dim) / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-12))
        values = np.minimum(values, WIDEST)  # limits the width alone: steps along high curvatures stay short
        change = 0.5 * (np.sum(1 / values + np.log(values) - 1, axis=(1, 2)) + np.sum(step**2, axis=1))
        return mean + np.einsum("bij,bj->bi", scale, step), scale @ (vectors / np.sqrt(values)), change

    def drawn(self, arrays, seeds):
        """log p(x|z) and log p(z) - log r(z) of draws from r, each (B, n). Stochastic."""
        return [np.asarray(part, "float64") for part in self.draws.predict_on_batch([*arrays, key_of(seeds)])]


def directions(rng, batch, dim, turns):
    """Points on spheres of radius sqrt(D), in `turns` random bases of orthogonal pairs +e, -e: (B, 2 D turns, D)."""
    e = np.sqrt(dim) * np.linalg.qr(rng.normal(size=(batch, turns, dim, dim)))[0].reshape(batch, -1, dim)
    return np.concatenate([e, -e], axis=1)


class InitialDraws(Compiled):
    """From images and a key to log p(x|z), log p(z) - log q(z|x), and z, of MOMENTS draws of q(z|x)."""

    def call(self, inputs):
        x, key = inputs
        z, log_qz_x = self.model.posterior(x).sample_and_log_prob(MOMENTS, KeyedSeeds(key))
        log_ratio = self.prior().log_prob(z) - log_qz_x
        return [by_image(value) for value in (self.model.likelihood(z).log_prob(x), log_ratio, z)]


class Gradients(Compiled):
    """From images (B, H, W, C) and latents (B, n, D) to the gradients of log p(x, z) with respect to z, (B, n, D)."""

    def call(self, inputs):
        x, z = inputs
        prior = self.prior()

        def log_joint(z):
            return self.model.likelihood(z).log_prob(x) + prior.log_prob(z), ()

        return [by_image(value_and_gradient(log_joint, by_image(z))[2])]


class FittedDraws(Compiled):
    """From the arrays of `FittedProposal.prepared` and a key to log p(x|z) and log p(z) - log r(z), each (B, n)."""

    def __init__(self, model, n, top_of):
        super().__init__(model, top_of)
        self.n = n

    def call(self, inputs):
        x, mean, scale, whitening, log_det, key = inputs
        seed = KeyedSeeds(key)
        posterior = self.model.posterior(x)
        dim = mean.shape[-1]
        nu = max(HEAVIEST, dim)
        noise = random.normal((ops.shape(x)[0], self.n, mean.shape[-1]), dtype=mean.dtype, seed=seed)
        chi2 = 2 * random.gamma((*ops.shape(noise)[:-1], 1), nu / 2, dtype=mean.dtype, seed=seed)
        noise = noise * ops.sqrt(nu / chi2)
        z = by_image(ops.matmul(noise, ops.transpose(scale, (0, 2, 1)))) + mean  # (n, B, D)
        of_q = random.uniform((*ops.shape(z)[:-1], 1), dtype=mean.dtype, seed=seed) < DEFENSIVE
        z = ops.where(of_q, posterior.sample(self.n, seed), z)
        e = ops.matmul(by_image(z - mean), ops.transpose(whitening, (0, 2, 1)))  # (B, n, D)
        tails = 0.5 * (nu + dim) * ops.log1p(ops.sum(ops.square(e), axis=-1) / nu)
        constant = math.lgamma((nu + dim) / 2) - math.lgamma(nu / 2) - dim / 2 * math.log(nu * math.pi)
        log_fitted = constant - tails - log_det[:, None]
        log_q = ops.transpose(posterior.log_prob(z))
        log_r = ops.logaddexp(math.log1p(-DEFENSIVE) + log_fitted, math.log(DEFENSIVE) + log_q)
        log_px_z, log_pz = self.model.likelihood(z).log_prob(x), self.prior().log_prob(z)
        return ops.transpose(log_px_z), ops.transpose(log_pz) - log_r


PROPOSALS = {"posterior": PosteriorProposal, "fitted": FittedProposal}
