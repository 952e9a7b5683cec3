"""A user's own images, `folder:PATH`: the image files in a folder, or the array in one .npy or .npz file."""

import collections
import functools
import hashlib
import io
import math
import os
import re
import stat
from pathlib import Path

import numpy as np

from data.archives import ZipFolder, parse_npy
from data.dataset import Source, as_bytes, shuffled
from data.files import as_folder, unreadable
from data.pictures import MOST_FILE, decoded, file_content, opened, pillow, stated_pages, words
from runtime.errors import DataError

PREFIX = "folder:"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
FEWEST = 10
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


def source(name) -> Source:
    """The Source of a folder:PATH; its images are not looked at before the first split is read."""
    path = _path(name)
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", path.name)[:40] or "root"
    label = f"folder-{plain}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    look = functools.cache(lambda: _looked(path))  # once for all splits

    def read(dataset, split):
        count, sha256, read_rows = look()
        images, of_split = read_rows(_indices(count, split, path))
        if images.max() <= 1:
            raise DataError(f"{path} has no value above 1 of 255: store 0 and 255, or a .npy of booleans or floats")
        dataset.sha256 |= {label: sha256, f"{label} {split}": of_split}
        return images, None

    title, binarize = f"Your own images in {path}", "dynamic"
    return Source(label, title, str(path), None, read, None, binarize=binarize, pseudo_pixels=(0.5, 0.02))


def _path(name):
    return Path(os.path.abspath(as_folder(name.removeprefix(PREFIX))))


def _looked(path):
    """Of all images at `path` their number, a sha256, and a function of rows, with these and a sha256 of them.

    Images are uint8 (n, H, W, C). Raises DataError if there are none.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): name your folder, .npy or .npz file") from error
    if stat.S_ISDIR(mode):
        return _pictures(path)
    if stat.S_ISREG(mode) and path.suffix.lower() in (".npy", ".npz"):
        return _rows(path)
    raise DataError(f"{path} is neither a folder nor a .npy or .npz file")


def _indices(count, split, path):
    """The images of a split among `count`, in one shuffled order: val and test have a tenth each, rounded down."""
    if count < FEWEST:
        raise DataError(f"{path} holds {count} images, and at least {FEWEST} are needed to split them")
    order, tenth = shuffled(count), count // 10
    return {"val": order[:tenth], "test": order[tenth : 2 * tenth], "train": order[2 * tenth :]}[split]


def _pictures(folder):
    """`_looked` of a folder; its sha256 are those of the names, and of the sha256 of each file that is read."""
    pages, first = [], None  # of each image its file and page
    for name in sorted(_names(folder)):
        with opened(folder / name) as file:
            shapes = pillow(file, folder / name, stated_pages)
        for page, shape in shapes.items():
            first = first or shape
            pages.append((name, page))
            if shape != first:
                where = f"{folder / name}{f', page {page + 1},' * (page > 0)}"
                other = f"{where} is {words(shape)}, but {folder / pages[0][0]} is {words(first)}"
                raise DataError(f"{other}: make all images alike")
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
            images[index] = pillow(io.BytesIO(content), folder / name, decoded, wanted, first)
            for place in index:
                sums[place] = hashlib.sha256(content).digest()
        return images, hashlib.sha256(b"".join(sums)).hexdigest()

    names = [f"{name}{f'#{page}' * (page > 0)}" for name, page in pages]
    return len(pages), hashlib.sha256(os.fsencode("\0".join(names))).hexdigest(), read


def _names(folder):
    """Names of the image files in and below a folder, without hidden files, hidden folders and linked folders."""

    def complain(error):
        raise unreadable(error.filename, error)

    for here, folders, files in os.walk(folder, onerror=complain):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(here, name).relative_to(folder).as_posix()


def _rows(path):
    """`_looked` of an array; its sha256 are those of its file, and of the rows that are read.

    In a .npz file it is the only array, or the one that is called images.
    """
    if path.suffix.lower() == ".npz":
        archive = ZipFolder(path)
        name = next(iter(archive.infos)) if len(archive.infos) == 1 else "images.npy"
        if name not in archive.infos:
            raise DataError(f"{path} holds {len(archive.infos)} arrays, none of which is called images")
        content = archive.read(name, MOST_BYTES)
    else:
        content = file_content(path, MOST_BYTES)
    array = _as_images(parse_npy(content, path), path)

    def read(rows):
        images = np.ascontiguousarray(array[rows])
        return images, hashlib.sha256(images).hexdigest()

    return len(array), hashlib.sha256(content).hexdigest(), read


def _as_images(array, path):
    """uint8 (N, H, W, C) of an array of bytes, booleans, or floats from 0 to 1, (N, H, W) or (N, H, W, C)."""
    images = array[..., None] if array.ndim == 3 else array
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise DataError(f"{path} has an array of shape {array.shape}; expected (N, H, W) or (N, H, W, C), C 1 or 3")
    if images.dtype == np.uint8:
        return images
    return images * np.uint8(255) if images.dtype == bool else as_bytes(images, path)
