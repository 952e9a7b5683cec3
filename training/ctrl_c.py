"""Ctrl-C and its like during training: the run stops between two steps, with its state saved."""

import os
import signal
import sys
import threading

import keras

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C; a request of a scheduler or of kill; a closed terminal


class StopOnRequest(keras.callbacks.Callback):
    """A context in which Ctrl-C, SIGTERM and SIGHUP stop the run between two steps, after its state is written.

    A second Ctrl-C stops it at once. The first one cannot raise an exception in the middle of a step, because JAX
    swallows exceptions that a signal raises inside its calls. Signals that are ignored when training begins, such as
    SIGHUP under nohup, stay ignored.
    """

    def __init__(self, writer, placement):
        super().__init__()
        self.writer, self.placement, self.asked, self.usual = writer, placement, False, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Python sets handlers only there
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
            os.write(2, b"\nstopping after this step, so that nothing is lost; press Ctrl-C again to stop at once\n")
        self.asked = True

    def on_train_batch_end(self, batch, logs=None):
        """Stops if that was asked; after the last step, `on_epoch_end` does."""
        if self.placement.any_asked(self.asked) and self.writer.save_inside(batch):
            self._stop()

    def on_epoch_end(self, epoch, logs=None):
        """Stops if that was asked."""
        if self.placement.any_asked(self.asked):
            self._stop()

    def _stop(self):
        self.placement.done()
        raise KeyboardInterrupt
