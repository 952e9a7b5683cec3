"""LatentModel: q(z|x), p(z) and p(x|z) are written by each model; what follows from the three is derived here."""

import abc
from typing import NamedTuple

import keras
from keras import ops

from . import objectives
from .distributions import binarize


class Terms(NamedTuple):
    """Log-densities of n samples z ~ q(z|x) for each of B images, in nats: each (n, B)."""

    log_px_z: object
    log_pz: object
    log_qz_x: object

    def log_w(self, beta=1.0):
        """Log-weights log p(x|z) + beta (log p(z) - log q(z|x)): (n, B)."""
        return self.log_px_z + beta * (self.log_pz - self.log_qz_x)


class LatentModel(keras.Model, abc.ABC):
    """A latent-variable model, given by `posterior(x)`, `prior()` and `likelihood(z)`.

    A subclass also sets `top_prior`, the layer whose `distribution()` is p(z) of the top latent, and `decoder`, the
    network below p(x|z); each tells how many `floats_per_sample` it computes for one z. Images x are (B, H, W, C) in
    [0, 1]. With `dynamic`, training batches are grey and are binarized afresh in each step. `beta` weighs the rate
    in the training loss; it is 1 wherever a bound is reported.
    """

    def __init__(self, dynamic, seed):
        super().__init__()
        self.dynamic = dynamic
        self.train_noise = keras.random.SeedGenerator(seed)
        self.test_noise = keras.random.SeedGenerator(seed)  # its own, else training would depend on validation
        self.beta = self.add_weight(shape=(), initializer="ones", trainable=False, name="beta")
        self.trackers = [keras.metrics.Mean(name=name) for name in ("elbo", "rate", "distortion")]

    @abc.abstractmethod
    def posterior(self, x):
        """q(z|x) for images (B, H, W, C): a distribution with batch (B,) and event (D,)."""

    @abc.abstractmethod
    def prior(self, top=None):
        """p(z): a distribution with event (D,). `top`: the value of `top_prior.distribution()`, if it is at hand."""

    @abc.abstractmethod
    def likelihood(self, z):
        """p(x|z) for latents (..., D): a distribution with event (H, W, C)."""

    @property
    def bytes_per_sample(self):
        """Bytes of activations that one z costs in `terms`, roughly; estimators choose their chunks by it."""
        return 4 * (self.decoder.floats_per_sample + self.top_prior.floats_per_sample)

    def terms(self, x, n, seed, prior=None):
        """`Terms` of n samples from q(z|x): each (n, B). `prior`: the value of `prior()`, if at hand. Stochastic."""
        z, log_qz_x = self.posterior(x).sample_and_log_prob(n, seed)  # (n, B, D), (n, B)
        prior = self.prior() if prior is None else prior
        return Terms(self.likelihood(z).log_prob(x), prior.log_prob(z), log_qz_x)

    def log_joint(self, x, z):
        """log p(x, z) in nats for x (B, H, W, C) and z (..., B, D): (..., B)."""
        return self.likelihood(z).log_prob(x) + self.prior().log_prob(z)

    def decode(self, z, seed=None, progress=lambda done: None):
        """Images of latents (..., D) to look at: means of p(x|z), or draws where they are not known: (..., H, W, C).

        Draws are stochastic, by an integer seed or anew, and cost H W passes, each of which `progress` is told of.
        """
        return self.likelihood(z).picture(keras.random.SeedGenerator(seed), progress)

    def sample(self, n, seed=None, progress=lambda done: None):
        """n images as of `decode`, z drawn from this model's prior by an integer seed or anew: (n, H, W, C)."""
        return self.decode(self.prior().sample(n, keras.random.SeedGenerator(seed)), seed, progress)

    def embed(self, x):
        """Posterior means of images (B, H, W, C): (B, D)."""
        return self.posterior(x).at_mean().mean

    def reconstruct(self, x, seed=None, progress=lambda done: None):
        """Images as of `decode` at the posterior means: (B, H, W, C)."""
        return self.decode(self.embed(x), seed, progress)

    def call(self, x, training=False):
        """`Terms` with one sample for each image, (1, B): what training and validation are made of. Stochastic."""
        if training and self.dynamic:
            x = binarize(x, self.train_noise)
        return self.terms(x, 1, self.train_noise if training else self.test_noise)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The negative ELBO in nats, the mean over the batch; the rate is weighed by `beta` in training only."""
        return -ops.mean(objectives.elbo(y_pred.log_w(self.beta if training else 1.0)))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Means over the images of the epoch, in nats: elbo, rate (log q(z|x) - log p(z)), distortion (-log p(x|z))."""
        values = (y_pred.log_w(), y_pred.log_qz_x - y_pred.log_pz, -y_pred.log_px_z)
        for tracker, value in zip(self.trackers, values, strict=True):
            tracker.update_state(ops.mean(value, axis=0))  # a vector of B, so that a short last batch weighs less
        return self.get_metrics_result()
