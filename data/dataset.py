"""A data set as the rest of the project sees it: three splits of images, each opened when it is asked for."""

from typing import NamedTuple

import numpy as np

from data.files import DataError

SPLITS = ("train", "val", "test")
STAND_IN = "stand-in data, not comparable with published results"


def as_bytes(values, what) -> np.ndarray:
    """Grey values, floats from 0 to 1, as the nearest of 256 levels: uint8 of the same shape, 255 for 1.

    Raises DataError for other values in `what`.
    """
    if values.dtype.kind != "f":
        raise DataError(f"{what} holds {values.dtype}; make it uint8, 0 to 255, or floats from 0 to 1")
    if not np.isfinite(values).all():
        raise DataError(f"{what} has values that are NaN or infinite")
    if not np.all((values >= 0) & (values <= 1)):
        raise DataError(f"{what} has floats from {values.min():g} to {values.max():g}; they must lie between 0 and 1")
    return np.rint(255 * values).astype(np.uint8)


class Stored:
    """Images that stay on disk: `images[index]`, by number, slice or indices, reads those and gives an array of them.

    Otherwise like an array (N, H, W, C) of bytes: `shape`, `dtype`, len. `read(name)` gives one image of this `shape`,
    (H, W, C), and may raise DataError.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, read, names, shape):
        self._read, self._names, self.shape = read, names, (len(names), *shape)

    def __len__(self):
        return len(self._names)

    def __getitem__(self, index):
        names = np.asarray(self._names[index])
        images = np.empty((names.size, *self.shape[1:]), self.dtype)
        for image, name in zip(images, names.flat, strict=True):
            image[:] = self._read(name)
        return images.reshape(*names.shape, *self.shape[1:])

    def first(self, n) -> "Stored":
        """The first n, none of which is read."""
        return Stored(self._read, self._names[:n], self.shape[1:])


class Grey:
    """The images of a Split of Stored ones as `Split.grey` gives them, read when they are indexed: float32."""

    dtype = np.dtype(np.float32)

    def __init__(self, split):
        self._split, self.shape = split, split.images.shape

    def __len__(self):
        return len(self._split.images)

    def __getitem__(self, index):
        return self._split.grey(index)


class Split(NamedTuple):
    """Images as published: uint8 (N, H, W, C) from 0 to max_value, an array or Stored, labels int64 (N,) or None."""

    images: np.ndarray | Stored
    labels: np.ndarray | None
    max_value: int

    def grey(self, index=None) -> np.ndarray | Grey:
        """Images by slice or by n indices, divided by max_value: float32 in [0, 1], (n, H, W, C).

        Without an index all of them; those that are Stored stay on disk.
        """
        if index is None and isinstance(self.images, Stored):
            return Grey(self)
        return np.divide(self.images[slice(None) if index is None else index], self.max_value, dtype=np.float32)

    def first(self, n) -> "Split":
        """The first n images and labels; all of them if n is None."""
        images = self.images.first(n) if isinstance(self.images, Stored) else self.images[:n]
        return self._replace(images=images, labels=None if self.labels is None else self.labels[:n])

    def thresholded(self) -> "Split":
        """The same split with pixels cut at 0.5: images of 0 and 1, max_value 1."""
        return self._replace(images=(self.grey() >= 0.5).astype(np.uint8), max_value=1)


class Dataset:
    """The splits of one source, lazy and cached: no file is looked for before a split that needs it.

    `sha256` maps the name of each file opened so far to the sha256 of its unpacked content.
    """

    def __init__(self, source, read_file):
        """`read_file` takes one of the source's files and returns it as a `files.Found`."""
        self.source = source
        self.name = source.name
        self.class_names = source.class_names
        self.binarize = source.binarize
        self.is_lazy = source.is_lazy
        self.sha256 = {}
        self._read_file = read_file
        self._contents = {}
        self._splits = {}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C), for which the training images are read where the source does not state it."""
        return self.source.image_shape or self.split("train").images.shape[1:]

    @property
    def note(self) -> str:
        """What has to be said beside every score on the files that were opened so far; mostly ""."""
        return self.source.note(self.sha256)

    def split(self, name) -> Split:
        """The split "train", "val" or "test".

        Raises DataError if it cannot be had, or is not what the source states.
        """
        if name not in SPLITS:
            raise DataError(f"{self.name} has no split {name!r}: choose one of {', '.join(SPLITS)}.")
        if name not in self._splits:
            images, labels = self.source.read(self, name)
            if self.source.image_shape:
                count = self.source.counts(self.sha256).get(name, len(images))
                self._check(f"{name} images", images, (count, *self.source.image_shape))
            if labels is not None:
                self._check(f"{name} labels", labels, images.shape[:1])
            self._splits[name] = Split(images, labels, self.source.max_value)
        return self._splits[name]

    def content(self, file) -> bytes:
        """The unpacked content of one of the source's files, read once. For the source's own `read`."""
        if file not in self._contents:
            _, self._contents[file], self.sha256[file.unpacked_name] = self._read_file(file)
        return self._contents[file]

    def opened(self, file, open_at):
        """What `open_at(path)` makes of one of the source's files that stay where they are, once. As `content`."""
        if file not in self._contents:
            self._contents[file] = open_at(self._read_file(file).path)
        return self._contents[file]

    def _check(self, what, array, shape):
        if array.shape != shape:
            raise DataError(f"{self.name}'s {what} have shape {array.shape}, expected {shape}.")
