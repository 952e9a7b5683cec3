"""Estimates of the marginal log-likelihood log p(x) by importance sampling, with their errors."""

import math
import threading
import warnings
from typing import NamedTuple

import keras
import numpy as np
from threadpoolctl import threadpool_limits

from evaluation import STARTS
from evaluation.compiled import NotFiniteError, evenly, padded
from evaluation.proposals import PROPOSALS, Calls
from runtime.threads import number_of_threads, side_by_side

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about packages for data frames that are not installed
    from arviz_stats.base import array_stats

CHUNK_BYTES = 64 * 2**20  # of activations in one compiled call; larger calls leave the caches and gain nothing
XLA_GAINS = 4  # XLA is fastest with calls so many times smaller, whose loops stay in the caches
ONE_THREAD = threadpool_limits.wrap(limits=1, user_api="blas")  # more slow a fit's small matrices down a hundredfold
FEWEST = 200  # samples at once, in all threads, however many bytes that takes: each call has its own cost


class Estimate(NamedTuple):
    """Per-image estimates, each (N,) float64: log p(x) and its standard error in nats, and diagnostics.

    `log_px_se` is the error of `log_px`, by the delta method for Monte-Carlo estimates; `ess` the effective number of
    the `samples`; `khat` the Pareto shape of the largest weights, by PSIS: above 0.7, or less for fewer than 2200
    samples, estimate and error are unreliable (nan where unknown: for fewer than 25 samples or equal weights). `elbo` =
    -`rate` - `distortion` is the mean log-weight of draws of q(z|x). What an estimator does not know is nan.
    """

    log_px: np.ndarray
    log_px_se: np.ndarray
    ess: np.ndarray
    khat: np.ndarray
    samples: np.ndarray
    elbo: np.ndarray
    rate: np.ndarray
    distortion: np.ndarray


class Sums(NamedTuple):
    """What is kept of the samples of B images, arrays of B rows: memory grows with the root of their number.

    `w` and `w2` are sums of the weights relative to the largest so far, exp(log_w - peak), and of their squares;
    `largest` are the largest log_w, -inf where there are fewer. `reconstruction` and `ratio` are sums of log p(x|z) and
    log p(z) - log q(z|x) over `drawn` draws of q(z|x).
    """

    count: np.ndarray
    peak: np.ndarray
    w: np.ndarray
    w2: np.ndarray
    largest: np.ndarray
    drawn: np.ndarray
    reconstruction: np.ndarray
    ratio: np.ndarray

    @classmethod
    def none(cls, batch, most_samples):
        """The sums of no samples of B images, with room for `most_samples` of each."""
        zeros = np.zeros(batch)
        unseen = np.full((batch, _tail(most_samples)), -np.inf)
        return cls(zeros, zeros - np.inf, zeros, zeros, unseen, zeros, zeros, zeros)

    def weighed(self, log_w, counted):
        """These sums with n more log-weights (B, n), of which those in `counted` (B, n), booleans, are added."""
        log_w = np.where(counted, log_w, -np.inf)
        peak = np.maximum(self.peak, log_w.max(axis=1))
        level = np.where(np.isfinite(peak), peak, 0)
        shrink, w = np.exp(np.minimum(self.peak - level, 0)), np.exp(log_w - level[:, None])
        w, w2 = self.w * shrink + w.sum(axis=1), self.w2 * shrink**2 + np.square(w).sum(axis=1)
        both, kept = np.concatenate([self.largest, log_w], axis=1), self.largest.shape[1]
        largest = np.partition(both, -kept, axis=1)[:, -kept:]
        return self._replace(count=self.count + counted.sum(axis=1), peak=peak, w=w, w2=w2, largest=largest)

    def told(self, log_px_z, log_ratio, counted=True):
        """These sums with log p(x|z) and log p(z) - log q(z|x) of n more draws of q(z|x), each (B, n)."""
        drawn = self.drawn + np.broadcast_to(counted, log_ratio.shape).sum(axis=1)
        reconstruction = self.reconstruction + np.where(counted, log_px_z, 0).sum(axis=1)
        ratio = self.ratio + np.where(counted, log_ratio, 0).sum(axis=1)
        return self._replace(drawn=drawn, reconstruction=reconstruction, ratio=ratio)

    def errors(self):
        """The standard error of each log p(x), sd(w) / (sqrt(S) mean(w)) by the delta method: (B,).

        With ESS = (sum w)^2 / sum w^2 it is sqrt((1 / ESS - 1 / S) S / (S - 1)); unknown (nan) for S = 1.
        """
        s = self.count
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(s > 1, np.sqrt(np.maximum(self.w2 / self.w**2 - 1 / s, 0) * np.divide(s, s - 1)), np.nan)

    def estimate(self):
        """The Estimate of these B images, with log p(x) = peak + log(sum w / S)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            log_px, ess = self.peak + np.log(self.w / self.count), np.square(self.w) / self.w2
            rate, distortion = -self.ratio / self.drawn, -self.reconstruction / self.drawn
        khat = np.array([pareto_k(top, int(s)) for top, s in zip(self.largest, self.count, strict=True)])
        return Estimate(log_px, self.errors(), ess, khat, self.count, -rate - distortion, rate, distortion)


def _tail(s):
    """How many of the largest of S log-weights Pareto k-hat needs: its tail has 3 sqrt(S), a fifth of these."""
    return min(s, 15 * math.isqrt(s) + 16)


def pareto_k(largest, count):
    """Pareto k-hat of S = `count` log-weights, given the `_tail(S)` or more largest of them: a float, or nan.

    As in Pareto-smoothed importance sampling (Vehtari et al. 2024), by ArviZ, which fits a tail of 3 sqrt(n / r) of n
    values: given n of the S values, r = n / S makes that 3 sqrt(S).
    """
    values = np.sort(largest[np.isfinite(largest)])[-_tail(count) :]
    tail = min(len(values) // 5, int(3 * math.sqrt(count)))
    if tail < 5 or values[-1] - values[-tail - 1] < 1e-9:
        return math.nan
    with np.errstate(all="ignore"):
        return float(array_stats.psislw(-values, r_eff=len(values) / count)[1])


class ActiveImages(NamedTuple):
    """Images whose samples are being drawn, a row each: their indices, the proposal's arrays, and the Sums."""

    index: np.ndarray
    arrays: list
    sums: Sums

    def rows(self, chosen):
        """The images of these rows."""
        return keras.tree.map_structure(lambda array: array[chosen], self)

    def joined(self, other):
        """These images and others. Without images, there are no arrays to join."""
        if not len(self.index) or not len(other.index):
            return other if not len(self.index) else self
        return keras.tree.map_structure(lambda *both: np.concatenate(both), self, other)


@ONE_THREAD
def importance_sampling(model, images, num_samples, seed=0, progress=lambda done: None, *, target_se=None, **options):
    """log p(x) ~= logsumexp_s [log p(x|z_s) + log p(z_s) - log r(z_s)] - log S over all latents: an `Estimate`.

    (Burda et al. 2016, eq. 8.) The expectation of `log_px` is at most log p(x). images (N, H, W, C); S = `num_samples`
    samples z_s per image from r(z). With `target_se`, each image gets as many samples as this standard error needs, at
    least 200 and at most `num_samples`; stopping there adds a bias, of either sign, that is small against the target.
    `progress` gets the number of images done since its last call. Options: `proposal`, "posterior" for r(z) = q(z|x),
    or "fitted" (default) for a density fitted to p(z|x), from q(z|x) and up to so many other `starts` (see
    proposals.py); `max_bytes` of activations of all threads together, by default CHUNK_BYTES each, on JAX a quarter of
    that. Stochastic, a function of `seed`. Raises NotFiniteError for a log-weight that is NaN.
    """
    parts = np.array_split(np.arange(len(images)), min(number_of_threads(), len(images)))
    sampler = _sampler(model, len(images), num_samples, seed, target_se, len(parts), **options)
    estimate, reporting = Estimate(*np.empty((len(Estimate._fields), len(images)))), threading.Lock()

    def thread(part, stopped):
        for finished in sampler.finished(images, part, target_se):
            for values, those in zip(estimate, finished.sums.estimate(), strict=True):
                values[finished.index] = those
            with reporting:
                progress(len(finished.index))
            if stopped():
                return

    side_by_side(thread, parts)
    return estimate


@ONE_THREAD
def log_weights(model, images, n, seed=0, proposal="fitted", **options):
    """log p(x|z) + log p(z) - log r(z) of n draws from r for each image (N, H, W, C), in nats: float64 (N, n).

    r and the options are those of `importance_sampling`. Stochastic, a function of `seed`. Raises NotFiniteError for a
    log-weight that is NaN.
    """
    sampler = _sampler(model, len(images), n, seed, proposal=proposal, **options)
    log_w = np.empty((len(images), n))
    rows, at_once = sampler.calls.rows, sampler.source.at_once
    for start in range(0, len(images), at_once):
        prepared = sampler.prepared(images, range(start, min(len(images), start + at_once)))
        for first in range(0, len(prepared.index), rows):
            active, parts, count = prepared.rows(slice(first, first + rows)), [], 0
            while count < n:
                parts.append(sum(sampler.terms(active, count)))
                count += parts[-1].shape[1]
            log_w[active.index] = np.concatenate(parts, axis=1)[:, :n]
    return log_w


def _sampler(model, images, samples, seed, target_se=None, threads=1, proposal="fitted", starts=STARTS, max_bytes=None):
    """The Sampler of so many threads, which share `images`, their number, `max_bytes` and FEWEST."""
    images = math.ceil(images / threads)
    usual = CHUNK_BYTES // XLA_GAINS if keras.backend.backend() == "jax" else CHUNK_BYTES
    most = (usual if max_bytes is None else max_bytes // threads) // model.bytes_per_sample  # of all images in a call
    most = max(1 if max_bytes else FEWEST // threads, most)
    n = evenly(samples if target_se is None else min(samples, FEWEST), most)
    calls = Calls(samples, n, evenly(images, most // n), most, images)
    return Sampler(PROPOSALS[proposal](model, calls, starts, seed), calls, seed)


class Sampler(NamedTuple):
    """Draws samples from a proposal, the `source`, in `calls`; several threads may use it.

    What a call draws is a function of `seed`, its first image, and the number of samples that this image had.
    """

    source: object
    calls: Calls
    seed: int

    def finished(self, images, part, target_se):
        """Yields ActiveImages when they have all their samples; `part` are the indices of the images to draw for."""
        loaded, rows, most = 0, self.calls.rows, self.calls.num_samples
        waiting = active = ActiveImages(np.arange(0), [], Sums.none(0, most))
        while loaded < len(part) or len(waiting.index) or len(active.index):
            if not len(waiting.index) and loaded < len(part) and len(active.index) < rows:
                waiting = self.prepared(images, part[loaded : loaded + self.source.at_once])
                loaded += len(waiting.index)
            room = rows - len(active.index)
            active, waiting = active.joined(waiting.rows(slice(room))), waiting.rows(slice(room, None))
            log_px_z, log_ratio = self.terms(active, int(active.sums.count[0]))
            counted = np.arange(log_ratio.shape[1]) < (most - active.sums.count)[:, None]
            sums = active.sums.weighed(log_px_z + log_ratio, counted)
            if self.source.draws_terms:
                sums = sums.told(log_px_z, log_ratio, counted)
            done = sums.count >= most
            if target_se is not None:
                done |= (sums.count >= min(FEWEST, most)) & (sums.errors() <= target_se)
            active = active._replace(sums=sums)
            yield active.rows(done)
            active = active.rows(~done)

    def prepared(self, images, part):
        """Images of consecutive indices as ActiveImages for which nothing is drawn yet."""
        index, sums = np.asarray(part, int), Sums.none(len(part), self.calls.num_samples)
        first = int(index[0])
        seeds = np.random.SeedSequence(self.seed, spawn_key=(0, first))
        arrays, terms = self.source.prepared(images[first : first + len(part)], first, seeds)
        return ActiveImages(index, arrays, sums if terms is None else sums.told(*terms))

    def terms(self, active, count):
        """log p(x|z) and log p(z) - log r(z) from one more call, each (B, m); the first image had `count` samples.

        If there are fewer images than rows in a call, each gets several rows. Raises NotFiniteError where the sum is
        NaN.
        """
        copies = self.calls.rows // len(active.index)
        arrays = [padded(np.repeat(array, copies, axis=0), self.calls.rows) for array in active.arrays]
        seeds = np.random.SeedSequence(self.seed, spawn_key=(1, int(active.index[0]), count))
        rows, drawn = len(active.index) * copies, self.source.drawn(arrays, seeds)
        log_px_z, log_ratio = (part[:rows].reshape(len(active.index), -1) for part in drawn)
        bad = ~(log_px_z + log_ratio < np.inf).all(axis=1)
        if bad.any():
            raise NotFiniteError(int(active.index[bad][0]))
        return log_px_z, log_ratio
