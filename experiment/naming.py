"""The name of a run, made of its settings: its training id, and what decides which scores can be compared."""

import dataclasses

import models
from experiment.settings import CHAIN_SETTINGS

OF_PIXELS = ("binarize", "likelihood", "sigma")  # settings that say which pixels, by which distribution, are scored


def training_id(config):
    """`<data_set>_<model>_<prior>_bs<B>_dim<D>_factor<F>_epochs<E>` and a suffix for each other changed setting.

    A deep model is `<data_set>_<model>_L<layers>_c<channels>_bs<B>_epochs<E>`. A network without sizes has its name in
    place of `factor<F>`; an unusual posterior or objective comes before the suffixes. A user's own images are called
    `folder-<name>-<8 hex digits of the path>`.
    """
    name = f"{config.source.name}_{config.model}"
    if config.is_deep:
        name += f"_L{config.num_layers}_{config.size}_bs{config.batch_size}"
    else:
        name += f"_{config.prior}_bs{config.batch_size}_dim{config.latent_dim}_{config.size}"
    posterior = "" if config.posterior == "gaussian" else f"_{config.posterior}"
    objective = "" if config.objective == "elbo" else f"_{config.objective}"
    return f"{name}_epochs{config.epochs}{posterior}{objective}" + "".join(_suffixes(config).values())


def likelihood_tag(config):
    """The suffixes that say which pixels are scored by which distribution; scores with other ones differ in kind."""
    suffixes = _suffixes(config)
    return "".join(suffixes[name] for name in OF_PIXELS if name in suffixes)


def settings(config):
    """The settings that change the numbers, by name; what comes to the usual value is written so, as `auto` or None.

    Settings that mean nothing beside the others, as K without components, are left out.
    """
    numbers = [field.name for field in dataclasses.fields(config) if field.metadata["tag"] is not None]
    found = {name: getattr(config, name) for name in numbers if config.has(name)}
    if config.observation == config.source.likelihood:
        found["likelihood"] = "auto"
    if config.binarization == dataclasses.replace(config, binarize="auto").binarization:
        found["binarize"] = "auto"
    for name in ("num_samples", "target_accept"):
        usual = dataclasses.replace(config, **{name: None})
        if (config.samples, config.acceptance) == (usual.samples, usual.acceptance):
            found[name] = None
    used = dict.fromkeys(CHAIN_SETTINGS, models.OBJECTIVES[config.objective].is_annealed)
    used |= {"num_pseudo_inputs": config.has_components, "pseudo_init": config.has_pseudo_inputs}
    used |= {"network_size": config.is_sized, "activation": config.is_sized}
    used |= {"sigma": config.observation == "gaussian"}
    return {name: value for name, value in found.items() if used.get(name, True)}


def _suffixes(config):
    """The suffix of each setting that has one and is not as usual: a dict of name to text, in the order of fields."""
    found = settings(config)
    return {
        field.name: f"_{field.metadata['tag']}{found[field.name]}"
        for field in dataclasses.fields(config)
        if field.metadata["tag"] and found.get(field.name, field.default) != field.default
    }
