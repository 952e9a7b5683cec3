"""Reads gzips, archives and pickles that others wrote: nothing is extracted to disk, and nothing in them is called."""

import contextlib
import gzip
import io
import math
import pickle
import stat
import tarfile
import zipfile
import zlib

import numpy as np

from runtime.errors import DataError

MOST_BYTES = 1 << 30  # of a file, unpacked
PIECE = 1 << 24  # bytes that are read at once


def refuse_page(start, what):
    """Raises DataError where these first bytes of a file are those of a web page."""
    if start.lstrip()[:1] == b"<":
        reason = "as a site sends where a quota is used up, or a login is needed"
        raise DataError(f"{what} is a web page, {reason}: delete it, and download the file again")


def unpack(path) -> bytes:
    """The content of a file, unpacked if it is a gzip. Raises OSError, and DataError if it is damaged or too large."""
    try:
        with open(path, "rb") as raw:
            is_packed = raw.read(2) == b"\x1f\x8b"  # some browsers unpack a .gz and keep its name
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) if is_packed else raw as stream:
                return _within(at_most(MOST_BYTES + 1, stream), MOST_BYTES, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is truncated or corrupted: it does not unpack") from error


def read_tar(path, name) -> bytes:
    """The content of the regular file `name` in a .tar or .tar.gz. Raises OSError, and DataError as `unpack` does.

    The whole archive is unpacked in memory, so that no header in it can ask for more than that.
    """
    content = io.BytesIO(unpack(path))
    with reading(f"{path} is damaged, or no archive"), tarfile.open(fileobj=content, mode="r:") as archive:
        end = -1
        for info in archive:
            if info.size < 0 or info.offset <= end or info.issparse():  # tarfile might go round in circles
                raise DataError(f"{path} has headers that no published archive has")
            end = info.offset
            if info.name == name:
                if not info.isreg():
                    raise DataError(f"{name} in {path} is not a regular file")
                return archive.extractfile(info).read()
    raise DataError(f"{path} holds no file {name}")


class ZipFolder:
    """The regular files in a .zip: `infos` by name. The archive stays open, and a file is read when it is asked for.

    Raises DataError for a damaged archive.
    """

    def __init__(self, path):
        self.path = path
        with reading(f"{path} is damaged, or no archive"):
            with open(path, "rb") as file:
                refuse_page(file.read(100), path)
            self._archive = zipfile.ZipFile(path)
            infos = [info for info in self._archive.infolist() if not stat.S_ISLNK(info.external_attr >> 16)]
        self.infos = {info.filename: info for info in infos if not info.is_dir()}

    def read(self, name, most) -> bytes:
        """The content of a file. Raises DataError if it is damaged or larger than `most` bytes."""
        what, info = f"{name} in {self.path}", self.infos.get(name)
        if info is None:
            raise DataError(f"{self.path} holds no file {name}")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack more than is asked for
            raise DataError(f"{what} is neither stored nor deflated")
        with reading(f"{what} is damaged, or no archive"), self._archive.open(info) as file:
            return _within(file.read(most + 1), most, what)


@contextlib.contextmanager
def reading(complaint):
    """Raises DataError, the complaint and why, where the block raises any other error: damaged bytes lead to most."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = str(error).partition(" <_io")[0][:200] or type(error).__name__
        raise DataError(f"{complaint}: {reason}") from error


def at_most(count, file) -> bytes:
    """The next `count` bytes of an open file, or all that it has, in pieces: Python allocates what it is asked for."""
    content = io.BytesIO()
    while piece := file.read(min(PIECE, count - content.tell())):
        content.write(piece)
    return content.getvalue()


def _within(content, most, what):
    if len(content) > most:
        raise DataError(f"{what} has more than {most:,} bytes unpacked")
    return content


def parse_npy(content, path) -> np.ndarray:
    """The array of numbers in the content of a .npy file: a read-only view. Raises DataError for anything else."""
    file, formats = io.BytesIO(content), np.lib.format
    readers = {(1, 0): formats.read_array_header_1_0, (2, 0): formats.read_array_header_2_0}
    try:
        shape, fortran, dtype = readers[formats.read_magic(file)](file)
    except Exception as error:  # the header is a Python literal, which can be damaged in many ways
        raise DataError(f"{path} is damaged, or no array of numbers") from error
    if dtype.kind not in "biuf" or min(shape, default=0) < 0:
        raise DataError(f"{path} holds no array of numbers but {dtype}")
    if len(content) - file.tell() != math.prod(shape) * dtype.itemsize:
        raise DataError(f"{path} is damaged: its array of shape {shape} has other bytes")
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")


def unpickle(content, name):
    """The value in a pickle of plain Python values and NumPy arrays of numbers, for the file of this name.

    Raises DataError if it needs any other class or function, if its arrays take more memory than it does, or if it is
    damaged.
    """
    refuse_page(content[:100], name)
    with reading(f"{name} is no pickle that is read"):
        return _Unpickler(content).load()


class _Unpickler(pickle.Unpickler):
    """Knows the four names that pickles of NumPy arrays need, and calls nothing of NumPy but `ndarray.__setstate__`."""

    def __init__(self, content):
        super().__init__(io.BytesIO(content), encoding="latin1")  # of Python 2's strings
        # bytes that may still be made of it, as text and as an array: two arrays may refer to the same bytes
        self.left = 2 * len(content)

    def find_class(self, module, name):
        known = {
            ("numpy.core.multiarray", "_reconstruct"): self.new_array,
            ("numpy._core.multiarray", "_reconstruct"): self.new_array,
            ("numpy", "ndarray"): None,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): self.encode,
        }
        if (module, name) not in known:
            raise ValueError(f"it names {module}.{name}, which is never loaded from files")
        return known[module, name]

    def new_array(self, *_):
        array = np.empty(0, np.uint8).view(_Array)  # which __setstate__ fills
        array.take = self.take
        return array

    def encode(self, text, encoding):  # for Python 3 pickles bytes as text
        if encoding != "latin1":
            raise ValueError(f"it uses the codec {encoding!r}")
        return self.take(text).encode("latin1")

    def take(self, raw):
        """`raw`, text or bytes. Raises ValueError if the pickle asks for more bytes than it has."""
        self.left -= len(raw)
        if self.left < 0:
            raise ValueError("it uses some of its bytes many times")
        return raw


class _Array(np.ndarray):
    """An array in a pickle."""

    def __setstate__(self, state):
        _, shape, dtype, is_fortran, raw = state
        dtype = np.dtype(dtype.str)  # a new one: a pickle can give a dtype flags that NumPy crashes on
        if dtype.kind not in "biuf":
            raise ValueError(f"it holds an array of {dtype}, not of numbers")
        super().__setstate__((1, shape, dtype, is_fortran, self.take(raw)))
