"""Files and folders that hold either the complete old or the complete new content, whenever the process dies."""

import contextlib
import csv
import errno
import io
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import threading
from pathlib import Path

import psutil

_mine = set()  # names of the temporary files and folders that this process is writing
_making = threading.RLock()  # held while one is made and entered into `_mine`, so that no thread sweeps it in between
PART = re.compile(r"\.(\d+)@([^.]+)\..*\.?part")  # a temporary name: process number and host of its writer


@contextlib.contextmanager
def replacing(path):
    """A new file, open to write and read bytes, which replaces `path` if the block succeeds. Raises OSError."""
    path = Path(path)
    with _making:
        number, name = tempfile.mkstemp(prefix=f".{_me()}.{path.name[:20]}.", suffix=".part", dir=path.parent)
        aside = Path(name)
        _mine.add(aside.name)
    try:
        with open(number, "w+b") as file:
            aside.chmod(0o666 & ~umask())
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
        _mine.discard(aside.name)


def write(path, content):
    """Writes bytes to a file by `replacing`. Raises OSError, and then the old content is unchanged."""
    with replacing(path) as file:
        file.write(content)


def write_json(path, value):
    """Writes a value as JSON. Raises ValueError for NaN and infinity, which JSON cannot represent."""
    write(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_csv(path, rows):
    """Writes dicts with the same keys as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue().encode())


def sweep(folder, alone=False):
    """Removes temporary files and folders that killed processes left in `folder`.

    Those of processes on other machines stay, because these may still write, unless only this process writes (`alone`).
    """
    with _making:
        mine = frozenset(_mine)
        asides = list(Path(folder).glob(".*.part"))
    for aside in asides:
        written = PART.fullmatch(aside.name)
        if not written or aside.name in mine or (not alone and _is_at_work(*written.groups())):
            continue
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)


@contextlib.contextmanager
def folder(parent):
    """A new folder in `parent`, which the block may rename; otherwise it is removed afterwards. Raises OSError."""
    with _making:
        made = Path(tempfile.mkdtemp(prefix=f".{_me()}.", suffix=".part", dir=parent))
        _mine.add(made.name)
    try:
        made.chmod(0o777 & ~umask())
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        _mine.discard(made.name)


def umask():
    """The permission bits that new files and folders of this process lack."""
    with _making:  # a second thread would read, and restore, the 0
        mask = os.umask(0)
        os.umask(mask)
    return mask


def _me():
    """This process as part of a file's name; with the host, because machines share file systems."""
    return f"{os.getpid()}@{socket.gethostname().split('.')[0]}"


def _is_at_work(pid, host):
    """Whether this is another process that is still running, or may be because it is on another host."""
    me = _me().partition("@")
    return host != me[2] or (pid != me[0] and psutil.pid_exists(int(pid)))


@contextlib.contextmanager
def opened(path):
    """A file, open to read bytes. Raises OSError, also for pipes and devices, which might never end."""
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        yield file
