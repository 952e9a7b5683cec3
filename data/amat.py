"""The text format of static MNIST: one line for each image, its pixels 0 or 1, separated by blanks."""

import numpy as np

from runtime.errors import DataError

DIGITS, BLANK, NEWLINE = (ord("0"), ord("1")), ord(" "), ord("\n")


def parse_amat(content: bytes, pixels: int) -> np.ndarray:
    """The images in `content`, uint8 (N, pixels) of 0 and 1. Raises DataError for any other text."""
    if not content or len(content) % (2 * pixels):
        raise DataError(f"not an amat file: {len(content):,} bytes are no whole lines of {pixels} pixels, 0 or 1")
    pairs = np.frombuffer(content, np.uint8).reshape(-1, pixels, 2)  # each pixel and what follows it
    separators = np.full(pixels, BLANK, np.uint8)
    separators[-1] = NEWLINE
    wrong = ~np.isin(pairs[..., 0], DIGITS) | (pairs[..., 1] != separators)
    if wrong.any():
        line, pixel = np.unravel_index(wrong.argmax(), wrong.shape)
        raise DataError(f"not an amat file: line {line + 1} has no 0 or 1 in its place {pixel + 1}")
    return pairs[..., 0] - DIGITS[0]
