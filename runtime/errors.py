"""What ends a command with a sentence in the place of a traceback."""


class UserError(ValueError):
    """What a person can mend: a sentence that says what is wrong, what was expected and how to mend it."""


class DataError(ValueError):
    """A data set cannot be had as asked: what is wrong, what was expected and how to mend it."""


class RunError(RuntimeError):
    """A run that started and could not go on; its folder keeps what was finished."""
