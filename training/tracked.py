"""A training as trackers see it: its numbers, and pictures of what the model draws."""

import keras
import numpy as np

from experiment import tracking, weights
from models.base import without_padding
from models.weight_names import named_weights
from plotting import sheets
from training import devices

SAMPLES, COPIES, COLUMNS = 50, 20, 10  # sampled images, reconstructed images, and images in a row of a sheet


class Painter(keras.Model):
    """Draws samples of a model's prior and reconstructions of images, with the same noise in each call.

    The noise is its own, so that training does not depend on it. On JAX, all of it is compiled at once, as JAX would
    otherwise compile each operation alone. On TensorFlow it runs eagerly: to trace a deep model takes longer than to
    run it a dozen times.
    """

    def __init__(self, model, seed):
        super().__init__(dtype=model.dtype_policy)
        self.model, self.noise = model, keras.random.SeedGenerator(seed)
        self.start = keras.ops.convert_to_numpy(self.noise.state)
        self.built = True
        self.compile(run_eagerly=keras.backend.backend() == "tensorflow")

    def call(self, x):
        x = without_padding(x)
        return self.model.sample(SAMPLES, self.noise), self.model.reconstruct(x, self.noise)

    def paint(self, x, placement):
        """Sheets of samples, and of images above their reconstructions: a dict of uint8 (h, w) or (h, w, 3)."""
        self.noise.state.assign(self.start)
        samples, copies = map(np.asarray, self.predict_on_batch(placement.padded(x, len(x))))
        rows = sheets.alternating(sheets.in_rows(x, COLUMNS), sheets.in_rows(copies.astype(x.dtype), COLUMNS))
        return {"samples": sheet(sheets.in_rows(samples, COLUMNS)), "reconstructions": sheet(rows)}


def sheet(grid):
    """A grid of images (R, columns, H, W, C) as a uint8 picture: (h, w, 3), or (h, w) of the first channel."""
    picture = sheets.tiled(grid)[0]
    levels = np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)
    return levels if levels.shape[-1] == 3 else levels[..., 0]


class Tracked(keras.callbacks.Callback):
    """Gives a training to the trackers that --track names; a context, which ends with the training.

    They get each epoch's row of history.csv and its learning rate and, every --track_weights epochs, the weights that
    are validated. After the first and the last epoch, and after each tenth of the run, they get samples and
    reconstructed validation images of these weights, except where the decoder draws pixel by pixel, which would take
    minutes. In the end they get the best epoch and the files.
    """

    def __init__(self, writer, validation, placement=devices.ONE_DEVICE):
        super().__init__()
        self.writer, self.config, self.validation, self.placement = writer, writer.config, validation, placement
        # a picture is a program of its own, which all processes would have to run
        self.painter, self.draws = None, not (self.config.distribute == "processes" or self.config.is_autoregressive)

    def __enter__(self):
        kinds = tracking.TRACKERS[self.config.track]
        self.trackers = tracking.Trackers(kinds, self.writer.path, self.config, self.writer.rows)
        return self

    def on_epoch_end(self, epoch, logs=None):
        if not self.trackers.active:
            return
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        self.trackers.tell("numbers", tracking.curves(self.writer.rows[-1]) | {"learning_rate": rate}, epoch + 1)
        if self.config.track_weights and (epoch + 1) % self.config.track_weights == 0:
            with self.writer.instead():
                named = weights.values(named_weights(self.model))
            self.trackers.tell("histograms", {f"weights/{name}": one for name, one in named.items()}, epoch + 1)
        if self._is_due(epoch + 1):
            self._draw(epoch + 1)

    def on_train_end(self, logs=None):
        last = len(self.writer.rows)
        if self.trackers.active and self.model.stop_training and not self._is_due(last):  # --patience is over
            self._draw(last)

    def _is_due(self, epoch):
        often = max(1, round(self.config.epochs / 10))
        return epoch in (1, self.config.epochs) or epoch % often == 0

    def _draw(self, epoch):
        if not self.draws:
            return
        self.draws = False  # from now on, if they cannot be drawn
        with tracking.leaving_out("pictures"), self.writer.instead():
            self.painter = self.painter or Painter(self.model, self.config.seed)
            self.trackers.tell("pictures", self.painter.paint(self.validation[:COPIES], self.placement), epoch)
            self.draws = True

    def __exit__(self, kind, error, _):
        if kind is None:
            best = self.writer.best_row
            found = {"best/epoch": best["epoch"], f"best/{self.config.monitor}": best[self.config.monitor]}
            self.trackers.tell("numbers", found, len(self.writer.rows))
            self.trackers.tell("files", [self.writer.path / name for name in tracking.FILES])
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.trackers.tell("close", "finished" if kind is None else "stopped" if stopped else "failed")
