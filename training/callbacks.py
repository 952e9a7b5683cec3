"""Keras callbacks: noise and warm-up, checks for NaN, averaged weights."""

import contextlib
import math

import keras
import numpy as np

from evaluation.latents import ACTIVE
from experiment import weights
from experiment.columns import BOUND_BY_TIME, TIMES
from runtime import internals
from runtime.errors import RunError
from training.optimizers import Guarded

FORMULAS = {"distortion": "distortion, -log p(x|z),", "rate": "rate, log q(z|x) - log p(z),"}  # in the order of checks
FORMULAS |= {"elbo": "elbo, -distortion - rate,", "bound": "bound on log p(x)", "loss": "loss"}
WATCHED = 500  # validation images, of which more is said in each epoch
LEAST_SCALE = 2.0**-20  # of a loss, which is halved whenever gradients overflow; with a smaller one they do not


class EpochState(keras.callbacks.Callback):
    """Makes everything that changes with the epoch a pure function of (seed, epoch): order, noise, and beta.

    beta = start + (--beta - start) min(1, (epoch + 1) / warm-up), and the gradient of acceptance decisions has the
    weight min(1, epoch / --decision_warmup). Validation draws the same noise in every epoch, so only the weights change
    its values. If training resumes inside an epoch (`batches.skip`), noise and beta are those of `state`.
    """

    def __init__(self, config, batches, state=None):
        super().__init__()
        self.config, self.batches, self.state = config, batches, state

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.start_epoch(epoch)
        if self.batches.skip:
            self.state.into(self.model)
            return
        self.model.train_noise.state.assign(self._key("noise", epoch))
        start, end, warmup = self.config.beta_start, self.config.beta, self.config.beta_warmup
        self.model.beta.assign(start + (end - start) * min(1.0, (epoch + 1) / warmup) if warmup else end)
        if self.config.decision_warmup:
            self.model.objective.decisions.assign(min(1.0, epoch / self.config.decision_warmup))

    def on_test_begin(self, logs=None):
        self.model.test_noise.state.assign(self._key("validation noise"))

    def _key(self, *use):
        return self.config.stream(*use).generate_state(2) % 2**31


def watched(optimizer):
    """The sum of norms and the number of skipped steps that an optimizer has counted: two Variables, or none."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return (inner.norms, inner.skipped) if isinstance(inner, Guarded) else ()


class Watch(keras.callbacks.Callback):
    """Adds what the history has beside the terms to the logs of each epoch; Config's `watched` names it.

    Active units and the diffusion bound by time are those of the first validation images, with the weights that are
    validated and the same noise in every epoch; no other noise is drawn.
    """

    def __init__(self, config, batches, validation, instead):
        super().__init__()
        self.config, self.batches, self.validation, self.instead = config, batches, validation, instead

    def on_epoch_begin(self, epoch, logs=None):
        if not self.batches.skip:  # else the epoch goes on, with the counts of its state
            for count in watched(self.model.optimizer):
                count.assign(0.0)

    def on_epoch_end(self, epoch, logs=None):
        if counts := watched(self.model.optimizer):
            norms, skipped = map(float, counts)
            logs |= {"train_skipped": skipped, "train_grad_norm": norms / self.batches.steps}
        if self.config.diagnostics == "off":
            return
        images, noise = self.validation.images[:WATCHED], keras.random.SeedGenerator(self.config.seed)
        logs["val_bits_per_dim"] = -logs["val_elbo"] / (math.log(2) * math.prod(images.shape[1:]))
        with self.instead():
            means = np.asarray(keras.ops.convert_to_numpy(self.model.embed(images)), "float64")
            logs["val_active_units"] = float(np.sum(means.var(axis=0) > ACTIVE))  # as all that a state has
            if self.config.has("diffusion_steps"):
                terms = self.model.bound_by_time(keras.ops.convert_to_tensor(images), TIMES, noise)
                logs |= dict(zip(BOUND_BY_TIME, map(float, terms), strict=True))


class StopOnNonFinite(keras.callbacks.Callback):
    """Raises RunError at the first step in which a term is NaN or infinite, before any weight is stored.

    At the end of an epoch, so does every other value of the history, as no run resumes from a state with such a value.

    If the loss is scaled (mixed_float16), steps with gradients that are not finite are skipped. That is a failure only
    if the scale becomes smaller than LEAST_SCALE.
    """

    def __init__(self, config, batches):
        super().__init__()
        self.config, self.batches = config, batches

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self._check(logs, "", f"step {self.batches.done(batch)}")

    def on_epoch_end(self, epoch, logs=None):
        self._check(logs, "val_", "validation")
        if path := weights.not_finite(self.model):
            self._stop(f": weight {path} is not finite")
        for name in self.config.columns:
            if not math.isfinite(value := logs.get(name, logs.get(name.removeprefix("train_"), 0.0))):
                self._stop(f": {name} is {value}")
        scale = float(getattr(self.model.optimizer, "dynamic_scale", 1.0))
        if scale < LEAST_SCALE:
            self._stop(f": gradients are not finite even with the loss scaled by {scale:.1g}")

    def _check(self, logs, prefix, where):
        for name, term in FORMULAS.items():
            if not math.isfinite(value := logs.get(prefix + name, 0.0)):
                self._stop(f", {where}: {term} is {value}")

    def _stop(self, what):
        one = self.config
        tried = f"a lower --lr (now {one.lr:g}), a lower --clip_norm (now {one.clip_norm}) or a longer --beta_warmup "
        tried += f"(now {one.beta_warmup}){', or --precision float32' * (one.precision != 'float32')}"
        again = "as this run, if resumed, fails again (--overwrite starts it anew)"
        raise RunError(f"epoch {self.epoch + 1}{what}; try {tried}, {again}")


class RefreshedPrior(keras.callbacks.Callback):
    """Recomputes what a prior derives from the weights, by `refresh`.

    That is before validation or, without it, at the end of an epoch inside of `instead`, by the weights that are kept;
    and where an epoch begins after averages were replaced by raw weights. What training changes inside an epoch is part
    of its state.
    """

    def __init__(self, refresh, batches, has_averages, instead=None):
        super().__init__()
        self.refresh, self.batches, self.has_averages, self.instead = refresh, batches, has_averages, instead

    def on_epoch_begin(self, epoch, logs=None):
        if not self.batches.skip and (self.has_averages or epoch == 0):
            self.refresh()
        if self.batches.exemplars:
            self.batches.exemplars.start_epoch(epoch, keras.ops.convert_to_numpy(self.model.top_prior.means))

    def on_test_begin(self, logs=None):
        self.refresh()

    def on_epoch_end(self, epoch, logs=None):
        if self.instead:
            with self.instead():
                self.refresh()


class EMAWeights(keras.callbacks.Callback):
    """Replaces the weights by their moving average during validation, and inside the block of `instead`.

    Keras' SwapEMAWeights exchanges both by sums and differences, which rounds, and does not project the averages by the
    weights' constraints.
    """

    def on_test_begin(self, logs=None):
        pairs = zip(self.model.trainable_variables, internals.averages(self.model.optimizer), strict=True)
        self.raw = [(weight, keras.ops.convert_to_numpy(weight)) for weight in self.model.trainable_variables]
        for weight, average in pairs:
            # a copy, because on JAX validation donates the memory of the weights, which would also be the average's
            weight.assign(weight.constraint(average) if weight.constraint else keras.ops.copy(average))

    def on_test_end(self, logs=None):
        for weight, value in self.raw:
            weight.assign(value)

    @contextlib.contextmanager
    def instead(self):
        """A context in which the model has the averaged weights."""
        self.on_test_begin()
        try:
            yield
        finally:
            self.on_test_end()
