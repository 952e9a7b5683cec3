"""Train a small classifier whose features tell samples from images: python features.py --data_set mnist"""

import contextlib
import hashlib
import io
import json
import math
import os
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

import atomic
import commandline
import data
import engine
import experiment
import models
from commandline import whole
from data import as_folder
from errors import UserError

LAYER, NUM_FEATURES = "features", 64  # few, as a covariance of so many is estimated from some hundred images, too
TRAINING_BATCH = 64
BATCH = 500  # images through a network at once
MOST = 1 << 30  # bytes of a network, unpacked


def add_arguments(parser):
    """Adds the flags of features.py."""
    labelled = ", ".join(name for name, source in data.DATA_SETS.items() if source.class_names)
    text = f"images and labels to train on: {labelled} (default: mnist)"
    parser.add_argument("--data_set", choices=data.NAMES, default="mnist", metavar="NAME", help=text)
    text = "where the data files lie; else VAMPVAE_DATA, a cache, a download"
    parser.add_argument("--data_dir", type=commandline.path, help=text)
    text = "passes over the training images, of which the best is kept by its validation accuracy (default: 5)"
    parser.add_argument("--epochs", type=whole(1), default=5, help=text)
    parser.add_argument("--seed", type=whole(0), default=0, help="seed of weights and order (default: 0)")
    text = "where it goes, with a .json beside it (default: runs/features/NAME.keras)"
    parser.add_argument("--out", metavar="FILE.keras", type=as_folder, help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace that file, if it is there")
    commandline.add_backend(parser)


def run(args):
    """Trains the classifier that the flags ask for, and prints its accuracy and its file; returns the exit code."""
    if not data.source(args.data_set).class_names:
        raise UserError(f"{args.data_set} has no labels to train a classifier on; see features.py --help for what has")
    path = keras_file(args.out or Path("runs", "features", f"{args.data_set}.keras"))
    if path.exists() and not args.overwrite:
        raise UserError(f"{path} exists, and scores may refer to it; choose another --out, or --overwrite it")
    with _blamed_on(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    engine.settle(args.backend, args.device)
    engine.start(args.device, deterministic=True)
    model, record = train(data.load(args.data_set, args.data_dir), args.epochs, args.seed)
    save(path, model, record)
    print("accuracy {val_accuracy:.4f} on validation images, {test_accuracy:.4f} on test images".format(**record))
    print(path)
    return 0


def keras_file(path):
    """The path, if it has the name that a network's file must have. Raises UserError otherwise."""
    if path.suffix != ".keras":
        raise UserError(f"{path} must end in .keras")
    return path


# ---------------------------------------------------------------------------------------------- a classifier


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
    """A classifier of the data set's grey images, and what its JSON says of it. Stochastic, a function of `seed`.

    The best epoch is that of the best validation accuracy; the accuracy on test images is measured once, at the end.
    """
    import keras

    keras.utils.set_random_seed(seed)
    training, validation = (_labelled(dataset, split) for split in ("train", "val"))
    model = classifier(dataset.image_shape, len(dataset.class_names))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    best = keras.callbacks.EarlyStopping("val_accuracy", mode="max", patience=epochs, restore_best_weights=True)
    with tqdm(total=epochs * len(training[0]), unit="image", disable=not sys.stderr.isatty()) as bar:
        step = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: bar.update(TRAINING_BATCH))
        options = {"batch_size": TRAINING_BATCH, "epochs": epochs, "callbacks": [best, step], "verbose": 0}
        with engine.forgetting_graphs():
            model.fit(*training, validation_data=validation, **options)
    _, test_accuracy = model.evaluate(*_labelled(dataset, "test"), batch_size=BATCH, verbose=0)
    return model, {
        "data_set": dataset.name,
        "layer": LAYER,
        "val_accuracy": float(best.best),
        "test_accuracy": float(test_accuracy),
        "best_epoch": best.best_epoch + 1,
        "epochs": epochs,
        "seed": seed,
        "num_train_images": len(training[0]),
        "image_shape": list(dataset.image_shape),
        "note": dataset.note,
        "data_sha256": dataset.sha256,
        "git_commit": experiment.git_commit(),
        "backend": keras.backend.backend(),
        "versions": experiment.versions(),
    }


def _labelled(dataset, name):
    split = dataset.split(name)
    return split.grey(), split.labels


def save(path, model, record):
    """Writes the model, without what trained it, and the record with its checksum beside it. Raises UserError.

    The record is written first: a network whose record is not its own is refused, one without would be taken as it is.
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


# ---------------------------------------------------------------------------------------------- a network of features


class Network:
    """A Keras model from images to features, of which are known: `path`, `sha256`, and `record`, its JSON, or {}.

    Features are the output of the layer that the record names, or without one the model's own: (B, F), or
    (B, h, w, F), of which the mean over h and w is taken.
    """

    def __init__(self, path, sha256, model, record):
        import keras

        self.path, self.sha256, self.record = path, sha256, record
        if len(getattr(model, "inputs", None) or ()) != 1:
            raise UserError(f"{path} is no model of one input of a known shape; build it on keras.Input((H, W, C))")
        if record:
            if record["layer"] not in (names := [layer.name for layer in model.layers]):
                raise UserError(f"{path} has no layer {record['layer']!r}, but {', '.join(names)}")
            model = keras.Model(model.inputs, model.get_layer(record["layer"]).output)
        if len(model.outputs) != 1 or len(model.outputs[0].shape) not in (2, 4):
            shapes = " and ".join(str(tuple(output.shape)) for output in model.outputs)
            raise UserError(f"{path} puts out {shapes}; features must be (None, F) or (None, h, w, F)")
        self.model = model

    @property
    def said(self):
        """What it is, in words."""
        if not self.record:
            return str(self.path)
        return "{}, a classifier of {data_set} with test accuracy {test_accuracy:.4f}".format(self.path, **self.record)

    def check(self, image_shape):
        """Raises UserError where this is no network of images (H, W, C)."""
        wanted = tuple(self.model.inputs[0].shape)[1:]
        fits = len(wanted) == len(image_shape) and all(a in (None, b) for a, b in zip(wanted, image_shape, strict=True))
        if not fits:
            raise UserError(f"--features {self.path} is a network of images {wanted}, but these are {image_shape}")

    def of(self, images):
        """Features of grey images (N, H, W, C): float64 (N, F). Raises UserError where one is not finite."""
        found = np.asarray(self.model.predict(images, batch_size=BATCH, verbose=0), "float64")
        found = found.mean(axis=(1, 2)) if found.ndim == 4 else found
        if not np.isfinite(found).all():
            raise UserError(f"{self.path} has features that are not finite; it is not usable")
        return found


def load(path):
    """The Network in a .keras file, which Keras reads in safe mode: nothing in it is run. Raises UserError.

    It is refused where a .json beside it is not its own, and before anything is allocated where its config.json
    describes more weights than it can hold.
    """
    path = keras_file(Path(path))
    try:
        with atomic.opened(path) as file:
            content = file.read(MOST + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; python features.py trains a network") from error
    sha256 = hashlib.sha256(content).hexdigest()
    record = _record(path, sha256)
    try:
        model = _model(content)
    except Exception as error:  # Keras raises nearly anything for a file that it has not written
        said = str(error.__context__ or error).strip() or type(error).__name__  # the context says which layer it is
        reason = said.splitlines()[0].split(". ")[0]
        raise UserError(f"{path} is no network that can be loaded safely: {reason}") from error
    return Network(path, sha256, model, record)


def _record(path, sha256):
    """The JSON beside a network of this checksum, {} if there is none. Raises UserError if it is another one's."""
    beside = path.with_suffix(".json")
    if not beside.exists():
        return {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        with atomic.opened(beside) as file:
            record = json.loads(file.read(experiment.MOST_JSON))
        kinds = {"data_set": str, "layer": str, "test_accuracy": float}
        if record["sha256"] == sha256 and all(type(record[name]) is kind for name, kind in kinds.items()):
            return record
    raise UserError(f"{beside} does not belong to {path}: put the right one there, or none")


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


def main(argv=None):
    """The command line of features.py; returns the exit code."""
    parser = commandline.Parser(prog="features.py", description=__doc__)
    add_arguments(parser)
    return commandline.command(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
