"""Where figures go: their files, each written whole and once, and what is kept of them for a report."""

import contextlib
import os
from collections import defaultdict
from typing import NamedTuple

from plotting import style
from runtime import atomic
from runtime.errors import UserError


class Shown(NamedTuple):
    """A figure that was drawn: the name of its file, a sentence on what it shows, and its bytes."""

    name: str
    words: str
    content: bytes


class Output:
    """Where figures go: `folder`, or where it is None a folder of each run's. Each file is written once in a call.

    `kind` is one of figures.FORMATS, the first one by default. `shown` has a list of what was drawn for each usual
    folder, in the order of drawing. Raises UserError for a `folder` that cannot be written to.
    """

    def __init__(self, folder=None, kind=None):
        self.folder, self.kind = folder, kind or style.FORMATS[0]
        self.written, self.shown = set(), defaultdict(list)
        if folder:
            self._make(folder)
            if not os.access(folder, os.W_OK):  # else found out after a minute of drawing
                raise UserError(f"cannot write {folder}: Permission denied; name another folder with --out")

    def draw(self, default, stem, draw, *arguments):
        """Writes the figure that `draw(*arguments)` returns as `write` does; its docstring says what it shows."""
        words = " ".join(draw.__doc__.split("\n\n")[0].split())

        def make():
            content = style.rendered(draw(*arguments), self.kind)
            self.shown[default].append(Shown(f"{stem}.{self.kind}", words, content))
            return content

        self.write(default, f"{stem}.{self.kind}", make)

    def write(self, default, name, make):
        """Writes the bytes that `make()` returns to `name` and prints its path. Raises UserError if it cannot."""
        folder = self.folder or default
        if folder / name in self.written:
            return
        content = make()
        self._make(folder)
        with blamed_on(folder / name):
            atomic.write(folder / name, content)
        self.written.add(folder / name)
        print(folder / name, flush=True)

    def _make(self, folder):
        with blamed_on(folder):
            folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def blamed_on(path):
    """Turns an OSError of the block into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; name another folder with --out") from error
