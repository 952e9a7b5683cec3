"""Files that hold either the old or the new content, whole, whenever the process dies."""

import csv
import io
import json
import os
from pathlib import Path


def write(path, content):
    """Writes bytes to a file: aside first, then in its place. Raises OSError, with the old content untouched."""
    path = Path(path)
    aside = path.with_name(f".{os.getpid()}.{path.name}.part")
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
    """Removes what processes that were killed while they wrote into `folder` left there."""
    import psutil

    for aside in Path(folder).glob(".*.part"):
        writer = aside.name.split(".")[1]
        if not writer.isdigit() or int(writer) == os.getpid() or not psutil.pid_exists(int(writer)):
            aside.unlink(missing_ok=True)
