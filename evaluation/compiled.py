"""Functions of a model and a batch of images, compiled once and called on one batch after the other."""

import math

import keras
import numpy as np
from keras import Variable, ops

from runtime.threads import predictor


class NotFiniteError(ValueError):
    """What is computed for an image is NaN or infinite; `image` is its index."""

    def __init__(self, image):
        super().__init__(f"what is computed for image {image} is not a number")
        self.image = image

    @classmethod
    def check(cls, first, *arrays):
        """Raises it for the first row with a value that is not finite in one of the arrays; row 0 is image `first`."""
        finite = np.all([np.isfinite(array).reshape(len(array), -1).all(axis=1) for array in arrays], axis=0)
        if not finite.all():
            raise cls(first + int(np.flatnonzero(~finite)[0]))


class Compiled(keras.Model):
    """`function(self, *arrays)` of image-first arrays, compiled for one shape and called by `predict_on_batch`.

    The distribution of the model's top prior is computed once, here, or taken from `top_of`: K pseudo-inputs are not
    encoded again in each call. Nothing is kept from call to call, so several threads may call it at once; the function
    draws from a `KeyedSeeds` of a key that it is given.
    """

    def __init__(self, model, function, top_of=None):
        super().__init__(dtype=model.dtype_policy)  # else that of the process would round images
        self.model, self.function = model, function
        self.top = top_of.top if top_of else keras.tree.map_structure(self._constant, model.top_prior.distribution())
        self.built = True
        self.compile(jit_compile="auto")
        self.predict_on_batch = predictor(self)  # Keras' own, but several threads may call it at once on JAX too

    def call(self, inputs):
        return self.function(self, *inputs)

    def _constant(self, tensor):
        if not ops.is_tensor(tensor) and not isinstance(tensor, np.ndarray):  # a flow's functions
            return tensor
        variable = self.add_weight(shape=tuple(tensor.shape), initializer="zeros", trainable=False)
        variable.assign(tensor)
        return variable

    def prior(self):
        """p(z), as from `LatentModel.prior`, inside the function."""
        top = keras.tree.map_structure(lambda v: ops.convert_to_tensor(v) if isinstance(v, Variable) else v, self.top)
        return self.model.prior(top)

    def log_joint(self, x):
        """The function from z (n, B, D) to log p(x, z), (n, B), and (), for images x, inside the function."""
        prior = self.prior()
        return lambda z: (self.model.likelihood(z).log_prob(x) + prior.log_prob(z), ())

    def drawn(self, arrays, seeds=None):
        """The outputs for these arrays and, with `seeds`, a SeedSequence, its key, as float64."""
        keys = [] if seeds is None else [key_of(seeds)]
        return [np.asarray(output, "float64") for output in self.predict_on_batch([*arrays, *keys])]

    def on(self, arrays, rows, seeds=None):
        """As `drawn`, for arrays of any length in batches of `rows`; the last one is padded."""
        parts = []
        for start in range(0, len(arrays[0]), rows):
            part = [padded(array[start : start + rows], rows) for array in arrays]
            outputs = self.drawn(part, seeds and seeds.spawn(1)[0])
            parts.append([output[: len(arrays[0]) - start] for output in outputs])
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


class Points(Compiled):
    """From latents (B, D) to the tensors that make up p(x|z), a list.

    log p(z) is left to the caller, as XLA loses another digit of a mixture's density, in which squares cancel.
    """

    def __init__(self, model, top_of=None):
        super().__init__(model, Points._parts, top_of)

    def _parts(self, z):
        self.traced = self.model.likelihood(z)
        return [part for part in keras.tree.flatten(self.traced) if ops.is_tensor(part)]

    def likelihood(self, z):
        """p(x|z) of latents (B, D), a distribution with batch (B,); B is the same in each call."""
        left = iter(self.predict_on_batch([z]))
        return keras.tree.map_structure(lambda part: next(left) if ops.is_tensor(part) else part, self.traced)


class KeyedSeeds(keras.random.SeedGenerator):
    """A generator of seeds that follow from a key, an array (2,): the noise of a compiled call depends on nothing else.

    In a loop of the backend, each turn would draw the same noise.
    """

    def __init__(self, key):  # without the state variable of other generators, as this is made inside of a call
        self.key = ops.cast(key, "uint32" if keras.backend.backend() == "jax" else "int64")
        self.used = 0

    def next(self, ordered=True):
        self.used += 1
        return self.key + ops.cast([0, self.used], self.key.dtype)


def key_of(seeds):
    """The key of a `KeyedSeeds`, from a SeedSequence: uint32 (2,)."""
    return seeds.generate_state(2)


def by_image(value):
    """Samples first, (n, B, ...), to images first, (B, n, ...), and back."""
    return ops.swapaxes(value, 0, 1)


def evenly(count, most):
    """The length of equal parts of `count`, as few as possible, none longer than `most`: little padding is needed."""
    return math.ceil(count / math.ceil(count / max(1, most)))


def padded(array, rows):
    """The array with its last row repeated up to `rows`: one shape, one compilation."""
    missing = rows - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array
