"""The densities that importance sampling draws from: that they are what is divided by, and that they fit."""

import numpy as np
import pytest
import scipy.stats
from linear_models import IMAGES, Linear, assert_within_errors, exact, posterior_of, standard, two_layers

from evaluation.importance import importance_sampling
from evaluation.proposals import DEFENSIVE, HEAVIEST, MOMENTS, MOST_ROUNDS, Calls, FittedProposal

pytestmark = pytest.mark.keras


def fitted(model, n=4000):
    """A FittedProposal and the arrays that it prepared for IMAGES."""
    source = FittedProposal(model, Calls(n, n, 1, n, len(IMAGES)))
    return source, prepared(source)[0]


def prepared(source):
    """What it prepares for IMAGES."""
    return source.prepared(IMAGES, 0, np.random.SeedSequence(0))


@pytest.mark.parametrize("make", [lambda: (Linear(standard(), wider=3.0), np.eye(2)), lambda: two_layers(wider=0.3)])
def test_the_fit_finds_a_gaussian_posterior_whatever_it_began_with(make):
    """Correlated dimensions, which q(z|x) has not, and a q(z|x) three times too wide or too narrow."""
    model, covariance = make()
    _, (_, mean, scale, whitening, log_det) = fitted(model)
    expected_mean, expected = posterior_of(covariance)
    np.testing.assert_allclose(mean, expected_mean, atol=1e-3)
    np.testing.assert_allclose(scale @ scale.swapaxes(1, 2) / 1.05**2, np.tile(expected, (len(mean), 1, 1)), atol=1e-3)
    np.testing.assert_allclose(whitening @ scale, np.tile(np.eye(2), (len(mean), 1, 1)), atol=1e-5)
    np.testing.assert_allclose(log_det, np.log(np.abs(np.linalg.det(scale.astype("float64")))), atol=1e-5)


@pytest.mark.parametrize(
    "wider, samples, rounds",
    [
        (1.0, 1000, [1]),
        (6.0, 1000, range(2, MOST_ROUNDS)),
        (1e-3, 1000, [MOST_ROUNDS]),
        (1e-3, 63, [1]),
        (1e-3, 64, [2]),
    ],
)
def test_each_image_is_fitted_until_it_has_settled(monkeypatch, wider, samples, rounds):
    """A round widens a fit twofold at most, and narrows it threefold; the second image begins where it belongs.

    Rounds after the first, of 32 gradients an image, are no more work than the samples.
    """
    source = FittedProposal(Linear(standard(), wider=wider), Calls(samples, 100, len(IMAGES), 100, len(IMAGES)))
    sizes, gradients = [], source.gradients.on
    start = source.start.on

    def first_settled(arrays, rows, seeds):
        log_px_z, log_ratio, z = start(arrays, rows, seeds)
        mean, covariance = posterior_of(np.eye(2))
        z[1] = np.random.default_rng(0).multivariate_normal(mean[1], covariance, len(z[1]))
        return log_px_z, log_ratio, z

    monkeypatch.setattr(source.start, "on", first_settled)
    monkeypatch.setattr(source.gradients, "on", lambda a, rows: sizes.append(len(a[0])) or gradients(a, rows))
    prepared(source)
    assert len(sizes) in rounds and sizes[0] == len(IMAGES) and all(size < len(IMAGES) for size in sizes[1:])


def test_the_log_weights_are_of_the_density_that_was_drawn_from(monkeypatch):
    """log r(z) against SciPy's t-density at the z that were drawn, and their moments against the mixture's."""
    model = Linear(standard(), wider=3.0)
    source, arrays = fitted(model)
    drawn = []
    likelihood = model.likelihood
    monkeypatch.setattr(model, "likelihood", lambda z: drawn.append(z) or likelihood(z))
    log_px_z, log_ratio = (np.asarray(part) for part in source.draws([*arrays, np.uint32([1, 2])]))
    z = np.asarray(drawn[0]).swapaxes(0, 1)  # (B, n, D)
    _, mean, scale, *_ = (array.astype("float64") for array in arrays)
    q_mean, q_sd = (np.asarray(part) for part in model.posterior(IMAGES))
    q_sd = np.exp(q_sd / 2)
    shape = scale @ scale.swapaxes(1, 2)
    for row in range(len(IMAGES)):
        of_t = scipy.stats.multivariate_t(mean[row], shape[row], df=HEAVIEST).logpdf(z[row])
        of_q = scipy.stats.norm(q_mean[row], q_sd[row]).logpdf(z[row]).sum(axis=1)
        log_r = np.logaddexp(np.log(1 - DEFENSIVE) + of_t, np.log(DEFENSIVE) + of_q)
        log_p = scipy.stats.norm(0, 1).logpdf(z[row]).sum(axis=1)
        np.testing.assert_allclose(log_ratio[row], log_p - log_r, atol=1e-3)
        np.testing.assert_allclose(log_px_z[row], np.asarray(likelihood(z[row]).log_prob(IMAGES[row])), atol=1e-3)
        inside = (np.linalg.norm((z[row] - mean[row]) @ np.linalg.inv(scale[row]).T, axis=1) ** 2 / 2 < 2.0).mean()
        of_t = scipy.stats.f(2, HEAVIEST).cdf(2.0)  # |e|^2 / D of a t-density follows F
        wide = np.random.default_rng(0).normal(q_mean[row], q_sd[row], size=(20_000, 2))
        of_q = (np.linalg.norm((wide - mean[row]) @ np.linalg.inv(scale[row]).T, axis=1) ** 2 / 2 < 2.0).mean()
        assert abs(inside - (1 - DEFENSIVE) * of_t - DEFENSIVE * of_q) < 5 * 0.5 / np.sqrt(4000)


@pytest.mark.parametrize("wider", [0.2, 6.0])
def test_a_posterior_that_is_far_off_does_no_harm(wider):
    """With q(z|x) itself as the proposal, the weights of the narrow one have no variance; with the fit, all is well."""
    model, covariance = two_layers(wider=wider)
    found = importance_sampling(model, IMAGES, 2000)
    assert_within_errors(found, exact(covariance))
    assert np.all(found.khat < 0.5) and np.all(found.ess > 1000)
    if wider < 1:
        plain = importance_sampling(model, IMAGES, 2000, proposal="posterior")
        assert np.median(plain.khat) > 0.7 and np.all(plain.ess < 1000)


def test_the_elbo_is_that_of_q_whatever_is_drawn_from():
    model = Linear(standard())
    ours, theirs = (importance_sampling(model, IMAGES, 20_000, proposal=name) for name in ("fitted", "posterior"))
    for name in ("elbo", "rate", "distortion"):
        assert np.mean(getattr(ours, name)) == pytest.approx(np.mean(getattr(theirs, name)), abs=0.3)
        assert np.all(np.abs(getattr(ours, name) - getattr(theirs, name)) < 2.5)


def test_gradients_that_are_no_numbers_leave_the_fit_where_it_was(monkeypatch):
    source = FittedProposal(Linear(standard()), Calls(100, 100, 1, 100, len(IMAGES)))
    monkeypatch.setattr(source.gradients, "on", lambda arrays, rows: [np.full(arrays[1].shape, np.nan)])
    (_, mean, scale, *_), log_terms = prepared(source)
    assert np.isfinite(mean).all() and np.isfinite(scale).all() and len(log_terms) == 2
    q_mean, q_logvar = (np.asarray(part) for part in Linear(standard()).posterior(IMAGES))
    assert np.all(np.abs(mean - q_mean) < 5 * np.exp(q_logvar / 2) / np.sqrt(MOMENTS))
