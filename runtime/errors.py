"""Errors that end a command with one sentence instead of a traceback."""


class UserError(ValueError):
    """A mistake that the user can correct: a sentence that says what is wrong, what was expected and how to mend it."""


class DataError(ValueError):
    """A data set is not available as asked: what is wrong, what was expected and how to mend it."""


class RunError(RuntimeError):
    """A run started and could not continue; its folder keeps what was finished."""
