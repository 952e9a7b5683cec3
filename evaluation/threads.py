"""Calls of compiled functions by several threads: what either backend needs for it, and the threads."""

import concurrent.futures
import threading

import keras
import numpy as np


def predictor(model):
    """The `predict_on_batch` of a compiled model that changes none of its variables, for threads to call at once.

    On JAX, Keras' own hands all variables over to each call and takes them back.
    """
    if keras.backend.backend() == "jax":
        return _pure(model)
    model.make_predict_function()  # before several threads ask for it
    return lambda x: keras.Model.predict_on_batch(model, x)


def _pure(model):
    """A function of inputs to the model's outputs as arrays, by JAX."""
    import jax

    variables = model.trainable_variables, model.non_trainable_variables

    def outputs(values, x):
        return model.stateless_call(*values, x)[0]

    def predict(x):
        values = [[variable.value for variable in kind] for kind in variables]
        return keras.tree.map_structure(np.asarray, function(values, x))

    function = jax.jit(outputs) if model.jit_compile else outputs
    return predict


def number_of_threads():
    """How many threads may call compiled functions at once and gain by it.

    Two calls fill a processor better than one after the other does. On a GPU, they would wait for one another.
    """
    if keras.backend.backend() == "jax":
        import jax

        return 2 if jax.default_backend() == "cpu" else 1
    import tensorflow as tf

    return 1 if tf.config.get_visible_devices("GPU") else 2


def side_by_side(function, parts):
    """Calls function(part, stopped) for each of the parts in threads of their own; raises what the first one raised.

    `stopped()` is true from when one of them failed, or this thread was interrupted: they should return then.
    """
    event = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(len(parts)) as pool:
        try:
            running = [pool.submit(function, part, event.is_set) for part in parts]
            concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_EXCEPTION)
        finally:
            event.set()
    for one in running:
        one.result()
