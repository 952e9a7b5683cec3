"""Callbacks that monitor the validation bound: early stopping and plateaus, also across interruptions."""

from types import SimpleNamespace

import keras
import numpy as np

from training import optimizers


class ReplayedHistory(keras.callbacks.Callback):
    """Shows the epochs so far to the callbacks that monitor the validation bound, whenever a `fit` begins.

    These are Keras' EarlyStopping and ReduceLROnPlateau, which forget everything when a `fit` begins; they must come
    before this one in the list. `lr` is the learning rate before the first epoch, or None if none of them changes it.
    """

    def __init__(self, monitors, rows, lr=None):
        super().__init__()
        self.monitors, self.rows, self.lr = monitors, rows, lr

    def on_train_begin(self, logs=None):
        if self.lr is not None:
            self.model.optimizer.learning_rate = self.lr
        for row in self.rows:
            for monitor in self.monitors:
                monitor.on_epoch_end(row["epoch"] - 1, dict(row))


class _NotInWarmUp:
    """Makes a callback of Keras that counts epochs without a better value ignore the epochs of the warm-up."""

    def __init__(self, warmup, monitor, **options):
        super().__init__(monitor, **options)
        self.warmup = warmup

    def on_epoch_end(self, epoch, logs=None):
        if epoch < self.warmup:
            self.wait = -1  # Keras adds 1
        super().on_epoch_end(epoch, logs)


class Patience(_NotInWarmUp, keras.callbacks.EarlyStopping):
    """Keras' EarlyStopping, whose patience begins after the warm-up, as in the VampPrior paper's code."""


class Plateau(_NotInWarmUp, keras.callbacks.ReduceLROnPlateau):
    """Keras' ReduceLROnPlateau, whose patience begins after the warm-up."""


def monitors(config):
    """The callbacks of Keras that the settings ask for and that monitor the validation value of the trained bound.

    Epochs of beta's warm-up may be the best ones, but do not count as epochs without a better value, because their
    training loss is another bound.
    """
    chosen = []
    if config.patience:
        chosen.append(Patience(config.beta_warmup, config.monitor, mode="max", patience=config.patience))
    if config.lr_schedule == "plateau":
        final = config.lr_final or optimizers.FINAL * config.lr
        options = {"mode": "max", "factor": 0.5, "patience": 10, "min_lr": final}
        chosen.append(Plateau(config.beta_warmup, config.monitor, **options))
    return chosen


def patience_is_over(config, rows):
    """Whether a training with this history would have stopped."""
    model = SimpleNamespace(stop_training=False, optimizer=SimpleNamespace(learning_rate=np.array(config.lr)))
    called = monitors(config)
    for callback in [*called, ReplayedHistory(called, rows)]:
        callback.set_model(model)
        callback.on_train_begin()
    return model.stop_training
