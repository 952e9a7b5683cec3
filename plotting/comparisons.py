"""Figures that compare runs: which runs belong together, and what is drawn of them."""

import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

import experiment
import models
from experiment.differences import alike, groups, labels
from plotting import curves, planes, scores, sheets
from plotting.latents import PRIOR
from plotting.output import Figure
from plotting.style import PALETTE, decimals, new_figure, style
from plotting.view import AGGREGATED

EACH = 10  # test images of a run, and samples beside them
SAMPLES = (4, 8)  # rows and columns of samples of one prior beside those of others
DASHES = ("-", "--", ":", "-.")  # of curves, once all colours have been used
PANELS = 3  # side by side
INSIDE = 0.95  # of the aggregated posterior; the rest of the plane are holes


class Drawn(NamedTuple):
    """What comparisons need of one run, as EACH originals of different classes and reconstructions: (N, H, W, C)."""

    path: Path
    config: experiment.Config
    history: dict
    originals: np.ndarray
    reconstructions: np.ndarray
    samples: np.ndarray
    densities: tuple | None  # as of a View
    evaluation: experiment.run.Evaluation | None  # of test images
    note: str

    @property
    def best(self):
        """The index of the epoch whose weights were kept."""
        return self.config.kept(self.history[self.config.monitor])


def lines_of(count):
    """Pairs of a colour and a dash, all different, of `count` curves in their order."""
    import matplotlib

    colours, needed = PALETTE, -(-count // len(DASHES))
    if needed > len(PALETTE):
        colours = matplotlib.colormaps["turbo"](np.linspace(0, 1, needed))
    return [(colour, dash) for dash in DASHES for colour in colours][:count]


def of_priors():
    """The settings in which runs of different priors may differ."""
    return "prior", "refit", *{name: None for entry in models.PRIORS.values() for name in entry.settings}


def drawn_of(view, with_densities=False):
    """The Drawn of a view's run, with the densities, for which training images are opened, or None in their place."""
    chosen, run = view.spread(EACH), view.run
    originals, reconstructions = view.split.grey(chosen), view.reconstructed(view.images[chosen])
    samples = view.samples[: max(EACH, SAMPLES[0] * SAMPLES[1])]
    pictures, densities = (originals, reconstructions, samples), view.densities if with_densities else None
    return Drawn(run.path, run.config, run.history, *pictures, densities, view.evaluation, run.note)


def group_of(config):
    """What all runs have in common that are compared with one of these settings, as `mnist_ldim2_factor4`."""
    latents = f"L{config.num_layers}" if config.is_deep else f"ldim{config.latent_dim}"
    held_out = "" if "val" in config.splits else "_validationnone"  # whose curves are of training images
    return f"{config.source.name}_{latents}_{config.size.removesuffix('.0')}{config.likelihood_tag}{held_out}"


def names_of(runs):
    """A name for each run: the settings in which they differ, or its folder where these do not tell them apart."""
    found = labels([one.config for one in runs])
    if len(set(found)) == len(found):
        return found
    folders = [str(one.path) for one in runs]
    return [f"./{folder}" if folder.startswith("_") else folder for folder in folders]  # matplotlib would hide these


@style()
def draw_overlay(members):
    notes, splits = dict.fromkeys(one.note for one in members), members[0].config.splits
    figure = new_figure(3.8 * len(splits), 3.4)
    panels = dict(zip(splits, figure.subplots(1, len(splits), sharey=True, squeeze=False)[0], strict=True))

    def kept(one):
        return one.history["epoch"][one.best], one.history[f"{splits[-1]}_elbo"][one.best]

    lines = lines_of(len(members))  # before they are sorted, for the same colours as in `draw_curves`
    named = zip(lines, names_of(members), members, strict=True)
    for (colour, dash), name, one in sorted(named, key=lambda item: -kept(item[-1])[1]):
        label = f"{name}{f' ({one.note})' * bool(one.note and len(notes) > 1)}: {decimals(kept(one)[1])}"
        for split, axes in panels.items():
            curve = one.history[f"{split}_elbo"]
            curves.draw_curve(axes, one.history["epoch"], curve, color=colour, linestyle=dash, label=label)
        axes.plot(*kept(one), "o", color=colour, markersize=3.5)
    curves.zoom(axes, [one.history[f"{split}_elbo"] for one in members for split in panels])
    for split, panel in panels.items():
        curves.by_epoch(panel, "elbo")
        panel.set(title=curves.SPLITS[split], ylabel=panel.get_ylabel() if split == "train" else "")
    title = "best validation ELBO (dot)" if "val" in splits else "training ELBO of the last epoch (dot)"
    if any(one.config.monitor == "val_bound" for one in members):
        title = "validation ELBO of the kept epoch (dot)"
    title = "\n".join([title, *(notes if len(notes) == 1 else ())])
    options = {"title": title, "alignment": "left", "title_fontsize": 8, "loc": "upper left", "bbox_to_anchor": (1, 1)}
    axes.legend(handles=panels["train"].get_legend_handles_labels()[0], **options)
    return figure


def draw_comparison(members):
    blank = np.full_like(members[0].samples[:EACH], np.nan)
    rows = [np.concatenate([members[0].originals, blank])]
    rows += [np.concatenate([one.reconstructions, one.samples[:EACH]]) for one in members]
    breaks = {"row_breaks": (1,), "column_breaks": (len(members[0].originals),)}
    caption, names = "left: reconstructions; right: samples", ["test images", *names_of(members)]
    return sheets.sheet(np.stack(rows), caption, names, **breaks)


@style()
def draw_curves(members):
    found, seeds = {}, groups(members, "seed")
    for label, several in zip(labels([alike(one.config, "seed") for one, *_ in seeds]), seeds, strict=True):
        kind = "seeds" if len({one.config.seed for one in several}) == len(several) else "runs"
        words = [label] * bool(label) + [f"{len(several)} {kind}"] * (len(several) > 1)
        found[", ".join(words)] = several
    figure, split = new_figure(9, 3.5, layout="constrained"), members[0].config.splits[-1]
    for axes, name in zip(figure.subplots(1, 3), ("elbo", "rate", "distortion"), strict=True):
        lines = zip(lines_of(len(found)), found, found.values(), strict=True)
        curves.limit(axes, [draw_seeds(axes, *line, f"{split}_{name}") for line in lines])
        curves.by_epoch(axes, name)
    figure.axes[0].set_title(f"{curves.SPLITS[split]}; dots: kept epochs")
    figure.axes[1].set_title(
        "bands: mean ± sd over seeds, as far as all go" if any(len(seeds) > 1 for seeds in found.values()) else ""
    )
    figure.axes[2].set_title("; ".join(dict.fromkeys(one.note for one in members if one.note)))
    handles = figure.axes[0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    return figure


def draw_seeds(axes, line, label, members, column):
    """Draws the mean of a column over seeds, its band, and kept epochs; returns the values that should be visible."""
    colour, dash = line
    length = min(len(one.history[column]) for one in members)  # epochs that all have
    values = np.stack([one.history[column][:length] for one in members])
    epochs, mean = members[0].history["epoch"][:length], values.mean(axis=0)
    spread = values.std(axis=0, ddof=1) if len(members) > 1 else 0.0
    low, high = mean - spread, mean + spread
    if len(members) > 1:
        axes.fill_between(epochs, low, high, color=colour, alpha=0.25, linewidth=0)
    curves.draw_curve(axes, epochs, mean, color=colour, linestyle=dash, label=label)
    dots = [one.history[column][one.best] for one in members]
    for one, value in zip(members, dots, strict=True):
        dot = {"color": colour, "markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.6}
        axes.plot(one.history["epoch"][one.best], value, "o", **dot)
    return np.concatenate([low[length // 10 :], high[length // 10 :], dots])


def draw_priors(members):
    rows = [{one.config.prior: one for one in reversed(several)} for several in groups(members, *of_priors())]
    for one in members:
        if not any(one is drawn for row in rows for drawn in row.values()):
            print(f"priors: {one.path} is left out, as another run has this prior", file=sys.stderr)
    priors = [name for name in models.PRIORS if any(name in row for row in rows)]
    blank, (height, width) = np.full_like(members[0].samples, np.nan), SAMPLES
    samples = [[row[name].samples if name in row else blank for name in priors] for row in rows]
    grid = [np.concatenate([sheets.in_rows(one[: height * width], width) for one in row], axis=1) for row in samples]
    grid = np.concatenate(grid)  # (rows, columns, H, W, C)
    breaks = {"row_breaks": range(height, len(grid), height), "column_breaks": range(width, grid.shape[1], width)}
    names = labels([alike(next(iter(row.values())).config, *of_priors()) for row in rows]) if len(rows) > 1 else ()
    return sheets.sheet(grid, "samples, with z from the trained prior", names, priors, **breaks)


@style()
def draw_densities(members):
    shown = [(name, one) for name, one in zip(names_of(members), members, strict=True) if one.densities]
    rows = -(-len(shown) // PANELS)
    figure = new_figure(3.1 * min(PANELS, len(shown)), 3.1 * rows, layout="constrained")
    for number, (name, one) in enumerate(shown, 1):
        aggregate, prior = one.densities
        axes = figure.add_subplot(rows, min(PANELS, len(shown)), number, xlabel="z[0]", ylabel="z[1]")
        axes.set_title(f"{name}\n{prior.outside(aggregate, INSIDE):.0%} of p(z) in holes")
        level = planes.mass_levels(aggregate.log_p, (0.5,))[0]
        planes.shade(axes, aggregate, 2 * np.exp(level - aggregate.log_p.max()), levels=())  # peaks may be black
        planes.draw_levels(axes, prior, planes.SHARES, colors=PALETTE[3])
    axes.fill_between([], [], color="0.6", label="aggregated posterior")
    axes.plot([], [], color=PALETTE[3], linewidth=0.7, label=PRIOR)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@style()
def draw_likelihoods(members):
    named = zip(lines_of(len(members)), names_of(members), members, strict=True)  # with the colours of `draw_curves`
    scored = [(line, name, one.evaluation) for line, name, one in named if one.evaluation]
    edges = scores.bin_edges(np.concatenate([stored.log_px for *_, stored in scored]))
    axes = new_figure(5.6, 3.6).add_subplot(xlabel="log p(x) (nats)", ylabel="density (1 / nat)")
    for (colour, dash), name, stored in sorted(scored, key=lambda item: -item[-1].log_px.mean()):
        label = f"{name}: {scores.mean_of(stored.log_px)} ({stored.name})"
        shares = np.histogram(stored.log_px, edges, density=True)[0]
        axes.stairs(shares, edges, color=colour, linestyle=dash, linewidth=1.2, label=label)
        axes.axvline(stored.log_px.mean(), color=colour, linestyle=":", linewidth=0.8)
    axes.set_ylim(bottom=0)
    options = {"title": "mean (dotted) ± its standard error", "alignment": "left", "title_fontsize": 8}
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), **options)
    return axes.figure


FIGURES = (  # of a list of Drawn
    Figure("overlay", "ELBO of each run by epoch, of training images and, where there are any, of validation images; "
           "the legend begins with the run of the best kept epoch.", draw_overlay, stem="{subject}_losshistory"),
    Figure("comparison", "Test images in the first row; below them, for each run, their reconstructions and samples.",
           draw_comparison),
    Figure("curves", "ELBO, rate and distortion of validation images (with --validation none, of training images) by "
           "epoch: mean and standard deviation over seeds. Dots mark the epochs whose weights were kept.", draw_curves),
    Figure("priors", "Samples of runs that differ in their prior only, the priors side by side.", draw_priors,
           lambda members: any(len({one.config.prior for one in several}) > 1
                               for several in groups(members, *of_priors()))),
    Figure("densities", f"The aggregated posterior (1/N) sum_n q(z|x_n) of at most {AGGREGATED:,} training images "
           f"in grey, and lines around {planes.PERCENT} % of the mass of the prior p(z). Holes: where p(z) is outside "
           f"the region that holds {INSIDE:.0%} of the aggregated posterior; they hold {1 - INSIDE:.0%} if both are "
           f"the same, and more if posteriors are so narrow that there are gaps between them.", draw_densities,
           lambda members: sum(one.densities is not None for one in members) > 1),
    Figure("likelihoods", "The distributions of log p(x) over the test images that each run was scored on, the best "
           "run first in the legend.", draw_likelihoods,
           lambda members: sum(one.evaluation is not None for one in members) > 1),
)  # fmt: skip


def draw_groups(members, output, only=None):
    """Draws FIGURES, or those of the names `only`, of each group of two or more of these Drawn."""
    found = defaultdict(list)
    for one in members:
        found[group_of(one.config)].append(one)
    wanted = [figure for figure in FIGURES if only is None or figure.name in only]
    missing = {figure.name for figure in wanted} if only else set()
    for group, several in found.items():
        folder = Path(os.path.normpath(several[0].path / os.pardir), "figures")
        for figure in wanted:
            if len(several) > 1 and figure.applies(several):
                output.draw(folder, figure, several, subject=group)
                missing.discard(figure.name)
    for name in sorted(missing):
        print(f"{name} is not drawn: none of these runs can be compared in it", file=sys.stderr)
