"""How a user's own images are split and labelled: by the folders in which they lie, else by chance."""

import itertools
import posixpath
import re
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from data.dataset import SPLITS, ranked_in_classes, shuffled
from runtime.errors import DataError

FOLDERS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
FOLDERS |= {"test": "test", "testing": "test"}
FEWEST = 10
MOST_CLASSES = 30  # that a figure can show


class Arrangement(NamedTuple):
    """Rows of each split; the classes (N,) of all rows, or None, and their names; what has to be said of these."""

    rows: dict[str, np.ndarray]
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    said: list[str]


def arranged(names, labels, path) -> Arrangement:
    """The Arrangement of images with these names, relative to `path` and with `/`, and with these labels, or None.

    The folders of FOLDERS are the splits, val or test without one is a tenth of train, and other folders directly below
    (of `path`, or of the one folder that holds all, or of a split) are classes, which have equal shares in each split
    that is drawn. Raises DataError for too few images.
    """
    common = PurePosixPath(posixpath.commonpath([name.rpartition("/")[0] for name in names])).parts
    depth = len([*itertools.takewhile(lambda name: name.lower() not in FOLDERS, common)])
    parts = [name.split("/")[depth:] for name in names]  # below the one folder that holds all of it
    folders = np.array([FOLDERS.get(part[0].lower(), "") if len(part) > 1 else "" for part in parts], object)
    has_folders = bool(folders.any())
    splits = folders if "train" in folders else np.where(folders == "", "train", folders)
    if labels is None:
        inside = [part[bool(folder) :] for part, folder in zip(parts, folders, strict=True)]
        labels = np.array([part[0] if len(part) > 1 else "" for part in inside])
    classes, class_names, more = _classes(labels, splits != "")
    rows, said = _split(splits, classes, has_folders, path)
    outside = np.count_nonzero(splits == "")
    is_hidden = not has_folders and any(name.lower() in FOLDERS for part in parts for name in part[1:-1])
    more += ["folders train, val or test inside of others are not used as splits"] * is_hidden
    more += [f"left out: {outside:,} images outside of the folders train, val and test"] * bool(outside)
    return Arrangement(rows, classes, class_names, said + more)


def _split(splits, classes, has_folders, path):
    """The rows of each split, in a fixed random order, and what has to be said; classes take turns in what is drawn."""
    rows = {name: np.flatnonzero(splits == name) for name in SPLITS}
    rows = {name: index[shuffled(len(index))] for name, index in rows.items()}
    missing, count = [name for name in SPLITS[1:] if not len(rows[name])], len(rows["train"])
    if count < (FEWEST if missing else 1):
        needed = f"at least {FEWEST} are needed to split them" if missing else "at least 1 is needed"
        raise DataError(f"{path} holds {count} images{' to train on' * has_folders}, and {needed}")
    if missing and classes is not None:
        rows["train"].sort()
        ranks, counts = ranked_in_classes(own := classes[rows["train"]])
        rows["train"] = rows["train"][np.lexsort((own, (ranks + 0.5) / counts))]  # rare classes are for training
    for name in missing:
        rows[name], rows["train"] = np.split(rows["train"], [count // 10])
    return rows, [f"{name} is a tenth of train, as no image is in such a folder" for name in missing if has_folders]


def _classes(labels, taken):
    """The class of each row, or None, the names of the classes, and what has to be said of the rows that are taken."""
    names = np.unique(labels[taken])
    beside = np.count_nonzero(labels[taken] == "") if labels.dtype.kind == "U" else 0
    if len(names) < 2:
        return None, (), []
    if beside:
        return None, (), [f"no labels, as {beside:,} images lie beside the folders of classes"]
    if len(names) > MOST_CLASSES:
        return None, (), [f"no labels, as {len(names)} classes are more than the {MOST_CLASSES} that figures can show"]
    plain = (re.sub(r"[^\w .+()-]", "-", str(name)).strip(" _")[:40] or "-" for name in names)
    return np.searchsorted(names, labels).astype(np.int64), tuple(plain), [f"{len(names)} classes"]
