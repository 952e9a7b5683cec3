"""The progress of a training, and its expected time."""

import contextlib
import sys
import time

import keras

from runtime import progress
from runtime.text import duration

STEPS_TIMED = 10
MANY = 0.01  # the fraction of Langevin steps that diverge, above which there is a warning
VALIDATION_COST = 1 / 3  # of a training step: the forward pass alone


class Progress(keras.callbacks.Callback):
    """A Progress over the epochs with the current ELBO; after ten steps it prints the expected time of the run."""

    def __init__(self, config, batches, validation_steps, epoch=0):
        super().__init__()
        self.config, self.batches, self.validation_steps, self.first = config, batches, validation_steps, epoch
        self.seconds, self.validated, self.has_warned = [], {}, False

    def __enter__(self):
        line = "epoch {n:.2f} of {total}, {elapsed} so far, {remaining} left{postfix}"
        short = line.replace("{elapsed} so far, ", "")  # for a terminal of 80 columns
        shown = {"bar_format": f"{{l_bar}}{{bar}}| {short}", "dynamic_ncols": True}
        self.bar = progress.Progress(line, total=self.config.epochs, initial=self.first, **shown)
        return self

    def on_train_batch_end(self, batch, logs=None):
        bound = self.config.monitor.partition("_")[2]
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
                with contextlib.suppress(OSError):  # its reader has ended, or a disk is full; training continues
                    self.bar.write(text)
                    sys.stdout.flush()  # else it reaches a log file when the run is over
        self.started, self.done = time.perf_counter(), done

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.done = epoch, 0
        self.started = time.perf_counter() if epoch > self.first else None  # the first step of all compiles

    def on_epoch_end(self, epoch, logs=None):
        self.validated = {name: f"{logs[name]:.2f}" for name in [self.config.monitor] if name in logs}
        if logs.get("diverged", 0) > MANY and not self.has_warned:
            text = f"warning: epoch {epoch + 1}: {logs['diverged']:.1%} of the Langevin steps diverged"
            with contextlib.suppress(OSError):
                self.bar.write(f"{text} and were left out; lower --step_size {self.config.step_size}", file=sys.stderr)
            self.has_warned = True

    def __exit__(self, *_):
        self.bar.close()


def expected_time(step, epochs, steps, validation_steps, config):
    """A sentence with the expected time of `epochs` epochs and, if that is an hour or more, flags that shorten it.

    `step` is the time of a training step in seconds; `steps` and `validation_steps` are those of an epoch.
    """
    hours = epochs * step * (steps + VALIDATION_COST * validation_steps) / 3600
    work = f"{epochs} epoch{'s' * (epochs > 1)} of {steps} steps, {step:.3g} s a step"
    text = f"expected time: {duration(3600 * hours)} ({work})"
    if hours < 1:
        return text
    flags = ["--epochs", "--max_train_images"] + ["--network_size"] * ("network_size" in config.settings)
    flags += ["--num_pseudo_inputs"] * config.has_pseudo_inputs
    text += f"; smaller {', '.join(flags)} or a --patience shorten it"
    if config.precision == "float32" and (gain := config.gain_of_bfloat16) > 1:
        text += f"; with --precision mixed_bfloat16 a step is about {gain:g} times as fast on this processor"
    return text
