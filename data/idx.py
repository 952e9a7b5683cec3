"""The idx format of the MNIST files: two zero bytes, a type, the number of axes, their sizes, the values."""

import math

import numpy as np

from runtime.errors import DataError

UNSIGNED_BYTE = 0x08
MAX_AXES = 4


def parse_idx(content: bytes) -> np.ndarray:
    """The uint8 array in `content`, of the shape in its header: a read-only view.

    Raises DataError unless `content` is one whole idx file of unsigned bytes, with 1 to 4 axes and no axis of size 0.
    """
    if len(content) < 4 or content[:2] != b"\0\0":
        raise DataError(f"not an idx file: it begins with {content[:4].hex() or 'nothing'}, expected 0000")
    kind, axes = content[2], content[3]
    if kind != UNSIGNED_BYTE:
        raise DataError(f"idx values have type 0x{kind:02x}, expected 0x08 (unsigned bytes)")
    if not 1 <= axes <= MAX_AXES:
        raise DataError(f"idx array has {axes} axes, expected 1 to {MAX_AXES}")
    header = 4 + 4 * axes
    if len(content) < header:
        raise DataError(f"idx header is truncated: {len(content)} bytes, expected {header}")
    shape = np.frombuffer(content, ">u4", count=axes, offset=4).tolist()  # Python integers: no overflow below
    if 0 in shape or len(content) != header + math.prod(shape):
        raise DataError(f"idx file has {len(content):,} bytes, but its header states the shape {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
