"""The figures of one run, and the loop that draws those of many."""

import sys

import numpy as np

import experiment
from plotting import comparisons, curves, latents, posteriors, scores, sheets, style
from plotting.output import Figure
from plotting.view import PER_CLASS, SAMPLES, WEIGHTED, View, as_numpy, evenly, picked
from runtime.errors import UserError
from runtime.rules import shown

OF_CLASS = 4  # images of each class above their reconstructions
PSEUDO_INPUTS = 50  # on a sheet, at most
TEMPERATURES = (1.0, 0.8, 0.6, 0.4)
CONTEXTS = 8  # images whose pseudo-input is drawn, and pseudo-inputs whose denoising is
INSTANTS = 10  # pictures of each denoising


def draw_input(view):
    return sheets.sheet(picked(view.split.grey(), view.examples), rows=view.rows)


def draw_reconmanifold(view):
    index = evenly(view.examples)[:, :OF_CLASS].T if view.rows else view.examples[:OF_CLASS]  # (rows, columns)
    copies = view.reconstructed(view.images[index.ravel()]).reshape(*index.shape, *view.images.shape[1:])
    copies[index < 0] = np.nan
    grid, words, caption = sheets.alternating(picked(view.images, index), copies), (), ""
    if stored := view.evaluation:
        log_px = dict(zip(stored.index.tolist(), stored.log_px.tolist(), strict=True))
        words = [[style.decimals(log_px[n], 1) if n in log_px else "" for n in row] for row in index.tolist()]
        caption = ", and log p(x) in nats"
    caption = f"{view.said} above their reconstructions{caption}"
    columns = [f"\n{name}" for name in evenly(view.rows)] if view.rows else ()
    return sheets.sheet(grid, caption, columns=columns, words=words, row_breaks=range(2, len(grid), 2))


def draw_reconweighted(view):
    index = view.spread(PER_CLASS)
    images, found = view.images[index], view.weighted(index)
    rows = [images, view.reconstructed(images), view.decoded(found.mean)]
    rows += [*np.moveaxis(view.decoded(found.resampled), 1, 0)]
    names = ["image", "mean of q(z|x)", "weighted mean", "resampled", *[""] * (len(rows) - 4)]
    caption = f"weights p(x, z) / q(z|x) of {WEIGHTED} draws of q(z|x), and their effective sample size (ESS)"
    words = [[f"ESS {ess:.1f}" for ess in found.ess]]
    return sheets.sheet(np.stack(rows), caption, names, words=words, row_breaks=(1, 3))


def draw_samples(view):
    return sheets.sheet(sheets.in_rows(view.samples, 10), f"{SAMPLES} samples: {view.shown} p(x|z), z from the prior")


def draw_pseudoinputs(view):
    inputs = as_numpy(view.model.top_prior.pseudo_inputs)
    chosen = evenly(range(len(inputs)), PSEUDO_INPUTS)
    images = view.decoded(view.components[chosen])
    grid = sheets.alternating(sheets.in_rows(inputs[chosen], 10), sheets.in_rows(images, 10))
    caption = f"{len(chosen)} of {len(inputs)} pseudo-inputs, each above the image decoded at its posterior's mean"
    return sheets.sheet(grid, caption, row_breaks=range(2, len(grid), 2))


def draw_temperatures(view):
    rows = [view.decoded(as_numpy(view.model.warmer(PER_CLASS, one, view.noise()))) for one in TEMPERATURES]
    caption = f"{view.shown} p(x|z), z from the prior with its variances multiplied by the temperature"
    return sheets.sheet(np.stack(rows), caption, [f"{one:g}" for one in TEMPERATURES], axis_names=("", "temperature"))


def draw_layers(view):
    images, names = view.images[view.spread(PER_CLASS)], view.layer_names
    kept = evenly(range(len(names) + 1), 11)[::-1]
    rows = [view.decoded(as_numpy(view.model.mixed(images, int(k), view.noise()))) for k in kept]
    caption = "test images; layers down to the named one are inferred from them, the others drawn from the prior"
    lowest = [names[k - 1] if k else "none" for k in kept]
    return sheets.sheet(np.stack([images, *rows]), caption, ["image", *lowest], row_breaks=(1,))


def draw_contexts(view):
    images, context = view.images[view.spread(CONTEXTS)], view.model.context
    mean = context(images).mean
    u = (as_numpy(mean).reshape(-1, *context.shape) + 1) / 2  # from [-1, 1]; 0 is grey
    factor = max(1, min(view.run.image_shape[:2]) // len(u[0]))
    large = u.repeat(factor, axis=1).repeat(factor, axis=2)
    framed = np.full(images.shape, np.nan, np.float32)
    framed[:, : large.shape[1], : large.shape[2]] = large
    pictures = np.stack([images, framed, as_numpy(context.picture(mean))])
    return sheets.sheet(pictures, rows=["image", "u", "picture of u"])


def draw_denoising(view):
    prior = view.model.top_prior.distribution()
    steps = prior.walk(CONTEXTS, view.noise())
    chosen = evenly(range(len(steps)), INSTANTS)
    pictures = np.stack([as_numpy(view.model.context.picture(steps[k])) for k in chosen], axis=1)
    times = [f"{max(0, 1 - k / prior.steps):.2g}" for k in chosen[:-1]]
    caption = "pseudo-inputs drawn by diffusion, as pictures of u(t) / alpha(t)"
    return sheets.sheet(pictures, caption, columns=[*times, "u"], axis_names=("t", ""))


def decodes_quickly(view):
    """Whether hundreds of draws of an image can be decoded in seconds, not hours."""
    return not (view.config.is_autoregressive or view.config.is_deep)


FIGURES = (  # of a View
    Figure("input", "Test images of each class in grey, before they are binarized.", draw_input,
           stem="{data_set}_{name}"),
    Figure("reconmanifold", "Test images of each class above their reconstructions, with log p(x) in nats where it is "
           "known.", draw_reconmanifold),
    Figure("reconweighted", "Test images, and images decoded at the mean of q(z|x), at the mean of draws of q(z|x) "
           "weighted by p(x, z) / q(z|x), and at draws chosen by these weights, which tend to p(z|x); below, the "
           "effective sample size.", draw_reconweighted, decodes_quickly),
    Figure("manifold", "Images decoded on a grid of latents or, for more than two latent dimensions, on lines between "
           "the posterior means of two test images.", latents.draw_manifold),
    Figure("embedding_z", "One sample of q(z|x) for each test image.", latents.draw_embedding_z),
    Figure("embedding_mean", "The posterior mean of each test image; for two latent dimensions over the density of the "
           "prior, with images at their latents.", latents.draw_embedding_mean),
    Figure("embedding_weighted", "For at most a thousand test images, the mean of draws of q(z|x) weighted by p(x, z) "
           "/ q(z|x), which tends to the mean of p(z|x).", latents.draw_embedding_weighted,
           decodes_quickly, costly=True,
           missing="embedding_weighted is not drawn for deep models and for --network pixel: it would take hours"),
    Figure("snapshots", "The posterior means of the test images, in one plane, with the weights of each epoch that "
           "--snapshot_epochs kept.", latents.draw_snapshots, lambda view: bool(view.run.snapshots)),
    Figure("activeunits", "Latent dimensions by the log of the variance of their posterior mean over test images; "
           "those with a variance above 0.01 are active (Burda et al. 2016).", latents.draw_activeunits),
    Figure("losshistory", "ELBO, rate and distortion by epoch, of training images and, where there are any, of "
           "validation images.", curves.losshistory),
    Figure("samples", "Images decoded from latents that are drawn from the model's prior.", draw_samples),
    Figure("pseudoinputs", "Pseudo-inputs, each above the image decoded at the mean of its posterior.",
           draw_pseudoinputs, lambda view: view.config.has_pseudo_inputs),
    Figure("pseudouse", "The share of the test images that each pseudo-input stands for, with the most and the least "
           "used ones.", scores.draw_pseudouse, lambda view: not view.config.is_deep and view.shares is not None),
    Figure("temperatures", "Samples from the prior with its variances multiplied by a temperature, one temperature in "
           "each row.", draw_temperatures, lambda view: view.config.is_deep),
    Figure("layers", "Test images, and images of which only the upper layers of latents are inferred from them; the "
           "other layers are drawn from the prior.", draw_layers, lambda view: view.config.is_deep),
    Figure("contexts", "Test images, each above its pseudo-input u, which holds its low frequencies, and the picture "
           "of u.", draw_contexts, lambda view: view.config.has("context_size")),
    Figure("denoising", "Pseudo-inputs while the diffusion prior draws them, from noise on the left to u on the right.",
           draw_denoising, lambda view: view.config.has("context_size")),
    Figure("layerrates", "The rate of each layer by epoch, and in the last epoch; of validation images where there "
           "are any.", curves.layerrates, lambda view: view.config.is_deep),
    Figure("posterior", "p(z|x) of some test images in the latent plane, beside q(z|x) and samples that approximate "
           "p(z|x).", posteriors.draw_posterior,  # which would take hours pixel by pixel
           lambda view: view.density is not None and not view.config.is_autoregressive),
    Figure("likelihood", "The distribution of log p(x) over all test images and over each class, with the least and "
           "the most likely images.", scores.draw_likelihood, lambda view: view.evaluation is not None,
           missing="likelihood is not drawn: these weights have no score on test images yet; run evaluate.py first"),
    Figure("estimates", "Estimates of the mean log p(x) of some test images by the number of samples, and its value by "
           "quadrature where there is one.", scores.draw_estimates, decodes_quickly, costly=True,
           missing="estimates are not drawn for deep models and for --network pixel: it would take hours"),
)  # fmt: skip
FIGURES_ON = (  # of two Views of a run, on its own images and on others
    Figure("reconmanifold", "Images that are not of the run's data set, above their reconstructions, with log p(x) in "
           "nats where it is known.", lambda views: draw_reconmanifold(views[1])),
    Figure("embedding", "The posterior means of images that are not of the run's data set, over those of its own test "
           "images.", latents.draw_embedding_on),
)  # fmt: skip
NAMES = tuple(figure.name for figure in (*FIGURES, *comparisons.FIGURES))


def drawn(run, name, projection="pca"):
    """The matplotlib Figure of this name of a Run. Raises UserError for a name that there is not for such a run."""
    figure = next((one for one in FIGURES if one.name == name), None)
    if figure is None:
        raise UserError(f"no figure {shown(name)}; choose from {', '.join(one.name for one in FIGURES)}")
    view = View(run, projection)
    if not figure.applies(view):
        raise UserError(f"{run.path}: {figure.missing or f'such a run has no {name}'}")
    return figure.draw(view)


def draw_run(run, output, projection, with_costly=False, only=None, with_densities=False):
    """Draws the figures of a run, `only` those of these names, or all but the costly ones; returns its Drawn."""
    view = View(run, projection)
    for figure in FIGURES:
        if figure.name not in only if only else figure.costly and not with_costly:
            continue
        if figure.applies(view):
            names = {"subject": run.config.training_id, "data_set": run.config.source.name}
            output.draw(run.path / "figures", figure, view, **names)
        elif only or figure.missing:
            print(f"{run.path}: {figure.missing or f'such a run has no {figure.name}'}", file=sys.stderr)
    return comparisons.drawn_of(view, with_densities)


def draw_on(runs, name, output, projection):
    """Draws FIGURES_ON of images of the data set `name` for each of these Runs."""
    for run in runs:
        own = View(experiment.load(run.path, run.data_dir), projection)
        views = own, View(own.run.on(name), projection)  # with the same model
        subject = f"{run.config.training_id}_on_{views[1].run.dataset.name}"
        for figure in FIGURES_ON:
            output.draw(run.path / "figures", figure, views, subject=subject)


def draw_runs(runs, output, projection, with_costly=False, only=None):
    """Draws the figures of these Runs, as `draw_run` does, and those that compare them."""
    fresh = (experiment.load(run.path, run.data_dir) for run in runs)  # so that one model at a time is in memory
    with_densities = len(runs) > 1 and (only is None or "densities" in only)
    members = [draw_run(run, output, projection, with_costly, only, with_densities) for run in fresh]
    comparisons.draw_groups(members, output, only)
