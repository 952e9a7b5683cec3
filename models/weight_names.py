"""Names of the weights of a model: the same in every process and on every backend."""

import collections
import math
import re

import keras


def named_weights(layer):
    """The weights of a layer or model by name: the attributes that lead to each, as `encoder/conv_1/kernel`.

    Layers in a list are numbered from 1 by the list's name, those of a Sequential by their kind, and `top_prior` is
    called prior. Raises ValueError where two weights of one layer have the same name.
    """
    found = {f"{name}/{rest}": weight for name, part in _parts(layer) for rest, weight in named_weights(part).items()}
    of_parts = {id(weight) for weight in found.values()}
    found = {weight.name: weight for weight in layer.weights if id(weight) not in of_parts} | found
    if len(found) < len(layer.weights):
        raise ValueError(f"two weights of {layer.name} have the same name; give each its own")
    return found


def weights_by_part(model):
    """The numbers of trained weights of encoder (q), decoder (p below the top), prior and whatever else: a dict."""
    are_trained, found = {id(weight) for weight in model.trainable_variables}, collections.Counter()
    for name, weight in named_weights(model).items():
        if id(weight) in are_trained:
            part = name.partition("/")[0]
            part = "encoder" if part.startswith(("encoder", "q_", "joint")) else part
            found["decoder" if part.startswith("p_") else part] += math.prod(weight.shape)
    return dict(found)


def _parts(layer):
    """Yields the layers right within a layer, each with its name."""
    if isinstance(layer, keras.Sequential):
        seen = collections.Counter()
        for one in layer.layers:
            kind = re.sub(r"\B([A-Z])", r"_\1", type(one).__name__.replace("2D", "")).lower()
            seen[kind] += 1
            yield f"{kind}_{seen[kind]}", one
        return
    for name, value in vars(layer).items():
        is_list = isinstance(value, list)
        for number, one in enumerate(value if is_list else [value], 1):
            if isinstance(one, keras.Layer) and not name.startswith("_"):
                yield f"{name.removesuffix('s')}_{number}" if is_list else name.removeprefix("top_"), one
