"""Keras callbacks: noise and warm-up, watching the terms, stopping on request."""

import contextlib
import math
import os
import signal
import sys
import threading

import keras

from experiment import weights
from runtime.errors import RunError
from training import optimizers

FORMULAS = {  # the order in which they are looked at
    "distortion": "distortion, -log p(x|z),",
    "rate": "rate, log q(z|x) - log p(z),",
    "elbo": "elbo, -distortion - rate,",
    "bound": "bound on log p(x)",
    "loss": "loss",
}


LEAST_SCALE = 2.0**-20  # of a loss; it is halved by each step whose gradients overflow, which from here on they do not


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


class EMAWeights(keras.callbacks.Callback):
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
