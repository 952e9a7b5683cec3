"""What training maximises: bounds on log p(x), each a function of log-weights, and where their log-weights come from.

Log-weights are log p(x|z) + beta (log p(z) - log q(z|x)), (n, B); annealed.py has those of chains. An objective is made
from a Config; `outcome(model, x, seed, beta, training)` is its `Outcome`, and `logged` names what it adds to the
history.
"""

import abc
import math
from typing import NamedTuple

from keras import ops

from . import mcmc


def elbo(log_w):
    """Evidence lower bound, the mean over samples (Kingma & Welling 2014, eq. 2): (n, B) -> (B,) nats, <= log p(x)."""
    return ops.mean(log_w, axis=0)


def iwae(log_w):
    """log (1/n) sum exp log_w (Burda et al. 2016, eq. 8): (n, B) -> (B,) nats, <= log p(x) in expectation."""
    return ops.logsumexp(log_w, axis=0) - math.log(log_w.shape[0])


def miwae(log_w, groups):
    """Mean of `iwae` over groups of equally many samples (MIWAE, Rainforth et al. 2018): (n, B) -> (B,) nats."""
    return elbo(iwae(in_groups(log_w, groups)))


def in_groups(log_w, groups):
    """Log-weights (n, B) as (n / groups, groups, B)."""
    return ops.reshape(log_w, (log_w.shape[0] // groups, groups, -1))


def effective_samples(log_w):
    """(sum w)^2 / sum w^2: (n, B) -> (B,), from 1 to n."""
    log_w = log_w - ops.max(log_w, axis=0, keepdims=True)  # of large ones, the difference below would have no digits
    return ops.exp(2 * ops.logsumexp(log_w, axis=0) - ops.logsumexp(2 * log_w, axis=0))


class Terms(NamedTuple):
    """Log-densities of n samples z ~ q(z|x) for each of B images, in nats: each (n, B).

    `rates` are log q(z_l|.) - log p(z_l|.) of each layer, the top one first, where a model tells them apart.
    """

    log_px_z: object
    log_pz: object
    log_qz_x: object
    rates: tuple = ()

    def log_w(self, beta=1.0):
        """Log-weights log p(x|z) + beta (log p(z) - log q(z|x)): (n, B)."""
        return self.log_px_z + beta * (self.log_pz - self.log_qz_x)


def layered(log_px_z, log_p, log_q):
    """The Terms of log p(x|z) (n, B), and of log p and log q of each layer, lists of (n, B) or (B,)."""
    zeros = ops.zeros_like(log_px_z)
    rates = tuple(q - p + zeros for p, q in zip(log_p, log_q, strict=True))
    return Terms(log_px_z, sum(log_p) + zeros, sum(log_q) + zeros, rates)


class Outcome(NamedTuple):
    """What an objective says of B images, each (B,): the `loss`, whose gradient trains, and the `bound` in nats.

    In the bound beta is 1; the loss need not be the negative bound, and where its gradient is a surrogate's, it is no
    bound at all. `terms` are those of samples of q(z|x), or for the ELBO expectations of these, and `logs`, by name,
    what else goes into the history.
    """

    terms: Terms
    loss: object
    bound: object
    logs: dict


class Sampled:
    """A bound on the log-weights of n samples from q(z|x)."""

    def __init__(self, config):
        self.n, self.logged = config.samples, config.logged

    def draw(self, model, x, seed):
        """One draw for each image of what is fitted to p(z|x), which is q(z|x): (B, D). Stochastic."""
        return model.posterior(x).sample(1, seed)[0]


class Elbo(Sampled):
    """The evidence lower bound, of which a model may know parts in closed form."""

    def outcome(self, model, x, seed, beta, training):
        """An Outcome. Stochastic."""
        terms = model.expected_terms(x, self.n, seed, training)
        return Outcome(terms, -elbo(terms.log_w(beta)), elbo(terms.log_w()), {})


class Weighted(Sampled, abc.ABC):
    """A function of log-weights beside the ELBO; its gradient weighs samples by their normalised weights."""

    @abc.abstractmethod
    def bound(self, log_w):
        """The bound of log-weights: (n, B) -> (B,) nats."""

    def outcome(self, model, x, seed, beta, training):
        """An Outcome, with the effective number of samples. Stochastic."""
        terms = model.terms(x, self.n, seed, training=training)
        log_w = terms.log_w()
        return Outcome(terms, -self.bound(terms.log_w(beta)), self.bound(log_w), {"ess": effective_samples(log_w)})


class Iwae(Weighted):
    """The importance-weighted bound (Burda et al. 2016)."""

    bound = staticmethod(iwae)


class Miwae(Weighted):
    """The mean of importance-weighted bounds of `num_groups` groups of samples (Rainforth et al. 2018)."""

    def __init__(self, config):
        super().__init__(config)
        self.groups = config.num_groups

    def bound(self, log_w):
        return miwae(log_w, self.groups)


class Ciwae(Weighted):
    """A convex combination of the ELBO, by `elbo_weight`, and the importance-weighted bound (Rainforth et al. 2018)."""

    def __init__(self, config):
        super().__init__(config)
        self.weight = config.elbo_weight

    def bound(self, log_w):
        return self.weight * elbo(log_w) + (1 - self.weight) * iwae(log_w)


class Split(Weighted):
    """The importance-weighted bound, in which the weights of p and of q have gradients of their own.

    With normalised weights v_i, held fixed, those of p have sum v_i d log p(x, z_i). Those of q have, with a and b of
    `of_q`, sum a_i (d log w_i / d z_i) (d z_i / d phi) + sum b_i d log w_i / d phi at fixed z_i. A VampPrior's encoder
    gets both: it belongs to p and to q.
    """

    bound = staticmethod(iwae)

    @abc.abstractmethod
    def of_q(self, annealed, v, beta):
        """a and b, from log-weights with beta and their normalised weights: (n, B) each."""

    def outcome(self, model, x, seed, beta, training):
        """An Outcome; its loss in training has the gradient, and no meaning of its own. Stochastic."""
        if not training:
            return super().outcome(model, x, seed, beta, training)
        path, z = path_of(model, x, self.n, seed, beta)
        point = path.at(ops.stop_gradient(z))
        terms = terms_of(point)
        annealed = terms.log_w(beta)
        v = ops.stop_gradient(ops.exp(annealed - ops.logsumexp(annealed, axis=0)))  # (n, B)
        along, own = (ops.stop_gradient(part) for part in self.of_q(annealed, v, beta))
        pulls = ops.stop_gradient(ops.expand_dims(along, -1) * (point.grad_end - beta * point.grad_start))
        of_p = ops.sum(v * (terms.log_px_z + beta * terms.log_pz), axis=0)
        of_q = ops.sum(pulls * z, axis=(0, -1)) - beta * ops.sum(own * terms.log_qz_x, axis=0)
        log_w = terms.log_w()
        return Outcome(terms, -of_p - of_q, self.bound(log_w), {"ess": effective_samples(log_w)})


class Dreg(Split):
    """Doubly reparameterised gradients (Tucker et al. 2019, section 4): a = v^2, and b drops out of the expectation.

    With another beta than 1 it is beta of that part that drops out, and v^2 becomes (1 - beta) v + beta v^2.
    """

    def of_q(self, annealed, v, beta):
        return (1 - beta) * v + beta * v * v, ops.zeros_like(v)


class Piwae(Split):
    """PIWAE (Rainforth et al. 2018): q has the gradient of `Miwae`, a = b = the weights within groups, over M."""

    def __init__(self, config):
        super().__init__(config)
        self.groups = config.num_groups

    def of_q(self, annealed, v, beta):
        grouped = in_groups(annealed, self.groups)
        u = ops.exp(grouped - ops.logsumexp(grouped, axis=0)) / self.groups
        u = ops.reshape(u, (self.n, -1))
        return u, u


def path_of(model, x, n, seed, beta=1.0):
    """The Path from q(z|x) to log p(x|z) + beta log p(z), both terms its `more`, and draws (n, B, D). Stochastic."""
    posterior, prior = model.posterior(x), model.prior()

    def log_end(z):
        log_px_z, log_pz = model.likelihood(z).log_prob(x), prior.log_prob(z)
        return log_px_z + beta * log_pz, (log_px_z, log_pz)

    return mcmc.Path(posterior.log_prob, log_end), posterior.sample(n, seed)


def terms_of(point):
    """The Terms of a Point on such a path."""
    return Terms(*point.more, point.log_start)
