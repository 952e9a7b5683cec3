"""Functions of a model over images, compiled once and called on one batch after the other."""

import math

import keras
import numpy as np
from keras import ops


class NotFiniteError(ValueError):
    """What is computed of an image is NaN or infinite; `image` is its index."""

    def __init__(self, image):
        super().__init__(f"what is computed of image {image} is not a number")
        self.image = image

    @classmethod
    def check(cls, first, *arrays):
        """Raises it for the first row that is not finite in all of the arrays, that of image `first` being row 0."""
        finite = np.all([np.isfinite(array).reshape(len(array), -1).all(axis=1) for array in arrays], axis=0)
        if not finite.all():
            raise cls(first + int(np.flatnonzero(~finite)[0]))


class Compiled(keras.Model):
    """A function `call` of image-first arrays, as `predict_on_batch` wants them, of one shape throughout.

    The value of the model's top prior is computed once, here, or is that of another: K pseudo-inputs are not encoded
    again in each call. `noise` is what `call` may draw from.
    """

    def __init__(self, model, seed=0, jit="auto", top_of=None):
        super().__init__()
        self.model, self.noise = model, keras.random.SeedGenerator(seed)
        if top_of is None:
            self.top = keras.tree.map_structure(self._constant, model.top_prior.distribution())
        else:
            self.top = top_of.top
        self.built = True
        self.compile(jit_compile=jit)

    def _constant(self, tensor):
        if not ops.is_tensor(tensor) and not isinstance(tensor, np.ndarray):  # a flow's functions
            return tensor
        variable = self.add_weight(shape=tuple(tensor.shape), initializer="zeros", trainable=False)
        variable.assign(ops.copy(tensor))  # JAX would share the buffer of a weight, which it gives away twice in a call
        return variable

    def prior(self):
        """p(z), as of `LatentModel.prior`, inside `call`."""
        return self.model.prior(
            keras.tree.map_structure(
                lambda value: ops.convert_to_tensor(value) if isinstance(value, keras.Variable) else value, self.top
            )
        )

    def on(self, arrays, rows):
        """The outputs on image-first arrays of any length, as float64, in batches of `rows`, the last one padded."""
        parts = []
        for start in range(0, len(arrays[0]), rows):
            part = [padded(array[start : start + rows], rows) for array in arrays]
            outputs = self.predict_on_batch(part if len(part) > 1 else part[0])
            length = min(rows, len(arrays[0]) - start)
            parts.append([np.asarray(output, "float64")[:length] for output in outputs])
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def by_image(value):
    """Samples first, (n, B, ...), to images first, (B, n, ...), and back."""
    return ops.swapaxes(value, 0, 1)


def evenly(count, most):
    """The length of the longest of the fewest parts of `count` that are no longer than `most`: little is padded."""
    return math.ceil(count / math.ceil(count / max(1, most)))


def padded(array, rows):
    """The array with its last row repeated up to `rows`: one shape, one compilation."""
    missing = rows - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array
