"""What a user's own prior, network or objective must do, and whether it does.

A prior is a layer as in priors.py: made from (latent_dim, encode, pseudo_inputs) and its `settings` by name, with a
`distribution()` that has `sample(n, seed)` and `log_prob(z)`. A network is a class as in networks.py, an objective one
as in objectives.py.
"""

import contextlib
import inspect
from typing import NamedTuple

import numpy as np
from keras import layers, ops

from . import line_in
from .base import generator
from .distributions import _one_layer, itself
from .gradients import value_and_gradient

METHODS = {"prior": ("distribution",), "network": ("image_encoder", "decoder"), "objective": ("outcome", "draw")}
DRAWS = 20_000  # of a prior, to look at its density
NEAR = 2000  # of these, around each of some
AT_ONCE = 4000  # points whose density is computed at once
SIDES = (100, 200, 400, 800)  # cells in each of two directions, until the integral no longer changes
SURE = 5  # standard errors


class Completed(NamedTuple):
    """A distribution with the two primitives, `of`, and what follows from them."""

    of: object
    log_prob_of_layers = _one_layer
    top = base = property(itself)

    def sample(self, n, seed):
        """As that of `of`: (n, D). Stochastic."""
        return self.of.sample(n, seed)

    def log_prob(self, z):
        """As that of `of`: (..., D) -> (...)."""
        return self.of.log_prob(z)

    def sample_and_log_prob(self, n, seed):
        """`n` draws and their log-densities: (n, D) and (n,). Stochastic."""
        z = self.of.sample(n, seed)
        return z, self.of.log_prob(z)


def completed(prior_class):
    """A user's class of priors whose distributions have all that models need."""

    class Prior(prior_class):
        floats_per_sample = getattr(prior_class, "floats_per_sample", 1000)  # a guess

        def distribution(self):
            made = super().distribution()
            if missing := [name for name in ("sample", "log_prob") if not callable(getattr(made, name, None))]:
                raise ValueError(f"{prior_class.__name__}.distribution() returns {made!r:.80}, without {missing[0]}")
            return made if hasattr(made, "log_prob_of_layers") else Completed(made)

    Prior.__name__ = prior_class.__name__  # in Python's own messages
    return Prior


@contextlib.contextmanager
def kept(classes):
    """Any error of the block, which uses a user's own classes, is a ValueError that says which and where.

    Raises it for a class that lacks a method before the block is entered.
    """
    for pick, one in classes.items():
        if missing := [name for name in METHODS[pick] if not callable(getattr(one, name, None))]:
            raise ValueError(f"{pick} {one.__name__} lacks the method {missing[0]}")
        if pick == "prior" and not issubclass(one, layers.Layer):
            raise ValueError(f"prior {one.__name__} is no keras.layers.Layer, so its weights could not be trained")
    try:
        yield
    except Exception as error:
        where = {one.__name__: line_in(inspect.getfile(one), error) for one in classes.values()}
        names = [name for name, line in where.items() if line] or [*where]
        if isinstance(error, ValueError) and not where[names[0]]:
            raise
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{names[0]} fails{where[names[0]]}: {said}") from error


def check(classes, model):
    """Raises ValueError where an own class of a model does not keep the contract; returns what could not be checked."""
    with kept(classes):
        x = np.zeros((2, *model.image_shape), "float32")
        if getattr(classes.get("network"), "starts_at_mean", False) and not hasattr(model.decoder, "start_at"):
            raise ValueError(
                f"{classes['network'].__name__} starts at the mean, and its decoder has no method start_at"
            )
        _check_terms(model.terms(x, 3, generator(0)), (3, 2), classes)
        for training in (False, True) if "objective" in classes else ():
            outcome = model.objective.outcome(model, x, generator(0), 1.0, training)
            _check_outcome(classes["objective"], model.objective, outcome)
        return check_density(model.top_prior.distribution(), classes["prior"].__name__) if "prior" in classes else ""


def _check_terms(terms, shape, classes):
    culprits = dict(zip(terms._fields, ("network", "prior", "network"), strict=False))
    for name, pick in culprits.items():
        found = tuple(getattr(terms, name).shape)
        if found != shape and pick in classes:
            raise ValueError(f"{name} has shape {found} for 3 samples of 2 images, not {shape}")


def _check_outcome(one, objective, outcome):
    for name in ("loss", "bound"):
        if (shape := tuple(ops.shape(getattr(outcome, name)))) != (2,):
            raise ValueError(f"{one.__name__}.outcome has a {name} of shape {shape} for 2 images, not (2,)")
    if missing := set(objective.logged) - {"bound", *outcome.logs}:
        raise ValueError(f"{one.__name__}.outcome lacks {missing.pop()!r} among its logs, which `logged` names")


def check_density(p, name):
    """Raises ValueError where p(z) is not normalised, or its sampler draws from another distribution.

    With one or two dimensions, by the integral of the density and the means of waves under it. With more, by Stein's
    identities, E[d log p / dz] = 0 and E[z d log p / dz] = -1, and by the mean over samples of r(z) / p(z), which is 1
    for each normalised density r that has mass only where p has; these are Gaussians around all samples or some.
    Returns a sentence where the second finds no r whose ratio has a small error, else "".
    """
    z = p.sample(DRAWS, generator(0))
    if len(z.shape) != 2 or z.shape[0] != DRAWS:
        raise ValueError(f"{name} draws samples of shape {tuple(z.shape)}, not ({DRAWS}, D), for sample({DRAWS}, seed)")
    values = np.asarray(ops.convert_to_numpy(z), "float64")
    if (shape := tuple(p.log_prob(z[:5]).shape)) != (5,):
        raise ValueError(f"{name}: log_prob of samples (5, {z.shape[1]}) has shape {shape}, not (5,)")
    some, again, other = (ops.convert_to_numpy(p.sample(5, generator(seed))) for seed in (0, 0, 1))
    if np.array_equal(some, other) or not np.array_equal(some, again):
        raise ValueError(f"{name}.distribution().sample(n, seed) must draw by its seed, a keras.random.SeedGenerator")
    log_p = _log_prob(p, values)
    if not np.isfinite(log_p).all():
        raise ValueError(f"{name}: log_prob is {log_p[~np.isfinite(log_p)][0]} at one of its own samples")
    found = ops.convert_to_numpy(p.log_prob(ops.reshape(z[:6], (2, 3, -1))))
    if found.shape != (2, 3) or not np.allclose(found.ravel(), log_p[:6], rtol=1e-3, atol=1e-3):
        said = "samples (2, 3, D) has other values than that of the same samples (6, D): sum over axis=-1"
        raise ValueError(f"{name}: log_prob of {said}")
    return (_by_grid if z.shape[1] < 3 else _by_ratio)(p, name, values, log_p)


def _log_prob(p, z):
    """log p of points (N, D), float64, some at a time."""
    parts = [
        p.log_prob(ops.convert_to_tensor(part.astype("float32"))) for part in np.array_split(z, -(-len(z) // AT_ONCE))
    ]
    return np.concatenate([np.asarray(ops.convert_to_numpy(part), "float64") for part in parts])


def _by_grid(p, name, z, log_p):
    low, high = z.min(axis=0), z.max(axis=0)
    low, high, before = low - (high - low) / 2, high + (high - low) / 2, np.inf
    for side in SIDES if z.shape[1] == 2 else [20 * side for side in SIDES]:
        edges = np.linspace(low, high, side + 1)  # (side + 1, D)
        middles = (edges[1:] + edges[:-1]) / 2
        points = np.stack(np.meshgrid(*middles.T, indexing="ij"), axis=-1).reshape(-1, z.shape[1])
        log_middle, width = _log_prob(p, points), np.maximum(edges[1] - edges[0], 1e-30)  # where all samples are equal
        mass = np.exp(log_middle) * np.prod(width)
        total, moved, before = mass.sum(), abs(mass.sum() - before), mass.sum()
        cells = np.floor((z - low) / width).astype(int) @ side ** np.arange(z.shape[1])[::-1]
        missed = np.mean(log_p - log_middle[cells] > 1)  # of samples, in peaks narrower than a cell
        if moved < 0.003 * total and missed < 0.01:
            break
    else:
        return f"the density of {name} changes too fast to be integrated on {SIDES[-1]} x {SIDES[-1]} points"
    if not abs(total - 1) < 0.02:
        where = "over the region of its samples, widened twofold"
        raise ValueError(f"{name} is not normalised: its density integrates to {total:.3g}, not to 1, {where}")
    scale = z.std(axis=0)
    for wave in np.random.default_rng(0).normal(size=(8, z.shape[1])) / scale:
        for f in (np.cos, np.sin):
            drawn = f((z - z.mean(axis=0)) @ wave)
            expected = mass @ f((points - z.mean(axis=0)) @ wave) / total
            _check_mean(drawn, expected, 0.01, name)
    return ""


def _check_mean(drawn, expected, slack, name):
    error = drawn.std() / np.sqrt(len(drawn))
    if not abs(drawn.mean() - expected) < SURE * error + slack:
        said = f"what has mean {expected:.3g} by the density has mean {drawn.mean():.3g} ± {error:.2g} over samples"
        raise ValueError(f"{name} draws other samples than its density says: {said}")


def _by_ratio(p, name, z, log_p):
    some = z[:AT_ONCE]
    slopes = value_and_gradient(lambda z: (p.log_prob(z), ()), ops.convert_to_tensor(some.astype("float32")))[2]
    if slopes is None:
        raise ValueError(f"{name}: log_prob(z) has no gradient with respect to z, which training needs")
    slopes = np.asarray(ops.convert_to_numpy(slopes), "float64")
    for weight, expected in ((some - z.mean(axis=0), -1.0), (z.std(axis=0), 0.0)):
        for drawn in (weight * slopes).T:
            _check_mean(drawn, expected, 0.02, name)
    rng, lowest, is_known = np.random.default_rng(0), np.quantile(log_p, 0.005), False
    near = [np.argsort(((z - one) ** 2).sum(axis=1))[:NEAR] for one in z[:4]]
    for some in (slice(None), *near):
        for shrunk in (0.9, 0.5, 0.25):
            mean, variance = z[some].mean(axis=0), shrunk * z[some].var(axis=0)
            drawn = mean + np.sqrt(variance) * rng.normal(size=(1000, z.shape[1]))
            if np.mean(_log_prob(p, drawn) < lowest) > 0.002:  # r has mass where there are no samples
                continue
            squares = (z - mean) ** 2 / variance + np.log(2 * np.pi * variance)
            ratio = np.exp(-0.5 * squares.sum(axis=1) - log_p)
            error = ratio.std() / np.sqrt(len(ratio))
            if error > 0.03 * ratio.mean():  # of few effective samples
                continue
            is_known |= bool(error < 0.015)
            if not abs(ratio.mean() - 1) < SURE * error + 0.03:
                said = f"over its samples, the mean of r(z) / p(z) is {ratio.mean():.3g} ± {error:.2g}, not 1"
                raise ValueError(f"{name} is not normalised, or draws other samples than its density says: {said}")
    return "" if is_known else f"whether the density of {name} is normalised in {z.shape[1]} dimensions cannot be seen"
