"""Arrays of images as data sets: each is stored once, as the .npy of a folder:PATH, so that later commands find it."""

import hashlib
import io
from pathlib import Path

import numpy as np

from data import folder
from data.splits import FEWEST
from runtime import atomic
from runtime.errors import DataError, UserError


def as_grey(images) -> np.ndarray:
    """Images, (N, H, W) or (N, H, W, C), of bytes, booleans or floats from 0 to 1: float32 in [0, 1], (N, H, W, C).

    Raises DataError for anything else.
    """
    levels, images = _checked(images), np.asarray(images)
    if images.dtype.kind == "f":  # not rounded to 256 levels
        return images.reshape(levels.shape).astype(np.float32)
    return np.divide(levels, 255, dtype=np.float32)


def stored(images, place) -> str:
    """The name, folder:PATH, of the data set of an array of images, as of `as_grey`, stored below the folder `place`.

    The file is named by its sha256, so that the same images are one data set. Raises DataError for images that cannot
    be split or are of no use, and UserError where the file cannot be written.
    """
    levels, buffer = _checked(images), io.BytesIO()
    if len(levels) < FEWEST:
        raise DataError(f"images holds {len(levels)} images, and at least {FEWEST} are needed to split them")
    if not levels.any():
        raise DataError("images are all black; pass bytes from 0 to 255, or floats from 0 to 1")
    if np.asarray(images).dtype.kind == "f" and levels.max() < 128:  # as bytes, they would be taken for too dark
        levels = np.divide(levels, 255, dtype=np.float32)
    np.save(buffer, np.ascontiguousarray(levels))
    if buffer.getbuffer().nbytes > folder.MOST_BYTES:
        raise DataError(f"images has more than {folder.MOST_BYTES >> 30} GiB")
    path = Path(place, "arrays", f"{hashlib.sha256(buffer.getbuffer()).hexdigest()[:16]}.npy")
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(path, buffer.getbuffer())
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}; choose another runs_dir") from error
    return folder.absolute(f"{folder.PREFIX}{path}")


def _checked(images):
    levels = folder.as_images(images := np.asarray(images), "images")
    if images.dtype == np.uint8 and levels.max() == 1:
        raise DataError("images has no value above 1 of 255: pass 0 and 255, or booleans or floats")
    return levels
