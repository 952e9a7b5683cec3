"""Convolutions, also transposed: values, gradients and gradients of gradients are those of Keras' own layers."""

import keras
import numpy as np
import pytest
from conftest import third_on_jax
from keras import layers, ops

import models
from experiment import Config
from models import convolutions
from models.gradients import value_and_gradient

pytestmark = pytest.mark.keras
rng = np.random.default_rng(0)


def pair(name, strides, kernel, shape=(6, 8, 5), filters=4, dtype="float32"):
    """Both layers of this name, to so many features, of the same weights, and three maps of this shape."""
    ours = getattr(convolutions, name)(filters, kernel, strides, activation="tanh", dtype=dtype)
    theirs = getattr(layers, name)(filters, kernel, strides, padding="same", activation="tanh", dtype=dtype)
    for layer in (ours, theirs):
        layer.build((None, *shape))
    weights = [rng.normal(size=weight.shape).astype("float32") for weight in theirs.weights]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    return ours, theirs, rng.normal(size=(3, *shape)).astype("float32")


def slopes(layer, x):
    """Of the squared gradient of a sum of squares with respect to x, the gradients with respect to x and kernel."""

    def bend(x, kernel):
        def height(x):
            with keras.StatelessScope([(layer.kernel, kernel)]):
                return ops.sum(ops.square(layer(x)), axis=(1, 2, 3)), ()

        return ops.sum(ops.square(value_and_gradient(height, x)[2]), axis=(1, 2, 3))

    kernel = ops.convert_to_tensor(np.asarray(layer.kernel))
    of_x = value_and_gradient(lambda x: (bend(x, kernel), ()), ops.convert_to_tensor(x))[2]
    return of_x, value_and_gradient(lambda kernel: (bend(ops.convert_to_tensor(x), kernel), ()), kernel)[2]


@pytest.mark.parametrize(
    ("name", "strides", "kernel", "shape", "filters"),
    third_on_jax(
        ("Conv2DTranspose", 1, 3, (6, 7, 5), 4),
        ("Conv2DTranspose", 2, 4, (6, 7, 5), 4),
        ("Conv2DTranspose", (2, 1), (3, 5), (6, 7, 5), 4),
        ("Conv2DTranspose", 3, 7, (2, 3, 5), 4),
        ("Conv2DTranspose", 3, 2, (2, 3, 5), 4),  # some outputs have no tap
        ("Conv2DTranspose", 1, (3, 2), (6, 7, 16), 1),  # in products on TensorFlow
        ("Conv2DTranspose", 1, (3, 4), (8, 12, 5), 3),  # in blocks
        ("Conv2DTranspose", 1, 3, (7, 4, 1), 3),
        ("Conv2D", 1, 4, (6, 7, 5), 4),
        ("Conv2D", 2, 3, (6, 8, 5), 4),
        ("Conv2D", 2, 3, (6, 7, 5), 4),  # which the stride does not divide
        ("Conv2D", (2, 3), (5, 4), (6, 9, 5), 4),
        ("Conv2D", 1, (7, 4), (8, 12, 1), 16),
        ("Conv2D", 1, (4, 5), (12, 8, 3), 5),
        ("Conv2D", 1, (7, 2), (6, 7, 1), 5),  # which no block divides
        ("Conv2D", 1, 3, (7, 4, 2), 1),  # where TensorFlow's convolution is wrong with strides that differ
        ("Conv2D", 1, 9, (3, 4, 1), 16),  # a kernel larger than the maps
    ),
)
def test_it_is_keras_own(name, strides, kernel, shape, filters):
    ours, theirs, x = pair(name, strides, kernel, shape, filters)
    for maps in x, keras.Variable(x):  # pseudo-inputs are a variable
        np.testing.assert_allclose(ours(maps), theirs(maps), rtol=1e-5, atol=1e-5)
    for one, other in zip(slopes(ours, x), slopes(theirs, x), strict=True):
        scale = np.abs(np.asarray(other)).max()  # Keras' own is off by up to 1e-5 of it, where taps are summed
        np.testing.assert_allclose(np.asarray(one) / scale, np.asarray(other) / scale, atol=3e-5)


@pytest.mark.parametrize(
    ("name", "kernel", "shape", "filters"),
    [
        ("Conv2DTranspose", 3, (6, 7, 16), 1),
        ("Conv2DTranspose", 5, (8, 12, 4), 3),
        ("Conv2D", 3, (6, 7, 1), 16),
        ("Conv2D", 7, (8, 12, 1), 16),
    ],
)
def test_a_compiled_gradient_is_the_same(name, kernel, shape, filters):
    """Of the sum of squares of what a layer makes of maps, by one step of training of what is added to these."""
    x, moved = rng.normal(size=(3, *shape)).astype("float32"), []
    ours, theirs, _ = pair(name, 1, kernel, shape, filters)
    for layer in (ours, theirs):
        inputs = layers.Input(shape)
        bias = layers.Dense(shape[-1], kernel_initializer="identity")
        model = keras.Model(inputs, layer(bias(inputs)))
        model.compile(keras.optimizers.SGD(0.1), loss=lambda _, y: ops.sum(ops.square(y), axis=(1, 2, 3)))
        model.train_on_batch(x, np.zeros((3, *shape[:2], filters), "float32"))
        moved.append(model.get_weights())
    for one, other in zip(*moved, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="Keras' own layers are not so easily had there")
def test_a_model_trains_as_it_does_with_keras_own(monkeypatch):
    """Of size 4, so that the images' side of its convolutions is thin; its pseudo-inputs have a gradient, too."""
    trained, x = [], rng.uniform(size=(6, 8, 8, 1)).astype("float32")
    for thin in (True, False):
        with monkeypatch.context() as patch:
            if not thin:
                patch.setattr(convolutions, "_is_thin", lambda layer, x: False)
            keras.utils.set_random_seed(0)
            model = models.build(Config(prior="vamp", network_size=4.0, num_pseudo_inputs=3), (8, 8, 1))
            model.compile(keras.optimizers.SGD(1e-3))
            losses = [model.train_on_batch(x, return_dict=True)["loss"] for _ in range(3)]
            trained.append([losses, *model.get_weights()])
    for one, other in zip(*trained, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "shape", "filters"), [("Conv2DTranspose", (8, 12, 5), 3), ("Conv2D", (8, 12, 1), 5)])
def test_half_precision_is_as_precise_as_keras_own(name, shape, filters):
    _, exact, x = pair(name, 1, 5, shape, filters)
    *halves, _ = pair(name, 1, 5, shape, filters, dtype="mixed_float16")
    off = []
    for half in halves:
        half.set_weights(exact.get_weights())
        y = half(x)
        assert keras.backend.standardize_dtype(y.dtype) == "float16"
        off.append(np.abs(np.asarray(y, "float32") - np.asarray(exact(x))).max())
    assert 0 < off[0] < 1.5 * off[1]


@pytest.mark.parametrize("name", ["Conv2DTranspose", "Conv2D"])
def test_maps_may_be_of_any_size(name):
    """As a model may be built whose images' size is not known yet."""
    ours, theirs, x = pair(name, 1, 3, (8, 12, 1), 3)
    sizes = layers.Input((None, None, 1))
    for layer in (ours, theirs):
        model = keras.Model(sizes, layer(sizes))
        assert model.output.shape == (None, None, None, 3)
    np.testing.assert_allclose(keras.Model(sizes, ours(sizes))(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "starts"), [("Conv2D", "conv2d"), ("Conv2DTranspose", "conv2d_transpose")])
def test_its_weights_have_the_names_that_keras_gives_them(name, starts):
    (ours, theirs, _), named = pair(name, 2, 3), lambda layer: [weight.path.split("/")[-1] for weight in layer.weights]
    assert named(ours) == named(theirs) and ours.name.startswith(starts)
