"""What several of these tests draw: stubs of runs, tiny trained runs, and what stands in a figure."""

import contextlib
import functools
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import experiment
import models
from data import Split
from experiment.run import Evaluation
from plotting import posteriors, run_figures
from training import fit

HISTORY = {name: np.linspace(-9.0, -5.0, 4) for name in ("val_elbo", "train_elbo", "train_rate", "val_rate")} | {
    "epoch": np.arange(1.0, 5),
    "train_distortion": np.linspace(9, 5, 4),
    "val_distortion": np.linspace(9, 5, 4),
}
KINDS = {"standard2": ("vae", "standard", 2), "vamp2": ("vae", "vamp", 2), "hvae3": ("hvae", "vamp", 3)}


def texts(labels):
    """The words of matplotlib's text objects."""
    return [label.get_text() for label in labels]


def noise(*shape):
    """Uniform float32 noise of this shape, always the same."""
    return np.random.default_rng(0).random(shape, np.float32)


def numpy(tensor):
    """A tensor of any backend as an array."""
    from keras import ops

    return ops.convert_to_numpy(tensor)


@functools.cache
def trained(runs_dir):
    """Finished tiny runs on digits by name, see KINDS; trained once in a process."""
    tiny = {"data_set": "digits", "network_size": 0.25, "epochs": 1, "lr": 1e-3, "num_pseudo_inputs": 12}
    tiny["max_train_images"] = 512  # two whole batches: JAX compiles a step for each length
    tiny |= {"runs_dir": str(runs_dir), "track": "none"}
    configs = {n: experiment.Config(model=m, prior=p, latent_dim=d, **tiny) for n, (m, p, d) in KINDS.items()}
    return {name: fit.train(config) for name, config in configs.items()}


def copies(factory):
    """Copies of the trained runs for the tests of one file, which may write into them: a dict of name to folder."""
    folder = factory.mktemp("runs")
    return {
        name: Path(shutil.copytree(path, folder / path.name))
        for name, path in trained(factory.getbasetemp() / "trained").items()
    }


@contextlib.contextmanager
def small():
    """Posteriors of two images, by few points, for the block."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"POSTERIORS": 2, "DRAWS": 60, "COARSE": 20, "FINEST": 40}.items():
            patch.setattr(posteriors, name, value)
        yield


def stub(shape, labels, names, **settings):
    """What plot.py needs of a run: an untrained model and noise for images."""
    small = {} if "scales" in settings else {"network_size": 0.25, "num_pseudo_inputs": 3}
    config = experiment.Config(**{"data_set": "digits"} | small | settings)
    split = Split((noise(24, *shape) * 255).astype(np.uint8), labels, 255)
    run = SimpleNamespace(
        path=Path("nowhere"),
        config=config,
        history=HISTORY,
        model=models.build(config, shape, from_data=noise(3, *shape)),
        dataset=SimpleNamespace(class_names=names, split=lambda name: split),
        images=lambda name: split.grey(),
        evaluation=lambda name: None,
        latent_dim=config.latent_dim,
        note="",
        is_own=True,
        snapshots={},
    )
    run.in_precision = lambda precision: run
    return run


def keep(monkeypatch, *names):
    """Leaves no other figures of a run than these."""
    monkeypatch.setattr(run_figures, "FIGURES", [one for one in run_figures.FIGURES if one.name in names])


def evaluation(index, log_px):
    """An experiment.Evaluation of these images."""
    return Evaluation("test_is_S5_N9", index, log_px, *[np.full(len(index), np.nan)] * 4)
