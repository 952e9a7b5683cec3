"""Image files: what is read from one, and which are refused by name."""

import contextlib
import warnings

import numpy as np

from data.archives import at_most, reading
from runtime import atomic
from runtime.errors import DataError

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM")  # Pillow knows more, and starts other programs for some
CHANNELS = {"1": 1, "L": 1, "RGB": 3, "P": 3}  # by Pillow's modes; the other modes have more than 8 bits, or an alpha
MOST_PIXELS = 1 << 22  # in an image that is not resized; Pillow has a limit for the others
MOST_FILE = 64 << 20  # bytes of an image file
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values for images whose height is their width
SUBFILE, PREVIEW_OR_MASK = 0x00FE, 0b101  # TIFF's tag, and its bits for pages that are no images of their own


def words(shape):
    """An image's shape (H, W, C) in words."""
    return f"{shape[0]}x{shape[1]} with {shape[2]} channel{'s' * (shape[2] > 1)}"


def pillow(file, path, use, *args):
    """`use(image, path, *args)` of an image file. Raises DataError if it is damaged or no image."""
    from PIL import Image

    with reading(f"{path} is damaged, or no image"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged EXIF data, which are not needed
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=FORMATS) as image:
            return use(image, path, *args)


def stated(image, path, size=None):
    """(H, W, C) from the header, upright and with sides of `size` if that is given.

    Raises DataError for an image that must not be decoded.
    """
    from PIL import Image

    _check(image, path, size)
    width, height = (size, size) if size else image.size
    if image.format != "TIFF" and Image.Image.getexif(image).get(ORIENTATION) in SIDEWAYS:  # Pillow turns TIFFs itself
        height, width = width, height
    return height, width, CHANNELS[image.mode]


def _check(image, path, size):
    width, height = image.size
    if width * height > MOST_PIXELS and not size:
        mend = "make it smaller, or train with --image_size 64, which resizes all"
        raise DataError(f"{path} is {height}x{width}, more than {MOST_PIXELS:,} pixels: {mend}")
    if image.has_transparency_data:
        mend = "lay it on a background, as `magick mogrify -background white -alpha remove -alpha off FILE` does"
        raise DataError(f"{path} is transparent (Pillow's mode {image.mode}): {mend}")
    if image.mode not in CHANNELS:
        raise DataError(f"{path} is of Pillow's mode {image.mode}: store it in 8 bits, grey or RGB")


def stated_pages(image, path, size):
    """`stated` of each image in a file, by the number of its page: a TIFF may have many, other files have one.

    Raises DataError for an animation, too.
    """
    if image.format in ("PNG", "WEBP") and image.is_animated:
        raise DataError(f"{path} is an animation of {image.n_frames} frames: store each as an image, or one of them")
    shapes = {}
    for page in range(image.n_frames if image.format == "TIFF" else 1):
        image.seek(page)
        if image.format != "TIFF" or not image.tag_v2.get(SUBFILE, 0) & PREVIEW_OR_MASK:
            shapes[page] = stated(image, path, size)
    return shapes


def decoded(image, path, pages, shape, size):
    """The pixels of these pages, uint8 (n, H, W, C), upright and with sides of `size` if that is given.

    Raises DataError unless each is of `shape`, (H, W, C).
    """
    images = np.empty((len(pages), *shape), np.uint8)
    for pixels, page in zip(images, pages, strict=True):
        image.seek(page)
        found = np.atleast_3d(upright(image, path, size))
        if found.shape != shape:
            raise DataError(f"{path} is {words(found.shape)}, and not {words(shape)} as it was: has it been changed?")
        pixels[:] = found
    return images


def upright(image, path, size=None):
    """The image of an opened page, grey or RGB, turned as its EXIF data ask, and `resized` if a size is given.

    Raises DataError as `stated` does.
    """
    from PIL import Image, ImageOps

    _check(image, path, size)
    if size:
        image.draft(None, (2 * size, 2 * size))  # large JPEGs are decoded at a half, a quarter or an eighth at once
    Image.Image.getexif(image)  # kept from here on: what follows the pixels of a PNG has no say, as in `stated`
    picture = ImageOps.exif_transpose(image).convert("L" if CHANNELS[image.mode] == 1 else "RGB")
    return resized(picture, size) if size else picture


def resized(picture, size):
    """The square in the middle of a grey or RGB picture with sides of `size`, by Lanczos' filter, which averages."""
    from PIL import Image, ImageOps

    return ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)


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
        content = at_most(most + 1, file)
    if len(content) > most:
        raise DataError(f"{path} has more than {most:,} bytes")
    return content
