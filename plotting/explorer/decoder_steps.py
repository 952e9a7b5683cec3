"""A decoder as a list of steps, from which decoder.js computes pictures in a browser."""

from typing import NamedTuple

import numpy as np
from keras import Sequential, activations, layers, ops

from models import convolutions, networks, plain
from models.pixels import Bernoulli, DiscretizedLogistic, Pixels

ACTIVATIONS = ("linear", "relu", "tanh", "sigmoid", "elu", "selu", "silu", "softplus", "leaky_relu")
MULTIPLICATIONS = 100_000_000  # most per picture that a page computes, which takes one or two tenths of a second
WEIGHTS = 4_000_000  # most that a page carries: 16 MB, and a third more as text


class UnsupportedError(ValueError):
    """The page cannot compute a decoder; the message says why, as the end of a sentence."""


class DecoderSteps(NamedTuple):
    """How to compute the mean of p(x|z): `steps` in their order, and all their `weights` (n,), float32.

    Each step is a dict. Arrays have channels last.
    - `dense`: activation(h W + b), with h flattened and W (inputs, units).
    - `conv`: a transposed convolution and an activation, with a kernel (kernel, kernel, inputs, units). The height and
      width of the output are `stride` times those of the input.
    - `gated`: the result of the step `linear` times the sigmoid of that of the step `gate`.
    - `parts`: cuts h into parts of given sizes, applies to each part its own steps, and concatenates the results.
    In `weights`, the kernel of a step begins at index `at`, and its `units` biases follow. The picture (H, W, C) is the
    sigmoid of the first C channels of the last result. `multiplications` is their number per picture.
    """

    steps: list
    weights: np.ndarray
    multiplications: int


def decoder_steps(model):
    """The DecoderSteps of a LatentModel. Raises UnsupportedError if the page cannot compute its decoder."""
    distribution = model.likelihood(ops.zeros((1, sum(model.sizes))))
    if not isinstance(distribution, (Bernoulli, DiscretizedLogistic, Pixels)):
        raise UnsupportedError("the mean of p(x|z) is not the sigmoid of one output per channel")
    translator = Translator()
    steps, _ = translator.steps(model.decoder, (sum(model.sizes),))
    weights, n = np.concatenate(translator.weights), translator.multiplications
    if n > MULTIPLICATIONS:
        raise UnsupportedError(f"the decoder needs {n:,} multiplications per picture, more than {MULTIPLICATIONS:,}")
    if len(weights) > WEIGHTS:
        raise UnsupportedError(f"the decoder has {len(weights):,} weights, more than {WEIGHTS:,}")
    return DecoderSteps(steps, weights, n)


class Translator:
    """Translates layers into steps, collects the weights of these, and counts multiplications.

    Shapes have no batch axis. Each translation returns the list of steps and the shape of their result.
    """

    def __init__(self):
        self.weights, self.multiplications = [], 0

    def steps(self, layer, shape):
        if type(layer) not in TRANSLATIONS:  # a subclass may compute something else
            raise UnsupportedError(f"the page does not support the layer {type(layer).__name__}")
        return TRANSLATIONS[type(layer)](self, layer, shape)

    def chain(self, chained, shape):
        steps = []
        for layer in chained:
            more, shape = self.steps(layer, shape)
            steps += more
        return steps, shape

    def dense(self, layer, shape):
        if len(shape) > 1:
            raise UnsupportedError("the page supports no dense layer over maps")
        kernel = ops.convert_to_numpy(layer.kernel)
        self.multiplications += kernel.size
        return [{"kind": "dense"} | self._stored(layer, kernel)], (layer.units,)

    def convolution(self, layer, shape):
        """Translates a transposed convolution, or another one into that with the mirrored kernel."""
        kernel = ops.convert_to_numpy(layer.kernel)
        if isinstance(layer, layers.Conv2DTranspose):
            kernel = kernel.swapaxes(-1, -2)  # Keras has (k, k, units, inputs)
        elif set(layer.strides) != {1} or any(side % 2 == 0 for side in layer.kernel_size):
            raise UnsupportedError("the page supports no convolution with a stride or an even kernel")
        else:
            kernel = kernel[::-1, ::-1]
        if layer.padding != "same" and layer.kernel_size != (1, 1):  # 1 x 1 needs no padding
            raise UnsupportedError(f"the page supports no convolution with padding {layer.padding}")
        if any(len(set(sides)) > 1 for sides in (layer.kernel_size, layer.strides)) or set(layer.dilation_rate) != {1}:
            raise UnsupportedError("the page supports no convolution with unequal sides or strides, or holes")
        (height, width, _), stride = shape, layer.strides[0]
        self.multiplications += height * width * kernel.size
        step = {"kind": "conv", "height": height, "width": width, "kernel": kernel.shape[0], "stride": stride}
        return [step | self._stored(layer, kernel)], (height * stride, width * stride, kernel.shape[-1])

    def _stored(self, layer, kernel):
        """Stores a layer's kernel (..., inputs, units) and bias; returns what its step says of them."""
        name = next((name for name in ACTIVATIONS if layer.activation is activations.get(name)), None)
        if name is None:
            name = getattr(layer.activation, "__name__", type(layer.activation).__name__)
            raise UnsupportedError(f"the page does not support the activation {name}")
        if layer.bias is None:
            raise UnsupportedError(f"the page supports no {type(layer).__name__} without biases")
        inputs, units = kernel.shape[-2:]
        step = {"inputs": inputs, "units": units, "at": sum(map(len, self.weights)), "activation": name}
        self.weights += [values.astype(np.float32).ravel() for values in (kernel, ops.convert_to_numpy(layer.bias))]
        return step

    def gated(self, layer, shape):
        (linear,), after = self.steps(layer.linear, shape)
        (gate,), _ = self.steps(layer.gate, shape)
        return [{"kind": "gated", "linear": linear, "gate": gate}], after

    def parts(self, layer, shape):
        stacks = zip(layer.parts, layer.stacks, strict=True)
        parts = [{"size": size, "steps": self.steps(stack, (size,))[0]} for size, stack in stacks]
        return [{"kind": "parts", "parts": parts}], (layer.features,)


CONVOLUTIONS = (layers.Conv2D, layers.Conv2DTranspose, convolutions.Conv2D, convolutions.Conv2DTranspose)
TRANSLATIONS = dict.fromkeys(CONVOLUTIONS, Translator.convolution) | {
    layers.Dense: Translator.dense,
    layers.Reshape: lambda self, layer, shape: ([], tuple(layer.target_shape)),
    networks.Gated: Translator.gated,
    networks.LatentStacks: Translator.parts,
    networks.DenseStack: lambda self, layer, shape: self.chain(layer.dense, shape),
    Sequential: lambda self, layer, shape: self.chain(layer.layers, shape),
    networks.ConvDecoder: lambda self, layer, shape: self.chain([layer.net], shape),
    plain.PlainDecoder: lambda self, layer, shape: self.chain([layer.stack, layer.out], shape),
    networks.DenseDecoder: lambda self, layer, shape: self.chain([layer.stacks, layer.joint, layer.out], shape),
    networks.GatedConvDecoder: lambda self, layer, shape: self.chain([layer.stacks, layer.image, layer.net], shape),
}
