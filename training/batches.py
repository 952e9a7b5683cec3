"""Batches of images in an order that the seed fixes."""

import contextlib
import math

import keras
import numpy as np

import data
from runtime.errors import RunError
from training import devices

VALIDATION_BATCH = 500
AHEAD = 2  # batches that TensorFlow reads before they are needed


class Batches(keras.utils.PyDataset):
    """Batches of grey images (B, H, W, C) whose order is a pure function of (seed, epoch), on every backend.

    `steps` is their number in an epoch, of which the first `skip` are left out: training goes on behind them. Of each
    batch this process reads what the Spread says, and hands it on in its way.
    """

    error = None

    def __init__(self, split, config, spread=devices.ALONE):
        super().__init__()
        self.split, self.config, self.spread, self.skip = split, config, spread, 0
        self.steps = math.ceil(len(split.images) / config.batch_size)
        self.start_epoch(0)

    def start_epoch(self, epoch):
        """Draws the order of this epoch."""
        rng = np.random.default_rng(self.config.stream("order", epoch))
        self.order = rng.permutation(len(self.split.images))

    def __len__(self):
        return self.steps - self.skip

    @property
    def left(self):
        """The numbers of the images in what is left of the epoch, batch after batch."""
        return self.order[self.skip * self.config.batch_size :]

    def done(self, batch):
        """Steps of the epoch that are done when Keras says that this batch of a `fit` has ended.

        With several steps in an execution it names the last one of the next full execution, even behind the end.
        """
        return min(self.skip + batch + 1, self.steps)

    def __getitem__(self, index):
        chosen = self.left[index * self.config.batch_size :][: self.config.batch_size]
        with keeping_errors(self):
            return (self.spread.placed(self.split.grey(chosen[slice(*self.spread.bounds(len(chosen)))]), len(chosen)),)


class InOrder(keras.utils.PyDataset):
    """Batches of images (N, H, W, C) in their order: of an array, or of a data.Grey, which is read as it is needed.

    Of each batch this process reads what the Spread says, and hands it on in its way.
    """

    error = None

    def __init__(self, images, batch_size, spread=devices.ALONE):
        super().__init__()
        self.images, self.batch_size, self.spread = images, batch_size, spread

    def __len__(self):
        return math.ceil(len(self.images) / self.batch_size)

    def __getitem__(self, index):
        start = self.batch_size * index
        n = min(self.batch_size, len(self.images) - start)
        first, end = self.spread.bounds(n)
        with keeping_errors(self):
            return (self.spread.placed(self.images[start + first : start + end], n),)


def as_tf_dataset(batches):
    """What `fit` is given for a PyDataset of batches (images,): itself; on TensorFlow a tf.data.Dataset, not tuned.

    The thread that tunes Keras' own dataset sleeps through its end now and then, and the next epoch waits until it
    wakes: after 11 seconds of steps for 9 to 16 more.
    """
    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    is_in_memory = isinstance(batches, Batches) and isinstance(batches.split.images, np.ndarray)
    by_tensorflow = is_in_memory and batches.spread is devices.ALONE
    dataset = _made_by_tensorflow(batches) if by_tensorflow else _made_by_python(batches)
    dataset = dataset.prefetch(AHEAD).with_options(options)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(batches)))


def _made_by_python(batches):
    import tensorflow as tf

    def each():
        return (batches[index] for index in range(len(batches)))

    (images,) = batches[0]
    signature = (tf.TensorSpec((None, *images.shape[1:]), images.dtype),)
    return tf.data.Dataset.from_generator(each, output_signature=signature)


def _made_by_tensorflow(batches):
    """The same Batches, of images in memory. Python is called once an epoch; between short steps it is in their way."""
    import tensorflow as tf

    max_value, size = batches.split.max_value, batches.config.batch_size
    with tf.device("CPU:0"):  # where datasets are made
        images = tf.constant(batches.split.images)

    def each(order):
        def grey(start):
            return (tf.cast(tf.gather(images, order[start : start + size]), "float32") / max_value,)

        return tf.data.Dataset.range(0, tf.size(order, "int64"), size).map(grey)

    epochs = tf.data.Dataset.from_generator(lambda: [batches.left], output_signature=tf.TensorSpec((None,), "int64"))
    return epochs.flat_map(each)


@contextlib.contextmanager
def keeping_errors(batches):
    """Keeps a DataError of the block as `batches.error`: TensorFlow, which asks for batches, makes another of it."""
    try:
        yield
    except data.DataError as error:
        batches.error = error
        raise


@contextlib.contextmanager
def saying_errors(*every):
    """Raises RunError where one of these batches could not be read in the block, whatever that raised."""
    try:
        yield
    except Exception as error:
        if kept := [batches.error for batches in every if batches.error]:
            raise RunError(str(kept[0])) from error
        raise


def validation_batch(config):
    """Images in a validation step, fewer where each of them has several samples."""
    return max(1, VALIDATION_BATCH // config.samples)
