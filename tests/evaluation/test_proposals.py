"""The densities that importance sampling draws from: that they are what is divided by, and that they fit."""

import numpy as np
import pytest
import scipy.stats
from conftest import slow_on_jax
from linear_models import (
    IMAGES,
    Linear,
    assert_within_errors,
    exact,
    many_modes,
    posterior_of,
    standard,
    two_layers,
)

from evaluation.importance import importance_sampling
from evaluation.proposals import HEAVIEST, MOMENTS, MOST_ROUNDS, NEVER, OF_POSTERIOR, OF_PRIOR, Calls, FittedProposal

pytestmark = pytest.mark.keras


def fitted(model, n=4000, starts=0):
    """A FittedProposal and the arrays that it prepared for IMAGES."""
    source = FittedProposal(model, Calls(n, n, 1, n, len(IMAGES)), starts)
    return source, prepared(source)[0]


def prepared(source):
    """What it prepares for IMAGES."""
    return source.prepared(IMAGES, 0, np.random.SeedSequence(0))


@pytest.mark.parametrize("make", [lambda: (Linear(standard(), wider=3.0), np.eye(2)), lambda: two_layers(wider=0.3)])
def test_the_fit_finds_a_gaussian_posterior_whatever_it_began_with(make):
    """Correlated dimensions, which q(z|x) has not, and a q(z|x) three times too wide or too narrow."""
    model, covariance = make()
    mean, scale, whitening, log_det = (array[:, 0] for array in fitted(model)[1][1:5])
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
    source = FittedProposal(Linear(standard(), wider=wider), Calls(samples, 100, len(IMAGES), 100, len(IMAGES)), 0)
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


@slow_on_jax
@pytest.mark.parametrize("starts", [0, 2])
def test_the_log_weights_are_of_the_density_that_was_drawn_from(monkeypatch, starts):
    """log r(z) against SciPy's t-densities at the z that were drawn, and how many of these are from which part."""
    model = many_modes(3, 3, 8.0, 3)[0]
    source, arrays = fitted(model, starts=starts)
    drawn, likelihood = [], model.likelihood
    monkeypatch.setattr(model, "likelihood", lambda z: drawn.append(z) or likelihood(z))
    log_px_z, log_ratio = (np.asarray(part) for part in source.draws([*arrays, np.uint32([1, 2])]))
    z = np.asarray(drawn[0]).swapaxes(0, 1)  # (B, n, D)
    _, mean, scale, *_, log_share = (array.astype("float64") for array in arrays)
    q_mean, q_sd = (np.asarray(part) for part in model.posterior(IMAGES))
    q_sd, prior = np.exp(q_sd / 2), model.prior()
    assert mean.shape == (len(IMAGES), 1 + starts, 3)
    for row in range(len(IMAGES)):
        shares = (1 - OF_POSTERIOR - OF_PRIOR) * np.exp(log_share[row])
        parts = [
            share * scipy.stats.multivariate_t(centre, side @ side.T, df=HEAVIEST).pdf(z[row])
            for share, centre, side in zip(shares, mean[row], scale[row], strict=True)
        ]
        parts.append(OF_POSTERIOR * scipy.stats.norm(q_mean[row], q_sd[row]).pdf(z[row]).prod(axis=1))
        log_p = np.asarray(prior.log_prob(z[row])).astype("float64")
        parts.append(OF_PRIOR * np.exp(log_p))
        r = sum(parts)
        np.testing.assert_allclose(log_ratio[row], log_p - np.log(r), atol=2e-3)
        np.testing.assert_allclose(log_px_z[row], np.asarray(likelihood(z[row]).log_prob(IMAGES[row])), atol=1e-3)
        for part, share in zip(parts, [*shares, OF_POSTERIOR, OF_PRIOR], strict=True):
            assert np.mean(part / r) == pytest.approx(share, abs=5 * 0.5 / np.sqrt(4000))  # E_r[part / r] = share


@slow_on_jax
def test_rows_of_one_image_share_no_draw(monkeypatch):
    """As an image may fill several rows of a call, which count as draws of their own."""
    model = Linear(standard())
    source, arrays = fitted(model)
    drawn, likelihood = [], model.likelihood
    monkeypatch.setattr(model, "likelihood", lambda z: drawn.append(z) or likelihood(z))
    source.draws([*(np.repeat(array[:1], len(IMAGES), axis=0) for array in arrays), np.uint32([1, 2])])
    z = np.asarray(drawn[0]).reshape(-1, drawn[0].shape[-1])
    assert len(np.unique(z, axis=0)) == len(z)


@slow_on_jax
@pytest.mark.parametrize(
    ("d", "modes", "apart", "seed"),
    [(3, 3, 6.0, 0), (40, 4, 10.0, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in
     [(2, 2, 5.0, 2), (5, 4, 8.0, 3), (10, 3, 20.0, 4), (20, 4, 10.0, 5), (40, 3, 40.0, 6)])],
)  # fmt: skip
def test_modes_that_q_does_not_know_are_found(d, modes, apart, seed):
    """The mean is right within its errors, and so is each image, unless its k-hat says that it is not."""
    model, truth, shares = many_modes(d, modes, apart, seed, rank=min(2, d - 1))
    assert shares[0].mean() < 0.9  # of the mode that q(z|x) knows
    found = importance_sampling(model, IMAGES, 2000)
    off = found.log_px - truth
    assert abs(off.mean()) < 3 * np.sqrt(np.sum(found.log_px_se**2)) / len(off)
    assert np.all((np.abs(off) < 5 * found.log_px_se) | (found.khat > 0.7))
    alone = importance_sampling(model, IMAGES, 2000, starts=0)
    assert np.median(alone.ess) < np.median(found.ess) / 2 or np.nanmax(alone.khat) > 0.7


def test_fits_of_further_modes_share_the_draws():
    """Each fit is at a mode, with a share of the draws like that of its mode; images with fewer have fits without."""
    model, _, shares = many_modes(6, 3, 8.0, 3)
    _, mean, *_, log_share = fitted(model, starts=3)[1]
    top, missed = model.prior(), 0
    for row in range(len(IMAGES)):
        drawn = np.flatnonzero(log_share[row] > NEVER / 2)
        assert np.exp(log_share[row]).sum() == pytest.approx(1, abs=1e-5)
        squared = (mean[row][drawn, None, 2:] - top.mean[:, 2:]) ** 2 * np.exp(-top.logvar[:, 2:])
        nearest = squared.sum(axis=-1).argmin(axis=1)
        assert len(set(nearest)) == len(drawn)
        missed += len({*np.flatnonzero(shares[:, row] > 0.02)} - {*nearest})
    assert missed <= 1


@slow_on_jax
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
    nothing = [np.full((len(IMAGES), 32), np.nan), np.full((len(IMAGES), 32, 2), np.nan)]
    monkeypatch.setattr(source.gradients, "on", lambda a, rows: [one[: len(a[0]), : a[1].shape[1]] for one in nothing])
    (_, mean, scale, *_, log_share), log_terms = prepared(source)
    mean, scale = mean[:, 0], scale[:, 0]
    assert np.isfinite(log_share).all() and np.isfinite(mean).all() and np.isfinite(scale).all() and len(log_terms) == 2
    q_mean, q_logvar = (np.asarray(part) for part in Linear(standard()).posterior(IMAGES))
    assert np.all(np.abs(mean - q_mean) < 5 * np.exp(q_logvar / 2) / np.sqrt(MOMENTS))
