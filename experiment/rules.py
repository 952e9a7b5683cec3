"""Which settings of a run go together: one table, which runtime/rules.py checks."""

import itertools
import re

import models
from runtime.rules import Rule

MOST_LAYERS = 256  # of latents
ON_TOP = tuple(name for name in models.PRIORS if name not in ("lars", "exemplar"))  # of a deep model
WITHOUT_GRADIENTS = tuple(name for name, entry in models.OBJECTIVES.items() if not entry.has_gradients)


def misplaced(config, name):
    """The end of the sentence on a setting that has no effect with this model, prior, network or objective, or None.

    Numbers and starts of pseudo-inputs are left alone beside priors without them: a grid of priors has both.
    """
    if config.has(name) or (name in models.PSEUDO_INPUTS and config.has("prior") and config.prior != "vampdata"):
        return None
    for pick, names in models.owners(name).items():
        if not config.has(pick):
            return f"does not go with --model {config.model}, which has no {pick}"
        if getattr(config, pick) not in names:
            return f"does not go with --{pick} {getattr(config, pick)}, but with {' or '.join(names)}"
    return None


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
    *[Rule(name, lambda c, name=name: not re.fullmatch(r"[a-z0-9_]{1,50}", getattr(c, name)),  # part of a folder's name
           "must be a name that keras.activations knows, as relu") for name in ("activation", "block_activation")],
    *[Rule(name, lambda c, name=name: misplaced(c, name), lambda c, name=name: misplaced(c, name))
      for name in models.OWNED],
    Rule("image_size", lambda c: not c.is_folder, "goes with --data_set folder:PATH"),
    Rule("scales", lambda c: not scales(c), "must be counts and rows, the finest first, as 4x14,4x7"),
    Rule("scales", lambda c: any(fine <= coarse for (_, fine), (_, coarse) in itertools.pairwise(scales(c))),
         "must begin with the finest, and have each once"),
    Rule("scales", lambda c: c.num_layers > MOST_LAYERS,
         lambda c: f"makes {c.num_layers} layers; at most {MOST_LAYERS} are allowed"),
    Rule("noise_schedule", lambda c: c.noise_schedule == "learned" and c.objective != "elbo",
         lambda c: f"goes with --objective elbo, not {c.objective}: it learns from the bound of infinitely many steps"),
    Rule("score_channels", lambda c: c.score_channels % 2, "must be even"),
    Rule("beta_start", lambda c: not c.beta_warmup, "needs --beta_warmup, the epochs in which it becomes --beta"),
    Rule("prior", lambda c: c.is_deep and c.prior not in ON_TOP,
         lambda c: f"does not go with --model {c.model}, which has {', '.join(ON_TOP)}"),
    Rule("objective", lambda c: c.is_deep and _objective(c).has_gradients,
         lambda c: f"goes with --model vae, hvae or markov; {c.model} has {', '.join(WITHOUT_GRADIENTS)}"),
    Rule("latent_dim", lambda c: c.latent_dim < _smallest(c),
         lambda c: f"is too small: {c.model} needs at least {_smallest(c)}"),
    Rule("latent_dims", lambda c: len(c.latent_dims) != 2, "must be two numbers, of the top and of the lower layer"),
    Rule("latent_dims", lambda c: sum(c.latent_dims) != c.latent_dim,
         lambda c: f"does not add up to --latent_dim {c.latent_dim}"),
    Rule("posterior", lambda c: c.posterior == "realnvp" and min(models.sizes(c)) < 2,
         lambda c: f"needs two dimensions in each layer: --latent_dim {2 * _smallest(c)} or more for {c.model}"),
    Rule("network", lambda c: not c.is_deep and c.model not in _network(c).models,
         lambda c: f"needs --model {' or '.join(_network(c).models)}"),
    Rule("lr_final", lambda c: c.lr_schedule in ("constant", "burda", "quarter"),
         "needs a --lr_schedule that falls to it"),
    Rule("lr_final", lambda c: c.lr_final > c.lr, lambda c: f"must be at most --lr {c.lr}"),
    Rule("lr_warmup", lambda c: c.lr_schedule == "plateau", "does not go with --lr_schedule plateau"),
    Rule("lr_warmup", lambda c: c.lr_warmup >= c.epochs, lambda c: f"must be less than --epochs {c.epochs}"),
    Rule("skip_norm", lambda c: c.accumulate > 1, "does not go with --accumulate, whose steps belong together"),
    Rule("diagnostics", lambda c: c.diagnostics == "on" and c.distribute != "none", "does not go with --distribute"),
    Rule("pretrain_prior", lambda c: c.pretrain_prior >= c.epochs, lambda c: f"must be less than --epochs {c.epochs}"),
    Rule("pretrain_prior", lambda c: c.accumulate > 1, "does not go with --accumulate"),
    Rule("ema", lambda c: _network(c).normalises_batches, lambda c: f"does not go with --network {c.network}: the "
         "statistics of its batch normalisation are not averaged"),
    Rule("posterior", lambda c: c.posterior == "realnvp" and c.has("num_exemplars"),
         "does not go with --prior exemplar, whose components are Gaussians"),
    Rule("distribute", lambda c: c.distribute == "processes" and (c.has("num_exemplars") or c.has("num_proposals")),
         lambda c: f"does not go with --prior {c.prior}"),
    Rule("prior", lambda c: c.prior == "flow" and models.sizes(c)[0] < 2,
         lambda c: f"needs two dimensions in the top layer: --latent_dim {_smallest(c) + 1} or more for {c.model}"),
    Rule("refit", lambda c: c.is_deep, lambda c: f"goes with --model vae, hvae or markov, not with {c.model}"),
    Rule("refit", lambda c: not re.fullmatch(r"[^/\\]{1,255}@[0-9a-f]{64}", c.refit), "must be ID@SHA256"),
    Rule("likelihood", _is_misfit, lambda c: f"is for grey pixels, and those of {c.data_set} are binarized"),
    Rule("binarize", _is_misfit, lambda c: f"does not go with the {c.observation} likelihood of {c.data_set}"),
    Rule("sigma", lambda c: c.observation != "gaussian", "goes with --likelihood gaussian"),
    Rule("num_samples", lambda c: c.samples < _objective(c).fewest,
         lambda c: f"is too small: {c.objective} needs at least {_objective(c).fewest}"),
    *[Rule(name, lambda c: c.has("num_groups") and c.samples % c.num_groups,
           lambda c: f"does not fit: {c.samples} samples cannot be divided into {c.num_groups} groups")
      for name in ("num_samples", "num_groups")],
    *[Rule(name, lambda c: c.learn_step_size == "on", "does not go with --learn_step_size on")
      for name in ("target_accept", "step_rule")],
    Rule("learn_schedule", lambda c: c.drift == "network",
         "does not go with --drift network: its bound does not depend on the schedule"),
    Rule("target_accept", lambda c: c.acceptance_rule == "barker" and c.target_accept >= 0.5,
         "must be below 0.5 with --acceptance_rule barker, which accepts half of even the smallest steps"),
    Rule("objective", lambda c: _objective(c).has_gradients and _network(c).normalises_batches,
         lambda c: f"does not go with --network {c.network}: its gradients with respect to z would pass through batch "
         "normalisation"),
    Rule("validation", lambda c: c.patience or c.lr_schedule == "plateau", lambda c: "leaves no validation bound that "
         f"--{f'patience {c.patience}' if c.patience else 'lr_schedule plateau'} could follow; leave one of them out"),
    Rule("snapshot_epochs", lambda c: max(c.snapshot_epochs) > c.epochs, lambda c: f"go beyond --epochs {c.epochs}"),
    Rule("track_weights", lambda c: c.track == "none", "goes with --track tensorboard or wandb"),
    Rule("watch_log_px", lambda c: not models.MODELS[c.model].is_exact,
         lambda c: f"does not go with --model {c.model}, the density of whose prior is not known exactly"),
    *[Rule(name, lambda c: c.validation == "none", "needs validation images, and --validation none has none")
      for name in ("watch_log_px", "diagnostics")],
    Rule("watch_log_px", lambda c: c.distribute != "none", lambda c: f"does not go with --distribute {c.distribute}"),
    Rule("gs_key", lambda c: not re.fullmatch(r"\w[\w.-]{0,99}", c.gs_key) or len(c.gs_key.encode()) > 255,
         "must be a folder name of letters, digits, '.', '_' and '-'"),
)  # fmt: skip
