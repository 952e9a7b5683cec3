"""Where a run is followed beside its own folder: TensorBoard's event files, MLflow or Weights & Biases.

Each of these packages is imported at need. They are told what the run's folder has anyway and nothing depends on them,
so no training ends for one that fails: it is said once, on stderr, and that one is left out from then on.
"""

import contextlib
import dataclasses
import importlib.util
import io
import json
import logging
import math
import netrc
import os
import re
import secrets
import socket
import struct
import sys
import time
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

import atomic
from errors import UserError

FILES = ("config.json", "status.json", "history.csv", "best.safetensors")  # which together are a run for every script
IDS = "tracking.json"  # in a run's folder, what trackers call it
PROJECT = "vampvae"  # where runs go that belong to no grid
MOST_IDS = 1 << 12  # bytes of tracking.json
MOST_EVENTS = 1 << 30  # bytes of an event file, of which more are not read


def check(name):
    """Raises UserError where the optional package behind --track `name` is not installed."""
    for sink in SINKS[name]:
        if sink.is_optional and importlib.util.find_spec(sink.package) is None:
            raise UserError(f"--track {name} needs a package: pip install {sink.package}, or leave --track out")


def curves(row):
    """A row of history.csv as trackers name it, train/elbo for train_elbo, without its epoch: a dict of numbers."""
    return {name.replace("_", "/", 1): value for name, value in row.items() if name != "epoch"}


def flat(values, prefix=""):
    """The finite numbers among values that may be nested in dicts and lists, by path: {"rates/0": 1.2}."""
    found = {}
    for name, value in values.items():
        if isinstance(value, dict | list):
            inner = value if isinstance(value, dict) else dict(enumerate(value))
            found |= flat(inner, f"{prefix}{name}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            found[f"{prefix}{name}"] = float(value)
    return found


def settings(config):
    """The settings that change the numbers, a dict of name to number or text."""
    found = config.settings.items()
    return {name: value if isinstance(value, int | float) else str(value) for name, value in found}


def png(picture):
    """The bytes of a PNG file of a picture, uint8, (h, w) or (h, w, 3)."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png")
    return buffer.getvalue()


@contextlib.contextmanager
def leaving_out(what, forget=lambda: None):
    """Says in one line what the block raises and calls `forget()`: nothing that is tracked is worth a training."""
    try:
        yield
    except Exception as error:
        forget()
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"warning: {what} left out from here on: {said}", file=sys.stderr)


class Trackers:
    """All that a run is followed by, told of one thing at a time; one that raises is left out from then on.

    `kinds` are classes as below, each made with the run's folder, its Config and the number of `epochs` that its
    history has, or None where it is scored and not trained.
    """

    def __init__(self, kinds, path, config, epochs=None):
        self.sinks = []
        for kind in kinds:
            with leaving_out(kind.title):
                self.sinks.append(kind(Path(path), config, epochs))

    def numbers(self, values, step):
        """Tells a dict of numbers at a step, an epoch."""
        self._tell("numbers", values, step)

    def pictures(self, pictures, step):
        """Tells a dict of pictures, uint8, (h, w) or (h, w, 3), at a step."""
        self._tell("pictures", pictures, step)

    def files(self, paths):
        """Hands over files that together are a run."""
        self._tell("files", paths)

    def close(self, state=None):
        """Ends it with the run's state, finished, stopped or failed; None where that has not changed."""
        self._tell("close", state)

    def _tell(self, what, *words):
        for sink in list(self.sinks):
            with leaving_out(sink.title, lambda sink=sink: self.sinks.remove(sink)):
                getattr(sink, what)(*words)


class TensorBoard:
    """Event files in RUN/tensorboard, one from each process, as TensorBoard reads them; they need no TensorFlow.

    What earlier processes have written is not written again, so that each curve has a step once, whenever a process
    died; steps that the history does not have, as it fell back to an older state, are marked as taken back.
    """

    title, package, is_optional = "TensorBoard", "tensorboard", False

    def __init__(self, path, config, epochs):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.Event, self.SessionLog, self.Summary = event_pb2.Event, event_pb2.SessionLog, summary_pb2.Summary
        folder = path / "tensorboard"
        folder.mkdir(exist_ok=True)
        most = math.inf if epochs is None else epochs
        before = [event for file in sorted(folder.glob("*tfevents*")) for event in self._events(file)]
        self.known = {(value.tag, event.step) for event in before for value in event.summary.value}
        self.known = {(tag, step) for tag, step in self.known if step <= most}
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"  # read in this order
        self.file = RecordWriter(open(folder / name, "xb"))  # noqa: SIM115 - open as long as this is
        self._write(file_version="brain.Event:2")
        if before and epochs is not None:
            self._write(step=epochs + 1, session_log=self.SessionLog(status=self.SessionLog.START))
        self._describe(config)

    def _events(self, path):
        """The events of a file, but for one at its end that is not whole."""
        with atomic.opened(path) as file:
            content = file.read(MOST_EVENTS)
        start = 0
        while start + 12 <= len(content):  # the length, its checksum, the event, and its checksum
            end = start + 12 + struct.unpack_from("<Q", content, start)[0]
            if end > len(content):
                return
            yield self.Event.FromString(content[start + 12 : end])
            start = end + 4

    def _write(self, **fields):
        self.file.write(self.Event(wall_time=time.time(), **fields).SerializeToString())
        self.file.flush()

    def _add(self, step, *values):
        new = [value for value in values if (value.tag, step) not in self.known]
        if new:
            self._write(step=step, summary=self.Summary(value=new))
        self.known |= {(value.tag, step) for value in new}

    def _describe(self, config):
        """Writes the settings, as a text and for the table of hyperparameters."""
        from tensorboard.plugins.hparams import metadata, plugin_data_pb2
        from tensorboard.plugins.text.metadata import create_summary_metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        started = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
        for name, value in settings(config).items():
            if isinstance(value, str):
                started.hparams[name].string_value = value.encode(errors="backslashreplace").decode()
            else:
                started.hparams[name].number_value = value
        about = plugin_data_pb2.HParamsPluginData(session_start_info=started)
        text = json.dumps(dataclasses.asdict(config), indent=2)
        tensor, words = make_tensor_proto(f"```\n{text}\n```"), create_summary_metadata(None, None)
        table = {"metadata": metadata.create_summary_metadata(about), "tensor": metadata.NULL_TENSOR}
        self._add(
            0,
            self.Summary.Value(tag="config", metadata=words, tensor=tensor),
            self.Summary.Value(tag=metadata.SESSION_START_INFO_TAG, **table),
        )

    def numbers(self, values, step):
        """Adds a point to each curve."""
        self._add(step, *(self.Summary.Value(tag=name, simple_value=value) for name, value in values.items()))

    def pictures(self, pictures, step):
        """Adds pictures."""
        self._add(step, *(self.Summary.Value(tag=name, image=self._image(one)) for name, one in pictures.items()))

    def _image(self, picture):
        colours = picture.shape[2] if picture.ndim == 3 else 1
        size = {"height": picture.shape[0], "width": picture.shape[1], "colorspace": colours}
        return self.Summary.Image(encoded_image_string=png(picture), **size)

    def files(self, paths):
        """Files stay where they are, beside the event files."""

    def close(self, state):
        """Closes the file."""
        self.file.close()


class Mlflow:
    """A run of MLflow's, by its client, which changes no state of the process.

    It lies in $MLFLOW_TRACKING_URI or, by default, RUNS_DIR/mlflow, an SQLite file and a folder of artefacts.
    """

    title, package, is_optional = "MLflow", "mlflow", True
    states = MappingProxyType({"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"})

    def __init__(self, path, config, epochs):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # which would tell its makers
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        for name in ("alembic", "mlflow.store.db.utils"):  # which tell each step of making the SQLite file
            logging.getLogger(name).setLevel("WARNING")
        self.Metric, self.Param = Metric, Param
        uri, home = os.environ.get("MLFLOW_TRACKING_URI"), runs_dir(path, config) / "mlflow"
        if epochs is None and not uri and not home.is_dir():
            raise FileNotFoundError(f"the run is known to {home}, which is not there")
        if not uri:
            home.mkdir(parents=True, exist_ok=True)
        self.client = MlflowClient(uri or f"sqlite:///{home / 'mlflow.db'}")
        self.run, self.known = recall(path, self.package), {}
        try:
            if self.run:
                self.known = self._steps()
        except MlflowException:
            if epochs is None:
                raise
            self.run = None  # it has been deleted there, or another store is meant now
        if not self.run:
            self._start(path, config, None if uri else (home / "artifacts").as_uri())
        elif epochs is not None:
            self.client.update_run(self.run, status="RUNNING")

    def _start(self, path, config, place):
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or config.gs_key or PROJECT
        experiment = self.client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self.client.create_experiment(name, place)
        self.run = self.client.create_run(number, run_name=config.training_id).info.run_id
        remember(path, self.package, self.run)
        self.client.log_batch(self.run, params=[self.Param(*pair) for pair in settings(config).items()])

    def _steps(self):
        """The steps that each curve has."""
        names = self.client.get_run(self.run).data.metrics
        return {name: {one.step for one in self.client.get_metric_history(self.run, name)} for name in names}

    def numbers(self, values, step):
        """Adds a point to each curve."""
        new = {name: value for name, value in values.items() if step not in self.known.setdefault(name, set())}
        now = round(1000 * time.time())
        self.client.log_batch(self.run, [self.Metric(name, value, now, step) for name, value in new.items()])
        for name in new:
            self.known[name].add(step)

    def pictures(self, pictures, step):
        """Adds pictures."""
        for name, picture in pictures.items():
            self.client.log_image(self.run, picture, key=name, step=step)

    def files(self, paths):
        """Stores the files as the artefact `run`."""
        for path in paths:
            self.client.log_artifact(self.run, str(path), "run")

    def close(self, state):
        """Says how the run ended."""
        if state:
            self.client.set_terminated(self.run, self.states[state])


class Wandb:
    """A run of Weights & Biases: offline, in RUNS_DIR/wandb, unless the user has logged in or set $WANDB_MODE."""

    title, package, is_optional = "Weights & Biases", "wandb", True

    def __init__(self, path, config, epochs):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # which would tell its makers
        import wandb

        self.wandb, self.config = wandb, config
        before = recall(path, self.package)
        self.told = epochs if before else 0  # offline nobody can be asked
        name = before or secrets.token_hex(4)
        folder = os.environ.get("WANDB_DIR") or runs_dir(path, config)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            group=config.gs_key,
            name=config.training_id,
            id=name,
            resume="allow",
            mode=os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline"),
            dir=str(folder),
            config=settings(config),
            settings=wandb.Settings(silent=True, console="off"),
        )
        remember(path, self.package, name)

    def numbers(self, values, step):
        """Adds a point to each curve."""
        if self.told is None:  # an evaluation, whose step would have to be the newest
            self.run.summary.update(values)
        elif step > self.told:
            self.run.log({"epoch": step, **values}, step=step)

    def pictures(self, pictures, step):
        """Adds pictures."""
        self.run.log({name: self.wandb.Image(picture) for name, picture in pictures.items()}, step=step)

    def files(self, paths):
        """Stores the files as an artefact of type `run`, named after the run."""
        artefact = self.wandb.Artifact(f"run-{self.run.id}", type="run", description=self.config.training_id)
        for path in paths:
            artefact.add_file(str(path))
        self.run.log_artifact(artefact)

    def close(self, state):
        """Waits until all of it is stored."""
        self.run.finish(exit_code=int(state == "failed"))


SINKS = {  # by the names that --track takes; the choices are read from it
    "tensorboard": (TensorBoard,),
    "mlflow": (TensorBoard, Mlflow),
    "wandb": (TensorBoard, Wandb),
    "none": (),
}


def evaluated(path, config, name, values, epoch):
    """Tells the trackers that the run in `path` has, and that are installed, the numbers of an evaluation.

    `values` are those of evaluation `name` for the weights of an epoch; the same ones again are the same.
    """
    kinds = [kind for kind in (Mlflow, Wandb) if recall(path, kind.package) and importlib.util.find_spec(kind.package)]
    kinds += [TensorBoard] * (path / "tensorboard").is_dir()
    trackers = Trackers(kinds, path, config)
    trackers.numbers({f"{name}/{key}": value for key, value in flat(values).items()}, epoch)
    trackers.close()


def runs_dir(path, config):
    """RUNS_DIR, absolute, of the run in the folder `path`, wherever that lies now."""
    return Path(path).resolve().parents[1 if config.gs_key else 0]


def recall(path, package):
    """What a tracker calls the run in `path`; None where it does not know it, or the file is not what was written."""
    unreadable = (OSError, ValueError, RecursionError, AttributeError)
    with contextlib.suppress(*unreadable), atomic.opened(Path(path, IDS)) as file:
        name = json.loads(file.read(MOST_IDS)).get(package)
        if isinstance(name, str) and re.fullmatch(r"[0-9a-zA-Z]{1,64}", name):
            return name
    return None


def remember(path, package, name):
    """Notes what a tracker calls the run in `path`."""
    known = {kind.package: recall(path, kind.package) for kind in (Mlflow, Wandb)}
    atomic.write_json(Path(path, IDS), {key: value for key, value in (known | {package: name}).items() if value})


def logged_in():
    """Whether wandb would find the user's key."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return host in netrc.netrc(os.environ.get("NETRC")).hosts
    return False
