"""Figures of numbers by image: log p(x), its estimates by the number of samples, and the use of pseudo-inputs."""

import contextlib
import math

import numpy as np

import data
from plotting.curves import limit
from plotting.style import PALETTE, decimals, new_figure, style
from plotting.view import as_numpy

ENDS = 5  # images of the lowest and of the highest log p(x)
USED = 6  # pseudo-inputs that are used most, and as many that are used least
ESTIMATED = 50  # images whose log p(x) is estimated
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)  # samples of an estimate


def draw_picture(axes, image, name=""):
    """An image (H, W, C) in bare axes, with its name below."""
    axes.imshow(image, vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[], xlabel=name)
    axes.spines[:].set_visible(False)


def draw_ends(figure, ends):
    """Rows of images in an otherwise empty figure: a dict of the name above a row to its images and their names."""
    most = max(len(images) for images, _ in ends.values())
    grid = figure.subplots(len(ends), max(1, most), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for panels, (name, (images, names)) in zip(grid, ends.items(), strict=True):
        panels[0].set_title(" ")  # room for the name, which spans several panels and must not widen the first
        place = {"xy": (0, 1), "xytext": (0, 5), "xycoords": "axes fraction", "textcoords": "offset points"}
        panels[0].annotate(name, **place).set_in_layout(False)
        for axes, *image in zip(panels, images, names, strict=False):
            axes.set_axis_on()
            draw_picture(axes, *image)


def mean_of(values):
    """The mean of values by image, with its standard error if there are several."""
    error = f" ± {np.std(values, ddof=1) / math.sqrt(len(values)):.2f}" if len(values) > 1 else ""
    return f"{decimals(values.mean())}{error}"


def bin_edges(values):
    """The edges of a histogram's bins, of which outliers would make thousands."""
    return np.histogram_bin_edges(values, min(60, len(np.histogram_bin_edges(values, "auto")) - 1))


@style()
def draw_likelihood(view):
    stored, log_px = view.evaluation, view.evaluation.log_px
    labels = [] if view.split.labels is None else view.split.labels[stored.index]
    present = np.unique(labels)
    figure = new_figure(9, 3.4 + 0.2 * len(present), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    heights = (2.6, 0.3 + 0.2 * len(present)) if len(present) else (1,)
    rows = left.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    rows[0].hist(log_px, bin_edges(log_px), color=PALETTE[0], edgecolor="white", linewidth=0.4)
    title = f"mean {mean_of(log_px)} ({stored.name})"
    rows[0].set(ylabel="test images", title=f"{title}\n{view.run.note}" if view.run.note else title)
    if len(present):
        draw_boxes(rows[1], [log_px[labels == one] for one in present], [view.class_names[one] for one in present])
    for axes in rows:
        axes.axvline(log_px.mean(), color="black", linewidth=0.8, linestyle=":")
    rows[-1].set_xlabel("log p(x) (nats)")
    order, count = np.argsort(log_px), min(ENDS, len(log_px) // 2)
    ends = {"least likely, log p(x) in nats": order[:count], "most likely, log p(x) in nats": order[::-1][:count]}
    draw_ends(right, {name: (view.images[stored.index[chosen]], map(decimals, log_px[chosen]))
                      for name, chosen in ends.items()})  # fmt: skip
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


@style()
def draw_pseudouse(view):
    from evaluation.latents import perplexity

    shares, order = view.shares, np.argsort(-view.shares, kind="stable")
    figure = new_figure(9, 3.8, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    axes, edges = left.subplots(), np.arange(len(shares) + 1) + 0.5
    axes.stairs(100 * shares[order], edges, fill=True, color=PALETTE[0])
    equal = {"linestyle": ":", "label": f"equal shares: 1 / {len(shares)}"}
    axes.axhline(100 / len(shares), color="black", linewidth=0.8, **equal)
    title = f"in use: {perplexity(shares):.1f} of {len(shares)} (perplexity)"
    axes.set(xlabel="pseudo-inputs, most used first", ylabel="share of the test images (%)", title=title)
    axes.set(xlim=edges[[0, -1]], ylim=(0, 115 * shares.max()))
    axes.legend(loc="upper right")
    rows, inputs, count = {}, as_numpy(view.model.top_prior.pseudo_inputs), max(1, min(USED, len(shares) // 2))
    for name, chosen in (("most used", order[:count]), ("least used", order[::-1][:count])):
        percent = [f"{100 * share:.3g} %" if share >= 1e-4 else "< 0.01 %" for share in shares[chosen]]
        rows[f"{name} pseudo-inputs"] = inputs[chosen], percent
        decoded = view.decoded(view.components[chosen])
        rows[f"{name}: decoded at the means of their posteriors"] = decoded, [""] * count
    draw_ends(right, rows)
    return figure


@style()
def draw_estimates(view):
    from evaluation.estimators import usual_proposal
    from evaluation.importance import log_weights

    index, curves = data.subset(len(view.images), ESTIMATED), {}
    images = view.images[index]
    with view.blaming(index):
        proposals = {"q(z|x)": "posterior"}
        if usual_proposal(view.run) == "fitted":
            proposals["fitted to p(z|x)"] = "fitted"
        for label, proposal in proposals.items():
            curves[label] = by_samples(log_weights(view.model, images, max(COUNTS), view.config.seed, proposal))
        exact = integrated(view, images)
    first, *others = bands = [mean + np.outer((-2, 2), error) for mean, error in (one.T for one in curves.values())]
    figure = new_figure(8.6, 3.6, layout="constrained")
    for axes in figure.subplots(1, 2):
        for colour, band, (label, values) in zip(PALETTE, bands, curves.items(), strict=False):
            axes.fill_between(COUNTS, *band, color=colour, alpha=0.2, linewidth=0)
            last = f"{decimals(values[-1, 0])} at S = {COUNTS[-1]}"
            axes.plot(COUNTS, values[:, 0], marker=".", color=colour, label=f"{label}: {last}")
        if exact is not None:
            axes.axhline(exact, color="black", linewidth=0.8, linestyle="--", label=f"quadrature: {decimals(exact)}")
        axes.set(xscale="log", xlabel="samples S per image", ylabel="log p(x) (nats)")
        axes.xaxis.set_major_formatter("{x:g}")
    (whole, end), start, known = figure.axes, len(COUNTS) // 2, [] if exact is None else [exact]  # end enlarges whole
    limit(whole, [known, first, *(band[:, 1:] for band in others)])  # a single draw may be far off
    limit(end, [known, *(band[:, start:] for band in bands)])
    end.set(xlim=(COUNTS[start] / 1.15, COUNTS[-1] * 1.15), xticks=COUNTS[start:], title=f"from S = {COUNTS[start]} on")
    end.minorticks_off()
    whole.set_title(f"mean of {len(images)} test images" + f"\n{view.run.note}" * bool(view.run.note))
    whole.legend(loc="lower right", title="bands: ± 2 s.e. of an estimate with S samples", title_fontsize=8)
    return figure


def by_samples(log_w):
    """Mean over images of the estimate with each of COUNTS samples, and its standard error, from log-weights (N, S).

    Returns (len(COUNTS), 2). The S samples are divided into groups of s, whose mean approaches the expectation of an
    estimate with s samples. Its error comes from the variance of the groups or, of one group, from the delta method.
    """
    from evaluation.importance import Sums

    rows, (n, most) = [], log_w.shape
    for count in COUNTS:
        groups = log_w[:, : most // count * count].reshape(n, -1, count)
        peak = groups.max(axis=2)
        each = peak + np.log(np.exp(groups - peak[..., None]).mean(axis=2))  # (N, groups)
        if each.shape[1] > 1:
            variance = each.var(axis=1, ddof=1)
        else:
            variance = Sums.none(n, count).weighed(groups[:, 0], np.ones((n, count), bool)).errors() ** 2
        rows.append((each.mean(), np.sqrt(variance.sum()) / n))
    return np.array(rows)


def integrated(view, images):
    """The mean log p(x) of images by quadrature; None for more dimensions than it is for, and where it fails."""
    from evaluation.quadrature import MOST_DIMENSIONS, NotResolvedError, quadrature

    with contextlib.suppress(NotResolvedError):
        if view.run.latent_dim <= MOST_DIMENSIONS:
            return float(quadrature(view.model, images, seed=view.config.seed).log_px.mean())
    return None
