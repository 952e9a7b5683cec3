"""A user's own images, `folder:PATH`: the image files in a folder, or the array in one .npy or .npz file."""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import io
import math
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.archives import ZipFolder, parse_npy
from data.dataset import SPLITS, Source, as_bytes
from data.files import as_folder, unreadable
from data.pictures import MOST_FILE, decoded, file_content, opened, pillow, resized, stated_pages, words
from data.splits import arranged
from runtime.errors import DataError

PREFIX = "folder:"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
BLACK, WHITE = 25, 230  # a tenth from either end of the range
MOST_KINDS = 8  # of files left out that are named
MOST_BYTES = 4 << 30  # of all images, unpacked


def is_name(name) -> bool:
    """Whether `name` is folder:PATH with a possible path; nothing is opened."""
    if not isinstance(name, str) or not name.startswith(PREFIX) or name == PREFIX or "\0" in name:
        return False
    try:
        return len(os.fsencode(name)) < 4096
    except UnicodeEncodeError:
        return False


def absolute(name) -> str:
    """The name that means the same in every folder: it changes a folder:PATH with a relative path."""
    return PREFIX + str(_path(name)) if is_name(name) else name


def source(name, image_size=None, place=None) -> Source:
    """The Source of a folder:PATH; its images are not looked at before the first split is read.

    With an `image_size` each is resized, so that its shorter side has as many pixels, and cropped to a square. They are
    at `place` if they have moved. The Source is called after PATH in any case, as are its checksums.
    """
    path = _path(name)
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", path.name)[:40] or "root"
    label = f"folder-{plain}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    path = Path(os.path.abspath(as_folder(place))) if place else path
    look = functools.cache(lambda: _arranged(path, image_size))  # once for all splits

    def read(dataset, split):
        own, (rows, labels, dataset.class_names, said) = look()
        count, counts = sum(map(len, rows.values())), ", ".join(f"{len(rows[name]):,} {name}" for name in SPLITS)
        what = f"{PREFIX}{path.name or path}: {count:,} images {words(own.shape)} ({counts})"
        dataset.about = "; ".join([what, *said, *_left_out(own.left_out)])
        images, of_split = own.read(rows[split])
        if split == "train":  # judged here alone, so that no trained run is refused for a blank test image
            if own.are_bytes:
                _check_range(int(images.max()), path)
            dataset.likelihood = _usual_likelihood(images[:: max(1, len(images) // 1000)], path)
        dataset.sha256 |= {label: own.sha256, f"{label} {split}": of_split}
        return images, None if labels is None else labels[rows[split]]

    title, binarize = f"Your own images in {path}", "dynamic"
    return Source(label, title, str(path), None, read, None, binarize=binarize, pseudo_pixels=(0.5, 0.02))


def whole(name, image_size=None) -> Source:
    """As `source`, but each split has all images, and the Dataset their `image_names`, relative to PATH."""
    path, plain = _path(name), source(name, image_size)

    def read(dataset, split):
        own = _looked(path, image_size)
        what = f"{PREFIX}{path.name or path}: {len(own.names):,} images {words(own.shape)}"
        dataset.about = "; ".join([what, *_left_out(own.left_out)])
        dataset.image_names = tuple(one.encode(errors="backslashreplace").decode() for one in own.names if one)
        dataset.sha256[plain.name] = own.sha256
        return own.read(np.arange(len(own.names)))[0], None

    return dataclasses.replace(plain, read=read)


def _path(name):
    return Path(os.path.abspath(as_folder(name.removeprefix(PREFIX))))


def _usual_likelihood(images, path):
    """What the data sets of this kind have: mixlogistic for colours, and for grey images logistic or bernoulli.

    The latter are digits and drawings, nearly binary: half of the pixels or more are nearly black or nearly white.
    Warns where colours are grey.
    """
    if images.shape[-1] == 1:
        return "logistic" if np.mean((images > BLACK) & (images < WHITE)) > 0.5 else "bernoulli"
    if np.all(images == images[..., :1]):
        mend = "store them in grey, to be scored as grey images"
        print(f"warning: the images in {path} are grey, but have 3 channels: {mend}", file=sys.stderr)
    return "mixlogistic"


def _check_range(largest, path):
    """Raises DataError where the largest byte of all training images is 1 at most; warns where it is not above half."""
    if largest <= 1:
        raise DataError(f"{path} has no value above 1 of 255: store 0 and 255, or a .npy of booleans or floats")
    if largest < 128:
        dark = f"the largest value in {path} is {largest} of 255, so that all images are dark"
        mend = f"if {largest} stands for white, train on floats: np.save('floats.npy', images / {largest})"
        print(f"warning: {dark}; {mend}", file=sys.stderr)


def _left_out(counts):
    """A list with the sentence on what was not read, the most common kinds first; an empty one if there is nothing."""
    kinds = sorted((-count, kind) for kind, count in counts.items() if count)
    words = [f"{-count:,} {kind}" for count, kind in kinds[:MOST_KINDS]]
    words += [f"{-sum(count for count, _ in kinds[MOST_KINDS:]):,} of other kinds"] * (len(kinds) > MOST_KINDS)
    return [f"left out: {', '.join(words)}"] if words else []


class Own(NamedTuple):
    """What lies at a path: images of one `shape` (H, W, C), and the sha256 of what tells which they are.

    `read(rows)` returns images, uint8 (n, H, W, C), and their sha256. `names` are those of their files in a folder,
    with #1 for a second page, and "" in an array; `labels` is an array (N,) or None. `left_out` counts what was not
    read by its kind. `are_bytes` unless pixels were booleans or floats.
    """

    names: list[str]
    shape: tuple[int, int, int]
    sha256: str
    read: Callable
    left_out: collections.Counter
    labels: np.ndarray | None = None
    are_bytes: bool = True


def _arranged(path, size):
    own = _looked(path, size)
    return own, arranged(own.names, own.labels, path)


def _looked(path, size):
    """The Own of a path. Raises DataError if there are no images."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        text = "name your folder, .npy or .npz file, with --data_dir if it has moved since training"
        raise DataError(f"{path} cannot be read ({error.strerror}): {text}") from error
    if stat.S_ISDIR(mode):
        return _pictures(path, size)
    if stat.S_ISREG(mode) and path.suffix.lower() in (".npy", ".npz"):
        return _rows(path, size)
    raise DataError(f"{path} is neither a folder nor a .npy or .npz file")


def _pictures(folder, size):
    """`_looked` of a folder; its sha256 are those of the names, and of the sha256 of each file that is read."""
    pages, first, left_out = [], None, collections.Counter()  # of each image its file and page
    for name in sorted(_names(folder, left_out)):
        with opened(folder / name) as file:
            shapes = pillow(file, folder / name, stated_pages, size)
        for page, shape in shapes.items():
            first = first or shape
            pages.append((name, page))
            if shape != first:
                where = f"{folder / name}{f', page {page + 1},' * (page > 0)}"
                mend = "make all images alike, or train with --image_size 64, which resizes all"
                mend = mend if shape[2] == first[2] else "make all images grey, or all RGB"
                raise DataError(f"{where} is {words(shape)}, but {folder / pages[0][0]} is {words(first)}: {mend}")
    if not pages:
        raise DataError(f"{folder} holds no image ({', '.join(SUFFIXES)}); to use a .npy or .npz in it, name that file")
    if len(pages) * math.prod(first) > MOST_BYTES:
        raise DataError(f"{folder} holds more than {MOST_BYTES >> 30} GiB of images")

    def read(rows):
        images, sums, places = np.empty((len(rows), *first), np.uint8), [b""] * len(rows), collections.defaultdict(list)
        for place, row in enumerate(rows):
            places[pages[row][0]].append(place)
        for name, index in places.items():  # a file with many pages is opened once
            content = file_content(folder / name, MOST_FILE)
            wanted = [pages[rows[place]][1] for place in index]
            images[index] = pillow(io.BytesIO(content), folder / name, decoded, wanted, first, size)
            for place in index:
                sums[place] = hashlib.sha256(content).digest()
        return images, hashlib.sha256(b"".join(sums)).hexdigest()

    names = [f"{name}{f'#{page}' * (page > 0)}" for name, page in pages]
    sha256 = hashlib.sha256(os.fsencode("\0".join(names))).hexdigest()
    return Own(names, first, sha256, read, left_out)


def _names(folder, left_out):
    """Names of the image files in and below a folder; counts by kind in `left_out` what else is there."""

    def complain(error):
        raise unreadable(error.filename, error)

    for here, folders, files in os.walk(folder, onerror=complain):
        left_out["linked as a folder"] += sum(os.path.islink(os.path.join(here, name)) for name in folders)
        left_out["hidden"] += sum(name.startswith(".") for name in folders + files)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (name for name in files if not name.startswith(".")):
            if name.lower().endswith(SUFFIXES):
                yield Path(here, name).relative_to(folder).as_posix()
            else:
                left_out[Path(name).suffix.lower() or "without a suffix"] += 1


def _rows(path, size):
    """`_looked` of an array; its sha256 are those of its file, and of the rows that are read.

    In a .npz file it is the only array, or the one that is called images; that called labels has their classes.
    """
    labels, left_out = None, collections.Counter()
    if path.suffix.lower() == ".npz":
        archive = ZipFolder(path)
        name = next(iter(archive.infos)) if len(archive.infos) == 1 else "images.npy"
        if name not in archive.infos:
            raise DataError(f"{path} holds {len(archive.infos)} arrays, none of which is called images")
        content, left_out = archive.read(name, MOST_BYTES), collections.Counter(set(archive.infos) - {name})
    else:
        content = file_content(path, MOST_BYTES)
    stored = parse_npy(content, path)
    array = as_images(stored, path)
    if "labels.npy" in left_out and (labels := _labels(archive, len(array))) is not None:
        del left_out["labels.npy"]

    def read(rows):
        images = np.ascontiguousarray(array[rows])
        return _resized(images, size) if size else images, hashlib.sha256(images).hexdigest()

    sha256 = hashlib.sha256(content).hexdigest()
    shape = (size, size, array.shape[3]) if size else array.shape[1:]
    return Own([""] * len(array), shape, sha256, read, left_out, labels, stored.dtype == np.uint8)


def _resized(images, size):
    from PIL import Image

    pictures = (Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image) for image in images)
    return np.stack([np.atleast_3d(resized(picture, size)) for picture in pictures])


def _labels(archive, count):
    """The array labels of a .npz, whole numbers or booleans (count,); None if it is anything else, as texts."""
    with contextlib.suppress(DataError):
        labels = parse_npy(archive.read("labels.npy", MOST_BYTES), archive.path).ravel()
        if labels.dtype.kind in "biu" and len(labels) == count:
            return labels
    return None


def as_images(array, path):
    """uint8 (N, H, W, C) of an array of bytes, booleans, or floats from 0 to 1, (N, H, W) or (N, H, W, C)."""
    images = array[..., None] if array.ndim == 3 else array
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        is_torch = array.ndim == 4 and array.shape[1] in (1, 3)
        mend = ": store images.transpose(0, 2, 3, 1)" * is_torch
        raise DataError(
            f"{path} has an array of shape {array.shape}; expected (N, H, W) or (N, H, W, C), C 1 or 3{mend}"
        )
    if images.dtype == np.uint8:
        return images
    if images.dtype == bool:
        return images * np.uint8(255)
    if images.dtype.kind != "f":
        raise DataError(f"{path} holds {images.dtype}; make it uint8, 0 to 255, or floats from 0 to 1")
    return as_bytes(images, path)
