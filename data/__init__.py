"""Image data sets by name: found or downloaded, verified, split, and binarized if that is done once.

Nothing here imports Keras, and importing this package opens no data file.
"""

import os
from itertools import chain
from pathlib import Path

import numpy as np

from data import folder
from data.dataset import OTHER_DATA, SPLITS, Dataset, Source, Split, Stored, shuffled, subset
from data.faces import celeba
from data.files import as_folder, cache_folder, candidates, copies, nearest, places, read_first
from data.folder import absolute
from data.sources import SOURCES
from runtime.errors import DataError

__all__ = [
    "BINARIZE", "DATA_SETS", "HELD_OUT_SEED", "NAMES", "OTHER_DATA", "SPLITS", "DataError", "Dataset", "Source",
    "Split", "Stored", "absolute", "binarization", "binarized", "fetch", "found", "held_out", "load", "shuffled",
    "source", "subset",
]  # fmt: skip

DATA_SETS = {one.name: one for one in (*SOURCES, celeba)}


class Names(tuple):
    """The names that `load` takes: those of DATA_SETS, and folder:PATH for a user's own images."""

    def __contains__(self, name):
        return name in DATA_SETS or folder.is_name(name)


NAMES = Names((*DATA_SETS, "folder:PATH"))

BINARIZE = ("auto", "dynamic", "threshold", "none")
HELD_OUT_SEED = 20_180_409  # part of every published number: never change it
PIECE = 100  # images whose pixels are drawn at once


def source(name, image_size=None) -> Source:
    """What is known of the data set `name` before a file is opened. Raises DataError for an unknown name.

    A user's own images are resized to `image_size` if that is given.
    """
    if name not in NAMES:
        raise DataError(f"unknown data set {str(name)[:60]!r}: choose one of {', '.join(NAMES)}")
    return DATA_SETS[name] if name in DATA_SETS else folder.source(name, image_size)


def load(name, data_dir=None, other_data=False, image_size=None, whole=False, joined=False) -> Dataset:
    """The data set `name`, with no file opened yet: each split is found, or downloaded, when it is asked for.

    Files are looked for in data_dir, data_dir/name, $VAMPVAE_DATA, $VAMPVAE_DATA/name and the user's cache, and
    downloaded into the cache. One that is not the published file is refused unless `other_data`. The images of a
    folder:PATH are data_dir itself, a folder or a file, where that is given, and are resized to `image_size`; where
    `whole`, each split has all of them. Where `joined`, those of val follow in train, too. Raises DataError for an
    unknown name or a data_dir that is not a folder.
    """
    one = source(name, image_size)
    if folder.is_name(name):
        one = folder.whole(name, image_size) if whole else folder.source(name, image_size, data_dir)
    elif data_dir and not os.path.isdir(as_folder(data_dir)):
        raise DataError(f"data_dir {data_dir} is not a folder: name the folder that holds {name}")
    place = cache_folder(one.name)
    return Dataset(one, lambda file, optional: _obtain(file, data_dir, place, optional), other_data, joined)


def fetch(name, data_dir=None) -> dict[Path, str]:
    """The files of `name`, found, or else downloaded into data_dir/name or the user's cache: paths, with a verdict.

    Where a checksum is not known, all splits are read as in training, of images on disk the first one of each. Empty
    for a user's own images, which are read, too, and for digits, which scikit-learn makes. Raises DataError as
    `load` and `Dataset.split` do.
    """
    place, verdicts = as_folder(data_dir) / name if data_dir else cache_folder(name), {}
    one = folder.source(name, place=data_dir) if folder.is_name(name) else source(name)
    for file in one.files:
        copy = _obtain(file, data_dir, place)
        if copy.difference:
            raise DataError(f"{copy.difference}: {file.mend}")
        verdicts[copy.path] = "verified" if file.unpacked.checksum else "readable; its checksum is not known"
    if one.num_images is None or not all(file.unpacked.checksum for file in one.files):  # its content tells what it is
        dataset = Dataset(one, lambda file, optional: _obtain(file, data_dir, place, optional))
        for split in SPLITS:
            dataset.split(split).images[:1]  # an image on disk is decoded when it is indexed
        dataset.tell()
    return verdicts


def found(name, data_dir=None) -> list[tuple[str, Path | None]]:
    """Each file of `name` with the path where it was found, or None; nothing is opened, verified or downloaded.

    Empty for digits, which scikit-learn makes. Raises DataError for an unknown name or a closed folder.
    """
    files, folders = source(name).files, places(name, data_dir)
    return [(file.name, next(chain(candidates(file, folders), copies(file, folders)), None)) for file in files]


def binarization(source, mode) -> str:
    """`mode`, one of BINARIZE, with "auto" replaced by what it means for a Source.

    Raises DataError for any other mode, and for one that the data set cannot have.
    """
    if mode not in BINARIZE:
        raise DataError(f"unknown binarization {mode!r}: choose one of {', '.join(BINARIZE)}")
    chosen = source.binarize if mode == "auto" else mode
    if source.is_lazy and chosen != "none":
        raise DataError(f"{source.name} is read from disk as it is needed, and not binarized: say --binarize none")
    return chosen


def held_out(dataset, split_name, mode, index=None) -> np.ndarray | Stored:
    """The images of a split as every run sees them, or those of rising indices, float32 (N, H, W, C) in [0, 1].

    The images of a data set that stays on disk are read when they are indexed. "dynamic" is one Bernoulli draw,
    p(x = 1) = grey, from a seed that depends on the split alone: the same on every machine and in every run, so that
    numbers can be compared. "threshold" is grey >= 0.5, and "none" is grey itself. Raises DataError for an unknown
    mode, and as `Dataset.split` does.
    """
    grey = dataset.split(split_name).at(slice(None) if index is None else index).grey()
    rng = np.random.default_rng([HELD_OUT_SEED, SPLITS.index(split_name)])
    return binarized(grey, binarization(dataset.source, mode), rng, index)


def binarized(grey, mode, rng, index=None) -> np.ndarray:
    """Grey images, float32 in [0, 1], binarized by "dynamic", "threshold" or "none": the same shape.

    With their rising indices among others, (N,), each image is drawn as it is among all.
    """
    if mode != "dynamic":
        return (grey >= 0.5).astype(np.float32) if mode == "threshold" else grey
    index, binary = np.arange(len(grey)) if index is None else index, np.empty_like(grey)
    for start in range(0, index.max(initial=-1) + 1, PIECE):  # the draws of all others need not fit into memory
        drawn = rng.random((min(PIECE, index[-1] + 1 - start), *grey.shape[1:]), np.float32)
        part = slice(*np.searchsorted(index, (start, start + PIECE)))
        binary[part] = drawn[index[part] - start] < grey[part]
    return binary


def _obtain(file, data_dir, place, optional=False):
    """The Found copy of a file, downloaded into the folder `place` if it is on none of its places; None if optional."""
    known = [one for every in DATA_SETS.values() for one in every.files]
    folders = places(file.data_set, data_dir)
    if (found := read_first(file, folders, known)) or optional:
        return found
    if file.package:
        raise DataError(f"{file} was not found: {file.mend}")
    from data.download import download  # here, because pooch and requests are slow to import

    try:
        download(file.download, place)
    except DataError as error:
        names = ", ".join(dict.fromkeys(one.download.name for one in known if one.data_set == file.data_set))
        near = nearest(file, folders, known)
        raise DataError(
            f"{file} was not found and could not be downloaded ({error}): put {names} into {place}, "
            "or into a folder that --data_dir or $VAMPVAE_DATA names"
            + (f"; the nearest thing found is {near}, which is not that file" if near else "")
        ) from error
    return read_first(file, [place], known)
