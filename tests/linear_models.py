"""Linear Gaussian models of one and two layers of latents, whose log p(x) is known."""

from types import SimpleNamespace

import numpy as np
import scipy.stats
from keras import ops

from experiment import Config
from models.base import LatentModel
from models.distributions import Chain, Mixture, Normal
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


class ManyModes(Linear):
    """A prior of Normals, of which q(z|x) knows the first only: p(z|x) has a mode for each.

    Their means differ in dimensions that the decoder ignores, so that many of these modes count.
    """

    def __init__(self, top, weights, wider=1.5):
        mean, logvar = top.mean[0].astype("float64"), top.logvar[0].astype("float64")
        super().__init__(top, np.diag(np.exp(logvar)), wider, weights)
        inverse = np.linalg.inv(weights @ weights.T / NOISE**2 + np.diag(np.exp(-logvar)))
        self.shift = np.float32(inverse @ (mean * np.exp(-logvar)))

    def posterior(self, x):
        mean, logvar = super().posterior(x)
        return Normal(mean + self.shift, logvar)


def many_modes(d, modes, apart, seed, rank=2):
    """A ManyModes of d dimensions, log p(x) of IMAGES, and what each mode has of it: (N,) and (modes, N).

    The modes are of unequal weight, and up to 4 times as wide as one another in each dimension.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((d, 6))
    weights[:rank] = rng.normal(size=(rank, 6))
    mean, off = rng.normal(size=(modes, d)), rng.normal(size=(modes, d - rank))
    mean[:, rank:] = apart * off / np.linalg.norm(off, axis=1, keepdims=True)
    logvar = rng.uniform(-3, 0, size=(modes, 1)) + rng.normal(0, 0.1, size=(modes, d))
    log_weights = np.log(rng.dirichlet(np.full(modes, 3.0)))
    parts = []
    for k in range(modes):
        total = weights.T @ np.diag(np.exp(logvar[k])) @ weights + NOISE**2 * np.eye(6)
        of_x = scipy.stats.multivariate_normal(mean[k] @ weights, total)
        parts.append(log_weights[k] + of_x.logpdf(IMAGES.reshape(-1, 6)))
    top = Mixture(*(np.float32(part) for part in (log_weights, mean, logvar)))
    truth = np.logaddexp.reduce(parts, axis=0)
    return ManyModes(top, weights), truth, np.exp(parts - truth)


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
