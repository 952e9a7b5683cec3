"""Runs that begin with the weights of another run, their source."""

import dataclasses
import os
import shlex

import models
from experiment.config import Config
from experiment.rules import misplaced
from experiment.run import Run
from runtime.errors import UserError
from runtime.text import bounded, word

# what is not of q, p(x|z) or the images, and so may be another one where a prior is fitted again
FITTED = ("optimisation", "prior")  # topics
OF_REFITS = [field.name for field in dataclasses.fields(Config) if field.name not in ("prior", "refit")
             and field.metadata["tag"] is not None and field.metadata["topic"] in FITTED]  # fmt: skip


def finished(path):
    """The Run in a folder. Raises UserError unless it is finished and has its weights."""
    run = Run(os.path.abspath(os.path.expanduser(path)))  # `.` and `..` name no run
    if run.state != "finished":
        again = f"python train.py --resume {shlex.quote(str(path))}"
        raise UserError(f"{path} is {run.state}, not finished; finish it first: {again}")
    if not run.weights.is_file():
        raise UserError(f"{path} is finished, but has no {run.weights.name} to start from")
    return run


def named(run):
    """What a setting says of a source: ID@SHA256, the sum of its weights."""
    return f"{bounded(run.config.training_id)}@{run.weights_sha256}"


def is_of(config, weights_sha256):
    """Whether q and p(x|z) of a Config's run are those in weights of this sum."""
    return config.refit is not None and config.refit.endswith(f"@{weights_sha256}")


def place_of(config):
    """The folder where the source of a Config's run was, if it has one: beside that run, as long as none is moved."""
    return str(config.path.parent / config.refit.rpartition("@")[0])


def refitted(run, prior, settings):
    """The Config of a run that keeps q and p(x|z) of a finished Run and fits another prior.

    It has the source's settings but for these, the objective, and what does not belong to the prior; it lies beside the
    source. Raises UserError where they do not go together.
    """
    if run.config.is_deep:
        raise UserError(f"{run.path} is a {run.config.model}, whose prior belongs to its decoder; --refit_prior takes "
                        "runs of --model vae, hvae or markov")  # fmt: skip
    before = {"runs_dir": str(run.path.resolve().parent), "gs_key": None, "data_dir": run.data_dir, "prior": prior}
    before |= {"distribute": Config.distribute, "refit": named(run), "init_from": None, "init_hash": None}
    of_priors = {name for entry in models.PRIORS.values() for name in entry.settings}
    others = of_priors - set(models.PRIORS[prior].settings) if prior in models.PRIORS else ()
    of_bound = [field.name for field in dataclasses.fields(Config) if field.metadata["topic"] == "bound"]
    usual = {name: getattr(Config, name) for name in (*of_bound, *others) if name != "beta"}  # which trained q
    config = Config.from_dict(dataclasses.asdict(run.config) | usual | before | settings)
    for name in settings:
        if end := misplaced(config, name):  # also where the value is the usual one
            raise UserError(f"--{name} {word(settings[name])} {end}")
    return config
