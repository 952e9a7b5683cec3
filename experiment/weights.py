"""Weights on disk: safetensors files, in which nothing can run and a header names every shape and type."""

import contextlib

import numpy as np
import safetensors

from runtime import atomic

MOST_HEADER = 1 << 24  # bytes; some 100,000 arrays


def values(variables):
    """Copies of the values of Keras variables, a dict by name: arrays in C order, as safetensors takes them to be."""
    from keras import ops

    return {name: np.asarray(ops.convert_to_numpy(one), order="C") for name, one in variables.items()}


def assign(variables, values):
    """Gives each Keras variable of a dict by name the value of its name."""
    for name, variable in variables.items():
        variable.assign(values[name])


def not_finite(model):
    """The name of the first weight of a model that is NaN or infinite somewhere, None where there is none.

    Terms and scores alone would hide some: ReLU turns NaN into 0 where TensorFlow joins it with the layer before it.
    """
    from keras import ops

    from models.weight_names import named_weights

    named = named_weights(model).items()
    return next((name for name, weight in named if not np.isfinite(ops.convert_to_numpy(weight)).all()), None)


@contextlib.contextmanager
def opened(path):
    """A safetensors file, open to read. Raises ValueError where it is none or is damaged, in the block too; OSError."""
    with atomic.opened(path) as file:
        if int.from_bytes(file.read(8), "little") > MOST_HEADER:
            raise ValueError(f"it is no safetensors file, or its header has more than {MOST_HEADER:,} bytes")
    try:
        with safetensors.safe_open(path, "numpy", backend="pread") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError(f"it is no whole safetensors file: {str(error).splitlines()[0][:200]}") from error


def arrays(file, expected):
    """The arrays in an open file, a dict by name. Raises ValueError unless they are those that are `expected`.

    That is a dict of name to a variable, or anything else with a shape and a dtype. Names, shapes and types are
    compared before memory is taken for any array.
    """
    for name in sorted(expected.keys() ^ set(file.keys())):
        raise ValueError(f"it lacks {name}" if name in expected else f"the model has no {name!r:.60}")
    for name, one in expected.items():
        stored, dtype = file.get_slice(name), np.dtype(one.dtype)
        theirs = f"{stored.get_dtype()} {tuple(stored.get_shape())}"
        ours = f"{dtype.kind.upper()}{8 * dtype.itemsize} {tuple(one.shape)}"  # F32 is the format's word for float32
        if theirs != ours:
            raise ValueError(f"{name} is {theirs:.60}, in the model {ours}")
    try:
        return {name: file.get_tensor(name) for name in expected}
    except MemoryError as error:
        raise ValueError("its arrays are larger than the memory of this machine") from error


def read(path, expected):
    """The arrays in the file at `path`. Raises as `opened` and `arrays` do."""
    with opened(path) as file:
        return arrays(file, expected)
