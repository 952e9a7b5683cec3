"""Latents in the plane: embeddings, landscapes, densities and posteriors."""

import math
from typing import NamedTuple

import numpy as np

from plotting.scores import draw_picture
from plotting.style import PALETTE, colours, decimals, new_figure, style

THUMBNAILS = 22  # of these side by side are as wide as the axes
SHARES = (0.5, 0.8, 0.95)  # of a density's mass, inside its contours
PERCENT = ", ".join(f"{100 * share:.0f}" for share in SHARES)
PRIOR = f"prior ({PERCENT} %)"  # in legends
ELLIPSE = "#a8123e"  # of posteriors of pseudo-inputs: darker than every colour of the palette


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

    def held(self, share):
        """The points of highest density that hold this share of the mass: (M, 2)."""
        rows, columns = np.nonzero(self.log_p >= mass_levels(self.log_p, (share,)))
        return np.stack([self.x[columns], self.y[rows]], axis=1)


class ImagePosterior(NamedTuple):
    """p(z|x) of an image in two dimensions, and approximations of it.

    `image` (H, W, C) and the `name` of its class; `limits` (2, 2) of the visible window, by axes; `exact`, the Density
    of p(x, z), and `fitted`, that of q(z|x); `points`, a dict of names to (n, 2); log p(x) and KL(q(z|x) || p(z|x)) in
    nats; the effective sample size of the draws of q(z|x).
    """

    image: np.ndarray
    name: str
    limits: np.ndarray
    exact: Density
    fitted: Density
    points: dict
    log_px: float
    kl: float
    ess: float


def window(points, margin=0.04):
    """Lower and upper limits of both axes around points (N, 2): (2, 2), limits by axes."""
    low, high = points.min(axis=0), points.max(axis=0)
    pad = margin * np.maximum(high - low, 1e-6)
    return np.stack([low - pad, high + pad])


def mass_levels(log_p, shares=SHARES):
    """The values of log p above which these shares of the mass on the grid lie: (len(shares),), falling."""
    p = np.sort(np.exp(log_p - log_p.max()), axis=None)[::-1]
    reached = np.searchsorted(np.cumsum(p) / p.sum(), shares)
    return log_p.max() + np.log(p[np.minimum(reached, p.size - 1)])


@style()
def embedding(points, labels, class_names, axis_names, caption="", density=None, components=None):
    """A figure of points in the plane, coloured by class, below contours of the prior and its marked components.

    Args: points (N, 2); labels (N,) integers or None; class_names, one for each label; density, the prior's `Density`,
    whose whole grid is then shown, or None; components (K, 2) or None.
    """
    figure = new_figure(5.6, 5.2)
    axes = figure.add_subplot(xlabel=axis_names[0], ylabel=axis_names[1], title=caption)
    draw_points(axes, points, labels, class_names)
    if density is not None:
        draw_density(axes, density)
    if components is not None and len(components):
        label = f"{len(components)} pseudo-inputs"
        axes.scatter(*components.T, s=28, c="black", marker="+", linewidths=0.9, label=label)
    width, height = np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())
    if 1 / 3 < width / height < 3:  # otherwise equal scales would make it a strip
        axes.set_aspect("equal")
    draw_legend(axes)
    return figure


def draw_points(axes, points, labels, class_names):
    """Points (N, 2) in the colours of their labels (N,) or None, with the names of the classes for the legend.

    They are drawn in a random order, so that no class hides another. Many points become one picture inside an SVG.
    """
    from matplotlib.colors import to_rgba_array

    names = ("test images",) if labels is None else class_names
    palette = to_rgba_array(colours(len(names)))
    classes = labels if labels is not None else np.zeros(len(points), int)
    order = np.random.default_rng(0).permutation(len(points))
    size = float(np.clip(40_000 / len(points), 4, 16))
    options = {"alpha": 0.6, "linewidths": 0, "rasterized": len(points) > 1000}
    axes.scatter(*points[order].T, s=size, c=palette[classes[order]], **options)
    for colour, name in zip(palette, names, strict=True):
        axes.plot([], [], "o", markersize=5, color=colour, label=name)


@style()
def landscape(points, labels, class_names, density, ellipses, thumbnails, caption=""):
    """A figure of the prior's density in the plane, points over it, and images at their latents.

    Args: points (N, 2); labels (N,) integers or None; class_names; density, the prior's `Density`, whose whole grid is
    shown; ellipses, means and standard deviations (K, 2) of posteriors, or None; thumbnails, latents (M, 2) and images
    (M, H, W, C), of which earlier ones win where two would overlap.
    """
    figure = new_figure(7.4, 6.6)
    axes = figure.add_subplot(xlabel="z[0]", ylabel="z[1]", title=caption)
    shade(axes, density, 3.0)  # pale, because points may be grey
    draw_points(axes, points, labels, class_names)
    axes.set(xlim=density.x[[0, -1]], ylim=density.y[[0, -1]])
    axes.plot([], [], color="black", linewidth=0.7, label=PRIOR)
    if ellipses is not None:
        draw_ellipses(axes, *ellipses)
        axes.plot([], [], color=ELLIPSE, label=f"{len(ellipses[0])} pseudo-inputs:\nposteriors, 1 sd")
    draw_thumbnails(axes, *thumbnails)
    draw_legend(axes)
    return figure


def draw_ellipses(axes, means, deviations):
    """An ellipse of one standard deviation around each mean (K, 2)."""
    from matplotlib.collections import EllipseCollection

    sizes = 2 * deviations.T
    options = {"units": "xy", "offset_transform": axes.transData, "facecolors": "none", "edgecolors": ELLIPSE}
    options |= {"linewidths": 0.7, "alpha": 1.0} if len(means) <= 100 else {"linewidths": 0.5, "alpha": 0.6}
    axes.add_collection(EllipseCollection(*sizes, np.zeros(len(means)), offsets=means, **options))


def draw_thumbnails(axes, places, images):
    """Images (M, H, W, C) at their places (M, 2), without those that would overlap an earlier one."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    extent = axes.get_window_extent()
    tall = extent.width / extent.height * images.shape[1] / images.shape[2]  # so that a pixel is square
    box, kept = np.array([right - left, (top - bottom) * tall]) / THUMBNAILS, []
    for place, image in zip(places, images, strict=True):
        inside = (place - box / 2 > (left, bottom)).all() and (place + box / 2 < (right, top)).all()
        if inside and all((np.abs(place - other) > 1.15 * box).any() for other in kept):
            kept.append(place)
            (x, y), (width, height) = place - box / 2, box
            axes.imshow(image, extent=(x, x + width, y, y + height), vmin=0, vmax=1, aspect="auto", zorder=3)
    axes.set(xlim=(left, right), ylim=(bottom, top))


def draw_density(axes, density):
    """Contours around SHARES of the prior's mass, with their entry in the legend and the limits of the axes."""
    draw_levels(axes, density, SHARES, linewidths=0.8)
    axes.plot([], [], color="black", linewidth=0.8, label=PRIOR)
    axes.set(xlim=density.x[[0, -1]], ylim=density.y[[0, -1]])


def draw_legend(axes):
    """A legend right of the axes, in several columns if it is long."""
    columns = 1 + len(axes.get_legend_handles_labels()[0]) // 26
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), ncols=columns)


@style()
def posteriors(density, fitted, log_px):
    """A figure of a two-dimensional posterior and of draws of its approximations, with a contour around 95 % of it.

    Args: density, the unnormalised posterior; fitted, a (name, z (n, 2), bound in nats) for each approximation;
    log_px, what these bound.
    """
    columns = math.ceil((1 + len(fitted)) / 2)
    figure = new_figure(2.4 * columns, 5.4, layout="constrained")
    limits = {"xlim": density.x[[0, -1]], "ylim": density.y[[0, -1]], "aspect": "equal"}
    axes, *others = figure.subplots(2, columns, sharex=True, sharey=True).ravel()
    axes.imshow(np.exp(density.log_p), extent=(*limits["xlim"], *limits["ylim"]), origin="lower", cmap="Greys")
    axes.set(title=f"p(z|x)\nlog p(x) = {log_px:.2f}", **limits)
    for axes, (name, z, bound) in zip(others, fitted, strict=False):
        axes.plot(*z.T, ".", color=PALETTE[0], markersize=2, alpha=0.4, markeredgewidth=0)
        draw_levels(axes, density, (0.95,))
        axes.set(title=f"{name}\nbound {bound:.2f}", **limits)
    for axes in others[len(fitted) :]:
        axes.remove()
    figure.supxlabel("z[0]")
    figure.supylabel("z[1]")
    return figure


@style()
def image_posteriors(rows):
    """A figure with a row for each ImagePosterior: the image, then p(z|x), q(z|x) and points in the same window."""
    from matplotlib.lines import Line2D

    names = ["", "p(z|x)", "q(z|x)", *rows[0].points]
    figure = new_figure(1.75 * len(names) - 0.2, 1.75 * len(rows) + 0.6, layout="constrained")
    ratios = {"width_ratios": [0.7] + [1] * (len(names) - 1)}
    grid = figure.subplots(len(rows), len(names), squeeze=False, gridspec_kw=ratios)
    for panels, row in zip(grid, rows, strict=True):
        draw_image_posterior(panels, row)
    for name, top, bottom in zip(names[1:], grid[0, 1:], grid[-1, 1:], strict=True):
        top.set_title(f"{name}\n{top.get_title('left')}")
        bottom.set_xlabel("z[0]")
    figure.align_ylabels(grid[:, 1])
    labels = {"solid": f"{PERCENT} % of the mass (over points: of p(z|x))", "dashed": "95 % of p(z|x)"}
    lines = [Line2D([], [], color="black", linewidth=0.7, linestyle=dash, label=text) for dash, text in labels.items()]
    figure.legend(handles=lines, loc="outside lower right", ncols=2)
    return figure


def draw_image_posterior(panels, row):
    """Draws one ImagePosterior into a row of axes."""
    from matplotlib.ticker import MaxNLocator

    picture, exact, fitted, *others = panels
    draw_picture(picture, row.image, row.name)
    for axes, density, note in ((exact, row.exact, f"log p(x) = {decimals(row.log_px)}"),
                                (fitted, row.fitted, f"KL(q || p) = {decimals(row.kl)}")):  # fmt: skip
        shade(axes, density)
        axes.set_title(note)
    draw_levels(fitted, row.exact, (SHARES[-1],), linestyles="dashed")
    for axes, points in zip(others, row.points.values(), strict=True):
        axes.plot(*points.T, ".", color=PALETTE[0], markersize=2, alpha=0.3, markeredgewidth=0)
        draw_levels(axes, row.exact, SHARES)
    others[0].set_title(f"ESS {row.ess:.0f} of {len(next(iter(row.points.values())))}")
    for axes in panels[1:]:
        axes.set(xlim=row.limits[:, 0], ylim=row.limits[:, 1], box_aspect=1)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(labelleft=axes is exact)
    exact.set_ylabel("z[1]")


def shade(axes, density, black=1.6):
    """A density in grey, where `black` times its maximum would be black, with contours around SHARES of its mass."""
    (left, bottom), (right, top) = density.limits
    shades = np.exp(density.log_p - density.log_p.max())
    options = {"origin": "lower", "cmap": "Greys", "vmin": 0, "vmax": black, "aspect": "auto"}
    axes.imshow(shades, extent=(left, right, bottom, top), **options)
    draw_levels(axes, density, SHARES)


def draw_levels(axes, density, shares, **options):
    """Contours around these shares of a density's mass."""
    levels = np.unique(mass_levels(density.log_p, shares))  # contour needs rising ones
    axes.contour(*density, levels=levels, **{"colors": "black", "linewidths": 0.7, "linestyles": "solid"} | options)
