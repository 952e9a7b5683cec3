"""The estimator of log p(x) on models whose log p(x) is known."""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import scipy.stats
from keras import ops

from experiment import Config
from models import likelihood
from models.base import LatentModel
from models.distributions import Chain, Mixture, Normal
from models.likelihood import Sums, importance_sampling
from models.objectives import Elbo

pytestmark = pytest.mark.keras
SHAPE, D, NOISE = (2, 3, 1), 2, 0.5  # six pixels, two latents
rng = np.random.default_rng(0)
WEIGHTS = rng.normal(size=(D, 6))
IMAGES = rng.normal(size=(11, *SHAPE)).astype("float32")


class Pixels(NamedTuple):
    """N(mean, NOISE^2) for each pixel of an image."""

    mean: object

    def log_prob(self, x):
        flat = (*ops.shape(self.mean)[:-3], 6)
        logvar = np.full(6, 2 * np.log(NOISE), "float32")
        return Normal(ops.reshape(self.mean, flat), logvar).log_prob(ops.reshape(x, (*ops.shape(x)[:-3], 6)))


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
        return Pixels(ops.reshape(ops.matmul(z, self.w), (*ops.shape(z)[:-1], *SHAPE)))


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


def assert_within_errors(estimate, truth, most=0.05):
    """Each image within 5 standard errors, all of them together within chi-square bounds, and the errors small."""
    z = (estimate.log_px - truth) / estimate.log_px_se
    assert np.all(estimate.log_px_se < most)
    assert np.all(np.abs(z) < 5)
    assert 0.01 < scipy.stats.chi2(len(z)).cdf(np.sum(z**2)) < 0.9999


def test_one_layer_gives_the_known_log_likelihood():
    assert_within_errors(importance_sampling(Linear(standard()), IMAGES, 4000), exact(np.eye(D)))


def test_two_layers_give_the_known_log_likelihood():
    model, covariance = two_layers()
    assert_within_errors(importance_sampling(model, IMAGES, 4000), exact(covariance))


def test_a_mixture_prior_gives_the_known_log_likelihood():
    """Two equal components at m and -m: the average of two Gaussian densities of x."""
    m = np.float32([[0.8, -0.3], [-0.8, 0.3]])
    top = Mixture(np.log(np.float32([0.5, 0.5])), m, np.zeros((2, 2), "float32"))
    total = WEIGHTS.T @ WEIGHTS + NOISE**2 * np.eye(6)
    x = IMAGES.reshape(-1, 6)
    truth = np.log(np.mean([scipy.stats.multivariate_normal(c @ WEIGHTS, total).pdf(x) for c in m], axis=0))
    assert_within_errors(importance_sampling(Linear(top), IMAGES, 4000), truth)


@pytest.mark.parametrize("logvar", [0.2, -0.2])
def test_a_prior_with_a_wrong_normaliser_shows(logvar):
    """Only the density's constant is wrong, by 0.2 nats over two dimensions: far outside the standard error."""

    class Wrong(Linear):
        def prior(self, top=None):
            right = super().prior(top)
            return SimpleNamespace(log_prob=lambda z: right.log_prob(z) + logvar)

    estimate = importance_sampling(Wrong(standard()), IMAGES, 4000)
    error = (estimate.log_px - exact(np.eye(D))) / estimate.log_px_se
    assert np.all(np.sign(logvar) * error > 5)


def test_a_prior_that_is_not_the_models_shows():
    """The data come from p(z) = N(0, I); a prior left elsewhere gives another log p(x), its own, outside the errors."""
    elsewhere = Normal(np.float32([1.0, -1.0]), np.zeros(2, "float32"))
    model = Linear(standard())
    model.top_prior.distribution = lambda: elsewhere
    estimate = importance_sampling(model, IMAGES, 4000)
    mean = np.array([1.0, -1.0]) @ WEIGHTS
    total = WEIGHTS.T @ WEIGHTS + NOISE**2 * np.eye(6)
    truth = scipy.stats.multivariate_normal(mean, total).logpdf(IMAGES.reshape(-1, 6))
    assert np.all(np.abs(estimate.log_px - exact(np.eye(D))) > 5 * estimate.log_px_se)
    assert np.all(np.abs(estimate.log_px - truth) < 5 * estimate.log_px_se)


def test_the_exact_posterior_gives_log_px_with_one_sample():
    """With uncorrelated posterior dimensions every log-weight is log p(x)."""
    weights = np.zeros((D, 6))
    weights[0, :3] = weights[1, 3:] = 1.0
    estimate = importance_sampling(Linear(standard(), wider=1.0, weights=weights), IMAGES, 7)
    np.testing.assert_allclose(estimate.log_px, exact(np.eye(D), weights), atol=1e-4)
    np.testing.assert_allclose(estimate.elbo, estimate.log_px, atol=1e-4)
    np.testing.assert_allclose(estimate.ess, 7, rtol=1e-4)
    assert np.all(estimate.log_px_se < 1e-3)


def test_a_decoder_that_ignores_z_leaves_the_prior_to_integrate_to_one():
    estimate = importance_sampling(Linear(standard(), weights=np.zeros((D, 6)), wider=0.9), IMAGES, 4000)
    truth = scipy.stats.norm(0, NOISE).logpdf(IMAGES.reshape(-1, 6)).sum(1)
    assert_within_errors(estimate, truth)


def repeated(images, samples, repeats=400):
    """Independent estimates of the same images, made in one call: an Estimate of arrays (repeats, len(images))."""
    estimate = importance_sampling(Linear(standard(), wider=2.5), np.tile(images, (repeats, 1, 1, 1)), samples)
    return likelihood.Estimate(*(values.reshape(repeats, len(images)) for values in estimate))


def test_the_standard_error_is_the_spread_over_repeats():
    estimate = repeated(IMAGES[:3], 500)
    ratio = estimate.log_px.std(axis=0, ddof=1) / np.sqrt(np.mean(estimate.log_px_se**2, axis=0))
    assert np.all(np.abs(ratio - 1) < 5 / np.sqrt(2 * 400))


def test_the_estimate_is_a_lower_bound_in_expectation_that_rises_with_samples():
    values = np.array([repeated(IMAGES[:2], samples).log_px for samples in (1, 8, 64)])  # (3, repeats, 2)
    mean, error = values.mean(axis=1), values.std(axis=1) / np.sqrt(400)
    assert np.all(mean < exact(np.eye(D))[:2] + 4 * error)
    assert np.all(np.diff(mean, axis=0) > 2 * error[:-1])


@pytest.mark.parametrize(
    ("samples", "images", "budget", "fewest"),
    [(10, 11, 10**9, 1), (10, 11, 40_000, 1), (7, 5, 8_000, 1), (3, 1, 1, 1), (10, 11, 8_000, 12)],
)
def test_exactly_s_samples_in_bounded_chunks(samples, images, budget, fewest, monkeypatch):
    """Chunks and blocks that do not divide S and N: every image gets S samples, no call has more than the budget."""
    monkeypatch.setattr(likelihood, "CHUNK_BYTES", budget)
    monkeypatch.setattr(likelihood, "FEWEST", fewest)
    counts, calls = [], []
    monkeypatch.setattr(Sums, "estimate", _recording(Sums.estimate, lambda sums: counts.append(sums.count)))
    predict = likelihood.LogWeights.predict_on_batch
    monkeypatch.setattr(
        likelihood.LogWeights, "predict_on_batch", _recording(predict, lambda w, x: calls.append(len(x) * w.n))
    )
    done = []
    model = Linear(standard(), bytes_each=4000)
    estimate = importance_sampling(model, IMAGES[:images], samples, progress=done.append)
    assert set(counts) == {samples} and sum(done) == images == len(estimate.log_px)
    assert max(calls) <= max(fewest, budget // 4000)


def _recording(method, record):
    def wrapped(self, *args):
        record(self, *args)
        return method(self, *args)

    return wrapped


def test_chunks_do_not_change_the_estimate(monkeypatch):
    """The same sums whether the samples come at once or in pieces, also where a later one holds the largest weight."""
    log_px_z, ratio = rng.normal(size=(3, 12)) * 200 - 5000, rng.normal(size=(3, 12)) * 50
    whole, pieces = Sums(3), Sums(3)
    whole.add(log_px_z, ratio)
    for part in np.split(np.arange(12), [1, 5, 6]):
        pieces.add(log_px_z[:, part], ratio[:, part])
    for one, other in zip(whole.estimate(), pieces.estimate(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_sums_match_the_formulas():
    log_w = rng.normal(size=(2, 50))
    w = np.exp(log_w)
    sums = Sums(2)
    sums.add(log_w - 1, np.ones_like(log_w))
    estimate = sums.estimate()
    np.testing.assert_allclose(estimate.log_px, np.log(w.mean(1)))
    np.testing.assert_allclose(estimate.log_px_se, w.std(1, ddof=1) / np.sqrt(50) / w.mean(1))
    np.testing.assert_allclose(estimate.ess, w.sum(1) ** 2 / (w**2).sum(1))
    np.testing.assert_allclose(estimate.elbo, log_w.mean(1))
    np.testing.assert_allclose([estimate.rate, estimate.distortion], [[-1, -1], 1 - log_w.mean(1)])


def test_one_sample_has_no_known_error():
    estimate = importance_sampling(Linear(standard()), IMAGES, 1)
    assert np.isnan(estimate.log_px_se).all() and np.isfinite(estimate.log_px).all()
    np.testing.assert_allclose(estimate.log_px, estimate.elbo)


def test_pseudo_inputs_are_encoded_once(monkeypatch):
    monkeypatch.setattr(likelihood, "CHUNK_BYTES", 12_000)
    model, calls = Linear(standard()), []
    top = model.top_prior.distribution()
    model.top_prior.distribution = lambda: calls.append(1) or top
    importance_sampling(model, IMAGES, 30)
    assert len(calls) == 1


def test_the_seed_decides_the_samples():
    first, same, other = (importance_sampling(Linear(standard()), IMAGES, 9, seed).log_px for seed in (4, 4, 5))
    np.testing.assert_array_equal(first, same)
    assert np.all(first != other)


def test_jit_gives_the_same_law():
    assert_within_errors(importance_sampling(Linear(standard()), IMAGES, 4000, jit=True), exact(np.eye(D)))
