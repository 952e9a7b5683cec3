"""Monte Carlo VAE bounds: log-weights of annealed chains from q(z|x) to p(z|x) (Thin et al. 2021)."""

import functools
import itertools
import math

import numpy as np
from keras import initializers, layers, ops

from . import mcmc
from .networks import Between, Drift
from .objectives import Outcome, effective_samples, elbo, path_of, terms_of

STEPS = (1e-5, 1.0)  # bounds of a step size that adapts or is learned
RISE, FALL = math.log(1.002), math.log(0.998)  # of the log of a step size, where too many or too few steps are accepted
PACE, FASTER, SLOWER = math.log(0.1), math.log(1.02), math.log(0.99)  # where step sizes follow the gradients: likewise
KEPT = 0.9  # of the step sizes before
NEARLY_LINEAR = -3.0  # log of the first slope of a sigmoidal schedule


class Annealed(layers.Layer):
    """The mean log-weight of n chains of T steps from q(z|x) to p(z|x) (Thin et al. 2021, Monte Carlo VAEs).

    Step k goes towards q(z|x)^(1 - b_k) p(x, z)^b_k with b_k = k / (T + 1), or a schedule that is learned, by a step
    size of its own: fixed, learned, or moved by 0.2 % a training step so that `target` of the steps are accepted. With
    the rule "variance", it has one for each dimension; see `follow`. Where beta is not 1, it weighs what is not
    log p(x|z) in the loss; the chains are the same.
    """

    def __init__(self, config):
        super().__init__()
        self.n, self.logged, steps = config.samples, config.logged, config.num_steps
        self.target, self.follows_gradients = config.acceptance, config.step_rule == "variance"
        start, bounds = initializers.Constant(math.log(config.step_size)), Between(*map(math.log, STEPS))
        learns = config.learn_step_size == "on"
        shape = (steps, config.latent_dim) if self.follows_gradients else (steps,)
        self.log_step = self.add_weight(shape, start, trainable=learns, constraint=bounds, name="log_step")
        if self.follows_gradients:
            self.log_pace = self.add_weight((steps,), initializers.Constant(PACE), trainable=False, name="log_pace")
        self.is_sigmoidal = config.learn_schedule == "sigmoidal"
        line = [math.log(k) for k in range(1, steps + 1)]  # logits of k / (k + 1)
        start = {"sigmoidal": [NEARLY_LINEAR], "halving": [0.0] * steps}.get(config.learn_schedule, line)
        learns = config.learn_schedule != "off"
        self.schedule = self.add_weight((len(start),), np.array(start), trainable=learns, name="schedule")
        self.line, self.drifts = np.linspace(-1, 1, steps + 2)[1:-1], []
        self.built = True

    def betas(self):
        """b_k for k = 1..T, which rise and lie between 0 and 1: (T,).

        prod_{j >= k} sigmoid(u_j); or, sigmoidal, sigmoid(c t_k) for t_k = 2 k / (T + 1) - 1 and c = exp(u), with what
        it has at t = -1 and 1 moved to 0 and 1.
        """
        u = ops.convert_to_tensor(self.schedule)
        if self.is_sigmoidal:
            half = ops.exp(u) / 2
            return 0.5 + 0.5 * ops.tanh(half * ops.cast(self.line, u.dtype)) / ops.tanh(half)
        return ops.exp(ops.flip(ops.cumsum(ops.flip(ops.log_sigmoid(u)))))

    def steps(self):
        """The step sizes: (T,), or (T, D) where each dimension has its own."""
        return ops.exp(ops.convert_to_tensor(self.log_step))

    def outcome(self, model, x, seed, beta, training):
        """An Outcome, whose bound is the mean of W over chains. Stochastic; in training, step sizes may adapt."""
        walk = self.walked(model, x, self.n, seed, training)
        acceptance = ops.exp(walk.log_accept)  # (T, n, B)
        logs = self.logs_of(walk, acceptance)  # of the step sizes that were taken
        if training and self.target:
            is_high = ops.stop_gradient(ops.mean(acceptance, axis=(1, 2))) >= self.target
            if self.follows_gradients:
                self.follow(walk, is_high)
            else:
                self.log_step.assign(self.log_step.constraint(self.log_step + ops.where(is_high, RISE, FALL)))
        loss = self.training_loss(walk, beta) + self.mismatch(walk, x) if training else -elbo(walk.log_weight)
        return Outcome(terms_of(walk.points[0]), loss, elbo(walk.log_weight), logs)

    def logs_of(self, walk, acceptance):
        """The `logs` of an Outcome, each (B,); of each step, its acceptance and its size, the mean of those it has."""
        logs = {"ess": effective_samples(walk.log_weight), "acceptance": ops.mean(acceptance, axis=(0, 1))}
        logs["diverged"] = ops.mean(walk.diverged, axis=(0, 1))
        sizes = zip(ops.unstack(self.steps()), ops.unstack(ops.mean(acceptance, axis=1)), strict=True)
        for k, (size, accepted) in enumerate(sizes, 1):
            logs |= {f"acceptance_{k}": accepted, f"step_{k}": ops.mean(size) + ops.zeros_like(accepted)}
        return logs

    def follow(self, walk, is_high):
        """Moves a tenth of the way to e_k = c_k / (1 + s_k), with s_k the standard deviations of grad log gamma_{b_k}.

        s_k (D,) are over all chains and images where step k begins; c_k rises by 2 % where too many steps are accepted,
        and else falls by 1 % (Thin et al. 2021, their code).
        """
        starts = zip(ops.unstack(self.betas()), walk.points, strict=False)
        spread = ops.stack([ops.std(point.gradient(b), axis=(0, 1)) for b, point in starts])  # (T, D)
        pace = ops.convert_to_tensor(self.log_pace)
        aim = ops.expand_dims(ops.exp(pace), -1) / (1 + ops.stop_gradient(spread))
        self.log_step.assign(self.log_step.constraint(ops.log(KEPT * self.steps() + (1 - KEPT) * aim)))
        self.log_pace.assign(pace + ops.where(is_high, FASTER, SLOWER))

    def walked(self, model, x, n, seed, training=False):
        """The Walk of n chains for each image. Stochastic."""
        path, z = path_of(model, x, n, seed)
        betas, steps = (ops.unstack(values) for values in (self.betas(), self.steps()))
        if not self.drifts:
            return self.walk(path, path.at(z), betas, steps, seed)
        path = path._replace(has_gradients=training)  # which only `mismatch` and `follow` look at
        drifts = [drift.of(x) for drift in self.drifts]
        return self.walk(path, path.at(z), betas, steps, seed, drifts=[lambda p, _, u=u: u(p.z) for u in drifts])

    def mismatch(self, walk, x):
        """sum_k |u_k - grad log gamma_{b_k}|^2 where step k begins, its mean over chains (B,): 0 without `drifts` u_k.

        All but the weights of u_k is held fixed.
        """
        starts, fixed = zip(self.drifts, ops.unstack(self.betas()), walk.points, strict=False), ops.stop_gradient
        gaps = [drift.of(x)(fixed(point.z)) - fixed(point.gradient(b)) for drift, b, point in starts]
        return sum(ops.mean(ops.sum(ops.square(gap), axis=-1), axis=0) for gap in gaps)

    def draw(self, model, x, seed):
        """One draw for each image of what is fitted to p(z|x), which is the end of a chain: (B, D). Stochastic."""
        return self.walked(model, x, 1, seed).points[-1].z[0]


class LangevinMcvae(Annealed):
    """L-MCVAE: unadjusted Langevin steps, through which everything is differentiated.

    With the drift "network", step k goes along u_k(z, x) of a network; its bound and score matching train it.
    """

    def __init__(self, config):
        super().__init__(config)
        self.walk = functools.partial(mcmc.langevin, skip_below=config.skip_below)
        self.latents, self.built = [config.latent_dim] * config.num_steps, config.drift == "gradient"

    def build(self, image_shape):
        """Makes the networks, where there are to be some."""
        self.drifts = [Drift(latents, image_shape) for latents in self.latents]

    def training_loss(self, walk, beta):
        """The negative mean over chains of W with the weight beta on all but the last log p(x|z): (B,)."""
        last = terms_of(walk.points[-1])
        return -elbo(last.log_px_z + beta * (walk.log_weight - last.log_px_z))


class MetropolisMcvae(Annealed):
    """A-MCVAE: Langevin steps that are accepted or refused; each decision is trained by how well its chain fared.

    The gradient is that of W at the decisions taken, plus (W - mean W of the other chains) times that of their
    log-probability.
    """

    def __init__(self, config):
        super().__init__(config)
        rule = {"metropolis": mcmc.log_metropolis, "barker": mcmc.log_barker}[config.acceptance_rule]
        self.walk = functools.partial(mcmc.metropolis, rule=rule)
        self.decisions = 1.0  # weight of their gradient
        if config.decision_warmup:
            self.decisions = self.add_weight((), "zeros", trainable=False, name="decisions")

    def training_loss(self, walk, beta):
        """The negative mean over chains of W with the weight beta on log p(z) - log q(z|x): (B,).

        A term of mean 0 adds the gradient of the decisions, by its weight in this epoch.
        """
        ends = [0.0, *ops.unstack(self.betas()), 1.0]
        parts = zip(itertools.pairwise(ends), walk.points, strict=True)
        log_weight = sum((end - start) * terms_of(point).log_w(beta) for (start, end), point in parts)
        baseline = (ops.sum(log_weight, axis=0) - log_weight) / (self.n - 1)  # of the other chains
        fared = ops.stop_gradient(log_weight - baseline)
        return -elbo(log_weight + self.decisions * fared * walk.log_decisions)
