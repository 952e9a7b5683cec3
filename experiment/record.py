"""config.json and status.json: what they hold, and how they are read with distrust."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import data
import models
from experiment import own
from runtime import atomic, backend
from runtime.errors import UserError
from runtime.rules import shown

FORMAT = 10  # of config.json, and of what lies beside it
FIRST = (  # the settings that every config.json of this format has
    "model prior network posterior objective num_samples num_steps step_size target_accept learn_schedule "
    "learn_step_size data_set latent_dim network_size hidden_units epochs batch_size lr optimizer lr_schedule "
    "lr_final lr_warmup clip_norm accumulate ema precision activation seed num_pseudo_inputs pseudo_init binarize "
    "likelihood sigma scales channels bottleneck encoder_blocks context_size diffusion_steps gamma_min "
    "score_channels score_blocks score_dropout patience beta_warmup max_train_images gs_key data_dir other_data "
    "runs_dir save_minutes track jit steps_per_execution distribute deterministic"
)
BEFORE = {"log_steps": "off"}  # of later ones, what it was before; of the rest it was what is usual now
MOST_JSON = 1 << 20  # bytes of a config.json or status.json; larger ones are not read


def read_json(path, complaint):
    """The dict in a small JSON file. Raises UserError with the `complaint` where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if isinstance(value := json.loads(read_bytes(path, MOST_JSON)), dict):
            return value
    raise UserError(complaint)


def read_bytes(path, most):
    """The content of a regular file. Raises OSError, and ValueError if it has more than `most` bytes."""
    with atomic.opened(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return content


def read_status(path):
    """status.json, which training writes anew whenever it goes on: empty where it cannot be read or makes no sense."""
    kinds = {"state": str, "epochs_done": int, "best_epoch": int, "best_val_elbo": float, "seconds": float, "note": str}
    try:
        status = read_json(path, "unreadable")
        if status["state"] not in ("running", "stopped", "failed", "finished"):
            raise UserError(f"its state is {shown(status['state'])}")
        for name, kind in kinds.items():
            value = status.get(name, kind())
            fits = type(value) is kind or (kind is float and type(value) is int)
            if not fits or (kind is float and not abs(value) <= sys.float_info.max):  # JSON's NaN, or a long integer
                raise UserError(f"its {name} is {shown(value)}")
    except (UserError, KeyError) as error:
        if path.exists():
            print(f"warning: {path} is damaged ({error}); it is left out of account", file=sys.stderr)
        return {}
    return status


def check_record(record):
    """Raises UserError unless a config.json has this version's format, and beside its settings what was written there.

    The settings of FIRST must be there: a default of this version need not be what the run had.
    """
    number = record.get("format")
    if type(number) is not int or number != FORMAT:
        writer = shown(record.get("git_commit") or "unknown")
        raise UserError(f"version {writer} wrote it, in format {shown(number)}; this version reads format {FORMAT}")
    settings = record["config"]
    if not isinstance(settings, dict):
        raise UserError(f"its settings are {type(settings).__name__}, not an object")
    if missing := [name for name in FIRST.split() if name not in settings]:
        raise UserError(f"setting {missing[0]!r} is missing")
    if record["backend"] not in backend.BACKENDS:
        raise UserError(f"its backend is {shown(record['backend'])}")
    if type(count := record.get("train_images", 1)) is not int or count < 1:
        raise UserError(f"its train_images is {shown(count)}")
    for name in ("versions", "data_sha256"):
        if not isinstance(record[name], dict) or not all(type(text) is str for text in record[name].values()):
            raise UserError(f"its {name} is {shown(record[name])}")
    if record.get("data_note", "") not in ("", data.OTHER_DATA):
        raise UserError(f"its data_note is {shown(record['data_note'])}")


def with_former(settings):
    """The settings of a config.json with those of BEFORE that it lacks and that mean something beside the others."""
    owned = getattr(models.OBJECTIVES.get(str(settings["objective"])), "settings", ())
    return {name: value for name, value in BEFORE.items() if name in owned} | settings


def record_of(config, dataset):
    """What config.json says of a new run: settings, code, versions and data, a dict."""
    import keras

    settings = dataclasses.asdict(config) | {"data_set": data.absolute(config.data_set)}
    settings["data_dir"] = config.data_dir and os.path.abspath(os.path.expanduser(config.data_dir))
    found = {"format": FORMAT, "config": settings, "backend": keras.backend.backend(), "git_commit": git_commit()}
    found |= {"code": code} if (code := own.record(config)) else {}
    about = {"data_sha256": dataset.sha256, "data_note": dataset.note, "image_shape": list(dataset.image_shape)}
    if config.has("num_exemplars"):
        about["train_images"] = min(len(dataset.split("train").images), config.max_train_images or sys.maxsize)
    return found | {"versions": versions()} | about


def versions():
    """Versions of what the numbers depend on: a dict of package name to version, those that are installed."""
    found = {"python": platform.python_version()}
    for name in ("keras", "tensorflow", "jax", "numpy", "scikit-learn"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # not there, or tensorflow-cpu
            found[name] = importlib.metadata.version(name)
    return found


def git_commit():
    """The commit of this code, with "+changes" behind it where the work tree differs; None outside a checkout."""

    def git(*words):
        where = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=where, capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "HEAD").strip() + ("+changes" if git("status", "--porcelain", "-uno").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None
