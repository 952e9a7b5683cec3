"""log p(x) by annealed importance sampling with Hamiltonian steps, and bounds from both sides on simulated images."""

import functools
import math
from typing import NamedTuple

import numpy as np
from keras import ops

from evaluation.compiled import Compiled, KeyedSeeds, NotFiniteError, by_image, key_of, padded
from evaluation.importance import CHUNK_BYTES, Estimate, Sums
from evaluation.proposals import Calls, FittedMixture, FittedProposal
from models.base import generator
from models.mcmc import Path, Point, hamiltonian

TARGET = 0.65  # acceptance rate for which step sizes are chosen (Neal 2011, section 5.4.4)
STEP = 0.3  # the first step size, in standard deviations
SIGMOID = 4.0  # half-width of the schedule from the prior (Wu et al. 2017, section 5.1)
PILOTS, RATE = 3, 0.5  # passes over images that choose the step sizes, and how fast these change
DRAWS = 4000  # of p(z), which give its standard deviations
FIT_SAMPLES = 1000  # as many as the fits of the start are made for


class Annealing(NamedTuple):
    """How to anneal: `chains` over `temperatures`, with so many `leapfrogs` each.

    `start`: "posterior", q(z|x); "prior", p(z); or "fitted", the `FittedMixture` of several modes of p(z|x).
    """

    chains: int = 16
    temperatures: int = 100
    leapfrogs: int = 5
    start: str = "posterior"

    @property
    def betas(self):
        """0 = b_0 < ... < b_T = 1, (T + 1,): linear, but a sigmoid from p(z), which is further away."""
        line = np.linspace(0, 1, self.temperatures + 1)
        if self.start != "prior":
            return line
        raw = 1 / (1 + np.exp(-SIGMOID * (2 * line - 1)))
        return (raw - raw[0]) / (raw[-1] - raw[0])


class AnnealedSampling:
    """Annealed importance sampling of a model: chains from a start to p(z|x), with fixed step sizes.

    log gamma_b = (1 - b) log start(z) + b log p(x, z) (Neal 2001, eq. 3), with steps of Hamiltonian Monte Carlo, scaled
    from the standard deviations of the start to those of q(z|x). `tune` chooses their sizes on images that are not
    scored, as a step size that depends on its chain would bias the chain's weight. `images` is the largest number of
    images in a call, if that is known.
    """

    def __init__(self, model, annealing, seed=0, max_bytes=None, images=None):
        self.model, self.annealing = model, annealing
        each = 6 * annealing.chains * model.bytes_per_sample  # gradients take more memory than values
        self.rows = max(1, min((max_bytes or CHUNK_BYTES) // each, images or CHUNK_BYTES))
        self.seeds = np.random.SeedSequence(seed)
        self.seed, of_fits = map(int, self.seeds.generate_state(2))  # fits must not know the latents of `bracket`
        prior_sd = ops.convert_to_numpy(model.prior().sample(DRAWS, generator(self.seed))).std(axis=0)
        most = (max_bytes or CHUNK_BYTES) // model.bytes_per_sample
        calls = Calls(FIT_SAMPLES, 1, self.rows, most, self.rows)
        self.fits = FittedProposal(model, calls, seed=of_fits) if annealing.start == "fitted" else None
        self.start = Compiled(model, functools.partial(chain_start, annealing=annealing))
        self.place = Compiled(model, functools.partial(chain_place, annealing=annealing), self.start)
        self.move = Compiled(model, functools.partial(chain_move, annealing=annealing, prior_sd=prior_sd), self.start)
        self.steps = np.full(annealing.temperatures - 1, STEP)  # for b_1, ..., b_{T-1}
        self.acceptance = math.nan

    def tune(self, images):
        """Chooses step sizes with which 65 % of all steps are accepted, on the first of these images (N, H, W, C)."""
        arrays = self._prepared(images[: self.rows], 0)
        for _ in range(PILOTS):
            self._walked(arrays, tuning=True)

    def log_px(self, images, progress=lambda done: None):
        """log p(x) = log mean exp of the log-weights of M chains: an `Estimate`. Its expectation is at most log p(x).

        Images (N, H, W, C); `samples` is M. Sets `acceptance`, the rate of accepted steps. Stochastic. Raises
        NotFiniteError for a weight that is NaN.
        """
        parts, accepted, counts = [], [], []
        for first in range(0, len(images), self.rows):
            x = images[first : first + self.rows]
            arrays = self._prepared(x, first)
            log_w = self._walked(arrays)[: len(x)]
            NotFiniteError.check(first, log_w)
            parts.append(Sums.none(len(x), log_w.shape[1]).weighed(log_w, np.ones(log_w.shape, bool)).estimate())
            accepted.append(self.acceptance)
            counts.append(len(x))
            progress(len(x))
        self.acceptance = float(np.average(accepted, weights=counts))
        return Estimate(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    def bracket(self, count):
        """Stochastic lower and upper bounds on log p(x) of `count` images drawn from the model, (N,) each.

        Bidirectional Monte Carlo (Grosse et al. 2015): the lower bound is `log_px`. The latents that an image came from
        are a draw of its p(z|x); from there, chains go back to the start, and their mean weight estimates 1 / p(x).
        """
        noise, parts = generator(self.seed), []
        for _ in range(0, count, self.rows):
            z = self.model.prior().sample(self.rows, noise)
            x = np.asarray(ops.convert_to_numpy(self.model.likelihood(z).sample(1, noise))[0], "float32")
            known = np.repeat(ops.convert_to_numpy(z)[:, None], self.annealing.chains, axis=1)
            arrays = self._prepared(x, 0)
            walks = self._walked(arrays), self._walked(arrays, known)
            forth, back = (np.logaddexp.reduce(log_w, axis=1) - math.log(log_w.shape[1]) for log_w in walks)
            parts.append([forth, -back])
        return [np.concatenate(part)[:count] for part in zip(*parts, strict=True)]

    def _prepared(self, x, first):
        """What the chains of images x, of which the first has this index, need: x and its fits, padded. Stochastic."""
        arrays = self.fits.prepared(x, first, self.seeds.spawn(1)[0])[0] if self.fits else [x]
        return [padded(array, self.rows) for array in arrays]

    def _walked(self, arrays, known=None, tuning=False):
        """Log-weights (B, M) of chains along the betas, or backwards from `known` latents (B, M, D). Stochastic."""
        way = 1 if known is None else -1
        betas, steps = self.annealing.betas[::way], self.steps[::way]  # a view
        z = self.start.predict_on_batch([*arrays, key_of(self.seeds.spawn(1)[0])]) if known is None else known
        state, accepted = self.place.predict_on_batch([*arrays, z]), []
        log_w = (betas[1] - betas[0]) * _difference(state)
        for t in range(1, len(betas) - 1):
            settings = np.tile(np.float32([betas[t], steps[t - 1]]), (len(z), 1))
            *state, log_accept = self.move.predict_on_batch([*arrays, *state, settings, key_of(self.seeds.spawn(1)[0])])
            accepted.append(float(np.mean(np.exp(log_accept))))
            log_w = log_w + (betas[t + 1] - betas[t]) * _difference(state)
            if tuning:  # later temperatures begin with the size found here
                steps[t - 1 :] *= math.exp(RATE * (accepted[-1] - TARGET))
        if accepted and known is None:
            self.acceptance = float(np.mean(accepted))
        return log_w


def _difference(state):
    """log p(x, z) - log start(z) of chains."""
    _, log_start, log_end, *_ = state
    return np.asarray(log_end, "float64") - np.asarray(log_start, "float64")


def chain_ends(compiled, arrays, annealing):
    """The start's distribution and q(z|x), given images and, for the start "fitted", their fits."""
    x, *fits = arrays
    posterior, prior = compiled.model.posterior(x), compiled.prior()
    if fits:
        return FittedMixture(*fits, posterior, prior), posterior
    return prior if annealing.start == "prior" else posterior, posterior


def chain_start(compiled, *inputs, annealing):
    """From `arrays` and a key to the first positions, draws of the start: (B, M, D). Stochastic."""
    *arrays, key = inputs
    chains, batch, seed = annealing.chains, arrays[0].shape[0], KeyedSeeds(key)
    start, _ = chain_ends(compiled, arrays, annealing)
    if annealing.start != "prior":
        return by_image(start.sample(chains, seed))
    return ops.reshape(start.sample(batch * chains, seed), (batch, chains, -1))


def chain_place(compiled, *inputs, annealing):
    """From `arrays` and positions z (B, M, D) to z, log_start, log_end, grad_start, grad_end, all image-first."""
    *arrays, z = inputs
    start, _ = chain_ends(compiled, arrays, annealing)
    point = Path(start.log_prob, compiled.log_joint(arrays[0])).at(by_image(z))
    return [by_image(field) for field in point[:-1]]


def chain_move(compiled, *inputs, annealing, prior_sd):
    """One Hamiltonian step of chains: from `arrays`, the fields of Points, b and the step size (equal in all rows), and
    a key to the fields of the new Points and log_accept. Stochastic.
    """
    *arrays, z, log_start, log_end, grad_start, grad_end, settings, key = inputs
    b, step = settings[0, 0], settings[0, 1]
    start, posterior = chain_ends(compiled, arrays, annealing)
    precision = ops.exp(-posterior.at_mean().logvar)
    if annealing.start == "prior":
        precision = (1 - b) / prior_sd**2 + b * precision
    point = Point(*(by_image(field) for field in (z, log_start, log_end, grad_start, grad_end)), ())
    path, scale = Path(start.log_prob, compiled.log_joint(arrays[0])), ops.rsqrt(precision)
    point, log_accept = hamiltonian(path, point, b, step, scale, annealing.leapfrogs, KeyedSeeds(key))
    return [by_image(field) for field in (*point[:-1], log_accept)]
