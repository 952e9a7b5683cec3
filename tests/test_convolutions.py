"""Convolutions, also transposed: values, gradients and gradients of gradients are those of Keras' own layers."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from models import convolutions
from models.gradients import value_and_gradient

pytestmark = pytest.mark.keras
rng = np.random.default_rng(0)


def pair(name, strides, kernel, shape=(6, 8, 5)):
    """Both layers of this name, to 4 features, of the same weights, and three maps of this shape."""
    ours = getattr(convolutions, name)(4, kernel, strides, activation="tanh")
    theirs = getattr(layers, name)(4, kernel, strides, padding="same", activation="tanh")
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
    ("name", "strides", "kernel", "shape"),
    [
        ("Conv2DTranspose", 1, 3, (6, 7, 5)),
        ("Conv2DTranspose", 2, 4, (6, 7, 5)),
        ("Conv2DTranspose", (2, 1), (3, 5), (6, 7, 5)),
        ("Conv2DTranspose", 3, 7, (2, 3, 5)),
        ("Conv2DTranspose", 3, 2, (2, 3, 5)),  # some outputs have no tap
        ("Conv2D", 1, 4, (6, 7, 5)),
        ("Conv2D", 2, 3, (6, 8, 5)),
        ("Conv2D", 2, 3, (6, 7, 5)),  # which the stride does not divide
        ("Conv2D", (2, 3), (5, 4), (6, 9, 5)),
    ],
)
def test_it_is_keras_own(name, strides, kernel, shape):
    ours, theirs, x = pair(name, strides, kernel, shape)
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    for one, other in zip(slopes(ours, x), slopes(theirs, x), strict=True):
        scale = np.abs(np.asarray(other)).max()
        np.testing.assert_allclose(np.asarray(one) / scale, np.asarray(other) / scale, atol=1e-5)


@pytest.mark.parametrize(("name", "starts"), [("Conv2D", "conv2d"), ("Conv2DTranspose", "conv2d_transpose")])
def test_its_weights_have_the_names_that_keras_gives_them(name, starts):
    (ours, theirs, _), named = pair(name, 2, 3), lambda layer: [weight.path.split("/")[-1] for weight in layer.weights]
    assert named(ours) == named(theirs) and ours.name.startswith(starts)
