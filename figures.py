"""Figures from arrays: sheets of images, embeddings and curves in one style. Knows no run and no Keras.

matplotlib is imported when a figure is drawn, and never pyplot: no display is needed and no figure is kept.
"""

import contextlib
import io
import math
import os
from typing import NamedTuple

import numpy as np

from errors import UserError

DPI = 150
FORMATS = ("png", "svg")
SHEET_PIXELS = (1200, 1800)  # how wide and high a sheet of images may grow when its pixels are enlarged
GAP, BREAK = 2, 12  # pixels between images, and between groups of them
TILE_TEXT = 7.5  # points of the words under an image
WRITTEN = round(1.5 * TILE_TEXT * DPI / 72)  # pixels of a break that has such words in it
THUMBNAILS = 22  # as many would lie beside one another along an axis
SHARES = (0.5, 0.8, 0.95)  # of a density's mass, inside its contours
PALETTE = (  # seaborn's "colorblind", ten colours, the pale ones last
    "#0173b2",
    "#de8f05",
    "#029e73",
    "#d55e00",
    "#cc78bc",
    "#ca9161",
    "#56b4e9",
    "#949494",
    "#fbafe4",
    "#ece133",
)
ELLIPSE = "#a8123e"  # of pseudo-inputs' posteriors: darker than every colour of the palette
STYLE = {
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "figure.dpi": DPI,
    "font.size": 9,
    "image.cmap": "gray",
    "image.interpolation": "none",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "savefig.bbox": "tight",
    "savefig.dpi": DPI,
    "savefig.pad_inches": 0.06,
    "svg.hashsalt": "vampvae",  # else the names of its parts are chance
    "text.parse_math": False,  # folders and classes may have any name
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


class Density(NamedTuple):
    """A log-density in nats on a grid: x (X,), y (Y,) and log_p (Y, X)."""

    x: np.ndarray
    y: np.ndarray
    log_p: np.ndarray

    @property
    def limits(self):
        """Where the grid begins and ends: (2, 2), limits by axes."""
        return np.transpose([self.x[[0, -1]], self.y[[0, -1]]])

    def log_sum(self):
        """log of the integral over the grid."""
        peak, cell = self.log_p.max(), (self.x[1] - self.x[0]) * (self.y[1] - self.y[0])
        return float(peak + np.log(np.exp(self.log_p - peak, dtype="float64").sum() * cell))

    def held(self, share):
        """The points of the grid with the highest density, which hold this share of its mass: (M, 2)."""
        rows, columns = np.nonzero(self.log_p >= mass_levels(self.log_p, (share,)))
        return np.stack([self.x[columns], self.y[rows]], axis=1)


class ImagePosterior(NamedTuple):
    """p(z|x) of an image in two dimensions, and what stands for it.

    image (H, W, C) and the `name` of its class; `limits` (2, 2) of the window to be shown, by axes; `exact`, the
    Density of p(x, z), and `fitted`, that of q(z|x); `points`, by name (n, 2); log p(x), KL(q(z|x) || p(z|x)) and the
    effective number of the draws of q(z|x).
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


@contextlib.contextmanager
def style():
    """The one style of all figures, whatever the user's matplotlibrc says; a context and a decorator.

    Raises UserError where matplotlib is told to use a backend that there is not, though none is used here.
    """
    try:
        import matplotlib
    except ValueError as error:
        told = os.environ.get("MPLBACKEND")
        raise UserError(
            f"matplotlib cannot be imported with MPLBACKEND={told}; unset it, no display is used"
        ) from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def new_figure(width, height, **options):
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure((width, height), **options)


@style()
def rendered(figure, kind="png"):
    """The figure as the bytes of a file of this kind, one of FORMATS: PNG at 150 dpi, or SVG, the same every time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------- sheets of images


def in_rows(images, columns):
    """Images (N, H, W, C) in rows of `columns`, NaN where the last row is not full: (rows, columns, H, W, C)."""
    missing = -len(images) % columns
    padded = np.concatenate([images, np.full((missing, *images.shape[1:]), np.nan, images.dtype)])
    return padded.reshape(-1, columns, *images.shape[1:])


def alternating(upper, lower):
    """Rows of one grid above the same rows of another: twice (R, columns, H, W, C) -> (2 R, columns, H, W, C)."""
    return np.stack([upper, lower], axis=1).reshape(-1, *upper.shape[1:])


def starts(count, size, breaks=(), room=BREAK):
    """First pixel of each of `count` tiles of `size` pixels, (count,), and the length of all of them together.

    Tiles lie GAP pixels apart; before those whose index is in `breaks`, `room` pixels.
    """
    gaps = [0, *(room if index in breaks else GAP for index in range(1, count))]
    first = np.cumsum(gaps) + size * np.arange(count)
    return first, int(first[-1]) + size


def tiled(grid, row_breaks=(), column_breaks=(), room=BREAK):
    """One picture of a grid of images, white between them and where pixels are NaN.

    Args: grid (R, columns, H, W, C) in [0, 1]; room, pixels at each of row_breaks. Returns the picture (h, w, C) and
    the first pixels of rows and columns.
    """
    rows, columns, height, width, channels = grid.shape
    top, h = starts(rows, height, row_breaks, room)
    left, w = starts(columns, width, column_breaks)
    picture = np.ones((h, w, channels), np.float32)
    for row, y in enumerate(top):
        for column, x in enumerate(left):
            picture[y : y + height, x : x + width] = grid[row, column]
    return np.nan_to_num(picture, nan=1.0), top, left


def enlarged(grid):
    """The grid with every pixel repeated k times along both axes, k as large as SHEET_PIXELS allow and at least 1."""
    rows, columns, height, width, _ = grid.shape
    factor = max(1, min(SHEET_PIXELS[0] // (columns * width), SHEET_PIXELS[1] // (rows * height)))
    return grid.repeat(factor, axis=2).repeat(factor, axis=3)


@style()
def sheet(grid, caption="", row_breaks=(), column_breaks=(), room=BREAK):
    """A figure of a grid of images (R, columns, H, W, C) in [0, 1], NaN left white.

    One drawn array, whose pixels are whole pixels of the PNG, `room` of them at each of `row_breaks`. Its axes are
    bare; see `name_rows`, `name_columns` and `name_tiles`.
    """
    big = enlarged(grid)
    picture, top, left = tiled(big, row_breaks, column_breaks, room)
    h, w, channels = picture.shape
    figure = new_figure(w / DPI, h / DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(picture[..., 0] if channels == 1 else picture, vmin=0, vmax=1, extent=(0, w, h, 0), aspect="auto")
    axes.spines[:].set_visible(False)
    axes.set_xticks(left + big.shape[3] / 2, [""] * len(left))
    axes.set_yticks(top + big.shape[2] / 2, [""] * len(top))
    axes.tick_params(length=0)
    axes.set_title(caption)
    return figure


@style()
def name_rows(figure, names, label=""):
    """Writes names beside the rows of a sheet: one a row, or one for each group of equally many rows."""
    axes = figure.axes[0]
    places = axes.get_yticks().reshape(len(names), -1).mean(axis=1)
    axes.set_yticks(places, names)
    axes.set_ylabel(label)


@style()
def name_columns(figure, names, label=""):
    """Writes names below the columns of a sheet: one a column, or one for each group of equally many columns."""
    axes = figure.axes[0]
    axes.set_xticks(axes.get_xticks().reshape(len(names), -1).mean(axis=1), names)
    axes.set_xlabel(label)


@style()
def name_tiles(figure, names):
    """Writes names (groups, columns) under the last tile of each column in each group of equally many rows."""
    axes = figure.axes[0]
    rows, columns = axes.get_yticks(), axes.get_xticks()
    per_group, half = len(rows) // len(names), rows[0]  # the first row's middle is half a tile from the rim
    for middle, words in zip(rows[per_group - 1 :: per_group], names, strict=True):
        for x, word in zip(columns, words, strict=True):
            place = {"textcoords": "offset points", "ha": "center", "va": "top"}
            axes.annotate(word, (x, middle + half), (0, -1), annotation_clip=False, fontsize=TILE_TEXT, **place)


def every_other(values):
    """Words for rising values, for every other one that is: as many decimals as tell the values apart, 0 to 6."""
    span = max(values[-1] - values[0], 1e-12)
    digits = int(np.clip(2 - np.floor(np.log10(span)), 0, 6))
    return [decimals(value, digits) if index % 2 else "" for index, value in enumerate(values)]


# ---------------------------------------------------------------------------------------------- embeddings


def colours(count):
    """As many colours: the palette, or evenly from a colour map where that has too few."""
    import matplotlib

    if count <= len(PALETTE):
        return PALETTE[:count]
    return tuple(matplotlib.colormaps["turbo"](np.linspace(0.03, 0.97, count)))


def window(points, margin=0.04):
    """Lower and upper limits of both axes around points (N, 2): (2, 2), limits by axes."""
    low, high = points.min(axis=0), points.max(axis=0)
    pad = margin * np.maximum(high - low, 1e-6)
    return np.stack([low - pad, high + pad])


def mass_levels(log_p, shares=SHARES):
    """The values of log p whose upper level sets hold these shares of the mass on the grid: (len(shares),), falling."""
    p = np.sort(np.exp(log_p - log_p.max()), axis=None)[::-1]
    reached = np.searchsorted(np.cumsum(p) / p.sum(), shares)
    return log_p.max() + np.log(p[np.minimum(reached, p.size - 1)])


@style()
def embedding(points, labels, class_names, axis_names, caption="", density=None, components=None):
    """A figure of points in the plane, coloured by class, under contours of the prior and its marked components.

    Args: points (N, 2); labels (N,) integers or None; class_names, one for each label; density the prior's `Density`,
    whose grid is then shown whole, or None; components (K, 2) or None. The points are drawn in a random order, so that
    no class lies on top of another.
    """
    figure = new_figure(5.6, 5.2)
    axes = figure.add_subplot(xlabel=axis_names[0], ylabel=axis_names[1], title=caption)
    names = class_names if labels is not None else ("test images",)
    palette = draw_points(axes, points, labels, len(names))
    if density is not None:
        draw_density(axes, density)
    if components is not None and len(components):
        label = f"{len(components)} pseudo-inputs"
        axes.scatter(*components.T, s=28, c="black", marker="+", linewidths=0.9, label=label)
    width, height = np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())
    if 1 / 3 < width / height < 3:  # beyond that, true to scale would be a strip
        axes.set_aspect("equal")
    draw_legend(axes, palette, names)
    return figure


def draw_points(axes, points, labels, count):
    """Points (N, 2) in a random order, in the colours of their labels (N,), or None, of `count` classes; these colours.

    Many are drawn as one picture in an SVG, too, where each would be an element.
    """
    from matplotlib.colors import to_rgba_array

    palette = to_rgba_array(colours(count))
    classes = labels if labels is not None else np.zeros(len(points), int)
    order = np.random.default_rng(0).permutation(len(points))
    size = float(np.clip(40_000 / len(points), 4, 16))
    options = {"alpha": 0.6, "linewidths": 0, "rasterized": len(points) > 1000}
    axes.scatter(*points[order].T, s=size, c=palette[classes[order]], **options)
    return palette


@style()
def landscape(points, labels, class_names, density, ellipses, thumbnails, caption=""):
    """A figure of the prior's density in the plane, the points over it, and pictures at the places that they stand for.

    Args: points (N, 2); labels (N,) integers or None; class_names; density the prior's `Density`, which is shown
    whole; ellipses, means and standard deviations (K, 2) each, of as many posteriors, or None; thumbnails, places
    (M, 2) and images (M, H, W, C), the first ones first where they would lie upon one another.
    """
    figure = new_figure(7.4, 6.6)
    axes = figure.add_subplot(xlabel="z[0]", ylabel="z[1]", title=caption)
    shade(axes, density, 3.0)  # pale, as the points are grey, too
    names = class_names if labels is not None else ("test images",)
    palette = draw_points(axes, points, labels, len(names))
    axes.set(xlim=density.x[[0, -1]], ylim=density.y[[0, -1]])
    shares = ", ".join(f"{100 * share:.0f}" for share in SHARES)
    axes.plot([], [], color="black", linewidth=0.7, label=f"prior ({shares} %)")
    if ellipses is not None:
        draw_ellipses(axes, *ellipses)
        label = f"{len(ellipses[0])} pseudo-inputs:\nposteriors, 1 sd"
        axes.plot([], [], color=ELLIPSE, label=label)
    draw_thumbnails(axes, *thumbnails)
    draw_legend(axes, palette, names)
    return figure


def draw_ellipses(axes, means, deviations):
    """An ellipse of one standard deviation around each mean (K, 2)."""
    from matplotlib.collections import EllipseCollection

    sizes = 2 * deviations.T
    options = {"units": "xy", "offset_transform": axes.transData, "facecolors": "none", "edgecolors": ELLIPSE}
    options |= {"linewidths": 0.7, "alpha": 1.0} if len(means) <= 100 else {"linewidths": 0.5, "alpha": 0.6}
    axes.add_collection(EllipseCollection(*sizes, np.zeros(len(means)), offsets=means, **options))


def draw_thumbnails(axes, places, images):
    """Images (M, H, W, C) at their places (M, 2), as far as they do not lie upon those before them."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    extent = axes.get_window_extent()
    tall = extent.width / extent.height * images.shape[1] / images.shape[2]  # so that a pixel is square
    box, kept = np.array([right - left, (top - bottom) * tall]) / THUMBNAILS, []
    for place, image in zip(places, images, strict=True):
        inside = (place - box / 2 > (left, bottom)).all() and (place + box / 2 < (right, top)).all()
        if inside and all((np.abs(place - other) > 1.15 * box).any() for other in kept):
            kept.append(place)
            (x, y), (width, height) = place - box / 2, box
            picture = image[..., 0] if image.shape[-1] == 1 else image
            axes.imshow(picture, extent=(x, x + width, y, y + height), vmin=0, vmax=1, aspect="auto", zorder=3)
    axes.set(xlim=(left, right), ylim=(bottom, top))


def draw_density(axes, density):
    """Contours around SHARES of the prior's mass, their entry in the legend, and the limits of the axes."""
    levels = np.unique(mass_levels(density.log_p))  # contour wants them rising
    axes.contour(*density, levels=levels, colors="black", linewidths=0.8, linestyles="solid")
    shares = ", ".join(f"{100 * share:.0f}" for share in SHARES)
    axes.plot([], [], color="black", linewidth=0.8, label=f"prior ({shares} %)")
    axes.set(xlim=density.x[[0, -1]], ylim=density.y[[0, -1]])


def draw_legend(axes, palette, names):
    """A legend right of the axes: the names of the classes, then what has a label already."""
    others = axes.get_legend_handles_labels()[0]
    dots = [axes.plot([], [], "o", markersize=5, color=c, label=n)[0] for c, n in zip(palette, names, strict=True)]
    columns = 1 + (len(dots) + len(others)) // 26
    axes.legend(handles=dots + others, loc="upper left", bbox_to_anchor=(1, 1), ncols=columns)


@style()
def posteriors(density, fitted, log_px):
    """A figure of a two-dimensional posterior and, beside it, of draws of what was fitted to it, around 95 % of it.

    Args: density, the unnormalised posterior; fitted, (name, z (n, 2), bound in nats) of each; log_px, what it bounds.
    """
    columns = math.ceil((1 + len(fitted)) / 2)
    figure = new_figure(2.4 * columns, 5.4, layout="constrained")
    limits = {"xlim": density.x[[0, -1]], "ylim": density.y[[0, -1]], "aspect": "equal"}
    axes, *others = figure.subplots(2, columns, sharex=True, sharey=True).ravel()
    axes.imshow(np.exp(density.log_p), extent=(*limits["xlim"], *limits["ylim"]), origin="lower", cmap="Greys")
    axes.set(title=f"p(z|x)\nlog p(x) = {log_px:.2f}", **limits)
    line = {"colors": "black", "linewidths": 0.7, "linestyles": "solid"}
    for axes, (name, z, bound) in zip(others, fitted, strict=False):
        axes.plot(*z.T, ".", color=PALETTE[0], markersize=2, alpha=0.4, markeredgewidth=0)
        axes.contour(*density, levels=mass_levels(density.log_p, (0.95,)), **line)
        axes.set(title=f"{name}\nbound {bound:.2f}", **limits)
    for axes in others[len(fitted) :]:
        axes.remove()
    figure.supxlabel("z[0]")
    figure.supylabel("z[1]")
    return figure


@style()
def image_posteriors(rows):
    """A figure with a row for each ImagePosterior: the image, p(z|x), q(z|x), and points, all over the same plane."""
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
    shares = ", ".join(f"{100 * share:.0f}" for share in SHARES)
    labels = {"solid": f"{shares} % of the mass (over points: of p(z|x))", "dashed": "95 % of p(z|x)"}
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


def draw_picture(axes, image, name=""):
    """An image (H, W, C) in bare axes, its name below."""
    axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[], xlabel=name)
    axes.spines[:].set_visible(False)


def shade(axes, density, black=1.6):
    """A density in grey, so many times its highest value being black, with contours around SHARES of its mass."""
    (left, bottom), (right, top) = density.limits
    shades = np.exp(density.log_p - density.log_p.max())
    axes.imshow(
        shades, extent=(left, right, bottom, top), origin="lower", cmap="Greys", vmin=0, vmax=black, aspect="auto"
    )
    draw_levels(axes, density, SHARES)


def draw_levels(axes, density, shares, linestyles="solid"):
    """Contours around these shares of a density's mass."""
    levels = np.unique(mass_levels(density.log_p, shares))  # contour wants them rising
    axes.contour(*density, levels=levels, colors="black", linewidths=0.7, linestyles=linestyles)


# ---------------------------------------------------------------------------------------------- likelihoods


@style()
def likelihoods(log_px, labels, class_names, ends, source, note=""):
    """A figure of how log p(x) is spread: a histogram, a box for each class, and beside them images at both ends.

    Args: log_px (N,) in nats; labels (N,) integers or None; class_names, one for each label; ends, of each end's name
    images (k, H, W, C) and their log p(x) (k,); source, the name of the estimates.
    """
    present = [] if labels is None else np.unique(labels)
    figure = new_figure(9, 3.4 + 0.2 * len(present), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    rows = left.subplots(1 + bool(len(present)), 1, sharex=True, squeeze=False, height_ratios=heights(present))[:, 0]
    bins = min(60, len(np.histogram_bin_edges(log_px, "auto")) - 1)  # far outliers would make it thousands
    rows[0].hist(log_px, bins, color=PALETTE[0], edgecolor="white", linewidth=0.4)
    error = f" ± {np.std(log_px, ddof=1) / math.sqrt(len(log_px)):.2f}" if len(log_px) > 1 else ""
    title = f"mean {decimals(log_px.mean())}{error} ({source})"
    rows[0].set(ylabel="test images", title=f"{title}\n{note}" if note else title)
    if len(present):
        draw_boxes(rows[1], [log_px[labels == label] for label in present], [class_names[label] for label in present])
    for axes in rows:
        axes.axvline(log_px.mean(), color="black", linewidth=0.8, linestyle=":")
    rows[-1].set_xlabel("log p(x) (nats)")
    draw_ends(right, {f"{name}, log p(x) in nats": end for name, end in ends.items()}, decimals)
    return figure


def heights(present):
    """Relative heights of the histogram and, where there are classes, of their boxes."""
    return (2.6, 0.3 + 0.2 * len(present)) if len(present) else (1,)


def draw_boxes(axes, groups, names):
    """A box from quartile to quartile for each group of values, whiskers to 5 and 95 %, and dots beyond."""
    dots = {"marker": ".", "markersize": 3, "markerfacecolor": PALETTE[0], "markeredgewidth": 0}
    box, median = {"facecolor": "#cfe3ef", "linewidth": 0.7}, {"color": "black", "linewidth": 1.1}
    options = {"flierprops": dots, "boxprops": box, "medianprops": median, "whiskerprops": {"linewidth": 0.7}}
    options |= {"whis": (5, 95), "widths": 0.6, "patch_artist": True, "showcaps": False}
    axes.boxplot(groups, orientation="horizontal", **options)
    axes.set_yticks(range(1, len(names) + 1), names)
    axes.invert_yaxis()


def draw_ends(figure, ends, words):
    """Rows of images in an otherwise empty figure, the name of each row above and values under the images.

    Args: ends, of each row's name images (k, H, W, C) and values (k,); words, a function of a value to its text.
    """
    most = max(len(images) for images, _ in ends.values())
    grid = figure.subplots(len(ends), max(1, most), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for panels, (name, (images, values)) in zip(grid, ends.items(), strict=True):
        panels[0].set_title(" ")  # room for the text, which goes over several panels and must widen none
        place = {"xy": (0, 1), "xytext": (0, 5), "xycoords": "axes fraction", "textcoords": "offset points"}
        panels[0].annotate(name, **place).set_in_layout(False)
        for axes, image, value in zip(panels, images, values, strict=False):
            axes.set_axis_on()
            draw_picture(axes, image, words(value))


@style()
def use(shares, inputs, pictures, caption=""):
    """A figure of how much of the images each pseudo-input stands for, and which of them most and least do.

    Args: shares (K,), falling, whose sum is 1; inputs, of each end's name images (k, H, W, C) of pseudo-inputs and
    their shares (k,); pictures, of the same names the images that are decoded there.
    """
    figure = new_figure(9, 3.8, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    axes = left.subplots()
    edges = np.arange(len(shares) + 1) + 0.5
    axes.stairs(100 * shares, edges, fill=True, color=PALETTE[0])
    axes.axhline(100 / len(shares), color="black", linewidth=0.8, linestyle=":", label=f"all alike: 1 / {len(shares)}")
    axes.set(xlabel="pseudo-inputs, the most used one first", ylabel="share of the test images (%)", title=caption)
    axes.set(xlim=edges[[0, -1]], ylim=(0, 115 * shares.max()))
    axes.legend(loc="upper right")
    rows = {}
    for name, (images, values) in inputs.items():
        rows[f"{name} pseudo-inputs"] = images, [percent(value) for value in values]
        rows[f"{name}: decoded at the means of their posteriors"] = pictures[name], [""] * len(values)
    draw_ends(right, rows, str)
    return figure


def percent(share):
    """A share as a percentage of two digits, small ones as "< 0.01 %"."""
    return f"{100 * share:.2g} %" if share >= 1e-4 else "< 0.01 %"


# ---------------------------------------------------------------------------------------------- curves


@style()
def losshistory(history, note=""):
    """A figure of ELBO, rate and distortion of training and validation by epoch, the best epoch marked.

    Args: history, columns (epochs,): epoch, and {train,val}_{elbo,rate,distortion} in nats. Where it has a
    `bound`, that was trained, and comes first.
    """
    from matplotlib.ticker import MaxNLocator

    names = ("bound",) * ("val_bound" in history) + ("elbo", "rate", "distortion")
    figure = new_figure(3 * len(names), 3, layout="constrained")
    best = int(np.argmax(history[f"val_{names[0]}"]))
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
        curves = {label: history[f"{split}_{name}"] for split, label in (("train", "training"), ("val", "validation"))}
        for (label, values), colour in zip(curves.items(), ("#949494", PALETTE[0]), strict=True):
            draw_curve(axes, history["epoch"], values, color=colour, label=label)
        axes.axvline(history["epoch"][best], color="black", linewidth=0.8, linestyle=":", label="best epoch, kept")
        axes.plot(history["epoch"][best], curves["validation"][best], "o", color="black", markersize=3.5)
        axes.set(xlabel="epoch", ylabel=f"{name.upper() if name == 'elbo' else name} (nats)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        zoom(axes, curves.values())
    value = decimals(history[f"val_{names[0]}"][best])
    figure.axes[0].set_title(f"best: {value} in epoch {history['epoch'][best]:.0f}")
    figure.axes[1].set_title(note)
    figure.legend(handles=figure.axes[0].lines[:3], loc="outside upper right", ncols=3)
    return figure


@style()
def layerrates(epochs, rates, note=""):
    """A figure of the rate of each layer by epoch, and of those of the last epoch as bars.

    Args: epochs (n,); rates, of each layer's name, the top one first, (n,) in nats.
    """
    import matplotlib
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(7.6, max(3.0, 0.2 * len(rates) + 0.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(rates)))
    last = [values[-1] for values in rates.values()]
    for (name, values), colour in zip(rates.items(), shades, strict=True):
        draw_curve(left, epochs, values, color=colour, label=name)
    left.set(xlabel="epoch", ylabel="rate of the layer (nats)", yscale="symlog", title=note)
    left.yaxis.set_major_formatter("{x:g}")
    left.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    right.barh(range(len(rates)), last, color=shades)
    right.set_yticks(range(len(rates)), rates)
    right.invert_yaxis()
    right.set(xlabel="nats", ylabel="layer, the top one first", title=f"epoch {epochs[-1]:.0f}")
    right.bar_label(right.containers[0], [decimals(value) for value in last], padding=2, fontsize=7)
    right.margins(x=0.15)
    return figure


@style()
def estimates(counts, curves, exact, caption, note=""):
    """A figure of estimates of log p(x) by the number of samples, in bands of two standard errors on either side.

    Args: counts (n,); curves, of each proposal's name (n, 2) estimates and standard errors in nats; exact, the value
    that they should come to, or None. The second panel shows the end of the first.
    """
    figure = new_figure(8.6, 3.6, layout="constrained")
    first, *others = curves.values()
    whole, end = figure.subplots(1, 2)
    for axes in (whole, end):
        draw_estimates(axes, counts, curves)
        if exact is not None:
            axes.axhline(exact, color="black", linewidth=0.8, linestyle="--", label=f"quadrature: {decimals(exact)}")
        axes.set(xscale="log", xlabel="samples S of an image", ylabel="log p(x) (nats)")
        axes.xaxis.set_major_formatter("{x:g}")
    start = len(counts) // 2
    known = [] if exact is None else [exact]
    limit(whole, np.concatenate([known, *bands([first, *(values[1:] for values in others)])]))  # one draw can be awful
    limit(end, np.concatenate([known, *bands([values[start:] for values in curves.values()])]))
    end.set_xlim(counts[start] / 1.15, counts[-1] * 1.15)
    end.set_xticks(counts[start:])
    end.minorticks_off()
    whole.set_title(f"{caption}\n{note}" if note else caption)
    end.set_title(f"from S = {counts[start]} on")
    whole.legend(loc="lower right", title="bands: ± 2 s.e. of an estimate by S samples", title_fontsize=8)
    return figure


def draw_estimates(axes, counts, curves):
    """A line in a band of two standard errors on either side for each of the curves (n, 2)."""
    for colour, (label, values) in zip(PALETTE, curves.items(), strict=False):
        low, high = bands([values])[0].reshape(2, -1)
        axes.fill_between(counts, low, high, color=colour, alpha=0.2, linewidth=0)
        last = f"{decimals(values[-1, 0])} by {counts[-1]}"
        axes.plot(counts, values[:, 0], marker=".", color=colour, label=f"{label}: {last}")


def bands(curves):
    """Of each curve (n, 2), values and standard errors: the lower, then the upper ends of its band, (2 n,)."""
    return [np.concatenate([values[:, 0] - 2 * values[:, 1], values[:, 0] + 2 * values[:, 1]]) for values in curves]


@style()
def curves(runs, note=""):
    """A figure of validation ELBO, rate and distortion by epoch: means over seeds in bands of a standard deviation.

    Args: runs, of each label a list of (history, index of the epoch that was kept), one for each seed, as of
    `losshistory`. A dot marks that epoch of each seed on the curve of the seed.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(9, 3.5, layout="constrained")
    for axes, name in zip(figure.subplots(1, 3), ("elbo", "rate", "distortion"), strict=True):
        shown = [
            draw_seeds(axes, number, label, seeds, f"val_{name}") for number, (label, seeds) in enumerate(runs.items())
        ]
        zoom(axes, shown)
        axes.set(xlabel="epoch", ylabel=f"{name.upper() if name == 'elbo' else name} (nats)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.axes[0].set_title("validation; dots: kept epochs")
    figure.axes[1].set_title("bands: mean ± sd over seeds" if any(len(seeds) > 1 for seeds in runs.values()) else "")
    figure.axes[2].set_title(note)
    handles = figure.axes[0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    return figure


def draw_seeds(axes, number, label, seeds, column):
    """The mean of a column over seeds, as far as all go, its band, and a dot for each seed; returns what is to be seen.

    That is all values (n,) but those of the first tenth, whose steep start would flatten the rest.
    """
    colour, dash = line_of(number)
    length = min(len(history[column]) for history, _ in seeds)
    values = np.stack([history[column][:length] for history, _ in seeds])
    epochs, mean = seeds[0][0]["epoch"][:length], values.mean(axis=0)
    spread = values.std(axis=0, ddof=1) if len(seeds) > 1 else np.zeros(length)
    if len(seeds) > 1:
        axes.fill_between(epochs, mean - spread, mean + spread, color=colour, alpha=0.25, linewidth=0)
    draw_curve(axes, epochs, mean, color=colour, linestyle=dash, label=label)
    for history, best in seeds:
        dot = {"color": colour, "markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.6}
        axes.plot(history["epoch"][best], history[column][best], "o", **dot)
    start, dots = length // 10, [history[column][best] for history, best in seeds]
    return np.concatenate([(mean - spread)[start:], (mean + spread)[start:], dots])


def line_of(number):
    """The colour and the dashes of the curve of this number, others for each of the first forty."""
    return PALETTE[number % len(PALETTE)], ("-", "--", ":", "-.")[number // len(PALETTE) % 4]


@style()
def overlay(curves):
    """A figure of one validation ELBO curve for each run, the best first in the legend.

    Args: curves, a dict of label to (epochs (E,), ELBO (E,) in nats).
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(6, 3.8)
    axes = figure.add_subplot(xlabel="epoch", ylabel="validation ELBO (nats)")
    numbers = {label: number for number, label in enumerate(curves)}  # their colours, the same as of `curves`
    for label, (epochs, values) in sorted(curves.items(), key=lambda item: -max(item[1][1])):
        colour, dash = line_of(numbers[label])
        draw_curve(axes, epochs, values, color=colour, linestyle=dash, label=f"{label}: {decimals(max(values))}")
        axes.plot(epochs[np.argmax(values)], max(values), "o", color=colour, markersize=3.5)
    zoom(axes, [values for _, values in curves.values()])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(title="best epoch (dot)", loc="upper left", bbox_to_anchor=(1, 1), alignment="left", title_fontsize=8)
    return figure


def decimals(value, digits=2):
    """A number with so many decimals and a minus sign as long as those of the axes."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def draw_curve(axes, epochs, values, **options):
    """A line, with dots where it is so short that a line alone would hardly show."""
    axes.plot(epochs, values, marker="." if len(epochs) < 10 else None, **options)


def zoom(axes, curves, start=0.1):
    """Limits the y-axis to what comes after the first tenth of each curve, whose steep start would flatten the rest."""
    values = np.concatenate([curve[int(start * len(curve)) :] for curve in curves])
    limit(axes, values)


def limit(axes, values):
    """Limits the y-axis to these values."""
    pad = 0.06 * max(np.ptp(values), 1e-3)
    axes.set_ylim(values.min() - pad, values.max() + pad)
