"""Functions of a model over images, compiled once and called on one batch after the other."""

import math

import keras
import numpy as np
from keras import ops

from evaluation import threads


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
    again in each call. It keeps nothing from call to call, so that threads may call it at once: what `call` draws from
    is a `Noise` of a key that it is given.
    """

    def __init__(self, model, jit="auto", top_of=None):
        super().__init__()
        self.model = model
        if top_of is None:
            self.top = keras.tree.map_structure(self._constant, model.top_prior.distribution())
        else:
            self.top = top_of.top
        self.built = True
        self.compile(jit_compile=jit)
        self._predict = threads.predictor(self)

    def _constant(self, tensor):
        if not ops.is_tensor(tensor) and not isinstance(tensor, np.ndarray):  # a flow's functions
            return tensor
        variable = self.add_weight(shape=tuple(tensor.shape), initializer="zeros", trainable=False)
        variable.assign(tensor)
        return variable

    def predict_on_batch(self, x):
        """As Keras' own, but that threads may call it at once on JAX, too."""
        return self._predict(x)

    def prior(self):
        """p(z), as of `LatentModel.prior`, inside `call`."""
        return self.model.prior(
            keras.tree.map_structure(
                lambda value: ops.convert_to_tensor(value) if isinstance(value, keras.Variable) else value, self.top
            )
        )

    def on(self, arrays, rows, seeds=None):
        """The outputs on image-first arrays of any length, as float64, in batches of `rows`, the last one padded.

        With `seeds`, a SeedSequence, `call` is given one more array, a key of each batch's own.
        """
        parts = []
        for start in range(0, len(arrays[0]), rows):
            part = [padded(array[start : start + rows], rows) for array in arrays]
            if seeds is not None:
                part.append(key_of(seeds.spawn(1)[0]))
            outputs = self.predict_on_batch(part if len(part) > 1 else part[0])
            length = min(rows, len(arrays[0]) - start)
            parts.append([np.asarray(output, "float64")[:length] for output in outputs])
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


class Noise(keras.random.SeedGenerator):
    """Seeds that are made of a key, an array (2,): the noise of a compiled call is that of its key, whatever else was
    called before or meanwhile. In a loop of the backend's, each turn would draw the same.
    """

    def __init__(self, key):  # without the variable that others keep their state in, as this is made inside of a call
        self.key = ops.cast(key, "uint32" if keras.backend.backend() == "jax" else "int64")
        self.used = 0

    def next(self, ordered=True):
        """The next seed: (2,)."""
        self.used += 1
        return self.key + ops.cast([0, self.used], self.key.dtype)


def key_of(seeds):
    """The key of a `Noise`, made of a SeedSequence: uint32 (2,)."""
    return seeds.generate_state(2)


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
