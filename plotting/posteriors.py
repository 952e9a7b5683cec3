"""p(z|x) of test images on grids in the latent plane, q(z|x), and points that approximate p(z|x)."""

import numpy as np

import models
from plotting import planes
from plotting.view import BATCH, as_numpy, in_batches
from runtime.errors import UserError

POSTERIORS = 6  # images whose p(z|x) is drawn
DRAWS = 2000  # points that approximate it
COARSE, FINEST = 50, 400  # points along each axis: of the grids that search for p(z|x), and of the final one at most
SMOOTH = 100  # points that hold half of the mass on the final grid, at least
NEGLIGIBLE = 10.0  # nats below the highest density, where p(z|x) ends: 4.5 standard deviations of a Gaussian
ZOOMS = 30  # windows that are tried


def draw_posterior(view):
    return planes.image_posteriors([image_posterior(view, index) for index in view.spread(POSTERIORS)])


def image_posterior(view, index):
    """The planes.ImagePosterior of a test image: p(z|x) on a grid, q(z|x), and DRAWS points from each sampler.

    The points are draws of q(z|x), resampled by p(x, z) / q(z|x), and the ends of chains if the objective has any.
    """
    x, noise, log_joint = view.images[index], view.noise(), joint(view, index)
    q = view.model.posterior(x[None])

    def log_q(points):
        return in_batches(lambda z: q.log_prob(z[:, None])[:, 0], points)

    z = as_numpy(q.sample(DRAWS, noise))[:, 0]
    exact = located(log_joint, [view.density.limits, planes.window(z)])
    log_w = log_joint(z) - log_q(z)
    w = np.exp(log_w - log_w.max(), dtype="float64")
    chosen = np.random.default_rng(view.config.seed).choice(DRAWS, DRAWS, p=w / w.sum())
    points = {"q(z|x), resampled": z[chosen]}
    if models.OBJECTIVES[view.config.objective].is_annealed:
        copies = np.repeat(x[None], DRAWS, axis=0)
        points["ends of chains"] = in_batches(lambda part: view.model.objective.draw(view.model, part, noise), copies)
    limits = planes.window(np.concatenate([exact.held(0.995), *np.quantile(z, [[0.005], [0.995]], axis=0)]), 0.08)
    log_px = exact.log_sum()
    return planes.ImagePosterior(
        image=x,
        name=view.class_name(index),
        limits=limits,
        exact=exact,
        fitted=on_grid(log_q, limits, 2 * COARSE),
        points=points,
        log_px=log_px,
        kl=max(0.0, log_px - float(log_w.mean(dtype="float64"))),  # an estimate, which noise may make negative
        ess=float(w.sum() ** 2 / np.square(w).sum()),
    )


def joint(view, index):
    """log p(x, z) of a test image as a function of z, (M, 2) -> (M,), which raises UserError where it is NaN."""
    x = view.images[index]

    def checked(points):
        copies = np.broadcast_to(x, (len(points), *x.shape))
        (values,) = view.compiled_joint.on([copies, points.astype("float32")], BATCH)
        if np.isnan(values).any():
            raise UserError(f"{view.run.path}: log p(x, z) of test image {index} is NaN; the weights are not usable")
        return values

    return checked


def on_grid(log_p, limits, side):
    """The Density of a function `log_p`, (M, 2) -> (M,), at side x side points within limits (2, 2), by axes."""
    x, y = np.linspace(*limits, side).T
    return planes.Density(x, y, log_p(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)).reshape(side, side))


def located(log_p, boxes):
    """The Density of a function `log_p`, (M, 2) -> (M,), unnormalised, around all mass that is not NEGLIGIBLE.

    The search begins on grids over the `boxes`, limits (2, 2) each. The window is fitted again and again to the mass
    inside it, and grows where that touches the rim. The final grid is refined until its sum converges and contours on
    it are smooth.
    """
    grids, limits = [on_grid(log_p, box, COARSE) for box in boxes], np.full((2, 2), np.inf)
    for _ in range(ZOOMS):
        last, limits = limits, counting(grids)
        if np.all(np.abs(limits - last) <= 0.1 * np.ptp(limits, axis=0)):
            break
        grids = [on_grid(log_p, limits, COARSE)]
    density = grids[0]
    while len(density.x) < FINEST:
        coarser, density = density, on_grid(log_p, limits, 2 * len(density.x))
        if abs(density.log_sum() - coarser.log_sum()) < 0.01 and len(density.held(0.5)) >= SMOOTH:
            break
    return density


def counting(grids):
    """The limits (2, 2) of all that is not NEGLIGIBLE on these grids, as of `reach`."""
    peak = max(grid.log_p.max() for grid in grids)
    ends = []
    for grid in grids:
        counts = grid.log_p > peak - NEGLIGIBLE
        if counts.any():
            ends.append(np.transpose([reach(grid.x, counts.any(axis=0)), reach(grid.y, counts.any(axis=1))]))
    return np.stack([np.min(ends, axis=(0, 1)), np.max(ends, axis=(0, 1))])


def reach(values, counts):
    """Limits around the rising values (n,) that count: one point wider or, at the end of the grid, twice its length."""
    first, last = np.flatnonzero(counts)[[0, -1]]
    step, far = values[1] - values[0], 2 * (values[-1] - values[0])  # so that distant mass is reached quickly
    return values[first] - (far if first == 0 else step), values[last] + (far if last == len(values) - 1 else step)
