"""Integration over a grid, on models whose log p(x) is known, and on posteriors that are hard to find."""

import re

import numpy as np
import pytest
import scipy.special
import scipy.stats
from conftest import ROOT, called, on_tensorflow, slow_on_jax
from keras import ops
from keras.random import SeedGenerator
from linear_models import IMAGES, NOISE, WEIGHTS, Linear, exact, standard, two_layers

import experiment
import train
from evaluation import quadrature as module
from evaluation.compiled import Compiled, NotFiniteError
from evaluation.quadrature import Cells, NotResolvedError, quadrature
from models.distributions import Mixture, Normal
from models.pixels import Bernoulli, DiscretizedLogistic, MixtureOfLogistics, Pixels

pytestmark = pytest.mark.keras
CLOSE = 2e-4  # of float32 log-densities


@pytest.mark.parametrize("wider", [0.3, pytest.param(1.0, marks=pytest.mark.slow), 3.0])
def test_one_layer_gives_the_known_log_likelihood(wider):
    found = quadrature(Linear(standard(), wider=wider), IMAGES)
    np.testing.assert_allclose(found.log_px, exact(np.eye(2)), atol=CLOSE)
    assert np.all(found.log_px_se <= 0.01) and np.all(found.samples == found.samples[0])
    assert np.isnan(found.ess).all() and np.isnan(found.khat).all()
    np.testing.assert_allclose(found.elbo, -found.rate - found.distortion)
    assert np.all(found.elbo < found.log_px + 0.2)
    mean, logvar = map(np.asarray, Linear(standard(), wider=wider).posterior(IMAGES))
    kl = 0.5 * (np.exp(logvar) + mean**2 - 1 - logvar).sum(axis=-1)
    assert found.rate.mean() == pytest.approx(kl.mean(), abs=0.3)


def test_two_layers_give_the_known_log_likelihood():
    model, covariance = two_layers()
    np.testing.assert_allclose(quadrature(model, IMAGES).log_px, exact(covariance), atol=CLOSE)


def test_one_dimension_gives_the_known_log_likelihood():
    weights = WEIGHTS[:1]
    model = Linear(standard(1), np.eye(1), weights=weights)
    np.testing.assert_allclose(quadrature(model, IMAGES).log_px, exact(np.eye(1), weights), atol=CLOSE)


def test_a_decoder_that_ignores_z_gives_log_px_exactly():
    found = quadrature(Linear(standard(), weights=np.zeros((2, 6))), IMAGES)
    np.testing.assert_allclose(
        found.log_px, scipy.stats.norm(0, NOISE).logpdf(IMAGES.reshape(-1, 6)).sum(1), atol=CLOSE
    )


def test_modes_that_q_does_not_know_are_found():
    """A prior of two narrow components far apart, one of which is nowhere near the mean of any q(z|x)."""
    m = np.float32([[0.8, -0.3], [-7.0, 9.0]])
    top = Mixture(np.log(np.float32([0.5, 0.5])), m, np.full((2, 2), 2 * np.log(0.05), "float32"))
    total = 0.05**2 * WEIGHTS.T @ WEIGHTS + NOISE**2 * np.eye(6)
    x = IMAGES.reshape(-1, 6)
    truth = np.logaddexp.reduce([scipy.stats.multivariate_normal(c @ WEIGHTS, total).logpdf(x) for c in m]) - np.log(2)
    np.testing.assert_allclose(quadrature(Linear(top), IMAGES).log_px, truth, rtol=1e-5, atol=2 * CLOSE)


@pytest.mark.slow
@on_tensorflow
def test_scores_of_the_demo_are_those_of_a_fine_grid(tmp_path):
    """A grid of 500 x 500 points, sums in double precision: 0.01 nats is the tolerance of an image."""
    flags = re.search(r"DEMO_FLAGS := (.*)\\\n(.*)\n", (ROOT / "Makefile").read_text())
    shorter = ("--epochs", 10, "--beta_warmup", 5, "--runs_dir", tmp_path)
    assert called(train.main, *flags[1].split(), *flags[2].split(), *shorter) == 0
    run = experiment.load(next(tmp_path.iterdir()))
    images, model = run.images("test"), run.model
    few = slice(None, None, 5)  # of the images, which are compared
    x, prior = images[few].reshape(-1, 784).astype("float64"), model.prior()
    found = quadrature(model, images)
    means, sds = Compiled(model, module.posteriors).on([images], len(images))
    z = ops.convert_to_numpy(prior.sample(4000, SeedGenerator(0)))
    ends = np.concatenate([z, means - 6 * sds, means + 6 * sds])
    low, high = ends.min(axis=0) - 0.5, ends.max(axis=0) + 0.5
    first, second = (low[i] + (np.arange(500) + 0.5) * (high[i] - low[i]) / 500 for i in (0, 1))
    total = np.full(len(x), -np.inf)
    for some in np.array_split(first, 25):
        z = np.stack(np.meshgrid(some, second, indexing="ij"), axis=-1).reshape(-1, 2).astype("float32")
        logits = ops.convert_to_numpy(model.likelihood(ops.convert_to_tensor(z)).logits).reshape(len(z), -1)
        logits = logits.astype("float64")
        softplus = np.maximum(logits, 0) + np.log1p(np.exp(-np.abs(logits)))  # which takes half as long as logaddexp
        log_p = x @ logits.T - softplus.sum(axis=1)
        log_p += ops.convert_to_numpy(prior.log_prob(ops.convert_to_tensor(z)))
        total = np.logaddexp(total, scipy.special.logsumexp(log_p, axis=1))
    off = np.abs(found.log_px[few] - total - np.log((high - low) / 500).sum())
    assert off.max() < 0.01 and abs(off.mean()) < 0.002
    assert found.log_px_se.max() <= 0.01 and np.mean(off > found.log_px_se[few]) < 0.05


def test_sums_of_some_and_of_all_cells():
    """Against those of double precision; the last column is padding, the last image has no cell at all."""
    log_p = np.random.default_rng(0).normal(-500, 30, (3, 6)).astype("float32")
    log_p[2] = -np.inf
    counts = np.array([True, False, True, False, False])
    parts = log_p[:, :5].astype("float64")
    expected = [np.logaddexp.reduce(part, axis=1) for part in (parts, 2 * parts, parts[:, ~counts])]
    np.testing.assert_allclose(module._log_sums(ops.convert_to_tensor(log_p), counts), expected, rtol=1e-6)


def test_narrow_posteriors_are_resolved():
    """A thousand times narrower than the prior, of which the first grid has some 8 cells a standard deviation."""
    weights = 300 * WEIGHTS
    model = Linear(standard(), weights=weights)
    total = weights.T @ weights + NOISE**2 * np.eye(6)
    images = np.float32(scipy.stats.multivariate_normal(np.zeros(6), total).rvs(5, random_state=0)).reshape(5, 2, 3, 1)
    truth = scipy.stats.multivariate_normal(np.zeros(6), total).logpdf(images.reshape(-1, 6))
    found = quadrature(model, images)
    np.testing.assert_allclose(found.log_px, truth, atol=2e-3)  # differences of numbers near 1000 in float32
    assert found.samples[0] < 200_000


@slow_on_jax
@pytest.mark.parametrize(
    ("wider", "narrower"),
    [(40.0, 20), pytest.param(1.0, 20, marks=pytest.mark.slow), pytest.param(3.0, 10, marks=pytest.mark.slow)],
)
def test_many_narrow_posteriors_are_resolved_wherever_they_lie(wider, narrower):
    """Some lie across the border of cells much wider than they are, and q(z|x) need not say how wide they are."""
    weights = narrower * WEIGHTS
    total = weights.T @ weights + NOISE**2 * np.eye(6)
    of_x = scipy.stats.multivariate_normal(np.zeros(6), total)
    flat = of_x.rvs(150, random_state=1).astype("float32")
    found = quadrature(Linear(standard(), wider=wider, weights=weights), flat.reshape(-1, 2, 3, 1))
    np.testing.assert_allclose(found.log_px, of_x.logpdf(flat), atol=2e-3)


def test_posteriors_outside_the_prior_widen_the_grid():
    """The images lie fifty standard deviations away, and q(z|x) says that they do not."""
    model = Linear(standard())
    images = np.float32(IMAGES[:3] + (np.array([50.0, -40.0]) @ WEIGHTS).reshape(2, 3, 1))
    total = WEIGHTS.T @ WEIGHTS + NOISE**2 * np.eye(6)
    truth = scipy.stats.multivariate_normal(np.zeros(6), total).logpdf(images.reshape(-1, 6))
    model.to_mean = np.zeros_like(model.to_mean)
    np.testing.assert_allclose(quadrature(model, images).log_px, truth, rtol=1e-4)


def test_a_posterior_without_end_is_refused():
    """p(x|z) does not depend on z, and the prior's density is the same everywhere."""

    class Flat(Linear):
        def prior(self, top=None):
            return FlatPrior(*standard())

    class FlatPrior(Normal):
        def log_prob(self, z):
            return ops.zeros(ops.shape(z)[:-1])

    with pytest.raises(NotResolvedError, match="reaches beyond z = "):
        quadrature(Flat(standard(), weights=np.zeros((2, 6))), IMAGES)


def test_too_many_points_are_refused(monkeypatch):
    monkeypatch.setattr(module, "MOST_POINTS", 4_500)
    with pytest.raises(NotResolvedError, match="not resolved by 4,500 points"):
        quadrature(Linear(standard(), weights=100 * WEIGHTS), IMAGES)


def test_an_image_that_is_no_number_is_named():
    images = IMAGES.copy()
    images[4, 0, 0, 0] = np.nan
    with pytest.raises(NotFiniteError, match="image 4 "):
        quadrature(Linear(standard()), images)


def test_chunks_do_not_change_the_sum():
    few, all_at_once = (quadrature(Linear(standard()), IMAGES, max_bytes=size) for size in (900_000, 2**28))
    np.testing.assert_allclose(few.log_px, all_at_once.log_px, atol=1e-5)


def test_progress_tells_of_each_image_once():
    done = []
    quadrature(Linear(standard()), IMAGES, progress=done.append)
    assert sum(done) == len(IMAGES)


def test_cells_divide_without_gaps():
    cells = Cells.over(np.array([-1.0, 2.0]), np.array([3.0, 4.0]))
    assert len(cells.index) == 64**2 and np.exp(cells.log_size) * 64**2 == pytest.approx(8)
    np.testing.assert_allclose(
        [cells.centres.min(0), cells.centres.max(0)], [[-0.96875, 2.015625], [2.96875, 3.984375]]
    )
    chosen = np.zeros(64**2, bool)
    chosen[[5, 700]] = True
    halves = cells.divided(chosen)
    assert len(halves.index) == 8 and np.exp(halves.log_size) == pytest.approx(np.exp(cells.log_size) / 4)
    means = halves.centres.reshape(2, 4, 2).mean(axis=1)
    np.testing.assert_allclose(means, cells.centres[chosen])
    assert np.flatnonzero(cells.holding(cells.centres[[5, 700]] + 0.01)).tolist() == [5, 700]
    assert np.flatnonzero(cells.beside(np.arange(64**2) == 0)).tolist() == [0, 1, 64, 65]
    assert cells.beside(np.arange(64**2) == 700).sum() == 9


@slow_on_jax
@pytest.mark.parametrize("kind", ["bernoulli", "pixels", "logistic", "mixlogistic"])
def test_every_image_is_compared_with_every_distribution(kind):
    rng = np.random.default_rng(0)
    values, x = rng.normal(size=(2, 5, 2, 3, 1)).astype("float32"), (rng.random((4, 2, 3, 1)) < 0.5).astype("float32")

    def mixed(parts):
        return MixtureOfLogistics(parts[..., 0, :], parts, parts, parts[..., :0, :])

    kinds = {
        "bernoulli": lambda value: Bernoulli(value[0]),
        "pixels": lambda value: Pixels(value[0], 0.3),
        "logistic": lambda value: DiscretizedLogistic(value[0], value[1]),
        "mixlogistic": lambda value: mixed(ops.moveaxis(value, 0, -1)),
    }
    found = ops.convert_to_numpy(kinds[kind](ops.convert_to_tensor(values)).log_prob_of_each(ops.convert_to_tensor(x)))
    expected = [[float(kinds[kind](values[:, m]).log_prob(image)) for m in range(5)] for image in x]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
