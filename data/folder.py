"""A user's own images, `folder:PATH`: the image files in a folder, or the array in one .npy or .npz file."""

import functools
import hashlib
import io
import math
import os
import re
import stat
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.archives import read_member, zip_names
from data.dataset import as_bytes
from data.files import DataError, as_folder
from data.sources import Source, shuffled

PREFIX = "folder:"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM")  # Pillow knows more, some of which start other programs
CHANNELS = {"1": 1, "L": 1, "RGB": 3, "P": 3}  # of Pillow's modes; what is not here is not 8 bits, or has transparency
FEWEST = 10
MOST_PIXELS = 1 << 22  # in an image
MOST_FILE = 64 << 20  # bytes of an image file
MOST_BYTES = 4 << 30  # of all images, unpacked


def is_name(name) -> bool:
    """Whether `name` is a folder:PATH whose path could be one; nothing is opened."""
    if not isinstance(name, str) or not name.startswith(PREFIX) or name == PREFIX or "\0" in name:
        return False
    try:
        return len(os.fsencode(name)) < 4096
    except UnicodeEncodeError:
        return False


def absolute(name) -> str:
    """The same folder:PATH with an absolute path, which means the same in every folder."""
    return PREFIX + str(_path(name))


def source(name) -> Source:
    """The Source of a folder:PATH, in which nothing is looked at before its first split is read."""
    path = _path(name)
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", path.name)[:40] or "root"
    label = f"folder-{plain}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    opened = functools.cache(lambda: _opened(path))  # once for all splits

    def read(dataset, split):
        images, sha256 = _read(opened(), split, path)
        dataset.sha256[label] = opened().sha256
        dataset.sha256[f"{label} {split}"] = sha256
        return images, None

    return Source(
        name=label,
        title=f"Your own images in {path}",
        image_shape=None,
        num_images=None,
        max_value=255,
        class_names=(),
        binarize="dynamic",
        read=read,
        files=(),
        licence="yours to know",
        origin=str(path),
        pseudo_pixels=(0.5, 0.02),
    )


def _path(name):
    return Path(os.path.abspath(as_folder(name.removeprefix(PREFIX))))


def _opened(path):
    """The Pictures or the Rows at `path`. Raises DataError where there is nothing that can be trained on."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): name your folder of images, .npy or .npz"
        ) from error
    if stat.S_ISDIR(mode):
        return _pictures(path)
    if stat.S_ISREG(mode) and path.suffix.lower() in (".npy", ".npz"):
        return _rows(path)
    raise DataError(f"{path} is neither a folder nor a .npy or .npz file")


def _read(opened, split, path):
    images, sha256 = opened.read(_indices(opened.num_images, split, path))
    if images.max() <= 1:
        raise DataError(
            f"{path} has images with no value above 1 of 255: store 0 and 255, or a .npy of booleans or floats"
        )
    return images, sha256


def _indices(count, split, path):
    """Which of `count` images are in a split: a tenth each, rounded down, in val and test, in one shuffled order."""
    if count < FEWEST:
        raise DataError(f"{path} holds {count} images, and at least {FEWEST} are needed to split them")
    order, tenth = shuffled(count), count // 10
    return {"val": order[:tenth], "test": order[tenth : 2 * tenth], "train": order[2 * tenth :]}[split]


# ---------------------------------------------------------------------------------------------- a folder of images


class Pictures(NamedTuple):
    """Image files below a folder, by name, all of one shape; the sha256 is that of their names."""

    folder: Path
    names: tuple[str, ...]
    shape: tuple[int, int, int]
    sha256: str

    @property
    def num_images(self):
        """How many images there are."""
        return len(self.names)

    def read(self, rows):
        """The images of these rows, uint8 (n, H, W, C), and the sha256 of the sha256 of their files."""
        images, digest = np.empty((len(rows), *self.shape), np.uint8), hashlib.sha256()
        for image, row in zip(images, rows, strict=True):
            path = self.folder / self.names[row]
            content = file_content(path, MOST_FILE)
            digest.update(hashlib.sha256(content).digest())
            image[:] = pillow(io.BytesIO(content), path, _decoded, self.shape)
        return images, digest.hexdigest()


def _pictures(folder):
    names = tuple(sorted(_names(folder)))
    if not names:
        raise DataError(f"{folder} holds no image ({', '.join(SUFFIXES)}); to use a .npy or .npz in it, name that file")
    shapes = (_shape(folder / name) for name in names)
    first = next(shapes)
    odd = next(((name, shape) for name, shape in zip(names[1:], shapes, strict=True) if shape != first), None)
    if odd:
        raise DataError(f"{folder / odd[0]} is {words(odd[1])}, but {folder / names[0]} is {words(first)}: "
                        "make all images alike")  # fmt: skip
    if len(names) * math.prod(first) > MOST_BYTES:
        raise DataError(f"{folder} holds more than {MOST_BYTES >> 30} GiB of images")
    return Pictures(folder, names, first, hashlib.sha256(os.fsencode("\0".join(names))).hexdigest())


def _names(folder):
    """Names of the image files in and below a folder; hidden ones, and folders that are links, are passed over."""

    def complain(error):
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): permit it, or name another folder")

    for here, folders, files in os.walk(folder, onerror=complain):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(here, name).relative_to(folder).as_posix()


def _shape(path):
    with _regular(path) as file:
        return pillow(file, path, stated)


def words(shape):
    """An image's shape (H, W, C) in words."""
    return f"{shape[0]}x{shape[1]} with {shape[2]} channel{'s' * (shape[2] > 1)}"


def pillow(file, path, use, *args):
    """What `use(image, path, *args)` makes of an image file. Raises DataError for one that is damaged or no image."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                return use(image, path, *args)
    except DataError:
        raise
    except Exception as error:  # damaged bytes make Pillow raise nearly anything
        reason = str(error).partition(" <_io")[0] or type(error).__name__
        raise DataError(f"{path} is damaged, or no image: {reason}") from error


def stated(image, path):
    """(H, W, C) as the header has it. Raises DataError for what is not to be decoded."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise DataError(f"{path} is {height}x{width}, more than {MOST_PIXELS:,} pixels: make it smaller")
    if image.mode not in CHANNELS:
        raise DataError(f"{path} is of Pillow's mode {image.mode}: store it in 8 bits, grey or RGB, not transparent")
    return height, width, CHANNELS[image.mode]


def _decoded(image, path, shape):
    """The pixels, uint8 (H, W, C)."""
    if stated(image, path) != shape:
        raise DataError(f"{path} has just been changed")
    return np.asarray(image.convert("L" if shape[2] == 1 else "RGB")).reshape(shape)


# ---------------------------------------------------------------------------------------------- one array


class Rows(NamedTuple):
    """Images that lie in one array, uint8 (N, H, W, C), and the sha256 of its file."""

    images: np.ndarray
    sha256: str

    @property
    def num_images(self):
        """How many images there are."""
        return len(self.images)

    def read(self, rows):
        """The images of these rows, uint8 (n, H, W, C), and their sha256."""
        images = np.ascontiguousarray(self.images[rows])
        return images, hashlib.sha256(images).hexdigest()


def _rows(path):
    content = _member(path) if path.suffix.lower() == ".npz" else file_content(path, MOST_BYTES)
    return Rows(_as_images(parse_npy(content, path), path), hashlib.sha256(content).hexdigest())


def _member(path):
    """The content of the .npz file's one array, or of the one that is called images."""
    names = zip_names(path)
    name = names[0] if len(names) == 1 else "images.npy"
    if name not in names:
        raise DataError(f"{path} holds {len(names)} arrays, none of which is called images")
    return read_member(path, name, MOST_BYTES)


def parse_npy(content, path) -> np.ndarray:
    """The array of numbers in the content of a .npy file: a read-only view. Raises DataError for anything else."""
    file, formats = io.BytesIO(content), np.lib.format
    readers = {(1, 0): formats.read_array_header_1_0, (2, 0): formats.read_array_header_2_0}
    try:
        shape, fortran, dtype = readers[formats.read_magic(file)](file)
    except Exception as error:  # a header is a Python literal, and as many ways to be none
        raise DataError(f"{path} is damaged, or no array of numbers") from error
    if dtype.kind not in "biuf" or min(shape, default=0) < 0:
        raise DataError(f"{path} holds no array of numbers but {dtype}")
    if len(content) - file.tell() != math.prod(shape) * dtype.itemsize:
        raise DataError(f"{path} is damaged: its array of shape {shape} has other bytes")
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")


def _as_images(array, path):
    """uint8 (N, H, W, C) of an array of bytes, booleans, or floats from 0 to 1, (N, H, W) or (N, H, W, C)."""
    images = array[..., None] if array.ndim == 3 else array
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise DataError(f"{path} has an array of shape {array.shape}; expected (N, H, W) or (N, H, W, C), C 1 or 3")
    if images.dtype == np.uint8:
        return images
    return images * np.uint8(255) if images.dtype == bool else as_bytes(images, path)


# ---------------------------------------------------------------------------------------------- files


def _regular(path):
    """A regular file, or a link to one, opened for reading. Raises DataError for what is none, such as a pipe."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path} is no regular file")
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def file_content(path, most) -> bytes:
    """The content of a regular file. Raises DataError where it is none, or has more than `most` bytes."""
    with _regular(path) as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > most:
        raise DataError(f"{path} has more than {most:,} bytes")
    return content
