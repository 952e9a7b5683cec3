"""p(z|x) of test images on grids in the latent plane, q(z|x), and points that approximate p(z|x)."""

import math
import sys
import time
from typing import NamedTuple

import numpy as np

import models
from plotting.planes import PERCENT, SHARES, Density, draw_levels, on_grid, shade, window
from plotting.scores import draw_picture
from plotting.style import PALETTE, decimals, new_figure, style
from plotting.view import BATCH, as_numpy, in_batches
from runtime.errors import UserError
from runtime.progress import Progress
from runtime.text import duration

POSTERIORS = 6  # images whose p(z|x) is drawn
DRAWS = 2000  # points that approximate it
COARSE, FINEST = 50, 400  # points along each axis: of the grids that search for p(z|x), and of the final one at most
WORK = 10**10  # floats of the decoder for one grid, at most: 400 x 400 points with the usual networks for MNIST
AT_ONCE = 1 << 28  # floats of the decoder
SEARCHES = 8  # coarse grids that an image takes, often
LONG = 10  # seconds, from which on it is said beforehand how long it takes
SMOOTH = 100  # points that hold half of the mass on the final grid, at least
NEGLIGIBLE = 10.0  # nats below the highest density, where p(z|x) ends: 4.5 standard deviations of a Gaussian
ZOOMS = 30  # windows that are tried


class Effort(NamedTuple):
    """The number of images, of points along each axis of coarse grids and of the finest, and of points at once."""

    images: int
    coarse: int
    finest: int
    rows: int

    @classmethod
    def of(cls, floats):
        """What a decoder with so many floats for each point can afford."""
        points = WORK // floats
        coarse = COARSE if points > SEARCHES * COARSE**2 else COARSE // 2
        finest = coarse * 2 ** max(0, int(math.log2(min(FINEST, points**0.5) / coarse)))
        return cls(max(1, min(POSTERIORS, points // 5000)), coarse, finest, max(1, min(BATCH, AT_ONCE // floats)))

    def announce(self, view, joint):
        """Says how long the images may take, if that is LONG; takes the time of a batch, after one that compiles."""
        batch = [np.repeat(view.images[:1], self.rows, axis=0), np.zeros((self.rows, 2), "float32")]
        for _ in range(2):
            started = time.perf_counter()
            joint.on(batch, self.rows)
        points = self.images * (DRAWS + SEARCHES * self.coarse**2 + self.finest**2 * 4 / 3)
        if (seconds := points / self.rows * (time.perf_counter() - started)) > LONG:
            said = f"{view.run.path}: p(z|x) of {self.images} images may take {duration(seconds)}"
            print(f"{said}; name other figures with --figures to leave it out", file=sys.stderr)


class ImagePosterior(NamedTuple):
    """p(z|x) of an image in two dimensions, and approximations of it.

    `exact`, the Density of p(x, z), and `fitted`, that of q(z|x); `limits` (2, 2) of the visible window, by axes;
    `points`, a dict of names to (n, 2); KL(q(z|x) || p(z|x)) in nats; the effective sample size of the draws of q(z|x).
    """

    exact: Density
    fitted: Density
    limits: np.ndarray
    points: dict
    kl: float
    ess: float


@style()
def draw_posterior(view):
    from matplotlib.lines import Line2D

    from evaluation.latents import joint_of

    joint, labels = joint_of(view.model), view.split.labels
    cost = 1 if view.config.observation == "bernoulli" else 10  # of a pixel's logistics, of which there may be ten
    effort = Effort.of(view.model.decoder.floats_per_sample * cost)
    chosen = view.spread(effort.images)
    effort._replace(images=len(chosen)).announce(view, joint)
    with Progress(iterable=chosen, unit=" images", desc="p(z|x)", leave=False) as bar:
        rows = [image_posterior(view, index, joint, effort) for index in bar]
    names = ["", "p(z|x)", "q(z|x)", *rows[0].points]
    figure = new_figure(1.75 * len(names) - 0.2, 1.75 * len(rows) + 0.6, layout="constrained")
    ratios = {"width_ratios": [0.7] + [1] * (len(names) - 1)}
    grid = figure.subplots(len(rows), len(names), squeeze=False, gridspec_kw=ratios)
    for index, (picture, *panels), row in zip(chosen, grid, rows, strict=True):
        draw_picture(picture, view.images[index], "" if labels is None else view.class_names[labels[index]])
        draw_image_posterior(panels, row)
        panels[0].set_ylabel(view.latent_names[1])
    for name, top, bottom in zip(names[1:], grid[0, 1:], grid[-1, 1:], strict=True):
        top.set_title(f"{name}\n{top.get_title('left')}")
        bottom.set_xlabel(view.latent_names[0])
    figure.align_ylabels(grid[:, 1])
    legend = {"solid": f"{PERCENT} % of the mass (over points: of p(z|x))", "dashed": "95 % of p(z|x)"}
    lines = [Line2D([], [], color="black", linewidth=0.7, linestyle=dash, label=text) for dash, text in legend.items()]
    figure.legend(handles=lines, loc="outside lower right", ncols=2)
    return figure


def draw_image_posterior(panels, row):
    """Draws one ImagePosterior into a row of axes."""
    from matplotlib.ticker import MaxNLocator

    exact, fitted, *others = panels
    for axes, density, note in ((exact, row.exact, f"log p(x) = {decimals(row.exact.log_sum())}"),
                                (fitted, row.fitted, f"KL(q || p) = {decimals(row.kl)}")):  # fmt: skip
        shade(axes, density)
        axes.set_title(note)
    draw_levels(fitted, row.exact, (SHARES[-1],), linestyles="dashed")
    for axes, points in zip(others, row.points.values(), strict=True):
        axes.plot(*points.T, ".", color=PALETTE[0], markersize=2, alpha=0.3, markeredgewidth=0)
        draw_levels(axes, row.exact, SHARES)
    others[0].set_title(f"ESS {row.ess:.0f} of {DRAWS}")
    for axes in panels:
        axes.set(xlim=row.limits[:, 0], ylim=row.limits[:, 1], box_aspect=1)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(labelleft=axes is exact)


def image_posterior(view, index, joint, effort):
    """The ImagePosterior of a test image at this Effort; `joint` is the evaluation.latents.joint_of the model.

    Its points are draws of q(z|x), resampled by p(x, z) / q(z|x), and the ends of chains if the objective has any.
    """
    x, noise = view.images[index], view.noise()
    q = view.model.posterior(x[None])

    def log_joint(points):
        copies = np.broadcast_to(x, (len(points), *x.shape))
        (values,) = joint.on([copies, points.astype("float32")], effort.rows)
        if np.isnan(values).any():
            raise UserError(f"{view.run.path}: log p(x, z) of test image {index} is NaN; the weights are not usable")
        return values

    def log_q(points):
        return in_batches(lambda z: q.log_prob(z[:, None])[:, 0], points)

    z = as_numpy(q.sample(DRAWS, noise))[:, 0]
    exact = located(log_joint, [view.density.limits, window(z)], effort.coarse, effort.finest)
    log_w = log_joint(z) - log_q(z)
    w = np.exp(log_w - log_w.max(), dtype="float64")
    chosen = np.random.default_rng(view.config.seed).choice(DRAWS, DRAWS, p=w / w.sum())
    points = {"q(z|x), resampled": z[chosen]}
    if models.OBJECTIVES[view.config.objective].is_annealed:
        copies = np.repeat(x[None], DRAWS, axis=0)
        points["ends of chains"] = in_batches(lambda part: view.model.objective.draw(view.model, part, noise), copies)
    limits = window(np.concatenate([exact.held(0.995), *np.quantile(z, [[0.005], [0.995]], axis=0)]), 0.08)
    fitted, ess = on_grid(log_q, limits, 2 * COARSE), float(w.sum() ** 2 / np.square(w).sum())
    kl = max(0.0, exact.log_sum() - float(log_w.mean(dtype="float64")))  # an estimate, which noise may make negative
    return ImagePosterior(exact, fitted, limits, points, kl, ess)


def located(log_p, boxes, coarse=COARSE, finest=FINEST):
    """The Density of a function `log_p`, (M, 2) -> (M,), unnormalised, around all mass that is not NEGLIGIBLE.

    The search begins on grids over the `boxes`, limits (2, 2) each. The window is fitted to the mass inside it until it
    settles; then the grid is refined until its sum converges and contours on it are smooth. `coarse` and `finest` are
    points along each axis, at first and at most.
    """
    grids, limits = [on_grid(log_p, box, coarse) for box in boxes], np.full((2, 2), np.inf)
    for _ in range(ZOOMS):
        last, limits = limits, counting(grids)
        if np.all(np.abs(limits - last) <= 0.1 * np.ptp(limits, axis=0)):
            break
        grids = [on_grid(log_p, limits, coarse)]
    density = grids[0]
    while len(density.x) < finest:
        coarser, density = density, on_grid(log_p, limits, 2 * len(density.x))
        if abs(density.log_sum() - coarser.log_sum()) < 0.01 and len(density.held(0.5)) >= SMOOTH:
            break
    return density


def counting(grids):
    """Limits (2, 2) around all that is not NEGLIGIBLE on these grids: one point wider or, at a rim, much wider."""
    lowest, ends = max(grid.log_p.max() for grid in grids) - NEGLIGIBLE, []
    for x, y, log_p in grids:
        counts = np.argwhere(log_p > lowest)[:, ::-1]  # indices along x and y
        if len(counts):
            values, first, last = np.stack([x, y]), counts.min(axis=0), counts.max(axis=0)
            step, far = values[:, 1] - values[:, 0], 2 * np.ptp(values, axis=1)
            ends.append(values[[0, 1], first] - np.where(first == 0, far, step))
            ends.append(values[[0, 1], last] + np.where(last == len(x) - 1, far, step))
    return np.stack([np.min(ends, axis=0), np.max(ends, axis=0)])
