"""Priors over the top latent: layers that own the prior's weights and return its density and sampler as one value.

Every prior is made from the number of latent dimensions D, a function `encode` from images (K, H, W, C) to the Normal
q(z | x), and initial pseudo-inputs (K, H, W, C); it takes what it needs.
"""

import math

import numpy as np
from keras import constraints, layers, ops

from .distributions import Mixture, Normal


class StandardPrior(layers.Layer):
    """N(0, I) over D dimensions."""

    def __init__(self, latent_dim, encode, pseudo_inputs):
        super().__init__()
        self.latent_dim = self.floats_per_sample = latent_dim
        self.built = True

    def distribution(self):
        """Normal with mean and logvar 0: (D,)."""
        return Normal(ops.zeros((self.latent_dim,)), ops.zeros((self.latent_dim,)))


class UnitInterval(constraints.Constraint):
    """Projects a weight onto [0, 1] after each update."""

    def __call__(self, w):
        return ops.clip(w, 0.0, 1.0)


class VampPrior(layers.Layer):
    """p(z) = (1/K) sum_k q(z | u_k) with trained pseudo-inputs u_k (Tomczak & Welling 2018, eq. 9).

    The pseudo-inputs are kept in [0, 1] by projection after each update, not in the forward pass: a clip or a
    squashing function there would stop the gradient of the many pixels that lie on the border.
    """

    def __init__(self, latent_dim, encode, pseudo_inputs):
        super().__init__()
        self.encode = encode
        self.floats_per_sample = 2 * (latent_dim + len(pseudo_inputs))  # z and z^2; z against each component, twice
        self.pseudo_inputs = self.add_weight(
            shape=pseudo_inputs.shape,
            initializer=lambda shape, dtype: ops.convert_to_tensor(pseudo_inputs, dtype),
            constraint=UnitInterval(),
            name="pseudo_inputs",
        )
        self.built = True

    def distribution(self):
        """Mixture of the K encoded pseudo-inputs: log_weights (K,), mean and logvar (K, D)."""
        components = self.encode(self.pseudo_inputs)
        k = self.pseudo_inputs.shape[0]
        log_weights = ops.convert_to_tensor(np.full(k, -math.log(k), "float32"))
        return Mixture(log_weights, components.mean, components.logvar)
