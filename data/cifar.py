"""CIFAR-10: colour images of ten classes, in five training batches and a test batch, each a pickle of Python 2."""

import numpy as np

from data.files import DataError, PublicFile, StandIn
from data.sources import Source, unpickled

SHAPE = (32, 32, 3)

archive = PublicFile(
    "cifar10",
    "cifar-10-python.tar.gz",
    170_498_071,
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    None,
    None,
    ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
)


def _batch(name, md5, stand_in=None):
    return PublicFile(
        "cifar10", f"cifar-10-batches-py/{name}", *(None,) * 4, (), md5=md5, stand_in=stand_in, archive=archive
    )


def read_cifar(dataset, split):
    """Images uint8 (N, 32, 32, 3) and labels int64 (N,) of a split of CIFAR-10; the last training images are for val.

    A stand-in for the first training batch stands for all of them, which are then not looked for.
    """
    *train, test = dataset.source.files
    files = [test] if split == "test" else train
    dataset.content(files[0])
    if files[0].is_stand_in(dataset.sha256[files[0].unpacked_name]):
        files = files[:1]
    counts = dataset.source.counts(dataset.sha256)
    total = counts["test"] if split == "test" else counts["train"] + counts["val"]
    batches = [parse_batch(unpickled(dataset, file), file, total // len(files)) for file in files]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    rows = {"train": slice(None, -counts["val"]), "val": slice(-counts["val"], None), "test": slice(None)}[split]
    return np.ascontiguousarray(images[rows]), labels[rows]


def parse_batch(batch, file, count):
    """Images uint8 (`count`, 32, 32, 3) and labels int64 (`count`,) of an unpickled batch, whose channels come first.

    Raises DataError, which names `file`, for anything else.
    """
    images, labels = (batch.get(key) for key in ("data", "labels")) if isinstance(batch, dict) else (None, None)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (np.prod(SHAPE),):
        raise DataError(f"{file} has no array data of bytes (N, 3072): put the published file there")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 10 for label in labels):
        raise DataError(f"{file} has no list labels of numbers from 0 to 9: put the published file there")
    if (len(images), len(labels)) != (count, count):
        found = f"{len(images):,} images and {len(labels):,} labels"
        raise DataError(f"{file} has {found}, not {count:,} of each: put the published file there")
    return images.reshape(-1, SHAPE[2], *SHAPE[:2]).transpose(0, 2, 3, 1), np.array(labels, np.int64)


cifar10 = Source(
    name="cifar10",
    title="CIFAR-10: small colour photographs of animals and vehicles",
    image_shape=SHAPE,
    num_images={"train": 45_000, "val": 5_000, "test": 10_000},
    max_value=255,
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    binarize="none",
    read=read_cifar,
    likelihood="mixlogistic",
    files=(
        _batch(
            "data_batch_1",
            "c99cafc152244af753f735de768cd75f",
            StandIn("83b0ab0260c019bd2d1cb29e8314c39fb75552601d8dc0139204ac4e3afdcc71", {"train": 9_000, "val": 1_000}),
        ),
        _batch("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
        _batch("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
        _batch("data_batch_4", "634d18415352ddfa80567beed471001a"),
        _batch("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
        _batch(
            "test_batch",
            "40351d587109b95175f43aff81a1287e",
            StandIn("12cbfe00cb41806909bf8d676a5579281cab04dacdc1d57ba2e85900869cd678", {"test": 1_000}),
        ),
    ),
    licence="none stated with the files",
    origin="A. Krizhevsky's python version of CIFAR-10, https://www.cs.toronto.edu/~kriz/cifar.html",
    pseudo_pixels=(0.5, 0.02),
)
