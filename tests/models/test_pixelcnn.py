"""The autoregressive decoder: causal, normalised, and drawn from its own density."""

import itertools

import keras
import numpy as np
import pytest
import scipy.stats
from conftest import log_joint, slow_on_jax, train_a_step
from keras import ops
from keras.random import SeedGenerator

import models
from experiment import Config
from models.pixelcnn import MaskedConv2D, PixelDecoder
from models.pixels import BINS, bernoulli, discretized_logistic, mixture_of_logistics

pytestmark = pytest.mark.keras
rng = np.random.default_rng(0)


def decoder(shape, observation, parts=(2, 1), weight=0.3):
    """One whose weights are large enough for pixels to matter to one another."""
    made = PixelDecoder(parts, shape, observation, None)
    draw = np.random.default_rng(1)
    for variable in made.net.trainable_variables:
        variable.assign(draw.normal(size=variable.shape) * weight)
    return made


def latents(*shape):
    return rng.normal(size=shape).astype("float32")


OBSERVATIONS = [bernoulli(1.0), discretized_logistic(1.0), mixture_of_logistics(1.0)]


@pytest.mark.parametrize("observation", OBSERVATIONS, ids=["bernoulli", "logistic", "mixlogistic"])
def test_a_pixel_changes_nothing_at_or_before_itself_and_something_after(observation):
    made, x = decoder((5, 4, 2), observation), rng.random((1, 5, 4, 2)).astype("float32")
    planes = made(latents(1, 3)).planes
    before = [np.asarray(part) for part in made.pixels(x, planes) if ops.is_tensor(part)]
    for pixel, (row, column) in enumerate(np.ndindex(5, 4)):
        changed = x.copy()
        changed[:, row, column] = 1 - changed[:, row, column]
        after = [np.asarray(part) for part in made.pixels(changed, planes) if ops.is_tensor(part)]
        for old, new in zip(before, after, strict=True):
            differs = np.any(old != new, axis=(0, *range(3, old.ndim))).ravel()
            assert not differs[: pixel + 1].any() and (pixel == 19 or differs[pixel + 1 :].any())


def test_the_masks_are_those_of_the_paper():
    for sees_itself in (False, True):
        mask = MaskedConv2D(1, 3, sees_itself).mask[..., 0, 0]
        np.testing.assert_array_equal(mask, [[1, 1, 1], [1, sees_itself, 0], [0, 0, 0]])


def test_the_probabilities_of_all_images_sum_to_one():
    images = np.array(list(itertools.product([0, 1], repeat=6)), "float32").reshape(64, 1, 2, 3, 1)
    law = decoder((2, 3, 1), bernoulli(1.0))(np.repeat(latents(1, 4, 3), 64, axis=0))  # (64, 4)
    log_p = np.asarray(law.log_prob(images), "float64")
    assert log_p.shape == (64, 4)
    np.testing.assert_allclose(np.exp(log_p).sum(axis=0), 1, rtol=1e-4)


@pytest.mark.slow
@slow_on_jax
def test_images_are_drawn_from_the_density():
    """Of nine pixels: XLA, as the tests have it, takes a hundred times as long for convolutions of fewer."""
    images = np.array(list(itertools.product([0, 1], repeat=9)), "float32").reshape(512, 1, 3, 3, 1)
    law, z, n = decoder((3, 3, 1), bernoulli(1.0)), latents(1, 3), 10_000
    p = np.exp(np.asarray(law(np.repeat(z[None], 512, axis=0)).log_prob(images), "float64"))[:, 0]
    drawn = np.asarray(law(z).sample(n, SeedGenerator(0))).reshape(n, 9)
    counts = np.bincount((drawn @ 2 ** np.arange(8, -1, -1)).astype(int), minlength=512)
    kept = p * n > 5
    observed, expected = np.append(counts[kept], counts[~kept].sum()), np.append(p[kept], p[~kept].sum()) * n
    assert scipy.stats.chisquare(observed[expected > 0], expected[expected > 0] / expected.sum() * n).pvalue > 1e-4


def test_drawing_looks_at_the_rows_that_matter_only():
    """Higher than the reach of the convolutions: what is drawn from near rows is what all rows would say."""
    made, passes = decoder((12, 3, 1), bernoulli(1e-3), weight=0.2), []
    law = made(latents(2, 3))
    x = np.asarray(law.sample(1, SeedGenerator(3), passes.append))[0]
    assert sum(passes) == 36 and set(np.unique(x)) <= {0.0, 1.0} and law.reach == 8
    whole = np.asarray(made.pixels(x, law.planes).logits)
    near = np.asarray(made.pixels(x[:, 3:12], law.planes[:, 3:12]).logits)
    np.testing.assert_allclose(near[:, -1], whole[:, -1], rtol=1e-4, atol=1e-5)


@slow_on_jax
@pytest.mark.parametrize("observation", OBSERVATIONS[1:], ids=["logistic", "mixlogistic"])
def test_grey_images_have_values_of_the_bins(observation):
    drawn = np.asarray(decoder((5, 2, 3), observation)(latents(4, 3)).sample(1, SeedGenerator(0))[0])
    assert drawn.shape == (4, 5, 2, 3)
    np.testing.assert_allclose(drawn * (BINS - 1), np.round(drawn * (BINS - 1)), atol=1e-3)


@slow_on_jax
def test_the_model_draws_reconstructs_and_counts_passes():
    config = Config(model="hvae", network="pixel", latent_dim=3, num_pseudo_inputs=2)
    model = models.build(config, (4, 4, 1), from_data=rng.random((2, 4, 4, 1), np.float32))
    passes = []
    assert model.sample(5, 0, passes.append).shape == (5, 4, 4, 1) and sum(passes) == 16
    x = (rng.random((2, 4, 4, 1)) < 0.5).astype("float32")
    assert model.reconstruct(x, 0).shape == x.shape
    np.testing.assert_array_equal(model.sample(5, 7), model.sample(5, 7))
    assert log_joint(model, x, latents(6, 2, 3)).shape == (6, 2)


@slow_on_jax
@pytest.mark.parametrize(
    "likelihood",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "bernoulli")) for name in models.LIKELIHOODS],
)
def test_every_weight_gets_a_gradient(likelihood):
    binarize = "dynamic" if likelihood == "bernoulli" else "none"
    config = Config(model="hvae", network="pixel", latent_dim=3, likelihood=likelihood, binarize=binarize)
    keras.utils.set_random_seed(1)
    model = models.build(config, (8, 4, 1), from_data=rng.random((2, 8, 4, 1), np.float32))
    before = [np.array(weight) for weight in model.trainable_variables]
    train_a_step(model, keras.optimizers.SGD(1.0), (rng.random((5, 8, 4, 1)) < 0.5).astype("float32"))
    after = [(weight.path, np.asarray(weight)) for weight in model.trainable_variables]
    assert not [path for (path, new), old in zip(after, before, strict=True) if not np.any(new != old)]


def pixel_model(**settings):
    config = Config(model="hvae", network="pixel", data_set="digits", latent_dim=2, batch_size=4, epochs=1, **settings)
    return models.build(config, (4, 4, 1))


@slow_on_jax
def test_batches_are_normalised_in_training_and_traces_of_them_are_used_elsewhere():
    """JAX's trainer says nothing of training to layers inside a model, unlike TensorFlow's."""
    model, x = pixel_model(), (rng.random((8, 4, 4, 1)) > 0.5).astype("float32")
    model.compile(keras.optimizers.SGD(0.0))
    traces = [weight for weight in model.non_trainable_weights if "moving" in weight.path]
    assert len(traces) == 16
    before = [np.array(trace) for trace in traces]
    model.test_on_batch(x)
    assert all(np.array_equal(old, new) for old, new in zip(before, traces, strict=True))
    model.train_on_batch(x)
    assert all(np.abs(old - np.asarray(new)).max() > 1e-4 for old, new in zip(before, traces, strict=True))


@slow_on_jax
def test_latents_and_pixels_of_a_sample_are_made_of_different_noise():
    model, drawn = pixel_model(), []
    for weight in model.decoder.net.layers[-1].weights:
        weight.assign(np.zeros(weight.shape))  # so that pixels are independent of z
    decode = model.decode
    model.decode = lambda z, *args: drawn.append(np.asarray(z)) or decode(z, *args)
    n = 256
    x = np.asarray(model.sample(n * 8, 7)).reshape(8 * n, 16)
    z = drawn[0]
    for pixel in (0, 1):
        for start in range(8):  # either's n-th number against the other's
            assert abs(np.corrcoef(z[: n * 8 : 8, 0], x[start * n : (start + 1) * n, pixel])[0, 1]) < 5 / np.sqrt(n)
            assert abs(np.corrcoef(z[start * n : (start + 1) * n, 0], x[::8, pixel])[0, 1]) < 5 / np.sqrt(n)
            assert abs(np.corrcoef(z[:n, 0], x[start * n : (start + 1) * n, pixel])[0, 1]) < 5 / np.sqrt(n)
