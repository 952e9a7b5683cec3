"""Registries of models, priors, networks, bounds and likelihoods, and what builds a model from a Config.

The registries import no Keras, so that a script can list the names before the backend is chosen.
"""

import concurrent.futures
import contextlib
import functools
import importlib
import traceback
from typing import NamedTuple

import numpy as np


class ModelEntry(NamedTuple):
    """A model: `path` of its class, `settings`, its smallest number of latent dimensions.

    Here as in the other registries, `settings` are those that not all entries have. The `path` of a user's own class is
    a function that returns it (see contract.py).

    `is_deep`: a hierarchy of many layers whose sizes follow from its scales; `is_exact`: the density of its prior can
    be computed, not only estimated.
    """

    path: str
    settings: tuple
    smallest_latent: int = 1
    is_deep: bool = False
    is_exact: bool = True


class PriorEntry(NamedTuple):
    """A prior: `path` of its class, whether it has K components, and whether these are made from pseudo-inputs.

    Its class takes those of its `settings` that do not describe the pseudo-inputs.
    """

    path: str
    settings: tuple = ()
    has_components: bool = True
    has_pseudo_inputs: bool = True


class NetworkEntry(NamedTuple):
    """A family of networks: `path` of its factory, its models and its settings.

    `is_autoregressive`: pixels depend on each other, so drawing an image takes one pass for each pixel.
    `normalises_batches`: in training, the terms of an image depend on the rest of its batch. `is_dense`: it has no
    convolutions. `starts_at_mean`: training gives its decoder the mean of the training images to `start_at`.
    """

    path: str
    models: tuple
    settings: tuple = ()
    is_autoregressive: bool = False
    normalises_batches: bool = False
    is_dense: bool = False
    starts_at_mean: bool = False


class ObjectiveEntry(NamedTuple):
    """An objective: `path` of its class, default and smallest number of samples, columns it adds to the history.

    `has_gradients`: it needs gradients with respect to z; `is_annealed`: it runs chains of several steps.
    """

    path: str
    samples: int
    fewest: int
    logged: tuple
    settings: tuple = ()
    has_gradients: bool = False
    is_annealed: bool = False


class PrecisionEntry(NamedTuple):
    """A precision: bytes per activation, and whether the loss is scaled so that small gradients do not underflow."""

    bytes: int
    scales_loss: bool = False


SHALLOW = ("prior", "network", "posterior", "latent_dim", "hidden_units")
TWO = ("latent_dims", "upper_units")  # of two layers
DEEP = ("scales", "channels", "bottleneck", "encoder_blocks", "block_activation")
SCORE = ("score_channels", "score_blocks", "score_dropout")  # of the network that predicts noise
DIFFUSION = ("context", "context_size", "diffusion_steps", "gamma_min", *SCORE, "noise_schedule", "pretrain_prior")
MODELS = {
    "vae": ModelEntry("vae.VAE", SHALLOW),
    "hvae": ModelEntry("hvae.HVAE", (*SHALLOW, *TWO), smallest_latent=2),
    "markov": ModelEntry("markov.Markov", (*SHALLOW, *TWO), smallest_latent=2),
    "ladder": ModelEntry("ladder.Ladder", (*DEEP, "prior"), is_deep=True),
    "dvp": ModelEntry("dvp.DVP", (*DEEP, *DIFFUSION), is_deep=True, is_exact=False),
}
PSEUDO_INPUTS = ("num_pseudo_inputs", "pseudo_init")
PRIORS = {
    "standard": PriorEntry("priors.StandardPrior", has_components=False, has_pseudo_inputs=False),
    "mog": PriorEntry("priors.MixturePrior", PSEUDO_INPUTS[:1], has_pseudo_inputs=False),
    "vamp": PriorEntry("priors.VampPrior", PSEUDO_INPUTS),
    "vampdata": PriorEntry("priors.VampDataPrior", PSEUDO_INPUTS[:1]),
    "weightedvamp": PriorEntry("priors.WeightedVampPrior", PSEUDO_INPUTS),
    "vampmixture": PriorEntry("priors.VampMixturePrior", PSEUDO_INPUTS),
    "lars": PriorEntry("priors.ResampledPrior", ("acceptance_units", "num_proposals"), False, False),
    "exemplar": PriorEntry("priors.ExemplarPrior", ("num_exemplars",), False, False),
    "flow": PriorEntry("priors.FlowPrior", ("num_couplings", "coupling_width"), False, False),
}
TO_TWO, UNITS = ("vae", "hvae", "markov"), ("hidden_units",)
NETWORKS = {
    "conv": NetworkEntry("networks.ConvNetworks", TO_TWO, (*UNITS, "network_size", "activation")),
    "mlp": NetworkEntry("networks.DenseNetworks", TO_TWO, UNITS, is_dense=True),
    "dense": NetworkEntry("plain.PlainNetworks", TO_TWO, (*UNITS, "activation"), is_dense=True, starts_at_mean=True),
    "mcvae": NetworkEntry("mcvae.McvaeNetworks", ("vae",), ("activation",)),
    "gatedconv": NetworkEntry("networks.GatedConvNetworks", ("hvae",), UNITS),
    "pixel": NetworkEntry("pixelcnn.pixel_networks", ("hvae",), UNITS, is_autoregressive=True, normalises_batches=True),
}  # fmt: skip
WEIGHED, WALKED = ("bound", "ess"), ("bound", "ess", "acceptance", "diverged")
STEPS = ("num_steps", "step_size", "step_rule", "target_accept", "learn_schedule", "learn_step_size", "log_steps")
CHAINS = {"has_gradients": True, "is_annealed": True}
OBJECTIVES = {
    "elbo": ObjectiveEntry("objectives.Elbo", 1, 1, ()),
    "iwae": ObjectiveEntry("objectives.Iwae", 5, 1, WEIGHED),
    "dreg": ObjectiveEntry("objectives.Dreg", 5, 1, WEIGHED, has_gradients=True),
    "miwae": ObjectiveEntry("objectives.Miwae", 64, 1, WEIGHED, ("num_groups",)),
    "ciwae": ObjectiveEntry("objectives.Ciwae", 64, 1, WEIGHED, ("elbo_weight",)),
    "piwae": ObjectiveEntry("objectives.Piwae", 64, 1, WEIGHED, ("num_groups",), has_gradients=True),
    "lmcvae": ObjectiveEntry("annealed.LangevinMcvae", 1, 1, WALKED, (*STEPS, "drift", "skip_below"), **CHAINS),
    "amcvae": ObjectiveEntry(
        "annealed.MetropolisMcvae", 5, 2, WALKED, (*STEPS, "acceptance_rule", "decision_warmup"), **CHAINS
    ),
}
POSTERIORS = {"gaussian": "networks.gaussian", "realnvp": "flows.FlowHead"}
LIKELIHOODS = {"bernoulli": "pixels.bernoulli", "logistic": "pixels.discretized_logistic",
               "mixlogistic": "pixels.mixture_of_logistics", "gaussian": "networks.gaussian_pixels"}  # fmt: skip
PRECISIONS = {  # Keras' names of them
    "float32": PrecisionEntry(4),
    "mixed_bfloat16": PrecisionEntry(2),
    "mixed_float16": PrecisionEntry(2, scales_loss=True),
}
CONTEXTS = {"cosine": "dvp.Frequencies", "pool": "dvp.Means"}
NOISE_SCHEDULES = {name: f"noise_schedules.{name.capitalize()}" for name in ("linear", "cosine", "learned")}
REGISTRIES = {
    "model": MODELS,
    "prior": PRIORS,
    "network": NETWORKS,
    "objective": OBJECTIVES,
}  # by the setting that picks


def is_own(entry):
    """Whether an entry is a user's own class."""
    return callable(entry.path)


def own_entries(config):
    """The user's own classes that the model of `config` has: a dict of the setting that picks to the class."""
    chosen = {pick: entries[getattr(config, pick)] for pick, entries in REGISTRIES.items() if config.has(pick)}
    return {pick: imported(entry.path) for pick, entry in chosen.items() if is_own(entry)}


def line_in(path, error):
    """Where in the file at `path` an error came up: " (line 12)", or "" if nowhere in it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f" (line {lines[-1]})" if lines else ""


def owners(setting):
    """Which entries a setting belongs to: {name of the setting that picks: names of entries}, {} if to all of them."""
    found = {pick: tuple(name for name, entry in entries.items() if setting in entry.settings)
             for pick, entries in REGISTRIES.items()}  # fmt: skip
    return {pick: names for pick, names in found.items() if names}


OWNED = tuple(dict.fromkeys(name for entries in REGISTRIES.values() for entry in entries.values()
                            for name in entry.settings))  # fmt: skip


def build(config, image_shape, dynamic=False, from_data=None):
    """The LatentModel that `config` describes, with fresh weights from Keras' global seed and noise from `config.seed`.

    `config` has the fields of `experiment.Config`. `image_shape` is (H, W, C). `dynamic`: training batches are grey and
    are binarized in each step. `from_data` are initial values from training data: the pseudo-inputs (K, H, W, C) in
    [0, 1] of a VampPrior, the `context_scale` of a DVP, or for exemplars the range of the training images, whether
    weights will be loaded or not; None for others if they will. Raises ValueError for an unknown activation or an image
    shape that does not fit.
    """
    import keras

    usual = keras.config.dtype_policy()
    # of layers that do not say float32, as all but hidden ones do; float32 is Keras' own floats: a test may want double
    keras.config.set_dtype_policy(keras.config.floatx() if config.precision == "float32" else config.precision)
    try:
        with contextlib.nullcontext() if not (own := own_entries(config)) else imported("contract.kept")(own):
            model = _built(config, image_shape, dynamic, from_data)
        model.image_shape = tuple(image_shape)
        if config.has("drift") and not model.objective.built:
            model.objective.build(model.image_shape)
        if config.refit:
            _freeze_all_but_prior(model, config.prior)
        return model
    finally:
        keras.config.set_dtype_policy(usual)


def _built(config, image_shape, dynamic, from_data):
    entry = MODELS[config.model]
    model_class, observation = imported(entry.path), imported(LIKELIHOODS[config.observation])(config.sigma)
    make_prior = _prior_maker(config, image_shape, from_data) if config.has("prior") else from_data
    if entry.is_deep:
        return model_class(config, image_shape, observation, objective(config), dynamic, make_prior)
    networks_class, activation = imported(NETWORKS[config.network].path), find_activation(config.activation)
    by_gradients = OBJECTIVES[config.objective].is_annealed and not (config.has("drift") and config.drift == "network")
    if by_gradients and not _is_twice_differentiable(activation):
        raise ValueError(
            f"activation {config.activation!r} has no second derivative here, which objective {config.objective} needs"
        )
    networks = networks_class(image_shape, observation, config.network_size, activation, config.hidden_units)
    if config.upper_units:
        networks.prior_units = config.upper_units[::-1]
    networks.head = functools.partial(imported(POSTERIORS[config.posterior]), networks.head)
    return model_class(sizes(config), networks, make_prior, objective(config), dynamic, config.seed)


def _prior_maker(config, image_shape, from_data):
    """What makes the prior over the top layer from its size and its encoder."""
    prior_class = imported(PRIORS[config.prior].path)
    if from_data is None:
        from_data = np.zeros((config.num_pseudo_inputs, *image_shape), "float32")
    if is_own(PRIORS[config.prior]):
        prior_class = imported("contract.completed")(prior_class)
    own = {name: getattr(config, name) for name in PRIORS[config.prior].settings if name not in PSEUDO_INPUTS}
    return functools.partial(prior_class, pseudo_inputs=from_data, **own)


def sizes(config):
    """Latent dimensions of each layer of a model that is not deep, the top one first, which has the larger half."""
    if MODELS[config.model].smallest_latent == 1:
        return (config.latent_dim,)
    return config.latent_dims or ((config.latent_dim + 1) // 2, config.latent_dim // 2)


def _freeze_all_but_prior(model, name):
    """The ELBO's gradient is then that of the mean of log p(z) over draws of q(z|x): p(z) is fitted to these.

    A frozen layer's batch normalisation uses its moving averages and leaves them as they are.
    """
    for layer in model.layers:
        layer.trainable = layer is model.top_prior
    if not model.trainable_variables:
        raise ValueError(f"prior {name} has no weights that could be fitted")


def latent_dim(config, image_shape):
    """Latent dimensions of all layers of the model that `build` would return. Raises as `build` does."""
    if not MODELS[config.model].is_deep:
        return config.latent_dim
    from .hierarchy import scales_of

    layers = sum(count * height * width for count, height, width in scales_of(config.scales, image_shape))
    context = config.context_size**2 if config.has("context_size") else 0
    return image_shape[2] * (layers + context)


def objective(config):
    """The objective that `config` names and describes."""
    entry = OBJECTIVES[config.objective]
    made = imported(entry.path)(config)
    if is_own(entry):
        made.logged = entry.logged
    return made


def check_own(config, model):
    """Raises ValueError where a user's own class does not keep the contract; returns what cannot be checked, or ""."""
    own = own_entries(config)
    return imported("contract.check")(own, model) if own else ""


def blank_weights(config, image_shape, from_data=None):
    """The `named_weights` of the model that `build` would return, none of them allocated. Raises as `build` does."""
    from .weight_names import named_weights

    own_entries(config)  # a user's file runs here, not in the thread without values
    return named_weights(unallocated(lambda: build(config, image_shape, from_data=from_data)))


def unallocated(make):
    """What `make()` returns, layers or models, whose weights have shapes and no values.

    In a thread of its own: Keras notes in each thread what weights have no value yet, and would give them one later on.
    """
    import keras

    def made():
        with keras.StatelessScope(initialize_variables=False):
            return make()

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(made).result()


def find_activation(name):
    """The Keras activation of that name. Raises ValueError if there is none that maps features one to one."""
    from keras import activations, ops

    others = ("get", "serialize", "deserialize")
    names = sorted(n for n in dir(activations) if n.islower() and n[0] != "_" and n not in others)
    if name not in names:
        raise ValueError(f"unknown activation {name!r}; Keras knows {', '.join(names)}")
    activation = activations.get(name)
    with contextlib.suppress(TypeError):  # it wants arguments of its own, as threshold does
        if activation(ops.zeros((1, 4))).shape == (1, 4):
            return activation
    raise ValueError(f"activation {name!r} changes the number of features, or needs arguments: it cannot be used here")


def _is_twice_differentiable(activation):
    from keras import ops

    from .gradients import value_and_gradient

    def slope(z):
        return value_and_gradient(lambda z: (ops.sum(activation(z), axis=-1), ()), z)[2], ()

    try:
        value_and_gradient(slope, ops.linspace(-1.0, 1.0, 6)[None])  # None where it is zero throughout
    except LookupError:  # TensorFlow lacks the derivative of some derivatives, as softsign's
        return False
    return True


def imported(path):
    """What an entry of a registry names by its `path`, FILE.NAME or a function that returns it: a class or function."""
    if callable(path):
        return path()
    module, name = path.split(".")
    return getattr(importlib.import_module(f".{module}", __package__), name)
