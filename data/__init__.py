"""Image data sets by name: found or downloaded, verified, split, and binarized where that is done once.

Nothing here imports Keras, and importing this package opens no file: a --help that reads it is instant.
"""

import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import folder
from data.cifar import cifar10
from data.dataset import SPLITS, STAND_IN, Dataset, Grey, Split
from data.faces import celeba
from data.files import DataError, as_folder, cache_folder, candidates, places
from data.sources import (
    Source,
    caltech101,
    digits,
    fashionmnist,
    freyfaces,
    histopathology,
    mnist,
    omniglot,
    staticmnist,
)

__all__ = [
    "BINARIZE",
    "DATA_SETS",
    "NAMES",
    "SPLITS",
    "DataError",
    "Dataset",
    "Fetched",
    "Grey",
    "Source",
    "Split",
    "absolute",
    "binarization",
    "binarized",
    "fetch",
    "found",
    "held_out",
    "load",
    "source",
]

DATA_SETS = {
    one.name: one
    for one in (
        *(mnist, fashionmnist, digits, staticmnist, caltech101, omniglot, freyfaces, histopathology),
        *(cifar10, celeba),
    )
}


class Names(tuple):
    """The names that `load` takes, to be listed: those of DATA_SETS, and folder:PATH for a user's own images."""

    def __contains__(self, name):
        return name in DATA_SETS or folder.is_name(name)


NAMES = Names((*DATA_SETS, "folder:PATH"))

_BINARIZERS = {
    "dynamic": lambda grey, rng: (rng.random(grey.shape, np.float32) < grey).astype(np.float32),
    "threshold": lambda grey, rng: (grey >= 0.5).astype(np.float32),
    "none": lambda grey, rng: grey,
}
BINARIZE = ("auto", *_BINARIZERS)
HELD_OUT_SEED = 20_180_409  # part of every published number: never change it


class Fetched(NamedTuple):
    """One file of a data set as it lies on this machine, and how it was recognised, in a word or two."""

    file: str
    path: Path
    bytes: int
    verdict: str


def source(name) -> Source:
    """What is known of the data set `name` before anything is opened. Raises DataError for an unknown name."""
    if name not in NAMES:
        raise DataError(f"unknown data set {str(name)[:60]!r}: choose one of {', '.join(NAMES)}.")
    return DATA_SETS[name] if name in DATA_SETS else folder.source(name)


def absolute(name) -> str:
    """The name that means the same in every folder: another one for a folder:PATH whose path is relative."""
    return folder.absolute(name) if folder.is_name(name) else name


def load(name, data_dir=None) -> Dataset:
    """The data set `name`, with no file opened yet: each split is found, or downloaded, when it is asked for.

    Files are looked for in data_dir, data_dir/name, $VAMPVAE_DATA, $VAMPVAE_DATA/name and the user's cache,
    and downloaded into the cache. Raises DataError for an unknown name or a data_dir that is not a folder.
    """
    one = source(name)
    if data_dir and not os.path.isdir(as_folder(data_dir)):
        raise DataError(f"data_dir {data_dir} is not a folder: name the one that holds {name}.")
    return Dataset(one, lambda file: _obtain(file, data_dir, cache_folder(one.name)))


def fetch(name, data_dir=None) -> list[Fetched]:
    """Every file of `name`, found, or else downloaded into data_dir/name or the user's cache, and verified.

    Empty for a data set that comes with a package. Raises DataError as `load` and `Dataset.split` do.
    """
    files = source(name).files
    place = as_folder(data_dir) / name if data_dir else cache_folder(name)
    return list(dict.fromkeys(_fetched(file, _obtain(file, data_dir, place)) for file in files))  # an archive, once


def found(name, data_dir=None) -> list[tuple[str, Path | None]]:
    """For each file of `name`, where it was found, or None; nothing is opened, verified or downloaded.

    Empty for a data set that comes with a package. Raises DataError for an unknown name or a closed folder.
    """
    files, folders = source(name).files, places(name, data_dir)
    return [(file.name, next(candidates(file, folders), None)) for file in files]


def binarization(dataset, mode) -> str:
    """`mode`, one of BINARIZE, with "auto" replaced by what it means for `dataset`, a Dataset or a Source.

    Raises DataError for any other mode, and for one that the data set cannot have.
    """
    if mode not in BINARIZE:
        raise DataError(f"unknown binarization {mode!r}: choose one of {', '.join(BINARIZE)}.")
    chosen = dataset.binarize if mode == "auto" else mode
    if dataset.is_lazy and chosen != "none":
        raise DataError(f"{dataset.name} is read from disk as it is needed, and not binarized: say --binarize none.")
    return chosen


def held_out(dataset, split_name, mode, n=None) -> np.ndarray | Grey:
    """The images of a split as every run sees them, or the first n, float32 (N, H, W, C) in [0, 1].

    Those of a data set that stays on disk do so here, too: they are read when they are indexed.
    "dynamic" is one Bernoulli draw, p(x = 1) = grey, from a seed that depends on the split alone: the same on
    every machine and in every run, so that numbers can be compared. "threshold" is grey >= 0.5, and "none" is
    grey itself. Raises DataError for an unknown mode, and as `Dataset.split` does.
    """
    grey = dataset.split(split_name).first(n).grey()
    rng = np.random.default_rng([HELD_OUT_SEED, SPLITS.index(split_name)])
    return binarized(grey, binarization(dataset, mode), rng)


def binarized(grey, mode, rng) -> np.ndarray:
    """Grey images, float32 in [0, 1], as `mode` has them, "dynamic", "threshold" or "none": the same shape."""
    return _BINARIZERS[mode](grey, rng)


def _obtain(file, data_dir, place):
    from data.download import obtain  # here, because urllib is slow to import

    known = [one for every in DATA_SETS.values() for one in every.files]
    found = obtain(file, data_dir, place, known)
    if file.is_stand_in(found.sha256):
        print(f"warning: {found.path} is not {file}: {STAND_IN}", file=sys.stderr)
    return found


def _fetched(file, found):
    verdict = "verified" if file.is_known else "found; its checksum is not known"
    if file.is_stand_in(found.sha256):
        verdict = STAND_IN
    return Fetched(found.path.name, found.path, os.path.getsize(found.path), verdict)
