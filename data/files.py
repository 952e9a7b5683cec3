"""Public files on this machine: where each is looked for, and how it is recognised by its content."""

import gzip
import hashlib
import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GZIP_MAGIC = b"\x1f\x8b"
MEND = "delete it to download it again, or put the right file there."


class DataError(ValueError):
    """A data set cannot be had as asked: what is wrong, what was expected and how to mend it."""


@dataclass(frozen=True)
class PublicFile:
    """One published file: `bytes` and `sha256` as published, `unpacked_*` of what a .gz holds."""

    data_set: str
    name: str
    bytes: int
    sha256: str
    unpacked_bytes: int
    unpacked_sha256: str
    urls: tuple[str, ...]

    def __str__(self):
        return f"{self.data_set}'s {self.name}"

    @property
    def unpacked_name(self) -> str:
        return self.name.removesuffix(".gz")


def cache_folder(data_set) -> Path:
    """The folder of `data_set` in the user's own cache, where downloads go; it need not exist."""
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("vampvae")) / data_set


def as_folder(path) -> Path:
    """`path` as a Path, with ~ expanded: a shell does not do that in --data_dir=~/data."""
    return Path(os.path.expanduser(path))


def places(data_set, data_dir=None) -> list[Path]:
    """Folders to search, in order: data_dir, $VAMPVAE_DATA (each itself, then its sub-folder), the cache.

    Raises DataError if $VAMPVAE_DATA names something that is not a folder.
    """
    bases = [as_folder(data_dir)] if data_dir else []
    if shared := os.environ.get("VAMPVAE_DATA"):
        if not os.path.isdir(as_folder(shared)):
            raise DataError(f"$VAMPVAE_DATA names {shared}, which is not a folder: create it, or unset it.")
        bases.append(as_folder(shared))
    return [place for base in bases for place in (base, base / data_set)] + [cache_folder(data_set)]


def candidates(file, folders) -> Iterator[Path]:
    """Paths in `folders` that bear the name of `file`, packed or unpacked; nothing is opened.

    Raises DataError if a folder may not be looked into.
    """
    for folder in folders:
        for path in (
            folder / name for name in dict.fromkeys((file.name, file.unpacked_name, f"{file.unpacked_name}.gz"))
        ):
            if _is_file(path):
                yield path


def read_first(file, folders, known) -> tuple[Path, bytes] | None:
    """Path and unpacked content of the first valid copy of `file` in `folders`, or None if there is no copy.

    Data sets share file names, so a copy of another set's file (one of `known`) is passed over, and raises
    DataError only if no valid copy follows. Any other wrong copy raises it at once: a damaged file is never
    quietly replaced by another.
    """
    limit = max(one.unpacked_bytes for one in known)
    passed_over = None
    for path in candidates(file, folders):
        content = _unpack(path, file, limit)
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 == file.unpacked_sha256:
            return path, content
        owner = next((one for one in known if one.unpacked_sha256 == sha256), None)
        error = _wrong_content(path, file, content, owner)
        if owner is None or owner.data_set == file.data_set:
            raise error
        passed_over = passed_over or error
    if passed_over:
        raise passed_over
    return None


def _is_file(path):
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unreadable(path, error) from error


def _unpack(path, file, limit):
    """The content of `path`, unpacked, but never more than `limit` + 1 bytes: a gzip bomb stays small."""
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == GZIP_MAGIC  # some browsers unpack a .gz and keep its name
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) if packed else raw as stream:
                return stream.read(limit + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path} is truncated or corrupted: it does not unpack. It has {path.stat().st_size:,} bytes, "
            f"the public file {file.bytes:,}: {MEND}"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _wrong_content(path, file, content, owner):
    if owner:
        return DataError(
            f"{path} should be {file}, but this is {owner}: put the right file there, or name another folder."
        )
    return DataError(
        f"{path} is truncated or corrupted: unpacked {len(content):,} bytes, expected "
        f"{file.unpacked_bytes:,} with sha256 {file.unpacked_sha256}: {MEND}"
    )


def _unreadable(path, error):
    return DataError(f"{path} cannot be read ({error.strerror}): permit it, or name another folder.")
