"""View: what the figures of one run are drawn from, each part computed once."""

import sys
from functools import cached_property
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from plotting import planes
from runtime.errors import UserError

BATCH = 500  # images or latents through the model at once
PER_CLASS = 10  # images of each class on a sheet


SAMPLES = 100


DENSITY = 240  # points along each axis, between which contours are drawn


MOST_EMBEDDED = 1 << 26  # latents of all test images together: of fewer images, where each has more


class Embedding(NamedTuple):
    """Of each test image: a sample z of q(z|x), and the posterior's mean and log-variance: (N, D), float32."""

    z: np.ndarray
    mean: np.ndarray
    logvar: np.ndarray


class Drawing:
    """A bar of the passes through a network that draws pixel by pixel; no bar where there are none."""

    bar = None

    def __call__(self, done):
        if self.bar is None:
            self.bar = tqdm(desc="drawing pixel by pixel", unit="pass", leave=False, disable=not sys.stderr.isatty())
        self.bar.update(done)


class View:
    """What the figures of a run are drawn from, each part computed on first use and kept."""

    def __init__(self, run, projection):
        self.run, self.config, self.model = run, run.config, run.model
        self.projection, self.drawing = projection, Drawing()
        self.shown = "draw from" if run.config.is_autoregressive else "mean of"
        self.class_names = run.dataset.class_names
        self.images = run.images("test")  # as the model sees them
        self.split = run.dataset.split("test")
        self.examples, self.rows = examples(self.split.labels, len(self.images), self.class_names)

    def spread(self, count):
        """Indices of `count` examples at most, one of each class before the second of any."""
        order = self.examples.T if self.rows else self.examples
        return order[order >= 0][:count]

    def class_name(self, index):
        """The name of a test image's class; none where there are no labels."""
        return self.class_names[self.split.labels[index]] if self.split.labels is not None else ""

    def decoded(self, z):
        """Images of latents (..., D), as of LatentModel.decode: (..., H, W, C)."""
        noise = self.noise()
        images = in_batches(lambda part: self.model.decode(part, noise, self.drawing), z.reshape(-1, z.shape[-1]))
        return images.reshape(*z.shape[:-1], *images.shape[1:])

    def reconstructed(self, x):
        """Images as of LatentModel.reconstruct for images x (N, H, W, C): the same shape."""
        noise = self.noise()
        return in_batches(lambda part: self.model.reconstruct(part, noise, self.drawing), x)

    def noise(self):
        """A fresh generator of random numbers, from the run's seed."""
        from keras import random

        return random.SeedGenerator(self.config.seed)

    @cached_property
    def embedding(self):
        """The Embedding of all test images, or of the first where their latents are very many.

        Raises UserError for weights that make it infinite or NaN.
        """
        from keras import ops

        noise = self.noise()

        def embed(x):
            posterior = self.model.posterior(x)
            centre = posterior.at_mean()
            return ops.stack([posterior.sample(1, noise)[0], centre.mean, centre.logvar], axis=1)  # (B, 3, D)

        values = in_batches(embed, self.images[: max(BATCH, MOST_EMBEDDED // self.run.latent_dim)])
        if not np.isfinite(values).all():
            raise UserError(f"{self.run.path}: q(z|x) of a test image is not finite; the weights are not usable")
        return Embedding(*np.moveaxis(values, 1, 0))

    @cached_property
    def components(self):
        """Posterior means of the pseudo-inputs, by the same rule as those of images: (K, D); K may be 0."""
        if not self.config.has_pseudo_inputs:
            return np.zeros((0, self.run.latent_dim), np.float32)
        return in_batches(self.model.embed, as_numpy(self.model.top_prior.pseudo_inputs))

    @cached_property
    def density(self):
        """log p(z) of the prior, a figures.Density wide enough for it and for all latents; None unless D = 2."""
        if self.run.latent_dim != 2 or self.config.is_deep:
            return None
        prior = self.model.prior()
        drawn = as_numpy(prior.sample(500, self.noise()))
        limits = planes.window(np.concatenate([self.embedding.z, self.embedding.mean, self.components, drawn]))
        x, y = np.linspace(*limits, DENSITY).T
        log_p = in_batches(prior.log_prob, np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
        return planes.Density(x, y, log_p.reshape(DENSITY, DENSITY))

    @cached_property
    def compiled_joint(self):
        """log p(x, z) as a models.diagnostics.Joint."""
        from evaluation.latents import Joint

        return Joint(self.model)

    @cached_property
    def evaluation(self):
        """The stored Evaluation of most test images, None where there is none."""
        stored = self.run.evaluation("test")
        return stored if stored and stored.index.max() < len(self.images) else None

    @cached_property
    def log_px(self):
        """log p(x) in nats of test images by their index, a dict; None where no evaluation is stored."""
        stored = self.evaluation
        return stored and dict(zip(stored.index.tolist(), stored.log_px.tolist(), strict=True))

    @cached_property
    def shares(self):
        """How much of the test images each component of the top prior stands for: (K,), as of `responsibilities`."""
        from evaluation.latents import responsibilities

        return responsibilities(self.model.prior().top, self.embedding.z[:, : self.model.sizes[0]])

    @cached_property
    def samples(self):
        """Images of SAMPLES draws from the model's own prior, by the run's seed: (SAMPLES, H, W, C)."""
        return as_numpy(self.model.sample(SAMPLES, self.config.seed, self.drawing))


def as_numpy(tensor):
    """A tensor of any backend as a float32 array."""
    from keras import ops

    return ops.convert_to_numpy(tensor).astype(np.float32)


def in_batches(function, values):
    """`function` of (N, ...) numpy values, which go through it in slices of at most BATCH: a float32 array (N, ...)."""
    from keras import ops

    parts = [values[start : start + BATCH] for start in range(0, len(values), BATCH)]
    return np.concatenate([as_numpy(function(ops.convert_to_tensor(part, "float32"))) for part in parts])


def examples(labels, num_images, class_names):
    """Indices of the first PER_CLASS images of each class, -1 where it has fewer, and the names of the classes.

    Returns (R, PER_CLASS) and R names; a class without images has no row. Without labels the rows have no names and
    hold the first images, PER_CLASS rows at most.
    """
    if labels is None:
        count = min(num_images, PER_CLASS**2)
        index = np.arange(count + -count % PER_CLASS).reshape(-1, PER_CLASS)
        return np.where(index < count, index, -1), ()
    present = np.unique(labels)
    rows = np.full((len(present), PER_CLASS), -1)
    for row, label in zip(rows, present, strict=True):
        found = np.flatnonzero(labels == label)[:PER_CLASS]
        row[: len(found)] = found
    return rows, tuple(class_names[label] for label in present)


def picked(images, index):
    """Images (N, H, W, C) by an array of indices (R, columns), NaN where that is -1: (R, columns, H, W, C)."""
    return np.where((index >= 0)[..., None, None, None], images[index], np.float32(np.nan))
