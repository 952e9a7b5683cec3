"""The Configs that the flags of a grid ask for."""

import itertools

import experiment
import models
from experiment import Config
from experiment.flags import Range, given_settings
from experiment.presets import preset
from experiment.rules import misplaced
from runtime.errors import UserError


def lists_of(args):
    """The settings that the flags and the preset give: a dict of name to the list of its values.

    Those of the preset's network are left out where a flag chooses a network that does not have them, as are those of
    its prior, objective and the like where no chosen one has them, and its latent dimensions where a flag gives others.
    """
    lists = {name: value if isinstance(value, list) else [value] for name, value in given_settings(args).items()}
    settings = {} if args.preset is None else preset(args.preset).settings
    if {"latent_dim", "latent_dims"} <= lists.keys():
        raise UserError("--latent_dim does not go with --latent_dims, whose sum it is")
    dropped = []
    for name in settings:
        for pick, having in models.owners(name).items():
            lacking = set(lists.get(pick, having)).difference(having)
            if lacking and (pick == "network" or lacking == set(lists[pick])):
                dropped.append(name)
    dropped += [name for name, other in itertools.permutations(("latent_dim", "latent_dims")) if other in lists]
    return {name: [value] for name, value in settings.items() if name not in dropped} | lists


def configs_of(args):
    """The Configs that the flags make, each training id once. Raises UserError for several without --gs_key."""
    lists = lists_of(args)
    for name, values in lists.items():
        if ranges := [value for value in values if isinstance(value, Range)]:
            raise UserError(f"--{name} {ranges[0]} is a range, which needs --search optuna")
    configs = _configs([dict(zip(lists, choice, strict=True)) for choice in itertools.product(*lists.values())])
    for config, name in itertools.product(configs, lists):
        if end := misplaced(config, name):  # also where the value is the usual one
            raise UserError(f"--{name} {lists[name][0]} {end}")
    unique = list({config.training_id: config for config in configs}.values())
    if len(unique) > 1 and not unique[0].gs_key:
        raise UserError(f"these flags make a grid of {len(unique)} runs, which needs a name: add --gs_key NAME")
    return unique


def hash_of(path):
    """The setting `init_hash` of the run that --init_from names: a dict. Raises UserError if it has no weights."""
    if path is None:
        return {}
    run = experiment.load(path)
    if not run.weights.is_file():
        raise UserError(f"--init_from {path} has no weights yet; train it for at least one epoch")
    return {"init_hash": run.weights_id}


def _configs(choices):
    """A Config for each dict of settings. Raises UserError for the first that is none, with the number of all such."""
    configs, errors = [], []
    for settings in choices:
        try:
            configs.append(Config(**settings | hash_of(settings.get("init_from"))))
        except UserError as error:
            errors.append(str(error))
    if errors:
        many = f" ({len(errors)} of the {len(choices)} runs of this grid are refused)" if len(choices) > 1 else ""
        raise UserError(f"{errors[0]}{many}")
    return configs
