"""FID and KID against their closed forms, against SciPy, and in standard errors."""

import math

import numpy as np
import pytest
import scipy.linalg

from evaluation import distances

N, M, F = 900, 700, 5


def gaussian(n, mean, covariance, seed=0):
    """n features whose sample mean and sample covariance are these, to rounding: (n, F)."""
    x = np.random.default_rng(seed).normal(size=(n, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T  # white, not about but exactly
    return x @ np.linalg.cholesky(covariance).T + mean


def covariance(seed):
    root = np.random.default_rng(seed).normal(size=(F, F))
    return root @ root.T + 0.1 * np.eye(F)


def drawn(n, seed, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, F)) + shift


# ---------------------------------------------------------------------------------------------- frechet


def test_fid_of_gaussians_is_its_closed_form():
    mean_x, mean_y = np.arange(F), np.linspace(3, -1, F)
    s_x, s_y = covariance(1), covariance(2)
    expected = np.sum((mean_x - mean_y) ** 2) + np.trace(s_x + s_y - 2 * scipy.linalg.sqrtm(s_x @ s_y).real)
    assert distances.frechet(gaussian(N, mean_x, s_x), gaussian(M, mean_y, s_y)) == pytest.approx(expected, rel=1e-9)


def test_fid_of_commuting_covariances_is_that_of_standard_deviations():
    sd_x, sd_y = np.arange(1.0, F + 1), np.linspace(2, 0.1, F)
    found = distances.frechet(gaussian(N, np.zeros(F), np.diag(sd_x**2)), gaussian(M, np.ones(F), np.diag(sd_y**2)))
    assert found == pytest.approx(F + np.sum((sd_x - sd_y) ** 2), rel=1e-9)


def test_fid_of_the_same_is_0_and_of_a_shift_its_square():
    x = drawn(N, 0) @ covariance(1)
    assert distances.frechet(x, x) == pytest.approx(0, abs=1e-10)
    assert distances.frechet(x, x + 2) == pytest.approx(4 * F, rel=1e-9)


def test_fid_takes_covariances_of_less_than_full_rank():
    """Features that never fire, copies of others, and fewer images than features."""
    x, y = drawn(N, 0), drawn(M, 1, 1.0)
    padded = [np.concatenate([side, side[:, :2], np.zeros((len(side), 3))], axis=1) for side in (x, y)]
    once = [side * np.sqrt([2, 2, 1, 1, 1]) for side in (x, y)]  # two columns twice, on one axis of sqrt(2) the length
    assert distances.frechet(*padded) == pytest.approx(distances.frechet(*once), rel=1e-9)
    few = drawn(3, 2)
    assert distances.frechet(few, few) == pytest.approx(0, abs=1e-10)
    assert distances.frechet(few, few[::-1] - 1) == pytest.approx(F, rel=1e-9)


def test_fid_is_biased_by_one_over_the_number_of_features():
    """For equal distributions: twice as many features, half of it."""
    means = [np.mean([distances.frechet(drawn(n, 2 * s), drawn(n, 2 * s + 1)) for s in range(40)]) for n in (100, 200)]
    assert means[0] / means[1] == pytest.approx(2, rel=0.2) and means[1] > 0


# ---------------------------------------------------------------------------------------------- kernel


def test_mmd_is_the_sum_over_pairs():
    x, y = drawn(4, 0), drawn(3, 1)

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / F + 1) ** 3

    within = [
        np.mean([k(side[i], side[j]) for i in range(n) for j in range(n) if i != j]) for side, n in ((x, 4), (y, 3))
    ]
    expected = sum(within) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert distances.mmd2(x, y) == pytest.approx(expected, rel=1e-12)


def test_kid_of_equal_distributions_is_0_in_standard_errors():
    found = [distances.kernel(drawn(N, 2 * s), drawn(M, 2 * s + 1)) for s in range(60)]
    values, errors = np.array([(one["kid"], one["kid_se"]) for one in found]).T
    assert abs(values.mean()) < 3 * values.std(ddof=1) / math.sqrt(60)
    assert (values < 0).any() and (values > 0).any()
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(ddof=1), rel=0.3)  # they are what they say


@pytest.mark.slow
def test_kid_of_two_distributions_is_its_expectation_in_standard_errors():
    shift = 0.8
    found = distances.kernel(drawn(40_000, 0), drawn(40_000, 1, shift))

    def expected(m, n):
        """E k(x, y) for x ~ N(m, I) and y ~ N(n, I): x.y given x is N(n sum x, |x|^2), and of x the mean of many."""
        x = np.random.default_rng(3).normal(size=(400_000, F)) + m
        mean, variance = n * x.sum(axis=1) / F + 1, np.sum(x**2, axis=1) / F**2
        return np.mean(mean**3 + 3 * mean * variance)

    truth = expected(0, 0) + expected(shift, shift) - 2 * expected(0, shift)
    assert (found["kid_subsets"], found["kid_subset_size"]) == (40, 1000)
    assert abs(found["kid"] - truth) < 4 * found["kid_se"] and found["kid_se"] < 0.05 * truth


@pytest.mark.parametrize(
    ("n", "subsets", "size"),
    [pytest.param(25_000, 25, 1000, marks=pytest.mark.slow), (300, 10, 30), (25, 12, 2), (3, 1, 2)],
)
def test_kid_has_ten_subsets_or_more_where_it_can(n, subsets, size):
    found = distances.kernel(drawn(n, 0)[:, :2], drawn(n + 7, 1)[:, :2])
    assert (found["kid_subsets"], found["kid_subset_size"]) == (subsets, size)
    assert (found["kid_se"] is None) == (subsets == 1)


def test_neither_depends_on_the_order_of_images_or_of_features():
    rng = np.random.default_rng(0)
    x, y = drawn(N, 0), drawn(M, 1, 0.5)
    images, features = rng.permutation(N), rng.permutation(F)
    assert distances.frechet(x[images], y) == pytest.approx(distances.frechet(x, y), rel=1e-9)
    assert distances.mmd2(x[images], y) == pytest.approx(distances.mmd2(x, y), rel=1e-9)
    for distance in (distances.frechet, distances.mmd2, lambda x, y: distances.kernel(x, y)["kid"]):
        assert distance(x[:, features], y[:, features]) == pytest.approx(distance(x, y), rel=1e-9)
        assert distance(np.float32(x), np.float32(y)) == pytest.approx(distance(x, y), rel=1e-4)
    shuffled, usual = distances.kernel(x[images], y), distances.kernel(x, y)  # other subsets
    assert abs(shuffled["kid"] - usual["kid"]) < 4 * math.hypot(shuffled["kid_se"], usual["kid_se"])
