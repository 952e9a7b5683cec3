"""Distances between the features of two sets of images: FID and KID. Arrays in, numbers out."""

import math

import numpy as np

SUBSET = 1000  # features of each side in a subset (Binkowski et al. 2018)
SUBSETS = 10  # at least; subsets of fewer features are smaller


def frechet(x, y):
    """|m_x - m_y|^2 + Tr(S_x + S_y - 2 (S_x S_y)^(1/2)) for features (N, F), (M, F), N, M > 1 (Heusel et al. 2017).

    This is the squared 2-Wasserstein distance of two Gaussians with the means m and covariances S of the features. It
    is biased upwards by about c / N, and c depends on the distributions: compare values of equal N and M only. With
    S = R' R the trace of the root is the sum of the singular values of R_x R_y', so that no matrix root is needed, and
    a singular covariance is no special case.
    """
    (mean_x, root_x), (mean_y, root_y) = _moments(x), _moments(y)
    spread = np.sum(root_x**2) + np.sum(root_y**2) - 2 * np.linalg.norm(root_x @ root_y.T, "nuc")
    return max(0.0, float(np.sum((mean_x - mean_y) ** 2) + spread))  # rounding may leave less


def _moments(x):
    """The mean (F,) of features (N, F) and R (min(N, F), F) with R' R their covariance."""
    x = np.asarray(x, "float64")
    mean = x.mean(axis=0)
    return mean, np.linalg.qr((x - mean) / math.sqrt(len(x) - 1), mode="r")


def kernel(x, y, seed=0):
    """KID of features (N, F) and (M, F), N, M > 1, with error and subsets, a dict (Binkowski et al. 2018). Stochastic.

    The mean of `mmd2` over disjoint subsets of both, drawn by `seed`. It is unbiased for every N and M, and so negative
    half of the time for equal distributions. Disjoint subsets are independent, so the standard error is that of a mean
    of independent values, None for one subset.
    """
    rng, fewer = np.random.default_rng(seed), min(len(x), len(y))
    size = max(2, min(SUBSET, fewer // SUBSETS))
    n = fewer // size
    parts = [side[rng.permutation(len(side))[: n * size]].reshape(n, size, -1) for side in (x, y)]
    values = [mmd2(*pair) for pair in zip(*parts, strict=True)]
    se = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None
    return {"kid": float(np.mean(values)), "kid_se": se, "kid_subsets": n, "kid_subset_size": size}


def mmd2(x, y):
    """The unbiased squared MMD of features (n, F) and (m, F) with the kernel k(x, y) = (x.y / F + 1)^3.

    sum_{i != j} k(x_i, x_j) / (n (n - 1)) plus the same for y, minus twice the mean of k(x_i, y_j) (Gretton et al.
    2012, eq. 3).
    """
    x, y = np.asarray(x, "float64"), np.asarray(y, "float64")

    def k(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a):
        gram = k(a, a)
        return (gram.sum() - np.trace(gram)) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * k(x, y).mean())
