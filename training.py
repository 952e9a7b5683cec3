"""How one run is trained: batches in an order fixed by the seed, Keras' `fit`, and the callbacks that write the run."""

import contextlib
import io
import math
import signal
import sys
import threading
import time

import keras
import numpy as np
from tqdm import tqdm

import data
import experiment
import models
from experiment import RunError, UserError

TERMS = ("loss", "elbo", "rate", "distortion")
FORMULAS = {  # the order in which they are looked at
    "distortion": "distortion, -log p(x|z),",
    "rate": "rate, log q(z|x) - log p(z),",
    "elbo": "elbo, -distortion - rate,",
    "loss": "loss, distortion + beta rate,",
}
STEPS_TIMED = 10
VALIDATION_COST = 1 / 3  # of a training step, for the forward pass alone
VALIDATION_BATCH = 500
JIT = {"auto": "auto", "on": True, "off": False}  # Keras' own "auto" is off on TensorFlow's CPU and on elsewhere


class Batches(keras.utils.PyDataset):
    """Batches of grey images (B, H, W, C) whose order is a pure function of (seed, epoch), on every backend."""

    def __init__(self, split, batch_size, seed):
        super().__init__()
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.start_epoch(0)

    def start_epoch(self, epoch):
        """Draws the order of this epoch."""
        self.order = np.random.default_rng([self.seed, epoch]).permutation(len(self.split.images))

    def __len__(self):
        return math.ceil(len(self.order) / self.batch_size)

    def __getitem__(self, index):
        return (self.split.grey(self.order[index * self.batch_size :][: self.batch_size]),)


class EpochState(keras.callbacks.Callback):
    """Makes all that changes with the epoch a pure function of (seed, epoch): order, noise, and beta's warm-up.

    beta = min(1, (epoch + 1) / warm-up). Validation draws the same noise in every epoch, so that its values differ by
    the weights alone.
    """

    def __init__(self, batches, seed, warmup):
        super().__init__()
        self.batches, self.seed, self.warmup = batches, seed, warmup

    def on_epoch_begin(self, epoch, logs=None):
        """Sets order, training noise and beta."""
        self.batches.start_epoch(epoch)
        words = np.random.SeedSequence([self.seed, epoch]).generate_state(2)
        self.model.train_noise.state.assign(words % 2**31)
        self.model.beta.assign(min(1.0, (epoch + 1) / self.warmup) if self.warmup else 1.0)

    def on_test_begin(self, logs=None):
        """Rewinds the validation noise."""
        self.model.test_noise.state.assign(np.array([self.seed, 0]))


class StopOnNonFinite(keras.callbacks.Callback):
    """Raises RunError at the first step in which a term is NaN or infinite, before any weight is stored."""

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers the epoch for the message."""
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        """Looks at the running means: the first that is not finite names the term."""
        self._look(logs, "", f"step {batch + 1}")

    def on_epoch_end(self, epoch, logs=None):
        """Looks at the validation terms, and at the weights: ReLU turns NaN into 0, so terms alone would hide some."""
        self._look(logs, "val_", "validation")
        for weight in self.model.weights:
            if not np.isfinite(keras.ops.convert_to_numpy(weight)).all():
                raise RunError(f"epoch {epoch + 1}: weight {weight.path} is not finite")

    def _look(self, logs, prefix, where):
        for name, term in FORMULAS.items():
            if not math.isfinite(logs[prefix + name]):
                raise RunError(f"epoch {self.epoch + 1}, {where}: {term} is {logs[prefix + name]}")


class StopOnCtrlC(keras.callbacks.Callback):
    """A context in which Ctrl-C is a KeyboardInterrupt at the end of a step; pressed again, at once.

    In the middle of a step it may get lost: JAX swallows an exception that a signal raises below its own calls.
    """

    def __enter__(self):
        self.pressed, self.usual = False, signal.getsignal(signal.SIGINT)
        self.ours = self.usual is signal.default_int_handler and threading.current_thread() is threading.main_thread()
        if self.ours:  # not in a thread, where it is forbidden, nor where Ctrl-C is ignored
            signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_):
        if self.ours:
            signal.signal(signal.SIGINT, self.usual)

    def _press(self, *_):
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

    def on_train_batch_end(self, batch, logs=None):
        """Stops where Ctrl-C was pressed."""
        if self.pressed:
            raise KeyboardInterrupt

    def on_test_batch_end(self, batch, logs=None):
        """The same in validation."""
        self.on_train_batch_end(batch)


class WeightsInMemory(io.BytesIO):
    """A file in memory that Keras takes for a weights file by its name: on a full disk h5py crashes the process."""

    def __str__(self):
        """A name as Keras wants it."""
        return "memory.weights.h5"


class RunWriter(keras.callbacks.Callback):
    """Keeps the run's folder: after each epoch the best weights by validation ELBO, history.csv and status.json."""

    def __init__(self, path, note=""):
        super().__init__()
        self.path, self.note, self.rows, self.best = path, note, [], {"best_epoch": None, "best_val_elbo": -math.inf}

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the epoch's clock."""
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Writes all three, each atomically, the weights first so that status never promises what is not there."""
        if logs["val_elbo"] > self.best["best_val_elbo"]:
            weights = WeightsInMemory()
            self.model.save_weights(weights)
            experiment.write(self.path / "best.weights.h5", weights.getvalue())
            self.best = {"best_epoch": epoch + 1, "best_val_elbo": logs["val_elbo"]}
        seconds = time.perf_counter() - self.started
        terms = {
            f"{split}_{name}": logs[key + name] for split, key in (("train", ""), ("val", "val_")) for name in TERMS
        }
        self.rows.append({"epoch": epoch + 1} | terms | {"seconds": round(seconds, 3)})
        experiment.write_csv(self.path / "history.csv", self.rows)
        self.write_status("running")

    @contextlib.contextmanager
    def status_of_ending(self):
        """Writes how the block ended into status.json: finished, stopped by Ctrl-C, or failed and why."""
        try:
            yield
            self.write_status("finished")
        except KeyboardInterrupt:
            self.write_status("stopped")
            raise
        except Exception as error:
            with contextlib.suppress(OSError):  # where the disk is full, not even this can be written
                self.write_status("failed", message=str(error))
            if isinstance(error, OSError):
                raise RunError(f"{self.path} can no longer be written: {error.strerror or error}") from error
            raise

    def write_status(self, state, **more):
        """Writes status.json: state, epochs done, best epoch and its validation ELBO, seconds spent in epochs."""
        done = {"epochs_done": len(self.rows), "seconds": round(sum(row["seconds"] for row in self.rows), 3)}
        best = self.best if self.rows else {}
        experiment.write_json(self.path / "status.json", {"state": state} | done | best | {"note": self.note} | more)


class Progress(keras.callbacks.Callback):
    """One tqdm bar over the epochs with the current ELBO, and after ten steps the expected time of the whole run."""

    def __init__(self, config, validation_steps):
        super().__init__()
        self.config, self.validation_steps, self.seconds, self.val_elbo = config, validation_steps, [], {}

    def __enter__(self):
        """Opens the bar; it stays silent where the output is no terminal."""
        layout = "{l_bar}{bar}| {n:.2f}/{total} epochs [{elapsed}<{remaining}{postfix}]"
        self.bar = tqdm(
            total=self.config.epochs, bar_format=layout, disable=not sys.stderr.isatty(), dynamic_ncols=True
        )
        return self

    def on_train_batch_end(self, batch, logs=None):
        """Moves the bar by one step and, once, says how long the run will take."""
        self.bar.set_postfix({"elbo": f"{logs['elbo']:.2f}"} | self.val_elbo, refresh=False)
        self.bar.n = self.epoch + (batch + 1) / self.params["steps"]  # not a sum, which would overshoot by rounding
        self.bar.update(0)
        if self.started and len(self.seconds) < STEPS_TIMED:
            self.seconds.append(time.perf_counter() - self.started)
            if len(self.seconds) == STEPS_TIMED:
                step = sum(self.seconds) / STEPS_TIMED
                tqdm.write(expected_time(step, self.params["steps"], self.validation_steps, self.config))
                sys.stdout.flush()  # a log file should not say it when it is over
        self.started = time.perf_counter()

    def on_epoch_begin(self, epoch, logs=None):
        """Leaves the first step of an epoch untimed: it compiles, or has validation before it."""
        self.epoch, self.started = epoch, None

    def on_epoch_end(self, epoch, logs=None):
        """Shows the validation ELBO from here on."""
        self.val_elbo = {"val_elbo": f"{logs['val_elbo']:.2f}"}

    def __exit__(self, *_):
        """Closes the bar however training ended, so that what is said next has a line of its own."""
        self.bar.close()


def expected_time(step, steps, validation_steps, config):
    """A sentence with the expected time of the whole run and, where that is hours, the flags that shorten it.

    `step`: seconds of a training step; `steps`, `validation_steps`: their numbers in an epoch.
    """
    hours = config.epochs * step * (steps + VALIDATION_COST * validation_steps) / 3600
    text = f"expected time: {duration(3600 * hours)} ({config.epochs} epochs of {steps} steps, {step:.3g} s a step)"
    if hours < 1:
        return text
    flags = ["--epochs", "--network_size", "--max_train_images"]
    if config.has_pseudo_inputs:
        flags.append("--num_pseudo_inputs")
    return f"{text}; smaller {', '.join(flags)} or a --patience shorten it"


def duration(seconds):
    """Seconds in words, "3 h 05 min", "2 min 10 s" or "4 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def prepare(config):
    """The data set, training split and untrained model of a run, all checked before anything is written.

    Raises UserError or DataError for what cannot be trained.
    """
    dataset = data.load(config.data_set, config.data_dir)
    split = dataset.split("train")
    _check_enough(split, "max_train_images", config.max_train_images or 0)
    split = split.first(config.max_train_images)
    _check_enough(split, "batch_size", config.batch_size)
    _check_enough(split, "num_pseudo_inputs", config.num_pseudo_inputs if config.has_pseudo_inputs else 0)
    if config.binarization == "threshold":
        split = split.thresholded()
    pseudo_inputs = None
    if config.has_pseudo_inputs:
        rng = np.random.default_rng(config.seed)
        pseudo_inputs = split.grey(rng.choice(len(split.images), config.num_pseudo_inputs, replace=False))
    keras.utils.set_random_seed(config.seed)
    try:
        model = models.build(config, dataset.image_shape, config.binarization == "dynamic", pseudo_inputs)
    except ValueError as error:
        raise UserError(str(error)) from error
    return dataset, split, model


def _check_enough(split, name, wanted):
    if wanted > len(split.images):
        raise UserError(f"--{name} {wanted} is more than the {len(split.images)} training images; make it smaller")


def early_stopping(config):
    """Keras' EarlyStopping on the validation ELBO in a list, empty without a patience.

    The warm-up does not count: its training bound is another one.
    """
    if not config.patience:
        return []
    options = {"mode": "max", "patience": config.patience, "start_from_epoch": config.beta_warmup}
    return [keras.callbacks.EarlyStopping("val_elbo", **options)]


def train(config, overwrite=False):
    """Trains one run to its end and returns its folder.

    Raises UserError or DataError before anything is written; RunError where a term stopped being a number or the
    folder could no longer be written; KeyboardInterrupt on Ctrl-C. The folder then keeps the finished epochs
    and their best weights, and its status says what happened.
    """
    keras.utils.clear_session()  # the last run of a grid is not needed any longer
    dataset, split, model = prepare(config)
    batches = Batches(split, config.batch_size, config.seed)
    validation = data.held_out(dataset, "val", config.binarization)
    model.compile(keras.optimizers.Adam(config.lr), jit_compile=JIT[config.jit])
    model.optimizer.build(model.trainable_variables)  # else TensorFlow traces the step twice, to create these variables
    writer = RunWriter(experiment.create(config, dataset, overwrite), config.note)
    progress = Progress(config, math.ceil(len(validation) / VALIDATION_BATCH))
    order = EpochState(batches, config.seed, config.beta_warmup)
    callbacks = [order, StopOnNonFinite(), writer, progress, *early_stopping(config)]
    with StopOnCtrlC() as ctrl_c, writer.status_of_ending(), progress:
        model.fit(
            batches,
            epochs=config.epochs,
            shuffle=False,  # the order is Batches' own
            validation_data=(validation, None),
            validation_batch_size=VALIDATION_BATCH,
            callbacks=[*callbacks, ctrl_c],
            verbose=0,
        )
    return writer.path
