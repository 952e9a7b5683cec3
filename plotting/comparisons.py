"""Figures that compare runs: what each contributes, which belong together, and what they are drawn from."""

import dataclasses
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

import experiment
import models
from experiment import Config
from experiment.settings import CHAIN_SETTINGS
from plotting import curves, sheets
from plotting.curves import overlay
from plotting.sheets import in_rows, name_columns, name_rows, sheet

EACH = 10  # test images, and samples beside them, of a run
SAMPLES = (4, 8)  # rows and columns of samples of a prior beside those of others
OF_PRIORS = ("prior", "num_pseudo_inputs", "pseudo_init")  # settings in which runs of different priors may differ


class Group(NamedTuple):
    """What runs share whose figures can be compared; for `likelihood_tag` see experiment/naming.py."""

    data_set: str
    latents: str
    size: str
    likelihood_tag: str

    @classmethod
    def of(cls, config):
        """The Group of a run with these settings."""
        latents = f"L{config.num_layers}" if config.is_deep else f"ldim{config.latent_dim}"
        return cls(config.source.name, latents, config.size.removesuffix(".0"), config.likelihood_tag)

    @property
    def name(self):
        """What the names of the figures begin with."""
        return f"{self.data_set}_{self.latents}_{self.size}{self.likelihood_tag}"


class Drawn(NamedTuple):
    """What figures that compare runs need of one: images (N, H, W, C).

    Originals and reconstructions are EACH, one a class where there are classes.
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

    def alike(self, *names):
        """The same with the usual values of these settings, so that runs that differ in them only become equal."""
        usual = {name: getattr(Config, name) for name in names}
        return self._replace(config=dataclasses.replace(self.config, **usual))


def drawn_of(view):
    """The Drawn of a view's run."""
    chosen = view.spread(EACH)
    reconstructions = view.reconstructed(view.images[chosen])
    run = view.run
    originals, samples = view.split.grey(chosen), view.samples[: max(EACH, SAMPLES[0] * SAMPLES[1])]
    return Drawn(run.path, run.config, run.history, originals, reconstructions, samples, run.note)


def grouped(members):
    """Those of several runs that can be compared: a dict of Group to two Drawn or more."""
    groups = defaultdict(list)
    for one in members:
        groups[Group.of(one.config)].append(one)
    return {group: several for group, several in groups.items() if len(several) > 1}


def draw_overlay(members):
    """The validation ELBO of each run by epoch, the best run first."""
    curves = {}
    for label, one in zip(differences(members), members, strict=True):
        said = f"{label} ({one.note})" if one.note else label
        curves[said] = (one.history["epoch"], one.history["val_elbo"])
    return overlay(curves)


def draw_comparison(members):
    """Reconstructions of the test images in the first row by each run, and samples of its prior."""
    blank = np.full_like(members[0].originals, np.nan)
    rows = [np.concatenate([members[0].originals, blank])]
    rows += [np.concatenate([one.reconstructions, one.samples[:EACH]]) for one in members]
    caption, left = "left: reconstructions; right: samples", len(members[0].originals)
    figure = sheets.sheet(np.stack(rows), caption, row_breaks=(1,), column_breaks=(left,))
    sheets.name_rows(figure, ["test images", *differences(members)])
    return figure


def draw_curves(members):
    """Validation ELBO, rate and distortion by epoch, mean and standard deviation over the seeds, kept epochs marked."""
    seeds = families(members, "seed")
    labels = differences([several[0].alike("seed") for several in seeds])
    found = {}
    for label, several in zip(labels, seeds, strict=True):
        kind = "seeds" if len({one.config.seed for one in several}) == len(several) else "runs"
        words = [label] * bool(label) + [f"{len(several)} {kind}"] * (len(several) > 1)
        found[", ".join(words)] = [(one.history, one.best) for one in several]
    return curves.curves(found, "; ".join(dict.fromkeys(one.note for one in members if one.note)))


def draw_priors(members):
    """Samples of runs that differ in their prior only, the priors side by side."""
    rows = [{one.config.prior: one for one in reversed(several)} for several in families(members, *OF_PRIORS)]
    priors = [name for name in models.PRIORS if any(name in row for row in rows)]
    blank = np.full_like(members[0].samples, np.nan)
    sheets = [[row[name].samples if name in row else blank for name in priors] for row in rows]
    height, width = SAMPLES
    count = height * width
    grid = [[in_rows(padded(images[:count], count), width) for images in row] for row in sheets]
    grid = np.concatenate([np.concatenate(row, axis=1) for row in grid])  # (rows, columns, H, W, C)
    breaks = {"row_breaks": range(height, len(grid), height), "column_breaks": range(width, grid.shape[1], width)}
    figure = sheet(grid, "samples, z from the prior that was trained", **breaks)
    if len(rows) > 1:
        name_rows(figure, differences([next(iter(row.values())).alike(*OF_PRIORS) for row in rows]))
    name_columns(figure, priors)
    return figure


def padded(images, count):
    """Images (N, H, W, C), and NaN for those that are missing to `count`: (count, H, W, C)."""
    missing = np.full((max(0, count - len(images)), *images.shape[1:]), np.nan, images.dtype)
    return np.concatenate([images, missing])


def families(members, *names):
    """Lists of the Drawn that differ in the settings of these names only, in the order in which they came."""
    found = defaultdict(list)
    for one in members:
        found[one.alike(*names).config.training_id].append(one)
    return list(found.values())


def has_several_priors(members):
    """Whether two of the runs differ in their prior only."""
    return any(len({one.config.prior for one in several}) > 1 for several in families(members, *OF_PRIORS))


FIGURES = {
    "overlay": draw_overlay,
    "comparison": draw_comparison,
    "curves": draw_curves,
    "priors": draw_priors,
}
STEMS = {"overlay": "losshistory"}  # of their files, where it is not the name
CONDITIONS = {"priors": has_several_priors}  # of the runs of a group, for figures that not every group has


def differences(members):
    """A label for each run: the settings in which they differ, or its folder where that does not tell them apart."""
    settings = [settings_of(one.config) for one in members]
    names = list(dict.fromkeys(name for one in settings for name in one))
    varying = [name for name in names if len({one.get(name) for one in settings}) > 1]
    labels = [", ".join(one[name] for name in varying if name in one) for one in settings]
    return labels if len(set(labels)) == len(labels) else [_shown(one.path) for one in members]


def _shown(path):
    """A path as a label; matplotlib leaves one that begins with an underscore out of legends."""
    return f"./{path}" if str(path).startswith("_") else str(path)


def settings_of(config):
    """The settings of a run that change its numbers: a dict of name to words, as "hvae", "epochs 20" or "lr 0.001"."""
    tags = {field.name: field.metadata["tag"] for field in dataclasses.fields(config)}
    values = {name: getattr(config, name) for name, tag in tags.items() if tag is not None}
    values = {name: value for name, value in values.items() if config.has(name)}
    values |= {"binarize": config.binarization, "likelihood": config.observation}
    values |= {"num_samples": config.samples, "target_accept": config.acceptance}
    meaningless = ["sigma"] * (config.observation != "gaussian")
    meaningless += ["num_pseudo_inputs"] * (not config.has_components)
    meaningless += ["pseudo_init"] * (not config.has_pseudo_inputs or config.pseudo_init == "data")
    values = {name: value for name, value in values.items() if name not in meaningless}
    if not models.OBJECTIVES[config.objective].is_annealed:
        values = {name: value for name, value in values.items() if name not in CHAIN_SETTINGS}
    plain = ("model", "prior", "network", "posterior", "objective", "likelihood")
    return {name: value if name in plain else f"{tags[name] or name} {value}" for name, value in values.items()}


def draw_groups(members, output, only=None):
    """Draws the figures that compare runs, those named by `only` or all, of each group of these groups.Drawn."""
    missing = set(FIGURES) & set(only or ())
    for group, several in grouped(members).items():
        folder = Path(os.path.normpath(several[0].path / os.pardir), "figures")
        for name, draw in FIGURES.items():
            if name in (only or FIGURES) and CONDITIONS.get(name, bool)(several):
                output.draw(folder, f"{group.name}_{STEMS.get(name, name)}", draw, several)
                missing.discard(name)
    for name in sorted(missing):
        print(f"no {name} is drawn: among these are no runs that it could compare", file=sys.stderr)
