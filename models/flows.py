"""Normalising flows: invertible layers that transform a Gaussian."""

from functools import partial

from keras import backend, layers, ops

from .distributions import Flow
from .networks import built

COUPLINGS = 5  # of a posterior, as in Thin et al. 2021
WIDTH = 64  # units of its hidden layers


class Coupling(layers.Layer):
    """[a, b] to [a, b exp(s(a)) + t(a)], with a and b exchanged if `flipped`; at first the identity.

    (Dinh et al. 2017, eq. 7-8.) What a flipped one keeps is what the other changes, the middle of an odd D with it. s =
    tanh of a linear map, so that no scale is larger than e.
    """

    def __init__(self, dim, flipped, width):
        super().__init__()
        self.kept, self.flipped = (dim + flipped) // 2, flipped
        linear = partial(layers.Dense, dtype=backend.floatx())  # rounded, it would be inverted by chance only
        self.hidden = built(linear(width, activation="tanh"), self.kept)
        self.scale, self.shift = (built(linear(dim - self.kept, kernel_initializer="zeros"), width) for _ in range(2))
        self.built = True

    def moved(self, z, is_inverse):
        """The image of z (..., D), or what z is the image of, and the log of the Jacobian's determinant (...) there."""
        z = ops.flip(z, axis=-1) if self.flipped else z
        a, b = z[..., : self.kept], z[..., self.kept :]
        h = self.hidden(a)
        s, t = ops.tanh(self.scale(h)), self.shift(h)
        b = (b - t) * ops.exp(-s) if is_inverse else b * ops.exp(s) + t
        z = ops.concatenate([a, b], axis=-1)
        return ops.flip(z, axis=-1) if self.flipped else z, ops.sum(s, axis=-1)


class RealNVP(layers.Layer):
    """Couplings one after the other, each of which keeps what the one before it changed (Dinh et al. 2017)."""

    def __init__(self, dim, couplings=COUPLINGS, width=WIDTH):
        super().__init__()
        self.couplings = [Coupling(dim, bool(index % 2), width) for index in range(couplings)]
        self.built = True

    def forward(self, z):
        """The image of z (..., D), and the log of the Jacobian's determinant (...)."""
        return self._through(self.couplings, z, is_inverse=False)

    def inverse(self, z):
        """What `forward` maps to z, and the log-determinant of `forward` there."""
        return self._through(reversed(self.couplings), z, is_inverse=True)

    def _through(self, couplings, z, is_inverse):
        total = ops.zeros_like(z[..., 0])
        for coupling in couplings:
            z, log_det = coupling.moved(z, is_inverse)
            total = total + log_det
        return z, total


class FlowHead(layers.Layer):
    """Features (..., features) to a Flow over (..., units): one RealNVP transforms the Normals of all images.

    `make_head(features, units)` makes the head of these.
    """

    def __init__(self, make_head, features, units):
        super().__init__()
        self.head, self.flow = make_head(features, units), RealNVP(units)
        self.built = True

    def call(self, h):
        return Flow(self.head(h), self.flow)
