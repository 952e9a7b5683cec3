"""Noise schedules of a diffusion model: how gamma_t, the log of sigma_t^2 / alpha_t^2, rises for t from 0 to 1.

Each has its `start` and `end`, gamma_0 and gamma_1; `share(t)`, which rises from 0 to 1: gamma_t = gamma_0 +
(gamma_1 - gamma_0) share(t); and `term(t, miss)`, L_t of the bound of infinitely many steps, 0.5 gamma'(t) miss, at
times t and squared errors `miss` of the predicted noise, (M,) each. That bound holds for any schedule that rises, and
with a network that is given share(t) all schedules have the same one: they differ in its variance (Kingma et al. 2021,
section 5.1).
"""

import math
from typing import NamedTuple

import numpy as np
from keras import initializers, layers, ops

UNITS = 16  # of a learned schedule


def is_number(value):
    """Whether NumPy computes with it: a float, or an array, and no tensor."""
    return isinstance(value, float | np.ndarray)


class Linear(NamedTuple):
    """gamma_t = gamma_0 + (gamma_1 - gamma_0) t."""

    start: float
    end: float

    def share(self, t):
        return t

    def term(self, t, miss):
        return 0.5 * (self.end - self.start) * miss


class Cosine(NamedTuple):
    """alpha_t = cos(a + (b - a) t), the angles a and b being those of gamma_0 and gamma_1 (Nichol & Dhariwal 2021)."""

    start: float
    end: float

    @property
    def angles(self):
        """a and b, between 0 and pi / 2."""
        return [math.atan(math.exp(gamma / 2)) for gamma in self]

    def share(self, t):
        a, b = self.angles
        angle, log, tan = a + (b - a) * t, *((np.log, np.tan) if is_number(t) else (ops.log, ops.tan))
        return (2 * log(tan(angle)) - self.start) / (self.end - self.start)

    def term(self, t, miss):
        a, b = self.angles
        return 2 * (b - a) / ops.sin(2 * (a + (b - a) * t)) * miss  # gamma' = 4 (b - a) / sin(2 angle)


class Learned(layers.Layer):
    """share(t) = l(t) / l(1), l(t) = t + sum_k h_k (s(v_k (t - c_k)) - s(-v_k c_k)), s the logistic function, h, v > 0.

    Monotone, as the network of Kingma et al. (2021, appendix H); gamma_0 and gamma_1 are fixed. It learns to make the
    variance of L_t small, which is all that it changes in the bound: the gradient of `term` is that of log E[L_t^2]
    with respect to h, v and c, the value of L_t none that depends on them. With v and c spread evenly it begins close
    to linear.
    """

    def __init__(self, start, end):
        super().__init__()
        self.start, self.end = start, end
        of = {"log_heights": -math.log(UNITS), "log_slopes": math.log(UNITS), "centres": 0.0}
        of = {name: self.add_weight((UNITS,), initializers.Constant(value), name=name) for name, value in of.items()}
        self.log_heights, self.log_slopes, self.centres = of.values()
        self.centres.assign((np.arange(UNITS) + 0.5) / UNITS)
        self.built = True

    def curve(self, t):
        """share(t) and its first two derivatives at times t, numbers or (M,): tensors of its shape."""
        t = ops.convert_to_tensor(t, "float32")
        heights, slopes = ops.exp(self.log_heights), ops.exp(self.log_slopes)

        def units(t):
            return ops.sigmoid(slopes * (ops.expand_dims(t, -1) - self.centres))

        start, at, end = (units(one) for one in (ops.zeros(()), t, ops.ones(())))
        whole = 1 + ops.sum(heights * (end - start))
        first = at * (1 - at) * slopes
        share = t + ops.sum(heights * (at - start), axis=-1)
        bend = ops.sum(heights * first * (1 - 2 * at) * slopes, axis=-1)
        return share / whole, (1 + ops.sum(heights * first, axis=-1)) / whole, bend / whole

    def share(self, t):
        return ops.stop_gradient(self.curve(t)[0])

    def term(self, t, miss):
        share, slope, bend = self.curve(t)
        value = 0.5 * (self.end - self.start) * ops.stop_gradient(slope) * miss
        # E[L^2] = integral m^2 gamma' dgamma; at a fixed gamma, gamma' changes as gamma' - gamma'' / gamma' gamma does
        fixed = ops.stop_gradient(value)
        weight = ops.square(fixed) / ops.mean(ops.square(fixed)) / ops.stop_gradient(slope)
        pull = ops.stop_gradient(weight) * (slope - ops.stop_gradient(bend / slope) * share)
        return value + pull - ops.stop_gradient(pull)
