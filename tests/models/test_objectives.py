"""Bounds on a model whose log p(x) is known, gradients against finite differences, and step sizes that adapt."""

import contextlib
import itertools
import math

import keras
import numpy as np
import pytest
import scipy.special
from conftest import slow_on_jax
from keras import ops
from keras.random import SeedGenerator
from scipy.stats import multivariate_normal

import models
from experiment import Config
from models import annealed, objectives
from models.base import LatentModel
from models.distributions import Normal
from models.gradients import value_and_gradient
from models.objectives import Terms
from models.pixels import Pixels

on_both_backends = pytest.mark.keras
rng = np.random.default_rng(0)
D, SIGMA = 2, 0.5  # dimensions of z, and the noise of x, of six pixels
WEIGHTS = rng.normal(size=(D, 6))
X = rng.normal(size=(3, 2, 3, 1)).astype("float32")
COVARIANCE = np.linalg.inv(np.eye(D) + WEIGHTS @ WEIGHTS.T / SIGMA**2)
LOG_PX = multivariate_normal(np.zeros(6), WEIGHTS.T @ WEIGHTS + SIGMA**2 * np.eye(6)).logpdf(X.reshape(3, 6))
THETA = np.float32([0.3, -0.2, 0.4, 1.1])  # shift of q's mean (2), its log-width, and a factor of p's weights


class Pca(LatentModel):
    """x = theta_3 z W + noise; q(z|x) is the posterior of theta_3 = 1 in coordinates in which its covariance is I, its
    mean shifted by theta_0 and theta_1, its width exp(theta_2). `theta` is a tensor, so that there are gradients.
    """

    top_prior = None

    def __init__(self, objective, theta):
        super().__init__(objective, dynamic=False, seed=0)
        self.theta = theta
        self.built = True

    def posterior(self, x):
        chol = np.float32(np.linalg.cholesky(COVARIANCE))
        self.precise = np.linalg.inv(chol)
        centre = ops.matmul(ops.reshape(x, (-1, 6)), np.float32(WEIGHTS.T @ COVARIANCE / SIGMA**2))
        mean = ops.matmul(centre, self.precise.T) + self.theta[:2]
        return Normal(mean, ops.zeros_like(mean) + 2 * self.theta[2])

    def prior(self, top=None):
        """N(0, I) of the latents themselves, as a law of their coordinates."""
        chol = np.float32(np.linalg.cholesky(COVARIANCE))
        return Rotated(chol)

    def likelihood(self, z, training=False):
        chol = np.float32(np.linalg.cholesky(COVARIANCE))
        mean = ops.matmul(ops.matmul(z, chol.T), np.float32(WEIGHTS)) * self.theta[3]
        return Pixels(ops.reshape(mean, (*ops.shape(z)[:-1], 2, 3, 1)), SIGMA)


class Rotated:
    """The law of chol^-1 z for z ~ N(0, I)."""

    def __init__(self, chol):
        self.chol = chol

    def log_prob(self, z):
        z = ops.matmul(z, self.chol.T)
        return Normal(ops.zeros_like(z), ops.zeros_like(z)).log_prob(z) + np.float32(np.log(np.diag(self.chol)).sum())


OF_GROUPS = models.owners("num_groups")["objective"]


def made(name, n=None, **settings):
    config = Config(objective=name, num_samples=n, **settings)
    return models.objective(config)


def outcome(name, n, theta=THETA, repeats=1, seed=1, training=False, beta=1.0, **settings):
    """The Outcome for the images, each `repeats` times."""
    model = Pca(made(name, n, **settings), ops.convert_to_tensor(theta))
    return model.objective.outcome(model, np.repeat(X, repeats, axis=0), SeedGenerator(seed), beta, training)


def bounds(*args, repeats=4000, **more):
    """Mean and standard error of a bound, for each image."""
    values = np.asarray(outcome(*args, repeats=repeats, **more).bound, "float64").reshape(3, repeats)
    return values.mean(axis=1), values.std(axis=1) / np.sqrt(repeats)


EXACT = np.float32([0, 0, 0, 1])


@slow_on_jax
@on_both_backends
@pytest.mark.parametrize(("name", "n"), [("elbo", 1), ("elbo", 4), ("iwae", 5), ("dreg", 5), ("amcvae", 3)])
def test_with_the_exact_posterior_every_bound_is_log_px(name, n):
    found = outcome(name, n, EXACT)
    np.testing.assert_allclose(found.bound, LOG_PX, rtol=1e-4)
    np.testing.assert_allclose(np.asarray(found.terms.log_w()), np.broadcast_to(LOG_PX, (n, 3)), rtol=1e-4)


def test_bounds_are_ordered_and_the_gap_closes():
    theta = np.float32([0.3, -0.2, 0.4, 1.0])
    ladder = [bounds(name, n, theta) for name, n in (("elbo", 1), ("iwae", 2), ("iwae", 8), ("iwae", 64))]
    for (low, e), (high, f) in itertools.pairwise(ladder):
        assert np.all(high - low > 3 * np.hypot(e, f))
    mean, error = ladder[-1]
    assert np.all(mean < LOG_PX + 3 * error) and np.all(mean > LOG_PX - 0.05)


@pytest.mark.parametrize(("name", "n", "step"), [("lmcvae", 1, 0.05), ("amcvae", 2, 0.3)])
def test_annealed_bounds_rise_with_the_steps_and_stay_below(name, n, step):
    theta = np.float32([1.0, -1.0, -0.7, 1.0])
    ladder = [bounds("elbo", 1, theta)]
    ladder += [bounds(name, n, theta, num_steps=steps, step_size=step) for steps in (1, 5, 15)]
    for (low, e), (high, f) in itertools.pairwise(ladder):
        assert np.all(high - low > 3 * np.hypot(e, f))
    mean, error = ladder[-1]
    assert np.all(mean < LOG_PX + 3 * error)


@on_both_backends
def test_one_sample_of_iwae_is_the_elbo_and_an_even_weight_counts_all():
    log_w = rng.normal(size=(1, 5)).astype("float32")
    np.testing.assert_allclose(objectives.iwae(log_w), objectives.elbo(log_w), rtol=1e-6)
    np.testing.assert_allclose(objectives.effective_samples(np.zeros((7, 2), "float32")), 7, rtol=1e-5)
    near = np.float32(rng.normal(size=(5, 3)) * 0.3)
    np.testing.assert_allclose(
        objectives.effective_samples(near - np.float32(2**18)), objectives.effective_samples(near), rtol=2e-2
    )
    uneven = np.float32([[0, 0], [-100, 0], [-100, -100]])
    np.testing.assert_allclose(objectives.effective_samples(uneven), [1, 2], rtol=1e-5)


@on_both_backends
@pytest.mark.parametrize("name", models.OBJECTIVES)
@pytest.mark.parametrize("training", [True, False])
def test_an_outcome_has_what_its_objective_says_and_the_elbo_beside(name, training):
    settings = {"num_groups": 3} if name in OF_GROUPS else {}
    found = outcome(name, 3, training=training, **settings)
    assert {"bound", *found.logs} == {"bound", *Config(objective=name, num_samples=3, **settings).logged}
    for value in (found.loss, found.bound, *found.logs.values()):
        assert value.shape == (3,) and np.isfinite(np.asarray(value)).all()
    assert isinstance(found.terms, Terms) and all(term.shape == (3, 3) for term in found.terms[:3])
    if not training:
        np.testing.assert_allclose(found.loss, -np.asarray(found.bound), rtol=1e-6)


@pytest.mark.parametrize("name", ["elbo", "iwae", "lmcvae", "amcvae"])
def test_beta_weighs_the_rest_in_the_loss_and_nothing_in_the_bound(name):
    """At beta 0 what remains is log p(x|z) (of the last state, for lmcvae; along the path, for amcvae)."""
    one, none = (outcome(name, 3, training=True, beta=beta) for beta in (1.0, 0.0))
    np.testing.assert_allclose(one.bound, none.bound, rtol=1e-5)
    if name != "amcvae":  # whose loss has a term of mean zero
        np.testing.assert_allclose(one.loss, -np.asarray(one.bound), rtol=1e-4, atol=1e-4)
    assert np.abs(np.asarray(one.loss) - np.asarray(none.loss)).min() > 1e-2
    if name == "elbo":
        np.testing.assert_allclose(none.loss, -np.mean(np.asarray(none.terms.log_px_z), axis=0), rtol=1e-5)


@on_both_backends
@pytest.mark.parametrize("name", models.OBJECTIVES)
def test_what_is_logged_knows_no_beta(name):
    settings = {"num_groups": 3} if name in OF_GROUPS else {}
    one, other = (outcome(name, 3, training=True, beta=beta, **settings) for beta in (1.0, 0.25))
    np.testing.assert_allclose(one.bound, other.bound, rtol=1e-5)
    for key, values in one.logs.items():
        np.testing.assert_allclose(values, other.logs[key], rtol=1e-4)


def test_what_remains_of_lmcvae_at_beta_0_is_log_p_of_x_at_the_last_state():
    model = Pca(made("lmcvae", 3), ops.convert_to_tensor(THETA))
    loss = model.objective.outcome(model, X, SeedGenerator(1), 0.0, True).loss
    last = model.objective.walked(model, X, 3, SeedGenerator(1), training=True).points[-1].more[0]
    np.testing.assert_allclose(loss, -np.asarray(last).mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("name", ["elbo", "lmcvae", "amcvae"])
def test_the_loss_is_a_line_in_beta_for_means_of_log_weights(name):
    none, one, four = (np.asarray(outcome(name, 3, training=True, beta=beta).loss) for beta in (0.0, 1.0, 4.0))
    np.testing.assert_allclose(four, none + 4 * (one - none), rtol=1e-4)


@pytest.mark.parametrize("beta", [0.25, 4.0])
def test_the_losses_of_elbo_and_iwae_are_those_computed_by_hand(beta):
    for name, bound in (("elbo", np.mean), ("iwae", lambda w, axis: scipy.special.logsumexp(w, axis) - np.log(len(w)))):
        found = outcome(name, 3, training=True, beta=beta)
        log_px_z, log_pz, log_qz_x = (np.asarray(term, "float64") for term in found.terms[:3])
        np.testing.assert_allclose(found.loss, -bound(log_px_z + beta * (log_pz - log_qz_x), axis=0), rtol=1e-5)
        np.testing.assert_allclose(found.bound, bound(log_px_z + log_pz - log_qz_x, axis=0), rtol=1e-5)


# Gradients


@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_the_best_width_of_q_for_a_beta_is_that_of_a_linear_model(beta):
    """With z = m + w L e, LL' = C = (I + A)^-1 and A = WW' / sigma^2, w^2 = beta D / (tr AC + beta tr C)."""
    a = WEIGHTS @ WEIGHTS.T / SIGMA**2
    width = np.sqrt(beta * D / (np.trace(a @ COVARIANCE) + beta * np.trace(COVARIANCE)))
    found = gradients("elbo", 20, 20, np.float32([0, 0, np.log(width), 1]), beta=beta)[:, 2]
    elsewhere = gradients("elbo", 20, 20, np.float32([0, 0, np.log(width) + 0.1, 1]), beta=beta)[:, 2]
    assert abs(found.mean()) < 4.5 * found.std() / np.sqrt(20) + 1e-5 < elsewhere.mean()


def gradients(name, n, groups, theta=THETA, size=500, **settings):
    """Gradients of the loss with respect to theta: (groups, 4), each the mean over `size` repeats of the images."""

    def loss(theta, seed):
        return ops.mean(outcome(name, n, theta, size, seed, training=True, **settings).loss), ()

    tensor = ops.convert_to_tensor(np.float32(theta))
    found = [value_and_gradient(lambda t, seed=seed: loss(t, seed), tensor)[2] for seed in range(groups)]
    return np.array([np.asarray(one, "float64") for one in found])


@on_both_backends
def test_bounds_of_groups_and_combinations_lie_between_their_neighbours():
    """For any log-weights; their ends are the ELBO and the importance-weighted bound themselves."""
    log_w = np.float32(3 * rng.normal(size=(24, 50)))
    low, high = np.asarray(objectives.elbo(log_w)), np.asarray(objectives.iwae(log_w))
    groups = {n: np.asarray(objectives.miwae(log_w, n)) for n in (1, 2, 8, 24)}
    np.testing.assert_allclose(groups[1], high, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(groups[24], low, rtol=1e-5, atol=1e-5)
    assert np.all(low < groups[8]) and np.all(groups[2] < high)
    assert groups[8].mean() < groups[2].mean()  # of groups that are not nested, on the average alone
    for weight in (0.0, 0.3, 1.0):
        found = np.asarray(made("ciwae", 24, elbo_weight=weight).bound(log_w))
        np.testing.assert_allclose(found, weight * low + (1 - weight) * high, rtol=1e-5, atol=1e-5)


@slow_on_jax
@on_both_backends
@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_piwae_trains_p_by_all_samples_and_q_by_groups(beta):
    """With the same noise: the factor of p's weights has the gradient of iwae, those of q that of miwae."""
    found = {name: gradients(name, 12, 2, size=40, beta=beta, **({} if name == "iwae" else {"num_groups": 4}))
             for name in ("iwae", "miwae", "piwae")}  # fmt: skip
    np.testing.assert_allclose(found["piwae"][:, 3], found["iwae"][:, 3], rtol=1e-4)
    np.testing.assert_allclose(found["piwae"][:, :3], found["miwae"][:, :3], rtol=1e-3, atol=1e-4)
    assert np.abs(found["iwae"] - found["miwae"]).max() > 0.01  # there is something to tell apart


@slow_on_jax
@on_both_backends
@pytest.mark.parametrize("beta", [1.0, 0.4, 3.0])
def test_dreg_has_iwae_s_gradient_in_expectation_and_a_lower_variance(beta):
    theta = np.float32([0.2, -0.1, 0.3, 1.1])
    plain, better = (gradients(name, 20, 30, theta, beta=beta) for name in ("iwae", "dreg"))
    error = np.hypot(plain.std(axis=0), better.std(axis=0)) / np.sqrt(30)
    assert np.all(np.abs(plain.mean(axis=0) - better.mean(axis=0)) < 4.5 * error)
    assert np.all(np.abs(plain.mean(axis=0))[2:] > 10 * error[2:])  # there is something to compare
    if beta == 1:
        assert np.all(better.var(axis=0)[:3] < 0.6 * plain.var(axis=0)[:3])


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["metropolis", "barker"])
def test_decisions_are_trained_by_how_their_chains_fared(rule, monkeypatch):
    """The gradient is that of E[W], by finite differences with common noise; without the score term it is another."""
    settings = {"num_steps": 2, "step_size": 0.9, "acceptance_rule": rule}
    theta = np.float32([1.0, -1.0, -0.7, 1.0])
    found = gradients("amcvae", 8, 12, theta, 2000, **settings)
    h, direction = 0.1, np.float32([0, 0, 1, 0])

    def mean_bound(theta):
        means = [bounds("amcvae", 8, theta, repeats=20_000, seed=seed, **settings) for seed in range(12)]
        return np.array([value.mean() for value, _ in means])

    slopes = (mean_bound(theta + h * direction) - mean_bound(theta - h * direction)) / (2 * h)
    error = np.hypot(slopes.std(), found[:, 2].std()) / np.sqrt(12)
    assert abs(-found[:, 2].mean() - slopes.mean()) < 4.5 * error + 0.01
    scored = annealed.MetropolisMcvae.training_loss

    def without_score(self, walk, beta):
        return scored(self, walk._replace(log_decisions=0 * walk.log_decisions), beta)

    monkeypatch.setattr(annealed.MetropolisMcvae, "training_loss", without_score)
    biased = gradients("amcvae", 8, 12, theta, 2000, **settings)
    assert abs(-biased[:, 2].mean() - slopes.mean()) > 8 * error


def test_the_gradient_of_decisions_has_the_weight_of_its_epoch():
    """Which is 0 before the first one: then it is that of W with the decisions held fixed."""
    found = [outcome("amcvae", 3, training=True, num_steps=2, step_size=0.9, decision_warmup=n) for n in (0, 4)]
    np.testing.assert_array_equal(found[0].bound, found[1].bound)
    np.testing.assert_allclose(found[1].loss, -np.asarray(found[1].bound), rtol=1e-5)
    assert np.abs(np.asarray(found[0].loss) - found[1].loss).max() > 0.01


@contextlib.contextmanager
def float64():
    """Keras, and JAX, in double precision."""
    x64 = contextlib.nullcontext()
    if keras.backend.backend() == "jax":
        import jax

        x64 = jax.enable_x64(True)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        with x64:
            yield
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


class Frozen:
    """ops.stop_gradient whose values are those of its first round in every later one: then a loss with surrogates
    is a function of the weights whose derivative is the surrogate's.
    """

    def __init__(self):
        self.values, self.next = [], None

    def __call__(self, value):
        if self.next is None:
            self.values.append(np.asarray(value))
            return ops.stop_gradient(value)
        self.next += 1
        return ops.convert_to_tensor(self.values[self.next - 1])


def loss_of(model, x):
    model.train_noise.state.assign([1, 2])
    return ops.sum(model(x, training=True).loss) / len(x)


def gradient_of(model, x):
    """The gradient of the loss with respect to all trainable weights, by the backend: a list of arrays."""
    if keras.backend.backend() == "jax":
        import jax

        model.train_noise.state.assign([1, 2])
        fixed = [(variable, variable.value) for variable in model.non_trainable_variables]

        def loss(values):
            with keras.StatelessScope([*zip(model.trainable_variables, values, strict=True), *fixed]):
                return ops.sum(model(x, training=True).loss) / len(x)

        return jax.grad(loss)([variable.value for variable in model.trainable_variables])
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = loss_of(model, x)
    return tape.gradient(loss, model.trainable_variables)


if keras.backend.backend() == "tensorflow":  # some layers of which have wrong second derivatives
    NETWORKS, H, ERROR = models.NETWORKS, 1e-8, 1e-4  # so small a step that hardly a ReLU has its kink inside
else:
    NETWORKS, H, ERROR = ["mlp"], 1e-7, 1e-4  # eager JAX compiles each operation: the rest is for TensorFlow
CASES = [
    (network, objective)
    for network, entry in ((name, models.NETWORKS[name]) for name in NETWORKS)
    for objective, other in models.OBJECTIVES.items()
    if not (other.has_gradients and entry.normalises_batches) and objective != "piwae"  # which has two gradients
]


CASES = [(network, objective, {}) for network, objective in CASES]
if keras.backend.backend() == "tensorflow":  # on JAX ops.tanh, which both of these have, is of single precision
    CASES += [("mlp", objective, {"posterior": "realnvp"}) for objective in ("elbo", "dreg", "lmcvae", "amcvae")]
    CASES += [("mlp", "lmcvae", {"likelihood": "mixlogistic"}), ("mlp", "lmcvae", {"learn_schedule": "sigmoidal"})]
    CASES += [("mlp", "amcvae", {"acceptance_rule": "barker"})]
    CASES += [("mlp", "lmcvae", {"drift": "network", "learn_schedule": "off"})]
    CASES += [("dense", objective, {"model": "markov"}) for objective in ("elbo", "dreg", "lmcvae", "amcvae")]
    CASES += [("conv", "lmcvae", {"activation": "hard_tanh"}), ("conv", "dreg", {"activation": "softsign"})]


def takes_long(network, objective):
    """Whether the gradients of such a model are not checked with every run of the tests."""
    on_jax = keras.backend.backend() == "jax"
    return network in ("conv", "gatedconv", "mcvae") or (on_jax and objective != "elbo")


@on_both_backends
@pytest.mark.parametrize(
    ("network", "name", "chosen"),
    [pytest.param(*case, marks=pytest.mark.slow if takes_long(*case[:2]) else ()) for case in CASES],
    ids=["-".join((*c[:2], *c[2].values())) for c in CASES],
)
def test_gradients_are_finite_differences(network, name, chosen, monkeypatch):
    """Of all weights, along random directions in double precision: second derivatives through every layer in use."""
    settings = {"learn_schedule": "on", "learn_step_size": "on", "num_steps": 2, "step_size": 0.02}
    settings = settings if models.OBJECTIVES[name].is_annealed else {"num_groups": 2} if name in OF_GROUPS else {}
    usual, entry = {"network_size": 0.25, "activation": "gelu"}, models.NETWORKS[network]
    settings |= {key: value for key, value in usual.items() if key in entry.settings}
    settings |= {"model": "hvae" if "hvae" in entry.models else "vae"} | chosen
    shape = (8, 8 if network == "mcvae" else 4, 2)
    config = Config(
        prior="vamp", network=network, latent_dim=4, objective=name, num_samples=2,
        num_pseudo_inputs=3, data_set="digits", **settings,
    )  # fmt: skip
    frozen, rng = Frozen(), np.random.default_rng(0)  # images that do not depend on which tests ran before
    with float64():
        keras.utils.set_random_seed(0)
        model = models.build(config, shape, from_data=rng.random((3, *shape)))
        x = np.round(2 * rng.random((2, *shape))) / 2  # the first, the last and an inner value
        gradient = gradient_of(model, x)
        assert all(one is not None for one in gradient)
        for module in (objectives, annealed):
            monkeypatch.setattr(module, "ops", FrozenOps(frozen))
        loss_of(model, x)
        start = [np.asarray(variable) for variable in model.trainable_variables]
        for seed in range(2):
            draw = np.random.default_rng(seed)
            direction = [draw.normal(size=value.shape) for value in start]
            slope = sum(np.sum(np.asarray(g) * d) for g, d in zip(gradient, direction, strict=True))
            losses = []
            for h in (H, -H):
                for variable, value, d in zip(model.trainable_variables, start, direction, strict=True):
                    variable.assign(value + h * d)
                frozen.next = 0
                losses.append(float(loss_of(model, x)))
            assert (losses[0] - losses[1]) / (2 * H) == pytest.approx(slope, rel=ERROR, abs=10 * ERROR)


class FrozenOps:
    """keras.ops with another stop_gradient, and a mean that is not rounded to single precision, as on JAX."""

    def __init__(self, stop_gradient):
        self.stop_gradient = stop_gradient

    def mean(self, x, axis=None):
        total = ops.sum(x, axis=axis)
        return total * (math.prod(total.shape) / math.prod(x.shape))

    def __getattr__(self, name):
        return getattr(ops, name)


# Networks for the drift


def with_networks(theta=THETA, **settings):
    """A Pca whose two Langevin steps follow networks, of weights that are not small."""
    model = Pca(made("lmcvae", 4, num_steps=2, drift="network", **settings), ops.convert_to_tensor(theta))
    model.objective.build(X.shape[1:])
    draw = np.random.default_rng(1)
    for weight in model.objective.trainable_variables:
        weight.assign(0.3 * draw.normal(size=weight.shape))
    return model


@slow_on_jax
@on_both_backends
def test_networks_add_their_mismatch_to_the_loss_alone_and_its_gradient_goes_to_them_alone():
    model = with_networks(step_size=0.05)
    chains = model.objective
    walk = chains.walked(model, X, 4, SeedGenerator(1), training=True)
    b = np.asarray(chains.betas())
    expected = [
        np.sum(np.square(u.of(X)(p.z) - p.gradient(b[k])), axis=-1).mean(axis=0)
        for k, (u, p) in enumerate(zip(chains.drifts, walk.points[:2], strict=True))
    ]
    np.testing.assert_allclose(chains.mismatch(walk, X), sum(expected), rtol=1e-4)
    found = chains.outcome(model, X, SeedGenerator(1), 1.0, True)
    np.testing.assert_allclose(found.bound, np.mean(walk.log_weight, axis=0), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(found.loss + found.bound), sum(expected), rtol=1e-3)

    def mismatch(theta):
        model.theta = theta
        walk = chains.walked(model, X, 4, SeedGenerator(1), training=True)
        return ops.mean(chains.mismatch(walk, X)) + 0 * ops.sum(theta), ()

    assert not np.asarray(value_and_gradient(mismatch, ops.convert_to_tensor(THETA))[2]).any()


@slow_on_jax
@on_both_backends
def test_validation_and_draws_by_networks_take_no_gradient_of_a_density(monkeypatch):
    taken = []
    monkeypatch.setattr("models.mcmc.value_and_gradient", lambda *args: taken.append(args) or value_and_gradient(*args))
    model = with_networks()
    found = model.objective.outcome(model, X, SeedGenerator(1), 1.0, False)
    model.objective.draw(model, X, SeedGenerator(1))
    assert not taken and np.allclose(found.loss, -np.asarray(found.bound))
    model.objective.outcome(model, X, SeedGenerator(1), 1.0, True)
    assert len(taken) == 6  # of both densities, at three points


@on_both_backends
def test_networks_that_are_not_trained_keep_weights_unbiased():
    model = with_networks(np.float32([0.3, -0.2, 0.4, 1.0]), step_size=0.05)
    walk = model.objective.walked(model, np.repeat(X, 5000, axis=0), 4, SeedGenerator(1))
    ratio = np.exp(np.asarray(walk.log_weight, "float64").reshape(4, 3, 5000) - LOG_PX[:, None])
    mean, error = ratio.mean(axis=(0, 2)), ratio.std(axis=(0, 2)) / np.sqrt(20_000)
    assert np.all(np.abs(mean - 1) < 4.5 * error) and np.all(error < 0.05)


@pytest.mark.parametrize(("least", "few", "many"), [(0.0, 0.0, 0.0), (0.999, 0.6, 1.0)])
def test_steps_are_skipped_below_the_probability_that_is_asked_for(least, few, many):
    settings = {"objective": "lmcvae", "network": "mlp", "prior": "standard", "latent_dim": 2, "skip_below": least}
    model = models.build(Config(**settings), (8, 8, 1))
    x = (np.random.default_rng(0).random((4, 8, 8, 1)) < 0.5).astype("float32")
    points = model.objective.walked(model, x, 3, SeedGenerator(0)).points
    skipped = [np.mean(np.asarray(one.z) == np.asarray(next_.z)) for one, next_ in itertools.pairwise(points)]
    assert few <= min(skipped) and max(skipped) <= many


@slow_on_jax
@on_both_backends
@pytest.mark.parametrize("rule", ["acceptance", pytest.param("variance", marks=pytest.mark.slow)])
def test_networks_learn_the_gradient(rule):
    model = with_networks(step_rule=rule)
    x = np.repeat(X, 100, axis=0)

    def mismatch():
        walk = model.objective.walked(model, x, 4, SeedGenerator(1), training=True)
        return float(ops.mean(model.objective.mismatch(walk, x)))

    before = mismatch()
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(x, batch_size=50, epochs=30, verbose=0)
    assert mismatch() < before / 50


# Cost


@pytest.mark.parametrize("model_name", ["vae", "hvae"])
@pytest.mark.parametrize(
    ("name", "decoded"), [("elbo", 15), ("iwae", 15), ("dreg", 15), ("lmcvae", 45), ("amcvae", 45)]
)
def test_images_are_encoded_once_and_decoded_once_a_sample_and_step(model_name, name, decoded, monkeypatch):
    """Five images, three samples or chains, two steps."""
    settings = {"num_steps": 2} if models.OBJECTIVES[name].is_annealed else {}
    config = Config(model=model_name, network="mlp", latent_dim=4, objective=name, num_samples=3, **settings)
    model, seen = models.build(config, (4, 4, 1)), {"encoder": 0, "decoder": 0}

    def counted(part, method, axes):
        def call(value, *rest, **more):
            seen[part] += math.prod(value.shape[:-axes])
            return method(value, *rest, **more)

        return call

    encoder = model.encoder if model_name == "vae" else model.encoder_z2
    monkeypatch.setattr(encoder, "call", counted("encoder", encoder.call, 3))
    monkeypatch.setattr(model, "likelihood", counted("decoder", model.likelihood, 1))
    model(np.zeros((5, 4, 4, 1), "float32"), training=True)
    assert seen == {"encoder": 5, "decoder": decoded}


# Annealing


def test_a_schedule_begins_as_a_line_and_always_rises_from_0_to_1():
    chains = made("lmcvae", num_steps=4, learn_schedule="on")
    np.testing.assert_allclose(chains.betas(), [0.2, 0.4, 0.6, 0.8], rtol=1e-5)
    chains.schedule.assign(np.float32([3, -2, 0.5, 1]))
    betas = np.asarray(chains.betas())
    assert np.all(np.diff([0, *betas, 1]) > 0)


def test_a_schedule_may_begin_at_powers_of_a_half():
    chains = made("lmcvae", num_steps=3, learn_schedule="halving")
    np.testing.assert_allclose(chains.betas(), [0.125, 0.25, 0.5], rtol=1e-6)
    assert chains.schedule.trainable


@pytest.mark.parametrize("slope", [0.05, 4.0, 20.0])
def test_a_sigmoidal_schedule_is_a_sigmoid_from_0_to_1_that_begins_almost_as_a_line(slope):
    chains = made("lmcvae", num_steps=4, learn_schedule="sigmoidal")
    np.testing.assert_allclose(chains.betas(), [0.2, 0.4, 0.6, 0.8], atol=1e-4)
    chains.schedule.assign([np.log(slope)])
    raw = scipy.special.expit(slope * np.linspace(-1, 1, 6))
    np.testing.assert_allclose(chains.betas(), ((raw - raw[0]) / (raw[-1] - raw[0]))[1:-1], atol=1e-6)


@slow_on_jax
@on_both_backends
def test_step_sizes_adapt_to_the_acceptance_that_is_wanted_in_training_only(monkeypatch):
    monkeypatch.setattr(annealed, "RISE", 0.03)
    monkeypatch.setattr(annealed, "FALL", -0.03)
    model = Pca(made("amcvae", 3, num_steps=2, step_size=1.0, target_accept=0.9), ops.convert_to_tensor(EXACT))
    x = np.repeat(X, 20, axis=0)
    before = np.asarray(model.objective.steps())
    model.objective.outcome(model, x, SeedGenerator(0), 1.0, False)
    np.testing.assert_array_equal(model.objective.steps(), before)
    for seed in range(40):
        found = model.objective.outcome(model, x, SeedGenerator(seed), 1.0, True)
        if seed == 0:
            np.testing.assert_allclose(model.objective.steps(), np.exp(-0.03) * before, rtol=1e-5)
    after = np.asarray(model.objective.steps())
    assert np.all(after < 0.9) and abs(np.mean(np.asarray(found.logs["acceptance"])) - 0.9) < 0.05


@slow_on_jax
@on_both_backends
@pytest.mark.parametrize(("accepted", "factor"), [(0.3, 1.02), (0.999, 0.99)])
def test_step_sizes_that_follow_the_gradients_do_so_by_their_rule(accepted, factor):
    model = Pca(made("lmcvae", 4, num_steps=2, step_rule="variance", target_accept=accepted), EXACT)
    chains, x, noise = model.objective, np.repeat(X, 5, axis=0), SeedGenerator(0)
    chains.log_step.assign(np.log(np.float32([[0.1, 0.2], [0.3, 0.4]])))
    before, betas = np.asarray(chains.steps()), np.asarray(chains.betas())
    walk = chains.walked(model, x, 4, SeedGenerator(0))
    found = chains.outcome(model, x, noise, 1.0, True)
    for k in range(2):
        gradient = np.asarray(walk.points[k].gradient(betas[k])).reshape(60, D)
        expected = 0.9 * before[k] + 0.1 * 0.1 / (1 + gradient.std(axis=0))
        np.testing.assert_allclose(np.asarray(chains.steps())[k], expected, rtol=1e-4)
        np.testing.assert_allclose(found.logs[f"step_{k + 1}"], np.full(15, before[k].mean()), rtol=1e-5)
        rates = np.exp(np.asarray(walk.log_accept))[k].mean(axis=0)
        np.testing.assert_allclose(found.logs[f"acceptance_{k + 1}"], rates, rtol=1e-4)
    np.testing.assert_allclose(np.exp(chains.log_pace), 2 * [0.1 * factor], rtol=1e-5)


def test_usual_numbers_are_those_of_the_papers():
    usual = {name: (Config(objective=name).samples, Config(objective=name).acceptance) for name in models.OBJECTIVES}
    grouped = dict.fromkeys(("miwae", "ciwae", "piwae"), (64, None))
    assert usual == grouped | {
        "elbo": (1, None), "iwae": (5, None), "dreg": (5, None), "lmcvae": (1, None), "amcvae": (5, 0.8)
    }  # fmt: skip
    assert Config(objective="miwae").num_groups == 8 and Config(objective="ciwae").elbo_weight == 0.5
    assert Config(objective="amcvae", learn_step_size="on").acceptance is None
    assert Config(objective="amcvae", acceptance_rule="barker").acceptance == 0.4
    assert [Config(objective=name, step_rule="variance").acceptance for name in ("lmcvae", "amcvae")] == [0.9, 0.8]
