"""Draw figures of trained runs: python plot.py runs/RUN [runs/RUN ...] --projection tsne"""

import contextlib
import io
import os
import sys
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import commandline
import engine
import experiment
import explore
import export
import figures
import groups
import models
import report
from data import as_folder
from errors import UserError
from experiment import Config
from output import Output

BATCH = 500  # images or latents through the model at once
PER_CLASS = 10  # images of each class on a sheet
OF_CLASS = 4  # of these above their reconstructions
MANIFOLD = 20  # images along each axis of the latent plane
STEPS = 9  # decoded images from one end of an interpolation to the other
SAMPLES = 100
PSEUDO_INPUTS = 50  # on a sheet, at most
USED = 6  # of these, the most and the least used
DENSITY = 240  # points along each axis, between which contours are drawn
POSTERIORS = 6  # images whose p(z|x) is drawn
DRAWS = 2000  # points that stand for it
COARSE, FINEST = 50, 400  # points along each axis of the grid that looks for p(z|x), and of the one that holds it
SMOOTH = 100  # points of that, at least, in half of the mass
NEGLIGIBLE = 10.0  # nats below the highest density, where p(z|x) ends: 4.5 standard deviations of a Gaussian
FEWEST_PROJECTED = 5  # images whose posterior means say in which plane they lie
ZOOMS = 30  # windows that are tried around it
ENDS = 5  # images of the lowest and of the highest log p(x)
ESTIMATED = 50  # images whose log p(x) is estimated by more and more samples
MOST_EMBEDDED = 1 << 26  # latents of all test images together: of fewer images, where each has more
TEMPERATURES = (1.0, 0.8, 0.6, 0.4)
CONTEXTS = 8  # images whose pseudo-input is drawn, and pseudo-inputs whose way out of the noise is
INSTANTS = 10  # of this way
OF_README = ("network_size", "epochs", "lr", "hardware")  # flags that go with --readme only
OF_FIGURES = ("report", "figures", "estimates", "format")
NOT_OF_TOY = ("gs_key", "readme", "explore", "figures", "estimates", "report", "export")
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)  # of these


def add_arguments(parser):
    """Adds the flags of plot.py."""
    commandline.add_runs(parser)
    text = "where all figures go (default: figures/ in each run; what compares runs: figures/ beside them)"
    parser.add_argument("--out", metavar="DIR", type=as_folder, help=text)
    text = "train the two-dimensional example of the Monte Carlo VAE paper, in a minute or two, and draw its posteriors"
    parser.add_argument("--toy_posteriors", action="store_true", help=text)
    text = "how more than two dimensions are drawn in the plane; tsne takes minutes for 10,000 images (default: pca)"
    parser.add_argument("--projection", choices=tuple(PROJECTIONS), default="pca", help=text)
    text = "also draw how estimates of log p(x) depend on the number of samples, which takes a minute or more"
    parser.add_argument("--estimates", action="store_true", help=text)
    text = "instead of figures, write one HTML file in which latents are decoded as you move; several runs share a page"
    parser.add_argument("--explore", action="store_true", help=text)
    text = "draw these figures only"
    parser.add_argument("--figures", nargs="+", metavar="NAME", choices=NAMES, help=f"{text}: {', '.join(NAMES)}")
    text = "of the files of figures (default: png)"
    parser.add_argument("--format", choices=figures.FORMATS, help=text)
    text = "also write one HTML page of settings, scores, figures and the commands that repeat them"
    parser.add_argument("--report", action="store_true", help=text)
    text = "write samples, reconstructions and embeddings (npz), the first two as files (png), or the decoder (onnx), "
    text += "and draw nothing"
    parser.add_argument("--export", choices=tuple(export.KINDS), help=text)
    add_readme_arguments(parser)


def add_readme_arguments(parser):
    """Adds --readme and what goes with it."""
    readme = parser.add_argument_group("what the README shows")
    text = "train what is missing of its eight runs, score and draw them, and write its table and pictures; with none "
    text += "of the next three, of network size 1 in 10 epochs with a learning rate of 1e-3"
    readme.add_argument("--readme", action="store_true", help=text)
    for name in OF_README[:-1]:
        text, usual = "of these runs (default: as of train.py, {})", getattr(Config, name)
        readme.add_argument(f"--{name}", type=type(usual), metavar=name.split("_")[-1].upper(), help=text.format(usual))
    readme.add_argument("--hardware", metavar="WORDS", help="a word on the machine, stored with the results")


def run(args):
    """Draws the figures of the runs that the flags name and prints each file; returns the exit code."""
    if args.toy_posteriors:
        return draw_toy(args)
    if args.readme:
        from benchmarks import readme_pictures  # which calls all three scripts

        return readme_pictures.produce(args)
    if strange := [name for name in OF_README if getattr(args, name) is not None]:
        raise UserError(f"--{strange[0]} goes with --readme")
    runs = list({one.path.resolve(): one for one in commandline.chosen_runs(args)}.values())
    ids = [one.config.training_id for one in runs]
    if args.out and len(set(ids)) < len(ids):
        raise UserError("two of these runs have the same id, so their figures cannot share --out; leave it away")
    if args.explore:
        runs = explore.explorable(runs, args)
    if args.export and (strange := [name for name in OF_FIGURES if getattr(args, name)]):
        raise UserError(f"--export draws nothing, so --{strange[0]} does not go with it; give one of them")
    output = Output(args.out, args.format)
    engine.settle(args.backend, args.device)
    export.check(args.export)
    engine.start(args.device)
    if args.explore:
        return write_explorer(runs, output)
    members, paths = [], [one.path for one in runs]
    runs.reverse()
    while runs:  # popped, so that one model at a time is in memory
        if args.export:
            export.KINDS[args.export](View(runs.pop(), args.projection), output)
        else:
            members.append(draw_run(runs.pop(), output, args.projection, args.estimates, args.figures))
    draw_groups(members, output, args.figures)
    if args.report:
        report.write([experiment.load(path, args.data_dir) for path in paths], output)
    return 0 if output.written else 2  # the reasons are said


def draw_toy(args):
    """Trains the example whose posterior is a ring by each bound, and draws what comes out; returns the exit code."""
    if args.runs:
        raise UserError("--toy_posteriors is an example of its own, and takes no runs")
    if strange := [name for name in NOT_OF_TOY if getattr(args, name)]:
        raise UserError(f"--toy_posteriors is an example of its own, and does not go with --{strange[0]}")
    output = Output(args.out, args.format)
    engine.settle(args.backend, args.device)
    engine.start(args.device)
    import toy

    fitted = [toy.fit(name) for name in tqdm(toy.CASES, unit="model", disable=not sys.stderr.isatty())]
    axis = np.linspace(-3.5, 3.5, 401)
    density = figures.Density(axis, axis, toy.log_joint(np.stack(np.meshgrid(axis, axis), axis=-1)))
    output.draw(Path(args.runs_dir, "figures"), "toy_posteriors", figures.posteriors, density, fitted, toy.log_px())
    return 0


def write_explorer(runs, output):
    """Writes the page in which these runs are explored, beside the figures of one or of their group; returns 0."""
    first, names = runs[0], sorted({one.config.source.name for one in runs})
    alone = len(runs) == 1
    folder = first.path / "figures" if alone else Path(os.path.normpath(first.path / os.pardir), "figures")
    name = first.config.training_id if alone else "_".join(names)
    labels = [first.config.training_id] if alone else groups.differences(runs)
    runs.reverse()
    panels = [explore.panel(View(runs.pop(), "pca"), label) for label in labels]  # popped, as above
    title = f"Latents of {name if alone else f'{len(labels)} runs'}"
    output.write(folder, f"{name}_explore.html", lambda: explore.page(panels, title))
    return 0


# ---------------------------------------------------------------------------------------------- one run


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
        limits = figures.window(np.concatenate([self.embedding.z, self.embedding.mean, self.components, drawn]))
        x, y = np.linspace(*limits, DENSITY).T
        log_p = in_batches(prior.log_prob, np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
        return figures.Density(x, y, log_p.reshape(DENSITY, DENSITY))

    @cached_property
    def compiled_joint(self):
        """log p(x, z) as a models.diagnostics.Joint."""
        from models.diagnostics import Joint

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
        from models.diagnostics import responsibilities

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


@engine.forgetting_graphs()
def draw_run(run, output, projection, estimates=False, only=None):
    """Draws the figures of a run named by `only`, or all but those of COSTLY, of which `estimates` asks for one.

    Returns what comparing runs needs, a groups.Drawn.
    """
    view, folder, prefix = View(run, projection), run.path / "figures", run.config.training_id
    drawn = FIGURES | COSTLY
    wanted = [name for name in drawn if name in (only or (*FIGURES, *(COSTLY if estimates else ())))]
    stems = {name: f"{prefix}_{name}" for name in wanted} | {"input": f"{run.config.source.name}_input"}
    for name in wanted:
        if name not in CONDITIONS or CONDITIONS[name](view):
            output.draw(folder, stems[name], drawn[name], view)
        elif only or name in MISSING:
            print(f"{run.path}: {MISSING.get(name, f'such a run has no {name}')}", file=sys.stderr)
    if not only:
        output.write(folder, f"{prefix}_embedding.npz", lambda: embedding_file(view))
    return groups.drawn_of(view)


def draw_groups(members, output, only=None):
    """Draws the figures that compare runs, those named by `only` or all, of each group of these groups.Drawn."""
    missing = set(groups.FIGURES) & set(only or ())
    for group, several in groups.grouped(members).items():
        folder = Path(os.path.normpath(several[0].path / os.pardir), "figures")
        for name, draw in groups.FIGURES.items():
            if name in (only or groups.FIGURES) and groups.CONDITIONS.get(name, bool)(several):
                output.draw(folder, f"{group.name}_{groups.STEMS.get(name, name)}", draw, several)
                missing.discard(name)
    for name in sorted(missing):
        print(f"no {name} is drawn: among these are no runs that it could compare", file=sys.stderr)


def draw_input(view):
    """Grey test images of each class, before anything is binarized."""
    figure = figures.sheet(picked(view.split.grey(), view.examples))
    return named(figure, view)


def draw_reconmanifold(view):
    """Test images as the model sees them, a class in each column, above their reconstructions and their log p(x)."""
    index = columns_of(view.examples) if view.rows else view.examples[:OF_CLASS]  # (rows, columns)
    shown = view.reconstructed(view.images[index.ravel()]).reshape(*index.shape, *view.images.shape[1:])
    shown[index < 0] = np.nan
    grid = figures.alternating(picked(view.images, index), shown)
    scores = view.log_px
    caption = "test images above their reconstructions" + (", and log p(x) in nats" if scores is not None else "")
    room = figures.BREAK if scores is None else figures.WRITTEN
    figure = figures.sheet(grid, caption, row_breaks=range(2, len(grid), 2), room=room)
    if scores is not None:
        words = [[figures.decimals(scores[n], 1) if n in scores else "" for n in row] for row in index.tolist()]
        figures.name_tiles(figure, words)
    if view.rows:
        figures.name_columns(figure, [f"\n{name}" for name in evenly(view.rows)])
    return figure


def columns_of(examples):
    """The first OF_CLASS images of at most PER_CLASS classes, from examples as of `examples`: (OF_CLASS, classes)."""
    return evenly(examples)[:, :OF_CLASS].T


def evenly(rows, most=PER_CLASS):
    """So many of the rows at most, evenly chosen, as an array."""
    return np.asarray(rows)[np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int))]


def named(figure, view):
    """The sheet, with the names of the classes beside its rows where there are any."""
    if view.rows:
        figures.name_rows(figure, view.rows)
    return figure


def draw_manifold(view):
    """The decoded latent line or plane; interpolations where z has more than two dimensions."""
    return draw_grid(view) if view.run.latent_dim <= 2 else draw_interpolations(view)


def draw_grid(view):
    """Images decoded on a grid of latents, z[0] to the right and z[1] upward, as in the embedding."""
    values, spacing = grid_axes(view)
    images = view.decoded(latent_grid(values))
    figure = figures.sheet(images, f"{view.shown} p(x|z); z spaced by quantiles of {spacing}")
    figures.name_columns(figure, figures.every_other(values[0]), "z[0]")
    if len(values) == 2:
        figures.name_rows(figure, figures.every_other(values[1])[::-1], "z[1]")
    return figure


def grid_axes(view):
    """Latents along each of the D axes, rising, (D, MANIFOLD), and whose quantiles they are.

    Those of the prior where it is a product over the dimensions, else of the posterior means of the test images.
    """
    from models.distributions import Normal

    shares = (np.arange(MANIFOLD) + 0.5) / MANIFOLD
    prior = view.model.prior()
    if not isinstance(prior, Normal):
        return np.quantile(view.embedding.mean, shares, axis=0).T, "the posterior means"
    mean, scale = as_numpy(prior.mean), np.exp(as_numpy(prior.logvar) / 2)
    return mean[:, None] + scale[:, None] * [NormalDist().inv_cdf(share) for share in shares], "the prior"


def latent_grid(values):
    """Latents on the grid of D <= 2 rising axes (D, n), the first to the right, the second upward: (n or 1, n, D)."""
    second = values[1:] if len(values) == 2 else np.zeros((1, 1))
    columns, rows = np.meshgrid(values[0], second[0, ::-1])
    return np.stack([columns, rows], axis=-1)[..., : len(values)]


def draw_interpolations(view):
    """Images decoded on straight lines in latent space between test images of different classes, these at both ends."""
    ends = pairs(view.examples)
    means = view.embedding.mean[ends]  # (R, 2, D)
    t = np.linspace(0, 1, STEPS)[:, None]
    lines = view.decoded(means[:, :1] * (1 - t) + means[:, 1:] * t)  # (R, STEPS, H, W, C)
    originals = view.images[ends]
    grid = np.concatenate([originals[:, :1], lines, originals[:, 1:]], axis=1)
    caption = f"{view.shown} p(x|z) on a line between two posterior means"
    figure = figures.sheet(grid, caption, column_breaks=(1, STEPS + 1))
    ticks = [f"{share:g}" if index % 2 == 0 else "" for index, share in enumerate(t[:, 0])]
    figures.name_columns(figure, ["image", *ticks, "image"], "share of the way")
    return figure


def pairs(rows, most=10):
    """First images of pairs of rows of examples (R, PER_CLASS), each row with the next: (at most `most`, 2) indices."""
    first = evenly(rows[:, 0], most)
    return np.stack([first, np.roll(first, -1)], axis=1)


def draw_embedding(view, points):
    """Latents (N, D) of test images in the plane, over the prior where z has two dimensions."""
    plane, names, caption = flattened(view, points)
    points, components = np.split(plane, [len(points)])
    labels = None if view.split.labels is None else view.split.labels[: len(points)]
    return figures.embedding(points, labels, view.class_names, names, caption, view.density, components)


def draw_embedding_z(view):
    """One sample of q(z|x) for each test image."""
    return draw_embedding(view, view.embedding.z)


def draw_embedding_mean(view):
    """The posterior mean of each test image; with two dimensions, over the prior and what stands there as pictures."""
    return draw_landscape(view) if view.density is not None else draw_embedding(view, view.embedding.mean)


def draw_landscape(view):
    """The posterior means over the prior's density, with the posteriors of pseudo-inputs, and pictures in place."""
    if view.config.has_pseudo_inputs:
        pictures, order = as_numpy(view.model.top_prior.pseudo_inputs), np.argsort(-view.shares, kind="stable")
        thumbnails = view.components[order], pictures[order]
        caption = "pictures: pseudo-inputs, at the means of their posteriors"
    else:
        chosen = view.spread(PER_CLASS**2)
        chosen = chosen[chosen < len(view.embedding.mean)]
        thumbnails = view.embedding.mean[chosen], view.images[chosen]
        caption = "pictures: test images, at the means of their posteriors"
    points = view.embedding.mean
    labels = None if view.split.labels is None else view.split.labels[: len(points)]
    return figures.landscape(points, labels, view.class_names, view.density, ellipses(view), thumbnails, caption)


def ellipses(view):
    """Means and standard deviations (K, 2) of the posteriors of pseudo-inputs; None without, and where a flow bends."""
    if not view.config.has_pseudo_inputs or view.config.posterior != "gaussian":
        return None
    centre = view.model.posterior(view.model.top_prior.pseudo_inputs).at_mean()
    return as_numpy(centre.mean), np.exp(as_numpy(centre.logvar) / 2)


def flattened(view, points):
    """Latents (N, D) and the pseudo-inputs' in the plane, (N + K, 2), with names of both axes and a caption."""
    both = np.concatenate([points, view.components])
    if both.shape[1] == 2:
        return both, ("z[0]", "z[1]"), ""
    if both.shape[1] == 1:
        height = np.random.default_rng(0).uniform(size=both.shape)
        return np.concatenate([both, height], axis=1), ("z[0]", "random height"), ""
    reference = view.embedding.mean
    if len(reference) < FEWEST_PROJECTED or not np.ptp(reference, axis=0).any():
        return both[:, :2], ("z[0]", "z[1]"), f"the first two of {both.shape[1]} dimensions"
    return PROJECTIONS[view.projection](both, reference)


def pca(points, reference):
    """Points (N, D) on the first two principal components of reference points (M, D): (N, 2), axis names, caption."""
    from sklearn.decomposition import PCA

    fitted = PCA(2).fit(reference)
    shares = 100 * fitted.explained_variance_ratio_
    names = [f"principal component {number} ({share:.0f} % of variance)" for number, share in enumerate(shares, 1)]
    return fitted.transform(points), names, "PCA of the posterior means"


def tsne(points, reference):
    """Points (N, D) embedded by t-SNE, all of them jointly: (N, 2), axis names, caption. Slow.

    More points than reference points (M, D) mean that pseudo-inputs come after these.
    """
    from sklearn.manifold import TSNE

    fitted = TSNE(2, perplexity=min(30, (len(points) - 1) / 3), random_state=0)
    caption = "test images and pseudo-inputs, embedded jointly" if len(points) > len(reference) else ""
    return fitted.fit_transform(points), ("t-SNE 1", "t-SNE 2"), caption


PROJECTIONS = {"pca": pca, "tsne": tsne}


def embedding_file(view):
    """The bytes of an .npz: z, mean and logvar (N, D) float32 of those test images, and label (N,) if there are any."""
    labels = {} if view.split.labels is None else {"label": view.split.labels[: len(view.embedding.z)]}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **view.embedding._asdict(), **labels)
    return buffer.getvalue()


def draw_losshistory(view):
    """ELBO, rate and distortion by epoch."""
    return figures.losshistory(view.run.history, view.run.note)


def draw_samples(view):
    """Mean images of draws from the model's own prior."""
    return figures.sheet(figures.in_rows(view.samples, 10), f"{SAMPLES} samples: {view.shown} p(x|z), z from the prior")


def draw_pseudoinputs(view):
    """Pseudo-inputs, evenly chosen, each above the image decoded at the mean of its posterior."""
    inputs = as_numpy(view.model.top_prior.pseudo_inputs)
    chosen = np.linspace(0, len(inputs) - 1, min(len(inputs), PSEUDO_INPUTS)).round().astype(int)
    images = view.decoded(view.components[chosen])
    grid = figures.alternating(figures.in_rows(inputs[chosen], 10), figures.in_rows(images, 10))
    caption = f"{len(chosen)} of {len(inputs)} pseudo-inputs, each above the image decoded at its posterior's mean"
    return figures.sheet(grid, caption, row_breaks=range(2, len(grid), 2))


def draw_pseudouse(view):
    """How much of the test images each pseudo-input stands for, with the most and the least used ones."""
    from models.diagnostics import perplexity

    order = np.argsort(-view.shares, kind="stable")
    count = max(1, min(USED, len(order) // 2))
    inputs, pictures, prior = {}, {}, as_numpy(view.model.top_prior.pseudo_inputs)
    for name, chosen in (("most used", order[:count]), ("least used", order[::-1][:count])):
        inputs[name] = prior[chosen], view.shares[chosen]
        pictures[name] = view.decoded(view.components[chosen])
    caption = f"in use: {perplexity(view.shares):.1f} of {len(order)} (perplexity)"
    return figures.use(view.shares[order], inputs, pictures, caption)


def draw_temperatures(view):
    """Draws from the prior with all its variances multiplied by a temperature, a row for each."""
    rows = [view.decoded(as_numpy(view.model.warmer(PER_CLASS, one, view.noise()))) for one in TEMPERATURES]
    caption = f"{view.shown} p(x|z), z from the prior with its variances multiplied by the temperature"
    figure = figures.sheet(np.stack(rows), caption)
    figures.name_rows(figure, [f"{one:g}" for one in TEMPERATURES], "temperature")
    return figure


def draw_layers(view):
    """Test images, and what becomes of them where only the upper layers are theirs and the prior draws the others."""
    from keras import ops

    images, names = view.images[view.spread(PER_CLASS)], view.config.layers
    kept = np.unique(np.linspace(0, len(names), min(len(names), MANIFOLD // 2) + 1).round().astype(int))[::-1]
    rows = [view.decoded(as_numpy(view.model.mixed(ops.convert_to_tensor(images), int(k), view.noise()))) for k in kept]
    caption = "test images; layers down to the one named are theirs, the others are drawn from the prior"
    figure = figures.sheet(np.stack([images, *rows]), caption, row_breaks=(1,))
    figures.name_rows(figure, ["image", *(f"z{names[k - 1]}".replace("zu", "u") if k else "none" for k in kept)])
    return figure


def draw_contexts(view):
    """Test images, each above its pseudo-input u, low frequencies in its upper left corner, and the picture of that."""
    images = view.images[view.spread(CONTEXTS)]
    context = view.model.context
    mean = context(images).mean
    u = (as_numpy(mean).reshape(-1, *context.shape) + 1) / 2  # from [-1, 1]; 0 is grey
    height, width, _ = view.run.image_shape
    factor = max(1, min(height, width) // len(u[0]))
    large = u.repeat(factor, axis=1).repeat(factor, axis=2)
    framed = np.full(images.shape, np.nan, np.float32)
    framed[:, : large.shape[1], : large.shape[2]] = large
    figure = figures.sheet(np.stack([images, framed, as_numpy(context.picture(mean))]))
    figures.name_rows(figure, ["image", "u", "picture of u"])
    return figure


def draw_denoising(view):
    """Pictures of pseudo-inputs on their way out of the noise, one in each row."""
    law = view.model.top_prior.distribution()
    steps = law.walk(CONTEXTS, view.noise())
    chosen = np.unique(np.linspace(0, len(steps) - 1, INSTANTS).round().astype(int))
    pictures = np.stack([as_numpy(view.model.context.picture(steps[k])) for k in chosen], axis=1)
    figure = figures.sheet(pictures, "pseudo-inputs drawn by diffusion, as pictures of u(t) / alpha(t)")
    figures.name_columns(figure, [f"{max(0, 1 - k / law.steps):.2g}" for k in chosen[:-1]] + ["u"], "t")
    return figure


def draw_layerrates(view):
    """The validation rate of each layer by epoch, and on the right those of the last epoch."""
    history, names = view.run.history, view.config.layers
    return figures.layerrates(history["epoch"], {name: history[f"val_rate_{name}"] for name in names}, view.run.note)


def draw_posterior(view):
    """p(z|x) of some test images in the latent plane, beside q(z|x) and what else stands for it."""
    return figures.image_posteriors([image_posterior(view, index) for index in view.spread(POSTERIORS)])


def image_posterior(view, index):
    """The figures.ImagePosterior of a test image: p(z|x) on a grid, q(z|x), and DRAWS points each way.

    Points are draws of q(z|x), resampled by p(x, z) / q(z|x), and the ends of chains where those were trained.
    """
    x, noise, log_joint = view.images[index], view.noise(), joint(view, index)
    q = view.model.posterior(x[None])

    def log_q(points):
        return in_batches(lambda z: q.log_prob(z[:, None])[:, 0], points)

    z = as_numpy(q.sample(DRAWS, noise))[:, 0]
    exact = located(log_joint, [view.density.limits, figures.window(z)])
    log_w = log_joint(z) - log_q(z)
    w = np.exp(log_w - log_w.max(), dtype="float64")
    chosen = np.random.default_rng(view.config.seed).choice(DRAWS, DRAWS, p=w / w.sum())
    points = {"q(z|x), resampled": z[chosen]}
    if models.OBJECTIVES[view.config.objective].is_annealed:
        copies = np.repeat(x[None], DRAWS, axis=0)
        points["ends of chains"] = in_batches(lambda part: view.model.objective.draw(view.model, part, noise), copies)
    limits = figures.window(np.concatenate([exact.held(0.995), *np.quantile(z, [[0.005], [0.995]], axis=0)]), 0.08)
    log_px = exact.log_sum()
    return figures.ImagePosterior(
        image=x,
        name=view.class_name(index),
        limits=limits,
        exact=exact,
        fitted=on_grid(log_q, limits, 2 * COARSE),
        points=points,
        log_px=log_px,
        kl=max(0.0, log_px - float(log_w.mean(dtype="float64"))),  # never negative, which its estimate may be
        ess=float(w.sum() ** 2 / np.square(w).sum()),
    )


def joint(view, index):
    """log p(x, z) of a test image, a function of z (M, 2) -> (M,). It raises UserError where that is NaN."""
    x = view.images[index]

    def checked(points):
        copies = np.broadcast_to(x, (len(points), *x.shape))
        (values,) = view.compiled_joint.on([copies, points.astype("float32")], BATCH)
        if np.isnan(values).any():
            raise UserError(f"{view.run.path}: log p(x, z) of test image {index} is NaN; the weights are not usable")
        return values

    return checked


def on_grid(log_p, limits, side):
    """The Density of `log_p`, a function (M, 2) -> (M,), at side x side points within limits (2, 2), by axes."""
    x, y = np.linspace(*limits, side).T
    return figures.Density(x, y, log_p(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)).reshape(side, side))


def located(log_p, boxes):
    """The Density of an unnormalised `log_p`, a function (M, 2) -> (M,), around all of its mass that counts.

    The search begins on grids over the `boxes`, limits (2, 2) each. Its window is then fitted to what counts in it,
    over and over, and reaches out where that touches the rim. The last grid is made finer until its sum stays and
    contours in it are smooth.
    """
    grids, limits = [on_grid(log_p, box, COARSE) for box in boxes], np.full((2, 2), np.inf)
    for _ in range(ZOOMS):
        last, limits = limits, counting(grids)
        if np.all(np.abs(limits - last) <= 0.1 * np.ptp(limits, axis=0)):
            break
        grids = [on_grid(log_p, limits, COARSE)]
    density = grids[0]
    while len(density.x) < FINEST:
        coarser, density = density, on_grid(log_p, limits, 2 * len(density.x))
        if abs(density.log_sum() - coarser.log_sum()) < 0.01 and len(density.held(0.5)) >= SMOOTH:
            break
    return density


def counting(grids):
    """The limits (2, 2) of what counts on these grids, each as of `reach`."""
    peak = max(grid.log_p.max() for grid in grids)
    ends = []
    for grid in grids:
        counts = grid.log_p > peak - NEGLIGIBLE
        if counts.any():
            ends.append(np.transpose([reach(grid.x, counts.any(axis=0)), reach(grid.y, counts.any(axis=1))]))
    return np.stack([np.min(ends, axis=(0, 1)), np.max(ends, axis=(0, 1))])


def reach(values, counts):
    """From where to where rising values (n,) count: a point further, or where it is the last, twice all of them."""
    first, last = np.flatnonzero(counts)[[0, -1]]
    step, far = values[1] - values[0], 2 * (values[-1] - values[0])  # what is far off is reached in doubling strides
    return values[first] - (far if first == 0 else step), values[last] + (far if last == len(values) - 1 else step)


def draw_likelihood(view):
    """How log p(x) of the test images is spread, over all and in each class, with the images at both ends."""
    stored = view.evaluation
    order = np.argsort(stored.log_px)
    count = min(ENDS, len(order) // 2)
    ends = {"least likely": order[:count], "most likely": order[::-1][:count]}
    shown = {name: (view.images[stored.index[rows]], stored.log_px[rows]) for name, rows in ends.items()}
    labels = None if view.split.labels is None else view.split.labels[stored.index]
    return figures.likelihoods(stored.log_px, labels, view.class_names, shown, stored.name, view.run.note)


def draw_estimates(view):
    """Estimates of the mean log p(x) of some test images, by more and more samples, beside the integral over a grid."""
    from models.likelihood import NotFiniteError, log_weights

    images, curves = view.images[:ESTIMATED], {}
    try:
        for label, proposal in (("q(z|x)", "posterior"), ("fitted to p(z|x)", "fitted")):
            log_w = log_weights(view.model, images, max(COUNTS), view.config.seed, proposal)
            curves[label] = by_samples(log_w)
        exact = integrated(view, images)
    except NotFiniteError as error:
        message = f"{view.run.path}: log p(x) of test image {error.image} is not finite; the weights are not usable"
        raise UserError(message) from error
    return figures.estimates(COUNTS, curves, exact, f"mean of {len(images)} test images", view.run.note)


def by_samples(log_w):
    """The mean estimate of log p(x) by each of COUNTS samples, and its standard error, from log-weights (N, S): (n, 2).

    For s samples, the S are divided into groups of s. Their mean comes near the expectation of an estimate by s
    samples; its error is told by how much they differ, or where there is one group, by the delta method.
    """
    from models.likelihood import Sums

    rows, (n, most) = [], log_w.shape
    for count in COUNTS:
        groups = log_w[:, : most // count * count].reshape(n, -1, count)
        peak = groups.max(axis=2)
        each = peak + np.log(np.exp(groups - peak[..., None]).mean(axis=2))  # (N, groups)
        if each.shape[1] > 1:
            variance = each.var(axis=1, ddof=1)
        else:
            variance = Sums.none(n, count).weighed(groups[:, 0], np.ones((n, count), bool)).errors() ** 2
        rows.append((each.mean(), np.sqrt(variance.sum()) / n))
    return np.array(rows)


def integrated(view, images):
    """The mean log p(x) of images by quadrature; None for more dimensions than it is for, and where it fails."""
    from models.quadrature import MOST_DIMENSIONS, NotResolvedError, quadrature

    if view.run.latent_dim > MOST_DIMENSIONS:
        return None
    with contextlib.suppress(NotResolvedError):
        return float(quadrature(view.model, images, seed=view.config.seed).log_px.mean())
    return None


FIGURES = {
    "input": draw_input,
    "reconmanifold": draw_reconmanifold,
    "manifold": draw_manifold,
    "embedding_z": draw_embedding_z,
    "embedding_mean": draw_embedding_mean,
    "losshistory": draw_losshistory,
    "samples": draw_samples,
    "pseudoinputs": draw_pseudoinputs,
    "pseudouse": draw_pseudouse,
    "temperatures": draw_temperatures,
    "layers": draw_layers,
    "contexts": draw_contexts,
    "denoising": draw_denoising,
    "layerrates": draw_layerrates,
    "posterior": draw_posterior,
    "likelihood": draw_likelihood,
}
COSTLY = {"estimates": draw_estimates}  # drawn where they are asked for
CONDITIONS = {  # of a View, for the figures that not every run has
    "pseudoinputs": lambda view: view.config.has_pseudo_inputs,
    "pseudouse": lambda view: view.config.has_pseudo_inputs and not view.config.is_deep,
    "temperatures": lambda view: view.config.is_deep,
    "layers": lambda view: view.config.is_deep,
    "contexts": lambda view: view.config.has("context_size"),
    "denoising": lambda view: view.config.has("context_size"),
    "layerrates": lambda view: view.config.is_deep,
    "posterior": lambda view: view.density is not None and not view.config.is_autoregressive,  # which takes hours
    "likelihood": lambda view: view.evaluation is not None,
    "estimates": lambda view: not (view.config.is_autoregressive or view.config.is_deep),
}
NAMES = (*FIGURES, *COSTLY, *groups.FIGURES)
MISSING = {  # what is said where a figure is left out that could be had
    "likelihood": "no score of the test images is stored for these weights, so none is drawn; run evaluate.py first",
    "estimates": "no estimates are drawn of deep models, or of networks that go pixel by pixel: it would take hours",
}


def main(argv=None):
    """The command line of plot.py; returns the exit code."""
    parser = commandline.Parser(prog="plot.py", description=__doc__)
    add_arguments(parser)
    return commandline.command(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
