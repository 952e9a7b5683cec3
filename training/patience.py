"""What judges the validation bound: early stopping and plateaus, which remember earlier epochs."""

from types import SimpleNamespace

import keras
import numpy as np

from training import optimizers


class ReplayedHistory(keras.callbacks.Callback):
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


def judges(config):
    """Keras' callbacks that judge the validation value of the trained bound: those that the settings ask for.

    Epochs of the warm-up of beta may be the best ones, but are not counted as ones without a better value: what is
    trained there is another bound.
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
    called = judges(config)
    for callback in [*called, ReplayedHistory(called, rows)]:
        callback.set_model(model)
        callback.on_train_begin()
    return model.stop_training
