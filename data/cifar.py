"""CIFAR-10: colour images of ten classes, in five training batches and a test batch, each a pickle of Python 2."""

import numpy as np

from data.archives import unpickle
from data.dataset import Source
from data.files import published
from runtime.errors import DataError

SHAPE = (32, 32, 3)
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")

archive = published("cifar10", "cifar-10-python.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz")


def read_cifar(dataset, split):
    """Images uint8 (N, 32, 32, 3) and labels int64 (N,) of a split of CIFAR-10; val is the end of the training images.

    Where other data are taken, training batches may be missing.
    """
    *train, test = dataset.source.files
    files = [test] if split == "test" else train
    if dataset.takes_other:
        files = [file for file in files if dataset.content(file, optional=True) is not None] or files
        if split != "test" and len(files) < len(train):
            dataset.take_other(f"cifar10 has {len(files)} of {len(train)} training batches")
    batches = [parse_batch(unpickle(dataset.content(file), str(file)), file) for file in files]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    rows = dataset.source.rows(split, len(images))
    return np.ascontiguousarray(images[rows]), labels[rows]


def parse_batch(batch, file):
    """Images uint8 (N, 32, 32, 3) and labels int64 (N,) of an unpickled batch, whose channels come first.

    Raises DataError, which names `file`, for anything else.
    """
    images, labels = (batch.get(key) for key in ("data", "labels")) if isinstance(batch, dict) else (None, None)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (np.prod(SHAPE),):
        raise DataError(f"{file} has no array data of bytes (N, 3072): put the published file there")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 10 for label in labels):
        raise DataError(f"{file} has no list labels of numbers from 0 to 9: put the published file there")
    if len(images) != len(labels):
        found = f"{len(images):,} images and {len(labels):,} labels"
        raise DataError(f"{file} has {found}: put the published file there")
    return np.asarray(images).reshape(-1, SHAPE[2], *SHAPE[:2]).transpose(0, 2, 3, 1), np.array(labels, np.int64)


cifar10 = Source(
    name="cifar10",
    title="CIFAR-10: small colour photographs of animals and vehicles",
    image_shape=SHAPE,
    num_images={"train": 45_000, "val": 5_000, "test": 10_000},
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    read=read_cifar,
    likelihood="mixlogistic",
    files=tuple(published("cifar10", f"cifar-10-batches-py/{name}", archive=archive) for name in BATCHES),
    origin="A. Krizhevsky's python version of CIFAR-10, https://www.cs.toronto.edu/~kriz/cifar.html",
    pseudo_pixels=(0.5, 0.02),
)
