"""The state of a training: one file that goes in and out whole, of which a run's `last` folder holds the newest two.

It is a zip of stored members: `state.json`, what is done; `variables.bin`, the bytes of every variable of model,
optimizer and metrics in Keras' order; `best.weights.h5`, the best weights so far. Reading runs nothing and believes
nothing: every size, shape and type is compared with the model at hand first, and zip's checksums find damage.
"""

import errno
import json
import math
import zipfile
from typing import NamedTuple

import numpy as np
from keras import ops

from runtime import atomic

FORMAT = 1
KEPT = 2  # states in a folder
MOST_JSON = 1 << 28  # bytes; some 500,000 epochs
H5_OVERHEAD = 1 << 14  # bytes beside each array of a weights file, at most


class Damaged(ValueError):
    """A file that is no state, or not one of the model at hand: why."""


class State(NamedTuple):
    """How far a training is: `epoch` epochs, then `step` steps in `seconds` of the next one.

    `rows` are those of history.csv, one for each epoch; `best` is the content of best.weights.h5, empty before the
    first epoch is over; `values` are those of `variables(model)`.
    """

    epoch: int
    step: int
    seconds: float
    rows: list
    best: bytes
    values: list

    def into(self, model):
        """Gives every variable of the model its value."""
        for variable, value in zip(variables(model), self.values, strict=True):
            variable.assign(value)


def variables(model):
    """All that changes in training: weights, seeds, the optimizer's and the metrics' variables, in a fixed order."""
    return [*model.variables, *model.optimizer.variables, *model.metrics_variables]


def numbers(model):
    """The values of `variables(model)`: arrays."""
    return [ops.convert_to_numpy(variable) for variable in variables(model)]


def of(model, epoch, step, seconds, rows, best):
    """The State of a model."""
    return State(epoch, step, seconds, rows, best, numbers(model))


def save(folder, state):
    """Writes a state into the folder and removes all but the newest two. Raises OSError, with the others intact."""
    about = {name: getattr(state, name) for name in ("epoch", "step", "seconds", "rows")}
    about |= {"format": FORMAT, "values": _described(state.values)}
    folder.mkdir(exist_ok=True)
    path = folder / f"epoch{state.epoch:09d}_step{state.step:09d}.zip"
    with atomic.replacing(path) as opened, zipfile.ZipFile(opened, "w") as file:
        file.writestr("state.json", json.dumps(about, allow_nan=False))
        with file.open("variables.bin", "w", force_zip64=True) as member:  # which may have over 2 GiB
            for value in state.values:
                member.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
        file.writestr("best.weights.h5", state.best)
    for old in newest(folder)[KEPT:]:
        old.unlink()


def discard(path):
    """Takes a damaged state out of the newest ones, but leaves it there under another name."""
    path.replace(path.with_suffix(".damaged"))


def newest(folder):
    """The files of states in a folder, the newest first."""
    return sorted(folder.glob("epoch*_step*.zip"), reverse=True)


def read(path, model):
    """The State in a file that was written for such a model. Raises Damaged for any other content, and OSError."""
    likes = numbers(model)
    bytes_ = sum(like.nbytes for like in likes)
    most = {"state.json": MOST_JSON, "variables.bin": bytes_, "best.weights.h5": bytes_ + H5_OVERHEAD * len(likes)}
    try:
        with atomic.opened(path) as opened, zipfile.ZipFile(opened) as file:
            contents = {name: _member(file, name, size) for name, size in most.items()}
            if len(file.infolist()) != len(most):
                raise Damaged("it holds something else too")
        about = json.loads(contents["state.json"])
        _check(about, likes, len(contents["variables.bin"]) == bytes_)
    except Damaged:
        raise
    except (OSError, ValueError, KeyError, ArithmeticError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # that of a place before the start
            raise
        raise Damaged((str(error) or type(error).__name__).splitlines()[0][:200]) from error
    values, start = [], 0
    for like in likes:
        values.append(np.frombuffer(contents["variables.bin"], like.dtype, like.size, start).reshape(like.shape))
        start += like.nbytes
    done = {name: about[name] for name in ("epoch", "step", "seconds", "rows")}
    return State(**done, best=contents["best.weights.h5"], values=values)


def _member(file, name, most):
    info = file.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise Damaged(f"{name} is not stored as it is")
    if info.file_size > most:
        raise Damaged(f"{name} has {info.file_size:,} bytes, at most {most:,} are expected")
    with file.open(info) as member:
        return member.read(most + 1)


def _check(about, likes, right_size):
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise Damaged(f"it is not of format {FORMAT}")
    if about.get("values") != _described(likes) or not right_size:
        raise Damaged("it belongs to another model")
    epoch, step, seconds, rows = (about.get(name) for name in ("epoch", "step", "seconds", "rows"))
    if not _is_count(epoch) or not _is_count(step) or not _is_number(seconds) or not isinstance(rows, list):
        raise Damaged("it does not say how far it is")
    columns = list(rows[0]) if rows and isinstance(rows[0], dict) else []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or list(row) != columns or not all(map(_is_number, row.values())):
            raise Damaged(f"row {number} of its history is no row")
        if row.get("epoch") != number or "val_elbo" not in row or "seconds" not in row:
            raise Damaged(f"row {number} of its history is of another epoch")
    if len(rows) != epoch:
        raise Damaged(f"it has a history of {len(rows)} epochs and says {epoch}")


def _described(values):
    return [[list(value.shape), str(value.dtype)] for value in values]


def _is_count(value):
    return type(value) is int and 0 <= value < 2**31


def _is_number(value):
    return type(value) in (int, float) and math.isfinite(value)
