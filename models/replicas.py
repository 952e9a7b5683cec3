"""One step on several devices: what it must know of the others, by either backend's means.

TensorFlow's MirroredStrategy runs a step on every device, a replica, with its part of the batch. JAX runs one step on
the whole batch, wherever its parts lie, as if there were one device; these parts are of equal size, though.
"""

import keras
from keras import ops

APART = 0x5BD1E995  # times its number is added to a replica's seed, so that no two are near one another


def context():
    """TensorFlow's ReplicaContext of a step that several replicas run; None elsewhere."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    found = tf.distribute.get_replica_context()
    return found if found is not None and found.num_replicas_in_sync > 1 else None


def totals(*values):
    """The sum of each of some tensors over all replicas; a list."""
    if (replica := context()) is None:
        return list(values)
    return replica.all_reduce("SUM", list(values))


class Noise(keras.random.SeedGenerator):
    """A SeedGenerator whose seeds are other ones in each replica, else all would draw the same noise.

    The first replica draws what a device alone does.
    """

    def next(self, ordered=True):
        """The next seed: (2,)."""
        seed = super().next(ordered)
        if (replica := context()) is None:
            return seed
        number = ops.cast(replica.replica_id_in_sync_group, seed.dtype)
        return seed + ops.stack([number * ops.cast(APART, seed.dtype), ops.zeros_like(number)])


def mean(values, axis):
    """The mean over the axes of a tensor, of which one is the batch: that of all replicas."""
    if context() is None:
        return ops.mean(values, axis=axis)
    total, count = totals(ops.sum(values, axis=axis), ops.cast(ops.size(values), values.dtype))
    return total * ops.cast(ops.size(total), values.dtype) / count


def mean_loss(losses):
    """The mean of (B,) over the batch of all replicas, so divided that the replicas' gradients add up to its gradient.

    Keras tells the history the value times the number of replicas, and weighs it by the images of the replica. So the
    value is the mean of the replica's own images, which may be fewer than another's, or none.
    """
    if (replica := context()) is None:
        return ops.mean(losses)
    count = ops.cast(ops.shape(losses)[0], losses.dtype)
    own = ops.divide_no_nan(ops.sum(losses), count) / replica.num_replicas_in_sync
    share = ops.stop_gradient(count / totals(count)[0]) * replica.num_replicas_in_sync
    return ops.stop_gradient(own) + share * (own - ops.stop_gradient(own))


def joined(x):
    """Images (B, H, W, C), of which JAX may have been given parts of equal size: `x` is then (of B numbers, images).

    The images are as many as are divisible by the devices; those behind the first B are none.
    """
    if not isinstance(x, tuple):
        return x
    numbers, images = x
    images = images[: numbers.shape[0]]
    return keras.distribution.distribute_tensor(images, keras.distribution.distribution().get_data_layout(images.shape))
