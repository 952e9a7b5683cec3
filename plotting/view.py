"""View: what the figures of one run are drawn from. Each part is computed once."""

import contextlib
from functools import cached_property
from typing import NamedTuple

import numpy as np

import data
from plotting import planes
from runtime.errors import UserError
from runtime.progress import Progress

BATCH = 500  # images or latents through the model at once
PER_CLASS = 10  # images of each class on a sheet
SAMPLES = 100  # of the model's own prior
DENSITY = 240  # points along each axis of the prior's density
AGGREGATE = 120  # points along each axis of the aggregated posterior's
AGGREGATED = 5000  # training images, at most, whose posteriors it is the mean of
WEIGHTED, RESAMPLED = 500, 3  # draws of q(z|x) for an image that are weighted, and those chosen by their weights
MOST_EMBEDDED = 1 << 26  # latents of all test images together; where an image has many, fewer images are drawn


class Embedding(NamedTuple):
    """Of each test image: a sample z of q(z|x), and the posterior's mean and log-variance: (N, D), float32."""

    z: np.ndarray
    mean: np.ndarray
    logvar: np.ndarray


class View:
    """What the figures of a run are drawn from, in float32, as half precision would show in them.

    Each part is computed on first use and kept.
    """

    def __init__(self, run, projection):
        self.run = run = run.in_precision("float32")
        self.config, self.model = run.config, run.model
        self.projection = projection
        self.shown = "draw from" if run.config.is_autoregressive else "mean of"
        self.said = "test images" if run.is_own else f"images of {run.data_set}"
        self.images = run.images("test")  # as the model sees them
        self.class_names = run.dataset.class_names
        self.split = run.dataset.split("test")
        order = data.shuffled(len(self.images))[: max(BATCH, MOST_EMBEDDED // run.latent_dim)]
        self.embedded = np.sort(order)  # the indices of the images of `embedding`
        self.examples, self.rows = examples(self.split.labels, order, self.class_names)

    @property
    def latent_names(self):
        """A name for each latent dimension, the top layer first: z2, z1; z[0], z[1]; z2[0], z2[1], z1; and so on."""
        sizes = self.model.sizes
        layers = ["z"] if len(sizes) == 1 else [f"z{number}" for number in range(len(sizes), 0, -1)]
        pairs = zip(layers, sizes, strict=True)
        return [f"{layer}[{k}]" if size > 1 else layer for layer, size in pairs for k in range(size)]

    def spread(self, count):
        """Indices of at most `count` examples; each class comes once before any comes twice."""
        order = self.examples.T if self.rows else self.examples
        return order[order >= 0][:count]

    def decoded(self, z):
        """Images of latents (..., D), as of LatentModel.decode: (..., H, W, C)."""
        noise, flat = self.noise(), z.reshape(-1, z.shape[-1])
        images = in_batches(lambda part: self.model.decode(part, noise, self.progress.update), flat)
        return images.reshape(*z.shape[:-1], *images.shape[1:])

    def reconstructed(self, x):
        """Images as of LatentModel.reconstruct for images x (N, H, W, C): the same shape."""
        noise = self.noise()
        return in_batches(lambda part: self.model.reconstruct(part, noise, self.progress.update), x)

    @cached_property
    def progress(self):
        """The Progress of networks that draw pixel by pixel, one step a pass; it stays hidden for other networks."""
        hidden = not self.config.is_autoregressive
        return Progress("{desc}{n_fmt}{unit}, {elapsed} so far", desc="drawing pixel by pixel", unit=" passes",
                        leave=False, disable=hidden)  # fmt: skip

    def noise(self):
        """A fresh generator of random numbers, from the run's seed."""
        from keras import random

        return random.SeedGenerator(self.config.seed)

    @cached_property
    def embedding(self):
        """The Embedding of all test images or, with very many latents, of a random part of them, those of `embedded`.

        Raises UserError if it is not finite.
        """
        from keras import ops

        noise = self.noise()

        def embed(x):
            posterior = self.model.posterior(x)
            centre = posterior.at_mean()
            return ops.stack([posterior.sample(1, noise)[0], centre.mean, centre.logvar], axis=1)  # (B, 3, D)

        values = in_batches(embed, self.images[self.embedded])
        if not np.isfinite(values).all():
            raise UserError(f"{self.run.path}: q(z|x) of a test image is not finite; the weights are not usable")
        return Embedding(*np.moveaxis(values, 1, 0))

    @property
    def labels(self):
        """The classes of the images of `embedding`, (N,); None where there are none."""
        return None if self.split.labels is None else self.split.labels[self.embedded]

    @property
    def layer_names(self):
        """Names of the layers of latents, the top one first: z alone, z2 and z1, or those of a deep model."""
        numbers = self.config.layers or range(len(self.model.sizes), 0, -1)
        return ["z"] if len(self.model.sizes) == 1 else [one if one == "u" else f"z{one}" for one in numbers]

    def rows_of(self, index):
        """Where images of `embedded` stand in `embedding`: an array as that of their indices."""
        return np.searchsorted(self.embedded, index)

    @cached_property
    def components(self):
        """Posterior means of the pseudo-inputs, computed as those of images: (K, D); K may be 0."""
        if not self.config.has_pseudo_inputs:
            return np.zeros((0, self.run.latent_dim), np.float32)
        return in_batches(self.model.embed, as_numpy(self.model.top_prior.pseudo_inputs))

    @cached_property
    def density(self):
        """log p(z) of the prior as a planes.Density that covers it and all latents; None unless D = 2."""
        if self.run.latent_dim != 2 or self.config.is_deep:
            return None
        prior = self.model.prior()
        drawn = as_numpy(prior.sample(500, self.noise()))
        limits = planes.window(np.concatenate([self.embedding.z, self.embedding.mean, self.components, drawn]))
        return planes.on_grid(lambda z: in_batches(prior.log_prob, z), limits, DENSITY)

    @cached_property
    def densities(self):
        """The aggregated posterior of training images, (1/N) sum_n q(z|x_n), and the prior, two Densities on one grid.

        None unless `density` is there, q(z|x) is Gaussian, and there is one layer.
        """
        from evaluation.latents import log_aggregate

        if self.density is None or len(self.model.sizes) > 1 or self.config.posterior != "gaussian":
            return None
        train = self.run.images("train", AGGREGATED)
        mean, logvar = (in_batches(lambda x, name=name: getattr(self.model.posterior(x), name), train)
                        for name in ("mean", "logvar"))  # fmt: skip
        posterior, limits = self.model.posterior(train[:1]).top, self.density.limits
        aggregate = planes.on_grid(lambda z: log_aggregate(posterior, z, mean, logvar), limits, AGGREGATE)
        return aggregate, planes.on_grid(lambda z: in_batches(self.model.prior().log_prob, z), limits, AGGREGATE)

    def weighted(self, index):
        """The evaluation.latents.Weighted of test images of these indices, by WEIGHTED draws. Raises UserError."""
        from evaluation.latents import weighted

        with self.blaming(index):
            return weighted(self.model, self.images[index], WEIGHTED, RESAMPLED, self.config.seed)

    @contextlib.contextmanager
    def blaming(self, index):
        """Turns a NotFiniteError of the block, which is about images of these indices, into a UserError."""
        from evaluation.compiled import NotFiniteError

        try:
            yield
        except NotFiniteError as error:
            said = f"log p(x) of test image {index[error.image]} is not finite; the weights are not usable"
            raise UserError(f"{self.run.path}: {said}") from error

    @cached_property
    def evaluation(self):
        """The stored Evaluation with the most test images; None where there is none."""
        stored = self.run.evaluation("test")
        return stored if stored and stored.index.max() < len(self.images) else None

    @cached_property
    def shares(self):
        """The share of test images that each component of the top prior stands for, as of `responsibilities`: (K,).

        None where it is no mixture of the posteriors of pseudo-inputs, as one of the user's own may be.
        """
        from evaluation.latents import responsibilities
        from models.distributions import Mixture

        top = self.model.prior().top
        if not self.config.has_pseudo_inputs or not isinstance(top.base, Mixture):
            return None
        return responsibilities(top, self.embedding.z[:, : self.model.sizes[0]])

    @cached_property
    def samples(self):
        """Images decoded from draws of the model's own prior, with the run's seed: (SAMPLES, H, W, C)."""
        return as_numpy(self.model.sample(SAMPLES, self.config.seed, self.progress.update))


def as_numpy(tensor):
    """A tensor of any backend as a float32 array."""
    from keras import ops

    return ops.convert_to_numpy(tensor).astype(np.float32)


def in_batches(function, values):
    """`function` of NumPy values (N, ...), computed in slices of at most BATCH: a float32 array (N, ...)."""
    from keras import ops

    parts = [values[start : start + BATCH] for start in range(0, len(values), BATCH)]
    return np.concatenate([as_numpy(function(ops.convert_to_tensor(part, "float32"))) for part in parts])


def examples(labels, order, class_names):
    """The first PER_CLASS indices in `order` of images of each class, (R, PER_CLASS), and the R names of the classes.

    Indices are -1 where there are fewer images. Without labels there are no names, and PER_CLASS rows at most.
    """
    present = () if labels is None else np.unique(labels[order])
    found = [order[labels[order] == label][:PER_CLASS] for label in present] or [order[: PER_CLASS**2]]
    rows = [np.pad(one, (0, -len(one) % PER_CLASS), constant_values=-1) for one in found]
    return np.concatenate(rows).reshape(-1, PER_CLASS), tuple(class_names[label] for label in present)


def picked(images, index):
    """Images (N, H, W, C) by an array of indices (R, columns), NaN where that is -1: (R, columns, H, W, C)."""
    return np.where((index >= 0)[..., None, None, None], images[index], np.float32(np.nan))


def evenly(rows, most=PER_CLASS):
    """An array of at most so many of the rows, evenly chosen."""
    return np.asarray(rows)[np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int))]
