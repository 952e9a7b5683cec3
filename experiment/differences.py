"""How runs differ: the settings that vary among them, labels made of these, and groups of otherwise equal runs."""

import collections
import dataclasses

from experiment.config import Config
from runtime.text import word

SELF_EXPLAINING = ("data_set", "model", "prior", "network", "posterior", "objective", "likelihood")


def varying(configs):
    """The names of the settings that have several values among the Configs for which they mean something."""
    settings = [config.settings for config in configs]
    names = [field.name for field in dataclasses.fields(Config)]
    return [name for name in names if len({one[name] for one in settings if name in one}) > 1]


def resolved(config, names):
    """The settings of these names that mean something for the Config, `auto` and the like by what they come to."""
    values = {"binarize": config.binarization, "likelihood": config.observation}
    values |= {"num_samples": config.samples, "target_accept": config.acceptance}
    return {name: values.get(name, value) for name, value in config.settings.items() if name in names}


def label(config, names):
    """The settings of these names that mean something for the Config, as "hvae, lr 0.001, K 500"."""
    tags = {field.name: field.metadata["tag"] or field.name for field in dataclasses.fields(Config)}
    words = {name: word(value) for name, value in resolved(config, names).items()}
    return ", ".join(one if name in SELF_EXPLAINING else f"{tags[name]} {one}" for name, one in words.items())


def labels(configs):
    """A label for each Config that names the settings in which they differ; empty where they do not differ."""
    names = varying(configs)
    return [label(config, names) for config in configs]


def alike(config, *names):
    """The Config with the default values of the settings of these names."""
    return dataclasses.replace(config, **{name: getattr(Config, name) for name in names})


def groups(runs, *names, key=lambda run: None):
    """Lists of the runs that differ only in the settings of these names, in the order in which they came.

    A run is any object whose `config` is a Config. Runs for which `key(run)` differs are never in one group.
    """
    found = collections.defaultdict(list)
    for run in runs:
        found[alike(run.config, *names).training_id, key(run)].append(run)
    return list(found.values())
