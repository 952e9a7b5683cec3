"""The example of Thin et al. (2021), figure 1: a posterior that is a ring, and what each bound fits to it.

x = 2 pi (|z| + 2) + noise with z ~ N(0, I) in two dimensions and noise ~ N(0, 1); p(x|z) is known, q(z|x) is trained.
"""

import math

import keras
import numpy as np
from keras import layers, ops

import models
from experiment import Config
from models.base import LatentModel
from models.distributions import Normal
from models.flows import FlowHead
from models.networks import GaussianHead
from models.pixels import Pixels
from plotting import planes
from plotting.output import Figure
from plotting.style import PALETTE, new_figure, style
from runtime.progress import Progress

D, X0 = 2, 8 * math.pi  # dimensions of z; the x whose posterior is drawn, a ring of radius 2
IMAGES, EPOCHS, BATCH, DRAWS = 10_000, 31, 100, 3000
CHAINS = {"step_rule": "variance", "learn_schedule": "halving"}
CASES = {
    "VAE": Config(),
    "VAE, RealNVP": Config(posterior="realnvp"),
    "IWAE, 50 samples": Config(objective="iwae", num_samples=50),
    "L-MCVAE, 5 steps": Config(objective="lmcvae", **CHAINS),
    "A-MCVAE, 5 steps": Config(objective="amcvae", **CHAINS),
}


class Ring(LatentModel):
    """The model of the example; "images" x are (B, 1, 1, 1)."""

    def __init__(self, config, seed=0):
        super().__init__(models.objective(config), dynamic=False, seed=seed)
        self.hidden = layers.Dense(2 * D, activation="leaky_relu")
        self.hidden.build((None, 1))
        head = GaussianHead if config.posterior == "gaussian" else lambda *sizes: FlowHead(GaussianHead, *sizes)
        self.q_z = head(2 * D, D)
        self.top_prior = None  # N(0, I) has no weights
        self.built = True

    def posterior(self, x):
        """q(z|x), from x scaled to about unit size: batch (B,)."""
        return self.q_z(self.hidden((ops.reshape(x, (-1, 1)) - 20) / 5))

    def prior(self, top=None):
        """N(0, I)."""
        return Normal(ops.zeros((D,)), ops.zeros((D,)))

    def likelihood(self, z, training=False):
        """N(2 pi (|z| + 2), 1): batch (...)."""
        radius = ops.sqrt(ops.sum(ops.square(z), axis=-1) + 1e-12)  # the gradient at 0 would be NaN
        return Pixels(ops.reshape(2 * math.pi * (radius + 2), (*ops.shape(z)[:-1], 1, 1, 1)), 1.0)


def data(seed=0):
    """x of the example: float32 (IMAGES, 1, 1, 1)."""
    rng = np.random.default_rng(seed)
    radius = np.linalg.norm(rng.normal(size=(IMAGES, D)), axis=1)
    return np.float32(2 * np.pi * (radius + 2) + rng.normal(size=IMAGES)).reshape(-1, 1, 1, 1)


def fit(name, epochs=EPOCHS, seed=0):
    """Draws (DRAWS, 2) of one of CASES, trained, and its bound on log p(x0) in nats. Stochastic, by `seed`."""
    keras.utils.set_random_seed(seed)
    model = Ring(CASES[name], seed)
    model.compile(keras.optimizers.Adam(1e-3, global_clipnorm=50.0))
    model.fit(data(seed), epochs=epochs, batch_size=BATCH, verbose=0)
    x = np.full((DRAWS, 1, 1, 1), X0, "float32")
    bound = np.mean(model(x).bound, dtype="float64")
    return np.asarray(model.objective.draw(model, x, model.test_noise)), float(bound)


def log_joint(z):
    """log p(x0, z) for z (..., 2), the unnormalised posterior: (...)."""
    radius = np.linalg.norm(z, axis=-1)
    return -0.5 * radius**2 - 0.5 * (X0 - 2 * np.pi * (radius + 2)) ** 2 - 1.5 * np.log(2 * np.pi)


def log_px():
    """log p(x0), by the trapezoid rule over |z|, whose density is r exp(-r^2 / 2)."""
    r = np.linspace(1e-9, 14, 20_001)
    log_p = np.log(r) - 0.5 * r**2 - 0.5 * (X0 - 2 * np.pi * (r + 2)) ** 2 - 0.5 * np.log(2 * np.pi)
    return float(np.log(np.trapezoid(np.exp(log_p), r)))


def draw(output, folder):
    """Trains each of CASES and writes the figure of their draws to the output.Output, by default into `folder`."""
    fitted = {name: fit(name) for name in Progress(iterable=CASES, unit=" models")}
    output.draw(folder, FIGURE, fitted)


@style()
def posteriors(fitted):
    """p(z|x0), and draws of what was `fitted` to it, by name, with a contour around 95 % of its mass."""
    density = planes.on_grid(log_joint, np.array([[-3.5, -3.5], [3.5, 3.5]]), 401)
    columns = math.ceil((1 + len(fitted)) / 2)
    figure = new_figure(2.4 * columns, 5.4, layout="constrained")
    limits = {"xlim": density.limits[:, 0], "ylim": density.limits[:, 1], "aspect": "equal"}
    axes, *others = figure.subplots(2, columns, sharex=True, sharey=True).ravel()
    axes.imshow(np.exp(density.log_p), extent=density.limits.T.ravel(), origin="lower", cmap="Greys")
    axes.set(title=f"p(z|x)\nlog p(x) = {log_px():.2f}", **limits)
    for axes, (name, (z, bound)) in zip(others, fitted.items(), strict=False):
        axes.plot(*z.T, ".", color=PALETTE[0], markersize=2, alpha=0.4, markeredgewidth=0)
        planes.draw_levels(axes, density, (0.95,))
        axes.set(title=f"{name}\nbound {bound:.2f}", **limits)
    for axes in others[len(fitted) :]:
        axes.remove()
    figure.supxlabel("z[0]")
    figure.supylabel("z[1]")
    return figure


FIGURE = Figure("toy_posteriors", "A posterior that is a ring, and draws of its approximations by each bound. Contours "
                "hold 95 % of its mass.", posteriors, stem="{name}")  # fmt: skip
