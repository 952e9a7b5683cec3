"""Public files on this machine: where each is looked for, and how it is recognised by its content."""

import gzip
import hashlib
import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from runtime.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
MEND = "delete it to download it again, or put the right file there."
MOST_BYTES = 100 << 20  # of a file whose size is not known; GitHub, where these are published, takes no larger ones


@dataclass(frozen=True)
class StandIn:
    """A file that is taken in the place of a published one, by its sha256, and the image counts that it changes."""

    sha256: str
    num_images: dict[str, int] = field(hash=False)


@dataclass(frozen=True)
class PublicFile:
    """One published file: `bytes` and `sha256` as published, `unpacked_*` of what a .gz holds; None where not known.

    `git_blob`, the SHA-1 that git gives a file, or its `md5` does where no sha256 is known. A file without any is taken
    as it is: its data set's `read` and the image counts are then all that verifies it, and it is never downloaded.
    A file that is published inside of an `archive`, under its own name, is found there, too, and downloaded with it.
    One that memory cannot hold has a `page`, from which only a person can get it: it is read where it lies, a .zip or
    the folder that it unpacks to.
    """

    data_set: str
    name: str
    bytes: int | None
    sha256: str | None
    unpacked_bytes: int | None
    unpacked_sha256: str | None
    urls: tuple[str, ...]
    git_blob: str | None = None
    stand_in: StandIn | None = None
    md5: str | None = None
    archive: "PublicFile | None" = None
    page: str = ""

    def __str__(self):
        return f"{self.data_set}'s {self.name}"

    @property
    def unpacked_name(self) -> str:
        """Its name without the .gz, if it has that."""
        return self.name.removesuffix(".gz")

    @property
    def names(self) -> tuple[str, ...]:
        """What it may be called, packed or unpacked."""
        if self.page:
            return self.name.removesuffix(".zip"), self.name
        return tuple(dict.fromkeys((self.name, self.unpacked_name, f"{self.unpacked_name}.gz")))

    @property
    def download(self) -> "PublicFile":
        """What is downloaded to have it: itself, or its archive."""
        return self.archive or self

    @property
    def is_known(self) -> bool:
        """Whether its content can be recognised."""
        return bool(self.unpacked_sha256 or self.git_blob or self.md5)

    @property
    def size(self) -> str:
        """Its size as published, in words."""
        return "unknown number of bytes" if self.bytes is None else f"{self.bytes:,} bytes"

    @property
    def checksum(self) -> str:
        """What its unpacked content is recognised by, in words."""
        if self.unpacked_sha256:
            return f"{self.unpacked_bytes:,} with sha256 {self.unpacked_sha256}"
        return f"those of md5 {self.md5}" if self.md5 else f"those of git blob {self.git_blob}"

    @property
    def most_bytes(self) -> int:
        """How many bytes it has unpacked, or may have."""
        return MOST_BYTES if self.unpacked_bytes is None else self.unpacked_bytes

    def is_sent(self, content) -> bool:
        """Whether `content` is the file as published, packed where it was."""
        if self.sha256:
            return hashlib.sha256(content).hexdigest() == self.sha256
        return _git_blob(content) == self.git_blob

    def takes(self, content, sha256) -> bool:
        """Whether unpacked `content` of this sha256 is the file, as far as can be told, or its stand-in."""
        if self.is_stand_in(sha256):
            return True
        if self.unpacked_sha256:
            return sha256 == self.unpacked_sha256
        if self.md5:
            return hashlib.md5(content, usedforsecurity=False).hexdigest() == self.md5
        return self.git_blob in (None, _git_blob(content))

    def is_stand_in(self, sha256) -> bool:
        """Whether a content of this sha256 only stands in for the file."""
        return self.stand_in is not None and sha256 == self.stand_in.sha256


class Found(NamedTuple):
    """A file of a data set on this machine: where it lies, its unpacked content, and the sha256 of that.

    Both are empty for one that stays where it is.
    """

    path: Path
    content: bytes
    sha256: str


def _git_blob(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


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
    """Paths in `folders` that bear the name of `file`, packed or unpacked, or of its archive; nothing is opened.

    Raises DataError if a folder may not be looked into.
    """
    names = (*file.names, *(file.archive.names if file.archive else ()))
    for path in (folder / name for folder in folders for name in names):
        if _is_there(path, file):
            yield path


def read_first(file, folders, known) -> Found | None:
    """The first valid copy of `file` in `folders`, or None if there is no copy.

    Data sets share file names, so a copy of another set's file (one of `known`) is passed over, and raises
    DataError only if no valid copy follows. Any other wrong copy raises it at once: a damaged file is never
    quietly replaced by another.
    """
    limit = max(one.most_bytes for one in known)
    passed_over = None
    for path in candidates(file, folders):
        if file.page:
            return Found(path, b"", "")
        packed = file.archive and path.name in file.archive.names
        content = _member(path, file, limit) if packed else _unpack(path, file, limit)
        sha256 = hashlib.sha256(content).hexdigest()
        if file.takes(content, sha256):
            return Found(path, content, sha256)
        owner = next((one for one in known if one.unpacked_sha256 == sha256), None)
        error = _wrong_content(path, file, content, owner)
        if owner is None or owner.data_set == file.data_set:
            raise error
        passed_over = passed_over or error
    if passed_over:
        raise passed_over
    return None


def _is_there(path, file):
    try:
        mode = path.stat().st_mode
        return stat.S_ISREG(mode) or bool(file.page and stat.S_ISDIR(mode))
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
            f"the public file {file.size}: {MEND}"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _member(path, file, limit):
    """The content of `file` in the archive at `path`."""
    from data.archives import read_member  # here, because that needs this module

    try:
        return read_member(path, file.name, limit)
    except DataError as error:
        raise DataError(f"{error}: {MEND}") from error


def _wrong_content(path, file, content, owner):
    if owner:
        return DataError(
            f"{path} should be {file}, but this is {owner}: put the right file there, or name another folder."
        )
    return DataError(
        f"{path} is truncated or corrupted: unpacked {len(content):,} bytes, expected {file.checksum}: {MEND}"
    )


def _unreadable(path, error):
    return DataError(f"{path} cannot be read ({error.strerror}): permit it, or name another folder.")
