"""Figures as entries of registries, and where their files go: each is written whole and once."""

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

from plotting import style
from runtime import atomic
from runtime.errors import UserError
from runtime.text import bounded


class Figure(NamedTuple):
    """An entry of a registry of figures, all of which are drawn from one kind of argument.

    `draw(argument)` returns a matplotlib figure, where `applies(argument)`. `missing` is printed where it does not
    apply; without it, nothing is printed unless the figure was asked for by name.
    """

    name: str
    caption: str
    draw: Callable
    applies: Callable = lambda argument: True
    missing: str = ""
    costly: bool = False  # drawn only when asked for
    stem: str = "{subject}_{name}"  # of its file; `subject` is the run, or the group of runs


class Shown(NamedTuple):
    """A figure that was drawn: the name of its file, its caption, and its bytes."""

    name: str
    caption: str
    content: bytes


class Output:
    """Where figures go: to `folder` or, where that is None, to a folder that each call names. No file is written twice.

    `kind` is one of style.FORMATS, by default the first. `shown` lists, for each folder that a call named, what was
    drawn, in order. Raises UserError where a folder cannot be written to.
    """

    def __init__(self, folder=None, kind=None):
        self.folder, self.kind = folder, kind or style.FORMATS[0]
        self.written, self.shown = set(), defaultdict(list)
        if folder:
            with blamed_on(folder):
                folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):  # otherwise this would be found out after a minute of drawing
                raise UserError(f"cannot write {folder}: Permission denied; name another folder with --out")

    def draw(self, default, figure, argument, **names):
        """Writes the Figure of this argument, as `write` does; `names` are the words in its `stem`."""
        name = bounded(f"{figure.stem.format(name=figure.name, **names)}.{self.kind}")
        if content := self.write(default, name, lambda: style.rendered(figure.draw(argument), self.kind)):
            self.shown[default].append(Shown(name, figure.caption, content))

    def write(self, default, name, make):
        """Writes the bytes that `make()` returns to `name`, prints its path and returns them; None if it is there."""
        folder, name = self.folder or default, bounded(name)
        if folder / name in self.written:
            return None
        content = make()
        with blamed_on(folder / name):
            folder.mkdir(parents=True, exist_ok=True)
            atomic.write(folder / name, content)
        self.written.add(folder / name)
        print(folder / name, flush=True)
        return content


@contextlib.contextmanager
def blamed_on(path):
    """Turns an OSError of the block into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; name another folder with --out") from error
