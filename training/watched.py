"""log p(x) of a few validation images while a run is trained."""

import keras

import data
from evaluation.ais import AnnealedSampling, Annealing
from evaluation.compiled import NotFiniteError
from runtime.errors import RunError

WATCHED = 20  # images, and as many others that choose the step sizes
ANNEALING = Annealing(chains=16, temperatures=20, leapfrogs=5)


class WatchedLogPx(keras.callbacks.Callback):
    """Adds `val_log_px` to the logs: a lower bound in expectation on the mean log p(x) of WATCHED validation images.

    By annealed importance sampling from q(z|x), after the first epoch and after every --watch_log_px epochs; in between
    it is what it was. Images and noise are the same each time, and no noise of the training is used. Raises RunError
    for a log-weight that is NaN.
    """

    def __init__(self, config, images, writer):
        super().__init__()
        self.config, self.writer = config, writer
        index = data.subset(len(images), 2 * WATCHED)
        self.images, self.others = images[index[::2]], images[index[1::2]]

    def on_epoch_end(self, epoch, logs=None):
        if epoch and (epoch + 1) % self.config.watch_log_px:
            logs["val_log_px"] = self.writer.rows[-1]["val_log_px"]
            return
        with self.writer.instead():  # a new one each time, as it keeps the prior that it is made with
            sampling = AnnealedSampling(self.model, ANNEALING, self.config.seed, images=WATCHED)
            if len(self.others):
                sampling.tune(self.others)
            try:
                logs["val_log_px"] = float(sampling.log_px(self.images).log_px.mean())
            except NotFiniteError as error:
                raise RunError(f"epoch {epoch + 1}: --watch_log_px: {error}; train the run without it") from error
