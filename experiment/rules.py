"""Which settings of a run go together: one table, which runtime/rules.py checks."""

import itertools
import re

import models
from experiment.settings import CHAIN_SETTINGS
from runtime.rules import Rule, needs

MOST_LAYERS = 256  # of latents
WITHOUT_GRADIENTS = tuple(name for name, entry in models.OBJECTIVES.items() if not entry.has_gradients)
ANNEALED = tuple(name for name, entry in models.OBJECTIVES.items() if entry.is_annealed)


def not_of_model(model, name):
    """The end of the sentence on a setting `name` that this model does not have."""
    owners = [other for other, entry in models.MODELS.items() if name in entry.settings]
    return f"does not go with --model {model}: it is a setting of {' and '.join(owners)}"


def scales(config):
    """The layers of a deep model as pairs (count, rows), from "4x14,4x7"; an empty list where the text is malformed."""
    found = re.findall(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})", config.scales)
    return [] if ",".join(map("x".join, found)) != config.scales else [(int(n), int(rows)) for n, rows in found]


def _smallest(config):
    return models.MODELS[config.model].smallest_latent


def _network(config):
    return models.NETWORKS[config.network]


def _objective(config):
    return models.OBJECTIVES[config.objective]


def _is_misfit(config):
    """Whether a density of grey values is asked of binary pixels."""
    return (config.binarization != "none" or config.source.is_binary) and config.observation != "bernoulli"


RULES = (
    Rule("activation", lambda c: not re.fullmatch(r"[a-z0-9_]{1,50}", c.activation),  # becomes part of a folder's name
         "must be a name that keras.activations knows, as relu"),
    *[Rule(name, lambda c, name=name: not c.has(name), lambda c, name=name: not_of_model(c.model, name))
      for name in models.OWNED],
    Rule("image_size", lambda c: not c.is_folder, "goes with --data_set folder:PATH"),
    Rule("scales", lambda c: not scales(c), "must be counts and rows, the finest first, as 4x14,4x7"),
    Rule("scales", lambda c: any(fine <= coarse for (_, fine), (_, coarse) in itertools.pairwise(scales(c))),
         "must begin with the finest, and have each once"),
    Rule("scales", lambda c: c.num_layers > MOST_LAYERS,
         lambda c: f"makes {c.num_layers} layers; at most {MOST_LAYERS} are allowed"),
    Rule("score_channels", lambda c: c.score_channels % 2, "must be even"),
    Rule("objective", lambda c: c.is_deep and _objective(c).has_gradients,
         lambda c: f"goes with --model vae or hvae; {c.model} has {', '.join(WITHOUT_GRADIENTS)}"),
    Rule("latent_dim", lambda c: c.latent_dim < _smallest(c),
         lambda c: f"is too small: {c.model} needs at least {_smallest(c)}"),
    Rule("posterior", lambda c: c.posterior == "realnvp" and c.latent_dim < 2 * _smallest(c),
         lambda c: f"needs two dimensions in each layer: --latent_dim {2 * _smallest(c)} or more for {c.model}"),
    *[Rule(name, lambda c: not _network(c).is_sized,
           lambda c: f"goes with --network conv; {c.network} has the sizes and gates of its paper")
      for name in ("network_size", "activation")],
    Rule("network", lambda c: not c.is_deep and c.model not in _network(c).models,
         lambda c: f"needs --model {' or '.join(_network(c).models)}"),
    Rule("lr_final", lambda c: c.lr_schedule == "constant", "needs a --lr_schedule that falls"),
    Rule("lr_final", lambda c: c.lr_final > c.lr, lambda c: f"must be at most --lr {c.lr}"),
    Rule("lr_warmup", lambda c: c.lr_schedule == "plateau", "does not go with --lr_schedule plateau"),
    Rule("lr_warmup", lambda c: c.lr_warmup >= c.epochs, lambda c: f"must be less than --epochs {c.epochs}"),
    Rule("ema", lambda c: _network(c).normalises_batches, lambda c: f"does not go with --network {c.network}: the "
         "statistics of its batch normalisation are not averaged"),
    *[needs(name, "prior", *(prior for prior, entry in models.PRIORS.items() if name in entry.settings))
      for name in models.OF_PRIORS],
    Rule("prior", lambda c: c.prior == "flow" and c.latent_dim <= _smallest(c),
         lambda c: f"needs two dimensions in the top layer: --latent_dim {_smallest(c) + 1} or more for {c.model}"),
    Rule("pseudo_init", lambda c: c.prior == "vampdata", "does not go with --prior vampdata, which is made of data"),
    Rule("likelihood", _is_misfit, lambda c: f"is for grey pixels, and those of {c.data_set} are binarized"),
    Rule("binarize", _is_misfit, lambda c: f"does not go with the {c.observation} likelihood of {c.data_set}"),
    Rule("sigma", lambda c: c.observation != "gaussian", "goes with --likelihood gaussian"),
    Rule("num_samples", lambda c: c.samples < _objective(c).fewest,
         lambda c: f"is too small: {c.objective} needs at least {_objective(c).fewest}"),
    *[needs(name, "objective", *ANNEALED) for name in CHAIN_SETTINGS],
    *[needs(name, "objective", *owners) for name, owners in models.OF_OBJECTIVES.items()],
    *[Rule(name, lambda c: c.objective in models.OF_OBJECTIVES["num_groups"] and c.samples % c.num_groups,
           lambda c: f"does not fit: {c.samples} samples cannot be divided into {c.num_groups} groups")
      for name in ("num_samples", "num_groups")],
    Rule("target_accept", lambda c: c.learn_step_size == "on", "does not go with --learn_step_size on"),
    Rule("objective", lambda c: _objective(c).has_gradients and _network(c).normalises_batches,
         lambda c: f"does not go with --network {c.network}: its gradients with respect to z would pass through batch "
         "normalisation"),
    Rule("gs_key", lambda c: not re.fullmatch(r"\w[\w.-]{0,99}", c.gs_key) or len(c.gs_key.encode()) > 255,
         "must be a folder name of letters, digits, '.', '_' and '-'"),
)  # fmt: skip
