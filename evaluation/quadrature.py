"""log p(x) by integration over a grid of latents, for models with one or two latent dimensions."""

import itertools
from typing import NamedTuple

import numpy as np
from keras import ops

from evaluation.compiled import Compiled, NotFiniteError, Points, evenly, padded
from evaluation.importance import CHUNK_BYTES, Estimate
from evaluation.proposals import MOMENTS, initial_draws
from models.base import generator

MOST_DIMENSIONS = 2
CELLS = 4096  # of the first grid
DRAWS = 4000  # of p(z), which the first grid must cover
REACH = 6.0  # standard deviations around each q(z|x)'s mean, which the first grid must cover
NEGLIGIBLE = -18.0  # log of a cell's share of p(x), below which it is not divided further
COARSEST = 2.0  # largest width of a cell, in standard deviations of q(z|x), with which an image may be done
RESOLVED = 2.8  # to the power of D: effective cells of p(z|x) of an image that is done, as at 1.25 standard deviations
WIDENINGS = 12  # of the first grid, each by half of its width
MOST_POINTS = 2**22
LOWEST = -1e30  # of a log relative to which others are summed


class NotResolvedError(ValueError):
    """The grid would have to be too large or too fine to cover and resolve all of p(z|x)."""


class Cells(NamedTuple):
    """Cells of a grid: `index`, integers (M, D); each cell is `width` (D,) wide, and cell 0 begins at `low` (D,)."""

    index: np.ndarray
    low: np.ndarray
    width: np.ndarray

    @classmethod
    def over(cls, low, high):
        """All cells of the first grid over the box from `low` to `high`."""
        side = round(CELLS ** (1 / len(low)))
        index = np.array(list(itertools.product(range(side), repeat=len(low))))
        return cls(index, low, (high - low) / side)

    @property
    def centres(self):
        """Their midpoints: (M, D)."""
        return self.low + (self.index + 0.5) * self.width

    @property
    def log_size(self):
        """The log of the volume of a cell."""
        return float(np.log(self.width).sum())

    def divided(self, chosen):
        """The chosen cells, each divided in halves in each direction."""
        corners = np.array(list(itertools.product(range(2), repeat=len(self.low))))
        index = (2 * self.index[chosen][:, None] + corners).reshape(-1, len(self.low))
        return Cells(index, self.low, self.width / 2)

    def holding(self, z):
        """Which cells contain one of the points z (N, D): booleans (M,)."""
        return self._among(np.floor((z - self.low) / self.width).astype("int64"))

    def beside(self, chosen):
        """Which cells are among the chosen ones (M,), or touch one of them: booleans (M,)."""
        around = np.array(list(itertools.product((-1, 0, 1), repeat=len(self.low))))
        return self._among((self.index[chosen][:, None] + around).reshape(-1, len(self.low)))

    def _among(self, index):
        own, wanted = (part @ (2**30) ** np.arange(part.shape[1]) for part in (self.index, index))  # one number each
        return np.isin(own, wanted)


def quadrature(model, images, tolerance=0.01, progress=lambda done: None, seed=0, max_bytes=None):
    """log p(x) = log sum_g p(x|z_g) p(z_g) |cell g|, by the midpoint rule: an `Estimate`.

    The first grid covers draws of p(z) and all q(z|x), and is widened until no cell at its border counts. Then each
    cell that counts for an image that is not done is divided in all directions, until log p(x) of the image changes by
    at most `tolerance` and the cells resolve q(z|x) and what they show of p(z|x). `log_px_se` estimates the error: the
    last change, or a third of the one before if that is larger. Where the integrand is smooth, halving the width
    divides the error by four or far more (for a Gaussian it is some 2 exp(-2 pi^2 (sd / width)^2)), so both are more
    than the error; a few images can be off by more. Points are decoded once for all images (N, H, W, C); `samples` is
    their number. `elbo`, `rate` and `distortion` are of draws of q(z|x). `seed` decides where the grid begins. Raises
    NotResolvedError, and NotFiniteError for a NaN.
    """
    grid = Integrand(model, images, max_bytes)
    means, sds, cells, log_px = _first_grid(model, grid, images, seed)
    n = len(images)
    active, left, points = np.arange(n), np.full(n, -np.inf), len(cells.index)
    moved, before = np.full((2, n), np.inf)
    while len(active):
        _, _, rest, counts = grid.shares(cells, active, log_px[active], means)
        left[active] = np.logaddexp(left[active], rest)
        cells = cells.divided(cells.beside(counts))  # midpoints miss a p(z|x) much narrower than a cell
        points += len(cells.index)
        if points > MOST_POINTS:
            text = f"log p(x) of {len(active)} of {n} images is not resolved by {MOST_POINTS:,} points"
            text += f"; it still changes by up to {moved[active].max():.2g} nats" if np.isfinite(moved).any() else ""
            raise NotResolvedError(text)
        total, squares, _, _ = grid.shares(cells, active, log_px[active], means)
        new = np.logaddexp(left[active], total)
        change = np.abs(new - log_px[active])
        moved[active], before[active], log_px[active] = np.maximum(change, before[active] / 3), change, new
        spread = np.exp(2 * total - squares)  # the effective number of cells, (sum p)^2 / sum p^2
        done = (moved[active] <= tolerance) & (spread >= RESOLVED ** means.shape[1])
        done &= (cells.width <= COARSEST * sds[active]).all(axis=1)
        progress(int(done.sum()))
        active = active[~done]
    rows = evenly(n, grid.most // (MOMENTS * model.bytes_per_sample))
    draws = Compiled(model, initial_draws, grid.points).on([images], rows, np.random.SeedSequence(seed))
    distortion, rate = (-values.mean(axis=1) for values in draws[:2])
    nothing, samples = np.full(n, np.nan), np.full(n, float(points))
    return Estimate(log_px, moved, nothing, nothing, samples, -rate - distortion, rate, distortion)


def _first_grid(model, grid, images, seed):
    """Means and standard deviations of q(z|x) (N, D), the first cells, and log p(x) as summed over them, (N,)."""
    means, sds = Compiled(model, posteriors, grid.points).on([images], min(500, len(images)))
    NotFiniteError.check(0, means, sds)
    drawn = np.asarray(ops.convert_to_numpy(model.prior().sample(DRAWS, generator(seed))), "float64")
    ends = np.concatenate([drawn, means - REACH * sds, means + REACH * sds])
    low, high = ends.min(axis=0), ends.max(axis=0)
    for _ in range(WIDENINGS):
        cells, everyone = Cells.over(low, high), np.arange(len(images))
        log_px, *_ = grid.shares(cells, everyone, np.zeros(len(images)), means)
        *_, counts = grid.shares(cells, everyone, log_px, means)
        side = cells.index.max()
        at_low, at_high = ((cells.index[counts] == end).any(axis=0) for end in (0, side))
        if not (at_low.any() or at_high.any()):
            return means, sds, cells, log_px
        low, high = low - at_low * (high - low) / 2, high + at_high * (high - low) / 2
    raise NotResolvedError(f"p(z|x) reaches beyond z = {low.round(1)} to {high.round(1)}")


def posteriors(compiled, x):
    """From images (B, H, W, C) to means and standard deviations of q(z|x), (B, D); lower layers at the upper mean."""
    centre = compiled.model.posterior(x).at_mean()
    return centre.mean, ops.exp(0.5 * centre.logvar)


class Integrand:
    """p(x|z) p(z) of images at the points of a grid, in calls of bounded memory."""

    def __init__(self, model, images, max_bytes):
        self.x, self.points, self.prior = ops.convert_to_tensor(images), Points(model), model.prior()
        self.most = max_bytes or CHUNK_BYTES
        self.rows = max(1, min(self.most // model.bytes_per_sample, self.most // (12 * len(images))))

    def shares(self, cells, active, reference, means):
        """Logs of sums over cells, (N,) each: of p = p(x, z) |cell|, of p^2, and of p of the cells that do not count;
        and which cells count, (M,). `reference` is about log p(x) of the N `active` images.

        A cell counts if its share for some image is not negligible, or if it contains the mean of some q(z|x).
        """
        x = self.x if len(active) == len(self.x) else ops.take(self.x, active, axis=0)
        known, counts = ops.convert_to_tensor(reference[:, None], "float32"), cells.holding(means[active])
        total, squares, rest = np.full((3, len(active)), -np.inf)
        for start in range(0, len(cells.index), self.rows):
            part = counts[start : start + self.rows]  # a view
            z = padded(cells.centres[start : start + self.rows], self.rows).astype("float32")
            log_pz = self.prior.log_prob(ops.convert_to_tensor(z)) + cells.log_size
            log_p = self.points.likelihood(z).log_prob_of_each(x) + log_pz  # (N, M)
            part |= ops.convert_to_numpy(ops.max(log_p - known, axis=0))[: len(part)] > NEGLIGIBLE
            sums = _log_sums(log_p, part)
            total, squares, rest = (np.logaddexp(*pair) for pair in zip((total, squares, rest), sums, strict=True))
        if not (total < np.inf).all():
            raise NotFiniteError(int(active[~(total < np.inf)][0]))
        return total, squares, rest, counts


def _log_sums(log_p, counts):
    """Logs of the sums of p, of p^2, and of p over cells that do not count, with one exponential for all: each (N,).

    The sums are over the first cells of log_p (N, M), as many as `counts` has entries; the rest is padding.
    """
    peak = ops.maximum(ops.max(log_p, axis=1, keepdims=True), LOWEST)  # so that -inf alone sums to 0, not NaN
    w = ops.exp(log_p - peak)
    summed = np.zeros((log_p.shape[1], 2), "float32")
    summed[: len(counts), 0], summed[: len(counts), 1] = 1, ~counts
    of_all, rest = ops.convert_to_numpy(ops.matmul(w, summed)).astype("float64").T
    squares = ops.convert_to_numpy(ops.matmul(ops.square(w), summed[:, 0])).astype("float64")
    level = ops.convert_to_numpy(peak)[:, 0].astype("float64")
    with np.errstate(divide="ignore"):
        return level + np.log(of_all), 2 * level + np.log(squares), level + np.log(rest)
