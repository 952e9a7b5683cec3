"""Files hold the complete old or new content, whatever happens while they are written."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT

from runtime import atomic


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_written_files_are_read_back(tmp_path):
    value = {"name": "grün", "numbers": [1, 2.5, None], "nested": {"a": True}}
    atomic.write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == value
    rows = [{"epoch": 1, "loss": 0.1 + 0.2}, {"epoch": 2, "loss": 1e-17}]
    atomic.write_csv(tmp_path / "a.csv", rows)
    with open(tmp_path / "a.csv", newline="") as file:
        assert [{"epoch": int(row["epoch"]), "loss": float(row["loss"])} for row in csv.DictReader(file)] == rows
    assert names_in(tmp_path) == ["a.csv", "a.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_failure_while_writing_leaves_only_the_old_content(tmp_path, monkeypatch, call, error):
    def fail(*_):
        raise error

    atomic.write(tmp_path / "file", b"old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(error)):
        atomic.write(tmp_path / "file", b"new and longer")
    assert (tmp_path / "file").read_bytes() == b"old" and names_in(tmp_path) == ["file"]


def test_files_of_a_killed_process_are_swept(tmp_path):
    code = "import os; from runtime import atomic; "
    code += "os.fsync = lambda _: os.kill(os.getpid(), 9); atomic.write('{}/file', b'half')"
    atomic.write(tmp_path / "file", b"whole")
    done = subprocess.run([sys.executable, "-c", code.format(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(names_in(tmp_path)) == 2
    atomic.sweep(tmp_path)
    assert names_in(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"whole"


def test_a_folder_that_a_killed_process_left_is_swept_and_those_of_others_stay(tmp_path):
    code = "import os; from runtime import atomic\n"
    code += "with atomic.folder('{}') as made: (made / 'x').touch(); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code.format(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = names_in(tmp_path)
    dead, rest = left.split("@")
    elsewhere, alive = f"{dead}@elsewhere.x.part", f".{os.getppid()}@{rest}"
    for name in (elsewhere, alive):
        (tmp_path / name).mkdir()
    atomic.sweep(tmp_path)
    assert names_in(tmp_path) == sorted([elsewhere, alive])


def test_a_folder_is_kept_if_it_was_renamed_and_removed_otherwise(tmp_path):
    with atomic.folder(tmp_path) as made:
        (made / "x").touch()
        made.rename(tmp_path / "kept")
    with atomic.folder(tmp_path) as made:
        (made / "y").touch()
    assert names_in(tmp_path) == ["kept"] and names_in(tmp_path / "kept") == ["x"]


def test_files_with_similar_names_are_not_swept(tmp_path):
    for name in (".thesis.part", ".7@.part", ".x@y.z.part"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.1.part").write_text("a film")
    before = names_in(tmp_path)
    atomic.sweep(tmp_path)
    atomic.sweep(tmp_path, alone=True)
    assert names_in(tmp_path) == before


def test_leftovers_of_other_machines_are_swept_if_only_this_process_writes(tmp_path):
    for name in (f".{os.getppid()}@elsewhere.file.part", f".{os.getpid()}@elsewhere.x.part"):
        (tmp_path / name).touch()
    atomic.sweep(tmp_path)
    assert len(names_in(tmp_path)) == 2
    atomic.sweep(tmp_path, alone=True)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("make", ["mkstemp", "mkdtemp"])
def test_a_thread_does_not_sweep_what_another_has_just_made(tmp_path, monkeypatch, make):
    sweeper = threading.Thread(target=atomic.sweep, args=[tmp_path])
    made = getattr(tempfile, make)

    def make_and_be_overtaken(**where):
        result = made(**where)
        sweeper.start()
        sweeper.join(0.3)
        return result

    monkeypatch.setattr(tempfile, make, make_and_be_overtaken)
    if make == "mkstemp":
        atomic.write(tmp_path / "file", b"content")
        assert (tmp_path / "file").read_bytes() == b"content"
    else:
        with atomic.folder(tmp_path) as folder:
            sweeper.join()
            assert folder.is_dir()


def test_the_umask_outlives_threads_that_ask_for_it(monkeypatch):
    asked = os.umask

    def slowly(mask):
        before = asked(mask)
        time.sleep(0.01)
        return before

    before = atomic.umask()
    monkeypatch.setattr(os, "umask", slowly)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: atomic.umask(), range(8))) == [before] * 8
    assert atomic.umask() == before


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    with atomic.opened(tmp_path / "file") as file:
        assert file.read() == b"content"
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(OSError), atomic.opened(other):
            pass
