"""Fuzz every reader of files that a stranger may have written: each returns a valid value or raises its own error.

    python benchmarks/fuzz.py [--inputs 20000] [--seed 0] [--json FILE] [TARGET ...]

Each reader starts from valid files and is guided by the coverage of the project's code (atheris), in a process of its
own. A defect is an input at which it raises another error, writes a file, starts a process, crashes, takes more than
2 s or 256 MiB. The shortest input for each reason is kept beside FILE, or in the current folder, as
`TARGET-NAME.fuzz`, with the reason in `TARGET-NAME.txt`. Exit code 1 says that there is one.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import safetensors.numpy

sys.path.insert(0, str(Path(__file__).parent.parent))

import experiment
from data.archives import ZipFolder, read_tar
from data.sources import parse_idx
from experiment import record as record_module
from experiment import weights
from runtime import atomic, backend, text
from runtime.errors import DataError, UserError

ROOT = Path(__file__).parent.parent
INSTRUMENTED = ["runtime", "training", "data", "experiment", "tarfile", "zipfile"]
LIMITS = ["-timeout=20", "-rss_limit_mb=4096"]  # seconds for an input and MiB of the process, which end it
SLOW, LARGE = 2.0, 256  # seconds of processor time and MiB that no input needs, as files are small here
COSTLY = {"weights": 4, "state": 4, "progress": 4}  # targets that get 1 input in so many
MOST_CRASHES = 10  # of a target's process, before it is left alone
WORKER = f"""
import sys, atheris
with atheris.instrument_imports(include={INSTRUMENTED}):
    from benchmarks import fuzz
    fuzz.worker(sys.argv[1], fuzz.Path(sys.argv[2]), sys.argv[3:])
"""  # imports the project's modules, and so this one, for atheris
ACTS = ("ctypes.", "os.", "pickle.", "shutil.", "socket.", "subprocess.")  # audit events that no reader may cause
HARMLESS = ("os.listdir", "os.scandir")
SETTINGS = {"data_set": "digits", "network_size": 0.25, "batch_size": 64, "num_pseudo_inputs": 12, "prior": "vamp"}
SHAPE = (8, 8, 1)  # of digits
MEMBER = 4096  # bytes of a file in an archive, at most


class Target(NamedTuple):
    """A reader: `read()` reads `file` and checks what comes back, or raises `error`.

    `valid` and `hostile` are contents to begin with, the latter made to fool it; `packed` makes a file of a content.
    """

    file: Path
    read: Callable
    error: type
    valid: list
    hostile: list = ()
    packed: Callable = bytes


def accepts(target, content):
    """Whether the reader takes this content; False where it refuses it. Raises whatever else comes of it."""
    target.file.write_bytes(target.packed(content))
    with watched():
        try:
            target.read()
        except target.error:
            return False
        return True


@contextlib.contextmanager
def watched():
    """Raises AssertionError where the block writes a file, starts a process or the like, or is slow or large."""
    _acts.append([])
    started, before = time.process_time(), peak()
    try:
        yield
    finally:
        seen = _acts.pop()
    seconds, grown = time.process_time() - started, peak() - before
    assert not seen, f"the reader acts: {seen}"
    assert seconds < SLOW, f"the reader takes {seconds:.1f} s"
    assert grown < LARGE, f"the reader takes {grown:,.0f} MiB"


def peak():
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


_acts = []  # those in the block of `watched`; empty outside of it


def _audit(event, args):
    if not _acts:
        return
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or (event.startswith(ACTS) and event not in HARMLESS):
        _acts[-1].append((event, str(args)[:200]))


sys.addaudithook(_audit)


# ---------------------------------------------------------------------------------------------- the readers


def tiny_run(folder):
    """Writes what can be read of a run without Keras and returns its Config."""
    config = experiment.Config(**SETTINGS)
    record = {"format": record_module.FORMAT, "config": dataclasses.asdict(config)}
    record |= {"backend": "tensorflow", "versions": {"numpy": "2.4.6"}, "data_sha256": {"file": "0123"}}
    atomic.write_json(folder / "config.json", record)
    atomic.write_json(folder / "status.json", {"state": "finished", "epochs_done": 2, "best_epoch": 2})
    atomic.write_csv(folder / "history.csv", rows(2))
    return config


def rows(epochs):
    """Those of a history.csv of so many epochs."""
    columns = experiment.Config().columns
    return [dict.fromkeys(columns, -9.5) | {"epoch": i, "seconds": 1.25} for i in range(1, epochs + 1)]


def config(folder):
    """config.json: all of its settings are those that a Config takes."""
    tiny_run(folder)
    new = json.loads((folder / "config.json").read_bytes())
    far = new | {"config": new["config"] | {"data_dir": "x" * 300}}  # a name that no file system takes
    valid, far = (json.dumps(record).encode() for record in (new, far))

    def read():
        found = experiment.load(folder).config
        assert experiment.Config.from_dict(dataclasses.asdict(found)) == found and "/" not in found.training_id

    return Target(folder / "config.json", read, UserError, [valid], [far])


def status(folder):
    """status.json: the state is one of five, and where the file is damaged it says nothing."""
    tiny_run(folder)
    about = {"epochs_done": 2, "best_epoch": 2, "best_val_elbo": -9.5, "seconds": 2.5}
    valid = [json.dumps({"state": s} | about).encode() for s in ("running", "stopped", "failed", "finished")]

    def read():
        with contextlib.redirect_stderr(None):  # it warns
            assert experiment.load(folder).state in ("running", "interrupted", "stopped", "failed", "finished")

    return Target(folder / "status.json", read, UserError, valid)


def history(folder):
    """history.csv: columns of numbers, all equally long."""
    tiny_run(folder)
    path = folder / "history.csv"

    def read():
        columns = experiment.load(folder).history
        assert len({(column.dtype, column.shape) for column in columns.values()}) <= 1

    wide = b",".join(b"%d" % i for i in range(6000)) + 6000 * b"\n1"  # each row lacks all columns but one
    return Target(path, read, UserError, [path.read_bytes()], [wide])


def weights_(folder):
    """best.safetensors, read into a model that is built once and not for each input."""
    backend.settle(device="cpu")
    backend.start()
    import models
    from models.weight_names import named_weights

    model = models.build(tiny_run(folder), SHAPE)
    named = named_weights(model)

    def read():
        with mock.patch.multiple(models, build=lambda *_, **__: model, blank_weights=lambda *_, **__: named):
            assert experiment.load(folder).model is model

    content = safetensors.numpy.save(weights.values(named), {"run": "a run"})
    return Target(folder / "best.safetensors", read, UserError, [content], hostile(content))


def hostile(content):
    """Safetensors files, made of a valid one, that ask for more time or memory than they are large."""
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    name = max(header, key=lambda name: header[name].get("data_offsets", [0])[-1])
    sizes = ([2**40], [2**62, 2**62], [1] * 100_000, [0, 2**40])
    changed = [header | {name: header[name] | {"shape": shape}} for shape in sizes]
    changed += [header | {f"{name}{number}": header[name] for number in range(1000)}, header | {"x" * 2**20: {}}]
    texts = [json.dumps(one).encode() for one in changed] + [b"[" * 2**20, b'{"a":' * 2**20]
    return [len(text).to_bytes(8, "little") + text + data for text in texts] + [b"\xff" * 7 + b"\x7f" + content[8:]]


def state(folder):
    """A file of last/: every value has the type and shape of the model's variable."""
    backend.settle(device="cpu")
    backend.start()
    from models.weight_names import named_weights
    from training import checkpoint, fit

    model = fit.prepare(experiment.Config(**SETTINGS)).model
    for past in (rows(0), rows(2)):
        values = weights.values(checkpoint.variables(model))
        best = weights.values(named_weights(model)) if past else {}
        checkpoint.save(folder / "last", checkpoint.State(len(past), 3, 0.5, past, best, values))
    valid = [path.read_bytes() for path in checkpoint.newest(folder / "last")]
    likes = {name: (v.dtype, tuple(v.shape)) for name, v in checkpoint.variables(model).items()}

    def read():
        found = checkpoint.read(folder / "state.safetensors", model, experiment.Config().columns)
        assert {name: (str(value.dtype), value.shape) for name, value in found.values.items()} == likes
        assert len(found.rows) == found.epoch and bool(found.best) == bool(found.rows)

    return Target(folder / "state.safetensors", read, checkpoint.Damaged, valid, hostile(valid[0]))


def progress(folder):
    """The metadata of a file of last/ that is whole otherwise: behind the checksum, which stops most mutations."""
    from training import checkpoint

    target = state(folder)
    target.file.write_bytes(target.valid[0])
    with weights.opened(target.file) as file:
        arrays, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118

    def packed(content):
        parts = content.decode(errors="replace").split("\n", 2)
        told = dict(zip(checkpoint.PROGRESS, parts, strict=False))
        return safetensors.numpy.save(arrays, told | {"crc32": checkpoint.checksum(told, arrays)})

    valid = "\n".join(metadata[name] for name in checkpoint.PROGRESS)
    return target._replace(valid=[valid.encode()], hostile=[], packed=packed)


def idx(folder):
    """A file of the MNIST family: an array of bytes with an axis or more."""
    valid = [bytes([0, 0, 8, n]) + np.arange(1, n + 1, dtype=">u4").tobytes() + bytes([7] * f) for n, f in AXES]

    def read():
        found = parse_idx((folder / "file").read_bytes())
        assert found.dtype == np.uint8 and 1 <= found.ndim <= 4 and found.size

    return Target(folder / "file", read, DataError, valid)


AXES = ((1, 1), (2, 2), (3, 6), (4, 24))  # and the values that they hold, where they are 1, 2, ... long


def tar(folder):
    """A tar, packed or not, with a file of another name before the one that is read."""
    valid = [tarred(f"w:{packing}", tarfile.USTAR_FORMAT) for packing in ("", "gz")]
    valid += [tarred("w:", tarfile.PAX_FORMAT), tarred("w:", tarfile.GNU_FORMAT)]
    back, sparse = tarfile.TarInfo("back"), tarfile.TarInfo("data")
    back.size, sparse.type = -512, tarfile.GNUTYPE_SPARSE
    loop = tarfile.TarInfo("link").tobuf() + back.tobuf(tarfile.GNU_FORMAT)  # the next file is the same again
    holes = tarred("w:", tarfile.GNU_FORMAT, tarfile.GNUTYPE_SPARSE)
    cut = sparse.tobuf(tarfile.GNU_FORMAT)
    cut = cut[:482] + b"\1" + cut[483:]  # the map of its holes goes on behind the end
    read = functools.partial(read_tar, folder / "archive", "data")
    return Target(folder / "archive", read, DataError, valid, [loop, cut, holes], sealed)


def tarred(mode, kind, last=tarfile.REGTYPE):
    """The content of a tar with a link and two files, one of a long name and one of type `last`."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode, format=kind) as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "data"
        archive.addfile(link)
        for name in ("x" * (90 if kind == tarfile.USTAR_FORMAT else 120), "data"):
            info = tarfile.TarInfo(name)
            info.size, info.type = 600, last if name == "data" else tarfile.REGTYPE
            archive.addfile(info, io.BytesIO(bytes(range(200)) * 3))
    return content.getvalue()


def sealed(content):
    """A tar whose headers have the right checksums again, which stop most mutations; anything else as it is."""
    blocks = [content[start : start + 512] for start in range(0, len(content), 512)]
    for number, block in enumerate(blocks):
        if block[257:262] == b"ustar" and len(block) == 512:
            total = sum(block[:148]) + 8 * ord(" ") + sum(block[156:])
            blocks[number] = block[:148] + b"%06o\0 " % total + block[156:]
    return b"".join(blocks)


def zip_(folder):
    """A zip with two files, the second of which is read."""
    kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    valid = [zipped(kind, other=b"x", data=bytes(range(200)) * 3) for kind in kinds]
    bomb = zipped(zipfile.ZIP_BZIP2, data=bytes(300 * 2**20))  # zipfile unpacks it at once, whatever is asked for

    def read():
        archive = ZipFolder(folder / "archive")
        assert all(len(archive.read(name, MEMBER)) <= MEMBER for name in archive.infos)

    return Target(folder / "archive", read, DataError, valid, [bomb])


def zipped(kind, **members):
    """The content of a zip with these members."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", kind) as archive:
        for name, one in members.items():
            archive.writestr(name, one)
    return content.getvalue()


TARGETS = {  # each makes its Target in a folder of its own
    "config": config,
    "status": status,
    "history": history,
    "weights": weights_,
    "state": state,
    "progress": progress,
    "idx": idx,
    "tar": tar,
    "zip": zip_,
}

# ---------------------------------------------------------------------------------------------- fuzzing

SEEN = {"refused": int, "accepted": int, "defects": int, "slowest s": float, "grown MiB": float}


def worker(name, folder, words):
    """Fuzzes one target as `words` tell libFuzzer; ends the process. `seen` and `found` in the folder tell of it."""
    import atheris

    target = TARGETS[name](folder)
    seen, start = np.memmap(folder / "seen", float, "r+", shape=len(SEEN)), peak()
    contents = [*target.valid, *target.hostile]
    for number, content in enumerate(contents):
        if not seen.any():  # else another process went before
            (folder / "corpus" / str(number)).write_bytes(content)

    def one(content):
        started = time.process_time()
        try:
            seen[int(accepts(target, content))] += 1
        except Exception as error:
            seen[2] += 1
            _keep(folder / "found", content, error)
        seen[3:] = max(seen[3], time.process_time() - started), max(seen[4], peak() - start)

    longest = 2 * max(2048, *map(len, contents))
    atheris.Setup([name, *words, f"-max_len={longest}", f"-artifact_prefix={folder}/found/", f"{folder}/corpus"], one)
    atheris.Fuzz()


def _keep(folder, content, error):
    """Keeps the shortest input for each kind of error and line of code."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    path = folder / hashlib.sha256(f"{type(error)}{last.filename}{last.lineno}".encode()).hexdigest()[:10]
    if not path.exists() or len(content) < path.stat().st_size:
        path.write_bytes(content)
        path.with_suffix(".txt").write_text("".join(traceback.format_exception(error))[-4000:], errors="replace")


def fuzz(name, inputs, seed, beside):
    """A row of the table: one target, its process started again behind each input at which it dies."""
    started, crashes, log = time.perf_counter(), 0, ""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        seen = np.memmap(folder / "seen", float, "w+", shape=len(SEEN))
        for part in ("corpus", "found"):
            (folder / part).mkdir()
        while (left := inputs - int(seen[:3].sum())) > 0 and crashes < MOST_CRASHES:
            words = [f"-runs={left}", f"-seed={seed + 1 + crashes}", *LIMITS]  # 0 would be a seed of its choice
            command = [sys.executable, "-c", WORKER, name, folder, *words]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
            log = done.stderr.decode(errors="replace")
            if done.returncode == 0:
                break
            crashes += 1
            _put_aside(folder / "corpus", log)
            seen[2] += 1
        for path in (folder / "found").iterdir():
            shutil.copyfile(path, beside / f"{name}-{path.stem[:18]}{path.suffix or '.fuzz'}")
        row = {"target": name, "inputs": int(seen[:3].sum())}
        row |= {column: kind(value) for (column, kind), value in zip(SEEN.items(), seen, strict=True)}
    row["coverage"] = int(([0, *re.findall(r"cov: (\d+)", log)])[-1])
    return row | {"seconds": time.perf_counter() - started}


def _put_aside(corpus, log):
    """Keeps the reason beside the input that a process died of, and takes that from those that the next begins with."""
    kept = re.search(r"Test unit written to (\S+)", log)
    if not kept:
        raise RuntimeError(f"the fuzzer does not start:\n{log[-4000:]}")
    path = Path(kept[1])
    path.with_suffix(".txt").write_text(log[-4000:])
    for other in corpus.iterdir():
        if other.read_bytes() == path.read_bytes():
            other.unlink()


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--inputs", type=int, default=20_000, help="for each target; fewer where they cost")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    args = parser.parse_args()
    if unknown := set(args.targets) - set(TARGETS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(TARGETS)}")
    beside = args.json.parent if args.json else Path()
    names = args.targets or list(TARGETS)
    table = [fuzz(name, args.inputs // COSTLY.get(name, 1), args.seed, beside) for name in names]
    print(text.table(table))
    if args.json:
        versions = record_module.versions() | {name: version(name) for name in ("atheris", "safetensors")}
        settings = {"inputs": args.inputs, "seed": args.seed}
        atomic.write_json(args.json, {"settings": settings, "versions": versions, "rows": table})
    return int(any(row["defects"] for row in table))


if __name__ == "__main__":
    sys.exit(main())
