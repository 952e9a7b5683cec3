"""Priors over the top latent: layers that own the prior's weights and return its density and sampler as one value.

Every prior is made from the number of latent dimensions D, a function `encode` from images (K, H, W, C) to the Normal
q(z | x), and initial pseudo-inputs (K, H, W, C); it takes what it needs.
"""

import contextlib
import math
from functools import partial

import numpy as np
from keras import backend, layers, ops, random
from keras.initializers import RandomNormal

from .distributions import Flow, Mixture, Mixtures, Normal, Resampled, log_sum_exp
from .flows import RealNVP
from .networks import LOGVAR, Between, DenseStack, built, soft_bound

FRESH, KEPT = 1024, 0.99  # draws of N(0, I) in a step that estimate Z, and what is kept of the estimate before
DRAWS, CHUNK = 2**17, 2**14  # of N(0, I) that estimate Z for validation, and so many at once
ENCODED = 1000  # exemplars at once
NEVER = -1e30  # log-weight of the exemplar that is left out


class StandardPrior(layers.Layer):
    """N(0, I) over D dimensions."""

    def __init__(self, latent_dim, encode, pseudo_inputs):
        super().__init__()
        self.latent_dim = self.floats_per_sample = latent_dim
        self.built = True

    def distribution(self):
        """Normal with mean and logvar 0: (D,)."""
        return Normal(ops.zeros((self.latent_dim,)), ops.zeros((self.latent_dim,)))


class MixturePrior(layers.Layer):
    """p(z) = (1/K) sum_k N(z; mean_k, diag exp(logvar_k)), all K means and log-variances trained.

    K is that of `pseudo_inputs`, which have no other part in it. The means begin as draws from N(0, I), the
    log-variances near 0; they are bounded as an encoder's are, else a component could collapse onto a point.
    """

    def __init__(self, latent_dim, encode, pseudo_inputs):
        super().__init__()
        shape = (len(pseudo_inputs), latent_dim)
        self.floats_per_sample = 2 * (latent_dim + len(pseudo_inputs))  # z and z^2; z against each component, twice
        self.mean = self.add_weight(shape=shape, initializer=RandomNormal(stddev=1.0), name="mean")
        self.raw_logvar = self.add_weight(shape=shape, initializer="zeros", name="raw_logvar")
        self.built = True

    def distribution(self):
        """Mixture of K Normals: log_weights (K,), mean and logvar (K, D)."""
        logvar = soft_bound(ops.convert_to_tensor(self.raw_logvar), *LOGVAR)
        return Mixture(uniform_log_weights(self.mean.shape[0]), ops.convert_to_tensor(self.mean), logvar)


class PseudoInputPrior(layers.Layer):
    """p(z) = sum_k w_k q(z | u_k) with pseudo-inputs u_k, images (K, H, W, C) in [0, 1].

    Trained ones are kept there by projection after each update, not in the forward pass: a clip or a squashing function
    there would stop the gradient of the many pixels that lie on the border.
    """

    is_trained = True

    def __init__(self, latent_dim, encode, pseudo_inputs):
        super().__init__()
        self.encode = encode
        self.floats_per_sample = 2 * (latent_dim + len(pseudo_inputs))  # z and z^2; z against each component, twice
        options = {"trainable": self.is_trained, "constraint": Between(0.0, 1.0) if self.is_trained else None}
        self.pseudo_inputs = self.add_weight(pseudo_inputs.shape, pseudo_inputs, name="pseudo_inputs", **options)
        self.built = True

    def log_weights(self):
        """log w_k: (K,), which is -log K unless weights are trained."""
        return uniform_log_weights(self.pseudo_inputs.shape[0])

    def widened(self, logvar):
        """The log-variances of the components, given those of their posteriors: (K, D)."""
        return logvar

    def distribution(self):
        """Mixture of the K encoded pseudo-inputs, in the flow of q if it has one: weights (K,), Normals (K, D)."""
        components = self.encode(self.pseudo_inputs)
        mixture = Mixture(self.log_weights(), components.base.mean, self.widened(components.base.logvar))
        return components._replace(base=mixture) if isinstance(components, Flow) else mixture  # they share one flow


class VampPrior(PseudoInputPrior):
    """p(z) = (1/K) sum_k q(z | u_k) with trained pseudo-inputs (Tomczak & Welling 2018, eq. 9)."""


class VampDataPrior(PseudoInputPrior):
    """p(z) = (1/K) sum_k q(z | x_k) over K training images, which stay as they are (ibid., section 2)."""

    is_trained = False


class WeightedVampPrior(PseudoInputPrior):
    """p(z) = sum_k w_k q(z | u_k) with trained pseudo-inputs and weights w = softmax(logits), equal at first."""

    def __init__(self, latent_dim, encode, pseudo_inputs):
        super().__init__(latent_dim, encode, pseudo_inputs)
        self.logits = self.add_weight(shape=(len(pseudo_inputs),), initializer="zeros", name="logits")

    def log_weights(self):
        return ops.log_softmax(self.logits)


class VampMixturePrior(WeightedVampPrior):
    """p(z) = sum_k w_k N(z; m(u_k), S(u_k) + V_k), m and S those of q(z | u_k): a mixture whose components cluster.

    (Stirn & Knowles 2024, with diagonal covariances V_k, as q has here, and a fixed concentration alpha = 1.) Weights
    and covariances are fitted by MAP: training adds their `log_prior` to the bound, so that components that are not
    needed vanish.
    """

    def __init__(self, latent_dim, encode, pseudo_inputs):
        super().__init__(latent_dim, encode, pseudo_inputs)
        self.raw_logvar = self.add_weight((len(pseudo_inputs), latent_dim), "zeros", name="raw_logvar")

    def own_logvar(self):
        """log V_k, bounded as an encoder's: (K, D)."""
        return soft_bound(ops.convert_to_tensor(self.raw_logvar), *LOGVAR)

    def widened(self, logvar):
        """log (S + V_k): (K, D)."""
        return ops.logaddexp(logvar, self.own_logvar())

    def log_prior(self):
        """log p(w) + log p(1 / V) + E[log p(m)] in nats but for a constant: a scalar.

        w ~ Dirichlet(1 / K), and 1 / V ~ Wishart(D + 2, K^(2 / D) / (D + 2) I) on diagonal matrices, so that together
        the components have the volume of N(0, I), which is p(m), with m ~ q(z | u_k).
        """
        k, dim = self.raw_logvar.shape
        log_w, logvar, means = self.log_weights(), self.own_logvar(), self.encode(self.pseudo_inputs).base
        of_weights = (1 / k - 1) * ops.sum(log_w)
        of_precisions = -0.5 * ops.sum(logvar + (dim + 2) * k ** (-2 / dim) * ops.exp(-logvar))
        return of_weights + of_precisions - 0.5 * ops.sum(ops.square(means.mean) + ops.exp(means.logvar))


class ExemplarPrior(layers.Layer):
    """p(z) = (1/N) sum_n N(z; m(x_n), v I) over all training images x_n, m those of q, v trained (Norouzi et al. 2020).

    N is the length of `pseudo_inputs`, which have no other part in it. `refresh` computes the `means`, which are stored
    with the weights, so that loading them needs no images.
    """

    def __init__(self, latent_dim, encode, pseudo_inputs, num_exemplars):
        super().__init__()
        self.encode, self.num_exemplars, self.in_training = encode, num_exemplars, None
        self.floats_per_sample = 2 * (latent_dim + len(pseudo_inputs))  # as of other mixtures
        self.means = self.add_weight((len(pseudo_inputs), latent_dim), "zeros", trainable=False, name="means")
        self.raw_logvar = self.add_weight((), "zeros", name="raw_logvar")
        self.built = True

    def refresh(self, grey):
        """Computes all means by the weights that there are; `grey(index)` are training images of a slice."""
        starts = range(0, self.means.shape[0], ENCODED)
        parts = [self.encode(grey(slice(start, start + ENCODED))).mean for start in starts]
        self.means.assign(ops.concatenate(parts))

    def logvar(self, mean):
        """log v for each of these means: (K, D)."""
        return soft_bound(ops.convert_to_tensor(self.raw_logvar), *LOGVAR) + ops.zeros_like(mean)

    def distribution(self):
        """Mixture of the N exemplars; in training, Mixtures of which each leaves out its own image."""
        if self.in_training is not None:
            return self.in_training
        mean = ops.convert_to_tensor(self.means)
        return Mixture(uniform_log_weights(mean.shape[0]), mean, self.logvar(mean))

    @contextlib.contextmanager
    def step(self, noise, index, near, others, which):
        """Inside of it, the distribution is that of a step on the training images of `index` (B,), by some exemplars.

        These are the images `others` (E, H, W, C) with indices `which` (E,). Where `near` (E,) is 1, they stand for
        themselves; where it is 0, they were drawn at random, and stand for all that are not near, so that the sum for
        image i has (1 / (N - 1)) sum over n != i as its expectation, and its log at most the log of that.
        """
        mean = ops.reshape(self.encode(others).mean, (self.num_exemplars, self.means.shape[1]))  # as TF may not know
        own = ops.equal(ops.expand_dims(index, -1), which)  # (B, E)
        total = self.means.shape[0] - 1.0
        nears, count = (ops.sum(ops.where(own, 0.0, part), axis=-1) for part in (near, 1.0 - near))
        each = ops.log(ops.maximum(total - nears, 1.0) / ops.maximum(count, 1.0))  # how many a drawn one stands for
        log_weights = ops.where(near > 0, 0.0, ops.expand_dims(each, -1)) - math.log(total)
        self.in_training = Mixtures(ops.where(own, NEVER, log_weights), mean, self.logvar(mean))
        try:
            yield
        finally:
            self.in_training = None


class FlowPrior(layers.Layer):
    """p(z) = N(f(z); 0, I) |det df/dz|, f the inverse of a RealNVP of trained couplings, at first the identity.

    (Dinh et al. 2017, eq. 2 to 8; as a prior: Xu et al. 2019.)
    """

    def __init__(self, latent_dim, encode, pseudo_inputs, num_couplings, coupling_width):
        super().__init__()
        self.latent_dim, self.flow = latent_dim, RealNVP(latent_dim, num_couplings, coupling_width)
        self.floats_per_sample = num_couplings * (coupling_width + 3 * latent_dim)  # hidden units; z, s and t
        self.built = True

    def distribution(self):
        """Flow of a Normal with mean and logvar 0: (D,)."""
        zeros = ops.zeros((self.latent_dim,))
        return Flow(Normal(zeros, zeros), self.flow)


class ResampledPrior(layers.Layer):
    """N(0, I), resampled by a trained acceptance a(z), the sigmoid of a network, 1/2 at first (Bauer & Mnih 2019).

    `log_z`, log E[a], is a moving average in training, and is estimated anew by `renormalise`.
    """

    def __init__(self, latent_dim, encode, pseudo_inputs, acceptance_units, num_proposals):
        super().__init__()
        self.latent_dim, self.proposals, self.in_training = latent_dim, num_proposals, None
        self.floats_per_sample = 2 * (latent_dim + acceptance_units)
        linear = partial(layers.Dense, dtype=backend.floatx())
        self.hidden = DenseStack(
            latent_dim, 2 * [acceptance_units], partial(linear, activation="tanh"), backend.floatx()
        )
        self.logit = built(linear(1, kernel_initializer="zeros"), acceptance_units)
        self.log_z = self.add_weight((), lambda shape, dtype: ops.full(shape, math.log(0.5), dtype), trainable=False,
                                     name="log_z")  # fmt: skip
        self.built = True

    def log_accept(self, z):
        """log a(z) in (-inf, 0): (..., D) -> (...)."""
        return ops.log_sigmoid(self.logit(self.hidden(z))[..., 0])

    def distribution(self):
        """Resampled, of which training has a gradient for log Z."""
        log_z = ops.convert_to_tensor(self.log_z) if self.in_training is None else self.in_training
        zeros = ops.zeros((self.latent_dim,))
        return Resampled(Normal(zeros, zeros), self.log_accept, log_z, self.proposals)

    @contextlib.contextmanager
    def step(self, noise, **others):
        """Inside of it, the distribution is that of a training step, whose draws of N(0, I) move log Z. Stochastic."""
        z = random.normal((FRESH, self.latent_dim), dtype=backend.floatx(), seed=noise)
        fresh = log_sum_exp(self.log_accept(z)) - math.log(FRESH)  # the log of their mean acceptance
        known = ops.stop_gradient(fresh)
        moved = ops.logaddexp(math.log(KEPT) + self.log_z, math.log(1 - KEPT) + known)
        self.log_z.assign(moved)
        self.in_training = moved + ops.exp(known - moved) * (fresh - known)  # the gradient of that mean over exp(moved)
        try:
            yield
        finally:
            self.in_training = None

    def renormalise(self, n=DRAWS, seed=0):
        """Estimates log Z by n draws of N(0, I), with its standard error by the delta method: a dict. Stochastic."""
        noise, parts = random.SeedGenerator(seed), []
        for start in range(0, n, CHUNK):
            z = random.normal((min(CHUNK, n - start), self.latent_dim), dtype=backend.floatx(), seed=noise)
            parts.append(ops.convert_to_numpy(self.log_accept(z)).astype("float64"))
        log_a = np.concatenate(parts)
        a = np.exp(log_a - log_a.max())
        log_z = float(log_a.max() + np.log(a.mean()))
        self.log_z.assign(log_z)
        return {"log_z": log_z, "log_z_se": float(a.std(ddof=1) / a.mean() / math.sqrt(n))}


def uniform_log_weights(k):
    """-log K for each of K components: (K,)."""
    return ops.convert_to_tensor(np.full(k, -math.log(k), backend.floatx()))
