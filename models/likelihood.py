"""Estimators of the marginal log-likelihood log p(x), with their errors."""

import math
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

CHUNK_BYTES = 64 * 2**20  # of activations in one compiled call; larger ones leave the caches and gain nothing
FEWEST = 200  # samples in one, however many bytes that takes: each call has its own cost


class Estimate(NamedTuple):
    """Per-image estimates, each (N,) float64, in nats: log p(x), its standard error, and what else the samples tell.

    `log_px_se` is the Monte-Carlo error of `log_px` by the delta method; `ess` the effective number of samples;
    `elbo` = -`rate` - `distortion` the mean log-weight.
    """

    log_px: np.ndarray
    log_px_se: np.ndarray
    ess: np.ndarray
    elbo: np.ndarray
    rate: np.ndarray
    distortion: np.ndarray


class LogWeights(keras.Model):
    """One compiled call: images (B, H, W, C) to (log p(x|z), log p(z) - log q(z|x)) of n samples, each (B, n).

    The value of the model's top prior is computed once, here: K pseudo-inputs are not encoded again for each chunk.
    """

    def __init__(self, model, n, seed, jit="auto"):
        super().__init__()
        self.model, self.n = model, n
        self.noise = keras.random.SeedGenerator(seed)
        value = model.top_prior.distribution()
        self.prior = keras.tree.map_structure(self._constant, value)
        self.built = True
        self.compile(jit_compile=jit)

    def _constant(self, tensor):
        if not keras.ops.is_tensor(tensor) and not isinstance(tensor, np.ndarray):  # a flow's functions
            return tensor
        variable = self.add_weight(shape=tuple(tensor.shape), initializer="zeros", trainable=False)
        variable.assign(ops.copy(tensor))  # JAX would share the buffer of a weight, which it gives away twice in a call
        return variable

    def call(self, x):
        """log p(x|z) and log p(z) - log q(z|x), each (B, n), image first as `predict_on_batch` wants it. Stochastic."""
        top = keras.tree.map_structure(
            lambda value: ops.convert_to_tensor(value) if isinstance(value, keras.Variable) else value, self.prior
        )
        terms = self.model.terms(x, self.n, self.noise, self.model.prior(top))
        return ops.transpose(terms.log_px_z), ops.transpose(terms.log_pz - terms.log_qz_x)


class Sums:
    """Running sums over the samples of B images; the memory does not grow with their number.

    Weights are kept relative to the largest so far: w = exp(log_w - peak).
    """

    def __init__(self, batch):
        self.count = 0
        self.peak = np.full(batch, -np.inf)
        self.w, self.w2, self.reconstruction, self.ratio = (np.zeros(batch) for _ in range(4))

    def add(self, log_px_z, log_ratio):
        """Takes in log p(x|z) and log p(z) - log q(z|x) of n more samples, each (B, n)."""
        log_w = log_px_z + log_ratio
        peak = np.maximum(self.peak, log_w.max(axis=1))
        shrink, w = np.exp(self.peak - peak), np.exp(log_w - peak[:, None])
        self.w = self.w * shrink + w.sum(axis=1)
        self.w2 = self.w2 * shrink**2 + np.square(w).sum(axis=1)
        self.peak = peak
        self.reconstruction += log_px_z.sum(axis=1)
        self.ratio += log_ratio.sum(axis=1)
        self.count += log_w.shape[1]

    def estimate(self):
        """The Estimate of these B images.

        log p(x) = peak + log(sum w / S). With ESS = (sum w)^2 / sum w^2, the delta method's standard error
        sd(w) / (sqrt(S) mean(w)) is sqrt((1 / ESS - 1 / S) S / (S - 1)); it is unknown (nan) for S = 1.
        """
        s = self.count
        log_px = self.peak + np.log(self.w / s)
        ess = np.square(self.w) / self.w2
        with np.errstate(invalid="ignore", divide="ignore"):
            se = np.sqrt(np.maximum(1 / ess - 1 / s, 0) * np.divide(s, s - 1)) if s > 1 else np.full_like(ess, np.nan)
        rate, distortion = -self.ratio / s, -self.reconstruction / s
        return Estimate(log_px, se, ess, -rate - distortion, rate, distortion)


def importance_sampling(model, images, num_samples, seed=0, progress=lambda done: None, jit="auto"):
    """log p(x) ~= logsumexp_s [log p(x|z_s) + log p(z_s) - log q(z_s|x)] - log S over all latents: an `Estimate`.

    (Burda et al. 2016, eq. 8.) The expectation of `log_px` is at most log p(x). images (N, H, W, C); exactly S =
    `num_samples` samples z_s ~ q(z|x) an image, in chunks of bounded memory. `progress` is told the number of
    images done since its last call. Stochastic, a function of `seed`.
    """
    most = max(FEWEST, CHUNK_BYTES // model.bytes_per_sample)  # samples in a chunk, over all its images
    chunks = math.ceil(num_samples / most)
    n = math.ceil(num_samples / chunks)
    blocks = math.ceil(len(images) / max(1, most // n))
    block = math.ceil(len(images) / blocks)
    log_weights = LogWeights(model, n, seed, jit)
    estimates = []
    for start in range(0, len(images), block):
        x = images[start : start + block]
        padded = np.concatenate([x, np.repeat(x[-1:], block - len(x), axis=0)])  # one shape, one compilation
        sums = Sums(len(x))
        for done in range(0, num_samples, n):
            wanted = min(n, num_samples - done)
            parts = log_weights.predict_on_batch(padded)
            sums.add(*(np.asarray(part, "float64")[: len(x), :wanted] for part in parts))
        estimates.append(sums.estimate())
        progress(len(x))
    return Estimate(*(np.concatenate(parts) for parts in zip(*estimates, strict=True)))
