"""Settles the backend before any test imports Keras, and offers one small trained run to all of them."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

import engine
from experiment import Config

ROOT = Path(__file__).parent.parent
TINY = {"data_set": "digits", "network_size": "0.25", "batch_size": "64", "lr": "1e-3", "num_pseudo_inputs": "12"}

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
NUMBERS = [name for name, field in FIELDS.items() if field.metadata["tag"] is not None]
PLACES = [name for name in FIELDS if name not in NUMBERS]
SMALL = {"model": "hvae", "prior": "vamp", "latent_dim": 4, "lr_schedule": "cosine"}
SMALL |= {"likelihood": "gaussian", "binarize": "none", "objective": "lmcvae"}  # so that every setting means something

engine.settle(os.environ.get("KERAS_BACKEND"))
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".pytest_cache" / "jax")  # tests compile the same over and over
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.fixture
def script():
    """Runs a script as a user does: `script("train.py", "--epochs", 3)` returns the finished process with its text."""

    def run(*words, **environment):
        command, env = [sys.executable, *map(str, words)], {**os.environ, **environment}
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=env)

    return run


def flags(**settings):
    """A list of command-line words: the tiny settings of the tests, changed and extended by `settings`."""
    return [word for name, value in (TINY | settings).items() for word in (f"--{name}", str(value))]


def validated(run):
    """What validation gives, with the noise that it has in training, for the weights that a run kept."""
    from training import validation_batch

    run.model.compile()
    run.model.test_noise.state.assign(run.config.stream("validation noise").generate_state(2) % 2**31)
    return run.model.evaluate(run.images("val"), batch_size=validation_batch(run.config), verbose=0, return_dict=True)


def other(name):
    """Another value of this setting than the one in SMALL, made from its field, so that a new field has one too."""
    field, used = FIELDS[name], getattr(Config(**SMALL), name)
    choices, kind = field.metadata["choices"], field.metadata["kind"]
    if name == "lr_final":  # which lies below lr
        return 1e-6
    if name == "network":  # one that goes with every objective
        return "mlp"
    if choices:
        return next(choice for choice in reversed(choices) if choice != used)
    return "tanh" if kind is str else kind(min((used or 6) + 1, field.metadata["high"]))
