"""Published archives and pickles, read with distrust: nothing is extracted to disk, and nothing in them is called."""

import bz2
import gzip
import io
import lzma
import math
import pickle
import stat
import tarfile
import zipfile
import zlib

import numpy as np

from data.files import DataError

MOST_MEMBERS = 1_000_000
MOST_BEFORE = 1000  # times the size of a file in a tar may lie before it
MAGIC = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open), (b"", open))


def read_member(path, name, most) -> bytes:
    """The content of the regular file `name` in a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz: at most `most` bytes.

    Members are found by their exact name and read into memory, so that no name, link or device in the archive can
    reach anything outside of it. Raises DataError for an archive that is damaged or has no such file, and for a file
    that is larger than `most`, whatever its header says.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive, archive.open(_zip_member(archive, name, path)) as file:
                content = file.read(most + 1)
        else:
            content = _read_tar(path, name, most)
    except DataError:
        raise
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    return _within(content, most, name, path)


def zip_names(path) -> list[str]:
    """The names of what is in a .zip, as it states them. Raises DataError for one that is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except _DAMAGE as error:
        raise _damaged(path, error) from error


class ZipFolder:
    """The files in a .zip that stays open: `infos` by name, each read when it is asked for, as by `read_member`."""

    def __init__(self, path):
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except _DAMAGE as error:
            raise _damaged(path, error) from error
        self.infos = {info.filename: info for info in self._archive.infolist()[:MOST_MEMBERS] if not info.is_dir()}

    def read(self, name, most) -> bytes:
        """The content of a file. Raises DataError if it is damaged, or larger than `most`."""
        try:
            with self._archive.open(_readable(self.infos[name], self.path)) as file:
                content = file.read(most + 1)
        except DataError:
            raise
        except _DAMAGE as error:
            raise _damaged(f"{name} in {self.path}", error) from error
        return _within(content, most, name, self.path)


_DAMAGE = (OSError, EOFError, ValueError, LookupError, ArithmeticError, RuntimeError, zlib.error, lzma.LZMAError)
_DAMAGE += (tarfile.TarError, zipfile.BadZipFile)


def _damaged(what, error):
    return DataError(f"{what} is damaged, or no archive: {str(error) or type(error).__name__}")


def _within(content, most, name, path):
    if len(content) > most:
        raise DataError(f"{name} in {path} has more than {most:,} bytes unpacked: this is not the published archive")
    return content


def _zip_member(archive, name, path):
    found = [info for info in archive.infolist()[:MOST_MEMBERS] if info.filename == name]
    if len(found) != 1 or found[0].is_dir() or stat.S_ISLNK(found[0].external_attr >> 16):
        raise DataError(f"{path} holds no file {name}, or several")
    return _readable(found[0], path)


def _readable(info, path):
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack more than is asked for
        raise DataError(f"{info.filename} in {path} is not stored or deflated: this is not the published archive")
    return info


def _read_tar(path, name, most):
    with open(path, "rb") as file:
        start = file.read(8)
    opener = next(opener for magic, opener in MAGIC if start.startswith(magic))
    with opener(path, "rb") as unpacked, tarfile.open(fileobj=_Bounded(unpacked, most), mode="r:") as archive:
        end = -1
        for count, info in enumerate(archive):
            if info.size < 0 or info.offset <= end or info.issparse():  # else it might go on for ever
                raise DataError(f"{path} has headers that no published archive has")
            end = info.offset
            if info.name == name:
                if not info.isreg():
                    raise DataError(f"{name} in {path} is no regular file")
                return archive.extractfile(info).read(most + 1)
            if count == MOST_MEMBERS:
                break
    raise DataError(f"{path} holds no file {name}")


class _Bounded:
    """A file for tarfile that is never read far at once, as a false header may ask for, nor to no end."""

    def __init__(self, file, most):
        self.file, self.most, self.tell = file, max(most, 1 << 20), file.tell

    def read(self, size=-1):
        """At most `size` bytes. Raises DataError for more than this file is to be read at once."""
        if not 0 <= size <= self.most + tarfile.BLOCKSIZE:
            raise DataError(f"a tar has a header of {size:,} bytes: this is not the published archive")
        return self.file.read(size)

    def seek(self, position, whence=io.SEEK_SET):
        """Goes to a position. Raises DataError for one far behind what was published."""
        if position > MOST_BEFORE * self.most:
            raise DataError("a tar holds far more than was published")
        return self.file.seek(position, whence)


def unpickle(content, encoding="latin1"):
    """The value in a pickle of numbers, text, lists, tuples, dicts and NumPy arrays of numbers; nothing else.

    Every other global in it is refused, and those of NumPy are replaced by our own: no code of its choice runs.
    `encoding` is that of Python 2's strings. Raises DataError for anything else, and for what is damaged.
    """
    try:
        return _made(_Unpickler(io.BytesIO(content), encoding=encoding).load(), {}, _Room(len(content)))
    except DataError:
        raise
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        raise DataError(f"a pickle is damaged: {str(error)[:100] or type(error).__name__}") from error


class _Dtype:
    """In the place of numpy.dtype: a code such as "u1" and a byte order."""

    def __init__(self, code, *_):
        self.code, self.order = code, "|"

    def __setstate__(self, state):
        self.order = state[1]

    def made(self):
        """The NumPy dtype. Raises DataError unless it is one of numbers."""
        text = [part.decode("ascii") if isinstance(part, bytes) else part for part in (self.order, self.code)]
        if text[0] not in ("<", ">", "|", "=") or text[1] not in _NUMBERS:
            raise DataError(f"a pickle holds an array of {str(text[1])[:20]!r}, not of numbers")
        return np.dtype(text[1]).newbyteorder(text[0])


_NUMBERS = ("b1", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f2", "f4", "f8")


class _Array:
    """In the place of numpy.ndarray: shape, type and bytes, compared before an array is made of them."""

    state = None

    def __setstate__(self, state):
        self.state = state

    def made(self, room):
        """The NumPy array, a copy of its own. Raises DataError where the bytes do not fit the shape."""
        if not isinstance(self.state, tuple) or len(self.state) != 5 or not isinstance(self.state[2], _Dtype):
            raise DataError("a pickle holds an array without content")
        _, shape, dtype, fortran, raw = self.state
        dtype = dtype.made()
        if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < 2**40 for n in shape) or len(shape) > 8:
            raise DataError("a pickle holds an array of no shape")
        text = raw.text if isinstance(raw, _Latin) else raw
        if not isinstance(text, bytes | str) or len(text) != math.prod(shape) * dtype.itemsize:
            raise DataError(f"a pickle holds an array of shape {shape} with other bytes")
        room.take(len(text))
        raw = text.encode("latin1") if isinstance(text, str) else text
        return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C").copy()


class _Latin:
    """In the place of _codecs.encode, which Python 3 pickles bytes with for protocol 2."""

    def __init__(self, text, encoding):
        if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
            raise DataError(f"a pickle wants the codec {str(encoding)[:20]!r}")
        self.text = text

    def made(self, room):
        """The bytes."""
        room.take(len(self.text))
        return self.text.encode("latin1")


class _Room:
    """How many bytes may still be made of a pickle: as many as it has, for two arrays may name the same bytes."""

    def __init__(self, left):
        self.left = left

    def take(self, wanted):
        """Raises DataError where that is more."""
        self.left -= wanted
        if self.left < 0:
            raise DataError("a pickle holds more than its own bytes: some of them many times")


_GLOBALS = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): lambda *_: _Array() for core in ("core", "_core")},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Latin,
}


class _Unpickler(pickle._Unpickler):  # the one in Python, whose memo grows with what is in it, not with a number
    dispatch = {  # noqa: RUF012
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if code not in (pickle.EMPTY_SET[0], pickle.ADDITEMS[0], pickle.FROZENSET[0])
    }

    def find_class(self, module, name):
        """One of our own stand-ins, or DataError."""
        if (module, name) not in _GLOBALS:
            raise DataError(f"a pickle names {module}.{name}"[:100] + ", which is never read from files")
        return _GLOBALS[module, name]

    def _with_plain_keys(load, newest):
        """`load` for keys that are text or numbers: hashing pairs of pairs of pairs may never end."""

        def checked(self):
            if not all(type(key) in (str, bytes, int, _Latin) for key in self.stack[newest]):
                raise DataError("a pickle holds a dict whose keys are neither text nor numbers")
            load(self)

        return checked

    dispatch[pickle.SETITEM[0]] = _with_plain_keys(dispatch[pickle.SETITEM[0]], slice(-2, -1))
    dispatch[pickle.SETITEMS[0]] = _with_plain_keys(dispatch[pickle.SETITEMS[0]], slice(0, None, 2))
    dispatch[pickle.DICT[0]] = _with_plain_keys(dispatch[pickle.DICT[0]], slice(0, None, 2))


def _made(value, made, room):
    """`value` with what each stand-in stands for, each object once. Raises DataError for one that holds itself."""
    if id(value) in made:
        if made[id(value)] is _Array:
            raise DataError("a pickle holds a list that holds itself")
        return made[id(value)]
    made[id(value)] = _Array
    if isinstance(value, _Array | _Latin):
        result = value.made(room)
    elif type(value) in (list, tuple):
        result = type(value)(_made(one, made, room) for one in value)
    elif type(value) is dict:
        result = {_made(key, made, room): _made(one, made, room) for key, one in value.items()}
    elif value is None or type(value) in (bool, int, float, str, bytes):
        result = value
    else:
        raise DataError(f"a pickle holds a {type(value).__name__}, not numbers and arrays")
    made[id(value)] = result
    return result
