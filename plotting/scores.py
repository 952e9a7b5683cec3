"""Figures of numbers by image: log p(x), its estimates, and the use of pseudo-inputs."""

import math

import numpy as np

from plotting.curves import limit
from plotting.style import PALETTE, decimals, new_figure, percent, style


def draw_picture(axes, image, name=""):
    """An image (H, W, C) in bare axes, with its name below."""
    axes.imshow(image, vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[], xlabel=name)
    axes.spines[:].set_visible(False)


@style()
def likelihoods(log_px, labels, class_names, ends, source, note=""):
    """A figure of the distribution of log p(x): a histogram, a box for each class, and the images at both ends.

    Args: log_px (N,) in nats; labels (N,) integers or None; class_names, one for each label; ends, a dict of the names
    of both ends to images (k, H, W, C) and their log p(x) (k,); source, the name of the estimates.
    """
    present = [] if labels is None else np.unique(labels)
    figure = new_figure(9, 3.4 + 0.2 * len(present), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    heights = (2.6, 0.3 + 0.2 * len(present)) if len(present) else (1,)
    rows = left.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    bins = min(60, len(np.histogram_bin_edges(log_px, "auto")) - 1)  # outliers would make it thousands
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
    """Rows of images in an otherwise empty figure, with the name of each row above it and values under the images.

    Args: ends, a dict of the names of rows to images (k, H, W, C) and values (k,); words, from a value to its text.
    """
    most = max(len(images) for images, _ in ends.values())
    grid = figure.subplots(len(ends), max(1, most), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for panels, (name, (images, values)) in zip(grid, ends.items(), strict=True):
        panels[0].set_title(" ")  # room for the name, which spans several panels and must not widen the first
        place = {"xy": (0, 1), "xytext": (0, 5), "xycoords": "axes fraction", "textcoords": "offset points"}
        panels[0].annotate(name, **place).set_in_layout(False)
        for axes, image, value in zip(panels, images, values, strict=False):
            axes.set_axis_on()
            draw_picture(axes, image, words(value))


@style()
def use(shares, inputs, pictures, caption=""):
    """A figure of the share of the images that each pseudo-input stands for, and of the most and least used ones.

    Args: shares (K,), falling, with sum 1; inputs, a dict of the names of both ends to pseudo-inputs (k, H, W, C) and
    their shares (k,); pictures, a dict of the same names to the images that are decoded there.
    """
    figure = new_figure(9, 3.8, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    axes = left.subplots()
    edges = np.arange(len(shares) + 1) + 0.5
    axes.stairs(100 * shares, edges, fill=True, color=PALETTE[0])
    axes.axhline(
        100 / len(shares), color="black", linewidth=0.8, linestyle=":", label=f"equal shares: 1 / {len(shares)}"
    )
    axes.set(xlabel="pseudo-inputs, most used first", ylabel="share of the test images (%)", title=caption)
    axes.set(xlim=edges[[0, -1]], ylim=(0, 115 * shares.max()))
    axes.legend(loc="upper right")
    rows = {}
    for name, (images, values) in inputs.items():
        rows[f"{name} pseudo-inputs"] = images, [percent(value) for value in values]
        rows[f"{name}: decoded at the means of their posteriors"] = pictures[name], [""] * len(values)
    draw_ends(right, rows, str)
    return figure


@style()
def estimates(counts, curves, exact, caption, note=""):
    """A figure of estimates of log p(x) by the number of samples, in bands of two standard errors on either side.

    Args: counts (n,); curves, a dict of the names of proposals to (n, 2), estimates and standard errors in nats; exact,
    the value that they should approach, or None. The second panel enlarges the end of the first.
    """
    figure = new_figure(8.6, 3.6, layout="constrained")
    first, *others = curves.values()
    whole, end = figure.subplots(1, 2)
    for axes in (whole, end):
        draw_estimates(axes, counts, curves)
        if exact is not None:
            axes.axhline(exact, color="black", linewidth=0.8, linestyle="--", label=f"quadrature: {decimals(exact)}")
        axes.set(xscale="log", xlabel="samples S per image", ylabel="log p(x) (nats)")
        axes.xaxis.set_major_formatter("{x:g}")
    start = len(counts) // 2
    known = [] if exact is None else [exact]
    limit(whole, [known, *bands([first, *(values[1:] for values in others)])])  # a single draw may be far off
    limit(end, [known, *bands([values[start:] for values in curves.values()])])
    end.set_xlim(counts[start] / 1.15, counts[-1] * 1.15)
    end.set_xticks(counts[start:])
    end.minorticks_off()
    whole.set_title(f"{caption}\n{note}" if note else caption)
    end.set_title(f"from S = {counts[start]} on")
    whole.legend(loc="lower right", title="bands: ± 2 s.e. of an estimate with S samples", title_fontsize=8)
    return figure


def draw_estimates(axes, counts, curves):
    """A line in a band of two standard errors on either side for each of the curves (n, 2)."""
    for colour, (label, values) in zip(PALETTE, curves.items(), strict=False):
        low, high = bands([values])[0].reshape(2, -1)
        axes.fill_between(counts, low, high, color=colour, alpha=0.2, linewidth=0)
        last = f"{decimals(values[-1, 0])} at S = {counts[-1]}"
        axes.plot(counts, values[:, 0], marker=".", color=colour, label=f"{label}: {last}")


def bands(curves):
    """For each curve (n, 2), values and standard errors: the lower, then the upper ends of its band, (2 n,)."""
    return [np.concatenate([values[:, 0] - 2 * values[:, 1], values[:, 0] + 2 * values[:, 1]]) for values in curves]
