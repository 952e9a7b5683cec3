"""Estimates of log p(x) by more and more samples."""

import contextlib

import numpy as np

from plotting import comparisons

ESTIMATED = 50  # images whose log p(x) is estimated by more and more samples


COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)  # of these


def by_samples(log_w):
    """The mean estimate of log p(x) by each of COUNTS samples, and its standard error, from log-weights (N, S): (n, 2).

    For s samples, the S are divided into groups of s. Their mean comes near the expectation of an estimate by s
    samples; its error is told by how much they differ, or where there is one group, by the delta method.
    """
    from evaluation.importance import Sums

    rows, (n, most) = [], log_w.shape
    for count in COUNTS:
        groups = log_w[:, : most // count * count].reshape(n, -1, count)
        peak = comparisons.max(axis=2)
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
