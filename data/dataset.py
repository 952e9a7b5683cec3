"""A data set as the rest of the project sees it: three splits of images, each opened when it is asked for."""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data.files import MEND, PublicFile
from runtime.errors import DataError

SPLITS = ("train", "val", "test")
OTHER_DATA = "other data than the published files, not comparable with published results"
SHUFFLE_SEED = 20_180_409  # of splits that are not published: never change it


def shuffled(n) -> np.ndarray:
    """The numbers below n in a fixed order, as NumPy never changes what RandomState draws."""
    return np.random.RandomState(SHUFFLE_SEED).permutation(n)


def ranked_in_classes(labels) -> tuple[np.ndarray, np.ndarray]:
    """The rank of each row among those of its class, in a fixed random order, and how many these are: (N,) each."""
    order, (ranks, counts) = shuffled(len(labels)), np.empty((2, len(labels)), int)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        ranks[rows], counts[rows] = np.arange(len(rows)), len(rows)
    return ranks, counts


def subset(count, n=None) -> np.ndarray:
    """The rising indices of n of `count` images that stand for all of them; of all if n is None, or more.

    They are the first n of one fixed order: the same in every run, and part of every larger subset. The first images of
    a file would not do, as some files are sorted.
    """
    return np.sort(shuffled(count)[:n])


def as_bytes(values, what) -> np.ndarray:
    """Grey values, floats from 0 to 1, as the nearest of 256 levels: uint8 of the same shape, 255 for 1.

    Raises DataError for other values in `what`.
    """
    if values.dtype.kind != "f":
        raise DataError(f"{what} holds {values.dtype}; make it floats from 0 to 1")
    if not np.isfinite(values).all():
        raise DataError(f"{what} has values that are NaN or infinite")
    if not np.all((values >= 0) & (values <= 1)):
        least, most = values.min(), values.max()
        raise DataError(f"{what} has floats from {least:.9g} to {most:.9g}; they must lie between 0 and 1")
    return np.rint(255 * values).astype(np.uint8)


class Stored:
    """Images that stay on disk: like an array (N, H, W, C), but `images[index]` reads from disk.

    The index is a number, a slice or an array of numbers. `read(name)` returns one image of `shape`, (H, W, C), as
    bytes, and may raise DataError. With `max_value`, images are divided by it: float32 in [0, 1].
    """

    def __init__(self, read, names, shape, max_value=None):
        self._read, self._names, self._max_value = read, names, max_value
        self.shape, self.dtype = (len(names), *shape), np.dtype(np.float32 if max_value else np.uint8)

    def __len__(self):
        return len(self._names)

    def __getitem__(self, index):
        names = np.asarray(self._names[index])
        images = np.empty((names.size, *self.shape[1:]), np.uint8)
        for image, name in zip(images, names.flat, strict=True):
            image[:] = self._read(name)
        images = images.reshape(*names.shape, *self.shape[1:])
        return np.divide(images, self._max_value, dtype=np.float32) if self._max_value else images

    def at(self, index) -> "Stored":
        """The images of a slice or an array of numbers; none is read."""
        return Stored(self._read, self._names[index], self.shape[1:], self._max_value)

    def joined(self, other) -> "Stored":
        """These images, and then those of another part of the same files; none is read."""
        return Stored(self._read, np.concatenate([self._names, other._names]), self.shape[1:], self._max_value)

    def grey(self, max_value) -> "Stored":
        """The images divided by max_value; none is read."""
        return Stored(self._read, self._names, self.shape[1:], max_value)


class Split(NamedTuple):
    """Images as published, uint8 (N, H, W, C) from 0 to max_value, in memory or Stored; labels, int64 (N,) or None."""

    images: np.ndarray | Stored
    labels: np.ndarray | None
    max_value: int

    def grey(self, index=None) -> np.ndarray | Stored:
        """The images of an index, or all, divided by max_value: float32 in [0, 1], (n, H, W, C).

        Without an index, Stored images stay on disk.
        """
        if index is None and isinstance(self.images, Stored):
            return self.images.grey(self.max_value)
        return np.divide(self.images[slice(None) if index is None else index], self.max_value, dtype=np.float32)

    def at(self, index) -> "Split":
        """The images and labels of a slice or an array of numbers."""
        images = self.images.at(index) if isinstance(self.images, Stored) else self.images[index]
        return self._replace(images=images, labels=None if self.labels is None else self.labels[index])

    def joined(self, other) -> "Split":
        """The images of this split, and then those of another one."""
        stored, labels = isinstance(self.images, Stored), self.labels
        images = self.images.joined(other.images) if stored else np.concatenate([self.images, other.images])
        return self._replace(images=images, labels=None if labels is None else np.concatenate([labels, other.labels]))

    def thresholded(self) -> "Split":
        """The same split with images of 0 and 1, which is where grey >= 0.5; max_value 1."""
        return self._replace(images=(self.grey() >= 0.5).astype(np.uint8), max_value=1)


@dataclass(frozen=True)
class Source:
    """What is known of a data set before a file is opened, and `read(dataset, split)`, which opens files.

    `read` returns images, uint8 (N, H, W, C) from 0 to max_value, and labels, int64 (N,) or None.
    `image_shape` and `num_images` are None if only the user's own files tell.
    `binarize` and `likelihood` are what `auto` stands for in --binarize and --likelihood.
    `is_lazy`: images stay on disk (a `Stored`), so they cannot be binarized.
    `pseudo_pixels` are mean and standard deviation of random pseudo-inputs' pixels (Tomczak & Welling 2018, code).
    `note` is what every score on this data set has to say.
    """

    name: str
    title: str
    origin: str
    num_images: dict[str, int] | None
    read: Callable[["Dataset", str], tuple[np.ndarray, np.ndarray | None]]
    image_shape: tuple[int, int, int] | None = (28, 28, 1)
    files: tuple[PublicFile, ...] = ()
    max_value: int = 255
    class_names: tuple[str, ...] = ()
    binarize: str = "none"
    likelihood: str = "bernoulli"
    pseudo_pixels: tuple[float, float] = (0.05, 0.01)
    note: str = ""
    is_lazy: bool = False

    @property
    def is_binary(self) -> bool:
        """Whether the published pixels are 0 and 1."""
        return self.max_value == 1

    def rows(self, split, n) -> slice:
        """The part of n images that a split takes, where train and val are published as one array: val is its end.

        Where n is not the published number, val has the same share of it. Test images are an array of their own.
        """
        if split == "test":
            return slice(n)
        train, val = self.num_images["train"], self.num_images["val"]
        end = n - n * val // (train + val)
        return slice(end) if split == "train" else slice(end, n)


class Dataset:
    """The splits of one Source, lazy and cached: no file is looked for before a split needs it.

    `sha256` maps the name of each file opened so far to the sha256 of its unpacked content. `is_other` becomes True
    when one of them is not the published file, which is refused unless `takes_other`. `read_file(file, optional)`
    returns the `files.Found` of a file of the source, or None if it is optional. Of a user's own images, `about` says
    what was read and what was left out, and `class_names` are known, once a split is read, and once that is train, the
    `likelihood` that they call for.
    """

    def __init__(self, source, read_file, takes_other=False, joined=False):
        self.source, self.name, self.class_names, self.about = source, source.name, source.class_names, ""
        self.image_names = ()  # of the files of a user's own images, where each split has all of them
        self.likelihood = source.likelihood
        self.takes_other, self.is_other, self.sha256 = takes_other, False, {}
        self._read_file, self._contents, self._splits, self._joined = read_file, {}, {}, joined

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C); the training images are read for it if the source does not state it."""
        return self.source.image_shape or self.split("train").images.shape[1:]

    @property
    def note(self) -> str:
        """What every score on the files opened so far has to say; mostly ""."""
        return OTHER_DATA if self.is_other else ""

    def tell(self):
        """Prints `about` if there is something to say, and once in a process."""
        if self.about:
            _tell(self.about)

    def split(self, name) -> Split:
        """The split "train", "val" or "test". Raises DataError if it is missing, or not what the source states."""
        if name not in SPLITS:
            raise DataError(f"{self.name} has no split {name!r}: choose one of {', '.join(SPLITS)}")
        if name not in self._splits:
            images, labels = self.source.read(self, name)
            self._check(name, images, labels)
            self._splits[name] = Split(images, labels, self.source.max_value)
            if self._joined and name == "train":
                self._splits[name] = self._splits[name].joined(self.split("val"))
        return self._splits[name]

    def content(self, file, optional=False) -> bytes | None:
        """The unpacked content of a file, read once; None if it is optional and not on this machine. For `read`."""
        if file not in self._contents:
            found = self._read_file(file, optional)
            if found is None:
                return None
            if found.difference:
                self.take_other(found.difference, file.mend)
            self._contents[file], self.sha256[file.unpacked_name] = found.content, found.sha256
        return self._contents[file]

    def opened(self, file, open_at):
        """`open_at(path)` of a file that is read where it lies, called once. For `read`."""
        if file not in self._contents:
            self._contents[file] = open_at(self._read_file(file, False).path)
        return self._contents[file]

    def take_other(self, difference, mend=MEND):
        """Takes data that are not the published ones, with one warning. Raises DataError unless `takes_other`."""
        if not self.takes_other:
            raise DataError(f"{difference}: {mend}; a run that is trained with --other_data on takes it as it is")
        if not self.is_other:
            print(f"warning: {difference}: {OTHER_DATA}", file=sys.stderr)
        self.is_other = True

    def _check(self, name, images, labels):
        """Raises DataError unless images and labels are what the source states; other data may have another number."""
        count = len(images) if self.is_other or self.source.num_images is None else self.source.num_images[name]
        expected = (count, *(self.source.image_shape or images.shape[1:]))
        if images.shape != expected:
            raise DataError(f"{self.name}'s {name} images have shape {images.shape}, expected {expected}")
        if not count:
            raise DataError(f"{self.name} has too few images for its split {name}")
        if images.dtype != np.uint8 or (isinstance(images, np.ndarray) and images.max() > self.source.max_value):
            raise DataError(f"{self.name}'s {name} images are not whole numbers from 0 to {self.source.max_value}")
        if labels is not None and labels.shape != (count,):
            raise DataError(f"{self.name}'s {name} labels have shape {labels.shape}, expected {(count,)}")
        if labels is not None and labels.max() >= len(self.class_names):
            raise DataError(f"{self.name}'s {name} labels go beyond its {len(self.class_names)} classes")


@functools.cache
def _tell(text):
    print(text, file=sys.stderr)
