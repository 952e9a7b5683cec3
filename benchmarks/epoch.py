"""What part of a training's epoch is spent outside of its steps: results/epoch.json.

    python benchmarks/epoch.py --hardware "two cores of ..." [conv mlp] [--backend tensorflow jax] [--rounds 3]

Each row is a real train.py in a process of its own, with its callbacks, batches, checkpoints and validation. Behind
each epoch the same number of bare steps is timed, by the same compiled function on the same images in memory, on
TensorFlow one by one: they take longer than an epoch's where it has several in an execution. Other work meets both,
and the first of each, which traces, does not count. Shown are medians: seconds between steps (the next batch,
callbacks), those once an epoch (order, checkpoint, history), and both in percent of the bare steps. The latter weigh
more where there are fewer training images; "of a full epoch" is what both would be with all of them. CPU time, in which
a second on one core counts half as much as one on two, is disturbed least by other work.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import results_page
from benchmarks.train_step import bare_steps
from experiment.record import git_commit, versions
from runtime import atomic
from runtime.command import STOPPED
from runtime.text import table

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "epoch.json"
COMMON = {"data_set": "mnist", "prior": "vamp", "num_pseudo_inputs": 500, "epochs": 250}
ROWS = {
    "conv": COMMON | {"network_size": 4, "batch_size": 256, "latent_dim": 2, "max_train_images": 30 * 256},
    "mlp": COMMON | {"network": "mlp", "batch_size": 100, "latent_dim": 40},
}
FULL = 50_000  # training images of MNIST


def now():
    """Seconds by the wall clock and of this process' CPU time: a list of two."""
    return [time.perf_counter(), time.process_time()]


def since(start):
    """The seconds between then and now, both ways."""
    return [end - begin for begin, end in zip(start, now(), strict=True)]


def clock(batches, rounds):
    """A Keras callback, the last one of a `fit` on `batches`, with the `epochs` that it has timed, bare steps behind
    each; it ends the training after so many and one.
    """
    import keras

    class Clock(keras.callbacks.Callback):
        epochs, images, started = (), None, None

        def on_train_begin(self, logs=None):
            self.epochs, self.started = [], now()

        def on_epoch_begin(self, epoch, logs=None):
            self.first = None

        def on_train_batch_begin(self, batch, logs=None):
            self.first = self.first or now()

        def on_train_batch_end(self, batch, logs=None):
            self.steps = since(self.first)

        def on_test_begin(self, logs=None):
            self.test_started = now()

        def on_test_end(self, logs=None):
            self.validation = since(self.test_started)

        def on_epoch_end(self, epoch, logs=None):
            found = {"epoch": since(self.started), "steps": self.steps, "validation": self.validation}
            self.images = self.images or [np.asarray(x) for (x,), _ in zip(batches, range(len(batches)), strict=False)]
            start = now()
            bare_steps(self.model, self.images)
            self.epochs.append(found | {"bare": since(start)})
            if len(self.epochs) > rounds:
                raise KeyboardInterrupt
            self.started = now()

    return Clock()


@contextlib.contextmanager
def clocked(rounds):
    """Adds a clock to each `fit` of the block: a list of them."""
    import keras

    usual, clocks = keras.Model.fit, []

    def fit(self, batches, callbacks=(), **options):
        clocks.append(clock(batches, rounds))
        return usual(self, batches, callbacks=[*callbacks, clocks[-1]], **options)

    with mock.patch.object(keras.Model, "fit", fit):
        yield clocks


def worker(row, backend, rounds):
    """Trains a row and prints its steps, and seconds of each epoch but the first, as JSON."""
    from runtime.backend import settle, start

    settle(backend)
    start()
    import train

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr), clocked(rounds) as clocks:
        words = [word for name, value in ROWS[row].items() for word in (f"--{name}", str(value))]
        code = train.main([*words, "--runs_dir", folder])
    if code != STOPPED:  # which the clock does
        sys.exit(code or 1)
    print(json.dumps({"steps": len(clocks[0].images), "epochs": clocks[0].epochs[1:]}))


def measured(row, backend, rounds):
    """What the worker of a row says."""
    command = [sys.executable, __file__, row, "--backend", backend, "--rounds", str(rounds), "--worker"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def parts(epoch, kind):
    """Seconds of an epoch, by the wall clock for kind 0 and of CPU time for 1, and what they are made of: a dict."""
    total, steps, validation, bare = (epoch[name][kind] for name in ("epoch", "steps", "validation", "bare"))
    once = total - steps - validation
    return {"epoch": total, "bare": bare, "validation": validation, "between": steps - bare, "once": once}


def summary(row, backend, found):
    """The row of the table: medians in seconds, and the overhead in percent of the bare steps."""
    every = [[parts(epoch, kind) for epoch in found["epochs"]] for kind in (0, 1)]
    wall, cpu = ({name: median(one[name] for one in of_kind) for name in of_kind[0]} for of_kind in every)
    times = FULL / ROWS[row].get("max_train_images", FULL)
    return {
        "row": row,
        "backend": backend,
        "epochs": len(found["epochs"]),
        "steps": found["steps"],
        "epoch s": wall["epoch"],
        "bare steps s": wall["bare"],
        "validation s": wall["validation"],
        "between steps s": wall["between"],
        "once an epoch s": wall["once"],
        "outside %": 100 * (wall["between"] + wall["once"]) / wall["bare"],
        "of a full epoch %": 100 * (wall["between"] + wall["once"] / times) / wall["bare"],
        "with validation %": 100 * (wall["between"] + wall["once"] + wall["validation"]) / wall["bare"],
        "outside, CPU %": 100 * (cpu["between"] + cpu["once"]) / cpu["bare"],
    }


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--backend", nargs="+", choices=("tensorflow", "jax"), default=["tensorflow", "jax"])
    parser.add_argument("--rounds", type=int, default=3, help="epochs that count (default: 3)")
    parser.add_argument("--hardware", default="not stated", help="what it runs on, in words, stored with the result")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    rows = args.rows or list(ROWS)
    if unknown := set(rows) - set(ROWS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(ROWS)}")
    if args.worker:
        return worker(rows[0], args.backend[0], args.rounds)
    about = {"hardware": args.hardware, "versions": versions()}
    results_page.check_same(RESULT, about)
    for row, backend in [(row, backend) for row in rows for backend in args.backend]:
        found = summary(row, backend, measured(row, backend, args.rounds))
        keep(found | {"commit": git_commit()}, about)
    print(table([{name: one[name] for name in one if name != "commit"} for one in kept()]))
    return 0


def kept():
    """The rows that are there."""
    return json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []


def keep(found, about):
    """Writes a row into the place of an earlier one of the same backend, with what is true of them all."""
    others = [one for one in kept() if (one["row"], one["backend"]) != (found["row"], found["backend"])]
    atomic.write_json(RESULT, about | {"settings": ROWS, "rows": [*others, found]})


if __name__ == "__main__":
    sys.exit(main())
