"""The state of a training: one file that goes in and out whole, of which a run's `last` folder holds the newest two.

It is a safetensors file of every variable of model, optimizer and metrics, the best weights so far and the history; its
metadata are the progress, as JSON, and a checksum. Nothing in it is believed: every name, shape and type is compared
with the model at hand first, and the checksum finds damage.
"""

import errno
import json
import math
import zlib
from typing import NamedTuple

import numpy as np
from keras import KerasTensor

from experiment import weights
from models.weight_names import named_weights
from runtime import atomic

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


def of(model, epoch, step, seconds, rows, best):
    """The State of a model."""
    return State(epoch, step, seconds, rows, best, weights.values(variables(model)))


def save(folder, state):
    """Writes a state into the folder and removes all but the newest two. Raises OSError, with the others intact."""
    columns = list(state.rows[0]) if state.rows else []
    history = np.array([list(row.values()) for row in state.rows], "float64").reshape(len(state.rows), len(columns))
    arrays = state.values | {f"best/{name}": array for name, array in state.best.items()} | {"history": history}
    done = {"epoch": state.epoch, "step": state.step, "seconds": state.seconds, "columns": columns}
    done = json.dumps(done, allow_nan=False)
    folder.mkdir(exist_ok=True)
    path = folder / f"epoch{state.epoch:09d}_step{state.step:09d}.safetensors"
    atomic.write(path, weights.packed(arrays, {"done": done, "crc32": checksum(done, arrays)}))
    for old in newest(folder)[KEPT:]:
        old.unlink()


def discard(path):
    """Takes a damaged state out of the newest ones, but leaves it there under another name."""
    path.replace(path.with_suffix(".damaged"))


def newest(folder):
    """The files of states in a folder, the newest first."""
    return sorted(folder.glob("epoch*_step*.safetensors"), reverse=True)


def read(path, model):
    """The State in a file that was written for such a model. Raises Damaged for any other content, and OSError."""
    try:
        with weights.opened(path) as file:
            metadata = file.metadata() or {}
            done = json.loads(metadata["done"])
            _check(done)
            expected = variables(model) | {"history": KerasTensor((done["epoch"], len(done["columns"])), "float64")}
            if done["epoch"]:
                expected |= {f"best/{name}": weight for name, weight in named_weights(model).items()}
            arrays = weights.arrays(file, expected)
        if metadata["crc32"] != checksum(metadata["done"], arrays):
            raise Damaged("its checksum is another one")
    except (OSError, ValueError, KeyError, ArithmeticError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # it is a file, and cannot be read just now
            raise
        raise Damaged((str(error) or type(error).__name__).splitlines()[0][:200]) from error
    best = {name.removeprefix("best/"): arrays.pop(name) for name in expected if name.startswith("best/")}
    rows = _rows(done.pop("columns"), arrays.pop("history"))
    return State(**done, rows=rows, best=best, values=arrays)


def checksum(done, arrays):
    """CRC-32 of the progress, a text, and of all arrays in the order of their names, in hex."""
    total = zlib.crc32(done.encode())
    for name in sorted(arrays):
        total = zlib.crc32(arrays[name], total)
    return f"{total:08x}"


def _check(done):
    kinds = {"epoch": int, "step": int, "seconds": float, "columns": list}
    if not isinstance(done, dict) or {name: type(value) for name, value in done.items()} != kinds:
        raise Damaged("it does not say how far it is")
    epoch, step, seconds, columns = (done[name] for name in kinds)
    if not 0 <= epoch < 2**31 or not 0 <= step < 2**31 or not math.isfinite(seconds):
        raise Damaged("it does not say how far it is")
    has_texts = all(type(name) is str for name in columns)
    if not has_texts or (epoch and not {"epoch", "val_elbo", "seconds"} < set(columns)):
        raise Damaged("its history has other columns")


def _rows(columns, history):
    rows = [dict(zip(columns, row, strict=True)) for row in history.tolist()]
    for number, row in enumerate(rows, 1):
        if row["epoch"] != number or not all(map(math.isfinite, row.values())):
            raise Damaged(f"row {number} of its history is none")
        row["epoch"] = number  # a whole number again
    return rows
