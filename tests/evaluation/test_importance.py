"""The estimator of log p(x) on models whose log p(x) is known."""

import concurrent.futures
import time
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
from conftest import slow_on_jax
from keras import random
from linear_models import (
    IMAGES,
    NOISE,
    WEIGHTS,
    D,
    Linear,
    assert_lower_bound,
    assert_within_errors,
    exact,
    rng,
    standard,
    two_layers,
)

from evaluation import importance
from evaluation.compiled import Compiled, KeyedSeeds, NotFiniteError
from evaluation.importance import Sums, importance_sampling, log_weights, pareto_k
from models.distributions import Mixture, Normal

pytestmark = pytest.mark.keras


def from_q(*args, **settings):
    """The Estimate by draws of q(z|x)."""
    return importance_sampling(*args, proposal="posterior", **settings)


def test_one_layer_gives_the_known_log_likelihood():
    assert_within_errors(from_q(Linear(standard()), IMAGES, 4000), exact(np.eye(D)))


def test_two_layers_give_the_known_log_likelihood():
    model, covariance = two_layers()
    assert_within_errors(from_q(model, IMAGES, 4000), exact(covariance))


def test_a_mixture_prior_gives_the_known_log_likelihood():
    """Two equal components at m and -m: the average of two Gaussian densities of x."""
    m = np.float32([[0.8, -0.3], [-0.8, 0.3]])
    top = Mixture(np.log(np.float32([0.5, 0.5])), m, np.zeros((2, 2), "float32"))
    total = WEIGHTS.T @ WEIGHTS + NOISE**2 * np.eye(6)
    x = IMAGES.reshape(-1, 6)
    truth = np.log(np.mean([scipy.stats.multivariate_normal(c @ WEIGHTS, total).pdf(x) for c in m], axis=0))
    assert_within_errors(from_q(Linear(top), IMAGES, 4000), truth)


@pytest.mark.parametrize("logvar", [0.2, -0.2])
def test_a_prior_with_a_wrong_normaliser_shows(logvar):
    """Only the density's constant is wrong, by 0.2 nats over two dimensions: far outside the standard error."""

    class Wrong(Linear):
        def prior(self, top=None):
            right = super().prior(top)
            return SimpleNamespace(log_prob=lambda z: right.log_prob(z) + logvar)

    estimate = from_q(Wrong(standard()), IMAGES, 4000)
    error = (estimate.log_px - exact(np.eye(D))) / estimate.log_px_se
    assert np.all(np.sign(logvar) * error > 5)


def test_a_prior_that_is_not_the_models_shows():
    """The data come from p(z) = N(0, I); a prior left elsewhere gives another log p(x), its own, outside the errors."""
    elsewhere = Normal(np.float32([1.0, -1.0]), np.zeros(2, "float32"))
    model = Linear(standard())
    model.top_prior.distribution = lambda: elsewhere
    estimate = from_q(model, IMAGES, 4000)
    mean = np.array([1.0, -1.0]) @ WEIGHTS
    total = WEIGHTS.T @ WEIGHTS + NOISE**2 * np.eye(6)
    truth = scipy.stats.multivariate_normal(mean, total).logpdf(IMAGES.reshape(-1, 6))
    assert np.all(np.abs(estimate.log_px - exact(np.eye(D))) > 5 * estimate.log_px_se)
    assert np.all(np.abs(estimate.log_px - truth) < 5 * estimate.log_px_se)


def test_the_exact_posterior_gives_log_px_with_one_sample():
    """With uncorrelated posterior dimensions every log-weight is log p(x)."""
    weights = np.zeros((D, 6))
    weights[0, :3] = weights[1, 3:] = 1.0
    estimate = from_q(Linear(standard(), wider=1.0, weights=weights), IMAGES, 7)
    np.testing.assert_allclose(estimate.log_px, exact(np.eye(D), weights), atol=1e-4)
    np.testing.assert_allclose(estimate.elbo, estimate.log_px, atol=1e-4)
    np.testing.assert_allclose(estimate.ess, 7, rtol=1e-4)
    assert np.all(estimate.log_px_se < 1e-3)


def test_a_decoder_that_ignores_z_leaves_the_prior_to_integrate_to_one():
    estimate = from_q(Linear(standard(), weights=np.zeros((D, 6)), wider=0.9), IMAGES, 4000)
    truth = scipy.stats.norm(0, NOISE).logpdf(IMAGES.reshape(-1, 6)).sum(1)
    assert_within_errors(estimate, truth)


def repeated(images, samples, repeats=400):
    """Independent estimates of the same images, made in one call: an Estimate of arrays (repeats, len(images))."""
    estimate = from_q(Linear(standard(), wider=2.5), np.tile(images, (repeats, 1, 1, 1)), samples)
    return importance.Estimate(*(values.reshape(repeats, len(images)) for values in estimate))


def test_the_standard_error_is_the_spread_over_repeats():
    estimate = repeated(IMAGES[:3], 500)
    ratio = estimate.log_px.std(axis=0, ddof=1) / np.sqrt(np.mean(estimate.log_px_se**2, axis=0))
    assert np.all(np.abs(ratio - 1) < 5 / np.sqrt(2 * 400))


@pytest.mark.parametrize("proposal", ["posterior", "fitted"])
def test_the_mean_of_200_repeats_is_a_lower_bound(proposal):
    """Few samples, so that the bias is seen: both layers, with either proposal."""
    model, covariance = two_layers(wider=2.0)
    repeats = np.tile(IMAGES[:3], (200, 1, 1, 1))
    found = importance_sampling(model, repeats, 6, proposal=proposal).log_px.reshape(200, 3)
    assert_lower_bound(found, exact(covariance)[:3])


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
    monkeypatch.setattr(importance, "CHUNK_BYTES", budget)
    monkeypatch.setattr(importance, "FEWEST", fewest)
    calls, done = [], []
    monkeypatch.setattr(Compiled, "drawn", _recording(Compiled.drawn, calls))
    model = Linear(standard(), bytes_each=4000)
    estimate = from_q(model, IMAGES[:images], samples, progress=done.append)
    assert set(estimate.samples) == {samples} and sum(done) == images == len(estimate.log_px)
    assert max(calls) <= max(fewest, budget // 4000)


def _recording(drawn, calls):
    """`Compiled.drawn` that adds to `calls` how many samples a call has."""

    def wrapped(self, *args):
        outputs = drawn(self, *args)
        calls.append(outputs[0].size)
        return outputs

    return wrapped


def summed(log_px_z, ratio, parts=1, most=10**4):
    """The Estimate of these (B, n) log-densities of draws of q(z|x), taken in by and by."""
    sums = Sums.none(len(ratio), most)
    for one in np.array_split(np.arange(ratio.shape[1]), parts):
        drawn, ratios, counted = log_px_z[:, one], ratio[:, one], np.ones((len(ratio), len(one)), bool)
        sums = sums.weighed(drawn + ratios, counted).told(drawn, ratios, counted)
    return sums.estimate()


def test_chunks_do_not_change_the_estimate():
    """The same sums whether the samples come at once or in pieces, also where a later one holds the largest weight."""
    log_px_z, ratio = rng.normal(size=(3, 60)) * 20 - 5000, rng.normal(size=(3, 60)) * 5
    for one, pieces in zip(summed(log_px_z, ratio), summed(log_px_z, ratio, 7), strict=True):
        np.testing.assert_allclose(one, pieces, rtol=1e-12)


def test_sums_match_the_formulas():
    log_w = rng.normal(size=(2, 50))
    w = np.exp(log_w)
    estimate = summed(log_w - 1, np.ones_like(log_w))
    np.testing.assert_allclose(estimate.log_px, np.log(w.mean(1)))
    np.testing.assert_allclose(estimate.log_px_se, w.std(1, ddof=1) / np.sqrt(50) / w.mean(1))
    np.testing.assert_allclose(estimate.ess, w.sum(1) ** 2 / (w**2).sum(1))
    np.testing.assert_allclose(estimate.elbo, log_w.mean(1))
    np.testing.assert_allclose([estimate.rate, estimate.distortion], [[-1, -1], 1 - log_w.mean(1)])
    assert estimate.samples.tolist() == [50, 50]


def test_what_is_not_counted_changes_nothing():
    log_w = rng.normal(size=(2, 50))
    counted = np.arange(50) < [[20], [31]]
    estimate = Sums.none(2, 50).weighed(np.where(counted, log_w, 99), counted).estimate()
    for row, n in enumerate((20, 31)):
        alone = Sums.none(1, 50).weighed(log_w[row : row + 1, :n], np.ones((1, n), bool)).estimate()
        for value, expected in zip(estimate, alone, strict=True):
            np.testing.assert_allclose(value[row], expected[0])


@pytest.mark.parametrize("count", [30, 300, 5000, 20_000])
def test_pareto_k_of_the_largest_weights_is_arvizs_of_all_of_them(count):
    """The weights of a Pareto tail of shape k, of which only the largest are kept."""
    from arviz_stats.base import array_stats

    log_w = 0.6 * rng.exponential(size=count) - 3
    sums = Sums.none(1, count)
    for part in np.split(log_w[None], [count // 3, count // 2], axis=1):
        sums = sums.weighed(part, np.ones(part.shape, bool))
    found, expected = sums.estimate().khat[0], float(array_stats.psislw(-log_w)[1])
    assert sums.largest.shape[1] <= 15 * np.sqrt(count) + 16
    assert found == pytest.approx(expected, abs=1e-6)
    if count >= 5000:
        assert abs(found - 0.6) < 0.25


def test_pareto_k_is_the_same_where_more_samples_could_have_come():
    """Of 100,000 that may be drawn more of the largest are kept than 3000 need."""
    log_w = 1.5 * rng.normal(size=(1, 3000))
    sums = Sums.none(1, 100_000)
    for part in np.array_split(log_w, 15, axis=1):
        sums = sums.weighed(part, np.ones(part.shape, bool))
    assert sums.estimate().khat[0] == pytest.approx(pareto_k(np.sort(log_w[0]), 3000), abs=1e-9)


def test_a_target_is_not_met_by_chance_with_few_samples():
    """In chunks of three samples an error looks small before it is known."""
    found = from_q(Linear(standard(), wider=1.2), IMAGES[:3], 5000, target_se=0.5, max_bytes=12_000)
    assert np.all(found.samples >= 200)


def test_pareto_k_tells_good_proposals_from_bad_ones():
    """log w of N(0, 1) drawn from N(0, sd^2): bounded for sd > 1, of infinite variance for sd^2 < 1 / 2."""
    khat = []
    for sd in (1.5, 0.6):
        z = sd * rng.normal(size=(1, 20_000))
        log_w = scipy.stats.norm(0, 1).logpdf(z) - scipy.stats.norm(0, sd).logpdf(z)
        khat.append(summed(np.zeros_like(log_w), log_w, most=20_000).khat[0])
    assert khat[0] < 0.3 and khat[1] > 0.5


def test_pareto_k_of_few_or_equal_weights_is_not_known():
    assert np.isnan(pareto_k(np.zeros(500), 500)) and np.isnan(pareto_k(np.arange(20.0), 20))


def test_a_target_takes_as_many_samples_as_each_image_needs():
    """q(z|x) is the prior, which suits images near its mean: errors at the target, numbers of samples far apart."""
    images = np.concatenate([0.05 * IMAGES[:4], 0.6 * IMAGES[:4]])
    weights = np.zeros((D, 6))
    weights[0, :3] = weights[1, 3:] = 0.3
    model = Linear(standard(), wider=1.0, weights=weights)
    model.logvar = np.float32([0.0, 0.0])  # the prior's
    model.to_mean = np.zeros_like(model.to_mean)
    found = from_q(model, images, 50_000, target_se=0.02)
    assert np.all(found.log_px_se <= 0.02) and np.all(found.samples >= 200)
    assert found.samples.max() > 3 * found.samples.min()
    total = weights.T @ weights + NOISE**2 * np.eye(6)
    truth = scipy.stats.multivariate_normal(np.zeros(6), total).logpdf(images.reshape(-1, 6))
    assert np.all(np.abs(found.log_px - truth) < 5 * found.log_px_se)


def test_a_target_out_of_reach_ends_at_the_most_samples():
    done = []
    model = Linear(standard(), wider=2.5)
    found = from_q(model, IMAGES, 451, progress=done.append, target_se=1e-6)
    assert set(found.samples) == {451} and sum(done) == len(IMAGES) and np.all(found.log_px_se > 1e-6)


@pytest.mark.parametrize("proposal", ["posterior", "fitted"])
def test_a_weight_that_is_no_number_names_its_image(proposal):
    images = IMAGES.copy()
    images[7] = np.nan
    with pytest.raises(NotFiniteError, match="image 7 ") as caught:
        importance_sampling(Linear(standard()), images, 300, proposal=proposal)
    assert caught.value.image == 7


def test_memory_is_bounded_by_the_bytes_that_are_given(monkeypatch):
    calls = []
    monkeypatch.setattr(Compiled, "drawn", _recording(Compiled.drawn, calls))
    for count in (1, 2):
        monkeypatch.setattr(importance, "number_of_threads", lambda count=count: count)
        from_q(Linear(standard(), bytes_each=4000), IMAGES, 60, max_bytes=24_000)
        assert max(calls) * count == 6
        calls.clear()


def test_one_sample_has_no_known_error():
    estimate = from_q(Linear(standard()), IMAGES, 1)
    assert np.isnan(estimate.log_px_se).all() and np.isfinite(estimate.log_px).all()
    np.testing.assert_allclose(estimate.log_px, estimate.elbo)


def test_pseudo_inputs_are_encoded_once(monkeypatch):
    monkeypatch.setattr(importance, "CHUNK_BYTES", 12_000)
    model, calls = Linear(standard()), []
    top = model.top_prior.distribution()
    model.top_prior.distribution = lambda: calls.append(1) or top
    from_q(model, IMAGES, 30)
    assert len(calls) == 1


def test_the_seed_decides_the_samples():
    first, same, other = (from_q(Linear(standard()), IMAGES, 9, seed).log_px for seed in (4, 4, 5))
    np.testing.assert_array_equal(first, same)
    assert np.all(first != other)


@slow_on_jax
@pytest.mark.parametrize(
    ("proposal", "target"),
    [
        ("posterior", None),
        ("fitted", 0.02),
        pytest.param("posterior", 0.02, marks=pytest.mark.slow),
        pytest.param("fitted", None, marks=pytest.mark.slow),
    ],
)
def test_what_threads_draw_does_not_depend_on_which_is_first(proposal, target, monkeypatch):
    """One of three threads waits before each of its calls, another one or none: the same numbers, each image once."""
    monkeypatch.setattr(importance, "number_of_threads", lambda: 3)
    monkeypatch.setattr(importance, "CHUNK_BYTES", 4000 * 400)
    model, found, done = Linear(standard(), bytes_each=4000), [], []
    drawn = importance.Sampler.terms
    for slow in (range(4), range(4, 8), range(0)):

        def late(self, active, count, slow=slow):
            time.sleep(0.01 * (active.index[0] in slow))
            return drawn(self, active, count)

        monkeypatch.setattr(importance.Sampler, "terms", late)
        found.append(importance_sampling(model, IMAGES, 3000, 3, done.append, proposal=proposal, target_se=target))
    assert sum(done) == 3 * len(IMAGES)
    for estimate in found[1:]:
        np.testing.assert_array_equal(estimate, found[0])
    assert_within_errors(found[0], exact(np.eye(D)))


def test_noise_is_that_of_its_key_and_another_in_each_draw():
    draws = []
    for key in ([1, 2], [1, 2], [2, 2], [2**32 - 1, 2**32 - 1]):
        noise = KeyedSeeds(np.uint32(key))
        draws.append([np.asarray(random.normal((50,), seed=noise)) for _ in range(3)])
    np.testing.assert_array_equal(draws[0], draws[1])
    assert len(np.unique(np.concatenate(draws[1:]).round(6), axis=0)) == 9


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError("full")])
def test_where_one_thread_ends_the_others_do_not_go_on(stop, monkeypatch):
    """Where a thread fails, or Ctrl-C comes to the thread that waits for all of them."""
    monkeypatch.setattr(importance, "number_of_threads", lambda: 2)
    drawn, calls, real = importance.Sampler.terms, [], concurrent.futures.wait

    def failing(self, active, count):
        calls.append(active.index[0])
        if stop is not KeyboardInterrupt and active.index[0] >= 6:
            raise stop
        time.sleep(0.01)
        return drawn(self, active, count)

    def interrupted(running, **how):
        if stop is KeyboardInterrupt:
            time.sleep(0.1)
            raise stop
        return real(running, **how)

    monkeypatch.setattr(importance.Sampler, "terms", failing)
    monkeypatch.setattr(concurrent.futures, "wait", interrupted)
    with pytest.raises(type(stop) if isinstance(stop, Exception) else stop):
        from_q(Linear(standard(), bytes_each=4000), IMAGES, 10**6, max_bytes=4000 * 100)
    assert 0 < len(calls) < 500  # of 220,000


def test_xla_gives_the_same_distribution(monkeypatch):
    """On TensorFlow's CPU, Keras would not choose it by itself."""
    usual = Compiled.compile
    monkeypatch.setattr(Compiled, "compile", lambda self, **_: usual(self, jit_compile=True))
    assert_within_errors(from_q(Linear(standard()), IMAGES, 4000), exact(np.eye(D)))


@pytest.mark.parametrize(
    ("proposal", "max_bytes"),
    [
        ("posterior", 4000 * 30),
        ("fitted", None),
        pytest.param("posterior", None, marks=pytest.mark.slow),
        pytest.param("fitted", 4000 * 30, marks=pytest.mark.slow),
    ],
)
def test_log_weights_average_to_the_known_likelihood_image_by_image(proposal, max_bytes):
    model, covariance = two_layers()
    log_w = log_weights(model, IMAGES, 700, 3, proposal, max_bytes=max_bytes)
    assert log_w.shape == (11, 700) and log_w.dtype == np.float64
    assert len(np.unique(log_w)) > 0.99 * log_w.size
    everything = np.ones(log_w.shape, bool)
    assert_within_errors(Sums.none(11, 700).weighed(log_w, everything).estimate(), exact(covariance), most=0.2)
    np.testing.assert_array_equal(log_w, log_weights(model, IMAGES, 700, 3, proposal, max_bytes=max_bytes))
    assert np.mean(log_w == log_weights(model, IMAGES, 700, 4, proposal, max_bytes=max_bytes)) < 0.01


def test_log_weights_are_those_of_the_estimate(monkeypatch):
    monkeypatch.setattr(importance, "number_of_threads", lambda: 1)  # another number cuts images into other calls
    model = Linear(standard())
    estimate = from_q(model, IMAGES, 300, 5)
    log_w = log_weights(model, IMAGES, 300, 5, "posterior")
    np.testing.assert_allclose(np.log(np.exp(log_w).mean(axis=1)), estimate.log_px, atol=1e-9)


def test_a_log_weight_that_is_nan_is_named_with_its_image():
    images = IMAGES.copy()
    images[7] = np.nan
    with pytest.raises(NotFiniteError) as caught:
        log_weights(Linear(standard()), images, 20, max_bytes=4000 * 60)
    assert caught.value.image == 7
