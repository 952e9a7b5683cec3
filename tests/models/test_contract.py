"""What is checked of a user's own prior, network or objective."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import on_tensorflow
from keras import layers, ops, random

from models import contract
from models.distributions import Mixture, Normal


def tensor(value):
    return ops.convert_to_tensor(np.asarray(value, "float32"))


class Changed:
    """The samples of one distribution, moved and scaled, and the density of another, times a factor."""

    def __init__(self, p, q=None, scale=1.0, shift=0.0, log_factor=0.0):
        self.p, self.q, self.scale, self.shift, self.log_factor = p, q or p, scale, shift, log_factor

    def sample(self, n, seed):
        return self.q.sample(n, seed) * self.scale + self.shift

    def log_prob(self, z):
        return self.p.log_prob(z) + self.log_factor


class Laplace:
    """Independent Laplace distributions: heavier tails, and a density with an edge."""

    def __init__(self, dim):
        self.dim = dim

    def sample(self, n, seed):
        u = random.uniform((n, self.dim), -1, 1, seed=seed)
        return -ops.sign(u) * ops.log(1 - ops.abs(u) + 1e-7)

    def log_prob(self, z):
        return -ops.sum(ops.abs(z), axis=-1) - self.dim * math.log(2)


def normal(dim):
    draw = np.random.default_rng(dim)
    return Normal(tensor(draw.normal(size=dim)), tensor(draw.normal(size=dim)))


def mixture(dim, weights, apart=6.0):
    draw = np.random.default_rng(1)
    means = apart * draw.normal(size=(len(weights), dim))
    return Mixture(tensor(np.log(weights)), tensor(means), tensor(draw.normal(size=(len(weights), dim)) / 2 - 1))


EVEN, UNEVEN = [1 / 3, 1 / 3, 1 / 3], [0.6, 0.2, 0.2]
DIMENSIONS = [1, 2, 3, pytest.param(40, marks=on_tensorflow)]


@pytest.mark.parametrize("dim", DIMENSIONS)
def test_what_is_normalised_and_draws_from_itself_is_taken(dim):
    few = mixture(dim, [0.5, 0.5], 1.0)
    for p in (normal(dim), Laplace(dim), few, mixture(dim, EVEN), contract.Completed(normal(dim))):
        said = contract.check_density(p, "P")
        assert said == "" or "cannot be seen" in said
    assert contract.check_density(normal(dim), "P") == ""


@pytest.mark.parametrize("dim", DIMENSIONS)
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"scale": 1.2}, "draws other samples than its density says"),
        ({"scale": 0.5}, "draws other samples than its density says"),
        ({"shift": 0.3}, "draws other samples than its density says"),
        ({"log_factor": 0.2}, "is not normalised"),
        ({"log_factor": -0.2}, "is not normalised"),
    ],
)
def test_what_is_not_is_refused(dim, changes, expected):
    with pytest.raises(ValueError, match=f"^P {expected}"):
        contract.check_density(Changed(normal(dim), **changes), "P")


@pytest.mark.parametrize("dim", DIMENSIONS[:3])
def test_other_weights_of_far_components_are_seen(dim):
    with pytest.raises(ValueError, match="draws other samples than its density says"):
        contract.check_density(Changed(mixture(dim, EVEN), mixture(dim, UNEVEN)), "P")


@pytest.mark.parametrize("dim", [1, 2])
def test_a_peak_that_the_grid_does_not_see_is_no_fault(dim):
    """Half of the mass is within 1e-5 of a point."""
    peaked = Mixture(tensor(np.log([0.5, 0.5])), tensor(np.full((2, dim), 0.123)), tensor([dim * [0.0], dim * [-23.0]]))
    assert "changes too fast" in contract.check_density(peaked, "P")


@pytest.mark.parametrize(
    ("sample", "log_prob", "expected"),
    [
        (lambda n, seed: ops.zeros((n,)), None, r"draws samples of shape \(20000,\), not \(20000, D\)"),
        (None, lambda z: z, r"log_prob of samples \(5, 2\) has shape \(5, 2\), not \(5,\)"),
        (None, lambda z: ops.log(z[:, 0]), "log_prob is nan at one of its own samples"),
        (None, lambda z: ops.sum(normal(1).log_prob(z[..., None]), axis=1), r"\(6, D\): sum over axis=-1"),
        (lambda n, seed: ops.reshape(ops.sin(ops.arange(2.0 * n)), (n, 2)), None, "must draw by its seed"),
        (lambda n, seed: random.normal((n, 2)), None, "must draw by its seed"),
        (None, lambda z: ops.zeros_like(z[:, 0]) - np.inf, "log_prob is -inf at one of its own samples"),
    ],
)
def test_shapes_and_values_are_looked_at(sample, log_prob, expected):
    p = normal(2)
    with pytest.raises(ValueError, match=expected):
        contract.check_density(SimpleNamespace(sample=sample or p.sample, log_prob=log_prob or p.log_prob), "P")


def test_a_distribution_is_completed_or_lacks_something():
    class Good(layers.Layer):
        def distribution(self):
            return SimpleNamespace(sample=normal(2).sample, log_prob=normal(2).log_prob)

    class Known(layers.Layer):
        floats_per_sample = 4

        def distribution(self):
            return normal(2)

    class Bad(layers.Layer):
        def distribution(self):
            return SimpleNamespace(sample=1, log_prob=2)

    p = contract.completed(Good)().distribution()
    z, log_p = p.sample_and_log_prob(3, random.SeedGenerator(0))
    assert p.base is p.top is p and tuple(z.shape) == (3, 2)
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (log_p, p.log_prob_of_layers(z)[0])))
    known = contract.completed(Known)()
    assert isinstance(known.distribution(), Normal) and known.floats_per_sample == 4
    with pytest.raises(ValueError, match=r"Bad.distribution\(\) returns .*, without sample"):
        contract.completed(Bad)().distribution()


@pytest.mark.parametrize(
    ("pick", "method"), [("prior", "distribution"), ("network", "image_encoder"), ("objective", "outcome")]
)
def test_a_class_that_lacks_a_method_is_named(pick, method):
    with (
        pytest.raises(ValueError, match=f"{pick} Empty lacks the method {method}"),
        contract.kept({pick: type("Empty", (), {})}),
    ):
        pass


def test_samples_that_are_equal_in_one_dimension_are_a_warning():
    flat = Mixture(tensor([0.0]), tensor([[0.0, 0.5]]), tensor([[0.0, -1e3]]))
    assert "changes too fast" in contract.check_density(
        SimpleNamespace(sample=flat.sample, log_prob=normal(2).log_prob), "P"
    )


def test_a_prior_whose_weights_keras_would_not_know_is_refused():
    class Plain:
        def distribution(self):
            return normal(2)

    with pytest.raises(ValueError, match="prior Plain is no keras"), contract.kept({"prior": Plain}):
        pass


def test_an_error_in_a_users_class_says_where_it_is():
    class Wrong:
        def outcome(self):
            return 1 / 0

        draw = outcome

    expected = r"^Wrong fails \(line \d+\): ZeroDivisionError: division by zero$"
    with pytest.raises(ValueError, match=expected), contract.kept({"objective": Wrong}):
        Wrong().outcome()
