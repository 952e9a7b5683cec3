"""Files, and folders, that hold either the old or the new content, whole, whenever the process dies."""

import contextlib
import csv
import io
import json
import os
import shutil
import socket
import tempfile
from pathlib import Path


def write(path, content):
    """Writes bytes to a file: aside first, then in its place. Raises OSError, with the old content untouched."""
    path = Path(path)
    aside = path.with_name(f".{_me()}.{path.name}.part")
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path, value):
    """Writes a value as JSON. Raises ValueError for NaN and infinity, which JSON does not have."""
    write(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_csv(path, rows):
    """Writes dicts of equal keys as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue().encode())


def sweep(folder):
    """Removes what processes that were killed while they wrote into `folder` left there: files, or whole folders."""
    for aside in Path(folder).glob(".*.part"):
        if _is_at_work(aside.name.split(".")[1]):
            continue
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)


@contextlib.contextmanager
def folder(parent):
    """A new folder in `parent` for the block, which may rename it; what is left of it is removed. Raises OSError."""
    made = Path(tempfile.mkdtemp(prefix=f".{_me()}.", suffix=".part", dir=parent))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _me():
    """This process as a part of a file's name; file systems are shared between machines."""
    return f"{os.getpid()}@{socket.gethostname().split('.')[0]}"


def _is_at_work(writer):
    """Whether this is another process that lives, as far as can be seen from here."""
    import psutil

    pid, _, host = writer.partition("@")
    if not pid.isdigit() or writer == _me():
        return False
    return host != _me().partition("@")[2] or psutil.pid_exists(int(pid))
