"""Run: a trained model in its folder, from which all of it can be rebuilt."""

import contextlib
import copy
import dataclasses
import hashlib
import io
import math
import os
import re
import sys
import zipfile
import zlib
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

import data
import models
from experiment import own, weights
from experiment.config import Config
from experiment.folder import is_held
from experiment.record import check_record, read_bytes, read_json, read_status, with_former
from runtime import atomic, backend
from runtime.errors import UserError
from runtime.rules import shown
from runtime.text import bounded

MOST_HISTORY = 1 << 28  # bytes of a history.csv; some million epochs
MOST_EVALUATION = 1 << 28  # bytes of an evaluation, unpacked; some million images
PER_IMAGE = ("log_px", "log_px_se", "ess", "khat", "samples")  # what an evaluation says of each image
LINKED = ("last", "replaced", "snapshots", "evaluations", "tensorboard")  # folders that must be the run's own
MOST_VALUES = 1 << 24  # in an image
UNFINISHED = {"running": "is still training", "interrupted": "was interrupted"}  # else it stopped or failed
MOST_STEM = 120  # characters of an evaluation's name, which is only a part of the names of TensorBoard's files


class Evaluation(NamedTuple):
    """What an evaluation stored: its name, and of N images of the split, (N,) each, their index and PER_IMAGE."""

    name: str
    index: np.ndarray
    log_px: np.ndarray
    log_px_se: np.ndarray
    ess: np.ndarray
    khat: np.ndarray
    samples: np.ndarray


class Run:
    """A run on disk: `path`, `config`, `status`, and on first use `dataset`, `model` (best weights) and `history`.

    Raises UserError if it is none. Nothing in the folder is trusted: what does not fit is refused with a sentence, and
    nothing in it is ever run.
    """

    def __init__(self, path, data_dir=None):
        self.path = Path(path)
        self.record = read_json(self.path / "config.json", f"{path} is no run: it has no readable config.json")
        if links := [name for name in LINKED if (self.path / name).is_symlink()]:
            raise UserError(f"{path} has a link in the place of its folder {links[0]}, which is not followed")
        own.require(path, self.record.get("code", {}))
        try:
            check_record(self.record)
            self.config = Config.from_dict(with_former(self.record["config"]))
            _check_shape(self.record.get("image_shape", self.config.source.image_shape))
        except (UserError, KeyError, TypeError) as error:
            raise UserError(f"{path} has a config.json that does not fit this version: {error}") from error
        trained_from = self.config.data_dir
        origin = self.config.source.origin  # a path, if they are the user's own images
        is_there = trained_from and os.path.exists(trained_from) and not os.path.exists(origin)
        self.given_data_dir = data_dir
        self.data_dir = data_dir or (trained_from if is_there else None)
        self.data_set = self.config.data_set  # of which `images` are; see `on`
        self.precision = self.config.precision  # in which `model` computes; see `in_precision`
        self.status = read_status(self.path / "status.json")
        self.backend = self.record["backend"]  # on which it was started: tensorflow or jax
        self.weights = self.path / "best.safetensors"  # those with the best validation value of the trained bound

    @property
    def snapshots(self):
        """The files of the weights that --snapshot_epochs kept: a dict of epoch to path, the first epoch first."""
        paths = sorted((self.path / "snapshots").glob("epoch*.safetensors"))
        found = {path: re.fullmatch(r"epoch(\d{9,10})", path.stem) for path in paths}
        return {int(name[1]): path for path, name in found.items() if name}

    def at(self, epoch):
        """This run with the weights of one of its `snapshots`."""
        other = copy.copy(self)
        other.__dict__.pop("model", None)
        other.weights = self.snapshots[epoch]
        return other

    def in_precision(self, precision):
        """This run, whose model computes in this precision, which may be another one than in training."""
        if precision == self.precision:
            return self
        other = copy.copy(self)
        other.__dict__.pop("model", None)
        other.precision = precision
        return other

    def on(self, name):
        """This run for images that are not its own: those of the data set `name`, or all of folder:PATH.

        Its images, note and evaluations are of these. Raises UserError for the run's own data set, or another shape.
        """
        if data.absolute(name) == self.config.data_set:
            raise UserError(f"--on {name} is the data set of {self.path} itself; leave out --on")
        other = copy.copy(self)
        other.__dict__.pop("dataset", None)
        other.data_set = data.absolute(name)
        other._check_fits(data.source(name).image_shape)
        return other

    @property
    def is_own(self):
        """Whether `images` are of the run's own data set."""
        return self.data_set == self.config.data_set

    @property
    def binarization(self):
        """That of the run's settings, but for grey images that are not its own if it was trained on binary ones."""
        is_binary = self.config.source.is_binary and not self.dataset.source.is_binary
        return "dynamic" if is_binary else self.config.binarization

    def __repr__(self):
        return f"<Run {self.path}, {self.state}>"

    @property
    def name(self):
        """The name of its folder, which is its training id unless somebody gave it another one."""
        return self.path.resolve().name  # the path `.` has none

    @property
    def state(self):
        """running, interrupted (no process holds it, and it does not say how it ended), stopped, failed or finished."""
        state = self.status.get("state", "running")
        return "interrupted" if state == "running" and not is_held(self.path) else state

    @property
    def best_val_elbo(self):
        """The validation ELBO of the weights that it kept, nats an image; None before the end of the first epoch."""
        return self.status.get("best_val_elbo")

    @property
    def comparable(self):
        """As of its Config, and of the data files that it was trained on, of which a name may have had others once."""
        return *self.config.comparable, tuple(sorted(self.record["data_sha256"].items()))

    @property
    def weights_sha256(self):
        """The checksum of the file of its weights."""
        return hashlib.sha256(self.weights.read_bytes()).hexdigest()

    @property
    def weights_id(self):
        """The first digits of that checksum, by which runs that begin with these weights are named."""
        return self.weights_sha256[:12]

    @cached_property
    def dataset(self):
        """The data set, loaded by name from `data_dir` or wherever it is found."""
        is_public, was_public = self.data_set in data.DATA_SETS, self.config.data_set in data.DATA_SETS
        place = self.data_dir if self.is_own or (is_public and was_public) else None
        if is_public and not was_public and os.path.isdir(self.given_data_dir or ""):  # or the run's images are there
            place = self.given_data_dir
        other_data, size = self.config.other_data == "on", self.config.image_size
        return data.load(self.data_set, place, other_data, size, not self.is_own, not self.has_val)

    @property
    def has_val(self):
        """Whether no image of the split val was trained on."""
        return not self.is_own or "val" in self.config.splits

    @property
    def image_shape(self):
        """(H, W, C), for which no data file is opened."""
        return self.config.source.image_shape or tuple(self.record["image_shape"])

    @property
    def latent_dim(self):
        """Latent dimensions of all layers. Raises UserError where they do not fit the images."""
        try:
            return models.latent_dim(self.config, self.image_shape)
        except ValueError as error:
            raise UserError(f"{self.path / 'config.json'} describes no model: {error}") from error

    @property
    def note(self):
        """What has to be said beside every score of this run: of its end, and of the files of its training, or open."""
        state, ended = self.state, ""
        if self.status and state != "finished":  # nobody knows the end where status.json is damaged
            done = f"{self.status.get('epochs_done', 0)} of {self.config.epochs} epochs"
            ended = f"of a run that {UNFINISHED.get(state, state)} after {done}"
        note = self.config.note_on(self.record.get("data_note") or self.dataset.note)
        note = "; ".join(filter(None, (ended, note)))
        if self.is_own:
            return note
        how = f"binarization {self.binarization}, likelihood {self.config.observation}"
        notes = f"not the run's data but {self.data_set}, {how}", note, self.dataset.source.note
        return "; ".join(filter(None, notes))

    @cached_property
    def model(self):
        """The LatentModel with its best weights. Raises UserError if there are none that fit the config and are finite.

        Every shape is compared before a weight is allocated, so that a config of absurd size costs nothing.
        """
        if "keras" not in sys.modules:  # called from Python, where no script has settled the backend
            backend.settle()
            backend.start(keep_settings=True)
        backend.check_settings()
        try:
            exemplars = range(self.record["train_images"]) if self.config.has("num_exemplars") else None
            expected = models.blank_weights(self.config, self.image_shape, exemplars)
        except (ValueError, KeyError, MemoryError) as error:
            raise UserError(f"{self.path / 'config.json'} describes no model: {error}") from error
        try:
            values = weights.read(self.weights, expected)
        except (ValueError, OSError) as error:
            raise UserError(f"{self.weights} does not fit {self.path / 'config.json'}: {error}") from error
        from models.weight_names import named_weights

        config = dataclasses.replace(self.config, precision=self.precision)
        model = models.build(config, self.image_shape, from_data=exemplars)
        weights.assign(named_weights(model), values)
        self._check_own(model)
        if path := weights.not_finite(model):
            said = f"weight {path} is not finite, so log p(x) of image 0, or of any other, is not either"
            raise UserError(f"{self.weights}: {said}; the weights are not usable")
        return model

    def _check_own(self, model):
        try:
            if said := models.check_own(self.config, model):
                print(f"warning: {self.path}: {said}", file=sys.stderr)
        except ValueError as error:
            raise UserError(f"{self.path}: {error}") from error

    @cached_property
    def history(self):
        """history.csv as a dict of columns, each a float array (epochs,). Raises UserError if there is none to read."""
        columns = self.config.columns
        try:
            head, _, rows = read_bytes(self.path / "history.csv", MOST_HISTORY).decode().partition("\n")
            if head.strip() != ",".join(columns) or not rows.strip():
                raise ValueError("it has other columns, or no epoch")
            values = np.loadtxt(io.StringIO(rows), delimiter=",", comments=None, unpack=True, ndmin=2)
            return dict(zip(columns, values, strict=True))
        except OSError as error:
            raise UserError(f"{self.path} has no history yet: {error.strerror}") from error
        except ValueError as error:
            raise UserError(f"{self.path / 'history.csv'} is damaged: {error}") from error

    def index(self, split, n=None):
        """The rising indices of the images of a split, or of the `data.subset` of n of them: (N,).

        Of the training split, those that the run was trained on.
        """
        trained = self.config.max_train_images if split == "train" and self.is_own else None
        count = len(self.dataset.split(split).images)
        return data.subset(min(count, trained or count), n)

    def images(self, split, n=None):
        """The images of `index`, as this run scores them, binarized once for all: float32 (N, H, W, C).

        An array, or a data.Stored.
        """
        if self.is_own and self.data_set not in data.DATA_SETS:
            self.dataset.split("val")  # which training read: its checksum tells whether these are its images and split
        if split == "val" and not self.has_val:
            raise UserError(f"{self.path} was trained on the split val, too (--validation none); take another one")
        shape = self.dataset.split(split).images.shape[1:]
        self.check_data(self.dataset)
        self._check_fits(shape)
        self.dataset.tell()
        return data.held_out(self.dataset, split, self.binarization, self.index(split, n))

    def _check_fits(self, shape):
        if shape not in (None, self.image_shape):
            other = f"but those of {self.data_set} are {shape}"
            raise UserError(f"{self.path} was trained on images {self.image_shape}, {other}")

    def image_names(self, index):
        """What images of an `index` are called: their files' names in a folder that is not the run's, else indices."""
        names = self.dataset.image_names
        return [names[at] for at in index] if names else index.tolist()

    def check_data(self, dataset):
        """Raises UserError where a file of the Dataset is not the one of its name that the run was trained on."""
        for file, sha256 in dataset.sha256.items() if self.is_own else ():
            if (before := self.record["data_sha256"].get(file, sha256)) != sha256:
                other = f"another {file}, of sha256 {before}; put that back, or name its --data_dir"
                if self.data_set not in data.DATA_SETS and dataset.class_names:
                    other += "; or, if it is the same, train anew, as older versions split classes by chance"
                raise UserError(f"{self.path} was trained on {other}")

    def check_writable(self):
        """Raises UserError where an evaluation could not be stored: better before it takes hours."""
        if not os.access(self.path, os.W_OK):
            raise UserError(f"cannot write the evaluation to {self.path}: Permission denied")

    def part(self, split):
        """What the `images` of a split are of its data set: the split, or all of a folder that is not the run's own."""
        return split if self.is_own or self.data_set in data.DATA_SETS else "all"

    def _stem(self, split):
        """How the names of evaluations begin: test, or on_fashionmnist_test for images that are not the run's own."""
        return split if self.is_own else f"on_{self.dataset.name}_{self.part(split)}"

    def save_evaluation(self, metrics, per_image, names=()):
        """Writes evaluations/<split>_<tag>_N<images>.json and .npz, and metrics.json; returns the .json.

        Of images that are not the run's own, a .csv with their `names`, lowest log p(x) first, not metrics.json.
        """
        name = f"{self._stem(metrics['split'])}_{metrics['tag']}_N{metrics['num_images']}"
        stem = self.path / "evaluations" / bounded(name, MOST_STEM)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **per_image)
        try:
            stem.parent.mkdir(exist_ok=True)
            atomic.write(Path(f"{stem}.npz"), buffer.getvalue())
            atomic.write_json(Path(f"{stem}.json"), metrics)
            if self.is_own:
                atomic.write_json(self.path / "metrics.json", metrics)
            else:
                rows = [{"image": names[row]} | {key: per_image[key][row] for key in PER_IMAGE}
                        for row in np.argsort(per_image["log_px"])]  # fmt: skip
                atomic.write_csv(Path(f"{stem}.csv"), rows)
        except OSError as error:
            raise UserError(f"cannot write the evaluation to {self.path}: {error.strerror or error}") from error
        return Path(f"{stem}.json")

    @property
    def metrics(self):
        """The latest scores, a dict, if they are of the weights that are here now; an empty one if not."""
        with contextlib.suppress(UserError, OSError):
            metrics = read_json(self.path / "metrics.json", "unreadable")
            if metrics.get("weights_sha256") == self.weights_sha256:
                return metrics
        return {}

    def evaluation(self, split):
        """The newest whole Evaluation of most images of a split by the weights that are here now; None without one.

        What is damaged is passed over, as are those of older versions, which said less of each image.
        """
        name = re.compile(rf"{self._stem(split)}_[\w.+-]+_N(\d+)\.npz")
        with contextlib.suppress(*_UNREADABLE):
            found = [path for path in (self.path / "evaluations").iterdir() if name.fullmatch(path.name)]
            found.sort(key=lambda path: (int(name.fullmatch(path.name)[1]), path.lstat().st_mtime), reverse=True)
            for path in found:
                with contextlib.suppress(*_UNREADABLE):
                    metrics = read_json(path.with_suffix(".json"), "")
                    if metrics["weights_sha256"] == self.weights_sha256:
                        return _evaluation(path)
        return None


# What reading a damaged .npz or .json raises: NumPy and zipfile let most of it through
_UNREADABLE = (UserError, OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError)
_UNREADABLE += (MemoryError, SyntaxError, zipfile.BadZipFile, zlib.error)


def _evaluation(path):
    """The Evaluation in an .npz. Raises one of _UNREADABLE where it is not what `save_evaluation` writes."""
    content = read_bytes(path, MOST_EVALUATION)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(info.file_size for info in archive.infolist()) > MOST_EVALUATION:
            raise ValueError("it unpacks to too much")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        index, *columns = (file[name] for name in Evaluation._fields[1:])
    if index.dtype.kind not in "iu" or index.ndim != 1 or len(np.unique(index)) != len(index) or index.min() < 0:
        raise ValueError("its index does not name images")
    if any(column.dtype.kind != "f" or column.shape != index.shape for column in columns):
        raise ValueError("its columns are not numbers of the same images")
    if not np.isfinite(columns[0]).all():
        raise ValueError("an image has no log p(x)")
    return Evaluation(path.stem, index, *columns)


def _check_shape(shape):
    """Raises UserError unless this could be the (H, W, C) of images."""
    whole = isinstance(shape, list | tuple) and len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)
    if not whole or math.prod(shape) > MOST_VALUES:
        raise UserError(f"its image_shape is {shown(shape)}")
