"""Settles the backend before any test imports Keras, and offers one small trained run to all of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import experiment

ROOT = Path(__file__).parent.parent
TINY = {"data_set": "digits", "network_size": "0.25", "batch_size": "64", "lr": "1e-3", "num_pseudo_inputs": "12"}

experiment.settle_backend(os.environ.get("KERAS_BACKEND"))
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
