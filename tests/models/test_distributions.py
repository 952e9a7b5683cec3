"""Densities against SciPy, samplers against densities."""

import itertools

import numpy as np
import pytest
import scipy.special
import scipy.stats
from conftest import slow_on_jax
from keras import backend, ops
from keras.random import SeedGenerator

from models.distributions import Chain, Mixture, Normal, log_sum_exp
from models.gradients import value_and_gradient
from models.pixels import Bernoulli, DiscretizedLogistic, MixtureOfLogistics, Pixels, binarize, sum_of_softplus

pytestmark = pytest.mark.keras
N, B, K, D = 5, 3, 4, 2
rng = np.random.default_rng(0)
TOP = Mixture(
    *(np.float32(v) for v in (np.log([0.1, 0.2, 0.3, 0.4]), rng.normal(size=(K, D)), rng.normal(size=(K, D))))
)


def conditional(top):
    """p(bottom | top), three dimensions that depend on both of top's."""
    mean = ops.concatenate([top, top[..., :1] * top[..., 1:]], axis=-1)
    return Normal(mean, 0.5 * mean - 1.0)


CHAIN = Chain(TOP, conditional, D)


def scipy_normal(z, mean, logvar):
    return scipy.stats.norm(mean, np.exp(0.5 * np.asarray(logvar))).logpdf(z).sum(-1)


def scipy_mixture(z):
    parts = [w + scipy_normal(z, m, v) for w, m, v in zip(*TOP, strict=True)]
    return scipy.special.logsumexp(parts, axis=0)


def test_normal_log_prob_is_scipys():
    mean, logvar, z = (rng.normal(size=s).astype("float32") for s in ((B, D), (B, D), (N, B, D)))
    found = ops.convert_to_numpy(Normal(mean, logvar).log_prob(z))
    assert found.shape == (N, B)
    np.testing.assert_allclose(found, scipy_normal(z, mean, logvar), rtol=1e-5, atol=1e-5)


def test_mixture_log_prob_is_scipys_near_and_far():
    z = rng.normal(size=(N, B, D)).astype("float32") * np.float32([[[1]], [[3]], [[10]], [[30]], [[100]]])
    found = ops.convert_to_numpy(TOP.log_prob(z))
    assert found.shape == (N, B)
    np.testing.assert_allclose(found, scipy_mixture(z), rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0, 30.0])
@pytest.mark.parametrize("logvar", [-6.0, -2.0])
def test_narrow_components_far_apart_lose_no_digits(spread, logvar):
    """log p(z) and its gradient at draws of 500 components in 40 dimensions, against double precision."""
    rng = np.random.default_rng(0)
    mean, chosen = rng.normal(0, spread, (500, 40)).astype("float32"), rng.integers(500, size=60)
    z = (mean[chosen] + np.exp(logvar / 2) * rng.normal(size=(60, 40))).astype("float32")
    mixture = Mixture(np.full(500, -np.log(500), "float32"), mean, np.full((500, 40), logvar, "float32"))
    value, _, gradient = value_and_gradient(lambda z: (mixture.log_prob(z), ()), ops.convert_to_tensor(z))
    off, precision = z[:, None].astype("float64") - mean, np.exp(-logvar)
    parts = -np.log(500) - 0.5 * (off**2 * precision + logvar + np.log(2 * np.pi)).sum(axis=-1)
    expected = scipy.special.logsumexp(parts, axis=1)
    shares = np.exp(parts - expected[:, None])
    np.testing.assert_allclose(ops.convert_to_numpy(value), expected, atol=2e-3)
    slope = -np.einsum("nk,nkd->nd", shares, off) * precision
    np.testing.assert_allclose(ops.convert_to_numpy(gradient), slope, atol=2e-3 * np.exp(-logvar / 2) + 0.01)


@pytest.mark.skipif(backend.backend() != "jax", reason="only JAX compiles what stands outside of compiled functions")
def test_the_density_of_a_mixture_is_compiled_once():
    """A grid of latents asks thousands of times."""
    import jax

    def count(name, *_, **__):
        counted.append(name)

    z, counted = np.zeros((1, D), "float32"), []
    TOP.log_prob(z)
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        TOP.log_prob(z)
        assert not counted
        jax.jit(lambda z: 2 * z)(z)
        assert counted, "compilations are not counted"
    finally:
        jax.monitoring.unregister_event_duration_listener(count)


def test_chain_log_prob_is_the_sum_of_its_factors():
    z = rng.normal(size=(N, B, D + 3)).astype("float32")
    top, bottom = z[..., :D], z[..., D:]
    mean = np.concatenate([top, top[..., :1] * top[..., 1:]], axis=-1)
    expected = scipy_mixture(top) + scipy_normal(bottom, mean, 0.5 * mean - 1)
    np.testing.assert_allclose(ops.convert_to_numpy(CHAIN.log_prob(z)), expected, rtol=1e-4, atol=1e-4)


def test_bernoulli_sums_to_one_over_all_images():
    images = np.array(list(itertools.product([0, 1], repeat=6)), "float32").reshape(64, 1, 3, 2, 1)
    logits = rng.normal(size=(1, B, 3, 2, 1)).astype("float32") * 3
    total = np.exp(ops.convert_to_numpy(Bernoulli(logits).log_prob(images))).sum(axis=0)  # (B,)
    np.testing.assert_allclose(total, np.ones(B), rtol=1e-5)


def test_bernoulli_is_finite_at_extreme_logits():
    logits = np.float32([-1e4, 1e4]).reshape(1, 2, 1)
    assert float(Bernoulli(logits).log_prob(np.float32([0, 1]).reshape(1, 2, 1))) == 0.0
    assert float(Bernoulli(logits).log_prob(np.float32([1, 1]).reshape(1, 2, 1))) == -1e4


@pytest.mark.parametrize("pixels", [1, 13, 784])  # 784 are 14 products of 56
def test_the_sum_of_softplus_has_the_value_and_the_slopes_of_its_formula(pixels):
    logits = np.concatenate([rng.normal(scale=8, size=(N, pixels)), np.full((1, pixels), 90), np.zeros((1, pixels))])
    logits = ops.convert_to_tensor(logits.astype("float32"))
    exact = np.float64(logits)
    sigmoid = scipy.special.expit(exact)

    def slope(logits):
        value, _, gradient = value_and_gradient(lambda logits: (sum_of_softplus(logits), ()), logits)
        return ops.sum(ops.square(gradient), axis=-1), (value, gradient)

    _, (value, gradient), bend = value_and_gradient(slope, logits)
    np.testing.assert_allclose(value, np.logaddexp(0, exact).sum(axis=-1), rtol=2e-6, atol=6e-8 * pixels)
    np.testing.assert_allclose(gradient, sigmoid, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(bend, 2 * sigmoid**2 * (1 - sigmoid), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("k", [1, 7, 500])
def test_log_sum_exp_has_the_value_and_the_slopes_of_its_formula(k):
    rows = [rng.normal(scale=scale, size=(3, k)) - 50 for scale in (0, 1, 40, 1e6)]
    x = ops.convert_to_tensor(np.concatenate(rows).astype("float32"))
    exact = np.float64(x)
    weight = scipy.special.softmax(exact, axis=-1)

    def slope(x):
        value, _, gradient = value_and_gradient(lambda x: (log_sum_exp(x), ()), x)
        return ops.sum(ops.square(gradient), axis=-1), (value, gradient)

    _, (value, gradient), bend = value_and_gradient(slope, x)
    np.testing.assert_allclose(value, scipy.special.logsumexp(exact, axis=-1), rtol=2e-7, atol=1e-6)
    np.testing.assert_allclose(gradient, weight, rtol=1e-4, atol=1e-7)
    expected = 2 * weight * (weight - np.sum(weight**2, axis=-1, keepdims=True))
    np.testing.assert_allclose(bend, expected, rtol=1e-4, atol=1e-6)


def test_log_sum_exp_of_what_is_not_finite_is_not_finite_either():
    inf, nan = np.inf, np.nan
    x = np.float32([[-inf, -inf], [-inf, 3], [inf, 3], [nan, 3], [3, nan], [nan, -inf]])
    np.testing.assert_array_equal(log_sum_exp(ops.convert_to_tensor(x)), np.float32([-inf, 3, inf, nan, nan, nan]))


@pytest.mark.skipif(backend.backend() != "jax", reason="TensorFlow keeps what the branch that it took has computed")
@pytest.mark.parametrize("order", [1, 2])
def test_gradients_on_jax_store_nothing_of_the_branch_that_is_not_taken(order):
    """Zeros in the size of the differences z - m would take most of a step's time."""
    import jax

    def loss(z, mean):
        mixture = Mixture(np.zeros(30, "float32"), mean, mean)
        if order == 1:
            return ops.sum(mixture.log_prob(z))
        value, _, gradient = value_and_gradient(lambda z: (mixture.log_prob(z), ()), z)
        return ops.sum(value) + ops.sum(ops.sin(gradient))

    points, mean = np.zeros((20, 8), "float32"), np.ones((30, 8), "float32")
    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(points, mean))
    outputs = [line.split("= cond[")[0] for line in text.splitlines() if "= cond[" in line]
    assert outputs and not any("[20,30,8]" in names for names in outputs), outputs


GREY = (np.arange(256, dtype="float32") / 255).reshape(256, 1, 1, 1, 1)  # each grey value, as one pixel


def one_pixel(mean, log_scale):
    """A DiscretizedLogistic over one pixel for each pair: batch (len(mean),)."""
    shape = (len(mean), 1, 1, 1)
    return DiscretizedLogistic(np.reshape(np.float32(mean), shape), np.reshape(np.float32(log_scale), shape))


MEANS, LOG_SCALES = np.meshgrid([0.0, 0.003, 0.5, 0.77, 1.0, 1.7], [-4.5, -2.0, 0.0, 3.0])
LOGISTIC = one_pixel(MEANS.ravel(), LOG_SCALES.ravel())


def mixture(batch, channels, log_scales, size=1.2):
    """A MixtureOfLogistics of 4 components, batch and sides (*batch, H, W), with log-scales from `log_scales`."""
    draw = np.random.default_rng(channels)
    around = [draw.uniform(-size, size, (*batch, rows, K)) for rows in (channels, channels * (channels - 1) // 2)]
    log_scale = draw.choice(log_scales, around[0].shape)
    return MixtureOfLogistics(
        *(np.float32(v) for v in (draw.normal(size=(*batch, K)), around[0], log_scale, around[1]))
    )


def first_channels(law, count):
    """The marginal law of the first channels of each pixel."""
    coefficients = law.coefficients[..., : count * (count - 1) // 2, :]
    return MixtureOfLogistics(law.logits, law.location[..., :count, :], law.log_scale[..., :count, :], coefficients)


GREY_LAWS = {"one": LOGISTIC, "mixture": mixture((9, 1, 1), 1, [-8, -3, 1])}


@pytest.mark.parametrize("law", GREY_LAWS.values(), ids=GREY_LAWS)
def test_discretized_laws_sum_to_one_over_all_grey_values(law):
    total = scipy.special.logsumexp(np.asarray(law.log_prob(GREY), "float64"), axis=0)
    np.testing.assert_allclose(total, 0, atol=1e-5)


def test_the_discretized_logistic_is_scipys():
    """The probability of a bin is a difference of cumulative ones; in the far tail only its log can be compared."""
    edges = np.arange(257)[:, None] / 256
    edges[0], edges[-1] = -np.inf, np.inf
    law = scipy.stats.logistic(MEANS.ravel(), np.exp(LOG_SCALES.ravel()))
    low = np.where(edges[:-1] < MEANS.ravel(), np.diff(law.cdf(edges), axis=0), -np.diff(law.sf(edges), axis=0))
    found = np.asarray(LOGISTIC.log_prob(GREY), "float64")
    assert found.shape == (256, MEANS.size)
    np.testing.assert_allclose(found, np.log(low), rtol=2e-5, atol=2e-4)


def test_the_discretized_logistic_has_a_gradient_where_bins_are_improbable():
    far = one_pixel([0.0], [-4.5])
    found = np.asarray(far.log_prob(GREY[-1:]))
    assert np.isfinite(found) and found < -85  # float32 has no such probability


@pytest.mark.parametrize("law", GREY_LAWS.values(), ids=GREY_LAWS)
def test_discretized_laws_draw_from_their_density(law):
    """Counts of grey values against expected ones, those of rare values put together."""
    n = 40_000
    drawn = np.asarray(law.sample(n, SeedGenerator(4)), "float64")[:, :, 0, 0, 0]
    assert np.allclose(drawn * 255, np.round(drawn * 255), atol=1e-3)
    probability = np.exp(np.asarray(law.log_prob(GREY), "float64"))  # (256, batch)
    for column, p in zip(drawn.T, probability.T, strict=True):
        counts = np.bincount(np.round(column * 255).astype(int), minlength=256)
        group = np.cumsum(p * n) // 50  # about 50 expected in each
        observed, expected = (np.bincount(group.astype(int), weights=v) for v in (counts, p / p.sum() * n))
        kept = expected > 0
        assert kept.sum() == 1 or scipy.stats.chisquare(observed[kept], expected[kept]).pvalue > 1e-5
    colour = DiscretizedLogistic(np.zeros((2, 4, 5, 3), "float32"), np.zeros((2, 4, 5, 3), "float32"))
    assert colour.sample(7, SeedGenerator(0)).shape == (7, 2, 4, 5, 3)


def scipy_bin(k, centre, log_scale):
    """log of what a logistic has in bin k of [-1, 1], from the tail that the bin is in."""
    law = scipy.stats.logistic(centre, np.exp(log_scale))
    low, high = (np.where(inside, (2 * k + e) / 255 - 1, e * np.inf) for inside, e in ((k > 0, -1), (k < 255, 1)))
    with np.errstate(divide="ignore"):
        left = law.logcdf(high) + np.log1p(-np.exp(law.logcdf(low) - law.logcdf(high)))
        right = law.logsf(low) + np.log1p(-np.exp(law.logsf(high) - law.logsf(low)))
    return np.where(2 * k / 255 - 1 < centre, left, right)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("log_scales", [[-8], [1], [-8, -6, -3.5, -1, 1]], ids=str)
def test_the_mixture_of_logistics_is_scipys(channels, log_scales):
    law, shape = mixture((7, 2, 6), channels, log_scales), (N, 7, 2, 6, channels)
    k = rng.integers(256, size=shape) * rng.choice([0, 1, 2], shape)
    k = np.minimum(k, 255)  # a third each of zeros, of all values and of high ones
    logits, at, log_scale, by = (np.float64(part) for part in law)
    v = (2 * k / 255 - 1)[..., None]
    centres = [at[..., 0, :]]
    if channels == 3:
        centres += [at[..., 1, :] + by[..., 0, :] * v[..., 0, :]]
        centres += [at[..., 2, :] + by[..., 1, :] * v[..., 0, :] + by[..., 2, :] * v[..., 1, :]]
    each = [scipy_bin(k[..., c, None], centre, log_scale[..., c, :]) for c, centre in enumerate(centres)]
    log_p = scipy.special.logsumexp(scipy.special.log_softmax(logits, axis=-1) + sum(each), axis=-1).sum((-2, -1))
    found = np.asarray(law.log_prob((k / 255).astype("float32")))
    assert found.shape == (N, 7)
    np.testing.assert_allclose(found, log_p, rtol=1e-6, atol=2e-3)


@pytest.mark.parametrize("log_scales", [[-8], [1], [-8, -3, 1]], ids=str)
def test_a_channel_sums_to_one_given_those_before_it(log_scales):
    """What it adds to log p of those before, which are drawn, or first or last; to the digits that log p has."""
    law = mixture((B, 1, 1), 3, log_scales)
    drawn = np.asarray(law.sample(N, SeedGenerator(0)))
    ends = np.float32(list(itertools.product([0, 1], repeat=3)))[:, None, None, None]
    before = np.concatenate([drawn, np.broadcast_to(ends, (8, B, 1, 1, 3))])  # (N + 8, B, 1, 1, 3)
    for channel in (1, 2):
        given = np.broadcast_to(before[..., :channel], (256, *before.shape[:-1], channel))
        value = np.broadcast_to(GREY[:, None], (256, *before.shape[:-1], 1))
        both = np.concatenate([given, value], axis=-1)
        log_p = np.asarray(first_channels(law, channel + 1).log_prob(both), "float64")
        of_given = np.asarray(first_channels(law, channel).log_prob(before[..., :channel]), "float64")
        np.testing.assert_allclose(scipy.special.logsumexp(log_p, axis=0), of_given, rtol=1e-6, atol=1e-4)


@slow_on_jax
def test_colours_are_drawn_from_the_mixture_of_logistics():
    """Counts of the frequent ones among some colours, which other draws choose, and of all others together."""
    law, n = mixture((B, 1, 1), 3, [-6, -5]), 40_000
    chosen, drawn = (np.asarray(law.sample(n, SeedGenerator(seed)))[:, :, 0, 0] for seed in (0, 1))
    for column in range(B):
        one = MixtureOfLogistics(*(part[column] for part in law))
        colours = np.unique(chosen[:, column], axis=0)
        expected = n * np.exp(np.asarray(one.log_prob(colours[:, None, None]), "float64"))
        colours, expected = colours[expected > 10], expected[expected > 10]
        found, counts = np.unique(np.concatenate([colours, drawn[:, column]]), axis=0, return_counts=True)
        counts = counts[(found[:, None] == colours).all(-1).any(1)] - 1  # both are sorted
        observed, expected = np.append(counts, n - counts.sum()), np.append(expected, n - expected.sum())
        assert len(colours) > 100 and expected[-1] > 10
        assert scipy.stats.chisquare(observed, expected).pvalue > 1e-5


def test_the_mean_of_the_mixture_of_logistics_is_that_of_its_draws():
    law, n = mixture((7, 2, 6), 3, [-4, -3], size=0.3), 20_000
    drawn = np.asarray(law.sample(n, SeedGenerator(0)))
    assert drawn.shape == (n, 7, 2, 6, 3) and np.allclose(drawn * 255, np.round(drawn * 255), atol=1e-3)
    mean = np.asarray(law.mean)
    assert np.all(np.abs(drawn.mean(0, dtype="float64") - mean) < 5 * drawn.std(0) / np.sqrt(n))
    assert np.all(np.asarray(law._replace(location=law.location + 9).mean) == 1)


@pytest.mark.parametrize("log_scale", [-8, 1])
@pytest.mark.parametrize("location", [-50, 0, 50])
def test_the_mixture_of_logistics_has_finite_derivatives_at_its_extremes(location, log_scale):
    law = mixture((B, 1, 1), 3, [log_scale])
    x = np.broadcast_to(np.float32([[[0, 0.2, 1]]]), (B, 1, 1, 3))

    def log_p(location):
        return law._replace(location=location, log_scale=law.log_scale + 0 * location).log_prob(x), ()

    def slope(location):
        return value_and_gradient(log_p, location)[2], ()

    values = value_and_gradient(slope, ops.convert_to_tensor(law.location + np.float32(location)))
    assert np.isfinite(values[0]).all() and np.isfinite(values[2]).all()


def test_gaussian_pixels_are_scipys_and_drawn_from_it():
    mean, x = (rng.random((N, B, 4, 3, 2)).astype("float32") for _ in range(2))
    law = scipy.stats.norm(mean, 0.3)
    found = np.asarray(Pixels(mean, 0.3).log_prob(x))
    np.testing.assert_allclose(found, law.logpdf(x).sum((-3, -2, -1)), rtol=1e-4)
    several = Pixels(mean, np.full((*mean.shape[:-3], 1, 1, 1), 0.3, "float32"))  # as of a trained sigma
    np.testing.assert_allclose(several.log_prob(x), found, rtol=1e-5)
    drawn = np.asarray(Pixels(np.float32([[[0.2]]]), 0.3).sample(20_000, SeedGenerator(0)))
    assert drawn.shape == (20_000, 1, 1, 1)
    assert scipy.stats.kstest(drawn.ravel(), scipy.stats.norm(0.2, 0.3).cdf).pvalue > 1e-4


@pytest.mark.parametrize("n", [1, 7])
def test_samples_have_sample_axis_first(n):
    normal = Normal(np.zeros((B, D), "float32"), np.zeros((B, D), "float32"))
    seed = SeedGenerator(0)
    assert normal.sample(n, seed).shape == (n, B, D)
    assert TOP.sample(n, seed).shape == (n, D)
    assert CHAIN.sample(n, seed).shape == (n, D + 3)
    assert Bernoulli(np.zeros((B, 4, 5, 1), "float32")).sample(n, seed).shape == (n, B, 4, 5, 1)


NORMAL = Normal(*(rng.normal(size=(B, D)).astype("float32") for _ in range(2)))


@pytest.mark.parametrize("distribution", [NORMAL, TOP, CHAIN], ids=["normal", "mixture", "chain"])
def test_sample_and_log_prob_agree_with_log_prob(distribution):
    z, log_prob = distribution.sample_and_log_prob(N, SeedGenerator(3))
    np.testing.assert_array_equal(z, distribution.sample(N, SeedGenerator(3)))
    np.testing.assert_allclose(log_prob, distribution.log_prob(z), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("distribution", "d"), [(TOP, D), (CHAIN, D + 3)], ids=["mixture", "chain"])
def test_sampler_draws_from_the_density(distribution, d):
    """E_p[g / p] = 1 for any normalised g inside p's support: a sampler of another law, or a density that does not
    integrate to one, misses it."""
    n = 40_000
    z, log_p = distribution.sample_and_log_prob(n, SeedGenerator(1))
    z, log_p = np.asarray(z, "float64"), np.asarray(log_p, "float64")
    for shift in (-0.3, 0.0, 0.4):
        ratio = np.exp(scipy_normal(z, np.full(d, shift), np.full(d, -1.5)) - log_p)
        assert abs(ratio.mean() - 1) < 5 * ratio.std() / np.sqrt(n)
        assert ratio.std() / np.sqrt(n) < 0.1


def test_mixture_samples_have_its_mean_and_use_its_weights():
    n = 40_000
    z = np.asarray(TOP.sample(n, SeedGenerator(2)), "float64")
    weights = np.exp(np.asarray(TOP.log_weights, "float64"))
    assert np.all(np.abs(z.mean(0) - weights @ TOP.mean) < 5 * z.std(0) / np.sqrt(n))


def test_samples_of_many_components_are_drawn_by_their_weights():
    """The last 100 have most of the weight, and those between none: whole rows of them."""
    k, n = 4097, 40_000
    log_weights = np.where(np.arange(k) >= k - 100, 3.0, np.where(np.arange(k) < 1000, 0.0, -np.inf))
    log_weights -= scipy.special.logsumexp(log_weights)
    weights, places = np.exp(log_weights), np.float32(np.arange(k))[:, None]
    many = Mixture(np.float32(log_weights), places, np.full((k, 1), -20.0, "float32"))
    drawn = np.bincount(np.round(np.asarray(many.sample(n, SeedGenerator(2)))[:, 0]).astype(int), minlength=k)
    assert len(drawn) == k and not drawn[1000:-100].any()
    assert scipy.stats.chisquare(drawn[weights > 0], n * weights[weights > 0]).pvalue > 1e-3


def test_at_mean_of_a_chain_conditions_on_the_mean_of_top():
    top = Normal(np.float32([[1.0, 2.0]]), np.float32([[0.1, 0.2]]))
    at_mean = Chain(top, conditional, D).at_mean()
    np.testing.assert_allclose(at_mean.mean, [[1, 2, 1, 2, 2]])
    np.testing.assert_allclose(at_mean.logvar, [[0.1, 0.2, -0.5, 0.0, 0.0]], atol=1e-6)


def test_integer_seeds_are_refused():
    with pytest.raises(TypeError, match="must be a SeedGenerator"):
        CHAIN.sample(2, 0)


def test_binarize_is_bernoulli_with_the_grey_value_as_mean():
    grey = np.broadcast_to(np.float32([0, 0.2, 0.7, 1]).reshape(1, 2, 2, 1), (20_000, 2, 2, 1))
    drawn = np.asarray(binarize(ops.convert_to_tensor(grey), SeedGenerator(0)))
    assert set(np.unique(drawn)) == {0.0, 1.0}
    error = np.sqrt(grey[0] * (1 - grey[0]) / len(grey))
    assert np.all(np.abs(drawn.mean(0) - grey[0]) <= 5 * error)
