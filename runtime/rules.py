"""What goes with what: rules as data, and one checker that writes the sentence."""

import difflib
import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from runtime.errors import UserError
from runtime.text import word

PLAIN = re.compile(r"\w[\w.,+-]{0,50}")  # texts that need no quotes in a sentence


class Rule(NamedTuple):
    """Refuses a flag that is given where `refused(values)` is true.

    `reason` ends the sentence that begins with the flag and its value: a text, or a function of the values. `values`
    has every flag as an attribute: parsed arguments, or a Config.
    """

    flag: str
    refused: Callable
    reason: str | Callable


def needs(flag, owner, *kinds):
    """The Rule that `flag` goes with --`owner`, or, with `kinds`, with these values of it only."""
    if not kinds:
        return Rule(flag, lambda values: not is_given(values, owner), f"goes with --{owner}")
    said = f"goes with --{owner} {' or '.join(kinds)}"
    return Rule(flag, lambda values: getattr(values, owner, None) not in kinds, said)


def excludes(flag, *others, reason=""):
    """The Rules that `flag` does not go with any of the other flags; `reason` follows the sentence."""
    why = f", {reason}" if reason else ""
    return [Rule(flag, partial(is_given, flag=other), f"does not go with --{other}{why}") for other in others]


def is_given(values, flag):
    """Whether parsed arguments have this flag: neither None, nor False, nor left out."""
    value = getattr(values, flag, None)
    return value is not None and value is not False  # 0 is given


def check(rules, values, given=is_given):
    """Raises UserError with the sentence of the first Rule that refuses its flag, where `given(values, flag)`."""
    for rule in rules:
        if given(values, rule.flag) and rule.refused(values):
            reason = rule.reason(values) if callable(rule.reason) else rule.reason
            value = getattr(values, rule.flag)
            parts = value if isinstance(value, list) else [] if value is True else [value]
            parts = [word(part) if type(part) is tuple else part for part in parts]
            words = [part if isinstance(part, str) and PLAIN.fullmatch(part) else shown(part) for part in parts]
            raise UserError(f"{' '.join([f'--{rule.flag}', *words])} {reason}")


def meant(given, known):
    """The end of a sentence that proposes what is nearest to an unknown name, or an empty text."""
    return "".join(f"; did you mean {one}?" for one in difflib.get_close_matches(given, known, 1))


def shown(value, most=60):
    """A value as it stands in a sentence: texts are quoted, and what is long is cut."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
