"""The settings of a run that change its numbers, and the training id that is made of them."""

import dataclasses

import models


def settings(config):
    """The settings that change the numbers, by name, without those that mean nothing beside the others.

    A likelihood, a binarization, a number of samples, an acceptance and latent dimensions that come to the usual ones
    are written so, as `auto` or None, if that is known before the images are; a checksum by its first 8 digits.
    """
    numbers = [field.name for field in dataclasses.fields(config) if field.metadata["tag"] is not None]
    found = {name: getattr(config, name) for name in numbers if config.has(name)}
    if config.observation == config.source.likelihood and not config.is_folder:
        found["likelihood"] = "auto"
    is_open = config.is_folder and config.likelihood == "auto"  # as in the command: no id may depend on the images
    if not is_open and config.binarization == dataclasses.replace(config, binarize="auto").binarization:
        found["binarize"] = "auto"
    if config.samples == models.OBJECTIVES[config.objective].samples:
        found["num_samples"] = None
    if config.acceptance == dataclasses.replace(config, target_accept=None).acceptance:
        found["target_accept"] = None
    if config.latent_dims == models.sizes(dataclasses.replace(config, latent_dims=None)):
        found["latent_dims"] = None
    if config.observation != "gaussian":
        del found["sigma"]
    if config.refit is not None:
        found["refit"] = config.refit.rpartition("@")[2][:8]
    return found


def suffixes(config):
    """The suffix of each setting that has one and is not as usual: a dict of name to text."""
    found = settings(config)
    changed = [field for field in dataclasses.fields(config) if found.get(field.name, field.default) != field.default]
    tags = {field.name: field.metadata["tag"] for field in changed}
    texts = {name: "-".join(map(str, one)) if isinstance(one := found[name], tuple) else one for name in tags}
    return {name: f"_{tag}{texts[name]}" for name, tag in tags.items() if tag}


def training_id(config):
    """`<data_set>_<model>_<prior>_bs<B>_dim<D>_factor<F>_epochs<E>` and a suffix for each other changed setting.

    A deep model is `<data_set>_<model>_L<layers>_c<channels>_bs<B>_epochs<E>`. A network without sizes has its name
    in place of `factor<F>`; an unusual posterior or objective comes before the suffixes. A user's own images are
    called `folder-<name>-<8 hex digits of the path>`.
    """
    name = f"{config.source.name}_{config.model}"
    if config.is_deep:
        name += f"_{config.prior}" * (config.prior != "standard")
        name += f"_L{config.num_layers}_{config.size}_bs{config.batch_size}"
    else:
        name += f"_{config.prior}_bs{config.batch_size}_dim{config.latent_dim}_{config.size}"
    posterior = "" if config.posterior == "gaussian" else f"_{config.posterior}"
    objective = "" if config.objective == "elbo" else f"_{config.objective}"
    return f"{name}_epochs{config.epochs}{posterior}{objective}" + "".join(suffixes(config).values())
