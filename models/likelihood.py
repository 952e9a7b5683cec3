"""Estimates of the marginal log-likelihood log p(x) by importance sampling, with their errors."""

import math
import warnings
from typing import NamedTuple

import keras
import numpy as np

from .compiled import NotFiniteError, evenly, padded
from .proposals import PROPOSALS

CHUNK_BYTES = 64 * 2**20  # of activations in one compiled call; larger ones leave the caches and gain nothing
FEWEST = 200  # samples in one, however many bytes that takes: each call has its own cost


class Estimate(NamedTuple):
    """Per-image estimates, each (N,) float64, in nats: log p(x), its standard error, and what else the samples tell.

    `log_px_se` is the error of `log_px`, by the delta method where it is Monte Carlo's; `ess` the effective number of
    the `samples` drawn, and `khat` the shape of the weights' largest, by PSIS: above 0.7, or less for
    fewer than 2200 samples, neither estimate nor error can be trusted (nan where it cannot be told, for fewer than 25
    samples or equal weights). `elbo` = -`rate` -
    `distortion` is the mean log-weight of draws of q(z|x). What an estimator does not tell is nan.
    """

    log_px: np.ndarray
    log_px_se: np.ndarray
    ess: np.ndarray
    khat: np.ndarray
    samples: np.ndarray
    elbo: np.ndarray
    rate: np.ndarray
    distortion: np.ndarray


def unknown(n):
    """An Estimate of n images of which nothing is known yet."""
    return Estimate(*(np.full(n, np.nan) for _ in Estimate._fields))


class Sums(NamedTuple):
    """What is kept of the samples of B images, arrays of B rows: the memory grows with the root of their number.

    Weights are relative to the largest so far, w = exp(log_w - peak), and summed, as are their squares; `largest` are
    the largest log_w, -inf where there are fewer. `reconstruction` and `ratio` are sums of log p(x|z) and log p(z) -
    log q(z|x) over `drawn` draws of q(z|x).
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
        """No samples yet, of B images, and at most `most_samples` of each to come."""
        zeros = np.zeros(batch)
        unseen = np.full((batch, _tail(most_samples)), -np.inf)
        return cls(zeros, zeros - np.inf, zeros, zeros, unseen, zeros, zeros, zeros)

    def weighed(self, log_w, counted):
        """With n more log-weights (B, n), those that are `counted` (B, n), booleans."""
        log_w = np.where(counted, log_w, -np.inf)
        peak = np.maximum(self.peak, log_w.max(axis=1))
        level = np.where(np.isfinite(peak), peak, 0)
        shrink, w = np.exp(np.minimum(self.peak - level, 0)), np.exp(log_w - level[:, None])
        kept = self.largest.shape[1]
        both = np.concatenate([self.largest, log_w], axis=1)
        return self._replace(
            count=self.count + counted.sum(axis=1),
            peak=peak,
            w=self.w * shrink + w.sum(axis=1),
            w2=self.w2 * shrink**2 + np.square(w).sum(axis=1),
            largest=np.partition(both, -kept, axis=1)[:, -kept:],
        )

    def told(self, log_px_z, log_ratio, counted=True):
        """With log p(x|z) and log p(z) - log q(z|x) of n more draws of q(z|x), each (B, n)."""
        return self._replace(
            drawn=self.drawn + np.broadcast_to(counted, log_ratio.shape).sum(axis=1),
            reconstruction=self.reconstruction + np.where(counted, log_px_z, 0).sum(axis=1),
            ratio=self.ratio + np.where(counted, log_ratio, 0).sum(axis=1),
        )

    def errors(self):
        """The standard error of each log p(x), sd(w) / (sqrt(S) mean(w)) by the delta method: (B,).

        With ESS = (sum w)^2 / sum w^2 it is sqrt((1 / ESS - 1 / S) S / (S - 1)); unknown (nan) for S = 1.
        """
        s = self.count
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(s > 1, np.sqrt(np.maximum(self.w2 / self.w**2 - 1 / s, 0) * np.divide(s, s - 1)), np.nan)

    def estimate(self):
        """The Estimate of these B images, log p(x) being peak + log(sum w / S)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            log_px, ess = self.peak + np.log(self.w / self.count), np.square(self.w) / self.w2
            rate, distortion = -self.ratio / self.drawn, -self.reconstruction / self.drawn
        khat = np.array([pareto_k(top, int(s)) for top, s in zip(self.largest, self.count, strict=True)])
        return Estimate(log_px, self.errors(), ess, khat, self.count, -rate - distortion, rate, distortion)


def _tail(s):
    """How many of the largest of S log-weights Pareto k-hat needs: its tail is of 3 sqrt(S), and a fifth of these."""
    return min(s, 15 * math.isqrt(s) + 16)


def pareto_k(largest, count):
    """Pareto k-hat of S = `count` log-weights, given those of `_tail(S)` or more that are largest: a float, or nan.

    That of Pareto-smoothed importance sampling (Vehtari et al. 2024), by ArviZ, which fits a tail of 3 sqrt(n / r) of n
    values: with n of S values, r = n / S makes that 3 sqrt(S).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it lacks for data frames
        from arviz_stats.base import array_stats

    values = np.sort(largest[np.isfinite(largest)])[-_tail(count) :]
    tail = min(len(values) // 5, int(3 * math.sqrt(count)))
    if tail < 5 or values[-1] - values[-tail - 1] < 1e-9:
        return math.nan
    with np.errstate(all="ignore"):
        return float(array_stats.psislw(-values, r_eff=len(values) / count)[1])


class Sampled(NamedTuple):
    """Images whose samples are being drawn, arrays of one row each: their index, what the proposal wants, the Sums."""

    index: np.ndarray
    arrays: list
    sums: Sums

    def rows(self, chosen):
        """Those of these rows."""
        return keras.tree.map_structure(lambda array: array[chosen], self)

    def and_also(self, other):
        """These and others; no arrays, and so none of a kind, where there are none."""
        if not len(self.index) or not len(other.index):
            return other if not len(self.index) else self
        return keras.tree.map_structure(lambda *both: np.concatenate(both), self, other)


def importance_sampling(
    model,
    images,
    num_samples,
    seed=0,
    progress=lambda done: None,
    jit="auto",
    *,
    proposal="fitted",
    target_se=None,
    max_bytes=None,
):
    """log p(x) ~= logsumexp_s [log p(x|z_s) + log p(z_s) - log r(z_s)] - log S over all latents: an `Estimate`.

    (Burda et al. 2016, eq. 8.) The expectation of `log_px` is at most log p(x). images (N, H, W, C); S = `num_samples`
    samples z_s an image, r(z) being q(z|x) or, with `proposal` "fitted", a density fitted to p(z|x) (see proposals.py).
    With `target_se`, an image has as many as its standard error needs to come down to that, 200 at least and at most
    `num_samples`; to stop there adds a bias, of either sign, that is small against the target. Memory is bounded: calls
    are of some `max_bytes` of activations, CHUNK_BYTES by default. `progress` is told the number of images done since
    its last call. Stochastic, a function of `seed`. Raises
    NotFiniteError for a log-weight that is NaN.
    """
    n, block, most = _chunk(model, len(images), num_samples, target_se, max_bytes)
    source = PROPOSALS[proposal](model, num_samples, n, block, most, seed, jit)
    estimate = unknown(len(images))
    waiting = active = _prepared(source, images[:0], 0, num_samples)
    loaded = 0
    while loaded < len(images) or len(waiting.index) or len(active.index):
        if not len(waiting.index) and loaded < len(images) and len(active.index) < block:
            waiting = _prepared(source, images[loaded : loaded + source.at_once], loaded, num_samples)
            loaded += len(waiting.index)
        room = block - len(active.index)
        active, waiting = active.and_also(waiting.rows(slice(room))), waiting.rows(slice(room, None))
        active = active._replace(sums=_drawn(source, active, block, num_samples))
        sums = active.sums
        done = sums.count >= num_samples
        if target_se is not None:
            done |= (sums.count >= min(FEWEST, num_samples)) & (sums.errors() <= target_se)
        if done.any():
            finished = active.rows(done)
            for values, those in zip(estimate, finished.sums.estimate(), strict=True):
                values[finished.index] = those
            progress(len(finished.index))
            active = active.rows(~done)
    return estimate


def log_weights(model, images, n, seed=0, proposal="fitted", jit="auto", *, max_bytes=None):
    """log p(x|z) + log p(z) - log r(z) of n draws from r for each image (N, H, W, C), in nats: float64 (N, n).

    r is that of `importance_sampling` with this `proposal`. Stochastic, a function of `seed`. Raises NotFiniteError for
    a log-weight that is NaN.
    """
    each, block, most = _chunk(model, len(images), n, None, max_bytes)
    source = PROPOSALS[proposal](model, n, each, block, most, seed, jit)
    log_w = np.empty((len(images), n))
    for start in range(0, len(images), source.at_once):
        prepared = _prepared(source, images[start : start + source.at_once], start, n)
        for first in range(0, len(prepared.index), block):
            active, parts, count = prepared.rows(slice(first, first + block)), [], 0
            while count < n:
                parts.append(sum(_terms(source, active, block)))
                count += parts[-1].shape[1]
            log_w[active.index] = np.concatenate(parts, axis=1)[:, :n]
    return log_w


def _chunk(model, count, num_samples, target_se, max_bytes):
    """Samples of an image in one call, images in it, and the most samples over all of them."""
    most = (max_bytes or CHUNK_BYTES) // model.bytes_per_sample  # over all its images
    most = max(1 if max_bytes else FEWEST, most)
    wanted = num_samples if target_se is None else min(num_samples, FEWEST)
    n = evenly(wanted, most)
    return n, evenly(count, most // n), most


def _prepared(source, x, first, num_samples):
    """Images, the first of index `first`, as Sampled, of which nothing is drawn yet."""
    index = np.arange(first, first + len(x))
    if not len(x):
        return Sampled(index, [], Sums.none(0, num_samples))
    arrays, terms = source.prepared(x, first)
    sums = Sums.none(len(x), num_samples)
    return Sampled(index, arrays, sums if terms is None else sums.told(*terms))


def _terms(source, active, block):
    """log p(x|z) and log p(z) - log r(z) from one more call, each (B, m). Raises NotFiniteError where their sum is NaN.

    Where there are fewer images than `block`, each has several rows in it.
    """
    copies = block // len(active.index)
    arrays = [padded(np.repeat(array, copies, axis=0), block) for array in active.arrays]
    rows = len(active.index) * copies
    log_px_z, log_ratio = (part[:rows].reshape(len(active.index), -1) for part in source.drawn(arrays))
    bad = ~(log_px_z + log_ratio < np.inf).all(axis=1)
    if bad.any():
        raise NotFiniteError(int(active.index[bad][0]))
    return log_px_z, log_ratio


def _drawn(source, active, block, num_samples):
    """The Sums after one more call."""
    log_px_z, log_ratio = _terms(source, active, block)
    counted = np.arange(log_ratio.shape[1]) < (num_samples - active.sums.count)[:, None]
    sums = active.sums.weighed(log_px_z + log_ratio, counted)
    return sums.told(log_px_z, log_ratio, counted) if source.draws_terms else sums
