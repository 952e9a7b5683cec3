"""Whether a training fits into memory, and which settings to lower where it does not."""

import math

import models
from runtime.errors import UserError
from runtime.memory import memory
from training.batches import VALIDATION_BATCH


def smaller(config, with_batch=True):
    """The settings to lower where memory is too small, the one that costs most first, as the end of a sentence.

    Without `with_batch` it is too small for something that does not depend on the batch.
    """
    costs = {"batch_size": (1 + config.decodings) * config.batch_size} if with_batch else {}  # encoded, and decoded
    if with_batch and config.samples > 1:  # in validation, more of them make a smaller batch
        costs["num_samples"] = config.decodings * config.batch_size
    if config.has_pseudo_inputs:
        costs["num_pseudo_inputs"] = config.num_pseudo_inputs  # which go through the encoder only
    names = sorted(costs, key=costs.get, reverse=True)
    if config.is_sized or config.is_deep or not names:
        names.append("channels" if config.is_deep else "network_size" if config.is_sized else "latent_dim")
    values = {"num_samples": config.samples}
    flags = [f"--{name} {values.get(name, getattr(config, name))}" for name in names]
    return f"lower {' or '.join(filter(None, (', '.join(flags[:-1]), flags[-1])))}"


COPIES = 4  # of the weights that training holds: they, their gradient and Adam's two moments


def check_weights(config, image_shape):
    """Raises UserError where the weights and what training adds to them cannot fit, before they are made."""
    copies = COPIES + (config.accumulate > 1)
    needed = copies * 4 * sum(math.prod(shape) for shape in models.weight_shapes(config, image_shape))
    if needed > (there := memory()):
        raise UserError(
            f"weights and optimizer alone need {needed / 2**30:.0f} GiB, this machine has {there / 2**30:.0f}; "
            f"{smaller(config, with_batch=False)}"
        )


def check_step(config, model):
    """Raises UserError where a step cannot fit: on most machines its process would be killed without a word.

    The estimate leans to the low side: what a decoder computes and, in training, its gradient, for each pass through a
    network.
    """
    pseudo_inputs = config.num_pseudo_inputs if config.has_pseudo_inputs else 0
    kept = model.decoder.floats_per_sample  # for the gradient; without one, a deep decoder holds on to one layer only
    at_once = getattr(model.decoder, "floats_at_once", kept)
    steps = {
        "training": 2 * ((1 + config.decodings) * config.batch_size + pseudo_inputs) * kept,
        "validation": (2 * VALIDATION_BATCH + pseudo_inputs) * at_once,
    }
    kind = max(steps, key=steps.get)
    needed = models.PRECISIONS[config.precision].bytes * steps[kind]
    if needed > (there := memory()):
        sizes = f"{needed / 2**30:.0f} GiB, this machine has {there / 2**30:.0f}"
        raise UserError(f"a {kind} step needs some {sizes}; {smaller(config, with_batch=kind == 'training')}")
