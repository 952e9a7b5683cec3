"""What trackers are told of a training."""

import keras
import numpy as np

from experiment import tracking
from models import replicas
from plotting import sheets
from training import devices

SAMPLES, COPIES, COLUMNS = 50, 20, 10  # images that trackers are shown: drawn, reconstructed, and side by side


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
        rows = sheets.alternating(sheets.in_rows(x, COLUMNS), sheets.in_rows(copies.astype(x.dtype), COLUMNS))
        return {"samples": sheet(sheets.in_rows(samples, COLUMNS)), "reconstructions": sheet(rows)}


def sheet(grid):
    """A grid of images (R, columns, H, W, C) as one picture, uint8: (h, w, 3), or (h, w) of the first of C channels."""
    picture = sheets.tiled(grid)[0]
    levels = np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)
    return levels if levels.shape[-1] == 3 else levels[..., 0]


class Tracked(keras.callbacks.Callback):
    """Tells the trackers that --track names what becomes of a run; a context, which ends with the run.

    Each epoch its row of history.csv and the learning rate; of the first, the last and every tenth of the run samples
    and reconstructed validation images, by the weights that are judged, but for networks that draw pixel by pixel, for
    minutes; where the run is finished its best epoch, and its files.
    """

    def __init__(self, writer, validation, spread=devices.ALONE):
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
            found = {"best/epoch": best["epoch"], f"best/{self.config.monitor}": best[self.config.monitor]}
            self.trackers.numbers(found, len(self.writer.rows))
            self.trackers.files([self.writer.path / name for name in tracking.FILES])
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.trackers.close("finished" if kind is None else "stopped" if stopped else "failed")
