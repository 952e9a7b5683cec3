"""Convolutions that are fast where Keras' own are not: on JAX, and of images' few channels on TensorFlow, on a CPU."""

import functools
import itertools
import math

import keras
import numpy as np
from keras import layers, ops

FEW = 4  # features, up to which maps are faster computed in blocks
SIDE = 4  # pixels of a block, along each of its sides
WIDE = 16  # features, from which on, and taps up to which, one map is faster computed in products
FEW_TAPS = 9


class _SamePadded:
    """Keras' layer of this name, of "same" padding, with the same weights and the same numbers on either backend.

    `number` is that of its function in the pairs below.
    """

    def __init__(self, filters, kernel_size, strides=1, **kwargs):
        super().__init__(filters, kernel_size, strides, padding="same", **kwargs)

    def call(self, x):
        is_whole = self.number == 1 or not any(n % s for n, s in zip(x.shape[1:3], self.strides, strict=True))
        if keras.backend.backend() == "jax" and is_whole:
            pair = _pair(self.strides)
        elif _is_thin(self, x):
            pair = _thin_pair()
        else:
            return super().call(x)
        y = pair[self.number](x, ops.convert_to_tensor(self.kernel, x.dtype))
        return self.activation(y + ops.convert_to_tensor(self.bias, x.dtype))


class Conv2D(_SamePadded, layers.Conv2D):
    """Maps (B, H, W, F) to (B, H / strides, W / strides, filters), rounded up.

    Where that is faster, its gradient with respect to maps is the transposed convolution below.
    """

    number = 0


class Conv2DTranspose(_SamePadded, layers.Conv2DTranspose):
    """Maps (B, H, W, F) to (B, H strides, W strides, filters).

    XLA's CPU code for the gradient of its kernel takes up to fifty times as long as the layer itself. That gradient is
    also that of the kernel of an ordinary convolution, with input and output exchanged, which is fast. A stride means
    zeros between the inputs there, which are multiplied as all else is; here, each phase of the outputs has its taps.
    To an image's one or three channels, products of matrices have as few columns; a block's pixels make them more.
    """

    number = 1


def _is_thin(layer, x):
    """Whether `_thin_pair` computes what this layer makes of maps, and faster: on TensorFlow, on a CPU.

    In half precision its sums of products would be rounded more often than Keras' are.
    """
    if keras.backend.backend() != "tensorflow" or layer.compute_dtype != "float32" or None in x.shape[1:3]:
        return False
    import tensorflow as tf

    return _has_few(layer.kernel, layer.strides) and not tf.config.list_logical_devices("GPU")


def _has_few(kernel, strides):
    """Whether such a kernel (k, l, E, F), of several taps, is between maps of few features E and as large ones."""
    height, width, few = kernel.shape[:3]
    return few <= FEW and height * width > 1 and max(strides) == 1


@functools.cache
def _thin_pair():
    """As `_pair`, on TensorFlow, of maps (B, H, W, E), kernels (k, l, E, F) and stride 1, faster where E is small."""
    import tensorflow as tf

    def of_kernel(x, gradient, kernel):
        steps = {"strides": [1, 1, 1, 1], "padding": "SAME"}
        return tf.raw_ops.Conv2DBackpropFilter(input=x, filter_sizes=kernel.shape, out_backprop=gradient, **steps)

    @tf.custom_gradient
    def ordinary(x, kernel):
        y = tf.nn.conv2d(x, kernel, 1, "SAME")
        return y, lambda g: (transposed(g, kernel), of_kernel(x, g, kernel))

    @tf.custom_gradient
    def transposed(x, kernel):
        height, width, few, features = kernel.shape
        few_taps = height * width <= FEW_TAPS or math.gcd(*x.shape[1:3], SIDE) == 1
        in_products = few == 1 and features >= WIDE and few_taps
        y = _in_products(x, kernel) if in_products else _transposed_in_blocks(convolved, x, kernel)
        return y, lambda g: (ordinary(g, kernel), of_kernel(g, x, kernel))

    def convolved(x, kernel, strides, padding):
        return tf.nn.conv2d(x, kernel, strides, [(0, 0), *padding, (0, 0)])

    def of_tensors(convolve):  # for custom gradients are not of variables
        return lambda x, kernel: convolve(tf.convert_to_tensor(x), tf.convert_to_tensor(kernel))

    return of_tensors(ordinary), of_tensors(transposed)


def _in_products(x, kernel):
    """The transposed convolution of stride 1 to one feature: a product with each tap of the kernel, shifted and added.

    Its maps lie behind one another, not interleaved, which makes the sums fast.
    """
    height, width = kernel.shape[:2]
    products = ops.matmul(ops.reshape(kernel, (height * width, -1)), ops.transpose(ops.reshape(x, (-1, x.shape[-1]))))
    products = ops.reshape(products, (height, width, -1, *x.shape[1:3]))  # (k, l, B, H, W)
    products = ops.pad(products, [(0, 0)] * 3 + _rims(kernel))
    parts = []
    for i, j in itertools.product(range(height), range(width)):
        up, left = height - 1 - i, width - 1 - j
        parts.append(products[i, j, :, up : up + x.shape[1], left : left + x.shape[2]])
    return ops.expand_dims(sum(parts), -1)


def _in_blocks(convolve, x, kernel, padding, block):
    """The ordinary convolution of stride 1, so padded, for the pixels of a block at once: they are its features.

    `convolve(x, kernel, strides, padding)` is called once, with a larger kernel and with blocks, which divide the maps,
    as strides.
    """
    height, width = x.shape[1:3]
    kernel = _tiled(kernel, block)
    y = convolve(x, ops.reshape(kernel, (*kernel.shape[:3], -1)), block, padding)
    y = ops.reshape(y, (-1, height // block[0], width // block[1], *kernel.shape[3:]))
    return ops.reshape(ops.transpose(y, (0, 1, 3, 2, 4, 5)), (-1, height, width, kernel.shape[-1]))


def _tiled(kernel, block):
    """A kernel (k, l, E, F) moved by as much as each pixel of a block (a, b): (k + a - 1, l + b - 1, E, a, b, F)."""
    *taps, _, _ = kernel.shape
    shifts = [
        np.stack([np.eye(size + pixels - 1, size, -by) for by in range(pixels)])
        for size, pixels in zip(taps, block, strict=True)
    ]
    moves = np.einsum("aik,bjl->ijabkl", *shifts)
    moves = moves.reshape(*moves.shape[:4], -1)
    tiled = ops.tensordot(ops.cast(moves, kernel.dtype), ops.reshape(kernel, (-1, *kernel.shape[2:])), 1)
    return ops.transpose(tiled, (0, 1, 4, 2, 3, 5))


def _transposed_in_blocks(convolve, x, kernel):
    """The transposed convolution of stride 1, as an ordinary one in the largest square blocks that divide the maps.

    With strides that differ, TensorFlow's convolution gives garbage where its outputs are one pixel wide.
    """
    side = math.gcd(*x.shape[1:3], SIDE)
    turned = ops.transpose(ops.flip(kernel, (0, 1)), (0, 1, 3, 2))  # (k, l, F, E)
    return _in_blocks(convolve, x, turned, _rims(kernel), (side, side))


def _rims(kernel):
    """What the transposed convolution of stride 1 adds around maps; the ordinary one adds as much on the other side."""
    return [(size - 1 - (size - 1) // 2, (size - 1) // 2) for size in kernel.shape[:2]]


@functools.cache
def _pair(strides):
    """An ordinary and a transposed convolution of JAX, each the other's gradient with respect to maps.

    The first is a function of maps (B, H strides, W strides, E) and a kernel (k, l, E, F), to (B, H, W, F); the second
    of such maps and the same kernel, back.
    """
    import jax

    on_cpu = jax.default_backend() == "cpu"

    def of_kernel(x, gradient, kernel):
        return jax.linear_transpose(lambda kernel: _plain(x, kernel, strides), kernel)(gradient)[0]

    @jax.custom_vjp
    def ordinary(x, kernel):
        if on_cpu and _has_few(kernel, strides):
            in_a_row = (1, math.gcd(x.shape[2], SIDE))  # so that they come out as they are to lie
            return _in_blocks(_plain, x, kernel, [rim[::-1] for rim in _rims(kernel)], in_a_row)
        return _plain(x, kernel, strides)

    @jax.custom_vjp
    def transposed(x, kernel):
        if on_cpu and _has_few(kernel, strides):
            return _transposed_in_blocks(_plain, x, kernel)
        each_has_taps = all(size >= stride for size, stride in zip(kernel.shape[:2], strides, strict=True))
        if max(strides) > 1 and each_has_taps and on_cpu:
            return _in_phases(x, kernel, strides)
        shape = (x.shape[0], *(n * s for n, s in zip(x.shape[1:3], strides, strict=True)), kernel.shape[2])
        y = jax.ShapeDtypeStruct(shape, x.dtype)  # XLA has zeros between x where there are strides
        return jax.linear_transpose(lambda y: _plain(y, kernel, strides), y)(x)[0]

    ordinary.defvjp(
        lambda x, kernel: (ordinary(x, kernel), (x, kernel)),
        lambda kept, g: (transposed(g, kept[1]), of_kernel(kept[0], g, kept[1])),
    )
    transposed.defvjp(
        lambda x, kernel: (transposed(x, kernel), (x, kernel)),
        lambda kept, g: (ordinary(g, kept[1]), of_kernel(g, kept[0], kept[1])),
    )
    return ordinary, transposed


def _plain(x, kernel, strides, padding="SAME"):
    import jax

    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _in_phases(x, kernel, strides):
    """The transposed convolution without these zeros: outputs that are a stride apart by a convolution of their own."""
    from jax import numpy as np

    parts = []
    axes = [_phases(size, stride) for size, stride in zip(kernel.shape[:2], strides, strict=True)]
    for (rows, up), (columns, left) in itertools.product(*axes):
        part = kernel[rows, columns][::-1, ::-1].swapaxes(2, 3)
        parts.append(_plain(x, part, (1, 1), (up, left)))
    batch, height, width, _ = x.shape
    y = np.stack(parts).reshape(*strides, batch, height, width, kernel.shape[2])
    y = y.transpose(2, 3, 0, 4, 1, 5)  # (B, H, strides, W, strides, E)
    return y.reshape(batch, height * strides[0], width * strides[1], kernel.shape[2])


def _phases(size, stride):
    """Which taps of a kernel of this size reach every stride-th output of a transposed convolution, "same" padded.

    For each of the first `stride` outputs: the slice of its taps, and the padding (before, after) of the input.
    """
    before = max(size - stride, 0) // 2
    for output in range(stride):
        shift, first = divmod(output + before, stride)
        taps = len(range(first, size, stride))
        yield slice(first, None, stride), (taps - 1 - shift, shift)
