"""A decoder as a short list of steps that need no Keras, which is how a page in a browser computes it."""

from typing import NamedTuple

import numpy as np
from keras import Sequential, layers, ops

from . import networks
from .distributions import Bernoulli, DiscretizedLogistic, Pixels

ACTIVATIONS = ("linear", "relu", "tanh", "sigmoid", "elu", "selu", "silu", "softplus", "leaky_relu")
SQUASHED = (Bernoulli, DiscretizedLogistic, Pixels)  # whose mean is the sigmoid of the first maps, one a channel


class NotListedError(ValueError):
    """Something in a decoder is not made of steps; the message says what, as the end of a sentence."""


class Program(NamedTuple):
    """What computes the mean of p(x|z): `steps` in their order, whose weights lie one after another in `weights` (n,).

    Steps are dicts, and what they compute has channels last. `dense`: activation(h W + b). `conv`: a transposed
    convolution that leaves `stride` times the height and width, activated. Both name where (`at`) their kernel begins,
    (inputs, units) or (kernel, kernel, inputs, units), behind which lie `units` biases. `gated`: `linear` times the
    sigmoid of `gate`, two steps. `parts`: the input, cut into parts that go through steps of their own and are then
    joined. The sigmoid of the first C maps of each pixel is the picture (H, W, C). `multiplications` are those of one.
    """

    steps: list
    weights: np.ndarray
    multiplications: int


def program(model):
    """The Program of a LatentModel's decoder. Raises NotListedError where there is none."""
    law = model.likelihood(ops.zeros((1, sum(model.sizes))))
    if not isinstance(law, SQUASHED):
        raise NotListedError("its pixels have a law whose mean is no sigmoid of one map")
    book = Book()
    steps, _ = book.steps(model.decoder, (sum(model.sizes),))
    return Program(steps, np.concatenate(book.weights), book.multiplications)


class Book:
    """Collects the weights of the steps that it makes, and counts their multiplications."""

    def __init__(self):
        self.weights, self.size, self.multiplications = [], 0, 0

    def steps(self, layer, shape):
        """The list of steps of a layer for inputs of this shape, without a batch, and the shape of its outputs."""
        for kind, make in STEPS.items():
            if isinstance(layer, kind):
                return make(self, layer, shape)
        raise NotListedError(f"it has a layer {type(layer).__name__} that the page does not compute")

    def chain(self, parts, shape):
        """The same for layers that follow one another."""
        steps = []
        for part in parts:
            more, shape = self.steps(part, shape)
            steps += more
        return steps, shape

    def kept(self, layer, kernel):
        """What a step with a kernel (..., inputs, units) and a bias says of its weights, which are kept."""
        if (name := layer.activation.__name__) not in ACTIVATIONS:
            raise NotListedError(f"its activation {name} is none that the page computes")
        at = self.size
        for values in (kernel, ops.convert_to_numpy(layer.bias)):
            self.weights.append(values.astype(np.float32).ravel())
            self.size += values.size
        inputs, units = kernel.shape[-2:]
        return {"inputs": inputs, "units": units, "at": at, "activation": name}


def dense(book, layer, shape):
    """One step: maps are flattened, as a Dense over the last axis is only applied to vectors here."""
    kernel = ops.convert_to_numpy(layer.kernel)
    book.multiplications += kernel.size
    return [{"kind": "dense"} | book.kept(layer, kernel)], (layer.units,)


def upward(book, layer, shape):
    """A transposed convolution: one step."""
    kernel = ops.convert_to_numpy(layer.kernel).swapaxes(-1, -2)  # Keras has (k, k, units, inputs)
    return convolution(book, layer, kernel, shape)


def level(book, layer, shape):
    """A convolution of odd kernel and stride 1, which is the transposed one of its mirrored kernel."""
    if set(layer.strides) != {1} or any(side % 2 == 0 for side in layer.kernel_size):
        raise NotListedError("it has a convolution of a stride or of an even kernel")
    return convolution(book, layer, ops.convert_to_numpy(layer.kernel)[::-1, ::-1], shape)


def convolution(book, layer, kernel, shape):
    """One step, from its kernel (k, k, inputs, units) as a transposed convolution has it."""
    if layer.padding != "same" and layer.kernel_size != (1, 1):  # which needs no padding
        raise NotListedError(f"it has a convolution with padding {layer.padding}")
    height, width, _ = shape
    stride = layer.strides[0]
    book.multiplications += height * width * kernel.size
    size = {"height": height, "width": width, "kernel": kernel.shape[0], "stride": stride}
    return [{"kind": "conv"} | size | book.kept(layer, kernel)], (height * stride, width * stride, kernel.shape[-1])


def gated(book, layer, shape):
    """One step of two."""
    (linear,), after = book.steps(layer.linear, shape)
    (gate,), _ = book.steps(layer.gate, shape)
    return [{"kind": "gated", "linear": linear, "gate": gate}], after


def cut(book, layer, shape):
    """One step with the steps of each part."""
    parts = []
    for size, stack in zip(layer.parts, layer.stacks, strict=True):
        parts.append({"size": size, "steps": book.steps(stack, (size,))[0]})
    return [{"kind": "parts", "parts": parts}], (layer.features,)


STEPS = {  # makers of (steps, shape) from (book, layer, shape), the first whose kind the layer is
    layers.Conv2DTranspose: upward,
    layers.Conv2D: level,
    layers.Dense: dense,
    layers.Reshape: lambda book, layer, shape: ([], tuple(layer.target_shape)),
    networks.Gated: gated,
    networks.LatentStacks: cut,
    networks.DenseStack: lambda book, layer, shape: book.chain(layer.dense, shape),
    Sequential: lambda book, layer, shape: book.chain(layer.layers, shape),
    networks.ConvDecoder: lambda book, layer, shape: book.chain([layer.net], shape),
    networks.DenseDecoder: lambda book, layer, shape: book.chain([layer.stacks, layer.joint, layer.out], shape),
    networks.GatedConvDecoder: lambda book, layer, shape: book.chain([layer.stacks, layer.image, layer.net], shape),
}
