"""Gradients inside a loss, and branches, as Keras has no function for them: written once for both backends."""

import keras


def value_and_gradient(f, z):
    """`f(z)`, which is a pair (value, more), and the gradient of the sum of `value` with respect to z, of z's shape.

    Where each entry of `value` depends on its own part of z, these are the gradients of each. All three can be
    differentiated again, with respect to weights, too. `f` must draw no noise and change no weight.
    """
    if keras.backend.backend() == "jax":
        import jax

        value, pull, more = jax.vjp(f, z, has_aux=True)
        (gradient,) = pull(keras.ops.ones_like(value))
    else:
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(z)
            value, more = f(z)
        gradient = tape.gradient(value, z)
    return value, more, gradient


def either(condition, one, other):
    """`one()` if the condition, a scalar, holds, else `other()`.

    JAX compiles each ops.cond of its own anew. Outside of a compiled function the condition is known, and decides.
    Inside of one, a gradient would store what both compute: so each computes it again where its gradient needs it.
    """
    if keras.backend.backend() == "jax":
        import jax

        if not isinstance(condition, jax.core.Tracer):
            return one() if condition else other()
        one, other = (jax.checkpoint(jax.checkpoint(branch)) for branch in (one, other))  # of gradients, too
    return keras.ops.cond(condition, one, other)
