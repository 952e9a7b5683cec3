"""Figures of log p(x) of one run: its distribution, and how its estimates depend on the number of samples."""

import contextlib

import numpy as np

from plotting import scores
from runtime.errors import UserError

ENDS = 5  # images of the lowest and of the highest log p(x)
ESTIMATED = 50  # images whose log p(x) is estimated
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)  # samples of an estimate


def draw_likelihood(view):
    stored = view.evaluation
    order = np.argsort(stored.log_px)
    count = min(ENDS, len(order) // 2)
    ends = {"least likely": order[:count], "most likely": order[::-1][:count]}
    shown = {name: (view.images[stored.index[rows]], stored.log_px[rows]) for name, rows in ends.items()}
    labels = None if view.split.labels is None else view.split.labels[stored.index]
    return scores.likelihoods(stored.log_px, labels, view.class_names, shown, stored.name, view.run.note)


def draw_estimates(view):
    from evaluation.importance import NotFiniteError, log_weights

    images, curves = view.images[:ESTIMATED], {}
    try:
        for label, proposal in (("q(z|x)", "posterior"), ("fitted to p(z|x)", "fitted")):
            log_w = log_weights(view.model, images, max(COUNTS), view.config.seed, proposal)
            curves[label] = by_samples(log_w)
        exact = integrated(view, images)
    except NotFiniteError as error:
        message = f"{view.run.path}: log p(x) of test image {error.image} is not finite; the weights are not usable"
        raise UserError(message) from error
    return scores.estimates(COUNTS, curves, exact, f"mean of {len(images)} test images", view.run.note)


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

    if view.run.latent_dim > MOST_DIMENSIONS:
        return None
    with contextlib.suppress(NotResolvedError):
        return float(quadrature(view.model, images, seed=view.config.seed).log_px.mean())
    return None
