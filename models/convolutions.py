"""Convolutions that are fast on JAX, too, which takes seconds for the gradients of Keras' own on a CPU."""

import functools
import itertools

import keras
from keras import layers


class Conv2D(layers.Conv2D):
    """Keras' layer of this name, of "same" padding, with the same weights and the same numbers on either backend.

    On JAX its gradient with respect to maps is the transposed convolution below.
    """

    def __init__(self, filters, kernel_size, strides=1, **kwargs):
        super().__init__(filters, kernel_size, strides, padding="same", **kwargs)

    def call(self, x):
        """Maps (B, H, W, F) to (B, H / strides, W / strides, filters), rounded up."""
        is_whole = not any(n % s for n, s in zip(x.shape[1:3], self.strides, strict=True))
        if keras.backend.backend() != "jax" or not is_whole:
            return super().call(x)
        y = _pair(self.strides)[0](x, keras.ops.convert_to_tensor(self.kernel, x.dtype))
        return self.activation(y + keras.ops.convert_to_tensor(self.bias, x.dtype))


class Conv2DTranspose(layers.Conv2DTranspose):
    """Keras' layer of this name, of "same" padding, with the same weights and the same numbers on either backend.

    XLA's CPU code for the gradient of its kernel takes up to fifty times as long as the layer itself. That gradient is
    also that of the kernel of an ordinary convolution, with input and output exchanged, which is fast. A stride means
    zeros between the inputs there, which are multiplied as all else is; here, each phase of the outputs has its taps.
    """

    def __init__(self, filters, kernel_size, strides=1, **kwargs):
        super().__init__(filters, kernel_size, strides, padding="same", **kwargs)

    def call(self, x):
        """Maps (B, H, W, F) to (B, H strides, W strides, filters)."""
        if keras.backend.backend() != "jax":
            return super().call(x)
        y = _pair(self.strides)[1](x, keras.ops.convert_to_tensor(self.kernel, x.dtype))
        return self.activation(y + keras.ops.convert_to_tensor(self.bias, x.dtype))


@functools.cache
def _pair(strides):
    """An ordinary and a transposed convolution of JAX, each the other's gradient with respect to maps.

    The first is a function of maps (B, H strides, W strides, E) and a kernel (k, l, E, F), to (B, H, W, F); the second
    of such maps and the same kernel, back.
    """
    import jax

    dimensions = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    plain = functools.partial(jax.lax.conv_general_dilated, window_strides=strides, padding="SAME", **dimensions)

    def of_kernel(x, gradient, kernel):
        return jax.linear_transpose(functools.partial(plain, x), kernel)(gradient)[0]

    def dilated(x, kernel):
        shape = (x.shape[0], *(n * s for n, s in zip(x.shape[1:3], strides, strict=True)), kernel.shape[2])
        return jax.linear_transpose(lambda y: plain(y, kernel), jax.ShapeDtypeStruct(shape, x.dtype))(x)[0]

    def in_phases(x, kernel):
        parts = []
        axes = [_phases(size, stride) for size, stride in zip(kernel.shape[:2], strides, strict=True)]
        for (rows, up), (columns, left) in itertools.product(*axes):
            part = kernel[rows, columns][::-1, ::-1].swapaxes(2, 3)
            parts.append(jax.lax.conv_general_dilated(x, part, (1, 1), (up, left), **dimensions))
        batch, height, width, _ = x.shape
        y = jax.numpy.stack(parts).reshape(*strides, batch, height, width, kernel.shape[2])
        y = y.transpose(2, 3, 0, 4, 1, 5)  # (B, H, strides, W, strides, E)
        return y.reshape(batch, height * strides[0], width * strides[1], kernel.shape[2])

    @jax.custom_vjp
    def ordinary(x, kernel):
        return plain(x, kernel)

    @jax.custom_vjp
    def transposed(x, kernel):
        each_has_taps = all(size >= stride for size, stride in zip(kernel.shape[:2], strides, strict=True))
        in_parts = max(strides) > 1 and each_has_taps and jax.default_backend() == "cpu"
        return (in_phases if in_parts else dilated)(x, kernel)

    ordinary.defvjp(
        lambda x, kernel: (plain(x, kernel), (x, kernel)),
        lambda kept, g: (transposed(g, kept[1]), of_kernel(kept[0], g, kept[1])),
    )
    transposed.defvjp(
        lambda x, kernel: (transposed(x, kernel), (x, kernel)),
        lambda kept, g: (ordinary(g, kept[1]), of_kernel(g, kept[0], kept[1])),
    )
    return ordinary, transposed


def _phases(size, stride):
    """Which taps of a kernel of this size reach every stride-th output of a transposed convolution, "same" padded.

    For each of the first `stride` outputs: the slice of its taps, and the padding (before, after) of the input.
    """
    before = max(size - stride, 0) // 2
    for output in range(stride):
        shift, first = divmod(output + before, stride)
        taps = len(range(first, size, stride))
        yield slice(first, None, stride), (taps - 1 - shift, shift)
