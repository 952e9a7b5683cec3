"""Deep models: their layers and sizes, that their distributions fit together, and what each part may look at."""

import dataclasses
import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import scipy.fft
from conftest import compiled, first_on_both, on_tensorflow, save_weights, shapes_of, slow_on_jax, third_on_jax
from keras import ops
from test_diffusion import gaussian

import evaluate
import experiment
import models
import plot
from evaluation.estimators import Scoring
from evaluation.importance import importance_sampling
from experiment import Config, presets, weights
from models.distributions import Mixture, Normal, warmed
from models.dvp import context_scale, cosines, low_frequencies
from models.hierarchy import LOGVAR, Residual, Scale, resized, resizing, scales_of
from models.weight_names import named_weights, weights_by_part
from runtime.errors import UserError
from training import fit, optimizers

pytestmark = pytest.mark.keras
SHAPE, B, N = (8, 8, 1), 5, 3
SETTINGS = {
    "ladder": {"scales": "1x4,1x2", "channels": 4, "encoder_blocks": 1},
    "dvp": {"scales": "1x4,1x2", "channels": 4, "encoder_blocks": 1, "context_size": 3, "score_channels": 8,
            "score_blocks": 1, "diffusion_steps": 4},
}  # fmt: skip
rng = np.random.default_rng(0)


def seed(number=0):
    return keras.random.SeedGenerator(number)


def shaken(model):
    """The model, its weights that begin as zero a little off that."""
    noise = np.random.default_rng(2)
    for weight in model.trainable_weights:
        if not np.any(weight):
            weight.assign(noise.normal(0, 0.05, weight.shape))
    return model


@pytest.fixture(scope="module", params=first_on_both("dvp", "ladder"))  # the former has all that the latter has
def model(request):
    """An untrained model whose heads say something."""
    keras.utils.set_random_seed(1)
    return shaken(models.build(Config(model=request.param, **SETTINGS[request.param]), SHAPE))


@pytest.fixture(scope="module")
def x():
    return (np.random.default_rng(3).random((B, *SHAPE)) < 0.4).astype("float32")


def array(value):
    return ops.convert_to_numpy(value).astype("float64")


def is_dvp(model):
    return hasattr(model, "context")


# ---------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("mnist_ladder", 600_673),
        ("mnist_dvp", 648_579),
        ("omniglot_ladder", 1_058_425),
        ("omniglot_dvp", 1_298_563),
        ("cifar10_dvp", 19_478_162),
        ("mnist_dvp_small", 102_427),
    ],
)
def test_presets_have_as_many_weights_as_published(preset, count):
    config = Config(**presets.preset(preset).settings)
    built = models.unallocated(lambda: models.build(config, config.source.image_shape))
    assert sum(int(np.prod(weight.shape)) for weight in built.trainable_weights) == count
    parts = weights_by_part(built)
    assert sum(parts.values()) == count
    if preset == "mnist_dvp":  # as published, where the decoder has the 49 variances of r(u|x)
        assert parts == {"encoder": 123_712, "decoder": 477_538 - 49, "context": 49, "prior": 47_329}
    assert sum(built.sizes) == models.latent_dim(config, config.source.image_shape)
    assert len(built.sizes) == len(config.layers)


def test_scales_fit_the_image():
    assert scales_of("4x14,3x7", (28, 20, 1)) == (Scale(4, 14, 10), Scale(3, 7, 5))
    assert scales_of("1x32,2x4", (32, 32, 3)) == (Scale(1, 32, 32), Scale(2, 4, 4))
    with pytest.raises(ValueError, match="scale 1x16 is finer than the images of 8x8 pixels"):
        scales_of("1x16", SHAPE)
    with pytest.raises(ValueError, match="scale 1x3 does not fit the images of 8x8 pixels"):
        scales_of("1x3", SHAPE)
    with pytest.raises(ValueError, match="scale 2x3 does not fit the 4 rows above it"):
        scales_of("1x4,2x3", SHAPE)
    with pytest.raises(ValueError, match="scale 1x14 does not fit"):  # 14 x 5 / 28 columns are no number
        scales_of("1x14", (28, 5, 1))


def test_a_context_is_no_larger_than_the_image():
    with pytest.raises(ValueError, match="9 frequencies is more than images of 8x8 pixels have"):
        models.build(Config(model="dvp", **SETTINGS["dvp"] | {"context_size": 9}), SHAPE)


# ---------------------------------------------------------------------------------------------- layers


def test_resizing_is_bilinear_interpolation():
    maps = rng.normal(size=(2, 3, 5, 4)).astype("float32")
    expected = keras.ops.image.resize(
        maps, (12, 15), interpolation="bilinear", antialias=False, data_format="channels_last"
    )
    np.testing.assert_allclose(resized(ops.convert_to_tensor(maps), 12, 15), expected, atol=1e-5)
    np.testing.assert_allclose(resizing(1, 4), np.ones((4, 1)))
    np.testing.assert_allclose(resizing(7, 14).sum(axis=1), 1, atol=1e-6)


def test_a_head_begins_as_its_skip_and_scaled_convolutions_as_narrower_ones():
    h = rng.normal(size=(2, 3, 3, 4)).astype("float32")
    head = Residual(4, 8, 6, is_head=True)
    np.testing.assert_array_equal(head(h), head.skip(h))
    wide, narrow = (np.abs(Residual(64, 64, 64, gain=gain).convs[-1].kernel).max() for gain in (1.0, 0.25))
    assert wide == pytest.approx(1 / 8, rel=0.05) and narrow == pytest.approx(1 / 32, rel=0.05)
    assert Residual(4, 8, 4).skip is None


def test_convolutions_that_feed_the_state_begin_by_the_root_of_the_depth():
    deep = models.build(Config(model="ladder", scales="4x4,5x2", channels=64, encoder_blocks=1), SHAPE)
    assert len(deep.decoder.blocks) == 9
    for block in deep.decoder.blocks[:-1]:
        assert np.abs(block.after.convs[-1].kernel).max() == pytest.approx(1 / 8 / 3, rel=0.05)
        assert np.abs(block.from_z.kernel).max() == pytest.approx(1 / 3, rel=0.2)
    assert deep.decoder.blocks[-1].after is None


def test_the_maps_of_the_image_are_affine_in_the_latents(model):
    u = np.zeros((1, sum(model.sizes)), "float32")
    a, b = (rng.normal(size=u.shape).astype("float32") for _ in range(2))

    def logits(z):
        return array(model.likelihood(z).logits)

    np.testing.assert_allclose(logits(a + b) - logits(a) - logits(b) + logits(u), 0, atol=1e-5)


# ---------------------------------------------------------------------------------------------- distributions


def test_expected_log_probabilities_are_those_of_many_draws():
    p, q = (Normal(*rng.normal(size=(2, 4)).astype("float32")) for _ in range(2))
    values = array(p.log_prob(q.sample(20_000, seed())))
    assert float(p.expected_log_prob(q)) == pytest.approx(values.mean(), abs=4 * values.std() / np.sqrt(20_000))
    unit, off = (
        Normal(np.zeros(1, "float32"), np.zeros(1, "float32")),
        Normal(np.ones(1, "float32"), np.zeros(1, "float32")),
    )
    assert float(off.expected_log_prob(off) - unit.expected_log_prob(off)) == pytest.approx(0.5)  # KL(N(1,1) || N(0,1))


def test_shapes(model, x):
    terms, dim = shapes_of(lambda: model.terms(x, N, seed())), sum(model.sizes)
    assert all(term.shape == (N, B) for term in (*terms[:3], *terms.rates)) and len(terms.rates) == len(model.sizes)
    assert shapes_of(lambda: model.sample(N, 0)).shape == (N, *SHAPE)
    assert shapes_of(lambda: model.embed(x)).shape == (B, dim)
    assert shapes_of(lambda: model.reconstruct(x)).shape == x.shape
    assert shapes_of(lambda: model.rates(x, 2, seed())).shape == (2, B, len(model.sizes))
    assert shapes_of(lambda: model.warmer(N, 0.5, seed())).shape == (N, dim)
    for kept in range(len(model.sizes) + 1):
        assert shapes_of(lambda kept=kept: model.mixed(x, kept, seed())).shape == (B, dim)


@slow_on_jax
def test_a_density_is_that_of_its_draws(model, x):
    """Layer by layer and in one pass; and the mean of exp(log q - log p) over draws of p is 1."""
    u = model.posterior(x).top.sample(N, seed()) if is_dvp(model) else None
    given, wide = (model._given(u), (N, B)) if is_dvp(model) else ((), (B,))
    laws = model.decoder.prior(*given), model.decoder.posterior(model.encoder(x), *given)
    for law, batch in zip(laws, (wide if is_dvp(model) else (), wide), strict=True):
        z, log_p = law.sample_and_log_prob(2, seed(1))
        assert z.shape == (2, *batch, sum(model.decoder.sizes))
        np.testing.assert_allclose(law.log_prob(z), log_p, rtol=1e-4, atol=1e-3)
        assert len(law.log_prob_of_layers(z)) == len(model.decoder.sizes)
    if not is_dvp(model):
        nearer = laws[0]._replace(descend=lambda pick: model.decoder.descend(
            lambda index, p, q: pick(index, Normal(p.mean + 0.05, p.logvar - 0.02))))  # fmt: skip
        z, log_p = laws[0].sample_and_log_prob(4000, seed(2))
        ratio = np.exp(array(nearer.log_prob(z)) - array(log_p))
        assert ratio.mean() == pytest.approx(1, abs=4 * ratio.std() / np.sqrt(4000))


@slow_on_jax
def test_one_pass_gives_what_both_distributions_give(model, x):
    """log p(z_l | z_>l) and log q(z_l | z_>l, x) of `drawn` are those of prior() and posterior(x) at its z."""
    features = model.encoder(x)
    u = model.context(x).sample(N, seed()) if is_dvp(model) else None
    given = model._given(u) if is_dvp(model) else ()
    descent = model.decoder.drawn(features, None if is_dvp(model) else N, seed(1), *given)
    z = ops.concatenate(descent.z, axis=-1)
    assert z.shape == (N, B, sum(model.decoder.sizes))
    for own, law in zip(
        descent.log_probs(), (model.decoder.prior(*given), model.decoder.posterior(features, *given)), strict=True
    ):
        for one, other in zip(own, law.log_prob_of_layers(z), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)


def test_expected_terms_have_the_mean_of_terms_and_vary_less(model, x):
    """But for u, of which they bound infinitely many steps, not the few that weights are of."""
    count = 3000
    sampled = compiled(lambda: model.terms(x[:1], count, seed()))
    expected = compiled(lambda: model.expected_terms(x[:1], count, seed(1)))
    pairs = list(zip(sampled.rates, expected.rates, strict=True))[is_dvp(model) :]
    for one, other in [map(array, pair) for pair in pairs]:
        assert one.mean() == pytest.approx(other.mean(), abs=4 * np.hypot(one.std(), other.std()) / np.sqrt(count))
        assert other.var() < one.var()
        assert np.all(other > -1e-3)  # a KL divergence
    np.testing.assert_allclose(sum(expected.rates), expected.log_qz_x - expected.log_pz, rtol=1e-3, atol=1e-3)


@on_tensorflow
def test_the_rate_of_u_is_its_kl_divergence_and_what_diffusion_loses():
    """Under a prior whose denoiser is exact, which loses little: the bound on log p(u) is short of it by its noise."""
    keras.utils.set_random_seed(1)
    model = models.build(Config(model="dvp", **SETTINGS["dvp"]), (8, 8, 1))
    model.context.logvar.assign(np.full((3, 3, 1), -5.0))
    model.top_prior = SimpleNamespace(distribution=lambda _=None: gaussian(1.0, 4, 9))
    image = (np.random.default_rng(3).random((1, 8, 8, 1)) < 0.4).astype("float32")
    rate = array(model.expected_terms(image, 4000, seed()).rates[0])
    mean, logvar = (array(part) for part in (model.context(image).mean, model.context(image).logvar))
    assert 0 < rate.mean() - 0.5 * (np.exp(logvar) + mean**2 - 1 - logvar).sum() < 2


@slow_on_jax
@pytest.mark.parametrize("name", first_on_both("dvp", "ladder"))
def test_weights_have_the_mean_that_draws_of_the_prior_have(name):
    """p(x) of all 16 images of 2x2 pixels, from both sides of the model: by what it draws, and by its weights."""
    settings = {"scales": "1x2,1x1"} | ({"context_size": 2} if name == "dvp" else {})
    keras.utils.set_random_seed(1)
    model = shaken(models.build(Config(model=name, **SETTINGS[name] | settings), (2, 2, 1)))
    for head in (one for block in model.decoder.blocks for one in (block.p, block.q)):
        for weight in head.skip.weights:  # so that p and q are near enough for weights of finite variance
            weight.assign(0.3 * weight)
    if name == "dvp":  # likewise: a wide r(u|x), and the best network for u ~ N(0, I) in many steps
        model.context.logvar.assign(np.zeros((2, 2, 1)))
        model.top_prior = SimpleNamespace(distribution=lambda _=None: gaussian(1.0, 100, 4))
    images = np.float32([[int(bit) for bit in f"{k:04b}"] for k in range(16)]).reshape(16, 2, 2, 1)
    z = model.prior().sample(20_000, seed())
    p_x = np.exp(array(model.likelihood(ops.expand_dims(z, 1)).log_prob(images)))  # (20000, 16)
    w = np.exp(array(model.terms(images, 5000, seed(1)).log_w()))
    errors = np.hypot(p_x.std(axis=0) / np.sqrt(20_000), w.std(axis=0) / np.sqrt(5000))
    assert np.all(np.abs(w.mean(axis=0) - p_x.mean(axis=0)) < 5 * errors) and np.all(errors < 0.02)
    assert w.mean(axis=0).sum() == pytest.approx(1, abs=5 * np.sqrt(np.sum(errors**2)))


@pytest.mark.slow
@on_tensorflow
def test_importance_sampling_of_more_samples_gives_more(model, x):
    few, many = (importance_sampling(model, x, s, proposal="posterior") for s in (2, 400))
    assert many.log_px.mean() > few.log_px.mean()
    np.testing.assert_allclose(many.elbo, -many.rate - many.distortion)
    terms = model.expected_terms(x, 200, seed(5))
    values = array(terms.log_w())
    error = values.std(axis=0) * np.sqrt(1 / 200 + 1 / 20)
    assert np.all(np.abs(many.elbo - values.mean(axis=0)) < 5 * error)


@pytest.mark.parametrize("prior", third_on_jax("vamp", "mog", "flow"))
def test_a_prior_takes_the_place_of_the_top_layer_s(prior, x):
    keras.utils.set_random_seed(1)
    config = Config(model="ladder", prior=prior, num_pseudo_inputs=3, **SETTINGS["ladder"])
    inputs = rng.random((3, *SHAPE)).astype("float32")
    model = shaken(models.build(config, SHAPE, from_data=inputs if config.has_pseudo_inputs else None))
    law = model.prior()
    z, log_p = law.sample_and_log_prob(7, seed())
    np.testing.assert_allclose(law.log_prob(z), log_p, rtol=1e-4, atol=1e-3)
    top = model.top_prior.distribution()
    np.testing.assert_allclose(law.log_prob_of_layers(z)[0], top.log_prob(z[..., :4]), rtol=1e-4, atol=1e-3)
    if prior == "vamp":  # its components are q(z_L|u_k)
        np.testing.assert_allclose(top.mean, model.posterior(inputs).top.mean, atol=1e-5)
    sampled, expected = model.terms(x, 400, seed(1)), model.expected_terms(x, 400, seed(2))
    one, other = (array(terms.log_w()) for terms in (sampled, expected))
    error = np.sqrt((one.var(axis=0) + other.var(axis=0)) / 400)
    assert np.all(np.abs(one.mean(axis=0) - other.mean(axis=0)) < 5 * error)
    assert shapes_of(lambda: model.warmer(N, 0.5, seed())).shape == (N, 20)
    np.testing.assert_array_equal(model.mixed(x, 0, seed()), model.mixed(1 - x, 0, seed()))
    assert config.training_id.startswith(f"mnist_ladder_{prior}_L2_")


def test_a_temperature_multiplies_variances():
    mixture = Mixture(np.log(np.float32([0.5, 0.5])), np.zeros((2, 3), "float32"), np.zeros((2, 3), "float32"))
    for law in (mixture, Normal(np.zeros(3, "float32"), np.zeros(3, "float32"))):
        assert array(warmed(law, 0.25).sample(4000, seed())).std() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("name", SETTINGS)
def test_blocks_have_the_activation_that_is_asked_for(name, x):
    built = models.build(Config(model=name, block_activation="tanh", **SETTINGS[name]), SHAPE)
    for block in (built.encoder.stacks[0].layers[0], built.decoder.blocks[0].p, built.decoder.blocks[0].q):
        assert block.activation is keras.activations.tanh
    assert built.decoder.blocks[0].after.activation is keras.activations.tanh


# ---------------------------------------------------------------------------------------------- who sees what


def laws_of(model, x, u, z):
    """p and q of each layer with the given u (B, D) and z (B, D)."""
    found = []

    def pick(index, p, q):
        found.append((p, q))
        return z[..., ([0, *model.decoder.ends])[index] : model.decoder.ends[index]]

    given = model._given(ops.convert_to_tensor(u)) if is_dvp(model) else ()
    model.decoder.descend(pick, model.encoder(x), *given)
    return found


def differ(one, other):
    return any(np.abs(array(a) - array(b)).max() > 1e-5 for a, b in zip(one, other, strict=True))


def test_no_layer_sees_what_it_must_not(model, x):
    """p no image, q of the top layer no u, and p(x|z) none either; but p sees u, and q the image."""
    z = rng.normal(size=(B, sum(model.decoder.sizes))).astype("float32")
    u, other_u = (0.3 * rng.normal(size=(2, B, 9))).astype("float32")
    laws, of_others = laws_of(model, x, u, z), laws_of(model, 1 - x, u, z)
    assert not any(differ(p, other) for (p, _), (other, _) in zip(laws, of_others, strict=True))
    assert all(differ(q, other) for (_, q), (_, other) in zip(laws, of_others, strict=True))
    if is_dvp(model):
        of_u = laws_of(model, x, other_u, z)
        assert not differ(laws[0][1], of_u[0][1]) and differ(laws[1][1], of_u[1][1])
        assert all(differ(p, other) for (p, _), (other, _) in zip(laws, of_u, strict=True))
        images = [model.likelihood(ops.concatenate([one, z], axis=-1)).logits for one in (u, other_u)]
        np.testing.assert_array_equal(*images)


def test_layers_that_are_not_kept_are_the_prior_s(model, x):
    every = len(model.sizes)
    np.testing.assert_allclose(model.mixed(x, every, seed()), model.embed(x), atol=1e-4)
    np.testing.assert_array_equal(model.mixed(x, 0, seed()), model.mixed(1 - x, 0, seed()))
    top = model.sizes[0]
    one, other = (array(model.mixed(x, 1, seed(k))) for k in (1, 2))
    np.testing.assert_array_equal(one[:, :top], other[:, :top])
    assert np.abs(one[:, top:] - other[:, top:]).max() > 0.1


@slow_on_jax
def test_a_lower_temperature_varies_less(model):
    spread = [array(model.warmer(400, one, seed())).std(axis=0).mean() for one in (1.0, 0.25, 0.01)]
    assert spread[0] > 1.3 * spread[1] > 1.3 * spread[2]


# ---------------------------------------------------------------------------------------------- the context


def test_low_frequencies_are_those_of_the_cosine_transform():
    images = rng.random((4, 8, 6, 2)).astype("float32")
    np.testing.assert_allclose(cosines(8, 8) @ cosines(8, 8).T, np.eye(8), atol=1e-6)
    whole = scipy.fft.dctn(images, axes=(1, 2), norm="ortho")
    np.testing.assert_allclose(low_frequencies(images, 5), whole[:, :5, :5], atol=1e-5)
    np.testing.assert_allclose(np.square(whole).sum(), np.square(images).sum(), rtol=1e-5)


def test_what_divides_frequencies_is_whole_and_never_zero():
    images = np.zeros((3, 8, 8, 1), "float32")
    np.testing.assert_array_equal(context_scale(images, 3), np.ones((3, 3, 1)))  # a range of zero
    images[1] = 0.5
    scale = context_scale(images, 3)
    assert scale[0, 0, 0] == 4 and np.all(scale.ravel()[1:] == 1)
    scale = context_scale(rng.random((50, 8, 8, 1)).astype("float32"), 3)
    assert np.all(scale == np.round(scale)) and np.all(scale >= 1)


def dvp(scale=None, **settings):
    return models.build(Config(model="dvp", **SETTINGS["dvp"] | settings), SHAPE, from_data=scale)


def test_a_context_is_the_picture_of_the_low_frequencies():
    """The inverse of the cut transform is an orthogonal projection, and the transform of that picture is u again."""
    images = (0.3 + 0.4 * rng.random((6, *SHAPE))).astype("float32")
    context = dvp(context_scale(images, 3)).context
    u = array(context(images).mean)
    assert np.abs(u).max() <= 1
    picture = array(context.picture(context(images).mean))
    assert picture.min() > 0 and picture.max() < 1  # else what follows does not hold
    np.testing.assert_allclose(context(picture.astype("float32")).mean, u, atol=1e-5)
    kept = np.square(array(low_frequencies(images, 3))).sum()
    assert np.square(images - picture).sum() == pytest.approx(np.square(images).sum() - kept, rel=1e-3)
    whole = dvp(context_scale(images, 8), context_size=8).context
    np.testing.assert_allclose(whole.picture(whole(images).mean), images, atol=1e-5)


def test_a_pooled_context_is_the_means_of_blocks_and_its_picture_lies_between_them():
    images = rng.random((6, *SHAPE)).astype("float32")
    context = dvp(context="pool", context_size=4).context
    mean = context(images).mean
    np.testing.assert_allclose(array(mean)[:, 5], 2 * images[:, 2:4, 2:4].mean(axis=(1, 2, 3)) - 1, atol=1e-5)
    assert list(named_weights(context)) == ["logvar"]
    for ramp in (np.full(SHAPE, 0.3), np.arange(8)[:, None, None] / 10 + np.zeros(SHAPE)):  # linear: no mean is lost
        picture = array(context.picture(context(ramp[None].astype("float32")).mean))
        np.testing.assert_allclose(picture[0, 1:-1], ramp[1:-1], atol=1e-5)
    with pytest.raises(ValueError, match="a context of 3x3 means does not fit images of 8x8 pixels: it must divide"):
        dvp(context="pool")


@pytest.mark.parametrize("settings", [{}, {"context": "pool", "context_size": 2}])
def test_layers_are_given_means_of_blocks_of_that_picture(settings):
    model = dvp(**settings)
    u = (0.5 * rng.normal(size=(2, B, model.dim_u))).astype("float32")
    maps = model.context.maps(ops.convert_to_tensor(u), model.scales)
    picture = 2 * array(model.context.picture(ops.convert_to_tensor(u))) - 1
    assert [one.shape for one in maps] == [(2, B, 4, 4, 1), (2, B, 2, 2, 1)]
    np.testing.assert_allclose(maps[1][..., 0, 1, :], picture[..., :4, 4:, :].mean(axis=(2, 3)), atol=1e-5)


@on_tensorflow
def test_the_scale_is_that_of_the_training_images_and_is_kept(tmp_path):
    settings = SETTINGS["dvp"] | {
        "data_set": "digits",
        "batch_size": 64,
        "max_train_images": 100,
        "binarize": "threshold",
    }
    config = Config(model="dvp", epochs=1, runs_dir=str(tmp_path), **settings)
    prepared = fit.prepare(config)
    binary = (prepared.dataset.split("train").grey()[:100] >= 0.5).astype("float32")
    np.testing.assert_array_equal(prepared.model.context.scale, context_scale(binary, 3))
    save_weights(prepared.model, path := tmp_path / "w.safetensors")
    again = models.build(config, SHAPE)
    weights.assign(named_weights(again), weights.read(path, named_weights(again)))
    np.testing.assert_array_equal(again.context.scale, prepared.model.context.scale)
    x = binary[:4]
    one, other = (model.expected_terms(x, 2, seed()).log_w() for model in (prepared.model, again))
    np.testing.assert_array_equal(one, other)


# ---------------------------------------------------------------------------------------------- training


def steps(config, count, lr=0.01, jit=False):
    """The history of so many steps on 64 images, and which weights did not move."""
    keras.utils.set_random_seed(0)
    images = (np.random.default_rng(1).random((64, *SHAPE)) < np.linspace(0.1, 0.9, 8)[:, None]).astype("float32")
    model = models.build(config, SHAPE)
    config = dataclasses.replace(config, optimizer="adamax", lr=lr)
    jit = jit or keras.backend.backend() == "jax"  # which would compile each operation else
    model.compile(optimizers.optimizer(config, 1, model), jit_compile=jit)
    before = [np.array(weight) for weight in model.trainable_variables]
    logs = [model.train_on_batch(images, return_dict=True) for _ in range(count)]
    pairs = zip(model.trainable_variables, before, strict=True)
    still = [weight.path for weight, old in pairs if not np.any(np.array(weight) != old)]
    return {name: np.array([float(log[name]) for log in logs]) for name in logs[0]}, still, model


@pytest.mark.slow
@slow_on_jax
@pytest.mark.parametrize("name", first_on_both("dvp", "ladder"))
def test_it_learns_with_every_weight_but_the_unused_one(name):
    history, still, model = steps(Config(model=name, **SETTINGS[name]), 60)
    assert all("unused_from_z" in path for path in still) and len(still) == 2
    assert history["elbo"][-10:].mean() > history["elbo"][:10].mean() + 5
    assert history["rate"] == pytest.approx(sum(history[rate] for rate in model.layer_rates), rel=1e-4)
    np.testing.assert_allclose(history["elbo"], -history["rate"] - history["distortion"], rtol=1e-4)
    assert np.all(np.array([float(np.min(w)) for w in model.weights if "logvar" in w.path]) >= -12)


@pytest.mark.slow
@on_tensorflow
def test_it_learns_with_xla_in_mixed_precision():
    history, _, model = steps(Config(model="dvp", precision="mixed_float16", **SETTINGS["dvp"]), 40, jit=True)
    assert 1 < float(model.optimizer.dynamic_scale) < model.optimizer.initial_scale
    assert all(np.isfinite(values).all() for values in history.values())
    assert history["elbo"][-5:].mean() > history["elbo"][:5].mean()


@pytest.mark.slow
@on_tensorflow
def test_the_importance_weighted_bound_trains_it_too():
    history, _, _ = steps(Config(model="dvp", objective="iwae", num_samples=3, **SETTINGS["dvp"]), 30)
    assert history["bound"][-5:].mean() > history["bound"][:5].mean()
    assert np.all(history["bound"] > history["elbo"])


def test_features_and_state_are_added_by_the_root_of_two_and_maps_by_that_of_their_number(model):
    """So that sums of independent maps of variance 1 have it too; log-variances are clipped."""
    block, (height, width) = model.decoder.blocks[0], model.decoder.blocks[0].scale[1:]
    draw = np.random.default_rng(5)
    s, features = draw.normal(size=(2, B, height, width, 4)).astype("float32")
    q, heads = block.posterior(s, features), array(block.q(((features + s) / 2**0.5).astype("float32")))
    np.testing.assert_allclose(array(q.mean), heads[..., : block.width].reshape(B, -1), atol=1e-5)
    logvar = heads[..., block.width :].reshape(B, -1)
    np.testing.assert_allclose(array(q.logvar), np.clip(logvar, *LOGVAR), atol=1e-5)
    wild = array(block.posterior(1e4 * s, 1e4 * features).logvar)
    assert (wild.min(), wild.max()) == LOGVAR
    given, z = [], draw.normal(size=(B, sum(model.sizes[-2:]))).astype("float32")
    usual, model.decoder.out = model.decoder.out, lambda maps: given.append(maps) or usual(maps)
    try:
        model.likelihood(z if not is_dvp(model) else np.concatenate([np.zeros((B, model.sizes[0]), "float32"), z], 1))
    finally:
        model.decoder.out = usual
    parts = np.split(z, np.cumsum(model.sizes[-2:])[:-1], axis=1)
    maps = [array(resized(one.maps(part), 8, 8)) for one, part in zip(model.decoder.blocks, parts, strict=True)]
    np.testing.assert_allclose(array(given[0]), sum(maps) / 2**0.5, atol=1e-5)


# ---------------------------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of both models on 200 of the digits, two epochs each, one of them gone on with."""
    folder, made = tmp_path_factory.mktemp("deep"), {}
    for name, settings in SETTINGS.items():
        more = {"data_set": "digits", "batch_size": 50, "max_train_images": 200, "lr": 1e-2, "optimizer": "adamax"}
        config = Config(model=name, epochs=1 + (name == "dvp"), runs_dir=str(folder), ema=0.9, **settings, **more)
        made[name] = fit.train(config)
    longer = dataclasses.replace(experiment.load(made["ladder"]).config, epochs=2, runs_dir=str(folder))
    made["ladder"] = fit.train(longer, source=experiment.load(made["ladder"]))
    return made


@pytest.mark.slow
@on_tensorflow
@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_run_is_scored_and_drawn(runs, name, capsys):
    path, layers = runs[name], ["u", "2", "1"][name == "ladder" :]
    assert path.name.startswith(f"digits_{name}_L2_c4_bs50_epochs2_")
    history = experiment.load(path).history
    rates = [history[f"val_rate_{layer}"] for layer in layers]
    np.testing.assert_allclose(sum(rates), history["val_rate"], rtol=1e-3)
    assert evaluate.main([str(path), "--num_samples", "40", "--max_images", "30"]) == 0
    printed = capsys.readouterr()
    assert ("log p(x) is that of 4 diffusion steps" in printed.out) == (name == "dvp")
    assert "--proposal fitted" not in printed.err  # which is no remedy here
    metrics = json.loads((path / "metrics.json").read_text())
    assert metrics["proposal"] == "posterior" and len(metrics["rates"]) == len(layers)
    assert metrics["units"] == [9, 4, 16][name == "ladder" :]
    assert metrics["diffusion_steps"] == (4 if name == "dvp" else None)
    assert metrics["elbo"] == pytest.approx(-metrics["rate"] - metrics["distortion"])
    assert plot.main([str(path)]) == 0
    drawn = {file.stem.removeprefix(f"{path.name}_") for file in (path / "figures").iterdir()}
    assert {"samples", "reconmanifold", "manifold", "temperatures", "layers", "layerrates", "likelihood"} <= drawn
    assert ({"contexts", "denoising"} <= drawn) == (name == "dvp") and not {"posterior", "pseudoinputs"} & drawn


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("dvp", {"estimator": "ais"}, "--estimator ais needs the density of the prior"),
        (
            "dvp",
            {"proposal": "fitted"},
            "--proposal fitted is for vae, hvae, markov with 256 latent dim",
        ),
        ("ladder", {"estimator": "quadrature"}, "needs two latent dimensions at most, and .* has 20"),
    ],
)
def test_what_cannot_score_a_deep_run_says_so(name, given, message):
    run = SimpleNamespace(path="a run", config=Config(model=name, **SETTINGS[name]), latent_dim=20)
    with pytest.raises(UserError, match=message):
        Scoring.of(run, **given)
