"""Linear Gaussian models of one and two layers of latents, whose log p(x) is known."""

from types import SimpleNamespace

import numpy as np
import scipy.stats
from keras import ops

from experiment import Config
from models.base import LatentModel
from models.distributions import Chain, Normal
from models.objectives import Elbo
from models.pixels import Pixels

SHAPE, D, NOISE = (2, 3, 1), 2, 0.5  # six pixels, two latents
rng = np.random.default_rng(0)
WEIGHTS = rng.normal(size=(D, 6))
IMAGES = rng.normal(size=(11, *SHAPE)).astype("float32")


class Linear(LatentModel):
    """x = z W + noise; q(z|x) is the exact posterior, made `wider` (a factor of its standard deviation).

    p(z) = N(0, C) with C of `covariance`: the identity for one layer, [[1, a], [a, a^2 + b^2]] for two.
    """

    def __init__(self, top, covariance=None, wider=1.5, weights=WEIGHTS, bytes_each=4000):
        super().__init__(Elbo(Config()), dynamic=False, seed=0)
        covariance = np.eye(D) if covariance is None else covariance
        precision = weights @ weights.T / NOISE**2 + np.linalg.inv(covariance)
        self.to_mean = np.float32(weights.T @ np.linalg.inv(precision) / NOISE**2)
        self.logvar = np.float32(2 * np.log(wider) - np.log(np.diag(precision)))
        self.top_prior = SimpleNamespace(distribution=lambda: top, floats_per_sample=bytes_each // 8)
        self.decoder = SimpleNamespace(floats_per_sample=bytes_each // 8)
        self.w = np.float32(weights)
        self.built = True

    def posterior(self, x):
        mean = ops.matmul(ops.reshape(x, (-1, 6)), self.to_mean)
        return Normal(mean, ops.zeros_like(mean) + self.logvar)

    def prior(self, top=None):
        return self.top_prior.distribution() if top is None else top

    def likelihood(self, z, training=False):
        return Pixels(ops.reshape(ops.matmul(z, self.w), (*ops.shape(z)[:-1], *SHAPE)), NOISE)


class TwoLayers(Linear):
    """z = [z2, z1] with z1 | z2 ~ N(a z2, b^2)."""

    a, b = 0.7, 0.6

    def prior(self, top=None):
        top = self.top_prior.distribution() if top is None else top
        return Chain(top, lambda z2: Normal(self.a * z2, ops.zeros_like(z2) + 2 * np.log(self.b)), 1)


def standard(d=D):
    return Normal(np.zeros(d, "float32"), np.zeros(d, "float32"))


def exact(covariance, weights=WEIGHTS):
    """log N(x; 0, W' C W + NOISE^2 I) of IMAGES."""
    total = weights.T @ covariance @ weights + NOISE**2 * np.eye(6)
    return scipy.stats.multivariate_normal(np.zeros(6), total).logpdf(IMAGES.reshape(-1, 6))


def two_layers(**settings):
    a, b = TwoLayers.a, TwoLayers.b
    covariance = np.array([[1, a], [a, a * a + b * b]])
    return TwoLayers(standard(1), covariance, **settings), covariance


def posterior_of(covariance, weights=WEIGHTS):
    """Means (N, D) and covariance (D, D) of p(z|x) of IMAGES."""
    inverse = np.linalg.inv(weights @ weights.T / NOISE**2 + np.linalg.inv(covariance))
    return IMAGES.reshape(-1, 6) @ weights.T @ inverse / NOISE**2, inverse


def assert_within_errors(estimate, truth, most=0.05):
    """Each image within 5 standard errors, all of them together within chi-square bounds, and the errors small."""
    z = (estimate.log_px - truth) / estimate.log_px_se
    assert np.all(estimate.log_px_se < most)
    assert np.all(np.abs(z) < 5)
    assert 0.01 < scipy.stats.chi2(len(z)).cdf(np.sum(z**2)) < 0.9999


def assert_lower_bound(log_px, truth):
    """The mean over repeats (R, N) is at most the truth (N,), within 3 standard errors of all of them together."""
    gap = (log_px - truth).mean(axis=1)
    assert gap.mean() < 3 * gap.std(ddof=1) / np.sqrt(len(gap))
