"""Ctrl-C and its like during training: the run stops between two steps, with its state saved."""

import os
import signal
import sys

import keras

from training import processes


class StopOnRequest(keras.callbacks.Callback):
    """Stops the run between two steps, after its state is written, once `ask` was called as a handler of signals.

    A second Ctrl-C stops it at once. The first one cannot raise an exception in the middle of a step, because JAX
    swallows exceptions that a signal raises inside its calls.
    """

    def __init__(self, writer):
        super().__init__()
        self.writer, self.asked = writer, False

    def ask(self, number, _):
        """Notes the request; raises KeyboardInterrupt for a second Ctrl-C."""
        if self.asked and number == signal.SIGINT:  # a closed terminal sends its SIGHUP twice
            raise KeyboardInterrupt
        if not self.asked and number == signal.SIGINT and sys.stderr.isatty():
            os.write(2, b"\nstopping after this step, so that nothing is lost; press Ctrl-C again to stop at once\n")
        self.asked = True

    def on_train_batch_end(self, batch, logs=None):
        if processes.any_of(self.asked) and self.writer.save_inside(batch):  # after the last step, `on_epoch_end` stops
            self._stop()

    def on_epoch_end(self, epoch, logs=None):
        is_last = self.model.stop_training or epoch + 1 == self.writer.config.epochs  # then the run is finished
        if processes.any_of(self.asked) and not is_last:
            self._stop()

    def _stop(self):
        processes.done()
        raise KeyboardInterrupt
