"""Chains from one density to another and their weights: functions of log-densities, independent of any model.

Both kinds of weights W have E[exp W] = p(x) if the walk goes from q(z|x) to p(x, z), for any step sizes and any path,
so that E[W] <= log p(x). Chains are (n, B): n of them for each of B images.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

from keras import ops, random, tree

from .gradients import value_and_gradient

DIVERGED = 1000.0  # nats of log-ratio, from which on a step counts as diverged (as Stan counts)
FARTHEST = 1000.0  # of a coordinate, beyond which densities may overflow


class Point(NamedTuple):
    """Where chains are: z (n, B, D), both log-densities there and `more` of the path's end (n, B), gradients like z.

    Gradients are () where the path has none.
    """

    z: object
    log_start: object
    log_end: object
    grad_start: object
    grad_end: object
    more: object

    def log_density(self, b):
        """log gamma_b = (1 - b) log_start + b log_end: (n, B)."""
        return (1 - b) * self.log_start + b * self.log_end

    def gradient(self, b):
        """The gradient of log gamma_b with respect to z: (n, B, D)."""
        return (1 - b) * self.grad_start + b * self.grad_end

    def where(self, condition, other):
        """This point where `condition` (n, B), `other` elsewhere."""
        wide = ops.expand_dims(condition, -1)
        return tree.map_structure(
            lambda a, b: ops.where(wide if len(a.shape) > len(condition.shape) else condition, a, b), self, other
        )


class Path(NamedTuple):
    """Two unnormalised log-densities, functions of z (n, B, D): `log_start` gives (n, B), `log_end` that and more."""

    log_start: Callable
    log_end: Callable
    has_gradients: bool = True

    def at(self, z):
        """The Point at z. As gamma_b mixes both linearly, one evaluation of each serves every b."""
        if not self.has_gradients:
            log_end, more = self.log_end(z)
            return Point(z, self.log_start(z), log_end, (), (), more)
        log_start, _, grad_start = value_and_gradient(lambda z: (self.log_start(z), ()), z)
        log_end, more, grad_end = value_and_gradient(self.log_end, z)
        return Point(z, log_start, log_end, grad_start, grad_end, more)


class Proposal(NamedTuple):
    """A Langevin step from a point towards gamma_b.

    `log_kernels` is log l(z|z') - log m(z'|z), of the step back against the step (n, B), and `log_ratio` that plus
    log gamma_b(z') - log gamma_b(z), but -DIVERGED where that is NaN, and for a step that leaves the box in which
    densities are finite.
    """

    point: Point
    log_kernels: object
    log_ratio: object


def log_metropolis(log_ratio):
    """log min(1, t) of log t (Metropolis), which no other rule exceeds: the log-probability to accept a step."""
    return ops.clip(log_ratio, -DIVERGED, 0.0)


def log_barker(log_ratio):
    """log t / (1 + t) of log t (Barker 1965): likewise, but smooth; half of the smallest steps are accepted."""
    return ops.log_sigmoid(ops.clip(log_ratio, -DIVERGED, DIVERGED))


def propose(path, point, b, step, seed, drift=Point.gradient):
    """z' = z + step u(z) + sqrt(2 step) a with a ~ N(0, I) and u = grad log gamma_b: a Proposal. Stochastic.

    The noise of the way back is r = -(a + h) with h = sqrt(step / 2) (u(z) + u(z')), and `log_kernels` (|a|^2 - |r|^2)
    / 2 = -h (a + h / 2), without differences of large numbers. A step that is not inside has another one's numbers in
    its place, so that no gradient is NaN. `drift` may give another u, from the Point at z and b.
    """
    a = random.normal(ops.shape(point.z), dtype=point.z.dtype, seed=seed)
    moved = point.z + step * drift(point, b) + ops.sqrt(2 * step) * a
    inside = ops.all((ops.abs(moved) < FARTHEST) & (ops.abs(point.z) < FARTHEST), axis=-1)
    new = path.at(ops.where(ops.expand_dims(inside, -1), moved, point.z))
    h = ops.sqrt(step / 2) * (drift(point, b) + drift(new, b))
    log_kernels = -ops.sum(h * (a + 0.5 * h), axis=-1)
    log_ratio = log_kernels + new.log_density(b) - point.log_density(b)
    is_known = inside & ops.logical_not(ops.isnan(log_ratio))
    return Proposal(new, log_kernels, ops.where(is_known, log_ratio, -DIVERGED))


def hamiltonian(path, point, b, step, scale, leapfrogs, seed):
    """A step of Hamiltonian Monte Carlo towards gamma_b: the Point after it, and log min(1, ratio) (n, B). Stochastic.

    Momenta are N(0, I) in coordinates z / scale, `scale` (B, D); `leapfrogs` steps of `step` (Neal 2011, section 5.3),
    a length that each chain varies by up to 40 %, as trajectories of one length can return to where they began. Chains
    that leave the box in which densities are finite, or whose energy is NaN, stay where they were.
    """
    shape, dtype = ops.shape(point.log_end), point.z.dtype
    momentum = random.normal(ops.shape(point.z), dtype=dtype, seed=seed)
    length = step * random.uniform((*shape, 1), 0.6, 1.4, dtype=dtype, seed=seed) * scale
    start = point.log_density(b) - 0.5 * ops.sum(ops.square(momentum), axis=-1)
    new, inside = point, ops.ones(shape, dtype="bool")
    moving = momentum + 0.5 * length * point.gradient(b)
    for number in range(leapfrogs):
        moved = new.z + length * moving
        inside = inside & ops.all(ops.abs(moved) < FARTHEST, axis=-1)  # false for NaN, too
        new = path.at(ops.where(ops.expand_dims(inside, -1), moved, point.z))
        moving = moving + (1.0 if number + 1 < leapfrogs else 0.5) * length * new.gradient(b)
    log_ratio = new.log_density(b) - 0.5 * ops.sum(ops.square(moving), axis=-1) - start
    sane = inside & (log_ratio > -DIVERGED) & (log_ratio < DIVERGED)
    log_accept = ops.where(sane, ops.minimum(log_ratio, 0.0), -DIVERGED)
    accepted = ops.log(random.uniform(shape, 1e-7, dtype=dtype, seed=seed)) < log_accept
    return new.where(accepted, point), log_accept


class Walk(NamedTuple):
    """What chains of T steps were: `points`, T + 1 of them, and for each step, (T, n, B), what follows.

    `log_accept`: the log-probability with which its rule accepts it, and if it has none, Metropolis would; `diverged`:
    1 where it diverged.
    `log_weight` (n, B) is W, and `log_decisions` (n, B) the log-probability of all decisions, 0 where there are none.
    """

    points: list
    log_accept: object
    diverged: object
    log_weight: object
    log_decisions: object


def langevin(path, point, betas, steps, seed, skip_below=0.0, drifts=None):
    """Unadjusted Langevin steps from z_0 ~ exp(log_start), the k-th towards gamma_{betas[k]}: a Walk. Stochastic.

    W = -log_start(z_0) + sum_k [log l_k(z_{k-1}|z_k) - log m_k(z_k|z_{k-1})] + log_end(z_T) (Thin et al. 2021,
    L-MCVAE), which is differentiable but for the choice of steps. A step that diverged is left out, and one that
    Metropolis would accept with a probability of at most `skip_below`, it or the step back: W remains valid, as both
    are left out, and its gradient is not that of its mean. `drifts` are those of `propose` for each step; W is valid
    for any.
    """
    least = min(DIVERGED, -math.log(skip_below) if skip_below else DIVERGED)
    none = ops.zeros_like(point.log_start)  # before the first step
    points, accepts, diverged, log_weight = [point], [none], [none], -point.log_start
    for b, step, drift in zip(betas, steps, drifts or [Point.gradient] * len(steps), strict=True):
        proposal = propose(path, point, b, step, seed, drift)
        is_sane = ops.abs(proposal.log_ratio) < DIVERGED
        is_taken = is_sane & (ops.abs(proposal.log_ratio) < least)
        point = proposal.point.where(is_taken, point)
        log_weight = log_weight + ops.where(is_taken, proposal.log_kernels, 0.0)
        points.append(point)
        accepts.append(log_metropolis(proposal.log_ratio))
        diverged.append(ops.cast(ops.logical_not(is_sane), point.z.dtype))
    log_weight = log_weight + point.log_end
    return Walk(points, ops.stack(accepts)[1:], ops.stack(diverged)[1:], log_weight, none)


def metropolis(path, point, betas, steps, seed, rule=log_metropolis):
    """Langevin steps from z_0 ~ exp(log_start), each accepted or refused (MALA), towards gamma_{betas[k]}: a Walk.

    `rule` gives the log-probability to accept a step; Metropolis's and Barker's both leave gamma_{betas[k]} invariant.

    W = sum_{k=0..T} (b_{k+1} - b_k) (log_end - log_start)(z_k) with b_0 = 0, b_{T+1} = 1, and `betas` between them
    (Neal 2001, eq. 3; Thin et al. 2021, A-MCVAE). Stochastic; z is differentiable, the decisions are not.
    """
    none = log_decisions = ops.zeros_like(point.log_start)  # before the first step
    points, accepts, diverged = [point], [none], [none]
    for b, step in zip(betas, steps, strict=True):
        proposal = propose(path, point, b, step, seed)
        log_accept = rule(proposal.log_ratio)
        noise = random.uniform(ops.shape(log_accept), 1e-7, dtype=log_accept.dtype, seed=seed)
        accepted = ops.log(noise) < log_accept
        refusable = ops.where(accepted, -1.0, ops.minimum(log_accept, -1e-6))  # log(1 - 1) is never asked for
        log_refuse = ops.log(-ops.expm1(refusable))
        log_decisions = log_decisions + ops.where(accepted, log_accept, log_refuse)
        point = proposal.point.where(accepted, point)
        points.append(point)
        accepts.append(log_accept)
        diverged.append(ops.cast(log_accept <= -DIVERGED, point.z.dtype))
    ends = itertools.pairwise([0.0, *betas, 1.0])
    parts = [(end - start) * (p.log_end - p.log_start) for (start, end), p in zip(ends, points, strict=True)]
    return Walk(points, ops.stack(accepts)[1:], ops.stack(diverged)[1:], sum(parts), log_decisions)
