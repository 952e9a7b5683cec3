"""LatentModel: each model defines q(z|x), p(z) and p(x|z); everything that follows from the three is derived here."""

import abc
import contextlib

import keras
import numpy as np
from keras import ops

from .objectives import Terms
from .pixels import binarize


def generator(seed=None):
    """A SeedGenerator: `seed` itself if it is one, else a new one from that integer, or a random one for None."""
    return seed if isinstance(seed, keras.random.SeedGenerator) else keras.random.SeedGenerator(seed)


def without_padding(x):
    """The images of a batch: `x` (B, H, W, C) itself, or the first B of (numbers (B,), images (N, H, W, C)).

    Keras' DataParallel needs an N that its devices divide, so the images behind the first B are padding.
    """
    if not isinstance(x, tuple):
        return x
    numbers, images = x
    images = images[: numbers.shape[0]]
    return keras.distribution.distribute_tensor(images, keras.distribution.distribution().get_data_layout(images.shape))


class LatentModel(keras.Model, abc.ABC):
    """A latent-variable model, given by `posterior(x)`, `prior()` and `likelihood(z)`.

    A subclass also sets `top_prior`, the layer whose `distribution()` is p(z) of the top latent, and `decoder`, the
    network below p(x|z); each tells how many `floats_per_sample` it computes for one z; and `sizes`, the latent
    dimensions of each layer, the top one first. `layers` are names of these, if their rates are to be logged. Images x
    are (B, H, W, C) in [0, 1]. It is trained by an `objective` (see objectives.py). With `dynamic`, training batches
    are grey and are binarized afresh in each step. `beta` weighs the rate in the training loss; it is 1 wherever a
    bound is reported.
    """

    image_shape = None  # (H, W, C), which `models.build` sets

    def __init__(self, objective, dynamic, seed, layers=()):
        super().__init__(dtype=keras.backend.floatx())  # of images and densities, whatever that of hidden layers is
        self.objective, self.dynamic = objective, dynamic
        self.train_noise = keras.random.SeedGenerator(seed)
        self.test_noise = keras.random.SeedGenerator(seed)  # its own, else training would depend on validation
        self.beta = self.add_weight(shape=(), initializer="ones", trainable=False, name="beta")
        self.layer_rates = [f"rate_{name}" for name in layers]
        logged = ("elbo", "rate", "distortion", *self.layer_rates, *objective.logged)
        self.trackers = {name: keras.metrics.Mean(name=name) for name in logged}

    @abc.abstractmethod
    def posterior(self, x):
        """q(z|x) for images (B, H, W, C): a distribution with batch (B,) and event (D,)."""

    def checked(self, x):
        """Images `x`, an array or a tensor. Raises ValueError for an array that holds none; tensors are taken as is."""
        x = x if hasattr(x, "dtype") else np.asarray(x)
        if isinstance(x, np.ndarray) and self.image_shape:
            fits = x.dtype.kind == "f" and x.shape[1:] == self.image_shape and len(x) > 0
            if not (fits and x.min() >= 0 and x.max() <= 1):
                values = f" from {x.min():g} to {x.max():g}" if x.dtype.kind in "biuf" and x.size else ""
                said = f"images must be floats (B, {', '.join(map(str, self.image_shape))}) from 0 to 1, not {x.dtype} "
                raise ValueError(f"{said}{x.shape}{values}; x[None] adds an axis, x / 255 scales bytes")
            x = x.astype(self.dtype)
        return x

    @abc.abstractmethod
    def prior(self, top=None):
        """p(z): a distribution with event (D,). `top`: the value of `top_prior.distribution()`, if it is at hand."""

    def likelihood(self, z, training=False):
        """p(x|z) for latents (..., D), event (H, W, C); `training` matters to networks that normalise batches."""
        return self.decoder(z, training=training)

    @property
    def bytes_per_sample(self):
        """Bytes of activations that one z costs in `terms`, roughly; estimators choose their chunks by it."""
        return 4 * (self.decoder.floats_per_sample + self.top_prior.floats_per_sample)

    def terms(self, x, n, seed, prior=None, training=False):
        """`Terms` of n samples from q(z|x): each (n, B). `prior`: the value of `prior()`, if at hand. Stochastic."""
        z, log_qz_x = self.posterior(x).sample_and_log_prob(n, seed)  # (n, B, D), (n, B)
        prior = self.prior() if prior is None else prior
        return Terms(self.likelihood(z, training).log_prob(x), prior.log_prob(z), log_qz_x)

    def expected_terms(self, x, n, seed, training=False):
        """`Terms` whose log-weights have the same mean as those of `terms`, with smaller variance in some models.

        They may be used for the ELBO, but for no other bound. Stochastic.
        """
        return self.terms(x, n, seed, training=training)

    def rates(self, x, n, seed, prior=None):
        """log q(z_l|.) - log p(z_l|.) in nats of n draws for each image, or their expectations, the top layer first.

        For images (B, H, W, C), shape (n, B, L); the mean over draws is the rate of each layer. `prior`: the value of
        `prior()`, if at hand. Stochastic.
        """
        if self.layer_rates:
            return ops.stack(self.expected_terms(x, n, seed).rates, axis=-1)
        posterior, prior = self.posterior(x), self.prior() if prior is None else prior
        z = posterior.sample(n, seed)
        log_q, log_p = posterior.log_prob_of_layers(z), prior.log_prob_of_layers(z)
        return ops.stack([q - p for q, p in zip(log_q, log_p, strict=True)], axis=-1)

    def decode(self, z, seed=None, progress=lambda done: None):
        """Images of latents (..., D): means of p(x|z), or draws where means are not known: (..., H, W, C).

        Draws use `seed` (see `generator`) and cost H W passes; `progress` is called after each of them.
        """
        distribution = self.likelihood(z)
        if hasattr(distribution, "mean"):
            return distribution.mean
        return distribution.sample(1, generator(seed), progress)[0]

    def sample(self, n, seed=None, progress=lambda done: None):
        """n images as of `decode`, z drawn from this model's prior: (n, H, W, C). Stochastic, by a seed likewise."""
        noise = generator(seed)  # one for both, else z and the pixels would be made of the same numbers
        return self.decode(self.prior().sample(n, noise), noise, progress)

    def embed(self, x):
        """Posterior means of images (B, H, W, C): (B, D)."""
        return self.posterior(x).at_mean().mean

    def reconstruct(self, x, seed=None, progress=lambda done: None):
        """Images as of `decode` at the posterior means: (B, H, W, C)."""
        return self.decode(self.embed(x), seed, progress)

    def call(self, x, training=False):
        """The objective's `Outcome` for images, which may have padding, grey ones binarized in training. Stochastic.

        `x` may be a dict of `images`, and what the prior takes for a step, as `ExemplarPrior.step` does.
        """
        more = {name: without_padding(value) for name, value in x.items()} if isinstance(x, dict) else {}
        x = more.pop("images") if more else without_padding(x)
        if not training:
            return self.objective.outcome(self, x, self.test_noise, 1.0, False)
        x = binarize(x, self.train_noise) if self.dynamic else x
        step = getattr(self.top_prior, "step", None)
        with step(self.train_noise, **more) if step else contextlib.nullcontext():
            return self.objective.outcome(self, x, self.train_noise, self.beta, True)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss, log_prior = ops.mean(y_pred.loss), getattr(self.top_prior, "log_prior", None)
        if log_prior is None or not training:
            return loss
        return loss - log_prior() / ops.cast(ops.size(y_pred.loss), loss.dtype)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Means over the images of the epoch, in nats: elbo, rate (log q(z|x) - log p(z)), distortion (-log p(x|z)).

        The `bound` and what else the objective logs follow, where it is not the ELBO.
        """
        terms = y_pred.terms
        values = {"elbo": terms.log_w(), "rate": terms.log_qz_x - terms.log_pz, "distortion": -terms.log_px_z}
        values |= dict(zip(self.layer_rates, terms.rates, strict=True))
        values = {name: ops.mean(value, axis=0) for name, value in values.items()}
        values |= {"bound": y_pred.bound} | y_pred.logs
        for name, tracker in self.trackers.items():
            tracker.update_state(values[name])  # a vector of B, so that a short last batch weighs less
        return self.get_metrics_result()
