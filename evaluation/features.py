"""Train a small classifier for FID and KID of samples: python vampvae.py features --data_set mnist"""

import contextlib
import hashlib
import io
import json
import math
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np

import data
import models
from data import as_folder
from experiment.flags import add_backend
from experiment.record import MOST_JSON, git_commit, versions
from runtime import atomic, backend
from runtime.command import path, whole
from runtime.errors import UserError
from runtime.progress import Progress

LAYER, NUM_FEATURES = "features", 64  # few enough to estimate their covariance from some hundred images
TRAINING_BATCH = 64
BATCH = 500  # images in a network at once
PIECE = 10 * BATCH  # images in memory at once, of those that stay on disk
MOST = 1 << 30  # bytes of an unpacked network


def add_arguments(parser):
    """Adds the flags of `vampvae.py features`."""
    labelled = ", ".join(name for name, source in data.DATA_SETS.items() if source.class_names)
    text = f"images and labels to train on: {labelled}"
    parser.add_argument("--data_set", choices=data.NAMES, default="mnist", metavar="NAME", help=text)
    text = "folder of the data files [$VAMPVAE_DATA, a cache, or a download]"
    parser.add_argument("--data_dir", type=path, metavar="DIR", help=text)
    text = "take data files that differ from the published ones, and say so beside every score"
    parser.add_argument("--other_data", choices=("off", "on"), default="off", metavar="on", help=text)
    text = "passes over the training images; the weights with the best validation accuracy are kept"
    parser.add_argument("--epochs", type=whole(1), default=5, metavar="N", help=text)
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of weights and image order")
    text = "output file; a .json is written beside it [runs/features/NAME.keras]"
    parser.add_argument("--out", metavar="FILE.keras", type=as_folder, help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace the output file if it exists")
    add_backend(parser)


def run(args):
    """Trains the classifier that the flags ask for, and prints its accuracy and its file; returns the exit code."""
    if not data.source(args.data_set).class_names:
        said = "has no classes that are known before it is read, so no classifier is trained on it"
        raise UserError(f"{args.data_set} {said}; --help lists what has them")
    path = keras_file(args.out or Path("runs", "features", f"{args.data_set}.keras"))
    if path.exists() and not args.overwrite:
        raise UserError(f"{path} exists, and scores may refer to it; choose another --out, or add --overwrite")
    with _blamed_on(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    backend.settle(args.backend, args.device)
    backend.start(args.device, deterministic=True)
    dataset = data.load(args.data_set, args.data_dir, args.other_data == "on")
    model, record = train(dataset, args.epochs, args.seed)
    save(path, model, record)
    print("accuracy {val_accuracy:.4f} on validation images, {test_accuracy:.4f} on test images".format(**record))
    print(path)
    return 0


def keras_file(path):
    """The path of a network's file, which must end in .keras. Raises UserError otherwise."""
    if path.suffix != ".keras":
        raise UserError(f"{path} must end in .keras")
    return path


def classifier(image_shape, num_classes):
    """Two convolutions and a layer of features (B, 64), then logits: a Keras model of grey images (B, H, W, C)."""
    import keras
    from keras import layers

    x = image = keras.Input(image_shape)
    for filters in (32, 64):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D(padding="same")(x)  # (B, H / 2, W / 2, filters)
    x = layers.Dense(NUM_FEATURES, activation="relu", name=LAYER)(layers.Flatten()(x))
    return keras.Model(image, layers.Dense(num_classes, name="logits")(x))


def train(dataset, epochs=5, seed=0):
    """A classifier of the data set's grey images, and its record for the JSON. Stochastic, a function of `seed`.

    The weights are those of the epoch with the best validation accuracy; test accuracy is measured once, at the end.
    """
    import keras

    backend.seed(seed)
    parts = (dataset.split(name) for name in ("train", "val", "test"))
    training, validation, test = ((part.grey(), part.labels) for part in parts)
    model = classifier(dataset.image_shape, len(dataset.class_names))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    best = keras.callbacks.EarlyStopping("val_accuracy", mode="max", patience=epochs, restore_best_weights=True)
    with Progress(total=epochs * len(training[0]), unit=" images") as bar:
        step = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: bar.update(TRAINING_BATCH))
        options = {"batch_size": TRAINING_BATCH, "epochs": epochs, "callbacks": [best, step], "verbose": 0}
        model.fit(*training, validation_data=validation, **options)
    _, test_accuracy = model.evaluate(*test, batch_size=BATCH, verbose=0)
    record = {"data_set": dataset.name, "layer": LAYER, "val_accuracy": float(best.best)}
    record |= {"test_accuracy": float(test_accuracy), "best_epoch": best.best_epoch + 1, "epochs": epochs, "seed": seed}
    record |= {"num_train_images": len(training[0]), "image_shape": list(dataset.image_shape), "note": dataset.note}
    record |= {"data_sha256": dataset.sha256, "git_commit": git_commit(), "backend": keras.backend.backend()}
    return model, record | {"versions": versions()}


def save(path, model, record):
    """Writes the model, without its optimizer, and beside it the record with the file's checksum. Raises UserError.

    The record comes first: a network with a wrong record is refused, but one without a record would be accepted.
    """
    import keras

    with _blamed_on(path), atomic.folder(path.parent) as fresh:
        keras.Model(model.inputs, model.outputs).save(fresh / path.name)
        sha256 = hashlib.sha256((fresh / path.name).read_bytes()).hexdigest()
        atomic.write_json(path.with_suffix(".json"), record | {"sha256": sha256})
        os.replace(fresh / path.name, path)


@contextlib.contextmanager
def _blamed_on(path):
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another --out") from error


class Network:
    """A Keras model from images to features, with its `path`, `sha256`, and `record`, its JSON, {} if it has none.

    Features are the output of the layer that the record names, or without a record that of the model: (B, F), or
    (B, h, w, F), averaged over h and w.
    """

    def __init__(self, path, sha256, model, record):
        import keras

        self.path, self.sha256, self.record = path, sha256, record
        if len(getattr(model, "inputs", None) or ()) != 1:
            raise UserError(f"{path} must have one input of a known shape; build the model on keras.Input((H, W, C))")
        if record:
            if record["layer"] not in (names := [layer.name for layer in model.layers]):
                raise UserError(f"{path} has no layer {record['layer']!r}, but {', '.join(names)}")
            model = keras.Model(model.inputs, model.get_layer(record["layer"]).output)
        if len(model.outputs) != 1 or len(model.outputs[0].shape) not in (2, 4):
            shapes = " and ".join(str(tuple(output.shape)) for output in model.outputs)
            raise UserError(f"{path} has outputs {shapes}; features must be (None, F) or (None, h, w, F)")
        self.model = model

    @property
    def said(self):
        """The network in words."""
        if not self.record:
            return str(self.path)
        note = f" ({self.record['note']})" * bool(self.record.get("note"))
        said = "{}, a classifier of {data_set}{} with test accuracy {test_accuracy:.4f}"
        return said.format(self.path, note, **self.record)

    def check(self, image_shape):
        """Raises UserError unless the network takes images (H, W, C)."""
        wanted = tuple(self.model.inputs[0].shape)[1:]
        if len(wanted) != len(image_shape) or any(a not in (None, b) for a, b in zip(wanted, image_shape, strict=True)):
            raise UserError(f"--features {self.path} takes images {wanted}, but these are {image_shape}")

    def of(self, images):
        """Features of grey images (N, H, W, C), in memory or Stored: float64 (N, F).

        Raises UserError where one is not finite.
        """
        pieces = (images[start : start + PIECE] for start in range(0, len(images), PIECE))
        found = [self.model.predict(piece, batch_size=BATCH, verbose=0) for piece in pieces]
        found = np.concatenate(found).astype("float64")
        found = found.mean(axis=(1, 2)) if found.ndim == 4 else found
        if not np.isfinite(found).all():
            raise UserError(f"{self.path} computes features that are not finite; it is not usable")
        return found


def load(path):
    """The Network in a .keras file, which Keras reads in safe mode: no code in it is run. Raises UserError.

    It is refused where a .json beside it is not its own, and before anything is allocated where its config.json
    describes more weights than it can hold.
    """
    path = keras_file(Path(path))
    try:
        with atomic.opened(path) as file:
            content = file.read(MOST + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; python vampvae.py features trains a network") from error
    sha256 = hashlib.sha256(content).hexdigest()
    record = _record(path, sha256)
    try:
        model = _model(content)
    except Exception as error:  # Keras raises nearly anything for other files
        said = str(error.__context__ or error).strip() or type(error).__name__  # the context names the layer
        reason = said.splitlines()[0].split(". ")[0]
        raise UserError(f"{path} cannot be loaded safely: {reason}") from error
    return Network(path, sha256, model, record)


def _record(path, sha256):
    """The JSON beside a network with this checksum, {} if there is none. Raises UserError for another network's."""
    beside = path.with_suffix(".json")
    if not beside.exists():
        return {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        with atomic.opened(beside) as file:
            record = json.loads(file.read(MOST_JSON))
        kinds = {"data_set": str, "layer": str, "test_accuracy": float}
        if record["sha256"] == sha256 and all(type(record[name]) is kind for name, kind in kinds.items()):
            return record
    raise UserError(f"{beside} does not belong to {path}; replace or remove it")


def _model(content):
    """The Keras model in the bytes of a .keras file. Raises nearly anything."""
    import keras

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(info.file_size for info in archive.infolist()) > MOST:
            raise ValueError(f"it has more than {MOST:,} bytes")
        config = json.loads(archive.read("config.json")) | {"compile_config": None}
        stored = archive.getinfo("model.weights.h5").file_size
    blank = models.unallocated(lambda: keras.saving.deserialize_keras_object(config, safe_mode=True))
    if not isinstance(blank, keras.Model):
        raise ValueError("its config.json describes no model")
    if (count := sum(math.prod(one.shape) for one in blank.weights)) > stored:  # each has a byte or more
        raise ValueError(f"its config.json describes {count:,} weights, more than it holds")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.keras").write_bytes(content)
        return keras.saving.load_model(Path(folder, "model.keras"), compile=False, safe_mode=True)
