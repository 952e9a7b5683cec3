"""Whether a training fits into memory, and which settings to lower if it does not."""

import math

import models
from runtime.errors import UserError
from runtime.memory import memory
from training.batches import VALIDATION_BATCH


def smaller(config, with_batch=True):
    """Which settings to lower if memory is too small, the most expensive one first, as the end of a sentence.

    Without `with_batch`, settings that change only the batch are left out.
    """
    costs = {"batch_size": (1 + config.decodings) * config.batch_size} if with_batch else {}  # encoded once, decoded
    if with_batch and config.samples > 1:  # in validation, more samples make the batch smaller
        costs["num_samples"] = config.decodings * config.batch_size
    if config.has_pseudo_inputs:
        costs["num_pseudo_inputs"] = config.num_pseudo_inputs  # encoded only
    if config.has("num_exemplars"):
        costs["num_exemplars"] = config.num_exemplars
    names = sorted(costs, key=costs.get, reverse=True)
    sizes = [name for name in ("channels", "network_size") if name in config.settings]
    names += sizes if sizes or names else ["latent_dim"]
    values = {"num_samples": config.samples}
    flags = [f"--{name} {values.get(name, getattr(config, name))}" for name in names]
    return f"lower {' or '.join(filter(None, (', '.join(flags[:-1]), flags[-1])))}"


COPIES = 4  # arrays for each weight in training: itself, its gradient and Adam's two moments


def check_weights(config, image_shape, from_data=None):
    """Raises UserError if weights, gradients and the optimizer's moments do not fit, before the weights are made."""
    copies = COPIES + (config.accumulate > 1)
    needed = (
        copies * 4 * sum(math.prod(one.shape) for one in models.blank_weights(config, image_shape, from_data).values())
    )
    if needed > (there := memory()):
        sizes = f"{needed / 2**30:.0f} GiB, this machine has {there / 2**30:.0f}"
        raise UserError(f"weights and optimizer alone need {sizes}; {smaller(config, with_batch=False)}")


def check_step(config, model):
    """Raises UserError if a step does not fit: most machines would kill the process without a message.

    The estimate is a lower one: a decoder's activations and, in training, their gradient, for each pass through a
    network.
    """
    pseudo_inputs = config.num_pseudo_inputs if config.has_pseudo_inputs else 0
    pseudo_inputs += config.num_exemplars if config.has("num_exemplars") else 0
    kept = model.decoder.floats_per_sample  # for the gradient; without one, a deep decoder keeps only one layer
    at_once = getattr(model.decoder, "floats_at_once", kept)
    steps = {"training": 2 * ((1 + config.decodings) * config.batch_size + pseudo_inputs) * kept}
    steps |= {"validation": (2 * VALIDATION_BATCH + pseudo_inputs) * at_once}
    kind = max(steps, key=steps.get)
    needed = models.PRECISIONS[config.precision].bytes * steps[kind]
    if needed > (there := memory()):
        sizes = f"{needed / 2**30:.0f} GiB, this machine has {there / 2**30:.0f}"
        raise UserError(f"a {kind} step needs some {sizes}; {smaller(config, with_batch=kind == 'training')}")
