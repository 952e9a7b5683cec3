"""Batches of images in an order that the seed fixes."""

import contextlib
import math

import keras
import numpy as np

import data
from runtime.errors import RunError
from training import devices
from training.exemplars import Exemplars

VALIDATION_BATCH = 500
AHEAD = 2  # batches that TensorFlow prepares before they are needed


class Batches(keras.utils.PyDataset):
    """Batches of grey images (B, H, W, C) whose order is a pure function of (seed, epoch), on every backend.

    So are the images that are mirrored, with --augment flip: each in each epoch with probability 1/2.
    An epoch has `steps` batches, of which the first `skip` are left out where training resumes inside an epoch. The
    placement says which part of each batch this process reads.
    """

    error = None

    def __init__(self, split, config, placement=devices.ONE_DEVICE):
        super().__init__()
        self.split, self.config, self.placement, self.skip = split, config, placement, 0
        self.exemplars = Exemplars(config, len(split.images)) if config.has("num_exemplars") else None
        self.steps = math.ceil(len(split.images) / config.batch_size)
        self.start_epoch(0)

    def start_epoch(self, epoch):
        """Draws the order of this epoch, and which images are mirrored."""
        rng = np.random.default_rng(self.config.stream("order", epoch))
        self.order = rng.permutation(len(self.split.images))
        if self.config.augment == "flip":
            self.flips = np.random.default_rng(self.config.stream("flips", epoch)).random(len(self.order)) < 0.5

    def __len__(self):
        return self.steps - self.skip

    @property
    def left(self):
        """The indices of the images in the rest of the epoch, batch after batch."""
        return self.order[self.skip * self.config.batch_size :]

    def done(self, batch):
        """The steps of the epoch that are done when Keras calls `on_train_batch_end(batch)`.

        With several steps in an execution, Keras passes the last batch of a full execution, even beyond the epoch.
        """
        return min(self.skip + batch + 1, self.steps)

    def __getitem__(self, index):
        chosen = self.left[index * self.config.batch_size :][: self.config.batch_size]
        (images,) = _part(self, chosen, self._grey)
        if self.exemplars is None:
            return (images,)
        which, near = self.exemplars.of(chosen, self.skip + index)
        (others,) = _part(self, which, self.split.grey)
        more = {"index": chosen.astype("int32"), "near": near, "others": others, "which": which.astype("int32")}
        return ({"images": images} | more,)  # Keras takes the size of a batch from the first of the sorted names

    def _grey(self, chosen):
        images = self.split.grey(chosen)
        if self.config.augment == "flip":
            flips = self.flips[chosen]
            images[flips] = images[flips, :, ::-1]
        return images


class InOrder(keras.utils.PyDataset):
    """Batches of images (N, H, W, C) in their order: of an array, or of a data.Stored, which reads them when needed."""

    error = None

    def __init__(self, images, batch_size, placement=devices.ONE_DEVICE):
        super().__init__()
        self.images, self.batch_size, self.placement = images, batch_size, placement

    def __len__(self):
        return math.ceil(len(self.images) / self.batch_size)

    def __getitem__(self, index):
        chosen = range(len(self.images))[self.batch_size * index :][: self.batch_size]
        return _part(self, chosen, lambda part: self.images[part.start : part.stop])


def _part(batches, chosen, read):
    """What `fit` is given for a batch of the `chosen` images, of which `read` is called for those of this process."""
    try:
        images = read(chosen[slice(*batches.placement.bounds(len(chosen)))])
    except data.DataError as error:  # stored, because TensorFlow raises another error in its place
        batches.error = error
        raise
    return (batches.placement.padded(images, len(chosen)),)


def as_tf_dataset(batches):
    """What `fit` is given for a PyDataset of batches (images,): itself on JAX, a tf.data.Dataset on TensorFlow.

    The dataset that Keras would make tunes itself in a thread. This thread sometimes sleeps at the end of an epoch, and
    the next epoch waits for it: 9 to 16 seconds after an epoch of 11 seconds.
    """
    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    is_whole = isinstance(batches, Batches) and isinstance(batches.split.images, np.ndarray)
    if is_whole and batches.config.augment == "none" and not batches.exemplars:
        dataset = _from_memory(batches)
    else:
        signature = keras.tree.map_structure(lambda one: tf.TensorSpec((None, *one.shape[1:]), one.dtype), batches[0])
        every = range(len(batches))
        dataset = tf.data.Dataset.from_generator(lambda: map(batches.__getitem__, every), output_signature=signature)
    dataset = dataset.prefetch(AHEAD).with_options(options)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(batches)))


def _from_memory(batches):
    """A dataset of Batches of images in memory. It calls Python once an epoch: calls between short steps slow them."""
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
def reporting_unreadable(*every):
    """Raises RunError if the block raises any error and one of these batches could not be read."""
    try:
        yield
    except Exception as error:
        if kept := [batches.error for batches in every if batches.error]:
            raise RunError(str(kept[0])) from error
        raise


def validation_batch(config):
    """The images in a validation step: fewer if each image has several samples."""
    return max(1, VALIDATION_BATCH // config.samples)
