"""Annealed importance sampling on models whose log p(x) is known, and its Hamiltonian steps."""

import numpy as np
import pytest
import scipy.stats
from conftest import slow_on_jax
from keras import ops, random
from linear_models import IMAGES, NOISE, Linear, assert_lower_bound, exact, many_modes, standard, two_layers

from evaluation.ais import AnnealedSampling, Annealing
from evaluation.compiled import NotFiniteError
from models.base import generator
from models.mcmc import DIVERGED, Path, hamiltonian

pytestmark = pytest.mark.keras


def sampling(model, *annealing, **settings):
    """A tuned AnnealedSampling."""
    made = AnnealedSampling(model, Annealing(*annealing), **settings)
    made.tune(IMAGES)
    return made


@pytest.mark.parametrize(
    ("layers", "start"),
    [
        (1, "prior"),
        (2, "posterior"),
        pytest.param(1, "posterior", marks=pytest.mark.slow),
        pytest.param(2, "prior", marks=pytest.mark.slow),
    ],
)
def test_it_gives_the_known_log_likelihood(layers, start):
    model, covariance = (Linear(standard(), wider=0.6), np.eye(2)) if layers == 1 else two_layers(wider=2.0)
    found = sampling(model, 200, 40, 4, start).log_px(IMAGES)
    assert np.all(found.log_px_se < 0.2) and np.all(found.samples == 200)
    assert np.all(np.abs(found.log_px - exact(covariance)) < 4.5 * found.log_px_se)


@pytest.mark.slow
@slow_on_jax
def test_chains_that_start_at_several_modes_find_what_q_does_not_know():
    model, truth, _ = many_modes(3, 3, 8.0, 1)
    found, alone = (sampling(model, 200, 10, 3, start).log_px(IMAGES) for start in ("fitted", "posterior"))
    assert np.all(np.abs(found.log_px - truth) < 4.5 * found.log_px_se) and np.all(found.log_px_se < 0.1)
    assert np.mean(alone.log_px - truth) < -0.3


def test_a_decoder_that_ignores_z_gives_log_px_exactly():
    made = sampling(Linear(standard(), weights=np.zeros((2, 6))), 3, 5, 2, "prior")
    truth = scipy.stats.norm(0, NOISE).logpdf(IMAGES.reshape(-1, 6)).sum(1)
    np.testing.assert_allclose(made.log_px(IMAGES).log_px, truth, atol=1e-3)


def test_one_temperature_is_importance_sampling():
    made = sampling(Linear(standard()), 400, 1, 1)
    found = made.log_px(IMAGES)
    assert np.all(np.abs(found.log_px - exact(np.eye(2))) < 4.5 * found.log_px_se) and np.isnan(made.acceptance)


def test_the_mean_of_200_repeats_is_a_lower_bound_that_rises_with_temperatures():
    model, covariance = two_layers(wider=0.3)
    repeats, truth, means = np.tile(IMAGES[:2], (200, 1, 1, 1)), exact(covariance)[:2], []
    for steps in (1, 4, 16):
        found = sampling(model, 2, steps, 3).log_px(repeats).log_px.reshape(200, 2)
        assert_lower_bound(found, truth)
        means.append(found.mean())
    assert means[0] < means[1] - 0.1 and means[1] < means[2] - 0.1


def test_the_bracket_holds_the_truth_and_closes():
    """On images drawn from the model, whose log p(x) is known, from both sides; a long path leaves no gap."""
    model = Linear(standard(), wider=0.4)
    gaps = []
    for steps in (2, 60):
        made, drawn = sampling(model, 4, steps, 3), []
        walked = made._walked
        made._walked = lambda a, *z, drawn=drawn, walked=walked: drawn.append(a[0]) or walked(a, *z)
        lower, upper = made.bracket(150)
        x = np.concatenate(drawn[::2])[:150].reshape(150, 6)
        weights = model.w.astype("float64")
        total = weights.T @ weights + NOISE**2 * np.eye(6)
        truth = scipy.stats.multivariate_normal(np.zeros(6), total).logpdf(x)
        error = np.std(upper - truth) / np.sqrt(150)
        assert np.mean(lower - truth) < 3 * np.std(lower - truth) / np.sqrt(150)
        assert np.mean(upper - truth) > -3 * error
        gaps.append(np.mean(upper - lower))
    assert gaps[0] > 0.2 and abs(gaps[1]) < gaps[0] / 5


def test_fits_do_not_know_the_latents_of_images_that_the_bracket_draws():
    model = Linear(standard())
    made = AnnealedSampling(model, Annealing(2, 2, 1, "fitted"), seed=3, images=64)
    noise, known = generator(made.seed), {z.tobytes() for z in made.fits.search.z}
    drawn = np.concatenate([np.asarray(model.prior().sample(made.rows, noise)) for _ in range(2)])
    assert len(known) > 100 and not any(z.tobytes() in known for z in drawn)


def test_step_sizes_are_chosen_for_the_acceptance_and_then_stay():
    made = sampling(Linear(standard()), 50, 12, 3)
    steps = made.steps.copy()
    assert len(steps) == 11 and np.all(steps > 0)
    made.log_px(IMAGES)
    assert abs(made.acceptance - 0.65) < 0.12
    made.bracket(5)
    np.testing.assert_array_equal(made.steps, steps)


def test_a_short_last_block_and_the_progress():
    done = []
    made = AnnealedSampling(Linear(standard(), bytes_each=4000), Annealing(2, 3, 1), max_bytes=4 * 48_000)
    assert made.rows == 4
    assert np.isfinite(made.log_px(IMAGES, done.append).log_px).all() and done == [4, 4, 3]


def test_an_image_that_is_no_number_is_named():
    images = IMAGES.copy()
    images[5, 0, 0, 0] = np.nan
    with pytest.raises(NotFiniteError, match="image 5 "):
        AnnealedSampling(Linear(standard()), Annealing(2, 3, 1)).log_px(images)


def test_betas_rise_from_zero_to_one():
    for start in ("posterior", "prior"):
        betas = Annealing(1, 7, 1, start).betas
        assert betas[0] == 0 and betas[-1] == 1 and np.all(np.diff(betas) > 0) and len(betas) == 8
    assert np.diff(Annealing(1, 99, 1, "prior").betas)[0] < 0.2 / 99


# ---------------------------------------------------------------------------------------------- the Hamiltonian kernel

MEAN, SD = np.float32([1.0, -2.0]), np.float32([0.3, 2.0])


def of_normal(mean, sd):
    """log N(z; mean, diag sd^2), and nothing more."""
    return lambda z: (-0.5 * ops.sum(ops.square((z - mean) / sd) + np.log(2 * np.pi) + 2 * np.log(sd), axis=-1), ())


def chains(z, steps, step=0.8, scale=SD, b=1.0, leapfrogs=4):
    """Where chains (n, B, 2) are after some steps towards N(MEAN, SD^2), and the last log_accept."""
    target = of_normal(MEAN, SD)
    path = Path(lambda z: of_normal(np.float32([0, 0]), np.float32([1, 1]))(z)[0], target)
    point, seed = path.at(ops.convert_to_tensor(z, "float32")), random.SeedGenerator(0)
    for _ in range(steps):
        point, log_accept = hamiltonian(path, point, b, step, np.tile(scale, (z.shape[1], 1)), leapfrogs, seed)
    return ops.convert_to_numpy(point.z), ops.convert_to_numpy(log_accept)


def test_hamiltonian_steps_keep_what_they_target():
    """Chains that begin with draws of the target are draws of it after each step: mean, variance, correlation."""
    z = MEAN + SD * np.random.default_rng(0).normal(size=(2000, 3, 2)).astype("float32")
    z, log_accept = chains(z, 3, step=1.0)
    assert 0.7 < np.exp(log_accept).mean() < 0.995
    e = ((z - MEAN) / SD).reshape(-1, 2)
    assert np.all(np.abs(e.mean(0)) < 5 / np.sqrt(6000)) and abs((e[:, 0] * e[:, 1]).mean()) < 5 / np.sqrt(6000)
    assert np.all(np.abs((e**2).mean(0) - 1) < 5 * np.sqrt(2 / 6000))


def test_hamiltonian_steps_find_what_they_target():
    z, _ = chains(np.zeros((2000, 3, 2)), 12)
    e = ((z - MEAN) / SD).reshape(-1, 2)
    assert np.all(np.abs(e.mean(0)) < 5 / np.sqrt(6000))
    assert np.all(np.abs((e**2).mean(0) - 1) < 6 * np.sqrt(2 / 6000))


def test_hamiltonian_steps_without_end_stay():
    """Steps that leave the box, or whose energy overflows, are refused, and are finite in all they leave."""
    start = np.zeros((50, 2, 2))
    z, log_accept = chains(start, 2, step=1e6)
    np.testing.assert_array_equal(z, start)
    assert np.all(log_accept == -DIVERGED)


def test_halfway_hamiltonian_steps_target_the_path():
    """At b = 1/2 the target is the normalised product of the square roots: precisions are averaged."""
    precision = 0.5 * (1 + SD**-2.0)
    mean = 0.5 * MEAN * SD**-2.0 / precision
    z, _ = chains(np.zeros((3000, 2, 2)), 14, b=0.5, scale=precision**-0.5)
    e = ((z - mean) * np.sqrt(precision)).reshape(-1, 2)
    assert np.all(np.abs(e.mean(0)) < 5 / np.sqrt(6000)) and np.all(np.abs((e**2).mean(0) - 1) < 6 * np.sqrt(2 / 6000))
