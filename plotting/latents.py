"""Figures of the latent space of one run: embeddings, and images decoded on a grid or on lines."""

import importlib.util
from statistics import NormalDist

import numpy as np

import data
from plotting import planes, sheets
from plotting.scores import bin_edges
from plotting.style import PALETTE, colours, new_figure, style
from plotting.view import PER_CLASS, View, as_numpy, evenly
from runtime.errors import UserError

MOST_WEIGHTED = 1000  # images whose latents are weighted means, each of which takes many decodings
SIDE = 20  # images along each axis of the latent plane
STEPS = 9  # decoded images from one end of an interpolation to the other
THUMBNAILS = 22  # of these side by side are as wide as the axes
PRIOR = f"prior ({planes.PERCENT} %)"  # in legends
PALE = "#c8c8c8"  # of the run's own images, below others
ELLIPSE = "#a8123e"  # of posteriors of pseudo-inputs: darker than every colour of the palette
STRIP = 6  # embeddings side by side
LEAST_VARIANCE = 1e-12  # that is drawn; the logarithm of 0 has no place
FEWEST_PROJECTED = 5  # images whose posterior means determine a plane to project onto


def draw_manifold(view):
    """Images decoded on a grid of latents, the first to the right and the second upward, or on lines if D > 2."""
    if view.run.latent_dim > 2:
        return draw_interpolations(view)
    values, spacing = grid_axes(view)
    images = view.decoded(latent_grid(values))
    columns, *rows = map(sheets.every_other, values)
    names = {"rows": rows[0][::-1] if rows else (), "columns": columns, "axis_names": (*view.latent_names, "")[:2]}
    return sheets.sheet(images, f"{view.shown} p(x|z); z spaced by quantiles of {spacing}", **names)


def grid_axes(view):
    """Rising quantiles, (D, SIDE), of the prior if it factorises, else of the posterior means; and which of these."""
    from models.distributions import Normal

    shares = (np.arange(SIDE) + 0.5) / SIDE
    prior = view.model.prior()
    if not isinstance(prior, Normal):
        return np.quantile(view.embedding.mean, shares, axis=0).T, "the posterior means"
    mean, scale = as_numpy(prior.mean), np.exp(as_numpy(prior.logvar) / 2)
    return mean[:, None] + scale[:, None] * [NormalDist().inv_cdf(share) for share in shares], "the prior"


def latent_grid(values):
    """Latents on a grid from D <= 2 rising axes (D, n), the first to the right, the second upward: (n or 1, n, D)."""
    columns, rows = np.meshgrid(values[0], values[1, ::-1] if len(values) == 2 else 0.0)
    return np.stack([columns, rows], axis=-1)[..., : len(values)]


def draw_interpolations(view):
    """Images decoded on lines between the posterior means of two test images, which are shown at the ends."""
    ends = pairs(view.examples)
    means = view.embedding.mean[view.rows_of(ends)]  # (R, 2, D)
    t = np.linspace(0, 1, STEPS)[:, None]
    lines = view.decoded(means[:, :1] * (1 - t) + means[:, 1:] * t)  # (R, STEPS, H, W, C)
    originals = view.images[ends]
    grid = np.concatenate([originals[:, :1], lines, originals[:, 1:]], axis=1)
    caption = f"{view.shown} p(x|z) on a line between two posterior means"
    ticks = [f"{share:g}" if index % 2 == 0 else "" for index, share in enumerate(t[:, 0])]
    names = {"columns": ["image", *ticks, "image"], "axis_names": ("fraction of the distance", "")}
    return sheets.sheet(grid, caption, **names, column_breaks=(1, STEPS + 1))


def pairs(rows, most=10):
    """Indices (at most `most`, 2) of the first examples of two neighbouring rows, from `rows` (R, PER_CLASS).

    Of a single row, those of neighbouring examples.
    """
    first = evenly(rows[:, 0] if len(rows) > 1 else rows[0][rows[0] >= 0], most)  # -1 stands for no image
    return np.stack([first, np.roll(first, -1)], axis=1)


@style()
def draw_embedding(view, points, chosen=slice(None)):
    """Latents (N, D) of the images of `view.embedding`, by class, and of pseudo-inputs, over contours of the prior.

    Where they are those of some of the images, `chosen` are these.
    """
    plane, names, caption = flattened(view, points)
    points, components = np.split(plane, [len(points)])
    figure = new_figure(5.6, 5.2)
    axes = figure.add_subplot(xlabel=names[0], ylabel=names[1], title=caption)
    draw_points(axes, points, view, chosen)
    if view.density is not None:
        planes.draw_levels(axes, view.density, planes.SHARES, linewidths=0.8)
        axes.plot([], [], color="black", linewidth=0.8, label=PRIOR)
        both = np.concatenate([view.density.limits, points])  # weighted means may lie outside of the density's grid
        axes.set(xlim=(both[:, 0].min(), both[:, 0].max()), ylim=(both[:, 1].min(), both[:, 1].max()))
    if len(components):
        label = f"{len(components)} pseudo-inputs"
        axes.scatter(*components.T, s=28, c="black", marker="+", linewidths=0.9, label=label)
    if 1 / 3 < np.ptp(axes.get_xlim()) / np.ptp(axes.get_ylim()) < 3:  # otherwise equal scales would make it a strip
        axes.set_aspect("equal")
    draw_legend(axes)
    return figure


@style()
def draw_embedding_on(views):
    """Posterior means of the images of the second View, by class, over those of the first, whose run is the same."""
    own, other = views
    ours, theirs = own.embedding.mean, other.embedding.mean
    plane, names, caption = flattened(own, np.concatenate([ours, theirs]))
    ours, theirs, _ = np.split(plane, np.cumsum([len(ours), len(theirs)]))
    figure = new_figure(5.6, 5.2)
    axes = figure.add_subplot(xlabel=names[0], ylabel=names[1], title=caption)
    size = float(np.clip(40_000 / len(ours), 4, 16))
    axes.scatter(*ours.T, s=size, c=PALE, linewidths=0, rasterized=len(ours) > 1000)
    axes.plot([], [], "o", markersize=5, color=PALE, label="the run's own test images")
    draw_points(axes, theirs, other)
    draw_legend(axes)
    return figure


def draw_points(axes, points, view, chosen=slice(None)):
    """Points (N, 2) of the `chosen` images in the colours of their classes, in a random order, so that all are seen."""
    from matplotlib.colors import to_rgba_array

    names, classes = view.class_names, view.labels
    if classes is None:
        names, classes, chosen = (view.said,), np.zeros(len(points), int), slice(None)
    palette = to_rgba_array(colours(len(names)))
    order = np.random.default_rng(0).permutation(len(points))
    size = float(np.clip(40_000 / len(points), 4, 16))
    options = {"alpha": 0.6, "linewidths": 0, "rasterized": len(points) > 1000}  # one picture inside an SVG
    axes.scatter(*points[order].T, s=size, c=palette[classes[chosen][order]], **options)
    for label in np.unique(classes[chosen]):  # the others have no image here
        axes.plot([], [], "o", markersize=5, color=palette[label], label=names[label])


def draw_legend(axes):
    """A legend right of the axes, in several columns if it is long."""
    columns = 1 + len(axes.get_legend_handles_labels()[0]) // 26
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), ncols=columns)


def draw_embedding_z(view):
    return draw_embedding(view, view.embedding.z)


@style()
def draw_snapshots(view):
    """Posterior means of the images of `view.embedding`, by class, with the weights of each snapshot, in one plane."""
    epochs = list(view.run.snapshots)
    means = [View(view.run.at(epoch), view.projection).embedding.mean for epoch in epochs]
    plane, names, caption = flattened(view, np.concatenate(means))
    rows = -(-len(epochs) // STRIP)
    columns = -(-len(epochs) // rows)
    figure = new_figure(2.3 * columns + 1, 2.3 * rows + 0.4, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    parts = np.split(plane[: len(epochs) * len(means[0])], len(epochs))
    for axes, epoch, points in zip(grid.flat, epochs, parts, strict=False):
        draw_points(axes, points, view)
        axes.set_title(f"epoch {epoch}")
    for axes in grid.flat[len(epochs) :]:
        axes.set_axis_off()
    for axes in grid.flat[len(epochs) - columns : len(epochs)]:  # the lowest of its column
        axes.tick_params(labelbottom=True)
    figure.supxlabel(f"{names[0]}{f'; {caption}' * bool(caption)}", fontsize=9)
    figure.supylabel(names[1], fontsize=9)
    handles = grid[0, 0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside right upper", ncols=1 + len(handles) // 26)
    return figure


def draw_embedding_weighted(view):
    chosen = data.subset(len(view.embedded), MOST_WEIGHTED)
    return draw_embedding(view, view.weighted(view.embedded[chosen]).mean, chosen)


@style()
def draw_embedding_mean(view):
    from matplotlib.collections import EllipseCollection

    means = view.embedding.mean
    if view.density is None:
        return draw_embedding(view, means)
    if view.config.has_pseudo_inputs:
        pictures, order = as_numpy(view.model.top_prior.pseudo_inputs), slice(None)
        if view.shares is not None:
            order = np.argsort(-view.shares, kind="stable")
        thumbnails, caption = (view.components[order], pictures[order]), "pseudo-inputs"
    else:
        chosen = view.spread(PER_CLASS**2)
        thumbnails, caption = (means[view.rows_of(chosen)], view.images[chosen]), "test images"
    figure = new_figure(7.4, 6.6)
    title = f"pictures: {caption}, at the means of their posteriors"
    across, upward = view.latent_names
    axes = figure.add_subplot(xlabel=across, ylabel=upward, title=title)
    planes.shade(axes, view.density, 3.0)  # pale, because points may be grey
    draw_points(axes, means, view)
    axes.set(xlim=view.density.limits[:, 0], ylim=view.density.limits[:, 1])
    axes.plot([], [], color="black", linewidth=0.7, label=PRIOR)
    if view.config.has_pseudo_inputs and view.config.posterior == "gaussian":
        centre = view.model.posterior(view.model.top_prior.pseudo_inputs).at_mean()
        sizes = 2 * np.exp(as_numpy(centre.logvar) / 2).T  # one standard deviation to each side
        width, alpha = (0.7, 1.0) if sizes.shape[1] <= 100 else (0.5, 0.6)
        options = {"units": "xy", "offset_transform": axes.transData, "offsets": as_numpy(centre.mean)}
        options |= {"facecolors": "none", "edgecolors": ELLIPSE, "linewidths": width, "alpha": alpha}
        axes.add_collection(EllipseCollection(*sizes, np.zeros(sizes.shape[1]), **options))
        axes.plot([], [], color=ELLIPSE, label=f"{len(view.components)} pseudo-inputs:\nposteriors, 1 sd")
    draw_thumbnails(axes, *thumbnails)
    draw_legend(axes)
    return figure


@style()
def draw_activeunits(view):
    import matplotlib

    from evaluation.latents import ACTIVE

    log_variances = np.log(np.maximum(view.embedding.mean.var(axis=0, dtype="float64"), LEAST_VARIANCE))
    low, high, least = log_variances.min(), log_variances.max(), np.log(ACTIVE)
    width = np.diff(bin_edges(log_variances)).mean()
    edges = least + width * np.arange(np.floor((low - least) / width), np.ceil((high - least) / width) + 1)
    layers = np.split(log_variances, np.cumsum(view.model.sizes)[:-1])
    labels = [f"{name}: {np.count_nonzero(one > least)} of {len(one)} active"
              for name, one in zip(view.layer_names, layers, strict=True)]  # fmt: skip
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(layers))) if len(layers) > 1 else PALETTE[:1]
    figure = new_figure(5.6, 3.4)
    axes = figure.add_subplot(xlabel="log Var_x E_q(z|x)[z_d] (natural logarithm)", ylabel="latent dimensions")
    axes.hist(layers, edges, stacked=True, color=list(shades), label=labels, edgecolor="white", linewidth=0.4)
    axes.axvline(least, color="black", linewidth=0.8, linestyle=":", label=f"variance {ACTIVE}: active above")
    axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    draw_legend(axes)
    return figure


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


def flattened(view, points):
    """Latents (N, D) and those of the pseudo-inputs in the plane, (N + K, 2), the names of both axes, and a caption."""
    both = np.concatenate([points, view.components])
    if both.shape[1] == 2:
        return both, view.latent_names, ""
    if both.shape[1] == 1:
        height = np.random.default_rng(0).uniform(size=both.shape)
        return np.concatenate([both, height], axis=1), [*view.latent_names, "random height"], ""
    reference = view.embedding.mean
    if len(reference) < FEWEST_PROJECTED or not np.ptp(reference, axis=0).any():
        return both[:, :2], view.latent_names[:2], f"the first two of {both.shape[1]} dimensions"
    return PROJECTIONS[view.projection](both, reference)


def pca(points, reference):
    """Points (N, D) on the first two principal components of reference points (M, D): (N, 2), axis names, caption."""
    from sklearn.decomposition import PCA

    fitted = PCA(2).fit(reference)
    shares = 100 * fitted.explained_variance_ratio_
    names = [f"principal component {number} ({share:.0f} % of variance)" for number, share in enumerate(shares, 1)]
    return fitted.transform(points), names, "PCA of the posterior means"


def tsne(points, reference):
    """Points (N, D) embedded jointly by t-SNE, which is slow; those beyond the M of `reference` are others."""
    from sklearn.manifold import TSNE

    fitted = TSNE(2, perplexity=min(30, (len(points) - 1) / 3), random_state=0)
    return fitted.fit_transform(points), ("t-SNE 1", "t-SNE 2"), _jointly(points, reference)


def umap(points, reference):
    """Points (N, D) embedded jointly by UMAP (McInnes et al. 2018), as by `tsne`."""
    from umap import UMAP

    fitted = UMAP(n_neighbors=min(15, len(points) - 1), random_state=0, n_jobs=1)  # with a seed it has one thread
    return fitted.fit_transform(points), ("UMAP 1", "UMAP 2"), _jointly(points, reference)


def _jointly(points, reference):
    return "embedded jointly" if len(points) > len(reference) else ""


def check(projection):
    """Raises UserError if the package behind --projection is not installed."""
    if projection == "umap" and importlib.util.find_spec("umap") is None:
        raise UserError("--projection umap needs umap-learn: pip install -r requirements/umap.txt")


PROJECTIONS = {"pca": pca, "tsne": tsne, "umap": umap}
