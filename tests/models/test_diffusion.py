"""The diffusion prior against closed forms: its schedule, its bound, its sampler, and its weights along a path."""

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
from conftest import slow_on_jax
from keras import ops

from models import NOISE_SCHEDULES, imported
from models.diffusion import GAMMA_1, Diffused, DiffusionPrior
from models.noise_schedules import UNITS, Learned

pytestmark = pytest.mark.keras
DIM, GAMMA_0 = 49, -6.0
rng = np.random.default_rng(0)


def seed(number=0):
    return keras.random.SeedGenerator(number)


def schedule_of(name, gamma_0=GAMMA_0):
    """The schedule of this name, a learned one far from linear."""
    found = imported(NOISE_SCHEDULES[name])(gamma_0, GAMMA_1)
    if name == "learned":
        found.log_heights.assign(np.linspace(0, -4, UNITS))
    return found


def gaussian(v, steps, dim=DIM, gamma_0=GAMMA_0, schedule="linear"):
    """The Diffused law whose network is the best one for u ~ N(0, v I): eps = sigma u_t / (alpha^2 v + sigma^2)."""

    def noise_of(u_t, t):
        alpha, sigma = (ops.expand_dims(value, -1) for value in law.scales(t))
        return sigma * u_t / (alpha**2 * v + sigma**2)

    law = Diffused(noise_of, schedule_of(schedule, gamma_0), steps, dim)
    return law


def chain_variance(v, steps, gamma_0=GAMMA_0):
    """The variance of what `gaussian(v, steps)` draws: its steps are linear."""
    law, variance = gaussian(v, steps, 1, gamma_0), 1.0
    for step in range(steps, 0, -1):
        s, t = (step - 1) / steps, step / steps
        a, b, c = law.backward(s, t)
        alpha, sigma = law.scales(t)
        denoised = (1 - sigma**2 / (alpha**2 * v + sigma**2)) / alpha
        variance = (a + b * denoised) ** 2 * variance + c**2
    return variance / law.scales(0.0)[0] ** 2 + np.exp(gamma_0)


def draws(v, count, dim=DIM):
    return (np.sqrt(v) * rng.normal(size=(count, dim))).astype("float32")


def mean_and_error(values):
    values = ops.convert_to_numpy(values).astype("float64")
    return values.mean(), values.std(ddof=1) / np.sqrt(values.size)


@pytest.mark.parametrize("schedule", NOISE_SCHEDULES)
def test_a_schedule_preserves_the_variance_and_rises(schedule):
    law, t = gaussian(1.0, 25, schedule=schedule), np.linspace(0, 1, 101)
    alpha, sigma = (ops.convert_to_numpy(one) for one in law.scales(t))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-5)
    gamma = ops.convert_to_numpy(law.gamma(t))
    assert np.all(np.diff(gamma) > 0)
    np.testing.assert_allclose(gamma[[0, -1]], [GAMMA_0, GAMMA_1], atol=1e-5)
    np.testing.assert_allclose(np.log(sigma**2 / alpha**2), gamma, atol=1e-3)
    times = ops.convert_to_tensor(t.astype("float32"))
    np.testing.assert_allclose(law.scales(times)[1], sigma, rtol=1e-5)
    term = ops.convert_to_numpy(law.schedule.term(times, ops.ones_like(times)))  # 0.5 gamma'
    np.testing.assert_allclose((0.5 * np.gradient(gamma, t) / term)[1:-1], 1, rtol=0.05)


def test_the_cosine_schedule_is_a_cosine_cut_off_at_both_ends():
    alpha, _ = gaussian(1.0, 25, schedule="cosine").scales(t := np.linspace(0, 1, 11))
    angle = np.arccos(alpha)
    np.testing.assert_allclose(angle, angle[0] + (angle[-1] - angle[0]) * t)


@pytest.mark.parametrize("schedule", NOISE_SCHEDULES)
@pytest.mark.parametrize(("s", "t"), [(0.0, 0.04), (0.3, 0.7), (0.96, 1.0)])
def test_a_step_backward_is_gaussian_conditioning(s, t, schedule):
    """q(u_s | u_t, u) from the joint covariance of u_s and u_t given u."""
    law, u, u_t = gaussian(1.0, 25, schedule=schedule), 0.7, -0.4
    (alpha_s, sigma_s), (alpha_t, sigma_t) = [[float(one) for one in law.scales(time)] for time in (s, t)]
    shared = alpha_t / alpha_s * sigma_s**2
    mean = alpha_s * u + shared / sigma_t**2 * (u_t - alpha_t * u)
    a, b, c = map(float, law.backward(s, t))
    assert a * u_t + b * u == pytest.approx(mean, rel=1e-4)
    assert c**2 == pytest.approx(sigma_s**2 - shared**2 / sigma_t**2, rel=1e-4)


@pytest.mark.parametrize("schedule", NOISE_SCHEDULES)
def test_the_bound_of_a_network_that_says_nothing_is_known(schedule):
    """E[L_t] = (gamma_1 - gamma_0) D / 2; L_0 is constant, and L_T a KL divergence of two Gaussians."""
    law = Diffused(lambda u_t, t: ops.zeros_like(u_t), schedule_of(schedule), 25, DIM)
    u = draws(0.5, 1)
    alpha, sigma = law.scales(1.0)
    last = 0.5 * np.sum(alpha**2 * u**2 + sigma**2 - np.log(sigma**2) - 1)
    first = 0.5 * DIM * (np.log(2 * np.pi) + GAMMA_0 + 1)
    mean, error = mean_and_error(law.bound(np.repeat(u, 4000, axis=0), seed()))
    assert mean == pytest.approx(-first - last - 0.5 * (GAMMA_1 - GAMMA_0) * DIM, abs=4 * error)


@slow_on_jax
@pytest.mark.parametrize(
    ("v", "exact", "continuous", "discrete"),
    [(0.06, 0.60, 1.59, {25: 18.23, 50: 9.33}), (0.01, -43.30, -37.87, {25: -32.11, 50: -35.14})],
)
def test_bounds_are_those_of_the_best_network(v, exact, continuous, discrete):
    """Figures of the specification, in nats, for D = 49: more steps come nearer, none below the exact value."""
    u = draws(v, 20_000)
    assert 0.5 * DIM * (np.log(2 * np.pi * v) + 1) == pytest.approx(exact, abs=0.01)
    mean, error = mean_and_error(gaussian(v, 25).bound(u, seed()))
    assert -mean == pytest.approx(continuous, abs=4 * error + 0.01)
    for steps, value in discrete.items():
        mean, error = mean_and_error(gaussian(v, steps).log_prob(u[:4000], seed()))
        assert -mean == pytest.approx(value, abs=4 * error + 0.02)


@pytest.mark.parametrize("schedule", ["cosine", "learned"])
def test_the_bound_is_the_same_with_every_schedule_and_the_few_steps_stay_above_it(schedule):
    """Those of the linear one above: infinitely many steps do not depend on it, and 25 have a larger bound."""
    u, law = draws(0.06, 20_000), gaussian(0.06, 25, schedule=schedule)
    mean, error = mean_and_error(law.bound(u, seed()))
    assert -mean == pytest.approx(1.59, abs=4 * error + 0.01)
    few, error = mean_and_error(law.log_prob(u[:2000], seed()))
    more, _ = mean_and_error(gaussian(0.06, 100, schedule=schedule).log_prob(u[:500], seed()))
    assert -few > -more + error > 1.59 and few < mean - 4 * error


@pytest.mark.parametrize("schedule", NOISE_SCHEDULES)
def test_the_parts_of_the_bound_by_time_add_up(schedule):
    law, u = gaussian(0.06, 25, schedule=schedule), draws(0.06, 5000)
    parts = [float(one) for one in law.terms_by_time(u, 4, seed())]
    mean, error = mean_and_error(law.bound(u, seed(1)))
    assert len(parts) == 6 and sum(parts) == pytest.approx(-mean, abs=5 * error)
    if schedule == "linear":  # E|eps - eps_hat|^2 = D alpha^2 v / (alpha^2 v + sigma^2), summed over times
        t = (np.arange(4000) + 0.5) / 4000
        alpha, sigma = law.scales(t)
        term = 0.5 * (GAMMA_1 - GAMMA_0) * DIM * alpha**2 * 0.06 / (alpha**2 * 0.06 + sigma**2)
        np.testing.assert_allclose(parts[1:5], term.reshape(4, 1000).mean(axis=1) / 4, rtol=0.05)


def test_a_learned_schedule_makes_the_bound_vary_less():
    """Its bound stays the same. The network errs at little noise, where a linear schedule has its variance."""
    schedule = Learned(GAMMA_0, GAMMA_1)
    t = (np.arange(400, dtype="float32") + 0.5) / 400

    class Trained(keras.Model):
        def __init__(self):
            super().__init__()
            self.schedule, self.built = schedule, True

        def call(self, t):
            return schedule.term(t, ops.exp(-12 * schedule.share(t)))

    model = Trained()
    model.compile(keras.optimizers.Adam(0.05), loss=lambda _, term: ops.mean(term))
    before = ops.convert_to_numpy(model(t))
    np.testing.assert_allclose(before, 6.5 * np.exp(-12 * schedule.share(t)), rtol=0.25)  # close to linear
    for _ in range(150):
        model.train_on_batch(t, t)
    after = ops.convert_to_numpy(model(t))
    assert after.mean() == pytest.approx(before.mean(), rel=0.02) == pytest.approx(6.5 / 12, rel=0.02)
    assert after.std() < 0.3 * before.std()


@pytest.mark.slow
def test_the_bound_of_spread_times_varies_less_than_that_of_independent_ones():
    law, u = gaussian(0.06, 25), np.repeat(draws(0.06, 1), 200, axis=0)
    together = [float(ops.mean(law.bound(u, seed(k)))) for k in range(60)]
    alone = [float(ops.mean(ops.stack([law.bound(u[:1], seed(1000 * k + j)) for j in range(20)]))) for k in range(20)]
    assert np.mean(together) == pytest.approx(np.mean(alone), abs=4 * np.std(alone) / np.sqrt(20))
    assert np.var(together) * 200 < np.var(alone) * 20  # for each evaluation of the network


@pytest.mark.parametrize("steps", [1, 3])
def test_draws_and_weights_are_of_one_density(steps):
    """In one dimension the linear chain is Gaussian: draws have its variance, and exp(log_prob) its density as mean."""
    v, gamma_0 = 0.3, -2.0
    law, variance = gaussian(v, steps, 1, gamma_0), chain_variance(v, steps, gamma_0)
    drawn = ops.convert_to_numpy(law.sample(40_000, seed()))[:, 0]
    assert drawn.var() == pytest.approx(variance, abs=5 * variance * np.sqrt(2 / 40_000))
    for u in (0.0, 0.5, -1.2):
        mean, error = mean_and_error(ops.exp(law.log_prob(np.full((40_000, 1), u, "float32"), seed(1))))
        assert mean == pytest.approx(scipy.stats.norm(0, np.sqrt(variance)).pdf(u), abs=4 * error)


def test_draws_of_the_best_network_have_the_variance_that_its_steps_give():
    v = 0.06
    drawn = ops.convert_to_numpy(gaussian(v, 50).sample(4000, seed()))
    expected = chain_variance(v, 50)
    assert drawn.var() == pytest.approx(expected, abs=5 * expected * np.sqrt(2 / drawn.size))
    cold = ops.convert_to_numpy(gaussian(v, 50).sample(4000, seed(), temperature=0.25))
    assert cold.var() == pytest.approx(expected / 4, abs=5 * expected / 4 * np.sqrt(2 / drawn.size))
    walk = gaussian(v, 50).walk(3, seed())
    assert len(walk) == 52 and all(one.shape == (3, DIM) for one in walk)


@pytest.mark.slow
@slow_on_jax
def test_many_paths_close_the_gap_and_stay_below():
    """log-mean-exp of K path weights: at K = 1000 within a nat of the exact value, and in expectation not above it."""
    v, steps = 0.06, 50
    u = draws(v, 40)
    log_w = ops.convert_to_numpy(gaussian(v, steps).log_prob(np.repeat(u[None], 1000, axis=0), seed()))
    estimates = scipy.special.logsumexp(log_w, axis=0) - np.log(1000)
    exact = scipy.stats.norm(0, np.sqrt(v)).logpdf(u).sum(axis=1)
    gap, error = mean_and_error(exact - estimates)
    assert -3 * error < gap < 2
    assert log_w.mean() < estimates.mean() - 5


@pytest.mark.slow
@slow_on_jax
def test_a_network_begins_as_zero_and_each_of_its_weights_learns():
    prior = DiffusionPrior((4, 4, 2), 8, 1, 0.5, GAMMA_0, 5)
    u = rng.normal(size=(3, 7, 32)).astype("float32")
    law = prior.distribution()
    assert not np.any(law.noise_of(u.reshape(-1, 32), np.full(21, 0.3, "float32")))
    assert law.log_prob(u, seed()).shape == law.bound(u, seed()).shape == (3, 7)

    class Trained(keras.Model):
        def __init__(self):
            super().__init__()
            self.prior, self.noise, self.built = prior, seed(), True

        def call(self, u, training=False):
            return self.prior.distribution(self.noise if training else None).bound(u, self.noise)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return -ops.mean(y_pred)

    model = Trained()
    model.compile(keras.optimizers.Adam(1e-3))
    before = [np.array(weight) for weight in model.trainable_variables]
    for _ in range(3):  # zeros at its end hide what comes before
        model.train_on_batch(u[0])
    moved = [np.any(np.array(weight) != old) for weight, old in zip(model.trainable_variables, before, strict=True)]
    assert all(moved)


def test_units_drop_out_in_training_only():
    prior = DiffusionPrior((4, 4, 1), 8, 1, 0.5, GAMMA_0, 5)
    for weight in prior.trainable_weights:
        weight.assign(rng.normal(0, 0.3, weight.shape))
    u, t = rng.normal(size=(6, 16)).astype("float32"), np.full(6, 0.4, "float32")
    still, noisy = prior.distribution().noise_of, prior.distribution(seed()).noise_of
    np.testing.assert_array_equal(still(u, t), still(u, t))
    assert np.any(np.abs(noisy(u, t) - noisy(u, t)) > 1e-3)
