"""What a run is: its settings, the flags made from them, and its folder on disk. Keras is imported only at need."""

import argparse
import contextlib
import csv
import dataclasses
import importlib.metadata
import importlib.util
import io
import itertools
import json
import logging
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cached_property
from pathlib import Path

import numpy as np

import data
import models

BACKENDS = ("tensorflow", "jax")
FORMAT = 1  # of config.json
STOPPED = 130  # the shell's exit code for Ctrl-C
GREY_NOTE = "grey-pixel bound, not a likelihood"


class UserError(ValueError):
    """What a person can mend: a sentence that says what is wrong, what was expected and how to mend it."""


class RunError(RuntimeError):
    """A run that started and could not go on; its folder keeps what was finished."""


def setting(default, help, *, tag=None, low=None, high=math.inf, above=None, choices=None, kind=None):
    """A field of `Config`, from which its flag, its checks and its part of the training id are made.

    A field with a `tag` changes the numbers: "" has a place of its own in the training id, any other tag names its
    suffix. A field without one says only where things lie or how fast they run. `low` <= value <= `high`, or
    `above` < value. None is allowed where it is the default; `kind` is then the type of other values.
    """
    bounds = {"low": low, "high": high, "above": above, "choices": choices}
    return dataclasses.field(
        default=default, metadata={"help": help, "tag": tag, "kind": kind or type(default)} | bounds
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of one run. Raises UserError where a value is out of bounds or two do not go together."""

    model: str = setting("vae", "one latent layer (vae) or two (hvae)", tag="", choices=tuple(models.MODELS))
    prior: str = setting("standard", "prior over the top latent", tag="", choices=tuple(models.PRIORS))
    data_set: str = setting("mnist", "images to train on", tag="", choices=tuple(data.DATA_SETS))
    latent_dim: int = setting(2, "latent dimensions in all, split over the layers of hvae", tag="", low=1, high=4096)
    network_size: float = setting(4.0, "scales the filters of the convolutions", tag="", above=0, high=64)
    epochs: int = setting(250, "passes over the training images", tag="", low=1)
    batch_size: int = setting(256, "images in a training step", tag="", low=1)
    lr: float = setting(1e-4, "learning rate of Adam", tag="lr", above=0)
    activation: str = setting("relu", "any name that keras.activations knows", tag="act")
    seed: int = setting(0, "seed of weights, order, noise and pseudo-inputs", tag="seed", low=0, high=2**31 - 1)
    num_pseudo_inputs: int = setting(500, "components K of a VampPrior", tag="K", low=1)
    binarize: str = setting(
        "auto", "dynamic: draw pixels anew in each step; threshold: cut at 0.5; none: grey", tag="binarize",
        choices=data.BINARIZE,
    )  # fmt: skip
    patience: int = setting(
        0, "stop after so many epochs without a better validation ELBO; 0: off", tag="patience", low=0
    )
    beta_warmup: int = setting(0, "epochs over which the weight of the rate rises to 1", tag="warmup", low=0)
    max_train_images: int = setting(None, "train on the first N training images only", tag="n", low=1, kind=int)
    gs_key: str = setting(None, "name of a grid search, whose runs lie in RUNS_DIR/GS_KEY", kind=str)
    data_dir: str = setting(None, "where the data files lie; else VAMPVAE_DATA, a cache, a download", kind=str)
    runs_dir: str = setting("runs", "where runs are written")
    jit: str = setting(
        "auto", "compile with XLA; auto: off on TensorFlow's CPU, else on", choices=("auto", "on", "off")
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        if not re.fullmatch(r"[a-z0-9_]{1,50}", self.activation):  # it becomes part of a folder's name
            raise UserError(f"--activation {self.activation!r} must be a name that keras.activations knows, as relu")
        smallest = models.MODELS[self.model].smallest_latent
        if self.latent_dim < smallest:
            raise UserError(f"--latent_dim {self.latent_dim} is too small: {self.model} needs at least {smallest}")
        if self.gs_key is not None and not re.fullmatch(r"\w[\w.-]{0,99}", self.gs_key):
            raise UserError(f"--gs_key {self.gs_key!r} must be a folder name of letters, digits, '.', '_' and '-'")

    @classmethod
    def from_dict(cls, values):
        """The Config with these fields. Raises UserError for one that there is not, or a value that does not fit."""
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise UserError(f"unknown setting {unknown[0]!r}; known are {', '.join(known)}")
        return cls(**values)

    @property
    def binarization(self):
        """What `binarize` comes to for this data set: dynamic, threshold or none."""
        return data.binarization(data.DATA_SETS[self.data_set], self.binarize)

    @property
    def has_pseudo_inputs(self):
        """Whether the prior is made of pseudo-inputs."""
        return models.PRIORS[self.prior].has_pseudo_inputs

    @property
    def is_likelihood(self):
        """Whether scores bound a likelihood; those of a Bernoulli on grey pixels do not."""
        return self.binarization != "none"

    @property
    def note(self):
        """What has to be said beside every score of this run."""
        return "" if self.is_likelihood else GREY_NOTE

    @property
    def training_id(self):
        """`<data_set>_<model>_<prior>_bs<B>_dim<D>_factor<F>_epochs<E>` and a suffix for each other changed setting."""
        name = f"{self.data_set}_{self.model}_{self.prior}_bs{self.batch_size}_dim{self.latent_dim}"
        return f"{name}_factor{self.network_size}_epochs{self.epochs}" + "".join(self._suffixes())

    def _suffixes(self):
        effective = dataclasses.asdict(self)
        if self.binarization == data.DATA_SETS[self.data_set].binarize:
            effective["binarize"] = "auto"
        if not self.has_pseudo_inputs:
            del effective["num_pseudo_inputs"]
        for field in dataclasses.fields(self):
            value = effective.get(field.name, field.default)
            if field.metadata["tag"] and value != field.default:
                yield f"_{field.metadata['tag']}{value}"

    @property
    def path(self):
        """The run's folder, RUNS_DIR/[GS_KEY/]TRAINING_ID."""
        return Path(self.runs_dir, self.gs_key or "", self.training_id)


def _checked(field, value):
    meta, flag = field.metadata, f"--{field.name}"
    if value is None and field.default is None:
        return None
    if meta["kind"] is float and type(value) is int:
        value = float(value)
    if type(value) is not meta["kind"]:
        raise UserError(f"{flag} {value!r} must be {meta['kind'].__name__}, not {type(value).__name__}")
    if type(value) is float and not math.isfinite(value):
        raise UserError(f"{flag} {value} must be a finite number")
    if meta["choices"] and value not in meta["choices"]:
        raise UserError(f"{flag} {value!r} is unknown; choose from {', '.join(meta['choices'])}")
    if meta["above"] is not None and not meta["above"] < value <= meta["high"]:
        raise UserError(f"{flag} {value} must be more than {meta['above']}{_at_most(meta)}")
    if meta["low"] is not None and not meta["low"] <= value <= meta["high"]:
        raise UserError(f"{flag} {value} must be at least {meta['low']}{_at_most(meta)}")
    return value


def _at_most(meta):
    return "" if math.isinf(meta["high"]) else f" and at most {meta['high']}"


# ---------------------------------------------------------------------------------------------- the command line


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence and a hint, not a page of usage; exit code 2."""

    def error(self, message):
        """Prints the sentence and exits with 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def add_settings(parser):
    """Adds a flag for each field of Config; those that change the numbers take one value or more, which form a grid."""
    grid = parser.add_argument_group("what is trained", "each takes one value or more; more make a grid, with --gs_key")
    place = parser.add_argument_group("where things lie and how fast they run")
    for field in dataclasses.fields(Config):
        meta = field.metadata
        options = {"type": _reader(field), "default": field.default, "choices": meta["choices"]}
        options["help"] = f"{meta['help']} (default: {field.default})"
        if not meta["choices"]:
            options["metavar"] = field.name.split("_")[-1].upper()
        group = place if meta["tag"] is None else grid
        group.add_argument(f"--{field.name}", nargs=None if meta["tag"] is None else "+", **options)
    return place


def _reader(field):
    kind = field.metadata["kind"]

    def read(text):
        return None if field.default is None and text == "None" else kind(text)

    read.__name__ = kind.__name__  # argparse's "invalid int value" is made from it
    return read


def add_backend(parser):
    """Adds --backend."""
    text = "what Keras runs on (default: the environment's KERAS_BACKEND, else tensorflow)"
    parser.add_argument("--backend", choices=BACKENDS, default=None, help=text)


def add_runs(parser):
    """Adds what evaluate.py and plot.py share: RUN..., --gs_key, --runs_dir, --data_dir and --backend."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folders of runs, as train.py prints them")
    parser.add_argument("--gs_key", help="take every run of this grid search")
    parser.add_argument("--runs_dir", default="runs", help="where the grid search lies (default: runs)")
    parser.add_argument("--data_dir", help="where the data files lie (default: where training found them)")
    add_backend(parser)


def grid(args):
    """The Configs that the flags ask for, each training id once. Raises UserError for several without --gs_key."""
    values = [getattr(args, field.name) for field in dataclasses.fields(Config)]
    names = [field.name for field in dataclasses.fields(Config)]
    lists = [value if isinstance(value, list) else [value] for value in values]
    configs = [Config(**dict(zip(names, choice, strict=True))) for choice in itertools.product(*lists)]
    unique = list({config.training_id: config for config in configs}.values())
    if len(unique) > 1 and not args.gs_key:
        raise UserError(f"these flags make a grid of {len(unique)} runs, which needs a name: add --gs_key NAME")
    return unique


def settle_backend(name):
    """Chooses what Keras runs on, before it is imported. Raises UserError if that is not installed."""
    name = name or os.environ.get("KERAS_BACKEND") or "tensorflow"
    if name not in BACKENDS:
        raise UserError(f"KERAS_BACKEND is {name!r}; choose from {', '.join(BACKENDS)}")
    if importlib.util.find_spec(name) is None:
        raise UserError(f"backend {name} is not installed: pip install {name}, or choose another with --backend")
    if "keras" in sys.modules and sys.modules["keras"].backend.backend() != name:
        raise UserError(f"Keras already runs on {sys.modules['keras'].backend.backend()} in this process, not {name}")
    os.environ["KERAS_BACKEND"] = name
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # else start-up notes hide our own lines


def start_keras():
    """Imports Keras and its backend, whose start-up notes on stderr are shown only if that fails."""
    with tempfile.TemporaryFile() as notes:
        sys.stderr.flush()
        screen = os.dup(2)
        os.dup2(notes.fileno(), 2)
        try:
            importlib.import_module("keras")
            if importlib.util.find_spec("tensorflow"):  # Keras imports it later, whatever the backend
                importlib.import_module("tensorflow")
                logging.getLogger("tensorflow").setLevel("ERROR")  # else each run of a grid is warned of retracing
        except BaseException:
            notes.seek(0)
            os.write(screen, notes.read())
            raise
        finally:
            os.dup2(screen, 2)
            os.close(screen)


def command(run, args):
    """Runs a script's `run(args)` and returns its exit code; a mistake of the user's is a sentence on stderr and 2."""
    try:
        if "backend" in args:
            settle_backend(args.backend)
        return run(args)
    except (UserError, data.DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains of it at exit
        return 1
    except KeyboardInterrupt:
        print("stopped; what was written is whole and kept", file=sys.stderr)
        return STOPPED


def table(rows):
    """Dicts of equal keys as aligned text, a line of names and one for each row; small numbers keep two digits."""
    shown = [[_cell(value) for value in row.values()] for row in rows]
    lines = [list(rows[0]), *shown]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    numeric = [isinstance(value, int | float) for value in rows[0].values()]
    cells = [[c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numeric, strict=True)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in cells)


def _cell(value):
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.2g}"


# ---------------------------------------------------------------------------------------------- the folder of a run


class Run:
    """A run on disk: `path`, `config`, `status`, and on first use `dataset`, `model` (best weights) and `history`."""

    def __init__(self, path, data_dir=None):
        self.path = Path(path)
        record = _read_json(self.path / "config.json", f"{path} is no run: it has no readable config.json")
        try:
            self.config = Config.from_dict(record["config"])
        except (UserError, KeyError, TypeError) as error:
            raise UserError(f"{path} has a config.json that does not fit this version: {error}") from error
        if record.get("format") != FORMAT:
            raise UserError(f"{path} has a config.json of format {record.get('format')!r}; this version reads {FORMAT}")
        trained_from = self.config.data_dir
        self.data_dir = data_dir or (trained_from if trained_from and Path(trained_from).is_dir() else None)
        self.status = _read_json(self.path / "status.json", f"{path} is no run: it has no readable status.json")

    @property
    def state(self):
        """running, stopped, failed or finished."""
        return self.status.get("state")

    @property
    def weights(self):
        """The file of the weights with the best validation ELBO."""
        return self.path / "best.weights.h5"

    @cached_property
    def dataset(self):
        """The data set, loaded by name from `data_dir` or wherever it is found."""
        return data.load(self.config.data_set, self.data_dir)

    @cached_property
    def model(self):
        """The LatentModel with its best weights. Raises UserError if there are none or they do not fit the config."""
        if "keras" not in sys.modules:  # called from Python, where no script has settled the backend
            settle_backend(None)
            start_keras()
        try:
            model = models.build(self.config, data.DATA_SETS[self.config.data_set].image_shape)
        except ValueError as error:
            raise UserError(f"{self.path / 'config.json'} describes no model: {error}") from error
        try:
            model.load_weights(self.weights)
            if (stored := _arrays(self.weights)) != len(model.weights):
                raise ValueError(f"it holds {stored} arrays, the model {len(model.weights)}")
        except (ValueError, KeyError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{self.weights} does not fit {self.path / 'config.json'}: {reason}") from error
        return model

    @cached_property
    def history(self):
        """history.csv as a dict of columns, each a float array (epochs,)."""
        try:
            with open(self.path / "history.csv", newline="") as file:
                rows = list(csv.DictReader(file))
        except OSError as error:
            raise UserError(f"{self.path} has no history yet: {error.strerror}") from error
        return {name: np.array([float(row[name]) for row in rows]) for name in (rows[0] if rows else ())}

    def images(self, split):
        """Images of a split as this run scores them, binarized once for all runs: float32 (N, H, W, C).

        Of the training split, those that the run was trained on.
        """
        images = data.held_out(self.dataset, split, self.config.binarization)
        return images[: self.config.max_train_images] if split == "train" else images

    def save_evaluation(self, metrics, per_image):
        """Writes evaluations/<split>_<estimator>_S<n>_N<images>.json and .npz, and metrics.json; returns the .json."""
        name = "{split}_{estimator}_S{num_samples}_N{num_images}".format(**metrics)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **per_image)
        try:
            (self.path / "evaluations").mkdir(exist_ok=True)
            write(self.path / "evaluations" / f"{name}.npz", buffer.getvalue())
            write_json(self.path / "evaluations" / f"{name}.json", metrics)
            write_json(self.path / "metrics.json", metrics)
        except OSError as error:
            raise UserError(f"cannot write the evaluation to {self.path}: {error.strerror or error}") from error
        return self.path / "evaluations" / f"{name}.json"


def _arrays(path):
    """The number of arrays in a weights file, the optimizer's left out: Keras does not mind when some are left over."""
    import h5py

    names = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return sum(not name.startswith("optimizer/") for name in names)


def _read_json(path, complaint):
    with contextlib.suppress(OSError, ValueError):
        if isinstance(value := json.loads(path.read_text()), dict):
            return value
    raise UserError(complaint)


def load(path, data_dir=None):
    """The Run in this folder, from which config, data set and model are rebuilt. Raises UserError if it is none."""
    return Run(path, data_dir)


def chosen_runs(args):
    """The Runs that RUN... or --gs_key name, those with weights. Raises UserError if there is none."""
    if bool(args.runs) == bool(args.gs_key):
        raise UserError("name either the folders of runs or a grid search with --gs_key")
    if args.runs:
        return [_with_weights(path, args.data_dir) for path in args.runs]
    group, runs = Path(args.runs_dir, args.gs_key), []
    for config in sorted(group.glob("*/config.json")):
        try:
            runs.append(_with_weights(config.parent, args.data_dir))
        except UserError as error:  # the others of the group are worth having
            print(f"warning: left out: {error}", file=sys.stderr)
    if not runs:
        raise UserError(f"{group} holds no run with weights; train it with --gs_key {args.gs_key}")
    return runs


def _with_weights(path, data_dir):
    run = load(path, data_dir)
    if not run.weights.is_file():
        raise UserError(f"{path} has no weights yet (it is {run.state}); train it for at least one epoch")
    if run.state != "finished":
        print(f"warning: {path} is {run.state}, not finished; its best weights so far are taken", file=sys.stderr)
    return run


def create(config, dataset, overwrite):
    """Makes a new run's folder with config.json and status.json; returns its path. Raises UserError if it cannot."""
    path = config.path
    fresh = path.with_name(f".{os.getpid()}.{path.name}")  # renamed when whole, so that no half a run is ever seen
    try:
        fresh.mkdir(parents=True)
        write_json(fresh / "config.json", _record(config, dataset))
        write_json(fresh / "status.json", {"state": "running"})
        if overwrite and path.exists():
            _remove_run(path)
        fresh.rename(path)
    except FileExistsError as error:
        raise UserError(
            f"{error.filename} is in the way: it is no folder of runs; choose another --runs_dir"
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write a run to {path}: {reason}; choose another --runs_dir") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return path


def _remove_run(path):
    if not (path / "config.json").is_file():
        raise UserError(f"{path} exists and is no run, so --overwrite leaves it alone; move it away")
    shutil.rmtree(path)


def _record(config, dataset):
    import keras

    return {
        "format": FORMAT,
        "config": dataclasses.asdict(config),
        "backend": keras.backend.backend(),
        "git_commit": git_commit(),
        "versions": versions(),
        "data_sha256": dataset.sha256,
    }


def versions():
    """Versions of what the numbers depend on: a dict of package name to version, those that are installed."""
    found = {"python": platform.python_version()}
    for name in ("keras", "tensorflow", "jax", "numpy", "scikit-learn"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # not there, or tensorflow-cpu
            found[name] = importlib.metadata.version(name)
    return found


def git_commit():
    """The commit of this code, with "+changes" behind it where the work tree differs; None outside a checkout."""

    def git(*words):
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout

    try:
        return git("rev-parse", "HEAD").strip() + ("+changes" if git("status", "--porcelain", "-uno").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None


@contextlib.contextmanager
def replacing(path):
    """Yields a temporary path beside `path` that replaces it on success and is removed on failure."""
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write(path, content):
    """Writes bytes to a file so that it holds either the old or the new content, whole, whenever the process dies."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_json(path, value):
    """Writes a value as JSON, atomically."""
    write(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_csv(path, rows):
    """Writes dicts of equal keys as CSV, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue().encode())
