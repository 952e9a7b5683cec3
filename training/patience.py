"""Callbacks that monitor the validation bound: early stopping and plateaus, also across interruptions."""

from types import SimpleNamespace

import keras
import numpy as np

from training import optimizers


class _Monitor:
    """Makes a callback of Keras that counts epochs without a better value count none of the warm-up, nor forget any.

    Keras' own forget everything when a `fit` begins. This shows them the `rows` of the history then, so that the
    model's `stop_training` and learning rate are as they were after the last of them.
    """

    def __init__(self, config, rows, **options):
        super().__init__(config.monitor, mode="max", **options)
        self.config, self.rows = config, rows

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        if self.config.lr_schedule == "plateau":
            self.model.optimizer.learning_rate = self.config.lr
        for row in self.rows:
            self.on_epoch_end(row["epoch"] - 1, dict(row))

    def on_epoch_end(self, epoch, logs=None):
        if epoch < self.config.beta_warmup:
            self.wait = -1  # Keras adds 1
        super().on_epoch_end(epoch, logs)


class Patience(_Monitor, keras.callbacks.EarlyStopping):
    """Keras' EarlyStopping, whose patience begins after the warm-up, as in the VampPrior paper's code."""


class Plateau(_Monitor, keras.callbacks.ReduceLROnPlateau):
    """Keras' ReduceLROnPlateau, whose patience begins after the warm-up."""


def monitors(config, rows):
    """The callbacks of Keras that the settings ask for and that monitor the validation value of the trained bound.

    Epochs of beta's warm-up may be the best ones, but do not count as epochs without a better value, because their
    training loss is another bound.
    """
    chosen = [Patience(config, rows, patience=config.patience)] if config.patience else []
    if config.lr_schedule == "plateau":
        final = config.lr_final or optimizers.FINAL * config.lr
        chosen.append(Plateau(config, rows, factor=0.5, patience=10, min_lr=final))
    return chosen


def patience_is_over(config, rows):
    """Whether a training with this history would have stopped."""
    model = SimpleNamespace(stop_training=False, optimizer=SimpleNamespace(learning_rate=np.array(config.lr)))
    for monitor in monitors(config, rows):
        monitor.set_model(model)
        monitor.on_train_begin()
    return model.stop_training
