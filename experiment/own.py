"""Priors, networks and objectives from a file of the user's, which become entries of the registries.

An entry is called CLASS-<first 8 digits of the file's sha256>, so no run depends on a path, and a file that has changed
is another entry. Only files that the user has named in this process are taken, never one that a run's folder names. A
file is read when it is named, and its code runs when a model is built of its class, from the bytes that were read.
"""

import ast
import hashlib
import os
import re
import shlex
import sys
import types
from functools import partial
from pathlib import Path
from typing import NamedTuple

import models
from runtime import atomic
from runtime.errors import UserError
from runtime.rules import shown

PICKS = {  # settings that take FILE.py:CLASS, and what holds where the class does not say otherwise
    "prior": models.PriorEntry("", has_components=False, has_pseudo_inputs=False),
    "network": models.NetworkEntry("", ("vae", "hvae")),
    "objective": models.ObjectiveEntry("", samples=1, fewest=1, logged=()),
}
FLAG = re.compile(r"(.+\.py)(?::(\w+))?(?:@([0-9a-f]{64}))?", re.ASCII | re.DOTALL)
MOST = 1 << 20  # bytes of a file


class Source(NamedTuple):
    """A file that the user has named: its path then, its sha256 and its bytes."""

    path: str
    sha256: str
    content: bytes


_files, _classes = {}, {}  # Sources by sha256; the Source, class and pick of entries by their name


def take(text):
    """Reads the file FILE.py[@SHA256], so that runs with its classes can be opened; returns the text."""
    found = FLAG.fullmatch(text)
    if not found or found[2]:
        raise UserError(f"--code {shown(text)} must be a file FILE.py")
    _read(found[1], found[3])
    return text


def name_of(pick, text):
    """The name of the entry of FILE.py:CLASS[@SHA256] for a setting of PICKS; any other text as it is.

    Raises UserError for a file that cannot be read, has another checksum, or no such class.
    """
    if ".py" not in text:
        return text
    found = FLAG.fullmatch(text)
    if not found or not found[2]:
        raise UserError(f"--{pick} {shown(text)} must be FILE.py:CLASS, as my_{pick}.py:My{pick.capitalize()}")
    return _entered(pick, _read(found[1], found[3]), found[2])


def _read(path, sha256):
    try:
        with atomic.opened(os.path.expanduser(path)) as file:
            content = file.read(MOST + 1)
    except (OSError, ValueError) as error:  # the latter for a zero byte
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    source = Source(os.path.abspath(os.path.expanduser(path)), hashlib.sha256(content).hexdigest(), content)
    if len(content) > MOST:
        raise UserError(f"{path} has more than {MOST:,} bytes, too many for a file of code")
    if sha256 not in (None, source.sha256):
        raise UserError(f"{path} has changed: its sha256 is {source.sha256}, and {sha256} was asked for")
    return _files.setdefault(source.sha256, source)


def _entered(pick, source, name):
    """Adds the entry of a class to its registry and returns its name."""
    try:
        tree = ast.parse(source.content)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise UserError(f"{source.path}{where} is no Python: {getattr(error, 'msg', error)}") from error
    found = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if name not in found:
        has = f"it has {', '.join(found)}" if found else "it has none"
        raise UserError(f"{source.path} has no class {name}; {has}")
    entry, about = f"{name}-{source.sha256[:8]}", _attributes(PICKS[pick], source, found[name])
    models.REGISTRIES[pick][entry] = PICKS[pick]._replace(path=partial(_load, source, name), **about)
    _classes[entry] = source, name, pick
    return entry


def _attributes(usual, source, node):
    """What the body of a class says of the fields of its entry, as `samples = 5`: plain values, as no code runs."""
    found = {}
    for statement in node.body:
        for target in getattr(statement, "targets", [getattr(statement, "target", None)]):
            if (name := getattr(target, "id", "path")) == "path" or name not in usual._fields or not statement.value:
                continue
            try:
                value = ast.literal_eval(statement.value)
            except ValueError:
                value = None
            kind, where = type(getattr(usual, name)), f"{source.path}, line {statement.lineno}: {node.name}.{name}"
            value = tuple(value) if kind is tuple and isinstance(value, list) else value
            words = value if kind is tuple and type(value) is tuple else ()
            if type(value) is not kind or not all(isinstance(one, str) and one.isidentifier() for one in words):
                raise UserError(
                    f"{where} must be a {'tuple of names' if kind is tuple else kind.__name__}, written out"
                )
            if kind is int and value < 1:
                raise UserError(f"{where} must be at least 1")
            if name == "settings" and (others := sorted(set(value) - set(models.OWNED))):
                raise UserError(f"{where} has {others[0]!r}, which is none of {', '.join(models.OWNED)}")
            found[name] = value
    return found


def _load(source, name):
    """The class: its file is run once in a process. Raises UserError where it fails."""
    title = f"{Path(source.path).stem}_{source.sha256[:8]}"
    if title not in sys.modules:
        module = sys.modules[title] = types.ModuleType(title)  # where dataclasses look for it
        module.__file__ = source.path
        try:
            exec(compile(source.content, source.path, "exec"), module.__dict__)
        except (Exception, SystemExit) as error:
            del sys.modules[title]
            said = f"{type(error).__name__}: {error}{models.line_in(source.path, error)}"
            hint = "; what it needs must be in the file itself or in an installed package"
            raise UserError(f"{source.path} fails: {said}{hint * isinstance(error, ImportError)}") from error
    return getattr(sys.modules[title], name)


def record(config):
    """What config.json says of the user's own classes of a Config: a dict by setting, {} if there are none."""
    found = {pick: _classes[getattr(config, pick)] for pick in PICKS if getattr(config, pick) in _classes}
    return {pick: {"file": Path(source.path).name, "class": name, "sha256": source.sha256}
            for pick, (source, name, _) in found.items()}  # fmt: skip


def require(path, code):
    """Enters the classes that the config.json of the run in `path` names, from files that the user has named.

    Raises UserError where that was not done, or the file is another one now.
    """
    for pick, one in code.items() if isinstance(code, dict) else [("", code)]:
        about = [one.get(key) for key in ("file", "class", "sha256")] if isinstance(one, dict) else [None]
        if pick not in PICKS or not all(isinstance(text, str) and text.isprintable() for text in about):
            raise UserError(f"{path} has a config.json whose code is {shown(code)}")
        file, name, sha256 = about
        if sha256 in _files:
            _entered(pick, _files[sha256], name)
            continue
        said = f"{path} was trained with {pick} {name:.60} of {file:.60}, of sha256 {sha256:.64}"
        namesakes = [one for one in _files.values() if Path(one.path).name == file]
        others = ", ".join(f"{one.path} with sha256 {one.sha256}" for one in namesakes or _files.values())
        mend = f"name it with --code {shlex.quote(file[:60])}" + f"; {others}, is another file" * bool(others)
        raise UserError(f"{said}; {f'{others}, is another file; put the former one back' if namesakes else mend}")


def flag_of(name):
    """What the flag of a setting takes for an entry: FILE.py:CLASS@SHA256, or the name of one that is not a user's."""
    source, own, _ = _classes.get(name, (None, None, None))
    return f"{source.path}:{own}@{source.sha256}" if source else name


def entered():
    """What another process has to call `name_of` with to have the same entries."""
    return [(pick, flag_of(name)) for name, (_, _, pick) in _classes.items()]


def words_for(*configs):
    """The words that evaluate.py, plot.py and --resume need beside the runs of these Configs."""
    names = [getattr(config, pick) for config in configs for pick in PICKS]
    files = dict.fromkeys(_classes[name][0].path for name in names if name in _classes)
    return [word for path in files for word in ("--code", os.path.relpath(path))]
