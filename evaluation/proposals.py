"""The densities from which importance sampling draws latents: q(z|x), or a t-density fitted to p(z|x) per image."""

import functools
import math
from typing import NamedTuple

import numpy as np
from keras import ops, random

from evaluation import STARTS
from evaluation.compiled import Compiled, KeyedSeeds, NotFiniteError, by_image, evenly
from evaluation.modes import ModeSearch, is_outside
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
OF_POSTERIOR, OF_PRIOR = 0.1, 0.05  # shares of draws from q(z|x) and p(z), so that no weight exceeds p(x|z) / 0.05
NEGLIGIBLE = 12.0  # nats, by which the share of a mode in p(x) may be smaller than the largest, else it is left out
NEVER = -1e4  # log of the share of a fit that an image does not have
LEAST_SHARE = 0.05  # of the draws from fits, of each, relative to the largest share


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


class PosteriorProposal:
    """Draws of q(z|x).

    Like every proposal, it is made for `calls`, takes `at_once` images at a time, and may be used by several threads:
    what it draws is a function of the SeedSequence that it gets. `drawn` gives log p(x|z) and log p(z) - log r(z) of n
    draws from the proposal r for each image, (B, n), from the arrays that `prepared` returns.
    """

    def __init__(self, model, calls, starts=0, seed=0):  # the last two are those of fits
        self.at_once = calls.rows
        self.draws = Compiled(model, functools.partial(posterior_draws, n=calls.n))
        self.drawn = self.draws.drawn
        expected = functools.partial(posterior_draws, n=EXPECTED, expected=True)
        self.expected = Compiled(model, expected, self.draws) if model.layer_rates else None
        self.draws_terms = self.expected is None  # its draws estimate the ELBO too
        self.expected_rows = max(1, min(calls.most // EXPECTED, self.at_once))

    def prepared(self, x, first, seeds):
        """The arrays of B rows that `drawn` takes for images (B, H, W, C), and the expectations of log p(x|z) and
        log p(z) - log q(z|x), each (B, EXPECTED), of a model that knows them, else None.
        """
        return [x], None if self.expected is None else self.expected.on([x], self.expected_rows, seeds)


def posterior_draws(compiled, x, key, n, expected=False):
    """log p(x|z) and log p(z) - log q(z|x) of images (B, H, W, C) and a key, or with `expected` terms with the same
    means, each (B, n). Stochastic.
    """
    model, seeds = compiled.model, KeyedSeeds(key)
    terms = model.expected_terms(x, n, seeds) if expected else model.terms(x, n, seeds, compiled.prior())
    return by_image(terms.log_px_z), by_image(terms.log_pz - terms.log_qz_x)


class FittedProposal:
    """Draws of a density fitted to p(z|x) of each image, a `FittedMixture`.

    A round of a fit draws points e on the sphere of radius sqrt(D), in orthogonal pairs +e and -e, and computes the
    gradients g of log p(x, z) at z = mean + scale e with respect to e. By Stein's lemma, E[g] and -E[e g'] are the mean
    gradient and curvature under a Gaussian; the next Gaussian is that of the quadratic with this gradient and curvature
    (the fixed point of variational inference with a full covariance: Opper & Archambeau 2009, eq. 14). The fit of an
    image ends with the first round that changes it little, after some 4 D gradients, or up to 12 D if q(z|x) is far
    from p(z|x). Rounds after the first take no more work than S samples. The first fit of an image starts from q(z|x);
    further ones from up to `starts` points that a `ModeSearch` found. `seed` decides which draws of p(z) it looks at.
    """

    draws_terms = False

    def __init__(self, model, calls, starts=STARTS, seed=0):
        self.start = Compiled(model, initial_draws)
        self.gradients = Compiled(model, gradients, self.start)
        self.draws = Compiled(model, functools.partial(fitted_draws, n=calls.n), self.start)
        self.drawn = self.draws.drawn
        self.num_samples, self.most = calls.num_samples, calls.most
        self.at_once = min(calls.images, max(calls.rows, calls.most // MOMENTS))
        self.search = ModeSearch(model, starts, calls.num_samples, seed, self.gradients) if starts else None

    def prepared(self, x, first, seeds):
        """The arrays of B rows that `drawn` takes for images (B, H, W, C), and log p(x|z) and log p(z) - log q(z|x) of
        draws of q(z|x), each (B, MOMENTS). Stochastic. Raises NotFiniteError for NaN, counting images from `first`.
        """
        of_start, of_rounds = seeds.spawn(2)
        rng = np.random.default_rng(of_rounds)
        log_px_z, log_ratio, z = self.start.on([x], evenly(self.at_once, self.most // MOMENTS), of_start)
        NotFiniteError.check(first, log_px_z, log_ratio, z)
        scale = z.std(axis=1)[:, :, None] * np.eye(z.shape[-1])
        fits = self._fitted(x, z.mean(axis=1), scale, rng)
        owners = np.arange(len(x))
        if self.search:
            images, starts = self.search.found(x, fits, self.at_once, self.most, rng)
            more = self._fitted(x[images], starts, fits.scale[images], rng)
            e = np.linalg.solve(fits.scale[images], (more.mean - fits.mean[images])[..., None])[..., 0]
            kept = is_outside(e) & (more.elbo > fits.elbo[images] - NEGLIGIBLE)
            owners = np.concatenate([owners, images[kept]])
            fits = Fits(*(np.concatenate([one, other[kept]]) for one, other in zip(fits, more, strict=True)))
        return [x, *fits.arrays(owners, 1 + (self.search.modes if self.search else 0))], (log_px_z, log_ratio)

    def _fitted(self, x, mean, scale, rng):
        """The Fits of images that start at these means (B, D) and scales (B, D, D). Stochastic."""
        mean, scale, elbo, dim = mean.copy(), scale.copy(), np.zeros(len(x)), mean.shape[-1]
        turns = math.ceil(FEWEST_POINTS / (2 * dim))
        rows = evenly(self.at_once, self.most // (6 * dim * turns))  # a gradient takes more memory than a value
        moving = np.arange(len(x))
        for _ in range(min(MOST_ROUNDS, 1 + self.num_samples // (GRADIENT * 2 * dim * turns))):
            if not len(moving):
                break
            bases = np.linalg.qr(rng.normal(size=(len(moving), turns, dim, dim)))[0]
            e = np.sqrt(dim) * bases.reshape(len(moving), -1, dim)
            e = np.concatenate([e, -e], axis=1)
            fit = self._round(x[moving], mean[moving], scale[moving], e, rows)
            mean[moving], scale[moving], elbo[moving], change = fit
            moving = moving[change > SETTLED]
        return Fits(mean, scale, elbo)

    def _round(self, x, mean, scale, e, rows):
        """The next mean (B, D) and scale (B, D, D), the old ones where these are not finite, the ELBO of the old
        Gaussian, and the change between the two, KL(new || old), (B,) each, in nats.
        """
        dim = mean.shape[1]
        z = mean[:, None] + e @ scale.swapaxes(1, 2)
        log_joint, g = self.gradients.on([x, z.astype("float32")], rows)
        entropy = dim / 2 * math.log(2 * math.pi * math.e) + np.linalg.slogdet(scale)[1]
        g, elbo = g @ scale, log_joint.mean(axis=1) + entropy
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
        return mean + np.einsum("bij,bj->bi", scale, step), scale @ (vectors / np.sqrt(values)), elbo, change


class Fits(NamedTuple):
    """Gaussians fitted to p(z|x): mean (M, D), scale (M, D, D), and the ELBO of each in nats, (M,), about the log of
    what its mode has of p(x).
    """

    mean: np.ndarray
    scale: np.ndarray
    elbo: np.ndarray

    def arrays(self, owners, most):
        """The float32 arrays of B images with up to J = `most` of these fits each, which belong to the image `owners`
        (M,): mean (B, J, D), scale and its inverse (B, J, D, D), log |scale| and the log of the share of draws (B, J).

        Each image has a fit, the first of its rows. Where it has fewer than J, that one fills up, without draws.
        """
        batch = owners.max() + 1
        chosen, share = np.zeros((batch, most), int), np.zeros((batch, most))
        for image in range(batch):
            rows = np.flatnonzero(owners == image)
            weight = np.fmax(np.exp(self.elbo[rows] - self.elbo[rows].max()), LEAST_SHARE)  # also where it is NaN
            chosen[image], chosen[image, : len(rows)] = rows[0], rows
            share[image, : len(rows)] = weight / weight.sum()
        scale = WIDER * self.scale[chosen]
        with np.errstate(divide="ignore"):
            log_share = np.maximum(np.log(share), NEVER)
        values = self.mean[chosen], scale, np.linalg.inv(scale), np.linalg.slogdet(scale)[1], log_share
        return [value.astype("float32") for value in values]


def initial_draws(compiled, x, key):
    """From images and a key to log p(x|z), log p(z) - log q(z|x), and z, of MOMENTS draws of q(z|x). Stochastic."""
    z, log_qz_x = compiled.model.posterior(x).sample_and_log_prob(MOMENTS, KeyedSeeds(key))
    log_ratio = compiled.prior().log_prob(z) - log_qz_x
    return [by_image(value) for value in (compiled.model.likelihood(z).log_prob(x), log_ratio, z)]


def gradients(compiled, x, z):
    """log p(x, z) of images (B, H, W, C) and latents (B, n, D), (B, n), and its gradients with respect to z."""
    value, _, gradient = value_and_gradient(compiled.log_joint(x), by_image(z))
    return by_image(value), by_image(gradient)


class FittedMixture(NamedTuple):
    """r(z) = 0.85 sum_j w_j t(z; mean_j, scale_j scale_j') + 0.1 q(z|x) + 0.05 p(z) of each of B images.

    t are t-densities with D degrees of freedom, or 3 if D is smaller, fitted to modes of p(z|x). The shares of q and p
    are defensive importance sampling (Hesterberg 1995). Shapes: mean (B, J, D), scale and its inverse `whitening`
    (B, J, D, D), `log_det` of scale and log w (B, J).
    """

    mean: object
    scale: object
    whitening: object
    log_det: object
    log_share: object
    posterior: object
    prior: object

    def sample(self, n, seed):
        """`n` draws: (n, B, D). Stochastic."""
        (batch, fits, dim), dtype = self.mean.shape, self.mean.dtype
        nu = max(HEAVIEST, dim)
        noise = random.normal((n, batch, dim), dtype=dtype, seed=seed)
        chi2 = 2 * random.gamma((n, batch, 1), nu / 2, dtype=dtype, seed=seed)
        noise = noise * ops.sqrt(nu / chi2)
        log_shares = ops.broadcast_to(math.log1p(-OF_POSTERIOR - OF_PRIOR) + self.log_share, (batch, fits))
        others = ops.broadcast_to(ops.convert_to_tensor(np.log([OF_POSTERIOR, OF_PRIOR]), dtype), (batch, 2))
        kind = random.categorical(ops.concatenate([log_shares, others], axis=-1), n, seed=seed)  # (B, n)
        kind = ops.expand_dims(ops.transpose(kind), -1)
        z = ops.where(kind == fits, self.posterior.sample(n, seed), self._drawn_from_prior(kind == fits + 1, seed))
        for j in range(fits):
            moved = self.mean[:, j] + by_image(ops.matmul(by_image(noise), ops.transpose(self.scale[:, j], (0, 2, 1))))
            z = ops.where(kind == j, moved, z)
        return z

    def _drawn_from_prior(self, wanted, seed):
        """A draw of p(z) of its own wherever `wanted`, (n, B, 1), is true: (n, B, D). Stochastic.

        Each row has draws for six standard deviations more than are to be expected, as those of p(z) may be costly;
        beyond that, it would begin with its own again.
        """
        n, batch, _ = wanted.shape
        each = min(n, math.ceil(OF_PRIOR * n + 6 * math.sqrt(OF_PRIOR * n)))
        drawn = ops.reshape(self.prior.sample(each * batch, seed), (each, batch, -1))
        rank = ops.cumsum(ops.cast(wanted, "int32"), axis=0) % each
        return ops.take_along_axis(drawn, rank, axis=0)

    def log_prob(self, z, log_pz=None):
        """log r(z) in nats: (n, B, D) -> (n, B). `log_pz`: log p(z), if it is at hand."""
        dim = self.mean.shape[-1]
        nu = max(HEAVIEST, dim)
        constant = math.lgamma((nu + dim) / 2) - math.lgamma(nu / 2) - dim / 2 * math.log(nu * math.pi)
        parts = [math.log(OF_POSTERIOR) + self.posterior.log_prob(z)]
        parts += [math.log(OF_PRIOR) + (self.prior.log_prob(z) if log_pz is None else log_pz)]
        for j in range(self.mean.shape[1]):
            e = ops.matmul(by_image(z - self.mean[:, j]), ops.transpose(self.whitening[:, j], (0, 2, 1)))  # (B, n, D)
            tails = 0.5 * (nu + dim) * ops.log1p(ops.sum(ops.square(e), axis=-1) / nu)
            share = math.log1p(-OF_POSTERIOR - OF_PRIOR) + self.log_share[:, j] - self.log_det[:, j]
            parts.append(constant + share - ops.transpose(tails))
        return ops.logsumexp(ops.stack(parts), axis=0)


def fitted_draws(compiled, x, *arrays, n):
    """log p(x|z) and log p(z) - log r(z), each (B, n), from what `FittedProposal.prepared` returns, and a key."""
    *fits, key = arrays
    prior = compiled.prior()
    r = FittedMixture(*fits, compiled.model.posterior(x), prior)
    z = r.sample(n, KeyedSeeds(key))
    log_px_z, log_pz = compiled.model.likelihood(z).log_prob(x), prior.log_prob(z)
    return by_image(log_px_z), by_image(log_pz - r.log_prob(z, log_pz))


PROPOSALS = {"posterior": PosteriorProposal, "fitted": FittedProposal}
