"""plotting/explorer/decoder_steps.py: NumPy computes its steps, and the result is that of the decoder."""

import functools
import json

import numpy as np
import pytest
from conftest import first_on_both
from keras import layers
from test_explore import DECODERS, view_of

from plotting.explorer.decoder_steps import Translator, UnsupportedError, decoder_steps

ACTIVATIONS = {
    "linear": lambda h: h,
    "relu": lambda h: np.maximum(h, 0),
    "silu": lambda h: h * squashed(h),
    "tanh": np.tanh,
    "selu": lambda h: 1.0507009873554805 * np.where(h > 0, h, 1.6732632423543772 * np.expm1(np.minimum(h, 0))),
    "softplus": lambda h: np.logaddexp(h, 0),
}


def squashed(h):
    """The sigmoid."""
    return 1 / (1 + np.exp(-h))


def computed(steps, h, weights):
    """What steps make of h (F,) or (H, W, F), in NumPy, by their definition in decoder_steps.py."""
    for step in steps:
        h = KINDS[step["kind"]](step, h, weights)
    return h


def affine(step, weights, *kernel):
    """Kernel (*kernel, inputs, units) and bias of a step."""
    shape = (*kernel, step["inputs"], step["units"])
    end = step["at"] + np.prod(shape)
    return weights[step["at"] : end].reshape(shape), weights[end : end + step["units"]]


def dense(step, h, weights):
    kernel, bias = affine(step, weights)
    return ACTIVATIONS[step["activation"]](h.ravel() @ kernel + bias)


def conv(step, h, weights):
    size, stride = step["kernel"], step["stride"]
    kernel, bias = affine(step, weights, size, size)
    h = h.reshape(step["height"], step["width"], -1)
    out = np.zeros((*(stride * side + size for side in h.shape[:2]), step["units"]))
    for y, x in np.ndindex(h.shape[:2]):
        out[stride * y : stride * y + size, stride * x : stride * x + size] += h[y, x] @ kernel
    before = max(size - stride, 0) // 2
    whole = out[before : before + stride * step["height"], before : before + stride * step["width"]]
    return ACTIVATIONS[step["activation"]](whole + bias)


def gated(step, h, weights):
    return computed([step["linear"]], h, weights) * squashed(computed([step["gate"]], h, weights))


def parts(step, h, weights):
    pieces = np.split(h, np.cumsum([part["size"] for part in step["parts"]])[:-1])
    return np.concatenate([computed(p["steps"], h, weights) for p, h in zip(step["parts"], pieces, strict=True)])


KINDS = {"dense": dense, "conv": conv, "gated": gated, "parts": parts}


@pytest.mark.keras
@pytest.mark.parametrize("name", first_on_both(*DECODERS))
def test_the_steps_compute_what_the_decoder_does(name):
    shape, settings = DECODERS[name]
    view = view_of(shape, **settings)
    made = decoder_steps(view.model)
    json.dumps(made.steps)
    assert len(made.weights) == sum(int(np.prod(weight.shape)) for weight in view.model.decoder.weights)
    z = np.random.default_rng(1).normal(size=(4, settings["latent_dim"])).astype("float32")
    expected = view.decoded(z)
    assert np.ptp(expected) > 0.3 and np.abs(expected[0] - expected[1]).max() > 0.05
    for one, picture in zip(z, expected, strict=True):
        maps = computed(made.steps, one, made.weights).reshape(*shape[:2], -1)
        np.testing.assert_allclose(squashed(maps[..., : shape[2]]), picture, atol=2e-4)


def test_multiplications_are_counted():
    view = view_of((8, 8, 1), latent_dim=2)
    sizes = [w.shape for w in view.model.decoder.weights if len(w.shape) > 1]
    pixels = [1, 4, 4, 16, 16, 64]  # that each layer reads
    assert decoder_steps(view.model).multiplications == sum(n * np.prod(s) for n, s in zip(pixels, sizes, strict=True))


@pytest.mark.parametrize(
    ("shape", "settings", "reason"),
    [
        ((8, 8, 1), {"activation": "gelu"}, "activation gelu"),
        ((8, 8, 3), {"likelihood": "mixlogistic"}, "the mean of p"),
    ],
)
def test_what_the_page_cannot_compute_is_said(shape, settings, reason):
    with pytest.raises(UnsupportedError, match=reason):
        decoder_steps(view_of(shape, latent_dim=2, **settings).model)


class Doubled(layers.Dense):
    """A subclass that computes something else."""

    def call(self, h):
        return 2 * super().call(h)


def my_relu(h):
    return h


my_relu.__name__ = "relu"


@pytest.mark.parametrize(
    ("layer", "shape", "reason"),
    [
        (lambda: Doubled(3), (2,), "the layer Doubled"),
        (lambda: layers.Dense(3, use_bias=False), (2,), "no Dense without biases"),
        (lambda: layers.Dense(3), (4, 2), "no dense layer over maps"),
        (lambda: layers.Dense(3, activation=my_relu), (2,), "the activation relu"),
        (lambda: layers.Dense(3, activation=functools.partial(my_relu)), (2,), "the activation partial"),
        (lambda: layers.Dense(3, activation=layers.LeakyReLU(0.1)), (2,), "the activation LeakyReLU"),
        (lambda: layers.Conv2DTranspose(3, (3, 1), padding="same"), (4, 4, 2), "unequal sides"),
        (lambda: layers.Conv2DTranspose(3, 3, (2, 1), padding="same"), (4, 4, 2), "unequal sides"),
        (lambda: layers.Conv2D(3, 3, dilation_rate=2, padding="same"), (4, 4, 2), "or holes"),
    ],
)
def test_layers_of_a_user_s_own_that_the_page_would_compute_otherwise_are_refused(layer, shape, reason):
    made = layer()
    made.build((None, *shape))
    with pytest.raises(UnsupportedError, match=reason):
        Translator().steps(made, shape)
