"""Where p(z|x) may have modes that q(z|x) does not show: points from which further fits start."""

import math

import numpy as np
from keras import ops

from evaluation.compiled import Points, evenly
from models.base import generator

POOL = 2000  # draws of p(z) at most, each decoded once for all images
POOL_BYTES = 2**28  # of activations behind them, roughly
CHUNK = 200  # of these draws at once
CLIMBS = 3  # for each mode that is wanted
STEPS = 30  # of a climb
PACE = 0.5, 0.05  # sizes of its first and its last step, in standard deviations of the first fit
MOMENTUM, SECOND = 0.8, 0.9  # Adam's decay rates: there are few steps
PROBES, REACH = 4, 0.3  # directions in which curvatures are estimated, and how far, in the same units
FLATTEST = 0.05  # of these curvatures
HOPELESS = 12.0, 0.25  # nats, and nats per dimension, by which the share of a mode in p(x) may seem smaller


def is_outside(e):
    """Which points e (..., D), in standard deviations of a Gaussian, lie outside of it: |e|^2 > D + 6 sqrt(2 D)."""
    dim = e.shape[-1]
    return np.square(e).sum(axis=-1) > dim + 6 * math.sqrt(2 * dim)


class ModeSearch:
    """Looks for up to `modes` modes of each p(z|x) outside of a Gaussian that was fitted to it.

    Draws of p(z) are decoded once for all images. For each image, those with the highest p(x|z) that lie outside
    of the Gaussian, and of one another, climb towards a maximum of log p(x, z) by steps of Adam (Kingma & Ba 2015).
    What ends outside of the Gaussian may be a mode, unless its share in p(x), by Laplace's approximation with the
    curvatures of its axes alone, is hopelessly small.
    """

    def __init__(self, model, modes, count, seed, gradients):
        self.modes, self.gradients = modes, gradients
        count = min(POOL, count, max(CHUNK, POOL_BYTES // model.bytes_per_sample))
        chunks = math.ceil(count / CHUNK)
        self.z = ops.convert_to_numpy(model.prior().sample(math.ceil(count / chunks) * chunks, generator(seed)))
        points = Points(model, top_of=gradients)
        self.likelihoods = [points.likelihood(part) for part in np.split(self.z, chunks)]

    def found(self, x, fits, at_once, most, rng):
        """Which images, (M,), and points z (M, D) from which fits of further modes may start. Stochastic.

        For images (B, H, W, C) with a fit each, `at_once` of them at most, in calls of at most `most` gradients.
        """
        image = ops.convert_to_tensor(x)
        parts = [ops.convert_to_numpy(likelihood.log_prob_of_each(image)) for likelihood in self.likelihoods]
        whitening, log_px_z = np.linalg.inv(fits.scale), np.concatenate(parts, axis=1)  # (B, P)
        z = np.stack([self._starts(*one) for one in zip(log_px_z, fits.mean, whitening, strict=True)])  # (B, J, D)
        z, log_share, curvatures = self._climbed(x, z, fits.scale, evenly(at_once, most // (3 * z.shape[1])), rng)
        e = (z - fits.mean[:, None]) @ whitening.swapaxes(1, 2)
        kept = is_outside(e) & (log_share > fits.elbo[:, None] - HOPELESS[0] - HOPELESS[1] * z.shape[-1])
        for image, order in enumerate(np.argsort(-np.where(kept, log_share, -np.inf), axis=1)):
            chosen = _apart(e[image], order[kept[image][order]], self.modes, curvatures[image])
            kept[image] = np.isin(np.arange(z.shape[1]), chosen)
        return np.nonzero(kept)[0], z[kept]

    def _starts(self, log_px_z, mean, whitening):
        """The points from which the climbs of one image start: (J, D)."""
        e = (self.z - mean) @ whitening.T
        best = np.argsort(-np.where(is_outside(e), log_px_z, log_px_z.min() - 1))
        return self.z[np.resize(_apart(e, best, CLIMBS * self.modes), CLIMBS * self.modes)]

    def _climbed(self, x, z, scale, rows, rng):
        """The points (B, J, D) after their climbs, log p(x, z) near them + D / 2 log 2 pi - sum log(curvatures) / 2,
        (B, J), and these curvatures of -log p(x, z) along the axes of scale^-1 z, (B, J, D). Stochastic.
        """
        first = second = 0.0
        for step in range(STEPS):
            g = self._gradients(x, z, scale, rows)[1]
            first, second = MOMENTUM * first + (1 - MOMENTUM) * g, SECOND * second + (1 - SECOND) * g**2
            ratio = first / (1 - MOMENTUM ** (step + 1)) / np.sqrt(second / (1 - SECOND ** (step + 1)) + 1e-12)
            pace = PACE[0] * (PACE[1] / PACE[0]) ** (step / (STEPS - 1))
            z = z + pace * ratio @ scale.swapaxes(1, 2)
        curvatures, log_joint = 0.0, -np.inf
        for _ in range(PROBES):
            v = rng.choice([-1.0, 1.0], size=z.shape)
            ends = [self._gradients(x, z + sign * REACH * v @ scale.swapaxes(1, 2), scale, rows) for sign in (1, -1)]
            curvatures = curvatures - v * (ends[0][1] - ends[1][1]) / (2 * REACH * PROBES)
            log_joint = np.maximum(log_joint, np.maximum(ends[0][0], ends[1][0]))
        curvatures = np.maximum(curvatures, FLATTEST)
        volume = np.linalg.slogdet(scale)[1][:, None] - 0.5 * np.log(curvatures).sum(axis=-1)
        return z, log_joint + z.shape[-1] / 2 * math.log(2 * math.pi) + volume, curvatures

    def _gradients(self, x, z, scale, rows):
        """log p(x, z), -inf where it is NaN, and its gradients with respect to scale^-1 z, 0 where they are."""
        log_joint, g = self.gradients.on([x, z.astype("float32")], rows)
        return np.nan_to_num(log_joint, nan=-np.inf), np.nan_to_num(g @ scale, posinf=0, neginf=0)


def _apart(e, order, most, precisions=None):
    """The first of `order`, indices of points e (P, D), that lie outside of the Gaussians around those before, which
    have these precisions (P, D), 1 by default.
    """
    chosen = []
    while len(order) and len(chosen) < most:
        one = order[0]
        chosen.append(one)
        off = e[order] - e[one]
        order = order[is_outside(off if precisions is None else off * np.sqrt(precisions[one]))]
    return chosen
