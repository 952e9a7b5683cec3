"""Annealed weights where log p(x) and their mean are known: probabilistic PCA, and a posterior that is a ring."""

import functools

import numpy as np
import pytest
from conftest import first_on_both, slow_on_jax
from keras import ops
from keras.random import SeedGenerator
from scipy.stats import multivariate_normal

import models
from experiment import Config
from models.distributions import Normal
from models.gradients import value_and_gradient
from models.mcmc import FARTHEST, Path, langevin, log_barker, log_metropolis, metropolis, propose

pytestmark = pytest.mark.keras
D, SIGMA, SCALE = 3, 0.7, 0.6  # dimensions of z, noise of x, and the width of q, whose mean is off by 0.35
rng = np.random.default_rng(0)
W, M = rng.normal(size=(10, D)), 0.3 * rng.normal(size=10)
Z0 = rng.normal(size=D)
X = W @ Z0 + M + SIGMA * rng.normal(size=10)
COVARIANCE = np.linalg.inv(np.eye(D) + W.T @ W / SIGMA**2)  # of the exact posterior
POSTERIOR = COVARIANCE @ W.T @ (X - M) / SIGMA**2
MEAN = POSTERIOR + 0.35
LOG_PX = multivariate_normal(M, W @ W.T + SIGMA**2 * np.eye(10)).logpdf(X)
CHAINS = 50_000
barker = functools.partial(metropolis, rule=log_barker)


def as32(value):
    return np.float32(value)


def log_joint(z):
    """log p(x, z) for z (..., D)."""
    prior = Normal(ops.zeros_like(z), ops.zeros_like(z)).log_prob(z)
    mean = ops.matmul(z, as32(W.T)) + as32(M)
    return prior + Normal(mean, ops.zeros_like(mean) + 2 * np.log(SIGMA)).log_prob(as32(X)), ()


def pca(mean=MEAN, scale=SCALE):
    """The path from q to p(x, z), and draws of q: (CHAINS, 1, D)."""
    q = Normal(as32(np.broadcast_to(mean, (1, D))), as32(np.full((1, D), 2 * np.log(scale))))
    return Path(q.log_prob, log_joint), q.sample(CHAINS, SeedGenerator(1))


def linear(steps):
    return [k / (steps + 1) for k in range(1, steps + 1)]


def walked(walk, step, steps, path_and_z=None, seed=2):
    path, z = path_and_z or pca()
    return walk(path, path.at(z), linear(steps), [step] * steps, SeedGenerator(seed))


def weights(*args, **more):
    return np.asarray(walked(*args, **more).log_weight, "float64").ravel()


def expected_bound(step, steps):
    """E[W] of unadjusted Langevin steps on a linear path: all is Gaussian, so that moments follow one another."""
    p_q, p_p = np.eye(D) / SCALE**2, np.linalg.inv(COVARIANCE)
    v, p, total = MEAN, SCALE**2 * np.eye(D), D / 2 * np.log(2 * np.pi * np.e) + D * np.log(SCALE)
    for b in linear(steps):
        precision = (1 - b) * p_q + b * p_p
        h = (1 - b) * p_q @ MEAN + b * p_p @ POSTERIOR
        a = np.eye(D) - step * precision
        v_new, p_new = a @ v + step * h, a @ p @ a.T + 2 * step * np.eye(D)
        cross = p @ a.T
        e_mean = v - a @ v_new - step * h
        e_cov = p + a @ p_new @ a.T - cross @ a.T - a @ cross.T
        total += (D - (np.trace(e_cov) + e_mean @ e_mean) / (2 * step)) / 2
        v, p = v_new, p_new
    residual = X - M - W @ v
    total -= D / 2 * np.log(2 * np.pi) + (np.trace(p) + v @ v) / 2 + 10 / 2 * np.log(2 * np.pi * SIGMA**2)
    return total - (residual @ residual + np.trace(W @ p @ W.T)) / (2 * SIGMA**2)


def test_the_reference_is_that_of_the_specification():
    assert pytest.approx(-15.98318, abs=1e-4) == LOG_PX
    table = {(0.01, 0): -23.9756, (0.01, 5): -20.5543, (0.03, 10): -17.5857, (0.06, 1): -18.6228, (0.1, 5): -38.43}
    for (step, steps), value in table.items():
        assert expected_bound(step, steps) == pytest.approx(value, abs=1e-2)


@pytest.mark.parametrize("step", [0.01, 0.03, 0.06])
@pytest.mark.parametrize("steps", [0, 1, 5, 10])
def test_the_langevin_bound_is_its_closed_form(step, steps):
    w = weights(langevin, step, steps)
    assert abs(w.mean() - expected_bound(step, steps)) < 4.5 * w.std() / np.sqrt(CHAINS)


@pytest.mark.parametrize(("step", "steps", "value"), [(0.1, 1, -21.25), (0.1, 3, -18.42), (0.1, 10, -17.03)])
def test_the_metropolis_bound_is_that_of_an_independent_implementation(step, steps, value):
    w = weights(metropolis, step, steps)
    assert abs(w.mean() - value) < 0.03 + 4.5 * w.std() / np.sqrt(CHAINS)


@pytest.mark.parametrize(
    ("walk", "step", "steps"),
    [(langevin, 0.03, 10), (langevin, 0.06, 5), (metropolis, 0.03, 10), (metropolis, 0.1, 5), (barker, 0.1, 5)],
)
def test_weights_are_unbiased_whatever_the_step_size(walk, step, steps):
    ratio = np.exp(weights(walk, step, steps) - LOG_PX)
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / np.sqrt(CHAINS)


def test_more_steps_tighten_the_bound_unless_steps_are_too_large():
    stable = [weights(langevin, 0.03, steps).mean() for steps in (0, 1, 5, 20)]
    accepted = [weights(metropolis, 0.1, steps).mean() for steps in (0, 1, 5, 20)]
    assert np.all(np.diff(stable) > 0.3) and np.all(np.diff(accepted) > 0.3)
    assert max(stable + accepted) < LOG_PX
    assert weights(langevin, 0.1, 5).mean() < weights(langevin, 0.1, 1).mean() - 5  # beyond 2 / the largest curvature


def test_with_the_exact_posterior_metropolis_weights_are_log_px_and_langevin_s_approach_it():
    chol = as32(np.linalg.cholesky(COVARIANCE))

    def log_start(z):  # in coordinates in which the covariance is the identity
        flat = ops.matmul(z - as32(POSTERIOR), np.linalg.inv(chol).T)
        return Normal(ops.zeros_like(flat), ops.zeros_like(flat)).log_prob(flat) - np.float32(
            np.log(np.diag(chol)).sum()
        )

    z = ops.convert_to_tensor(as32(POSTERIOR + np.random.default_rng(3).normal(size=(2000, 1, D)) @ chol.T))
    path = Path(log_start, log_joint)
    for walk in (metropolis, barker):
        np.testing.assert_allclose(weights(walk, 0.05, 4, (path, z)), LOG_PX, atol=2e-3)
    spread = [np.abs(weights(langevin, step, 4, (path, z)) - LOG_PX).max() for step in (0.03, 0.003, 0.0003)]
    assert spread[0] > spread[1] > spread[2] and spread[2] < 0.1


def exact_drift(point, b):
    """grad log gamma_b in closed form."""
    of_p = ops.matmul(as32(POSTERIOR) - point.z, as32(np.linalg.inv(COVARIANCE)))
    return (1 - b) * (as32(MEAN) - point.z) / as32(SCALE**2) + b * of_p


def test_a_drift_may_be_given_without_gradients_of_densities(monkeypatch):
    """The exact gradient has the same weights as the usual drift; any other keeps them unbiased."""
    with_drifts = functools.partial(langevin, drifts=5 * [exact_drift], skip_below=0.1)
    expected, usual = weights(functools.partial(langevin, skip_below=0.1), 0.06, 5), weights(langevin, 0.03, 5)
    monkeypatch.setattr("models.mcmc.value_and_gradient", None)
    path, z = pca()
    path = path._replace(has_gradients=False)
    np.testing.assert_allclose(weights(with_drifts, 0.06, 5, (path, z)), expected, rtol=1e-4)
    bent = functools.partial(langevin, drifts=5 * [lambda point, b: exact_drift(point, b) + 3 * ops.sin(4 * point.z)])
    found = weights(bent, 0.03, 5, (path, z))
    ratio = np.exp(found - LOG_PX)
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / np.sqrt(CHAINS)
    assert np.abs(found - usual).mean() > 0.1


def test_log_kernels_are_those_of_the_normal_laws():
    path, z = pca()
    point = path.at(z)
    proposal, step, b = propose(path, point, 0.3, 0.02, SeedGenerator(4)), 0.02, 0.3
    there = Normal(point.z + step * point.gradient(b), ops.zeros_like(z) + np.log(2 * step))
    back = Normal(proposal.point.z + step * proposal.point.gradient(b), ops.zeros_like(z) + np.log(2 * step))
    expected = back.log_prob(point.z) - there.log_prob(proposal.point.z)
    np.testing.assert_allclose(proposal.log_kernels, expected, rtol=1e-3, atol=1e-3)
    change = proposal.point.log_density(b) - point.log_density(b)
    np.testing.assert_allclose(proposal.log_ratio, proposal.log_kernels + change, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("chain", "most"), [(metropolis, 1.0), (barker, 0.5)])
def test_acceptance_falls_with_the_step_size_and_decisions_have_their_probability(chain, most):
    rates = [np.exp(np.asarray(walked(chain, step, 3).log_accept)).mean() / most for step in (0.01, 0.1, 1.0)]
    assert rates[0] > 0.9 and rates[0] > rates[1] > 0.4 > rates[2]
    walk = walked(chain, 0.1, 1)
    accepted = np.any(np.asarray(walk.points[0].z != walk.points[1].z), axis=-1)
    p = np.exp(np.asarray(walk.log_accept, "float64"))[0]
    assert abs(accepted.mean() - p.mean()) < 4.5 * np.sqrt((p * (1 - p)).mean() / CHAINS)
    expected = np.where(accepted, np.log(p), np.log1p(-np.minimum(p, 1 - 1e-6)))
    np.testing.assert_allclose(walk.log_decisions, expected, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("rule", [log_metropolis, log_barker])
def test_a_rule_has_ratios_of_probabilities_that_are_t_and_finite_slopes(rule):
    log_t = np.float32([-1e9, -3.0, -0.2, 0.2, 3.0, 1e9])
    value, _, slope = value_and_gradient(lambda log_t: (rule(log_t), ()), ops.convert_to_tensor(log_t))
    np.testing.assert_allclose(np.asarray(value - rule(-log_t))[1:-1], log_t[1:-1], rtol=1e-5)
    assert np.asarray(value)[0] == -1000 and np.all(np.asarray(value) <= np.clip(log_t, -1000, 0))
    assert np.isfinite(slope).all() and not np.asarray(slope)[[0, -1]].any()


@pytest.mark.parametrize("chain", [metropolis, barker])
def test_a_step_is_reversible_and_many_lead_to_the_density_from_elsewhere(chain):
    path, z = gaussian()
    steps = [np.float32(1.2) * SCALES**2]
    ends = chain(path, path.at(z), [0.5], steps, SeedGenerator(3)).points
    a, b = (np.asarray(point.z, "float64") / SCALES for point in ends)
    assert 0.1 < np.mean(a != b) < 0.9
    odd = a**3 * b - a * b**3  # of mean 0, if a step and its reverse are equally probable
    assert np.all(np.abs(odd.mean(axis=0)) < 4.5 * odd.std(axis=0) / np.sqrt(CHAINS))
    last = chain(path, path.at(0 * z[:5000]), 60 * [0.5], 60 * steps, SeedGenerator(4)).points[-1].z / SCALES
    np.testing.assert_allclose(np.mean(last, axis=(0, 1)), 0, atol=4.5 / np.sqrt(5000))
    np.testing.assert_allclose(np.var(last, axis=(0, 1)), 1, rtol=4.5 * np.sqrt(2 / 5000))


@slow_on_jax
@pytest.mark.parametrize("walk", [langevin, metropolis, barker])
@pytest.mark.parametrize("step", [0.3, 10.0, 1e6])
def test_chains_that_diverge_are_counted_and_stay_finite_and_differentiable(walk, step):
    path, z = pca()
    z = z[:200]

    def bound(step):
        found = walk(path, path.at(z), linear(5), [step] * 5, SeedGenerator(5))
        return ops.mean(found.log_weight), found

    value, found, gradient = value_and_gradient(bound, ops.convert_to_tensor(np.float32(step)))
    assert np.isfinite(value) and np.isfinite(gradient) and np.isfinite(np.asarray(found.log_decisions)).all()
    diverged, moved = np.asarray(found.diverged), np.asarray(found.points[-1].z != found.points[0].z)
    assert diverged.shape == (5, 200, 1) and set(np.unique(diverged)) <= {0.0, 1.0}
    assert diverged.mean() > 0.9 if step > 1 else diverged.mean() < 0.9
    assert np.abs(np.asarray(found.points[-1].z)).max() < FARTHEST
    assert not moved[diverged.sum(axis=0) == 5].any()


@pytest.mark.parametrize("walk", [langevin, metropolis])
def test_a_step_to_where_the_density_is_no_number_is_refused_and_counted(walk):
    def holed(z):
        density, _ = log_joint(z)
        return ops.where(z[..., 0] > POSTERIOR[0] + 1.5, np.nan, density), ()

    path, z = pca(POSTERIOR)
    made = walked(walk, 0.3, 3, (Path(path.log_start, holed), z[:2000]))
    assert all(np.isfinite(np.asarray(part)).all() for part in (made.log_accept, made.log_decisions))
    assert np.asarray(made.diverged).sum() > 0


def test_leaving_out_what_diverges_keeps_weights_unbiased(monkeypatch):
    """With a threshold that is met often: the step and the step back are left out together."""
    monkeypatch.setattr("models.mcmc.DIVERGED", 1.0)
    walk = walked(langevin, 0.1, 3)
    assert 0.1 < np.asarray(walk.diverged).mean() < 0.9
    ratio = np.exp(np.asarray(walk.log_weight, "float64").ravel() - LOG_PX)
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / np.sqrt(CHAINS)


@pytest.mark.parametrize("least", [0.1, 0.5])
def test_leaving_out_steps_that_are_hardly_accepted_keeps_weights_unbiased(least):
    walk = walked(functools.partial(langevin, skip_below=least), 0.1, 3)
    moved = np.any(np.asarray(walk.points[1].z != walk.points[0].z), axis=-1)
    assert 0.05 < 1 - moved.mean() < 0.95 and np.asarray(walk.diverged).sum() == 0
    assert np.exp(np.asarray(walk.log_accept)[0][moved]).min() > least
    ratio = np.exp(np.asarray(walk.log_weight, "float64").ravel() - LOG_PX)
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / np.sqrt(CHAINS)
    without = np.asarray(walked(langevin, 0.1, 3).log_weight).mean()
    assert np.asarray(walk.log_weight).mean() > without + 1  # the steps that cost most


SCALES = np.float32([0.1, 1.0, 10.0])


def gaussian():
    """The path from N(0, SCALES^2) to itself, and draws of it: (CHAINS, 1, 3)."""
    q = Normal(ops.zeros((1, 3)), ops.zeros((1, 3)) + 2 * np.log(SCALES))
    return Path(q.log_prob, lambda z: (q.log_prob(z), ())), q.sample(CHAINS, SeedGenerator(1))


def adapted(name, path, z, updates=150):
    """Chains of an objective whose step sizes by dimension have followed the gradients, and their acceptance then."""
    config = Config(objective=name, num_steps=3, latent_dim=3, step_rule="variance")
    chains, noise, rates = models.objective(config), SeedGenerator(3), []
    for i in range(updates):
        part = z[100 * i % CHAINS :][:500]
        walk = chains.walk(path, path.at(part), ops.unstack(chains.betas()), ops.unstack(chains.steps()), noise)
        rates.append(np.exp(np.asarray(walk.log_accept)).mean(axis=(1, 2)))
        chains.follow(walk, rates[-1] >= config.acceptance)
    return chains, np.mean(rates[-40:], axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", first_on_both("lmcvae", "amcvae"))
def test_step_sizes_by_dimension_fit_a_gaussian_of_very_different_scales(name):
    """They reach the acceptance that is wanted; held fixed, they keep the law that their chains are stationary in."""
    path, z = gaussian()
    chains, rates = adapted(name, path, z)
    np.testing.assert_allclose(rates, {"lmcvae": 0.9, "amcvae": 0.8}[name], atol=0.03)
    steps = np.asarray(chains.steps())
    assert np.all(steps[:, 1] > 4 * steps[:, 0]) and np.all(steps[:, 2] > 1.5 * steps[:, 1])
    walk = chains.walk(path, path.at(z), linear(12), 4 * ops.unstack(chains.steps()), SeedGenerator(2))
    variances = SCALES.astype("float64") ** 2
    if name == "lmcvae":  # whose law is that of an autoregression, and not quite that of the target
        for step in np.concatenate(4 * [steps]):
            variances = (1 - step / SCALES**2) ** 2 * variances + 2 * step
        assert variances[0] > 1.05 * SCALES[0] ** 2
    found = np.asarray(walk.points[-1].z, "float64").var(axis=(0, 1))
    np.testing.assert_allclose(found, variances, rtol=4.5 * np.sqrt(2 / CHAINS))


@pytest.mark.slow
@pytest.mark.parametrize("name", first_on_both("lmcvae", "amcvae"))
def test_weights_are_unbiased_with_step_sizes_that_have_adapted_and_are_held_fixed(name):
    path, z = pca()
    chains, _ = adapted(name, path, z)
    walk = chains.walk(path, path.at(z), ops.unstack(chains.betas()), ops.unstack(chains.steps()), SeedGenerator(2))
    w = np.asarray(walk.log_weight, "float64").ravel()
    ratio = np.exp(w - LOG_PX)
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / np.sqrt(CHAINS)
    assert w.mean() > weights(chains.walk, 0.01, 3).mean() + 1  # the step sizes that they began with


@pytest.mark.parametrize("walk", [langevin, metropolis])
@pytest.mark.parametrize(("d", "x", "log_px"), [(2, 8 * np.pi, -3.1328), (2, 20.0, -2.3898)])
def test_a_ring_is_found_from_its_centre(walk, d, x, log_px):
    """x = 2 pi (|z| + 2) + noise, q(z|x) = N(0, I): the posterior is a ring. log p(x) by quadrature over |z|."""

    def log_end(z):
        prior = Normal(ops.zeros_like(z), ops.zeros_like(z)).log_prob(z)
        mean = 2 * np.pi * (ops.sqrt(ops.sum(ops.square(z), axis=-1, keepdims=True) + 1e-12) + 2)
        return prior + Normal(mean, ops.zeros_like(mean)).log_prob(np.float32([x])), ()

    q = Normal(np.zeros((1, d), "float32"), np.zeros((1, d), "float32"))
    path = Path(q.log_prob, log_end)
    found = walked(walk, 0.01, 10, (path, q.sample(CHAINS, SeedGenerator(6))))
    w = np.asarray(found.log_weight, "float64").ravel()
    ratio = np.exp(w - log_px)
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / np.sqrt(CHAINS) + 1e-3
    assert w.mean() < log_px
    mean_z = np.average(np.asarray(found.points[-1].z)[:, 0], axis=0, weights=ratio)
    assert np.abs(mean_z).max() < 0.1  # on all sides
