"""Densities in the latent plane, on grids and as contours."""

from typing import NamedTuple

import numpy as np

SHARES = (0.5, 0.8, 0.95)  # of a density's mass, inside its contours
LEAST = np.float32(0.01)  # margin: where points are the same, axes have a width
PERCENT = ", ".join(f"{100 * share:.0f}" for share in SHARES)


class Density(NamedTuple):
    """A log-density in nats on a grid: x (X,), y (Y,) and log_p (Y, X)."""

    x: np.ndarray
    y: np.ndarray
    log_p: np.ndarray

    @property
    def limits(self):
        """The ends of the grid: (2, 2), limits by axes."""
        return np.transpose([self.x[[0, -1]], self.y[[0, -1]]])

    def log_sum(self):
        """log of the integral over the grid."""
        peak, cell = self.log_p.max(), (self.x[1] - self.x[0]) * (self.y[1] - self.y[0])
        return float(peak + np.log(np.exp(self.log_p - peak, dtype="float64").sum() * cell))

    def outside(self, other, share):
        """The share of this density's mass where `other`, on the same grid, is below its level for `share`: a float."""
        p = np.exp(self.log_p - self.log_p.max(), dtype="float64")
        return float(p[other.log_p < mass_levels(other.log_p, (share,))].sum() / p.sum())

    def held(self, share):
        """The points of highest density that hold this share of the mass: (M, 2)."""
        rows, columns = np.nonzero(self.log_p >= mass_levels(self.log_p, (share,)))
        return np.stack([self.x[columns], self.y[rows]], axis=1)


def window(points, margin=0.04):
    """Lower and upper limits of both axes around points (N, 2): (2, 2), limits by axes."""
    low, high = points.min(axis=0), points.max(axis=0)
    pad = np.maximum(margin * (high - low), LEAST)
    return np.stack([low - pad, high + pad])


def mass_levels(log_p, shares=SHARES):
    """The values of log p above which these shares of the mass on the grid lie: (len(shares),), falling."""
    p = np.sort(np.exp(log_p - log_p.max()), axis=None)[::-1]
    reached = np.searchsorted(np.cumsum(p) / p.sum(), shares)
    return log_p.max() + np.log(p[np.minimum(reached, p.size - 1)])


def on_grid(log_p, limits, side):
    """The Density of a function `log_p`, (M, 2) -> (M,), at side x side points within limits (2, 2), by axes."""
    x, y = np.linspace(*limits, side).T
    return Density(x, y, log_p(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)).reshape(side, side))


def shade(axes, density, black=1.6, levels=SHARES):
    """A density in grey, where `black` times its maximum would be black, with contours around shares of its mass."""
    shades = np.exp(density.log_p - density.log_p.max())
    options = {"origin": "lower", "cmap": "Greys", "vmin": 0, "vmax": black, "aspect": "auto"}
    axes.imshow(shades, extent=density.limits.T.ravel(), **options)
    if levels:
        draw_levels(axes, density, levels)


def draw_levels(axes, density, shares, **options):
    """Contours around these shares of a density's mass."""
    levels = np.unique(mass_levels(density.log_p, shares))  # contour needs rising ones
    axes.contour(*density, levels=levels, **{"colors": "black", "linewidths": 0.7, "linestyles": "solid"} | options)
