"""Keras still has the private members that numbers depend on, and they mean what is assumed."""

import keras
import numpy as np
import pytest

from runtime import internals

pytestmark = pytest.mark.keras
GRADIENTS = [np.float32([3, 4]), np.float32([-2, 0, 1])]


class Doubled(internals.ChangesGradients, keras.optimizers.SGD):
    """SGD on gradients that are doubled."""

    def changed(self, grads):
        return [2 * grad for grad in grads]


def stepped(optimizer, steps=1):
    """The weights, which begin as zeros, after steps with GRADIENTS."""
    weights = [keras.Variable(np.zeros(gradient.shape, "float32")) for gradient in GRADIENTS]
    optimizer.build(weights)
    for _ in range(steps):
        optimizer.apply([keras.ops.convert_to_tensor(gradient) for gradient in GRADIENTS], weights)
    return weights


@pytest.mark.parametrize("kind", [keras.optimizers.Adam, keras.optimizers.AdamW])
def test_moments_of_a_weight_are_those_of_adam(kind):
    optimizer = kind(beta_1=0.9, beta_2=0.99)
    for weight, gradient in zip(stepped(optimizer), GRADIENTS, strict=True):
        first, second = internals.moments(optimizer, weight)
        np.testing.assert_allclose(first, 0.1 * gradient, rtol=1e-5)
        np.testing.assert_allclose(second, 0.01 * gradient**2, rtol=1e-4)


def test_averages_are_in_the_order_of_the_weights():
    """The first step sets them to the weights, the second one averages."""
    optimizer = keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.75)
    stepped(optimizer, steps=2)
    for average, gradient in zip(internals.averages(optimizer), GRADIENTS, strict=True):
        np.testing.assert_allclose(average, 0.75 * -gradient + 0.25 * -2 * gradient, rtol=1e-6)


def test_gradients_are_changed_before_they_are_clipped():
    for weight, gradient in zip(stepped(Doubled(1.0, clipnorm=3.0)), GRADIENTS, strict=True):
        norm = np.linalg.norm(2 * gradient)
        np.testing.assert_allclose(weight, -2 * gradient * min(1, 3 / norm), rtol=1e-5)


def test_gradients_are_changed_after_they_have_been_accumulated():
    calls = []

    class Noted(internals.ChangesGradients, keras.optimizers.SGD):
        def changed(self, grads):
            calls.append(len(grads))
            return [grad / grad for grad in grads]

    weights = stepped(Noted(1.0, gradient_accumulation_steps=2), steps=2)
    assert calls and set(calls) == {2}
    np.testing.assert_allclose(weights[0], -1.0)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of TensorFlow")
def test_update_step_is_the_rule_for_one_weight_and_gets_a_variable_of_tensorflow():
    """training/optimizers.py replaces this method by an operation on the variables' handles."""
    import tensorflow as tf

    updated = []

    class Noted(keras.optimizers.Adam):
        def update_step(self, gradient, variable, learning_rate):
            updated.append(variable)
            super().update_step(gradient, variable, learning_rate)

    optimizer = Noted()
    weights = stepped(optimizer)
    for one, weight in zip(updated, weights, strict=True):
        assert one is weight.value and internals.moments(optimizer, one) == internals.moments(optimizer, weight)
        kept = [moment.value.handle for moment in internals.moments(optimizer, one)]
        assert all(handle.dtype == tf.resource for handle in [one.handle, *kept])


def test_sublayers_are_the_layer_and_those_inside():
    inner = keras.layers.Dense(2)
    outer = keras.Sequential([keras.Input((3,)), keras.Sequential([inner]), keras.layers.ReLU()])
    found = internals.sublayers(outer)
    assert found[0] is outer and sum(one is inner for one in found) == 1 and len(internals.sublayers(inner)) == 1


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="of JAX")
def test_steps_without_fit_train_as_fit_does():
    kernels = []
    for trained in (lambda model, x: model.fit(x, batch_size=2, shuffle=False, verbose=0),
                    lambda model, x: internals.train_on_jax(model, [x[:2], x[2:]])):  # fmt: skip
        model = Squares()
        x = np.float32([[1, 2, 3], [4, 5, 6], [0, 1, 0], [1, 1, 2]])
        model.train_on_batch(x[:2])
        trained(model, x)
        kernels.append(np.asarray(model.kernel))
    np.testing.assert_array_equal(*kernels)


class Squares(keras.Model):
    """Compiled, with the mean square of a linear map as its loss."""

    def __init__(self):
        super().__init__()
        self.kernel = self.add_weight(shape=(3, 1), initializer="ones")
        self.built = True
        self.compile(keras.optimizers.Adam(0.1))

    def call(self, x):
        return keras.ops.matmul(x, self.kernel)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(y_pred**2)


def test_an_optimizer_knows_its_weights_and_counts_steps_that_are_no_updates():
    optimizer = keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    weights = stepped(optimizer, steps=3)
    assert all(one is other for one, other in zip(internals.weights(optimizer), weights, strict=True))
    assert int(internals.steps(optimizer)) == 3
