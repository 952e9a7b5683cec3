"""Normalising flows: invertible layers that transform a Gaussian posterior."""

from functools import partial

from keras import backend, layers, ops

from .distributions import Flow

COUPLINGS = 5  # as in Thin et al. 2021
WIDTH = 64


class Coupling(layers.Layer):
    """[a, b] to [a, b exp(s(a)) + t(a)], with a and b exchanged if `flipped`; at first the identity.

    (Dinh et al. 2017, eq. 7-8.) What a flipped one keeps is what the other changes, the middle of an odd D with it. s =
    tanh of a linear map, so that no scale is larger than e.
    """

    def __init__(self, dim, flipped):
        super().__init__()
        self.kept, self.flipped = (dim + flipped) // 2, flipped
        linear = partial(layers.Dense, dtype=backend.floatx())  # rounded, it would be inverted by chance only
        self.hidden = linear(WIDTH, activation="tanh")
        self.scale, self.shift = (linear(dim - self.kept, kernel_initializer="zeros") for _ in range(2))
        self.hidden.build((None, self.kept))
        self.scale.build((None, WIDTH))
        self.shift.build((None, WIDTH))
        self.built = True

    def _scale_and_shift(self, a):
        h = self.hidden(a)
        return ops.tanh(self.scale(h)), self.shift(h)

    def _split(self, z):
        z = ops.flip(z, axis=-1) if self.flipped else z
        return z[..., : self.kept], z[..., self.kept :]

    def _joined(self, a, b):
        z = ops.concatenate([a, b], axis=-1)
        return ops.flip(z, axis=-1) if self.flipped else z

    def forward(self, z):
        """The image of z (..., D), and the log of the Jacobian's determinant (...)."""
        a, b = self._split(z)
        s, t = self._scale_and_shift(a)
        return self._joined(a, b * ops.exp(s) + t), ops.sum(s, axis=-1)

    def inverse(self, z):
        """What `forward` maps to z, and the log-determinant of `forward` there."""
        a, b = self._split(z)
        s, t = self._scale_and_shift(a)
        return self._joined(a, (b - t) * ops.exp(-s)), ops.sum(s, axis=-1)


class RealNVP(layers.Layer):
    """Couplings one after the other, each of which keeps what the one before it changed (Dinh et al. 2017)."""

    def __init__(self, dim):
        super().__init__()
        self.couplings = [Coupling(dim, flipped=bool(index % 2)) for index in range(COUPLINGS)]
        self.built = True

    def forward(self, z):
        """The image of z (..., D), and the log of the Jacobian's determinant (...)."""
        return self._through([coupling.forward for coupling in self.couplings], z)

    def inverse(self, z):
        """What `forward` maps to z, and the log-determinant of `forward` there."""
        return self._through([coupling.inverse for coupling in reversed(self.couplings)], z)

    def _through(self, steps, z):
        total = ops.zeros_like(z[..., 0])
        for step in steps:
            z, log_det = step(z)
            total = total + log_det
        return z, total


class FlowHead(layers.Layer):
    """Features (..., features) to a Flow over (..., units): one flow transforms the Normals of all images."""

    def __init__(self, head, units):
        super().__init__()
        self.head, self.flow = head, RealNVP(units)
        self.built = True

    def call(self, h):
        """Flow with a Normal base, mean and logvar (..., D)."""
        return Flow(self.head(h), self.flow)


def realnvp(make_head, features, units):
    """A head whose Normal is transformed by a RealNVP; `make_head(features, units)` makes that of the Normal."""
    return FlowHead(make_head(features, units), units)
