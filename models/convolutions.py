"""Transposed convolutions whose gradients are fast on JAX, too, which takes seconds for Keras' own on a CPU."""

import functools

import keras
from keras import layers


class Conv2DTranspose(layers.Conv2DTranspose):
    """Keras' layer of this name, of "same" padding, with the same weights and the same numbers on either backend.

    XLA's CPU code for the gradient of its kernel takes up to fifty times as long as the layer itself. That gradient is
    also that of the kernel of an ordinary convolution, with input and output exchanged, which is fast.
    """

    def __init__(self, filters, kernel_size, strides=1, **kwargs):
        super().__init__(filters, kernel_size, strides, padding="same", **kwargs)

    def call(self, x):
        """Maps (B, H, W, F) to (B, H strides, W strides, filters)."""
        if keras.backend.backend() != "jax":
            return super().call(x)
        y = _transposed(self.strides)(x, keras.ops.convert_to_tensor(self.kernel, x.dtype))
        return self.activation(y + keras.ops.convert_to_tensor(self.bias, x.dtype))


@functools.cache
def _transposed(strides):
    """A function of maps (B, H, W, F) and a kernel (k, l, filters, F), to (B, H strides, W strides, filters)."""
    import jax

    def ordinary(y, kernel):
        return jax.lax.conv_general_dilated(y, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    @jax.custom_vjp
    def transposed(x, kernel):
        batch, height, width, _ = x.shape
        shape = (batch, height * strides[0], width * strides[1], kernel.shape[2])
        return jax.linear_transpose(lambda y: ordinary(y, kernel), jax.ShapeDtypeStruct(shape, x.dtype))(x)[0]

    def forward(x, kernel):
        return transposed(x, kernel), (x, kernel)

    def backward(kept, gradient):
        x, kernel = kept
        of_x, pull = jax.vjp(lambda kernel: ordinary(gradient, kernel), kernel)
        return of_x, *pull(x)

    transposed.defvjp(forward, backward)
    return transposed
