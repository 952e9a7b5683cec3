"""What the latents carry, on models for which it can be said beforehand."""

import linear_models
import numpy as np
import pytest
import scipy.special
from conftest import slow_on_jax
from keras import ops
from linear_models import posterior_of, two_layers

from evaluation import latents as module
from evaluation.compiled import NotFiniteError
from evaluation.latents import latents, told_apart, weighted
from models.base import LatentModel
from models.distributions import Chain, Mixture, Normal

pytestmark = pytest.mark.keras
rng = np.random.default_rng(0)
N, D = 700, 3
SCALE = np.float32([1.0, 0.5, 0.01])  # of the posterior means; the last one hardly moves
SD = np.float32([0.3, 0.4, 1.0])


class Linear:
    """q(z|x) = N(SCALE x, SD^2) for images of three pixels, and a given prior; with `lower`, a z1 around 2 z2 too."""

    rates, layer_rates = LatentModel.rates, ()

    def __init__(self, prior, lower=False):
        self.top, self.lower = prior, lower
        self.sizes = (D, D) if lower else (D,)

    def posterior(self, x):
        mean = ops.reshape(x, (-1, D)) * SCALE
        top = Normal(mean, ops.zeros_like(mean) + 2 * np.log(SD))
        return Chain(top, lambda z: Normal(2 * z, ops.zeros_like(z)), D) if self.lower else top

    def prior(self):
        return Chain(self.top, lambda z: Normal(2 * z + 1, ops.zeros_like(z)), D) if self.lower else self.top


STANDARD = Normal(np.zeros(D, "float32"), np.zeros(D, "float32"))
IMAGES = rng.normal(size=(N, D, 1, 1)).astype("float32")
KL = 0.5 * ((SCALE * IMAGES[:, :, 0, 0]) ** 2 + SD**2 - 1 - 2 * np.log(SD)).sum(1).mean()  # in closed form


def test_the_rate_is_its_closed_form_and_falls_into_two_parts():
    found = latents(Linear(STANDARD), IMAGES)
    (rate,) = found.rates
    assert rate == pytest.approx(KL, abs=5 * 2 / np.sqrt(N))
    assert found.mutual_information + found.marginal_kl == pytest.approx(rate, abs=1e-3)
    assert (found.active_units, found.units, found.components_in_use) == ([2], [3], None)


@pytest.mark.parametrize("count", [5, N])
@pytest.mark.parametrize("lower", [False, True])
def test_the_rates_of_few_images_are_exact_to_their_errors(count, lower):
    """Of both layers, whose KL is known for each image; q and p of z1 are unit Gaussians, 1 apart."""
    found = latents(Linear(STANDARD, lower), IMAGES[:count])
    top = 0.5 * ((SCALE * IMAGES[:count, :, 0, 0]) ** 2 + SD**2 - 1 - 2 * np.log(SD)).sum(1).mean()
    expected = [top, 0.5 * D] if lower else [top]
    assert np.all(np.abs(np.subtract(found.rates, expected)) < 4.5 * np.array(found.rates_se))
    assert np.all(np.array(found.rates_se) < 0.12)  # a draw of each image alone has 0.5 and more, of five images


def test_one_layer_has_the_rate_of_the_elbo_where_that_is_known():
    found = latents(Linear(STANDARD), IMAGES[:5])
    one = found.with_rate(1.25)
    assert (one.rates, one.rates_se) == ([1.25], None) and one.mutual_information + one.marginal_kl == 1.25
    assert found.with_rate(np.nan) is found
    both = latents(Linear(STANDARD, lower=True), IMAGES[:5])
    assert both.with_rate(1.25) is both


def test_mutual_information_is_that_of_a_linear_channel():
    """Of z = SCALE x + SD e with x ~ N(0, 1), it is 1/2 sum log(1 + SCALE^2 / SD^2); N images carry log N at most."""
    found, expected = latents(Linear(STANDARD), IMAGES), 0.5 * np.log1p(SCALE**2 / SD**2).sum()
    assert found.mutual_information == pytest.approx(expected, abs=0.2)
    assert found.mutual_information <= np.log(N)
    variance = SCALE**2 + SD**2
    assert found.marginal_kl == pytest.approx(0.5 * (variance - 1 - np.log(variance)).sum(), abs=0.2)


def test_each_layer_has_its_own():
    found = latents(Linear(STANDARD, lower=True), IMAGES)
    assert found.rates[0] == pytest.approx(KL, abs=5 * 2 / np.sqrt(N))
    assert found.rates[1] == pytest.approx(0.5 * D, abs=5 * np.sqrt(D / N))  # KL of two unit Gaussians, 1 apart
    assert (found.active_units, found.units) == ([2, 2], [3, 3])


@slow_on_jax
def test_components_in_use_are_those_near_the_latents():
    """Two of five components lie where the latents are, with equal shares; the others far away."""
    mean = np.zeros((5, D), "float32")
    mean[:, 0] = [-50, 50, 1e3, 2e3, 3e3]
    prior = Mixture(np.full(5, -np.log(5), "float32"), mean, np.zeros((5, D), "float32"))
    images = IMAGES.copy()
    images[:, 0] = np.where(np.arange(N) % 2, 50, -50)[:, None, None]
    found = latents(Linear(prior), images)
    assert found.components_in_use == pytest.approx(2, abs=1e-3)
    shares = scipy.special.softmax(np.asarray(prior.log_parts(np.zeros((1, D), "float32"))), axis=-1)
    np.testing.assert_allclose(shares, [[0.5, 0.5, 0, 0, 0]], atol=1e-6)


@slow_on_jax
def test_clusters_are_components_by_their_best_classes():
    """Class 0 has two components, and a third of class 1 lies in one of them; two components have no image."""
    mean = np.float32([[0, 0, 0], [50, 0, 0], [0, 50, 0], [0, 0, 99], [0, 0, -99]])
    prior = Mixture(np.full(5, -np.log(5), "float32"), mean, np.zeros((5, D), "float32"))
    component, labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 0, 0]), np.array([0] * 5 + [1] * 6)
    z = mean[component][:, None] + 0.1 * rng.normal(size=(11, 3, D)).astype("float32")
    z[0] = mean[0] - 9  # still its own, and more surely than any other image
    found = told_apart(prior, z, labels)
    assert (found["accuracy"], found["accuracy_merged"], found["used"]) == (7 / 11, 9 / 11, 3)
    assert 0 < found["ari"] < found["nmi"] < 1
    perfect = told_apart(prior, z, component)
    assert [perfect[name] for name in ("accuracy", "accuracy_merged", "nmi", "ari")] == pytest.approx([1, 1, 1, 1])
    assert latents(Linear(prior), IMAGES, labels=np.arange(N) % 2).clusters["used"] <= 5
    assert latents(Linear(prior), IMAGES).clusters is None is latents(Linear(STANDARD), IMAGES, 0, labels).clusters


def test_it_is_a_function_of_the_seed():
    assert latents(Linear(STANDARD), IMAGES, 3) == latents(Linear(STANDARD), IMAGES, 3)
    assert latents(Linear(STANDARD), IMAGES, 3) != latents(Linear(STANDARD), IMAGES, 4)


# ---------------------------------------------------------------------------------------------- weighted draws


@pytest.mark.parametrize("layers", [1, 2])
def test_weighted_draws_tend_to_the_posterior(layers):
    model, covariance = (linear_models.Linear(linear_models.standard()), np.eye(2)) if layers == 1 else two_layers()
    mean, exact = posterior_of(covariance)
    errors = []
    for count in (100, 10_000):
        found = weighted(model, linear_models.IMAGES, count, 2000)
        assert found.mean.shape == mean.shape and found.resampled.shape == (len(mean), 2000, 2)
        assert np.all((found.ess > 0.1 * count) & (found.ess < count))
        deviation = (found.mean - mean) / np.sqrt(np.diag(exact) / found.ess[:, None])
        assert np.abs(deviation).max() < 5
        errors.append(np.abs(found.mean - mean).max())
    assert errors[1] < errors[0] / 3  # a tenth is expected
    centred = found.resampled - mean[:, None]
    np.testing.assert_allclose(np.mean(centred[..., None] * centred[..., None, :], axis=(0, 1)), exact, atol=0.01)


def test_weighted_draws_do_not_depend_on_how_they_are_computed_and_repeat(monkeypatch):
    model, images = linear_models.Linear(linear_models.standard()), linear_models.IMAGES
    first, again, other = (weighted(model, images, 50, 3, seed) for seed in (0, 0, 1))
    for one, same, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one, same)
        assert np.abs(one - different).max() > 1e-3
    monkeypatch.setattr("evaluation.latents.CHUNK_BYTES", 7 * model.bytes_per_sample)  # eight calls for each image
    found = weighted(model, images, 50, 3)
    mean, exact = posterior_of(np.eye(2))
    assert np.abs((found.mean - mean) / np.sqrt(np.diag(exact) / found.ess[:, None])).max() < 5


def test_a_weight_that_is_not_a_number_names_its_image():
    images = linear_models.IMAGES.copy()
    images[4] = np.nan
    with pytest.raises(NotFiniteError, match="image 4 "):
        weighted(linear_models.Linear(linear_models.standard()), images, 50, 3)


def test_shares_of_many_components_are_computed_in_pieces_and_are_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    parts = (np.log(np.full(9, 1 / 9)), rng.normal(size=(9, 3)), rng.normal(size=(9, 3)))
    mixture, z = Mixture(*(ops.convert_to_tensor(part.astype("float32")) for part in parts)), rng.normal(size=(20, 3))
    z, labels, asked = z.astype("float32"), np.arange(5) % 2, []
    expected = module.responsibilities(mixture, z), module.told_apart(mixture, z.reshape(5, 4, 3), labels)
    shares = module.shares
    monkeypatch.setattr(module, "PAIRS", 30)
    monkeypatch.setattr(module, "shares", lambda mixture, z: asked.append(z.size // 3) or shares(mixture, z))
    np.testing.assert_allclose(module.responsibilities(mixture, z), expected[0], rtol=1e-5)
    assert asked == [3] * 6 + [2]
    assert module.told_apart(mixture, z.reshape(5, 4, 3), labels) == expected[1] and asked[7:] == [4] * 5
