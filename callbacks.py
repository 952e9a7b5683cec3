"""What happens around Keras' `fit` in a run: noise and warm-up, watching the terms, stopping, writing, progress."""

import contextlib
import math
import os
import signal
import sys
import threading
import time

import keras
import numpy as np
from tqdm import tqdm

import atomic
import checkpoint
import commandline
import distribution
import engine
import experiment
import figures
import optimizers
import tracking
import weights
from errors import RunError
from models import replicas
from models.base import named_weights

FORMULAS = {  # the order in which they are looked at
    "distortion": "distortion, -log p(x|z),",
    "rate": "rate, log q(z|x) - log p(z),",
    "elbo": "elbo, -distortion - rate,",
    "bound": "bound on log p(x)",
    "loss": "loss",
}
STEPS_TIMED = 10
LEAST_SCALE = 2.0**-20  # of a loss; it is halved by each step whose gradients overflow, which from here on they do not
MANY = 0.01  # of all Langevin steps, from which on it is worth a word that they diverged
VALIDATION_COST = 1 / 3  # of a training step, for the forward pass alone
SAMPLES, COPIES, COLUMNS = 50, 20, 10  # images that trackers are shown: drawn, reconstructed, and side by side
STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, a scheduler's or kill's request, a closed terminal


class EpochState(keras.callbacks.Callback):
    """Makes all that changes with the epoch a pure function of (seed, epoch): order, noise, and beta's warm-up.

    beta = min(1, (epoch + 1) / warm-up). Validation draws the same noise in every epoch, so that its values differ by
    the weights alone. Where training goes on inside an epoch (`batches.skip`), all of it is as `state` has it.
    """

    def __init__(self, config, batches, state=None):
        super().__init__()
        self.config, self.batches, self.state = config, batches, state

    def on_epoch_begin(self, epoch, logs=None):
        """Sets order, training noise and beta, or all that `state` has."""
        self.batches.start_epoch(epoch)
        if self.batches.skip:
            self.state.into(self.model)
            return
        self.model.train_noise.state.assign(self._key("noise", epoch))
        warmup = self.config.beta_warmup
        self.model.beta.assign(min(1.0, (epoch + 1) / warmup) if warmup else 1.0)

    def on_test_begin(self, logs=None):
        """Rewinds the validation noise."""
        self.model.test_noise.state.assign(self._key("validation noise"))

    def _key(self, *use):
        return self.config.stream(*use).generate_state(2) % 2**31


class StopOnNonFinite(keras.callbacks.Callback):
    """Raises RunError at the first step in which a term is NaN or infinite, before any weight is stored.

    Where the loss is scaled, a step whose gradients are not finite is left out, and no failure unless all are.
    """

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers the epoch for the message."""
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        """Looks at the running means: the first that is not finite names the term."""
        self._look(logs, "", f"step {self.batches.done(batch)}")

    def on_epoch_end(self, epoch, logs=None):
        """Looks at the validation terms, and at the weights."""
        self._look(logs, "val_", "validation")
        if path := weights.not_finite(self.model):
            raise RunError(f"epoch {epoch + 1}: weight {path} is not finite")
        scale = float(getattr(self.model.optimizer, "dynamic_scale", 1.0))
        if scale < LEAST_SCALE:
            raise RunError(f"epoch {epoch + 1}: gradients are not finite even where the loss is scaled by {scale:.1g}")

    def _look(self, logs, prefix, where):
        for name, term in FORMULAS.items():
            if not math.isfinite(value := logs.get(prefix + name, 0.0)):
                raise RunError(f"epoch {self.epoch + 1}, {where}: {term} is {value}")


class StopOnRequest(keras.callbacks.Callback):
    """A context in which Ctrl-C and its like end the run between two steps, its state written; Ctrl-C twice: at once.

    In the middle of a step an exception may get lost: JAX swallows one that a signal raises below its own calls. What
    is ignored when training begins, as SIGHUP under nohup, stays ignored.
    """

    def __init__(self, writer, spread):
        super().__init__()
        self.writer, self.spread, self.asked, self.usual = writer, spread, False, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # elsewhere it is forbidden
            for number in (getattr(signal, name) for name in STOPPING if hasattr(signal, name)):
                if (usual := signal.getsignal(number)) in (signal.SIG_DFL, signal.default_int_handler):
                    self.usual[number] = usual
                    signal.signal(number, self._ask)
        return self

    def __exit__(self, *_):
        for number, usual in self.usual.items():
            signal.signal(number, usual)

    def _ask(self, number, _):
        if self.asked and number == signal.SIGINT:  # a closed terminal sends its SIGHUP twice
            raise KeyboardInterrupt
        if not self.asked and number == signal.SIGINT and sys.stderr.isatty():
            os.write(2, b"\nstopping after this step, so that nothing is lost; once more: at once\n")
        self.asked = True

    def on_train_batch_end(self, batch, logs=None):
        """Stops where that was asked, but for the last step: the end of the epoch will."""
        if self.spread.agreed(self.asked) and self.writer.save_inside(batch):
            self._stop()

    def on_epoch_end(self, epoch, logs=None):
        """Stops where that was asked."""
        if self.spread.agreed(self.asked):
            self._stop()

    def _stop(self):
        self.spread.done()
        raise KeyboardInterrupt


class Memory(keras.callbacks.Callback):
    """Lets callbacks that judge the validation ELBO, which come before it in the list, remember an earlier `fit`.

    These are Keras' EarlyStopping and ReduceLROnPlateau, which begin anew with each `fit`. `lr` is what the learning
    rate was before any of them acted; None if none of them acts on it.
    """

    def __init__(self, judges, rows, lr=None):
        super().__init__()
        self.judges, self.rows, self.lr = judges, rows, lr

    def on_train_begin(self, logs=None):
        """Shows them each epoch so far; the model's `stop_training` and learning rate then are what they make of it."""
        if self.lr is not None:
            self.model.optimizer.learning_rate = self.lr
        for row in self.rows:
            for judge in self.judges:
                judge.on_epoch_end(row["epoch"] - 1, dict(row))


class _NotInWarmUp:
    """Lets a callback of Keras that counts epochs without a better value begin to count after so many epochs."""

    def __init__(self, warmup, monitor, **options):
        super().__init__(monitor, **options)
        self.warmup = warmup

    def on_epoch_end(self, epoch, logs=None):
        """Notes the value; it counts after the warm-up only."""
        if epoch < self.warmup:
            self.wait = -1  # which it adds 1 to
        super().on_epoch_end(epoch, logs)


class Patience(_NotInWarmUp, keras.callbacks.EarlyStopping):
    """Keras' EarlyStopping, whose patience begins after the warm-up, as in the VampPrior paper's code."""


class Plateau(_NotInWarmUp, keras.callbacks.ReduceLROnPlateau):
    """Keras' ReduceLROnPlateau, whose patience begins after the warm-up."""


class Averaged(keras.callbacks.Callback):
    """Puts the moving average of the weights in their place while they are judged, and in the block of `instead`.

    Keras' SwapEMAWeights exchanges both by sums and differences, which rounds, and leaves an average of projected
    weights where no projected weight would be.
    """

    def on_test_begin(self, logs=None):
        """The averages, projected where the weights are."""
        pairs = zip(self.model.trainable_variables, optimizers.averages(self.model.optimizer), strict=True)
        self.raw = [(weight, keras.ops.convert_to_numpy(weight)) for weight in self.model.trainable_variables]
        for weight, average in pairs:
            # a copy: on JAX, validation gives away the memory of the weights, and it would be the average's, too
            weight.assign(weight.constraint(average) if weight.constraint else keras.ops.copy(average))

    def on_test_end(self, logs=None):
        """The weights again, bit for bit."""
        for weight, value in self.raw:
            weight.assign(value)

    @contextlib.contextmanager
    def instead(self):
        """For the block, too."""
        self.on_test_begin()
        try:
            yield
        finally:
            self.on_test_end()


class RunWriter(keras.callbacks.Callback):
    """Keeps the run's folder: after each epoch its state in last/, and what follows from it for people to read.

    That is best.safetensors, the weights with the best validation value of the trained bound, history.csv and
    status.json. All are written after the state, so that whatever is lost when the process dies can be written again
    from that. Without a `path`, in a process that follows another one, nothing is written.
    """

    def __init__(self, path, config, batches, state=None, note="", instead=contextlib.nullcontext):
        super().__init__()
        self.instead = instead  # a context in which the model has the weights that are kept
        self.path, self.config, self.batches, self.note = path, config, batches, note
        self.rows = state.rows if state else []
        self.best = state.best if state else {}
        self.spent = state.seconds if state else 0.0  # in the epoch in which training goes on
        self.validates = False
        self.saved = time.monotonic()

    @property
    def best_row(self):
        """The row of history.csv with the best validation value of the trained bound; None before there is one."""
        return max(self.rows, key=lambda row: row[self.config.judged], default=None)

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the epoch's clock."""
        self.epoch, self.started = epoch, time.perf_counter() - (self.spent if self.batches.skip else 0.0)

    def on_test_begin(self, logs=None):
        """Notes that what fails now does so in validation."""
        self.validates = True

    def on_test_end(self, logs=None):
        """Notes that validation is over."""
        self.validates = False

    def on_train_batch_end(self, batch, logs=None):
        """Writes the state where the last one is --save_minutes old."""
        if time.monotonic() - self.saved > 60 * self.config.save_minutes:
            self.save_inside(batch)

    def save_inside(self, batch):
        """Writes the state inside an epoch; returns whether it is one: after the last step it is nearly over."""
        step = self.batches.done(batch)
        if step < self.batches.steps:
            self._save(self.epoch, step, time.perf_counter() - self.started, self.rows, self.best)
        return step < self.batches.steps

    def on_epoch_end(self, epoch, logs=None):
        """Adds a row and writes all of it, each file atomically."""
        values = [logs[key + term] for key in ("", "val_") for term in self.config.terms]
        seconds = round(time.perf_counter() - self.started, 3)
        row = dict(zip(self.config.columns, (epoch + 1, *values, seconds), strict=True))
        is_best = not self.rows or row[self.config.judged] > self.best_row[self.config.judged]
        best = self.best
        if is_best:
            with self.instead():
                best = weights.values(named_weights(self.model))
        self._save(epoch + 1, 0, 0.0, [*self.rows, row], best)
        self.rows.append(row)  # once its state is written, and not before: status.json counts the rows
        self.best = best
        self.write_results(is_best)

    def _save(self, epoch, step, seconds, rows, best):
        if not self.path:
            return
        with self._writing():
            checkpoint.save(self.path / "last", checkpoint.of(self.model, epoch, step, seconds, rows, best))
        self.saved = time.monotonic()

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except OSError as error:
            raise RunError(f"{self.path} can no longer be written: {error.strerror or error}") from error

    def write_results(self, new_best=True):
        """Writes what follows from the state, the weights first so that status never promises what is not there."""
        if not self.path:
            return
        with self._writing():
            if self.rows and new_best:
                content = weights.packed(self.best, {"run": self.config.training_id})
                atomic.write(self.path / "best.safetensors", content)
            if self.rows:
                atomic.write_csv(self.path / "history.csv", self.rows)
            self.write_status("running", process=experiment.process())

    @contextlib.contextmanager
    def status_of_ending(self):
        """Writes how the block ended into status.json: finished, stopped on request, or failed and why."""
        try:
            yield
            with self._writing():
                self.write_status("finished")
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):  # where the disk is full, not even this can be written
                self.write_status("stopped")
            raise
        except Exception as error:
            short = engine.is_out_of_memory(error)
            where = "validation" if self.validates else "training"
            less = smaller(self.config, with_batch=not self.validates)
            ending = RunError(f"out of memory in a {where} step; {less}") if short else error
            with contextlib.suppress(OSError):
                self.write_status("failed", message=str(ending))
            if short:
                raise ending from error
            raise

    def write_status(self, state, **more):
        """Writes status.json: state, epochs done, best epoch and its validation ELBO, seconds spent in epochs."""
        if not self.path:
            return
        done = {"epochs_done": len(self.rows), "seconds": round(sum(row["seconds"] for row in self.rows), 3)}
        best = {"best_epoch": self.best_row["epoch"], "best_val_elbo": self.best_row["val_elbo"]} if self.rows else {}
        about = {"state": state} | done | best | {"note": self.note}
        atomic.write_json(self.path / "status.json", about | more)


class Painter(keras.Model):
    """Samples of a model's prior and reconstructions of images, the same noise in each call.

    Its own noise, so that training does not depend on it. JAX, which would compile each operation alone, compiles all
    of it once; TensorFlow would take longer to trace a deep model's than to run it a dozen times.
    """

    def __init__(self, model, seed):
        super().__init__()
        self.model, self.noise = model, keras.random.SeedGenerator(seed)
        self.start = keras.ops.convert_to_numpy(self.noise.state)
        self.built = True
        self.compile(run_eagerly=keras.backend.backend() == "tensorflow")

    def call(self, x):
        """SAMPLES images, and x (B, H, W, C) reconstructed."""
        x = replicas.joined(x)
        return self.model.sample(SAMPLES, self.noise), self.model.reconstruct(x, self.noise)

    def paint(self, x, spread):
        """Sheets of samples, and of images above their reconstructions: a dict of uint8 (h, w) or (h, w, 3)."""
        self.noise.state.assign(self.start)
        # TensorFlow's `predict` would give each of several devices a part of the images, to be painted alone
        paint = self if keras.backend.backend() == "tensorflow" else self.predict_on_batch
        samples, copies = map(np.asarray, paint(spread.placed(x, len(x))))
        rows = figures.alternating(figures.in_rows(x, COLUMNS), figures.in_rows(copies.astype(x.dtype), COLUMNS))
        return {"samples": sheet(figures.in_rows(samples, COLUMNS)), "reconstructions": sheet(rows)}


def sheet(grid):
    """A grid of images (R, columns, H, W, C) as one picture, uint8: (h, w, 3), or (h, w) of the first of C channels."""
    picture = figures.tiled(grid)[0]
    levels = np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)
    return levels if levels.shape[-1] == 3 else levels[..., 0]


class Tracked(keras.callbacks.Callback):
    """Tells the trackers that --track names what becomes of a run; a context, which ends with the run.

    Each epoch its row of history.csv and the learning rate; of the first, the last and every tenth of the run samples
    and reconstructed validation images, by the weights that are judged, but for networks that draw pixel by pixel, for
    minutes; where the run is finished its best epoch, and its files.
    """

    def __init__(self, writer, validation, spread=distribution.ALONE):
        super().__init__()
        self.writer, self.config, self.validation, self.spread = writer, writer.config, validation, spread
        self.painter, self.draws = None, spread.draws and not self.config.is_autoregressive

    def __enter__(self):
        """Tells what the history has so far; trackers that know an epoch already leave it out."""
        kinds, rows = tracking.SINKS[self.config.track], self.writer.rows
        self.trackers = tracking.Trackers(kinds, self.writer.path, self.config, len(rows))
        for row in rows:
            self.trackers.numbers(tracking.curves(row), row["epoch"])
        return self

    def on_epoch_end(self, epoch, logs=None):
        """Tells of the epoch, whose row the writer has added before."""
        if not self.trackers.sinks:
            return
        values = tracking.curves(self.writer.rows[-1])
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        self.trackers.numbers(values | {"learning_rate": rate}, epoch + 1)
        if self._is_drawn(epoch + 1):
            with tracking.leaving_out("pictures", self._draw_no_more):
                self.trackers.pictures(self._pictures(), epoch + 1)

    def _is_drawn(self, epoch):
        often = max(1, round(self.config.epochs / 10))
        return self.draws and (epoch in (1, self.config.epochs) or epoch % often == 0)

    def _draw_no_more(self):
        self.draws = False

    def _pictures(self):
        self.painter = self.painter or Painter(self.model, self.config.seed)
        with self.writer.instead():
            return self.painter.paint(self.validation[:COPIES], self.spread)

    def __exit__(self, kind, error, _):
        """Tells how it ended."""
        if kind is None:
            best = self.writer.best_row
            found = {"best/epoch": best["epoch"], f"best/{self.config.judged}": best[self.config.judged]}
            self.trackers.numbers(found, len(self.writer.rows))
            self.trackers.files([self.writer.path / name for name in tracking.FILES])
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.trackers.close("finished" if kind is None else "stopped" if stopped else "failed")


def smaller(config, with_batch=True):
    """The settings to lower where memory is too small, the one that costs most first, as the end of a sentence.

    Without `with_batch` it is too small for something that does not depend on the batch.
    """
    costs = {"batch_size": (1 + config.decodings) * config.batch_size} if with_batch else {}  # encoded, and decoded
    if with_batch and config.samples > 1:  # in validation, more of them make a smaller batch
        costs["num_samples"] = config.decodings * config.batch_size
    if config.has_pseudo_inputs:
        costs["num_pseudo_inputs"] = config.num_pseudo_inputs  # which go through the encoder only
    names = sorted(costs, key=costs.get, reverse=True)
    if config.is_sized or config.is_deep or not names:
        names.append("channels" if config.is_deep else "network_size" if config.is_sized else "latent_dim")
    values = {"num_samples": config.samples}
    flags = [f"--{name} {values.get(name, getattr(config, name))}" for name in names]
    return f"lower {' or '.join(filter(None, (', '.join(flags[:-1]), flags[-1])))}"


class Progress(keras.callbacks.Callback):
    """One tqdm bar over the epochs with the current ELBO, and after ten steps the expected time of the whole run."""

    def __init__(self, config, batches, validation_steps, epoch=0):
        super().__init__()
        self.config, self.batches, self.validation_steps, self.first = config, batches, validation_steps, epoch
        self.seconds, self.validated, self.has_warned = [], {}, False

    def __enter__(self):
        """Opens the bar; it stays silent where the output is no terminal."""
        layout = "{l_bar}{bar}| {n:.2f}/{total} epochs [{elapsed}<{remaining}{postfix}]"
        self.bar = tqdm(
            total=self.config.epochs,
            initial=self.first,
            bar_format=layout,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        return self

    def on_train_batch_end(self, batch, logs=None):
        """Moves the bar by one step and, once, says how long the run will take."""
        bound = self.config.judged.removeprefix("val_")
        self.bar.set_postfix({bound: f"{logs[bound]:.2f}"} | self.validated, refresh=False)
        done = self.batches.done(batch)
        self.bar.n = self.epoch + done / self.batches.steps  # not a sum, which would overshoot by rounding
        self.bar.update(0)
        if self.started and len(self.seconds) < STEPS_TIMED:
            self.seconds.append((time.perf_counter() - self.started) / (done - self.done))  # one or more steps
            if len(self.seconds) == STEPS_TIMED:
                step = sum(self.seconds) / STEPS_TIMED
                left = self.config.epochs - self.first
                text = expected_time(step, left, self.batches.steps, self.validation_steps, self.config)
                with contextlib.suppress(OSError):  # its reader has gone, or a disk is full; training goes on
                    tqdm.write(text)
                    sys.stdout.flush()  # a log file should not say it when it is over
        self.started, self.done = time.perf_counter(), done

    def on_epoch_begin(self, epoch, logs=None):
        """Leaves the first step of an epoch untimed: it compiles, or has validation before it."""
        self.epoch, self.started = epoch, None

    def on_epoch_end(self, epoch, logs=None):
        """Shows the validation bound from here on, and says once if many steps of chains diverge."""
        self.validated = {self.config.judged: f"{logs[self.config.judged]:.2f}"}
        if logs.get("diverged", 0) > MANY and not self.has_warned:
            text = f"warning: epoch {epoch + 1}: {logs['diverged']:.1%} of the Langevin steps diverged"
            with contextlib.suppress(OSError):
                tqdm.write(f"{text} and were left out; lower --step_size {self.config.step_size}", file=sys.stderr)
            self.has_warned = True

    def __exit__(self, *_):
        """Closes the bar however training ended, so that what is said next has a line of its own."""
        self.bar.close()


def expected_time(step, epochs, steps, validation_steps, config):
    """A sentence with the expected time of so many epochs and, where that is hours, the flags that shorten it.

    `step`: seconds of a training step; `steps`, `validation_steps`: their numbers in an epoch.
    """
    hours = epochs * step * (steps + VALIDATION_COST * validation_steps) / 3600
    text = (
        f"expected time: {commandline.duration(3600 * hours)} ({epochs} epochs of {steps} steps, {step:.3g} s a step)"
    )
    if hours < 1:
        return text
    flags = ["--epochs", "--max_train_images"]
    if config.is_sized:
        flags.append("--network_size")
    if config.has_pseudo_inputs:
        flags.append("--num_pseudo_inputs")
    return f"{text}; smaller {', '.join(flags)} or a --patience shorten it"
