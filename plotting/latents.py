"""Figures of the latent space of one run: embeddings, and images decoded on a grid or on lines."""

from statistics import NormalDist

import numpy as np

from plotting import planes, sheets
from plotting.view import PER_CLASS, as_numpy, evenly

SIDE = 20  # images along each axis of the latent plane
STEPS = 9  # decoded images from one end of an interpolation to the other
FEWEST_PROJECTED = 5  # images whose posterior means determine a plane to project onto


def draw_manifold(view):
    return draw_grid(view) if view.run.latent_dim <= 2 else draw_interpolations(view)


def draw_grid(view):
    """Images decoded on a grid of latents, with z[0] to the right and z[1] upward, as in the embedding."""
    values, spacing = grid_axes(view)
    images = view.decoded(latent_grid(values))
    columns, *rows = map(sheets.every_other, values)
    names = {"rows": rows[0][::-1] if rows else (), "columns": columns, "axis_names": ("z[0]", "z[1]" if rows else "")}
    return sheets.sheet(images, f"{view.shown} p(x|z); z spaced by quantiles of {spacing}", **names)


def grid_axes(view):
    """Rising latents along each of the D axes, (D, SIDE), and the name of what they are quantiles of.

    That is the prior if it factorises over the dimensions, else the posterior means of the test images.
    """
    from models.distributions import Normal

    shares = (np.arange(SIDE) + 0.5) / SIDE
    prior = view.model.prior()
    if not isinstance(prior, Normal):
        return np.quantile(view.embedding.mean, shares, axis=0).T, "the posterior means"
    mean, scale = as_numpy(prior.mean), np.exp(as_numpy(prior.logvar) / 2)
    return mean[:, None] + scale[:, None] * [NormalDist().inv_cdf(share) for share in shares], "the prior"


def latent_grid(values):
    """Latents on a grid from D <= 2 rising axes (D, n), the first to the right, the second upward: (n or 1, n, D)."""
    second = values[1:] if len(values) == 2 else np.zeros((1, 1))
    columns, rows = np.meshgrid(values[0], second[0, ::-1])
    return np.stack([columns, rows], axis=-1)[..., : len(values)]


def draw_interpolations(view):
    """Images decoded on lines between the posterior means of two test images, which are shown at the ends."""
    ends = pairs(view.examples)
    means = view.embedding.mean[ends]  # (R, 2, D)
    t = np.linspace(0, 1, STEPS)[:, None]
    lines = view.decoded(means[:, :1] * (1 - t) + means[:, 1:] * t)  # (R, STEPS, H, W, C)
    originals = view.images[ends]
    grid = np.concatenate([originals[:, :1], lines, originals[:, 1:]], axis=1)
    caption = f"{view.shown} p(x|z) on a line between two posterior means"
    ticks = [f"{share:g}" if index % 2 == 0 else "" for index, share in enumerate(t[:, 0])]
    names = {"columns": ["image", *ticks, "image"], "axis_names": ("fraction of the distance", "")}
    return sheets.sheet(grid, caption, **names, column_breaks=(1, STEPS + 1))


def pairs(rows, most=10):
    """Indices (at most `most`, 2) of the first examples of two neighbouring rows, from `rows` (R, PER_CLASS)."""
    first = evenly(rows[:, 0], most)
    return np.stack([first, np.roll(first, -1)], axis=1)


def draw_embedding(view, points):
    """Latents (N, D) of the images of `view.embedding` in the plane, over the prior where z has two dimensions."""
    plane, names, caption = flattened(view, points)
    points, components = np.split(plane, [len(points)])
    return planes.embedding(points, view.labels, view.class_names, names, caption, view.density, components)


def draw_embedding_z(view):
    return draw_embedding(view, view.embedding.z)


def draw_embedding_mean(view):
    return draw_landscape(view) if view.density is not None else draw_embedding(view, view.embedding.mean)


def draw_landscape(view):
    """The posterior means over the prior's density, the posteriors of pseudo-inputs, and pictures at their latents."""
    if view.config.has_pseudo_inputs:
        pictures, order = as_numpy(view.model.top_prior.pseudo_inputs), np.argsort(-view.shares, kind="stable")
        thumbnails = view.components[order], pictures[order]
        caption = "pictures: pseudo-inputs, at the means of their posteriors"
    else:
        chosen = view.spread(PER_CLASS**2)
        chosen = chosen[chosen < len(view.embedding.mean)]
        thumbnails = view.embedding.mean[chosen], view.images[chosen]
        caption = "pictures: test images, at the means of their posteriors"
    shown = view.embedding.mean, view.labels, view.class_names
    return planes.landscape(*shown, view.density, ellipses(view), thumbnails, caption)


def ellipses(view):
    """Means and standard deviations (K, 2) of the pseudo-inputs' posteriors; None where none of them is Gaussian."""
    if not view.config.has_pseudo_inputs or view.config.posterior != "gaussian":
        return None
    centre = view.model.posterior(view.model.top_prior.pseudo_inputs).at_mean()
    return as_numpy(centre.mean), np.exp(as_numpy(centre.logvar) / 2)


def flattened(view, points):
    """Latents (N, D) and those of the pseudo-inputs in the plane, (N + K, 2), the names of both axes, and a caption."""
    both = np.concatenate([points, view.components])
    if both.shape[1] == 2:
        return both, ("z[0]", "z[1]"), ""
    if both.shape[1] == 1:
        height = np.random.default_rng(0).uniform(size=both.shape)
        return np.concatenate([both, height], axis=1), ("z[0]", "random height"), ""
    reference = view.embedding.mean
    if len(reference) < FEWEST_PROJECTED or not np.ptp(reference, axis=0).any():
        return both[:, :2], ("z[0]", "z[1]"), f"the first two of {both.shape[1]} dimensions"
    return PROJECTIONS[view.projection](both, reference)


def pca(points, reference):
    """Points (N, D) on the first two principal components of reference points (M, D): (N, 2), axis names, caption."""
    from sklearn.decomposition import PCA

    fitted = PCA(2).fit(reference)
    shares = 100 * fitted.explained_variance_ratio_
    names = [f"principal component {number} ({share:.0f} % of variance)" for number, share in enumerate(shares, 1)]
    return fitted.transform(points), names, "PCA of the posterior means"


def tsne(points, reference):
    """Points (N, D) embedded jointly by t-SNE, which is slow: (N, 2), axis names, caption.

    If there are more points than reference points (M, D), the others are pseudo-inputs.
    """
    from sklearn.manifold import TSNE

    fitted = TSNE(2, perplexity=min(30, (len(points) - 1) / 3), random_state=0)
    caption = "test images and pseudo-inputs, embedded jointly" if len(points) > len(reference) else ""
    return fitted.fit_transform(points), ("t-SNE 1", "t-SNE 2"), caption


PROJECTIONS = {"pca": pca, "tsne": tsne}
