"""Trackers show a run while it trains: TensorBoard, and Weights & Biases (W&B).

A tracker gets what the run's folder has anyway, and nothing depends on it. If one fails, a warning says so once, that
tracker is left out, and training goes on. Its package is imported when a run starts to use it.
"""

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import re
import socket
import sys
import time
from pathlib import Path

from runtime import atomic
from runtime.errors import UserError
from runtime.text import bounded, word

FILES = ("config.json", "status.json", "history.csv", "best.safetensors")  # what every script needs of a run
BINS = 50  # of a histogram
IDS = "tracking.json"  # in a run's folder: {"wandb": its id in W&B}


def check(name):
    """Raises UserError if the optional package behind --track `name` is not installed."""
    for kind in TRACKERS[name]:
        if kind.package and importlib.util.find_spec(kind.package) is None:
            raise UserError(f"--track {name} needs a package: pip install {kind.package}, or leave --track out")


def curves(row):
    """A row of history.csv without its epoch, and with the names that trackers show: train/elbo for train_elbo."""
    return {name.replace("_", "/", 1): value for name, value in row.items() if name != "epoch"}


def flat(values, prefix=""):
    """The finite numbers in nested dicts and lists, by their path: {"rates/0": 1.2}."""
    found = {}
    for name, value in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(value, dict | list):
            found |= flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            found[f"{prefix}{name}"] = float(value)
    return found


def settings(config):
    """The settings that change the numbers of a run: a dict of name to number or text."""
    return {name: value if isinstance(value, int | float) else word(value) for name, value in config.settings.items()}


@contextlib.contextmanager
def leaving_out(what, forget=lambda: None):
    """Turns an exception of the block into a one-line warning, and calls `forget()`."""
    try:
        yield
    except Exception as error:
        forget()
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"warning: {what} left out from here on: {said}", file=sys.stderr)


class Trackers:
    """The trackers of a run, made of classes, `kinds`. A tracker that raises an exception is left out from then on.

    They get the run's folder, its Config, its history so far (a list of rows; None for an evaluation) and the `name`
    of what follows: "training", or the name of the evaluation.
    """

    def __init__(self, kinds, path, config, rows=None, name="training"):
        self.active = []
        for kind in kinds:
            with leaving_out(kind.title):
                self.active.append(kind(Path(path), config, rows, name))

    def tell(self, method, *values):
        """Calls a method of each tracker that has it.

        numbers(values, step): a dict of numbers at an epoch. pictures(pictures, step): a dict of uint8 arrays, (h, w)
        or (h, w, 3). histograms(arrays, step): a dict of arrays of any shape. files(paths): those of a finished run.
        close(state): "finished", "stopped", "failed" or None.
        """
        for tracker in list(self.active):
            with leaving_out(tracker.title, lambda tracker=tracker: self.active.remove(tracker)):
                getattr(tracker, method, lambda *_: None)(*values)


class TensorBoard:
    """Event files in RUN/tensorboard: one of each process that trains, and one of each evaluation.

    RUN/tensorboard/epochs has the number of epochs in them. A training that goes on takes later steps back and adds
    the epochs of the history that are missing, so that each curve has each step once, whenever a process died.
    """

    title, package = "TensorBoard", None

    def __init__(self, path, config, rows, name):
        # not SummaryWriter: when its thread fails, for example on a full disk, the process waits for it forever
        from tensorboardX import RecordWriter, summary
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.Event, self.summary, self.trains = Event, summary, rows is not None
        self.folder = path / "tensorboard"
        self.folder.mkdir(exist_ok=True)
        for older in self.folder.glob(f"*.{name}") if not self.trains else ():  # of the same evaluation
            older.unlink()
        file = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{time.time_ns()}.{name}"
        self.writer = RecordWriter(str(self.folder / file))  # W&B asks for the seconds and the host in its name
        self._write(0, file_version="brain.Event:2")
        if self.trains:
            written = epochs_written(path, rows)
            self._write(written + 1, session_log=SessionLog(status=SessionLog.START))
            if len(list(self.folder.glob(f"*.{name}"))) == 1:  # the first of them
                text = summary.text("config", f"```\n{json.dumps(dataclasses.asdict(config), indent=2)}\n```")
                self._write(0, text, summary.hparams(settings(config), {})[1])  # the values alone
            for row in rows[written:]:
                self.numbers(curves(row), row["epoch"])

    def _write(self, step, *summaries, **fields):
        event = self.Event(wall_time=time.time(), step=step, **fields)
        for one in summaries:
            event.summary.MergeFrom(one)
        self.writer.write(event.SerializeToString())
        self.writer.flush()

    def numbers(self, values, step):
        self._write(step, *(self.summary.scalar(name, value) for name, value in values.items()))
        if self.trains:
            atomic.write(self.folder / "epochs", f"{step}\n".encode())

    def pictures(self, pictures, step):
        image, axes = self.summary.image, "HWC"
        self._write(step, *(image(name, one, dataformats=axes[: one.ndim]) for name, one in pictures.items()))

    def histograms(self, values, step):
        self._write(step, *(self.summary.histogram(name, one, BINS) for name, one in values.items()))

    def close(self, state):
        self.writer.close()


class Wandb:
    """A run in W&B, which reads the event files; it lies in RUNS_DIR/wandb, and online if the user has logged in."""

    title, package = "Weights & Biases", "wandb"

    def __init__(self, path, config, rows, name):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else W&B's makers get a report of each error
        import wandb
        from tensorboardX import FileWriter

        known, self.trains, self.wandb = wandb_id(path), rows is not None, wandb
        wandb.setup(wandb.Settings(silent=True, console="off", project=os.environ.get("WANDB_PROJECT") or "vampvae"))
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")
        folder = os.environ.get("WANDB_DIR") or str(path.resolve().parents[1 if config.gs_key else 0])
        about = {"id": known, "group": config.gs_key, "config": settings(config)}
        about["name"] = bounded(config.training_id, 128)  # as many as W&B takes
        self.run = wandb.init(mode=mode, dir=folder, resume="allow", **about)
        atomic.write_json(path / IDS, {"wandb": self.run.id})
        if self.trains:
            wandb.tensorboard.patch(tensorboard_x=True, root_logdir=str(path / "tensorboard"))
            for row in () if known else rows[: epochs_written(path, rows)]:  # TensorBoard will not write them again
                self.run.log({"global_step": row["epoch"], **curves(row)})
            FileWriter(str(path / "tensorboard")).close()  # an empty file, by which W&B learns where the others will be
            wandb.tensorboard.unpatch()

    def numbers(self, values, step):
        if not self.trains:  # W&B finds the numbers of a training in the event files
            self.run.summary.update(values)

    def files(self, paths):
        artefact = self.wandb.Artifact(f"run-{self.run.id}", type="run", description=self.run.name)
        for path in paths:
            artefact.add_file(str(path))
        self.run.log_artifact(artefact)

    def close(self, state):
        self.run.finish(exit_code=int(state == "failed"))


TRACKERS = {"tensorboard": (TensorBoard,), "wandb": (Wandb, TensorBoard), "none": ()}  # in the order of their start


def evaluated(path, config, name, values, epoch):
    """Gives an evaluation's numbers to the run's trackers, at the epoch of its weights, in place of its older ones."""
    kinds = [Wandb] * bool(wandb_id(path)) + [TensorBoard] * (path / "tensorboard").is_dir()
    trackers = Trackers(kinds, path, config, name=name)
    trackers.tell("numbers", {f"{name}/{key}": value for key, value in flat(values).items()}, epoch)
    trackers.tell("close", None)


def epochs_written(path, rows):
    """How many epochs of the history `rows` are in the event files of the run in `path`."""
    with contextlib.suppress(OSError, ValueError), atomic.opened(path / "tensorboard" / "epochs") as file:
        return min(int(file.read(20)), len(rows))
    return 0


def wandb_id(path):
    """The id in W&B of the run in `path`; None if it has none or the file is damaged."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError), atomic.opened(path / IDS) as file:
        return re.fullmatch(r"[0-9a-zA-Z]{1,64}", json.loads(file.read(200))["wandb"])[0]
    return None
