"""Image files: what is read from one, and which are refused by name."""

import contextlib
import warnings

import numpy as np

from data.archives import reading
from runtime import atomic
from runtime.errors import DataError

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM")  # Pillow knows more, and starts other programs for some
CHANNELS = {"1": 1, "L": 1, "RGB": 3, "P": 3}  # by Pillow's modes; the other modes have more than 8 bits, or an alpha
MOST_PIXELS = 1 << 22  # in an image
MOST_FILE = 64 << 20  # bytes of an image file


def words(shape):
    """An image's shape (H, W, C) in words."""
    return f"{shape[0]}x{shape[1]} with {shape[2]} channel{'s' * (shape[2] > 1)}"


def pillow(file, path, use, *args):
    """`use(image, path, *args)` of an image file. Raises DataError if it is damaged or no image."""
    from PIL import Image

    with reading(f"{path} is damaged, or no image"), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=FORMATS) as image:
            return use(image, path, *args)


def stated(image, path):
    """(H, W, C) from the header. Raises DataError for an image that must not be decoded."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise DataError(f"{path} is {height}x{width}, more than {MOST_PIXELS:,} pixels: make it smaller")
    if image.mode not in CHANNELS:
        raise DataError(f"{path} is of Pillow's mode {image.mode}: store it in 8 bits, grey or RGB, not transparent")
    return height, width, CHANNELS[image.mode]


def decoded(image, path, shape):
    """The pixels, uint8 (H, W, C)."""
    if stated(image, path) != shape:
        raise DataError(f"{path} has just been changed")
    return np.asarray(image.convert("L" if shape[2] == 1 else "RGB")).reshape(shape)


@contextlib.contextmanager
def opened(path):
    try:
        with atomic.opened(path) as file:
            yield file
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def file_content(path, most) -> bytes:
    """The content of a regular file. Raises DataError for anything else, and for more than `most` bytes."""
    with opened(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise DataError(f"{path} has more than {most:,} bytes")
    return content
