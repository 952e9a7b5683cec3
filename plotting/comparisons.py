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
from plotting import curves, sheets
from plotting.output import Figure

EACH = 10  # test images of a run, and samples beside them
SAMPLES = (4, 8)  # rows and columns of samples of one prior beside those of others
OF_PRIORS = ("prior", "num_pseudo_inputs", "pseudo_init")  # settings in which runs of different priors may differ


class Drawn(NamedTuple):
    """What comparisons need of one run: EACH originals and reconstructions, and samples, all (N, H, W, C).

    The originals are of different classes where there are any.
    """

    path: Path
    config: experiment.Config
    history: dict
    originals: np.ndarray
    reconstructions: np.ndarray
    samples: np.ndarray
    note: str

    @property
    def best(self):
        """The index of the epoch whose weights were kept."""
        return int(np.argmax(self.history[self.config.monitor]))


def drawn_of(view):
    """The Drawn of a view's run."""
    chosen, run = view.spread(EACH), view.run
    reconstructions = view.reconstructed(view.images[chosen])
    samples = view.samples[: max(EACH, SAMPLES[0] * SAMPLES[1])]
    return Drawn(run.path, run.config, run.history, view.split.grey(chosen), reconstructions, samples, run.note)


def group_of(config):
    """What all runs have in common that are compared with one of these settings, as `mnist_ldim2_factor4`."""
    latents = f"L{config.num_layers}" if config.is_deep else f"ldim{config.latent_dim}"
    return f"{config.source.name}_{latents}_{config.size.removesuffix('.0')}{config.likelihood_tag}"


def grouped(members):
    """Those of several Drawn that can be compared: a dict of the name of a group to its two or more Drawn."""
    found = defaultdict(list)
    for one in members:
        found[group_of(one.config)].append(one)
    return {group: several for group, several in found.items() if len(several) > 1}


def names_of(runs):
    """A name for each run: the settings in which they differ, or its folder where these do not tell them apart."""
    found = labels([one.config for one in runs])
    if len(set(found)) == len(found):
        return found
    folders = [str(one.path) for one in runs]
    return [f"./{folder}" if folder.startswith("_") else folder for folder in folders]  # matplotlib would hide these


def draw_overlay(members):
    names = [f"{name} ({one.note})" if one.note else name for name, one in zip(names_of(members), members, strict=True)]
    found = [(one.history["epoch"], one.history["val_elbo"]) for one in members]
    return curves.overlay(dict(zip(names, found, strict=True)))


def draw_comparison(members):
    blank = np.full_like(members[0].originals, np.nan)
    rows = [np.concatenate([members[0].originals, blank])]
    rows += [np.concatenate([one.reconstructions, one.samples[:EACH]]) for one in members]
    breaks = {"row_breaks": (1,), "column_breaks": (len(members[0].originals),)}
    caption, names = "left: reconstructions; right: samples", ["test images", *names_of(members)]
    return sheets.sheet(np.stack(rows), caption, names, **breaks)


def draw_curves(members):
    found, seeds = {}, groups(members, "seed")
    for label, several in zip(labels([alike(one.config, "seed") for one, *_ in seeds]), seeds, strict=True):
        kind = "seeds" if len({one.config.seed for one in several}) == len(several) else "runs"
        words = [label] * bool(label) + [f"{len(several)} {kind}"] * (len(several) > 1)
        found[", ".join(words)] = [(one.history, one.best) for one in several]
    return curves.curves(found, "; ".join(dict.fromkeys(one.note for one in members if one.note)))


def draw_priors(members):
    rows = [{one.config.prior: one for one in reversed(several)} for several in groups(members, *OF_PRIORS)]
    priors = [name for name in models.PRIORS if any(name in row for row in rows)]
    blank, (height, width) = np.full_like(members[0].samples, np.nan), SAMPLES
    samples = [[row[name].samples if name in row else blank for name in priors] for row in rows]
    grid = [np.concatenate([sheets.in_rows(one[: height * width], width) for one in row], axis=1) for row in samples]
    grid = np.concatenate(grid)  # (rows, columns, H, W, C)
    breaks = {"row_breaks": range(height, len(grid), height), "column_breaks": range(width, grid.shape[1], width)}
    names = labels([alike(next(iter(row.values())).config, *OF_PRIORS) for row in rows]) if len(rows) > 1 else ()
    return sheets.sheet(grid, "samples, with z from the trained prior", names, priors, **breaks)


def has_several_priors(members):
    """Whether two of the runs differ in their prior only."""
    return any(len({one.config.prior for one in several}) > 1 for several in groups(members, *OF_PRIORS))


FIGURES = (  # of a list of Drawn
    Figure("overlay", "Validation ELBO of each run by epoch; the legend begins with the best run.", draw_overlay,
           stem="{subject}_losshistory"),
    Figure("comparison", "Test images in the first row; below them, for each run, their reconstructions and samples.",
           draw_comparison),
    Figure("curves", "Validation ELBO, rate and distortion by epoch: mean and standard deviation over seeds. Dots mark "
           "the epochs whose weights were kept.", draw_curves),
    Figure("priors", "Samples of runs that differ in their prior only, the priors side by side.", draw_priors,
           has_several_priors),
)  # fmt: skip


def draw_groups(members, output, only=None):
    """Draws FIGURES, or those of the names `only`, of each group of these Drawn."""
    wanted = [figure for figure in FIGURES if only is None or figure.name in only]
    missing = {figure.name for figure in wanted} if only else set()
    for group, several in grouped(members).items():
        folder = Path(os.path.normpath(several[0].path / os.pardir), "figures")
        for figure in wanted:
            if figure.applies(several):
                output.draw(folder, figure, several, subject=group)
                missing.discard(figure.name)
    for name in sorted(missing):
        print(f"{name} is not drawn: none of these runs can be compared in it", file=sys.stderr)
