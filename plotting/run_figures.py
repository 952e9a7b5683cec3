"""The figures of one run."""

import io
import sys
from statistics import NormalDist

import numpy as np

from plotting import comparisons, curves, planes, scores, sheets, style
from plotting.estimates import COUNTS, ESTIMATED, by_samples, integrated
from plotting.posteriors import POSTERIORS, image_posterior
from plotting.projections import PROJECTIONS
from plotting.view import PER_CLASS, SAMPLES, View, as_numpy, picked
from runtime.errors import UserError

OF_CLASS = 4  # of these above their reconstructions
MANIFOLD = 20  # images along each axis of the latent plane
STEPS = 9  # decoded images from one end of an interpolation to the other


PSEUDO_INPUTS = 50  # on a sheet, at most
USED = 6  # of these, the most and the least used


FEWEST_PROJECTED = 5  # images whose posterior means say in which plane they lie


ENDS = 5  # images of the lowest and of the highest log p(x)


TEMPERATURES = (1.0, 0.8, 0.6, 0.4)
CONTEXTS = 8  # images whose pseudo-input is drawn, and pseudo-inputs whose way out of the noise is
INSTANTS = 10  # of this way


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
    return comparisons.drawn_of(view)


def draw_input(view):
    """Grey test images of each class, before anything is binarized."""
    figure = sheets.sheet(picked(view.split.grey(), view.examples))
    return named(figure, view)


def draw_reconmanifold(view):
    """Test images as the model sees them, a class in each column, above their reconstructions and their log p(x)."""
    index = columns_of(view.examples) if view.rows else view.examples[:OF_CLASS]  # (rows, columns)
    shown = view.reconstructed(view.images[index.ravel()]).reshape(*index.shape, *view.images.shape[1:])
    shown[index < 0] = np.nan
    grid = sheets.alternating(picked(view.images, index), shown)
    scores = view.log_px
    caption = "test images above their reconstructions" + (", and log p(x) in nats" if scores is not None else "")
    room = sheets.BREAK if scores is None else sheets.WRITTEN
    figure = sheets.sheet(grid, caption, row_breaks=range(2, len(grid), 2), room=room)
    if scores is not None:
        words = [[style.decimals(scores[n], 1) if n in scores else "" for n in row] for row in index.tolist()]
        sheets.name_tiles(figure, words)
    if view.rows:
        sheets.name_columns(figure, [f"\n{name}" for name in evenly(view.rows)])
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
        sheets.name_rows(figure, view.rows)
    return figure


def draw_manifold(view):
    """The decoded latent line or plane; interpolations where z has more than two dimensions."""
    return draw_grid(view) if view.run.latent_dim <= 2 else draw_interpolations(view)


def draw_grid(view):
    """Images decoded on a grid of latents, z[0] to the right and z[1] upward, as in the embedding."""
    values, spacing = grid_axes(view)
    images = view.decoded(latent_grid(values))
    figure = sheets.sheet(images, f"{view.shown} p(x|z); z spaced by quantiles of {spacing}")
    sheets.name_columns(figure, sheets.every_other(values[0]), "z[0]")
    if len(values) == 2:
        sheets.name_rows(figure, sheets.every_other(values[1])[::-1], "z[1]")
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
    figure = sheets.sheet(grid, caption, column_breaks=(1, STEPS + 1))
    ticks = [f"{share:g}" if index % 2 == 0 else "" for index, share in enumerate(t[:, 0])]
    sheets.name_columns(figure, ["image", *ticks, "image"], "share of the way")
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
    return planes.embedding(points, labels, view.class_names, names, caption, view.density, components)


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
    return planes.landscape(points, labels, view.class_names, view.density, ellipses(view), thumbnails, caption)


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


def embedding_file(view):
    """The bytes of an .npz: z, mean and logvar (N, D) float32 of those test images, and label (N,) if there are any."""
    labels = {} if view.split.labels is None else {"label": view.split.labels[: len(view.embedding.z)]}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **view.embedding._asdict(), **labels)
    return buffer.getvalue()


def draw_losshistory(view):
    """ELBO, rate and distortion by epoch."""
    return curves.losshistory(view.run.history, view.run.note)


def draw_samples(view):
    """Mean images of draws from the model's own prior."""
    return sheets.sheet(sheets.in_rows(view.samples, 10), f"{SAMPLES} samples: {view.shown} p(x|z), z from the prior")


def draw_pseudoinputs(view):
    """Pseudo-inputs, evenly chosen, each above the image decoded at the mean of its posterior."""
    inputs = as_numpy(view.model.top_prior.pseudo_inputs)
    chosen = np.linspace(0, len(inputs) - 1, min(len(inputs), PSEUDO_INPUTS)).round().astype(int)
    images = view.decoded(view.components[chosen])
    grid = sheets.alternating(sheets.in_rows(inputs[chosen], 10), sheets.in_rows(images, 10))
    caption = f"{len(chosen)} of {len(inputs)} pseudo-inputs, each above the image decoded at its posterior's mean"
    return sheets.sheet(grid, caption, row_breaks=range(2, len(grid), 2))


def draw_pseudouse(view):
    """How much of the test images each pseudo-input stands for, with the most and the least used ones."""
    from evaluation.latents import perplexity

    order = np.argsort(-view.shares, kind="stable")
    count = max(1, min(USED, len(order) // 2))
    inputs, pictures, prior = {}, {}, as_numpy(view.model.top_prior.pseudo_inputs)
    for name, chosen in (("most used", order[:count]), ("least used", order[::-1][:count])):
        inputs[name] = prior[chosen], view.shares[chosen]
        pictures[name] = view.decoded(view.components[chosen])
    caption = f"in use: {perplexity(view.shares):.1f} of {len(order)} (perplexity)"
    return scores.use(view.shares[order], inputs, pictures, caption)


def draw_temperatures(view):
    """Draws from the prior with all its variances multiplied by a temperature, a row for each."""
    rows = [view.decoded(as_numpy(view.model.warmer(PER_CLASS, one, view.noise()))) for one in TEMPERATURES]
    caption = f"{view.shown} p(x|z), z from the prior with its variances multiplied by the temperature"
    figure = sheets.sheet(np.stack(rows), caption)
    sheets.name_rows(figure, [f"{one:g}" for one in TEMPERATURES], "temperature")
    return figure


def draw_layers(view):
    """Test images, and what becomes of them where only the upper layers are theirs and the prior draws the others."""
    from keras import ops

    images, names = view.images[view.spread(PER_CLASS)], view.config.layers
    kept = np.unique(np.linspace(0, len(names), min(len(names), MANIFOLD // 2) + 1).round().astype(int))[::-1]
    rows = [view.decoded(as_numpy(view.model.mixed(ops.convert_to_tensor(images), int(k), view.noise()))) for k in kept]
    caption = "test images; layers down to the one named are theirs, the others are drawn from the prior"
    figure = sheets.sheet(np.stack([images, *rows]), caption, row_breaks=(1,))
    sheets.name_rows(figure, ["image", *(f"z{names[k - 1]}".replace("zu", "u") if k else "none" for k in kept)])
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
    figure = sheets.sheet(np.stack([images, framed, as_numpy(context.picture(mean))]))
    sheets.name_rows(figure, ["image", "u", "picture of u"])
    return figure


def draw_denoising(view):
    """Pictures of pseudo-inputs on their way out of the noise, one in each row."""
    law = view.model.top_prior.distribution()
    steps = law.walk(CONTEXTS, view.noise())
    chosen = np.unique(np.linspace(0, len(steps) - 1, INSTANTS).round().astype(int))
    pictures = np.stack([as_numpy(view.model.context.picture(steps[k])) for k in chosen], axis=1)
    figure = sheets.sheet(pictures, "pseudo-inputs drawn by diffusion, as pictures of u(t) / alpha(t)")
    sheets.name_columns(figure, [f"{max(0, 1 - k / law.steps):.2g}" for k in chosen[:-1]] + ["u"], "t")
    return figure


def draw_layerrates(view):
    """The validation rate of each layer by epoch, and on the right those of the last epoch."""
    history, names = view.run.history, view.config.layers
    return curves.layerrates(history["epoch"], {name: history[f"val_rate_{name}"] for name in names}, view.run.note)


def draw_posterior(view):
    """p(z|x) of some test images in the latent plane, beside q(z|x) and what else stands for it."""
    return planes.image_posteriors([image_posterior(view, index) for index in view.spread(POSTERIORS)])


def draw_likelihood(view):
    """How log p(x) of the test images is spread, over all and in each class, with the images at both ends."""
    stored = view.evaluation
    order = np.argsort(stored.log_px)
    count = min(ENDS, len(order) // 2)
    ends = {"least likely": order[:count], "most likely": order[::-1][:count]}
    shown = {name: (view.images[stored.index[rows]], stored.log_px[rows]) for name, rows in ends.items()}
    labels = None if view.split.labels is None else view.split.labels[stored.index]
    return scores.likelihoods(stored.log_px, labels, view.class_names, shown, stored.name, view.run.note)


def draw_estimates(view):
    """Estimates of the mean log p(x) of some test images, by more and more samples, beside the integral over a grid."""
    from evaluation.importance import NotFiniteError, log_weights

    images, curves = view.images[:ESTIMATED], {}
    try:
        for label, proposal in (("q(z|x)", "posterior"), ("fitted to p(z|x)", "fitted")):
            log_w = log_weights(view.model, images, max(COUNTS), view.config.seed, proposal)
            curves[label] = by_samples(log_w)
        exact = integrated(view, images)
    except NotFiniteError as error:
        message = f"{view.run.path}: log p(x) of test image {error.image} is not finite; the weights are not usable"
        raise UserError(message) from error
    return scores.estimates(COUNTS, curves, exact, f"mean of {len(images)} test images", view.run.note)


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
NAMES = (*FIGURES, *COSTLY, *comparisons.FIGURES)
MISSING = {  # what is said where a figure is left out that could be had
    "likelihood": "no score of the test images is stored for these weights, so none is drawn; run evaluate.py first",
    "estimates": "no estimates are drawn of deep models, or of networks that go pixel by pixel: it would take hours",
}
