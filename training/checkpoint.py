"""The state of a training: one file that goes in and out whole, of which a run's `last` folder holds the newest two.

It is a safetensors file of every variable of model, optimizer and metrics, the best weights so far and the history. Its
metadata are the progress and a checksum. Nothing in it is believed: every name, shape and type is compared with the
model at hand first, and the checksum finds damage.
"""

import errno
import math
import zlib
from typing import NamedTuple

import numpy as np
import safetensors.numpy
from keras import KerasTensor

from experiment import weights
from models.weight_names import named_weights
from runtime import atomic

PROGRESS = ("epoch", "step", "seconds")
KEPT = 2  # states in a folder


class Damaged(ValueError):
    """A file that is no state, or not one of the model at hand: why."""


class State(NamedTuple):
    """How far a training is: `epoch` epochs, then `step` steps in `seconds` of the next one.

    `rows` are those of history.csv, one for each epoch; `best` are the best weights by name, none before the first
    epoch is over; `values` are those of `variables(model)`.
    """

    epoch: int
    step: int
    seconds: float
    rows: list
    best: dict
    values: dict

    def into(self, model):
        """Gives every variable of the model its value."""
        weights.assign(variables(model), self.values)


def variables(model):
    """All that changes in training, by name: weights, seeds, the optimizer's and the metrics' variables."""
    named = named_weights(model)
    are_weights = {id(weight) for weight in named.values()}
    seeds = [variable for variable in model.variables if id(variable) not in are_weights]
    found = {f"model/{name}": weight for name, weight in named.items()}
    for kind, several in ("seed", seeds), ("optimizer", model.optimizer.variables), ("metric", model.metrics_variables):
        found |= {f"{kind}/{index}": variable for index, variable in enumerate(several)}
    return found


def save(folder, state):
    """Writes a state into the folder and removes all but the newest two. Raises OSError, with the others intact."""
    arrays = state.values | {f"best/{name}": value for name, value in state.best.items()}
    if state.rows:
        arrays |= {f"history/{name}": np.array([row[name] for row in state.rows], "float64") for name in state.rows[0]}
    progress = {name: str(getattr(state, name)) for name in PROGRESS}
    folder.mkdir(exist_ok=True)
    path = folder / f"epoch{state.epoch:09d}_step{state.step:09d}.safetensors"
    atomic.write(path, safetensors.numpy.save(arrays, progress | {"crc32": checksum(progress, arrays)}))
    for old in newest(folder)[KEPT:]:
        old.unlink()


def newest(folder):
    """The files of states in a folder, the newest first."""
    return sorted(folder.glob("epoch*_step*.safetensors"), reverse=True)


def read(path, model, columns):
    """The State in a file for such a model and a history of these columns. Raises Damaged if it is none; OSError."""
    named, best, rows = named_weights(model), {}, []
    try:
        with weights.opened(path) as file:
            metadata = file.metadata() or {}
            progress = {name: metadata[name] for name in PROGRESS}
            epoch, step, seconds = int(progress["epoch"]), int(progress["step"]), float(progress["seconds"])
            if not 0 <= epoch < 2**31 or not 0 <= step < 2**31 or not math.isfinite(seconds):
                raise Damaged("it does not say how far it is")
            expected = variables(model)
            if epoch:
                expected |= {f"best/{name}": weight for name, weight in named.items()}
                expected |= {f"history/{name}": KerasTensor((epoch,), "float64") for name in columns}
            arrays = weights.arrays(file, expected)
        if metadata["crc32"] != checksum(progress, arrays):
            raise Damaged("its checksum is another one")
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # it is a file, and cannot be read just now
            raise
        raise Damaged((str(error) or type(error).__name__).splitlines()[0][:200]) from error
    if epoch:
        best = {name: arrays.pop(f"best/{name}") for name in named}
        history = zip(*(arrays.pop(f"history/{name}").tolist() for name in columns), strict=True)
        rows = [dict(zip(columns, row, strict=True)) for row in history]
    for number, row in enumerate(rows, 1):
        if row["epoch"] != number or not all(map(math.isfinite, row.values())):
            raise Damaged(f"row {number} of its history is no row")
        row["epoch"] = number  # a whole number again
    return State(epoch, step, seconds, rows, best, arrays)


def checksum(progress, arrays):
    """CRC-32 of the progress, a dict of texts, and of all arrays in the order of their names, in hex."""
    total = zlib.crc32(" ".join(progress.values()).encode())
    for name in sorted(arrays):
        total = zlib.crc32(arrays[name], total)
    return f"{total:08x}"
