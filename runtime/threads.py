"""Compiled Keras models called by several threads at once: what each backend needs for it, and the threads."""

import concurrent.futures
import threading

import keras
import numpy as np

from runtime.backend import has_gpu

ONE_CALL = threading.Lock()  # TensorFlow's convolutions with a residual sum share memory between calls of a function


def predictor(model):
    """A `predict_on_batch` of a compiled Keras model that changes no variable, so that threads may call it at once.

    On TensorFlow, the calls wait for one another. On JAX, Keras' own hands all variables over to each call and takes
    them back.
    """
    if keras.backend.backend() != "jax":
        model.make_predict_function()  # before several threads ask for it

        def alone(x):
            with ONE_CALL:
                return keras.Model.predict_on_batch(model, x)

        return alone
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
    """How many threads gain by calling compiled functions at once: two keep a CPU busier than one, a GPU serves one."""
    return 1 if has_gpu() else 2


def side_by_side(function, parts):
    """Calls function(part, stopped) for each part in a thread of its own; raises what the first failing one raised.

    `stopped()` is true once one of them failed, or this thread was interrupted: they should return then.
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
