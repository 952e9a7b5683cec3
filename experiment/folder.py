"""The folder of a run: who may write it, how it is made, and how it replaces an older one."""

import contextlib
import errno
import os
import shutil
import socket
from pathlib import Path

import filelock

from experiment.record import read_json, read_status, record_of
from runtime import atomic
from runtime.errors import UserError
from runtime.text import bounded

LOCK_WAIT = 1.0  # seconds; somebody may only be looking whether a run is in progress


@contextlib.contextmanager
def held(path):
    """The run in `path` is this process' alone for the block. Raises UserError while another process trains it.

    The lock is the operating system's and ends with its process, however that dies.
    """
    lock = filelock.FileLock(Path(path, ".lock"), timeout=LOCK_WAIT)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(f"{path} is being trained by {_holder(path)}; wait for it, or choose other settings") from error
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def is_held(path):
    """Whether a process is training the run in `path`, as far as can be seen."""
    if not Path(path, ".lock").is_file():
        return False
    try:
        with filelock.FileLock(Path(path, ".lock"), blocking=False):
            return False
    except (filelock.Timeout, OSError):  # the latter where we may not write
        return True


def process():
    """Which process this is, for status.json."""
    return {"pid": os.getpid(), "host": socket.gethostname()}


def _holder(path):
    with contextlib.suppress(UserError, KeyError, TypeError):
        one = read_json(Path(path, "status.json"), "")["process"]
        return f"process {one['pid']} on {one['host']}"
    return "another process"


def create(config, path, dataset, overwrite=False, fill=None):
    """Makes a new run's folder with config.json, status.json and what `fill(folder)` writes. Raises UserError.

    What `overwrite` replaces is kept in the new folder's `replaced` until the new run is finished.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        finish_replacing(path)
        atomic.sweep(path.parent)
        with atomic.folder(path.parent) as fresh:  # renamed when whole, so that no half a run is ever seen
            atomic.write_json(fresh / "config.json", record_of(config, dataset))
            atomic.write_json(fresh / "status.json", {"state": "running"})
            if fill:
                fill(fresh)
            if overwrite and path.exists():
                _set_aside(path)
            fresh.rename(path)
        finish_replacing(path)
    except OSError as error:
        reason = f"cannot write a run to {path}: {error.strerror or error}; choose another --runs_dir"
        if isinstance(error, FileExistsError):
            reason = f"{error.filename} is in the way: it is no folder of runs; choose another --runs_dir"
        elif error.errno == errno.ENOTEMPTY:
            reason = f"{path} has just been made by another process; see what it does there"
        raise UserError(reason) from error


def _aside(path):
    return path.with_name(bounded(f".replaced.{path.name}"))


def _set_aside(path):
    """Moves a run out of the way of its successor: the run itself if it is finished, else what it was to replace."""
    if not (path / "config.json").is_file():
        raise UserError(f"{path} exists and is no run, so --overwrite leaves it alone; move it away")
    if path.is_symlink():  # which would stay in the new run, in the place of its folder `replaced`
        raise UserError(f"{path} is a link, which --overwrite leaves alone; move it away")
    with held(path):
        if (path / "replaced").is_dir() and read_status(path / "status.json").get("state") != "finished":
            (path / "replaced").rename(_aside(path))
            with atomic.folder(path.parent) as discarded:
                path.rename(discarded / "run")
        else:
            shutil.rmtree(path / "replaced", ignore_errors=True)
            path.rename(_aside(path))


def finish_replacing(path):
    """Puts a run that was set aside where it is kept, or back, where its successor never came to be.

    It still lies aside where a process was killed between the two renames of `create`. Where another process is between
    them now, that one finds the run in its place again, and ends with an error.
    """
    if not _aside(path).exists():
        return
    if not path.exists():
        _aside(path).rename(path)
        return
    with contextlib.suppress(UserError), held(path):
        _aside(path).rename(path / "replaced")
