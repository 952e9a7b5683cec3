"""Models, priors and networks: shapes, gradients, limits, and what a saved model gives back."""

import itertools
import re

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
from conftest import bend, first_on_both, log_joint, on_tensorflow, save_weights, shapes_of, slow_on_jax, train_a_step
from keras import ops

import models
from evaluation.importance import importance_sampling
from experiment import Config, weights
from experiment.presets import preset
from models import distributions, priors
from models.gradients import value_and_gradient
from models.mcvae import DoubleConv, Nearest
from models.networks import Between, DenseNetworks, GaussianHead, LatentStacks, gated_dense, hard_clip, soft_bound
from models.pixels import mixture_of_logistics
from models.priors import StandardPrior
from models.weight_names import named_weights
from runtime.internals import sublayers

pytestmark = pytest.mark.keras
N, B, K, SHAPE = 4, 6, 5, (8, 8, 1)
SHALLOW = [name for name, entry in models.MODELS.items() if not entry.is_deep]
ALL = [  # JAX, which compiles each operation, gets those that the others are parts of
    pytest.param(model, prior, marks=() if (model, prior) in (("vae", "mog"), ("hvae", "vamp")) else on_tensorflow)
    for model in SHALLOW[:2]
    for prior in models.PRIORS
]
ALL += [pytest.param("markov", prior, marks=on_tensorflow) for prior in ("vamp", "flow")]
rng = np.random.default_rng(0)
START = rng.bit_generator.state


@pytest.fixture(autouse=True)
def seeded():
    """The same draws whichever tests ran before."""
    keras.utils.set_random_seed(1)
    rng.bit_generator.state = START


def build(model="vae", prior="vamp", shape=(8, 8, 1), dynamic=False, **settings):
    """A small model whose K pseudo-inputs are random images."""
    small = {"latent_dim": 3, "network_size": 0.5, "num_pseudo_inputs": K}
    small |= ({"num_exemplars": K} if prior == "exemplar" else {}) | settings
    config = Config(model=model, prior=prior, **small)
    return models.build(config, shape, dynamic, rng.random((config.num_pseudo_inputs, *shape), np.float32))


def images(n=B, shape=(8, 8, 1)):
    return (rng.random((n, *shape)) < 0.4).astype("float32")


def batch_of(prior, x):
    """What a training step of this prior takes: all K exemplars, two of them near, the first of which is image 0."""
    if prior != "exemplar":
        return x
    of_images = {"images": x, "others": images(K, x.shape[1:])}
    which, near = np.arange(K, dtype="int32"), np.float32([1, 1, 0, 0, 0])
    return of_images | {"index": np.arange(len(x), dtype="int32"), "which": which, "near": near}


SHAPES = [pytest.param(*one.values, SHAPE, marks=one.marks) for one in ALL]
SHAPES += [pytest.param(*one, marks=on_tensorflow)
           for one in itertools.product(SHALLOW, ["vamp"], [(28, 20, 1), (32, 32, 3)])]  # fmt: skip


@pytest.mark.parametrize(("model", "prior", "shape"), SHAPES)
def test_shapes(model, prior, shape):
    built, x = build(model, prior, shape), images(shape=shape)
    terms = shapes_of(lambda: built.terms(x, N, keras.random.SeedGenerator(0)))
    assert {tuple(term.shape) for term in terms[:3]} == {(N, B)}
    assert shapes_of(lambda: built.reconstruct(x)).shape == x.shape
    assert shapes_of(lambda: built.sample(N)).shape == (N, *shape)
    assert shapes_of(lambda: built.embed(x)).shape == (B, 3)
    assert shapes_of(lambda: log_joint(built, x, np.zeros((N, B, 3), "float32"))).shape == (N, B)


def settings_of(network):
    """Those without which `build` would not fit a network."""
    return {"network": network} | (
        {} if "network_size" in models.NETWORKS[network].settings else {"network_size": Config.network_size}
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "likelihood"),
    [
        pytest.param(network, likelihood, marks=() if network == "mlp" or likelihood == "bernoulli" else on_tensorflow)
        for network, entry in models.NETWORKS.items()
        for likelihood in models.LIKELIHOODS
        if not entry.is_autoregressive
    ],
)
def test_each_likelihood_is_that_of_its_maps(network, likelihood):
    """Normalised over what a pixel can be, a mean in [0, 1], and a gradient for each weight."""
    shape, model = ((8, 8, 3), "vae") if network == "mcvae" else ((8, 4, 3), "hvae")
    settings = {"likelihood": likelihood, "binarize": "dynamic" if likelihood == "bernoulli" else "none"}
    built = build(model, "vamp", shape, **settings, **settings_of(network))
    z = rng.normal(size=(N, B, 3)).astype("float32")
    law = built.likelihood(z)
    assert law.mean.shape == (N, B, *shape) and np.all((np.asarray(law.mean) >= 0) & (np.asarray(law.mean) <= 1))
    values = {"bernoulli": 2, "gaussian": 2001}.get(likelihood, 256)
    low, high = (-9, 10) if likelihood == "gaussian" else (0, 1)
    axis = np.linspace(low, high, values).astype("float32").reshape(-1, 1, 1, 1, 1, 1)
    one = type(law)(*(part[:1, :1, :1, :1, :1] if getattr(part, "shape", ()) else part for part in law))
    if likelihood == "mixlogistic":
        one = one._replace(logits=law.logits[:1, :1, :1, :1], coefficients=None)  # the first channel has no use of them
    total = np.exp(np.asarray(one.log_prob(axis[:, 0]), "float64")).sum()
    assert total * (19 / 2000 if likelihood == "gaussian" else 1) == pytest.approx(1, abs=1e-3)
    before = [np.array(w) for w in built.trainable_variables]
    train_a_step(built, keras.optimizers.SGD(1e-3), images(shape=shape))
    assert all(np.any(np.asarray(w) != b) for w, b in zip(built.trainable_variables, before, strict=True))


@slow_on_jax
@pytest.mark.parametrize("bound", [soft_bound, hard_clip])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_mixture_of_logistics_has_ten_for_each_pixel(channels, bound):
    observation, pairs = mixture_of_logistics(1.0), channels * (channels - 1) // 2
    maps = 20 * rng.normal(size=(N, B, 8, 5, observation.outputs(channels))).astype("float32")
    law = observation.of(maps, bound)
    shapes = [(N, B, 8, 5, *rows, 10) for rows in ((), (channels,), (channels,), (pairs,))]
    assert [tuple(part.shape) for part in law] == shapes
    assert sum(np.prod(shape) for shape in shapes) == maps.size
    assert np.ptp(law.log_scale) == 9 and np.min(law.log_scale) == -8
    assert np.all(np.abs(law.coefficients) <= 1)
    assert law.sample(2, keras.random.SeedGenerator(0)).shape == (2, N, B, 8, 5, channels)


@pytest.mark.parametrize("model", SHALLOW[:2])
@pytest.mark.parametrize("units", [None, 20, (30, 20)], ids=str)
def test_the_parameter_count_is_that_of_the_documented_layers(model, units):
    def linear(*widths):
        return sum(i * o + o for i, o in itertools.pairwise(widths))

    f, hidden, up = 4, units if isinstance(units, tuple) else (units or 256,), units or 300
    features, inner = hidden[-1], hidden if len(hidden) > 1 else hidden * 2
    up = up[::-1] if isinstance(up, tuple) else (up, up)
    convs = [(1, 8 * f, 7), (8 * f, 16 * f, 3), (16 * f, 16 * f, 5), (16 * f, 32 * f, 3)]
    encoder = sum(i * o * k * k + o for i, o, k in convs) + linear(7 * 7 * 32 * f, *hidden)
    head, latents = 2 * linear(features, 2), linear(2, *inner)
    ups = [(32, 32 * f, 3), (32 * f, 16 * f, 3), (16 * f, 16 * f, 3), (16 * f, 8 * f, 3), (8 * f, 1, 3)]
    maps = sum(i * o * k * k + o for i, o, k in ups)
    expected = {
        "vae": encoder + head + linear(2, 7 * 7 * 32) + maps,
        "hvae": (encoder + head)  # q(z2|x)
        + (encoder + latents + linear(2 * features, features) + head)  # q(z1|x, z2)
        + (linear(2, *up) + 2 * linear(up[-1], 2))  # p(z1|z2)
        + (linear(4, 7 * 7 * 32) + maps),  # p(x|z1, z2)
    }[model]
    config = Config(model=model, latent_dim={"vae": 2, "hvae": 4}[model], hidden_units=units)
    built = models.build(config, (28, 28, 1))
    assert sum(np.prod(w.shape) for w in built.trainable_variables) == expected


def test_images_that_cannot_be_halved_twice_are_refused():
    said = r"30x34 pixels do not fit --network conv: .* by 4, such as 32x32 \(for own images, --image_size 32\); "
    with pytest.raises(ValueError, match=said + "--network mlp takes any size"):
        build(shape=(30, 34, 1))


@pytest.mark.parametrize(("latent_dim", "top"), [(2, 1), (3, 2), (5, 3)])
def test_hvae_splits_odd_latents_with_the_larger_part_on_top(latent_dim, top):
    model = build("hvae", latent_dim=latent_dim)
    assert (model.dim_z2, model.dim_z1) == (top, latent_dim - top)
    assert model.top_prior.distribution().mean.shape == (K, top)


@slow_on_jax
def test_hvae_has_the_sizes_that_are_given():
    model, z = build("hvae", "vamp", latent_dim=5, latent_dims=(1, 4)), rng.normal(size=(N, B, 5)).astype("float32")
    assert (model.dim_z2, model.dim_z1) == model.sizes == (1, 4)
    assert model.top_prior.distribution().mean.shape == (K, 1) and model.embed(images()).shape == (B, 5)
    assert log_joint(model, images(), z).shape == (N, B)


def test_logvar_is_bounded_smoothly_and_is_the_identity_at_the_centre():
    head = GaussianHead(1, 1)
    head.raw_logvar.kernel.assign([[1.0]])
    logvar = np.asarray(head(np.float32([[-1e3], [-2.01], [-2.0], [-1.99], [1e3]])).logvar)[:, 0]
    np.testing.assert_allclose(logvar, [-6, -2.01, -2, -1.99, 2], atol=1e-5)


def test_one_pseudo_input_gives_its_own_posterior():
    model = build(prior="vamp", num_pseudo_inputs=1)
    u = model.top_prior.pseudo_inputs
    z = rng.normal(size=(N, B, 3)).astype("float32")
    np.testing.assert_allclose(model.prior().log_prob(z), model.posterior(u).log_prob(z), rtol=1e-5, atol=1e-5)


def test_vamp_prior_is_the_mean_of_the_posteriors_of_its_pseudo_inputs():
    model, z = build(prior="vamp"), rng.normal(size=(N, 1, 3)).astype("float32")
    each = np.asarray(model.posterior(model.top_prior.pseudo_inputs).log_prob(z), "float64")  # (N, K)
    np.testing.assert_allclose(model.prior().log_prob(z)[:, 0], np.log(np.exp(each).mean(1)), rtol=1e-4, atol=1e-4)


@slow_on_jax
@pytest.mark.parametrize(
    ("model", "prior"),
    [
        pytest.param(
            *one.values, marks=[*one.marks, *[pytest.mark.slow] * (one.values[0] == "hvae" and one.values[1] != "vamp")]
        )
        for one in ALL
        if one.values[0] == "vae" or one.values[1] != "flow"
    ],
)
def test_log_px_by_importance_sampling_is_the_integral_of_the_joint(model, prior):
    """Over two latents, log p(x) by a sum over a grid is exact: posterior, prior and likelihood fit one another."""
    built, x, side, n = build(model, prior, latent_dim=2), images(3), 9.0, 60
    for weight in built.trainable_variables:
        if weight.path.split("/")[-1] not in ("pseudo_inputs", "mean", "raw_logvar"):  # the prior's own
            weight.assign(np.asarray(weight) * 1.4)  # so that x and z matter to one another
    axis = (np.arange(n) + 0.5) / n * 2 * side - side
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 1, 2).astype("float32")
    joint = log_joint(built, x, grid)  # (n * n, 3)
    exact = scipy.special.logsumexp(np.asarray(joint, "float64"), axis=0) + 2 * np.log(2 * side / n)
    estimate = importance_sampling(built, x, 4000)
    assert np.all(estimate.log_px_se < 0.1)
    assert np.all(np.abs(estimate.log_px - exact) < 5 * estimate.log_px_se + 1e-3)


def test_a_mixture_prior_is_that_of_scipy():
    prior, z = build(prior="mog").top_prior, rng.normal(size=(N, B, 3)).astype("float32")
    prior.raw_logvar.assign(rng.normal(size=(K, 3)))
    law = prior.distribution()
    mean, sd = np.asarray(prior.mean, "float64"), np.exp(np.asarray(law.logvar, "float64") / 2)
    each = scipy.stats.norm.logpdf(z[..., None, :], mean, sd).sum(-1)  # (N, B, K)
    expected = scipy.special.logsumexp(each, axis=-1, b=1 / K)
    np.testing.assert_allclose(law.log_prob(z), expected, rtol=1e-4, atol=1e-4)
    prior.raw_logvar.assign(np.full((K, 3), -1e3))
    assert np.all(np.asarray(prior.distribution().logvar) == -6)  # no component collapses onto a point
    assert abs(np.asarray(build(prior="mog", num_pseudo_inputs=4000).top_prior.mean).std() - 1) < 0.05


def test_weights_of_a_weighted_vamp_prior_are_equal_at_first_and_sum_to_one():
    model, z = build(prior="weightedvamp"), rng.normal(size=(N, 3)).astype("float32")
    each = np.asarray(model.posterior(model.top_prior.pseudo_inputs).log_prob(z[:, None]), "float64")  # (N, K)
    for logits in (np.zeros(K), rng.normal(size=K)):
        model.top_prior.logits.assign(logits)
        expected = scipy.special.logsumexp(each, axis=-1, b=scipy.special.softmax(logits))
        np.testing.assert_allclose(model.prior().log_prob(z), expected, rtol=1e-4, atol=1e-4)


def shaken(prior):
    """The prior with weights of its own, but for images, that are not those it begins with."""
    bend(*([prior.flow] if hasattr(prior, "flow") else []), size=0.4)
    for weight in prior.trainable_weights:
        if weight.name in ("logits", "raw_logvar", "mean"):
            weight.assign(rng.normal(size=weight.shape))
    if hasattr(prior, "means"):
        prior.means.assign(rng.normal(size=prior.means.shape))
    if hasattr(prior, "renormalise"):
        prior.logit.kernel.assign(rng.normal(size=prior.logit.kernel.shape))
        prior.renormalise()
    return prior


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("flow", {"num_couplings": 0}),
        ("flow", {"num_couplings": 3, "coupling_width": 8}),
        ("weightedvamp", {}),
        ("vampmixture", {}),
        ("lars", {"num_proposals": 20}),
        ("lars", {"num_proposals": 2}),
        ("exemplar", {}),
    ],
)
def test_a_prior_integrates_to_one_and_its_draws_are_its_own(name, settings):
    """A flow without couplings is N(0, I); of all, the shares of draws in cells are the density's."""
    prior = shaken(build(prior=name, latent_dim=2, **settings).top_prior)
    side, n, cells = 8.0, 160, 20
    axis = (np.arange(n) + 0.5) / n * 2 * side - side
    plane = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2).astype("float32")
    p = np.exp(np.asarray(prior.distribution().log_prob(plane), "float64")).reshape(n, n) * (2 * side / n) ** 2
    assert p.sum() == pytest.approx(1, abs=2e-3)
    normal = np.exp(-0.5 * (plane**2).sum(-1)).reshape(n, n) / (2 * np.pi) * (2 * side / n) ** 2
    assert (np.abs(p - normal).sum() < 1e-4) == (settings.get("num_couplings") == 0)
    seed = keras.random.SeedGenerator(0)
    draws = np.concatenate([prior.distribution().sample(1000, seed) for _ in range(20)])  # lars has many proposals each
    seen = np.histogram2d(*draws.T, bins=cells, range=[[-side, side]] * 2)[0] / len(draws)
    expected = p.reshape(cells, n // cells, cells, n // cells).sum((1, 3))
    error = np.sqrt(expected * (1 - expected) / len(draws)) + 3e-4  # of the grid's cells
    assert np.abs((seen - expected) / error).max() < 5


def test_a_vamp_mixture_has_weights_and_covariances_of_its_own_around_posteriors():
    """Its prior over them, by SciPy: the Dirichlet, the Wishart on diagonal matrices, and N(0, I) over the means."""
    prior, z = build(prior="vampmixture").top_prior, rng.normal(size=(N, 3)).astype("float32")
    found, q = [], prior.encode(prior.pseudo_inputs)
    for _ in range(2):
        own = np.exp(np.asarray(shaken(prior).own_logvar(), "float64"))
        w, variance = scipy.special.softmax(np.asarray(prior.logits, "float64")), own + np.exp(q.logvar)
        each = scipy.stats.norm.logpdf(z[:, None], q.mean, np.sqrt(variance)).sum(-1)
        expected = scipy.special.logsumexp(each, axis=-1, b=w)
        np.testing.assert_allclose(prior.distribution().log_prob(z), expected, rtol=1e-4, atol=1e-4)
        wishart = scipy.stats.wishart(5, K ** (2 / 3) / 5 * np.eye(3))
        expected = scipy.stats.dirichlet(np.full(K, 1 / K)).logpdf(w)
        expected += sum(wishart.logpdf(np.diag(1 / variances)) for variances in own)
        expected -= 0.5 * np.sum(np.square(q.mean) + np.exp(q.logvar))
        found.append(float(prior.log_prior()) - expected)
    assert found[0] == pytest.approx(found[1], abs=1e-3)  # its constant


def test_the_prior_over_the_weights_of_a_vamp_mixture_counts_once_a_batch_in_training_alone():
    model = build(prior="vampmixture")
    outcome = model(images(), training=True)
    trained, held_out = (float(model.compute_loss(y_pred=outcome, training=one)) for one in (True, False))
    assert trained - held_out == pytest.approx(-float(model.top_prior.log_prior()) / B, rel=1e-4)


@slow_on_jax
@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(name, marks=[pytest.mark.slow] * one.is_annealed + [on_tensorflow] * (name != "elbo"))
        for name, one in models.OBJECTIVES.items()
    ],
)
@pytest.mark.parametrize("prior", ["vampmixture", "lars", "exemplar"])
def test_a_prior_goes_with_every_bound(prior, objective):
    built = build("vae", prior, objective=objective, **settings_of("mlp"))
    shaken(built.top_prior)
    before = [np.array(w) for w in built.top_prior.trainable_variables]
    assert np.isfinite(train_a_step(built, keras.optimizers.SGD(1e-3), batch_of(prior, images()))["elbo"])
    assert all(np.any(np.asarray(w) != b) for w, b in zip(built.top_prior.trainable_variables, before, strict=True))


@pytest.mark.parametrize("bias", [-1e3, -50.0, -2.0, 0.0, 1e3])
@pytest.mark.parametrize("proposals", [2, 100])
def test_a_constant_acceptance_leaves_the_base_as_it_is(bias, proposals):
    """However small it is, with finite gradients."""
    prior, z = (
        build(prior="lars", num_proposals=proposals).top_prior,
        ops.convert_to_tensor(rng.normal(size=(N, 3)), "float32"),
    )
    prior.logit.bias.assign([bias])
    found = prior.renormalise(1000)
    assert found["log_z"] == pytest.approx(-np.logaddexp(0, -bias), abs=1e-4) and found["log_z_se"] < 1e-6
    value, _, slope = value_and_gradient(lambda z: (prior.distribution().log_prob(z), ()), z)
    np.testing.assert_allclose(value, StandardPrior(3, None, None).distribution().log_prob(z), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(slope, -np.asarray(z), rtol=1e-3, atol=1e-3)
    with prior.step(keras.random.SeedGenerator(0)):
        np.testing.assert_allclose(prior.distribution().log_prob(z), value, rtol=1e-4, atol=1e-4)
    assert float(prior.log_z) == pytest.approx(found["log_z"], abs=1e-4)


@on_tensorflow
@pytest.mark.parametrize("proposals", [2, 100])
def test_a_constant_acceptance_has_no_gradient_whatever_its_bias(proposals):
    """As that of the normaliser takes away what the acceptance has."""
    import tensorflow as tf

    prior, z = build(prior="lars", num_proposals=proposals).top_prior, rng.normal(size=(5, 3)).astype("float32")
    prior.logit.bias.assign([-2.0])
    prior.renormalise(1000)
    with tf.GradientTape() as tape, prior.step(keras.random.SeedGenerator(0)):
        value = ops.sum(prior.distribution().log_prob(ops.convert_to_tensor(z)))
    assert np.abs(tape.gradient(value, prior.logit.bias.value)).max() < 1e-3


def test_many_proposals_are_drawn_alike_one_after_the_other(monkeypatch):
    law = shaken(build(prior="lars").top_prior).distribution()
    drawn = [np.asarray(law.sample(40, keras.random.SeedGenerator(0)))]
    monkeypatch.setattr(distributions, "AT_HAND", 100)
    drawn.append(np.asarray(law.sample(40, keras.random.SeedGenerator(0))))
    np.testing.assert_array_equal(*drawn)


def test_log_z_is_the_mean_acceptance_with_its_error_and_training_follows_it():
    prior = shaken(build(prior="lars", latent_dim=1).top_prior)
    axis = np.linspace(-9, 9, 4001)
    a = np.exp(np.asarray(prior.log_accept(axis[:, None].astype("float32")), "float64"))
    exact = np.log(np.sum(a * scipy.stats.norm.pdf(axis)) * (axis[1] - axis[0]))
    errors = [(found["log_z"] - exact) / found["log_z_se"] for found in (prior.renormalise(4000, s) for s in range(20))]
    assert 0.5 < np.sqrt(np.mean(np.square(errors))) < 1.6
    prior.log_z.assign(exact + 0.5)
    noise = keras.random.SeedGenerator(0)
    for _ in range(300):
        with prior.step(noise):
            pass
    assert float(prior.log_z) == pytest.approx(exact, abs=0.05)


def exemplar_log_prob(prior, x, z):
    """log of the mean of N(z; m(x_n), v I) over the images x, by SciPy."""
    mean, sd = (
        np.asarray(prior.encode(x).mean, "float64"),
        np.exp(np.asarray(prior.logvar(np.zeros((1, 1), "float32"))).item() / 2),
    )
    each = scipy.stats.norm.logpdf(z[..., None, :], mean, sd).sum(-1)
    return scipy.special.logsumexp(each, axis=-1, b=1 / len(x))


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("model", SHALLOW)
def test_exemplars_are_all_training_images_and_one_is_a_gaussian(model, count, monkeypatch):
    monkeypatch.setattr(distributions, "BLOCK", 3)
    monkeypatch.setattr(priors, "ENCODED", 2)
    x, config = images(count), Config(model=model, prior="exemplar", latent_dim=4, network_size=0.5)
    prior = shaken(models.build(config, SHAPE, from_data=range(count)).top_prior)
    prior.refresh(lambda part: x[part])
    dim = prior.means.shape[1]
    z = rng.normal(size=(N, dim)).astype("float32")
    np.testing.assert_allclose(prior.distribution().log_prob(z), exemplar_log_prob(prior, x, z), rtol=1e-4, atol=1e-4)


def test_leaving_out_leaves_exactly_one_out():
    """With all images as exemplars, near or not; with some, weights still sum to one, and a near one has its own."""
    x, prior = images(K), shaken(build(prior="exemplar").top_prior)
    batch = {name: value for name, value in batch_of("exemplar", x).items() if name != "images"}
    z = rng.normal(size=(N, K, 3)).astype("float32")
    with prior.step(None, **batch | {"others": x}):
        found = np.asarray(prior.distribution().log_prob(z))
    for left_out in range(K):
        others = x[np.arange(K) != left_out]
        expected = exemplar_log_prob(prior, others, z[:, left_out])
        np.testing.assert_allclose(found[:, left_out], expected, rtol=1e-4, atol=1e-4)
    prior = models.build(
        Config(prior="exemplar", num_exemplars=K, network_size=0.5), SHAPE, from_data=range(40)
    ).top_prior
    with prior.step(None, **batch | {"others": x, "index": np.int32([0, 3, 30])}):
        weights_of = np.exp(np.asarray(prior.distribution().log_weights, "float64"))
    each = np.array([[0, 1, 38 / 3, 38 / 3, 38 / 3], [1, 1, 37 / 2, 0, 37 / 2], [1, 1, *3 * [37 / 3]]]) / 39
    np.testing.assert_allclose(weights_of, each, rtol=1e-5)


def test_the_data_in_a_vamp_data_prior_stay_as_they_are():
    built = build(prior="vampdata")
    before = np.array(built.top_prior.pseudo_inputs)
    train_a_step(built, keras.optimizers.SGD(1.0), images())
    np.testing.assert_array_equal(built.top_prior.pseudo_inputs, before)
    assert not any("pseudo_inputs" in weight.path for weight in built.trainable_variables)
    assert any("pseudo_inputs" in weight.path for weight in built.weights)  # so they are saved with the rest


PAPER = [
    (model, name)
    for name, entry in models.NETWORKS.items()
    if "activation" not in entry.settings
    for model in entry.models
]
GATED = {"vae": 40, "hvae": 80}  # dimensions of the paper's models


@on_tensorflow
@pytest.mark.parametrize(("model", "network"), PAPER)
def test_the_papers_networks_take_images_of_any_size(model, network):
    shape = (7, 5, 3)
    built, x = build(model, shape=shape, latent_dim=5, **settings_of(network)), images(shape=shape)
    assert {tuple(term.shape) for term in built.terms(x, N, keras.random.SeedGenerator(0))[:3]} == {(N, B)}
    assert built.reconstruct(x).shape == x.shape and built.sample(N).shape == (N, *shape)


@pytest.mark.parametrize("units", [None, 20, (40, 30, 20)], ids=str)
@pytest.mark.parametrize("model", SHALLOW[:2])
def test_the_parameter_count_of_the_dense_networks_is_that_of_the_paper(model, units):
    several = units if isinstance(units, tuple) else (units or 300,) * 2
    (*lower, last), (first, *others) = several, several[::-1]

    def gated(*widths):
        return sum(2 * (i * o + o) for i, o in itertools.pairwise(widths))

    head, p_head, out = 2 * (last * 40 + 40), 2 * (several[0] * 40 + 40), several[0] * 784 + 784
    expected = {
        "vae": gated(784, *several) + head + gated(40, *several[::-1]) + out,
        "hvae": (gated(784, *several) + head)  # q(z2|x)
        + (gated(784, *lower) + gated(40, lower[-1]) + gated(2 * lower[-1], last) + head)  # q(z1|x, z2)
        + (gated(40, *several[::-1]) + p_head)  # p(z1|z2)
        + (2 * gated(40, first) + gated(2 * first, *others) + out),  # p(x|z1, z2)
    }[model]
    config = Config(model=model, latent_dim=GATED[model], network="mlp", hidden_units=units)
    built = models.build(config, (28, 28, 1))
    assert sum(np.prod(weight.shape) for weight in built.trainable_variables) == expected


@pytest.mark.parametrize("units", [None, (30,), (40, 30, 20)], ids=str)
@pytest.mark.parametrize("model", SHALLOW[:2])
def test_the_parameter_count_of_plain_dense_networks(model, units):
    """For None, those of the IWAE paper: two layers of 200 units on either side of the latents."""
    several = units or (200, 200)
    lower, up, last = several[:-1] or several, several[::-1], several[-1]

    def linear(*widths):
        return sum(i * o + o for i, o in itertools.pairwise(widths))

    expected = {
        "vae": linear(784, *several) + 2 * linear(last, 50) + linear(50, *up, 784),
        "hvae": (linear(784, *several) + 2 * linear(last, 50))  # q(z2|x)
        + (linear(784, *lower) + linear(50, lower[-1]) + linear(2 * lower[-1], last) + 2 * linear(last, 50))
        + (linear(50, *up) + 2 * linear(up[-1], 50))  # p(z1|z2)
        + linear(100, *up, 784),  # p(x|z1, z2)
    }[model]
    config = Config(model=model, latent_dim={"vae": 50, "hvae": 100}[model], network="dense", hidden_units=units)
    blank = models.blank_weights(config, (28, 28, 1))
    assert sum(np.prod(weight.shape) for weight in blank.values()) == expected + 1  # beta


def test_the_iwae_papers_two_layers_have_as_many_weights_as_there():
    def linear(*widths):
        return sum(i * o + o for i, o in itertools.pairwise(widths))

    q = linear(784, 200, 200) + 2 * linear(200, 100) + linear(100, 100, 100) + 2 * linear(100, 50)
    p = linear(50, 100, 100) + 2 * linear(100, 100) + linear(100, 200, 200, 784)
    config = Config.from_dict(preset("iwae_paper_two_layers").settings)
    blank = models.blank_weights(config, (28, 28, 1))
    assert sum(np.prod(weight.shape) for weight in blank.values()) == q + p + 1  # beta


@on_tensorflow
@pytest.mark.parametrize("posterior", ["gaussian", "realnvp"])
def test_layers_of_a_markov_chain_know_their_neighbours_alone(posterior):
    """p(x|z) depends on z1, q(z2|z1) is the same for all images, and the density is that of both conditionals."""
    built, x = build("markov", latent_dims=(2, 3), posterior=posterior, latent_dim=5), images()
    z, log_q = built.posterior(x).sample_and_log_prob(N, keras.random.SeedGenerator(0))
    z = np.array(z)
    np.testing.assert_allclose(built.posterior(x).log_prob(z), log_q, rtol=1e-4, atol=1e-4)
    z2, z1 = z[..., :2], z[..., 2:]
    expected = np.asarray(built.q_z1(built.encoder(x)).log_prob(z1)) + built.q_z2(z1).log_prob(z2)
    np.testing.assert_allclose(log_q, expected, rtol=1e-4, atol=1e-4)
    moved = z + np.float32([1, 1, 0, 0, 0])
    np.testing.assert_array_equal(built.likelihood(moved).logits, built.likelihood(z).logits)
    assert np.abs(np.asarray(built.likelihood(z + 1).logits) - built.likelihood(z).logits).max() > 1e-3
    at_mean = built.posterior(x).at_mean().mean
    np.testing.assert_allclose(at_mean[:, :2], built.q_z2(at_mean[:, 2:]).mean, rtol=1e-4, atol=1e-5)
    top = built.prior().top.base  # of pseudo-inputs, at the mean of z1
    of_inputs = built.posterior(np.asarray(built.top_prior.pseudo_inputs)).top.base
    np.testing.assert_allclose(top.mean, of_inputs.mean, rtol=1e-4, atol=1e-5)
    rates = np.asarray(built.rates(x, 4, keras.random.SeedGenerator(0)))
    assert rates.shape == (4, B, 2)


@pytest.mark.parametrize("likelihood", first_on_both("bernoulli", "mixlogistic", "logistic", "gaussian"))
def test_a_plain_decoder_starts_at_a_mean(likelihood):
    shape, mean = (8, 4, 3), rng.uniform(0.01, 0.99, (8, 4, 3))
    settings = {"likelihood": likelihood, "binarize": "dynamic" if likelihood == "bernoulli" else "none"}
    built = build(shape=shape, activation="tanh", **settings, **settings_of("dense"))
    built.decoder.start_at(mean)
    built.decoder.out.kernel.assign(np.zeros(built.decoder.out.kernel.shape))
    law = built.likelihood(rng.normal(size=(N, B, 3)).astype("float32"))
    np.testing.assert_allclose(law.mean, np.broadcast_to(mean, (N, B, *shape)), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "latent_dim", "published"),
    [
        ((28, 28, 1), 64, (219_504, 74_441)),
        ((32, 32, 3), 128, (408_336, 169_131)),
        ((64, 64, 3), 128, (1_194_768, 565_419)),
    ],
)
def test_the_networks_of_the_monte_carlo_vae_have_as_many_weights_as_there(shape, latent_dim, published):
    def double(before, middle, after):
        return 9 * before * middle + middle + 9 * middle * after + after

    channels, features = shape[2], 64 * (shape[0] // 8) * (shape[1] // 8)
    encoder = double(channels, 16, 16) + double(16, 32, 32) + double(32, 64, 64) + double(64, 64, 64)
    encoder += features * 2 * latent_dim + 2 * latent_dim
    decoder = latent_dim * features + features + double(64, 32, 32) + double(32, 16, 16) + double(16, 8, 16)
    decoder += 16 * channels + channels
    assert (encoder, decoder) == published  # as counted in their code
    config = Config(network="mcvae", latent_dim=latent_dim, likelihood="bernoulli", binarize="threshold")
    counts = {"decoder": 0, "encoder": 0, "q_z": 0, "beta": 0}
    for name, weight in models.blank_weights(config, shape).items():
        counts[name.split("/")[0]] += np.prod(weight.shape)
    assert (counts["encoder"] + counts["q_z"], counts["decoder"]) == published


def test_a_double_convolution_adds_its_input_where_it_has_the_maps():
    h = rng.normal(size=(B, 6, 5, 3)).astype("float32")
    for filters, added in ((4, True), (3, True), (2, False)):
        layer = DoubleConv(filters, keras.activations.gelu, 7)
        out = np.array(layer(h))
        for weight in layer.weights:
            weight.assign(np.zeros(weight.shape))
        skipped = np.asarray(layer(h))
        expected = np.pad(h, [(0, 0)] * 3 + [(0, filters - 3)]) if added else np.zeros((B, 6, 5, filters))
        np.testing.assert_allclose(skipped, expected, atol=1e-6)
        assert out.shape == skipped.shape and np.abs(out - skipped).max() > 1e-3


def test_maps_are_enlarged_by_the_nearest_above():
    h = rng.normal(size=(B, 12, 3, 2)).astype("float32")
    rows, columns = [i * 12 // 28 for i in range(28)], [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(Nearest((28, 6))(h), h[:, rows][:, :, columns])


def test_images_that_cannot_be_halved_three_times_are_refused():
    with pytest.raises(ValueError, match="12x7 pixels do not fit --network mcvae: both sides must be 8 or more"):
        build(shape=(12, 7, 1), **settings_of("mcvae"))


def gated_encoders(width):
    """Parameters of the paper's convHVAE but for its decoder: those of z2's and z1's posteriors and of p(z1|z2)."""

    def stack(*kernels):
        widths = itertools.pairwise((1, 32, 32, 64, 64, 6))
        return sum(2 * (i * o * k * k + o) for (i, o), k in zip(widths, kernels, strict=True))

    def gated(i, o):
        return 2 * (i * o + o)

    def head(features):
        return 2 * (features * 40 + 40)

    q_z1 = stack(3, 3, 3, 3, 3) + gated(40, 294) + gated(588, width) + head(width)
    return stack(7, 3, 5, 3, 3) + head(294) + q_z1 + gated(40, width) + gated(width, width) + head(width)


@pytest.mark.parametrize("units", [None, 20])
def test_the_parameter_count_of_the_gated_convolutions_is_that_of_the_paper(units):
    width = units or 300
    image = 2 * 2 * (40 * width + width) + 2 * (2 * width * 784 + 784)
    convs = 2 * (1 * 64 * 9 + 64) + 3 * 2 * (64 * 64 * 9 + 64) + 64 + 1
    config = Config(model="hvae", latent_dim=80, network="gatedconv", hidden_units=units)
    count = sum(np.prod(weight.shape) for weight in models.build(config, (28, 28, 1)).trainable_variables)
    assert count == gated_encoders(width) + image + convs


def test_a_gate_is_a_product():
    gate, h = gated_dense(3), rng.normal(size=(N, B, 2)).astype("float32")
    gate.build((None, 2))
    (w, c), (v, d) = ([np.asarray(x, "float64") for x in dense.weights] for dense in (gate.linear, gate.gate))
    np.testing.assert_allclose(gate(h), (h @ w + c) * scipy.special.expit(h @ v + d), rtol=1e-5, atol=1e-6)


def test_the_papers_logvar_is_clipped_hard():
    head = DenseNetworks(SHAPE, None, None, None, None).head(300, 1)
    head.raw_logvar.kernel.assign(np.eye(300, 1))
    h = np.zeros((4, 300), "float32")
    h[:, 0] = [-1e3, -5.9, 1.9, 1e3]
    np.testing.assert_allclose(np.asarray(head(h).logvar)[:, 0], [-6, -5.9, 1.9, 2], rtol=1e-6)


def test_the_two_latents_are_cut_where_they_were_joined():
    """Changing z1 changes nothing in the stack of z2, and the other way round."""
    stacks, z = LatentStacks((3, 2), 7), rng.normal(size=(N, B, 5)).astype("float32")
    before = np.asarray(stacks(z))  # (N, B, 2 * 7)
    for own, out in ((slice(0, 3), slice(0, 7)), (slice(3, 5), slice(7, 14))):
        changed = z.copy()
        changed[..., own] += 1
        differs = np.any(np.asarray(stacks(changed)) != before, axis=(0, 1))
        assert differs[out].all() and differs.sum() == 7


@pytest.mark.parametrize("model", SHALLOW)
def test_samples_come_from_all_pseudo_inputs(model):
    """With components far apart and narrow, the draws of the top latent hit each of the K with frequency 1/K."""
    built, n = build(model, "vamp"), 4000
    top = built.top_prior.distribution()
    far = top._replace(mean=ops.arange(K, dtype="float32")[:, None] * ops.ones_like(top.mean) * 100)
    z = np.asarray(built.prior(far).sample(n, keras.random.SeedGenerator(0)))
    counts = np.bincount(np.round(z[:, 0] / 100).astype(int), minlength=K)
    assert np.all(np.abs(counts - n / K) < 5 * np.sqrt(n / K))


def test_hvae_samples_z1_from_its_conditional_prior():
    model, n = build("hvae", "vamp", latent_dim=2), 20_000
    z, log_p = model.prior().sample_and_log_prob(n, keras.random.SeedGenerator(0))
    z = np.asarray(z, "float64")
    given = model.p_z1(np.float32(z[:, :1]))
    standardised = (z[:, 1:] - np.asarray(given.mean)) / np.exp(0.5 * np.asarray(given.logvar))
    assert abs(standardised.mean()) < 5 / np.sqrt(n)
    assert abs(standardised.std() - 1) < 5 / np.sqrt(2 * n)
    np.testing.assert_allclose(log_p, model.prior().log_prob(np.float32(z)), rtol=1e-4, atol=1e-4)


def test_sampling_is_a_function_of_its_seed_with_new_noise_for_each_layer():
    model = build("hvae", "standard", latent_dim=2)
    np.testing.assert_array_equal(model.sample(N, 3), model.sample(N, 3))
    assert np.abs(np.asarray(model.sample(N, 3)) - np.asarray(model.sample(N, 4))).max() > 0
    z = np.asarray(model.prior().sample(1000, keras.random.SeedGenerator(3)))
    given = model.p_z1(np.float32(z[:, :1]))
    noise = (z[:, 1:] - np.asarray(given.mean)) / np.exp(0.5 * np.asarray(given.logvar))
    assert abs(np.corrcoef(z[:, 0], noise[:, 0])[0, 1]) < 5 / np.sqrt(1000)


def test_projection_keeps_pseudo_inputs_in_the_unit_interval():
    np.testing.assert_allclose(Between(0.0, 1.0)(np.float32([-0.2, 0.0, 0.3, 1.0, 1.7])), [0, 0, 0.3, 1, 1])
    model = build(prior="vamp")
    train_a_step(model, keras.optimizers.Adam(5.0), images())
    u = np.asarray(model.top_prior.pseudo_inputs)
    assert u.min() == 0.0 and u.max() == 1.0


@pytest.mark.parametrize(("model", "prior"), ALL)
def test_every_trainable_weight_moves_and_no_pixel_is_dead(model, prior):
    """One step of plain gradient descent; pseudo-input pixels start at 0 and 1, where a clip would have no gradient."""
    built = build(model, prior, activation="elu")
    if prior in ("flow", "lars"):
        shaken(built.top_prior)  # at first the identity, or constant: its hidden layers have no gradient
    trained = prior in ("vamp", "weightedvamp", "vampmixture")
    if trained:
        built.top_prior.pseudo_inputs.assign(images(K))
        built.top_prior.pseudo_inputs.constraint = None
    before = [np.array(w) for w in built.trainable_variables]
    train_a_step(built, keras.optimizers.SGD(1.0), batch_of(prior, images()))
    moved = {w.path: np.abs(np.array(w) - b) for w, b in zip(built.trainable_variables, before, strict=True)}
    assert all(change.max() > 0 for change in moved.values()), [path for path, c in moved.items() if not c.max()]
    if trained:
        change = next(change for path, change in moved.items() if "pseudo_inputs" in path)
        assert np.mean(change > 0) == 1.0


LAST = {  # layers whose numbers are parameters of a law, and their inputs of any precision
    ("vae", "conv"): 2 + 1, ("vae", "mlp"): 2 + 1, ("hvae", "conv"): 3 * 2 + 1, ("hvae", "mlp"): 3 * 2 + 1,
    ("vae", "dense"): 2 + 1, ("markov", "dense"): 3 * 2 + 1, ("vae", "mcvae"): 2 + 1,
    ("hvae", "gatedconv"): 3 * 2 + 1, ("hvae", "pixel"): 3 * 2 + 1,
    ("ladder", None): 2 * 4 + 1, ("dvp", None): 2 * 4 + 1 + 1 + 1,  # those of p and q, decoder, noise, context
}  # fmt: skip


def tiny(model, network, **settings):
    """A model of that family, of two layers if it is deep."""
    if network:
        return build(model, **settings_of(network), **settings)
    deep = {"scales": "1x4,1x2", "channels": 4, "encoder_blocks": 1}
    score = {"context_size": 3, "score_channels": 8, "score_blocks": 1, "diffusion_steps": 2} if model == "dvp" else {}
    return models.build(Config(model=model, **deep, **score, **settings), SHAPE)


@slow_on_jax
@pytest.mark.parametrize("family", first_on_both(*LAST), ids=str)
def test_hidden_layers_alone_are_rounded(family):
    """Weights, last layers and all that is said of images and latents are float32, and nothing is left behind."""
    model, network = family
    built, x = tiny(model, network, precision="mixed_bfloat16"), images()
    leaves = [one for one in sublayers(built) if one.trainable_variables and len(sublayers(one)) == 1]
    assert sum(one.compute_dtype == "float32" for one in leaves) == LAST[family]
    assert sum(one.compute_dtype == "bfloat16" for one in leaves) >= 4
    assert {weight.dtype for weight in built.trainable_weights} == {"float32"}
    q = built.posterior(x)
    z, log_q = q.sample_and_log_prob(N, keras.random.SeedGenerator(0))
    outcome = built(x)
    said = [z, log_q, built.decode(z[0], 0), outcome.loss, outcome.bound, *outcome.terms[:3], built.embed(x)]
    assert {keras.backend.standardize_dtype(one.dtype) for one in said} == {"float32"}
    exact = tiny(model, network)
    exact.set_weights(built.get_weights())
    assert not np.array_equal(built.embed(x), exact.embed(x))
    np.testing.assert_allclose(built.embed(x), exact.embed(x), atol=0.1)
    assert keras.config.dtype_policy().name == "float32"
    with pytest.raises(ValueError, match="unknown activation"):
        build(activation="nothing", precision="mixed_bfloat16")
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("family", first_on_both(*LAST), ids=str)
def test_a_learned_sigma_is_a_weight_of_the_decoder_that_moves(family):
    built = tiny(*family, likelihood="gaussian", binarize="none", sigma="learned")
    name = next(name for name in named_weights(built) if name.endswith("decoder/observation/log_sigma"))
    log_sigma = named_weights(built)[name]
    assert any(weight is log_sigma for weight in built.trainable_variables)
    train_a_step(built, keras.optimizers.SGD(1e-3), images())
    moved = float(np.asarray(log_sigma))
    assert moved < -1e-3  # N(., 1) is far too wide for pixels in [0, 1]
    law = built.likelihood(np.zeros((2, sum(built.sizes)), "float32"))
    if family[1] != "pixel":  # whose pixels are conditional
        np.testing.assert_allclose(law.sigma, np.full((2, 1, 1, 1), np.exp(moved)), rtol=1e-5)


@slow_on_jax
def test_densities_with_weights_of_their_own_have_full_precision_in_a_model_of_half():
    prior = build(prior="lars", precision="mixed_bfloat16").top_prior
    prior.logit.kernel.assign(np.ones(prior.logit.kernel.shape, "float32"))
    assert len(np.unique(prior.log_accept(np.float32([[1.0, 1.0, 1.0], [1.003, 1.0, 1.0]])))) == 2
    built = build(likelihood="gaussian", binarize="none", sigma="learned", precision="mixed_bfloat16")
    for log_sigma in (0.5, 0.5005):
        built.decoder.observation.log_sigma.assign(log_sigma)
        found = built.likelihood(np.zeros((1, sum(built.sizes)), "float32")).sigma
        np.testing.assert_allclose(found, np.full((1, 1, 1, 1), np.exp(log_sigma)), rtol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
@slow_on_jax
def test_a_models_precision_is_its_own_whatever_the_process_has_set(policy):
    exact, x = build(**settings_of("mlp")), images()
    expected = [exact.embed(x), importance_sampling(exact, x, 10, proposal="posterior").log_px]
    keras.config.set_dtype_policy(policy)
    try:
        built = build(**settings_of("mlp"))
        assert keras.config.dtype_policy().name == policy
        built.set_weights(exact.get_weights())
        found = [built.embed(x), importance_sampling(built, x, 10, proposal="posterior").log_px]
    finally:
        keras.config.set_dtype_policy("float32")
    assert all(map(np.array_equal, found, expected))


@pytest.mark.parametrize("family", first_on_both(("vae", "mlp"), ("hvae", "mlp"), ("ladder", None), ("dvp", None)))
def test_what_is_no_batch_of_images_is_refused_in_one_sentence(family):
    built, x = tiny(*family), images()
    for wrong, found in (
        (255 * x, "float32 (6, 8, 8, 1) from 0 to 255"),
        ((255 * x).astype("uint8"), "uint8 (6, 8, 8, 1) from 0 to 255"),
        (x[0], "float32 (8, 8, 1) from 0 to 1"),
        (x[:0], "float32 (0, 8, 8, 1)"),
        (x[:, :4], "float32 (6, 4, 8, 1) from 0 to 1"),
        ([], "float64 (0,)"),
        (None, "object ()"),
    ):
        said = f"images must be floats (B, 8, 8, 1) from 0 to 1, not {found}; x[None] adds an axis, x / 255 scales"
        for method in (built.embed, built.posterior, built.reconstruct):
            with pytest.raises(ValueError, match=re.escape(said)):
                method(wrong)
    assert np.array_equal(built.embed(x.tolist()), built.embed(x))


@on_tensorflow
def test_a_flow_is_inverted_exactly_whatever_the_precision():
    q = build(posterior="realnvp", latent_dim=4, precision="mixed_bfloat16").posterior(images())
    z, log_q = q.sample_and_log_prob(N, keras.random.SeedGenerator(0))
    np.testing.assert_allclose(q.log_prob(z), log_q, atol=1e-3)


def gradient(precision, objective):
    """That of the loss of one training batch, as one vector, and the loss."""
    keras.utils.set_random_seed(1)
    built = build(prior="standard", objective=objective, precision=precision, **settings_of("mlp"))
    before = built.get_weights()
    sgd = keras.optimizers.SGD(1.0)  # whose first step is the gradient
    scales = models.PRECISIONS[precision].scales_loss
    built.compile(keras.optimizers.LossScaleOptimizer(sgd, initial_scale=256.0) if scales else sgd)
    x = (np.random.default_rng(1).random((B, *SHAPE)) < 0.4).astype("float32")
    loss = float(np.mean(built.train_on_batch(x, return_dict=True)["loss"]))
    moved = [(old - new).ravel() for old, new in zip(before, built.get_weights(), strict=True)]
    return np.concatenate(moved), loss


@pytest.mark.slow
@pytest.mark.parametrize("objective", first_on_both("lmcvae", "elbo", "dreg"))
def test_gradients_are_those_of_float32_but_for_rounding(objective):
    """Those of Langevin steps, too, where gradients of rounded layers are differentiated again."""
    exact, loss = gradient("float32", objective)
    for precision, error in (("mixed_bfloat16", 0.05), ("mixed_float16", 0.01)):
        found, rounded = gradient(precision, objective)
        assert 0 < np.linalg.norm(found - exact) < error * np.linalg.norm(exact)
        assert rounded == pytest.approx(loss, abs=0.2)


@pytest.mark.parametrize(("model", "prior"), ALL)
def test_saved_weights_give_the_same_numbers(model, prior, tmp_path):
    network = {} if prior == "vamp" else settings_of("mlp")  # convolutions have no part in a prior
    built, x = build(model, prior, **network), images()
    save_weights(built, tmp_path / "a.safetensors")
    again = build(model, prior, **network)
    z = rng.normal(size=(N, B, 3)).astype("float32")
    assert np.abs(np.asarray(log_joint(again, x, z)) - np.asarray(log_joint(built, x, z))).max() > 1e-3
    weights.assign(named_weights(again), weights.read(tmp_path / "a.safetensors", named_weights(again)))
    np.testing.assert_array_equal(log_joint(again, x, z), log_joint(built, x, z))
    np.testing.assert_array_equal(again.embed(x), built.embed(x))


VAMP = {"beta", "prior/pseudo_inputs"} | {
    f"{layer}/{weight}"
    for layer in (
        *("encoder/conv_1", "encoder/conv_2", "encoder/conv_3", "encoder/conv_4", "encoder/dense_1"),
        *("q_z/mean", "q_z/raw_logvar", "decoder/net/dense_1"),
        *(f"decoder/net/conv_transpose_{number}" for number in range(1, 6)),
    )
    for weight in ("kernel", "bias")
}
NAMED = [
    {"model": model, "prior": prior} | settings_of(network)
    for network, entry in models.NETWORKS.items()
    for model in entry.models
    for prior in (models.PRIORS if network == "mlp" else ["vamp"])
]
NAMED += [{"objective": "amcvae"}, {"objective": "lmcvae", "drift": "network"}]
NAMED += [{"model": "hvae", "posterior": "realnvp", "latent_dim": 4}]
NAMED += [{"model": model, "scales": "2x4,1x2"} for model, entry in models.MODELS.items() if entry.is_deep]


@slow_on_jax
@pytest.mark.parametrize("settings", NAMED, ids=lambda settings: "-".join(map(str, settings.values())))
def test_every_weight_has_a_name_of_its_own_whatever_was_built_before(settings):
    config = Config(**({} if "scales" in settings else {"latent_dim": 3}) | settings)
    built = models.unallocated(lambda: models.build(config, SHAPE))
    named = named_weights(built)
    assert sorted(map(id, named.values())) == sorted(map(id, built.weights))
    again = models.blank_weights(config, SHAPE)
    assert list(again) == list(named) and all(again[name].shape == named[name].shape for name in named)


def test_names_are_the_parts_of_the_paper():
    assert set(named_weights(build())) == VAMP
    two = named_weights(build("hvae", **settings_of("mlp"), posterior="realnvp", latent_dim=4))
    names = ("encoder_z2/gated_1/linear/kernel", "q_z1/head/mean/bias", "q_z2/flow/coupling_5/shift/kernel")
    assert {*names, "p_z1/stack/dense_2/gate/kernel", "decoder/stacks/stack_2/dense_1/linear/bias"} < set(two)


def test_two_weights_of_one_name_are_refused():
    layer = keras.layers.Layer()
    for _ in range(2):
        layer.add_weight(shape=(), name="twin")
    with pytest.raises(ValueError, match=r"two weights of .* have the same name"):
        named_weights(layer)


def test_keras_global_seed_decides_the_weights():
    def kernel(seed):
        keras.utils.set_random_seed(seed)
        return build().encoder.get_weights()[0]

    first, same, other = (kernel(seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 0


def test_loss_weighs_the_rate_by_beta_in_training_only():
    model, x = build(), images()
    model.beta.assign(0.25)
    for training, beta in ((True, 0.25), (False, 1.0)):
        outcome = model(x, training=training)
        distortion, rate = -np.mean(outcome.terms.log_px_z), np.mean(outcome.terms.log_qz_x - outcome.terms.log_pz)
        assert abs(rate) > 1e-3
        np.testing.assert_allclose(model.compute_loss(y_pred=outcome), distortion + beta * rate, rtol=1e-5)
        np.testing.assert_allclose(np.mean(outcome.bound), -distortion - rate, rtol=1e-5)


def test_metrics_weigh_a_short_last_batch_by_its_images():
    model, x = build("vae", "standard"), images(10)
    last = model.decoder.net.layers[-1]
    last.kernel.assign(np.zeros(last.kernel.shape))
    last.bias.assign([1.0])  # the distortion is now a function of x alone
    model.compile()
    found = model.evaluate(x, batch_size=8, verbose=0, return_dict=True)["distortion"]
    np.testing.assert_allclose(found, -np.mean(model.likelihood(np.zeros((10, 3), "float32")).log_prob(x)), rtol=1e-5)


def test_training_binarizes_grey_images_afresh_and_validation_never():
    model = build(dynamic=True)
    grey = np.full((B, 8, 8, 1), 0.5, "float32")
    first, second = (model(grey, training=True).terms.log_px_z for _ in range(2))
    assert np.abs(np.asarray(first) - np.asarray(second)).min() > 0
    probabilities = np.asarray(model(grey).terms.log_px_z)
    z_free = build(dynamic=False)
    z_free.set_weights(model.get_weights())
    np.testing.assert_allclose(probabilities, z_free(grey).terms.log_px_z, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "word"),
    [("nonsense", "unknown activation"), ("get", "unknown"), ("glu", "features"), ("threshold", "arguments")],
)
def test_unusable_activations_are_refused(name, word):
    with pytest.raises(ValueError, match=word):
        models.find_activation(name)


def test_an_activation_without_a_second_derivative_is_refused_where_it_is_needed():
    assert models._is_twice_differentiable(models.find_activation("gelu"))
    assert models._is_twice_differentiable(models.find_activation("relu"))
    if keras.backend.backend() == "tensorflow":
        with pytest.raises(ValueError, match="'softsign' has no second derivative here, which objective lmcvae needs"):
            build(activation="softsign", objective="lmcvae")
    along_networks = build(activation="softsign", objective="lmcvae", drift="network")
    assert np.isfinite(along_networks(images()).loss).all()
    assert models._is_twice_differentiable(models.find_activation("hard_tanh"))  # whose second derivative is zero
    assert build(activation="softsign", objective="iwae") and build(activation="softsign", objective="dreg")


@pytest.mark.parametrize("name", ["relu", "elu", "gelu", "silu", "tanh", "leaky_relu", "softplus"])
def test_activations_of_keras_work(name):
    assert np.isfinite(np.asarray(build(activation=name).reconstruct(images()))).all()


@pytest.mark.parametrize("network", first_on_both("mlp", "conv", "gatedconv"))
def test_networks_take_any_leading_axes(network):
    built, z = build("hvae", **settings_of(network)), rng.normal(size=(N, B, 3)).astype("float32")
    for of in (built.likelihood, lambda z: built.p_z1(z[..., :2])):
        together, one = (keras.tree.map_structure(np.asarray, of(part)) for part in (z, z[2, 1]))
        for many, alone in zip(together, one, strict=True):
            assert many.shape == (N, B, *alone.shape)
            np.testing.assert_allclose(many[2, 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX compiles it all as one")
def test_dense_layers_are_products_of_matrices_that_tensorflow_can_fuse():
    """Products of tensors, which more axes would give, are not fused with biases and gates."""
    import tensorflow as tf

    built = build("hvae", network="mlp", network_size=Config.network_size)
    function = tf.function(lambda z: (built.likelihood(z).logits, built.p_z1(z[..., :2])))
    names = [op.name for op in function.get_concrete_function(tf.zeros((N, B, 3))).graph.get_operations()]
    assert any("MatMul" in name for name in names) and not any("Tensordot" in name for name in names)
