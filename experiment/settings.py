"""How one setting of a run is declared and checked."""

import dataclasses
import math
import typing

from runtime.errors import UserError
from runtime.rules import shown

INT32 = 2**31 - 1
TOPICS = ("data", "model", "prior", "bound", "optimisation", "deep models", "runs", "grid", "machine")  # of flags


def setting(
    default, topic, help, *, common=False, tag=None, low=None, high=math.inf, above=None, choices=None, words=()
):
    """A field of `Config`, from which its flag, its checks and its part of the training id are made.

    `topic` is one of TOPICS, under which --help TOPIC lists the flag; --help lists it if it is `common`.
    A field with a `tag` changes the numbers: "" has a place of its own in the training id, any other tag names its
    suffix. A field without one says only where things lie or how fast they run. `low` <= value <= `high`, or
    `above` < value. None is allowed where it is the default. `words` are what the flag takes for values of another
    type, pairs of a word and its value. One without a `help` has no flag: training finds its value. All of this holds
    for each value of a list, a field of type tuple[int, ...] or the like.
    """
    bounds = {"low": low, "high": high, "above": above, "choices": choices, "words": dict(words)}
    about = {"topic": topic, "help": help, "common": common, "tag": tag}
    return dataclasses.field(default=default, metadata=about | bounds)


def is_list(field):
    """Whether the value of a setting is a tuple of values of one kind; its flag takes one value or more."""
    return typing.get_origin(field.type) is tuple


def kind_of(field):
    """The type of a setting, or of each of its values if it is a list."""
    return typing.get_args(field.type)[0] if is_list(field) else field.type


def checked(field, value):
    """The value of a setting, a whole number made a float where that is its kind. Raises UserError for a wrong one.

    Of a list, a tuple; one value alone is a list of it.
    """
    if value is None and field.default is None:
        return None
    if not is_list(field):
        return _checked(field, value)
    if value in ([], ()):
        raise UserError(f"--{field.name} needs one value or more")
    return tuple(_checked(field, one) for one in (value if isinstance(value, list | tuple) else [value]))


def _checked(field, value):
    meta, flag, kind = field.metadata, f"--{field.name}", kind_of(field)
    if type(value) is str and value in meta["words"].values():
        return value
    if kind is float and type(value) is int and abs(value) < INT32:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"{flag} {shown(value)} must be {kind.__name__}, not {type(value).__name__}")
    if type(value) is float and not math.isfinite(value):
        raise UserError(f"{flag} {value} must be a finite number")
    if meta["choices"] and value not in meta["choices"]:
        raise UserError(f"{flag} {shown(value)} is unknown; choose from {', '.join(meta['choices'])}")
    at_most = "" if math.isinf(meta["high"]) else f" and at most {meta['high']}"
    if meta["above"] is not None and not meta["above"] < value <= meta["high"]:
        raise UserError(f"{flag} {value} must be more than {meta['above']}{at_most}")
    if meta["low"] is not None and not meta["low"] <= value <= meta["high"]:
        raise UserError(f"{flag} {value} must be at least {meta['low']}{at_most}")
    return value
